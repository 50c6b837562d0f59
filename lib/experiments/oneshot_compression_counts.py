"""What counting says of the published networks, as they were and with the paper's ranks (Kim et al., 2016).

The networks stand at their published definitions on the meta device: no memory for their weights. "FLOPs" are
what fits the paper best, multiply–accumulates and one addition per output for the bias; weights are counted
without biases.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn

from lib.compression.one_shot import compress
from lib.compression.ranks import Ranks
from lib.cost.operations import count_operations, totals
from lib.models.vision.alexnet import AlexNet
from lib.models.vision.googlenet import GoogLeNet
from lib.models.vision.vgg import VGG, VGGS

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
FULLY_CONNECTED = ("fc6", "fc7", "fc8")


def published_networks() -> dict[str, nn.Module]:
    """The paper's four networks, by name, on the meta device."""
    with torch.device("meta"):
        return {"AlexNet": AlexNet(), "VGG-S": VGGS(), "GoogLeNet": GoogLeNet(), "VGG-16": VGG()}


def layer_ranks(numbers: Mapping[str, float]) -> dict[str, Ranks]:
    """Ranks of each layer, from numbers such as ``{"conv1, R4": 26, "conv2, R3": 25, "conv2, R4": 59}``.

    Parameters
    ----------
    numbers : mapping
        Those whose name does not end in R3 or R4 are left out.

    Returns
    -------
    dict
        (R3, R4), or R4 alone for a layer that is factored on one side.
    """
    found: dict[str, dict[str, int]] = {}
    for name, value in numbers.items():
        layer, _, side = name.rpartition(", ")
        if side in ("R3", "R4"):
            found.setdefault(layer, {})[side] = int(value)
    return {layer: (side["R3"], side["R4"]) if "R3" in side else side["R4"] for layer, side in found.items()}


def with_ranks(alexnet: AlexNet, ranks: Mapping[str, Ranks]) -> AlexNet:
    """AlexNet's compressed structure, with fresh weights (on the meta device, with none).

    Parameters
    ----------
    alexnet
    ranks
        By the layer's short name, ``conv1`` … ``fc8``; the layers to be replaced.
    """
    full = {
        f"{'features' if layer in CONVOLUTIONS else 'classifier'}.{layer}": r for layer, r in ranks.items()
    }
    return compress(alexnet, full, maps={"classifier.fc6": alexnet.map}, weights="fresh").model


def operation_tables(networks: Mapping[str, nn.Module]) -> dict[str, pd.DataFrame]:
    """Operations of one image of the network's own size, layer by layer (`count_operations`), by network."""
    return {name: count_operations(model, (1, *model.input_shape)) for name, model in networks.items()}


def in_millions(table: pd.DataFrame) -> dict[str, float]:
    """Sums of a table of operations in millions: ``weights``, ``macs``, ``bias_adds``, their ``FLOPs``."""
    millions = {name: totals(table)[name] / 1e6 for name in ("weights", "macs", "bias_adds")}
    return millions | {"FLOPs": millions["macs"] + millions["bias_adds"]}


def parts_of_layers(table: pd.DataFrame) -> pd.DataFrame:
    """A compressed network's table with ``layer`` (conv2), ``part`` (core) and ``full``, the whole name."""
    parts = table.assign(full=table["layer"])
    parts[["layer", "part"]] = parts["full"].str.extract(r"\.(\w+)\.(\w+)$").to_numpy()
    return parts


def layers_before_and_after(
    table: pd.DataFrame, parts: pd.DataFrame, ranks: Mapping[str, Ranks]
) -> pd.DataFrame:
    """AlexNet layer by layer: ranks, weights and multiply–accumulates, original and compressed (a star).

    Parameters
    ----------
    table : DataFrame
        Of the original (`operation_tables`).
    parts : DataFrame
        Of the compressed one (`parts_of_layers`).
    ranks : mapping
        See `layer_ranks`.

    Returns
    -------
    DataFrame
        Indexed by ``layer``: ``R3, R4`` (text), ``weights``, ``weights*``, ``weights ratio``, ``macs``,
        ``macs*``, ``macs ratio``.
    """
    before = table.set_index(table["layer"].str.split(".").str[1])
    frame = pd.Series(ranks, name="R3, R4").rename_axis("layer").astype(str).str.strip("()").to_frame()
    for what in ("weights", "macs"):
        frame[what], frame[f"{what}*"] = before[what], parts.groupby("layer")[what].sum()
        frame[f"{what} ratio"] = frame[what] / frame[f"{what}*"]
    return frame


