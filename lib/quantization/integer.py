"""Eight-bit arithmetic of data-centre inference, as integers: what the processor computes, bit for bit.

Affine quantisers, and the product of unsigned activations with signed weights, accumulated in 32 or in 16
bits. From Park et al., *Deep Learning Inference in Facebook Data Centers* (arXiv:1811.09886) and the public
FBGEMM library of the same team. Everything here is exact: values are checked against 64-bit integers, and the
16-bit path against a real processor without VNNI. Not here: fast kernels
(`lib.experiments.facebook_inference_kernels` times torch's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lib.quantization.bits import checked_bits
from lib.quantization.quantizer import check_data

INT16 = (-(2**15), 2**15 - 1)
PAIR = 2  # products that vpmaddubsw adds before anything else happens
MAXIMUM_DEPTH = (2**31 - 1) // (255 * 128)  # products of 8 bits that a 32-bit sum always holds: 65 793
ENTRIES_AT_ONCE = 1 << 16  # emulated together: what a core's cache holds


@dataclass(frozen=True)
class AffineQuantizer:
    """``x ≈ scale (q - zero_point)`` with ``q`` an integer of `bits` bits.

    Attributes
    ----------
    scale : float64 tensor, () or (channels,)
    zero_point : int64 tensor of the same shape; 0 if symmetric
    bits : int, 2 to 8
    signed : bool
        int8 (weights) or uint8 (activations), as the x86 instruction wants them.
    axis : int or None
        Axis of the channels; None means one scale for the whole tensor.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int = 8
    signed: bool = False
    axis: int | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest integer."""
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    def _shaped(self, values: Tensor, dimensions: int) -> Tensor:
        if self.axis is None:
            return values
        shape = [1] * dimensions
        shape[self.axis] = -1
        return values.reshape(shape)

    def quantize(self, x: Tensor) -> Tensor:
        """Nearest integers (halves to even), clamped: int8 if signed, else uint8, in the shape of `x`."""
        check_data(x, "AffineQuantizer")
        scale, zero = self._shaped(self.scale, x.ndim), self._shaped(self.zero_point, x.ndim)
        q = torch.round(x.double() / scale).add_(zero).clamp_(*self.limits)
        return q.to(torch.int8 if self.signed else torch.uint8)

    def dequantize(self, q: Tensor) -> Tensor:
        """The real numbers (float32) that integers stand for."""
        scale, zero = self._shaped(self.scale, q.ndim), self._shaped(self.zero_point, q.ndim)
        return (scale * (q.long() - zero)).float()


def affine_quantizer(
    low: Tensor | float,
    high: Tensor | float,
    *,
    bits: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    axis: int | None = None,
) -> AffineQuantizer:
    """The quantiser of the range from `low` to `high`, widened to hold zero, which stays exact.

    Parameters
    ----------
    low, high : float or tensor (channels,)
        Range; one per channel if `axis` is given.
    bits : int
        2 to 8.
    signed, axis
        As in `AffineQuantizer`.
    symmetric : bool
        Zero point 0; the larger of both ends maps to the highest integer. Needs `signed`.

    Raises
    ------
    ValueError
        Bits out of range, a range that is not finite or upside down, symmetric but unsigned.
    """
    checked_bits(bits, 2)
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (low, high))
    if low.ndim != (axis is not None) or low.shape != high.shape:
        raise ValueError(f"one range per tensor or (channels,) with an axis, got {tuple(low.shape)}, {axis}")
    if not (low.isfinite().all() and high.isfinite().all()) or (low > high).any():
        raise ValueError("a range must be finite with low <= high")
    if symmetric and not signed:
        raise ValueError("a symmetric quantiser is signed")
    low, high = low.clamp(max=0), high.clamp(min=0)
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if symmetric:
        scale = torch.maximum(-low, high) / highest
        scale = torch.where(scale > 0, scale, 1.0)
        return AffineQuantizer(scale, torch.zeros_like(scale, dtype=torch.int64), bits, signed, axis)
    scale = (high - low) / (highest - lowest)
    scale = torch.where(scale > 0, scale, 1.0)
    zero = (lowest - torch.round(low / scale)).clamp(lowest, highest).long()
    return AffineQuantizer(scale, zero, bits, signed, axis)


def gemm_i32(activation: Tensor, weight: Tensor) -> Tensor:
    """uint8 (M, K) times int8 (N, K), transposed, in 32-bit integers: int32 (M, N), exact.

    Raises
    ------
    ValueError
        Where a sum could leave 32 bits: K above 65 793.
    """
    _check_operands(activation, weight)
    if weight.shape[1] > MAXIMUM_DEPTH:
        raise ValueError(f"K must be at most {MAXIMUM_DEPTH} for sums to fit 32 bits, got {weight.shape[1]}")
    return _exact_product(activation, weight).int()


def _exact_product(activation: Tensor, weight: Tensor) -> Tensor:
    """``activation @ weight.T`` in a real type that holds every sum exactly: BLAS beats integer products."""
    real = torch.float32 if weight.shape[1] * 255 * 128 <= 2**24 else torch.float64
    return activation.to(real) @ weight.to(real).T


class Accumulated(NamedTuple):
    """Sums int32 (M, N), and whether each was cut on the way, bool (M, N)."""

    values: Tensor
    saturated: Tensor


def gemm_i16(activation: Tensor, weight: Tensor, *, spill_every: int | None = None) -> Accumulated:
    """As `gemm_i32`, with 16-bit accumulation that saturates as the hardware does (vpmaddubsw, vpaddsw).

    Two products are added and cut to 16 bits; the pair is added to a 16-bit sum and cut again, in order of K.
    After every `spill_every` products the sum moves to 32 bits and starts at zero. With ``spill_every=2`` it
    is the classic instruction sequence for 32-bit accumulation (vpmaddubsw, vpmaddwd, vpaddd), in which only
    a pair can be cut.

    Parameters
    ----------
    activation : uint8 (M, K)
    weight : int8 (N, K)
    spill_every : int, optional
        Even, at least 2; None: only at the end.

    Raises
    ------
    ValueError
        Operands of other types or shapes; an odd ``spill_every`` or one below 2.

    Notes
    -----
    Activations are not negative, so each partial sum of a block lies between the sum of its negative and of
    its positive products. Where both fit 16 bits nothing can be cut, and two matrix products give the result.
    Only the other entries are emulated, step by step, some of them at once.
    """
    _check_operands(activation, weight)
    rows, depth = activation.shape
    spill = depth + depth % PAIR if spill_every is None else spill_every
    if spill < PAIR or spill % PAIR:
        raise ValueError(f"spill_every must be even and at least 2, got {spill_every}")
    total = torch.zeros(rows, len(weight), dtype=torch.int32)
    saturated = torch.zeros(rows, len(weight), dtype=torch.bool)
    for start in range(0, depth, spill):
        a, w = activation[:, start : start + spill], weight[:, start : start + spill].short()
        positive = _exact_product(a, w.clamp(min=0))
        negative = _exact_product(a, w.clamp(max=0))
        block = (positive + negative).int()
        at_risk = ((positive > INT16[1]) | (negative < INT16[0])).nonzero()
        for part in at_risk.split(ENTRIES_AT_ONCE):
            m, n = part.unbind(1)
            block[m, n], cut = _saturating_sums(a.T.short().contiguous(), w.T.contiguous(), m, n)
            saturated[m, n] |= cut
        total += block
    return Accumulated(total, saturated)


def _saturating_sums(a: Tensor, w: Tensor, m: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Entries (m, n) of ``aᵀ w``, int16 (k, M) and (k, N), summed in 16 bits; and whether each was cut."""
    total = torch.zeros(len(m), dtype=torch.int32)
    cut = torch.zeros(len(m), dtype=torch.bool)
    for pair in torch.arange(len(a)).split(PAIR):
        # A product of 8 bits with 8 bits fits 16.
        products = [a[k].index_select(0, m) * w[k].index_select(0, n) for k in pair.tolist()]
        exact = sum(product.int() for product in products)
        added = exact.clamp(*INT16)
        cut |= added != exact
        added += total
        total = added.clamp(*INT16)
        cut |= total != added
    return total, cut


