"""Precision highway: what arithmetic settles, and the errors of quantised networks along depth and time.

Arms and their training are in `lib.experiments.precision_highway`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lib.chapter.figures import curves_figure
from lib.experiments.precision_highway import lstm_forms
from lib.inspection import captured, evaluating
from lib.metrics.signal import sqnr
from lib.models.language.highway import quantize_language_model
from lib.models.language.language_model import LSTMLanguageModel
from lib.models.vision.highway import quantize_resnet
from lib.models.vision.resnet import BasicBlock, ResidualBlock, ResNet, resnet
from lib.quantization.convert import set_bits
from lib.quantization.laplace import Laplace, laplace_error, laplace_step
from lib.quantization.uniform import Uniform
from lib.training.loop import seeded

ERROR = "SQNR (dB)"
#: Tokens after which the error of a cell is kept.
READ = (1, 2, 5, 10, 20, 40, 60)
#: The one that is called early: at the first, a cell has nothing to add to.
EARLY = 5
#: Forms of the LSTM whose cells differ; where the hidden state alone is rounded, the cell is the highway's.
CELL_FORMS = ("conventional", "conventional with an exact cell", "highway")

# --- arithmetic ---


def laplace_numbers() -> dict[str, float]:
    """E1: steps and errors of the best grids for Laplace-distributed weights, in units of the mean |w|."""
    grids = {"with zero": "mid-tread", "without zero": "mid-rise"}
    steps = {
        f"step, {bits} bits {name}": laplace_step(bits, grid)
        for bits in (2, 3, 4)
        for name, grid in grids.items()
    }
    errors = {f"error, {bits} bits with zero": laplace_error(laplace_step(bits), bits) for bits in (2, 3, 4)}
    return steps | errors


def idea_figure() -> Figure:
    """What becomes of a value on three kinds of shortcut; the error of the Laplace grids over their step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    values = torch.linspace(0, 5, 1000)
    for bits, line, label in ((2, "-", "conventional, 2 bits"), (8, "--", "highway, 8 bits")):
        left.plot(values, Laplace(bits, one_sided=True)(values), line, label=label)
    left.plot(values, values, ":", color="black", label="highway, floating point")
    left.set(xlabel="value (means)", ylabel="what the shortcut carries (means)")
    left.legend()
    steps = torch.linspace(0.1, 3, 200).tolist()
    for bits, line in ((2, "-"), (3, "--"), (4, "-."), (5, ":")):
        right.plot(steps, [laplace_error(step, bits) for step in steps], line, label=f"{bits} bits")
        right.plot(laplace_step(bits), laplace_error(laplace_step(bits), bits), "o", color="black")
    right.set(xlabel="step (mean |w|)", ylabel="mean squared error (mean |w|²)", yscale="log")
    right.legend()
    return figure


def differences_of_forms(network: ResNet, sample: Tensor) -> dict[str, float]:
    """E2: the largest difference of logits between forms that should be one, weights in 2 bits, values in 3.

    Parameters
    ----------
    network
        In evaluation mode, with running statistics that suit `sample`.
    sample : (B, C, H, W)
    """
    fixed = {"weights": lambda layer: Laplace(2), "activations": lambda kind: Uniform(3, signed=False)}
    conventional, narrow, highway = (
        quantize_resnet(network, sample, skip_bits=skip_bits, **fixed) for skip_bits in ("shared", 3, None)
    )

    def largest(one: nn.Module, other: nn.Module) -> float:
        with torch.no_grad():
            return (one(sample) - other(sample)).abs().max().item()

    found = {"highway in the branch's bits against conventional": largest(conventional, narrow)}
    for form, name in ((highway, "highway"), (conventional, "conventional")):
        set_bits(form, weights=None, activations=None)
        found[f"{name} without bits against full precision"] = largest(form, network)
    return found


def millions_of_outputs(depth: int = 50) -> float:
    """Values that a ResNet's residual blocks put out for an image of 224 × 224 pixels, in millions."""
    with torch.device("meta"):
        outputs = block_outputs(resnet(depth).eval(), torch.empty(1, 3, 224, 224))
    return sum(output.numel() for output in outputs) / 1e6


# --- along depth ---


def block_outputs(network: ResNet, images: Tensor) -> list[Tensor]:
    """The output of every residual block, in order, without gradients and with the network's mode."""
    blocks = [name for name, module in network.named_modules() if isinstance(module, ResidualBlock)]
    with captured(network, blocks, "output") as outputs, torch.no_grad():
        network(images)
    return list(outputs.values())


