"""One shot at networks that were trained on ImageNet: what is left of their predictions before fine-tuning.

The paper's networks are in no package here, but two smaller classifiers are. There is nothing to fine-tune
them on; how far a network has moved shows on photographs, where it is compared with what it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from lib.compression.one_shot import compress
from lib.compression.ranks import Ranks
from lib.cost.operations import count_operations, totals
from lib.data.preprocessing import Preprocessing
from lib.experiments.oneshot_compression_baselines import largest_within
from lib.inspection import evaluating

#: Which kernels are replaced: those with more than one tap, as in the paper's GoogLeNet, or all.
KERNELS = {"D × D": False, "1 × 1 too": True}
EVBMF = "EVBMF"
COMPUTED, STORED = "multiply–accumulates (%)", "weights (%)"
AGREEMENT, AMONG_FIVE = "same first class (%)", "first class among five (%)"
LOGITS = "relative error of the logits"
MEASURED = [COMPUTED, STORED, AGREEMENT, AMONG_FIVE]


def crops(
    photographs: Mapping[str, Image.Image], preprocessing: Preprocessing, count: int, *, seed: int
) -> dict[str, Tensor]:
    """Each photograph's centre, and random parts as in training: (count, 3, side, side) by name."""
    random = np.random.default_rng(seed)
    return {
        name: torch.stack(
            [preprocessing.test(one), *(preprocessing.train(one, random) for _ in range(count - 1))]
        )
        for name, one in photographs.items()
    }


def ranks_of(network: nn.Module, rule: Literal["vbmf"] | float, *, pointwise: bool) -> dict[str, Ranks]:
    """Ranks by a rule for all kernels but depthwise ones, by the layer's name.

    A 1 × 1 kernel is a matrix, whose two unfoldings have one rank: it is factored on one side.

    Parameters
    ----------
    network
    rule
        EVBMF, or the share of channels that is kept.
    pointwise
        Whether 1 × 1 convolutions are replaced, too.
    """
    convolutions = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    depthwise = [name for name, layer in convolutions.items() if layer.groups == layer.in_channels]
    found = compress(network, rule, skip=depthwise, pointwise=pointwise, weights="fresh").ranks
    matrices = {name for name, layer in convolutions.items() if layer.kernel_size == (1, 1)}
    return {name: ranks[1] if name in matrices else ranks for name, ranks in found.items()}


def share_at_equal_cost(network: nn.Module, image_shape: Sequence[int], *, pointwise: bool) -> float:
    """The share of channels at which a network costs what EVBMF's ranks cost, or just below.

    Parameters
    ----------
    network
    image_shape
        (1, channels, height, width), for which multiply–accumulates are counted.
    pointwise
        See `ranks_of`.
    """
    blank = copy.deepcopy(network).to("meta")

    def shared(share: float) -> nn.Module:
        return compress(blank, ranks_of(blank, share, pointwise=pointwise), weights="fresh").model

    def cost(model: nn.Module) -> float:
        return totals(count_operations(model, tuple(image_shape)))["macs"]

    by_evbmf = compress(blank, ranks_of(network, "vbmf", pointwise=pointwise), weights="fresh").model
    return largest_within(shared, cost, cost(by_evbmf))


