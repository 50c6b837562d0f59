"""A trained chain of layers, run in integers: quantisation after training, and what keeps it accurate.

Park et al. (arXiv:1811.09886) name five techniques: fine-grained scales, training with quantisation (not
here), leaving the worst layers in floating point, ranges that ignore outliers, and ranges that know what
follows ("net-aware"). Every product is computed by `lib.quantization.integer`, in 32- or 16-bit accumulation;
only the scales are real numbers.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.inspection import captured
from lib.quantization.integer import AffineQuantizer, affine_gemm, affine_quantizer, gemm_i16, gemm_i32
from lib.quantization.outliers import gemm_outlier_aware, split_outliers
from lib.quantization.ranges import Histogram, l2_range

BINS = 512  # of calibration histograms


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is quantised. The defaults are the base of every technique: one min–max range per tensor.

    Attributes
    ----------
    weight_bits, activation_bits : int
        2 to 8. Weights are symmetric and signed, activations affine and unsigned.
    per_channel : bool
        One scale per output channel of the weights.
    l2_ranges : bool
        Ranges of the least squared error instead of min–max: of the activations (on a histogram of the
        calibration images) and of the weights.
    net_aware : bool
        Range of an activation as the next layer sees it, after ReLU, and not as the last one puts it out.
    skip : int
        Leave this many layers in float32: those whose output, quantised alone, has the largest error.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = False
    l2_ranges: bool = False
    net_aware: bool = False
    skip: int = 0


@dataclass(frozen=True, kw_only=True)
class Accumulation:
    """How products are summed: 32 or 16 bits; with 16, when to spill, and how many bits are no outlier.

    ``main_bits`` of None: no split, every weight goes the 16-bit way (`lib.quantization.integer.gemm_i16`).
    """

    bits: int = 32
    spill_every: int | None = None
    main_bits: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in (32, 16):
            raise ValueError(f"accumulation is in 32 or 16 bits, got {self.bits}")
        if self.bits == 32 and (self.spill_every is not None or self.main_bits is not None):
            raise ValueError("spilling and splitting are for accumulation in 16 bits")

    def gemm(self, activation: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        """Product int32 (M, N), and how many of its entries were cut."""
        if self.bits == 32:
            return gemm_i32(activation, weight), 0
        if self.main_bits is None:
            result = gemm_i16(activation, weight, spill_every=self.spill_every)
        else:
            split = split_outliers(weight, bits=self.main_bits)
            result = gemm_outlier_aware(activation, split, spill_every=self.spill_every)
        return result.values, int(result.saturated.sum())


class IntegerLayer(nn.Module):
    """A convolution or linear layer on integers: quantises its input, multiplies, and returns real numbers.

    A linear layer must have a bias. `saturated` and `entries` count the outputs computed since they were last
    set to zero.
    """

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, inputs: AffineQuantizer, weights: AffineQuantizer
    ) -> None:
        super().__init__()
        self.inputs, self.weights, self.layer = inputs, weights, layer
        self.groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        self.codes = weights.quantize(layer.weight.detach()).flatten(1)
        self.accumulation = Accumulation()
        self.saturated = self.entries = 0

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, C', H', W'), or vectors (B, K) to (B, N)."""
        y = self.products(self.columns(x))
        if isinstance(self.layer, nn.Conv2d):
            y = y.view(len(x), *self._size(x), -1).permute(0, 3, 1, 2)
            return y if self.layer.bias is None else y + self.layer.bias[:, None, None]
        return y + self.layer.bias

    def columns(self, x: Tensor) -> Tensor:
        """What the outputs are products of, in integers: uint8 (B H' W', C k²), or (B, K)."""
        q = self.inputs.quantize(x)
        if isinstance(self.layer, nn.Linear):
            return q
        conv, (top, left) = self.layer, self.layer.padding
        zero = float(self.inputs.zero_point)  # what stands for the number 0
        padded = F.pad(q.float(), (left, left, top, top), value=zero)
        columns = F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        return columns.to(torch.uint8).transpose(1, 2).flatten(0, 1)

    def products(self, columns: Tensor) -> Tensor:
        """Columns (rows, K) times the weights, without bias: real numbers (rows, C')."""
        if self.groups > 1 and self.accumulation.bits == 32:
            return self._products_of_groups(columns)
        parts = [
            self._product(part, codes, weights)  # a group shares nothing with the others
            for part, codes, weights in zip(
                columns.chunk(self.groups, 1), self.codes.chunk(self.groups), self._by_group(), strict=True
            )
        ]
        return torch.cat(parts, 1)

    def _size(self, x: Tensor) -> list[int]:
        conv = self.layer
        return [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(
                x.shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
            )
        ]

    def _products_of_groups(self, columns: Tensor) -> Tensor:
        """All groups at once; depth-wise layers have hundreds, of a few products each."""
        a = columns.view(len(columns), self.groups, -1).transpose(0, 1).double()
        w = self.codes.view(self.groups, -1, a.shape[-1]).double()
        total = (a @ w.mT).transpose(0, 1).flatten(1).int()
        self.entries += total.numel()
        return affine_gemm(columns, self.codes, self.inputs, self.weights, total)

    def _by_group(self) -> list[AffineQuantizer]:
        if self.weights.axis is None:
            return [self.weights] * self.groups
        scales, zeros = (t.chunk(self.groups) for t in (self.weights.scale, self.weights.zero_point))
        return [
            AffineQuantizer(scale, zero, self.weights.bits, self.weights.signed, 0)
            for scale, zero in zip(scales, zeros, strict=True)
        ]

    def _product(self, q: Tensor, codes: Tensor, weights: AffineQuantizer) -> Tensor:
        total, cut = self.accumulation.gemm(q, codes)
        self.saturated += cut
        self.entries += total.numel()
        return affine_gemm(q, codes, self.inputs, weights, total)


