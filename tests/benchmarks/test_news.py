"""News recommenders against their textbook way, and contextual features against a direct count."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.data.news_batches import READ, CandidateContext, NewsBatches
from lib.data.news_context import Buckets, ContextFeatures
from lib.data.news_world import NewsWorld
from lib.models.recommenders.news import NAML, NRMS

WORLD = NewsWorld(users=100, impressions=4000, articles_per_day=60, title_words=30, abstract_words=50)


@pytest.fixture(scope="module")
def batch():
    """32 clicks beside four unclicked candidates each, 50 clicked before."""
    log, _ = WORLD.draw(0)
    features = ContextFeatures.of(log)
    buckets = Buckets.fit(features.table(), features.shown)(features.table(), features.shown)
    context = CandidateContext(buckets, features, lambda history, time: np.zeros(history.shape))
    return NewsBatches(log, context, history_length=50, batch_size=32).training(2000, 4000)(0)


def apart(batch):
    """The same batch, every place with an article of its own."""
    places = torch.cat([batch["candidates"].flatten(), batch["history"].flatten()])
    rows = {name: batch[name][places.clamp(min=0)] for name in READ}
    order = torch.where(places < 0, -1, torch.arange(len(places)))
    candidates, history = order.split([batch["candidates"].numel(), batch["history"].numel()])
    of = {"candidates": candidates.view_as(batch["candidates"]), "history": history.view_as(batch["history"])}
    return {**batch, **rows, **of}


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["NRMS", "NAML"])
def test_a_step_encodes_each_article_once(takes, batch, name):
    """At the sizes of the public programs: at most half of encoding every place for itself."""
    torch.manual_seed(0)
    model = NRMS(400, dropout=0.0) if name == "NRMS" else NAML(400, 30, dropout=0.0)
    textbook = apart(batch)
    assert torch.allclose(model(batch), model(textbook), atol=1e-4)

    def step(batch):
        model.zero_grad()
        model.loss(batch).backward()

    what = f"{name}, {len(batch['title'])} articles at {len(textbook['title'])} places"
    takes(0.5, lambda: step(batch), lambda: step(textbook), what=what, rounds=1)


@pytest.mark.benchmark
def test_features_cost_less_than_a_direct_count(takes):
    """9,000 candidates: at most a fiftieth of looking at all earlier ones for each."""
    log, _ = replace(WORLD, impressions=600).draw(1)
    time, article = log.candidate_time, log.candidate

    def counted():
        found = np.zeros((len(time), 2), np.int64)
        for n in range(len(time)):
            before = (time < time[n]) & (article == article[n])
            found[n] = before.sum(), (before & log.clicked).sum()
        return found

    features = ContextFeatures.of(log)
    assert np.array_equal(np.stack([features.shown, features.clicks], 1), counted())
    what = f"features of {len(time)} candidates"
    takes(0.02, lambda: ContextFeatures.of(log), counted, what=what, rounds=2)
