"""LSTMs with a precision highway: gates and states that stay in high precision between quantised products.

Park, Kim, Yoo & Vajda, *Precision Highway for Ultra Low-Precision Quantization*, 2018 (arXiv:1812.09818).
Only the abstract could be read. The LSTM below is the straightforward form of its idea; details of the paper
may differ.

Each quantiser can be left out, which is what moves between the conventional LSTM and the highway. The same
idea in residual networks is in `lib.models.vision.highway`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.inspection import evaluating, hooked
from lib.models.language.language_model import LSTMLanguageModel, LSTMLayer
from lib.quantization.quantizer import Quantizer
from lib.quantization.uniform import Uniform


class QuantizedLSTMLayer(LSTMLayer):
    """An LSTM layer that multiplies in few bits; its gates and states conventional or on a highway.

    The matrix products take quantised weights, inputs and hidden states. On the highway everything else is
    in high precision. Conventional is what quantises the gates (after their nonlinearity), the cell
    state and the hidden state too.

    Parameters
    ----------
    inputs, hidden : int
        Widths of x and h.
    weight_bits, input_bits : int or None
        Of the matrix products' operands.
    gate_bits, state_bits : int or None
        Of gates, and of c and h where they leave the cell; None is the highway.
    keep_cell : bool
        Leave c in high precision, whatever ``state_bits`` is: it enters no matrix product.
    weights : callable
        Bits to a new quantiser of weights.
    values : callable
        Bits and whether there are negative values to a new quantiser of activations.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        weight_bits: int | None,
        input_bits: int | None,
        gate_bits: int | None = None,
        state_bits: int | None = None,
        keep_cell: bool = False,
        weights: Callable[[int | None], Quantizer],
        values: Callable[[int | None, bool], Quantizer],
    ) -> None:
        super().__init__(inputs, hidden)
        self.quantize_weight_ih, self.quantize_weight_hh = weights(weight_bits), weights(weight_bits)
        self.quantize_input, self.quantize_hidden = values(input_bits, True), values(input_bits, True)
        # fixed, from 0 to 1: with a learned range a forget gate could exceed 1, and c would grow without end
        self.quantize_gates = Uniform(gate_bits, signed=False)
        self.quantize_candidate = values(gate_bits, True)
        self.quantize_cell = values(None if keep_cell else state_bits, True)
        self.quantize_output = values(state_bits, True)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `LSTMLayer.forward`."""
        h, c = state
        weight_ih, weight_hh = (
            self.quantize_weight_ih(self.weight_ih),
            self.quantize_weight_hh(self.weight_hh),
        )
        outputs = []
        for projected in F.linear(self.quantize_input(inputs), weight_ih, self.bias_ih + self.bias_hh):
            h, c = self.step(projected + F.linear(self.quantize_hidden(h), weight_hh), c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)

    def step(self, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """As `LSTMLayer.step`; each quantiser is the identity where its bits are None."""
        i, f, g, o = gates.chunk(4, dim=1)  # (B, 4 · hidden) to four of (B, hidden)
        i, f, o = self.quantize_gates(torch.sigmoid(torch.stack([i, f, o])))  # of (3, B, hidden)
        g = self.quantize_candidate(torch.tanh(g))
        c = self.quantize_cell(f * c + i * g)  # (B, hidden)
        return self.quantize_output(o * torch.tanh(c)), c  # h and c, each (B, hidden)

    @torch.no_grad()
    def initialise(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> None:
        """Set every range from what passes in full precision, inputs and state being `forward`'s."""
        h, c = state
        cells, hiddens, candidates = [], [], []
        for projected in F.linear(inputs, self.weight_ih, self.bias_ih + self.bias_hh):
            gates = projected + F.linear(h, self.weight_hh)
            h, c = super().step(gates, c)
            candidates.append(torch.tanh(gates.chunk(4, dim=1)[2]))
            cells.append(c)
            hiddens.append(h)
        measured = {
            self.quantize_weight_ih: self.weight_ih,
            self.quantize_weight_hh: self.weight_hh,
            self.quantize_input: inputs,
            self.quantize_hidden: torch.stack(hiddens),
            self.quantize_candidate: torch.stack(candidates),
            self.quantize_cell: torch.stack(cells),
            self.quantize_output: torch.stack(hiddens),
        }
        for quantizer, values in measured.items():
            if quantizer.bits is not None:
                quantizer.initialise(values)


def quantize_language_model(model: LSTMLanguageModel, tokens: Tensor, **options) -> LSTMLanguageModel:
    """A copy whose LSTM layers are quantised; embedding and output layer stay as they are.

    Parameters
    ----------
    model
        In full precision.
    tokens : (B, T) int64
        Text on which ranges are measured, in the model of full precision.
    options
        Of `QuantizedLSTMLayer`.

    Raises
    ------
    ValueError
        If it is quantised already.
    """
    if any(isinstance(layer, QuantizedLSTMLayer) for layer in model.layers):
        raise ValueError("the model must be in full precision, it is quantised already")
    vocabulary_size, hidden_size = model.embedding.weight.shape
    new = LSTMLanguageModel(
        vocabulary_size,
        hidden_size=hidden_size,
        layers=len(model.layers),
        dropout=model.dropout.p,
        tied=model.output.weight is model.embedding.weight,
        layer=lambda inputs, hidden: QuantizedLSTMLayer(inputs, hidden, **options),
    ).to(model.output.weight)
    new.load_state_dict(model.state_dict(), strict=False)
    hooks = (
        (layer, "input", lambda module, inputs, twin=twin: twin.initialise(*inputs))
        for layer, twin in zip(model.layers, new.layers, strict=True)
    )
    with evaluating(model), hooked(hooks), torch.no_grad():
        model(tokens)
    return new.train(model.training)
