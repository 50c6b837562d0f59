"""Files of weights as authors published them: read without running anything, or refused in one line."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from lib.listing import first_few

#: Path of a file that torch saved, or what such a file holds.
Source = str | os.PathLike | Mapping

Network = TypeVar("Network", bound=nn.Module)


def contents(source: Source, *, also: Sequence[type] = ()) -> object:
    """What a file holds that torch saved, on the CPU; a mapping is what it is.

    Files are read with ``weights_only=True``: a pickle can otherwise run any code. ``also`` names
    plain classes without such powers that a file may hold beside tensors (``argparse.Namespace``).

    Raises
    ------
    FileNotFoundError, PermissionError
        There is no such file, or it may not be read.
    ValueError
        It is damaged or no file of tensors; or ``source`` is neither a path nor a mapping.
    """
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"a checkpoint is a path or a mapping, got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if is_zipfile(path):  # torch itself does not look at the checksums; its older files have none
            with ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise BadZipFile
        with torch.serialization.safe_globals(list(also)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise  # no fault of the file's
    except Exception as error:  # of any kind: what is no such file makes the unpickler stumble anywhere
        stranger = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {stranger[1]}" if stranger else "damaged, or not written by torch.save"
        raise ValueError(f"{path} is no checkpoint: {reason}") from error


@contextmanager
def opened(source: Source, *, also: Sequence[type] = ()) -> Iterator[object]:
    """What `contents` returns; a ValueError about it names the file.

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        As `contents`.
    """
    held = contents(source, also=also)
    try:
        yield held
    except ValueError as error:
        if held is source:
            raise
        raise ValueError(f"{os.fspath(source)}: {error}") from error


def read_state_dict(held: object, *, wrappers: Sequence[str] = (), prefix: str = "") -> dict[str, Tensor]:
    """The state dict in what an authors' file holds.

    Parameters
    ----------
    held
        From `contents` or `opened`.
    wrappers : sequence of str
        Keys under which such files may keep the state dict, tried in turn and one inside the other; without
        any of them, ``held`` is the state dict itself.
    prefix : str
        Taken from the beginning of each key that has it.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    ValueError
        There is no mapping of names to tensors in it, or one that has no numbers: sparse, quantised, meta.
    """
    state, place = held, "the checkpoint"
    for wrapper in wrappers:
        if isinstance(state, Mapping) and wrapper in state:
            state, place = state[wrapper], f"{wrapper!r} of the checkpoint"
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{place} holds no state dict")
    state = {str(key).removeprefix(prefix): value for key, value in state.items()}
    if strangers := [key for key, value in state.items() if not _is_dense(value)]:
        raise ValueError(f"{place} holds no state dict: no dense tensors at {first_few(strangers)}")
    return state


def _is_dense(value: object) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


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


def require_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinite weights.

    Raises
    ------
    ValueError
        Names the first key that has any.
    """
    for key, value in state.items():
        if bad := int((~value.isfinite()).sum()):
            raise ValueError(f"{key} holds {bad} NaN or infinite values of {value.numel()}")


def require_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], whose: str) -> None:
    """Refuse a state dict that has not the very keys and shapes of ours, or mixes types.

    Parameters
    ----------
    state : mapping
    own : mapping of str to Tensor
        What its tensors are to be copied to. Where ours are floating-point numbers, all of theirs are of one
        floating type, whichever; others are of our type.
    whose : str
        As for `require_keys`.

    Raises
    ------
    ValueError
        Names the first missing and unexpected keys, or the first of another shape or type.
    """
    require_keys(state, own, whose, only=True)
    dtype = floating_dtype(state)
    for key, value in own.items():
        if state[key].shape != value.shape:
            shapes = f"{key} must be {tuple(value.shape)}, got {tuple(state[key].shape)}"
            raise ValueError(f"this is no {whose}: {shapes}")
        expected = dtype if value.is_floating_point() else value.dtype
        if state[key].dtype != expected:
            raise ValueError(f"this is no {whose}: {key} must be {expected}, got {state[key].dtype}")


def floating_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """The floating type of most tensors of a state dict; torch's default where none is floating."""
    counts = Counter(value.dtype for value in state.values() if value.is_floating_point())
    return max(counts, key=counts.__getitem__, default=torch.get_default_dtype())


def filled(make: Callable[[], Network], state: Mapping[str, Tensor], whose: str) -> Network:
    """A network in evaluation mode with the weights of a state dict under our names, in their type.

    Counters of batches, which files of old torch lack and nothing reads, are zero where there is none.

    Raises
    ------
    ValueError
        The sizes make no network; or as `require_fit`.
    """
    try:
        with torch.device("meta"):  # first weights that nobody needs are not drawn
            network = make()
    except ValueError as error:
        raise ValueError(f"this is no {whose}: {error}") from error
    own = network.state_dict()
    counters = {key: torch.tensor(0) for key in own if key.endswith(".num_batches_tracked")}
    state = counters | dict(state)
    require_fit(state, own, whose)
    network.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    return network.eval()
