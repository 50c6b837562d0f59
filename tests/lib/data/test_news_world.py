"""The made-up news service behaves as it says, and its log is one that a service could have."""

from dataclasses import replace

import numpy as np
import pytest

from lib.data.news_context import ContextFeatures
from lib.data.news_world import DAY, NewsWorld
from lib.metrics.impressions import impression_metrics

SMALL = NewsWorld(users=60, impressions=1500, articles_per_day=60)
NULL = replace(SMALL, taste=0.0, quality=0.0, ageing=0.0)


def auc(scores, log) -> float:
    return float(np.nanmean(impression_metrics(scores, log.clicked, log.offsets)["AUC"]))


@pytest.fixture(scope="module")
def drawn():
    return SMALL.draw(0)


def test_a_seed_is_one_history(drawn):
    log, reasons = drawn
    again, same = SMALL.draw(0)
    other, _ = SMALL.draw(1)
    assert np.array_equal(again.candidate, log.candidate) and np.array_equal(same.logit, reasons.logit)
    assert not np.array_equal(other.time, log.time)


def test_what_is_shown_is_alive_and_ranked_by_nobody(drawn):
    log, _ = drawn
    age = log.candidate_time - log.articles.published[log.candidate]
    assert age.min() >= 0 and age.max() <= SMALL.alive_days * DAY
    assert np.array_equal(np.diff(log.offsets), np.full(len(log), SMALL.candidates))
    for begin, end in zip(log.offsets[:50], log.offsets[1:51], strict=True):
        assert len(set(log.candidate[begin:end])) == SMALL.candidates
        assert 0 < log.clicked[begin:end].sum() < SMALL.candidates
    place = np.tile(np.arange(SMALL.candidates), len(log))
    assert abs(auc(place, log) - 0.5) < 0.02


def test_the_history_is_what_the_reader_clicked_before(drawn):
    log, _ = drawn
    clicks = {}
    for i in range(len(log)):
        part = slice(log.offsets[i], log.offsets[i + 1])
        before = clicks.setdefault(int(log.user[i]), [])
        assert log.history[log.history_begin[i] : log.history_end[i]].tolist() == before
        before.extend(log.candidate[part][log.clicked[part]].tolist())


def test_clicks_come_as_often_as_their_logits_say():
    """Where one click in an impression is all but certain, the forced ones hardly count."""
    world = replace(SMALL, base=-0.5, impressions=4000)
    log, reasons = world.draw(3)
    logit = reasons.logit
    expected = 1 / (1 + np.exp(-logit))
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9)):
        part = (expected >= low) & (expected < high)
        error = np.sqrt((expected[part] * (1 - expected[part])).sum()) / part.sum()
        assert abs(log.clicked[part].mean() - expected[part].mean()) < 4 * error + 0.002


@pytest.mark.parametrize("knob", ["taste", "quality", "ageing"])
def test_each_reason_alone_decides(knob):
    """Only what the knob is about ranks better than chance, the true logits best of all."""
    log, reasons = replace(NULL, users=1000, **{knob: 2.0}).draw(4)  # whose tastes average out
    logit = reasons.logit
    assert np.ptp(reasons.taste - (logit if knob == "taste" else 0)) == pytest.approx(0, abs=1e-9)
    features = ContextFeatures.of(log, delay=3600)
    found = {"ctr": auc(features.ctr(), log), "freshness": auc(features.freshness(), log)}
    assert auc(logit, log) > 0.6
    if knob == "taste":
        assert max(found.values()) < 0.53
    elif knob == "quality":
        assert found["ctr"] > 0.65 and found["ctr"] > found["freshness"] + 0.1
    else:
        assert found["freshness"] == pytest.approx(auc(logit, log), abs=1e-9)


def test_nothing_decides_in_the_null_world():
    log, reasons = NULL.draw(5)
    assert np.ptp(reasons.logit) == 0
    scores = [ContextFeatures.of(log, delay=3600).ctr(), log.articles.category[log.candidate]]
    assert all(abs(auc(score, log) - 0.5) < 0.02 for score in scores)


def test_upper_places_are_preferred_and_the_log_does_not_tell_them():
    log, reasons = replace(NULL, position=2.0).draw(6)
    assert auc(reasons.logit, log) > 0.7
    assert abs(auc(np.tile(np.arange(SMALL.candidates), len(log)), log) - 0.5) < 0.02


def test_feedback_shows_the_clicked_more():
    def concentration(world):
        log, _ = world.draw(7)
        counts = np.sort(np.bincount(log.candidate))[::-1]
        return counts[: len(counts) // 20].sum() / counts.sum()

    assert concentration(replace(NULL, feedback=1.0)) > 1.2 * concentration(NULL)


def test_breaking_stories_are_clicked_while_they_break():
    world = replace(NULL, quality=2.0, breaking_share=0.1)
    log, reasons = world.draw(8)
    logit = reasons.logit
    age = log.candidate_time - log.articles.published[log.candidate]
    young = age < 3600
    assert logit[young].mean() > logit[~young].mean() + 0.1


def test_words_tell_the_topic(drawn):
    log, _ = drawn
    title, category = log.articles.title[1:], log.articles.category[1:]
    assert title.min() >= 1 and title.max() <= SMALL.words and not log.articles.title[0].any()
    half = len(title) // 2
    counts = np.stack(
        [np.bincount(title[:half][category[:half] == c].ravel(), minlength=401) for c in range(1, 11)]
    )
    score = np.log((counts + 0.1) / (counts + 0.1).sum(1, keepdims=True))[:, title[half:]].sum(-1)
    assert (score.argmax(0) + 1 == category[half:]).mean() > 0.9
    subcategory = log.articles.subcategory[1:]
    assert ((subcategory - SMALL.categories - 1) // SMALL.subcategories + 1 == category).all()
    assert len(log.articles.category_names) == SMALL.categories * 3 and len(log.articles) == 360


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": 0}, "users must be at least 1, got 0"),
        ({"days": 2}, "expected days >= 3"),
        ({"candidates": 1}, "candidates >= 2"),
        ({"breaking_share": 1.5}, "breaking_share must be in 0..1, got 1.5"),
        ({"candidates": 61}, "61 candidates are too many"),
    ],
)
def test_a_world_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_word_vectors_know_the_topics():
    """Words of one category are nearer to each other than to others; a seed is one corpus."""
    vectors = SMALL.word_vectors(0, 16)
    assert vectors.shape == (401, 16) and not vectors[0].any()
    assert (vectors[1:] ** 2).mean() == pytest.approx(1, rel=1e-5)
    assert np.array_equal(vectors, SMALL.word_vectors(0, 16))
    topics = SMALL._topics(0)[1:11]
    of = topics.argmax(0)
    sure = topics.max(0) / topics.sum(0) > 0.9
    unit = vectors[1:][sure] / np.linalg.norm(vectors[1:][sure], axis=1, keepdims=True)
    cosine, same = unit @ unit.T, of[sure][:, None] == of[sure]
    assert cosine[same].mean() > cosine[~same].mean() + 0.2
    with pytest.raises(ValueError, match=r"size must be in 1..400, the number of words, got 401"):
        SMALL.word_vectors(0, 401)
