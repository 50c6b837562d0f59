"""Reads and writes weights as the MEANTIME authors' program saves them (commit a9ca2e7).

Which of their keys holds which of our parameters is in `lib.models.recommenders.meantime_layouts`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lib.models.authors import floating_dtype, read_state_dict, require_finite, require_fit, require_keys

#: What an authors' key holds: the name of our parameter, and how to cut it out of that parameter.
Slot = tuple[str, Callable[[Tensor], Tensor]]


def read_state(held: object) -> dict[str, Tensor]:
    """The authors' state dict in what a file of theirs holds.

    Accepts the whole checkpoint (``model_state_dict`` or ``state_dict`` inside) or the bare dict, and strips
    a leading ``model.`` from keys, as the authors' own loader does.

    Raises
    ------
    ValueError
        As `lib.models.authors.read_state_dict` and `lib.models.authors.require_finite`.
    """
    state = read_state_dict(held, wrappers=("model_state_dict", "state_dict"), prefix="model.")
    require_finite(state)
    return state


def require(state: Mapping[str, Tensor], least: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Refuse a state dict from which the sizes of a model cannot be read.

    Parameters
    ----------
    state
        From `read_state`.
    least
        The smallest shape that the tensor of a key can have.
    model
        Name for messages.

    Raises
    ------
    ValueError
        Names the first missing keys, or the first with another number of axes or a shorter one.
    """
    require_keys(state, least, f"{model} checkpoint of the authors")
    for key, lengths in least.items():
        shape = tuple(state[key].shape)
        if len(shape) != len(lengths) or any(map(operator.lt, shape, lengths)):
            raise ValueError(f"{key} must be at least {lengths}, got {shape}")


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many consecutive indices k = 0, 1, … have a key ``pattern.format(k)``, possibly as a prefix."""
    k = 0
    while any(key.startswith(pattern.format(k)) for key in state):
        k += 1
    return k


def load_authors(
    module: nn.Module, layout: Mapping[str, Slot], state: Mapping[str, Tensor], model: str
) -> None:
    """Copy an authors' state dict into our module, in the state's floating dtype.

    Parameters
    ----------
    module
        Ours, of the right sizes.
    layout
        Authors' key to `Slot`; every key must be there and no other.
    state
        From `read_state`.
    model
        Name for messages.

    Raises
    ------
    ValueError
        As `lib.models.authors.require_fit`.
    """
    module.to(floating_dtype(state))
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        own = {key: cut(parameters[name]) for key, (name, cut) in layout.items()}
        require_fit(state, own, f"{model} checkpoint of the authors")
        for key, target in own.items():
            target.copy_(state[key])


def save_authors(module: nn.Module, layout: Mapping[str, Slot]) -> dict[str, Tensor]:
    """Our module's weights under the authors' keys: the inverse of `load_authors`."""
    parameters = dict(module.named_parameters())
    return {key: cut(parameters[name]).detach().clone() for key, (name, cut) in layout.items()}


def whole(name: str) -> Slot:
    """The slot of a key that is exactly our parameter ``name``."""
    return name, lambda parameter: parameter


def part(name: str, *index) -> Slot:
    """The slot of a key that is ``parameter[index]`` (a view) of our parameter ``name``."""
    return name, lambda parameter: parameter[index]


def linear(theirs: str, ours: str) -> dict[str, Slot]:
    """Weight and bias of a layer (Linear or LayerNorm) that both sides hold whole."""
    return {f"{theirs}.{leaf}": whole(f"{ours}.{leaf}") for leaf in ("weight", "bias")}


def rows_of_linear(theirs: str, ours: str, rows: slice) -> dict[str, Slot]:
    """Weight and bias of a layer that is a block of rows of one of our fused layers."""
    return {f"{theirs}.{leaf}": part(f"{ours}.{leaf}", rows) for leaf in ("weight", "bias")}
