"""The trained networks of the PROFIT chapter: the pictures, what all trainings share, and the quantisers.

A network is trained in full precision once per seed; its copies are quantised and trained on, stage by stage
(`lib.experiments.profit`). Each stage draws its batches from a stream of its own, named by seed, stage and
bits, which is the same in every arm, as is its dropout: arms that are compared differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from lib.data.dataset import DataSet
from lib.data.fashion_mnist import FASHION_MNIST, FASHION_MNIST_SAMPLE
from lib.data.imagenet import IMAGENET_2012, ImageFolder, ImageFolders
from lib.data.images import ImageSet
from lib.data.weights import MOBILENET_V2
from lib.experiments.profit import BatchAt, Recipe, stabilise, train_stage
from lib.models.vision.shallower import shallower
from lib.quantization.convert import Kind, quantize
from lib.quantization.dorefa import DoReFaWeight
from lib.quantization.duq import DuQ
from lib.quantization.lsq import LSQ
from lib.quantization.moments import reestimate_norms
from lib.quantization.pact import PACT
from lib.quantization.qil import QIL
from lib.quantization.quantizer import Grid, Quantizer
from lib.quantization.uniform import Uniform
from lib.streams import stream_seed
from lib.training.hits import hits
from lib.training.loop import one_device, seeded

Images = Mapping[str, ImageSet | ImageFolder]

SOURCES: dict[str, DataSet | ImageFolders] = {
    "fashion-mnist-sample": FASHION_MNIST_SAMPLE,
    "fashion-mnist": FASHION_MNIST,
    "imagenet": IMAGENET_2012,
}
#: On which norms are counted anew.
NORM_BATCHES = 20


# --- settings and pictures ---------------------------------------------------------------------------------


def load_images(dataset: str, data_dir: str | Path) -> Images:
    """Training and test pictures, ``{"train": …, "test": …}``, as three channels.

    Parameters
    ----------
    dataset : str
        One of `SOURCES`. Fashion-MNIST's grey pictures get black margins up to 32 × 32 pixels and three equal
        channels; ImageNet's stay files.
    data_dir : str or path
    """
    sets = SOURCES[dataset].load(data_dir)
    if dataset == "imagenet":
        return sets
    padded = {split: images.padded(32) for split, images in sets.items()}
    return {split: replace(s, images=s.images.expand(-1, 3, -1, -1)) for split, s in padded.items()}


def augmentation(dataset: str) -> dict[str, Any]:
    """How training batches change pictures: mirrored and moved; ImageNet's crops are drawn in any case."""
    return {} if dataset == "imagenet" else {"flip": True, "shift": 2}


def starting_weights(
    dataset: str, data_dir: str | Path, *, classes: int, width: float, repeats: int
) -> dict[str, Tensor]:
    """Trained weights that MobileNet-v2 starts from on photographs, if it has full width and all blocks.

    Without those of the classifier where the classes are not ImageNet's thousand; empty where nothing fits.
    """
    if dataset != "imagenet" or width != 1 or repeats < 4:
        return {}
    weights = MOBILENET_V2.load(data_dir)
    return {name: w for name, w in weights.items() if classes == 1000 or not name.startswith("classifier.")}


# --- the quantisers that are compared ----------------------------------------------------------------------


class LeastSquares:
    """First ranges with the least squared error, for quantisers whose own reach to the largest value."""

    def measure(self, x: Tensor) -> None:
        best = Uniform(self.bits, signed=self.signed, range_from="mse").to(x).initialise(x).upper
        super().measure(x.clamp(-best, best))


class PACTFromLeastSquares(LeastSquares, PACT):
    """PACT whose clipping level starts there."""


class QILFromLeastSquares(LeastSquares, QIL):
    """QIL whose interval starts between zero and there."""


class Scaled(Quantizer):
    """Another quantiser's levels times the largest first value: a layer without a norm keeps its scale.

    Its bits are the other's, and stay.
    """

    def __init__(self, quantiser: Quantizer) -> None:
        super().__init__(quantiser.bits, least=quantiser.least)
        self.quantiser = quantiser
        self.register_buffer("scale", torch.ones(()))

    def grid(self) -> Grid:
        grid = self.quantiser.grid()
        return grid._replace(step=self.scale * grid.step, offset=self.scale * grid.offset)

    def quantize(self, x: Tensor) -> Tensor:
        return self.scale * self.quantiser(x)

    def measure(self, x: Tensor) -> None:
        self.quantiser.initialise(x)
        self.scale.copy_(x.abs().max().clamp_min(1e-6))


