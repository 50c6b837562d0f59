"""The template's experiment: how often an interval covers the mean that it is an interval of.

Student, *The probable error of a mean*, Biometrika 6(1), 1908. The population is made up, normal with mean 0,
so that the truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from lib.ledger.intervals import mean_interval
from lib.streams import stream_seed


def draw(seed: int, n: int, samples: int, sigma: float) -> np.ndarray:
    """Samples (samples, n) of a normal population with mean 0 and standard deviation `sigma`."""
    return np.random.default_rng(stream_seed(seed, "sample", n)).normal(0.0, sigma, size=(samples, n))


def coverage(x: np.ndarray, level: float = 0.95) -> dict[str, float]:
    """Share of samples whose interval holds the true mean, 0, with a multiple from either curve.

    Parameters
    ----------
    x : array (samples, n)
        Both intervals are built on the same samples; only the multiple of the standard error differs.
    level : float
        What the intervals promise, in (0, 1).

    Returns
    -------
    dict of str to float
        ``Student`` and ``normal``, in 0..1.
    """
    mean, low, high = mean_interval(x, level)
    half = norm.ppf((1 + level) / 2) * x.std(axis=-1, ddof=1) / np.sqrt(x.shape[-1])
    return {
        "Student": float(np.mean((low < 0) & (high > 0))),
        "normal": float(np.mean(np.abs(mean) < half)),
    }


def coverage_by_seed(seeds: Sequence[int], sizes: Sequence[int], samples: int, sigma: float) -> pd.DataFrame:
    """`coverage` of every seed and sample size.

    Returns
    -------
    DataFrame
        A row per ``arm`` and ``seed`` (index), a column ``coverage at n = …`` per size.
    """
    found = {(seed, n): coverage(draw(seed, n, samples, sigma)) for seed in seeds for n in sizes}
    rows = {
        (arm, seed): {f"coverage at n = {n}": found[seed, n][arm] for n in sizes}
        for arm in ("Student", "normal")
        for seed in seeds
    }
    return pd.DataFrame(rows).T.rename_axis(["arm", "seed"])
