"""Linear quantisers whose step is the best for Laplace-distributed values, as Precision Highway has them.

Park et al., *Precision Highway for Ultra Low-Precision Quantization*, 2018. We could not read the paper's
body: the rule (least squared error under a Laplace model) is its idea, the constants are computed here.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from lib.quantization.quantizer import Grid, Quantizer, at_least_single, check_channels
from lib.quantization.rounding import EPSILON, fake_quantize

GRIDS = ("mid-tread", "mid-rise")


def laplace_error(step: float, bits: int, grid: str = "mid-tread") -> float:
    """Mean squared error of a symmetric grid on a Laplace variable with mean absolute value 1.

    Parameters
    ----------
    step
        Distance of two levels, in units of the mean absolute value β.
    bits
        1..8 (mid-tread: 2..8).
    grid
        ``"mid-tread"``: 2^bits − 1 levels with zero. ``"mid-rise"``: 2^bits levels at odd half steps.

    Returns
    -------
    float
        In units of β².
    """
    bounds, levels = _positive_half(bits, grid)
    edges, levels = bounds * step, levels * step
    # ∫ (x − q)² e^(−x) dx = −e^(−x) ((x − q)² + 2 (x − q) + 2), and nothing is left at infinity.
    left, right = edges[:-1] - levels, edges[1:] - levels
    inner = np.exp(-edges[:-1]) * (left**2 + 2 * left + 2)
    finite = np.isfinite(edges[1:])
    right = np.where(finite, right, 0.0)
    outer = np.where(finite, np.exp(-edges[1:]) * (right**2 + 2 * right + 2), 0.0)
    return float(np.sum(inner - outer))


@lru_cache
def laplace_step(bits: int, grid: str = "mid-tread") -> float:
    """The step with the least squared error on Laplace-distributed values, in units of mean|x|.

    For exponentially distributed (one-sided) values and ``bits``, ask for ``bits + 1`` mid-tread: the
    magnitude of a Laplace variable is exponential.
    """
    best = minimize_scalar(laplace_error, bounds=(1e-3, 4.0), args=(bits, grid), method="bounded",
                           options={"xatol": 1e-10})  # fmt: skip
    return float(best.x)


def _positive_half(bits: int, grid: str) -> tuple[np.ndarray, np.ndarray]:
    """Cell bounds (K + 1,) and levels (K,) on [0, ∞), in steps."""
    if grid not in GRIDS:
        raise ValueError(f"grid is one of {', '.join(GRIDS)}, got {grid!r}")
    if grid == "mid-tread":
        if bits < 2:
            raise ValueError(f"a mid-tread grid needs at least 2 bits, got {bits}")
        levels = np.arange(2 ** (bits - 1), dtype=float)
        return np.concatenate([[0.0], levels[1:] - 0.5, [np.inf]]), levels
    levels = np.arange(2 ** (bits - 1)) + 0.5
    return np.concatenate([[0.0], np.arange(1.0, len(levels)), [np.inf]]), levels


class Laplace(Quantizer):
    """A linear grid at the best step for Laplace-distributed values of the measured scale.

    step = `laplace_step` · mean|x|, about zero. The gradient passes between the outermost levels; the
    step is a statistic and gets none.

    Parameters
    ----------
    bits
        2..8 mid-tread, 1..8 mid-rise and one-sided.
    grid
        ``"mid-tread"`` (2^bits − 1 levels with zero) or ``"mid-rise"`` (2^bits levels without). Which one the
        paper has is not known to us.
    one_sided
        For activations behind a ReLU: levels 0..2^bits − 1, scale measured on positive values.
    channels
        One scale per index of dimension 0, or None for one.
    adaptive
        Measure the scale at each forward (weights), or by `initialise` only (activations).

    Raises
    ------
    ValueError
        An unknown grid, a one-sided one without zero, channels below 1, bits out of range.
    """

    def __init__(
        self,
        bits: int | None,
        *,
        grid: str = "mid-tread",
        one_sided: bool = False,
        channels: int | None = None,
        adaptive: bool | None = None,
    ) -> None:
        if grid not in GRIDS:
            raise ValueError(f"grid is one of {', '.join(GRIDS)}, got {grid!r}")
        if one_sided and grid == "mid-rise":
            raise ValueError("a one-sided grid has zero on it: grid is 'mid-tread'")
        super().__init__(bits, least=1 if one_sided or grid == "mid-rise" else 2)
        self.kind, self.one_sided = grid, one_sided
        self.adaptive = not one_sided if adaptive is None else adaptive
        self.register_buffer("scale", torch.ones(check_channels(channels, "Laplace")))

    def grid(self) -> Grid:
        scale = self.scale.reshape(()) if len(self.scale) == 1 else self.scale
        step = (scale * laplace_step(self.bits + self.one_sided, self.kind)).clamp_min(EPSILON)
        half = 2 ** (self.bits - 1)
        if self.one_sided:
            return Grid(step, torch.zeros_like(step), 0, 2**self.bits - 1)
        if self.kind == "mid-rise":
            return Grid(step, step / 2, -half, half - 1)
        return Grid(step, torch.zeros_like(step), 1 - half, half - 1)

    def quantize(self, x: Tensor) -> Tensor:
        if self.adaptive and x.numel():
            with torch.no_grad():
                self.measure(at_least_single(x.detach()))
        grid = self.grid()
        offset = grid.offset if self.kind == "mid-rise" else None
        return fake_quantize(x, grid.step, low=grid.low, high=grid.high, offset=offset)

    def measure(self, x: Tensor) -> None:
        rows = x.reshape(1 if len(self.scale) == 1 else x.shape[0], -1)
        if len(rows) != len(self.scale):
            raise ValueError(f"Laplace: scales for {len(self.scale)} channels, data with {len(rows)}")
        counted = rows.isfinite()  # adaptive, a tensor that nobody checked comes here
        if self.one_sided:
            counted &= rows > 0
        mean = rows.abs().where(counted, 0).sum(1, dtype=torch.float64) / counted.sum(1).clamp_min(1)
        self.scale.copy_(mean.clamp_min(EPSILON))
