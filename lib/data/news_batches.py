"""Batches of impressions for news recommenders: each names its distinct articles once.

A model's batch has a row for each article that is a candidate or in a history, however often it occurs, and
indices into these rows (`lib.models.recommenders.news`). For a test all articles of a log are one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor

from lib.data.news import Articles, ImpressionLog
from lib.data.news_context import ContextFeatures
from lib.streams import stream_seed

Batch = dict[str, Tensor]

#: What a model may read of an article.
READ = ("title", "abstract", "category", "subcategory")


def article_rows(articles: Articles, rows: np.ndarray) -> Batch:
    """Text and categories of some articles, a row each."""
    return {name: torch.from_numpy(getattr(articles, name)[rows].astype(np.int64)) for name in READ}


@dataclass(frozen=True, eq=False)
class CandidateContext:
    """What is known of a log's candidates beside their articles, aligned with ``log.candidate``.

    Attributes
    ----------
    buckets : array (N, F) int64
        Of `lib.data.news_context.Buckets`.
    features : ContextFeatures
        Of the same candidates.
    of_history : callable
        Takes articles (B, H), −1 where there is none, and times (B, 1); returns click-through rates (B, H).
    alpha : float
        Of the smoothed click-through rate.
    ctr : array (N,) float64
        That rate of each candidate; made from the others.
    """

    buckets: np.ndarray
    features: ContextFeatures
    of_history: Callable[[np.ndarray, np.ndarray], np.ndarray]
    alpha: float = 10.0
    ctr: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ctr", self.features.ctr(self.alpha))


@dataclass(frozen=True, eq=False)
class NewsBatches:
    """Makes batches of a log.

    Attributes
    ----------
    log : ImpressionLog
    context : CandidateContext
    history_length : int
        A user's latest clicks that a model sees.
    negatives : int
        K: unclicked candidates of the same impression beside each clicked one in training. Where an
        impression has fewer, places stay empty (−1); recommenders-team/recommenders fills them with article
        0, yusanshi/news-recommendation leaves such clicks out.
    batch_size : int
        Clicks, or impressions in tests.
    seed : int
        Of the order and the negatives.

    Raises
    ------
    ValueError
        Sizes below 1, or a context of another log.
    """

    log: ImpressionLog
    context: CandidateContext
    _: KW_ONLY
    history_length: int
    negatives: int = 4
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("history_length", "negatives", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.context.buckets) != len(self.log.candidate):
            raise ValueError(
                f"the context is of {len(self.context.buckets)} candidates, "
                f"the log has {len(self.log.candidate)}"
            )

    def training(self, first: int, last: int) -> Callable[[int], Batch]:
        """Batches by step of the impressions ``first`` to before ``last``, a row a click, shuffled.

        The clicked candidate is in column 0. Every epoch has an order and negatives of its own; the last
        batch of an epoch is filled up from the next. Impressions without an unclicked candidate teach nothing
        and are left out.

        Raises
        ------
        ValueError
            No impression has both a clicked and an unclicked candidate.
        """
        log, begin = self.log, self.log.offsets[first]
        clicked = log.clicked[begin : log.offsets[last]]
        impression = np.repeat(np.arange(first, last), np.diff(log.offsets[first : last + 1]))
        absent = np.bincount(impression[~clicked], minlength=last)
        clicks = np.flatnonzero(clicked & (absent[impression] > 0)) + begin
        of = impression[clicks - begin]
        if not len(clicks):
            raise ValueError(
                f"impressions {first} to {last}: none has both a clicked and an unclicked candidate"
            )

        def batch(step: int) -> Batch:
            places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            epochs, place = np.divmod(places, len(clicks))
            chosen = np.concatenate(
                [
                    _order(len(clicks), self.seed, int(epoch))[place[epochs == epoch]]
                    for epoch in np.unique(epochs)
                ]
            )
            draw = np.random.default_rng(stream_seed(self.seed, "negatives", step))
            impressions, positive = of[chosen], clicks[chosen]
            columns = self._candidates(impressions)
            unclicked = (columns >= 0) & ~log.clicked[columns.clip(min=0)]
            # The K with the smallest random keys; clicked ones and empty places have the largest.
            keys = np.where(unclicked, draw.random(columns.shape), 2.0)
            keys = np.pad(keys, ((0, 0), (0, self.negatives)), constant_values=2.0)
            columns = np.pad(columns, ((0, 0), (0, self.negatives)), constant_values=-1)
            best = np.argsort(keys, 1)[:, : self.negatives]
            drawn = np.where(np.take_along_axis(keys, best, 1) < 2, np.take_along_axis(columns, best, 1), -1)
            return self._batch(impressions, np.concatenate([positive[:, None], drawn], 1))

        return batch

    def testing(self, first: int, last: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Impressions in order with all their candidates; rows of the articles are those of the log.

        Yields
        ------
        array (B, C) int64
            Places of the scores in ``log.candidate``, −1 where there is none.
        dict
            A batch without articles.
        """
        for begin in range(first, last, self.batch_size):
            impressions = np.arange(begin, min(begin + self.batch_size, last))
            columns = self._candidates(impressions)
            yield columns, self._of_impressions(impressions, columns)

    def articles(self, batch_size: int = 4096) -> Iterator[Batch]:
        """All articles of the log in order, row 0 for none among them."""
        rows = np.arange(len(self.log.articles) + 1)
        for begin in range(0, len(rows), batch_size):
            yield article_rows(self.log.articles, rows[begin : begin + batch_size])

    def _candidates(self, impressions: np.ndarray) -> np.ndarray:
        """Places of all candidates of some impressions, (B, C); −1 behind an impression's last."""
        begin, end = self.log.offsets[impressions], self.log.offsets[impressions + 1]
        columns = begin[:, None] + np.arange((end - begin).max())
        return np.where(columns < end[:, None], columns, -1)

    def _of_impressions(self, impressions: np.ndarray, columns: np.ndarray) -> Batch:
        """What is known of users and candidates, by the rows of the log's articles."""
        log, context, there = self.log, self.context, columns >= 0
        place = columns.clip(min=0)
        history = log.recent_history(impressions, self.history_length)
        age = np.where(there, context.features.age[place] / 3600, 0.0)
        rates = context.of_history(history, log.time[impressions][:, None])
        return {
            "candidates": torch.from_numpy(np.where(there, log.candidate[place].astype(np.int64), -1)),
            "history": torch.from_numpy(history.astype(np.int64)),
            "user": torch.from_numpy(log.user[impressions].astype(np.int64)),
            "context": torch.from_numpy(np.where(there[..., None], context.buckets[place], 0)),
            "ctr": torch.from_numpy(np.where(there, context.ctr[place], 0.0)).float(),
            "age": torch.from_numpy(age).float(),
            "history_ctr": torch.from_numpy(rates).float(),
        }

    def _batch(self, impressions: np.ndarray, columns: np.ndarray) -> Batch:
        """With its distinct articles, a row each."""
        batch = self._of_impressions(impressions, columns)
        named = torch.cat([batch["candidates"].flatten(), batch["history"].flatten()])
        rows, places = torch.unique(named, return_inverse=True)  # −1 first, where there is one
        if rows[0] < 0:
            rows, places = rows[1:], places - 1
        candidates, history = places.split([batch["candidates"].numel(), batch["history"].numel()])
        batch["candidates"] = candidates.view_as(batch["candidates"])
        batch["history"] = history.view_as(batch["history"])
        return batch | article_rows(self.log.articles, rows.numpy())


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Of the clicks in an epoch."""
    return np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(count)
