"""Checkpoints of trainings: all that goes on after a kill, in one file that is whole or not there.

A checkpoint holds the state of modules, optimisers and whatever else has one, and the random states of torch
(processor and graphics cards), NumPy and Python, so that the training after a kill is the one that would
have been without it. It says whose it is, and is read with ``weights_only=True``: no code comes out of it.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from lib.files import replacing
from lib.listing import printable

#: Of the file: raised when older checkpoints cannot be continued.
FORMAT = 2


class Stateful(Protocol):
    """What can be saved and continued: modules, optimisers, averages of weights, samplers, …"""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object: ...


def random_state() -> dict[str, Any]:
    """Return the states of the global generators of torch, NumPy and Python."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002  whoever draws from it is to be continued too
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (torch.from_numpy(keys.astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators where they were at `random_state`; of graphics cards, those that are here."""
    torch.set_rng_state(state["torch"].cpu())
    for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(value.cpu(), device)
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002  as above
    random.setstate(state["python"])


def check_readable(state: Mapping[str, Stateful]) -> dict[str, Mapping[str, Any]]:
    """Return the state of every item; refuse what could be saved, but not be read without running code.

    Raises
    ------
    ValueError
        A ``state_dict`` holds something else than tensors, numbers, text, lists and dictionaries of them;
        scalars and arrays of NumPy, say.
    """
    states = {name: item.state_dict() for name, item in state.items()}
    for name, content in states.items():
        _check_readable(content, f"the state of {name!r}")
    return states


def save(path: Path, name: str, state: Mapping[str, Stateful]) -> None:
    """Write a checkpoint in the place of the one before.

    Parameters
    ----------
    path : Path
        Its folder is made.
    name : str
        Of the training that it belongs to.
    state : mapping of str to Stateful

    Raises
    ------
    ValueError
        As `check_readable`; the checkpoint before is still there.
    OSError
        It cannot be written; the checkpoint before is still there.
    """
    states = check_readable(state)
    content = {
        "format": FORMAT,
        "name": name,
        "kinds": _kinds(state),
        "state": states,
        "random": random_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(content, file)


def restore(path: Path, name: str, state: Mapping[str, Stateful], device: torch.device | str = "cpu") -> None:
    """Continue from a checkpoint: load the state of every item, and the random states.

    Parameters
    ----------
    path, name, state
        As given to `save`.
    device
        Where its tensors are loaded to.

    Raises
    ------
    ValueError
        The file is damaged, of an older format, or of a training of another name or with other state.
    """
    try:
        content = _read(path, device)
        if content["name"] != name:
            raise ValueError(f"it belongs to {content['name']!r}")
        found, wanted = content["kinds"].items(), _kinds(state).items()
        if found != wanted:
            raise ValueError(f"it holds {_listed(found - wanted)} instead of {_listed(wanted - found)}")
        for key, item in state.items():
            item.load_state_dict(content["state"][key])
        set_random_state(content["random"])
    except (PermissionError, MemoryError, torch.OutOfMemoryError):
        raise  # no fault of the file's
    except Exception as error:  # a damaged one can raise anything
        raise ValueError(
            f"{path} is no checkpoint of {name!r} ({printable(error)}): remove it to train anew"
        ) from error


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        with ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch itself does not look at the checksums
                raise BadZipFile
        content = torch.load(path, map_location=device, weights_only=True)
    except (PermissionError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError("damaged, or not written by this loop") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("of another format")
    return content


def _kinds(state: Mapping[str, Stateful]) -> dict[str, str]:
    return {key: type(item).__name__ for key, item in state.items()}


def _listed(kinds: Set[tuple[str, str]]) -> str:
    return ", ".join(f"{key!r} ({kind})" for key, kind in sorted(kinds)) or "nothing"


_PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device}


def _check_readable(value: object, place: str) -> None:
    if type(value) in {dict, OrderedDict, Counter}:
        for key, item in value.items():
            _check_readable(key, f"a key of {place}")
            _check_readable(item, f"{place} at {key!r}")
    elif type(value) in {list, tuple, set}:
        for item in value:
            _check_readable(item, f"a member of {place}")
    elif type(value) not in _PLAIN and not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(
            f"{place} is a {kind}: checkpoints hold tensors, plain numbers, text, lists, dictionaries"
        )
