"""Impression logs of a news service: who was shown which articles when, and what was clicked.

One typed log for every data set, as flat arrays with offsets, so that a log of 80 million candidates fits in
memory. MIND is read by `lib.data.mind`, a service of known behaviour is in `lib.data.news_world`, and what an
article's past says of it in `lib.data.news_context`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, eq=False, repr=False)
class Articles:
    """What is known of each article; row 0 stands for none.

    Attributes
    ----------
    ids : array (A+1,) of str
        Original names.
    category, subcategory : array (A+1,) int64
        From 1, in the order of `category_names`; 0 where there is none.
    title, abstract : array (A+1, L) int32
        Word indices from 1, 0 for padding.
    published : array (A+1,) int64
        Unix seconds; −1 where it is not known.
    category_names, words : tuple of str
        Names of the indices from 1.
    """

    ids: np.ndarray
    category: np.ndarray
    subcategory: np.ndarray
    title: np.ndarray
    abstract: np.ndarray
    published: np.ndarray
    category_names: tuple[str, ...]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and len(value) != len(self.ids):
                raise ValueError(f"{field.name} must have {len(self.ids)} rows, got {len(value)}")

    def __len__(self) -> int:
        """Articles, without the row for none."""
        return len(self.ids) - 1

    def __repr__(self) -> str:
        return f"Articles({len(self)}, {len(self.category_names)} categories, {len(self.words)} words)"


@dataclass(frozen=True, eq=False, repr=False)
class ImpressionLog:
    """Impressions in the order of time; of one second, in the order of the source.

    Attributes
    ----------
    time : array (I,) int64
        Seconds; Unix, or local to the service where its log says no time zone.
    user : array (I,) int64
        From 1.
    offsets : array (I+1,) int64
        Candidates of impression i are ``offsets[i]:offsets[i+1]``.
    candidate : array (N,) int32
        Rows of `articles`.
    clicked : array (N,) bool
        Which candidates were clicked.
    history : array (M,) int32
        Rows of `articles`, a user's clicks oldest first.
    history_begin, history_end : array (I,) int64
        The clicks before impression i are ``history[history_begin[i]:history_end[i]]``; parts may overlap.
    articles : Articles
        What was shown.
    """

    time: np.ndarray
    user: np.ndarray
    offsets: np.ndarray
    candidate: np.ndarray
    clicked: np.ndarray
    history: np.ndarray
    history_begin: np.ndarray
    history_end: np.ndarray
    articles: Articles

    def __post_init__(self) -> None:
        """Refuse what no impression log is; ValueError says what was expected and what came."""
        if len(self.offsets) != len(self) + 1 or self.offsets[0] != 0:
            raise ValueError(f"offsets must be ({len(self) + 1},) from 0, got {self.offsets.shape}")
        if (np.diff(self.offsets) < 1).any():
            i = int(np.argmax(np.diff(self.offsets) < 1))
            raise ValueError(f"impression {i} has no candidate")
        if (np.diff(self.time) < 0).any():
            i = int(np.argmax(np.diff(self.time) < 0)) + 1
            raise ValueError(f"impressions must be in the order of time, and impression {i} is earlier")
        shapes = {"candidate": self.offsets[-1], "clicked": self.offsets[-1]}
        shapes |= dict.fromkeys(("user", "history_begin", "history_end"), len(self))
        for name, length in shapes.items():
            if getattr(self, name).shape != (length,):
                raise ValueError(f"{name} must be ({length},), got {getattr(self, name).shape}")
        if self.clicked.dtype != np.bool_:
            raise ValueError(f"clicked must be bool, got {self.clicked.dtype}")
        for name in ("candidate", "history"):
            rows = getattr(self, name)
            if len(rows) and not 1 <= rows.min() <= rows.max() <= len(self.articles):
                raise ValueError(f"{name} must be rows 1..{len(self.articles)} of the articles")
        begin, end = self.history_begin, self.history_end
        if (begin < 0).any() or (end < begin).any() or (end > len(self.history)).any():
            raise ValueError(f"histories must be parts of 0..{len(self.history)}, begin before end")

    def __len__(self) -> int:
        """Impressions."""
        return len(self.time)

    def __repr__(self) -> str:
        clicks = int(self.clicked.sum())
        return f"ImpressionLog({len(self)} impressions, {len(self.candidate)} candidates, {clicks} clicks)"

    @property
    def impression(self) -> np.ndarray:
        """Of each candidate, (N,) int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def candidate_time(self) -> np.ndarray:
        """When each candidate was shown, (N,) int64."""
        return np.repeat(self.time, np.diff(self.offsets))

    def between(self, first: int, last: int) -> ImpressionLog:
        """Impressions ``first`` to before ``last``, with all articles."""
        begin, end = self.offsets[first], self.offsets[last]
        return ImpressionLog(
            time=self.time[first:last],
            user=self.user[first:last],
            offsets=self.offsets[first : last + 1] - begin,
            candidate=self.candidate[begin:end],
            clicked=self.clicked[begin:end],
            history=self.history,
            history_begin=self.history_begin[first:last],
            history_end=self.history_end[first:last],
            articles=self.articles,
        )

    def followed_by(self, later: ImpressionLog) -> ImpressionLog:
        """This log and one of the same articles that begins where it ends: a service's next days.

        Raises
        ------
        ValueError
            Other articles, or an impression that is earlier than this log's last.
        """
        if later.articles is not self.articles:
            raise ValueError("logs that follow each other need one table of articles")
        both = {
            name: np.concatenate([getattr(self, name), getattr(later, name)])
            for name in ("time", "user", "candidate", "clicked", "history")
        }
        for name in ("history_begin", "history_end"):
            both[name] = np.concatenate([getattr(self, name), getattr(later, name) + len(self.history)])
        offsets = np.concatenate([self.offsets, later.offsets[1:] + self.offsets[-1]])
        return ImpressionLog(offsets=offsets, articles=self.articles, **both)

    def recent_history(self, impressions: np.ndarray, length: int) -> np.ndarray:
        """The latest ``length`` articles clicked before each impression, oldest first, −1 where none is.

        Parameters
        ----------
        impressions : array (B,) int64
        length : int

        Returns
        -------
        array (B, length) int64
        """
        end = self.history_end[impressions]
        begin = np.maximum(self.history_begin[impressions], end - length)
        places = begin[:, None] + np.arange(length)
        there = places < end[:, None]
        if not len(self.history):
            return np.full(places.shape, -1)
        return np.where(there, self.history[np.minimum(places, len(self.history) - 1)], -1)