def alexnet_numbers(
    original: Mapping[str, float], compressed: Mapping[str, float], conv1_macs: float
) -> dict[str, float]:
    """AlexNet's compressed sums and the ratios, and the FLOPs if the original conv1 is counted in addition.

    Parameters
    ----------
    original, compressed
        From `in_millions`.
    conv1_macs
        Multiply–accumulates of the original conv1, in millions.
    """
    twice = compressed["FLOPs"] + conv1_macs
    return {
        "weights of the compressed network": compressed["weights"],
        "weights, original over compressed": original["weights"] / compressed["weights"],
        "FLOPs of the compressed network": compressed["FLOPs"],
        "FLOPs, original over compressed": original["FLOPs"] / compressed["FLOPs"],
        "FLOPs under this reading": twice,
        "original over compressed, under this reading": original["FLOPs"] / twice,
    }


def googlenet_numbers(table: pd.DataFrame, printed: Mapping[str, float]) -> dict[str, float]:
    """The ratio of GoogLeNet's weights: of the printed numbers, and of our count without the classifier.

    Parameters
    ----------
    table
        Of the original (`operation_tables`); its last layer is the classifier.
    printed
        ``weights`` and ``weights of the compressed network``, in millions.
    """
    left = printed["weights of the compressed network"]
    headless = in_millions(table)["weights"] - table["weights"].iloc[-1] / 1e6
    return {
        "6.9 over 4.7": printed["weights"] / left,
        "original without its classifier, over 4.7 million": headless / left,
    }


def vgg16_numbers(
    original: pd.DataFrame, compressed: pd.DataFrame, printed: Mapping[str, float]
) -> dict[str, float]:
    """VGG-16's ratios, and what is left of its convolutions: by our count, and by the printed ratio.

    Parameters
    ----------
    original, compressed
        Tables of operations (`operation_tables`); fully connected layers are the same in both.
    printed
        ``weights, original over compressed``.
    """
    before, after = in_millions(original), in_millions(compressed)
    kept = original.loc[original["kind"] == "linear", "weights"].sum() / 1e6
    ratio = "weights, original over compressed"
    return {
        ratio: before["weights"] / after["weights"],
        "FLOPs, original over compressed": before["FLOPs"] / after["FLOPs"],
        "weights of the convolutions": after["weights"] - kept,
        "weights of the convolutions, by the ratio": before["weights"] / printed[ratio] - kept,
    }


def googlenet_readings(table: pd.DataFrame, *, weights_ratio: float, flops_ratio: float) -> pd.DataFrame:
    """Which kernels of GoogLeNet, compressed, could give both printed ratios.

    In a layer of stride 1 a Tucker-2 computes as many times less as it has fewer weights, since its three
    parts see one grid. So the most weights stay under given FLOPs where the maps are smallest.

    Parameters
    ----------
    table
        Of the original (`operation_tables`).
    weights_ratio, flops_ratio
        Original over compressed; the classifier counts in neither of the weights.

    Returns
    -------
    DataFrame
        A row for each set of ``compressed`` kernels, in millions: ``FLOPs of the rest``, ``FLOPs in all``
        that the ratio leaves, ``weights kept at most`` under these, and ``weights to be kept`` by the other
        ratio. The first must not exceed the second, nor the fourth the third.
    """
    modules = table["layer"].str.contains(r"branch3\.conv\.")
    sets = {"3 × 3 in the modules": modules}
    sets["and conv2"] = modules | (table["layer"] == "stem.conv2.conv")
    sets["and conv1"] = sets["and conv2"] | (table["layer"] == "stem.conv1.conv")
    all_of_it = in_millions(table)
    headless = all_of_it["weights"] - table["weights"].iloc[-1] / 1e6
    allowed = all_of_it["FLOPs"] / flops_ratio
    rows = []
    for compressed, chosen in sets.items():
        kernels = table[chosen]
        rest = all_of_it["FLOPs"] - kernels["macs"].sum() / 1e6
        smallest_maps_first = kernels.assign(places=kernels["macs"] / kernels["weights"]).sort_values(
            "places"
        )
        spent = np.cumsum([0.0, *smallest_maps_first["macs"]])
        kept = np.cumsum([0.0, *smallest_maps_first["weights"]])
        most = np.interp((allowed - rest) * 1e6, spent, kept) / 1e6
        to_keep = kernels["weights"].sum() / 1e6 - headless * (1 - 1 / weights_ratio)
        rows.append((compressed, rest, allowed, most, to_keep))
    columns = [
        "compressed",
        "FLOPs of the rest",
        "FLOPs in all",
        "weights kept at most",
        "weights to be kept",
    ]
    return pd.DataFrame(rows, columns=columns).set_index("compressed")


