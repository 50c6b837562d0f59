"""Reads weights as Tag2Pix's authors published them (github.com/blandocs/Tag2Pix, commit 733d729)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lib.models.authors import read_state_dict, require_finite, require_fit

Network = TypeVar("Network", bound=nn.Module)

#: Patterns of what a key begins with, and what stands there in ours.
Names = Sequence[tuple[str, str | Callable[[re.Match], str]]]


def read_authors(held: object, wrapper: str) -> dict[str, Tensor]:
    """The state dict in what an authors' file holds, bare or under ``wrapper``, without ``module.``.

    Raises
    ------
    ValueError
        It holds none, or a weight that is not finite.
    """
    state = read_state_dict(held, wrappers=(wrapper,), prefix="module.")
    require_finite(state)
    return state


def renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """A state dict under our names; what has none keeps its own, and is refused on loading."""
    ours = {}
    for key, value in state.items():
        name = key.replace(".selayer.fc.0.", ".gate.squeeze.").replace(".selayer.fc.2.", ".gate.excite.")
        for pattern, replacement in names:
            name, found = re.subn(f"^{pattern}", replacement, name)
            if found:
                break
        ours[name] = value
    return ours


def count(state: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """How many consecutive k = first, first + 1, … begin a key as ``pattern.format(k)``."""
    k = first
    while any(key.startswith(pattern.format(k)) for key in state):
        k += 1
    return k - first


def size_of(state: Mapping[str, Tensor], key: str, axis: int, default: int) -> int:
    """Length of a tensor along an axis; the default where there is no such tensor or axis."""
    return state[key].shape[axis] if key in state and state[key].ndim > axis else default


def load_authors(
    make: Callable[..., Network], options: Mapping[str, Any], state: Mapping[str, Tensor], whose: str
) -> Network:
    """A network in evaluation mode with the weights of a state dict under our names, in their type.

    Counters of batches, which files of old torch lack and nothing reads, are zero where there is none.

    Raises
    ------
    ValueError
        The sizes make no network; or as `lib.models.authors.require_fit`.
    """
    try:
        with torch.device("meta"):  # first weights that nobody needs are not drawn
            network = make(**options)
    except ValueError as error:
        raise ValueError(f"this is no {whose}: {error}") from error
    own = network.state_dict()
    counters = {key: torch.tensor(0) for key in own if key.endswith(".num_batches_tracked")}
    state = counters | dict(state)
    require_fit(state, own, whose)
    network.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    return network.to(memory_format=torch.channels_last).eval()
