"""Errors of value-aware quantization without any training: of values, of activations, and of predictions.

The networks are pretrained, the pictures photographs. Trainings are in
`lib.experiments.value_aware_training`, memory in `lib.experiments.value_aware_memory`, the method itself in
`lib.quantization`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from lib.data.imagenet import ImageFolder
from lib.data.preprocessing import Preprocessing
from lib.inspection import captured, evaluating
from lib.metrics.signal import sqnr
from lib.quantization.convert import quantize
from lib.quantization.largest import split
from lib.quantization.quantizer import Quantizer
from lib.quantization.training_memory import bits_per_value
from lib.quantization.uniform import Uniform
from lib.quantization.value_aware import ValueAware, fake_quantize
from lib.training.classifiers import accuracy

LINES = ("o-", "s--", "D:", "^-.", "v-", "P--", "X:", "*-.")


# --- activations --------------------------------------------------------------------------------------------


@torch.no_grad()
def layer_inputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Inputs of all convolutions but the first, by the layer's name, in evaluation mode."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    with evaluating(network), captured(network, names) as found:
        network(images)
    return dict(list(found.items())[1:])


#: A code's width, the share of large values, and whether the grid is clipped at least error.
Setting = tuple[int, float, bool]

#: What is compared on real activations and weights: widths with shares of large values, and clipped grids.
SETTINGS: tuple[Setting, ...] = (
    *((bits, ratio, False) for bits in (2, 3, 4) for ratio in (0, 0.001, 0.005, 0.01, 0.02, 0.05)),
    *((bits, 0, True) for bits in (2, 3, 4, 5)),
)


def label(bits: int, ratio: float, clipped: bool = False) -> str:
    """``(4, 1 %)`` or ``4 bits, clipped``."""
    return f"{bits} bits, clipped" if clipped else f"({bits}, {100 * ratio:g} %)"


def input_errors(network: nn.Module, images: Tensor, settings: Sequence[Setting] = SETTINGS) -> pd.DataFrame:
    """Signal to quantization noise of the inputs of a network's layers, with each image by itself.

    Returns
    -------
    DataFrame with ``image``, ``setting``, ``bits``, ``ratio``, ``clipped``, ``stored bits`` and ``SQNR`` (dB,
    mean over layers).
    """
    found = []
    for index in range(len(images)):
        inputs = layer_inputs(network, images[index : index + 1]).values()
        found.append(_noise(inputs, settings).assign(image=index))
    keys = ["image", "setting", "bits", "ratio", "clipped", "stored bits"]
    return pd.concat(found).groupby(keys, sort=False, as_index=False)["SQNR"].mean()


def weight_errors(network: nn.Module, settings: Sequence[Setting] = SETTINGS) -> pd.DataFrame:
    """The same of the weights of all its convolutions: a row per ``layer`` and setting."""
    weights = [layer.weight.detach() for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return _noise(weights, settings)


def _noise(tensors: Iterable[Tensor], settings: Sequence[Setting]) -> pd.DataFrame:
    rows = []
    for layer, x in enumerate(tensors):
        for bits, ratio, clipped in settings:
            rounded = fake_quantize(x, bits, ratio, grid=_grid(x), clipped=clipped)
            known = (label(bits, ratio, clipped), bits, ratio, clipped, bits_per_value(bits, ratio))
            rows.append((layer, *known, sqnr(x, rounded)))
    columns = ["layer", "setting", "bits", "ratio", "clipped", "stored bits", "SQNR"]
    return pd.DataFrame(rows, columns=columns)


#: Of `SETTINGS`, those that rules compare.
JUDGED = tuple(label(*one) for one in ((4, 0, False), (4, 0.01, False), (3, 0.02, False), (4, 0, True)))


def compared(errors: pd.DataFrame) -> dict[str, list[float]]:
    """What rules compare: SQNR by setting of `JUDGED`, in the order of pictures or layers."""
    return errors.groupby("setting")["SQNR"].agg(list)[list(JUDGED)].to_dict()


def _grid(x: Tensor) -> str:
    return "signed" if float(x.amin()) < 0 else "unsigned"


# --- predictions --------------------------------------------------------------------------------------------


def crops(image: Image.Image, count: int, preprocessing: Preprocessing, *, seed: int) -> Tensor:
    """Random parts of a photograph, as in training on ImageNet: (count, 3, crop, crop)."""
    random = np.random.default_rng(seed)
    return torch.stack([preprocessing.train(image, random) for _ in range(count)])


def check_inference(bits: Sequence[int], ratios: Sequence[float]) -> None:
    """ValueError if C8 or C8b, or the text beside them, is about bits or a ratio that are not measured."""
    if not {4, 6} <= set(bits) or not {0.0, 0.001, 0.01} <= set(ratios):
        raise ValueError(
            f"inference_bits must have 4 and 6, and inference_ratios 0, 0.001 and 0.01, at which C8 and C8b "
            f"are judged; got {list(bits)} and {list(ratios)}"
        )


class Scales(NamedTuple):
    """How weights and activations get their grids in inference."""

    per_channel: bool = False  # of weights: a grid per output channel, clipped at least error
    clipped: bool = False  # of activations


PER_TENSOR = Scales()

#: By name: one grid per tensor for everything; weights per channel, as is usual since; and the control.
SCALES = {
    "one grid per tensor": PER_TENSOR,
    "weights per channel": Scales(per_channel=True),
    "weights per channel, activations clipped": Scales(per_channel=True, clipped=True),
}


@torch.no_grad()
def inference_errors(
    network: nn.Module, images: Mapping[str, Tensor], bits: Sequence[int], ratios: Sequence[float]
) -> pd.DataFrame:
    """What few bits and large values of 16 bits do to a network's outputs on groups of images, untrained.

    Weights and activations of all layers, the image exact, under each of `SCALES`, the clipped one without
    large values; these are found in every tensor as it passes, over a group at a time. Weights with a grid
    per channel have no large values.

    Returns
    -------
    DataFrame with ``group``, ``scales``, ``bits``, ``ratio``, ``agreement`` (percent of images whose first
    class is that of full precision) and ``error`` (mean over images of the relative error of the logits).
    """
    with evaluating(network):
        exact = {name: network(group) for name, group in images.items()}
    rows = []
    for (scales, kind), width, ratio in product(SCALES.items(), bits, ratios):
        if kind.clipped and ratio:
            continue
        quantized = _with_few_bits(network, next(iter(images.values())), width, ratio, kind)
        for name, group in images.items():
            got, reference = quantized(group), exact[name]
            same = (got.argmax(1) == reference.argmax(1)).double().mean()
            error = ((got - reference).norm(dim=1) / reference.norm(dim=1)).mean()
            rows.append((name, scales, width, ratio, 100 * float(same), float(error)))
    return pd.DataFrame(rows, columns=["group", "scales", "bits", "ratio", "agreement", "error"])


def _with_few_bits(
    network: nn.Module,
    images: Tensor,
    bits: int,
    ratio: float,
    scales: Scales = PER_TENSOR,
) -> nn.Module:
    """A copy with all weights and activations in few bits, and this share of large values in 16."""

    def of_weights(layer: nn.Module) -> Quantizer:
        if scales.per_channel:
            return Uniform(bits, range_from="mse", channels=len(layer.weight))
        return ValueAware(bits, ratio=ratio, signed=True)

    return quantize(
        network,
        images,
        weights=of_weights,
        activations=lambda kind: ValueAware(
            bits, ratio=ratio, signed=kind != "unsigned", clipped=scales.clipped
        ),
    ).eval()


def labelled_accuracy(
    network: nn.Module, photographs: ImageFolder, bits: Sequence[int], ratios: Sequence[float]
) -> pd.DataFrame:
    """Top-1 accuracy on labelled photographs, in full precision and as `inference_errors` quantises.

    One grid per tensor; large values are found over one photograph at a time.

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


