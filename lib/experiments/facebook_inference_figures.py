"""The figures of the chapter on inference in data centres."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.chapter.figures import arm_styles
from lib.cost.intensity import arithmetic_intensity
from lib.cost.roofline import Roofline
from lib.quantization.integer import INT16

BLUE, GREY = "#1f77b4", "#555555"
ARMS = ("bf16", "fp16 weights", "int8, FBGEMM", "int8, oneDNN")  # over fp32
ELEMENT_BYTES = {"fp32, oneDNN": 4, "int8, FBGEMM": 1}  # of the kernels held against a roofline
ROWS = ("32 bits", "8 bits", "4 bits", "copy")


def sums_figure(sums: pd.DataFrame) -> Figure:
    """Running sums (columns) over the number of products added, with the range that 16 bits hold."""
    figure, axis = plt.subplots(figsize=(7, 3.6))
    axis.axhspan(*INT16, color="#eeeeee")
    for name, line in zip(sums, ("-", "--", ":"), strict=True):
        axis.plot(sums.index, sums[name], line, label=name, linewidth=3 if line == ":" else 1.5)
    axis.set(xlabel="products added", ylabel="sum")
    axis.legend(fontsize="small")
    return figure


def intensity_figure(counts: Mapping[str, pd.DataFrame], rates: pd.DataFrame) -> Figure:
    """Arithmetic intensity of each layer of each network, and achieved rates over memory on the chip.

    Parameters
    ----------
    counts : mapping
        Network to its table of `lib.cost.operations.count_operations`.
    rates : DataFrame
        From `lib.experiments.facebook_inference.achieved_rates`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6))
    parts = {name: arithmetic_intensity(table) for name, table in counts.items()}
    layers = pd.concat(parts, names=["model"]).reset_index()
    sns.stripplot(
        layers,
        x="activations_and_weights",
        y="model",
        hue="kind",
        size=4,
        ax=left,
        jitter=0.3,
        log_scale=True,
    )
    left.set(xlabel="operations per weight and activation", ylabel="")
    left.legend(title=None, fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    colours, markers, _ = arm_styles(list(rates))
    for name in rates:
        label = name.split(" (")[0]
        right.plot(rates.index, rates[name], color=colours[name], marker=markers[name], label=label)
    right.set(xscale="symlog", xlabel="on-chip memory (MB)", ylabel="achieved Top/s", ylim=(0, 100))
    right.legend(fontsize="x-small")
    return figure


def kernels_figure(
    faster: Mapping[str, Mapping[tuple[int, int, int], pd.DataFrame]],
    rates: pd.DataFrame,
    bytes_per_second: float,
) -> Figure:
    """Speed-ups over fp32, a panel for each level, and the widest level's kernels under their rooflines.

    A roofline's flat part is the fastest product measured, not the processor's peak.

    Parameters
    ----------
    faster : mapping
        Level (the widest last) to what `lib.experiments.facebook_inference_kernels.speed_ups` gives.
    rates : DataFrame
        Of the widest level, from `lib.experiments.facebook_inference_kernels.rates`.
    bytes_per_second : float
        The slope of the rooflines: what a copy read and wrote at best.
    """
    *_, widest = faster
    shapes = sorted(faster[widest], key=lambda shape: np.prod(shape) / shape[1] / shape[2])
    names = ["×".join(map(str, shape)) for shape in shapes]
    figure, (*panels, roof) = plt.subplots(1, len(faster) + 1, figsize=(5 + 3.6 * len(faster), 4.6))
    colours, markers, _ = arm_styles(ARMS)
    for axis, (level, by_shape) in zip(panels, faster.items(), strict=True):
        for arm in ARMS:
            values = np.array([by_shape[shape][arm] for shape in shapes])
            middle = np.median(values, 1)
            spread = abs(np.stack([values.min(1), values.max(1)]) - middle)
            style = dict(fmt=markers[arm], color=colours[arm], label=arm, capsize=2)
            axis.errorbar(range(len(shapes)), middle, yerr=spread, **style)
        axis.axhline(1, color=GREY, linestyle=":")
        axis.set(yscale="log", title=level, xticks=range(len(shapes)), ylim=(0.1, 16))
        axis.set_xticklabels(names, rotation=60, ha="right", fontsize="small")
    panels[0].set_ylabel("speed-up over fp32")
    panels[0].legend(fontsize="x-small")
    intensity = np.logspace(-1, 3)
    for (arm, size), line, marker in zip(ELEMENT_BYTES.items(), "-:", "oD", strict=True):
        gops = [float(rates.loc[(name, arm), "Gop/s"]) for name in names]
        per_byte = [2 * m * n * k / size / (m * n + n * k + m * k) for m, n, k in shapes]
        ceilings = Roofline(1e9 * max(gops), bytes_per_second)
        roof.plot(intensity, ceilings.attainable(intensity) / 1e9, "k" + line)
        roof.plot(per_byte, gops, marker, label=arm)
    roof.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="Gop/s", title="roofline")
    roof.legend(fontsize="x-small")
    return figure


