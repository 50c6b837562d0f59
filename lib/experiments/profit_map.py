"""The map of the PROFIT chapter: what freezing changes, over bits, length of the rounds, and width.

At each place a network in full precision is quantised, stabilised and sampled (`prepared`). The arms share
the first round of fine-tuning, in which nothing is frozen, and then all batches and steps
(`freezing_scores`): what differs is which layers are frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
from torch import nn

from lib.experiments.profit import finetune, sample, stabilise, train_stage
from lib.experiments.profit_trainings import Trainings
from lib.quantization.convert import set_bits
from lib.quantization.freezing import freezing_rounds

#: The paper's order; none; and our control, as many layers in the opposite order.
ARMS = ("PROFIT", "no freezing", "most stable first")

ACTIVATION_BITS = 4
#: Seeds where nothing is judged.
FEW = 3


class Place(NamedTuple):
    """A network of the map at some bits: what is trained there.

    Attributes
    ----------
    bits
        Of the weights.
    width
        Of the network.
    seed
    rounds
        Steps of each of the three rounds: one comparison for each length.
    arms
        Of `ARMS`.
    """

    bits: int
    width: float
    seed: int
    rounds: tuple[int, ...]
    arms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Descent:
    """The way from full precision to few bits.

    Attributes
    ----------
    path
        Bits of weights and activations on the way, one long round each.
    path_steps
        Of such a round.
    stabilise_steps
        In which only norms and ranges move, after each change of bits.
    sample_steps
        In which the instability is sampled.
    ema_rate
        Rate of the average of weights that is measured; 0: the weights themselves.
    """

    path: Sequence[int] = ()
    path_steps: int = 0
    stabilise_steps: int = 0
    sample_steps: int
    ema_rate: float = 0.0


def places(
    bits: Sequence[int], widths: Sequence[float], rounds: Sequence[int], seeds: Sequence[int]
) -> Iterator[Place]:
    """All places of the map; C2 is judged at the last bits, the first width and the longest rounds.

    Only there are all seeds used, elsewhere the first three; other widths have the longest rounds alone, and
    no control.

    Raises
    ------
    ValueError
        There are no bits, no widths or no rounds, or one is named twice.
    """
    for name, values in (("bits", bits), ("widths", widths), ("rounds", rounds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"the map needs {name}, at least one and none twice, got {list(values)}")
    for place_bits in bits:
        for width in widths:
            first_width, judged = width == widths[0], place_bits == bits[-1] and width == widths[0]
            for number, seed in enumerate(seeds):
                if number < FEW and first_width:
                    yield Place(place_bits, width, seed, tuple(rounds), ARMS)
                elif number < FEW or judged:
                    yield Place(place_bits, width, seed, (max(rounds),), ARMS if judged else ARMS[:2])


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
    """A network that is ready to be fine-tuned at a place of the map.

    Attributes
    ----------
    network
        Quantised, stabilised and sampled.
    instability
        AIWQ by name of the convolution.
    on_the_way
        Top-1 in percent behind each round of the path, by bits.
    teacher
        Whose predictions its trainings match, or None.
    """

    network: nn.Module
    instability: dict[str, float]
    on_the_way: dict[int, float] = field(default_factory=dict)
    teacher: nn.Module | None = None


def prepared(
    trainings: Trainings,
    network: nn.Module,
    place: Place,
    descent: Descent,
    teacher: nn.Module | None = None,
) -> Prepared:
    """Quantise a copy of a network, go down the path, stabilise and sample."""

    def run(stage, name, bits, steps):
        options = {"seed": place.seed, "stream": (name, bits), "teacher": teacher}
        name = f"{name}, {bits} bits, width {place.width}, seed {place.seed}"
        return trainings.run(stage, copied, steps, name=name, **options)

    first, first_input = (descent.path[0],) * 2 if descent.path else (place.bits, ACTIVATION_BITS)
    copied = trainings.quantised(
        network, "DuQ, least squares", place.seed, weights=first, activations=first_input
    )
    on_the_way = {}
    for bits in descent.path:
        set_bits(copied, weights=bits, activations=bits)
        run(stabilise, "stabilising on the way", bits, descent.stabilise_steps)
        run(train_stage, "training on the way", bits, descent.path_steps)
        on_the_way[bits] = trainings.top1(copied)
    set_bits(copied, weights=place.bits, activations=ACTIVATION_BITS)
    run(stabilise, "stabilising", place.bits, descent.stabilise_steps)
    instability = run(sample, "sampling", place.bits, descent.sample_steps)
    return Prepared(copied, instability, on_the_way, teacher)


def freezing_scores(
    trainings: Trainings, start: Prepared, place: Place, descent: Descent
) -> list[dict[str, str | int | float]]:
    """Accuracy of each arm behind its three rounds, for each length of the rounds.

    Returns
    -------
    list of dict
        Rows of ``bits``, ``width``, ``steps`` (of a round), ``arm``, ``seed`` and ``top-1`` in percent.
    """
    rows = []
    for steps in place.rounds:

        def run(network: nn.Module, arm: str, rounds: Sequence[Collection[str]], steps=steps, **options):
            name = f"{arm}, {place.bits} bits, width {place.width}, {steps} steps, seed {place.seed}"
            options |= {"seed": place.seed, "stream": ("fine-tuning", place.bits), "teacher": start.teacher}
            return trainings.run(finetune, network, steps, rounds, name=name, **options)

        shared = run(copy.deepcopy(start.network), "shared round", [()])
        for arm in place.arms:
            later = frozen_layers(arm, start.instability)[1:]
            best = run(copy.deepcopy(shared), arm, later, behind=1, ema_rate=descent.ema_rate)
            row = {"bits": place.bits, "width": place.width, "steps": steps, "arm": arm, "seed": place.seed}
            rows.append(row | {"top-1": trainings.top1(best)})
    return rows


def scores_by_bits(
    on_the_way: Sequence[Mapping[int, float]], profit: Sequence[float], bits: int
) -> dict[str, list[float]]:
    """Accuracy with weights and activations in the same bits, one per seed, as ``{"8 bits": […]}``.

    Parameters
    ----------
    on_the_way
        Of each seed, by bits.
    profit
        Of PROFIT, with activations in `ACTIVATION_BITS`.
    bits
        Of PROFIT's weights. If they are others than its activations', it is in none of the lists.
    """
    found = {f"{b} bits": [seed[b] for seed in on_the_way] for b in on_the_way[0] if b != ACTIVATION_BITS}
    return found | ({f"{bits} bits": list(profit)} if bits == ACTIVATION_BITS else {})


def gains(scores: pd.DataFrame) -> pd.DataFrame:
    """What freezing adds to no freezing, in points, of the same seeds.

    Parameters
    ----------
    scores
        Rows of `freezing_scores`.

    Returns
    -------
    DataFrame
        Indexed by ``bits``, ``width``, ``steps``, ``seed``; a column for each other arm, NaN where it was not
        trained.
    """
    index = ["bits", "width", "steps", "seed"]
    table = scores.pivot_table(index=index, columns="arm", values="top-1")
    return table[["PROFIT", "most stable first"]].sub(table["no freezing"], axis=0)


def mean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of `freezing_scores`: a row per bits, width and steps; a column per arm; ``seeds``."""
    places = scores.groupby(["bits", "width", "steps"])
    means = scores.pivot_table(index=["bits", "width", "steps"], columns="arm", values="top-1")
    return means.assign(seeds=places["seed"].nunique()).reset_index()
