"""What all quantisers share: a uniform grid and its integer codes.

Every quantiser of this package rounds an affine image of its input to an integer and maps that back,

    k = clip(round((x - offset) / step), low, high),        y = k * out_step + out_offset,

so one function, `lib.quantization.rounding.fake_quantize`, holds the rounding, the clipping and all published
straight-through gradients; a quantiser says where its steps and offsets come from. Rounding is half to even.

Not here: packing of codes into bytes, and integer matrix products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.quantization.bits import checked_bits


class Grid(NamedTuple):
    """The levels of a quantiser: ``k * step + offset`` for the integers ``low..high``.

    `step` and `offset` are tensors of shape () or (channels,), without gradient.
    """

    step: Tensor
    offset: Tensor
    low: int
    high: int


class Quantizer(nn.Module):
    """Base of every quantiser.

    Parameters
    ----------
    bits
        Width of a code, ``least``..8; None for full precision, where the quantiser changes nothing.
    least
        Smallest width that this quantiser is defined for.

    Attributes
    ----------
    bits
        May be set later. Ranges that are learned or measured stay, steps that belong to a width do not: call
        `initialise` again.
    padding_value
        What a convolution behind this quantiser pads with: a value of the grid that stands for "nothing".

    Notes
    -----
    NaN passes through ``forward`` (the training loop stops on it), infinities are clipped, a tensor without
    elements comes back, as does one without axes; `encode` refuses NaN and infinities, `initialise` also what
    is empty. Where all values are equal, or zero, the range is the smallest that has levels. Half precision
    is measured and quantised in float32, and rounded to its own type at the end.
    """

    padding_value: float = 0.0

    def __init__(self, bits: int | None, *, least: int = 1) -> None:
        super().__init__()
        self.least = least
        self.bits = bits

    @property
    def bits(self) -> int | None:
        """Width of a code, or None."""
        return self._bits

    @bits.setter
    def bits(self, value: int | None) -> None:
        self._bits = checked_bits(value, self.least, name=f"{type(self).__name__}: bits", optional=True)

    @property
    def signed(self) -> bool:
        """Whether negative values have levels of their own."""
        grid = self._finite_grid()
        return bool((grid.low * grid.step + grid.offset < 0).any())

    def forward(self, x: Tensor) -> Tensor:
        """Quantise and dequantise: values of `levels`, in the shape, type and layout of ``x``."""
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} takes floating-point tensors, got {x.dtype}")
        return self.full_precision(x) if self.bits is None else self.quantize(x)

    def quantize(self, x: Tensor) -> Tensor:
        """What ``forward`` does at a finite width."""
        raise NotImplementedError

    def full_precision(self, x: Tensor) -> Tensor:
        """What ``forward`` does when ``bits`` is None."""
        return x

    def grid(self) -> Grid:
        """The levels as a grid; for quantisers that follow the tensor, that of the last one seen."""
        raise NotImplementedError

    def initialise(self, x: Tensor) -> Quantizer:
        """Set the ranges from data, in place and without gradient; returns itself.

        Raises
        ------
        ValueError
            ``x`` is empty, not floating point or not finite, in float32 neither.
        """
        check_data(x, type(self).__name__)
        check_data(x.float(), type(self).__name__)
        with torch.no_grad():
            self.measure(at_least_single(x.detach()))
        return self

    def measure(self, x: Tensor) -> None:
        """Set the ranges from checked data, float32 or float64. Nothing to do by default."""

    def levels(self) -> Tensor:
        """All values that ``forward`` returns, ascending: (K,), or (channels, K)."""
        grid = self._finite_grid()
        integers = torch.arange(grid.low, grid.high + 1, device=grid.step.device, dtype=grid.step.dtype)
        return integers * grid.step[..., None] + grid.offset[..., None]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Codes of ``x``: its places in `levels`, uint8 of the same shape.

        Raises
        ------
        ValueError
            Not floating point, or not finite: no code stands for NaN.
        """
        if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
            raise ValueError(f"encode takes finite floating-point values, got {describe(x)}")
        self._finite_grid()
        y = self(x)
        grid = self.grid()
        step, offset = (_along_first(value, y) for value in (grid.step, grid.offset))
        return ((y - offset) / step).round_().sub_(grid.low).to(torch.uint8)

    @torch.no_grad()
    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes, in a floating type: ``decode(encode(x), x.dtype)`` is ``forward(x)``, bit for bit.

        Raises
        ------
        ValueError
            Not integers, or a code without a level.
        """
        grid = self._finite_grid()
        count = grid.high - grid.low + 1
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes are integers, got {codes.dtype}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < count:
            raise ValueError(f"codes are in 0..{count - 1}, got {int(codes.min())}..{int(codes.max())}")
        wide = torch.promote_types(dtype, torch.float32)
        integers = codes.to(wide) + grid.low
        step, offset = (_along_first(value.to(wide), codes) for value in (grid.step, grid.offset))
        return (integers * step + offset).to(dtype)

    def _finite_grid(self) -> Grid:
        if self.bits is None:
            raise ValueError(f"{type(self).__name__} has no levels in full precision: set bits")
        return self.grid()

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def check_data(x: Tensor, name: str) -> None:
    """Refuse what no range can be measured on: ValueError in one line."""
    if not x.is_floating_point() or not x.numel() or not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}: ranges need at least one finite floating-point value, got {describe(x)}")


def at_least_single(x: Tensor) -> Tensor:
    """Half precision as float32, others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_channels(channels: int | None, name: str) -> int:
    """The number of ranges: one per channel, or one for all; ValueError below one."""
    if channels is not None and channels < 1:
        raise ValueError(f"{name}: channels must be at least 1 or None, got {channels}")
    return channels or 1


def describe(x: Tensor) -> str:
    """Type, shape and number of non-finite values, for an error message."""
    bad = int((~torch.isfinite(x)).sum()) if x.is_floating_point() else 0
    return f"{x.dtype} of shape {tuple(x.shape)}" + (f" with {bad} NaN or infinite values" if bad else "")


def _along_first(value: Tensor, x: Tensor) -> Tensor:
    """A number, or one per channel, so that it broadcasts along dimension 0 of ``x``."""
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (x.dim() - 1))