def fold(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode with each batch normalisation folded into the convolution before it.

    ValueError for one that follows no convolution in its chain of layers (``nn.Sequential``).
    """
    folded = copy.deepcopy(network).eval()
    for chain in [module for module in folded.modules() if isinstance(module, nn.Sequential)]:
        previous = ""
        for name, module in list(chain.named_children()):
            if not isinstance(module, nn.BatchNorm2d):
                previous = name
                continue
            convolution = getattr(chain, previous) if previous else None
            if not isinstance(convolution, nn.Conv2d):
                raise ValueError(f"batch normalisation {name!r} follows no convolution to be folded into")
            setattr(chain, previous, fuse_conv_bn_eval(convolution, module))
            delattr(chain, name)
    return folded


@torch.no_grad()
def quantize_network(network: nn.Sequential, images: Tensor, recipe: Recipe) -> nn.Sequential:
    """The network with its convolutions and linear layers in integers; the rest is the same.

    Parameters
    ----------
    network : nn.Sequential
        Trained, without nested modules; it is left as it is.
    images : (B, C, H, W)
        From which activation ranges are taken.
    recipe : Recipe

    Raises
    ------
    ValueError
        Not a chain, no layer to quantise, padding that is not of zeros, fewer layers than `recipe.skip`.
    """
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"expected a chain of layers (nn.Sequential), got {type(network).__name__}")
    chain = fold(network)
    layers = [name for name, module in chain.named_children() if isinstance(module, nn.Conv2d | nn.Linear)]
    if not 0 <= recipe.skip <= len(layers) or not layers:
        raise ValueError(f"skip must be in 0..{len(layers)}, got {recipe.skip}; a layer is needed")
    replaced, errors = {}, {}
    x = before = images
    for name, module in chain.named_children():
        y = module(x)
        if name in layers:
            if isinstance(module, nn.Conv2d) and (
                module.padding_mode != "zeros" or isinstance(module.padding, str)
            ):
                raise ValueError(f"layer {name!r}: padding must be a number of zeros")
            seen = x if recipe.net_aware else torch.cat([x.flatten(), before.flatten()])
            replaced[name] = IntegerLayer(module, _inputs(seen, recipe), _weights(module.weight, recipe))
            errors[name] = float((replaced[name](x) - y).norm() / y.norm())
            replaced[name].saturated = replaced[name].entries = 0
            before = y
        x = y
    floating = sorted(errors, key=errors.get, reverse=True)[: recipe.skip]
    modules = chain.named_children()
    return nn.Sequential(
        OrderedDict((n, replaced[n] if n in replaced and n not in floating else m) for n, m in modules)
    ).eval()


def integer_layer(layer: nn.Conv2d | nn.Linear, x: Tensor, *, per_channel: bool = False) -> IntegerLayer:
    """A layer in 8 bits, ranges from the lowest to the highest value of its weights and of an input `x`.

    `per_channel`: one scale per output channel of the weights.
    """
    recipe = Recipe(per_channel=per_channel)
    return IntegerLayer(layer, _inputs(x, recipe), _weights(layer.weight, recipe))


@torch.no_grad()
def quantize_layers(network: nn.Module, images: Tensor, *, per_channel: bool = False) -> nn.Module:
    """A copy of any network with its convolutions and linear layers in 8 bits, normalisation folded in.

    Parameters
    ----------
    network : nn.Module
        Trained; each convolution and linear layer runs once in a pass.
    images : (B, C, H, W)
        From which the ranges of the inputs are taken.
    per_channel : bool
        As `integer_layer` has it.
    """
    quantized = fold(network)
    layers = {n: m for n, m in quantized.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    with captured(quantized, layers) as seen:
        quantized(images)
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        integer = integer_layer(layer, seen[name], per_channel=per_channel)
        setattr(quantized.get_submodule(parent), own, integer)
    return quantized


def accumulate(network: nn.Module, how: Accumulation) -> nn.Module:
    """Set how every integer layer of a network sums its products, and its counters to zero; returns it."""
    for layer in integer_layers(network):
        layer.accumulation = how
        layer.saturated = layer.entries = 0
    return network


def integer_layers(network: nn.Module) -> list[IntegerLayer]:
    """The integer layers in order."""
    return [module for module in network.modules() if isinstance(module, IntegerLayer)]


def _inputs(x: Tensor, recipe: Recipe) -> AffineQuantizer:
    ends = tuple(map(float, x.aminmax()))
    if recipe.l2_ranges:
        ends = l2_range(Histogram.of(x, bins=BINS), bits=recipe.activation_bits)
    return affine_quantizer(*ends, bits=recipe.activation_bits)


def _weights(weight: Tensor, recipe: Recipe) -> AffineQuantizer:
    rows = weight.detach().flatten(1) if recipe.per_channel else weight.detach().flatten()[None]
    low, high = rows.aminmax(dim=1)
    if recipe.l2_ranges:
        best = [
            l2_range(Histogram.of(row, bins=BINS, symmetric=True), bits=recipe.weight_bits, symmetric=True)
            if row.any()
            else (0.0, 0.0)  # the filter of a channel that died
            for row in rows
        ]
        low, high = torch.tensor(best, dtype=torch.float64).unbind(1)
    options = {"bits": recipe.weight_bits, "signed": True, "symmetric": True}
    if recipe.per_channel:
        return affine_quantizer(low, high, axis=0, **options)
    return affine_quantizer(low[0], high[0], **options)
