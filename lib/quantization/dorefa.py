"""DoReFa-Net's quantisers (Zhou et al., 2016, arXiv:1606.06160)."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.quantization.quantizer import Grid, Quantizer, at_least_single
from lib.quantization.rounding import EPSILON, fake_quantize, straight_through


class DoReFaWeight(Quantizer):
    """Weights: squashed by tanh, scaled into [−1, 1], rounded to 2^bits levels; zero is not one of them.

    w_q = 2 q(tanh w / (2 max|tanh w|) + 1/2) − 1, and sign(w) · mean|w| at one bit. The gradient passes
    straight through the rounding and, by the chain rule, through tanh and maximum; at one bit it passes
    straight through everything.
    """

    def __init__(self, bits: int | None) -> None:
        super().__init__(bits)
        self.register_buffer("scale", torch.ones(()), persistent=False)  # mean|w|, of the last tensor

    def grid(self) -> Grid:
        if self.bits == 1:
            return Grid(2 * self.scale, -self.scale, 0, 1)
        top = 2**self.bits - 1
        return Grid(torch.full_like(self.scale, 2 / top), torch.full_like(self.scale, -1.0), 0, top)

    def quantize(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x.clone()
        wide = at_least_single(x)
        if self.bits == 1:
            with torch.no_grad():
                counted = wide.isfinite()
                mean = wide.abs().where(counted, 0).sum(dtype=torch.float64) / counted.sum().clamp_min(1)
                self.scale = mean.to(self.scale.dtype)
                grid = self.grid()
                y = (wide >= 0).to(wide.dtype) * grid.step.to(wide.dtype) + grid.offset.to(wide.dtype)
                y = y.where(~wide.isnan(), wide)
            return straight_through(wide, y).to(x.dtype)
        squashed = wide.tanh()
        largest = squashed.abs().where(~squashed.isnan(), 0).max()
        squashed = squashed / largest.where(largest > EPSILON, 1)
        grid = self.grid()
        with torch.no_grad():
            y = fake_quantize(squashed, grid.step, low=grid.low, high=grid.high, offset=grid.offset)
        return straight_through(squashed, y).to(x.dtype)


class DoReFaActivation(Quantizer):
    """Activations: clipped to [0, 1], rounded to 2^bits levels. Nothing is learned or measured."""

    def __init__(self, bits: int | None) -> None:
        super().__init__(bits)
        self.register_buffer("range", torch.ones(()), persistent=False)

    def grid(self) -> Grid:
        top = 2**self.bits - 1
        return Grid(self.range / top, torch.zeros_like(self.range), 0, top)

    def quantize(self, x: Tensor) -> Tensor:
        grid = self.grid()
        return fake_quantize(x, grid.step, low=grid.low, high=grid.high)
