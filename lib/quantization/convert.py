"""Conversion of a network to a quantised one, without editing it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lib.inspection import evaluating, hooked
from lib.quantization.duq import DuQConv2d, DuQLinear
from lib.quantization.quantized_layers import QuantizedConv2d, QuantizedLinear
from lib.quantization.quantizer import Quantizer

Kind = Literal["unsigned", "signed", "hswish"]
KINDS = ("unsigned", "signed", "hswish")
REPLACED = {nn.Conv2d: QuantizedConv2d, nn.Linear: QuantizedLinear}
QUANTIZED = (QuantizedConv2d, QuantizedLinear, DuQConv2d, DuQLinear)
UNSUPPORTED = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase, nn.RNNCellBase),
    *(nn.MultiheadAttention, nn.Bilinear),
)


def quantize(
    model: nn.Module,
    sample: Tensor,
    *,
    weights: Callable[[nn.Module], Quantizer | None],
    activations: Callable[[Kind], Quantizer | None] | None = None,
    first_last: Literal["same"] | int | None = "same",
    quantize_image: bool = False,
    kinds: Mapping[str, Kind] | None = None,
    skip: Collection[str] = (),
    inplace: bool = False,
) -> nn.Module:
    """Put a quantiser on the weight and on the input of every convolution and linear layer.

    Biases and normalisation stay as they are. ``sample`` goes through the network once, in evaluation mode:
    that finds the kind of each layer's input, the order of the layers, and every first range.

    Parameters
    ----------
    model
        Any network of ``nn.Conv2d`` and ``nn.Linear``.
    sample : (batch, ...)
        What ``model`` takes, like the data: ranges are measured on it.
    weights
        Called with each layer; returns a new quantiser for its weight, or None.
    activations
        Called with the kind of each layer's input: ``"hswish"`` where it is the output of an
        ``nn.Hardswish``, else ``"unsigned"`` where no value is negative, else ``"signed"``. Returns a new
        quantiser, or None. None: weights only.
    first_last
        For the first and the last layer that are reached: ``"same"`` as all others (PROFIT), a number of
        bits, or None to leave them as they are.
    quantize_image
        Whether the input of the first layer is quantised too.
    kinds
        Kinds by name of layer, where the rule above is not what is wanted.
    skip
        Names of layers (or of modules with all that is in them) to leave as they are. A layer with several
        names answers to each of them.
    inplace
        Whether to convert ``model`` itself; otherwise a copy. Of a model that is a layer, a new one is made.

    Returns
    -------
    nn.Module
        Its layers are `QuantizedConv2d` and `QuantizedLinear`, its keys those of ``model`` and
        the quantisers'. Layers keep their hooks, their mode, and parameters that are shared or frozen; a
        layer with several names is one layer with one quantiser, layers that share a weight have one each.

    Raises
    ------
    ValueError
        A layer that cannot be quantised, that is quantised already or that ``sample`` does not reach; an
        unknown name in ``kinds`` or ``skip``; no layer at all.
    """
    model = model if inplace else copy.deepcopy(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in [*skip, *(kinds or {})]:
        if name not in modules:
            raise ValueError(f"the network has no module {name!r}")
    if unknown := sorted(set((kinds or {}).values()) - set(KINDS)):
        raise ValueError(f"kinds are {', '.join(KINDS)}, got {unknown[0]!r}")
    layers = {name: module for name, module in _candidates(model, [modules[name] for name in skip])}
    if not layers:
        raise ValueError("the network has no convolution or linear layer to quantise")
    kind_of = {modules[name]: kind for name, kind in (kinds or {}).items()}
    inputs = _Inputs(model, layers, kind_of, activations)
    order = inputs.run(sample)
    if missed := [name for name in layers if name not in order]:
        raise ValueError(f"the sample does not reach {missed[0]}: skip it, or use it")
    for name in order:
        layer, at_end = layers[name], name in (order[0], order[-1])
        if at_end and first_last is None:
            continue
        of_input = inputs.quantizers[name] if quantize_image or name != order[0] else None
        of_weight = weights(layer)
        if at_end and first_last != "same":
            for quantizer in (of_weight, of_input):
                if quantizer is not None and quantizer.bits is not None:
                    quantizer.bits = first_last
        if of_weight is not None:
            of_weight.initialise(layer.weight)
        if of_input is not None:
            of_input.initialise(inputs.seen[name])
        new = REPLACED[type(layer)].of(layer, weight_quantizer=of_weight, input_quantizer=of_input)
        model = new if layer is model else model
        _replace(model, layer, new)
    return model


def set_bits(
    model: nn.Module, *, weights: int | str | None = "keep", activations: int | str | None = "keep"
) -> None:
    """Set the bits of every quantised layer's weights, and of every activation quantiser, in place.

    None is full precision; ``"keep"`` changes nothing. Ranges stay as they are.
    """
    of_weights = [getattr(layer, "weight_quantizer", layer) for _, layer in quantized_layers(model)]
    for module in model.modules():
        if isinstance(module, Quantizer | DuQConv2d | DuQLinear):
            bits = weights if any(module is other for other in of_weights) else activations
            if bits != "keep":
                module.bits = bits


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer with quantised weights, in the order of definition."""
    for name, module in model.named_modules():
        if isinstance(module, QUANTIZED):
            yield name, module


def _candidates(model: nn.Module, skip: Collection[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    left = {module for skipped in skip for module in skipped.modules()}
    for name, module in model.named_modules():
        if module in left:
            continue
        if type(module) in REPLACED:
            yield name, module
        elif isinstance(module, QUANTIZED):
            raise ValueError(f"{name} is quantised already")
        elif isinstance(module, UNSUPPORTED):
            kind = type(module).__name__
            raise ValueError(f"{name} is a {kind}: Conv2d and Linear are quantised; skip it by name")


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, key, new)


class _Inputs:
    """What reaches each layer: its kind, its values, and in which order."""

    def __init__(self, model, layers, kinds, activations) -> None:
        self.model, self.layers, self.kinds, self.activations = model, layers, kinds, activations
        self.seen: dict[str, Tensor] = {}
        self.quantizers: dict[str, Quantizer | None] = {}
        self._of_hardswish: dict[int, weakref.ref] = {}

    def run(self, sample: Tensor) -> list[str]:
        hooks = [(layer, "input", self._layer_hook(name)) for name, layer in self.layers.items()]
        for module in self.model.modules():
            if isinstance(module, nn.Hardswish):
                hooks.append((module, "output", self._hardswish_hook))
        with evaluating(self.model), hooked(hooks), torch.no_grad():
            self.model(sample)
        return list(self.quantizers)

    def _hardswish_hook(self, module, inputs, output) -> None:
        self._of_hardswish[id(output)] = weakref.ref(output)

    def _layer_hook(self, name):
        def hook(module, inputs):
            if name in self.quantizers:
                return
            x = inputs[0]
            known = self._of_hardswish.get(id(x))
            kind = self.kinds.get(module)
            if kind is None and known is not None and known() is x:
                kind = "hswish"
            if kind is None:
                kind = "unsigned" if bool((x >= 0).all()) else "signed"
            self.quantizers[name] = self.activations(kind) if self.activations else None
            if self.quantizers[name] is not None:
                self.seen[name] = x.clone()

        return hook
