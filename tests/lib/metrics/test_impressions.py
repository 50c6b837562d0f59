"""Ranking metrics of impressions against scikit-learn, the official formulas, hand cases and permutations."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from lib.metrics.impressions import impression_metrics


def one(scores, clicked, **options) -> dict[str, float]:
    """The metrics of a single impression."""
    found = impression_metrics(np.array(scores), np.array(clicked, bool), [0, len(scores)], **options)
    return {name: value for name, (value,) in found.items()}


def official(scores, clicked) -> dict[str, float]:
    """MIND's scorer by its published formulas: positions are those of a sort, ties as it leaves them."""
    order = np.argsort(scores)[::-1]
    gains = 2.0 ** np.take(clicked, order) - 1
    ranks = np.arange(1, len(gains) + 1)

    def dcg(gains, k):
        return np.sum(gains[:k] / np.log2(ranks[:k] + 1))

    return {
        "AUC": roc_auc_score(clicked, scores),
        "MRR": np.sum(np.take(clicked, order) / ranks) / np.sum(clicked),
        **{f"nDCG@{k}": dcg(gains, k) / dcg(np.sort(gains)[::-1], k) for k in (5, 10)},
    }


def ragged(seed: int, impressions: int = 60, values: int | None = None):
    """Impressions of 2 to 30 candidates with both classes; `values`: how many different scores there are."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(2, 31, impressions)
    offsets = np.append(0, np.cumsum(sizes))
    scores = draw.normal(size=offsets[-1]) if values is None else draw.integers(0, values, offsets[-1])
    clicked = draw.random(offsets[-1]) < 0.3
    clicked[offsets[:-1]], clicked[offsets[1:] - 1] = True, False
    return scores, clicked, offsets


def test_the_worked_example():
    found = one(-np.arange(8), [0, 1, 0, 0, 1, 0, 0, 0])
    by_hand = (1 / np.log2(3) + 1 / np.log2(6)) / (1 + 1 / np.log2(3))
    assert found == pytest.approx({"AUC": 8 / 12, "MRR": 0.35, "nDCG@5": by_hand, "nDCG@10": by_hand})
    assert by_hand == pytest.approx(0.624051, abs=1e-6)


def test_distinct_scores_against_the_official_formulas_and_scikit_learn():
    scores, clicked, offsets = ragged(0)
    found = impression_metrics(scores, clicked, offsets)
    for i, (begin, end) in enumerate(pairwise(offsets)):
        part = slice(begin, end)
        theirs = official(scores[part], clicked[part])
        assert {name: found[name][i] for name in found} == pytest.approx(theirs, abs=1e-12)
        sklearn = ndcg_score(clicked[None, part], scores[None, part], k=5)
        assert found["nDCG@5"][i] == pytest.approx(sklearn, abs=1e-12)


@pytest.mark.parametrize("scores", [[1, 1, 1, 1], [2, 2, 1, 1], [0, 1, 1, 1], [3, 2, 2, 0]])
@pytest.mark.parametrize("clicked", [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
def test_ties_are_the_mean_over_all_orders(scores, clicked):
    """Tiny jitters break ties in every order; the official formulas then have nothing to decide."""
    jitters = [np.array(order) * 1e-6 for order in permutations(range(4))]
    theirs = [official(scores + jitter, np.array(clicked)) for jitter in jitters]
    mean = {name: np.mean([one[name] for one in theirs]) for name in theirs[0]}
    assert one(scores, clicked) == pytest.approx(mean, abs=1e-12)


def test_a_constant_score_is_chance_in_closed_form():
    harmonic = sum(1 / rank for rank in range(1, 11))
    found = one(np.zeros(10), [1] + [0] * 9)
    assert found["AUC"] == 0.5
    assert found["MRR"] == pytest.approx(harmonic / 10) == pytest.approx(0.292897, abs=1e-6)
    assert found["nDCG@5"] == pytest.approx(sum(1 / np.log2(rank + 1) for rank in range(1, 6)) / 10)
    first_of_ties = official(-np.zeros(10), np.array([0] * 9 + [1]))["MRR"]
    assert first_of_ties == 1.0, "what the order of the list makes of it"


def test_ties_against_scikit_learn_and_the_order_of_candidates_is_nothing():
    scores, clicked, offsets = ragged(1, values=4)
    found = impression_metrics(scores, clicked, offsets)
    parts = [slice(begin, end) for begin, end in pairwise(offsets)]
    assert found["AUC"] == pytest.approx([roc_auc_score(clicked[part], scores[part]) for part in parts])
    theirs = [ndcg_score(clicked[None, part], scores[None, part], k=5) for part in parts]
    assert found["nDCG@5"] == pytest.approx(theirs, abs=1e-12), "scikit-learn averages over ties, too"
    shuffled = np.concatenate([np.random.default_rng(2).permutation(np.r_[part]) for part in parts])
    again = impression_metrics(scores[shuffled], clicked[shuffled], offsets)
    for name in found:
        assert again[name] == pytest.approx(found[name], abs=1e-12)


def test_what_is_the_same_for_an_impression_changes_nothing():
    scores, clicked, offsets = ragged(3)
    shift = np.repeat(np.random.default_rng(4).normal(size=len(offsets) - 1) * 10, np.diff(offsets))
    found, moved = (impression_metrics(values, clicked, offsets) for values in (scores, scores + shift))
    for name in found:
        assert moved[name] == pytest.approx(found[name], abs=1e-12)
    assert impression_metrics(-scores, clicked, offsets)["AUC"] == pytest.approx(1 - found["AUC"])


def test_what_is_undefined_is_no_number():
    clicked = np.array([False, False, True, True, True, False])
    found = impression_metrics(np.arange(6.0), clicked, [0, 2, 4, 4, 6])
    assert np.isnan(found["AUC"]).tolist() == [True, True, True, False]
    for name in ("MRR", "nDCG@5", "nDCG@10"):
        assert np.isnan(found[name]).tolist() == [True, False, True, False], name
    assert found["nDCG@10"][1] == 1.0
    assert all(len(values) == 0 for values in impression_metrics(np.zeros(0), clicked[:0], [0]).values())
    assert one([np.inf, -np.inf, 0.0], [1, 0, 0])["AUC"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros((2, 2))}, r"scores and clicked must be \(N,\) and \(N,\)"),
        ({"clicked": np.ones(3, bool)}, "scores and clicked must be"),
        ({"clicked": np.ones(4)}, "clicked must be bool, got float64"),
        ({"offsets": [0, 3]}, "offsets must lead from 0 to 4"),
        ({"offsets": []}, "offsets must lead from 0 to 4"),
        ({"offsets": [0, 3, 2, 4]}, "offsets must not decrease"),
        ({"scores": np.array([1.0, np.nan, 0.0, 2.0])}, "scores contain 1 NaN of 4"),
        ({"ks": (5, 0)}, "k must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    right = {"scores": np.arange(4.0), "clicked": np.array([True, False, True, False]), "offsets": [0, 4]}
    with pytest.raises(ValueError, match=message):
        impression_metrics(**right | change)
