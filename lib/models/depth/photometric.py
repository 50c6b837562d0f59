"""Photometric losses of self-supervised depth: how unlike a picture is what was drawn from its neighbours.

Godard et al., "Digging Into Self-Supervised Monocular Depth Estimation", ICCV 2019 (arXiv 1806.01260):
per-pixel minimum over neighbours, automatic masking of what does not move, edge-aware smoothness.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Of SSIM in the error, and its two constants for pictures in [0, 1].
SSIM_SHARE, C1, C2 = 0.85, 0.01**2, 0.03**2


class PhotometricError:
    """Errors against one batch of pictures, whose own share of SSIM is computed once.

    error = 0.85 · mean over colours of clamp((1 − SSIM)/2, 0, 1) + 0.15 · mean over colours of |a − b|, with
    uniform windows of 3×3 over reflected borders and variances E[x²] − E[x]², as Monodepth2 has it.

    Parameters
    ----------
    target : (B, C, H, W)
        In [0, 1]; no gradient flows to it.
    """

    def __init__(self, target: Tensor) -> None:
        self.target = target.detach()
        self._mean = _local_mean(self.target)
        self._variance = _local_mean(self.target.square()) - self._mean.square()

    def __call__(self, image: Tensor) -> Tensor:
        """Error of each pixel of pictures (B, C, H, W), as (B, 1, H, W)."""
        mean = _local_mean(image)
        variance = _local_mean(image.square()) - mean.square()
        covariance = _local_mean(image * self.target) - mean * self._mean
        similarity = (2 * mean * self._mean + C1) * (2 * covariance + C2)
        similarity = similarity / (
            (mean.square() + self._mean.square() + C1) * (variance + self._variance + C2)
        )
        unlike = ((1 - similarity) / 2).clamp(0, 1)
        return (SSIM_SHARE * unlike + (1 - SSIM_SHARE) * (image - self.target).abs()).mean(1, keepdim=True)


def _local_mean(x: Tensor) -> Tensor:
    """Means of 3×3 windows over reflected borders: sums over shifts, of rows and then of columns."""
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    x = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 9


def identity_errors(
    error: PhotometricError, sources: Sequence[Tensor], *, generator: torch.Generator | None = None
) -> Tensor:
    """Errors of the neighbours as they are, (B, sources, H, W), for `minimum_reprojection`.

    They depend on no scale: compute them once. Noise of 1e-5, as published, breaks the ties of pixels that
    nothing moves; the authors draw it anew for each scale, here all scales have the same.
    """
    errors = torch.cat([error(source) for source in sources], 1).detach()
    noise = torch.randn(errors.shape, generator=generator, dtype=errors.dtype, device=errors.device)
    return errors + 1e-5 * noise


def minimum_reprojection(reprojection: Tensor, identity: Tensor | None = None) -> Tensor:
    """The least error of each pixel over the neighbours, (B, H, W).

    Parameters
    ----------
    reprojection : (B, sources, H, W)
        Errors of the neighbours warped to the target.
    identity : (B, sources, H, W), optional
        From `identity_errors`. Where one of them is least, the pixel moves with the camera or has no texture:
        it then has no gradient (automatic masking).
    """
    least = reprojection.amin(1) if reprojection.shape[1] > 1 else reprojection[:, 0]
    return least if identity is None else torch.minimum(least, identity.amin(1))


def smoothness(disparity: Tensor, image: Tensor) -> Tensor:
    """Mean gradient of the disparity over its mean, less where the picture has edges: a scalar.

    mean |∂x d*| exp(−mean over colours of |∂x I|), and the same of y, with d* = d/(mean of d + 1e-7).

    Parameters
    ----------
    disparity : (B, 1, H, W)
    image : (B, C, H, W)
        Of the same resolution.

    Raises
    ------
    ValueError
        Resolutions differ.
    """
    if disparity.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"disparity and picture must be of one resolution, got {tuple(disparity.shape)} and "
            f"{tuple(image.shape)}"
        )
    relative = disparity / (disparity.mean((2, 3), keepdim=True) + 1e-7)
    total = disparity.new_zeros(())
    for axis in (2, 3):
        edges = image.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + (relative.diff(dim=axis).abs() * (-edges).exp()).mean()
    return total