OfWeight = Callable[[int], Quantizer]
OfInput = Callable[[int, Kind], Quantizer]

#: DuQ's grid for each kind of input; the others take what has both signs with a symmetric one.
GRIDS = {"unsigned": "unsigned", "signed": "symmetric", "hswish": "hswish"}


def duq_pair(first_ranges: str) -> tuple[OfWeight, OfInput]:
    """Quantisers of weights and inputs of DuQ, with first ranges by ``"published"`` rule or ``"mse"``."""

    def of_weight(bits: int) -> Quantizer:
        return DuQ(bits, grid="weight", range_from=first_ranges)

    def of_input(bits: int, kind: Kind) -> Quantizer:
        return DuQ(bits, grid=GRIDS[kind], range_from=first_ranges)

    return of_weight, of_input


QUANTISERS: dict[str, tuple[OfWeight, OfInput]] = {
    "DuQ": duq_pair("published"),
    "DuQ, least squares": duq_pair("mse"),
    "LSQ": (
        lambda bits: LSQ(bits, narrow=True),
        lambda bits, kind: LSQ(bits, signed=kind != "unsigned"),
    ),
    "PACT": (
        lambda bits: Scaled(DoReFaWeight(bits)),
        lambda bits, kind: PACTFromLeastSquares(bits, signed=kind != "unsigned"),
    ),
    "QIL": (
        lambda bits: QILFromLeastSquares(bits, rescale=True),
        lambda bits, kind: QILFromLeastSquares(bits, signed=kind != "unsigned", rescale=True),
    ),
}
#: Rates of ranges over those of weights, where they are not the recipe's: LSQ scales gradients of its step,
#: which then learns at the rate of weights, as its paper has it.
RANGE_RATES = {"LSQ": 1.0}


