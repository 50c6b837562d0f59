"""Projective geometry in closed cases: identity, shifts, planes; SciPy's rotations; finite differences."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from lib.models.depth.view_synthesis import (
    KITTI_INTRINSICS,
    camera_motion,
    disparity_to_depth,
    normalized_intrinsics,
    rotation,
    sampling_grid,
    warped,
)

HEIGHT, WIDTH = 32, 64
K = normalized_intrinsics(KITTI_INTRINSICS.double(), HEIGHT, WIDTH)[None]


def still(count=1):
    return torch.eye(4).double().expand(count, 4, 4)


def moved(x=0.0, y=0.0, z=0.0):
    return camera_motion(torch.zeros(1, 3).double(), torch.tensor([[x, y, z]]).double())


def pixels(grid):
    """From −1…1 to whole coordinates of pixels' centres."""
    return (grid + 1) / 2 * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])


def places():
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([columns, rows], -1)[None].double()


def plane(depth=5.0):
    return torch.full((1, 1, HEIGHT, WIDTH), depth).double()


def test_published_depths():
    found = disparity_to_depth(torch.tensor([0.0, 0.5, 1.0]).double())
    torch.testing.assert_close(
        found, torch.tensor([100, 0.1998001998, 0.1], dtype=torch.double), rtol=1e-9, atol=0
    )
    with pytest.raises(ValueError, match="0 < nearest < farthest"):
        disparity_to_depth(torch.zeros(1), nearest=0)


def test_rotations_are_scipys():
    turns = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.from_numpy(Rotation.from_rotvec(turns.numpy()).as_matrix())
    torch.testing.assert_close(rotation(turns), expected, rtol=0, atol=1e-6)  # 1e-7 over the angle
    assert not torch.allclose(rotation(-turns), expected, atol=0.1)
    torch.testing.assert_close(rotation(torch.zeros(1, 3)), torch.eye(3)[None])
    first = rotation(torch.tensor([[0.1, -0.2, 0.3]]))[0, 0]
    torch.testing.assert_close(first, torch.tensor([0.9358, -0.3029, -0.1805]), rtol=0, atol=5e-5)


def test_a_motion_and_its_inverse():
    given = torch.tensor([[0.1, -0.2, 0.3]]).double(), torch.tensor([[1.0, 2.0, 3.0]]).double()
    there, back = camera_motion(*given), camera_motion(*given, inverse=True)
    torch.testing.assert_close(there @ back, still(), rtol=0, atol=3e-7)
    torch.testing.assert_close(there[:, :3, 3], given[1])
    assert not torch.allclose(there @ there, still(), atol=0.1)


def test_without_motion_every_pixel_is_its_own():
    torch.testing.assert_close(pixels(sampling_grid(plane(), still(), K)), places(), rtol=0, atol=2e-6)
    picture = torch.rand(1, 3, HEIGHT, WIDTH).double()
    torch.testing.assert_close(
        warped(picture, sampling_grid(plane(), still(), K)), picture, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("depth", [2.0, 5.0, 40.0])
def test_a_moved_plane_has_the_disparity_of_the_formula(depth):
    """f·b/D pixels; 0.7424 of them at a depth of 5 and 64 columns, as published code gives."""
    shift = pixels(sampling_grid(plane(depth), moved(x=0.1), K)) - places()
    expected = 0.58 * WIDTH * 0.1 / depth
    torch.testing.assert_close(shift[..., 0], torch.full_like(shift[..., 0], expected), rtol=1e-6, atol=2e-6)
    assert float(shift[..., 1].abs().max()) < 1e-5
    assert depth != 5 or expected == pytest.approx(0.7424)


def test_a_step_forward_enlarges_about_the_principal_point():
    found = pixels(sampling_grid(plane(4.0), moved(z=-1.0), K))
    centre = K[0, :2, 2]
    torch.testing.assert_close(found, centre + (places() - centre) * 4 / 3, rtol=0, atol=1e-5)


def test_a_turn_does_not_depend_on_depth():
    turn = camera_motion(torch.tensor([[0.02, 0.05, -0.03]]).double(), torch.zeros(1, 3).double())
    near, far = (sampling_grid(plane(depth), turn, K) for depth in (2.0, 50.0))
    torch.testing.assert_close(near, far, rtol=0, atol=1e-6)


def test_general_motions_are_those_of_points():
    """Point by point with homogeneous 4×4 matrices, as in the published code."""
    draw = torch.Generator().manual_seed(0)
    depth = 1 + 9 * torch.rand(1, 1, HEIGHT, WIDTH, generator=draw).double()
    motion = camera_motion(*(0.1 * torch.randn(2, 1, 3, generator=draw).double()))
    k = torch.eye(4).double()
    k[:3, :3] = K
    u = torch.cat([places()[0], torch.ones(HEIGHT, WIDTH, 1).double()], -1)
    points = (u @ torch.linalg.pinv(k)[:3, :3].T) * depth[0, 0, :, :, None]
    points = torch.cat([points, torch.ones(HEIGHT, WIDTH, 1).double()], -1) @ (k @ motion[0])[:3].T
    expected = points[..., :2] / (points[..., 2:] + 1e-7)
    torch.testing.assert_close(pixels(sampling_grid(depth, motion, K))[0], expected, rtol=1e-9, atol=1e-9)


def test_gradients():
    draw = torch.Generator().manual_seed(0)
    depth = (2 + torch.rand(1, 1, 3, 4, generator=draw)).double().requires_grad_()
    turn, shift = (0.1 * torch.randn(2, 1, 3, generator=draw)).double().requires_grad_().unbind(0)
    grid = lambda depth, turn, shift: sampling_grid(depth, camera_motion(turn, shift), K)  # noqa: E731
    assert torch.autograd.gradcheck(grid, (depth, turn, shift))


def test_other_shapes_are_refused():
    for given in ((plane()[0], still(), K), (plane(), still(2), K), (plane()[..., :1], still(), K)):
        with pytest.raises(ValueError, match="expected depth"):
            sampling_grid(*given)


def test_singular_intrinsics_are_refused():
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        sampling_grid(plane(), still(), torch.zeros_like(K))
