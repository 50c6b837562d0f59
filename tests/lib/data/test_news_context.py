"""Contextual features against a direct count, and proofs that none of them sees the future."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data.news import Articles, ImpressionLog
from lib.data.news_context import FEATURES, Buckets, ContextFeatures, Feedback
from lib.metrics.impressions import impression_metrics


def articles(count: int, published=None) -> Articles:
    nothing = np.zeros(count + 1, np.int64)
    return Articles(
        ids=np.array(["", *(f"N{i}" for i in range(1, count + 1))]),
        category=nothing,
        subcategory=nothing,
        title=np.zeros((count + 1, 1), np.int32),
        abstract=np.zeros((count + 1, 1), np.int32),
        published=nothing - 1 if published is None else published,
        category_names=(),
        words=(),
    )


def log_of(seed: int, impressions: int = 40, count: int = 8, days: float = 0.01, rate: float = 0.3):
    """Impressions at random times, several in one second, of random articles, clicked at random."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, min(6, count) + 1, impressions)
    shown = [draw.choice(count, size, replace=False) + 1 for size in sizes]
    return ImpressionLog(
        time=np.sort(draw.integers(0, int(days * 86_400) + 2, impressions)),
        user=draw.integers(1, 5, impressions),
        offsets=np.append(0, np.cumsum(sizes)),
        candidate=np.concatenate(shown).astype(np.int32),
        clicked=draw.random(sizes.sum()) < rate,
        history=np.zeros(0, np.int32),
        history_begin=np.zeros(impressions, np.int64),
        history_end=np.zeros(impressions, np.int64),
        articles=articles(count),
    )


def counted(log: ImpressionLog, *, delay=0, window=None, until=None) -> ContextFeatures:
    """Directly: all pairs of candidates."""
    time, article = log.candidate_time, log.candidate
    rows = []
    for t, a in zip(time, article, strict=True):
        seen = (time < t) & (time <= t - delay)
        seen &= (time >= t - window) if window is not None else True
        seen &= (time <= until) if until is not None else True
        same = seen & (article == a)
        share = log.clicked[seen].mean() if seen.any() else 0.0
        rows.append((same.sum(), log.clicked[same].sum(), share, t - time[article == a].min()))
    return ContextFeatures(*(np.array(column) for column in zip(*rows, strict=True)))


def equal(one: ContextFeatures, other: ContextFeatures, part=slice(None)) -> bool:
    names = ("shown", "clicks", "share", "age")
    return all(np.array_equal(getattr(one, name)[part], getattr(other, name)[part]) for name in names)


OPTIONS = [
    {},
    {"delay": 60},
    {"window": 120},
    {"delay": 60, "window": 120},
    {"delay": 300, "window": 60},
    {"until": 400},
    {"delay": 60, "until": 400, "window": 500},
]


@pytest.mark.parametrize("options", OPTIONS)
@given(seed=st.integers(0, 10_000))
def test_counts_are_those_of_a_direct_count(options, seed):
    log = log_of(seed)
    assert equal(ContextFeatures.of(log, **options), counted(log, **options))


@given(seed=st.integers(0, 10_000), cut=st.integers(1, 39))
def test_a_log_that_ends_earlier_has_the_same_features(seed, cut):
    log = log_of(seed)
    whole, part = ContextFeatures.of(log, delay=5), ContextFeatures.of(log.between(0, cut), delay=5)
    for name in ("shown", "clicks", "share", "age"):
        assert np.array_equal(getattr(whole, name)[: log.offsets[cut]], getattr(part, name))


@given(seed=st.integers(0, 10_000), at=st.integers(0, 39))
def test_what_happens_at_the_same_time_or_later_changes_nothing(seed, at):
    log = log_of(seed)
    later = log.candidate_time >= log.time[at]
    draw = np.random.default_rng(seed)
    clicked = np.where(later, draw.random(len(later)) < 0.5, log.clicked)
    candidate = log.candidate.copy()
    shuffled = draw.permutation(candidate[log.candidate_time > log.time[at]])
    candidate[log.candidate_time > log.time[at]] = shuffled
    before = log.candidate_time <= log.time[at]
    other = replace(log, clicked=clicked, candidate=candidate)
    one, two = ContextFeatures.of(log), ContextFeatures.of(other)
    for name in ("shown", "clicks", "share", "age"):
        assert np.array_equal(getattr(one, name)[before], getattr(two, name)[before]), name
    if clicked[later].sum() != log.clicked[later].sum():
        leak = [ContextFeatures.of(kept, future=True).clicks for kept in (log, other)]
        assert not np.array_equal(*(counts[later] for counts in leak)), "the leak sees it"


def test_the_null_world_is_chance_and_the_leak_is_not():
    """Clicks that nothing decides: only a builder that counts the future ranks better than chance."""
    online, leaky = [], []
    for seed in range(5):
        log = log_of(100 + seed, impressions=3000, count=120, days=3, rate=0.2)
        test = log.impression >= 2000
        for found, options in ((online, {"delay": 3600}), (leaky, {"future": True})):
            scores = ContextFeatures.of(log, **options).ctr()[test]
            offsets = log.offsets[2000:] - log.offsets[2000]
            found.append(np.nanmean(impression_metrics(scores, log.clicked[test], offsets)["AUC"]))
    spread = np.std(online, ddof=1) / np.sqrt(len(online))
    assert abs(np.mean(online) - 0.5) < max(4 * spread, 0.02)
    assert min(leaky) > max(online) and np.mean(leaky) > 0.55


