"""Trainings with value-aware quantization of what they store, and the errors of their gradients.

Errors without training are in `lib.experiments.value_aware_errors`, memory and time of a step in
`lib.experiments.value_aware_memory`, the method itself in `lib.quantization`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
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
from lib.experiments.value_aware_errors import label
from lib.inspection import evaluating
from lib.listing import plural
from lib.models.vision.resnet import BasicBlock, ResNet, resnet
from lib.quantization.saved_tensors import BnInput, PackedActivations, PackedTraining
from lib.training.classifiers import ImageClassifier
from lib.training.loop import fit, one_device, seeded, warmup_cosine

LINES = ("o-", "s--", "D:", "^-.", "v-")

#: The control: about as many bits as (3, 2 %) needs with the places of its large values, on a plain grid.
CLIPPED = label(4, 0.0, True)


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
    images: Images,
    *,
    depth: int,
    blocks: Sequence[int],
    width: float,
    small_images: bool = False,
    classes: int | None = None,
) -> ResNet:
    """The network that is trained: a ResNet of this depth; for 0 one of basic blocks, thinner by `width`.

    `small_images` is its stem; `classes` are those of the pictures, where they are not the data set's own.
    """
    sizes = dict(num_classes=classes or images.classes, in_channels=images.channels)
    sizes |= dict(small_images=small_images)
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
    bn_input, clipped
        What is kept of the inputs of batch normalisation, and where grids end, as `PackedActivations` has it.
    """

    stages: tuple[tuple[int | None, float], ...]
    bn_input: BnInput = "exact"
    clipped: bool = False

    def stage(self, step: int, steps: int) -> tuple[int | None, float]:
        """Bits and ratio at a step, from 0, of a training of `steps` steps."""
        return self.stages[min(len(self.stages) - 1, step * len(self.stages) // steps)]


def sweep_arms(widths: Sequence[int], ratios: Sequence[float]) -> dict[str, Arm]:
    """Every width with every share of large values, as ``(1, 2 %)``, to where a training breaks."""
    return {label(bits, ratio): Arm(((bits, ratio),)) for bits, ratio in product(widths, ratios)}


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
        CLIPPED: Arm(((4, 0.0),), clipped=True),
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
    model = PackedTraining(make(), bn_input=arm.bn_input, clipped=arm.clipped)
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
        label(width, ratio): PackedActivations(width, ratio, bn_input="exact")
        for width in (1, 2, 3, 4, 8)
        for ratio in (0, 0.01, 0.02, 0.05)
    }
    settings |= control_settings()
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


def control_settings() -> dict[str, PackedActivations]:
    """What E1 and E3 compare: the paper's setting, no large values, a fourth bit, and that bit clipped."""
    return {
        label(3, 0.02): PackedActivations(3, 0.02, bn_input="exact"),
        label(3, 0.0): PackedActivations(3, 0.0, bn_input="exact"),
        label(4, 0.0): PackedActivations(4, 0.0, bn_input="exact"),
        CLIPPED: PackedActivations(4, 0.0, bn_input="exact", clipped=True),
    }


def pretrained_gradient_errors(network: nn.Module, groups: Mapping[str, Tensor]) -> pd.DataFrame:
    """`gradient_errors` of a pretrained network, in evaluation mode, on groups of images.

    Labelled with the class that the network itself gives an image, so that the gradient is small, as late in
    a training.

    Returns
    -------
    DataFrame with ``group`` and the columns of `gradient_errors`.
    """
    found = []
    for name, images in groups.items():
        with evaluating(network), torch.no_grad():
            labels = network(images).argmax(1)
        batch = {"images": images, "labels": labels}
        errors = gradient_errors(network, batch, control_settings(), training=False)
        found.append(errors.assign(group=name))
    return pd.concat(found)


def gradient_errors(
    network: nn.Module,
    batch: Mapping[str, Tensor],
    settings: Mapping[str, PackedActivations],
    *,
    training: bool = True,
) -> pd.DataFrame:
    """Relative error of the weight gradients under each setting, ‖g̃ − g‖ / ‖g‖.

    Over the weights of convolutions whose input has a gradient (all but the first); weights, running
    statistics and modes of the network are as before afterwards. `training` is the mode in which it runs.

    Returns
    -------
    DataFrame with ``setting`` (its name), ``bits``, ``ratio``, ``clipped``, ``normalisation`` (what is kept
    of its inputs: exact, packed or recomputed) and ``error``.
    """
    of_layers = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)][1:]
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def gradient(context: AbstractContextManager) -> Tensor:
        with evaluating(network):  # gives every module its own mode back
            network.train(training)
            with context:
                loss = F.cross_entropy(network(batch["images"]), batch["labels"])
            found = torch.autograd.grad(loss, of_layers)
        network.load_state_dict(state)
        return torch.cat([g.flatten() for g in found])

    exact = gradient(contextlib.nullcontext())
    rows = [
        (name, c.bits, c.ratio, c.clipped, c.bn_input, float((gradient(c) - exact).norm() / exact.norm()))
        for name, c in settings.items()
    ]
    return pd.DataFrame(rows, columns=["setting", "bits", "ratio", "clipped", "normalisation", "error"])


def gradient_figure(errors: pd.DataFrame) -> Figure:
    """Mean of `gradient_errors` over the share of large values, a line per width; dotted: 4 bits, clipped."""
    clipped = errors.loc[errors["setting"] == CLIPPED, "error"].mean()
    exact = errors[(errors["normalisation"] == "exact") & ~errors["clipped"]]
    means = exact.groupby(["bits", "ratio"])["error"].mean()
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    for (bits, rows), line in zip(means.groupby(level="bits"), LINES, strict=False):
        axis.plot(100 * rows.index.get_level_values("ratio"), rows, line, label=plural(bits, "bit"))
    axis.axhline(clipped, color="#555555", linestyle=":", linewidth=1)
    axis.set(yscale="log", xlabel="large values (%)", ylabel="relative error of the gradient")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure
