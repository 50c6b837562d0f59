"""Empirical variational Bayesian matrix factorisation (EVBMF): how many components of a matrix are not noise.

A matrix V of L × M numbers, L ≤ M, is modelled as ``V = B Aᵀ + E`` with independent Gaussian noise E of
variance σ², Gaussian columns of A and B, and a posterior in which A and B are independent. The prior's
variances, and σ² if it is not given, are chosen by the evidence (the free energy). Nakajima et al. (2012,
2013) solved this in closed form: a component is kept if its singular value exceeds a threshold, and shrunk by
a formula.

Kim et al. (ICLR 2016) take only the *rank* from it; the shrunk values are not used as weights.

Here: `evbmf`, and the parts it is made of. Not here: VBMF with a fixed prior, which the paper does not use.

References
----------
S. Nakajima, M. Sugiyama, S. D. Babacan and R. Tomioka, "Global analytic solution of fully-observed
variational Bayesian matrix factorization", Journal of Machine Learning Research 14, 1-37, 2013.

S. Nakajima, R. Tomioka, M. Sugiyama and S. D. Babacan, "Perfect dimensionality recovery by variational
Bayesian PCA", Advances in Neural Information Processing Systems, 2012.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from lib.compression.spectrum import as_matrix, singular_values, squared_singular_values

TauRule = Literal["shortcut", "root"]
GRID = 256  # values of the noise variance that are compared before the best one is refined
SAFE = 1e-9  # where the noise is smaller than this share of the largest square, the Gram matrix is not used


@dataclass(frozen=True)
class Factorization:
    """The posterior of EVBMF; components are the kept ones, largest first.

    Attributes
    ----------
    rank : int
        Number of kept components, R.
    singular_values : array (L,)
        Of the matrix, descending.
    shrunk : array (R,)
        Singular values of the posterior mean B Aᵀ: smaller than those of the matrix.
    noise_variance : float
        σ², given or estimated; 0 for a matrix of exactly low rank, and 0 or infinite where float64 ends.
    threshold : float
        Singular values above it are kept.
    mean_a, mean_b : arrays (R,)
        Lengths of the posterior means of the columns of A (the longer side, M) and B (the shorter, L); their
        directions are the singular vectors, their product is `shrunk`.
    variance_a, variance_b : arrays (R,)
        Posterior variance of each entry of these columns.
    free_energy : float
        F, the negative bound on the log evidence, in nats; minus infinity when the noise variance is 0.
    """

    rank: int
    singular_values: np.ndarray
    shrunk: np.ndarray
    noise_variance: float
    threshold: float
    mean_a: np.ndarray
    mean_b: np.ndarray
    variance_a: np.ndarray
    variance_b: np.ndarray
    free_energy: float


def tau_threshold(alpha: float, rule: TauRule = "shortcut") -> float:
    """The threshold τ̲ (Nakajima et al. 2013).

    Parameters
    ----------
    alpha : float
        Aspect ratio L/M of the matrix, in (0, 1].
    rule : {"shortcut", "root"}
        ``"root"`` solves Φ(τ) + Φ(τ/α) = 0 with Φ(z) = ln(z + 1)/z − 1/2. ``"shortcut"`` is 2.5129 √α, which
        all public ports use: right at α = 1, lower for flat matrices, so it keeps slightly more.

    Raises
    ------
    ValueError
        ``alpha`` is out of range, or the rule unknown.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}")
    if rule == "shortcut":
        return 2.5129 * math.sqrt(alpha)
    if rule != "root":
        raise ValueError(f"tau must be 'shortcut' or 'root', got {rule!r}")

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    return brentq(lambda tau: phi(tau) + phi(tau / alpha), 2.5 * math.sqrt(alpha), 2.52, xtol=1e-14)


def acceptance(alpha: float, rule: TauRule = "shortcut") -> float:
    """x̲ = (1 + τ̲)(1 + α/τ̲): a component is kept if γ² > x̲ M σ².

    It lies above (1 + √α)², where the largest γ²/(Mσ²) of pure noise gathers (Marchenko and Pastur's edge).
    """
    tau = tau_threshold(alpha, rule)
    return (1 + tau) * (1 + alpha / tau)


