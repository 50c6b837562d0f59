"""QIL: a learned interval (Jung et al., CVPR 2019, arXiv:1808.05779)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.quantization.quantizer import Grid, Quantizer, at_least_single
from lib.quantization.rounding import EPSILON, fake_quantize, positive, straight_through


class QIL(Quantizer):
    """Prune below centre − half width, clip above centre + half width, quantise what lies between.

    The magnitude goes to t = (0.5 |x| / d − 0.5 c / d + 0.5)^γ in [0, 1], is rounded there, and gets its sign
    back. Gradients of c, d and γ follow by the chain rule, straight through the rounding.

    Parameters
    ----------
    bits
        2..8 if signed (2^bits − 1 levels), 1..8 if not.
    signed
        True for weights, False for activations (whose γ is 1).
    learn_exponent
        Whether γ is learned; it starts at 1. By default for weights.
    rescale
        The paper leaves levels in [−1, 1] or [0, 1] and lets batch normalisation find the scale. If True
        they are multiplied by the first c + d, a constant, so that a layer without normalisation keeps the
        scale of its outputs: a deviation.

    Notes
    -----
    `initialise` puts the interval between 0 and the largest magnitude; the paper's rule is not known to
    us. The levels are not the input's: quantising twice is not the same as quantising once.
    """

    def __init__(
        self,
        bits: int | None,
        *,
        signed: bool = True,
        learn_exponent: bool | None = None,
        rescale: bool = False,
    ) -> None:
        super().__init__(bits, least=2 if signed else 1)
        self._signed, self.rescale = signed, rescale
        self.centre = nn.Parameter(torch.tensor([0.5]))
        self.half_width = nn.Parameter(torch.tensor([0.5]))
        learned = signed if learn_exponent is None else learn_exponent
        self.exponent = nn.Parameter(torch.ones(1)) if learned else None
        self.register_buffer("scale", torch.ones(1))

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self._signed else 2**self.bits - 1

    def grid(self) -> Grid:
        step = self.scale.reshape(()) / self._top
        return Grid(step, torch.zeros_like(step), -self._top if self._signed else 0, self._top)

    def quantize(self, x: Tensor) -> Tensor:
        top, grid = self._top, self.grid()
        start, half = (self.centre - self.half_width).squeeze(), positive(self.half_width).squeeze()
        wide = at_least_single(x)
        magnitude = wide.abs() if self._signed else wide
        if self.exponent is None:
            step = half * (2 / top)
            y = fake_quantize(magnitude, step, low=0, high=top, offset=start, out_step=grid.step,
                              out_offset=torch.zeros_like(grid.step))  # fmt: skip
        else:
            beyond = (start + 3 * half).detach()  # an infinite magnitude would make the clipped gradient NaN
            t = ((magnitude.minimum(beyond) - start) / (2 * half)).clamp(0, 1)
            inside = t > 0  # the power's gradient at zero would be NaN
            powered = torch.where(inside, t.clamp_min(EPSILON) ** self.exponent.squeeze(), t)
            rounded = (powered.detach() * top).round() * grid.step
            y = straight_through(powered * self.scale.squeeze(), rounded)
        return (torch.where(x < 0, -y, y) if self._signed else y).to(x.dtype)

    def measure(self, x: Tensor) -> None:
        largest = x.abs().max().clamp_min(1e-6)
        self.centre.copy_(largest / 2)
        self.half_width.copy_(largest / 2)
        if self.rescale:
            self.scale.copy_(largest)
