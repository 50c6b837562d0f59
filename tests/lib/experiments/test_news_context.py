"""What the chapter on contextual features compares: its scores by hand, its worlds, its real logs."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.news_context import Buckets, Feedback
from lib.data.news_world import NewsWorld
from lib.experiments.news_context import (
    AFFINITY,
    CONTENT,
    DEEP,
    OVERLAP,
    TRAINED,
    Split,
    category_affinity,
    scores_of,
    word_overlap,
)
from lib.experiments.news_context_arithmetic import contextual_inputs, parity, ties
from lib.experiments.news_context_worlds import (
    CEILINGS,
    LEAK,
    MAP_ARMS,
    by_day,
    by_impression,
    by_seed,
    in_world,
    leak_scores,
    mean_scores,
    null_world,
    untrained_scores,
    world_map,
)

WORLD = NewsWorld(users=30, impressions=600, days=8, articles_per_day=40)
SETTINGS = {
    "delay_hours": 1.0,
    "window_hours": 0.0,
    "alpha": 10.0,
    "num_buckets": 5,
    "word_size": 8,
    "num_heads": 2,
    "head_size": 4,
    "query_size": 4,
    "dropout": 0.1,
    "history_length": 5,
    "negatives": 3,
    "batch_size": 8,
    "learning_rate": 0.01,
    "steps": 3,
    "evaluate_every": 3,
    "patience": 3,
}


@pytest.fixture(scope="module")
def world():
    return in_world(WORLD, 0, SETTINGS)


def test_category_affinity_by_hand(world):
    log = world[0].log
    scores, kind = category_affinity(log), log.articles.category
    for i in (0, 7, 300, len(log) - 1):
        clicked = kind[log.history[log.history_begin[i] : log.history_end[i]]]
        for place in range(log.offsets[i], log.offsets[i + 1]):
            same = (clicked == kind[log.candidate[place]]).sum()
            assert scores[place] == pytest.approx((same + 1) / (len(clicked) + kind.max() + 1))


def test_word_overlap_by_hand(world):
    log = world[0].log
    scores, titles = word_overlap(log), log.articles.title
    holding = {}
    for title in titles:
        for word in set(title.tolist()) - {0}:
            holding[word] = holding.get(word, 0) + 1

    def vector(rows) -> dict[int, float]:
        weights: dict[int, float] = {}
        for row in rows:
            one: dict[int, float] = {}
            for word in titles[row].tolist():
                one[word] = one.get(word, 0) + math.log(len(titles) / holding[word])
            norm = math.sqrt(sum(w * w for w in one.values()))
            for word, weight in one.items():
                weights[word] = weights.get(word, 0) + weight / norm
        return weights

    def norm(weights) -> float:
        return math.sqrt(sum(w * w for w in weights.values())) or 1.0

    for i in (0, 400, len(log) - 1):
        reader = vector(log.history[log.history_begin[i] : log.history_end[i]])
        for place in range(log.offsets[i], log.offsets[i] + 3):
            article = vector([log.candidate[place]])
            dot = sum(weight * reader.get(word, 0) for word, weight in article.items())
            assert scores[place] == pytest.approx(dot / norm(reader) / norm(article), abs=1e-12)


def test_a_test_scores_as_the_model_does_impression_by_impression(world):
    """Articles encoded once and candidates padded, against the model's own forward on one impression."""
    comparison, _ = world
    for arm in ("NRMS", "LSTUR + module", "PP-Rec", "context only", *DEEP):
        torch.manual_seed(0)
        model, batches = comparison.model(arm).eval(), comparison.batches(0)
        found = scores_of(model, batches, 500, 510)
        single = replace(batches, batch_size=1)
        for n in (0, 9):
            columns, batch = next(single.testing(500 + n, 501 + n))
            texts = {k: v for part in batches.articles() for k, v in part.items()}
            expected = model({**batch, **texts})[0].detach().numpy()
            places = columns[0] - comparison.log.offsets[500]
            assert found[places] == pytest.approx(expected, abs=1e-5), arm


def test_every_arm_trains_and_is_its_own(world):
    comparison, _ = world
    shapes = {}
    for arm in TRAINED:
        model, history = comparison.train(arm, 0)
        assert history.steps == 3 and not model.training
        frame = comparison.test(model, 0)
        assert len(frame) == comparison.split.end - comparison.split.test and frame["AUC"].between(0, 1).all()
        shapes[arm] = sum(p.numel() for p in model.parameters())
    assert len({shapes[f"{name} + module"] - shapes[name] for name in CONTENT}) == 1
    assert shapes["NRMS + module"] > shapes["NRMS + module, CTR and freshness"] > shapes["NRMS"]
    with pytest.raises(ValueError, match="arm must be one of context only"):
        comparison.model("mean")
    with pytest.raises(ValueError, match="got 'mean'"):
        replace(comparison, learning_rates={"mean": 0.1})
    with pytest.raises(ValueError, match="rule must be one of CTR"):
        comparison.test_rule("mean")


