"""A made-up world in which only the gap before an item tells its genre: what MEANTIME's mechanism can do."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from torch import nn

from lib.data.worlds import GapWorld
from lib.metrics.ranking import recall_at, target_rank
from lib.models.recommenders.bert4rec import BERT4Rec
from lib.models.recommenders.meantime import Meantime
from lib.training.loop import Evaluation, fit, seeded

GAP_WORLD_ARMS = ("BERT4Rec", "p + e", "p + l", "MEANTIME")


def gap_world_model(
    arm: str, world: GapWorld, *, mixture: tuple[str, str], hidden_size: int
) -> BERT4Rec | Meantime:
    """The untrained network of one of `GAP_WORLD_ARMS`: MEANTIME has the kernels of ``mixture``."""
    size = {"max_length": world.length, "hidden_size": hidden_size, "dropout": 0.0, "init_std": 0.1}
    positions_only = BERT4Rec(world.num_items, **size)  # first for every arm: later draws follow it
    if arm == "BERT4Rec":
        return positions_only
    absolute, relative = {"p + e": ("p", "e"), "p + l": ("p", "l"), "MEANTIME": mixture}[arm]
    kernels = {"absolute": absolute, "relative": relative, "num_days": world.num_days}
    return Meantime(world.num_items, **kernels, **size)


def gap_world_curve(
    arm: str,
    seed: int,
    *,
    mixture: tuple[str, str],
    hidden_size: int,
    steps: int,
    batch_size: int = 128,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """Train an arm in the gap world, and return its Recall@10 on 500 fresh sequences over the steps.

    Parameters
    ----------
    arm
        One of `GAP_WORLD_ARMS`.
    seed
        Of the world, the first weights and the batches.
    mixture
        Absolute and relative kernels of MEANTIME.
    hidden_size, steps, batch_size
        Width of the network, steps at a learning rate of 0.003, sequences per step.
    checkpoint
        File from which a training that was killed continues.

    Returns
    -------
    Ten rows or so: step, Recall@10 among all items, arm, seed.
    """
    seeded(seed)
    world = GapWorld(seed=seed)
    test = world.batch(0, 500, "test")
    model = gap_world_model(arm, world, mixture=mixture, hidden_size=hidden_size)

    def recall(model: nn.Module) -> dict[str, float]:
        better, ties = target_rank(model.scores(test), test["target"] - 1)
        return {"Recall@10": recall_at(10, better, ties).mean().item()}

    history = fit(
        model,
        lambda step: world.batch(step, batch_size),
        steps=steps,
        learning_rate=0.003,
        evaluation=Evaluation(recall, every=max(1, steps // 10)),
        checkpoint=checkpoint,
        name=f"gap world, {arm}, seed {seed}",
    )
    return history.to_frame().assign(arm=arm, seed=seed)
