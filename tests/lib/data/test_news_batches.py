"""Batches hold what the log says, each article once, and a step's batch is always the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.data.news_batches import CandidateContext, NewsBatches
from lib.data.news_context import Buckets, ContextFeatures, Feedback
from lib.data.news_world import NewsWorld

WORLD = NewsWorld(users=20, impressions=300, articles_per_day=40, candidates=6)


def batches_of(log, **options) -> NewsBatches:
    features, feedback = ContextFeatures.of(log), Feedback(log)
    buckets = Buckets.fit(features.table(), features.shown, 5)(features.table(), features.shown)

    def of_history(history, time):
        known = history >= 0
        time = np.broadcast_to(time, history.shape)
        found = np.zeros(history.shape)
        found[known] = feedback.before(history[known], time[known]).ctr()
        return found

    sizes = {"history_length": 4, "negatives": 3, "batch_size": 16} | options
    return NewsBatches(log, CandidateContext(buckets, features, of_history), **sizes)


@pytest.fixture(scope="module")
def log():
    return WORLD.draw(0)[0]


def test_an_epoch_has_each_click_once_beside_unclicked_candidates_of_its_impression(log):
    batches = batches_of(log)
    training = batches.training(50, 200)
    clicks = int(log.clicked[log.offsets[50] : log.offsets[200]].sum())
    seen, rows = [], 0
    for step in range(-(-clicks // 16)):
        batch = training(step)
        for n in range(min(16, clicks - rows)):
            shown = [int(batch["category"][r]) if r >= 0 else None for r in batch["candidates"][n]]
            assert shown[0] is not None
            key = (
                int(batch["user"][n]),
                round(float(batch["age"][n, 0]), 4),
                tuple(batch["context"][n, 0].tolist()),
            )
            seen.append(key)
        rows += 16
    begin = log.offsets[50]
    part = np.flatnonzero(log.clicked[begin : log.offsets[200]]) + begin
    features = batches.context.features
    expected = [
        (int(log.user[log.impression[p]]), round(float(np.float32(features.age[p] / 3600)), 4),
         tuple(batches.context.buckets[p].tolist()))
        for p in part
    ]  # fmt: skip
    assert sorted(seen) == sorted(expected)


def test_negatives_are_distinct_unclicked_candidates_of_the_impression(log):
    batches = batches_of(log, negatives=8)
    batch = batches.training(50, 200)(3)
    articles = log.articles
    title_of = {tuple(articles.title[a].tolist()): a for a in range(1, len(articles) + 1)}
    for n in range(16):
        rows = batch["candidates"][n]
        there = [title_of[tuple(batch["title"][r].tolist())] for r in rows if r >= 0]
        user = int(batch["user"][n])
        fitting = [
            i
            for i in np.flatnonzero(log.user == user)
            if set(there) <= set(log.candidate[log.offsets[i] : log.offsets[i + 1]])
        ]
        assert len(fitting) == 1, "all of one impression"
        part = slice(log.offsets[fitting[0]], log.offsets[fitting[0] + 1])
        clicked = dict(zip(log.candidate[part].tolist(), log.clicked[part], strict=True))
        assert clicked[there[0]] and not any(clicked[a] for a in there[1:])
        assert len(set(there)) == len(there) == 1 + sum(not c for c in clicked.values())
        assert (rows[len(there) :] == -1).all()
        history = [title_of[tuple(batch["title"][r].tolist())] for r in batch["history"][n] if r >= 0]
        begin, end = log.history_begin[fitting[0]], log.history_end[fitting[0]]
        assert history == log.history[begin:end][-4:].tolist()


def test_articles_of_a_batch_are_distinct_and_all_used(log):
    batch = batches_of(log).training(50, 200)(0)
    used = torch.cat([batch["candidates"].flatten(), batch["history"].flatten()])
    rows = len(batch["title"])
    assert sorted(set(used.tolist()) - {-1}) == list(range(rows))
    assert len({tuple(row.tolist()) for row in batch["title"]}) == rows
    assert {len(batch[name]) for name in ("title", "abstract", "category", "subcategory")} == {rows}


def test_a_step_is_a_function_of_its_number_and_the_seed(log):
    one, same, other = (batches_of(log, seed=seed).training(50, 200) for seed in (0, 0, 1))
    assert all(torch.equal(one(5)[key], same(5)[key]) for key in one(5))
    assert not torch.equal(one(5)["user"], other(5)["user"])
    assert not torch.equal(one(5)["user"], one(6)["user"])


def test_a_test_has_every_candidate_once(log):
    batches = batches_of(log)
    places = np.concatenate([columns[columns >= 0] for columns, _ in batches.testing(200, 290)])
    assert places.tolist() == list(range(log.offsets[200], log.offsets[290]))
    columns, batch = next(batches.testing(200, 290))
    assert np.array_equal(batch["candidates"].numpy(), log.candidate[columns])
    features = batches.context.features
    assert torch.allclose(batch["ctr"], torch.from_numpy(features.ctr()[columns]).float())
    assert torch.allclose(batch["age"], torch.from_numpy(features.age[columns] / 3600).float())
    texts = list(batches.articles(batch_size=50))
    assert np.array_equal(torch.cat([t["title"] for t in texts]).numpy(), log.articles.title)


def test_bad_sizes_and_another_logs_context_are_refused(log):
    with pytest.raises(ValueError, match="history_length must be at least 1, got 0"):
        batches_of(log, history_length=0)
    with pytest.raises(ValueError, match="the context is of"):
        replace(batches_of(log), log=WORLD.draw(1)[0].between(0, 100))
    nobody = replace(log, clicked=np.zeros_like(log.clicked))
    with pytest.raises(ValueError, match="none has both a clicked and an unclicked candidate"):
        batches_of(nobody).training(0, 10)
