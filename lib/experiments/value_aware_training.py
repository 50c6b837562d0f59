"""Trainings with value-aware quantization of what they store, and the errors of their gradients.

Errors without training are in `lib.experiments.value_aware_errors`, memory and time of a step in
`lib.experiments.value_aware_memory`, the method itself in `lib.quantization`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from lib.data import fashion_mnist
from lib.data.imagenet import IMAGENET_2012
from lib.data.images import ImageSet
from lib.inspection import evaluating
from lib.listing import plural
from lib.models.vision.resnet import BasicBlock, ResNet, resnet
from lib.quantization.saved_tensors import BnInput, PackedActivations, PackedTraining
from lib.training.classifiers import ImageClassifier
from lib.training.loop import fit, one_device, seeded, warmup_cosine

LINES = ("o-", "s--", "D:", "^-.", "v-")


class Images(NamedTuple):
    """A data set that a chapter can train on, and the sizes of a network for it."""

    source: Any
    channels: int
    classes: int


IMAGES = {
    "fashion-mnist-sample": Images(fashion_mnist.FASHION_MNIST_SAMPLE, 1, 10),
    "fashion-mnist": Images(fashion_mnist.FASHION_MNIST, 1, 10),
    "imagenet": Images(IMAGENET_2012, 3, 1000),
}


def images_of(dataset: str) -> Images:
    """One of `IMAGES` by its name; ValueError for another one."""
    if dataset not in IMAGES:
        raise ValueError(f"dataset must be one of {', '.join(IMAGES)}, got {dataset!r}")
    return IMAGES[dataset]


def new_network(
    images: Images, *, depth: int, blocks: Sequence[int], width: float, classes: int | None = None
) -> ResNet:
    """The network that is trained: a ResNet of this depth; for 0 one of basic blocks, thinner by `width`.

    `classes` are those of the pictures, where they are not the data set's own.
    """
    sizes = dict(num_classes=classes or images.classes, in_channels=images.channels)
    return (
        resnet(depth, **sizes)
        if depth
        else ResNet(block=BasicBlock, blocks=tuple(blocks), width=width, **sizes)
    )


# --- training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """How a training stores its activations.

    Attributes
    ----------
    stages
        Width of a code and share of large values, in stages of equally many steps; None bits: full precision.
    bn_input
        What is kept of the inputs of batch normalisation, as `PackedActivations` has it.
    """

    stages: tuple[tuple[int | None, float], ...]
    bn_input: BnInput = "exact"

    def stage(self, step: int, steps: int) -> tuple[int | None, float]:
        """Bits and ratio at a step, from 0, of a training of `steps` steps."""
        return self.stages[min(len(self.stages) - 1, step * len(self.stages) // steps)]


def training_arms(bits: int = 3) -> dict[str, Arm]:
    """What trainings compare: the paper's setting, its controls, and the order that the paper warns of.

    By names with their bits, in this order. With 2 bits a control is there once, and not twice.
    """
    full, packed = (None, 0.0), (bits, 0.02)
    return {
        "full precision": Arm((full,)),
        f"({bits}, 2 %)": Arm((packed,)),
        f"({bits}, 0 %)": Arm(((bits, 0.0),)),
        "(2, 0 %)": Arm(((2, 0.0),)),
        f"(2, 0 %), then ({bits}, 2 %), then full": Arm(((2, 0.0), packed, full)),
        f"({bits}, 2 %), inputs of normalisation packed": Arm((packed,), bn_input="packed"),
    }


def train(
    arm: Arm,
    make: Callable[[], nn.Module],
    images: ImageSet,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    device: str = "cpu",
    checkpoint: Path | None = None,
    name: str = "model",
) -> PackedTraining:
    """Train a new network, its activations stored as the arm says; arms differ in nothing else.

    Momentum descent (0.9, weight decay 10⁻⁴), the rate rising for a tenth of the steps and then falling as
    half a cosine.

    Parameters
    ----------
    arm, make, images
        How activations are stored; what makes the network; the training set.
    seed
        Of the first weights and of the batches.
    steps, batch_size, learning_rate
        The peak of the rate.
    device
        As Lightning Fabric names it.
    checkpoint, name
        As `lib.training.loop.fit`: a training that is finished there is not repeated.
    """
    seeded(seed)
    model = PackedTraining(make(), bn_input=arm.bn_input)
    batches = images.batches(batch_size, seed=seed)

    def batch_at(step: int) -> Mapping[str, Tensor]:
        model.activations.bits, model.activations.ratio = arm.stage(step, steps)
        return batches.batch(step)

    fit(
        ImageClassifier(model),
        batch_at,
        steps=steps,
        optimizer=torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4),
        schedule=warmup_cosine(steps, warmup=steps // 10),
        checkpoint=checkpoint,
        fabric=one_device(device),
        name=name,
    )
    return model


# --- gradients ----------------------------------------------------------------------------------------------


def gradient_settings(bits: int = 3) -> dict[str, PackedActivations]:
    """Ways to store activations whose gradients are compared.

    Widths and ratios with exact inputs of normalisation, ``(3, 2 %)`` and so on; and, with `bits` and 2 % for
    the inputs of layers, four ways with the inputs of normalisation.
    """
    settings = {
        f"({width}, {100 * ratio:g} %)": PackedActivations(width, ratio, bn_input="exact")
        for width in (1, 2, 3, 4, 8)
        for ratio in (0, 0.01, 0.02, 0.05)
    }
    normalisation: dict[str, dict[str, Any]] = {
        "packed, (3, 2 %)": dict(bn_bits=3, bn_ratio=0.02),
        "packed, (4, 2 %)": dict(bn_bits=4, bn_ratio=0.02),
        "packed, 8 bits": {},
        "recomputed from the packed input": dict(bn_input="recomputed"),
    }
    return settings | {
        f"normalisation {name}": PackedActivations(bits, 0.02, **options)
        for name, options in normalisation.items()
    }


def gradient_errors(
    network: nn.Module, batch: Mapping[str, Tensor], settings: Mapping[str, PackedActivations]
) -> pd.DataFrame:
    """Relative error of the weight gradients under each setting, ‖g̃ − g‖ / ‖g‖.

    Over the weights of convolutions whose input has a gradient (all but the first); weights, running
    statistics and modes of the network are as before afterwards.

    Returns
    -------
    DataFrame with ``setting`` (its name), ``bits``, ``ratio``, ``normalisation`` (what is kept of its inputs:
    exact, packed or recomputed) and ``error``.
    """
    of_layers = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)][1:]
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def gradient(context: AbstractContextManager) -> Tensor:
        with evaluating(network):  # gives every module its own mode back
            network.train()
            with context:
                loss = F.cross_entropy(network(batch["images"]), batch["labels"])
            found = torch.autograd.grad(loss, of_layers)
        network.load_state_dict(state)
        return torch.cat([g.flatten() for g in found])

    exact = gradient(contextlib.nullcontext())
    rows = [
        (name, c.bits, c.ratio, c.bn_input, float((gradient(c) - exact).norm() / exact.norm()))
        for name, c in settings.items()
    ]
    return pd.DataFrame(rows, columns=["setting", "bits", "ratio", "normalisation", "error"])


def gradient_figure(errors: pd.DataFrame) -> Figure:
    """Mean of `gradient_errors` over the share of large values, a line per width; dotted: 4 bits, none."""
    exact = errors[errors["normalisation"] == "exact"]
    means = exact.groupby(["bits", "ratio"])["error"].mean()
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    for (bits, rows), line in zip(means.groupby(level="bits"), LINES, strict=False):
        axis.plot(100 * rows.index.get_level_values("ratio"), rows, line, label=plural(bits, "bit"))
    axis.axhline(means[4, 0.0], color="#555555", linestyle=":", linewidth=1)
    axis.set(yscale="log", xlabel="large values (%)", ylabel="relative error of the gradient")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure
