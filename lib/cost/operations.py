"""Operations, weights and bytes of a network, layer by layer, counted by running it without its numbers.

A model is run once in evaluation mode on the meta device: shapes flow, no memory is taken, no arithmetic is
done. Every executed layer that holds multiplicative weights gives one row of a table.

**Convention.** One multiply–accumulate (MAC) is two operations (FLOPs). A count of MACs is therefore half of
what `torch.utils.flop_counter.FlopCounterMode` prints, and "GFLOPs" in many papers are MACs. Additions
of a bias are counted apart (``bias_adds``), normalisation, activation functions and pooling are not counted.

The count of every layer is compared with torch's own while it runs. What torch cannot count (embeddings, the
fused recurrent kernels of some processors) is ours alone. Products that torch sees *outside* all layers, say
of a functional convolution or of attention, are reported, never lost in silence.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

#: Operations (FLOPs) in one multiply–accumulate.
OPERATIONS_PER_MAC = 2

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
#: The layers that hold multiplicative weights.
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, *RECURRENT, *EMBEDDINGS)

COLUMNS = [
    *("layer", "kind", "kernel", "groups", "input_shape", "output_shape", "weights", "biases", "macs"),
    *("bias_adds", "operations", "input_elements", "output_elements", "weights_read", "use"),
]


class CountsDiffer(RuntimeError):
    """Torch's own count of products and that of the layers disagree."""


def count_operations(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    method: str = "forward",
    device: str | None = "meta",
    outside: str = "warn",
) -> pd.DataFrame:
    """Count what one forward pass of a model does, one row for each execution of a weighted layer.

    The model is left as it is: a copy runs, in evaluation mode, without gradients.

    Parameters
    ----------
    model
        Any module.
    input_shape
        Shape of its one floating-point input, batch first, as ``(1, 3, 224, 224)``.
    inputs
        Instead of a shape: the input itself, or a tuple of positional inputs (integers for embeddings,
        several tensors, nested containers). Their values are not used on the meta device.
    method
        What to call: the model itself, or a method of it by name.
    device
        ``"meta"`` takes no memory. ``None`` runs on the model's own tensors where they are, for a model
        that looks at values on its way.
    outside
        What to do with products that torch counts but that belong to no layer: ``"warn"``, ``"raise"``,
        ``"rows"`` (one more row per kind of product, at the end, its ``kind`` the name of torch's operator,
        no weights) or ``"ignore"``.

    Returns
    -------
    DataFrame in execution order with the columns

    layer
        Qualified name of the module (``""`` for the model itself).
    kind
        ``conv``, ``grouped conv``, ``depthwise conv`` (a group of one input channel), ``transposed conv``,
        ``linear``, ``embedding``, ``embedding bag``, ``lstm``, ``gru`` or ``rnn``.
    kernel, groups
        Kernel size of a convolution as a tuple, and its groups; ``()`` and 1 for others.
    input_shape, output_shape
        Of the first input and the first output.
    weights, biases
        Elements; both biases of a recurrent layer, the whole table of an embedding.
    macs
        Multiply–accumulates of the products with the weights. The element-wise products of recurrent gates
        are left out.
    bias_adds
        Additions of biases.
    operations
        2·macs, for an embedding bag one addition per element read (two operations if it has
        per-sample weights).
    input_elements, output_elements
        Elements of the first input and the first output.
    weights_read
        Elements of weights read in this pass: all of them once, or the rows that an embedding gathers.
    use
        0 for the first use of these weights in the pass, 1 for the second … . Sum weights where it is 0.

    Raises
    ------
    ValueError
        If neither or both of ``input_shape`` and ``inputs`` are given, the model refuses the input, or it
        runs no weighted layer.
    CountsDiffer
        If torch counts another number of products in a layer than we do, or with ``outside="raise"``
        products outside all layers.
    """
    if outside not in ("warn", "raise", "rows", "ignore"):
        raise ValueError(f"outside must be warn, raise, rows or ignore, got {outside!r}")
    runner, arguments = prepare(model, input_shape, inputs, device)
    torch_count = FlopCounterMode(display=False)
    rows: list[dict] = []
    uses: dict[int, int] = {}
    entered: list[tuple[nn.Module, dict]] = []
    inside: dict[Any, int] = {}

    def seen() -> dict:
        return dict(torch_count.get_flop_counts().get("Global", {}))

    def enter(module: nn.Module, _: Any) -> None:
        entered.append((module, seen()))

    def leave(name: str):
        def hook(module: nn.Module, given: tuple, keywords: dict, output: Any) -> None:
            _, before = entered.pop()
            if entered:  # a layer inside a layer belongs to the outer one
                return
            row = _row(name, module, given, keywords, output)
            new = {kind: flops - before.get(kind, 0) for kind, flops in seen().items()}
            for kind, flops in new.items():
                inside[kind] = inside.get(kind, 0) + flops
            counted = sum(new.values())
            if counted and counted != OPERATIONS_PER_MAC * row["macs"]:
                raise CountsDiffer(
                    f"{name or type(module).__name__}: torch counts {counted / OPERATIONS_PER_MAC:.0f} MACs,"
                    f" the layer's shapes give {row['macs']}"
                )
            key = id(module.weight) if hasattr(module, "weight") else id(module)
            row["use"] = uses.get(key, 0)
            uses[key] = row["use"] + 1
            rows.append(row)

        return hook

    for name, module in runner.named_modules():
        if isinstance(module, WEIGHTED):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave(name), with_kwargs=True)
    with torch_count:
        run(runner, arguments, method)
    if not rows:
        raise ValueError(f"{type(model).__name__} runs no layer with weights (convolution, linear, …)")
    rest = {kind: flops - inside.get(kind, 0) for kind, flops in seen().items()}
    _report_outside({kind: flops for kind, flops in rest.items() if flops}, rows, outside)
    return pd.DataFrame(rows, columns=COLUMNS)


