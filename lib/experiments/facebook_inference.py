"""The paper's table of models, counted again, and what memory on the chip would be worth.

Park et al., "Deep Learning Inference in Facebook Data Centers", 2018 (arXiv:1811.09886). The table's own
conventions could not be read, so every count is given in each way that it may be meant (`characterise`).
Functions that return numbers by name use the names that the chapter's ledger gives to the paper's cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from lib.cost.activations import live_activations
from lib.cost.intensity import mean_and_minimum
from lib.cost.operations import count_operations, count_parameters, totals
from lib.cost.roofline import Accelerator, Workload, workload
from lib.models.language.translation import TranslationModel
from lib.models.recommenders.dlrm import DLRM, rm1, rm2, rm3
from lib.models.vision.resnet import resnet, resnext
from lib.models.vision.shufflenet import ShuffleDetector
from lib.models.vision.video_resnet import ir_csn
from lib.quantization.integer import gemm_i16

PEAK = 1e14  # operations per second of the paper's accelerator


# --- counting a network ------------------------------------------------------------------------------------


class Inference(NamedTuple):
    """A network and what it is given: ``input_shape`` or ``inputs``, as `count_operations` takes them."""

    model: nn.Module
    given: dict[str, Any]


def check_counts(*, rounds: int, blocks: int, batches: Mapping[str, int]) -> None:
    """ValueError for fewer rounds than blocks, or no model."""
    if blocks > rounds:
        raise ValueError(f"blocks are of neighbouring rounds: {rounds} rounds have no {blocks} blocks")
    if not any(batches.values()):
        raise ValueError(f"no operators to time: one batch of {', '.join(batches)} must be at least 1")


def characterised_networks(image_size: int, frames: int) -> dict[str, Inference]:
    """The vision networks of the table on the meta device, in its order; two of them are hypotheses.

    Parameters
    ----------
    image_size : int
        Side of images and clips in pixels; the detector has its own.
    frames : int
        Of the clip.
    """
    still, clip = (1, 3, image_size, image_size), (1, 3, frames, image_size, image_size)
    with torch.device("meta"):
        regions = (torch.zeros(1, 3, 600, 800), torch.zeros(25, 4))
        return {
            "ResNet-50": Inference(resnet(50, stride_in_1x1=True), {"input_shape": still}),
            "ResNeXt-101-32×4d": Inference(resnext(101, 32, 4), {"input_shape": still}),
            "ResNeXt-101-32×48d": Inference(resnext(101, 32, 48), {"input_shape": still}),
            "Faster-RCNN-Shuffle (hypothesis)": Inference(ShuffleDetector(), {"inputs": regions}),
            "ResNeXt3D-101 (hypothesis)": Inference(ir_csn(101), {"input_shape": clip}),
        }


def first_networks(networks: Mapping[str, Inference], count: int) -> dict[str, Inference]:
    """The first `count` networks; ValueError if there are not as many."""
    if not 1 <= count <= len(networks):
        raise ValueError(f"there are 1 to {len(networks)} networks, {count} were asked for")
    return dict(islice(networks.items(), count))


def operation_tables(networks: Mapping[str, Inference]) -> dict[str, pd.DataFrame]:
    """What each network does, layer by layer (`lib.cost.operations.count_operations`)."""
    return {name: count_operations(model, **given) for name, (model, given) in networks.items()}


def characterise(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    table: pd.DataFrame | None = None,
    separate_add: bool = True,
) -> pd.Series:
    """Parameters, live activations and arithmetic intensity of one pass, in each convention.

    Parameters and errors as `lib.cost.operations.count_operations`, whose result `table` is, if at hand.

    `separate_add` of False leaves out the second count of live activations.

    Returns
    -------
    Series with

    ``parameters (M)``
        All trainable ones, in millions.
    ``live (M)``, ``live, separate add (M)``
        Most elements of activations at once, in millions: skip connections added in place, or not.
    ``weights (M), W``
        Of the layers W, which are ``all layers`` or ``convolutions`` (all but the linear ones).
    ``average per weight, W`` and so on
        ``average`` (ratio of the sums) or ``minimum`` (smallest layer) of the operations ``per weight`` or
        ``per weight and activation`` (elements, not bytes).
    """
    if table is None:
        table = count_operations(model, input_shape, inputs=inputs)
    row = {"parameters (M)": count_parameters(model) / 1e6}
    ways = {"live (M)": True} | ({"live, separate add (M)": False} if separate_add else {})
    for name, in_place in ways.items():
        live = live_activations(model, input_shape, inputs=inputs, inplace_add=in_place)["live"]
        row[name] = live.max() / 1e6
    words = {"weights": "weight", "activations_and_weights": "weight and activation"}
    for layers, part in {"all layers": table, "convolutions": table[table["kind"] != "linear"]}.items():
        row[f"weights (M), {layers}"] = totals(part)["weights"] / 1e6
        for statistic, values in mean_and_minimum(part).iterrows():
            row |= {f"{statistic} per {words[name]}, {layers}": value for name, value in values.items()}
    return pd.Series(row, dtype=float)


def characterisation(
    networks: Mapping[str, Inference], counts: Mapping[str, pd.DataFrame], separate_add: Sequence[str]
) -> pd.DataFrame:
    """`characterise` of several networks, a row each; live activations both ways for those named."""
    rows = {
        name: characterise(model, table=counts[name], separate_add=name in separate_add, **given)
        for name, (model, given) in networks.items()
    }
    return pd.DataFrame(rows).T.rename_axis("model")


# --- the cells of the table --------------------------------------------------------------------------------


def sizes(row: pd.Series, *, separate_add: bool = False) -> dict[str, float]:
    """Parameters and live activations of a row of `characterise`, in millions."""
    return {
        "parameters": row["parameters (M)"],
        "weights of convolutions": row["weights (M), convolutions"],
        "live activations": row["live, separate add (M)" if separate_add else "live (M)"],
    }


def intensities(row: pd.Series, per: str, *, average_over: str = "convolutions") -> dict[str, float]:
    """Arithmetic intensity of a row of `characterise`; minima are over convolutions.

    Parameters
    ----------
    per : {"per weight", "per weight and activation"}
    average_over : {"convolutions", "all layers"}
        Of the average; one that is named "over convolutions" always is.
    """
    average, minimum = row[f"average {per}, {average_over}"], row[f"minimum {per}, convolutions"]
    return {
        "average": average,
        "minimum": minimum,
        "average over convolutions": row[f"average {per}, convolutions"],
        "minimum over convolutions": minimum,
        "average in thousands": average / 1e3,
        "minimum in thousands": minimum / 1e3,
    }


def recommenders() -> dict[str, DLRM]:
    """The three public recommendation networks of industrial size, on the meta device."""
    with torch.device("meta"):
        return {"RM1": rm1(), "RM2": rm2(), "RM3": rm3()}


def translator() -> TranslationModel:
    """A translator of the kind that the paper describes, in sizes of ours, on the meta device."""
    with torch.device("meta"):
        return TranslationModel()


def linear_layers(model: DLRM) -> list[nn.Linear]:
    """The fully connected layers in order."""
    return [layer for part in (model.bottom, model.top) for layer in part if isinstance(layer, nn.Linear)]


def recommender_sizes(models: Mapping[str, DLRM]) -> pd.DataFrame:
    """Millions of parameters in the fully connected layers, billions in the embedding tables."""
    return pd.DataFrame(
        {
            name: {
                "fully connected (M)": sum(map(count_parameters, linear_layers(model))) / 1e6,
                "embeddings (billions)": count_parameters(model.tables) / 1e9,
            }
            for name, model in models.items()
        }
    ).T.rename_axis("model")


# --- single layers -----------------------------------------------------------------------------------------


def average_intensity(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    method: str = "forward",
    kind: str | None = None,
    per: str = "weights",
) -> float:
    """Operations per element, over all layers of a kind: the ratio of the sums.

    Parameters
    ----------
    model, input_shape, inputs, method
        As `lib.cost.operations.count_operations`; products outside the layers are left out.
    kind : str, optional
        Only layers of this kind, as ``lstm``; None: all.
    per : {"weights", "activations_and_weights"}

    Raises
    ------
    ValueError
        No layer of this kind, or an unknown `per`.
    """
    table = count_operations(model, input_shape, inputs=inputs, method=method, outside="ignore")
    if kind is not None and kind not in set(table["kind"]):
        raise ValueError(f"no layer of kind {kind!r}, only {', '.join(sorted(set(table['kind'])))}")
    if per not in ("weights", "activations_and_weights"):
        raise ValueError(f"per must be weights or activations_and_weights, got {per!r}")
    return float(
        mean_and_minimum(table if kind is None else table[table["kind"] == kind]).loc["average", per]
    )


def lookup_intensities() -> dict[str, float]:
    """Operations per weight read of pooled look-ups, plain and weighted."""
    bag = nn.EmbeddingBag(9, 32, mode="sum", device="meta")
    index, weights = torch.zeros(4, 20, dtype=torch.int64), torch.ones(4, 20)
    return {
        "sum of rows": average_intensity(bag, inputs=(index,)),
        "weighted sum of rows": average_intensity(bag, inputs=(index, None, weights)),
    }


def recommendation_intensities(model: DLRM) -> dict[str, float]:
    """Operations per weight of a recommender's fully connected layers, for batches of 10 and 100."""
    first = linear_layers(model)[0]
    low, high = (average_intensity(first, (batch, first.in_features)) for batch in (10, 100))
    return {"lowest": low, "highest": high}


