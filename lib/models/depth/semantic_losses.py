"""Losses of FSRE-Depth that read labels: the semantics-guided triplet loss, and cross-entropy.

Jung et al., ICCV 2021 (arXiv 2108.08829), as the authors' code has it (github.com/hyBlue/FSRE-Depth, MIT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BORDERS = ("official", "masked")


class TripletTerms:
    """What the semantics-guided triplet loss compares, pixel by pixel, at one resolution.

    With features of length 1, a pixel's *positives* are the pixels of its own label in the window around it,
    itself among them, its *negatives* the others; distances are √max(1e-9, 2 − 2 cos). A pixel counts as a
    boundary if it has at least ``window − 1`` of both.

    Cosines are symmetric: those of half of the window's offsets are computed, each as a sum over channels
    of two shifted views, and no copy of the features per offset is made. O(window²/2 · C) products per
    pixel, O(C + window²) memory.

    Parameters
    ----------
    features : (B, C, h, w)
        Of any length.
    labels : (B, h, w) integer
    window : int
        Odd side of the window.
    border : {"official", "masked"}
        What is outside the picture: negatives at distance √2, as in the authors' code, which makes boundaries
        of the two outer rings of every picture; or nothing.

    Attributes
    ----------
    positive, negative : (B, h, w)
        Mean distances; 0 of no pixels.
    boundary : (B, h, w) bool

    Raises
    ------
    ValueError
        A shape is another, the window even or below 3, or the border unknown.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, *, window: int = 5, border: str = "official"
    ) -> None:
        if labels.shape != (len(features), *features.shape[2:]):
            raise ValueError(
                f"features (B, C, h, w) and labels (B, h, w) do not fit: {tuple(features.shape)}, "
                f"{tuple(labels.shape)}"
            )
        if window < 3 or window % 2 == 0:
            raise ValueError(f"the window must be odd and at least 3, got {window}")
        if border not in BORDERS:
            raise ValueError(f"border must be one of {', '.join(BORDERS)}, got {border!r}")
        cosines = _PairProducts.apply(F.normalize(features, dim=1), window)
        distances = (2 - 2 * cosines).clamp_min(1e-9).sqrt()
        own, inside, alike = distances[:, 0], _no_pairs(cosines), _no_pairs(cosines)
        for number, (here, there) in enumerate(_pairs(window)):
            inside[:, number][here] = 1
            alike[:, number][here] = (labels[here] == labels[there]).to(alike.dtype)
        near, all_near = (_both_ends(distances[:, 1:] * pairs, window) + own for pairs in (alike, inside))
        positives, pixels = (_both_ends(pairs, window) + 1 for pairs in (alike, inside))
        if border == "official":
            outside = window**2 - pixels
            all_near, pixels = all_near + 2**0.5 * outside, pixels + outside
        negatives = pixels - positives
        self.positive = near / positives
        self.negative = (all_near - near) / negatives.clamp_min(1)
        self.boundary = (positives >= window - 1) & (negatives >= window - 1)

    def loss(self, margin: float = 0.3) -> Tensor:
        """Mean over all boundary pixels of max(0, positive − negative + margin); 0 where there are none."""
        hinge = (self.positive - self.negative + margin).clamp_min(0) * self.boundary
        return hinge.sum() / self.boundary.sum().clamp_min(1)


def triplet_loss(
    features: dict[int, Tensor],
    labels: Tensor,
    *,
    window: int = 5,
    margin: float = 0.3,
    border: str = "official",
) -> Tensor:
    """The semantics-guided triplet loss: Σ over levels s of the level's loss / 2^s.

    Parameters
    ----------
    features : dict of int to (B, C, H/2^s, W/2^s)
        The depth decoder's at the levels that are asked for; published: 3, 2 and 1.
    labels : (B, H, W) integer
        Taken to each level by the nearest pixel.
    window, border
        As of `TripletTerms`.
    margin
        m.

    Raises
    ------
    ValueError
        There is no level; or as `TripletTerms`.
    """
    if not features:
        raise ValueError("the triplet loss needs features of at least one level")
    total = labels.new_zeros((), dtype=next(iter(features.values())).dtype)
    for level, maps in features.items():
        terms = TripletTerms(maps, nearest_labels(labels, maps.shape[-2:]), window=window, border=border)
        total = total + terms.loss(margin) / 2**level
    return total


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) at another resolution, each that of the pixel ⌊k · H/h⌋."""
    rows, columns = (
        torch.arange(new, device=labels.device) * old // new
        for old, new in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, classes, H, W) and labels (B, H, W), over all pixels.

    Raises
    ------
    ValueError
        A label is not in 0…classes − 1 (the published loss leaves none out), or a shape is another.
    """
    if labels.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"logits (B, classes, H, W) and labels (B, H, W) do not fit: {tuple(logits.shape)}, "
            f"{tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels must be in 0..{logits.shape[1] - 1}, got {int(labels.min())}..{int(labels.max())}"
        )
    return F.cross_entropy(logits, labels.long())


Index = tuple[slice, ...]


def _pairs(window: int) -> list[tuple[Index, Index]]:
    """Of each pair of opposite offsets in a window one: both ends of all pairs of pixels, in (…, h, w)."""
    radius = window // 2
    offsets = [(dy, dx) for dy in range(radius + 1) for dx in range(-radius, radius + 1) if (dy, dx) > (0, 0)]
    ends = []
    for dy, dx in offsets:
        left, right = max(-dx, 0), max(dx, 0)
        here = (..., slice(None, -dy or None), slice(left, -right or None))
        there = (..., slice(dy, None), slice(right, -left or None))
        ends.append((here, there))
    return ends


def _no_pairs(cosines: Tensor) -> Tensor:
    return torch.zeros_like(cosines[:, 1:], memory_format=torch.contiguous_format)


def _both_ends(values: Tensor, window: int) -> Tensor:
    """What the pairs (B, K, h, w) of pixels give to both of their ends, summed: (B, h, w)."""
    total = values.sum(1)
    for number, (here, there) in enumerate(_pairs(window)):
        total[there] += values[:, number][here]
    return total


class _PairProducts(torch.autograd.Function):
    """Scalar products of each pixel with itself and with those at half of the window's offsets.

    (B, C, h, w) to (B, 1 + (window² − 1)/2, h, w); 0 where the other end is outside.
    """

    @staticmethod
    def forward(ctx, features: Tensor, window: int) -> Tensor:
        ctx.save_for_backward(features)
        ctx.window = window
        batch, _, height, width = features.shape
        products = features.new_zeros(batch, 1 + (window**2 - 1) // 2, height, width)
        products[:, 0] = features.square().sum(1)
        for number, (here, there) in enumerate(_pairs(window), 1):
            products[:, number][here] = (features[here] * features[there]).sum(1)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        total = 2 * gradient[:, :1] * features
        for number, (here, there) in enumerate(_pairs(ctx.window), 1):
            weight = gradient[:, number, None][here]
            total[here].addcmul_(weight, features[there])
            total[there].addcmul_(weight, features[here])
        return total, None
