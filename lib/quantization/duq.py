"""DuQ, the quantiser of PROFIT (Park & Yoo, ECCV 2020, arXiv:2008.04693), and layers in its authors' layout.

DuQ learns two ranges per tensor, one of the input (α) and one of the output (γ), both kept positive by a
softplus of the raw parameters ``a`` and ``c``. For h-swish, whose values start at −3/8, the grid is shifted
by that constant, and the convolution behind it pads with −3/8.

After the authors' code (github.com/EunhyeokPark/PROFIT, commit c5e2f62, MIT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.quantization.bits import checked_bits
from lib.quantization.quantizer import Grid, Quantizer
from lib.quantization.rounding import fake_quantize
from lib.quantization.uniform import Uniform

#: h-swish at x = −1.5: its lowest value, and where its grid begins.
HSWISH_MINIMUM = -0.375

GRIDS = ("unsigned", "symmetric", "hswish", "weight")
ACTIVATIONS = {None: nn.Identity(), "relu": F.relu, "relu6": F.relu, "hswish": F.hardswish}
WEIGHT_SHARE = 0.9
ACTIVATION_SHARE = 0.95


class DuQ(Quantizer):
    """Differentiable and unified quantisation: y = γ R(clip(x / α)), with learned α and γ.

    R rounds [0, 1] to 2^bits − 1 steps, or [−1, 1] to 2^(bits−1) − 1 steps a side. With u = x / α and the
    incoming gradient g: ∂x = g γ/α inside, ∂α = −Σ g γ x/α² inside, ∂γ = Σ g R(clip(u)); inside is open, a
    value on a bound has no gradient. Then ∂a = σ(a) ∂α and ∂c = σ(c) ∂γ.

    Parameters
    ----------
    bits
        1..8 unsigned and h-swish, 2..8 symmetric; None: the activation alone. Not part of the state.
    grid
        ``"unsigned"``: behind a ReLU. ``"symmetric"``: 2^bits − 1 levels about zero. ``"hswish"``:
        y = γ R(clip((h + 3/8) / α)) − 3/8. ``"weight"``: symmetric, with the weights' first ranges.
    activation
        What is applied first: None, ``"relu"``, ``"relu6"`` or ``"hswish"``. As in the authors' code
        ``"relu6"`` is a plain ReLU whose first range is at most 6.
    as_authors
        How activation ranges are measured. The authors' code looks at positive values before the activation,
        whatever the grid; the special cases that it intends (magnitudes for symmetric grids, h + 3/8 for
        h-swish) are never reached. False takes the intended cases.
    range_from
        How first ranges are found: ``"published"``, the rule of the authors' code, or ``"mse"``, the range
        with the least squared error. At 2 bits that rule, made for training that comes down from more bits,
        rounds most weights of a trained network to zero. The cap of ``"relu6"`` belongs to ``"published"``.

    Raises
    ------
    ValueError
        An unknown grid, activation or ``range_from``; bits out of range.

    Notes
    -----
    First ranges of the authors' code: weights α = γ = 0.9 max|w|; activations α = γ = the order statistic at
    95 % of the strictly positive values (10⁻³ if there is none).
    α and γ start equal and part in training; while they are equal, DuQ is LSQ up to the scale of gradients.
    """

    def __init__(
        self,
        bits: int | None,
        *,
        grid: str = "unsigned",
        activation: str | None = None,
        as_authors: bool = False,
        range_from: str = "published",
    ) -> None:
        if range_from not in ("published", "mse"):
            raise ValueError(f"range_from is 'published' or 'mse', got {range_from!r}")
        if grid not in GRIDS:
            raise ValueError(f"grid is one of {', '.join(GRIDS)}, got {grid!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is None, 'relu', 'relu6' or 'hswish', got {activation!r}")
        super().__init__(bits, least=2 if grid in ("symmetric", "weight") else 1)
        self.kind, self.activation = grid, activation
        self.as_authors, self.range_from = as_authors, range_from
        self.a, self.c = (nn.Parameter(raw_range(torch.ones(1))) for _ in range(2))
        self.padding_value = HSWISH_MINIMUM if grid == "hswish" else 0.0

    def full_precision(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x)

    def grid(self) -> Grid:
        low, high = self._bounds()
        step = (F.softplus(self.c.detach()) / high).reshape(())
        return Grid(step, torch.full_like(step, self.padding_value), low, high)

    def quantize(self, x: Tensor) -> Tensor:
        return duq(self.full_precision(x), self.a, self.c, *self._bounds(), offset=self.padding_value)

    def measure(self, x: Tensor) -> None:
        if self.range_from == "mse" and self.bits:
            x = self.full_precision(x) - self.padding_value
            signed = self.kind in ("symmetric", "weight")
            best = Uniform(max(self.bits, 2), signed=signed, range_from="mse").to(x).initialise(x)
            return set_ranges(self.a, self.c, best.upper)
        if self.kind == "weight":
            return set_ranges(self.a, self.c, WEIGHT_SHARE * x.abs().max())
        if not self.as_authors:
            x = self.full_precision(x) - self.padding_value
            x = x.abs() if self.kind == "symmetric" else x
        values = x[x > 0]
        place = int(ACTIVATION_SHARE * values.numel())
        value = values.kthvalue(place + 1).values if values.numel() else x.new_tensor(1e-3)
        set_ranges(self.a, self.c, value.clamp_max(6.0) if self.activation == "relu6" else value)

    def _bounds(self) -> tuple[int, int]:
        if self.kind in ("symmetric", "weight"):
            top = 2 ** (self.bits - 1) - 1
            return -top, top
        return 0, 2**self.bits - 1

    def extra_repr(self) -> str:
        return f"bits={self.bits}, grid={self.kind!r}, activation={self.activation!r}"


def duq(x: Tensor, a: Tensor, c: Tensor, low: int, high: int, *, offset: float = 0.0) -> Tensor:
    """DuQ as a function: raw ranges ``a`` and ``c`` of shape (1,), integers ``low..high``, fixed offset."""
    step, out_step = F.softplus(a) / high, F.softplus(c) / high
    fixed = torch.full_like(step, offset, requires_grad=False) if offset else None
    return fake_quantize(x, step, low=low, high=high, offset=fixed, out_step=out_step)


def raw_range(value: Tensor) -> Tensor:
    """The inverse of softplus, ln(e^v − 1), for v > 0; it keeps float32 precision for small and large v."""
    return value + torch.log(-torch.expm1(-value))


@torch.no_grad()
def set_ranges(a: Tensor, c: Tensor, value: Tensor) -> None:
    """Set both ranges to ``value``, at least 10⁻³, in place."""
    raw = raw_range(value.clamp_min(1e-3))
    a.copy_(raw)
    c.copy_(raw)


class _AuthorsLayer:
    """What convolution and linear layer share: raw ranges ``a`` and ``c`` beside the weight."""

    def _add_ranges(self, bits: int | None) -> None:
        self.a, self.c = (nn.Parameter(raw_range(torch.ones(1))) for _ in range(2))
        self.bits = bits

    @property
    def bits(self) -> int | None:
        """Width of the weights, 2..8, or None."""
        return self._bits

    @bits.setter
    def bits(self, value: int | None) -> None:
        self._bits = checked_bits(value, 2, name=f"{type(self).__name__}: bits", optional=True)

    def initialise(self, weight: Tensor | None = None) -> None:
        """Set both ranges to 0.9 max|w|."""
        weight = self.weight if weight is None else weight
        set_ranges(self.a, self.c, WEIGHT_SHARE * weight.detach().abs().max())

    def quantized_weight(self) -> Tensor:
        """The weight that the layer computes with."""
        if self.bits is None:
            return self.weight
        top = 2 ** (self.bits - 1) - 1
        return duq(self.weight, self.a, self.c, -top, top)


class DuQConv2d(_AuthorsLayer, nn.Conv2d):
    """Convolution with DuQ weights: state keys ``weight``, (``bias``,) ``a``, ``c``.

    Parameters
    ----------
    padding_value
        What it pads with: −3/8 behind an h-swish grid, where zero is in general not a level.

    Others are ``nn.Conv2d``'s, keyword-only ones included; ``bits`` as for `DuQ`.
    """

    def __init__(self, *args, bits: int | None = None, padding_value: float = 0.0, **kwargs) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)
        self.padding_value = padding_value
        self._add_ranges(bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.quantized_weight())

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for a given weight."""
        return convolve(self, x, weight, self.padding_value)


