"""Uniform quantisers with a fixed range: symmetric or asymmetric, from the extremes or by least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.quantization.quantizer import Grid, Quantizer, check_channels
from lib.quantization.rounding import EPSILON, fake_quantize

#: Ranges tried first by the least-squares search, as shares of the extremes; then eight about the best.
SHARES = torch.logspace(-2, 0, 17)
#: About how many elements the least-squares search looks at (fewer than twice as many), evenly spread.
SEARCHED = 1 << 14


class Uniform(Quantizer):
    """A grid that is measured once and then fixed; the gradient passes between its ends.

    Parameters
    ----------
    bits
        2..8.
    signed
        Whether negative values are to be represented.
    symmetric
        Same range on both sides of zero: 2^bits − 1 levels (the default for signed data); otherwise all
        2^bits levels, of which one is exactly zero.
    range_from
        ``"minmax"``: the extremes of the data. ``"mse"``: the fraction of them with the least squared error;
        the extremes where ``bits`` is None.
    channels
        One range per index of dimension 0, or None for one.

    Raises
    ------
    ValueError
        An unknown ``range_from``, a symmetric range for unsigned data, channels below 1, bits out of range.

    Notes
    -----
    Before `initialise` the range is [−1, 1], or [0, 1] if not signed. Where the values are not within
    half a step of an end, forward and gradient are those of ``torch.fake_quantize_per_tensor_affine``; in
    that half step torch passes the gradient of a value outside the range, this does not.
    """

    def __init__(
        self,
        bits: int | None,
        *,
        signed: bool = True,
        symmetric: bool | None = None,
        range_from: str = "minmax",
        channels: int | None = None,
    ) -> None:
        super().__init__(bits, least=2)
        if range_from not in ("minmax", "mse"):
            raise ValueError(f"range_from is 'minmax' or 'mse', got {range_from!r}")
        self.symmetric = signed if symmetric is None else symmetric
        if self.symmetric and not signed:
            raise ValueError("a symmetric range has both signs: signed=False asks for symmetric=False")
        self.range_from, self._signed = range_from, signed
        high = torch.ones(check_channels(channels, "Uniform"))
        self.register_buffer("lower", -high if signed else torch.zeros_like(high))
        self.register_buffer("upper", high)

    def grid(self) -> Grid:
        if self.symmetric:
            top = 2 ** (self.bits - 1) - 1
            step = (self.upper / top).clamp_min(EPSILON)
            return Grid(_squeeze(step), _squeeze(torch.zeros_like(step)), -top, top)
        top = 2**self.bits - 1
        step = ((self.upper - self.lower) / top).clamp_min(EPSILON)
        offset = torch.round(self.lower / step) * step
        return Grid(_squeeze(step), _squeeze(offset), 0, top)

    def quantize(self, x: Tensor) -> Tensor:
        grid = self.grid()
        offset = None if self.symmetric else grid.offset
        return fake_quantize(x, grid.step, low=grid.low, high=grid.high, offset=offset)

    def measure(self, x: Tensor) -> None:
        rows = x.reshape(1 if len(self.upper) == 1 else x.shape[0], -1)
        if len(rows) != len(self.upper):
            raise ValueError(f"ranges for {len(self.upper)} channels, data with {len(rows)}")
        zero = rows.new_zeros(len(rows))
        if self.symmetric:
            upper = rows.abs().amax(1)
            lower = -upper
        else:
            upper = torch.maximum(rows.amax(1), zero)
            lower = torch.minimum(rows.amin(1), zero) if self._signed else zero
        self._set(lower, upper)
        if self.range_from == "mse" and self.bits is not None:  # without bits there is no error to search
            self._search(rows, lower, upper)

    def _set(self, lower: Tensor, upper: Tensor) -> None:
        self.lower.copy_(lower)
        self.upper.copy_(upper)

    def _search(self, rows: Tensor, lower: Tensor, upper: Tensor) -> None:
        rows = rows[:, :: max(1, rows.numel() // SEARCHED)]
        best_error, best_share = torch.full_like(upper, torch.inf), torch.ones_like(upper)
        ratio = float(SHARES[1] / SHARES[0])
        for shares in (SHARES, ratio ** torch.linspace(-0.8, 0.8, 9)):
            centre = best_share
            for share in shares.to(upper):
                tried = (centre * share).clamp_max(1)
                self._set(lower * tried, upper * tried)
                error = (self.quantize(rows) - rows).square().sum(1)
                best_share = torch.where(error < best_error, tried, best_share)
                best_error = torch.minimum(error, best_error)
        self._set(lower * best_share, upper * best_share)


def _squeeze(value: Tensor) -> Tensor:
    """() for one number, (channels,) for several."""
    return value.reshape(()) if len(value) == 1 else value