def noise_objective(
    noise_variance: np.ndarray,
    squares: np.ndarray,
    shape: tuple[int, int],
    *,
    max_rank: int | None = None,
    tau: TauRule = "shortcut",
) -> np.ndarray:
    """Free energy over the noise variance, up to a constant, times 2/M (Nakajima et al. 2012, theorem 2).

    Parameters
    ----------
    noise_variance : array (n,)
        Positive candidates σ², in units of the squared entries.
    squares : array (L,)
        Squared singular values, descending.
    shape : (L, M)
        Of the matrix, L ≤ M.
    max_rank : int, optional
        Components beyond it are noise whatever their size; default L.

    Returns
    -------
    array (n,)
        Σ_h ψ(x_h) with x_h = γ_h²/(Mσ²), the part −Σ ln γ_h², which does not depend on σ², left out: it is
        minus infinity for a matrix without full rank.
    """
    short, long = shape
    alpha, count = short / long, short if max_rank is None else max_rank
    variance = np.asarray(noise_variance, dtype=np.float64)[..., None]
    x = squares / (long * variance)
    kept = (x > acceptance(alpha, tau)) & (np.arange(short) < count)
    root = tau_of(np.where(kept, x, 4.0 + 2 * alpha), alpha)  # any value above the edge where it is not used
    # x + ln(τ + 1) + α ln(τ/α + 1) − τ, with x − τ = 1 + α + α/τ: x and τ may be too large to subtract.
    signal = 1 + alpha + alpha / root + np.log1p(root) + alpha * np.log1p(root / alpha)
    return np.where(kept, signal, x).sum(-1) + short * np.log(variance[..., 0])


def tau_of(x: np.ndarray, alpha: float) -> np.ndarray:
    """τ(x): the larger root of x = (1 + τ)(1 + α/τ), for x at or above (1 + √α)²."""
    middle = x - (1 + alpha)
    return (middle + np.sqrt(middle**2 - 4 * alpha)) / 2


def evbmf(
    matrix: Tensor | np.ndarray,
    *,
    noise_variance: float | None = None,
    max_rank: int | None = None,
    tau: TauRule = "shortcut",
) -> Factorization:
    """The global optimum of empirical variational Bayesian matrix factorisation.

    The matrix is divided by its root mean square first. In exact arithmetic the rank does not depend on the
    unit of V; in the public ports it does, because their search for σ² stops at an absolute tolerance.

    Costs one L × L Gram matrix (L²M multiply–adds) and its eigenvalues; memory beyond the matrix is that of
    the Gram matrix. If the noise is so small that squares would lose it, the singular values are computed
    directly.

    Parameters
    ----------
    matrix : array or tensor (rows, columns)
        Real and finite; either side may be the longer one.
    noise_variance : float, optional
        Known σ², positive, in units of the squared entries; estimated if not given.
    max_rank : int, optional
        At most so many components, 1 to L; default L.
    tau : {"shortcut", "root"}
        See `tau_threshold`.

    Returns
    -------
    Factorization
        An all-zero matrix has rank 0 and noise variance 0 (or the one given).

    Raises
    ------
    ValueError
        Not a finite, real, non-empty matrix; a noise variance that is not positive; a rank out of range.
    """
    matrix = as_matrix(matrix)
    short, long = sorted(matrix.shape)
    if noise_variance is not None and not 0 < noise_variance < math.inf:
        raise ValueError(f"noise_variance must be positive and finite, got {noise_variance}")
    if max_rank is not None and (not isinstance(max_rank, Integral) or not 1 <= max_rank <= short):
        raise ValueError(f"max_rank must be a whole number in 1..{short}, got {max_rank}")
    count = short if max_rank is None else max_rank
    scale = _root_mean_square(matrix)
    if scale == 0:
        return _posterior(np.zeros(short), noise_variance or 0.0, 1.0, (short, long), count, tau)

    given = None if noise_variance is None else noise_variance / scale / scale
    squares = squared_singular_values(matrix, scale)
    low, high = _search_interval(squares, (short, long), count, tau)
    if long * (low if given is None else min(low, given)) < SAFE * squares[0]:
        exact = singular_values(matrix, scale)
        exact[exact <= long * np.finfo(float).eps * exact[0]] = 0.0  # below what rounding leaves of a zero
        squares = exact**2
        low, high = _search_interval(squares, (short, long), count, tau)
    variance = given if given is not None else _noise_variance(squares, low, high, (short, long), count, tau)
    return _posterior(np.sqrt(squares), variance, scale, (short, long), count, tau)


