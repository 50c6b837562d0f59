"""Files of weights as authors published them: read without running anything, or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.listing import first_few

#: Path of a file that torch saved, or what such a file holds.
Source = str | os.PathLike | Mapping


def contents(source: Source) -> object:
    """What a file holds that torch saved, on the CPU; a mapping is what it is.

    Files are read with ``weights_only=True``: a pickle can otherwise run any code.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no file of tensors.
    """
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: what is no such file makes the unpickler stumble anywhere
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is no file of tensors that torch saved ({reason})") from error


def read_state_dict(source: Source, *, wrappers: Sequence[str] = (), prefix: str = "") -> dict[str, Tensor]:
    """The state dict in an authors' file, or in what one holds.

    Parameters
    ----------
    source : str, path or mapping
    wrappers : sequence of str
        Keys under which such files may keep the state dict, tried in turn and one inside the other; without
        any of them, ``source`` is the state dict itself.
    prefix : str
        Taken from the beginning of each key that has it.

    Returns
    -------
    dict of str to Tensor
        On the CPU if read from a file.

    Raises
    ------
    FileNotFoundError, ValueError
        As `contents`; or there is no mapping of names to tensors in it.
    """
    state = contents(source)
    for wrapper in wrappers:
        if isinstance(state, Mapping) and wrapper in state:
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise ValueError("the checkpoint holds no state dict")
    state = {str(key).removeprefix(prefix): value for key, value in state.items()}
    if strangers := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"the checkpoint holds no state dict: {first_few(strangers)} are no tensors")
    return state


def require_keys(state: Mapping[str, Tensor], keys: Iterable[str], whose: str, *, only: bool = False) -> None:
    """Refuse a state dict that lacks keys.

    Parameters
    ----------
    state : mapping
    keys : iterable of str
        What must be there.
    whose : str
        What the file should be, for the message: ``"MEANTIME checkpoint of the authors"``.
    only : bool
        Whether nothing else may be there.

    Raises
    ------
    ValueError
        Names the first missing and unexpected keys.
    """
    expected = dict.fromkeys(keys)
    problems = {"missing": [key for key in expected if key not in state]}
    problems["unexpected"] = [key for key in state if key not in expected] if only else []
    if found := [f"{problem} {first_few(names)}" for problem, names in problems.items() if names]:
        raise ValueError(f"this is no {whose}: {'; '.join(found)}")


def require_fit(state: Mapping[str, Tensor], network: nn.Module, whose: str) -> None:
    """Refuse a state dict that has not the very keys and shapes of a network.

    Raises
    ------
    ValueError
        Names the first missing and unexpected keys, or the first of another shape.
    """
    own = network.state_dict()
    require_keys(state, own, whose, only=True)
    for key, value in own.items():
        if state[key].shape != value.shape:
            shapes = f"{key} must be {tuple(value.shape)}, got {tuple(state[key].shape)}"
            raise ValueError(f"this is no {whose}: {shapes}")
