"""Contextual features on logs of real services: news that the reader has, and films as a feed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.data.news_sets import NewsSet
from lib.data.news_world import DAY
from lib.data.rating_feed import ML_100K_FILMS, rating_feed
from lib.data.word_vectors import read_word_vectors
from lib.experiments.news_context import (
    AFFINITY,
    CONTENT,
    CONTEXT_ONLY,
    OVERLAP,
    RULES,
    TRAINED,
    WITH_MODULE,
    NewsComparison,
    Split,
)

#: What is trained on films.
FEED_ARMS = (CONTEXT_ONLY, *CONTENT, *WITH_MODULE)

Scores = dict[tuple[str, int], pd.DataFrame]
Checkpoint = Callable[[str], Path | None]


def news_scores(
    news: NewsSet,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    word_vectors: str,
    checkpoint: Checkpoint,
) -> Scores:
    """Metrics per test impression of all arms on a real news log.

    Counters warm up on the first day, the last tenth of the training part is for validation, and the set's
    validation part is the test.

    Parameters
    ----------
    news
        Of `lib.data.news_sets.load_news`.
    seeds
        A training of each arm per seed.
    settings
        Those of `NewsComparison`.
    word_vectors
        A file of `lib.data.word_vectors.read_word_vectors`, or empty.
    checkpoint
        File from which the training of a name continues, or None.
    """
    warm = int(np.searchsorted(news.log.time, news.log.time[0] + DAY))
    split = Split(warm, int(0.9 * news.test), news.test, len(news.log))
    size = settings["word_size"]
    vectors = read_word_vectors(word_vectors, news.log.articles.words, size) if word_vectors else None
    comparison = NewsComparison(news.log, split, word_vectors=vectors, **settings)
    return _scores(comparison, TRAINED, seeds, f"{news.name}, ", checkpoint)


def film_scores(
    data_dir: str | Path,
    impressions: int,
    feedback: float,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    checkpoint: Checkpoint,
) -> Scores:
    """Metrics per test impression of `FEED_ARMS` on MovieLens-100K as a feed.

    Parameters
    ----------
    data_dir
        Where downloaded data lie.
    impressions
        The latest of the feed that are used; counters warm up on the first eighth.
    feedback
        How much films are shown as they are rated, see `lib.data.rating_feed.rating_feed`; the drawing is the
        same for all seeds, so that these are scored on the same impressions.
    seeds, settings, checkpoint
        As `news_scores`.
    """
    log = rating_feed(*ML_100K_FILMS.load(data_dir), feedback=feedback, seed=0)
    log = log.between(max(0, len(log) - impressions), len(log))
    comparison = NewsComparison(
        log, Split.by_shares(log, warm=0.125, validation=0.075, test=0.15), **settings
    )
    return _scores(comparison, FEED_ARMS, seeds, f"films, feedback {feedback:g}, ", checkpoint)


def _scores(
    comparison: NewsComparison, arms: Sequence[str], seeds: Sequence[int], prefix: str, checkpoint: Checkpoint
) -> Scores:
    """Of the features themselves and of content without a network once, of trained arms with each seed."""
    scores = {(rule, seeds[0]): comparison.test_rule(rule) for rule in (*RULES, AFFINITY, OVERLAP)}
    for arm in arms:
        for seed in seeds:
            model, _ = comparison.train(arm, seed, checkpoint(f"{prefix}{arm}, seed {seed}"))
            scores[arm, seed] = comparison.test(model, seed)
    return scores
