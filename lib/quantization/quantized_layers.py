"""Layers with a quantiser on their weight and one on their input; parameters keep their names.

A converted network's state has all keys of the original, and the quantisers' beside them, so a checkpoint of
the original loads with ``strict=False``.
"""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from lib.quantization.duq import convolve
from lib.quantization.quantizer import Quantizer


class _Quantized:
    """What both layers share."""

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    @classmethod
    def of(
        cls,
        layer: nn.Module,
        *,
        weight_quantizer: Quantizer | None,
        input_quantizer: Quantizer | None = None,
        padding_value: float | None = None,
    ) -> Self:
        """A quantised layer that shares the parameters of ``layer``.

        Parameters
        ----------
        layer
            The layer to take the place of.
        weight_quantizer, input_quantizer
            Or None, where nothing is to be quantised.
        padding_value
            What a convolution pads with; by default the value that the input's quantiser asks for.
        """
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.__dict__.update(
            {name: value for name, value in vars(layer).items() if name not in ("_parameters", "_modules")}
        )
        new._parameters, new._modules = layer._parameters.copy(), layer._modules.copy()
        new.weight_quantizer, new.input_quantizer = weight_quantizer, input_quantizer
        asked = getattr(input_quantizer, "padding_value", 0.0)
        new.padding_value = asked if padding_value is None else padding_value
        return new

    def quantized_weight(self) -> Tensor:
        """The weight that the layer computes with."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input that the layer computes with."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def forward(self, input: Tensor) -> Tensor:
        return self.compute(self.quantized_input(input), self.quantized_weight())


class QuantizedConv2d(_Quantized, nn.Conv2d):
    """Convolution of a quantised input with a quantised weight. Made by `of`.

    Keys: ``weight``, (``bias``,) ``weight_quantizer.*``, ``input_quantizer.*``.
    """

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for a given (quantised) input and weight."""
        return convolve(self, x, weight, self.padding_value)


class QuantizedLinear(_Quantized, nn.Linear):
    """Linear layer with quantised input and weight. Made by `of`."""

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for a given (quantised) input and weight."""
        return F.linear(x, weight, self.bias)