# --- what all trainings share ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """What all trainings of the chapter share.

    Attributes
    ----------
    images : mapping
        ``{"train": …, "test": …}``, as `load_images` gives.
    augmentation : mapping
        Options of the training batches.
    batch_size : int
    recipe, first : Recipe
        Of quantised trainings, and of those in full precision before them.
    device : str
        ``"cpu"`` or ``"cuda"``.
    checkpoint : callable
        From the name of a training to the file that it continues from, or None.
    """

    images: Images
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    recipe: Recipe
    first: Recipe
    device: str = "cpu"
    checkpoint: Callable[[str], Path | None] = lambda name: None

    def __post_init__(self) -> None:
        self.batches(0)  # refuses a batch of more pictures than there are

    @property
    def classes(self) -> int:
        """Number of kinds of pictures."""
        return len(self.images["train"].classes)

    @cached_property
    def fabric(self) -> Fabric:
        """The device, as the training loop takes it."""
        return one_device(self.device)

    def batches(self, seed: int, *stream: str | int) -> BatchAt:
        """Batches of a stage of this name; those of another seed or name are unrelated."""
        pictures = self.images["train"]
        drawn = pictures.batches(self.batch_size, seed=stream_seed(seed, *stream), **self.augmentation)
        return drawn.batch

    def run(
        self,
        stage: Callable[..., Any],
        network: nn.Module,
        steps: int,
        *rest: Any,
        seed: int,
        stream: tuple[str | int, ...],
        name: str,
        recipe: Recipe | None = None,
        **options: Any,
    ) -> Any:
        """Run a stage of training, and return what it returns.

        Parameters
        ----------
        stage
            `lib.experiments.profit.train_stage`, or another that takes network, batches, steps and recipe.
        network
            Trained in place.
        steps, rest, options
            For the stage.
        seed, stream
            Which batches and which dropout: the same for all arms that are compared.
        name
            Of this training of this arm; no other has it.
        recipe
            By default that of quantised trainings.
        """
        seeded(stream_seed(seed, "dropout", *stream))
        batches = self.batches(seed, *stream)
        options |= {"checkpoint": self.checkpoint(name), "fabric": self.fabric, "name": name}
        return stage(network, batches, steps, recipe or self.recipe, *rest, **options)

    def full_precision(
        self,
        make: Callable[..., nn.Module],
        seed: int,
        steps: int,
        *,
        repeats: int,
        start: Mapping[str, Tensor] = MappingProxyType({}),
        norm_momentum: float | None = None,
        **sizes: Any,
    ) -> nn.Module:
        """A network trained in full precision.

        Parameters
        ----------
        make
            A MobileNet of `lib.models.vision.mobilenet`.
        seed
            Of first weights, batches and dropout.
        steps
        repeats
            Blocks per stage that are kept.
        start
            Trained weights to begin with; layers that are not in it have first weights.
        norm_momentum
            Of all norms, where their own is too slow for a short training.
        sizes
            ``width``, ``last_channels``, …
        """
        name = f"{make.__name__} {', '.join(f'{key} {value}' for key, value in sizes.items())}, seed {seed}"
        seeded(stream_seed(seed, "first weights", make.__name__))
        network = shallower(make(num_classes=self.classes, **sizes), repeats)
        network.load_state_dict(network.state_dict() | start)
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = norm.momentum if norm_momentum is None else norm_momentum
        stream = ("full precision", make.__name__)
        self.run(train_stage, network, steps, seed=seed, stream=stream, name=name, recipe=self.first)
        return network.to(self.device)

    def example(self, seed: int) -> Tensor:
        """A batch of training pictures, on which first ranges are measured."""
        return self.batches(seed, "first ranges")(0)["images"].to(self.device)

    def quantised(
        self, network: nn.Module, arm: str, seed: int, *, weights: int, activations: int
    ) -> nn.Module:
        """A copy of a network with the quantisers of an arm, at these bits; the image is not quantised."""
        of_weight, of_input = QUANTISERS[arm]
        return quantize(
            network,
            self.example(seed),
            weights=lambda layer: of_weight(weights),
            activations=lambda kind: of_input(activations, kind),
        )

    def with_norms_of_today(self, network: nn.Module, seed: int) -> nn.Module:
        """A copy whose norms' statistics are counted anew, on `NORM_BATCHES` batches of training pictures."""
        batch_at = self.batches(seed, "norms")
        return reestimate_norms(
            network, (batch_at(step)["images"].to(self.device) for step in range(NORM_BATCHES))
        )

    def scores(self, network: nn.Module) -> dict[str, Any]:
        """``top-1``, in percent of the test pictures, and ``hits``, which of them (`lib.training.hits`)."""
        hit = hits(network, self.images["test"], device=self.device)
        return {"top-1": float(hit.mean()), "hits": hit}


def quantiser_scores(
    trainings: Trainings, networks: Mapping[int, nn.Module], *, bits: int, stabilise_steps: int, steps: int
) -> pd.DataFrame:
    """Accuracy of copies of the same networks, after the same further steps with each quantiser.

    Parameters
    ----------
    trainings
    networks
        In full precision, by seed.
    bits
        Of weights and activations.
    stabilise_steps, steps
        Of norms and ranges alone, and of everything.

    Returns
    -------
    DataFrame
        ``arm``, ``seed``, and what `Trainings.scores` has; the networks themselves are the arm ``full
        precision``.
    """
    rows = []
    for arm in QUANTISERS:
        factor = RANGE_RATES.get(arm, trainings.recipe.quantizer_factor)
        recipe = replace(trainings.recipe, quantizer_factor=factor)
        for seed, network in networks.items():
            copy = trainings.quantised(network, arm, seed, weights=bits, activations=bits)
            for stage, length in ((stabilise, stabilise_steps), (train_stage, steps)):
                stream = ("quantisers", stage.__name__, bits)
                name = f"{arm}, {stage.__name__}, {bits} bits, seed {seed}"
                trainings.run(stage, copy, length, seed=seed, stream=stream, name=name, recipe=recipe)
            rows.append({"arm": arm, "seed": seed} | trainings.scores(copy))
    for seed, network in networks.items():
        rows.append({"arm": "full precision", "seed": seed} | trainings.scores(network))
    return pd.DataFrame(rows)
