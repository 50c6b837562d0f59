"""Is the instability what stands in the way? What few bits of weights do to networks trained on ImageNet.

Weights are quantised and nothing is trained. How far does that move the activations of each layer, and how
many predictions return when every channel gets its mean and spread of full precision back? On photographs, by
agreement with the network in full precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor, nn

from lib.chapter.figures import arm_styles
from lib.data.preprocessing import Preprocessing
from lib.experiments.pretrained import SOURCES, Pretrained
from lib.quantization.convert import quantize
from lib.quantization.duq import DuQ
from lib.quantization.moments import (
    hidden_convolutions,
    output_moments,
    restore_moments,
    weight_shifts,
)

#: Those with a classifier, whose predictions can be compared; the mobile one first.
CLASSIFIERS = ("MobileNet-v2", "SqueezeNet")
#: The mobile network first, then the controls.
NETWORKS = (CLASSIFIERS[0], *(name for name in reversed(SOURCES) if name != CLASSIFIERS[0]))
#: Of weights, at which rules compare.
JUDGED_BITS = (4, 3)
#: Of so many photographs at most.
PHOTOGRAPHS = 12
#: Pixels of the crops on which shifts are compared: the least that AlexNet takes.
SHIFT_SIZE = 64


def check_bits(bits: Sequence[int]) -> None:
    """ValueError if bits are missing at which rules compare."""
    if not set(JUDGED_BITS) <= set(bits):
        raise ValueError(f"moment_bits must have 3 and 4, at which C1c and C1e are judged; got {list(bits)}")


def grouped_crops(
    photographs: Mapping[str, Image], preprocessing: Preprocessing, *, size: int, count: int
) -> list[Tensor]:
    """Random crops of each photograph: (count, 3, size, size), of the first twelve if there are more.

    Always the same ones: there is no seed, and runs that differ in theirs have equal numbers here.

    Raises
    ------
    ValueError
        There is one photograph alone: moments are counted on others than predictions.
    """
    if len(photographs) < 2:
        raise ValueError(f"moments are compared on at least 2 photographs, got {len(photographs)}")
    crop, random = replace(preprocessing, resize=size, crop=size), np.random.default_rng(0)
    chosen = list(photographs.values())[:PHOTOGRAPHS]
    return [torch.stack([crop.train(image, random) for _ in range(count)]) for image in chosen]


def with_few_bits(network: nn.Module, sample: Tensor, bits: int) -> nn.Module:
    """A copy with weights in DuQ's grid of least squared error; activations stay as they are."""
    make = partial(DuQ, bits, grid="weight", range_from="mse")
    return quantize(network, sample, weights=lambda layer: make()).eval()


def shifts(
    networks: Mapping[str, Pretrained], crops: Mapping[str, Sequence[Tensor]], bits: Sequence[int]
) -> pd.DataFrame:
    """How far weights in few bits move activations, on the same input.

    Parameters
    ----------
    networks
        By name.
    crops
        By name of the network, a group for each photograph.
    bits
        Of the weights.

    Returns
    -------
    DataFrame
        ``network``, ``bits``, ``photograph`` (its number), ``layer`` and ``divergence`` from full precision.
    """
    parts = []
    for name, (network, _) in networks.items():
        for width in bits:
            quantised = with_few_bits(network, crops[name][0][:1], width)
            found = pd.DataFrame(weight_shifts(network, quantised, crops[name])).rename_axis("photograph")
            long = found.melt(var_name="layer", value_name="divergence", ignore_index=False).reset_index()
            parts.append(long.assign(network=name, bits=width))
    return pd.concat(parts)[["network", "bits", "photograph", "layer", "divergence"]]


@torch.no_grad()
def predictions(network: nn.Module, crops: Sequence[Tensor], bits: Sequence[int]) -> pd.DataFrame:
    """Share of crops whose first class is that of full precision, quantised and with moments restored.

    Moments are counted on every second photograph, and predictions compared on the others.

    Returns
    -------
    DataFrame
        ``bits``, ``photograph``, ``weights`` (``quantised`` or ``moments restored``) and ``agreement`` in
        percent.
    """
    exact = [network(images).argmax(1) for images in crops]
    halves = [torch.cat(crops[half::2]) for half in (0, 1)]
    rows, wanted = [], None
    for width in bits:
        quantised = with_few_bits(network, crops[0][:1], width)
        wanted = wanted or [output_moments(network, half, hidden_convolutions(quantised)) for half in halves]
        restored = [restore_moments(quantised, *both) for both in zip(wanted, halves, strict=True)]
        for number, (images, first) in enumerate(zip(crops, exact, strict=True)):
            arms = {"quantised": quantised, "moments restored": restored[1 - number % 2]}
            for arm, one in arms.items():
                same = (one(images).argmax(1) == first).double().mean()
                rows.append((width, number, arm, 100 * float(same)))
    return pd.DataFrame(rows, columns=["bits", "photograph", "weights", "agreement"])


def returned(agreement: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """What the rule about a network's predictions compares, at 4 and at 3 bits: a value per photograph.

    Parameters
    ----------
    agreement
        Of `predictions`.
    """
    measured = {}
    for bits in JUDGED_BITS:
        rows = agreement[agreement["bits"] == bits]
        arms = rows.pivot_table(index="photograph", columns="weights", values="agreement")
        arms["half of the way back"] = (100 + arms["quantised"]) / 2
        measured[f"agreement, {CLASSIFIERS[0]}, {bits} bits (%)"] = arms.to_dict("list")
    return measured


def log_shifts(found: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Logarithm to base 10 of the median over layers at 4 and 3 bits, by network, a value per photograph.

    Parameters
    ----------
    found
        Of `shifts`.
    """
    medians = found.groupby(["bits", "network", "photograph"])["divergence"].median()
    return {
        f"log10 divergence, {bits}-bit weights": {
            name: np.log10(medians[bits, name]).tolist() for name in found["network"].unique()
        }
        for bits in JUDGED_BITS
    }


def moments_figure(found: pd.DataFrame, agreement: pd.DataFrame) -> Figure:
    """Shift of the activations over the bits of the weights, and agreement before and after its undoing.

    Two panels, one above the other; means over photographs.

    Parameters
    ----------
    found, agreement
        Of `shifts`; of `predictions`, with a column ``network``.
    """
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 6.4), sharex=True)
    medians = found.groupby(["network", "bits", "photograph"], sort=False)["divergence"].median()
    means = medians.groupby(level=["network", "bits"], sort=False).mean()
    colours, markers, _ = arm_styles(list(NETWORKS))
    for name, rows in means.groupby(level="network", sort=False):
        style = {"color": colours[name], "marker": markers[name]}
        axes[0].plot(rows.index.get_level_values("bits"), rows, label=name, **style)
    table = agreement.groupby(["network", "weights", "bits"], sort=False)["agreement"].mean()
    for (name, weights), rows in table.groupby(level=["network", "weights"], sort=False):
        style = {"color": colours[name], "marker": markers[name]}
        line = "-" if weights == "moments restored" else ":"
        axes[1].plot(rows.index.get_level_values("bits"), rows, line, label=f"{name}, {weights}", **style)
    axes[0].set(ylabel="divergence from full precision\n(nats, median over layers)", yscale="log")
    axes[1].set(
        xlabel="weight bits",
        xticks=sorted(found["bits"].unique()),
        ylabel="same first class (%)",
        ylim=(-3, 103),
    )
    for axis in axes:
        axis.legend(fontsize="small")
    return figure
