"""What a compressed network is compared with: networks of equal cost, and its layers from fresh weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lib.compression.one_shot import Compressed, compress


def largest_within(
    build: Callable[[float], nn.Module],
    cost: Callable[[nn.Module], float],
    budget: float,
    *,
    low: float = 1e-4,
    high: float = 1.0,
    steps: int = 12,
) -> float:
    """The largest setting in ``[low, high]`` whose model costs at most ``budget``, by bisection.

    For baselines of equal cost: the share of ranks, or the width, that spends what another model spends. By
    default ``low`` leaves every layer one channel or rank, as EVBMF does where it finds nothing but noise.

    Parameters
    ----------
    build, cost
        From the setting to a model, and from a model to its cost, which must not fall as the setting grows.
    budget : float
        In the unit of ``cost``.

    Raises
    ------
    ValueError
        Even ``low`` costs more.
    """
    if cost(build(low)) > budget:
        raise ValueError(f"the setting {low} already costs {cost(build(low)):g}, more than {budget:g}")
    if cost(build(high)) <= budget:
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(build(middle)) <= budget else (low, middle)
    return low


def equal_cost_baselines(
    original: nn.Module,
    compressed: Compressed,
    build: Callable[..., nn.Module],
    cost: Callable[[nn.Module], float],
    **options: object,
) -> dict[str, nn.Module]:
    """Networks that cost at most what a compressed one costs, to be trained beside it.

    Parameters
    ----------
    original : nn.Module
        The trained network that was compressed.
    compressed
        What `compress` made of it.
    build
        From ``width=``, a factor on all channels, to a network like the original; it is also called on the
        meta device.
    cost
        From a network on the meta device to a number, as of multiply–accumulates.
    options
        Of `compress`, as they were given for ``compressed``.

    Returns
    -------
    dict
        ``uniform ranks``: the original decomposed with the same share of channels in every layer;
        ``narrow``: a network with fewer channels; ``structure``: the compressed network's layers. The last
        two have fresh weights. Share and width are the largest that the cost allows.
    """

    def on_meta(**width: float) -> nn.Module:
        with torch.device("meta"):
            return build(**width)

    def shared(share: float) -> nn.Module:
        return compress(on_meta(), share, weights="fresh", **options).model

    budget = cost(compressed.model)
    maps = {name: shape for name, shape in (options.get("maps") or {}).items() if name in compressed.ranks}
    share = largest_within(shared, cost, budget)
    width = largest_within(lambda width: on_meta(width=width), cost, budget)
    return {
        "uniform ranks": compress(original, share, **options).model,
        "narrow": build(width=width),
        "structure": compress(original, compressed.ranks, maps=maps, weights="fresh").model,
    }


def initialise_gaussian(model: nn.Module, std: float | None = None) -> nn.Module:
    """Draw all convolution and fully connected weights anew from a Gaussian; biases become 0.

    Parameters
    ----------
    std : float, optional
        Standard deviation of all weights; AlexNet's paper has 0.01. If not given, that of He et al. (2015):
        variance 2/fan_in, as where a rectifier follows (the output layer too, where none does). Behind
        ``reduce`` and ``core`` it is 1/fan_in: a factored layer passes on as much variance as a whole one.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    ValueError
        ``std`` is not positive.
    """
    if std is not None and not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    for name, layer in model.named_modules():
        if type(layer) in (nn.Conv2d, nn.Linear):
            chained = name.rpartition(".")[2] in ("reduce", "core")
            if std is None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if chained else "relu")
            else:
                nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model