@torch.no_grad()
def one_shot_errors(
    network: nn.Module, images: Mapping[str, Tensor], shares: Sequence[float], *, sweeps: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A trained network with its kernels replaced, untrained since: its cost, and how it sees photographs.

    Parameters
    ----------
    network : nn.Module
        Trained; it stays as it is.
    images : mapping
        (N, 3, H, W) of each photograph.
    shares : sequence of float
        Of each side's channels, in (0, 1], beside EVBMF's ranks.
    sweeps : int
        Of the Tucker iteration at most.

    Returns
    -------
    by_photograph : DataFrame
        ``kernels`` (of `KERNELS`), ``ranks`` (``EVBMF`` or the share), the whole network's `COMPUTED` and
        `STORED` relative to the uncompressed one, ``photograph``, and as means over its images `AGREEMENT`
        with the uncompressed network, how often its likeliest class is `AMONG_FIVE` likeliest, and
        `LOGITS`, ‖z − ẑ‖/‖z‖.
    layers : DataFrame
        ``kernels``, ``ranks`` and, for each layer, `lib.compression.one_shot.Compressed.report`.
    """
    shape = next(iter(images.values()))[:1].shape
    with evaluating(network):
        exact = {name: network(part) for name, part in images.items()}
    before = totals(count_operations(network, tuple(shape)))
    rows, reports = [], []
    for (kernels, pointwise), rule in product(KERNELS.items(), ["vbmf", *shares]):
        ranks = ranks_of(network, rule, pointwise=pointwise)
        small = compress(network, ranks, sweeps=sweeps)
        known = {"kernels": kernels, "ranks": EVBMF if rule == "vbmf" else f"{rule:g}"}
        after = totals(count_operations(small.model, tuple(shape)))
        cost = {COMPUTED: 100 * after["macs"] / before["macs"]}
        cost[STORED] = 100 * after["weights"] / before["weights"]
        reports.append(small.report.assign(**known))
        with evaluating(small.model):
            for name, part in images.items():
                got, wanted = small.model(part), exact[name]
                five = got.topk(5, dim=1).indices == wanted.argmax(1, keepdim=True)
                error = (got - wanted).norm(dim=1) / wanted.norm(dim=1)
                found = {AGREEMENT: 100 * five[:, 0].double().mean(), LOGITS: error.mean()}
                found[AMONG_FIVE] = 100 * five.any(1).double().mean()
                found = {what: float(mean) for what, mean in found.items()}
                rows.append(known | cost | {"photograph": name} | found)
    return pd.DataFrame(rows), pd.concat(reports)


def predictions_lost(found: pd.DataFrame) -> dict[str, float]:
    """Per cent of images whose first class is not among the five likeliest with EVBMF's ranks.

    Parameters
    ----------
    found
        ``by_photograph`` of `one_shot_errors`, with a column ``network``.

    Returns
    -------
    dict
        By names such as ``SqueezeNet, D × D``.
    """
    rows = found[found["ranks"] == EVBMF].groupby(["network", "kernels"], sort=False)
    return {", ".join(case): 100 - among for case, among in rows[AMONG_FIVE].mean().items()}


def logit_errors(found: pd.DataFrame, equal_share: float) -> dict[str, dict[str, list[float]]]:
    """Errors of the logits of SqueezeNet without its D × D kernels: EVBMF's ranks against one share.

    Parameters
    ----------
    found
        ``by_photograph`` of `one_shot_errors`, with a column ``network``.
    equal_share
        That at which it costs as much (`share_at_equal_cost`), one of those measured.

    Returns
    -------
    dict
        By metric and arm, a value for each photograph.
    """
    rows = found[(found["network"] == "SqueezeNet") & (found["kernels"] == "D × D")].set_index("ranks")
    arms = {EVBMF: EVBMF, "the same share of channels": f"{equal_share:g}"}
    return {LOGITS: {arm: list(rows.loc[[ranks], LOGITS]) for arm, ranks in arms.items()}}


def one_shot_figure(found: pd.DataFrame) -> Figure:
    """How often the first class stays among five, over what is still computed.

    A panel for each network, one above the other: for each choice of kernels a line over shares, and EVBMF's
    ranks as a large point.

    Parameters
    ----------
    found
        ``by_photograph`` of `one_shot_errors`, with a column ``network``.
    """
    means = found.groupby(["network", "kernels", "ranks"], sort=False)[[COMPUTED, AMONG_FIVE]].mean()
    networks = list(dict.fromkeys(found["network"]))
    figure, axes = plt.subplots(len(networks), 1, figsize=(6.2, 0.6 + 2.7 * len(networks)), sharex=True)
    for axis, network in zip(np.atleast_1d(axes), networks, strict=True):
        for kernels, line in zip(KERNELS, ("o-", "s--"), strict=True):
            part = means.loc[network, kernels]
            chosen, shares = part.loc[EVBMF], part.drop(EVBMF).sort_values(COMPUTED)
            (drawn,) = axis.plot(shares[COMPUTED], shares[AMONG_FIVE], line, label=f"{kernels}, shares")
            style = {"color": drawn.get_color(), "markeredgecolor": "black", "markersize": 11}
            axis.plot(chosen[COMPUTED], chosen[AMONG_FIVE], line[0], label=f"{kernels}, EVBMF", **style)
        axis.axvline(100, color="#555555", linestyle=":")
        axis.set(ylabel=f"{AMONG_FIVE}\n{network}", ylim=(-4, 104))
    np.atleast_1d(axes)[-1].set_xlabel(f"{COMPUTED} of the uncompressed network")
    np.atleast_1d(axes)[0].legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure
