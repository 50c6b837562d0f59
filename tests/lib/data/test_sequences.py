"""Windows, masks, negatives and evaluation inputs, against loops over each user's events."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.data.interactions import InteractionLog
from lib.data.negatives import TrainingNegatives, history_mask, sample_negatives
from lib.data.sequences import (
    ClozeTraining,
    NextItemTraining,
    PrefixTraining,
    evaluation_batches,
    personalised_timestamps,
)
from lib.data.windows import window_ends


def make_log(lengths, num_items=30, seed=0, spread=10_000):
    """Users with so many events; every item occurs; stamps with ties."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(lengths)), lengths)
    item = rng.integers(num_items, size=len(user))
    item[rng.permutation(len(user))[:num_items]] = np.arange(num_items)
    stamp = 1_000_000 + rng.integers(spread, size=len(user)) * 60
    table = pd.DataFrame({"user": user, "item": item, "rating": 5.0, "timestamp": stamp})
    return InteractionLog.from_frame(table, min_item_count=1, min_user_count=1)


LOG = make_log([30, 5, 12, 7, 4, 50])
MASK = LOG.num_items + 1


def histories(log):
    return {user: log.item[log.events(user)].tolist() for user in range(1, log.num_users + 1)}


def padded(values, length):
    values = list(values)[-length:]
    return [0] * (length - len(values)) + values


@pytest.mark.parametrize(
    ("length", "ends"), [(450, [450, 350, 250]), (200, [200]), (199, [199]), (300, [300, 200])]
)
def test_window_ends(length, ends):
    rows, found = window_ends(np.array([1, length]), max_length=200, stride=100)
    assert rows.tolist() == [0] + [1] * len(ends) and found.tolist() == [1, *ends]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 20))
def test_window_ends_against_a_loop(lengths, max_length, stride):
    expected = []
    for row, length in enumerate(lengths):
        ends = [end for end in range(length, 0, -stride) if end >= max_length] or [length]
        expected += [(row, end) for end in ends]
    rows, ends = window_ends(np.array(lengths), max_length=max_length, stride=stride)
    assert list(zip(rows, ends, strict=True)) == expected


def cloze(**changes):
    return ClozeTraining(LOG, **{"max_length": 10, "stride": 4, "batch_size": 8, "seed": 3} | changes)


def restore(batch):
    return torch.where(batch["labels"] > 0, batch["labels"], batch["tokens"])


def test_cloze_windows_hold_training_events_only():
    training = cloze()
    seen = set()
    for step in range(20):
        batch = training.batch(step)
        for row, user in enumerate(batch["users"].tolist()):
            where = LOG.events(user)
            items, stamps, days = (column[where][:-2] for column in (LOG.item, LOG.timestamp, LOG.day))
            window = restore(batch)[row].tolist()
            ends = [end for end in range(len(items), 0, -4) if end >= 10] or [len(items)]
            matches = [end for end in ends if padded(items[:end], 10) == window]
            assert matches, "not a window of this user's training events"
            end = matches[0]
            assert batch["timestamps"][row].tolist() == padded(stamps[:end], 10)
            assert batch["days"][row].tolist() == padded(days[:end], 10)
            seen.add((user, end))
    assert len(seen) == training.steps_per_epoch * 8 + len(training.windows.ends) % 8