def decoding_intensities(translator: TranslationModel) -> dict[str, float]:
    """Operations per weight of the recurrent layers in a step of decoding 1 and 8 sentences at once.

    The translator has 4 layers of 1024; its sources have 8 tokens.
    """
    found = {}
    for tokens, words in {1: "one token", 8: "eight tokens"}.items():
        state = tuple(torch.zeros(4, tokens, 1024) for _ in range(2))
        given = (torch.zeros(tokens, 1, dtype=torch.int64), torch.zeros(tokens, 8, 1024), state)
        found[words] = average_intensity(translator, inputs=given, method="decode", kind="lstm")
    return found


def family_intensities(recommender: DLRM, translator: TranslationModel) -> dict[str, float]:
    """Operations per weight of one layer of each family."""
    return {
        "embedding look-up, operations per weight": lookup_intensities()["sum of rows"],
        "recurrent layer, one token, operations per weight": decoding_intensities(translator)["one token"],
        "fully connected layer, 100 rows, operations per weight": recommendation_intensities(recommender)[
            "highest"
        ],
    }


def linear_intensities(rows: int = 16, inputs: int = 512, outputs: int = 256) -> dict[str, float]:
    """Operations of a fully connected layer per weight and per number of its input."""
    layer = count_operations(nn.Linear(inputs, outputs, device="meta"), (rows, inputs)).iloc[0]
    return {
        f"per weight, M = {rows}": layer["operations"] / layer["weights"],
        f"per input activation, N = {outputs}": layer["operations"] / layer["input_elements"],
    }


