"""User metrics against ranks counted by hand, with models whose scores are known."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.interactions import InteractionLog
from lib.data.negatives import sample_negatives
from lib.data.sequences import evaluation_batches
from lib.training.recommenders import Popularity, head_overlap_by_user, user_metrics

EVENTS = {1: [1, 2, 3, 4], 2: [3, 1, 2, 5], 3: [5, 3, 2, 1]}


@pytest.fixture
def log():
    rows = [
        (user, item, 5.0, 100 * place) for user, items in EVENTS.items() for place, item in enumerate(items)
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    return InteractionLog.from_frame(frame, min_item_count=1, min_user_count=1)


class ByNumber:
    """Scores an item by its number."""

    def scores(self, batch, candidates=None):
        items = torch.arange(1, 6).expand(len(batch["users"]), -1) if candidates is None else candidates
        return items.double()


def batches(log, split="test", batch_size=2):
    return evaluation_batches(log, view="next", max_length=4, batch_size=batch_size, split=split)


def test_full_ranking_leaves_out_the_history(log):
    """Targets 4, 5, 1; unseen before: {4, 5}, {4, 5}, {1, 4}: ranks 2, 1, 2."""
    frame = user_metrics(ByNumber(), batches(log), log=log, cutoffs=(1, 2))
    assert frame.index.tolist() == [1, 2, 3]
    assert frame["Recall@1 (full ranking)"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(frame["NDCG@2 (full ranking)"], [1 / np.log2(3), 1, 1 / np.log2(3)])


def test_validation_ranks_the_event_before(log):
    """Targets 3, 2, 2; unseen before: {3, 4, 5}, {2, 4, 5}, {1, 2, 4}: ranks 3, 3, 2."""
    frame = user_metrics(ByNumber(), batches(log, "validation"), log=log, split="validation", cutoffs=(2, 3))
    assert frame["Recall@2 (full ranking)"].tolist() == [0, 0, 1]
    np.testing.assert_allclose(frame["NDCG@3 (full ranking)"], [0.5, 0.5, 1 / np.log2(3)])


def test_sampled_ranking_uses_each_users_negatives(log):
    negatives = torch.tensor([[5], [4], [4]])
    for size in (1, 2, 3):
        frame = user_metrics(ByNumber(), batches(log, batch_size=size), negatives=negatives, cutoffs=(1,))
        assert frame["Recall@1"].tolist() == [0, 1, 0]
    swapped = user_metrics(ByNumber(), batches(log), negatives=torch.tensor([[1], [1], [5]]), cutoffs=(1,))
    assert swapped["Recall@1"].tolist() == [1, 1, 0]


def test_popularity_counts_training_events_only(log):
    assert Popularity(log).counts[1:].tolist() == [2, 1, 2, 0, 1]
    batch = next(iter(batches(log, batch_size=3)))
    assert Popularity(log).scores(batch).shape == (3, 5)
    assert Popularity(log).scores(batch, torch.tensor([[3, 4]] * 3)).tolist() == [[2, 0]] * 3


def test_ties_count_by_expectation(log):
    class Constant:
        def scores(self, batch, candidates=None):
            return torch.zeros(candidates.shape)

    frame = user_metrics(Constant(), batches(log), negatives=sample_negatives(log, count=1), cutoffs=(1,))
    assert frame["Recall@1"].tolist() == [0.5] * 3


def test_one_of_the_two_protocols_must_be_chosen(log):
    for options in ({}, {"negatives": torch.zeros(3, 1), "log": log}):
        with pytest.raises(ValueError, match="give one of the two"):
            user_metrics(ByNumber(), batches(log), **options)


class Random(torch.nn.Module):
    """Scores that dropout would change; remembers the modes it scored in."""

    def __init__(self, error=None):
        super().__init__()
        self.dropout, self.frozen, self.seen, self.error = (
            torch.nn.Dropout(0.5), torch.nn.Dropout(0.5).eval(), [], error,
        )  # fmt: skip

    def modes(self):
        return [module.training for module in self.modules()]

    def scores(self, batch, candidates=None):
        self.seen.append(self.modes())
        if self.error:
            raise self.error
        return self.dropout(ByNumber().scores(batch, candidates))

    def attention_weights(self, batch):
        users, length = batch["tokens"].shape
        self.seen.append(self.modes())
        return [self.dropout(torch.eye(length).expand(users, 2, length, length))]


def test_networks_are_scored_in_evaluation_mode_and_given_back_as_they_were(log):
    model = Random()
    before = model.modes()
    assert len(set(before)) == 2
    full = user_metrics(model, batches(log), log=log)
    assert full.equals(user_metrics(ByNumber(), batches(log), log=log))
    sampled = user_metrics(model, batches(log), negatives=torch.tensor([[5], [4], [4]]))
    assert sampled.equals(user_metrics(ByNumber(), batches(log), negatives=torch.tensor([[5], [4], [4]])))
    overlaps = head_overlap_by_user(model, batches(log))
    assert overlaps.to_numpy() == pytest.approx(1.0) and overlaps.index.is_unique
    assert not any(any(modes) for modes in model.seen) and model.modes() == before
    failing = Random(KeyError("broken"))
    with pytest.raises(KeyError, match="broken"):
        user_metrics(failing, batches(log), log=log)
    assert failing.seen and failing.modes() == before


def test_head_overlap_averages_blocks_and_users(log):
    """One block of equal heads (overlap 1) and one of disjoint heads (overlap 0), for every user."""

    class TwoBlocks:
        def attention_weights(self, batch):
            users, length = batch["tokens"].shape
            own = torch.eye(length).expand(users, 2, length, length)
            other = own.clone()
            other[:, 1] = other[:, 1].roll(1, -1)
            return [own, other]

    for size in (1, 3):
        overlaps = head_overlap_by_user(TwoBlocks(), batches(log, batch_size=size))
        assert overlaps.mean() == pytest.approx(0.5)
