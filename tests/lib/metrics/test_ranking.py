"""Ranking metrics against hand values, every order of the ties, scikit-learn and torchmetrics."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torchmetrics.retrieval import RetrievalHitRate, RetrievalNormalizedDCG

from lib.metrics.ranking import (
    chance_level,
    metrics_at,
    ndcg_at,
    recall_at,
    target_rank,
)


def test_rank_three_by_hand():
    better, ties = target_rank(torch.tensor([[0.5, 0.9, 0.1, 0.7, -2.0]]))
    assert (better.item(), ties.item()) == (2, 0)
    assert recall_at(5, better, ties).item() == 1
    assert recall_at(1, better, ties).item() == 0
    assert ndcg_at(5, better, ties).item() == pytest.approx(0.5, abs=1e-12)
    assert ndcg_at(2, better, ties).item() == 0
    assert set(metrics_at([1, 5], better, ties)) == {"Recall@1", "NDCG@1", "Recall@5", "NDCG@5"}


def every_order(scores, k):
    """Mean Recall@k and NDCG@k of candidate 0 over all orders that sort the scores from high to low."""
    hits, gains = [], []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            rank = order.index(0) + 1
            hits.append(rank <= k)
            gains.append((rank <= k) / math.log2(rank + 1))
    return np.mean(hits), np.mean(gains)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 7))
def test_ties_are_the_mean_over_every_order(scores, k):
    better, ties = target_rank(torch.tensor([scores], dtype=torch.float32))
    recall, ndcg = every_order(scores, k)
    assert recall_at(k, better, ties).item() == pytest.approx(recall, abs=1e-12)
    assert ndcg_at(k, better, ties).item() == pytest.approx(ndcg, abs=1e-12)


@pytest.mark.parametrize("place", ["first", "last"])
def test_optimistic_and_pessimistic_twins_are_wrong(place):
    """Counting ties for or against the target makes constant scores perfect or useless; neither is chance."""
    better, ties = target_rank(torch.zeros(1, 101))
    honest = recall_at(10, better, ties).item()
    twin = recall_at(10, better if place == "first" else better + ties, torch.zeros_like(ties)).item()
    assert honest == pytest.approx(10 / 101) and twin == (place == "first")


def test_chance_levels():
    assert chance_level(5, 101) == pytest.approx((0.0495, 0.0292), abs=5e-5)
    assert chance_level(10, 101) == pytest.approx((0.0990, 0.0450), abs=5e-5)
    assert chance_level(10, 4) == pytest.approx((1.0, sum(1 / math.log2(r + 1) for r in range(1, 5)) / 4))


def test_random_scores_are_at_chance():
    scores = torch.rand(20_000, 101, generator=torch.Generator().manual_seed(0))
    for k in (5, 10):
        better, ties = target_rank(scores)
        for values, level in zip(metrics_at([k], better, ties).values(), chance_level(k, 101), strict=True):
            error = values.std() / math.sqrt(len(values))
            assert abs(values.mean() - level) < 4 * error


@pytest.mark.parametrize("k", [1, 5, 10])
def test_against_scikit_learn_and_torchmetrics(k):
    scores = torch.rand(200, 101, generator=torch.Generator().manual_seed(1))
    target = torch.randint(101, (200,), generator=torch.Generator().manual_seed(2))
    relevant = torch.nn.functional.one_hot(target, 101)
    better, ties = target_rank(scores, target)
    assert (ties == 0).all()
    ndcg, recall = ndcg_at(k, better, ties), recall_at(k, better, ties)
    assert ndcg.mean().item() == pytest.approx(ndcg_score(relevant.numpy(), scores.numpy(), k=k), abs=1e-9)
    flat = (scores.flatten(), relevant.flatten())
    indexes = torch.arange(200).repeat_interleave(101)
    assert ndcg.mean().item() == pytest.approx(
        RetrievalNormalizedDCG(top_k=k)(*flat, indexes=indexes).item(), abs=1e-6
    )
    assert recall.mean().item() == pytest.approx(
        RetrievalHitRate(top_k=k)(*flat, indexes=indexes).item(), abs=1e-6
    )


def test_ties_agree_with_scikit_learn():
    """scikit-learn averages the gain over tied places too; k covers them all, where its cut cannot matter."""
    scores = torch.randint(4, (200, 12), generator=torch.Generator().manual_seed(3)).double()
    better, ties = target_rank(scores)
    relevant = np.zeros((200, 12))
    relevant[:, 0] = 1
    assert ndcg_at(12, better, ties).mean().item() == pytest.approx(
        ndcg_score(relevant, scores.numpy()), abs=1e-9
    )


def test_exclude_is_a_ranking_without_these():
    scores = torch.randint(5, (50, 20), generator=torch.Generator().manual_seed(4)).float()
    exclude = torch.rand(50, 20, generator=torch.Generator().manual_seed(5)) < 0.5
    target = torch.arange(50) % 20
    exclude[torch.arange(50), target] = False
    better, ties = target_rank(scores, target, exclude)
    for row in range(50):
        kept = scores[row][~exclude[row]]
        own = scores[row, target[row]]
        assert better[row] == (kept > own).sum() and ties[row] == (kept == own).sum() - 1


def test_infinite_scores():
    better, ties = target_rank(torch.tensor([[-torch.inf, 0, -torch.inf], [torch.inf, 0, 1]]))
    assert better.tolist() == [1, 0] and ties.tolist() == [1, 0]


def test_raw_order_is_the_sort_of_the_authors():
    scores = torch.rand(40, 101, generator=torch.Generator().manual_seed(6)).round(decimals=1)
    order = (-scores).argsort(dim=1)
    better, ties = target_rank(scores, tie_break="raw")
    assert (ties == 0).all()
    assert (better == torch.tensor([row.tolist().index(0) for row in order])).all()
    exact = target_rank(scores)
    assert ((exact[0] <= better) & (better <= exact[0] + exact[1])).all()


def test_raw_order_makes_constant_scores_a_matter_of_luck():
    """101 equal scores: the sort puts the target anywhere, alike in every row; chance is 0.099."""
    better, ties = target_rank(torch.zeros(64, 101), tie_break="raw")
    assert recall_at(10, better, ties).mean().item() in (0, 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tie_break", ["expected", "raw"])
def test_scores_of_any_real_type(dtype, tie_break):
    scores = torch.tensor([[3, 9, 1, 5], [8, 2, 4, 6]], dtype=dtype)
    exclude = torch.tensor([[False, True, False, False], [False] * 4])
    better, ties = target_rank(scores, torch.tensor([0, 3], dtype=torch.int32), exclude, tie_break=tie_break)
    assert better.tolist() == [1, 1] and ties.tolist() == [0, 0]
    assert ndcg_at(np.int64(2), better, ties).tolist() == ndcg_at(2, better, ties).tolist()


def test_raw_order_leaves_out_the_excluded():
    better, _ = target_rank(
        torch.tensor([[1.0, 3.0, 2.0, 0.0]]), 0, torch.tensor([[False, True, False, False]]), tie_break="raw"
    )
    assert better.item() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: target_rank(torch.zeros(3)), r"\(B, C\)"),
        (lambda: target_rank(torch.zeros(0, 3)), "non-empty"),
        (lambda: target_rank(torch.tensor([[0.0, torch.nan]])), "1 NaN of 2"),
        (lambda: target_rank(torch.zeros(2, 3), 3), r"column in 0..2"),
        (lambda: target_rank(torch.zeros(2, 3), torch.tensor([0, -1])), r"column in 0..2"),
        (lambda: target_rank(torch.zeros(2, 3), torch.tensor([0, 1, 2])), r"\(2,\)"),
        (
            lambda: target_rank(torch.zeros(2, 3), 0, torch.zeros(2, 2, dtype=torch.bool)),
            "exclude must be bool",
        ),
        (lambda: target_rank(torch.zeros(1, 2), 0, torch.tensor([[True, False]])), "target is among"),
        (lambda: target_rank(torch.zeros(1, 2), tie_break="stable"), "tie_break must be"),
        (lambda: target_rank(torch.zeros(2, 3), torch.tensor([0.7, 1.0])), "whole numbers of columns"),
        (lambda: target_rank(torch.zeros(2, 3), 1.0), "target must be whole numbers"),
        (lambda: target_rank(torch.zeros(2, 3), True), "target must be whole numbers"),
        (lambda: target_rank(torch.zeros(2, 3, dtype=torch.complex64)), "scores must be real"),
        (
            lambda: recall_at(0, torch.tensor([0]), torch.tensor([0])),
            "k must be a whole number of at least 1",
        ),
        (lambda: recall_at(1.5, torch.tensor([0]), torch.tensor([0])), "k must be a whole number.*got 1.5"),
        (lambda: ndcg_at(10.0, torch.tensor([0]), torch.tensor([0])), "k must be a whole number.*got 10.0"),
        (lambda: ndcg_at(1, torch.tensor([0.5]), torch.tensor([0])), "must be integers, got torch.float32"),
        (
            lambda: recall_at(1, torch.tensor([0]), torch.tensor([0.5])),
            "must be integers, got torch.int64 and",
        ),
        (lambda: ndcg_at(1, torch.tensor([0]), torch.tensor([0, 1])), "must match"),
        (lambda: chance_level(5, 0), "at least 1"),
    ],
)
def test_errors_at_the_door(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