def _root_mean_square(matrix: np.ndarray) -> float:
    largest = max(abs(float(matrix.max())), abs(float(matrix.min())))
    if largest == 0:
        return 0.0
    flat = matrix.reshape(-1) if matrix.flags.c_contiguous else matrix.T.reshape(-1)
    blocks = np.array_split(flat, 1 + flat.size // (1 << 22))
    # Divided by the largest entry first, so that neither huge nor tiny entries leave float64's range.
    return largest * math.sqrt(
        sum(float(np.square(b / np.float64(largest)).sum()) for b in blocks) / flat.size
    )


def _search_interval(
    squares: np.ndarray, shape: tuple[int, int], count: int, tau: TauRule
) -> tuple[float, float]:
    """Where the noise variance must lie (Nakajima et al. 2012, theorem 2)."""
    short, long = shape
    alpha = short / long
    most = min(math.ceil(short / (1 + alpha)) - 1, count)
    low = max(squares[most] / (long * acceptance(alpha, tau)), squares[most:].mean() / long)
    return float(low), float(squares.sum() / (short * long))


def _noise_variance(
    squares: np.ndarray, low: float, high: float, shape: tuple[int, int], count: int, tau: TauRule
) -> float:
    """The minimiser of `noise_objective`: two nested grids, so that no kink traps the last refinement."""
    if low == 0:  # exactly low rank: the free energy falls without bound as the noise vanishes
        return 0.0
    for _ in range(2):
        grid = np.geomspace(low, high, GRID)
        best = int(np.argmin(noise_objective(grid, squares, shape, max_rank=count, tau=tau)))
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)])
    result = minimize_scalar(
        lambda v: noise_objective(np.array([v]), squares, shape, max_rank=count, tau=tau)[0],
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-12 * high},
    )
    # The minimum may be an end of the interval, which the search only comes near to.
    candidates = np.array([low, high, float(result.x)])
    return float(candidates[np.argmin(noise_objective(candidates, squares, shape, max_rank=count, tau=tau))])


def _posterior(
    values: np.ndarray, variance: float, scale: float, shape: tuple[int, int], count: int, tau: TauRule
) -> Factorization:
    """The posterior of ``scale`` times a matrix with these singular values and this noise variance."""
    short, long = shape
    alpha = short / long
    threshold = math.sqrt(variance * long * acceptance(alpha, tau))
    rank = int((values[:count] > threshold).sum())
    kept = values[:rank]
    ratio = variance / kept**2
    inner = 1 - (short + long) * ratio
    shrunk = kept / 2 * (inner + np.sqrt(inner**2 - 4 * short * long * ratio**2))
    with np.errstate(divide="ignore"):
        root = shrunk * kept / (long * np.float64(variance))
    delta = np.sqrt(long * shrunk / (short * kept)) * (1 + alpha / root)
    if variance > 0:
        signal = 1 + alpha + alpha / root + np.log1p(root) + alpha * np.log1p(root / alpha)
        twice = short * long * (math.log(2 * math.pi * variance) + 2 * math.log(scale))
        twice += (values[rank:] ** 2).sum() / variance + long * signal.sum()
    else:
        twice = -math.inf
    return Factorization(
        rank=rank,
        singular_values=values * scale,
        shrunk=shrunk * scale,
        noise_variance=variance * scale * scale,
        threshold=threshold * scale,
        mean_a=np.sqrt(shrunk * delta) * math.sqrt(scale),
        mean_b=np.sqrt(shrunk / delta) * math.sqrt(scale),
        variance_a=variance * delta / kept * scale,
        variance_b=variance / (kept * delta) * scale,
        free_energy=float(twice / 2),
    )
