"""The photometric error against SSIM written out, minima and masks in closed cases, smoothness by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lib.models.depth.photometric import (
    PhotometricError,
    identity_errors,
    minimum_reprojection,
    smoothness,
)

ROWS, COLUMNS = torch.arange(32.0).double()[:, None], torch.arange(64.0).double()


def waves(phase):
    """The dossier's pictures: of channel c, 0.5 + 0.5 sin(0.3x + 0.2(c + 1)y + φ)."""
    return torch.stack([0.5 + 0.5 * torch.sin(0.3 * COLUMNS + 0.2 * c * ROWS + phase) for c in (1, 2, 3)])[
        None
    ]


def written_out(a, b, *, share=0.85, window=F.avg_pool2d):
    """Operation by operation, with pooling."""
    x, y = (F.pad(image, (1, 1, 1, 1), mode="reflect") for image in (a, b))
    mean_x, mean_y = window(x, 3, 1), window(y, 3, 1)
    var_x, var_y = window(x**2, 3, 1) - mean_x**2, window(y**2, 3, 1) - mean_y**2
    both = window(x * y, 3, 1) - mean_x * mean_y
    ssim = (2 * mean_x * mean_y + 0.01**2) * (2 * both + 0.03**2)
    ssim = ssim / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2))
    unlike = ((1 - ssim) / 2).clamp(0, 1)
    return (share * unlike + (1 - share) * (a - b).abs()).mean(1, keepdim=True)


def test_a_picture_is_like_itself():
    picture = torch.rand(2, 3, 8, 9).double()
    assert float(PhotometricError(picture)(picture).abs().max()) < 1e-12


def test_published_values():
    a, b = waves(0.0), waves(0.5)
    error = PhotometricError(a)(b).mean()
    assert float(error) == pytest.approx(0.1824527326, abs=1e-9)
    unlike = (error - 0.15 * (a - b).abs().mean()) / 0.85
    assert float(unlike) == pytest.approx(0.1868438186, abs=1e-9)
    assert float(PhotometricError(b)(a).mean()) == pytest.approx(float(error))


def test_the_error_is_that_written_out():
    a, b = torch.rand(2, 2, 3, 12, 16, generator=torch.Generator().manual_seed(0)).double()
    found = PhotometricError(a)(b)
    torch.testing.assert_close(found, written_out(a, b), rtol=1e-10, atol=1e-12)
    for broken in (
        written_out(a, b, share=0.8),
        written_out(a, b, window=lambda x, *_: F.max_pool2d(x, 3, 1)),
    ):
        assert float((found - broken).abs().max()) > 1e-3


def test_gradients():
    draw = torch.Generator().manual_seed(0)
    target, image = torch.rand(2, 1, 2, 4, 5, generator=draw).double()
    assert torch.autograd.gradcheck(PhotometricError(target), (image.requires_grad_(),))
    disparity = torch.rand(1, 1, 4, 5, generator=draw).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda d: smoothness(d, target), (disparity,))


def test_the_least_error_counts_pixel_by_pixel():
    errors = torch.tensor([[[[0.3, 0.1]], [[0.2, 0.4]]]])
    torch.testing.assert_close(minimum_reprojection(errors), torch.tensor([[[0.2, 0.1]]]))
    identity = torch.tensor([[[[0.5, 0.05]], [[0.25, 0.6]]]])
    torch.testing.assert_close(minimum_reprojection(errors, identity), torch.tensor([[[0.2, 0.05]]]))


def test_what_does_not_move_has_no_gradient():
    """A neighbour equal to the picture is least as it is: no depth could explain it better."""
    picture = torch.rand(1, 3, 8, 8)
    warped = torch.rand(1, 3, 8, 8, requires_grad=True)
    error = PhotometricError(picture)
    identity = identity_errors(error, (picture, torch.rand(1, 3, 8, 8)))
    minimum_reprojection(error(warped), identity).mean().backward()
    assert float(warped.grad.abs().max()) == 0
    minimum_reprojection(error(warped)).mean().backward()
    assert float(warped.grad.abs().max()) > 0


def test_noise_of_the_identity_is_small_and_drawn():
    picture = torch.rand(1, 3, 8, 8)
    error = PhotometricError(picture)
    first, again = (
        identity_errors(error, (picture,), generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert 0 < float(first.abs().max()) < 1e-4
    assert not first.requires_grad


def test_published_smoothness():
    disparity = (0.5 + 0.4 * torch.sin(0.1 * COLUMNS) * torch.cos(0.15 * ROWS))[None, None]
    assert float(smoothness(disparity, waves(0.0))) == pytest.approx(0.0715531212, abs=1e-9)
    assert float(smoothness(3 * disparity, waves(0.0))) == pytest.approx(0.0715531212, abs=1e-6)


def test_edges_of_the_picture_allow_edges_of_depth():
    disparity = torch.where(COLUMNS < 32, 1.0, 3.0).expand(1, 1, 32, 64)
    flat, edge = torch.zeros(1, 3, 32, 64).double(), torch.where(COLUMNS < 32, 0.0, 1.0).expand(1, 3, 32, 64)
    assert float(smoothness(disparity, flat)) == pytest.approx(1 / 63)  # |3 − 1| / 2 at one of 63 places
    assert float(smoothness(disparity, edge)) == pytest.approx(torch.e**-1 / 63)
    with pytest.raises(ValueError, match="one resolution"):
        smoothness(disparity, flat[..., :32])
