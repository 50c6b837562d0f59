"""Contextual features on logs of real services: news that the reader has, and films as a feed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.data.mind import read_behaviors, read_news
from lib.data.news import ImpressionLog
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

#: Folders of the training and the validation part, as the sets are published.
FOLDERS = {
    "mind-small": ("MINDsmall_train", "MINDsmall_dev"),
    "mind-large": ("MINDlarge_train", "MINDlarge_dev"),
}

#: What is trained on films.
FEED_ARMS = (CONTEXT_ONLY, *CONTENT, *WITH_MODULE)

Scores = dict[tuple[str, int], pd.DataFrame]
Checkpoint = Callable[[str], Path | None]


def news_log(dataset: str, data_dir: str | Path) -> tuple[ImpressionLog, Split, list[str]]:
    """A real news log: training and validation part as one, split where the second begins.

    Counters warm up on the first day; the last tenth of the training part is for validation.

    Parameters
    ----------
    dataset
        One of `FOLDERS`.
    data_dir
        Where its two folders lie.

    Returns
    -------
    The log, the split, and what could not be read of its files.

    Raises
    ------
    FileNotFoundError, ValueError
        An unknown set; a file that is not there or not of its format.
    """
    if dataset not in FOLDERS:
        raise ValueError(f"dataset must be one of {', '.join(FOLDERS)}, got {dataset!r}")
    folders = [Path(data_dir) / name for name in FOLDERS[dataset]]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise FileNotFoundError(
            f"{dataset} is not here: its terms forbid passing it on, so ask its publisher and unpack it to "
            f"{' and '.join(missing)}"
        )
    articles, skipped = read_news([folder / "news.tsv" for folder in folders], min_word_count=2)
    users: dict[str, int] = {}
    parts = []
    for folder in folders:
        part, report = read_behaviors(folder / "behaviors.tsv", articles, users)
        parts.append(part)
        skipped = (*skipped, report)
    log = parts[0].followed_by(parts[1])
    test = len(parts[0])
    warm = int(np.searchsorted(log.time, log.time[0] + DAY))
    return log, Split(warm, int(0.9 * test), test, len(log)), [str(report) for report in skipped]


def news_scores(
    dataset: str,
    data_dir: str | Path,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    word_vectors: str,
    checkpoint: Checkpoint,
) -> tuple[Scores, list[str]]:
    """Metrics per test impression of all arms on a real news log, and what could not be read of its files.

    ``settings`` are those of `NewsComparison`; ``word_vectors`` is a file of `read_word_vectors`, or empty.
    """
    log, split, skipped = news_log(dataset, data_dir)
    size = settings["word_size"]
    vectors = read_word_vectors(word_vectors, log.articles.words, size) if word_vectors else None
    comparison = NewsComparison(log, split, word_vectors=vectors, **settings)
    return _scores(comparison, TRAINED, seeds, f"{dataset}, ", checkpoint), skipped


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