def affine_gemm(
    activation: Tensor,
    weight: Tensor,
    activation_quantizer: AffineQuantizer,
    weight_quantizer: AffineQuantizer,
    accumulated: Tensor | None = None,
) -> Tensor:
    """The real matrix product that two quantised matrices stand for.

    .. math:: s_x s_w (Σ q_x q_w - z_w Σ q_x - z_x Σ q_w + K z_x z_w)

    The bracket is integer arithmetic; sums of a row of the activation are taken here, while FBGEMM takes them
    when it packs the matrix, and those of the weight in advance.

    Parameters
    ----------
    activation : uint8 (M, K), weight : int8 (N, K)
    activation_quantizer
        One scale for the tensor: scales that differ along K cannot leave the sum.
    weight_quantizer
        One scale for the tensor, or one per output channel (axis 0).
    accumulated : int32 (M, N), optional
        ``Σ q_x q_w`` if it was computed another way (`gemm_i16`); `gemm_i32` if not given.

    Returns
    -------
    float32 (M, N)

    Raises
    ------
    ValueError
        Scales along K; or as `gemm_i32`.
    """
    if activation_quantizer.axis is not None or weight_quantizer.axis not in (None, 0):
        raise ValueError("scales: one for the activation, one or one per output channel for the weight")
    total = gemm_i32(activation, weight) if accumulated is None else accumulated
    zero_x, zero_w = activation_quantizer.zero_point, weight_quantizer.zero_point
    bracket = total.double()  # integers of this size are exact
    bracket -= zero_x * weight.sum(1, dtype=torch.int64)
    if zero_w.any():
        bracket -= zero_w * activation.sum(1, keepdim=True, dtype=torch.int64)
        bracket += weight.shape[1] * zero_x * zero_w
    bracket *= activation_quantizer.scale * weight_quantizer.scale
    return bracket.float()


def _check_operands(activation: Tensor, weight: Tensor) -> None:
    if activation.dtype != torch.uint8 or weight.dtype != torch.int8:
        raise ValueError(f"expected uint8 and int8, got {activation.dtype} and {weight.dtype}")
    shapes = tuple(activation.shape), tuple(weight.shape)
    if (
        activation.ndim != 2
        or weight.ndim != 2
        or shapes[0][1] != shapes[1][1]
        or 0 in (*shapes[0], len(weight))
    ):
        raise ValueError(f"expected (M, K) and (N, K), none of them 0, got {shapes[0]} and {shapes[1]}")
