"""The experiments of the chapter on value-aware quantization; the method itself is in `lib.quantization`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from lib.cost.stored_activations import stored_inputs
from lib.data.preprocessing import Preprocessing
from lib.models.vision.resnet import ResidualBlock
from lib.quantization.convert import quantize
from lib.quantization.saved_tensors import PackedActivations, PackedTraining, checkpointed, peak_bytes
from lib.quantization.training_memory import Stored, bits_per_value, family, sensitivity
from lib.quantization.value_aware import ValueAware, fake_quantize

__all__ = [
    "annealing",
    "crops",
    "family",
    "gradient_error",
    "gradient_figure",
    "inference_errors",
    "inference_figure",
    "input_errors",
    "layer_inputs",
    "measure_steps",
    "memory_by_network",
    "sensitivity",
    "sqnr",
    "step_figure",
]

MODES = ("full precision", "checkpointing", "packed")


# --- errors ------------------------------------------------------------------------------------------------


def sqnr(x: Tensor, quantized: Tensor) -> float:
    """Signal to quantization noise in decibels: 10 log₁₀(Σx² / Σ(x − x̂)²)."""
    noise = (x - quantized).double().square().sum()
    return float(10 * torch.log10(x.double().square().sum() / noise))


@torch.no_grad()
def layer_inputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Inputs of all convolutions but the first, by the layer's name, in evaluation mode."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: found.update({name: given[0].clone()}))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        network.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return dict(list(found.items())[1:])


def input_errors(
    network: nn.Module, images: Tensor, bits: Sequence[int], ratios: Sequence[float]
) -> pd.DataFrame:
    """Mean over layers of the `sqnr` of the layers' inputs, with each image by itself.

    Returns
    -------
    DataFrame with ``image``, ``bits``, ``ratio``, ``SQNR`` (dB).
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


def gradient_error(
    network: nn.Module, batch: Mapping[str, Tensor], settings: Mapping[str, PackedActivations]
) -> dict[str, float]:
    """Relative error of the weight gradients under each setting, ‖g̃ − g‖ / ‖g‖.

    Over the weights of convolutions whose input has a gradient (all but the first); weights and running
    statistics are as before afterwards.
    """
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)][1:]
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def gradient(context: AbstractContextManager) -> Tensor:
        network.train()
        with context:
            loss = F.cross_entropy(network(batch["images"]), batch["labels"])
        found = torch.autograd.grad(loss, weights)
        network.load_state_dict(state)
        return torch.cat([g.flatten() for g in found])

    exact = gradient(contextlib.nullcontext())
    return {name: float((gradient(c) - exact).norm() / exact.norm()) for name, c in settings.items()}


# --- training ----------------------------------------------------------------------------------------------


