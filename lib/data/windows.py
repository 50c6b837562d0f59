"""Training windows of interaction logs: where they end, in which order they come, which events they hold."""

from __future__ import annotations

import numpy as np

from lib.data.interactions import InteractionLog

_ORDER = 0  # the first of a training's random streams; the others are in `lib.data.sequences`


def window_ends(lengths: np.ndarray, *, max_length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Where training windows end, for histories of `lengths` events.

    A history of n events gives windows that end (exclusively) at n, n - stride, n - 2 stride, ... as long as
    that is at least `max_length`; a shorter one gives a single window.

    Parameters
    ----------
    lengths : array (N,) of int
        Events of each history.
    max_length, stride : int
        Events of a window, and between the ends of two; at least 1.

    Returns
    -------
    rows : array (W,)
        Row of `lengths` that each window belongs to.
    ends : array (W,)
        Its end.
    """
    if max_length < 1 or stride < 1:
        raise ValueError(f"expected max_length and stride of at least 1, got {max_length} and {stride}")
    counts = np.maximum(lengths - max_length, 0) // stride + 1
    rows = np.repeat(np.arange(len(lengths)), counts)
    index = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, lengths[rows] - stride * index


class Windows:
    """The training windows of a log in an endless order: shuffled epochs that follow without a break.

    Attributes
    ----------
    users, ends : array (W,)
        Whose events each window holds, and where it ends (exclusively) among that user's events.
    """

    def __init__(self, log: InteractionLog, max_length: int, stride: int, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        rows, self.ends = window_ends(log.user_counts - 2, max_length=max_length, stride=stride)
        self.users = rows + 1
        self._batch_size, self._seed = batch_size, seed
        self._orders: dict[int, np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the windows, at least 1."""
        return max(1, len(self.ends) // self._batch_size)

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(B,) users and (B,) window ends of batch `step`, from 0; a function of seed and step."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        count = len(self.ends)
        epochs, places = np.divmod(np.arange(step * self._batch_size, (step + 1) * self._batch_size), count)
        wanted = range(int(epochs[0]), int(epochs[-1]) + 1)
        self._orders = {epoch: self._order(epoch) for epoch in wanted}  # kept for the next step, not grown
        orders = np.stack([self._orders[epoch] for epoch in wanted])
        chosen = orders[epochs - epochs[0], places]
        return self.users[chosen], self.ends[chosen]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch in self._orders:
            return self._orders[epoch]
        return np.random.default_rng((_ORDER, self._seed, epoch)).permutation(len(self.ends))


def left_padded(
    log: InteractionLog, users: np.ndarray, ends: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The newest events of some users before an end, padded on the left.

    Parameters
    ----------
    log : InteractionLog
    users, ends : array (B,)
        Users, 1..U, and how many of each one's events count.
    length : int
        Columns of the result.

    Returns
    -------
    events : array (B, length) of int
        Places in the log's arrays, oldest first; 0 where padded.
    real : array (B, length) of bool
        Where not padded.
    """
    position = ends[:, None] - length + np.arange(length)
    real = position >= 0
    return np.where(real, log.offsets[users][:, None] + position, 0), real


def right_padded(log: InteractionLog, users: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """The events of `left_padded`, (B, length), but padded on the right by repeating the last."""
    position = np.maximum(ends - length, 0)[:, None] + np.arange(length)
    return log.offsets[users][:, None] + np.minimum(position, ends[:, None] - 1)
