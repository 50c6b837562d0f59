"""Rounding to a grid and back in one autograd function, with the gradients that the literature gives it.

`fake_quantize` is what quantisers compute with; `straight_through`, `scaled_gradient` and `positive` are the
other things that they do to gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Elements worked on at a time on a CPU: what a block needs stays in the second-level cache.
BLOCK = 65536

#: Smallest step: a learned one that crosses zero is held here, its gradient is not.
EPSILON = 1e-8


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
    ``out_offset``  Σ g
    both, tied      Σ g, not in                                   LSQ+'s offset
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
    # Their gradients are sums that mostly cancel, and are taken together; autograd would add them too late.
    pairs = {"step": step is out_step, "offset": step is out_step and offset is out_offset}
    tied = {name for name, same in pairs.items() if same}
    return _FakeQuantize.apply(x, step, offset, out_step, out_offset, clip, low, high, tied)


#: What `_FakeQuantize` takes after ``x``, in this order: what a gradient can be asked of.
_SCALES = ("step", "offset", "out_step", "out_offset", "clip")


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step, offset, out_step, out_offset, clip, low, high, tied):
        ctx.low, ctx.high, ctx.tied = low, high, tied
        scales = zip(_SCALES, (step, offset, out_step, out_offset, clip), strict=True)
        ctx.shapes = {name: value.shape for name, value in scales if value is not None}
        source = _computable(x)
        y = torch.empty_like(source)
        s_in, b_in, s_out, b_out = (_scale(value, source) for value in (step, offset, out_step, out_offset))
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
        low, high, dx = ctx.low, ctx.high, torch.empty_like(g)
        ratio = s_out / s_in
        for_x, *asked = ctx.needs_input_grad[: 1 + len(_SCALES)]
        sums = {name: 0.0 for name, wanted in zip(_SCALES, asked, strict=True) if wanted}
        for name in ctx.tied:
            sums.pop(f"out_{name}", None)
        buffer = None
        for grad, passed, block in _blocks(s_in, g, dx, x):
            u = _to_grid(block, s_in, b_in)
            torch.ops.aten.hardtanh_backward.grad_input(grad, u, low, high, grad_input=passed)  # g, in
            if "step" in sums:  # u, in: what is clipped may be infinite
                buffer = torch.empty_like(u) if buffer is None else buffer
                inside = torch.ops.aten.hardtanh_backward.grad_input(
                    u, u, low, high, grad_input=buffer[: len(u)]
                )
            if "offset" in sums:
                sums["offset"] += _total(grad - passed if "offset" in ctx.tied else passed)
            if sums.keys() & {"step", "out_step", "clip"}:
                k = u.clamp_(low, high).round_()
            if "step" in sums:
                sums["step"] += _inner(grad, inside.sub_(k).neg_() if "step" in ctx.tied else inside)
            if "out_step" in sums:
                sums["out_step"] += _inner(grad, k)
            if "out_offset" in sums:
                sums["out_offset"] += _total(grad)
            if "clip" in sums:
                sums["clip"] += _inner(grad - passed, k.sign_())
            if "step" not in ctx.tied:
                passed.mul_(ratio)
        per_channel = isinstance(ratio, Tensor) and ratio.dim() > 0
        through_the_grid = -ratio.double()[:, 0] if per_channel else -ratio
        for name in {"step", "offset"} & sums.keys() - ctx.tied:
            sums[name] = sums[name] * through_the_grid
        gradients = {
            name: torch.as_tensor(total, dtype=step.dtype, device=step.device).reshape(ctx.shapes[name])
            for name, total in sums.items()
        }
        return dx.to(dtype) if for_x else None, *map(gradients.get, _SCALES), None, None, None


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
