"""Made-up worlds with known truth. They can show that a mechanism works; they say nothing about real
users."""

from __future__ import annotations

import numpy as np
import torch

from lib.data.interactions import SECONDS_PER_DAY

_SPLITS = {"train": 0, "test": 1}


class GapWorld:
    """A world in which only the time between events tells what comes next. Synthetic, ours.

    Items have genres, (item - 1) mod `num_genres`. Before each event but the first there is a gap of one of
    three kinds, with equal probability: 30 to 600 seconds, 1 to 2 days, or 20 to 40 days. The genre moves by
    0, 1 or 3 with the kind of gap; the item is uniform within its genre. The last item of each sequence is to
    be predicted from the items before it and all time stamps, its own included.

    A model blind to time cannot know which of three genres comes next; one that reads the last gap knows. The
    best Recall@k over all items is k / (3 n) for the first and k / n for the second, with n items a genre.

    Parameters
    ----------
    num_items : int
        V, a multiple of `num_genres`.
    num_genres : int
        At least 4, so that the three moves differ.
    length : int
        T, events per sequence, at least 2.
    start_days : int
        Sequences start at a uniform time in this many days, so that the day alone does not give away the gap.
    seed : int
        Of all sequences.
    """

    gaps = ((30, 600), (SECONDS_PER_DAY, 2 * SECONDS_PER_DAY), (20 * SECONDS_PER_DAY, 40 * SECONDS_PER_DAY))
    moves = (0, 1, 3)
    name = "Gap world"
    synthetic = True

    def __init__(
        self, num_items: int = 60, num_genres: int = 6, length: int = 8, *, start_days: int = 365, seed: int
    ) -> None:
        if num_genres < 4 or num_items < num_genres or num_items % num_genres:
            raise ValueError(
                f"num_items must be a multiple of num_genres >= 4, got {num_items} and {num_genres}"
            )
        if length < 2 or start_days < 1:
            raise ValueError(f"expected length >= 2 and start_days >= 1, got {length} and {start_days}")
        self.num_items, self.num_genres, self.length = num_items, num_genres, length
        self.start_days, self.seed = start_days, seed

    @property
    def num_days(self) -> int:
        """Rows of a table of days that covers every sequence."""
        return self.start_days + (self.length - 1) * self.gaps[-1][1] // SECONDS_PER_DAY + 1

    def batch(self, step: int, batch_size: int, split: str = "train") -> dict[str, torch.Tensor]:
        """Fresh sequences, a pure function of (seed, split, step).

        Returns
        -------
        dict of str to Tensor
            tokens (the last is the mask token V+1), timestamps (s), days, labels (0 but for the last) (B, T)
            and target (B,), all int64.
        """
        if split not in _SPLITS:
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        rng = np.random.default_rng((_SPLITS[split], self.seed, step))
        shape = (batch_size, self.length)
        kind = rng.integers(len(self.gaps), size=shape)
        low, high = np.array(self.gaps).T
        gap = rng.integers(low[kind], high[kind], endpoint=True)
        gap[:, 0] = rng.integers(self.start_days * SECONDS_PER_DAY, size=batch_size)
        move = np.array(self.moves)[kind]
        move[:, 0] = rng.integers(self.num_genres, size=batch_size)
        genre = move.cumsum(axis=1) % self.num_genres
        place = rng.integers(self.num_items // self.num_genres, size=shape)
        items = place * self.num_genres + genre + 1
        timestamps = gap.cumsum(axis=1)
        target = items[:, -1].copy()
        labels = np.zeros_like(items)
        labels[:, -1] = target
        items[:, -1] = self.num_items + 1
        arrays = {
            "tokens": items,
            "timestamps": timestamps,
            "days": timestamps // SECONDS_PER_DAY,
            "labels": labels,
            "target": target,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