class DuQLinear(_AuthorsLayer, nn.Linear):
    """Linear layer with DuQ weights: state keys ``weight``, (``bias``,) ``a``, ``c``."""

    def __init__(self, *args, bits: int | None = None, **kwargs) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        self._add_ranges(bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.quantized_weight())

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for a given weight."""
        return F.linear(x, weight, self.bias)


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, padding_value: float = 0.0) -> Tensor:
    """``conv`` with another weight, padding with ``padding_value``.

    With unsigned codes k and step s, x = s k + p on the grid; padding with p itself gives
    conv_p(x, w) = s conv_0(k, w) + p Σ w everywhere, borders included, so the offset is one constant per
    output channel. Padding with zero breaks that at the borders.

    Raises
    ------
    ValueError
        A padding value with another ``padding_mode`` than zeros.
    """
    # Two of torch's private names, as its own quantised layers use them: a public one would copy the layer.
    if padding_value == 0.0 or not any(conv._reversed_padding_repeated_twice):
        return conv._conv_forward(x, weight, conv.bias)
    if conv.padding_mode != "zeros":
        raise ValueError(f"a padding value needs padding_mode 'zeros', got {conv.padding_mode!r}")
    x = F.pad(x, conv._reversed_padding_repeated_twice, value=padding_value)
    return F.conv2d(x, weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