def test_every_window_once_per_epoch_and_no_gap_between_epochs():
    training = cloze(batch_size=5)
    count = len(training.windows.ends)
    assert count % 5, "the epochs must not end with a batch, or nothing is tested"
    stream = []
    for step in range(3 * count // 5 + 1):
        stream += list(zip(*(part.tolist() for part in training.windows.at(step)), strict=True))
    epochs = [stream[start : start + count] for start in range(0, 3 * count, count)]
    assert all(len(set(epoch)) == count for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_fewer_windows_than_the_batch_still_train():
    training = cloze(batch_size=256)
    assert training.steps_per_epoch == 1
    assert training.batch(0)["tokens"].shape == (256, 10)
    assert set(training.batch(0)["users"].tolist()) == set(range(1, 7))


def test_masking_rates():
    """20 % selected; of these 80 % masked, 10 % replaced (1 in V by itself), 10 % left: 4 standard errors."""
    training = ClozeTraining(LOG, max_length=40, stride=5, batch_size=256, seed=0)
    batches = [training.batch(step) for step in range(40)]
    tokens, labels = (torch.cat([batch[key] for batch in batches]) for key in ("tokens", "labels"))
    real = torch.cat([batch["timestamps"] for batch in batches]) > 0
    assert (tokens[~real] == 0).all() and (labels[~real] == 0).all()
    selected = labels > 0

    def close(share, of, expected):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / of) ** 0.5

    close(selected[real].float().mean(), real.sum(), 0.2)
    count = selected.sum()
    changed = (tokens != labels) & (tokens != MASK) & selected
    close((tokens[selected] == MASK).float().mean(), count, 0.8)
    close(changed.sum() / count, count, 0.1 * (1 - 1 / LOG.num_items))
    close((tokens == labels)[selected].float().mean(), count, 0.1 * (1 + 1 / LOG.num_items))
    assert (tokens[real] >= 1).all() and tokens.max() == MASK
    spread = torch.bincount(tokens[changed], minlength=MASK)[1:]
    assert (spread > 0).all()  # replaced by any item
    fixed = torch.cat([restore(batch) for batch in batches])
    assert (fixed[real] <= LOG.num_items).all()  # labels are the originals: no mask token is left


def test_a_batch_always_has_a_label():
    training = cloze(batch_size=1, mask_probability=1e-9)
    batch = training.batch(0)
    assert batch["labels"][0].count_nonzero() == 1 and batch["tokens"][0, -1] == MASK
    full = cloze(mask_probability=1.0).batch(0)
    assert ((full["labels"] > 0) == (full["timestamps"] > 0)).all()


def test_next_item_windows():
    training = NextItemTraining(LOG, max_length=10, stride=4, batch_size=8, seed=1)
    for step in range(10):
        batch = training.batch(step)
        for row, user in enumerate(batch["users"].tolist()):
            where = LOG.events(user)
            items, stamps = LOG.item[where][:-2], LOG.timestamp[where][:-2]
            ends = [end for end in range(len(items), 0, -4) if end >= 10] or [len(items)]
            window = (batch["tokens"][row].tolist(), batch["labels"][row].tolist())
            matches = [
                end
                for end in ends
                if window == (padded(items[: end - 1], 10), padded(items[max(end - 10, 1) : end], 10))
            ]
            assert matches, "not a window of this user's training events"
            assert batch["timestamps"][row].tolist() == padded(stamps[: matches[0] - 1], 10)
        real = batch["tokens"] > 0
        assert ((batch["labels"] > 0) == real).all() and ((batch["negatives"] > 0) == real).all()


def test_prefixes():
    log = make_log([4, 6, 11, 30])
    training = PrefixTraining(log, batch_size=16, seed=0, max_length=5, stride=2)
    items = histories(log)
    ends = {user: set() for user in items}
    for step in range(200):
        batch = training.batch(step)
        for user, context, label in zip(
            *(batch[k].tolist() for k in ("users", "tokens", "labels")), strict=True
        ):
            possible = [
                end
                for end in range(2, len(items[user]) - 1)
                if items[user][end - 1] == label
                and (items[user][: end - 1][-6:] + [items[user][end - 2]] * 6)[:6] == context
            ]
            assert possible, "not a prefix of this user's training events"
            ends[user] |= set(possible)
    assert ends == {user: set(range(2, len(items[user]) - 1)) for user in items}


@pytest.mark.parametrize(
    "make",
    [
        cloze,
        lambda seed=3: NextItemTraining(LOG, max_length=10, stride=4, batch_size=8, seed=seed),
        lambda seed=3: NextItemTraining(
            LOG, max_length=10, stride=4, batch_size=8, seed=seed, negatives="pool", pool_size=2
        ),
        lambda seed=3: PrefixTraining(LOG, batch_size=8, seed=seed),
    ],
)
def test_batches_are_a_function_of_seed_and_step(make):
    one, two = make(), make()
    for step in (5, 0, 100, 5):  # any order, so that a resumed training sees what an unbroken one does
        two.batch(step + 1)
        for key, value in one.batch(step).items():
            assert value.dtype == torch.int64
            assert torch.equal(value, two.batch(step)[key]), key
    assert not torch.equal(one.batch(0)["tokens"], one.batch(1)["tokens"])
    assert not torch.equal(one.batch(0)["tokens"], make(seed=4).batch(0)["tokens"])
    with pytest.raises(ValueError, match="step must not be negative"):
        one.batch(-1)


# Which windows come, and what is drawn for them, are separate random streams; each is tested alone: the order
# by what does not depend on the draws, the draws by batches of the same windows in the same order.

ONE = make_log([30], num_items=30)
TWO = make_log([30, 30], num_items=60)
SHORT = make_log([4], num_items=4)  # of two training events one can only predict the second


def next_item(log=LOG, seed=3, **changes):
    options = {"max_length": 10, "stride": 4, "batch_size": 8} | changes
    return NextItemTraining(log, seed=seed, **options)


def prefixes(log=LOG, seed=3, **changes):
    return PrefixTraining(log, seed=seed, **{"max_length": 10, "stride": 4, "batch_size": 8} | changes)


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (cloze, lambda batch: (batch["users"], batch["timestamps"], restore(batch))),
        (next_item, lambda batch: (batch["users"], batch["tokens"], batch["labels"])),
        (prefixes, lambda batch: (batch["users"],)),
    ],
    ids=["cloze", "next item", "prefixes"],
)
def test_another_seed_or_step_gives_other_windows(make, seen):
    def windows(seed, step):
        return [part.tolist() for part in seen(make(seed=seed).batch(step))]

    assert windows(3, 0) == windows(3, 0)
    for seed, step in ((2, 0), (4, 0), (0, 0), (3, 1), (3, 2)):
        assert windows(3, 0) != windows(seed, step), (seed, step)


