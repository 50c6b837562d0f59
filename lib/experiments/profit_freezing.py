"""Does freezing help? PROFIT against training everything, and against freezing in the opposite order.

A network in full precision is quantised, stabilised and sampled (`prepared`). The arms share the first round
of fine-tuning, in which nothing is frozen, and then all batches and steps (`freezing_scores`): what differs
is which layers are frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import nn

from lib.experiments.profit import finetune, sample, stabilise, train_stage
from lib.experiments.profit_trainings import Trainings
from lib.quantization.convert import set_bits
from lib.quantization.freezing import freezing_rounds
from lib.training.hits import by_arm

#: The paper's order; none; and our control, as many layers in the opposite order.
ARMS = ("PROFIT", "no freezing", "most stable first")
SETTLED = "no freezing, norms re-estimated"

ACTIVATION_BITS = 4
#: Of weights, at which arms are judged.
JUDGED_BITS = (4, 3)


@dataclass(frozen=True, kw_only=True)
class Descent:
    """The way from full precision to few bits, and there.

    Attributes
    ----------
    path
        Bits of weights and activations on the way, one round each.
    stabilise_steps
        In which only norms and ranges move, after each change of bits.
    sample_steps
        In which the instability is sampled.
    round_steps
        Of each round, those on the way and the three in which layers are frozen.
    ema_rate
        Rate of the average of weights that is measured; 0: the weights themselves.
    """

    path: Sequence[int] = ()
    stabilise_steps: int = 0
    sample_steps: int
    round_steps: int
    ema_rate: float = 0.0


def frozen_layers(arm: str, instability: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Which layers an arm freezes in each of the three rounds, given their instability."""
    if arm == "PROFIT":
        return freezing_rounds(instability)
    if arm == "most stable first":
        return freezing_rounds({layer: -value for layer, value in instability.items()})
    if arm == "no freezing":
        return [()] * 3
    raise ValueError(f"unknown arm {arm!r} (known: {', '.join(ARMS)})")


@dataclass
class Prepared:
    """A network that is ready to be fine-tuned.

    Attributes
    ----------
    network
        Quantised, stabilised and sampled.
    bits
        Of its weights.
    seed
    instability
        AIWQ by name of the convolution.
    on_the_way
        Top-1 in percent behind each round of the path, by bits.
    teacher
        Whose predictions its trainings match, or None.
    """

    network: nn.Module
    bits: int
    seed: int
    instability: dict[str, float]
    on_the_way: dict[int, float] = field(default_factory=dict)
    teacher: nn.Module | None = None


def prepared(
    trainings: Trainings,
    network: nn.Module,
    descent: Descent,
    *,
    bits: int,
    seed: int,
    teacher: nn.Module | None = None,
) -> Prepared:
    """Quantise a copy of a network, go down the path, stabilise and sample.

    The path does not depend on where it leads: with checkpoints it is gone once.
    """

    def run(stage, name, at, steps):
        options = {"seed": seed, "stream": (name, at), "teacher": teacher}
        name = f"{name}, {at} bits, seed {seed}"
        return trainings.run(stage, copied, steps, name=name, **options)

    first, first_input = (descent.path[0],) * 2 if descent.path else (bits, ACTIVATION_BITS)
    copied = trainings.quantised(network, "DuQ, least squares", seed, weights=first, activations=first_input)
    on_the_way = {}
    for at in descent.path:
        set_bits(copied, weights=at, activations=at)
        run(stabilise, "stabilising on the way", at, descent.stabilise_steps)
        run(train_stage, "training on the way", at, descent.round_steps)
        on_the_way[at] = trainings.scores(copied)["top-1"]
    set_bits(copied, weights=bits, activations=ACTIVATION_BITS)
    run(stabilise, "stabilising", bits, descent.stabilise_steps)
    instability = run(sample, "sampling", bits, descent.sample_steps)
    return Prepared(copied, bits, seed, instability, on_the_way, teacher)


def freezing_scores(trainings: Trainings, start: Prepared, descent: Descent) -> list[dict[str, Any]]:
    """Accuracy of each arm behind its three rounds, and of no freezing with norms counted anew.

    Returns
    -------
    list of dict
        Rows of ``bits``, ``arm``, ``seed``, and what `Trainings.scores` has.
    """

    def run(network: nn.Module, arm: str, rounds: Sequence[Collection[str]], **options):
        name = f"{arm}, {start.bits} bits, seed {start.seed}"
        stream = ("fine-tuning", start.bits)
        options |= {"seed": start.seed, "stream": stream, "teacher": start.teacher}
        return trainings.run(finetune, network, descent.round_steps, rounds, name=name, **options)

    shared = run(copy.deepcopy(start.network), "shared round", [()])
    found = {}
    for arm in ARMS:
        later = frozen_layers(arm, start.instability)[1:]
        best = run(copy.deepcopy(shared), arm, later, behind=1, ema_rate=descent.ema_rate)
        found[arm] = trainings.scores(best)
        if arm == "no freezing":
            found[SETTLED] = trainings.scores(trainings.with_norms_of_today(best, start.seed))
    return [{"bits": start.bits, "arm": arm, "seed": start.seed} | scores for arm, scores in found.items()]


def scores_by_arm(scores: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """Hits at `JUDGED_BITS` as rules name them: ``{"top-1 (W4A4)": {"PROFIT": (seeds, pictures), …}, …}``.

    Parameters
    ----------
    scores
        Rows of `freezing_scores`.
    """
    return {
        f"top-1 (W{bits}A{ACTIVATION_BITS})": by_arm(rows)
        for bits, rows in scores[scores["bits"].isin(JUDGED_BITS)].groupby("bits", sort=False)
    }


def scores_by_bits(on_the_way: Sequence[Mapping[int, float]], scores: pd.DataFrame) -> dict[str, list[float]]:
    """Accuracy with weights and activations in the same bits, one per seed, as ``{"8 bits": […]}``.

    Parameters
    ----------
    on_the_way
        Of each seed, by bits.
    scores
        Rows of `freezing_scores`: PROFIT's, if its weights have as many bits as its activations.
    """
    found = {f"{b} bits": [seed[b] for seed in on_the_way] for b in on_the_way[0] if b != ACTIVATION_BITS}
    last = scores[(scores["arm"] == "PROFIT") & (scores["bits"] == ACTIVATION_BITS)]
    return found | ({f"{ACTIVATION_BITS} bits": last["top-1"].tolist()} if len(last) else {})
