"""Checkpoints of news recommenders in the layout of yusanshi/news-recommendation (MIT licence)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lib.models.authors import read_state_dict


def renamed(held: object, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A state dict under other names; what has none keeps its own, and is refused on loading.

    Raises
    ------
    ValueError
        Two names of one tensor (a shared table) hold different values.
    """
    state = {}
    for key, value in read_state_dict(held, wrappers=("model_state_dict",)).items():
        prefix = max((name for name in names if key.startswith(f"{name}.")), key=len, default=None)
        own = key if prefix is None else names[prefix] + key.removeprefix(prefix)
        if own in state and not torch.equal(state[own], value):
            raise ValueError(f"{key} is not the table that it shares with another part")
        state[own] = value
    return state


def table_shape(state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    """Of a matrix in a state dict; ValueError if there is none."""
    if key not in state or state[key].ndim != 2:
        raise ValueError(f"this is no checkpoint of the kind: there is no matrix {key}")
    return tuple(state[key].shape)


def convolutions_over_words(state: dict[str, Tensor], key: str) -> tuple[int, int, int]:
    """Convolutions over (word, embedding) planes, (filters, 1, window, size), as ones over words."""
    for name, value in state.items():
        if name.endswith("CNN.weight") and value.ndim == 4 and value.shape[1] == 1:
            state[name] = value.squeeze(1).mT.contiguous()
    if key not in state or state[key].ndim != 3:
        raise ValueError(f"this is no checkpoint of the kind: there is no convolution {key}")
    return tuple(state[key].shape)
