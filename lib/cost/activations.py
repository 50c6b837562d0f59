"""Activations of a network: which operator reads and writes which, and how many live at once in inference.

The model runs once on the meta device while every operator of torch is watched. Tensors are told apart by
their storage, so views (a flattened, a transposed tensor) are no tensors of their own. What a *training* step
keeps is in `lib.cost.stored_activations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from lib.cost.operations import prepare, run

NORMALISATION = (
    "native_batch_norm",
    "batch_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training",
)

#: Copies in another order, which the layer before could as well have written so; torch tags `clone` itself.
PERMUTATIONS = ("channel_shuffle", "native_channel_shuffle")
#: Operators with further results, statistics or positions, that inference does not need.
WITH_EXTRAS = (*(f"max_pool{d}d_with_indices" for d in (2, 3)), "native_layer_norm", "native_group_norm")


@dataclass
class Step:
    """One operator that made or changed activations.

    ``call`` numbers the calls of modules; ``operations`` are those of products, as torch counts them.
    """

    operator: str
    layer: str
    call: int
    reads: list[int]
    writes: list[int]
    shape: tuple[int, ...]
    elementwise: bool
    operations: int


@dataclass
class Trace:
    """An executed network: its steps, and its activations by number in order of birth.

    ``elements[i]`` is the size of activation i; ``inputs`` and ``outputs`` are the model's own.
    """

    steps: list[Step] = field(default_factory=list)
    elements: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def last_uses(self) -> list[int]:
        """Last step that reads or writes each activation: −1 if none, the number of steps if returned."""
        last = [-1] * len(self.elements)
        for index, step in enumerate(self.steps):
            for number in step.reads + step.writes:
                last[number] = index
        for number in self.outputs:
            last[number] = len(self.steps)
        return last


def trace(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    method: str = "forward",
    device: str | None = "meta",
) -> Trace:
    """Run a model for inference and write down which activation each operator reads and writes.

    Parameters and errors as `lib.cost.operations.count_operations`.
    """
    runner, arguments = prepare(model, input_shape, inputs, device)
    stored = Storages(runner)
    made = Trace()
    made.inputs = stored.numbers_of(arguments, made.elements)
    layers = layer_stack(runner)
    with _Watch(made, stored, layers):
        result = run(runner, arguments, method)
    made.outputs = stored.numbers_of(result, made.elements)
    return made


def live_activations(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    method: str = "forward",
    inplace_add: bool = True,
    device: str | None = "meta",
) -> pd.DataFrame:
    """Elements of activations that exist at each step of an inference; the maximum is the memory needed.

    At a step live what it reads, what it writes and what a later step reads: skip connections, branches,
    the parts of a concatenation. Weights do not count. Element-wise operators on one activation
    (normalisation by fixed statistics, ReLU …) and copies in another order (a channel shuffle) are fused with
    what comes before: they overwrite their input unless it is read later.

    Parameters
    ----------
    model, input_shape, inputs, method, device
        As `lib.cost.operations.count_operations`.
    inplace_add
        Whether an element-wise operator on several activations, as the addition of a skip connection,
        overwrites one of them that is not read later. ``False``: it writes to memory of its own.

    Returns
    -------
    DataFrame with a row per step: ``operator``, ``layer``, ``output_shape``, ``live`` (elements).
    """
    made = trace(model, input_shape, inputs=inputs, method=method, device=device)
    last = made.last_uses()
    owner = list(range(len(made.elements)))  # whose memory an activation lies in
    alive = set(made.inputs)
    rows = []
    for index, step in enumerate(made.steps):
        new = [number for number in step.writes if number not in step.reads]
        if step.elementwise and len(new) == 1:
            same = [n for n in step.reads if made.elements[n] == made.elements[new[0]]]
            dying = [n for n in same if last[n] == index]
            if dying and (inplace_add or len(same) == 1):
                owner[new[0]] = owner[dying[0]]
        alive |= set(step.reads) | set(step.writes)
        memory = {owner[number]: made.elements[number] for number in alive}
        rows.append((step.operator, step.layer, step.shape, sum(memory.values())))
        alive = {number for number in alive if last[number] > index}
    return pd.DataFrame(rows, columns=["operator", "layer", "output_shape", "live"])


class Storages:
    """Numbers for the storages of activations; those of the model's own tensors have none."""

    def __init__(self, runner: nn.Module) -> None:
        own = [*runner.parameters(), *runner.buffers()]
        self.weights = {tensor.untyped_storage()._cdata for tensor in own}
        self.numbers: dict[int, int] = {}
        self.held = [tensor.untyped_storage() for tensor in own]

    def weigh(self, value: Any) -> None:
        """What is made of weights alone, as a quantized kernel, is no activation either."""
        for tensor in _tensors(value):
            self.held.append(tensor.untyped_storage())
            self.weights.add(tensor.untyped_storage()._cdata)

    def number(self, tensor: Tensor, elements: list[int]) -> int | None:
        """Number of a tensor's storage, None for a weight; the size of a new one is added to `elements`."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.weights:
            return None
        if key not in self.numbers:
            self.held.append(storage)  # as long as it is held, no other storage can have its address
            self.numbers[key] = len(elements)
            elements.append(storage.nbytes() // tensor.element_size())
        return self.numbers[key]

    def numbers_of(self, value: Any, elements: list[int]) -> list[int]:
        """Different activations in a container, in its order."""
        found = (self.number(tensor, elements) for tensor in _tensors(value))
        return list(dict.fromkeys(number for number in found if number is not None))


class _Watch(TorchDispatchMode):
    """Appends a step for every operator that is no mere view of an activation."""

    def __init__(self, made: Trace, stored: Storages, layers: list[tuple[str, int]]) -> None:
        super().__init__()
        self.made, self.stored, self.layers = made, stored, layers

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        main = result[0] if name in NORMALISATION + WITH_EXTRAS else result
        reads = self.stored.numbers_of((args, kwargs), self.made.elements)
        if not reads and _tensors((args, kwargs)):
            self.stored.weigh(main)
        known = len(self.made.elements)
        writes = self.stored.numbers_of([x for x in _tensors(main) if x.numel()], self.made.elements)
        view = all(number < known for number in writes) and not function._schema.is_mutable
        if writes and not view:
            shape = tuple(_tensors(main)[0].shape)
            elementwise = name in NORMALISATION + PERMUTATIONS or torch.Tag.pointwise in function.tags
            count_products = flop_registry.get(function.overloadpacket, _none)
            operations = count_products(*args, **(kwargs or {}), out_val=result)
            self.made.steps.append(
                Step(name, *self.layers[-1], reads, writes, shape, elementwise, operations)
            )
        return result


def _none(*args: Any, **kwargs: Any) -> int:
    return 0


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def layer_stack(runner: nn.Module) -> list[tuple[str, int]]:
    """A list whose last element is, while the model runs, name and call of the innermost running module."""
    stack = [("", 0)]
    calls = count(1)

    def enter(name: str):
        def hook(*_: Any) -> None:
            stack.append((name, next(calls)))

        return hook

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in runner.named_modules():
        module.register_forward_pre_hook(enter(name))
        module.register_forward_hook(leave)
    return stack
