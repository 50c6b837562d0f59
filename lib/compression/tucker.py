"""Low-rank factors of kernels: Tucker-2, Tucker-1 and the truncated singular value decomposition.

Kim et al. (ICLR 2016), section 3. A convolution kernel of T outputs, S inputs and Kh × Kw taps is
approximated by a small core and one factor for each channel side; the two spatial sides are left as they are:

    K[t, s, i, j] ≈ Σ_{q,r} U4[t, q] C[q, r, i, j] U3[s, r].

The decomposition minimises the error of the *weights*, not of the layer's response. Here: the factors.
`lib.compression.factored_layers` turns them into a sequence of layers inside a model.

References
----------
L. De Lathauwer, B. De Moor and J. Vandewalle, "A multilinear singular value decomposition", SIAM Journal on
Matrix Analysis and Applications 21(4), 1253-1278, 2000 (2000a): the higher-order singular value
decomposition, HOSVD.

L. De Lathauwer, B. De Moor and J. Vandewalle, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation
of higher-order tensors", SIAM Journal on Matrix Analysis and Applications 21(4), 1324-1342, 2000 (2000b): the
higher-order orthogonal iteration, HOOI.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from lib.compression.spectrum import as_matrix, leading_vectors, power_of_two


@dataclass(frozen=True)
class Tucker:
    """A kernel's factors, in float64 on the CPU.

    Attributes
    ----------
    core : tensor (R4, R3, Kh, Kw)
        R3 = S and `input_factor` None for Tucker-1.
    output_factor : tensor (T, R4)
        Orthonormal columns.
    input_factor : tensor (S, R3), optional
        Orthonormal columns.
    errors : tuple of float
        Relative error ‖K − K̂‖/‖K‖ of the start and after each sweep.
    """

    core: Tensor
    output_factor: Tensor
    input_factor: Tensor | None
    errors: tuple[float, ...]

    @property
    def relative_error(self) -> float:
        """‖K − K̂‖/‖K‖ of these factors (Frobenius norms); 0 for an all-zero kernel."""
        return self.errors[-1]

    def kernel(self) -> Tensor:
        """The approximation K̂: tensor (T, S, Kh, Kw)."""
        full = torch.einsum("tq,qrij->trij", self.output_factor, self.core)
        return full if self.input_factor is None else torch.einsum("trij,sr->tsij", full, self.input_factor)


def tucker2(
    kernel: Tensor | np.ndarray,
    input_rank: int,
    output_rank: int,
    *,
    sweeps: int = 100,
    tolerance: float = 1e-4,
) -> Tucker:
    """Tucker-2 of a convolution kernel: HOSVD, then sweeps of higher-order orthogonal iteration (HOOI).

    HOSVD (De Lathauwer et al. 2000a) takes the leading singular vectors of each channel unfolding; its
    squared error is at most twice the optimum. A sweep of HOOI (2000b) recomputes each factor with the other
    one fixed, which never raises the error; it finds a local optimum. All singular vectors come from Gram
    matrices of the short side, the spatial axes are not compressed.

    Parameters
    ----------
    kernel : tensor (T, S, Kh, Kw)
        torch's layout: outputs, inputs, taps.
    input_rank, output_rank : int
        R3 in 1..S and R4 in 1..T.
    sweeps : int
        At most so many; 0 is HOSVD alone. Which of the two the authors used is unknown.
    tolerance : float
        Stop once a sweep lowers the relative error by less.

    Returns
    -------
    Tucker
        Factors with orthonormal columns, the core that is optimal for them, and one relative error for HOSVD
        and for each sweep, never rising. Signs and rotations of the factors are arbitrary.

    Raises
    ------
    ValueError
        Not a finite kernel of four axes; a rank out of range; negative ``sweeps`` or ``tolerance``.
    """
    array = _kernel(kernel)
    outputs, inputs, *taps = array.shape
    _check_rank("input_rank", input_rank, inputs)
    _check_rank("output_rank", output_rank, outputs)
    if sweeps < 0 or tolerance < 0:
        raise ValueError(f"sweeps and tolerance must not be negative, got {sweeps} and {tolerance}")
    scale = power_of_two(array)
    cube = array.reshape(outputs, inputs, -1) / scale
    norm = np.linalg.norm(cube)

    def input_side(cube: np.ndarray) -> np.ndarray:
        return leading_vectors(np.moveaxis(cube, 1, 0).reshape(inputs, -1), input_rank)

    output_factor = leading_vectors(cube.reshape(outputs, -1), output_rank)
    input_factor = input_side(cube)
    half = np.tensordot(output_factor.T, cube, 1)  # (R4, S, taps)
    core = _contract_inputs(half, input_factor)
    errors = [_error(norm, core)]
    for _ in range(sweeps):
        projected = _contract_inputs(cube, input_factor)
        output_factor = leading_vectors(projected.reshape(outputs, -1), output_rank)
        half = np.tensordot(output_factor.T, cube, 1)
        input_factor = input_side(half)
        core = _contract_inputs(half, input_factor)
        errors.append(_error(norm, core))
        if errors[-2] - errors[-1] < tolerance:
            break
    if errors[-1] < 1e-6:  # ‖K‖² − ‖C‖² has lost its digits: measure
        rebuilt = np.tensordot(output_factor, _contract_inputs(core, input_factor.T), 1)
        errors[-1] = float(np.linalg.norm(cube - rebuilt) / norm) if norm else 0.0
    core = core.reshape(output_rank, input_rank, *taps) * scale
    return Tucker(_tensor(core), _tensor(output_factor), _tensor(input_factor), tuple(errors))


def tucker1(kernel: Tensor | np.ndarray, output_rank: int) -> Tucker:
    """Tucker-1 of a convolution kernel over its outputs: the optimum, by one singular value decomposition.

    For the first layer, whose three input channels have nothing to compress.

    Parameters
    ----------
    kernel : tensor (T, S, Kh, Kw)
    output_rank : int
        R4 in 1..T.

    Returns
    -------
    Tucker
        Without an input factor; its core is (R4, S, Kh, Kw).

    Raises
    ------
    ValueError
        As `tucker2`.
    """
    array = _kernel(kernel)
    _check_rank("output_rank", output_rank, array.shape[0])
    scale = power_of_two(array)
    unfolded = array.reshape(array.shape[0], -1) / scale
    factor = leading_vectors(unfolded, output_rank)
    core = factor.T @ unfolded
    norm = np.linalg.norm(unfolded)
    error = float(np.linalg.norm(unfolded - factor @ core) / norm) if norm else 0.0
    core = core.reshape(output_rank, *array.shape[1:]) * scale
    return Tucker(_tensor(core), _tensor(factor), None, (error,))


def truncated_svd(matrix: Tensor | np.ndarray, rank: int) -> Tucker:
    """The best approximation of a matrix of a given rank.

    Parameters
    ----------
    matrix : tensor (T, S)
    rank : int
        In 1..min(T, S).

    Returns
    -------
    Tucker
        Tucker-1 with a 1 × 1 core (R, S, 1, 1).

    Raises
    ------
    ValueError
        Not a finite, real, non-empty matrix; a rank out of range.
    """
    matrix = as_matrix(matrix)
    _check_rank("rank", rank, min(matrix.shape))
    return tucker1(matrix[:, :, None, None], rank)


def _contract_inputs(cube: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """(T, S, taps) and (S, R) to (T, R, taps)."""
    return np.matmul(factor.T, cube)


def _error(norm: float, core: np.ndarray) -> float:
    """‖K − K̂‖/‖K‖ by Pythagoras: the factors are orthonormal and the core is the projection."""
    return float(np.sqrt(max(0.0, 1 - (np.linalg.norm(core) / norm) ** 2))) if norm else 0.0


def _kernel(kernel: Tensor | np.ndarray) -> np.ndarray:
    shape = tuple(kernel.shape)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"kernel must have four axes (outputs, inputs, height, width), got shape {shape}")
    matrix = as_matrix(kernel.reshape(shape[0], -1), "kernel")
    return matrix.astype(np.float64).reshape(shape)


def _check_rank(name: str, rank: int, size: int) -> None:
    if not isinstance(rank, Integral) or not 1 <= rank <= size:
        raise ValueError(f"{name} must be a whole number in 1..{size}, got {rank}")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))  # a copy: torch refuses negative strides
