"""What all quantisers share: a uniform grid, its integer codes, and one autograd function.

Every quantiser of this package rounds an affine image of its input to an integer and maps that back,

    k = clip(round((x - offset) / step), low, high),        y = k * out_step + out_offset,

so one function (`fake_quantize`) holds the rounding, the clipping and all published straight-through
gradients; a quantiser says where its steps and offsets come from. Rounding is half to even.

Not here: packing of codes into bytes, and integer matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 65536
"""Elements worked on at a time on a CPU: what a block needs stays in the second-level cache."""

EPSILON = 1e-8
"""Smallest step: a learned one that crosses zero is held here, its gradient is not."""


class Grid(NamedTuple):
    """The levels of a quantiser: ``k * step + offset`` for the integers ``low..high``.

    `step` and `offset` are tensors of shape () or (channels,), without gradient.
    """

    step: Tensor
    offset: Tensor
    low: int
    high: int


def checked_bits(owner: object, value: int | None, least: int) -> int | None:
    """``value`` if it is None or in ``least``..8; else a ValueError that names the owner's class."""
    if value is not None and (isinstance(value, bool) or value not in range(least, 9)):
        raise ValueError(f"{type(owner).__name__}: bits must be in {least}..8 or None, got {value!r}")
    return None if value is None else int(value)


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
    NaN passes through ``forward`` (the training loop stops on it), infinities are clipped; `encode` and
    `initialise` refuse both.
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
        self._bits = checked_bits(self, value, self.least)

    @property
    def signed(self) -> bool:
        """Whether negative values have levels of their own."""
        grid = self.grid()
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
            ``x`` is empty, not floating point or not finite.
        """
        check_data(x, type(self).__name__)
        with torch.no_grad():
            self.measure(x.detach())
        return self

    def measure(self, x: Tensor) -> None:
        """Set the ranges from checked data. Nothing to do by default."""

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
    def decode(self, codes: Tensor) -> Tensor:
        """Values of codes. ``decode(encode(x))`` is ``forward(x)``, bit for bit.

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
        integers = codes.to(grid.step.dtype) + grid.low
        return integers * _along_first(grid.step, codes) + _along_first(grid.offset, codes)

    def _finite_grid(self) -> Grid:
        if self.bits is None:
            raise ValueError(f"{type(self).__name__} has no levels in full precision: set bits")
        return self.grid()

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def fake_quantize(
    x: Tensor,
    step: Tensor,
    *,
    low: int,
    high: int,
    offset: Tensor | None = None,
    out_step: Tensor | None = None,
    out_offset: Tensor | None = None,
    clip: Tensor | None = None,
) -> Tensor:
    """Round to a grid and back, with the straight-through gradients of the literature.

    With u = (x - offset) / step, k = clip(round(u), low, high), g the incoming gradient and "in" the elements
    with low < u < high:

    ==============  ============================================  ===========================================
    gradient of     formula                                       published as
    ==============  ============================================  ===========================================
    ``x``           g · out_step / step, in                       the straight-through estimator
    ``step``        −(out_step / step) Σ_in g u                   DuQ's input range
    ``out_step``    Σ g k                                         DuQ's output range
    both, tied      Σ g (k − u [in])                              LSQ's step
    ``offset``      −(out_step / step) Σ_in g
    ``out_offset``  Σ g                                           with ``offset`` tied: LSQ+'s offset
    ``clip``        Σ g sign(k), not in                           PACT's clipping level
    ==============  ============================================  ===========================================

    Parameters
    ----------
    x : (...)
        Any shape and memory layout.
    step : () or (1,), or (channels,)
        Positive; below 10⁻⁸ it counts as that. With one step per channel, channels are dimension 0 of ``x``.
    low, high
        Smallest and largest integer.
    offset, out_step, out_offset : as ``step``
        Zero, ``step`` and ``offset`` unless given.
    clip : () or (1,)
        Takes no part in the result; receives the gradient of the clipped elements.

    Returns
    -------
    (...), of the type and layout of ``x``

    Notes
    -----
    In each direction a tensor comes from memory once and goes back once: blocks of it stay in cache for the
    few operations that they need. Backward keeps ``x`` and nothing else. (A mask of one byte per element
    would be smaller, but comparisons into bytes cost torch more than all the rest.) Sums over blocks are
    taken in double precision. Gradients of second order are not defined.
    """
    out_step = step if out_step is None else out_step
    out_offset = offset if out_offset is None else out_offset
    tied = step is out_step
    return _FakeQuantize.apply(x, step, offset, out_step, out_offset, clip, low, high, tied)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step, offset, out_step, out_offset, clip, low, high, tied):
        ctx.low, ctx.high, ctx.tied = low, high, tied
        scales = (step, offset, out_step, out_offset, clip)
        ctx.shapes = [None if value is None else value.shape for value in scales]
        source = _computable(x)
        y = torch.empty_like(source)
        s_in, b_in, s_out, b_out = (_scale(value, source) for value in scales[:4])
        s_in = _at_least(s_in, EPSILON)
        for block, out in _blocks(s_in, source, y):
            _to_grid(block, s_in, b_in, out).clamp_(low, high).round_().mul_(s_out)
            if b_out is not None:
                out.add_(b_out)
        ctx.save_for_backward(source, step, offset, out_step)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, step, offset, out_step = ctx.saved_tensors
        dtype, g = g.dtype, _laid_out_as(_computable(g), x)
        s_in, b_in, s_out = (_scale(value, g) for value in (step, offset, out_step))
        s_in = _at_least(s_in, EPSILON)
        ratio, dx = s_out / s_in, torch.empty_like(g)
        need, low, high = ctx.needs_input_grad, ctx.low, ctx.high
        sums = dict.fromkeys((i for i in range(1, 6) if need[i]), 0.0)
        for grad, out, block in _blocks(s_in, g, dx, x):
            u = _to_grid(block, s_in, b_in)
            torch.ops.aten.hardtanh_backward.grad_input(grad, u, low, high, grad_input=out)
            if need[1]:
                sums[1] += _inner(out, u)
            if need[2]:
                sums[2] += _total(out)
            if need[3] or need[5]:
                k = u.clamp_(low, high).round_()
            if need[3]:
                sums[3] += _inner(grad, k)
            if need[4]:
                sums[4] += _total(grad)
            if need[5]:
                sums[5] += _inner(grad - out, k.sign_())
            if not ctx.tied:
                out.mul_(ratio)
        factor = -ratio.double()[:, 0] if isinstance(ratio, Tensor) and ratio.dim() else -ratio
        grads = [None] * 5
        for i, total in sums.items():
            total = torch.as_tensor(total * factor if i < 3 else total, dtype=step.dtype, device=step.device)
            grads[i - 1] = total.reshape(ctx.shapes[i - 1])
        return dx.to(dtype) if need[0] else None, *grads, None, None, None


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, g):
        return g, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None


