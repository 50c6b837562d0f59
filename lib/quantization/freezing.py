"""Progressive freezing (PROFIT, Park & Yoo, ECCV 2020): which layers are frozen when, and what still moves.

At a low bit width PROFIT samples the instability of every convolution, sorts the layers by it, and trains in
rounds; before each round but the first the next part of the layers, the most unstable first, is frozen. A
frozen layer's weights (and bias) stay as they are to the bit. Its quantiser's ranges, and the normalisation
behind it, keep training.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from torch import nn

from lib.quantization.convert import quantized_layers
from lib.quantization.duq import DuQConv2d, DuQLinear
from lib.quantization.quantizer import Quantizer


def freezing_rounds(instability: Mapping[str, float], rounds: int = 3) -> list[tuple[str, ...]]:
    """Which layers are frozen in each round: none, then the most unstable 1/rounds, 2/rounds, …

    Parameters
    ----------
    instability
        AIWQ by name of the layer.
    rounds
        N_PROFIT of the paper.

    Returns
    -------
    list of tuples
        Names, most unstable first; parts are cut by truncation, ties by order.

    Raises
    ------
    ValueError
        Fewer than one round, or a layer without a measured value.
    """
    if rounds < 1:
        raise ValueError(f"at least 1 round, got {rounds}")
    if bad := [name for name, value in instability.items() if not math.isfinite(value)]:
        raise ValueError(f"no instability was measured for {bad[0]}: sample more steps")
    order = sorted(instability, key=instability.__getitem__, reverse=True)
    return [tuple(order[: len(order) * part // rounds]) for part in range(rounds)]


def freeze(model: nn.Module, names: Collection[str] = ()) -> None:
    """Freeze the weights of these layers, and of no other quantised layer, in place.

    Raises
    ------
    ValueError
        A name that is not a quantised layer's.
    """
    layers = dict(quantized_layers(model))
    if unknown := sorted(set(names) - set(layers)):
        raise ValueError(f"{unknown[0]!r} is no quantised layer of this network")
    for name, layer in layers.items():
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.requires_grad_(name not in names)


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 4e-5,
    quantizer_factor: float = 0.01,
) -> list[dict]:
    """Groups for ``torch.optim.SGD``, as PROFIT has them: what is frozen is in none of them.

    Make a new optimiser when what is frozen changes, so that no momentum moves it.

    Parameters
    ----------
    model
    learning_rate
        Of weights, of biases and of the parameters of normalisation.
    weight_decay
        Of weights; nothing else decays.
    quantizer_factor
        Learning rate of the quantisers' ranges over `learning_rate`.
    """
    ranges = set()
    for module in model.modules():
        if isinstance(module, Quantizer):
            ranges |= {id(parameter) for parameter in module.parameters(recurse=False)}
        elif isinstance(module, DuQConv2d | DuQLinear):
            ranges |= {id(module.a), id(module.c)}
    groups: dict[str, list] = {"ranges": [], "vectors": [], "weights": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            vector = "vectors" if parameter.dim() <= 1 else "weights"
            groups["ranges" if id(parameter) in ranges else vector].append(parameter)
    settings = {
        "ranges": {"lr": learning_rate * quantizer_factor, "weight_decay": 0.0},
        "vectors": {"lr": learning_rate, "weight_decay": 0.0},
        "weights": {"lr": learning_rate, "weight_decay": weight_decay},
    }
    return [{"params": members, **settings[name]} for name, members in groups.items() if members]
