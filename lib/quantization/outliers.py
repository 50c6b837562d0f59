"""Outlier-aware splitting of weights, which makes 16-bit accumulation usable.

``W = W_main + W_outlier``: small values stay in a dense matrix whose products fit 16-bit sums for longer, the
few large ones go to a sparse matrix accumulated in 32 bits. From Park et al. (arXiv:1811.09886); the rule for
what an outlier is, is that of the authors' Caffe2 operators (``nbits_in_non_outlier``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.quantization.bits import checked_bits
from lib.quantization.integer import Accumulated, gemm_i16


@dataclass(frozen=True)
class OutlierSplit:
    """``main`` int8 (N, K), zero where an outlier was; the outliers' rows, columns int64 and values int8."""

    main: Tensor
    row: Tensor
    column: Tensor
    value: Tensor

    @property
    def density(self) -> float:
        """Share of weights that are outliers."""
        return len(self.value) / self.main.numel()

    def outliers(self) -> Tensor:
        """The outliers as a dense matrix int8 (N, K), zero elsewhere."""
        dense = torch.zeros_like(self.main)
        dense[self.row, self.column] = self.value
        return dense


def split_outliers(weight: Tensor, *, bits: int = 7) -> OutlierSplit:
    """Split int8 weights (N, K): what fits `bits` bits (7: from -64 to 63) stays, the rest are outliers.

    Raises
    ------
    ValueError
        For another dtype, an empty or not two-dimensional matrix, or bits outside 1..8.
    """
    if weight.dtype != torch.int8 or weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"expected an int8 matrix, got {weight.dtype} of shape {tuple(weight.shape)}")
    checked_bits(bits)
    limit = 2 ** (bits - 1)
    outlier = (weight < -limit) | (weight > limit - 1)
    row, column = outlier.nonzero(as_tuple=True)
    return OutlierSplit(weight.masked_fill(outlier, 0), row, column, weight[row, column])


def sparse_gemm_i32(activation: Tensor, split: OutlierSplit) -> Tensor:
    """uint8 (M, K) times the outliers, transposed: int32 (M, N), exact; cost O(M × outliers)."""
    count = len(split.main)
    sparse = torch.sparse_coo_tensor(
        torch.stack([split.row, split.column]), split.value.double(), split.main.shape, check_invariants=False
    )
    if not len(split.value):
        return torch.zeros(len(activation), count, dtype=torch.int32)
    return torch.sparse.mm(sparse, activation.double().T).T.int()


def gemm_outlier_aware(
    activation: Tensor, split: OutlierSplit, *, spill_every: int | None = None
) -> Accumulated:
    """The product with ``main`` accumulated in 16 bits, plus the product with the outliers in 32 bits.

    Parameters are those of `lib.quantization.integer.gemm_i16`; so is the result, of which ``saturated``
    speaks of the 16-bit part.
    """
    dense = gemm_i16(activation, split.main, spill_every=spill_every)
    return Accumulated(dense.values + sparse_gemm_i32(activation, split), dense.saturated)