def straight_through(x: Tensor, y: Tensor) -> Tensor:
    """The value of ``y``, bit for bit, with the gradient of ``x``."""
    return _StraightThrough.apply(x, y)


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself; its gradient is multiplied by ``factor``."""
    return _ScaledGradient.apply(x, factor)


def positive(step: Tensor) -> Tensor:
    """A learned step, held at a tiny positive value without losing its gradient."""
    return straight_through(step, step.detach().clamp_min(EPSILON))


def check_data(x: Tensor, name: str) -> None:
    """Refuse what no range can be measured on: ValueError in one line."""
    if not x.is_floating_point() or not x.numel() or not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}: ranges need at least one finite floating-point value, got {describe(x)}")


def describe(x: Tensor) -> str:
    """Type, shape and number of non-finite values, for an error message."""
    bad = int((~torch.isfinite(x)).sum()) if x.is_floating_point() else 0
    return f"{x.dtype} of shape {tuple(x.shape)}" + (f" with {bad} NaN or infinite values" if bad else "")


def _computable(x: Tensor) -> Tensor:
    """In float32 or float64, without gaps in memory, in its own layout if it has one."""
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    dense = torch.empty_like(x)
    return x if dense.stride() == x.stride() else dense.copy_(x)


def _laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    if x.stride() == other.stride():
        return x
    return torch.empty_like(other, dtype=x.dtype).copy_(x)


def _scale(value: Tensor | None, x: Tensor) -> float | Tensor | None:
    """A step or an offset: a number, or (channels, 1).

    On a CPU one number is a Python float, which operators take fastest; elsewhere asking for it would wait
    for the device, so it stays a tensor of shape ().
    """
    if value is None:
        return None
    if value.numel() == 1:
        return value.item() if x.device.type == "cpu" else value.detach().to(x.dtype).reshape(())
    if not x.dim() or value.shape != (x.shape[0],):
        shapes = f"{tuple(value.shape)} and {tuple(x.shape)}"
        raise ValueError(f"one step per channel needs as many as dimension 0 has, got shapes {shapes}")
    return value.detach().to(x.dtype)[:, None]


def _at_least(step: float | Tensor, least: float) -> float | Tensor:
    return step.clamp_min(least) if isinstance(step, Tensor) else max(step, least)


def _blocks(step: float | Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same part of every tensor in turn: flat blocks, or all of it as (channels, rest)."""
    if isinstance(step, Tensor) and step.dim():
        channels = step.shape[0]
        yield tuple(_channel_rows(tensor, channels) for tensor in tensors)
        return
    count = tensors[0].numel()
    flat = [tensor.as_strided((count,), (1,)) for tensor in tensors]
    size = BLOCK if flat[0].device.type == "cpu" else max(count, 1)
    yield from zip(*(tensor.split(size) for tensor in flat), strict=True)


def _channel_rows(tensor: Tensor, channels: int) -> Tensor:
    """A view (channels, rest) of a dense tensor, in the order of memory."""
    if tensor.numel() and tensor.stride(0) * channels != tensor.numel() and channels > 1:
        raise ValueError("steps per channel need dimension 0 outermost in memory: call contiguous() first")
    return tensor.as_strided((channels, tensor.numel() // channels), (tensor.numel() // channels, 1))


def _to_grid(
    x: Tensor, step: float | Tensor, offset: float | Tensor | None, out: Tensor | None = None
) -> Tensor:
    if offset is None:
        return torch.div(x, step, out=out)
    return torch.sub(x, offset, out=out).div_(step)


def _inner(a: Tensor, b: Tensor) -> float | Tensor:
    """Inner product of flat blocks, or of each row."""
    if a.dim() == 2:
        return (a * b).sum(-1).double()
    product = torch.dot(a, b)
    return product.item() if a.device.type == "cpu" else product.double()


def _total(a: Tensor) -> float | Tensor:
    """Sum of a flat block, or of each row."""
    total = a.sum(-1)
    return total.item() if a.dim() == 1 and a.device.type == "cpu" else total.double()


def _along_first(value: Tensor, x: Tensor) -> Tensor:
    """A number, or one per channel, so that it broadcasts along dimension 0 of ``x``."""
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (x.dim() - 1))
