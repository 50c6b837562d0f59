"""Results per user or picture: what the rule gets, and the table that keeps them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lib.chapter.per_unit import UnitTable, means, spreads
from lib.ledger.schema import load_ledger
from lib.ledger.units import UnitSpread

USERS = pd.DataFrame(
    [[0.0, 1.0, 0.5], [1.0, 1.0, 0.0]],
    index=pd.Index([10, 11], name="seed"),
    columns=pd.Index([1, 2, 3], name="user"),
)


@pytest.fixture
def claim():
    return load_ledger("meantime")["C3"]


def test_results_per_unit_become_means_per_replicate_and_others_stay():
    found = means({"NDCG@10": {"a": USERS, "b": [0.1, 0.2]}, "a number": 3.0})
    assert found["NDCG@10"]["a"] == pytest.approx([0.5, 2 / 3])
    assert found["NDCG@10"]["b"] == [0.1, 0.2] and found["a number"] == 3.0


def test_spreads_are_of_the_rules_arms_alone(claim):
    arms = claim.arms()["head overlap"]
    measured = {"head overlap": dict.fromkeys((*arms, "another arm"), USERS)}
    found = spreads(claim, measured)
    assert found == {"head overlap": UnitSpread.of(dict.fromkeys(arms, USERS), "user")}


def test_a_claim_without_a_unit_has_no_spread():
    assert spreads(load_ledger("meantime")["C1b"], {"Recall@10 (gap world)": {"MEANTIME": USERS}}) == {}


def test_a_claim_with_a_unit_refuses_results_without(claim):
    arms = claim.arms()["head overlap"]
    measured = {"head overlap": {arms[0]: USERS, arms[1]: [0.1, 0.2]}}
    with pytest.raises(ValueError, match=f"C3: the ledger asks for head overlap of {arms[1]} per user"):
        spreads(claim, measured)


def test_a_result_that_is_no_number_is_named(claim):
    arms = claim.arms()["head overlap"]
    measured = {"head overlap": {arms[0]: USERS, arms[1]: USERS.replace(0.5, np.nan)}}
    with pytest.raises(ValueError, match=f"^C3: head overlap of {arms[1]} has a value that is not finite$"):
        spreads(claim, measured)


def test_the_table_has_a_row_per_arm_seed_and_user():
    table = UnitTable()
    table.add("user", {"NDCG@10": {"a": USERS, "b": USERS + 1}, "head overlap": {"a": 2 * USERS}})
    table.add("user", {"NDCG@10": {"a": USERS}})  # what two claims share is kept once
    frame = table.frames()["user"]
    assert list(frame) == ["arm", "seed", "user", "NDCG@10", "head overlap"] and len(frame) == 12
    row = frame[(frame["arm"] == "a") & (frame["seed"] == 10) & (frame["user"] == 3)]
    assert row["NDCG@10"].tolist() == [0.5] and row["head overlap"].tolist() == [1.0]
    assert frame.loc[frame["arm"] == "b", "head overlap"].isna().all()


def test_numbers_without_units_are_not_in_the_table():
    table = UnitTable()
    table.add("user", {"NDCG@10": {"popularity": [0.1]}})
    assert table.frames() == {}


def test_other_results_of_the_same_arm_are_refused():
    table = UnitTable()
    table.add("user", {"NDCG@10": {"a": USERS}})
    with pytest.raises(ValueError, match="NDCG@10 of a: other results per user than before"):
        table.add("user", {"NDCG@10": {"a": USERS + 1}})


@pytest.mark.parametrize("fewer", [USERS.iloc[:-1], USERS.iloc[:, :-1]])
@pytest.mark.parametrize("order", ["NDCG@10", "head overlap"])
def test_no_result_of_a_metric_with_more_seeds_or_users_is_lost(fewer, order):
    table = UnitTable()
    found = {"NDCG@10": {"a": fewer}, "head overlap": {"a": USERS}}
    table.add("user", {order: found.pop(order)})
    table.add("user", found)
    frame = table.frames()["user"]
    assert frame["head overlap"].sum() == USERS.to_numpy().sum() and len(frame) == USERS.size
    assert frame["NDCG@10"].count() == fewer.size and frame["NDCG@10"].sum() == fewer.to_numpy().sum()


def test_arrays_are_numbered_from_zero():
    table = UnitTable()
    table.add("crop", {"SQNR": {"a": np.zeros((2, 2))}})
    assert table.frames()["crop"]["crop"].tolist() == [0, 1, 0, 1]