@pytest.mark.parametrize("options", OPTIONS)
def test_questions_at_any_time_are_those_of_a_direct_count(options):
    """Of articles that were no candidates then, at times before, within and after the log."""
    log, draw = log_of(3), np.random.default_rng(3)
    article, time = draw.integers(1, 9, 60), draw.integers(-500, 1500, 60)
    asked = Feedback(log).before(article, time, **options)
    shown_at, clicked, shown = log.candidate_time, log.clicked, log.candidate
    for n, (a, t) in enumerate(zip(article, time, strict=True)):
        seen = (shown_at < t) & (shown_at <= t - options.get("delay", 0))
        seen &= shown_at >= t - options.get("window", 10**6)
        seen &= shown_at <= options.get("until", 10**6)
        assert asked.shown[n] == (seen & (shown == a)).sum()
        assert asked.clicks[n] == (seen & (shown == a) & clicked).sum()
        assert asked.share[n] == (clicked[seen].mean() if seen.any() else 0)


def test_smoothing_goes_from_the_share_to_the_rate():
    counts = ContextFeatures(np.array([0, 10, 10**9]), np.array([0, 4, 10**8]), np.full(3, 0.2), np.zeros(3))
    assert counts.ctr(10.0).tolist() == pytest.approx([0.2, 0.3, 0.1])
    assert counts.ctr(1e12)[:2].tolist() == pytest.approx([0.2, 0.2], abs=1e-9)
    assert counts.ctr(1e-9)[1] == pytest.approx(0.4)
    assert counts.popularity().tolist() == pytest.approx(np.log([1, 5, 1 + 10**8]).tolist())
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        counts.ctr(0)


def test_age_is_since_publication_or_first_appearance():
    log = log_of(1)
    unknown = ContextFeatures.of(log)
    published = np.where(np.arange(9) % 2, -1, 0)
    known = ContextFeatures.of(replace(log, articles=articles(8, published)))
    even = log.candidate % 2 == 0
    assert np.array_equal(known.age[even], log.candidate_time[even])
    assert np.array_equal(known.age[~even], unknown.age[~even]) and not unknown.age.min()
    assert known.table().shape == (len(log.candidate), len(FEATURES))
    assert (np.diff(known.freshness()[np.argsort(known.age)]) <= 0).all(), "newer is fresher"


def test_buckets_are_quantiles_of_the_training_part():
    table = np.stack([np.arange(100.0), np.repeat([0.0, 1.0], 50), -np.arange(100.0)], 1)
    shown = np.r_[0, np.ones(99, int)]
    buckets = Buckets.fit(table, shown, 4)
    ages = [-74.25, -49.5, -24.75]  # of all, those of articles that were never shown too
    assert [edges.tolist() for edges in buckets.edges] == [[25.5, 50.0, 74.5], [0.0, 1.0], ages]
    assert buckets.sizes == (5, 4, 5)
    asked = np.array([[0.0, 0.0, 0.0], [50.0, 1.0, -50.0], [-5, 2.0, -1.0], [99.0, -1.0, -99.0]])
    found = buckets(asked, np.array([1, 1, 0, 7]))
    assert found.tolist() == [[1, 2, 4], [3, 3, 2], [0, 0, 4], [4, 1, 1]]
    assert found.max(0).tolist() == [4, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": -1}, "delay must not be negative and window at least 1, got -1 and None"),
        ({"window": 0}, "got 0 and 0"),
        ({"future": True, "delay": 5}, "no delay, window or until beside it"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContextFeatures.of(log_of(0), **options)


def test_bad_buckets_are_refused():
    with pytest.raises(ValueError, match="count must be at least 2"):
        Buckets.fit(np.zeros((3, 1)), np.ones(3), 1)
    with pytest.raises(ValueError, match="nothing to cut into buckets"):
        Buckets.fit(np.zeros((3, 1)), np.zeros(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.zeros(41, np.int64)}, "impression 0 has no candidate"),
        ({"offsets": np.arange(40)}, r"offsets must be \(41,\) from 0"),
        ({"time": np.arange(40)[::-1]}, "in the order of time, and impression 1 is earlier"),
        ({"clicked": np.zeros(3, bool)}, "clicked must be"),
        ({"user": np.zeros(3)}, r"user must be \(40,\), got \(3,\)"),
        ({"history_end": np.ones(40, np.int64)}, "histories must be parts of 0..0"),
    ],
)
def test_what_is_no_log_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(log_of(0), **change)
    with pytest.raises(ValueError, match="candidate must be rows 1..8 of the articles"):
        replace(log_of(0), candidate=log_of(0).candidate + 8)


def test_the_latest_of_a_history_fill_from_the_left():
    log = replace(
        log_of(0, impressions=3),
        history=np.array([1, 2, 3, 4, 5, 6], np.int32),
        history_begin=np.array([0, 0, 2]),
        history_end=np.array([0, 2, 6]),
    )
    assert log.recent_history(np.array([2, 1, 0]), 3).tolist() == [[4, 5, 6], [1, 2, -1], [-1, -1, -1]]
    assert log_of(0).recent_history(np.array([0]), 2).tolist() == [[-1, -1]]
    assert repr(log).startswith("ImpressionLog(3 impressions")


def test_logs_follow_each_other():
    log = replace(
        log_of(2),
        history=np.array([1, 2, 3], np.int32),
        history_begin=np.zeros(40, np.int64),
        history_end=np.arange(40) % 4,
    )
    first = log.between(0, 25)
    both = first.followed_by(log.between(25, 40))
    for name in ("time", "user", "offsets", "candidate", "clicked"):
        assert np.array_equal(getattr(both, name), getattr(log, name)), name
    rows = np.arange(40)
    assert np.array_equal(both.recent_history(rows, 3), log.recent_history(rows, 3))
    with pytest.raises(ValueError, match="in the order of time"):
        log.between(25, 40).followed_by(first)
    with pytest.raises(ValueError, match="one table of articles"):
        first.followed_by(replace(log.between(25, 40), articles=articles(8)))
