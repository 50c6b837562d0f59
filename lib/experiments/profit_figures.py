"""The figures of the PROFIT chapter."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from lib.chapter.figures import MARKERS, seeds_bar
from lib.experiments.profit_map import gains
from lib.quantization.duq import DuQ, set_ranges

LINES = ("-", "--", "-.", ":")
GREY = "#555555"


def staircase_figure(bits: int = 3, range_: float = 3.0) -> Figure:
    """Output of three DuQ grids over the input, and what they do to the gradient of the input."""
    x = torch.linspace(-3.5, 4.5, 1601)
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
    shown = {
        "behind ReLU": (DuQ(bits, grid="unsigned", activation="relu"), "--"),
        "symmetric": (DuQ(bits, grid="symmetric"), ":"),
        "behind h-swish": (DuQ(bits, grid="hswish", activation="hswish"), "-"),
    }
    for label, (quantiser, line) in shown.items():
        set_ranges(quantiser.a, quantiser.c, torch.tensor(range_))
        inputs = x.clone().requires_grad_()
        y = quantiser(inputs)
        (slope,) = torch.autograd.grad(y.sum(), inputs)
        axes[0].plot(x, y.detach(), line, label=label)
        axes[1].plot(x, slope, line, label=label)
    axes[0].plot(x, nn.functional.hardswish(x), color=GREY, linestyle=(0, (1, 3)), label="h-swish")
    axes[0].set(xlabel="input of the activation", ylabel="quantised output")
    axes[1].set(xlabel="input of the activation", ylabel="factor on the gradient")
    axes[0].legend()
    return figure


def instability_figure(aiwq: pd.DataFrame, by_kind: pd.DataFrame) -> Figure:
    """AIWQ of each convolution in the order of the network, and medians of three kinds over the bits.

    Parameters
    ----------
    aiwq, by_kind
        As `lib.experiments.profit_measurements.instability_by_layer` and `medians_by_kind` give.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=[1.6, 1], sharey=True)
    for bits, line in zip(aiwq.columns.unique("weight bits"), LINES, strict=False):
        means = aiwq[bits].mean(axis=1)
        axes[0].plot(np.arange(1, len(means) + 1), means, linestyle=line, label=f"{bits} bits")
    for kind, marker in zip(by_kind, MARKERS, strict=False):
        axes[1].plot(by_kind.index, by_kind[kind], marker=marker, label=kind)
    axes[0].set(xlabel="convolution", ylabel="AIWQ (nats)", yscale="log", ylim=(1e-7, 1e-2))
    axes[1].set(xlabel="weight bits", xticks=list(by_kind.index))
    axes[0].legend(ncols=2, fontsize="small")
    axes[1].legend()
    return figure


def hswish_figure(normal: pd.DataFrame, layers: pd.DataFrame) -> Figure:
    """Quality of grids for h-swish: of normal inputs over their spread, and of trained networks' layers.

    Parameters
    ----------
    normal
        As `lib.experiments.profit_measurements.normal_quality` gives.
    layers
        A row per seed, a column per grid.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=[1.4, 1], sharey=True)
    for place, (grid, marker) in enumerate(zip(normal, MARKERS, strict=False)):
        axes[0].plot(normal.index, normal[grid], marker=marker, label=grid)
        seeds_bar(axes[1], place, layers[grid], fmt=marker)
    axes[0].set(
        xlabel="standard deviation of the input of h-swish", ylabel="signal to quantisation noise (dB)"
    )
    axes[1].set(
        xticks=range(len(layers.columns)), xticklabels=list(layers), xlabel="grid, layers of trained networks"
    )
    axes[0].legend(title="grid")
    return figure


def map_figure(scores: pd.DataFrame) -> Figure:
    """What freezing changes, in points of top-1: a panel per bits, a place per length and width.

    Parameters
    ----------
    scores
        Rows of `lib.experiments.profit_map.freezing_scores`.
    """
    gain = gains(scores)
    bits = list(dict.fromkeys(scores["bits"]))
    places = list(dict.fromkeys(zip(scores["width"], scores["steps"], strict=True)))
    figure, axes = plt.subplots(1, len(bits), figsize=(4.8 * len(bits), 3.8), sharey=True, squeeze=False)
    looks: Mapping[str, dict] = {
        "PROFIT": {"fmt": "o", "color": "C0", "shift": -0.15},
        "most stable first": {"fmt": "s", "color": "C1", "shift": 0.15},
    }
    for axis, place_bits in zip(axes[0], bits, strict=True):
        for arm, look in looks.items():
            shift, style = look["shift"], {"fmt": look["fmt"], "color": look["color"]}
            for number, (width, steps) in enumerate(places):
                values = gain.loc[(place_bits, width, steps), arm].dropna()
                seeds_bar(axis, number + shift, values, label=None if number else arm, **style)
        axis.axhline(0, color=GREY, linewidth=1)
        ticks = [f"{steps} steps\nwidth {width}" for width, steps in places]
        axis.set(title=f"weights in {place_bits} bits", xticks=range(len(places)), xticklabels=ticks)
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.set_yscale("symlog", linthresh=5, linscale=2)
    points = [-50, -20, -5, -2, 0, 2, 5, 20, 50]
    axes[0, 0].set(ylabel="change in top-1 (points)", yticks=points, yticklabels=points)
    axes[0, 0].legend(fontsize="small")
    return figure