def test_parts_follow_each_other_in_time_and_buckets_see_training_alone(world):
    comparison, _ = world
    split, log = comparison.split, comparison.log
    assert 0 < split.train < split.validation < split.test < split.end == len(log)
    cut = int(log.time[split.validation - 1])
    frozen, online = comparison.context(frozen=True).features, comparison.online
    early, late = log.candidate_time <= cut, log.candidate_time >= cut + 3600
    known = Feedback(log).before(log.candidate, np.full(len(log.candidate), cut + 1))
    for name in ("shown", "clicks"):
        counts = getattr(frozen, name)
        assert np.array_equal(counts[early], getattr(online, name)[early])
        assert np.array_equal(counts[late], getattr(known, name)[late])
    assert (frozen.clicks[late] < online.clicks[late]).any()
    training = slice(log.offsets[split.train], log.offsets[split.validation])
    alone = Buckets.fit(
        online.table(comparison.alpha)[training], online.shown[training], comparison.num_buckets
    )
    edges = comparison.buckets.edges
    assert all(np.array_equal(a, b) for a, b in zip(edges, alone.edges, strict=True))


def test_ceilings_are_above_what_they_know(world):
    comparison, reasons = world
    means = {arm: frame["AUC"].mean() for arm, frame in untrained_scores(comparison, reasons).items()}
    assert set(CEILINGS) <= set(means)
    assert means["all known"] > max(means["taste known"], means["context known"])
    assert means["taste known"] > max(means[AFFINITY], means[OVERLAP], 0.6)
    assert means["context known"] > max(means["popularity"], means["freshness"])


def test_in_the_null_world_the_leak_alone_beats_chance():
    """Counted over the whole log, chance looks like knowledge; the twin counts online."""
    world = replace(null_world(WORLD), impressions=2000)
    found = pd.DataFrame([leak_scores(in_world(world, seed, SETTINGS)[0]) for seed in range(3)]).mean()
    assert found[LEAK] > 0.55 and found.drop(LEAK).max() < 0.53


def test_days_are_counted_from_the_end_of_training(world):
    comparison, reasons = world
    scores = untrained_scores(comparison, reasons)["CTR"]
    days = by_day(comparison, scores)
    assert days["impressions"].sum() == len(scores) and days.index[0] == 0 and len(days) >= 3
    weighted = (days["AUC"] * days["impressions"]).sum() / len(scores)
    assert weighted == pytest.approx(scores["AUC"].mean())


def test_a_map_has_a_row_per_cell():
    settings = SETTINGS | {"steps": 1, "evaluate_every": 1, "patience": 1}
    frame = world_map(WORLD, [0.0, 2.0], [1.0], 3, settings, lambda name: None, impressions=300)
    assert frame[["seed", "taste", "context"]].to_numpy().tolist() == [[3, 0, 1], [3, 2, 1]]
    assert set(MAP_ARMS) <= set(frame) and frame["taste known"].tolist()[0] == 0.5


def test_what_rules_are_handed():
    frame = pd.DataFrame({"AUC": [0.2, np.nan], "MRR": [1, 2], "nDCG@5": [1, 2], "nDCG@10": [1, 2]})
    scores = {("a", 0): frame, ("a", 1): frame + 1, ("rule", 0): frame}
    assert by_seed(mean_scores(scores), ["MRR"]) == {"MRR": {"a": [1.5, 2.5], "rule": [1.5]}}
    handed = by_impression(scores, {"AUC": "AUC (films)"})["AUC (films)"]
    assert handed["a"].shape == (2, 1) and handed["rule"].shape == (1, 1)


def test_split_shares():
    log = WORLD.draw(1)[0].between(0, 100)
    assert Split.by_shares(log, warm=0.2, validation=0.1, test=0.3) == Split(20, 60, 70, 100)


def test_numbers_that_need_no_training():
    assert list(contextual_inputs().values()) == [0, 0, 0, 2]
    assert parity()["LSTUR, candidate 2"] == pytest.approx(0.558296299, abs=2e-8)
    assert list(ties().values()) == pytest.approx([0.2928968, 1.0, 0.1])
    assert torch.get_default_dtype() == torch.float32


def test_a_training_continues_from_its_checkpoint(world, tmp_path):
    comparison, _ = world
    path = tmp_path / "training.pt"
    replace(comparison, steps=2, evaluate_every=1).train("NRMS + module", 5, path)
    model, history = replace(comparison, steps=3, evaluate_every=1).train("NRMS + module", 5, path)
    whole, _ = replace(comparison, steps=3, evaluate_every=1).train("NRMS + module", 5)
    assert history.steps == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_batches_are_a_function_of_the_seed(world):
    comparison, _ = world
    one, same, other = (comparison.batches(seed).training(100, 300)(0) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["user"], other["user"])
