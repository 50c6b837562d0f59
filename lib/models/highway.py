"""Precision highway: a path of high precision through a network that computes in few bits.

Park, Kim, Yoo & Vajda, *Precision Highway for Ultra Low-Precision Quantization*, 2018 (arXiv:1812.09818).
Only the abstract could be read. The residual block and the LSTM below are the straightforward form of its
idea, in line with later code of its first author; details of the paper may differ.

Both are built so that one knob moves between the conventional network and the highway, with the same
quantisers and the same number of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.metrics.signal import sqnr
from lib.models.language.language_model import LSTMLanguageModel, LSTMLayer
from lib.models.vision.resnet import BasicBlock, Bottleneck, ResidualBlock, ResNet
from lib.quantization.convert import Kind, quantize
from lib.quantization.quantizer import Quantizer
from lib.quantization.uniform import Uniform

Skip = Literal["shared"] | int | None


class Highway(nn.Module):
    """Forward pass of a residual block whose branch is quantised at its entrance.

    Attributes
    ----------
    entrance : Quantizer
        Of the branch's input.
    shares : bool
        Whether the shortcut carries the branch's quantised input (conventional).
    highway : Quantizer or nn.Identity
        Otherwise, what the shortcut makes of the input: a grid of its own, or nothing (a highway in floating
        point).
    quantize_projection : bool
        Whether a shortcut that is a convolution takes the branch's quantised input in any case.
    """

    def forward(self, x: Tensor) -> Tensor:
        quantized = self.entrance(x)
        if self.shares or (self.quantize_projection and self.downsample is not None):
            carried = quantized
        else:
            carried = self.highway(x)
        return self.relu(self.branch(quantized) + self.shortcut(carried))

    @classmethod
    def of(
        cls, block: nn.Module, entrance: nn.Module, skip: Quantizer | str | None, quantize_projection: bool
    ) -> Self:
        """A block with the layers of ``block``, under their names; ``skip`` is a grid, "shared" or None."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        own = {name: value for name, value in vars(block).items() if name not in ("_parameters", "_modules")}
        new.__dict__.update(own)
        new._modules.update(block._modules)
        new.entrance = entrance
        new.shares = skip == "shared"
        new.highway = skip if isinstance(skip, Quantizer) else nn.Identity()
        new.quantize_projection = quantize_projection
        return new


class HighwayBasicBlock(Highway, BasicBlock):
    """`lib.models.vision.resnet.BasicBlock` with quantised branch and a choice of skip."""


class HighwayBottleneck(Highway, Bottleneck):
    """`lib.models.vision.resnet.Bottleneck` with quantised branch and a choice of skip."""


BLOCKS = {BasicBlock: HighwayBasicBlock, Bottleneck: HighwayBottleneck}


def quantize_resnet(
    network: ResNet,
    sample: Tensor,
    *,
    skip_bits: Skip = None,
    weights: Callable[[nn.Module], Quantizer | None],
    activations: Callable[[Kind], Quantizer],
    first_last: Literal["same"] | int | None = 8,
    quantize_projection: bool = True,
) -> ResNet:
    """A quantised copy of a residual network, conventional or with a precision highway.

    Parameters
    ----------
    network
        With batch statistics that suit ``sample``, on which all ranges are measured.
    sample : (B, C, H, W)
    skip_bits
        ``"shared"``: a block's input is quantised once and feeds branch and shortcut, as is conventional.
        None: the shortcut carries it in floating point. A number: it carries it in so many bits, from a
        quantiser of its own.
    weights, activations
        Make quantisers, as for `lib.quantization.convert.quantize`.
    first_last
        Bits of the first and the last layer.
    quantize_projection
        Whether the convolutions on shortcuts are quantised like all others: not known from the paper.
        Their output is added in high precision in any case.

    Raises
    ------
    ValueError
        If the network has no residual blocks, or ``skip_bits`` is something else.
    """
    if skip_bits is not None and skip_bits != "shared" and not isinstance(skip_bits, int):
        raise ValueError(f"skip_bits must be None, 'shared' or a number of bits, got {skip_bits!r}")
    projections = [name for name, _ in network.named_modules() if name.endswith(".downsample")]
    skipped = () if quantize_projection else projections
    new = quantize(
        network, sample, weights=weights, activations=activations, first_last=first_last, skip=skipped
    )
    blocks = [(name, module) for name, module in new.named_modules() if type(module) in BLOCKS]
    if not blocks:
        raise ValueError("the network has no residual block")
    seen = _inputs_of([name for name, _ in blocks], network, sample) if isinstance(skip_bits, int) else {}
    for name, block in blocks:
        entrance, block.conv1.input_quantizer = block.conv1.input_quantizer, None
        if quantize_projection and block.downsample is not None:
            block.downsample[0].input_quantizer = None  # it takes what the entrance has quantised
        skip: Quantizer | str | None = None if skip_bits is None else "shared"
        if isinstance(skip_bits, int):
            skip = activations("unsigned")
            skip.bits = skip_bits
            skip.initialise(seen[name])
        new.set_submodule(name, BLOCKS[type(block)].of(block, entrance, skip, quantize_projection))
    return new.to(sample.device)


