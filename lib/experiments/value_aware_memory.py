"""Memory and time of a training step with value-aware quantization: counted by convention, and measured.

Errors are in `lib.experiments.value_aware_errors`, trainings in `lib.experiments.value_aware_training`, the
method itself in `lib.quantization`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde
from torch import Tensor, nn

from lib.chapter.figures import arm_styles
from lib.cost.stored_activations import stored_inputs
from lib.models.vision.alexnet import AlexNetOneTower
from lib.models.vision.densenet import DenseNet
from lib.models.vision.inception import InceptionV3
from lib.models.vision.mobilenet import MobileNetV2
from lib.models.vision.resnet import ResidualBlock, resnet
from lib.models.vision.squeezenet import SqueezeNet
from lib.models.vision.vgg import VGG
from lib.quantization.saved_tensors import PackedActivations, checkpointed, peak_bytes
from lib.quantization.training_memory import Stored, bits_per_value, family, sensitivity
from lib.quantization.value_aware import stored_bits
from lib.training.loop import seeded

#: What makes a network, and its images' pixels.
Networks = Mapping[str, tuple[Callable[[], nn.Module], int]]

MODES = ("full precision", "checkpointing", "packed")
#: Ways of counting stored activations, the judged one first.
COUNTS = ("inputs of layers", "saved tensors", "inputs without pooling")
#: The convention that is judged, of those of `conventions`.
JUDGED = ("inputs of layers", "cut", "optimal", 1.0)

#: The two networks of the paper's headline.
HEADLINE: Networks = {"ResNet-152": (lambda: resnet(152), 224), "Inception-v3": (InceptionV3, 299)}
#: Networks whose memory is compared: four that the claim needs at least, and more.
FEW: Networks = {
    "AlexNet": (AlexNetOneTower, 224),
    "Inception-v3": (InceptionV3, 299),
    "ResNet-50": (resnet, 224),
    "DenseNet-121": (DenseNet, 224),
}
MANY: Networks = {
    **FEW,
    "ResNet-18": (lambda: resnet(18), 224),
    "ResNet-101": (lambda: resnet(101), 224),
    "ResNet-152": (lambda: resnet(152), 224),
    "VGG-16": (VGG, 224),
    "SqueezeNet-1.1": (SqueezeNet, 224),
    "DenseNet-201": (lambda: DenseNet(depth=201), 224),
    "MobileNet-v2": (MobileNetV2, 224),
}
#: The five deep ones that the claim names, each against AlexNet (DenseNet-201 is in the table alone).
DEEP = ("DenseNet-121", "Inception-v3", "ResNet-101", "ResNet-152", "ResNet-50")


# --- counted -----------------------------------------------------------------------------------------------


def stored_ratios() -> dict[str, float]:
    """32 bits over those of a stored activation at (3, 2 %), by format; of 1000, so nothing is rounded."""
    return {
        name: 32_000 / stored_bits(1000, 3, 0.02, mask=name == "V-Quant") for name in ("V-Quant", "RV-Quant")
    }


def conventions(ways: int = len(COUNTS), networks: Networks = HEADLINE) -> pd.DataFrame:
    """Reduction of activation memory by RV-Quant against checkpointing, under every convention.

    Parameters
    ----------
    ways
        How many of `COUNTS`, 1 to 3.
    networks
        ResNets or Inception-v3.

    Returns
    -------
    DataFrame with ``counted``, ``stem``, ``checkpoints``, ``factor`` and a column per network (percent).
    """
    if ways not in range(1, len(COUNTS) + 1):
        raise ValueError(f"there are 1 to {len(COUNTS)} ways of counting, {ways!r} were asked for")
    keys = ["counted", "stem", "checkpoints", "factor"]
    tried = {
        name: family(network, (1, 3, size, size), COUNTS[:ways]).set_index(keys)["reduction"]
        for name, (network, size) in _on_meta(networks).items()
    }
    return pd.concat(tried, axis=1).dropna().reset_index()


def judged_reductions(tried: pd.DataFrame) -> dict[str, float]:
    """By network, the row of `conventions` that is judged."""
    return tried.set_index(["counted", "stem", "checkpoints", "factor"]).loc[JUDGED].to_dict()


def distances(tried: pd.DataFrame, paper: Mapping[str, float]) -> pd.Series:
    """Of every convention, the larger distance (points) to the paper's numbers, which are by network."""
    return (tried[list(paper)] - pd.Series(paper)).abs().max(axis=1)


def expected_hits(tried: pd.DataFrame, paper: Mapping[str, float], tolerance: float = 0.5) -> float:
    """How many of the conventions would come within `tolerance` points of both numbers by chance.

    Chance is a smooth density of the conventions' own two percentages (Gaussian kernels, Scott's width).
    """
    density = gaussian_kde(tried[list(paper)].to_numpy().T)
    centre = np.array(list(paper.values()))
    return len(tried) * float(density.integrate_box(centre - tolerance, centre + tolerance))


def sensitivities(networks: Networks = HEADLINE) -> pd.DataFrame:
    """Reduction with one detail of the judged convention changed at a time: percent, a column per network."""
    found = {
        name: sensitivity(network, (1, 3, size, size)) for name, (network, size) in _on_meta(networks).items()
    }
    return pd.DataFrame(found).rename_axis("reduction (%)").reset_index()


