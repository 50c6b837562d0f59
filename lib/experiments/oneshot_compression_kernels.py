"""What rank rules say of kernels that were trained on ImageNet, and what the decomposition then costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lib.chapter import figures
from lib.compression.one_shot import compress
from lib.compression.ranks import Ranks, energy_rank
from lib.compression.tucker import tucker2
from lib.compression.vbmf import evbmf
from lib.experiments.oneshot_compression_counts import CONVOLUTIONS
from lib.models.vision.alexnet import AlexNetOneTower
from lib.models.vision.vgg import VGG

WEIGHTS_KEPT, ERROR = "weights kept (%)", "relative error"
ONE_TOWER_CHANNELS = ("3 → 64", "64 → 192", "192 → 384", "384 → 256", "256 → 256")
PAPER_CHANNELS = ("3 → 96", "2 × (48 → 128)", "256 → 384", "2 × (192 → 192)", "2 × (192 → 128)")
RULES = {
    "EVBMF": "vbmf",
    "EVBMF, root": lambda unfolding: evbmf(unfolding, tau="root").rank,
    "90 % of energy": energy_rank,
}


def planted_matrix(rows: int = 64, columns: int = 576, rank: int = 10) -> np.ndarray:
    """A made-up matrix of ``rank`` directions, all entries N(0, 1), and noise N(0, 1) on top."""
    random = np.random.default_rng(0)
    signal = random.normal(size=(rows, rank)) @ random.normal(size=(rank, columns))
    return signal + random.normal(size=(rows, columns))


def spectra_figure(matrices: Mapping[str, np.ndarray | Tensor]) -> Figure:
    """Singular values, a panel for each matrix, with EVBMF's threshold and the edge of the noise.

    The edge, σ (√L + √M), is where the largest singular value of noise of the estimated variance gathers.
    """
    figure, axes = plt.subplots(len(matrices), 1, figsize=(6.2, 0.6 + 2.7 * len(matrices)))
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=True):
        found = evbmf(matrix)
        edge = np.sqrt(found.noise_variance) * sum(np.sqrt(matrix.shape))
        axis.plot(np.arange(1, len(found.singular_values) + 1), found.singular_values, ".", markersize=4)
        axis.axhline(found.threshold, color="#222222", label=f"threshold: rank {found.rank}")
        axis.axhline(edge, color="#222222", linestyle="--", label="edge of the noise")
        axis.set(xlabel="component", ylabel="singular value", title=title)
        axis.legend()
    return figure


@dataclass(frozen=True)
class TrainedRanks:
    """Ranks that rules choose for trained convolutions; no weights are kept.

    Attributes
    ----------
    alexnet, vgg16 : DataFrame
        EVBMF's ranks and errors, as `lib.compression.one_shot.Compressed.report`, indexed by layer.
    vgg16_ranks : dict
        By the layer's full name in the whole network.
    by_rule : dict
        Ranks of AlexNet's convolutions, by rule and ``conv1`` … ``conv5``.
    """

    alexnet: pd.DataFrame
    vgg16: pd.DataFrame
    vgg16_ranks: dict[str, Ranks]
    by_rule: dict[str, dict[str, Ranks]]


def trained_ranks(
    alexnet: Mapping[str, Tensor], vgg16: Mapping[str, Tensor], *, sweeps: int, vgg_layers: int
) -> TrainedRanks:
    """Choose ranks for trained convolutions of the one-tower AlexNet and of VGG-16, and decompose them.

    Parameters
    ----------
    alexnet, vgg16
        State dicts of the convolutions, ``features.0.weight`` …
    sweeps
        Of the Tucker iteration at most.
    vgg_layers
        Convolutions of VGG-16 whose ranks are found, from the first, 2 to 13.

    Raises
    ------
    ValueError
        Another number of layers.
    """
    tower, deep = _convolutions(AlexNetOneTower, alexnet), _convolutions(VGG, vgg16)
    names = [name for name, layer in deep.named_modules() if isinstance(layer, nn.Conv2d)]
    if not 2 <= vgg_layers <= len(names):
        raise ValueError(f"vgg_layers must be from 2 to VGG-16's {len(names)}, got {vgg_layers}")
    found = compress(tower, sweeps=sweeps), compress(deep, sweeps=sweeps, skip=names[vgg_layers:])
    by_rule = {}
    for name, rule in RULES.items():
        result = found[0] if rule == "vbmf" else compress(tower, rule, weights="fresh")
        by_rule[name] = dict(zip(CONVOLUTIONS, result.ranks.values(), strict=True))
    return TrainedRanks(
        alexnet=found[0].report.set_index("layer"),
        vgg16=found[1].report.set_index("layer"),
        vgg16_ranks={f"features.{layer}": ranks for layer, ranks in found[1].ranks.items()},
        by_rule=by_rule,
    )


def _convolutions(build: type[nn.Module], state: Mapping[str, Tensor]) -> nn.Module:
    """A network's convolutional part with trained weights."""
    with torch.device("meta"):
        features = build().features
    features.load_state_dict({key.removeprefix("features."): v for key, v in state.items()}, assign=True)
    return features


