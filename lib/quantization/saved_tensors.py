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
* positions of maxima: integers of 16 or 32 bits.

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
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from lib.quantization.bits import checked_bits
from lib.quantization.kept_tensors import Exact, Kept, Key, Packed, Positions, Recomputed, Relu, same_memory
from lib.quantization.largest import large_count
from lib.quantization.value_aware import encode

BnInput = Literal["packed", "recomputed", "exact"]

CONVOLUTIONS = {f"conv{d}d" for d in (1, 2, 3)}
POOLS = {f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)}
#: What is done to what a function of torch saves, by the function's name.
KINDS = (
    dict.fromkeys(CONVOLUTIONS | POOLS | {f"conv_transpose{d}d" for d in (1, 2, 3)} | {"linear"}, "map")
    | dict.fromkeys(("relu", "relu_"), "relu")
    | {"batch_norm": "norm"}
)


class PackedActivations(TorchFunctionMode):
    """Context manager: what is saved for the backward pass meanwhile is stored packed.

    Only the forward pass has to run inside; the same object can be entered again for every step.

    Parameters
    ----------
    bits, ratio
        Of the inputs of layers: width of a code, share of large values (the paper: 3 bits, 2 %).
        ``bits=None`` keeps everything exact, which turns this into a mere counter of what is saved.
    clipped
        End the grids of the inputs of layers where the squared error is least; see `encode`. A control.
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
        clipped: bool = False,
        separate_mask: bool = False,
        bn_input: BnInput = "packed",
        bn_bits: int = 8,
        bn_ratio: float = 0.0,
        smallest: int = 4096,
    ) -> None:
        super().__init__()
        if bn_input not in ("packed", "recomputed", "exact"):
            raise ValueError(f"bn_input must be 'packed', 'recomputed' or 'exact', got {bn_input!r}")
        checked_bits(bits, optional=True)
        checked_bits(bn_bits, 2, name="bn_bits")
        large_count(1, ratio)
        large_count(1, bn_ratio)
        self.bits, self.ratio, self.separate_mask, self.clipped = bits, ratio, separate_mask, clipped
        self.bn_input, self.bn_bits, self.bn_ratio, self.smallest = bn_input, bn_bits, bn_ratio, smallest
        self._hooks: list[saved_tensors_hooks] = []
        self._kept: WeakSet[Kept] = WeakSet()
        self._forget()

    def __enter__(self) -> PackedActivations:
        hooks = saved_tensors_hooks(self._pack, lambda kept: kept.get())
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
            source = self._stored(args[0], "map") or (None if args[0].requires_grad else Exact(args[0]))
            if source is not None:
                self._last = (Key(result), Recomputed(function, source, args[1:], kwargs or {}))
        return result

    # --- what is kept ---

    def _pack(self, tensor: Tensor) -> Kept:
        kept = self._choose(tensor)
        self._kept.add(kept)
        return kept

    def _choose(self, tensor: Tensor) -> Kept:
        if self._pending is not None and self._pending[0] != Key(tensor):
            self._settle()
        if self.bits is None or self._kind is None or tensor.numel() < self.smallest:
            return self._exact(tensor)
        if self._kind == "map" and tensor.dtype == torch.int64:
            return Positions(tensor)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return self._exact(tensor)
        if self._kind == "relu":
            return self._relu(tensor)
        if not same_memory(tensor, self._inputs[0]) or not self._inputs[0].requires_grad:
            return self._exact(tensor)  # weights, statistics, the image
        return self._norm(tensor) if self._kind == "norm" else self._map(tensor)

    def _map(self, tensor: Tensor) -> Kept:
        if (known := self._stored(tensor, "map")) is not None:
            return known
        relu = self._stored(tensor, "relu")
        shared = relu is not None and not self.separate_mask
        # Only a tensor of unknown origin is searched for negative values.
        signed = relu is None and float(tensor.amin()) < 0
        grid = "relu" if shared else "signed" if signed else "unsigned"
        bits = max(2, self.bits) if signed else self.bits
        packed = Packed(encode(tensor, bits, self.ratio, grid=grid, clipped=self.clipped))
        if shared:
            relu.share(packed)
            self._pending = None
        return self._store(tensor, "map", packed)

    def _norm(self, tensor: Tensor) -> Kept:
        if self.bn_input == "exact":
            return self._exact(tensor)
        if self.bn_input == "recomputed" and self._last is not None and self._last[0] == Key(tensor):
            return self._last[1]
        return Packed(encode(tensor, self.bn_bits, self.bn_ratio, grid="signed"))

    def _relu(self, tensor: Tensor) -> Kept:
        if (known := self._stored(tensor, "relu")) is not None:
            return known
        kept = Relu(tensor)
        self._pending = (Key(tensor), kept)
        return self._store(tensor, "relu", kept)

    def _exact(self, tensor: Tensor) -> Kept:
        own = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        others = (other for other in self._inputs[1:] if isinstance(other, Tensor))
        return Exact(tensor, own or any(same_memory(tensor, other) for other in others))

    def _settle(self) -> None:
        """No layer has followed to share codes with the last ReLU: it gets a mask of its own."""
        if self._pending is not None:
            self._pending[1].settle()
            self._pending = None

    def _store(self, tensor: Tensor, use: str, kept: Kept) -> Kept:
        self._known[Key(tensor), use] = ref(kept)
        return kept

    def _stored(self, tensor: Tensor, use: str) -> Any:
        found = self._known.get((Key(tensor), use))
        return None if found is None else found()

    def _forget(self) -> None:
        self._kind: str | None = None
        self._inputs: tuple = ()
        self._pending: tuple[Key, Relu] | None = None
        self._last: tuple[Key, Recomputed] | None = None
        self._known: dict[tuple[Key, str], ref] = {}


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
