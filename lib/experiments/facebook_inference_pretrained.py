"""Large weights and 16-bit sums in networks that were trained on ImageNet, on photographs.

What a network trained for minutes says of outliers is about that network. These are two large networks of the
years before the paper and two compact ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from lib.data.photographs import photograph_tensor
from lib.data.preprocessing import Preprocessing
from lib.inspection import captured
from lib.quantization.integer_network import (
    Accumulation,
    accumulate,
    fold,
    integer_layer,
    integer_layers,
    quantize_layers,
)
from lib.quantization.outliers import split_outliers

LARGE, COMPACT = ("AlexNet", "VGG-16"), ("SqueezeNet", "MobileNet-v2")
#: The paper's sentence: often fewer than this share of the weights are outliers.
FEW = 0.001
EXACT = "8 bits, sums exact"
#: How products are summed: which weights are split off, and after how many products a sum moves to 32 bits.
SUMS = {
    EXACT: Accumulation(),
    "no split, to the end": Accumulation(bits=16),
    "no split, after 64": Accumulation(bits=16, spill_every=64),
    "split at 7 bits, to the end": Accumulation(bits=16, main_bits=7),
    "split at 7 bits, after 64": Accumulation(bits=16, main_bits=7, spill_every=64),
    "split at 6 bits, after 64": Accumulation(bits=16, main_bits=6, spill_every=64),
}
POSITIONS = 8  # of each layer's output, at which its products are computed


def cropped(
    photographs: dict[str, Image.Image], preprocessing: Preprocessing, crop: int
) -> dict[str, Tensor]:
    """The centre of each photograph by its name, (1, 3, side, side), of at most `crop` pixels."""
    smaller = replace(preprocessing, crop=min(crop, preprocessing.crop))
    return {name: photograph_tensor({name: one}, smaller) for name, one in photographs.items()}


def outlier_shares(network: nn.Module) -> pd.DataFrame:
    """Share of weights beyond 7 and 6 bits, in every convolution and linear layer.

    The largest weight, of a layer or of an output channel, is mapped to ±127; normalisation stays apart.

    Returns
    -------
    DataFrame
        ``layer``, ``scales`` (per ``tensor`` or ``channel``), ``bits``, ``weights`` (how many there are) and
        ``outliers`` (share).
    """
    rows = []
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        weight = layer.weight.detach().flatten(1)
        largest = {"tensor": weight.abs().max(), "channel": weight.abs().amax(1, keepdim=True)}
        for (scales, top), bits in product(largest.items(), (7, 6)):
            codes = (weight / top.clamp(min=torch.finfo(weight.dtype).tiny) * 127).round().to(torch.int8)
            share = split_outliers(codes, bits=bits).density
            rows.append((name, scales, bits, weight.numel(), share))
    return pd.DataFrame(rows, columns=["layer", "scales", "bits", "weights", "outliers"])


def few_outliers(shares: pd.DataFrame) -> dict[str, list[float]]:
    """Whether at most `FEW` of each layer's weights are beyond 7 bits, one scale per tensor: 1 or 0.

    Parameters
    ----------
    shares : DataFrame
        From `outlier_shares`, with a column ``network``.

    Returns
    -------
    dict
        For the networks of the paper's time and for the compact ones together: a number per layer.
    """
    rows = shares[(shares["scales"] == "tensor") & (shares["bits"] == 7)]
    few = (rows["outliers"] <= FEW).astype(float)
    return {" and ".join(names): few[rows["network"].isin(names)].tolist() for names in (LARGE, COMPACT)}


@torch.no_grad()
def product_errors(
    network: nn.Module, images: Mapping[str, Tensor], *, layers: int | None = None
) -> pd.DataFrame:
    """What 16-bit sums do to the products of every layer, beside what 8 bits do.

    Left out are the layer that sees the image, and layers with groups, whose sums are of a few products. Each
    image by itself, with its own ranges, at some positions of each layer's output, the same in every run.

    Parameters
    ----------
    network : nn.Module
        Trained, in evaluation mode.
    images : mapping
        Name to image (1, 3, H, W).
    layers : int, optional
        How many of them, from the first; None: all.

    Returns
    -------
    DataFrame
        ``image``, ``scales`` of weights (per ``tensor`` or ``channel``), ``sums`` (of `SUMS`), ``error``: of
        8 bits relative to the product in float32, else relative to it what is added to that; and ``cut``, the
        share of sums that were. Both are means over layers.
    """
    folded, rows = fold(network), []
    _, *names = [n for n, m in folded.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    names = [n for n in names if getattr(folded.get_submodule(n), "groups", 1) == 1][:layers]
    for name, image in images.items():
        with captured(folded, names) as inputs:
            folded(image)
        for layer in names:
            rows += [(name, *found) for found in _layer_errors(folded.get_submodule(layer), inputs[layer])]
    table = pd.DataFrame(rows, columns=["image", "scales", "sums", "error", "cut"])
    return table.groupby(["image", "scales", "sums"], sort=False, as_index=False).mean()


def errors_by_sums(errors: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """What rules compare: errors of products by network, scales and way of summing, one per image.

    Parameters
    ----------
    errors : DataFrame
        From `product_errors`, with a column ``network``.
    """
    found = {}
    for (network, scales), rows in errors.groupby(["network", "scales"], sort=False):
        suffix = ", scales per channel" if scales == "channel" else ""
        found[f"error of products, {network}{suffix}"] = rows.groupby("sums")["error"].agg(list).to_dict()
    return found


def _layer_errors(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Iterator[tuple[str, str, float, float]]:
    """Scales, sums, relative error and share of cut sums of one layer."""
    exact = layer(x).movedim(1, -1).flatten(0, -2)
    at = torch.randperm(len(exact), generator=torch.Generator().manual_seed(0))[:POSITIONS]
    exact = exact[at] if layer.bias is None else exact[at] - layer.bias
    size = float(exact.norm()) or 1.0  # of an input that is all zero
    columns = integer_layer(layer, x).columns(x)[at]
    for scales in ("tensor", "channel"):
        integer = integer_layer(layer, x, per_channel=scales == "channel")
        whole = integer.products(columns)
        yield scales, EXACT, float((whole - exact).norm()) / size, 0.0
        for name, how in SUMS.items():
            if name != EXACT:
                accumulate(integer, how)
                error = float((integer.products(columns) - whole).norm()) / size
                yield scales, name, error, integer.saturated / integer.entries


@torch.no_grad()
def prediction_errors(network: nn.Module, images: Mapping[str, Tensor]) -> pd.DataFrame:
    """What 8 bits and 16-bit sums do to the class scores of a whole network.

    Ranges are from every second image, for the others, and the other way round. Sums in 16 bits are those of
    `product_errors`.

    Parameters
    ----------
    network : nn.Module
        A trained classifier, in evaluation mode.
    images : mapping
        Name to image (1, 3, H, W), at least two.

    Returns
    -------
    DataFrame
        ``image``, ``scales``, ``sums``, ``error`` (of the logits, relative to float32) and ``agreement`` (100
        where the first class is that of float32, else 0).
    """
    if len(images) < 2:
        raise ValueError("ranges are from other images than those that are tested: at least two are needed")
    names, rows = list(images), []
    for half, scales in product((0, 1), ("tensor", "channel")):
        tested, others = names[half::2], names[1 - half :: 2]
        calibration = torch.cat([images[name] for name in others])
        batch = torch.cat([images[name] for name in tested])
        exact = network(batch)
        quantized = quantize_layers(network, calibration, per_channel=scales == "channel")
        layers = [layer for layer in integer_layers(quantized)[1:] if layer.groups == 1]
        for sums in (EXACT, "no split, after 64", "split at 7 bits, after 64"):
            for layer in layers:
                accumulate(layer, SUMS[sums])
            scores = quantized(batch)
            error = ((scores - exact).norm(dim=1) / exact.norm(dim=1)).tolist()
            same = (100.0 * (scores.argmax(1) == exact.argmax(1))).tolist()
            rows += [(n, scales, sums, e, s) for n, e, s in zip(tested, error, same, strict=True)]
    return pd.DataFrame(rows, columns=["image", "scales", "sums", "error", "agreement"])


def errors_by_scales(predictions: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """What rules compare: errors of the logits with exact sums, by network and scales, one per image.

    Parameters
    ----------
    predictions : DataFrame
        From `prediction_errors`, with a column ``network``.
    """
    rows = predictions[predictions["sums"] == EXACT].sort_values("image")
    found: dict[str, dict[str, list[float]]] = {}
    for (network, scales), part in rows.groupby(["network", "scales"]):
        metric = found.setdefault(f"error of the logits, {network}", {})
        metric[f"one scale per {scales}"] = part["error"].tolist()
    return found
