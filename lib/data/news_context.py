"""What an article's past says of it when it is shown: click-through rate, popularity, freshness.

A feature of a candidate shown at time t uses events before t only: `ContextFeatures.of` counts, for each
candidate, how often its article was shown and clicked until then. The regime is part of every number:

* *online*: all feedback up to ``delay`` seconds before t,
* *frozen*: of that, what came until a fixed moment (`until`), as a service that updates once a week has it.

Impressions of the same second do not see one another. The definitions are ours: the paper's are not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lib.data.news import ImpressionLog

#: The three features, in the order of their columns.
FEATURES = ("ctr", "popularity", "freshness")


@dataclass(frozen=True, eq=False)
class ContextFeatures:
    """Counts before each candidate was shown, all (N,).

    Attributes
    ----------
    shown, clicks : int64
        Impressions and clicks of the candidate's article before.
    share : float64
        Click share of all candidates before: what a new article is expected to have; 0 at the beginning.
    age : int64
        Seconds since publication or, where that is not known, since the article was first shown.
    """

    shown: np.ndarray
    clicks: np.ndarray
    share: np.ndarray
    age: np.ndarray

    @classmethod
    def of(
        cls,
        log: ImpressionLog,
        *,
        delay: int = 0,
        window: int | None = None,
        until: int | None = None,
        future: bool = False,
    ) -> ContextFeatures:
        """Count what was before each candidate; O(N log N) time, O(N) memory.

        Parameters
        ----------
        log : ImpressionLog
        delay : int
            Seconds until feedback is known. 0: known a moment later, at the next second.
        window : int, optional
            Count the last ``window`` seconds only.
        until : int, optional
            Feedback after this time is never known (the frozen regime).
        future : bool
            Count the whole log, the candidate's own click included: the leak that a careless program has.
            For its demonstration alone.

        Raises
        ------
        ValueError
            A negative delay, a window below 1 second, or ``future`` beside a limit.
        """
        if delay < 0 or (window is not None and window < 1):
            raise ValueError(f"delay must not be negative and window at least 1, got {delay} and {window}")
        if future and (delay or window is not None or until is not None):
            raise ValueError("future counts the whole log: no delay, window or until beside it")
        time, article = log.candidate_time, log.candidate.astype(np.int64)
        last = np.minimum(time - 1, time - delay)
        if until is not None:
            last = np.minimum(last, until)
        if future:
            last = np.full_like(time, time.max(initial=0))
        first = None if window is None else time - window

        # One key orders articles, and within an article its events by time.
        origin = int(
            min(time.min(initial=0), last.min(initial=0), 0 if first is None else first.min(initial=0))
        )
        span = int(time.max(initial=0)) - origin + 2
        order = np.argsort(article * span + (time - origin), kind="stable")
        keys = (article * span + (time - origin))[order]
        clicked = np.append(0, np.cumsum(log.clicked[order]))
        begins = np.searchsorted(keys, np.arange(len(log.articles) + 1) * span)[article]

        def counts(moment: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray]:
            """How often each candidate's article was shown, and clicked, until a moment."""
            wanted = article * span + (moment - origin)
            # In the order of the keys, so that the search walks through memory.
            place = np.empty(len(wanted), np.int64)
            place[order] = np.searchsorted(keys, wanted[order], side)
            return place - begins, clicked[place] - clicked[begins]

        shown, clicks = counts(last, "right")
        if first is not None:
            shown_before, clicks_before = counts(first, "left")
            shown, clicks = shown - shown_before, clicks - clicks_before
            shown, clicks = np.maximum(shown, 0), np.where(shown > 0, clicks, 0)
        return cls(shown, clicks, _share(log, last, first), _age(log))

    def ctr(self, alpha: float = 10.0) -> np.ndarray:
        """(clicks + α·share) / (shown + α): the mean under a prior of α impressions at the common share.

        Raises
        ------
        ValueError
            α that is not positive: an article that was never shown would have none.
        """
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        return (self.clicks + alpha * self.share) / (self.shown + alpha)

    def popularity(self) -> np.ndarray:
        """log(1 + clicks)."""
        return np.log1p(self.clicks)

    def freshness(self) -> np.ndarray:
        """−log(1 + age in hours), larger for newer articles."""
        return -np.log1p(self.age / 3600)

    def table(self, alpha: float = 10.0) -> np.ndarray:
        """(N, 3) float64, the columns of `FEATURES`."""
        return np.stack([self.ctr(alpha), self.popularity(), self.freshness()], 1)


def _share(log: ImpressionLog, last: np.ndarray, first: np.ndarray | None) -> np.ndarray:
    """Click share of all candidates shown from `first` to `last`; 0 where none was."""
    # Time is sorted: candidates of all impressions until a moment are a prefix.
    clicks = np.append(0, np.cumsum(log.clicked))[log.offsets]

    def until(moment: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray]:
        place = np.searchsorted(log.time, moment, side)
        return log.offsets[place], clicks[place]

    shown, clicked = until(last, "right")
    if first is not None:
        shown_before, clicked_before = until(first, "left")
        shown, clicked = np.maximum(shown - shown_before, 0), np.maximum(clicked - clicked_before, 0)
    return np.divide(clicked, shown, out=np.zeros(len(last)), where=shown > 0)


def _age(log: ImpressionLog) -> np.ndarray:
    """Seconds since publication; where it is not known, since the article was first a candidate.

    First appearance is no look ahead: a candidate shown at t appeared at t at the latest.
    """
    time, article = log.candidate_time, log.candidate
    since = log.articles.published.copy()
    unknown = since < 0
    if unknown.any():
        appeared = np.full(len(since), np.iinfo(np.int64).max)
        np.minimum.at(appeared, article, time)
        since = np.where(unknown, appeared, since)
    return np.maximum(time - since[article], 0)


@dataclass(frozen=True, eq=False)
class Buckets:
    """Features as bucket numbers: quantiles of the training part, and one bucket for what was never shown.

    Attributes
    ----------
    edges : tuple of array
        Of each feature, ascending.
    """

    edges: tuple[np.ndarray, ...]

    @classmethod
    def fit(cls, table: np.ndarray, shown: np.ndarray, count: int = 20) -> Buckets:
        """Cut points at quantiles of the shown candidates; equal ones are merged.

        Parameters
        ----------
        table : array (N, F)
            Features of the training part: edges that saw the test would be a leak.
        shown : array (N,)
            How often each candidate's article had been shown.
        count : int
            Buckets of a feature at most, at least 2, beside that for articles never shown.

        Raises
        ------
        ValueError
            Another count or shape, or no candidate whose article had been shown.
        """
        if count < 2 or table.ndim != 2 or shown.shape != table.shape[:1]:
            raise ValueError(
                f"count must be at least 2, table (N, F) and shown (N,); got {count}, "
                f"{table.shape} and {shown.shape}"
            )
        known = table[shown > 0]
        if not len(known):
            raise ValueError("no candidate whose article had been shown before: nothing to cut into buckets")
        places = np.linspace(0, 1, count + 1)[1:-1]
        return cls(tuple(np.unique(np.quantile(column, places)) for column in known.T))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Buckets of each feature, 0 for never shown among them."""
        return tuple(len(edges) + 2 for edges in self.edges)

    def __call__(self, table: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """(N, F) features to (N, F) int64 buckets; 0 where the article was never shown before."""
        columns = [
            np.searchsorted(edges, column, "right") + 1
            for edges, column in zip(self.edges, table.T, strict=True)
        ]
        return np.where(shown[:, None] > 0, np.stack(columns, 1), 0)