def _inputs_of(names: list[str], network: ResNet, sample: Tensor) -> dict[str, Tensor]:
    """What enters each block in full precision, on which its entrance was measured too."""
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: seen.update({name: inputs[0]})
        )
        for name in names
    ]
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(sample)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return seen


def block_outputs(network: ResNet, images: Tensor) -> list[Tensor]:
    """The output of every residual block, in order, without gradients and with the network's mode."""
    outputs: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
        for module in network.modules()
        if isinstance(module, ResidualBlock)
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def settle_norms(network: nn.Module, images: Tensor) -> None:
    """Make the running statistics of every batch norm those of this batch, in place.

    In an untrained network they are 0 and 1, with which values grow from block to block in evaluation mode.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta, training = [norm.momentum for norm in norms], network.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    with torch.no_grad():
        network.train()(images)
    network.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def error_by_depth(network: ResNet, quantized: ResNet, images: Tensor) -> list[float]:
    """SQNR in dB of every block's output against the network in full precision.

    Both compute with the statistics of this batch: running ones of the one are wrong for the other. A
    conventional block's output is compared before the next block's entrance rounds it. Neither network is
    changed.
    """
    outputs = [block_outputs(copy.deepcopy(model).train(), images) for model in (network, quantized)]
    return [sqnr(signal, found) for signal, found in zip(*outputs, strict=True)]


def skip_traffic(bits: int, skip_bits: int | None = None, *, store_both: bool = True) -> int:
    """Bits of memory traffic per value of a block's output: written once, read by branch and by shortcut.

    Parameters
    ----------
    bits
        Of the branch's input.
    skip_bits
        Of the highway; None: conventional, one copy for both.
    store_both
        Two copies, one of each width; otherwise one copy in ``skip_bits``, from which the branch's
        input is quantised each time.

    Returns
    -------
    int
        3 b, 2 b + 2 H or 3 H. The model is ours, not the paper's.
    """
    if bits < 1 or (skip_bits is not None and skip_bits < 1):
        raise ValueError(f"bits must be positive, got {bits} and {skip_bits}")
    if skip_bits is None:
        return 3 * bits
    return 2 * bits + 2 * skip_bits if store_both else 3 * skip_bits


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
        i, f, g, o = gates.chunk(4, dim=1)
        i, f, o = self.quantize_gates(torch.sigmoid(torch.stack([i, f, o])))
        c = self.quantize_cell(f * c + i * self.quantize_candidate(torch.tanh(g)))
        return self.quantize_output(o * torch.tanh(c)), c

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
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs, k=k: new.layers[k].initialise(*inputs))
        for k, layer in enumerate(model.layers)
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(tokens)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return new.train(training)


@torch.no_grad()
def cell_states(model: LSTMLanguageModel, tokens: Tensor) -> Tensor:
    """Cell states after each token from a state of zeros: (T, layers, B, hidden), in evaluation mode."""
    training, kept = model.training, [[] for _ in model.layers]
    for layer, cells in zip(model.layers, kept, strict=True):

        def watched(gates: Tensor, c: Tensor, step=layer.step, cells=cells) -> tuple[Tensor, Tensor]:
            h, c = step(gates, c)
            cells.append(c)
            return h, c

        layer.step = watched  # on this layer only, and only here
    try:
        model.eval()(tokens)
    finally:
        model.train(training)
        for layer in model.layers:
            del layer.step
    return torch.stack([torch.stack(cells) for cells in kept], dim=1)


def error_by_step(model: LSTMLanguageModel, quantized: LSTMLanguageModel, tokens: Tensor) -> list[float]:
    """SQNR in dB of the last layer's cell state after each token, against the model in full precision."""
    signal, found = (cell_states(each, tokens)[:, -1] for each in (model, quantized))
    return [sqnr(a, b) for a, b in zip(signal, found, strict=True)]
