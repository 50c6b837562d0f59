"""The largest values of a tensor, exactly: the split of value-aware quantization.

Park, Yoo and Vajda, "Value-aware Quantization for Training and Inference of Neural Networks", ECCV 2018, keep
the ``round(ratio * N)`` values of largest magnitude as they are. Sorting would take longer than the layer;
here a sample bounds the split, and only what passes the bound is searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Elements searched for large values at a time: picking them out again wants the block still in the cache.
SCAN = 1 << 16

#: Elements of the sample that bounds the split.
SAMPLE = 1 << 14


def large_count(count: int, ratio: float) -> int:
    """How many of `count` elements are large: ``round(ratio * count)``, half to even."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is the share of large values, in 0..1, got {ratio!r}")
    return round(ratio * count)


class Split(NamedTuple):
    """Places and values of the large elements, in memory order, and the largest magnitude of the small."""

    index: Tensor
    values: Tensor
    top: float


def split(x: Tensor, ratio: float, *, signed: bool = False) -> Split:
    """Find the exactly ``round(ratio * N)`` values of largest magnitude.

    Parameters
    ----------
    x : (...)
        Finite; without negative values unless `signed`.
    ratio
        Share of the large values among all elements, 0 to 1. Zeros are never large: where fewer than that
        many are not zero, all that are not zero are large.
    signed
        Compare magnitudes.

    Returns
    -------
    Split
        ``index`` int64 (k,), ascending, counts elements in the order of memory; ``values`` (k,).

    Notes
    -----
    Exact, in one read of ``x``: a sample gives a bound that somewhat more than k elements pass, and only
    those are searched for the k-th. Should the sample mislead, the bound is lowered and ``x`` read again.
    """
    return _split(in_memory_order(x), ratio, signed)


def in_memory_order(x: Tensor) -> Tensor:
    """The elements (N,) in the order of memory, detached; a view where ``x`` has no gaps.

    Raises
    ------
    ValueError
        Another type than float32, float16 or bfloat16, or 2^31 elements and more.
    """
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"expected float32, float16 or bfloat16, got {x.dtype}")
    if x.numel() >= 2**31:
        raise ValueError(f"places are stored in 32 bits: at most 2^31 - 1 elements, got {x.numel()}")
    x = x.detach()
    stride = dense_stride(x)
    if stride != x.stride():
        x = torch.empty_like(x).copy_(x)
    return x.as_strided((x.numel(),), (1,))


def dense_stride(x: Tensor) -> tuple[int, ...]:
    """Strides of a tensor like ``x`` without gaps: its own, if it has none."""
    return torch.empty_like(x, device="meta").stride()


def _split(flat: Tensor, ratio: float, signed: bool) -> Split:
    k = large_count(flat.numel(), ratio)
    for bound in _bounds(flat, k, signed):
        passed = _at_least(flat, bound, signed)
        if len(passed.index) > k:
            break
    if not np.isfinite(passed.lowest) or not np.isfinite(passed.highest):
        raise ValueError(
            f"values must be finite, got {int((~torch.isfinite(flat)).sum())} NaN or infinite ones"
        )
    if passed.lowest < 0 and not signed:
        raise ValueError(f"values must not be negative for this grid, the lowest is {passed.lowest:g}")
    index, values = passed.index, passed.values
    if k == 0:
        return Split(index[:0], values[:0], max(-passed.lowest, passed.highest))
    if len(index) <= k:  # as many are not zero
        return Split(index, values, 0.0)
    magnitude = values.abs() if signed else values
    top = magnitude.kthvalue(len(index) - k).values  # the (k+1)-th largest
    large = magnitude > top
    if missing := k - int(large.sum()):  # equal values at the split: the first of them
        large[(magnitude == top).nonzero()[:missing, 0]] = True
    kept = large.nonzero()[:, 0]
    return Split(index.index_select(0, kept), values.index_select(0, kept), float(top))


def _bounds(flat: Tensor, k: int, signed: bool) -> Iterator[float]:
    """Falling guesses of a magnitude that more than k elements reach; all but zeros reach the last one."""
    count = flat.numel()
    if k == 0:
        yield float("inf")
        return
    sample = flat[:: max(1, count // max(1024, min(SAMPLE, count // 64)))]
    sample = (sample.abs() if signed else sample).float()
    expected = (k + 1) * len(sample) / count
    rank = int(expected + 4 * expected**0.5) + 2
    while rank < len(sample):
        bound = float(sample.kthvalue(len(sample) - rank + 1).values)
        if not bound > 0:
            break
        yield bound
        rank *= 4
    kind = torch.finfo(flat.dtype)
    yield kind.tiny * kind.eps  # the smallest positive number of this type


class _Passed(NamedTuple):
    index: Tensor
    values: Tensor
    lowest: float
    highest: float


def _at_least(flat: Tensor, bound: float, signed: bool) -> _Passed:
    """Places and values, in order, of the elements of at least this magnitude; and the extremes of all."""
    found, begin, extremes = [], 0, []
    blocks = flat.split(SCAN if flat.device.type == "cpu" else max(1, flat.numel()))
    for block in blocks if flat.numel() else ():
        extremes.append(torch.stack(torch.aminmax(block)))
        if not bound < float("inf"):
            continue
        if flat.device.type == "cpu" and flat.dtype != torch.bfloat16:
            # NumPy compares and lists several times faster than torch.
            values = block.numpy()
            reached = (values >= bound) | (values <= -bound) if signed else values >= bound
            index = torch.from_numpy(np.flatnonzero(reached))
        else:
            index = ((block.abs() if signed else block) >= bound).nonzero()[:, 0]
        found.append((index + begin, block.index_select(0, index)))
        begin += len(block)
    lowest, highest = torch.stack(extremes).float().unbind(1) if extremes else torch.zeros(2, 1)
    empty = (flat.new_empty(0, dtype=torch.int64), flat.new_empty(0))
    index, values = (torch.cat(parts) for parts in zip(empty, *found, strict=True))
    return _Passed(index, values, float(lowest.min()), float(highest.max()))
