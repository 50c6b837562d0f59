"""Value-aware quantization: few bits for most values, full precision for the few largest.

Park, Yoo and Vajda, "Value-aware Quantization for Training and Inference of Neural Networks", ECCV 2018. A
tensor of N elements is split at a magnitude: the ``round(ratio * N)`` largest are kept as they are, in a
sparse list of values and places; the others get b-bit codes on a uniform grid that has to reach only as far
as the largest of *them*. Three grids:

=============  =====================================================================================
``unsigned``   V-Quant of non-negative values: 2^b - 1 steps from 0 to the largest small value
``relu``       RV-Quant of ReLU outputs: two codes stand for zero, "the ReLU was closed" (code 0) and
               "open, but rounded to zero" (code 1), so that the ReLU's derivative survives any rounding;
               2^b - 2 steps remain
``signed``     of weights and other signed values: 2^b - 1 levels, symmetric around zero
=============  =====================================================================================

We could not read the body of the paper. What its abstract leaves open, and we chose: one split and one grid
per tensor; the top of the grid is the largest small value; rounding half to even; among equal values at the
split the first in memory are large; zero is never large. `PackedTensor` is the stored form, `ValueAware` the
quantiser of inference; training with packed activations is in `lib.quantization.saved_tensors`.

With ``clipped`` the grid's top has the least squared error of the small values instead: the usual remedy
against large values, and the control that keeping them has to beat. It is not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.quantization.bits import checked_bits
from lib.quantization.largest import Split, dense_stride, in_memory_order, large_count, split
from lib.quantization.packing import PLANES, merge_planes, split_planes
from lib.quantization.quantizer import Grid, Quantizer
from lib.quantization.rounding import straight_through

GridName = Literal["unsigned", "relu", "signed"]

#: Elements worked on at a time on a CPU: block and buffers stay in the second-level cache.
BLOCK = 1 << 18

#: Tops of a clipped grid that are tried, as shares of the largest small value; steps of 5 % are finer than
#: the error can tell (its minimum is flat).
SHARES = torch.logspace(-2, 0, 95)

#: About how many elements they are tried on (fewer than twice as many), evenly spread over the tensor.
SEARCHED = 1 << 14


def stored_bits(
    count: int,
    bits: int = 3,
    ratio: float = 0.02,
    *,
    value_bits: int = 32,
    index_bits: int = 32,
    mask: bool = False,
) -> int:
    """Bits of a stored tensor: ``count * bits + round(ratio * count) * (value_bits + index_bits)``.

    The format is inferred: of those tried, the only one that gives the paper's two ratios to full precision,
    6.1 (V-Quant) and 7.5 (RV-Quant). Codes are dense, also below the large values.

    Parameters
    ----------
    count
        Elements of the tensor.
    bits, ratio
        Width of a code, and share of the large values among *all* elements.
    value_bits, index_bits
        Of a large value and of its place.
    mask
        One more bit per element: the ReLU's derivative, which V-Quant needs and RV-Quant does not.
    """
    return count * (bits + mask) + large_count(count, ratio) * (value_bits + index_bits)


@dataclass(frozen=True)
class PackedTensor:
    """A value-aware quantised tensor as it is stored.

    Attributes
    ----------
    codes : uint8, (bits, ceil(N / 8))
        Packed codes of all N elements, in the order of memory; those of large values are ignored.
    values : float32 or float16, (k,)
        The large values.
    index : int32, (k,)
        Their places.
    step
        Distance of two levels of the grid.
    grid
        Name of the grid.
    shape, stride, dtype
        Of the tensor, whose memory layout comes back with it.
    """

    codes: Tensor
    values: Tensor
    index: Tensor
    step: float
    grid: GridName
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.codes.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, values and places."""
        return self.codes.nbytes + self.values.nbytes + self.index.nbytes

    def decode(self) -> Tensor:
        """The quantised tensor: large values as they were, the others on the grid."""

        def values(codes: Tensor, out: Tensor) -> None:
            out.copy_(codes)
            if self.grid == "relu":
                out.sub_(1).clamp_(min=0)
            elif self.grid == "signed":
                out.add_(_limits(self.bits, "signed")[0])
            out.mul_(self.step)

        return self._laid_out(self._flat(values), self.values)

    def mask(self) -> Tensor:
        """Where the ReLU was open, as 1 and 0 in the tensor's type; exact at any number of bits."""
        if self.grid != "relu":
            raise ValueError(f"only the grid 'relu' knows where the ReLU was open, this is {self.grid!r}")
        return self._laid_out(self._flat(lambda codes, out: out.copy_(codes).clamp_(max=1)), None)

    def _flat(self, write) -> Tensor:
        out = torch.empty(PLANES, self.codes.shape[1], device=self.codes.device)
        buffer = torch.empty(PLANES, _width(out), dtype=torch.uint8, device=out.device)
        for packed, values in _blocks(self.codes, out):
            write(split_planes(packed, buffer[:, : values.shape[1]]), values)
        return out.view(-1)

    def _laid_out(self, flat: Tensor, values: Tensor | None) -> Tensor:
        if self.index.numel():
            flat[self.index.long()] = 1.0 if values is None else values.float()
        return flat.as_strided(self.shape, self.stride).to(self.dtype)