def totals(table: pd.DataFrame) -> pd.Series:
    """Sums of a table of `count_operations`; weights and biases used several times count once.

    Returns
    -------
    Series of integers: ``weights``, ``biases``, ``macs``, ``bias_adds``, ``operations``, ``weights_read``.
    """
    once = table[table["use"] == 0]
    stored = {column: int(once[column].sum()) for column in ("weights", "biases")}
    done = {
        column: int(table[column].sum()) for column in ("macs", "bias_adds", "operations", "weights_read")
    }
    return pd.Series(stored | done)


def count_parameters(model: nn.Module) -> int:
    """Elements of all distinct parameters, normalisation and biases included."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(
    model: nn.Module, *, weight_bits: float | Mapping[str, float] = 32, other_bits: float = 32
) -> int:
    """Bytes that the distinct parameters take when stored at given numbers of bits, tensor by tensor packed.

    Parameters
    ----------
    model
        Any module.
    weight_bits
        Bits of one multiplicative weight (see `WEIGHTED`), or bits per layer by qualified name; layers
        not named then have ``other_bits``. Need not be whole: 4.28 bits is an average.
    other_bits
        Bits of everything else: biases, normalisation, free parameters.

    Raises
    ------
    ValueError
        If bits are not positive, or a name is that of no weighted layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)}
    if isinstance(weight_bits, Mapping):
        unknown = [name for name in weight_bits if name not in layers]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no layer with weights")
        by_layer = {name: weight_bits.get(name, other_bits) for name in layers}
    else:
        by_layer = dict.fromkeys(layers, weight_bits)
    if min([other_bits, *by_layer.values()]) <= 0:
        raise ValueError(f"bits must be positive, got {min([other_bits, *by_layer.values()])}")
    bits: dict[int, float] = {}
    for name, module in layers.items():
        for leaf, parameter in module.named_parameters(recurse=False):
            if leaf.startswith("weight"):
                bits.setdefault(id(parameter), by_layer[name])
    return sum(
        math.ceil(parameter.numel() * bits.get(id(parameter), other_bits) / 8)
        for parameter in model.parameters()
    )


def prepare(
    model: nn.Module, input_shape: Sequence[int] | None, inputs: Any, device: str | None
) -> tuple[nn.Module, tuple]:
    """A copy of the model in evaluation mode that shares or needs no memory, and its arguments on its device.

    Parameters and errors as `count_operations`. Parameters of the copy are on ``device``, or the very
    tensors of the model with ``device=None`` (buffers are cloned, so that nothing can change them).
    """
    if (input_shape is None) == (inputs is None):
        raise ValueError("give either input_shape or inputs")
    if device not in (None, "meta"):
        raise ValueError(f'device must be "meta" or None, got {device!r}')
    memo: dict[int, Any] = {}
    for tensor in model.parameters():
        kept = tensor if device is None else nn.Parameter(tensor.to(device), tensor.requires_grad)
        memo[id(tensor)] = kept
    for tensor in model.buffers():
        memo[id(tensor)] = tensor.clone() if device is None else tensor.to(device)
    runner = copy.deepcopy(model, memo).eval()
    first = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    place = device or first.device
    if input_shape is not None:
        if not all(isinstance(size, int) and size > 0 for size in input_shape):
            raise ValueError(f"input_shape must be positive integers, got {input_shape!r}")
        return runner, (torch.zeros(tuple(input_shape), dtype=first.dtype, device=place),)
    arguments = inputs if type(inputs) is tuple else (inputs,)  # a packed sequence is a tuple too
    return runner, tree_map_only(Tensor, lambda tensor: tensor.to(place, copy=True), arguments)


