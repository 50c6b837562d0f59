"""What the PROFIT chapter counts and measures without training for accuracy.

Counts of the networks, the instability of the real MobileNet-v2 in its first quantised steps, the quality of
grids for h-swish, and what padding does on such a grid.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL.Image import Image
from torch import Tensor, nn

from lib.cost.operations import count_operations, count_parameters, parameter_bytes
from lib.data.preprocessing import Preprocessing
from lib.experiments.profit import Recipe, sample
from lib.inspection import evaluating
from lib.models.vision.mobilenet import MobileNetV1, MobileNetV2, MobileNetV3Large
from lib.models.vision.mobilenet_authors import QuantizedMobileNetV2, QuantizedMobileNetV3Large
from lib.quantization.convert import quantize, quantized_layers
from lib.quantization.duq import HSWISH_MINIMUM, DuQ, convolve
from lib.quantization.hswish import grid_quality, hswish_outputs
from lib.quantization.instability import convolution_kind, thirds_ratio
from lib.streams import stream_seed

AUTHORS = {"v2": QuantizedMobileNetV2, "v3": QuantizedMobileNetV3Large}
PUBLISHED = {"v1": MobileNetV1, "v2": MobileNetV2, "v3-Large": MobileNetV3Large}
SIZE_BITS = (8, 5, 4, 3)
#: In a batch.
CROPS = 12

# --- counts ------------------------------------------------------------------------------------------------


@cache
def undrawn(make: Callable[[], nn.Module]) -> nn.Module:
    """A network to be counted: its weights have shapes, and no values that would take time to draw."""
    with torch.device("meta"):
        return make()


def count_quantised_layers() -> dict[str, int]:
    """Layers, ranges and tensors in the authors' layout, by name such as ``"v2, ranges of quantisers"``."""
    counts = {}
    for version, make in AUTHORS.items():
        network = undrawn(make)
        layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        quantised = [module for _, module in quantized_layers(network)]
        convolutions = sum(isinstance(module, nn.Conv2d) for module in quantised)
        ranges = [p.numel() for name, p in network.named_parameters() if name.endswith((".a", ".c"))]
        counts |= {
            f"{version}, convolutions with quantised weights": convolutions,
            f"{version}, linear layers with quantised weights": len(quantised) - convolutions,
            f"{version}, layers with unquantised weights": len(layers) - len(quantised),
            f"{version}, ranges of quantisers": sum(ranges),
            f"{version}, tensors in a checkpoint": len(network.state_dict()),
        }
    return counts


def network_sizes() -> pd.DataFrame:
    """Sizes of the published networks on one image of 224 × 224 pixels.

    Returns
    -------
    DataFrame
        A row per ``network``; ``parameters``, ``multiply–accumulates``, ``of which depthwise``; ``8 bits``…:
        megabytes (10⁶ bytes) with weights in these bits and all else in 32.
    """
    rows = {}
    for version, make in PUBLISHED.items():
        network = undrawn(make)
        operations = count_operations(network, (1, 3, 224, 224))
        depthwise = operations["kind"] == "depthwise conv"
        rows[version] = {
            "parameters": count_parameters(network),
            "multiply–accumulates": operations["macs"].sum(),
            "of which depthwise": operations.loc[depthwise, "macs"].sum(),
        }
        for bits in SIZE_BITS:
            rows[version][f"{bits} bits"] = parameter_bytes(network, weight_bits=bits) / 1e6
    return pd.DataFrame(rows).T.rename_axis("network")


def by_name(table: pd.DataFrame) -> dict[str, float]:
    """Cells of a table by row and column, as ``"v2, parameters"``."""
    return {f"{row}, {column}": float(table.loc[row, column]) for row in table.index for column in table}


# --- instability of the real network -----------------------------------------------------------------------


def crops(
    photographs: Mapping[str, Image],
    network: nn.Module,
    *,
    size: int,
    steps: int,
    seed: int,
    stream: str = "",
) -> list[dict[str, Tensor]]:
    """A batch of random crops per step, labelled by what the network itself sees in them.

    Those of another seed or another name of the stream are unrelated.

    Returns
    -------
    list of dict
        ``images`` (`CROPS`, 3, size, size) and ``labels`` (`CROPS`,): of as many photographs, drawn in each
        step where there are more; where there are fewer, in turn.
    """
    crop = Preprocessing(resize=size, crop=size)
    random = np.random.default_rng(stream_seed(seed, "crops", stream))
    names = list(photographs)
    batches = []
    for _ in range(steps):
        few = len(names) <= CROPS
        chosen = islice(cycle(names), CROPS) if few else random.choice(names, CROPS, replace=False)
        batches.append(torch.stack([crop.train(photographs[name], random) for name in chosen]))
    with evaluating(network), torch.no_grad():
        return [{"images": images, "labels": network(images).argmax(1)} for images in batches]


def instability_by_layer(
    network: nn.Module,
    batches: Mapping[int, Sequence[Mapping[str, Tensor]]],
    bits: Sequence[int],
    *,
    checkpoint: Callable[[str], Path | None] = lambda name: None,
) -> pd.DataFrame:
    """AIWQ of each convolution of a trained network in its first steps with quantised weights.

    First ranges have the least squared error. The first measurement of each layer is left out, if there are
    at least three steps.

    Parameters
    ----------
    network
        Stays as it is.
    batches
        By seed, one per step.
    bits
        Of the weights; activations are not quantised.
    checkpoint
        From the name of a training to the file that it continues from.

    Returns
    -------
    DataFrame
        A row per ``layer``, in the order of the network, and columns of ``weight bits`` and ``seed``.
    """
    recipe = Recipe(learning_rate=0.005, clip_norm=5.0)
    columns = {}
    for width in bits:
        of_weight = partial(DuQ, width, grid="weight", range_from="mse")
        images = next(iter(batches.values()))[0]["images"]  # of no consequence: activations are not quantised
        quantised = quantize(network, images, weights=lambda layer, make=of_weight: make())
        for seed, drawn in batches.items():
            name = f"AIWQ, {width} bits, seed {seed}"
            options = {"checkpoint": checkpoint(name), "name": name}
            trained, batch_at = copy.deepcopy(quantised), drawn.__getitem__
            columns[width, seed] = sample(trained, batch_at, len(drawn), recipe, **options)
    return pd.DataFrame(columns).rename_axis(index="layer", columns=["weight bits", "seed"])


