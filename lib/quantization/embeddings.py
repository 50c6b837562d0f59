"""Embedding tables in 8 or 4 bits with a scale and a bias per row, packed as torch and FBGEMM pack them.

A row of `d` numbers takes ``4 d`` bytes in float32, ``d + 8`` in 8 bits and ``d / 2 + 4`` in 4 bits. From
Park et al. (arXiv:1811.09886). The layout is FBGEMM's: codes, then scale and bias, which are float32 beside
8-bit codes and float16 beside 4-bit codes; the lower half of a byte holds the earlier number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of a packed row of `dim` numbers; 32 bits mean plain float32."""
    if bits == 32:
        return 4 * dim
    _check(dim, bits)
    return dim + 8 if bits == 8 else dim // 2 + 4


def pack_rows(table: Tensor, *, bits: int = 8) -> Tensor:
    """Quantise each row of a table, float32 (rows, dim): uint8 (rows, `row_bytes`).

    ValueError for other bits than 8 and 4, an odd dim with 4 bits, NaN or infinity, an empty table.
    """
    if table.ndim != 2 or table.numel() == 0 or table.dtype != torch.float32:
        raise ValueError(f"expected a float32 table (rows, dim), got {table.dtype} {tuple(table.shape)}")
    _check(table.shape[1], bits)
    if not table.isfinite().all():
        raise ValueError("a table must be finite, got NaN or infinity")
    low, high = table.aminmax(dim=1, keepdim=True)
    if bits == 8:
        scale = (high - low) / 255
        codes = torch.round((table - low) * (255 / (high - low + 1e-8))).to(torch.uint8)
        return torch.cat([codes, torch.cat([scale, low], 1).view(torch.uint8)], 1)
    low = low.half().float()  # codes are taken from the bias and the scale as they are stored
    scale = ((high - low) / 15).half()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    inverse = 1 / scale.float()
    infinite = inverse.isinf()
    scale, inverse = scale.masked_fill(infinite, 1), inverse.masked_fill(infinite, 1)
    codes = torch.round((table - low) * inverse).clamp(0, 15).to(torch.uint8)
    codes = codes[:, ::2] | codes[:, 1::2] << 4
    return torch.cat([codes, torch.cat([scale, low.half()], 1).view(torch.uint8)], 1)


def unpack_rows(packed: Tensor, *, bits: int = 8) -> Tensor:
    """The float32 rows (rows, dim) that `pack_rows` stored."""
    if packed.dtype != torch.uint8 or packed.ndim != 2 or bits not in (8, 4):
        raise ValueError(f"expected uint8 rows of 8 or 4 bits, got {packed.dtype}, {bits} bits")
    tail, number = (8, torch.float32) if bits == 8 else (4, torch.float16)
    scale, bias = packed[:, -tail:].contiguous().view(number).float().split(1, 1)
    codes = packed[:, :-tail]
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    return codes * scale + bias


def pooled_sum(packed: Tensor, indices: Tensor, offsets: Tensor, *, bits: int = 8) -> Tensor:
    """Sum of the rows of each bag, float32 (bags, dim); only the rows looked up are unpacked.

    Parameters
    ----------
    packed : uint8 (rows, bytes)
    indices : int64 (lookups,)
    offsets : int64 (bags,)
        Where each bag begins in `indices`; the last goes to the end.
    """
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(packed):
        raise ValueError(f"indices must be in 0..{len(packed) - 1}")
    rows = unpack_rows(packed[indices], bits=bits)
    every = torch.arange(len(indices))
    return torch.nn.functional.embedding_bag(every, rows, offsets, mode="sum")


def _check(dim: int, bits: int) -> None:
    if bits not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, got {bits}")
    if dim < 1 or (bits == 4 and dim % 2):
        raise ValueError(f"dim must be positive, and even with 4 bits, got {dim}")
