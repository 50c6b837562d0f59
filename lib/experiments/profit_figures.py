"""The figures of the PROFIT chapter."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from lib.chapter.figures import MARKERS, seeds_bar
from lib.quantization.duq import DuQ, set_ranges

LINES = ("-", "--", "-.", ":")
GREY = "#555555"


def staircase_figure(bits: int = 3, range_: float = 3.0) -> Figure:
    """Output of three DuQ grids over the input, and what they do to the gradient of the input."""
    x = torch.linspace(-3.5, 4.5, 1601)
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 6.4), sharex=True)
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
    axes[0].set(ylabel="quantised output")
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
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 6.4), sharey=True)
    for bits, line in zip(aiwq.columns.unique("weight bits"), LINES, strict=False):
        means = aiwq[bits].mean(axis=1)
        axes[0].plot(np.arange(1, len(means) + 1), means, linestyle=line, label=f"{bits} bits")
    for kind, marker in zip(by_kind, MARKERS, strict=False):
        axes[1].plot(by_kind.index, by_kind[kind], marker=marker, label=kind)
    axes[0].set(xlabel="convolution", ylabel="AIWQ (nats)", yscale="log", ylim=(1e-7, 1e-2))
    axes[1].set(xlabel="weight bits", ylabel="AIWQ (nats)", xticks=list(by_kind.index))
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
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 6.4), sharey=True)
    for place, (grid, marker) in enumerate(zip(normal, MARKERS, strict=False)):
        axes[0].plot(normal.index, normal[grid], marker=marker, label=grid)
        seeds_bar(axes[1], place, layers[grid], fmt=marker)
    axes[0].set(xlabel="standard deviation of the input of h-swish")
    axes[1].set(
        xticks=range(len(layers.columns)), xticklabels=list(layers), xlabel="grid, layers of trained networks"
    )
    for axis in axes:
        axis.set(ylabel="signal to noise (dB)")
    axes[0].legend(title="grid")
    return figure
