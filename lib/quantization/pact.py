"""PACT: activations with a learned clipping level (Choi et al., 2018, arXiv:1805.06085)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.quantization.quantizer import Grid, Quantizer
from lib.quantization.rounding import EPSILON, fake_quantize


class PACT(Quantizer):
    """Clip to [0, α], round to 2^bits − 1 steps; α learns from the clipped elements alone.

    y = clip(x, 0, α); ∂y/∂x = [0 < x < α], ∂y/∂α = [x ≥ α]: rounding errors do not reach α. The paper adds
    an L2 penalty on α to the loss; here that is weight decay on ``alpha``, the optimiser's business.

    Parameters
    ----------
    bits
        1..8; 2..8 if signed.
    signed
        The paper has no negative values. If True the range is [−α, α], 2^bits − 1 levels, with
        ∂y/∂α = sign(x) [|x| ≥ α]: an extension.
    alpha
        First clipping level; `initialise` sets it to the largest value of the data (magnitude if signed), at
        least 10⁻³.
    """

    def __init__(self, bits: int | None, *, signed: bool = False, alpha: float = 6.0) -> None:
        if not alpha > 0:
            raise ValueError(f"PACT: the clipping level is positive, got {alpha}")
        super().__init__(bits, least=2 if signed else 1)
        self._signed = signed
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]))

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self._signed else 2**self.bits - 1

    def grid(self) -> Grid:
        step = self.alpha.detach().clamp_min(EPSILON).reshape(()) / self._top
        return Grid(step, torch.zeros_like(step), -self._top if self._signed else 0, self._top)

    def quantize(self, x: Tensor) -> Tensor:
        grid = self.grid()
        return fake_quantize(x, grid.step, low=grid.low, high=grid.high, clip=self.alpha)

    def measure(self, x: Tensor) -> None:
        self.alpha.fill_((x.abs() if self._signed else x).max().clamp_min(1e-3))
