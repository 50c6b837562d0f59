"""The statistics behind a verdict: Student-t intervals of paired differences over seeds, and test units.

Where results per unit of the test set are known (per user, per picture), the units are a second source of
chance that the seeds share. Its interval and the seeds' are put together as the sides of a right angle, as
Banerjee (Sankhya 22, 1960) does for independent normal errors. The units' variance is a difference of mean
squares, so that this is an approximation; how often it is wrong is simulated.

Everything works on arrays, so that the code which judges one claim is the code whose rate of false verdicts
is simulated over ten thousand (``book/verdict_simulation.py``, and ``test_verdict_statistics.py`` among the
tests).
"""

from __future__ import annotations

import numpy as np
from scipy.special import nctdtrinc, stdtrit

#: Confidence of a verdict's interval: 95 % and a reserve. An exact 95 % interval gives false verdicts
#: *around* 5 % of the time, and slightly more for light tails (5.3 % for uniform measurements); 96 % keeps
#: them below 5 % there too.
LEVEL = 0.96

#: How often a design should find an effect that is called the smallest it can find: four times in five.
POWER = 0.8

#: Below three no interval is given: one difference has no spread, two have a t quantile of 15.9.
MINIMUM_REPLICATES = 3


def mean_interval(
    values: np.ndarray,
    level: float = LEVEL,
    unit_variance: float | np.ndarray = 0.0,
    units: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and Student-t interval over the last axis.

    Parameters
    ----------
    values : array (..., replicates)
        At least two independent replicates, e.g. one difference between two arms per seed.
    level : float
        Confidence, in (0, 1).
    unit_variance : float or array (...)
        Variance of the mean that is due to the units which all replicates share (`unit_covariance`).
    units : int, optional
        Their number, at least 2; without it there is no such variance.

    Returns
    -------
    mean, low, high : arrays (...)
    """
    values = np.asarray(values, dtype=float)
    count = values.shape[-1]
    if count < 2:
        raise ValueError(f"an interval needs at least 2 replicates, got {count}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    mean = values.mean(-1)
    half = stdtrit(count - 1, (1 + level) / 2) * values.std(-1, ddof=1) / np.sqrt(count)
    if units is not None:
        half = np.hypot(half, stdtrit(units - 1, (1 + level) / 2) * np.sqrt(unit_variance))
    return mean, mean - half, mean + half


def unit_covariance(values: np.ndarray) -> np.ndarray:
    """Covariance of the arms' means that is due to the units of the test set, from a crossed design.

    The two-way layout without repetition: an arm's result is a mean, plus an effect of the replicate, plus
    one of the unit, plus a rest. Returned is the unbiased estimate of the units' part of the covariance of
    the arms' means, (mean products of units − mean products of rests) / (replicates · units). The variance of
    a difference between two arms is a quadratic form of it, which may come out below zero: then it is zero.
    One replicate cannot tell unit from rest; then the rest is in it.

    Parameters
    ----------
    values : array (arms, replicates, units)

    Returns
    -------
    array (arms, arms)

    Raises
    ------
    ValueError
        Another shape, or fewer than two units.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 3 or values.shape[2] < 2 or 0 in values.shape:
        raise ValueError(f"expected (arms, replicates, units >= 2), got {values.shape}")
    _, replicates, units = values.shape
    by_unit = values.mean(1)  # (arms, units)
    centred = by_unit - by_unit.mean(1, keepdims=True)
    between = replicates * centred @ centred.T / (units - 1)
    rest = values - values.mean(2, keepdims=True) - centred[:, None]  # (arms, replicates, units)
    rests = np.einsum("aru,bru->ab", rest, rest) / max(1, (replicates - 1) * (units - 1))
    return (between - rests) / (replicates * units)


def adjusted_level(parts: int, level: float = LEVEL) -> float:
    """Bonferroni: the level at which each of `parts` intervals is taken so that all cover at `level`."""
    return 1 - (1 - level) / parts


def smallest_effect(
    margins: np.ndarray,
    level: float = LEVEL,
    power: float = POWER,
    unit_variance: float | np.ndarray = 0.0,
    units: int | None = None,
) -> np.ndarray:
    """The smallest true effect that as many replicates, spread as these are, find with a chance of `power`.

    To find means that the two-sided interval lies above zero, for normal margins: the statistic follows the
    noncentral t distribution, whose centre is solved for.

    Parameters
    ----------
    margins : array (..., replicates)
        At least two; only their spread counts.
    level, power : float
        In (0, 1).
    unit_variance, units
        As for `mean_interval`; the two parts are put together as there.

    Returns
    -------
    array (...)
        In the unit of the margins.
    """
    margins = np.asarray(margins, dtype=float)
    count = margins.shape[-1]
    if count < 2:
        raise ValueError(f"a spread needs at least 2 replicates, got {count}")
    found = _centre(count, level, power) * margins.std(-1, ddof=1) / np.sqrt(count)
    if units is not None:
        found = np.hypot(found, _centre(units, level, power) * np.sqrt(unit_variance))
    return found


def _centre(count: int, level: float, power: float) -> float:
    """Standard errors from zero at which a t interval of `count` values lies above zero this often."""
    return nctdtrinc(count - 1, 1 - power, stdtrit(count - 1, (1 + level) / 2))


def replicated(margins: np.ndarray, resolution: float | np.ndarray = 0.0) -> np.ndarray:
    """Whether margins (..., replicates) spread at all: equal to the last bit means copies, not replicates."""
    floor = np.maximum(8 * np.finfo(float).eps * np.abs(margins).max(-1), resolution)
    return margins.std(-1) > floor


def decide(
    margins: np.ndarray,
    level: float = LEVEL,
    resolution: float | np.ndarray = 0.0,
    unit_variance: float | np.ndarray = 0.0,
    units: int | None = None,
) -> np.ndarray:
    """What becomes of claims whose every part says "this margin is above zero".

    *Holds* asks of every part that its interval lies above zero: a chance of at most ``(1 - level) / 2``
    however many parts there are (intersection-union test), so its intervals are not widened. *Contradicted*
    asks of one part that its interval lies below zero, which gets easier with the parts, so its intervals are
    widened (Bonferroni). Together at most ``1 - level``, for parts however correlated.

    Parameters
    ----------
    margins : array (..., parts, replicates)
        In the claim's favour where positive; paired, one per replicate.
    level : float
        Confidence, in (0, 1).
    resolution : float or array broadcast to (..., parts)
        Spreads up to this are rounding: such replicates are copies and decide nothing.
    unit_variance, units
        As for `mean_interval`, (..., parts).

    Returns
    -------
    array (...) of int
        1 holds, -1 contradicted, 0 inconclusive (always, below `MINIMUM_REPLICATES`).
    """
    return combined(decide_parts(margins, level, resolution, unit_variance, units))


def combined(parts: np.ndarray) -> np.ndarray:
    """What becomes of claims, from what became of their parts (..., parts): 1, 0 or -1, as `decide` says."""
    return np.where((parts > 0).all(-1), 1, np.where((parts < 0).any(-1), -1, 0))


def decide_parts(
    margins: np.ndarray,
    level: float = LEVEL,
    resolution: float | np.ndarray = 0.0,
    unit_variance: float | np.ndarray = 0.0,
    units: int | None = None,
) -> np.ndarray:
    """As `decide`, for each part: array (..., parts) of 1, 0, -1."""
    margins = np.asarray(margins, dtype=float)
    *shape, parts, count = margins.shape
    if count < MINIMUM_REPLICATES:
        return np.zeros((*shape, parts), dtype=int)
    _, low, _ = mean_interval(margins, level, unit_variance, units)
    _, _, high = mean_interval(margins, adjusted_level(parts, level), unit_variance, units)
    return np.where(replicated(margins, resolution), (low > 0).astype(int) - (high < 0), 0)
