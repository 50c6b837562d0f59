"""Ranking metrics of impressions: lists of candidates of any length, of which one or more were clicked.

AUC, MRR and nDCG@k as MIND's official scorer defines them (Wu et al., ACL 2020; github.com/msnews/MIND), for
each impression. Ties are settled honestly: each value is its exact expectation over a uniformly random order
of the candidates with equal scores. The official scorer reverses an unstable sort, so that a constant
score can seem perfect or useless by the order in which candidates are listed. Lists with one relevant item
are in `lib.metrics.ranking`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def impression_metrics(
    scores: np.ndarray, clicked: np.ndarray, offsets: np.ndarray, *, ks: Sequence[int] = (5, 10)
) -> dict[str, np.ndarray]:
    """AUC, MRR and nDCG@k of each impression.

    Parameters
    ----------
    scores : array (N,)
        Of all candidates of all impressions, higher is better; infinite values are allowed, NaN is not.
    clicked : array (N,) bool
        Which of them were clicked.
    offsets : array (I+1,)
        Candidates of impression i are ``offsets[i]:offsets[i+1]``.
    ks : sequence of int
        Cut-offs of nDCG, at least 1.

    Returns
    -------
    dict of str to array (I,) float64
        ``AUC``: the share of pairs of a clicked and an unclicked candidate in the right order, a tie counts
        half. ``MRR``: the mean of 1/rank over *all* clicked candidates, not the first alone. ``nDCG@k``:
        gains of 1, discount log2(rank + 1), over that of the ideal order. NaN where it is undefined: without
        a click, and AUC also without an unclicked candidate; the official scorer stops there.

    Raises
    ------
    ValueError
        Arrays that do not match, NaN, an offset out of order, k below 1.
    """
    scores, clicked, offsets = np.asarray(scores), np.asarray(clicked), np.asarray(offsets)
    _check(scores, clicked, offsets, ks)
    sizes = np.diff(offsets)
    impression = np.repeat(np.arange(len(sizes)), sizes)
    # Minus an integer overflows at its type's minimum, and minus False is refused.
    order = np.lexsort((-scores.astype(np.float64), impression))
    score, hit = scores[order], clicked[order]
    # Groups of equal scores in an impression; their candidates share the ranks start+1 … start+size.
    new = np.ones(len(score), bool)
    new[1:] = (score[1:] != score[:-1]) | (impression[1:] != impression[:-1])
    first = np.flatnonzero(new)
    size = np.diff(np.append(first, len(score)))
    of = impression[first]
    start = first - offsets[of]
    hits = np.add.reduceat(hit, first, dtype=np.int64) if len(first) else np.zeros(0, np.int64)

    def over_places(value: np.ndarray) -> np.ndarray:
        """Sum over an impression's clicks of the mean of ``value`` (of rank 1, 2, …) over their places."""
        total = np.append(0.0, np.cumsum(value))
        mean = (total[start + size] - total[start]) / size
        return np.bincount(of, hits * mean, len(sizes))

    clicks = np.bincount(of, hits, len(sizes)).astype(np.int64)
    ranks = np.arange(1, sizes.max(initial=0) + 1)
    # Pairs in the right order: unclicked candidates below a group, and half of those in it.
    unclicked = size - hits
    above = np.cumsum(unclicked) - unclicked
    above -= np.append(0, np.cumsum(np.bincount(of, unclicked, len(sizes))))[of].astype(np.int64)
    absent = sizes - clicks
    right = np.bincount(of, hits * (absent[of] - above - unclicked / 2), len(sizes))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {"AUC": right / (clicks * absent), "MRR": over_places(1 / ranks) / clicks}
        for k in ks:
            gains = np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)
            ideal = np.append(0.0, np.cumsum(gains))[clicks]
            found[f"nDCG@{k}"] = over_places(gains) / ideal
    return found


def _check(scores: np.ndarray, clicked: np.ndarray, offsets: np.ndarray, ks: Sequence[int]) -> None:
    if scores.ndim != 1 or scores.shape != clicked.shape:
        raise ValueError(
            f"scores and clicked must be (N,) and (N,), got shapes {scores.shape} and {clicked.shape}"
        )
    if clicked.dtype != np.bool_:
        raise ValueError(f"clicked must be bool, got {clicked.dtype}")
    if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(scores):
        raise ValueError(f"offsets must lead from 0 to {len(scores)}, the number of scores")
    if (np.diff(offsets) < 0).any():
        raise ValueError("offsets must not decrease")
    if np.isnan(scores).any():
        raise ValueError(f"scores contain {np.isnan(scores).sum()} NaN of {len(scores)}: nothing to rank")
    if wrong := [k for k in ks if k < 1]:
        raise ValueError(f"k must be at least 1, got {wrong[0]}")
