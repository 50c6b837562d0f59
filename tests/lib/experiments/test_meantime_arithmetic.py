"""Oracles of what arithmetic settles: counted networks, hand computations, and the ledger's names."""

from __future__ import annotations

import math

import pytest

from lib.experiments.meantime_arithmetic import (
    arithmetic,
    chance_metrics,
    gains,
    longest_decay,
    longest_period,
    meantime_parameters,
    parameter_counts,
    stored_kernel,
)
from lib.ledger.schema import load_ledger
from lib.models.recommenders.meantime import Meantime

DATASETS = {"ML-1M": "C6", "ML-20M": "C7", "Beauty": "C8", "Game": "C9"}


def scores(best: float) -> dict[str, float]:
    """MEANTIME at 0.6, a best baseline, and worse ones."""
    arms = {"MEANTIME": 0.6, "BERT4Rec": 0.3, "TiSASRec": best, "SASRec": 0.2, "MARank": 0.1}
    metrics = ("Recall@5", "Recall@10", "NDCG@5", "NDCG@10")
    return {f"{metric}, {arm}": value for metric in metrics for arm, value in arms.items()}


def test_parameters_are_those_of_the_authors_programs():
    assert parameter_counts() == {
        "MEANTIME": 418_329, "BERT4Rec": 339_353, "SASRec": 273_792, "TiSASRec": 548_864, "MARank": 878_340
    }  # fmt: skip


@pytest.mark.parametrize(
    ("absolute", "relative", "sizes"),
    [
        ("p-d", "s-l", {}),
        ("c", "e", {"hidden_size": 12, "num_blocks": 3}),
        ("d-d-p", "", {"hidden_size": 12, "num_days": 7, "max_length": 9}),
        ("", "s-e-l-l", {"hidden_size": 8, "num_items": 10}),
    ],
)
def test_the_closed_form_counts_what_the_network_has(absolute, relative, sizes):
    sizes = {"num_items": 50, "num_days": 11, "max_length": 5} | sizes
    model = Meantime(absolute=absolute, relative=relative, **sizes)
    heads = {"absolute": absolute.replace("-", ""), "num_relative": len(relative.replace("-", ""))}
    assert meantime_parameters(**sizes, **heads) == sum(p.numel() for p in model.parameters())


def test_memory_chance_and_reach_by_hand():
    assert stored_kernel(64) == 256 * 200 * 200 * 64 * 4 / 2**30
    assert chance_metrics(101)["Recall@5"] == pytest.approx(5 / 101)
    discounts = sum(1 / math.log2(rank + 1) for rank in range(1, 11))
    assert chance_metrics(101)["NDCG@10"] == pytest.approx(discounts / 101)
    assert longest_period() == pytest.approx(2 * math.pi * 10_000 ** (62 / 64))
    assert longest_decay() == pytest.approx(10_000 ** (63 / 64))


def test_a_gain_is_over_the_best_baseline():
    assert gains(scores(0.5)) == pytest.approx(
        dict.fromkeys(("Recall@5", "Recall@10", "NDCG@5", "NDCG@10"), 20)
    )
    assert gains(scores(0.25))["NDCG@5"] == pytest.approx(100)  # over BERT4Rec's 0.3
    others = {"NDCG@10 of a BERT4Rec trained for long, by others": 0.9}
    assert gains(scores(0.5) | others) == gains(scores(0.5))


def test_every_arithmetic_number_of_the_ledger_is_there():
    ledger = load_ledger("meantime")
    printed = {
        dataset: {number.name: number.value for number in ledger[claim].paper}
        for dataset, claim in DATASETS.items()
    }
    numbers = arithmetic(printed)
    wanted = [number for k in range(1, 8) for number in ledger[f"E{k}"].paper]
    assert len(wanted) == 32 and len(numbers) == 32
    for number in wanted:
        tolerance = number.tolerance or 0.5 * 10**-number.decimals
        assert abs(numbers[number.name] - number.value) <= tolerance * (1 + 1e-9), number.name
