"""Which range to quantise: from the lowest to the highest value, or the one with the least squared error.

From Park et al. (arXiv:1811.09886), after the team's public search over a calibration histogram
(``norm_minimization.cc`` of Caffe2, of which torch's `HistogramObserver` is a port). A value is taken as
spread evenly over its bin; the selected range is cut into ``2^bits`` equal steps; values are replaced by the
centre of their step, and those outside by the centre of the first or the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.quantization.bits import checked_bits
from lib.quantization.quantizer import check_data

STEP = 1e-5  # of the quantiles that the approximate search moves at a time


@dataclass(frozen=True)
class Histogram:
    """Counts, float64 (bins,), of values between `low` and `high`."""

    counts: Tensor
    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor, *, bins: int = 2048, symmetric: bool = False) -> Histogram:
        """Histogram of the values of a tensor, over a range that holds zero.

        Parameters
        ----------
        x : (...)
        bins : int
            At least 2.
        symmetric : bool
            Let the range reach as far below zero as above.

        Raises
        ------
        ValueError
            For NaN or infinity, an empty tensor, fewer than 2 bins, or nothing but zeros.
        """
        check_data(x, "Histogram")
        if bins < 2:
            raise ValueError(f"a histogram needs at least 2 bins, got {bins}")
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        if low == high:
            raise ValueError("a histogram needs a value that is not zero")
        counts = torch.histc(x.detach().double().flatten(), bins, low, high)
        return cls(counts, low, high)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return (self.high - self.low) / len(self.counts)

    def range_of(self, first: int, last: int) -> tuple[float, float]:
        """From the lower edge of bin `first` to the upper edge of bin `last`."""
        return self.low + self.width * first, self.low + self.width * (last + 1)


def squared_error(histogram: Histogram, first: Tensor, last: Tensor, *, bits: int = 8) -> Tensor:
    """Squared error of quantising each of several ranges.

    Parameters
    ----------
    histogram : Histogram
    first, last : int64 (ranges,)
        Bins that a range reaches from and to, both included.
    bits : int
        2 to 8.

    Returns
    -------
    float64 (ranges,)

    Notes
    -----
    Cost O(ranges × bins) in time and memory.
    """
    checked_bits(bits, 2)
    steps, width = 2**bits, histogram.width
    step = (width * (last - first + 1).double() / steps)[:, None]
    begin = width * (torch.arange(len(histogram.counts)) - first[:, None]).double()
    end = begin + width
    at_begin = torch.floor(begin / step).clamp(0, steps - 1)
    at_end = torch.floor(end / step).clamp(0, steps - 1)
    half = step / 2
    # Third powers: the integral of the squared distance from a centre, over the three parts of a bin.
    error = half**3 - (begin - (at_begin + 0.5) * step) ** 3
    error += (at_end - at_begin - 1) * 2 * half**3
    error += (end - (at_end + 0.5) * step) ** 3 + half**3
    return error @ (histogram.counts / (3 * width))


def l2_range(
    histogram: Histogram, *, bits: int = 8, method: str = "approximate", symmetric: bool = False
) -> tuple[float, float]:
    """The range with the least squared error of quantisation.

    Parameters
    ----------
    histogram : Histogram
    bits : int
        2 to 8.
    method : {"approximate", "exact"}
        Narrow the full range greedily by quantiles until the error rises (O(bins) errors; the first step is
        always taken, as in torch, and alone can be for the worse), or try every pair of bins (O(bins²) errors
        of O(bins): seconds for 512 bins).
    symmetric : bool
        Try every range with as many bins cut off below as above; the histogram must be symmetric about 0.

    Returns
    -------
    low, high : float
    """
    bins = len(histogram.counts)
    if method not in ("approximate", "exact"):
        raise ValueError(f"method must be approximate or exact, got {method!r}")
    if symmetric:
        if abs(histogram.low + histogram.high) > 1e-9 * histogram.high:
            raise ValueError("a symmetric range needs a histogram that reaches as far below zero as above")
        first = torch.arange((bins + 1) // 2)
        best = int(squared_error(histogram, first, bins - 1 - first, bits=bits).argmin())
        return histogram.range_of(best, bins - 1 - best)
    if method == "approximate":
        return histogram.range_of(*_narrow(histogram, bits))
    lowest, chosen = float("inf"), (0, bins - 1)
    for length in range(bins, 0, -1):  # the widest range first, so that ties keep it
        first = torch.arange(bins - length + 1)
        errors = squared_error(histogram, first, first + length - 1, bits=bits)
        at = int(errors.argmin())
        if float(errors[at]) < lowest:
            lowest, chosen = float(errors[at]), (at, at + length - 1)
    return histogram.range_of(*chosen)


def _narrow(histogram: Histogram, bits: int) -> tuple[int, int]:
    """The greedy search: each time the end whose quantile step skips more bins moves."""
    bins, cumulative = len(histogram.counts), histogram.counts.cumsum(0)
    total = float(cumulative[-1])
    alpha, beta, first, last, lowest = 0.0, 1.0, 0, bins - 1, float("inf")
    while alpha < beta:
        next_alpha, next_beta = alpha + STEP, beta - STEP
        left = int(torch.searchsorted(cumulative, next_alpha * total))
        right = int(torch.searchsorted(cumulative, next_beta * total, right=True)) - 1
        left, right = max(left, first), min(right, last)
        if left - first > last - right:
            candidate, alpha = (left, last), next_alpha
        else:
            candidate, beta = (first, right), next_beta
        if candidate == (first, last):
            continue
        if candidate[0] > candidate[1]:
            break
        error = float(squared_error(histogram, *(torch.tensor([c]) for c in candidate), bits=bits))
        if error > lowest:
            break
        (first, last), lowest = candidate, error
    return first, last
