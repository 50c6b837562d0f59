"""Activations that a training step stores for its backward pass, by running a network on the meta device.

Two answers to which ones these are: the inputs of layers (`stored_inputs`), or all that torch's automatic
differentiation saves (`saved_tensors`); `stored_by_unit` counts either in a network cut into units. After
Park, Yoo and Vajda, "Value-aware Quantization", ECCV 2018, whose own convention is not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lib.cost.activations import Storages, layer_stack
from lib.cost.operations import CONVOLUTIONS, TRANSPOSED, prepare, run

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
#: Layers whose input a training step has to keep (max-pooling: or its index).
STORING = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, *MAX_POOLS)


def stored_inputs(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    kinds: tuple[type[nn.Module], ...] = STORING,
) -> pd.DataFrame:
    """The distinct tensors that are inputs of convolutions, linear layers or max-pooling, in training mode.

    What a training step must keep if batch normalisation, ReLU and pooling by averages recompute what they
    need from their outputs (the count "inputs of layers" of `lib.quantization.training_memory`). A tensor
    that feeds several layers counts once; what a ReLU makes in place of its input is one tensor with it.

    Parameters
    ----------
    model, input_shape, inputs
        As `lib.cost.operations.count_operations`; on the meta device.
    kinds
        The layers whose inputs count.

    Returns
    -------
    DataFrame in order of first use: ``layer`` (the first that reads it), ``readers`` (how many),
    ``shape``, ``elements``, ``is_input`` (an input of the model: the image, which is never quantized).
    """
    runner, arguments = prepare(model, input_shape, inputs, "meta")
    runner.train()
    stored = Storages(runner)
    elements: list[int] = []
    own = stored.numbers_of(arguments, elements)
    rows: dict[int, dict] = {}

    def note(name: str):
        def hook(module: nn.Module, given: tuple) -> None:
            number = stored.number(given[0], elements)
            row = {"layer": name, "readers": 0, "shape": tuple(given[0].shape), "elements": given[0].numel()}
            rows.setdefault(number, row | {"is_input": number in own})["readers"] += 1

        return hook

    for name, module in runner.named_modules():
        if isinstance(module, kinds):
            module.register_forward_pre_hook(note(name))
    run(runner, arguments)
    return pd.DataFrame(list(rows.values()), columns=["layer", "readers", "shape", "elements", "is_input"])


def saved_tensors(
    model: nn.Module, input_shape: Sequence[int] | None = None, *, inputs: Any = None
) -> pd.DataFrame:
    """The distinct tensors that torch's automatic differentiation keeps in a training step.

    That is the count "saved tensors" of `lib.quantization.training_memory`. Parameters and buffers of the
    model are left out.

    Parameters
    ----------
    model, input_shape, inputs
        As `lib.cost.operations.count_operations`; on the meta device.

    Returns
    -------
    DataFrame in order of saving: ``layer``, ``shape``, ``dtype``, ``elements``, ``bytes``, ``is_input``.
    """
    runner, arguments = prepare(model, input_shape, inputs, "meta")
    runner.train()
    stored = Storages(runner)
    elements: list[int] = []
    own = stored.numbers_of(arguments, elements)
    layers = layer_stack(runner)
    rows: dict[int, dict] = {}

    def pack(tensor: Tensor) -> Tensor:
        number = stored.number(tensor, elements)
        if number is not None and number not in rows:
            storage = tensor.untyped_storage().nbytes()
            rows[number] = {
                "layer": layers[-1][0],
                "shape": tuple(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "elements": storage // tensor.element_size(),
                "bytes": storage,
                "is_input": number in own,
            }
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(runner, arguments, gradients=True)
    return pd.DataFrame(
        list(rows.values()), columns=["layer", "shape", "dtype", "elements", "bytes", "is_input"]
    )


def stored_by_unit(
    model: nn.Module,
    ends: Sequence[str],
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    kinds: tuple[type[nn.Module], ...] | None = STORING,
) -> pd.DataFrame:
    """Stored activations of a network cut into units, for placing checkpoints between them.

    Parameters
    ----------
    model, input_shape, inputs
        As `stored_inputs`.
    ends
        Names of modules in order of execution: a unit ends with the output of each.
    kinds
        As `stored_inputs`; ``None`` counts what automatic differentiation saves
        (`saved_tensors`) instead.

    Returns
    -------
    DataFrame with a row per unit: ``unit`` (its end), ``output`` (elements of its output) and ``interior``
    (elements of the other tensors made within the unit that are stored). The model's inputs count nowhere.

    Raises
    ------
    ValueError
        If an end is no module of the model, does not run once, or they do not run in this order.
    """
    names = dict(model.named_modules())
    unknown = [name for name in ends if name not in names]
    if unknown or not ends:
        raise ValueError(f"{unknown[0]!r} is no module of the model" if unknown else "give at least one end")
    runner, arguments = prepare(model, input_shape, inputs, "meta")
    runner.train()
    stored = Storages(runner)
    elements: list[int] = []
    own = stored.numbers_of(arguments, elements)
    kept: dict[int, int] = {}
    rows: list[dict] = []
    counted: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        number = stored.number(tensor, elements)
        if number is not None and number not in own:
            kept.setdefault(number, tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    def read(module: nn.Module, given: tuple) -> None:
        keep(given[0])

    def end(name: str):
        def hook(module: nn.Module, given: tuple, output: Tensor) -> None:
            number = stored.number(output, elements)
            inside = {n: size for n, size in kept.items() if n not in counted and n != number}
            counted.update(inside, [number])
            rows.append({"unit": name, "output": output.numel(), "interior": sum(inside.values())})

        return hook

    for name, module in runner.named_modules():
        if kinds is not None and isinstance(module, kinds):
            module.register_forward_pre_hook(read)
        if name in ends:
            module.register_forward_hook(end(name))
    if kinds is None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run(runner, arguments, gradients=True)
    else:
        run(runner, arguments)
    ran = [row["unit"] for row in rows]
    if ran != list(ends):
        raise ValueError(f"the ends run in the order {ran}, not {list(ends)}")
    return pd.DataFrame(rows, columns=["unit", "output", "interior"])