def memory_by_network(networks: Networks) -> pd.DataFrame:
    """Activation memory of one image in several networks, by counting (inputs of layers; image in 32 bits).

    Returns
    -------
    DataFrame by network: ``values`` (millions), ``image``, ``full precision``, ``V-Quant``, ``RV-Quant``
    (megabytes of 10⁶ bytes), ``gain`` (full precision over RV-Quant).
    """
    rows = {}
    for name, (network, size) in _on_meta(networks).items():
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


def gains(sizes: pd.DataFrame) -> dict[str, list[float]]:
    """Full precision over RV-Quant of the deep networks in `memory_by_network`, AlexNet's beside each."""
    deep = [sizes.loc[name, "gain"] for name in DEEP if name in sizes.index]
    return {"deep network": deep, "AlexNet": [sizes.loc["AlexNet", "gain"]] * len(deep)}


def _on_meta(networks: Networks) -> dict[str, tuple[nn.Module, int]]:
    with torch.device("meta"):
        return {name: (make(), size) for name, (make, size) in networks.items()}


# --- measured ----------------------------------------------------------------------------------------------


def blocks(network: nn.Module) -> list[nn.Module]:
    """Modules between which checkpoints are put: residual blocks, or the mixed blocks of Inception-v3."""
    residual = [m for m in network.modules() if isinstance(m, ResidualBlock)]
    return residual or [m for name, m in network.named_children() if name.startswith("Mixed")]


def measure_steps(network: nn.Module, images: Tensor, *, rounds: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Memory and time of a training step in full precision, with checkpoints at every block, and packed.

    The network is left with gradients and other running statistics.

    Returns
    -------
    memory : DataFrame
        By mode: ``kept`` (bytes kept between forward and backward pass, by a counting hook; with checkpoints
        the blocks' inputs and what lies between blocks) and ``peak`` (the most that torch's allocator held in
        tensors during the step, beyond weights and gradients).
    seconds : DataFrame
        A row per round and a column per mode: processor time of forward and backward pass, of all threads.
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
            start = time.process_time()
            step(mode)
            seconds[-1][mode] = time.process_time() - start
    return pd.DataFrame(memory).T, pd.DataFrame(seconds)


def measure_networks(
    networks: Networks, *, batch: int, rounds: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`measure_steps` of several networks, with new weights and made-up images.

    Returns
    -------
    memory : DataFrame
        By ``network`` and ``mode``: ``kept`` and ``peak`` in megabytes (10⁶ bytes).
    overhead : DataFrame
        By ``network`` and ``round``, a column per mode: time beyond that of full precision in the same round
        (percent).
    """
    seeded(seed)
    memory, overhead = {}, {}
    for name, (make, size) in networks.items():
        images = torch.randn(batch, 3, size, size)
        found, seconds = measure_steps(make(), images, rounds=rounds)
        memory[name] = found / 1e6
        overhead[name] = 100 * (seconds.div(seconds["full precision"], axis=0) - 1)
    return pd.concat(memory, names=["network", "mode"]), pd.concat(overhead, names=["network", "round"])


def overheads(overhead: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Extra time (percent) of a residual network and of Inception-v3 by round, packed or checkpointed.

    ValueError unless the table of `measure_networks` is of these two.
    """
    residual, *others = dict.fromkeys(overhead.index.get_level_values("network"))
    if others != ["Inception-v3"]:
        raise ValueError(f"a residual network and Inception-v3 are compared, got {[residual, *others]}")
    labels = {"overhead, residual network": residual, "overhead, Inception-v3": "Inception-v3"}
    modes = ("packed", "checkpointing")
    return {label: {m: overhead.loc[name, m].tolist() for m in modes} for label, name in labels.items()}


# --- figures -----------------------------------------------------------------------------------------------


def conventions_figure(tried: pd.DataFrame, paper: Mapping[str, float]) -> Figure:
    """One network's reduction over the other's, a point per convention; a cross at the paper's numbers."""
    figure, axis = plt.subplots(figsize=(6.5, 4.4))
    first, second = paper
    colours, markers, _ = arm_styles(list(dict.fromkeys(tried["counted"])))
    for name, rows in tried.groupby("counted", sort=False):
        axis.plot(rows[first], rows[second], markers[name], color=colours[name], alpha=0.6, label=name)
    axis.plot(*paper.values(), "kx", markersize=13, markeredgewidth=2.5, label="the paper")
    axis.set(xlabel=f"reduction, {first} (%)", ylabel=f"reduction, {second} (%)")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure


def step_figure(memory: pd.DataFrame, overhead: pd.DataFrame) -> Figure:
    """Bars of measured memory (MB) beside points of extra time (%) per round, of `measure_networks`."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), gridspec_kw={"width_ratios": [3, 2]})
    networks = list(dict.fromkeys(memory.index.get_level_values("network")))
    bars = {f"{n}\n{what}": memory.loc[n, what] for n in networks for what in ("kept", "peak")}
    bars = pd.DataFrame(bars).T[list(MODES)]
    bars.plot.bar(ax=axes[0], rot=0, color=["#333333", "#999999", "#56b4e9"], edgecolor="black")
    axes[0].set(ylabel="memory (MB, 10⁶ bytes)", xlabel="")
    axes[0].legend(title=None, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    places = [(network, mode) for network in networks for mode in MODES[1:]]
    for place, (network, mode) in enumerate(places):
        values = overhead.loc[network, mode]
        axes[1].bar(place, values.median(), color="#dddddd", edgecolor="black")
        axes[1].plot(np.full(len(values), place), values, "o", color="#333333", markersize=4)
    axes[1].set_xticks(range(len(places)), [f"{n}\n{m}" for n, m in places], fontsize="x-small")
    axes[1].set_ylabel("extra time (%)")
    return figure