def operators_figure(bandwidth: pd.DataFrame, shares: pd.DataFrame, fused: pd.DataFrame) -> Figure:
    """Bytes of rows read a second; shares of operator time; time of fused operators, separate ones = 1.

    Parameters
    ----------
    bandwidth, fused : DataFrame
        From `bandwidth` and `fused_times` of `lib.experiments.facebook_inference_kernels`.
    shares : DataFrame
        From `lib.experiments.facebook_inference_operators.operator_shares`.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 3.8))
    read = bandwidth[list(ROWS)].melt(value_name="GB/s")
    sns.stripplot(read, y="function", x="GB/s", ax=left, color=BLUE)
    left.set(ylabel="", xlim=(0, None))
    large = shares.loc[:, shares.max() > 0.01]
    large.plot.barh(stacked=True, ax=middle, colormap="tab20", edgecolor="white")
    middle.set(xlabel="share of time", ylabel="")
    middle.legend(fontsize="xx-small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    times = fused.melt(var_name="pair", value_name="time")
    sns.stripplot(times, y="pair", x="time", ax=right, color=BLUE)
    right.axvline(1, color=GREY, linestyle=":")
    right.set(xlabel="time, separate = 1", ylabel="", xlim=(0, None))
    return figure


def accuracy_figure(techniques: pd.DataFrame) -> Figure:
    """Error of the logits after each technique.

    Parameters
    ----------
    techniques : DataFrame
        From `lib.experiments.facebook_inference_accuracy.technique_errors`.
    """
    figure, axis = plt.subplots(figsize=(7, 3.6))
    sns.stripplot(techniques, x="error", y="step", hue="bits", ax=axis, palette="colorblind", dodge=True)
    axis.set(xscale="log", xlabel="relative error of the logits", ylabel="")
    return figure


def sixteen_bit_figure(errors: pd.DataFrame) -> Figure:
    """Error of products by network and way of summing, one scale per tensor above, one per channel below.

    Parameters
    ----------
    errors : DataFrame
        From `lib.experiments.facebook_inference_pretrained.product_errors`, with a column ``network``. Errors
        below 10⁻⁵ are drawn there.
    """
    figure, axes = plt.subplots(2, 1, figsize=(7, 7), sharex=True)
    shown = errors.assign(error=errors["error"].clip(lower=1e-5))
    for axis, scales in zip(axes, ("tensor", "channel"), strict=True):
        rows = shown[shown["scales"] == scales]
        options = dict(palette="colorblind", dodge=True, size=4, legend=scales == "tensor")
        sns.stripplot(rows, x="error", y="sums", hue="network", ax=axis, **options)
        axis.set(xscale="log", ylabel="", title=f"one scale per {scales}", xlabel="")
    axes[0].legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=4)
    axes[1].set(xlabel="relative error of the products (at least 10⁻⁵ shown)")
    return figure
