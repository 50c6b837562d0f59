"""Scores a sequential recommender: the rank of each held-out item among sampled and among all items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from lib.data.interactions import InteractionLog
from lib.data.negatives import history_mask
from lib.inspection import evaluating
from lib.metrics.attention import head_overlap
from lib.metrics.ranking import metrics_at, target_rank


class Recommender(Protocol):
    """What can be scored: ``candidates`` ``(B, C)`` of item numbers, or none for all items ``1…V``."""

    def scores(self, batch: Mapping[str, Tensor], candidates: Tensor | None = None) -> Tensor: ...


class Popularity:
    """Scores every item by its events outside validation and test; the same for all users, no training."""

    def __init__(self, log: InteractionLog) -> None:
        held_out = log.item[(log.offsets[2:, None] - [1, 2]).ravel()]
        self.counts = torch.from_numpy(log.item_counts.copy())
        self.counts -= torch.bincount(torch.from_numpy(held_out), minlength=len(self.counts))

    def scores(self, batch: Mapping[str, Tensor], candidates: Tensor | None = None) -> Tensor:
        """Return counts as scores, ``(B, C)``."""
        if candidates is None:
            return self.counts[1:].double().expand(len(batch["users"]), -1)
        return self.counts[candidates].double()


def user_metrics(
    model: Recommender,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    negatives: Tensor | None = None,
    log: InteractionLog | None = None,
    split: str = "test",
    cutoffs: tuple[int, ...] = (5, 10),
    device: str = "cpu",
) -> pd.DataFrame:
    """Rank every user's held-out item; one row per user, one column per metric.

    A network scores in evaluation mode; each module's mode is what it was afterwards.

    Parameters
    ----------
    model
    batches
        From `lib.data.sequences.evaluation_batches`; each has ``users`` and ``target``.
    negatives
        Sampled negatives of every user, ``(U, count)``: the target is ranked among itself and these.
    log, split
        When ``negatives`` is none, the target is ranked among all items less the user's history in ``log``
        before the target of ``split``; these columns are named ``… (full ranking)``.
    cutoffs
        k of Recall@k and NDCG@k. Ties count by their expectation.
    device
        Where the model is.

    Raises
    ------
    ValueError
        Neither or both of ``negatives`` and ``log`` are given, or scores are not numbers.
    """
    if (negatives is None) == (log is None):
        raise ValueError("rank among sampled negatives or, with a log, among all items: give one of the two")
    suffix = "" if log is None else " (full ranking)"
    frames = []
    with _scoring(model):
        for batch in batches:
            users, target = batch["users"], batch["target"]
            there = _on(device, batch)
            if log is None:
                candidates = torch.cat([target[:, None], negatives[users - 1]], dim=1)
                better, ties = target_rank(model.scores(there, candidates.to(device)).cpu())
            else:
                seen = history_mask(log, users, split=split)
                better, ties = target_rank(model.scores(there).cpu(), target - 1, seen)
            columns = {
                name + suffix: value.numpy() for name, value in metrics_at(cutoffs, better, ties).items()
            }
            frames.append(pd.DataFrame(columns, index=pd.Index(users.numpy(), name="user")))
    return pd.concat(frames)


def head_overlap_by_user(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], device: str = "cpu"
) -> pd.Series:
    """Return `lib.metrics.attention.head_overlap` of every user, averaged over blocks.

    ``model`` has ``attention_weights(batch)``, a list of ``(B, heads, T, T)``, one per block.
    """
    found = []
    with _scoring(model):
        for batch in batches:
            batch = _on(device, batch)
            blocks = model.attention_weights(batch)
            overlap = torch.stack([head_overlap(block, batch["tokens"] > 0) for block in blocks]).mean(0)
            users = pd.Index(batch["users"].cpu().numpy(), name="user")
            found.append(pd.Series(overlap.cpu().numpy(), index=users, name="head overlap"))
    return pd.concat(found)


@contextmanager
def _scoring(model: object) -> Iterator[None]:
    """Without gradients, and in evaluation mode if it has one."""
    with torch.no_grad(), evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        yield


def _on(device: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}
