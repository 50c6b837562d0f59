"""PROFIT's training in stages (Park & Yoo, ECCV 2020), on the one training loop.

A stage trains a quantised network for some steps with a new optimiser and a new schedule. The whole: first
the ranges and norms alone (`stabilise`), then everything at a constant rate while the instability of
the layers is sampled (`sample`), then rounds of fine-tuning with more and more layers frozen
(`finetune`). After the authors' code; there, rates follow a schedule by epoch, here by step.

A stage that is killed and called again with the same checkpoint ends as if it had never been killed: what it
measures or averages meanwhile is part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.quantization.convert import quantized_layers
from lib.quantization.freezing import freeze, parameter_groups
from lib.quantization.instability import Instability
from lib.training.classifiers import ImageClassifier
from lib.training.loop import fit, warmup_cosine

BatchAt = Callable[[int], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every stage is trained: SGD with Nesterov momentum. Defaults: the authors' code.

    Attributes
    ----------
    learning_rate, weight_decay, momentum
        Of weights; biases and norms do not decay.
    quantizer_factor
        Rate of the quantisers' ranges, as a share of the other.
    warmup
        Share of a stage in which the rate rises to its peak (3 of 15 epochs), in equal steps from zero; the
        authors' rises from a tenth.
    floor
        Rate at the end of a stage, as a share of the peak.
    clip_norm
        Largest norm of all gradients together; 0 for none, as in the authors' code.
    """

    learning_rate: float = 0.04
    weight_decay: float = 2e-5
    momentum: float = 0.9
    quantizer_factor: float = 0.01
    warmup: float = 0.2
    floor: float = 1e-3
    clip_norm: float = 0.0


def train_stage(
    network: nn.Module,
    batch_at: BatchAt,
    steps: int,
    recipe: Recipe,
    *,
    frozen: Collection[str] = (),
    constant: bool = False,
    teacher: nn.Module | None = None,
    **options: Any,
) -> None:
    """Train one stage in place.

    Parameters
    ----------
    network
        Images to logits; a quantised network, or one in full precision if nothing is to be frozen.
    batch_at
        Batch of a step, counted from 0 in this stage.
    steps
        0: nothing happens.
    frozen
        Names of layers whose weights (and biases) do not move.
    constant
        Keep the rate at its peak, without warm-up, as the authors do while they sample.
    teacher
        A network whose predictions are to be matched beside the labels.
    **options
        ``after_step``, ``also``, ``checkpoint``, ``fabric`` and ``name`` of `lib.training.loop.fit`.
    """
    if not steps:
        return
    freeze(network, frozen)
    groups = parameter_groups(
        network,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        quantizer_factor=recipe.quantizer_factor,
    )
    optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    cosine = warmup_cosine(steps, warmup=int(recipe.warmup * steps), floor=recipe.floor)
    fit(
        ImageClassifier(network, teacher),
        batch_at,
        steps=steps,
        optimizer=optimizer,
        schedule=None if constant else cosine,
        clip_norm=recipe.clip_norm,
        **options,
    )


def stabilise(network: nn.Module, batch_at: BatchAt, steps: int, recipe: Recipe, **options: Any) -> None:
    """Train norms and quantisers' ranges alone, every layer frozen. Options as `train_stage`.

    Biases of linear layers are frozen with their weights; the authors' code lets them move here.
    """
    names = [name for name, _ in quantized_layers(network)]
    train_stage(network, batch_at, steps, recipe, frozen=names, **options)


def sample(
    network: nn.Module,
    batch_at: BatchAt,
    steps: int,
    recipe: Recipe,
    *,
    skip: int = 1,
    every: int = 1,
    rate: float | None = None,
    **options: Any,
) -> dict[str, float]:
    """Train at a constant rate, and return the instability of each convolution meanwhile.

    Parameters
    ----------
    skip, every, rate
        As for `lib.quantization.instability.Instability`; of two steps the only measurement is not skipped.

    Other parameters and options are those of `train_stage`.
    """
    with Instability(network, skip=max(0, min(skip, steps - 2)), every=every, rate=rate) as monitor:
        also = {"instability": monitor}
        train_stage(network, batch_at, steps, recipe, constant=True, also=also, **options)
    return monitor.values()


def finetune(
    network: nn.Module,
    batch_at: BatchAt,
    steps: int,
    recipe: Recipe,
    rounds: Sequence[Collection[str]],
    *,
    behind: int = 0,
    ema_rate: float = 0.0,
    checkpoint: Path | None = None,
    name: str = "fine-tuning",
    **options: Any,
) -> nn.Module:
    """Fine-tune in rounds, each with its own frozen layers, optimiser and schedule.

    Parameters
    ----------
    steps
        Of one round.
    rounds
        Frozen layers of each, from `lib.quantization.freezing.freezing_rounds`; empty ones for plain
        training with the same budget and schedule.
    behind
        Rounds that came before: batches go on behind theirs.
    ema_rate
        0, or the rate of an exponential average of all weights and statistics (0.0003 in the authors' code),
        which starts at the network as it is given.
    checkpoint
        A file per round is derived from it.

    Other parameters and options are those of `train_stage`.

    Returns
    -------
    nn.Module
        The network itself, trained in place, or its average.
    """
    average, follow, also = None, None, {}
    if ema_rate:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(1 - ema_rate), use_buffers=True)
        average.update_parameters(network)  # the first update is a copy: the average starts here
        follow, also = lambda step: average.update_parameters(network), {"average": average}
    for number, frozen in enumerate(rounds, start=behind):
        train_stage(
            network,
            lambda step, first=number * steps: batch_at(first + step),
            steps,
            recipe,
            frozen=frozen,
            after_step=follow,
            also=also,
            checkpoint=checkpoint and checkpoint.with_name(f"{checkpoint.stem}, round {number + 1}.pt"),
            name=f"{name}, round {number + 1}",
            **options,
        )
    return average.module if average else network