def encode(
    x: Tensor,
    bits: int = 3,
    ratio: float = 0.02,
    *,
    grid: GridName = "relu",
    value_dtype: torch.dtype = torch.float32,
    clipped: bool = False,
) -> PackedTensor:
    """Quantise and pack a tensor.

    Parameters
    ----------
    x : (...)
        float32, or a narrower floating type; finite; not negative unless the grid is ``signed``. Any memory
        layout: one without gaps is kept (channels last, transposed), others are made contiguous.
    bits
        Width of a code, 1 to 8 (``signed``: 2 to 8).
    ratio
        Share of large values among all elements.
    grid
        See the table above.
    value_dtype
        Of the stored large values: float32 (training), float16 (inference).
    clipped
        Let the grid end where the squared error of the small values is least, and clip what lies beyond.

    Raises
    ------
    ValueError
        Anything of the above does not hold.

    Notes
    -----
    Memory beyond the result: a few blocks, and what passes the sampled bound (a few hundredths of ``x``).
    """
    flat, large, step = _split_and_step(x, bits, ratio, grid, clipped)
    width = -(-flat.numel() // PLANES)
    padded = F.pad(flat, (0, missing)) if (missing := PLANES * width - flat.numel()) else flat
    planes = padded.float().view(PLANES, width)
    codes = torch.empty(bits, width, dtype=torch.uint8, device=x.device)
    buffer = torch.empty(PLANES, _width(planes), device=x.device)
    integers, opened = torch.empty(2, PLANES, _width(planes), dtype=torch.uint8, device=x.device)
    # torch vectorises the conversion to signed bytes only, so codes up to 255 go there less 128.
    shift = 128 if bits == 8 else 0
    clip = clipped or len(large.index) > 0
    for block, packed in _blocks(planes, codes):
        width = slice(block.shape[1])
        multiples = _to_multiples(block, step, bits, grid, buffer[:, width], clip)
        if shift or grid == "signed":
            multiples.sub_(_limits(bits, grid)[0] + shift)
        integers[:, width].view(torch.int8).copy_(multiples)
        if shift:
            integers[:, width].bitwise_xor_(128)
        if grid == "relu":
            opened[:, width].view(torch.bool).copy_(block)
            integers[:, width].add_(opened[:, width])
        merge_planes(integers[:, width], packed)
    kept = flat[large.index].to(value_dtype)
    if not bool(torch.isfinite(kept).all()):
        raise ValueError(
            f"a large value does not fit {value_dtype}: {float(flat[large.index].abs().max()):g}"
        )
    return PackedTensor(codes, kept, large.index.int(), step, grid, tuple(x.shape), dense_stride(x), x.dtype)


def fake_quantize(
    x: Tensor,
    bits: int = 3,
    ratio: float = 0.02,
    *,
    grid: GridName = "relu",
    value_dtype: torch.dtype = torch.float32,
    clipped: bool = False,
) -> Tensor:
    """``encode(x, ...).decode()``, bit for bit, without the packing. Parameters as for `encode`."""
    flat, large, step = _split_and_step(x, bits, ratio, grid, clipped)
    out = torch.empty(flat.shape, device=x.device)
    for block, values in _blocks(flat, out):
        _to_multiples(block.float(), step, bits, grid, values, True).mul_(step)
    out[large.index] = large.values.to(value_dtype).float()
    return out.as_strided(x.shape, dense_stride(x)).to(x.dtype)


class ValueAware(Quantizer):
    """V-Quant as a module: the quantiser of the paper's inference with 4 bits and 1 % of 16-bit values.

    Parameters
    ----------
    bits
        Width of a code of the small values; None for full precision.
    ratio
        Share of large values, found exactly in every tensor that passes.
    signed
        For weights and other signed tensors: symmetric levels. Otherwise negative values are refused.
    value_dtype
        Of the large values.
    clipped
        As of `encode`.

    Raises
    ------
    ValueError
        Signed with 1 bit, a ratio outside 0…1, bits out of range.

    Notes
    -----
    ``forward`` returns grid values *and* the large values as they are, so `levels` has only the former, those
    of the last tensor that `initialise` or `encode` saw; `encode` returns a `PackedTensor`. The gradient
    passes straight through. Other than the other quantisers, ``forward`` refuses NaN, infinities and float64:
    what is large is kept as it is, in a narrower type.
    """

    def __init__(
        self,
        bits: int | None = 4,
        *,
        ratio: float = 0.01,
        signed: bool = False,
        value_dtype: torch.dtype = torch.float16,
        clipped: bool = False,
    ) -> None:
        super().__init__(bits)
        large_count(1, ratio)
        if signed and bits == 1:
            raise ValueError("signed values need at least 2 bits, got 1")
        self.ratio, self.grid_name = ratio, "signed" if signed else "unsigned"
        self.value_dtype, self.clipped = value_dtype, clipped
        self.register_buffer("step", torch.tensor(1.0))

    @property
    def signed(self) -> bool:
        """Whether negative values have levels of their own."""
        return self.grid_name == "signed"

    @property
    def _options(self) -> dict[str, Any]:
        return dict(grid=self.grid_name, value_dtype=self.value_dtype, clipped=self.clipped)

    def quantize(self, x: Tensor) -> Tensor:
        """Quantise and dequantise."""
        return straight_through(x, fake_quantize(x.detach(), self.bits, self.ratio, **self._options))

    def measure(self, x: Tensor) -> None:
        """Keep the step that this tensor would get, for `levels`."""
        if self.bits is not None:
            self.step.fill_(_split_and_step(x, self.bits, self.ratio, self.grid_name, self.clipped)[2])

    def grid(self) -> Grid:
        """Levels of the small values of the last tensor that `initialise` or `encode` saw."""
        low, high = _limits(self.bits, self.grid_name)
        return Grid(self.step, torch.zeros_like(self.step), low, high)

    @torch.no_grad()
    def encode(self, x: Tensor) -> PackedTensor:
        """The stored form of ``x``."""
        self._finite_grid()
        packed = encode(x, self.bits, self.ratio, **self._options)
        self.step.fill_(packed.step)
        return packed

    def decode(self, codes: PackedTensor, dtype: torch.dtype | None = None) -> Tensor:
        """Values of a stored tensor, by default in its type: ``decode(encode(x))`` is ``forward(x)``."""
        return codes.decode().to(dtype or codes.dtype)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, ratio={self.ratio}, grid={self.grid_name}, clipped={self.clipped}"


# --- the grid ----------------------------------------------------------------------------------------------


def _split_and_step(
    x: Tensor, bits: int, ratio: float, grid: GridName, clipped: bool
) -> tuple[Tensor, Split, float]:
    """The elements in the order of memory, the large ones among them, and the step of the others' grid."""
    if grid not in ("unsigned", "relu", "signed"):
        raise ValueError(f"grid must be 'unsigned', 'relu' or 'signed', got {grid!r}")
    checked_bits(bits, 2 if grid == "signed" else 1, name=f"bits of the grid {grid!r}")
    flat = in_memory_order(x)
    large = split(flat, ratio, signed=grid == "signed")
    top = _least_error_top(flat, large.top, bits, grid) if clipped else large.top
    return flat, large, _step(top, bits, grid)


def _least_error_top(flat: Tensor, top: float, bits: int, grid: GridName) -> float:
    """Up to `top`, the end of the grid with the least squared error of the values up to there."""
    highest = _limits(bits, grid)[1]
    magnitude = flat[:: max(1, flat.numel() // SEARCHED)].float().abs()
    magnitude = magnitude[(magnitude > 0) & (magnitude <= top)]
    if not highest or not len(magnitude):
        return top
    tops = top * SHARES.to(magnitude)
    step = (tops / highest)[:, None]
    error = ((magnitude / step).round_().clamp_(max=highest).mul_(step) - magnitude).square_().sum(1)
    return float(tops[int(error.argmin())])


def _limits(bits: int, grid: GridName) -> tuple[int, int]:
    """Smallest and largest multiple of the step."""
    if grid == "signed":
        return 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1
    return 0, 2**bits - (2 if grid == "relu" else 1)


def _step(top: float, bits: int, grid: GridName) -> float:
    """Distance of two levels, a float32; zero where there is no level but zero."""
    highest = _limits(bits, grid)[1]
    step = float(np.float32(top / highest)) if highest else 0.0
    # Below, 1 / step is no float32 any more: values so small are stored as zero.
    return step if step >= 2.0**-126 else 0.0


def _to_multiples(x: Tensor, step: float, bits: int, grid: GridName, out: Tensor, clip: bool) -> Tensor:
    """Multiples of the step in ``out``, for large values meaningless; without any, `clip` is not needed."""
    torch.mul(x, float(np.float32(1) / np.float32(step)) if step else 0.0, out=out)
    if clip:
        out.clamp_(*_limits(bits, grid))
    return out.round_()


# --- memory ------------------------------------------------------------------------------------------------


def _width(tensor: Tensor) -> int:
    """Length of a block in the last dimension."""
    rows = tensor.shape[0] if tensor.dim() == 2 else 1
    return min(tensor.shape[-1], BLOCK // rows if tensor.device.type == "cpu" else tensor.shape[-1])


def _blocks(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same part of both tensors in turn, along the last dimension."""
    width = max(1, min(_width(first), _width(second)))
    return zip(first.split(width, dim=-1), second.split(width, dim=-1), strict=True)
