"""Made-up streets: closed cases of depth, views that agree with each other, the same for the same seed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.data import street_frames
from lib.data.street_frames import Drives, Frames, label_boundaries, render, render_drive
from lib.data.streets import (
    HEIGHT,
    LABELS,
    STREETS,
    Camera,
    Material,
    Street,
    Textures,
    drive,
    intrinsics,
    make_street,
)
from lib.models.depth.photometric import PhotometricError
from lib.models.depth.view_synthesis import sampling_grid, warped

SIZE = (48, 160)
WALL = Material("building", "brick", (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def textures() -> Textures:
    return STREETS.load("data")


def single(*surfaces) -> Street:
    street = Street()
    for name, *given in surfaces:
        getattr(street, name)(*given)
    return street


def rows_and_columns():
    return np.mgrid[: SIZE[0], : SIZE[1]]


def test_a_wall_has_its_depth_and_the_ground_that_of_the_formula(textures):
    street = single(("box", (-50, -20, 7.0), (50, HEIGHT, 8), WALL))
    street.flat.append((1, HEIGHT, -50, 50, -10, 100, 0))
    street.of_flat.append((Material("road", "gravel", (0.4,) * 3), 0.0, (0, 0, 0)))
    frames = render(street, [Camera(0, 0), Camera(0.3, 2)], textures, SIZE)
    k = intrinsics(SIZE)
    row = rows_and_columns()[0] - k[1, 2]
    for frame, wall in ((0, 7.0), (1, 5.0)):
        with np.errstate(divide="ignore"):
            ground = np.where(row > 0, HEIGHT * k[1, 1] / row, np.inf)
        np.testing.assert_allclose(frames.depth[frame], np.minimum(ground, wall), rtol=1e-5)
        road = frames.labels[frame].numpy() == LABELS["road"]
        assert np.array_equal(road, ground < wall)


def test_round_things(textures):
    street = single(
        ("cylinder", 0.0, 6.0, 0.5, -30.0, Material("pole", "gravel", (0.4,) * 3)),
        ("sphere", 3.0, 0.0, 6.0, 1.0, Material("vegetation", "grass", (0.2, 0.4, 0.2))),
    )
    frames = render(street, [Camera(0, 0)], textures, SIZE)
    k = intrinsics(SIZE)
    row, column = rows_and_columns()
    x, y = (column - k[0, 2]) / k[0, 0], (row - k[1, 2]) / k[1, 1]
    # of a ray (x, y, 1): |d|² t² − 2 (d·c) t + |c|² − r² = 0
    for label, square, towards, rest in (
        ("pole", x**2 + 1, 6 + 0 * x, 36 - 0.25),
        ("vegetation", x**2 + y**2 + 1, 3 * x + 6, 45 - 1),
    ):
        inside = towards**2 - square * rest
        seen = frames.labels[0].numpy() == LABELS[label]
        assert np.array_equal(seen, (inside > 0))
        with np.errstate(invalid="ignore"):
            expected = (towards - np.sqrt(inside)) / square
        np.testing.assert_allclose(frames.depth[0].numpy()[seen], expected[seen], rtol=1e-4)
    sky = frames.labels[0] == LABELS["sky"]
    assert (frames.depth[0][sky] == 0).all() and frames.plain[0][sky].all()
    assert not frames.plain[0][~sky].any()


def errors(frames: Frames, target: int, source: int, motion=None, factor=1.0):
    """Mean difference of a frame and its neighbour warped to it, 0…255, where the neighbour sees the same."""
    motion = frames.motion(target, source)[None] if motion is None else motion
    depth = frames.depth[target][None, None]
    grid = sampling_grid(factor * depth + (depth == 0) * 1e4, motion, frames.intrinsics[None])
    image = warped(frames.images[source][None].float(), grid)
    points = street_points(frames, target, source)
    seen = F.grid_sample(
        frames.depth[source][None, None], grid, mode="nearest", padding_mode="zeros", align_corners=True
    )
    valid = ((seen[0, 0] - points).abs() < 0.02 * points) & (frames.depth[target] > 0)
    valid &= (grid[0].abs() < 1).all(-1) & ~label_boundaries(frames.labels[target][None], 1)[0]
    return (image[0] - frames.images[target]).abs().mean(0), valid


def street_points(frames, target, source):
    """Depth in the source's camera of what each pixel of the target sees."""
    rows, columns = torch.meshgrid(*map(torch.arange, frames.depth.shape[1:]), indexing="ij")
    rays = torch.stack([columns, rows, torch.ones_like(rows)], -1).float() @ frames.intrinsics.inverse().T
    motion = frames.motion(target, source)
    return (rays * frames.depth[target][..., None]) @ motion[2, :3] + motion[2, 3]


