"""Negatives: items that a user is taken not to want, for training and for ranking against.

Two protocols of MEANTIME's authors (their code, commit a9ca2e7) and the fairer alternatives. What is excluded
decides what leaks, so each function says it:

* `sample_negatives` draws what the target of the evaluation is ranked against, once per user.
* `TrainingNegatives` draws one negative per training position. The authors' pool never holds an item of the
  user's *future*, so held-out targets are the only untouched items that are never pushed down: a mild leak in
  favour of the models trained with it.
* `history_mask` marks what a full ranking leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lib.data.interactions import InteractionLog

_CELLS = 4_000_000  # cells of a (users, items) table worked on at once, about 32 MB per float64 array


def sample_negatives(
    log: InteractionLog, *, count: int = 100, distribution: str = "popular", seed: int = 98765
) -> torch.Tensor:
    """Draw `count` negatives per user without replacement, once, for validation and test alike.

    Every item that the user ever interacted with is excluded, validation and test items included.

    Parameters
    ----------
    log : InteractionLog
    count : int
        Negatives per user, at least 1.
    distribution : {"popular", "uniform"}
        "popular" draws with probability proportional to the item's events in the *whole* log (training,
        validation and test), as the authors do; "uniform" draws all unseen items alike. Metrics from popular
        negatives are much lower and are no consistent estimate of those of the full ranking (Krichene &
        Rendle, KDD 2020).
    seed : int
        Of the draw; 98765 is the authors' (another generator, so not their draws).

    Returns
    -------
    Tensor (U, count) of int64
        Row u-1 belongs to user u, columns in the order of drawing, so that the first m columns are themselves
        a sample of m.

    Raises
    ------
    ValueError
        If a user has fewer than `count` unseen items, or the distribution is unknown.

    Notes
    -----
    Weighted sampling without replacement by exponential keys (Efraimidis & Spirakis 2006): the smallest of
    E_v / weight_v, with E_v standard exponential, are distributed exactly as successive draws. O(U V) time,
    in blocks of users.
    """
    if distribution not in ("popular", "uniform"):
        raise ValueError(f'distribution must be "popular" or "uniform", got {distribution!r}')
    weights = log.item_counts[1:].astype(np.float64) if distribution == "popular" else np.ones(log.num_items)
    return torch.from_numpy(_draw_unseen(log, weights, count, np.random.default_rng(seed)))


class TrainingNegatives:
    """One negative item for each training position of a user.

    Parameters
    ----------
    log : InteractionLog
    kind : {"unseen", "pool"}
        "unseen" draws afresh and uniformly among the items outside the user's *training* events, as the
        original SASRec program does (Kang & McAuley, ICDM 2018): the held-out items can be drawn, since
        training must not know them. "pool" is MEANTIME's authors' way: a fixed pool per user, drawn uniformly
        without replacement from the items that the user never touched, *held-out items excluded* (the leak
        above).
    pool_size : int
        Items in each pool, at least 1; the authors use 1000. Needs 4 bytes x U x pool_size.
    pool_seed : int
        Of the pools; 12345 is the authors'.

    Raises
    ------
    ValueError
        If a user has too few unseen items: at least 1 for "unseen", `pool_size` for "pool".
    """

    def __init__(
        self, log: InteractionLog, kind: str = "unseen", *, pool_size: int = 1000, pool_seed: int = 12345
    ) -> None:
        if kind not in ("unseen", "pool"):
            raise ValueError(f'negatives must be "unseen" or "pool", got {kind!r}')
        self.kind = kind
        if kind == "pool":
            rng = np.random.default_rng(pool_seed)
            self._pool = _draw_unseen(log, np.ones(log.num_items), pool_size, rng, np.int32)
            return
        in_training = np.ones(log.num_events, dtype=bool)
        in_training[log.offsets[2:] - 1] = False
        in_training[np.maximum(log.offsets[2:] - 2, log.offsets[1:-1])] = False
        self._stride = log.num_items + 1
        seen = np.unique(log.user[in_training] * self._stride + log.item[in_training])
        user, item = np.divmod(seen, self._stride)
        self._first = np.searchsorted(user, np.arange(log.num_users + 2))
        self._unseen = log.num_items - np.diff(self._first)
        _require_unseen(log, self._unseen[1:], 1)
        # s_j - 1 - j unseen items lie below a user's j-th seen item s_j: a search finds the r-th unseen one.
        self._skips = user * self._stride + item - 1 - (np.arange(len(seen)) - self._first[user])

    def draw(self, rng: np.random.Generator, users: np.ndarray) -> np.ndarray:
        """One item per entry of `users` (any shape, values 1..U), int64. O(log E) each, no rejection."""
        if self.kind == "pool":
            return self._pool[users - 1, rng.integers(self._pool.shape[1], size=users.shape)].astype(np.int64)
        rank = rng.integers(self._unseen[users])
        skipped = np.searchsorted(self._skips, users * self._stride + rank, side="right") - self._first[users]
        return rank + 1 + skipped


def history_mask(log: InteractionLog, users: torch.Tensor, *, split: str = "test") -> torch.Tensor:
    """What a full ranking leaves out: the items that each user took before the target.

    Parameters
    ----------
    log : InteractionLog
    users : Tensor (B,) of int64
        Users, 1..U.
    split : {"test", "validation"}
        "test": the target is a user's last event. "validation": the last but one; the test item stays in the
        ranking, since it is not known then.

    Returns
    -------
    Tensor (B, V) of bool
        Column v-1 is item v. The target itself is never masked, even if taken before.
    """
    held_out = held_out_events(split)
    numbers = users.cpu().numpy()
    start, target = log.offsets[numbers], log.offsets[numbers + 1] - held_out
    lengths = target - start
    rows = np.repeat(np.arange(len(numbers)), lengths)
    events = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths - start, lengths)
    mask = np.zeros((len(numbers), log.num_items), dtype=bool)
    mask[rows, log.item[events] - 1] = True
    mask[np.arange(len(numbers)), log.item[target] - 1] = False
    return torch.from_numpy(mask)


def held_out_events(split: str) -> int:
    """How many events of a user lie at or after the target of `split`: 1 for "test", 2 for "validation"."""
    if split not in ("test", "validation"):
        raise ValueError(f'split must be "test" or "validation", got {split!r}')
    return 1 if split == "test" else 2


def _draw_unseen(
    log: InteractionLog, weights: np.ndarray, count: int, rng: np.random.Generator, dtype: type = np.int64
) -> np.ndarray:
    """(U, count) items that the user never touched, drawn without replacement with these (V,) weights."""
    if count < 1:
        raise ValueError(f"expected at least 1 negative per user, got {count}")
    drawn = np.empty((log.num_users, count), dtype=dtype)
    for first, seen in _history_blocks(log):
        _require_unseen(log, (~seen).sum(axis=1), count, first)
        keys = rng.standard_exponential(seen.shape) / weights
        keys[seen] = np.inf
        # argpartition spares a sort of all V keys; its own order differs between processors.
        chosen = np.argpartition(keys, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(keys, chosen, axis=1), axis=1)
        drawn[first : first + len(seen)] = np.take_along_axis(chosen, order, axis=1) + 1
    return drawn


def _history_blocks(log: InteractionLog) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of users as (first row, (users, V) bool table of everything they touched): U x V may not fit in
    memory."""
    rows = max(1, _CELLS // log.num_items)
    for first in range(0, log.num_users, rows):
        last = min(first + rows, log.num_users)
        events = slice(log.offsets[first + 1], log.offsets[last + 1])
        seen = np.zeros((last - first, log.num_items), dtype=bool)
        seen[log.user[events] - 1 - first, log.item[events] - 1] = True
        yield first, seen


def _require_unseen(log: InteractionLog, unseen: np.ndarray, count: int, first: int = 0) -> None:
    """Raise a ValueError that names the first user with fewer than `count` unseen items."""
    short = np.flatnonzero(unseen < count)
    if len(short):
        user = first + int(short[0]) + 1
        raise ValueError(
            f"{count} negatives per user wanted, but user {user} (id {log.user_ids[user - 1]}) has only "
            f"{unseen[short[0]]} unseen items of {log.num_items}; ask for fewer"
        )