def log_medians(aiwq: pd.DataFrame) -> dict[str, list[float]]:
    """Logarithm to base 10 of the median over layers, one per seed, as ``{"2-bit weights": […]}``."""
    bits = aiwq.columns.unique("weight bits")
    return {f"{b}-bit weights": np.log10(aiwq[b].median()).tolist() for b in bits}


def thirds_ratios(aiwq: pd.DataFrame, ranking: pd.DataFrame) -> list[float]:
    """How much more unstable the first third of layers is than the last, sorted by another measurement.

    Parameters
    ----------
    aiwq, ranking
        A row per layer, a column per seed, in the same order: what is compared, and what sorts the layers.
    """
    return [
        thirds_ratio(aiwq[seed].to_dict(), ranking[other].to_dict())
        for seed, other in zip(aiwq, ranking, strict=True)
    ]


def medians_by_kind(aiwq: pd.DataFrame, network: nn.Module) -> pd.DataFrame:
    """Median over the depthwise, expanding and projecting convolutions, mean over seeds, by weight bits."""
    kinds = pd.Series({layer: convolution_kind(network.get_submodule(layer)) for layer in aiwq.index})
    medians = aiwq.groupby(kinds).median().drop(index="dense")
    return medians.T.groupby(level="weight bits").mean()


# --- h-swish -----------------------------------------------------------------------------------------------


def normal_quality(spreads: Sequence[float], bits: int) -> pd.DataFrame:
    """Signal to noise of grids for h-swish of normal inputs, in dB: a row per standard deviation."""
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    return pd.DataFrame(
        {spread: grid_quality(nn.functional.hardswish(spread * normal), bits) for spread in spreads}
    ).T


def layers_quality(
    networks: Mapping[int, nn.Module], images: Mapping[int, Tensor], bits: Sequence[int]
) -> pd.DataFrame:
    """Signal to noise of grids for what the h-swish layers of trained networks give, in dB.

    Parameters
    ----------
    networks, images
        By seed.
    bits

    Returns
    -------
    DataFrame
        Indexed by ``bits`` and ``seed``, a column per grid; means over the layers.
    """
    layers = {seed: hswish_outputs(network, images[seed]) for seed, network in networks.items()}
    means = {
        (b, seed): pd.DataFrame([grid_quality(h, b) for h in outputs]).mean()
        for b in bits
        for seed, outputs in layers.items()
    }
    return pd.DataFrame(means).T.rename_axis(["bits", "seed"])


def overtaken(quality: pd.DataFrame) -> float:
    """Spread from which on the grid from 0 is better than the one from −3/8; NaN where it nowhere is.

    Between two rows of `normal_quality` the lead is taken to change evenly.
    """
    lead = quality["from −3/8"] - quality["from 0"]
    places = [k for k in range(1, len(lead)) if lead.iloc[k] <= 0 < lead.iloc[k - 1]]
    if not places:
        return float("nan")
    before, behind = (lead.iloc[k] for k in (places[0] - 1, places[0]))
    low, high = (lead.index[k] for k in (places[0] - 1, places[0]))
    return float(low + (high - low) * before / (before - behind))


def mean_spread(networks: Mapping[int, nn.Module], images: Mapping[int, Tensor]) -> float:
    """Standard deviation of what goes into the h-swish layers, mean over layers and networks (by seed)."""
    inputs = [x for seed, network in networks.items() for x in hswish_outputs(network, images[seed], "input")]
    return float(np.mean([float(x.std()) for x in inputs]))


def padding_errors() -> dict[str, float]:
    """What padding a convolution behind an h-swish grid of 3 bits does to its outputs.

    Returns
    -------
    dict
        ``lowest value of h-swish``. ``largest difference from one constant``, if padded with −3/8: between
        the convolution of the quantised values, and step × convolution of the integer codes, padded with 0,
        plus −3/8 × the sum of the kernel, over all positions. And padded with zeros: ``mean error at an
        edge`` and ``largest error inside``.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 7, 7, dtype=torch.float64, generator=random)
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, dtype=torch.float64)
    quantiser = DuQ(3, grid="hswish", activation="hswish").double()
    with torch.no_grad():
        conv.weight.uniform_(-1 / 3, 1 / 3, generator=random)
        quantiser.initialise(x)
        constant = HSWISH_MINIMUM * conv.weight.sum(dim=(1, 2, 3))[:, None, None]
        expected = quantiser.grid().step * conv(quantiser.encode(x).double()) + constant
        y = quantiser(x)
        negative, zero = (
            (convolve(conv, y, conv.weight, padding) - expected).abs() for padding in (HSWISH_MINIMUM, 0.0)
        )
    lowest = nn.functional.hardswish(torch.linspace(-3, 0, 3001, dtype=torch.float64)).min()
    return {
        "lowest value of h-swish": float(lowest),
        "largest difference from one constant": float(negative.max()),
        "mean error at an edge": float(zero.mean(dim=(0, 1))[0].mean()),
        "largest error inside": float(zero[..., 1:-1, 1:-1].max()),
    }
