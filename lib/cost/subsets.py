"""Which items of a list were counted? Totals of every subset, to compare with a printed number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd


def subset_totals(base: float, changes: Mapping[str, float] | pd.Series) -> pd.Series:
    """``base`` plus the changes of every subset.

    Parameters
    ----------
    base : float
        The total when no item is chosen.
    changes : mapping or Series
        What each item adds, by name; at most 20 items.

    Returns
    -------
    Series of 2ⁿ totals, indexed by the chosen names, joined by spaces in their order; the empty set first.

    Raises
    ------
    ValueError
        More than 20 items.
    """
    changes = dict(changes)
    if len(changes) > 20:
        raise ValueError(f"at most 20 items, got {len(changes)}: their subsets would not fit in memory")
    names, values = np.array(list(changes), dtype=object), np.array(list(changes.values()), dtype=float)
    chosen = (np.arange(2 ** len(names))[:, None] >> np.arange(len(names))) & 1
    return pd.Series(base + chosen @ values, index=[" ".join(names[row == 1]) for row in chosen])
