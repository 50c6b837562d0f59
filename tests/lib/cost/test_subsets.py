"""Every subset once, with its own total."""

from itertools import chain, combinations

import pandas as pd
import pytest

from lib.compression.published import ALEXNET_RANKS, MAIN_TABLE
from lib.cost.subsets import subset_totals


def test_all_subsets():
    items = {"a": 1.0, "b": 10.0, "c": -0.5}
    found = subset_totals(100, items)
    every = chain.from_iterable(combinations(items, n) for n in range(4))
    assert found.to_dict() == {" ".join(names): 100 + sum(items[n] for n in names) for names in every}
    assert found.index[0] == "" and len(found) == 8
    assert subset_totals(3, {}).tolist() == [3]
    assert subset_totals(100, pd.Series(items)).equals(found)
    with pytest.raises(ValueError, match="at most 20 items, got 21"):
        subset_totals(0, {str(k): 1 for k in range(21)})


def test_the_recalled_tables_are_whole():
    assert MAIN_TABLE.shape == (4, 5)
    assert all(
        original > compressed > 0 for pair in MAIN_TABLE.to_numpy().ravel() for original, compressed in [pair]
    )
    assert len(ALEXNET_RANKS) == 8
