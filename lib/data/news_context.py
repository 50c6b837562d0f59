"""What an article's past says of it when it is shown: click-through rate, popularity, freshness.

A feature of a candidate shown at time t uses events before t only: `ContextFeatures.of` counts, for each
candidate, how often its article was shown and clicked until then. The regime is part of every number:

* *online*: all feedback up to ``delay`` seconds before t,
* *frozen*: of that, what came until a fixed moment (`until`), as a service that updates once a week has it.

Impressions of the same second do not see one another. The definitions are ours: the paper's are not known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    def of(cls, log: ImpressionLog, *, future: bool = False, **limits: int | None) -> ContextFeatures:
        """Count what was before each candidate of a log; O(N log N) time, O(N) memory.

        Parameters
        ----------
        log : ImpressionLog
        future : bool
            Count the whole log, the candidate's own click included: the leak that a careless program has.
            For its demonstration alone.
        **limits
            ``delay``, ``window`` and ``until`` of `Feedback.before`.

        Raises
        ------
        ValueError
            As `Feedback.before`, or ``future`` beside a limit.
        """
        if future and limits:
            raise ValueError("future counts the whole log: no delay, window or until beside it")
        feedback, time = Feedback(log), log.candidate_time
        if future:
            end = np.full_like(time, time.max(initial=0) + 1)
            return replace(feedback.before(log.candidate, end), age=feedback.age(log.candidate, time))
        return feedback.before(log.candidate, time, **limits)

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


class Feedback:
    """All feedback of a log, in the order of articles and time, to be counted until any moment.

    O(N log N) time and O(N) memory for N candidates; a question takes O(log N).
    """

    def __init__(self, log: ImpressionLog) -> None:
        time, article = log.candidate_time, log.candidate.astype(np.int64)
        self.log = log
        # One key orders articles, and within an article its events by time.
        self.origin, self.last = int(time.min(initial=0)) - 1, int(time.max(initial=0))
        keys = self._keys(article, time)
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self.clicked = np.append(0, np.cumsum(log.clicked[order]))
        self.clicks_until = np.append(0, np.cumsum(log.clicked))[log.offsets]
        self.since = log.articles.published.copy()
        if (unknown := self.since < 0).any():
            appeared = np.full(len(self.since), np.iinfo(np.int64).max)
            np.minimum.at(appeared, article, time)
            self.since = np.where(unknown, appeared, self.since)

    def before(
        self,
        article: np.ndarray,
        time: np.ndarray,
        *,
        delay: int = 0,
        window: int | None = None,
        until: int | None = None,
    ) -> ContextFeatures:
        """What was known of articles at moments of time.

        Parameters
        ----------
        article : array (N,) int
            Rows of the log's articles.
        time : array (N,) int64
            As the log's.
        delay : int
            Seconds until feedback is known. 0: known a moment later, at the next second.
        window : int, optional
            Count the last ``window`` seconds only.
        until : int, optional
            Feedback after this time is never known (the frozen regime).

        Raises
        ------
        ValueError
            A negative delay, or a window below 1 second.
        """
        if delay < 0 or (window is not None and window < 1):
            raise ValueError(f"delay must not be negative and window at least 1, got {delay} and {window}")
        last = np.minimum(time - 1, time - delay)
        if until is not None:
            last = np.minimum(last, until)
        shown, clicks = self._of_article(article, last, "right")
        total, clicked = self._of_all(last, "right")
        first = np.full_like(time, self.origin) if window is None else time - window
        for counts, earlier in (
            ((shown, clicks), self._of_article(article, first, "left")),
            ((total, clicked), self._of_all(first, "left")),
        ):
            for count, less in zip(counts, earlier, strict=True):
                np.maximum(np.subtract(count, less, out=count), 0, out=count)
        # Where the window begins after what is known ends, clicks would be a difference of other events.
        clicks = np.where(shown > 0, clicks, 0)
        share = np.divide(clicked, total, out=np.zeros(len(time)), where=total > 0)
        return ContextFeatures(shown, clicks, share, self.age(article, time))

    def age(self, article: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Seconds since publication; where it is not known, since the article was first a candidate.

        First appearance is no look ahead: a candidate shown at t appeared at t at the latest.
        """
        return np.maximum(time - self.since[article], 0)

    def _keys(self, article: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Of moments; all before the log's first event are one, and all after its last."""
        span = self.last - self.origin + 2
        return article.astype(np.int64) * span + (np.clip(time, self.origin, self.last + 1) - self.origin)

    def _of_article(
        self, article: np.ndarray, moment: np.ndarray, side: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """How often each article was shown, and clicked, until a moment."""
        wanted = self._keys(article, moment)
        begins = np.searchsorted(
            self.keys, self._keys(np.arange(len(self.since)), np.full(len(self.since), self.origin))
        )[article]
        order = np.argsort(wanted)  # so that the search walks through memory
        place = np.empty(len(wanted), np.int64)
        place[order] = np.searchsorted(self.keys, wanted[order], side)
        return place - begins, self.clicked[place] - self.clicked[begins]

    def _of_all(self, moment: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Candidates of all articles shown until a moment, and their clicks."""
        place = np.searchsorted(self.log.time, moment, side)  # time is sorted: they are a prefix
        return self.log.offsets[place].copy(), self.clicks_until[place].copy()


@dataclass(frozen=True, eq=False)
class Buckets:
    """Features as bucket numbers: quantiles of the training part, and one bucket for what was never shown.

    An article's age is known also where nobody has seen it: freshness has no such bucket in use.

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
        if not (shown > 0).any():
            raise ValueError("no candidate whose article had been shown before: nothing to cut into buckets")
        places = np.linspace(0, 1, count + 1)[1:-1]
        known = [table[_known(place, shown), place] for place in range(table.shape[1])]
        return cls(tuple(np.unique(np.quantile(column, places)) for column in known))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Buckets of each feature, 0 for never shown among them."""
        return tuple(len(edges) + 2 for edges in self.edges)

    def __call__(self, table: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """(N, F) features to (N, F) int64 buckets; 0 for counts of an article that was never shown before."""
        columns = [
            np.where(_known(place, shown), np.searchsorted(edges, column, "right") + 1, 0)
            for place, (edges, column) in enumerate(zip(self.edges, table.T, strict=True))
        ]
        return np.stack(columns, 1)


def _known(place: int, shown: np.ndarray) -> np.ndarray:
    """Where the feature of this column says something: an age always, a count once there was one."""
    return np.ones(len(shown), bool) if FEATURES[place] == "freshness" else shown > 0