def settle_norms(network: nn.Module, images: Tensor) -> None:
    """Make the running statistics of every batch norm those of this batch, in place.

    In an untrained network they are 0 and 1, with which values grow from block to block in evaluation mode.
    All else computes in evaluation mode; afterwards every module has its own mode again.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with evaluating(network), torch.no_grad():
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # a plain average
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def untrained_stack(blocks: int, *, seed: int) -> tuple[ResNet, Tensor]:
    """So many untrained blocks of equal width, with settled norms, and the noise that goes in."""
    seeded(seed)
    stack = ResNet(block=BasicBlock, blocks=(blocks,), width=0.5, in_channels=32, small_images=True).eval()
    noise = torch.randn(8, 32, 12, 12)
    settle_norms(stack, noise)
    return stack, noise


def error_by_depth(network: ResNet, quantized: ResNet, images: Tensor) -> list[float]:
    """SQNR in dB of every block's output against the network in full precision.

    Both compute with the statistics of this batch: running ones of the one are wrong for the other. A
    conventional block's output is compared before the next block's entrance rounds it. Neither network is
    changed.
    """
    outputs = [block_outputs(copy.deepcopy(model).train(), images) for model in (network, quantized)]
    return [sqnr(signal, found) for signal, found in zip(*outputs, strict=True)]


def depth_errors(network: ResNet, images: Tensor) -> pd.DataFrame:
    """The error by block of both forms, with values in 2 and 3 bits and weights quantised or not.

    Returns
    -------
    DataFrame
        With columns weights, label (such as W2A2, or A2), arm (form and label), form, bits, block (from 1)
        and SQNR (dB).
    """
    rows = []
    for bits, weights in itertools.product((2, 3), ("quantised", "full precision")):
        weight_bits, label = (bits, f"W{bits}A{bits}") if weights == "quantised" else (None, f"A{bits}")
        for form, skip_bits in (("conventional", "shared"), ("highway", None)):
            makers = _laplace(weight_bits, bits)
            quantized = quantize_resnet(network, images, skip_bits=skip_bits, **makers)
            common = {"weights": weights, "label": label, "arm": f"{form}, {label}"}
            common |= {"form": form, "bits": bits}
            found = error_by_depth(network, quantized, images)
            rows += [common | {"block": block, ERROR: value} for block, value in enumerate(found, start=1)]
    return pd.DataFrame(rows)


def _laplace(weight_bits: int | None, bits: int) -> dict[str, Callable[..., Laplace]]:
    """Laplace-optimal steps of weights, and of values as first seen: options of `quantize_resnet`."""
    return {
        "weights": lambda layer: Laplace(weight_bits),
        "activations": lambda kind: Laplace(bits, one_sided=kind == "unsigned", adaptive=False),
    }


def depth_measurements(errors: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """C1a, C2a, C2b, C2d: by metric and arm a value per seed, at the network's ends and between."""
    measured, last = {}, errors["block"].max()
    for label, part in errors.groupby("label"):
        ends = {
            form: [np.array(_values(part, form=form, block=block)) for block in (1, last)]
            for form in ("conventional", "highway")
        }
        measured[f"SQNR {label} (dB)"] = {
            "conventional, last block": ends["conventional"][1].tolist(),
            "highway, last block": ends["highway"][1].tolist(),
            "conventional, first block": ends["conventional"][0].tolist(),
        }
        lost = {form: (first - final).tolist() for form, (first, final) in ends.items()}
        measured[f"SQNR lost between the ends {label} (dB)"] = lost
    return measured


def stack_figure(errors: pd.DataFrame) -> Figure:
    """The error over the block of the untrained stack: left with quantised weights, right with exact ones."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for axis, weights in zip(axes, ("quantised", "full precision"), strict=True):
        part = errors[errors["weights"] == weights]
        curves_figure(part, "block", ERROR, x_label="residual block", y_label=ERROR, axis=axis)
        axis.set_title(f"weights {weights}")
    return figure


# --- along time ---


def cell_states(model: LSTMLanguageModel, tokens: Tensor) -> Tensor:
    """Cell states after each token from a state of zeros: (T, layers, B, hidden), in evaluation mode."""
    states, state = [], None
    with evaluating(model), torch.no_grad():
        for token in tokens.split(1, dim=1):
            _, state = model(token, state)
            states.append(state[1])
    return torch.stack(states)


def error_by_step(model: LSTMLanguageModel, quantized: LSTMLanguageModel, tokens: Tensor) -> list[float]:
    """SQNR in dB of the last layer's cell state after each token, against the model in full precision."""
    signal, found = (cell_states(each, tokens)[:, -1] for each in (model, quantized))
    return [sqnr(a, b) for a, b in zip(signal, found, strict=True)]


def time_errors(model: LSTMLanguageModel, tokens: Tensor) -> pd.DataFrame:
    """The error of the cell after some tokens, of every quantised form, in 2 and 3 bits.

    Returns
    -------
    DataFrame
        With columns arm (form and bits), form, bits, token (of `READ`) and SQNR (dB).
    """
    makers = {"weights": Laplace, "values": lambda bits, signed: Laplace(bits, adaptive=False)}
    rows = []
    for bits, form in itertools.product((2, 3), CELL_FORMS):
        quantized = quantize_language_model(model, tokens, **makers, **lstm_forms(bits)[form])
        found = error_by_step(model, quantized, tokens)
        common = {"arm": f"{form}, {bits} bits", "form": form, "bits": bits}
        rows += [common | {"token": token, ERROR: found[token - 1]} for token in READ]
    return pd.DataFrame(rows)


def time_measurements(errors: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """C1b, C2c: by metric and arm one value per seed, after some tokens and after the last one."""
    measured, last = {}, errors["token"].max()
    for bits, part in errors.groupby("bits"):
        ends = {f"{form}, last token": _values(part, form=form, token=last) for form in CELL_FORMS}
        early = _values(part, form="conventional with an exact cell", token=EARLY)
        ends[f"conventional with an exact cell, token {EARLY}"] = early
        measured[f"SQNR of the cell W{bits}A{bits} (dB)"] = ends
    return measured


def _values(errors: pd.DataFrame, **where: str | int) -> list[float]:
    """The errors in the rows with these values, in the order of the rows: one per seed."""
    for column, value in where.items():
        errors = errors[errors[column] == value]
    return errors[ERROR].tolist()
