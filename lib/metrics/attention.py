"""Metrics of attention maps: how much the heads of a layer look at the same positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def jensen_shannon_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence of distributions along the last axis, in bits.

    Parameters
    ----------
    p, q
        Probabilities that broadcast against each other, ``(..., n)``; each sums to 1 along the last axis.

    Returns
    -------
    Tensor
        ``(...)``, between 0 (equal) and 1 (disjoint).
    """
    middle = (p + q) / 2
    bits = torch.xlogy(p, p) + torch.xlogy(q, q) - 2 * torch.xlogy(middle, middle)
    return bits.sum(-1).clamp(min=0) / (2 * math.log(2))


def head_overlap(attention: Tensor, real: Tensor) -> Tensor:
    """Return how alike the heads' attention maps are: 1 − Jensen–Shannon divergence, over all pairs of heads.

    Parameters
    ----------
    attention
        Attention probabilities of one layer, ``(B, heads, T, T)``, at least two heads, rows summing to 1.
    real
        Which positions hold an event, ``(B, T)`` bool; padded queries do not count.

    Returns
    -------
    Tensor
        ``(B,)``: mean over pairs of heads and real queries; 1 when all heads attend alike, 0 when no two
        heads share a position. Not a number for a sequence without events.

    Raises
    ------
    ValueError
        Fewer than two heads, or shapes that do not match.

    Notes
    -----
    Our own statistic for the claim that heads with one shared positional embedding learn overlapping
    patterns; the paper's statistic, if it has one, is not known to us. Costs ``O(B · heads · T²)`` memory.
    """
    if attention.dim() != 4 or attention.shape[1] < 2 or attention.shape[2] != attention.shape[3]:
        raise ValueError(f"attention must be (B, heads >= 2, T, T), got {tuple(attention.shape)}")
    if real.shape != (attention.shape[0], attention.shape[2]):
        raise ValueError(
            f"real must be (B, T) = {(attention.shape[0], attention.shape[2])}, got {tuple(real.shape)}"
        )
    first, second = torch.triu_indices(attention.shape[1], attention.shape[1], offset=1)
    divergence = jensen_shannon_divergence(attention[:, first], attention[:, second]).mean(1)
    return 1 - (divergence * real).sum(-1) / real.sum(-1)