def test_a_neighbour_warped_by_true_depth_and_motion_is_the_frame(textures):
    """Up to interpolation; of half the depth, or without motion, it is not."""
    for number in range(3):
        frames = render_drive(textures, seed=1, number=number, size=(96, 320))
        for source in (0, 2):
            difference, valid = errors(frames, 1, source)
            assert float(valid.float().mean()) > 0.5
            right = float(difference[valid].mean())
            wrong = [
                float(errors(frames, 1, source, motion=torch.eye(4)[None])[0][valid].mean()),
                float(errors(frames, 1, source, factor=0.5)[0][valid].mean()),
            ]
            assert right < 4
            assert min(wrong) > 1.5 * right


def test_the_photometric_error_of_the_true_depth_is_least(textures):
    """Of all that the neighbour sees too; up to interpolation it is nothing."""
    frames = render_drive(textures, seed=1, number=0, size=(96, 320))
    target, source = (frames.images[number][None] / 255 for number in (1, 0))
    depth = frames.depth[1][None, None] + (frames.depth[1] == 0) * 1e4
    valid = errors(frames, 1, 0)[1]

    def error(depth, motion):
        drawn = warped(source, sampling_grid(depth, motion, frames.intrinsics[None]))
        return float(PhotometricError(target)(drawn)[0, 0][valid].mean())

    motion = frames.motion(1, 0)[None]
    true = error(depth, motion)
    wrong = [error(0.5 * depth, motion), error(2 * depth, motion), error(depth, torch.eye(4)[None])]
    assert true < 0.05
    assert min(wrong) > 3 * true


def test_a_singular_pose_is_refused(textures):
    frames = render_drive(textures, seed=1, number=0, size=SIZE)
    frames.poses[0] = 0
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        frames.motion(1, 0)


def test_what_moves_breaks_the_static_world(textures):
    car = Material("car", "retina", (0.6, 0.1, 0.1), 0.1)
    street = Street()
    street.box((-1.0, 0.0, 6.0), (1.0, HEIGHT, 9.0), car, speed=-0.5, anchor=(-1.0, 0.0, 6.0))
    frames = render(street, [Camera(0, 0)] * 3, textures, SIZE)
    middle = SIZE[0] // 2 + 4, SIZE[1] // 2
    assert frames.depth[(slice(None), *middle)].tolist() == pytest.approx([6.0, 5.5, 5.0])


def test_whole_frames_cast_give_the_same(textures, monkeypatch):
    """Surfaces are looked at only where their corners say that they can be."""
    quick = [render_drive(textures, seed=2, number=k, frames=4, size=SIZE, moving=0.5) for k in range(2)]

    def everywhere(corners, pose, k, shape):
        return np.tile([0, shape[0] - 1, 0, shape[1] - 1], (len(corners), 1))

    monkeypatch.setattr(street_frames, "_extents", everywhere)
    for number, frames in enumerate(quick):
        whole = render_drive(textures, seed=2, number=number, frames=4, size=SIZE, moving=0.5)
        for name in ("images", "depth", "labels", "plain"):
            assert torch.equal(getattr(frames, name), getattr(whole, name)), name


def test_the_same_seed_is_the_same_street(textures):
    first, again, other, next_ = (
        render_drive(textures, seed=seed, number=number, size=SIZE).images
        for seed, number in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, next_)


def test_streets_have_what_they_are_for(textures):
    """All labels, thin things, plain surfaces and textured ones, near and far."""
    drives = [render_drive(textures, seed=0, number=k, frames=3) for k in range(6)]
    labels = torch.cat([one.labels for one in drives])
    depth = torch.cat([one.depth for one in drives])
    assert set(labels.unique().tolist()) == set(LABELS.values())
    assert 0.1 < float(torch.cat([one.plain for one in drives]).float().mean()) < 0.7
    assert float(depth[depth > 0].min()) < 4 and float(depth.max()) > 50
    band = label_boundaries(labels)
    assert 0.1 < float(band.float().mean()) < 0.5


