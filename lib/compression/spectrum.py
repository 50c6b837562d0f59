"""Singular values and leading singular vectors of wide matrices, through the Gram matrix of the short side.

The unfolding of a convolution kernel is a wide matrix: 512 × 4608 in VGG-16. Its left singular vectors are
the eigenvectors of a 512 × 512 matrix, which costs one symmetric product and one small eigenproblem instead
of a singular value decomposition, and never a copy of the matrix in float64. The price: an eigenvalue, the
square of a singular value, is known to about 1e-16 of the *largest* one. `lib.compression.vbmf` says when
that is not enough, and falls back to `singular_values`.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

BLOCK = 1 << 22  # numbers converted to float64 at a time: 32 MiB


def as_matrix(matrix: Tensor | np.ndarray, name: str = "matrix") -> np.ndarray:
    """A real matrix (rows, columns) as a NumPy array, not copied where it need not be.

    Raises
    ------
    ValueError
        Not two-dimensional, empty, complex, or with a value that is not finite.
    """
    if isinstance(matrix, Tensor):
        matrix = matrix.detach().cpu()
        if matrix.is_floating_point() and matrix.dtype not in (torch.float32, torch.float64):
            matrix = matrix.float()  # half precision: exact, and NumPy has no bfloat16
        matrix = matrix.numpy()
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} must be two-dimensional and not empty, got shape {matrix.shape}")
    if matrix.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers, got {matrix.dtype}")
    if not all(np.isfinite(matrix[rows]).all() for rows in _slices(matrix.shape[0], matrix.shape[1])):
        raise ValueError(f"{name} must be finite, got infinity or NaN among its {matrix.size} values")
    return matrix


def power_of_two(array: np.ndarray) -> float:
    """The power of two at or below the largest magnitude; 1 for zeros alone.

    Divided by it, which loses no digit, neither huge nor tiny numbers leave float64's range when squared.
    """
    largest = max(abs(float(array.max())), abs(float(array.min())))
    return 2.0 ** (int(np.frexp(largest)[1]) - 1) if largest else 1.0


def gram(matrix: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The Gram matrix of the short side of ``matrix / scale`` in float64.

    Parameters
    ----------
    matrix : array (rows, columns)
        Any real dtype; blocks of it are converted, so memory beyond it is the result's and one block's.
    scale : float
        Positive; what the matrix is divided by first.

    Returns
    -------
    array (L, L), L = min(rows, columns)
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    total = np.zeros((wide.shape[0],) * 2)
    for columns in _slices(wide.shape[1], wide.shape[0]):
        block = np.array(wide[:, columns], dtype=np.float64, order="C")
        block /= scale
        total += block @ block.T  # NumPy sees the transpose and computes one half
    return total


def squared_singular_values(matrix: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Squares of all singular values of ``matrix / scale``, descending, by the Gram matrix.

    Each is accurate to some 1e-16 of the largest square.
    """
    return np.clip(np.linalg.eigvalsh(gram(matrix, scale))[::-1], 0.0, None)


def singular_values(matrix: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """All singular values of ``matrix / scale``, descending, each accurate to some 1e-16 of the largest.

    Slower than `squared_singular_values`, and with a float64 copy of the matrix; for small ones far more
    accurate.
    """
    return scipy.linalg.svdvals(np.asarray(matrix, dtype=np.float64) / scale, check_finite=False)


def leading_vectors(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The leading left singular vectors of a matrix.

    By the Gram matrix of the shorter side; from the right vectors V the left ones are the orthonormal basis
    of ``matrix V``.

    Parameters
    ----------
    matrix : array (rows, columns)
    rank : int
        In 1..rows.

    Returns
    -------
    array (rows, rank)
        Orthonormal columns; signs are arbitrary, as of any singular vectors.

    Raises
    ------
    ValueError
        ``rank`` is out of range.
    """
    rows, columns = matrix.shape
    if not isinstance(rank, Integral) or not 1 <= rank <= rows:
        raise ValueError(f"rank must be a whole number in 1..{rows}, got {rank}")
    scale = power_of_two(matrix)
    if rows <= columns:
        return _eigenvectors(gram(matrix, scale), rank)
    right = _eigenvectors(gram(matrix, scale), min(rank, columns))
    # A rank above the number of columns is filled up with any orthonormal vectors: their share is zero.
    product = np.zeros((rows, rank))
    product[:, : right.shape[1]] = np.asarray(matrix, dtype=np.float64) / scale @ right
    return np.linalg.qr(product)[0]


def _eigenvectors(symmetric: np.ndarray, count: int) -> np.ndarray:
    size = len(symmetric)
    vectors = scipy.linalg.eigh(symmetric, subset_by_index=(size - count, size - 1), check_finite=False)[1]
    return vectors[:, ::-1]


def _slices(length: int, other: int) -> list[slice]:
    step = max(1, BLOCK // other)
    return [slice(start, start + step) for start in range(0, length, step)]
