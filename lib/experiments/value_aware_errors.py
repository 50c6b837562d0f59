"""Errors of value-aware quantization without any training: of values, of activations, and of predictions.

The networks are pretrained, the pictures photographs. Trainings are in
`lib.experiments.value_aware_training`, memory in `lib.experiments.value_aware_memory`, the method itself in
`lib.quantization`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from lib.data import preprocessing, weights
from lib.data.imagenet import ImageFolder
from lib.data.preprocessing import Preprocessing
from lib.inspection import captured, evaluating
from lib.metrics.signal import sqnr
from lib.models.vision.mobilenet import MobileNetV2
from lib.models.vision.squeezenet import SqueezeNet
from lib.quantization.convert import quantize
from lib.quantization.largest import split
from lib.quantization.value_aware import ValueAware, fake_quantize
from lib.training.classifiers import accuracy

LINES = ("o-", "s--", "D:", "^-.", "v-", "P--", "X:", "*-.")


class Pretrained(NamedTuple):
    """A network trained on ImageNet, and what its images go through."""

    network: nn.Module
    preprocessing: Preprocessing


def pretrained(data_dir: str | Path) -> dict[str, Pretrained]:
    """MobileNet-v2 and SqueezeNet 1.1, from installed packages."""
    found = {
        "MobileNet-v2": (MobileNetV2(), weights.MOBILENET_V2, preprocessing.IMAGENET),
        "SqueezeNet": (SqueezeNet(), weights.SQUEEZENET, preprocessing.SQUEEZENET),
    }
    for network, source, _ in found.values():
        network.load_state_dict(source.load(data_dir))
    return {name: Pretrained(network, prepare) for name, (network, _, prepare) in found.items()}


# --- activations --------------------------------------------------------------------------------------------


@torch.no_grad()
def layer_inputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Inputs of all convolutions but the first, by the layer's name, in evaluation mode."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    with evaluating(network), captured(network, names) as found:
        network(images)
    return dict(list(found.items())[1:])


def input_errors(
    network: nn.Module, images: Tensor, bits: Sequence[int], ratios: Sequence[float]
) -> pd.DataFrame:
    """Signal to quantization noise of the inputs of a network's layers, with each image by itself.

    Returns
    -------
    DataFrame with ``image``, ``bits``, ``ratio``, ``SQNR`` (dB, mean over layers).
    """
    rows = []
    for index in range(len(images)):
        inputs = layer_inputs(network, images[index : index + 1]).values()
        for width in bits:
            for ratio in ratios:
                noise = [sqnr(x, fake_quantize(x, width, ratio, grid=_grid(x))) for x in inputs]
                rows.append((index, width, ratio, float(np.mean(noise))))
    return pd.DataFrame(rows, columns=["image", "bits", "ratio", "SQNR"])


def _grid(x: Tensor) -> str:
    return "signed" if float(x.amin()) < 0 else "unsigned"


# --- predictions --------------------------------------------------------------------------------------------


def crops(image: Image.Image, count: int, preprocessing: Preprocessing, *, seed: int) -> Tensor:
    """Random parts of a photograph, as in training on ImageNet: (count, 3, crop, crop)."""
    random = np.random.default_rng(seed)
    return torch.stack([preprocessing.train(image, random) for _ in range(count)])


def check_inference(bits: Sequence[int], ratios: Sequence[float]) -> None:
    """ValueError if C8, or the text beside it, is about bits or a ratio that are not measured."""
    if 4 not in bits or not {0.0, 0.001, 0.01} <= set(ratios):
        raise ValueError(
            f"inference_bits must have 4, and inference_ratios 0, 0.001 and 0.01, at which C8 is judged; "
            f"got {list(bits)} and {list(ratios)}"
        )


@torch.no_grad()
def inference_errors(
    network: nn.Module, images: Mapping[str, Tensor], bits: Sequence[int], ratios: Sequence[float]
) -> pd.DataFrame:
    """What few bits and large values of 16 bits do to a network's outputs on groups of images, untrained.

    Weights and activations of all layers, the image exact; large values are found in every tensor as it
    passes, over a group at a time.

    Returns
    -------
    DataFrame with ``group``, ``bits``, ``ratio``, ``agreement`` (percent of images whose first class is that
    of full precision) and ``error`` (mean over images of the relative error of the logits).
    """
    with evaluating(network):
        exact = {name: network(group) for name, group in images.items()}
    rows = []
    for width, ratio in product(bits, ratios):
        quantized = _with_few_bits(network, next(iter(images.values())), width, ratio)
        for name, group in images.items():
            got, reference = quantized(group), exact[name]
            same = (got.argmax(1) == reference.argmax(1)).double().mean()
            error = ((got - reference).norm(dim=1) / reference.norm(dim=1)).mean()
            rows.append((name, width, ratio, 100 * float(same), float(error)))
    return pd.DataFrame(rows, columns=["group", "bits", "ratio", "agreement", "error"])


def _with_few_bits(network: nn.Module, images: Tensor, bits: int, ratio: float) -> nn.Module:
    """A copy with all weights and activations in few bits, and this share of large values in 16."""
    return quantize(
        network,
        images,
        weights=lambda layer: ValueAware(bits, ratio=ratio, signed=True),
        activations=lambda kind: ValueAware(bits, ratio=ratio, signed=kind != "unsigned"),
    ).eval()


def labelled_accuracy(
    network: nn.Module, photographs: ImageFolder, bits: Sequence[int], ratios: Sequence[float]
) -> pd.DataFrame:
    """Top-1 accuracy on labelled photographs, in full precision and as `inference_errors` quantises.

    Large values are found over one photograph at a time.

    Returns
    -------
    DataFrame with ``weights and activations`` (``4 bits, 1 % large``) and ``top-1 (%)``.
    """
    first = photographs.tensor(slice(0, 1))
    networks = {"full precision": network}
    for width, ratio in product(bits, ratios):
        networks[f"{width} bits, {100 * ratio:g} % large"] = _with_few_bits(network, first, width, ratio)
    rows = [(name, accuracy(one, photographs, batch_size=1)["top-1"]) for name, one in networks.items()]
    return pd.DataFrame(rows, columns=["weights and activations", "top-1 (%)"])


def logit_errors(
    results: pd.DataFrame, *, bits: int, ratios: Sequence[float]
) -> dict[str, dict[str, list[float]]]:
    """Errors of the logits that a rule compares: one per photograph, by ratio, for each network.

    Parameters
    ----------
    results
        Of `inference_errors`, with a column ``network``.
    """
    rows = results[results["bits"] == bits]
    return {
        f"logit error, {network}": {
            f"({bits}, {100 * ratio:g} %)": of_network.loc[of_network["ratio"] == ratio, "error"].tolist()
            for ratio in ratios
        }
        for network, of_network in rows.groupby("network", sort=False)
    }


# --- figures ------------------------------------------------------------------------------------------------


def idea_figure(x: Tensor) -> Figure:
    """Levels of a 3-bit grid over values, with and without 2 % of large ones; noise over their share."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    axes[0].hist(x, bins=80, log=True, color="#bbbbbb")
    for share, height, marker in ((0.0, 3e4, "v"), (0.02, 8e4, "^")):
        levels = np.arange(8) * split(x, share).top / 7
        axes[0].plot(levels, np.full(8, height), marker, label=f"levels with {100 * share:.0f} % large")
    axes[0].set(xlabel="value (units of its scale β)", ylabel="number of values")
    axes[0].legend(loc="right")
    shares = (0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
    for bits, line in zip((2, 3, 4), LINES, strict=False):
        ratio = [sqnr(x, fake_quantize(x, bits, share, grid="unsigned")) for share in shares]
        axes[1].plot([100 * share for share in shares], ratio, line, label=f"{bits} bits")
    axes[1].set(xlabel="large values (%)", ylabel="signal to quantization noise (dB)")
    axes[1].legend()
    return figure


def sqnr_figure(errors: pd.DataFrame) -> Figure:
    """Signal to noise over the share of large values (`input_errors`): mean, lowest to highest image."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for (bits, rows), line in zip(errors.groupby("bits"), LINES, strict=False):
        over = rows.groupby("ratio")["SQNR"].agg(["mean", "min", "max"])
        axis.plot(100 * over.index, over["mean"], line, label=f"{bits} bits")
        axis.fill_between(100 * over.index, over["min"], over["max"], alpha=0.2)
    axis.set(xlabel="large values (%)", ylabel="signal to quantization noise (dB)")
    axis.legend()
    return figure


def inference_figure(results: pd.DataFrame) -> Figure:
    """Agreement of the first class and error of the logits over the share of large values."""
    means = results.groupby(["network", "bits", "ratio"])[["agreement", "error"]].mean()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for ((network, bits), rows), line in zip(means.groupby(level=[0, 1]), LINES, strict=False):
        share, label = 100 * rows.index.get_level_values("ratio"), f"{network}, {bits} bits"
        for axis, column in zip(axes, ("agreement", "error"), strict=True):
            axis.plot(share, rows[column], line, label=label)
    axes[0].set(xlabel="16-bit values (%)", ylabel="same first class (%)", ylim=(-3, 103))
    axes[1].set(xlabel="16-bit values (%)", ylabel="relative error of the logits", yscale="log")
    axes[1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure
