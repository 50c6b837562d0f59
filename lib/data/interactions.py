"""Interaction logs: who took which item when, filtered, renumbered and sorted for sequential recommendation.

The preprocessing is MEANTIME's (Cho et al., RecSys 2020; the authors' code, commit a9ca2e7), which is the
usual one of the field, with three deviations that make it reproducible. Each is a trap in the original:

* **Ties.** MovieLens stamps record rating sessions, so half of all consecutive events of a user share one
  second. The authors sort with an unstable sort, so which event is "the last" depends on the sorting routine.
  Here the order is (timestamp, original order), stably.
* **Numbering.** The authors number users and items in the order of a Python `set`, which for string ids
  changes with every process. Here ids are sorted first.
* **Days.** The authors take the difference of *local* calendar dates, so the table of days depends on the
  machine's time zone. Here days are UTC.

Splits, windows and batches are in `lib.data.sequences`; negatives are in `lib.data.negatives`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pandas.api.types import is_numeric_dtype

SECONDS_PER_DAY = 86_400
COLUMNS = ("user", "item", "rating", "timestamp")


@dataclass(frozen=True, eq=False, repr=False)
class InteractionLog:
    """All events of all users, sorted by (user, timestamp, original order). Arrays are read-only int64.

    Attributes
    ----------
    user : array (E,)
        Users, numbered 1..U.
    item : array (E,)
        Items, numbered 1..V; 0 is left free for padding.
    timestamp : array (E,)
        Unix seconds, UTC.
    day : array (E,)
        UTC day of the event, counted from 0 at the first day of the log.
    offsets : array (U+2,)
        Events of user u are `offsets[u]:offsets[u+1]`; `offsets[0] == offsets[1] == 0`.
    item_counts : array (V+1,)
        Events of each item in the whole log, held-out events included; `item_counts[0] == 0`.
    user_ids : array (U,)
        Original id of user u at `u-1`, in ascending order.
    item_ids : array (V,)
        Original id of item v at `v-1`, in ascending order.
    """

    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    day: np.ndarray
    offsets: np.ndarray
    item_counts: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        min_rating: float = 0.0,
        min_item_count: int = 5,
        min_user_count: int = 5,
    ) -> InteractionLog:
        """Filter, renumber and sort a table of ratings.

        Parameters
        ----------
        frame : DataFrame
            Columns user, item (integers or strings), rating, timestamp (Unix seconds, 1970 to 2106).
        min_rating : float
            Keep ratings of at least this. 0 keeps all: every rating is an interaction.
        min_item_count, min_user_count : int
            Drop items with fewer events, **then** users with fewer remaining events. One pass, as the authors
            do, not an iterated 5-core: an item may end below its minimum again.

        Raises
        ------
        ValueError
            If columns are missing, ids or ratings are missing or of another kind, time stamps are not whole
            seconds from 1970 to 2106 (the message names the row by its label), or no event is left.

        Notes
        -----
        The same (user, item) pair may occur more than once; all its events are kept, as in the authors' code.
        """
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise ValueError(f"expected columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
        if len(frame) == 0:
            raise ValueError("the interaction log is empty: expected at least one rating")
        for name in ("user", "item"):
            _require_ids(frame[name])
        _refuse(frame["rating"], ~np.isfinite(_numbers(frame["rating"])), "a finite number")
        _whole_seconds(frame["timestamp"])
        kept = frame.loc[frame["rating"] >= min_rating, list(COLUMNS)]
        kept = kept[kept.groupby("item")["item"].transform("size") >= min_item_count]
        kept = kept[kept.groupby("user")["user"].transform("size") >= min_user_count]
        if len(kept) == 0:
            raise ValueError(
                f"no event left of {len(frame)}: rating >= {min_rating}, {min_item_count} events per item "
                f"and {min_user_count} per user; lower these minima"
            )
        timestamp = _whole_seconds(kept["timestamp"])
        user, user_ids = pd.factorize(kept["user"].to_numpy(), sort=True)
        item, item_ids = pd.factorize(kept["item"].to_numpy(), sort=True)
        order = np.lexsort((timestamp, user))  # stable: ties keep the order of the file
        user, item, timestamp = user[order] + 1, item[order] + 1, timestamp[order]
        day = timestamp // SECONDS_PER_DAY
        arrays = {
            "user": user.astype(np.int64),
            "item": item.astype(np.int64),
            "timestamp": timestamp,
            "day": day - day.min(),
            "offsets": np.searchsorted(user, np.arange(len(user_ids) + 2), side="left").astype(np.int64),
            "item_counts": np.bincount(item, minlength=len(item_ids) + 1).astype(np.int64),
            "user_ids": np.asarray(user_ids),
            "item_ids": np.asarray(item_ids),
        }
        for array in arrays.values():
            array.flags.writeable = False
        return cls(**arrays)

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items V."""
        return len(self.item_ids)

    @property
    def num_events(self) -> int:
        """Number of events E."""
        return len(self.user)

    @property
    def num_days(self) -> int:
        """Days from the first to the last one, both included: the rows of a table of days."""
        return int(self.day.max()) + 1

    @property
    def user_counts(self) -> np.ndarray:
        """(U,) events of each user, at `u-1`."""
        return np.diff(self.offsets[1:])

    @property
    def gaps(self) -> np.ndarray:
        """(E-U,) seconds between consecutive events of one user, users one after the other."""
        same_user = self.user[1:] == self.user[:-1]
        return np.diff(self.timestamp)[same_user]

    @property
    def target_tied(self) -> np.ndarray:
        """(U,) True where a user's last two events share a time stamp, so that only the file's order says
        which one is the test item. Users with one event count as not tied."""
        last = self.offsets[2:] - 1
        return (self.user_counts > 1) & (self.timestamp[last] == self.timestamp[np.maximum(last - 1, 0)])

    def events(self, user: int) -> slice:
        """Where the events of `user` (1..U) lie in the arrays, oldest first."""
        if not 1 <= user <= self.num_users:
            raise ValueError(f"user must be in 1..{self.num_users}, got {user}")
        return slice(int(self.offsets[user]), int(self.offsets[user + 1]))

    def require_events(self, minimum: int, purpose: str) -> None:
        """Raise a ValueError that names the first user with fewer than `minimum` events."""
        short = np.flatnonzero(self.user_counts < minimum)
        if len(short):
            user = int(short[0]) + 1
            raise ValueError(
                f"{purpose} needs at least {minimum} events per user, but user {user} "
                f"(id {self.user_ids[user - 1]}) has {self.user_counts[user - 1]}; "
                f"build the log with min_user_count={minimum} or more"
            )

    def restamped(self, timestamp: np.ndarray) -> InteractionLog:
        """The same events in the same order with other time stamps, for experiments on what stamps are worth.

        Parameters
        ----------
        timestamp : array (E,)
            Whole seconds, not negative. A user's stamps need not ascend: the order stays that of the events.

        Raises
        ------
        ValueError
            Another number of stamps, or stamps that are not whole seconds.
        """
        timestamp = np.asarray(timestamp)
        if timestamp.shape != self.timestamp.shape:
            raise ValueError(f"expected {self.num_events} time stamps, got an array {timestamp.shape}")
        timestamp = _whole_seconds(pd.Series(timestamp))
        day = timestamp // SECONDS_PER_DAY
        day -= day.min()
        for array in (timestamp, day):
            array.flags.writeable = False
        return replace(self, timestamp=timestamp, day=day)

    def with_shuffled_stamps(self, seed: int) -> InteractionLog:
        """Every user's time stamps dealt out anew among that user's events, whose order stays."""
        chance = np.random.default_rng(seed).random(self.num_events)
        return self.restamped(self.timestamp[np.lexsort((chance, self.user))])

    def with_ranks_for_stamps(self) -> InteractionLog:
        """Every user's events stamped 0, 1, 2 … seconds: the order, and nothing else that a clock could say.

        All of them lie on one day.
        """
        return self.restamped(np.arange(self.num_events) - self.offsets[self.user])

    def __repr__(self) -> str:
        return (
            f"InteractionLog({self.num_users} users, {self.num_items} items, {self.num_events} events, "
            f"{self.num_days} days)"
        )