def run(runner: nn.Module, arguments: tuple, method: str = "forward", *, gradients: bool = False) -> Any:
    """Run what `prepare` made, without fused kernels that hide their products.

    Raises
    ------
    ValueError
        If the model refuses its input.
    """
    try:
        with torch.set_grad_enabled(gradients), _separate_attention():
            return (runner if method == "forward" else getattr(runner, method))(*arguments)
    except CountsDiffer:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, AssertionError) as error:
        shapes = [tuple(x.shape) for x in tree_flatten(arguments)[0] if isinstance(x, Tensor)]
        hint = "; a model that looks at values needs device=None" if _on_meta(arguments) else ""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{type(runner).__name__} does not run on inputs of shape {', '.join(map(str, shapes))}:"
            f" {reason}{hint}"
        ) from error


def _on_meta(arguments: tuple) -> bool:
    return any(isinstance(x, Tensor) and x.is_meta for x in tree_flatten(arguments)[0])


@contextmanager
def _separate_attention():
    """Attention as plain matrix products, which torch's counter sees."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _row(name: str, module: nn.Module, given: tuple, keywords: dict, output: Any) -> dict:
    first_input = _first_tensor((given, keywords))
    first_output = _first_tensor(output)
    elements_in, elements_out = first_input.numel(), first_output.numel()
    leaves = dict(module.named_parameters(recurse=False))
    weights = module.weight.numel() if hasattr(module, "weight") else 0
    biases = module.bias.numel() if isinstance(getattr(module, "bias", None), Tensor) else 0
    bias_adds = elements_out if biases else 0
    kernel: tuple = ()
    read = weights
    if isinstance(module, CONVOLUTIONS + TRANSPOSED):
        kernel = tuple(module.kernel_size)
        # every output element needs one product per weight of its filter; transposed: every input element
        driver = elements_in if isinstance(module, TRANSPOSED) else elements_out
        macs = driver * math.prod(module.weight.shape[1:])
    elif isinstance(module, nn.Linear):
        macs = elements_out * module.weight.shape[1]
    elif isinstance(module, EMBEDDINGS):
        macs, read = 0, elements_in * module.weight.shape[1]
        if isinstance(module, nn.EmbeddingBag) and (
            len(given) > 2 or keywords.get("per_sample_weights") is not None
        ):
            macs = read
    else:
        weights = read = sum(p.numel() for leaf, p in leaves.items() if leaf.startswith("weight"))
        biases = sum(p.numel() for leaf, p in leaves.items() if leaf.startswith("bias"))
        tokens = elements_in // module.input_size
        macs, bias_adds = tokens * weights, tokens * biases
    pooled = isinstance(module, nn.EmbeddingBag) and module.mode != "max" and not macs
    return {
        "layer": name,
        "kind": _kind(module),
        "kernel": kernel,
        "groups": getattr(module, "groups", 1),
        "input_shape": tuple(first_input.shape),
        "output_shape": tuple(first_output.shape),
        "weights": weights,
        "biases": biases,
        "macs": macs,
        "bias_adds": bias_adds,
        "operations": OPERATIONS_PER_MAC * macs + (read if pooled else 0),
        "input_elements": elements_in,
        "output_elements": elements_out,
        "weights_read": read,
    }


def _kind(module: nn.Module) -> str:
    if isinstance(module, TRANSPOSED):
        return "transposed conv"
    if isinstance(module, CONVOLUTIONS):
        if module.groups == 1:
            return "conv"
        return "depthwise conv" if module.groups == module.in_channels else "grouped conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, EMBEDDINGS):
        return "embedding bag" if isinstance(module, nn.EmbeddingBag) else "embedding"
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return "lstm"
    return "gru" if isinstance(module, (nn.GRU, nn.GRUCell)) else "rnn"


def _first_tensor(value: Any) -> Tensor:
    if isinstance(value, PackedSequence):
        return value.data
    for leaf in tree_flatten(value, is_leaf=lambda x: isinstance(x, PackedSequence))[0]:
        if isinstance(leaf, PackedSequence):
            return leaf.data
        if isinstance(leaf, Tensor):
            return leaf
    raise TypeError("a layer was called without a tensor")


def _report_outside(rest: Mapping[Any, int], rows: list[dict], outside: str) -> None:
    if not rest or outside == "ignore":
        return
    macs = {str(kind).removeprefix("aten."): flops // OPERATIONS_PER_MAC for kind, flops in rest.items()}
    if outside == "rows":
        blank = dict.fromkeys(COLUMNS, 0) | {"kernel": (), "groups": 1, "input_shape": (), "output_shape": ()}
        rows += [
            blank | {"layer": "outside layers", "kind": kind, "macs": count, "operations": 2 * count}
            for kind, count in macs.items()
        ]
        return
    text = ", ".join(f"{count} MACs of {kind}" for kind, count in macs.items())
    message = f'the model also multiplies outside its layers: {text} (outside="rows" adds them)'
    if outside == "raise":
        raise CountsDiffer(message)
    warnings.warn(message, stacklevel=3)
