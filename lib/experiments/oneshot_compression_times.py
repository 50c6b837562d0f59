"""The published AlexNet and its compressed form on this processor: every layer, every part, both networks.

Random weights: time does not depend on them. One image, one thread, torch's own layers; the original's fc6 is
a matrix product, its fastest form here.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from lib.cost.latency import paired_latency
from lib.cost.passes import forward_pass, layer_passes
from lib.experiments.oneshot_compression_baselines import initialise_gaussian
from lib.experiments.oneshot_compression_counts import CONVOLUTIONS, FULLY_CONNECTED
from lib.training.loop import seeded

BLOCKS = 6
WHOLE, WEIGHTED = "whole network", "all weighted layers"
GROUPS = {
    WEIGHTED: (*CONVOLUTIONS, *FULLY_CONNECTED),
    "convolutions": CONVOLUTIONS,
    "fully connected layers": FULLY_CONNECTED,
}


def with_random_weights(network: nn.Module) -> nn.Module:
    """The same network off the meta device, in evaluation mode, with He's Gaussian weights of seed 0."""
    seeded(0)
    return initialise_gaussian(network.to_empty(device="cpu").eval())


def block_times(
    dense: nn.Module,
    thin: nn.Module,
    dense_table: pd.DataFrame,
    thin_table: pd.DataFrame,
    *,
    rounds: int,
) -> pd.DataFrame:
    """Time both networks, their layers and the compressed one's parts, in turn in each round.

    Parameters
    ----------
    dense, thin
        AlexNet, original and compressed.
    dense_table, thin_table
        Their operations, `lib.experiments.oneshot_compression_counts.operation_tables`.
    rounds
        Interleaved rounds of timing.

    Returns
    -------
    DataFrame
        Milliseconds: medians of blocks of rounds (at most six rows), robust to outliers. Columns:
        ``AlexNet``, ``conv1`` … ``fc8``, each also with a star where compressed, and the parts by their
        whole names.
    """
    shape = (1, *dense.input_shape)
    functions = {"AlexNet": forward_pass(dense, shape), "AlexNet*": forward_pass(thin, shape)}
    for row in dense_table.itertuples():
        name = row.layer.split(".")[1]
        functions[name] = forward_pass(dense.get_submodule(row.layer), row.input_shape)
        functions[f"{name}*"] = forward_pass(thin.get_submodule(row.layer), row.input_shape)
    functions |= layer_passes(thin, thin_table)
    log = paired_latency(functions, repeats=rounds, warmup=min(3, rounds))
    time = log.pivot_table(index="round", columns="function", values="milliseconds")
    return time.groupby(np.arange(len(time)) * BLOCKS // len(time)).median()


def speed_ups(time: pd.DataFrame) -> pd.DataFrame:
    """Time of the original over time of the compressed one, in each block.

    Parameters
    ----------
    time
        From `block_times`.

    Returns
    -------
    DataFrame
        Columns ``conv1`` … ``fc8``, ``whole network``, ``all weighted layers``, ``convolutions`` and
        ``fully connected layers``; a group's is that of its summed times.
    """
    speed = {layer: time[layer] / time[f"{layer}*"] for layer in GROUPS[WEIGHTED]}
    speed[WHOLE] = time["AlexNet"] / time["AlexNet*"]
    for name, group in GROUPS.items():
        stars = [f"{layer}*" for layer in group]
        speed[name] = time[list(group)].sum(axis=1) / time[stars].sum(axis=1)
    return pd.DataFrame(speed)


def reductions(by_layer: pd.DataFrame) -> pd.Series:
    """Multiply–accumulates of the original over those of the compressed layers, summed over each of `GROUPS`.

    Parameters
    ----------
    by_layer
        From `lib.experiments.oneshot_compression_counts.layers_before_and_after`.
    """
    sums = {name: by_layer.loc[list(group), ["macs", "macs*"]].sum() for name, group in GROUPS.items()}
    return pd.Series({name: total["macs"] / total["macs*"] for name, total in sums.items()})


def inner_parts(parts: pd.DataFrame) -> pd.DataFrame:
    """Of a compressed AlexNet's parts those of conv2 to conv5, which have all three kinds."""
    return parts[parts["layer"].isin(CONVOLUTIONS[1:])]


def throughputs(time: pd.DataFrame, parts: pd.DataFrame) -> pd.DataFrame:
    """Billions of multiply–accumulates a second of the 1 × 1 parts together and of the cores together.

    Parameters
    ----------
    time
        From `block_times`.
    parts
        From `inner_parts`.

    Returns
    -------
    DataFrame
        A row per block, columns ``1 × 1 parts`` and ``D × D cores``.
    """
    rate = {}
    for kind, which in {"1 × 1 parts": ("reduce", "expand"), "D × D cores": ("core",)}.items():
        rows = parts[parts["part"].isin(which)]
        rate[kind] = rows["macs"].sum() / 1e6 / time[list(rows["full"])].sum(axis=1)
    return pd.DataFrame(rate)


def shares_of_parts(time: pd.DataFrame, parts: pd.DataFrame) -> pd.DataFrame:
    """Percent of the operations and of the median time that reduce, core and expand parts take."""
    share = parts.assign(ms=time.median()[parts["full"]].to_numpy())
    share = share.groupby("part", sort=False)[["macs", "ms"]].sum()
    return (100 * share / share.sum()).set_axis(["multiply–accumulates", "time"], axis=1)


def latency_figure(speed: pd.DataFrame, fewer: Mapping[str, float], share: pd.DataFrame) -> Figure:
    """Above: reduction in operations and speed-up of each layer; below: shares of the parts.

    Parameters
    ----------
    speed
        From `speed_ups`; its columns are drawn as they come, median and middle half.
    fewer
        Original over compressed multiply–accumulates, by the same names.
    share
        From `shares_of_parts`.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.2, 7.4), height_ratios=[1.4, 1])
    low, middle, high = speed.quantile([0.25, 0.5, 0.75]).to_numpy()
    places = range(speed.shape[1])
    above.plot([fewer[name] for name in speed], places, "kD", fillstyle="none", label="multiply–accumulates")
    above.errorbar(middle, places, xerr=[middle - low, high - middle], fmt="o", capsize=3, label="time")
    above.set_yticks(places, list(speed))
    above.invert_yaxis()
    above.set(xlabel="original / compressed", xlim=(0, None))
    above.legend(fontsize="small")
    share.plot.bar(ax=below, rot=0, color=["C0", "C1"], edgecolor="black")
    below.legend(loc="upper center", ncols=2, fontsize="small")
    below.set(xlabel="part of the chain", ylabel="share (%)", ylim=(0, 105))
    return figure