def test_boundaries():
    labels = torch.zeros(1, 6, 12, dtype=torch.uint8)
    labels[..., 5:] = 3
    for width in (1, 2):
        found = label_boundaries(labels, width)[0]
        assert found[0].nonzero().flatten().tolist() == list(range(5 - width, 5 + width))
        assert (found == found[0]).all()


def test_samples_are_a_function_of_seed_and_step(textures):
    drives = Drives.render(textures, 3, seed=0, frames=4, size=SIZE)
    assert len(drives) == 6
    batch = drives.batch(1, 2, seed=0)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "images": (2, 3, 3, *SIZE), "labels": (2, *SIZE), "depth": (2, *SIZE), "intrinsics": (2, 3, 3),
        "motions": (2, 2, 4, 4),
    }  # fmt: skip
    again = drives.batch(1, 2, seed=0)
    assert all(torch.equal(value, again[name]) for name, value in batch.items())
    epoch = torch.cat([drives.batch(k, 2, seed=0, flip=False)["depth"] for k in range(3)])
    assert len({tuple(one.flatten().tolist()) for one in epoch}) == 6
    with pytest.raises(ValueError, match=r"batch_size must be in 1\.\.6"):
        drives.batch(0, 7, seed=0)


def test_mirrored_samples_have_mirrored_cameras(textures):
    """A principal point off the middle shows whether it moves along."""
    frames = render_drive(textures, seed=0, size=SIZE)
    off = frames.intrinsics.clone()
    off[0, 2] += 5
    sample = {
        mirror: street_frames._sample(
            Frames(frames.images, frames.depth, frames.labels, frames.plain, frames.poses, off),
            1,
            mirror=mirror,
        )
        for mirror in (False, True)
    }
    assert torch.equal(sample[True]["images"], sample[False]["images"].flip(-1))
    assert float(sample[True]["intrinsics"][0, 2]) == SIZE[1] - 1 - float(off[0, 2])
    assert float(off[0, 2]) == float(sample[False]["intrinsics"][0, 2])


def test_told_motions_draw_a_sample_from_its_neighbours_mirrored_or_not(textures):
    frames = render_drive(textures, seed=1, size=(96, 320))
    for mirror in (False, True):
        sample = street_frames._sample(frames, 1, mirror=mirror)
        before, target, after = sample["images"]
        depth = torch.where(sample["depth"] > 0, sample["depth"], 200.0)[None, None]
        for source, motion in zip((before, after), sample["motions"], strict=True):
            drawn = warped(source[None], sampling_grid(depth, motion[None], sample["intrinsics"][None]))[0]
            errors = [(one - target).abs().median() for one in (drawn, source)]
            assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: render(Street(), [], t, SIZE), "a frame or more"),
        (lambda t: render(Street(), [Camera(0, 0)], t, (1, 9)), "2×2 pixels or more"),
        (lambda t: make_street(np.random.default_rng(0), moving=2), "moving is a share"),
        (lambda t: label_boundaries(torch.zeros(1, 4, 4), 0), "at least 1 pixel"),
        (lambda t: Drives((render_drive(t, seed=0, frames=2, size=SIZE),)), "at least three frames"),
    ],
)
def test_other_settings_are_refused(textures, call, message):
    with pytest.raises(ValueError, match=message):
        call(textures)


def test_cameras_turn_as_they_say():
    pose = Camera(1.0, 2.0, yaw=0.1, pitch=0.05).pose
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    ahead = pose[:3, :3] @ [0, 0, 1]
    assert ahead[0] > 0 and ahead[1] < 0  # to the right and up
    cameras = drive(np.random.default_rng(0), 5)
    steps = [np.hypot(b.x - a.x, b.z - a.z) for a, b in itertools.pairwise(cameras)]
    assert min(steps) >= 0.4 and max(steps) <= 0.8 and np.ptp(steps) < 1e-9