def printed_quotients(
    sizes: Mapping[str, Mapping[str, float]], measured: Mapping[str, float]
) -> dict[str, float]:
    """Original over compressed for each pair of printed numbers of the main table.

    Parameters
    ----------
    sizes : mapping
        By network: ``weights``, ``FLOPs`` and both ``of the compressed network``.
    measured : mapping
        Times and energies by names such as ``VGG-S, phone, time, original`` and ``…, compressed``.

    Returns
    -------
    dict
        By names such as ``VGG-S, weights`` and ``VGG-S, phone, time``.
    """
    quotients = {
        f"{network}, {what}": numbers[what] / numbers[f"{what} of the compressed network"]
        for network, numbers in sizes.items()
        for what in ("weights", "FLOPs")
    }
    for name, value in measured.items():
        pair, _, which = name.rpartition(", ")
        if which == "original":
            quotients[pair] = value / measured[f"{pair}, compressed"]
    return quotients


def arithmetic_intensities(channels: int = 256, side: int = 13) -> dict[str, float]:
    """Operations per number moved of a 1 × 1 and a 3 × 3 convolution of equal width, on one square map.

    Two operations per multiply–accumulate; weights, inputs and outputs are moved once each.
    """
    found = {}
    for taps in (1, 3):
        with torch.device("meta"):
            layer = nn.Conv2d(channels, channels, taps, padding=taps // 2)
        row = count_operations(layer, (1, channels, side, side)).iloc[0]
        moved = row["weights"] + row["input_elements"] + row["output_elements"]
        found[f"{taps} × {taps}, {channels} channels, {side} × {side}"] = row["operations"] / moved
    return found


def subset_totals(base: float, changes: Mapping[str, float] | pd.Series) -> pd.Series:
    """``base`` plus the changes of every subset: which items of a list were counted?

    Parameters
    ----------
    base : float
        The total when no item is chosen.
    changes : mapping or Series
        What each item adds, by name; at most 20 items.

    Returns
    -------
    Series of 2ⁿ totals, indexed by the chosen names, joined by spaces in their order; the empty set first.

    Raises
    ------
    ValueError
        More than 20 items.
    """
    changes = dict(changes)
    if len(changes) > 20:
        raise ValueError(f"at most 20 items, got {len(changes)}: their subsets would not fit in memory")
    names, values = np.array(list(changes), dtype=object), np.array(list(changes.values()), dtype=float)
    chosen = (np.arange(2 ** len(names))[:, None] >> np.arange(len(names))) & 1
    return pd.Series(base + chosen @ values, index=[" ".join(names[row == 1]) for row in chosen])


def readings_of_the_main_table(
    by_layer: pd.DataFrame,
    original: Mapping[str, float],
    compressed: Mapping[str, float],
    *,
    flops: float,
    weights_ratio: float,
) -> pd.DataFrame:
    """Which of AlexNet's layers, left uncompressed or counted twice, would give a printed number.

    Parameters
    ----------
    by_layer
        From `layers_before_and_after`.
    original, compressed
        From `in_millions`.
    flops
        Printed FLOPs of the compressed network, in millions: to be met within half a million.
    weights_ratio
        Printed ratio of the weights: to be met within half of its second decimal.

    Returns
    -------
    DataFrame
        A row for every set of layers (index ``reading``, ``layers``), and for each printed number whether it
        comes out.
    """
    each = {kind: by_layer[kind] / 1e6 for kind in ("weights", "weights*", "macs", "macs*")}
    readings = {}
    for how, gone in (("left uncompressed", 1), ("original counted in addition", 0)):
        change = {what: each[what] - gone * each[f"{what}*"] for what in ("weights", "macs")}
        weights, macs = (subset_totals(compressed[what], extra) for what, extra in change.items())
        fits = {f"{flops:g} million": abs(macs + compressed["bias_adds"] - flops) <= 0.5}
        fits[f"{weights_ratio:g}"] = abs(original["weights"] / weights - weights_ratio) <= 0.005
        readings[how] = pd.DataFrame(fits).rename_axis("layers")
    return pd.concat(readings, names=["reading"])
