"""LSQ (Esser et al., ICLR 2020, arXiv:1902.08153) and LSQ+ (Bhalgat et al., 2020, arXiv:2004.09576)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lib.quantization.quantizer import Grid, Quantizer, check_channels
from lib.quantization.rounding import fake_quantize, positive, scaled_gradient


class LSQ(Quantizer):
    """Learned step size: ŷ = s · clip(round(x / s), −Q_N, Q_P).

    ∂ŷ/∂s = round(x/s) − x/s inside, −Q_N or Q_P outside; that gradient is scaled by 1/√(N Q_P), N the number
    of elements that share the step: all of the tensor, or those of one channel. First step: 2 mean|x| / √Q_P.

    Parameters
    ----------
    bits
        2..8 if signed (Q_N = 2^(bits−1), Q_P = Q_N − 1), 1..8 if not (0..2^bits − 1).
    channels
        One step per index of dimension 0, or None for one.
    narrow
        Q_N = Q_P, one level fewer and symmetric, as other quantisers of weights have.
    scale_gradient
        Whether the step's gradient is scaled.

    Notes
    -----
    N counts a batch of activations with its batch dimension, as two public implementations do; the paper has
    the elements of a layer, without the batch. With `channels`, which the paper does not have, N is the
    share of one channel, so that each learns as it would alone; those implementations count the whole tensor.
    """

    def __init__(
        self,
        bits: int | None,
        *,
        signed: bool = True,
        channels: int | None = None,
        narrow: bool = False,
        scale_gradient: bool = True,
    ) -> None:
        super().__init__(bits, least=2 if signed else 1)
        self._signed, self.narrow, self.scale_gradient = signed, narrow, scale_gradient
        self.step = nn.Parameter(torch.ones(check_channels(channels, "LSQ")))

    def _bounds(self) -> tuple[int, int]:
        if not self._signed:
            return 0, 2**self.bits - 1
        top = 2 ** (self.bits - 1) - 1
        return (-top if self.narrow else -top - 1), top

    def grid(self) -> Grid:
        step = positive(self.step.detach())
        step = step.reshape(()) if len(step) == 1 else step
        return Grid(step, torch.zeros_like(step), *self._bounds())

    def quantize(self, x: Tensor) -> Tensor:
        low, high = self._bounds()
        step = self.step
        if self.scale_gradient and x.numel():
            step = scaled_gradient(step, 1 / math.sqrt(x.numel() / len(step) * high))
        return fake_quantize(x, positive(step), low=low, high=high)

    def measure(self, x: Tensor) -> None:
        rows = x.reshape(1 if len(self.step) == 1 else x.shape[0], -1)
        if len(rows) != len(self.step):
            raise ValueError(f"LSQ: steps for {len(self.step)} channels, data with {len(rows)}")
        bits = self.bits or 8
        high = max(1, 2 ** (bits - 1) - 1 if self._signed else 2**bits - 1)
        self.step.copy_((2 * rows.abs().mean(1) / math.sqrt(high)).clamp_min(1e-6))


class LSQPlus(Quantizer):
    """LSQ with a learned offset β: ŷ = s · clip(round((x − β) / s), 0, 2^bits − 1) + β.

    ∂ŷ/∂β = 1 outside the range and 0 inside. The first grid spans the data from minimum to maximum; the
    paper then searches for the least squared error, which is not done here.

    Parameters
    ----------
    bits
        1..8.
    scale_gradient
        Whether the gradients of step and β are both scaled by 1/√(N (2^bits − 1)), as LSQ's step.
    """

    def __init__(self, bits: int | None, *, scale_gradient: bool = True) -> None:
        super().__init__(bits)
        self.scale_gradient = scale_gradient
        self.step = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def grid(self) -> Grid:
        step = positive(self.step.detach()).reshape(())
        return Grid(step, self.beta.detach().reshape(()), 0, 2**self.bits - 1)

    def quantize(self, x: Tensor) -> Tensor:
        step, beta, high = self.step, self.beta, 2**self.bits - 1
        if self.scale_gradient and x.numel():
            factor = 1 / math.sqrt(x.numel() * high)
            step, beta = scaled_gradient(step, factor), scaled_gradient(beta, factor)
        return fake_quantize(x, positive(step), low=0, high=high, offset=beta)

    def measure(self, x: Tensor) -> None:
        self.beta.copy_(x.min())
        self.step.copy_(((x.max() - x.min()) / (2 ** (self.bits or 8) - 1)).clamp_min(1e-6))