def annealing(
    network: PackedTraining, steps: int, stages: Sequence[tuple[int | None, float]]
) -> Callable[[int], None]:
    """A function of the step that takes a network through (bits, ratio) stages of equal length."""

    def choose(step: int) -> None:
        stage = min(len(stages) - 1, step * len(stages) // steps)
        network.activations.bits, network.activations.ratio = stages[stage]

    choose(0)
    return choose


# --- memory and time of a step -----------------------------------------------------------------------------


def blocks(network: nn.Module) -> list[nn.Module]:
    """Modules between which checkpoints are put: residual blocks, or the mixed blocks of Inception-v3."""
    residual = [m for m in network.modules() if isinstance(m, ResidualBlock)]
    return residual or [m for name, m in network.named_children() if name.startswith("Mixed")]


def measure_steps(network: nn.Module, images: Tensor, *, rounds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Memory and time of a training step in full precision, with checkpoints at every block, and packed.

    Returns
    -------
    memory : DataFrame
        By mode: ``kept`` (bytes kept between forward and backward pass, by a counting hook; with checkpoints
        the blocks' inputs and what lies between blocks) and ``peak`` (the most that torch's allocator held in
        tensors during the step, beyond weights and gradients).
    seconds : DataFrame
        A row per round and a column per mode: wall time of forward and backward pass.
    """
    network.train()
    labels = torch.arange(len(images))

    def context(mode: str) -> AbstractContextManager:
        if mode == "packed":
            return PackedActivations()
        return checkpointed(blocks(network)) if mode == "checkpointing" else contextlib.nullcontext()

    def step(mode: str) -> None:
        with context(mode):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()

    def kept(mode: str) -> int:
        counter = context(mode) if mode == "packed" else PackedActivations(None)
        with counter, contextlib.nullcontext() if mode == "packed" else context(mode):
            loss = F.cross_entropy(network(images), labels)
        size = sum(counter.stored_bytes().values())
        loss.backward()
        return size

    memory = {}
    for mode in MODES:
        size = kept(mode)  # and gradients exist from now on
        memory[mode] = {"kept": size, "peak": peak_bytes(lambda m=mode: step(m))}
    seconds = []
    for _ in range(rounds):
        seconds.append({})
        for mode in MODES:
            start = time.perf_counter()
            step(mode)
            seconds[-1][mode] = time.perf_counter() - start
    return pd.DataFrame(memory).T, pd.DataFrame(seconds)


def memory_by_network(networks: Mapping[str, tuple[Callable[[], nn.Module], int]]) -> pd.DataFrame:
    """Activation memory of one image in several networks, by counting (inputs of layers; image in 32 bits).

    Parameters
    ----------
    networks
        By name: what makes the network (on the meta device), and the image's size in pixels.

    Returns
    -------
    DataFrame by network: ``values`` (millions), ``image``, ``full precision``, ``V-Quant``, ``RV-Quant``
    (megabytes of 10⁶ bytes), ``gain`` (full precision over RV-Quant).
    """
    rows = {}
    for name, (make, size) in networks.items():
        with torch.device("meta"):
            network = make()
        table = stored_inputs(network, (1, 3, size, size))
        values = int(table.loc[~table["is_input"], "elements"].sum())
        stored = Stored((values,), (0,), 3 * size * size)
        full, rv = stored.full_bytes() / 1e6, stored.packed_bytes() / 1e6
        rows[name] = {
            "values": values / 1e6,
            "image": 4 * stored.image / 1e6,
            "full precision": full,
            "V-Quant": stored.packed_bytes(bits_per_value(mask=True)) / 1e6,
            "RV-Quant": rv,
            "gain": full / rv,
        }
    return pd.DataFrame(rows).T.rename_axis("network")


# --- inference ---------------------------------------------------------------------------------------------


def crops(image: Image.Image, count: int, preprocessing: Preprocessing, *, seed: int) -> Tensor:
    """Random parts of a photograph, as in training on ImageNet: (count, 3, crop, crop)."""
    random = np.random.default_rng(seed)
    return torch.stack([preprocessing.train(image, random) for _ in range(count)])


@torch.no_grad()
def inference_errors(
    network: nn.Module,
    images: Mapping[str, Tensor],
    ratios: Sequence[float],
    *,
    bits: int = 4,
) -> pd.DataFrame:
    """What few bits and large values of 16 bits do to a network's outputs on groups of images, untrained.

    Weights and activations of all layers, the image exact; large values are found in every tensor as it
    passes, over a group at a time.

    Returns
    -------
    DataFrame with ``group``, ``ratio``, ``agreement`` (percent of images whose first class is that of full
    precision) and ``error`` (mean over images of the relative error of the logits).
    """
    network.eval()
    exact = {name: network(group) for name, group in images.items()}
    rows = []
    for ratio in ratios:
        quantized = quantize(
            network,
            next(iter(images.values())),
            weights=lambda layer, r=ratio: ValueAware(bits, ratio=r, signed=True),
            activations=lambda kind, r=ratio: ValueAware(bits, ratio=r, signed=kind != "unsigned"),
        ).eval()
        for name, group in images.items():
            got, reference = quantized(group), exact[name]
            same = (got.argmax(1) == reference.argmax(1)).double().mean()
            error = ((got - reference).norm(dim=1) / reference.norm(dim=1)).mean()
            rows.append((name, ratio, 100 * float(same), float(error)))
    return pd.DataFrame(rows, columns=["group", "ratio", "agreement", "error"])


# --- figures -----------------------------------------------------------------------------------------------


def step_figure(memory: pd.DataFrame, overhead: Mapping[str, pd.DataFrame]) -> Figure:
    """Bars of measured memory (MB, indexed by network and mode) beside points of extra time (%) per round."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), gridspec_kw={"width_ratios": [3, 2]})
    bars = {f"{n}\n{what}": memory.loc[n, what] for n in overhead for what in ("kept", "peak")}
    bars = pd.DataFrame(bars).T[list(MODES)]
    bars.plot.bar(ax=axes[0], rot=0, color=["#333333", "#999999", "#56b4e9"], edgecolor="black")
    axes[0].set(ylabel="memory (MB, 10⁶ bytes)", xlabel="")
    axes[0].legend(title=None, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    names = [(network, mode) for network in overhead for mode in MODES[1:]]
    for place, (network, mode) in enumerate(names):
        values = overhead[network][mode]
        axes[1].bar(place, values.median(), color="#dddddd", edgecolor="black")
        axes[1].plot(np.full(len(values), place), values, "o", color="#333333", markersize=4)
    axes[1].set_xticks(range(len(names)), [f"{n}\n{m}" for n, m in names], fontsize="x-small")
    axes[1].set_ylabel("extra time (%)")
    return figure


def gradient_figure(means: pd.Series) -> Figure:
    """Gradient error (by setting, such as ``(3, 2 %)``) over the share of large values, a line per width."""
    table = means[means.index.str.match(r"\(\d, [\d.]+ %\)")]
    numbers = table.index.str.extract(r"\((\d), ([\d.]+) %\)").astype(float)
    frame = pd.DataFrame({"bits": numbers[0].astype(int), "share": numbers[1], "error": table.to_numpy()})
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    for (bits, rows), line in zip(frame.groupby("bits"), ("o-", "s--", "D:", "^-.", "v-"), strict=False):
        axis.plot(rows["share"], rows["error"], line, label=f"{bits} bits")
    axis.axhline(means["(4, 0 %)"], color="#555555", linestyle=":", linewidth=1)
    axis.set(yscale="log", xlabel="large values (%)", ylabel="relative error of the gradient")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure


def inference_figure(results: pd.DataFrame) -> Figure:
    """Agreement of the first class and error of the logits over the share of large values."""
    means = results.groupby(["network", "bits", "ratio"])[["agreement", "error"]].mean()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    lines = ("o-", "s--", "D:", "^-.", "v-", "P--", "X:", "*-.")
    for ((network, bits), rows), line in zip(means.groupby(level=[0, 1]), lines, strict=False):
        for axis, column in zip(axes, ("agreement", "error"), strict=True):
            axis.plot(
                100 * rows.index.get_level_values("ratio"),
                rows[column],
                line,
                label=f"{network}, {bits} bits",
            )
    axes[0].set(xlabel="16-bit values (%)", ylabel="same first class (%)", ylim=(-3, 103))
    axes[1].set(xlabel="16-bit values (%)", ylabel="relative error of the logits", yscale="log")
    axes[1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure
