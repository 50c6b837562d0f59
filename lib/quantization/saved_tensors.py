"""Training with packed activations: what the backward pass needs is stored in few bits, for real.

Quantized back-propagation (Park, Yoo and Vajda, "Value-aware Quantization for Training and Inference of
Neural Networks", ECCV 2018): the forward pass computes in full precision, but what is *kept* of it is
quantised. For y = W * x the gradient of x needs W and is exact; that of W sees Q(x), and its error goes no
further. A ReLU keeps one bit per element, or none where a layer keeps its output in RV-Quant's codes, which
tell open from closed.

`PackedActivations` does that to any network without touching it: while it is entered, every tensor that
automatic differentiation saves passes through it, and it knows which function is saving. It packs

* inputs of convolutions, linear layers and pooling: b-bit codes and large values, once however many layers
  read the tensor; with two zeros (RV-Quant) if a ReLU made it, symmetric if it has negative values;
* results of ReLUs: a bit per element, or nothing of their own (see above);
* inputs of batch normalisation: what we could read of the paper is silent on these; see ``bn_input``;
* positions of maxima: the narrowest integers that hold them.

Left exact: the image and whatever else has no gradient, weights and statistics, tensors of fewer than
``smallest`` elements, and all that other functions save.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, Literal
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from lib.quantization.largest import large_count
from lib.quantization.packing import pack_mask, unpack_mask
from lib.quantization.value_aware import PackedTensor, encode

BnInput = Literal["packed", "recomputed", "exact"]

CONVOLUTIONS = {f"conv{d}d" for d in (1, 2, 3)}
POOLS = {f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)}
KINDS = (
    dict.fromkeys(CONVOLUTIONS | POOLS | {f"conv_transpose{d}d" for d in (1, 2, 3)} | {"linear"}, "map")
    | dict.fromkeys(("relu", "relu_"), "relu")
    | {"batch_norm": "norm"}
)
"""What is done to what a function of torch saves, by the function's name."""


class PackedActivations(TorchFunctionMode):
    """Context manager: what is saved for the backward pass meanwhile is stored packed.

    Only the forward pass has to run inside; the same object can be entered again for every step.

    Parameters
    ----------
    bits, ratio
        Of the inputs of layers: width of a code, share of large values (the paper: 3 bits, 2 %).
        ``bits=None`` keeps everything exact, which turns this into a mere counter of what is saved.
    separate_mask
        V-Quant instead of RV-Quant: one code for zero, and the ReLU's bit beside it.
    bn_input
        What is kept for batch normalisation: its input ``"packed"`` with `bn_bits` and `bn_ratio`; nothing,
        and the input ``"recomputed"`` from the stored input of the convolution before it (one more forward
        convolution; packed if there is none); or the input ``"exact"``.
    bn_bits, bn_ratio
        Of a packed input of batch normalisation.
    smallest
        Tensors of fewer elements are left alone.

    Notes
    -----
    Functions are recognised at the level of ``torch.nn.functional``; inside compiled graphs or functions that
    hide them, everything stays exact. A saved tensor that was changed in place before its use raises
    RuntimeError, as without the context. Non-finite activations raise ValueError in the forward pass.
    """

    def __init__(
        self,
        bits: int | None = 3,
        ratio: float = 0.02,
        *,
        separate_mask: bool = False,
        bn_input: BnInput = "packed",
        bn_bits: int = 8,
        bn_ratio: float = 0.0,
        smallest: int = 4096,
    ) -> None:
        super().__init__()
        if bn_input not in ("packed", "recomputed", "exact"):
            raise ValueError(f"bn_input must be 'packed', 'recomputed' or 'exact', got {bn_input!r}")
        for name, width, low in (("bits", bits, 1), ("bn_bits", bn_bits, 2)):
            if not (width is None and name == "bits") and (
                isinstance(width, bool) or width not in range(low, 9)
            ):
                raise ValueError(f"{name} must be in {low}..8, got {width!r}")
        large_count(1, ratio)
        large_count(1, bn_ratio)
        self.bits, self.ratio, self.separate_mask = bits, ratio, separate_mask
        self.bn_input, self.bn_bits, self.bn_ratio, self.smallest = bn_input, bn_bits, bn_ratio, smallest
        self._hooks: list[saved_tensors_hooks] = []
        self._kept: WeakSet[_Kept] = WeakSet()
        self._forget()

    def __enter__(self) -> PackedActivations:
        hooks = saved_tensors_hooks(self._pack, _unpack)
        hooks.__enter__()
        self._hooks.append(hooks)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._hooks.pop().__exit__(*exception)
        self._settle()
        self._forget()

    def stored_bytes(self) -> dict[str, int]:
        """Bytes kept for backward passes that have not run yet, by what they are.

        Returns
        -------
        dict
            ``packed`` (codes and large values), ``masks``, ``positions`` and ``exact``, each storage counted
            once. Parameters, and the weights and statistics that a function was given, do not count.
        """
        found: dict[str, dict[int, int]] = {"packed": {}, "masks": {}, "positions": {}, "exact": {}}
        for kept in set(self._kept):
            for kind, tensor in kept.tensors():
                storage = tensor.untyped_storage()
                found[kind][storage.data_ptr()] = storage.nbytes()
        return {kind: sum(sizes.values()) for kind, sizes in found.items()}

    # --- which function is running ---

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kind = KINDS.get(getattr(function, "__name__", ""))
        if kind is None or not args or not isinstance(args[0], Tensor):
            return function(*args, **(kwargs or {}))
        self._kind, self._inputs = kind, (*args, *(kwargs or {}).values())
        try:
            result = function(*args, **(kwargs or {}))
        finally:
            self._kind, self._inputs = None, ()
        if self.bn_input == "recomputed" and function.__name__ in CONVOLUTIONS:
            source = self._stored(args[0], "map") or (None if args[0].requires_grad else _Exact(args[0]))
            if source is not None:
                self._last = (_Key(result), _Recomputed(function, source, args[1:], kwargs or {}))
        return result

    # --- what is kept ---

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = self._choose(tensor)
        self._kept.add(kept)
        return kept

    def _choose(self, tensor: Tensor) -> _Kept:
        if self._pending is not None and self._pending[0] != _Key(tensor):
            self._settle()
        if self.bits is None or self._kind is None or tensor.numel() < self.smallest:
            return self._exact(tensor)
        if self._kind == "map" and tensor.dtype == torch.int64:
            return _Positions(tensor)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return self._exact(tensor)
        if self._kind == "relu":
            return self._relu(tensor)
        if not _same_memory(tensor, self._inputs[0]) or not self._inputs[0].requires_grad:
            return self._exact(tensor)  # weights, statistics, the image
        return self._norm(tensor) if self._kind == "norm" else self._map(tensor)

    def _map(self, tensor: Tensor) -> _Kept:
        if (known := self._stored(tensor, "map")) is not None:
            return known
        relu = self._stored(tensor, "relu")
        shared = relu is not None and not self.separate_mask
        # Only a tensor of unknown origin is searched for negative values.
        signed = relu is None and float(tensor.amin()) < 0
        grid = "relu" if shared else "signed" if signed else "unsigned"
        bits = max(2, self.bits) if signed else self.bits
        packed = _Packed(encode(tensor, bits, self.ratio, grid=grid))
        if shared:
            relu.share(packed)
            self._pending = None
        return self._store(tensor, "map", packed)

    def _norm(self, tensor: Tensor) -> _Kept:
        if self.bn_input == "exact":
            return self._exact(tensor)
        if self.bn_input == "recomputed" and self._last is not None and self._last[0] == _Key(tensor):
            return self._last[1]
        return _Packed(encode(tensor, self.bn_bits, self.bn_ratio, grid="signed"))

    def _relu(self, tensor: Tensor) -> _Kept:
        if (known := self._stored(tensor, "relu")) is not None:
            return known
        kept = _Relu(tensor)
        self._pending = (_Key(tensor), kept)
        return self._store(tensor, "relu", kept)

    def _exact(self, tensor: Tensor) -> _Kept:
        own = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        others = (other for other in self._inputs[1:] if isinstance(other, Tensor))
        return _Exact(tensor, own or any(_same_memory(tensor, other) for other in others))

    def _settle(self) -> None:
        """No layer has followed to share codes with the last ReLU: it gets a mask of its own."""
        if self._pending is not None:
            self._pending[1].settle()
            self._pending = None

    def _store(self, tensor: Tensor, use: str, kept: _Kept) -> _Kept:
        self._known[_Key(tensor), use] = ref(kept)
        return kept

    def _stored(self, tensor: Tensor, use: str) -> Any:
        found = self._known.get((_Key(tensor), use))
        return None if found is None else found()

    def _forget(self) -> None:
        self._kind: str | None = None
        self._inputs: tuple = ()
        self._pending: tuple[_Key, _Relu] | None = None
        self._last: tuple[_Key, _Recomputed] | None = None
        self._known: dict[tuple[_Key, str], ref] = {}


class PackedTraining(nn.Module):
    """A network whose forward passes store their activations packed; trains as the network itself does.

    Parameters
    ----------
    network
        Any module.
    options
        Of `PackedActivations`, whose attributes can be changed between steps: ``self.activations.bits = 2``.
    """

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__()
        self.network, self.activations = network, PackedActivations(**options)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's own output."""
        with self.activations:
            return self.network(*inputs)


@contextlib.contextmanager
def checkpointed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Meanwhile, keep only the inputs of these modules and run each again in the backward pass.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, by ``torch.utils.checkpoint``. Running
    statistics of batch normalisation see every batch twice.
    """
    wrapped = list(modules)
    for module in wrapped:
        inner = module.forward
        module.forward = lambda *args, inner=inner: checkpoint(inner, *args, use_reentrant=False)
    try:
        yield
    finally:
        for module in wrapped:
            del module.forward


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most bytes that one call of `step` holds in tensors at once, beyond what it found (CPU).

    As torch's allocator reports it; what the matrix library takes for itself is not in it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes two lines to the page
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        step()
    events = [event for event in log.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


# --- what is kept in the place of a tensor -----------------------------------------------------------------


class _Key:
    """Identity of a tensor's present content, safe against memory that is used again."""

    def __init__(self, tensor: Tensor) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())  # as long as it lives, its number is unique
        self.rest = (tensor._version, tensor.storage_offset(), tensor.shape, tensor.stride())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.storage.cdata, self.rest) == (
            other.storage.cdata,
            other.rest,
        )

    def __hash__(self) -> int:
        return hash((self.storage.cdata, self.rest))


class _Kept:
    """What the graph holds: gives a tensor back, and says what it takes."""

    def get(self) -> Tensor:
        raise NotImplementedError

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return ()


def _unpack(kept: _Kept) -> Tensor:
    return kept.get()


class _Exact(_Kept):
    def __init__(self, tensor: Tensor, own: bool = False) -> None:
        self.tensor, self.version, self.own = tensor.detach(), tensor._version, own

    def get(self) -> Tensor:
        return _unchanged(self.tensor, self.version)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return () if self.own else (("exact", self.tensor),)


class _Packed(_Kept):
    def __init__(self, packed: PackedTensor) -> None:
        self.packed = packed

    def get(self) -> Tensor:
        return self.packed.decode()

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return [("packed", part) for part in (self.packed.codes, self.packed.values, self.packed.index)]


class _Relu(_Kept):
    """The derivative of a ReLU: first the tensor itself, then a layer's codes, or a mask of one bit."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.packed: _Packed | None = None
        self.mask: Tensor | None = None

    def share(self, packed: _Packed) -> None:
        self.packed, self.tensor, self.mask = packed, None, None

    def settle(self) -> None:
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


class _Positions(_Kept):
    def __init__(self, tensor: Tensor) -> None:
        largest = int(tensor.max()) if tensor.numel() else 0
        self.narrow = tensor.to(
            torch.int16 if largest < 2**15 else torch.int32 if largest < 2**31 else tensor.dtype
        )

    def get(self) -> Tensor:
        return self.narrow.long()

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        return (("positions", self.narrow),)


class _Recomputed(_Kept):
    """A convolution's output: made again from its stored input."""

    def __init__(self, function: Callable, source: _Kept, args: tuple, kwargs: dict[str, Any]) -> None:
        self.function, self.source = function, source
        self.args = [_Exact(a) if isinstance(a, Tensor) else a for a in args]
        self.kwargs = {name: _Exact(a) if isinstance(a, Tensor) else a for name, a in kwargs.items()}

    def get(self) -> Tensor:
        args = [a.get() if isinstance(a, _Exact) else a for a in self.args]
        kwargs = {name: a.get() if isinstance(a, _Exact) else a for name, a in self.kwargs.items()}
        with torch.no_grad():
            return self.function(self.source.get(), *args, **kwargs)


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage()._cdata == second.untyped_storage()._cdata


def _unchanged(tensor: Tensor, version: int) -> Tensor:
    if tensor._version != version:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} that the backward pass needs was changed in place: "
            f"it is at version {tensor._version}, {version} was saved"
        )
    return tensor
