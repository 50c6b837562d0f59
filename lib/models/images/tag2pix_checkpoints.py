"""Reads weights as Tag2Pix's authors published them (github.com/blandocs/Tag2Pix, commit 733d729)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lib.models.authors import filled, read_state_dict, require_finite

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
    """`lib.models.authors.filled` with the network that these options make, channels last."""
    return filled(lambda: make(**options), state, whose).to(memory_format=torch.channels_last)