def _require_ids(ids: pd.Series) -> None:
    """Refuse ids that are missing, blank, or of two kinds, which have no common order."""
    _refuse(ids, ids.isna(), "no missing ids")
    kind = pd.api.types.infer_dtype(np.asarray(ids))
    if kind == "string":
        _refuse(ids, ids.str.strip() == "", "no missing ids")
    elif kind not in ("integer", "floating"):
        other = [type(one) is not type(ids.iloc[0]) for one in ids]
        _refuse(ids, other if any(other) else ids.notna(), "ids that are all integers or all strings")


def _whole_seconds(timestamp: pd.Series) -> np.ndarray:
    """Time stamps as int64, or a ValueError for anything that is not a whole second from 1970 to 2106."""
    seconds = _numbers(timestamp)
    whole = (seconds >= 0) & (seconds < 2**32) & (seconds == np.floor(seconds))
    _refuse(timestamp, ~whole, "time stamps in whole Unix seconds from 1970 to 2106 (not in milliseconds)")
    return seconds.astype(np.int64)


def _numbers(column: pd.Series) -> np.ndarray:
    """A column as float64, NaN where it holds no number."""
    if is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.array([one if isinstance(one, Real) else np.nan for one in column], dtype=np.float64)


def _refuse(column: pd.Series, wrong: ArrayLike, expected: str) -> None:
    """A ValueError that names the first row where a column is wrong, by its label."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        value, row = column.iloc[rows[0]], column.index[rows[0]]
        raise ValueError(f"expected {expected}, got {column.name} {str(value)[:40]!r} in row {row}")
