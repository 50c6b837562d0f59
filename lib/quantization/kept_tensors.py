"""What the graph holds in the place of a saved tensor, and how it gives the tensor back.

Exact, packed codes, a ReLU's mask, narrow positions, or how to make it again. Which tensor gets which is
decided in `lib.quantization.saved_tensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lib.quantization.packing import pack_mask, unpack_mask
from lib.quantization.value_aware import PackedTensor


class Kept:
    """What the graph holds."""

    def get(self) -> Tensor:
        """The tensor, or its quantised values; RuntimeError if it was changed in place meanwhile."""
        raise NotImplementedError

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        """What takes memory, and its kind: ``packed``, ``masks``, ``positions`` or ``exact``."""
        return ()


class Exact(Kept):
    """The tensor itself.

    Parameters
    ----------
    tensor
        Kept detached.
    own
        It takes no memory of its own: a weight, or what else the function was given.
    """

    def __init__(self, tensor: Tensor, own: bool = False) -> None:
        self.tensor, self.version, self.own = tensor.detach(), tensor._version, own

    def get(self) -> Tensor:
        return _unchanged(self.tensor, self.version)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return () if self.own else (("exact", self.tensor),)


class Packed(Kept):
    """Codes and large values."""

    def __init__(self, packed: PackedTensor) -> None:
        self.packed = packed

    def get(self) -> Tensor:
        return self.packed.decode()

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return [("packed", part) for part in (self.packed.codes, self.packed.values, self.packed.index)]


class Relu(Kept):
    """The derivative of a ReLU: first its result itself, then a layer's codes, or a mask of one bit."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.packed: Packed | None = None
        self.mask: Tensor | None = None

    def share(self, packed: Packed) -> None:
        """Read the derivative off the codes of the layer behind, which tell open from closed (RV-Quant)."""
        self.packed, self.tensor, self.mask = packed, None, None

    def settle(self) -> None:
        """Be a mask, unless there are codes to share."""
        if self.tensor is not None:
            self.mask = pack_mask(_unchanged(self.tensor, self.version) > 0)
            self.tensor = None

    def get(self) -> Tensor:
        if self.packed is not None:
            return self.packed.packed.mask()
        self.settle()
        return unpack_mask(self.mask, self.shape).to(self.dtype)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        if self.packed is not None:
            return self.packed.tensors()
        return (("exact", self.tensor),) if self.mask is None else (("masks", self.mask),)


class Positions(Kept):
    """Positions of maxima (int64) in integers of 16 or 32 bits, where these hold them."""

    def __init__(self, tensor: Tensor) -> None:
        largest = int(tensor.max()) if tensor.numel() else 0
        self.narrow = tensor.to(
            torch.int16 if largest < 2**15 else torch.int32 if largest < 2**31 else tensor.dtype
        )

    def get(self) -> Tensor:
        return self.narrow.long()

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (("positions", self.narrow),)


class Recomputed(Kept):
    """A convolution's output: made again from its stored input."""

    def __init__(self, function: Callable, source: Kept, args: tuple, kwargs: dict[str, Any]) -> None:
        self.function, self.source = function, source
        self.args = [Exact(a) if isinstance(a, Tensor) else a for a in args]
        self.kwargs = {name: Exact(a) if isinstance(a, Tensor) else a for name, a in kwargs.items()}

    def get(self) -> Tensor:
        args = [a.get() if isinstance(a, Exact) else a for a in self.args]
        kwargs = {name: a.get() if isinstance(a, Exact) else a for name, a in self.kwargs.items()}
        with torch.no_grad():
            return self.function(self.source.get(), *args, **kwargs)


class Key:
    """Identity of a tensor's present content, safe against memory that is used again."""

    def __init__(self, tensor: Tensor) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())  # as long as it lives, its number is unique
        self.rest = (tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return False
        return (self.storage.cdata, self.rest) == (other.storage.cdata, other.rest)

    def __hash__(self) -> int:
        return hash((self.storage.cdata, self.rest))


def same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are views of one storage."""
    return first.untyped_storage()._cdata == second.untyped_storage()._cdata


def _unchanged(tensor: Tensor, version: int) -> Tensor:
    if tensor._version != version:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} that the backward pass needs was changed in place: "
            f"it is at version {tensor._version}, {version} was saved"
        )
    return tensor