def convolution_intensities() -> dict[str, float]:
    """Operations per weight and activation of group and depth-wise convolutions with stride 2."""
    options = dict(kernel_size=3, stride=2, padding=1, device="meta")
    layers = {
        "3×3 group convolution, 8 channels a group, stride 2": (
            nn.Conv2d(256, 256, groups=32, **options),
            (1, 256, 56, 56),
        ),
        "3×3 depth-wise, stride 2": (nn.Conv2d(248, 248, groups=248, **options), (1, 248, 150, 200)),
        "3×3×3 depth-wise, stride 2": (nn.Conv3d(128, 128, groups=128, **options), (1, 128, 16, 28, 28)),
    }
    return {
        name: average_intensity(layer, shape, per="activations_and_weights")
        for name, (layer, shape) in layers.items()
    }


def link_bandwidths(counts: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """GB/s of images of 224 × 224 × 3 bytes that keep the accelerator busy, by network."""
    return {name: PEAK / totals(table)["operations"] * 224 * 224 * 3 / 1e9 for name, table in counts.items()}


def longest_uncut_sums(depth: int = 32) -> dict[str, int]:
    """How many products of 255 with the most negative n-bit weight 16 bits hold, by trial up to `depth`."""
    activation = torch.full((1, depth), 255, dtype=torch.uint8)
    found = {}
    for bits in (8, 7, 6, 5, 4):
        weight = torch.full((1, depth), -(2 ** (bits - 1)), dtype=torch.int8)
        cut = [bool(gemm_i16(activation[:, :k], weight[:, :k]).saturated) for k in range(1, depth + 1)]
        found[f"n = {bits}"] = cut.count(False)
    return found


# --- the accelerator ---------------------------------------------------------------------------------------


def workloads(networks: Mapping[str, Inference]) -> dict[str, Workload]:
    """The layers of each network as the accelerator runs them (`lib.cost.roofline.workload`)."""
    return {name: workload(model, **given) for name, (model, given) in networks.items()}


def achieved_rates(work: Mapping[str, Workload], capacities_mb: Sequence[float]) -> pd.DataFrame:
    """Achieved Top/s of each network (columns) on the paper's accelerator, by ``MB on chip``."""
    accelerators = [Accelerator(megabytes * 1e6, operations_per_second=PEAK) for megabytes in capacities_mb]
    curves = {
        name: [machine.achieved(each) / 1e12 for machine in accelerators] for name, each in work.items()
    }
    return pd.DataFrame(curves, index=list(capacities_mb)).rename_axis("MB on chip")


def shares_of_peak(work: Mapping[str, Workload]) -> dict[str, list[float]]:
    """Achieved share of the accelerator's peak with and without memory on the chip, a value per network."""
    rates = achieved_rates(work, [64, 0]) / (PEAK / 1e12)
    return {"64 MB on chip": rates.loc[64].tolist(), "no memory on chip": rates.loc[0].tolist()}