ONE_EACH = {"max_length": 30, "stride": 30}


@pytest.mark.parametrize(
    ("make", "same", "drawn"),
    [
        (lambda seed: ClozeTraining(ONE, seed=seed, batch_size=4, **ONE_EACH), "timestamps", "tokens"),
        (lambda seed: next_item(ONE, seed, batch_size=4, **ONE_EACH), "tokens", "negatives"),
        (
            lambda seed: next_item(TWO, seed, batch_size=2, **ONE_EACH, negatives="pool", pool_size=9),
            "tokens",
            "negatives",
        ),
        (lambda seed: prefixes(ONE, seed, batch_size=8, **ONE_EACH), "users", "labels"),
        (lambda seed: prefixes(SHORT, seed, batch_size=40), "labels", "negatives"),
    ],
    ids=["masks", "negatives", "from a pool", "prefixes", "their negatives"],
)
@pytest.mark.parametrize("varied", ["seed", "step"])
def test_another_seed_or_step_gives_other_draws(make, same, drawn, varied):
    batches = [make(n).batch(0) if varied == "seed" else make(3).batch(n) for n in range(10)]
    draws = {}
    for batch in batches:
        draws.setdefault(str(batch[same].tolist()), []).append(str(batch[drawn].tolist()))
    assert len(draws) <= 2, "too few batches of the same windows to compare"
    for compared in draws.values():
        assert len(compared) > 1 and len(set(compared)) == len(compared)


def test_another_seed_gives_other_pools():
    log = make_log([12, 9, 5], num_items=26)
    users = np.repeat(np.arange(1, 4), 200)

    def pool(seed):
        drawn = TrainingNegatives(log, "pool", pool_size=5, pool_seed=seed).draw(
            np.random.default_rng(0), users
        )
        return [sorted(set(drawn[users == user].tolist())) for user in (1, 2, 3)]

    assert pool(1) == pool(1) and pool(1) != pool(2)


@pytest.mark.parametrize(("split", "held_out"), [("test", 1), ("validation", 2)])
@pytest.mark.parametrize("target_time", ["seen", "blinded"])
def test_cloze_evaluation(split, held_out, target_time):
    batches = list(
        evaluation_batches(
            LOG, split=split, view="cloze", max_length=10, batch_size=4, target_time=target_time
        )
    )
    assert torch.cat([batch["users"] for batch in batches]).tolist() == list(range(1, 7))
    for batch in batches:
        for row, user in enumerate(batch["users"].tolist()):
            where = LOG.events(user)
            items, stamps, days = (column[where].tolist() for column in (LOG.item, LOG.timestamp, LOG.day))
            place = len(items) - held_out
            assert batch["target"][row] == items[place]
            assert batch["tokens"][row].tolist() == padded([*items[:place], MASK], 10)
            clock = place if target_time == "seen" else place - 1
            assert batch["timestamps"][row].tolist() == padded([*stamps[:place], stamps[clock]], 10)
            assert batch["days"][row].tolist() == padded([*days[:place], days[clock]], 10)


@pytest.mark.parametrize(("split", "held_out"), [("test", 1), ("validation", 2)])
def test_next_and_context_evaluation(split, held_out):
    following = list(evaluation_batches(LOG, split=split, view="next", max_length=10, personalised=True))
    context = list(evaluation_batches(LOG, split=split, view="context", max_length=6))
    clock = personalised_timestamps(LOG)
    assert len(following) == len(context) == 1 and set(context[0]) == {"tokens", "users", "target"}
    for row, (user, items) in enumerate(histories(LOG).items()):
        place = len(items) - held_out
        assert following[0]["target"][row] == context[0]["target"][row] == items[place]
        assert following[0]["tokens"][row].tolist() == padded(items[:place], 10)
        assert following[0]["timestamps"][row].tolist() == padded(clock[LOG.events(user)][:place], 10)
        assert context[0]["tokens"][row].tolist() == (items[:place][-6:] + [items[place - 1]] * 6)[:6]


