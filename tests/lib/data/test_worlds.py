"""The gap world keeps its promises, and an oracle that reads the gaps reaches the stated cap."""

import pytest
import torch

from lib.data.worlds import GapWorld
from lib.metrics.ranking import recall_at, target_rank

DAY = 86_400


def gap_kind(gap):
    return (gap >= DAY).long() + (gap >= 20 * DAY).long()


def test_genres_move_with_the_gaps():
    world = GapWorld(seed=0)
    batch = world.batch(0, 2000)
    items = batch["tokens"].clone()
    assert (items[:, -1] == 61).all()
    items[:, -1] = batch["target"]
    assert items.min() == 1 and items.max() == 60
    gaps = batch["timestamps"].diff(dim=1)
    allowed = ((30, 600), (DAY, 2 * DAY), (20 * DAY, 40 * DAY))
    assert torch.stack([(gaps >= low) & (gaps <= high) for low, high in allowed]).any(0).all()
    move = torch.tensor(world.moves)[gap_kind(gaps)]
    genre = (items - 1) % 6
    assert ((genre[:, :-1] + move) % 6 == genre[:, 1:]).all()
    shares = torch.bincount(gap_kind(gaps).flatten()) / gaps.numel()
    assert (shares - 1 / 3).abs().max() < 0.02
    assert torch.bincount(items.flatten())[1:].float().std() < 25  # uniform: about 16 = sqrt(16000 / 60)
    assert (batch["labels"][:, :-1] == 0).all() and (batch["labels"][:, -1] == batch["target"]).all()
    assert (batch["days"] == batch["timestamps"] // DAY).all() and batch["days"].max() < world.num_days
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_best_possible_models_reach_the_caps():
    """A model that knows the genre after the gap, and one that knows only which three genres can come."""
    world = GapWorld(seed=1)
    batch = world.batch(0, 20_000, split="test")
    genre_before = (batch["tokens"][:, -2] - 1) % 6
    kind = gap_kind(batch["timestamps"].diff(dim=1)[:, -1])
    genres = (torch.arange(1, 61) - 1) % 6
    after = (genre_before[:, None] + torch.tensor(world.moves)) % 6  # (B, 3) genres that can come
    aware = (genres == after.gather(1, kind[:, None])).float()
    blind = (genres[None, None] == after[:, :, None]).any(1).float()
    for k in (5, 10, 40):
        for scores, items in ((blind, 30), (aware, 10)):
            recall = recall_at(k, *target_rank(scores, batch["target"] - 1)).mean().item()
            assert recall == pytest.approx(min(1, k / items), abs=1e-9)


def test_day_alone_does_not_give_the_gap_away():
    batch = GapWorld(seed=2).batch(0, 5000)
    last_day = batch["days"][:, -1]
    long_gap = gap_kind(batch["timestamps"].diff(dim=1)[:, -1]) == 2
    assert (
        abs(last_day[long_gap].float().mean() - last_day[~long_gap].float().mean()) < last_day.float().std()
    )


def test_batches_are_a_function_of_seed_split_and_step():
    world = GapWorld(seed=3)
    again = GapWorld(seed=3).batch(5, 4)
    assert all(torch.equal(again[key], value) for key, value in world.batch(5, 4).items())
    others = [world.batch(6, 4), GapWorld(seed=4).batch(5, 4), world.batch(5, 4, split="test")]
    for key in ("tokens", "timestamps", "days", "target"):
        assert not any(torch.equal(again[key], other[key]) for other in others), key
    assert not torch.equal(GapWorld(seed=0).batch(0, 4)["tokens"], GapWorld(seed=1).batch(0, 4)["tokens"])
    assert world.synthetic


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 61}, "multiple of num_genres"),
        ({"num_items": 6, "num_genres": 3}, "num_genres >= 4"),
        ({"length": 1}, "length >= 2"),
        ({"start_days": 0}, "start_days >= 1"),
    ],
)
def test_impossible_worlds(arguments, message):
    with pytest.raises(ValueError, match=message):
        GapWorld(seed=0, **arguments)
    with pytest.raises(ValueError, match="split must be"):
        GapWorld(seed=0).batch(0, 4, split="dev")
