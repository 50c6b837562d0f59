"""Leave-one-out sequences: what each kind of sequential recommender is trained on and scored with.

Per user the last event is the test target, the last but one the validation target, and the rest is for
training (MEANTIME's protocol, Cho et al., RecSys 2020; the authors' code, commit a9ca2e7). Histories are cut
into windows, left-padded with 0, so the newest event always sits in the last column.

Batches are dicts of int64 tensors. `batch(step)` depends on `(seed, step)` alone, so a killed training
resumes exactly.

Traps, stated once:

* **Clock.** Cloze models read the target's time stamp and day; next-item models never do.
  `target_time="blinded"` takes it away, to measure how much of a gain is only that.
* **Short epochs.** The authors drop the last incomplete batch, which means no step at all when there are
  fewer windows than a batch. Here the shuffled epochs follow one another without a break and a batch may span
  two of them.
* **Oldest events.** Windows end at n', n'-stride, ... as long as a full window fits, so up to `stride - 1` of
  the oldest events of a long history are in no window. As the authors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lib.data.interactions import InteractionLog
from lib.data.negatives import TrainingNegatives, held_out_events
from lib.data.windows import Windows, left_padded, right_padded

Batch = dict[str, torch.Tensor]
_MASKS, _PREFIXES, _NEGATIVES = 1, 2, 3  # one independent random stream for each; 0 is the order of windows


def personalised_timestamps(log: InteractionLog) -> np.ndarray:
    """TiSASRec's clock, one int64 per event (Li et al., WSDM 2020, section 3.3).

    r = round((t - t_min) / tau) + 1, where t_min is the user's first stamp and tau the user's smallest gap
    above zero between consecutive events (1 s if there is none). So each user's unit is their own quickest
    click.

    t_min and tau are taken from the *whole* history, held-out events included: a small leak of the authors,
    kept.
    """
    fresh = np.diff(log.timestamp)
    never = np.iinfo(np.int64).max
    gap = np.concatenate(([never], np.where((log.user[1:] == log.user[:-1]) & (fresh > 0), fresh, never)))
    start = log.offsets[1:-1]
    unit = np.minimum.reduceat(gap, start)
    unit = np.where(unit == never, 1, unit)
    elapsed = log.timestamp - log.timestamp[start][log.user - 1]
    return np.rint(elapsed / unit[log.user - 1]).astype(np.int64) + 1


class ClozeTraining:
    """Windows with masked items, for MEANTIME and BERT4Rec.

    Each position is selected with probability `mask_probability`; of the selected ones 80 % become the mask
    token V+1, 10 % a uniform item, 10 % stay, and the label is the original item in all three cases (Sun et
    al., CIKM 2019; as MEANTIME's authors, without forcing the last position and without a last-item-only
    stage).

    Parameters
    ----------
    log : InteractionLog
        At least 3 events per user.
    max_length : int
        T, positions per window. The authors use 200.
    stride : int
        Events between the ends of a user's windows. The authors use 100.
    batch_size : int
        B, windows per step. The authors use 256.
    mask_probability : float
        In (0, 1].
    seed : int
        Of order and masks.

    Raises
    ------
    ValueError
        A user has fewer events, or a size or the probability is out of range.

    Notes
    -----
    A batch in which chance selects nothing has no loss; then the last position of its first window is masked.
    Building a batch costs O(B T); only the ends of windows are kept in memory.
    """

    def __init__(
        self,
        log: InteractionLog,
        *,
        max_length: int,
        stride: int,
        batch_size: int,
        mask_probability: float = 0.2,
        seed: int,
    ) -> None:
        if not 0 < mask_probability <= 1:
            raise ValueError(f"mask_probability must be in (0, 1], got {mask_probability}")
        log.require_events(3, "leave-one-out")
        self.log, self.max_length, self.seed = log, max_length, seed
        self.mask_probability = mask_probability
        self.windows = Windows(log, max_length, stride, batch_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the windows, at least 1."""
        return self.windows.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """tokens, timestamps, days, labels (B, T), 0 where padded or, for labels, not selected; users
        (B,)."""
        users, ends = self.windows.at(step)
        events, real = left_padded(self.log, users, ends, self.max_length)
        items = self.log.item[events] * real
        rng = _stream(_MASKS, self.seed, step)
        # One uniform number decides both whether a position is selected and what becomes of it.
        fate = rng.random(items.shape) / self.mask_probability
        selected = (fate < 1) & real
        if not selected.any():
            selected[0, -1], fate[0, -1] = True, 0
        other = rng.integers(1, self.log.num_items + 1, size=items.shape)
        tokens = np.where(fate < 0.8, self.log.num_items + 1, np.where(fate < 0.9, other, items))
        return _tensors(
            tokens=np.where(selected, tokens, items),
            timestamps=self.log.timestamp[events] * real,
            days=self.log.day[events] * real,
            labels=items * selected,
            users=users,
        )


class NextItemTraining:
    """Windows in which every position predicts the next item, for SASRec and TiSASRec.

    Parameters
    ----------
    log : InteractionLog
        At least 4 events per user.
    max_length, stride, batch_size, seed : int
        As in `ClozeTraining`; the same windows, whose last item is only a label.
    negatives : {"unseen", "pool"}
        See `lib.data.negatives.TrainingNegatives`. "pool" is what MEANTIME's authors do; the default is the
        original SASRec's, which neither leaks nor fails on small catalogues.
    pool_size : int
        Of "pool".
    personalised : bool
        Give `personalised_timestamps` instead of Unix seconds (TiSASRec).
    """

    def __init__(
        self,
        log: InteractionLog,
        *,
        max_length: int,
        stride: int,
        batch_size: int,
        seed: int,
        negatives: str = "unseen",
        pool_size: int = 1000,
        personalised: bool = False,
    ) -> None:
        log.require_events(4, "next-item training with leave-one-out")
        self.log, self.max_length, self.seed = log, max_length, seed
        self._clock = personalised_timestamps(log) if personalised else log.timestamp
        self._negatives = TrainingNegatives(log, negatives, pool_size=pool_size)
        self.windows = Windows(log, max_length, stride, batch_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the windows, at least 1."""
        return self.windows.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """tokens, timestamps, labels (the next item), negatives (one each) (B, T), 0 where padded; users
        (B,)."""
        users, ends = self.windows.at(step)
        events, real = left_padded(self.log, users, ends - 1, self.max_length)
        negatives = np.zeros(events.shape, dtype=np.int64)
        owners = np.broadcast_to(users[:, None], events.shape)[real]
        negatives[real] = self._negatives.draw(_stream(_NEGATIVES, self.seed, step), owners)
        return _tensors(
            tokens=self.log.item[events] * real,
            timestamps=self._clock[events] * real,
            labels=self.log.item[np.minimum(events + 1, self.log.num_events - 1)] * real,
            negatives=negatives,
            users=users,
        )


class PrefixTraining:
    """One random prefix per training window: the last few items and the one that followed, for MARank.

    The prefix ends, label included, uniformly at 2..n' of the user's n' training events, wherever the window
    lies (as MEANTIME's authors; windows only decide how often a user is drawn).

    Parameters
    ----------
    log : InteractionLog
        At least 4 events per user.
    context_length : int
        Items before the label, at least 1; a shorter prefix repeats its last item on the right.
    max_length, stride : int
        Of the windows that are counted; the defaults are the authors'.
    batch_size, seed, negatives, pool_size
        As in `NextItemTraining`.
    """

    def __init__(
        self,
        log: InteractionLog,
        *,
        context_length: int = 6,
        batch_size: int,
        seed: int,
        max_length: int = 200,
        stride: int = 100,
        negatives: str = "unseen",
        pool_size: int = 1000,
    ) -> None:
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {context_length}")
        log.require_events(4, "prefix training with leave-one-out")
        self.log, self.context_length, self.seed = log, context_length, seed
        self._negatives = TrainingNegatives(log, negatives, pool_size=pool_size)
        self.windows = Windows(log, max_length, stride, batch_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the windows, at least 1."""
        return self.windows.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """tokens (B, context_length); labels, negatives, users (B,)."""
        users, _ = self.windows.at(step)
        training = self.log.user_counts[users - 1] - 2
        label = _stream(_PREFIXES, self.seed, step).integers(1, training)
        return _tensors(
            tokens=self.log.item[right_padded(self.log, users, label, self.context_length)],
            labels=self.log.item[self.log.offsets[users] + label],
            negatives=self._negatives.draw(_stream(_NEGATIVES, self.seed, step), users),
            users=users,
        )


def evaluation_batches(
    log: InteractionLog,
    *,
    split: str = "test",
    view: str = "cloze",
    max_length: int = 200,
    batch_size: int = 256,
    target_time: str = "seen",
    personalised: bool = False,
) -> Iterator[Batch]:
    """All users in order, each with what a model may see before its held-out target.

    For the test target the validation item is part of the history.

    Parameters
    ----------
    log : InteractionLog
        At least 3 events per user.
    split : {"test", "validation"}
        The last event, or the last but one.
    view : {"cloze", "next", "context"}
        "cloze" gives the `max_length` newest events with the target's item replaced by the mask token V+1 in
        the last column; "next" gives the `max_length` events before the target; "context" gives the last
        `max_length` items before the target, padded on the right by repeating the last (MARank; its
        `max_length` is 6).
    max_length, batch_size : int
        T, and users per batch; at least 1.
    target_time : {"seen", "blinded"}
        "seen" gives a cloze model the time stamp and day of the target event, as the authors do; "blinded"
        gives it those of the last event before the target. The other views never see the target's time.
    personalised : bool
        As in `NextItemTraining`, for the view "next".

    Raises
    ------
    ValueError
        An unknown split, view or target_time, personalised beside another view than "next", a size below 1,
        or a user with fewer than 3 events.

    Yields
    ------
    dict of str to Tensor
        tokens, timestamps, days (B, T) ("context": tokens only), users (B,) and target (B,), the item to
        find.
    """
    if view not in ("cloze", "next", "context"):
        raise ValueError(f'view must be "cloze", "next" or "context", got {view!r}')
    if target_time not in ("seen", "blinded"):
        raise ValueError(f'target_time must be "seen" or "blinded", got {target_time!r}')
    if personalised and view != "next":
        raise ValueError(f'personalised time stamps belong to the view "next", got {view!r}')
    if max_length < 1 or batch_size < 1:
        raise ValueError(
            f"expected max_length and batch_size of at least 1, got {max_length} and {batch_size}"
        )
    held_out = held_out_events(split)
    log.require_events(3, "leave-one-out")
    clock = personalised_timestamps(log) if personalised else log.timestamp
    for first in range(1, log.num_users + 1, batch_size):
        users = np.arange(first, min(first + batch_size, log.num_users + 1))
        position = log.user_counts[users - 1] - held_out
        target = log.item[log.offsets[users] + position]
        if view == "context":
            yield _tensors(
                tokens=log.item[right_padded(log, users, position, max_length)], users=users, target=target
            )
            continue
        events, real = left_padded(log, users, position + (view == "cloze"), max_length)
        tokens = log.item[events] * real
        if view == "cloze":
            tokens[:, -1] = log.num_items + 1
            if target_time == "blinded":
                events[:, -1] -= 1
        yield _tensors(
            tokens=tokens,
            timestamps=clock[events] * real,
            days=log.day[events] * real,
            users=users,
            target=target,
        )


def _stream(kind: int, seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng((kind, seed, step))


def _tensors(**arrays: np.ndarray) -> Batch:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