def alexnet_kernels(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kernels (T, S, Kh, Kw) of the one-tower AlexNet's state dict, as ``conv1`` … ``conv5``."""
    kernels = [value for key, value in weights.items() if key.endswith("weight")]
    return dict(zip(CONVOLUTIONS, kernels, strict=True))


def ranks_table(trained: TrainedRanks, paper: Mapping[str, str]) -> pd.DataFrame:
    """The one-tower AlexNet's ranks by each rule, beside the paper's two-group AlexNet's.

    Parameters
    ----------
    trained
    paper
        The paper's ranks as text, by ``conv1`` … ``conv5``.

    Returns
    -------
    DataFrame
        A row per convolution, indexed by ``layer``.
    """
    table = pd.DataFrame(index=pd.Index(CONVOLUTIONS, name="layer"))
    table["channels"] = ONE_TOWER_CHANNELS
    for rule, ranks in trained.by_rule.items():
        table[rule] = [str(rank).strip("()") for rank in ranks.values()]
    table["error at EVBMF"] = trained.alexnet["relative_error"].to_numpy()
    table["paper's channels"] = PAPER_CHANNELS
    table["paper's ranks (recalled)"] = [paper[layer] for layer in CONVOLUTIONS]
    return table


def error_over_weights(
    kernels: Mapping[str, Tensor], shares: Sequence[float], chosen: Mapping[str, Ranks], *, sweeps: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How the error of a kernel falls with the share of its weights that the factors keep.

    Parameters
    ----------
    kernels : mapping
        (T, S, Kh, Kw), by name.
    shares : sequence of float
        Of both channel sides, in (0, 1].
    chosen : mapping
        A rule's (R3, R4) for each kernel.
    sweeps
        Of the Tucker iteration at most.

    Returns
    -------
    curves, points : DataFrame
        ``layer``, ``weights kept (%)`` and ``relative error`` ‖K − K̂‖/‖K‖, at the shares and at the chosen
        ranks. Above 100 % the chain has more weights than the kernel.
    """
    curves, points = [], []
    for name, kernel in kernels.items():
        outputs, inputs = kernel.shape[:2]
        for share in shares:
            r3, r4 = (max(1, round(share * channels)) for channels in (inputs, outputs))
            curves.append((name, *_kept_and_error(kernel, r3, r4, sweeps)))
        points.append((name, *_kept_and_error(kernel, *chosen[name], sweeps)))
    columns = ["layer", WEIGHTS_KEPT, ERROR]
    return pd.DataFrame(curves, columns=columns), pd.DataFrame(points, columns=columns)


def _kept_and_error(kernel: Tensor, r3: int, r4: int, sweeps: int) -> tuple[float, float]:
    outputs, inputs, *taps = kernel.shape
    kept = 100 * (inputs * r3 + np.prod(taps) * r3 * r4 + outputs * r4) / kernel.numel()
    return kept, tucker2(kernel, r3, r4, sweeps=sweeps).relative_error


def errors_figure(curves: pd.DataFrame, points: pd.DataFrame) -> Figure:
    """The curves of `error_over_weights`, and the chosen ranks as large points with a black rim."""
    figure = figures.curves_figure(curves, WEIGHTS_KEPT, ERROR, arm="layer")
    colours = [f"C{k}" for k in range(len(points))]
    rims = {"s": 110, "c": colours, "edgecolor": "black", "linewidth": 1.5, "zorder": 5}
    figure.axes[0].scatter(points[WEIGHTS_KEPT], points[ERROR], **rims)
    return figure
