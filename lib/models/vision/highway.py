"""Residual networks with a precision highway: shortcuts that carry high precision past quantised branches.

Park, Kim, Yoo & Vajda, *Precision Highway for Ultra Low-Precision Quantization*, 2018 (arXiv:1812.09818).
Only the abstract could be read. The block below is the straightforward form of its idea, in line with later
code of its first author; details of the paper may differ.

One knob moves between the conventional network and the highway, with the same quantisers and the same number
of them; a highway of few bits has one more in each block. The same idea in an LSTM is in
`lib.models.language.highway`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from lib.inspection import captured, evaluating
from lib.models.vision.resnet import BasicBlock, Bottleneck, ResidualBlock, ResNet
from lib.quantization.convert import Kind, quantize
from lib.quantization.quantizer import Quantizer

Skip = Literal["shared"] | int | None


class Highway(ResidualBlock):
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

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        quantized = self.entrance(x)  # (B, C, H, W), values of a few levels
        if self.shares or (self.quantize_projection and self.downsample is not None):
            carried = quantized
        else:
            carried = self.highway(x)  # (B, C, H, W)
        # branch and shortcut both put out (B, C', H', W'), which are added in floating point
        return self.relu(self.branch(quantized) + self.shortcut(carried))

    @classmethod
    def of(
        cls,
        block: BasicBlock | Bottleneck,
        entrance: nn.Module,
        skip: Quantizer | Literal["shared"] | None,
        quantize_projection: bool,
    ) -> Self:
        """A block of the layers of `block`, under their names; `skip` is a grid, "shared" or None."""
        new = cls.__new__(cls)  # not __init__, which would make layers of its own
        nn.Module.__init__(new)
        new.training = block.training
        for name, layer in block.named_children():
            new.add_module(name, layer)
        if block.downsample is None:
            new.downsample = None
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
        With batch statistics that suit `sample`, on which all ranges are measured.
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
        If the network has no residual blocks, or `skip_bits` is something else.
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
    seen: dict[str, Tensor] = {}
    if isinstance(skip_bits, int):  # ranges from what enters in full precision, as those of the entrances
        with evaluating(network), captured(network, (name for name, _ in blocks)) as seen, torch.no_grad():
            network(sample)
    for name, block in blocks:
        entrance, block.conv1.input_quantizer = block.conv1.input_quantizer, None
        if quantize_projection and block.downsample is not None:
            block.downsample[0].input_quantizer = None  # it takes what the entrance has quantised
        skip = skip_bits
        if isinstance(skip_bits, int):
            skip = activations("unsigned")
            skip.bits = skip_bits
            skip.initialise(seen[name])
        new.set_submodule(name, BLOCKS[type(block)].of(block, entrance, skip, quantize_projection))
    return new.to(sample.device)
