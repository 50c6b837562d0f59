"""Errors of depth maps by the protocol of Eigen et al. (NIPS 2014): seven numbers a picture, then means.

Monocular depth from video is right up to a factor: each prediction is first scaled so that its median over
the pixels with truth is that of the truth. Means are of pictures, not of pixels; RMSE is a mean of roots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Lower is better for the first four, higher for the shares of pixels within a factor of 1.25, 1.25², 1.25³.
METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "delta_1", "delta_2", "delta_3")
#: Nearest and farthest truth that counts on KITTI, in metres; predictions are clamped to them.
CAPS = (1e-3, 80.0)
#: Shares of the picture's rows and columns that Garg et al. (ECCV 2016) keep, as everybody does on KITTI.
GARG_CROP = (0.40810811, 0.99189189, 0.03594771, 0.96405229)


def cropped(shape: tuple[int, int], shares: Sequence[float] = GARG_CROP) -> tuple[slice, slice]:
    """Rows and columns that a crop keeps of a picture of some shape; shares of sides, rounded down."""
    height, width = shape
    top, bottom, left, right = shares
    return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))


def counted(
    truth: Tensor, *, caps: tuple[float, float] = CAPS, crop: Sequence[float] | None = None
) -> Tensor:
    """The pixels (H, W) bool that count: nearest < truth < farthest, and within the crop."""
    inside = torch.zeros_like(truth, dtype=torch.bool)
    inside[cropped(truth.shape, crop) if crop is not None else ...] = True
    return (truth > caps[0]) & (truth < caps[1]) & inside


def median_ratio(prediction: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """What the prediction is multiplied by: the median of the truth over its own, of the pixels in the mask.

    Of an even number of pixels the median is the mean of the middle two, as NumPy's.

    Raises
    ------
    IndexError
        There is no pixel in the mask.
    """
    return _median(truth[mask]) / _median(prediction[mask])


def depth_errors(
    prediction: Tensor,
    truth: Tensor,
    *,
    caps: tuple[float, float] = CAPS,
    crop: Sequence[float] | None = None,
    scale: bool = True,
    region: Tensor | None = None,
) -> dict[str, float]:
    """The seven errors of one picture, with the factor that it was scaled by.

    Parameters
    ----------
    prediction : (H, W)
        Depths, above 0.
    truth : (H, W)
        Depths in the units of the caps; 0 where there is none.
    caps
        As of `counted`; the scaled prediction is clamped to them.
    crop
        Shares of sides, `GARG_CROP` on KITTI's raw depths; None: all of the picture.
    scale
        Whether the prediction is scaled to the truth's median.
    region : (H, W) bool, optional
        Where errors are looked at, such as boundaries; the scale is still that of the whole picture.

    Returns
    -------
    dict
        `METRICS`, and ``ratio``.

    Raises
    ------
    ValueError
        Shapes differ, a prediction is not finite and above 0, or no pixel has a truth that counts.
    """
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth must be (H, W), got {tuple(prediction.shape)}, {tuple(truth.shape)}"
        )
    if not bool((prediction > 0).all() and prediction.isfinite().all()):
        raise ValueError("predicted depths must be finite and above 0")
    mask = counted(truth, caps=caps, crop=crop)
    if not mask.any():
        raise ValueError(f"no pixel has a truth in {caps[0]}..{caps[1]} to compare with")
    ratio = median_ratio(prediction, truth, mask) if scale else prediction.new_ones(())
    if region is not None:
        mask = mask & region
        if not mask.any():
            raise ValueError("no pixel of the region has a truth to compare with")
    truth, found = truth[mask], (ratio * prediction[mask]).clamp(*caps)
    difference, factor = truth - found, torch.maximum(truth / found, found / truth)
    errors = {
        "abs_rel": (difference.abs() / truth).mean(),
        "sq_rel": (difference.square() / truth).mean(),
        "rmse": difference.square().mean().sqrt(),
        "rmse_log": (truth.log() - found.log()).square().mean().sqrt(),
    }
    for power in (1, 2, 3):
        errors[f"delta_{power}"] = (factor < 1.25**power).to(truth.dtype).mean()
    return {name: float(value) for name, value in errors.items()} | {"ratio": float(ratio)}


def mean_errors(pictures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over pictures; of their ratios the median, ``ratio``, and its relative spread, ``ratio_spread``.

    Raises
    ------
    ValueError
        There is no picture.
    """
    if not pictures:
        raise ValueError("there is no picture to average over")
    rows = {name: torch.tensor([one[name] for one in pictures], dtype=torch.double) for name in pictures[0]}
    means = {name: float(rows[name].mean()) for name in METRICS}
    middle = _median(rows["ratio"])
    return means | {
        "ratio": float(middle),
        "ratio_spread": float((rows["ratio"] / middle).std(correction=0)),
    }


def _median(values: Tensor) -> Tensor:
    middle = values.sort().values
    return (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