def logit_errors(results: pd.DataFrame, network: str, bits: int) -> dict[str, dict[str, list[float]]]:
    """Errors of a network's logits with weights per channel: one per photograph, by setting.

    No large values, 0.1 and 1 % of them, and clipped activations.

    Parameters
    ----------
    results
        Of `inference_errors`, with a column ``network``.
    network, bits
        Which of its rows.
    """
    results = results[results["network"] == network]
    rows = results[(results["bits"] == bits) & results["ratio"].isin([0.0, 0.001, 0.01])]
    rows = rows[rows["scales"] != "one grid per tensor"]
    clipped = rows["scales"] == "weights per channel, activations clipped"
    names = [label(bits, ratio, cut) for ratio, cut in zip(rows["ratio"], clipped, strict=True)]
    errors = rows.assign(setting=names).groupby("setting", sort=False)["error"].agg(list)
    return {f"logit error, {network}": errors.to_dict()}


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
    """Signal to noise over the bits stored (`input_errors`): a line per width, and one of clipped grids.

    A panel per network, one above the other; mean over images, from the lowest to the highest.
    """
    networks = list(dict.fromkeys(errors["network"]))
    size = (6.2, 0.6 + 2.7 * len(networks))
    figure, axes = plt.subplots(len(networks), 1, figsize=size, sharex=True, squeeze=False)
    for axis, network in zip(axes[:, 0], networks, strict=True):
        rows = errors[errors["network"] == network]
        kinds = [
            (f"{bits} bits, large values kept", part) for bits, part in rows[~rows["clipped"]].groupby("bits")
        ]
        kinds.append(("no large values, clipped at least error", rows[rows["clipped"]]))
        for (name, part), line in zip(kinds, LINES, strict=False):
            over = part.groupby("stored bits")["SQNR"].agg(["mean", "min", "max"])
            axis.plot(over.index, over["mean"], line, label=name)
            axis.fill_between(over.index, over["min"], over["max"], alpha=0.15)
        axis.set(ylabel=f"signal to noise (dB)\n{network}")
    axes[-1, 0].set(xlabel="bits stored per value, places of large values included")
    axes[0, 0].legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def inference_figure(results: pd.DataFrame) -> Figure:
    """Agreement of the first class and error of the logits over the share of large values, at 4 bits.

    Two panels, one above the other; a line per network and way of scaling. Clipped activations have no large
    values: a single point, at 0 %. At most eight lines are drawn.
    """
    results = results[results["bits"] == 4]
    means = results.groupby(["network", "scales", "ratio"], sort=False)[["agreement", "error"]].mean()
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 6.4), sharex=True)
    for ((network, scales), rows), line in zip(means.groupby(level=[0, 1], sort=False), LINES, strict=False):
        share = 100 * rows.index.get_level_values("ratio")
        for axis, column in zip(axes, ("agreement", "error"), strict=True):
            axis.plot(share, rows[column], line, label=f"{network}, {scales}")
    axes[0].set(ylabel="same first class (%)", ylim=(-3, 103))
    axes[1].set(xlabel="16-bit values (%)", ylabel="relative error of the logits", yscale="log")
    axes[0].legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