def test_personalised_clock_by_hand_and_by_loop():
    table = pd.DataFrame(
        {
            "user": [1, 1, 1, 1, 2, 2, 3],
            "item": [1, 2, 3, 4, 1, 2, 1],
            "rating": 5,
            "timestamp": [100, 100, 130, 205, 50, 50, 7],
        }
    )
    log = InteractionLog.from_frame(table, min_item_count=1, min_user_count=1)
    # user 1: unit 30 s, (205 - 100) / 30 = 3.5 rounds half to even, 4; user 2: only ties, unit 1 s
    assert personalised_timestamps(log).tolist() == [1, 1, 2, 5, 1, 1, 1]
    clock = personalised_timestamps(LOG)
    for user in range(1, LOG.num_users + 1):
        stamps = LOG.timestamp[LOG.events(user)].tolist()
        unit = min(b - a for a, b in itertools.pairwise(stamps) if b > a)
        assert clock[LOG.events(user)].tolist() == [round((t - stamps[0]) / unit) + 1 for t in stamps]


@pytest.mark.parametrize("distribution", ["popular", "uniform"])
def test_sampled_negatives_are_distinct_and_unseen(distribution):
    log = make_log([30, 40, 10, 20], num_items=60)
    negatives = sample_negatives(log, count=12, distribution=distribution, seed=1)
    assert negatives.shape == (4, 12) and negatives.dtype == torch.int64
    for row, items in enumerate(histories(log).values()):
        drawn = negatives[row].tolist()
        assert len(set(drawn)) == 12 and not set(drawn) & set(items) and min(drawn) >= 1 and max(drawn) <= 60
    assert torch.equal(negatives, sample_negatives(log, count=12, distribution=distribution, seed=1))
    assert not torch.equal(negatives, sample_negatives(log, count=12, distribution=distribution, seed=2))


def test_blocks_of_users_do_not_change_the_draw(monkeypatch):
    whole = sample_negatives(LOG, count=3)
    monkeypatch.setattr("lib.data.negatives._CELLS", 2 * LOG.num_items)
    assert torch.equal(whole, sample_negatives(LOG, count=3))


def skewed_log():
    """User 1 has seen items 4 and 5; items 1, 2, 3 have counts 1, 2, 4, from the others."""
    rows = [("a", item, 5.0, 0) for item in (4, 5, 4)]
    rows += [(f"b{n}", item, 5.0, 0) for n, item in enumerate([1, 2, 2, 3, 3, 3, 3])]
    table = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    return InteractionLog.from_frame(table, min_item_count=1, min_user_count=1)


@pytest.mark.parametrize(
    ("distribution", "weights"), [("popular", np.array([1, 2, 4])), ("uniform", np.array([1, 1, 1]))]
)
def test_draws_follow_the_counts_without_replacement(distribution, weights):
    """Two draws of user 1 against the probabilities of successive sampling (chi-square, p > 1e-3)."""
    log, tries = skewed_log(), 4000
    pairs = np.zeros((3, 3))
    for seed in range(tries):
        first, second = sample_negatives(log, count=2, distribution=distribution, seed=seed)[0].tolist()
        pairs[first - 1, second - 1] += 1
    share = weights / weights.sum()
    expected = tries * np.outer(share, share) / (1 - share[:, None])
    off = ~np.eye(3, dtype=bool)
    assert (np.diag(pairs) == 0).all()
    assert ((pairs - expected)[off] ** 2 / expected[off]).sum() < 20.5  # chi-square, 5 degrees of freedom


def test_popular_items_are_more_often_negatives():
    log = make_log([8] * 400, num_items=50, seed=5)
    skew = InteractionLog.from_frame(
        pd.DataFrame(
            {
                "user": log.user,
                "item": (np.random.default_rng(0).power(0.4, log.num_events) * 50).astype(int),
                "rating": 5.0,
                "timestamp": log.timestamp,
            }
        ),
        min_item_count=1,
        min_user_count=1,
    )
    drawn = np.bincount(sample_negatives(skew, count=10).numpy().ravel(), minlength=skew.num_items + 1)[1:]
    held = np.bincount(np.unique(skew.user * 100 + skew.item) % 100, minlength=skew.num_items + 1)[1:]
    rate = drawn / (skew.num_users - held)  # per user who could get it
    order = np.argsort(skew.item_counts[1:])
    assert np.corrcoef(np.argsort(order), np.argsort(np.argsort(rate)))[0, 1] > 0.9


def test_training_negatives_are_uniform_over_what_training_has_not_seen():
    """The held-out items can be drawn: training must not know them. The authors' pool knows: the leak."""
    log = make_log([12, 9, 5], num_items=20)
    rng = np.random.default_rng(0)
    unseen = TrainingNegatives(log, "unseen")
    untouched = {user: log.num_items - len(set(items)) for user, items in histories(log).items()}
    pool = TrainingNegatives(log, "pool", pool_size=min(untouched.values()))
    for user, items in histories(log).items():
        draws = unseen.draw(rng, np.full(8000, user))
        allowed = sorted(set(range(1, log.num_items + 1)) - set(items[:-2]))
        counts = np.bincount(draws, minlength=log.num_items + 1)
        assert np.flatnonzero(counts).tolist() == allowed
        expected = 8000 / len(allowed)
        assert ((counts[allowed] - expected) ** 2 / expected).sum() < 60  # chi-square, at most 19 degrees
        pooled = set(pool.draw(rng, np.full(2000, user)).tolist())
        assert len(pooled) == min(untouched.values()) and not pooled & set(items)


@given(st.lists(st.integers(4, 12), min_size=1, max_size=5), st.integers(14, 20), st.integers(0, 1000))
def test_unseen_negatives_never_hit_training_items(lengths, num_items, seed):
    log = make_log(lengths, num_items=min(num_items, sum(lengths)), seed=seed)
    seen = {user: set(items[:-2]) for user, items in histories(log).items()}
    if max(map(len, seen.values())) == log.num_items:
        return
    users = np.repeat(np.arange(1, log.num_users + 1), 50).reshape(log.num_users, 50)
    draws = TrainingNegatives(log).draw(np.random.default_rng(seed), users)
    assert draws.shape == users.shape and draws.min() >= 1 and draws.max() <= log.num_items
    assert not any(set(row.tolist()) & seen[user] for user, row in enumerate(draws, start=1))


@pytest.mark.parametrize(("split", "held_out"), [("test", 1), ("validation", 2)])
def test_history_mask(split, held_out):
    mask = history_mask(LOG, torch.tensor([3, 1]), split=split)
    assert mask.shape == (2, LOG.num_items) and mask.dtype == torch.bool
    for row, user in enumerate((3, 1)):
        items = histories(LOG)[user]
        *before, target = items[: len(items) - held_out + 1]
        assert set((mask[row].nonzero().flatten() + 1).tolist()) == set(before) - {target}


BAD = {"max_length": 10, "stride": 4, "batch_size": 8, "seed": 3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cloze(mask_probability=0), "mask_probability"),
        (lambda: cloze(max_length=0), "max_length and stride"),
        (lambda: cloze(batch_size=0), "batch_size"),
        (lambda: ClozeTraining(make_log([30, 2]), **BAD), r"user 2 \(id 1\) has 2"),
        (lambda: NextItemTraining(make_log([30, 3]), **BAD), r"user 2 \(id 1\) has 3"),
        (lambda: NextItemTraining(LOG, **BAD, negatives="hard"), "negatives must be"),
        (
            lambda: NextItemTraining(LOG, **BAD, negatives="pool"),
            r"1000 negatives .* user 1 \(id 0\) has only",
        ),
        (lambda: PrefixTraining(LOG, batch_size=8, seed=0, context_length=0), "context_length"),
        (lambda: PrefixTraining(make_log([8], num_items=5), batch_size=8, seed=0), "has only 0 unseen"),
        (lambda: sample_negatives(LOG, count=0), "at least 1 negative"),
        (lambda: sample_negatives(LOG, count=31), "31 negatives"),
        (lambda: sample_negatives(LOG, distribution="hard"), "distribution must be"),
        (lambda: next(evaluation_batches(LOG, split="train")), "split must be"),
        (lambda: next(evaluation_batches(LOG, view="sas")), "view must be"),
        (lambda: next(evaluation_batches(LOG, target_time="hidden")), "target_time must be"),
        (lambda: next(evaluation_batches(LOG, personalised=True)), "personalised"),
        (lambda: next(evaluation_batches(LOG, batch_size=0)), "batch_size"),
        (lambda: next(evaluation_batches(make_log([30, 2]))), "leave-one-out needs at least 3"),
    ],
)
def test_errors_at_the_door(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
