"""MobileNet-v2 and v3-Large as PROFIT's authors quantise them, in the layout of their checkpoints.

After the authors' code (github.com/EunhyeokPark/PROFIT, commit c5e2f62, MIT), for Park & Yoo, PROFIT, ECCV
2020 (arXiv:2008.04693). Every convolution and linear layer has DuQ weights; activations are quantised where
they enter a convolution. What differs from the published networks (`lib.models.vision.mobilenet`):

- v2: in full precision its ReLU6 has no cap (a quantised one starts with a range of at most 6);
- v2: after the last convolution a ReLU, the mean over the image, and only then the quantiser;
- v3: squeeze-and-excite stands before the nonlinearity, and depthwise convolutions behind h-swish pad with
  its minimum, −3/8, in full precision too;
- v3: norms have torch's epsilon of 1e-5 and a momentum of 0.0003.

Skip connections add the block's unquantised input. Names like ``-0`` are the authors': quantisers slot in
without moving the numbers of the layers around them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from lib.models.authors import Source, opened, read_state_dict, require_finite, require_fit
from lib.models.vision.mobilenet import (
    V2_STAGES,
    V3_LARGE_BLOCKS,
    check_sizes,
    divisible,
    reduced_strides,
    v2_blocks,
)
from lib.quantization.duq import HSWISH_MINIMUM, DuQ, DuQConv2d, DuQLinear

#: Endings of the keys of ranges: not numbers in a checkpoint in full precision, whose ranges were never set.
RANGES = (".a", ".c")

V3_MOMENTUM = 0.0003  # 1 − 0.9997, the rate of the authors' moving average of weights


def relu() -> DuQ:
    """ReLU, then an unsigned grid."""
    return DuQ(None, grid="unsigned", activation="relu", as_authors=True)


def relu6() -> DuQ:
    """As `relu`, but the grid's first range is at most 6."""
    return DuQ(None, grid="unsigned", activation="relu6", as_authors=True)


def symmetric() -> DuQ:
    """A grid with both signs, for inputs of a branch that no activation precedes."""
    return DuQ(None, grid="symmetric", as_authors=True)


def hswish(*, activate: bool = True) -> DuQ:
    """h-swish, then the grid that begins at its minimum; or that grid alone."""
    return DuQ(None, grid="hswish", activation="hswish" if activate else None, as_authors=True)


def sequence(*layers: nn.Module, entrance: nn.Module | None = None) -> nn.Sequential:
    """Layers numbered from 0; a quantiser at their entrance is called ``-0`` and moves no number."""
    first = {} if entrance is None else {"-0": entrance}
    return nn.Sequential(OrderedDict(first | {str(k): layer for k, layer in enumerate(layers)}))


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution with DuQ weights and "same" padding, norm and, if given, an activation."""
    conv = DuQConv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([] if activation is None else [activation]))


class AuthorsNetwork(nn.Module):
    """What both networks share: reading the authors' files.

    The files do not say their bit widths; without any, the network computes in full precision.
    """

    last_layer: str

    @classmethod
    def from_authors(
        cls,
        source: Source,
        *,
        weight_bits: int | None = None,
        activation_bits: int | None = None,
        average: bool = False,
    ) -> Self:
        """A network with the weights and ranges of an authors' file, in its precision and evaluation mode.

        Parameters
        ----------
        source
            ``*_best.pth`` (a state dict), ``*.ckpt`` (with ``model`` and ``model_ema``), or what is in one.
        weight_bits, activation_bits : 2..8 or None
            As in the file's name.
        average : bool
            Of a ``.ckpt``: the moving average of the weights instead of the weights.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is no file of tensors; names the first missing, unexpected, misshapen or mistyped keys, or a
            weight that is not finite; or ranges were never set.
        """
        with opened(source) as held:
            state = read_authors(held, average=average)
            classes = max(1, state.get(f"{cls.last_layer}.bias", torch.empty(1)).numel())
            with torch.device("meta"):  # first weights that nobody needs are not drawn
                network = cls(num_classes=classes)
            require_fit(state, network.state_dict(), f"{cls.__name__} checkpoint of PROFIT's authors")
            require_finite({key: value for key, value in state.items() if not key.endswith(RANGES)})
            network.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
            network.set_bits(weights=weight_bits, activations=activation_bits)
            network.check_ranges()
        return network.eval()

    def set_bits(self, *, weights: int | None, activations: int | None) -> Self:
        """Set the width of all weights and of all activations; None for full precision."""
        for module in self.modules():
            if isinstance(module, DuQConv2d | DuQLinear):
                module.bits = weights
            elif isinstance(module, DuQ):
                module.bits = activations
        return self

    def check_ranges(self) -> None:
        """ValueError if a range in use is not a number, as those of a checkpoint in full precision may be."""
        for name, module in self.named_modules():
            if getattr(module, "bits", None) is not None and not bool((module.a + module.c).isfinite()):
                raise ValueError(f"the ranges of {name} were never set: this checkpoint is of another width")


class QuantizedInvertedResidual(nn.Module):
    """Block of v2: the branch's input is quantised, what the skip connection adds is not."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        depthwise = conv_norm(hidden, hidden, 3, stride=stride, groups=hidden, activation=relu6())
        project, norm = conv_norm(hidden, outputs)
        if expansion == 1:
            self.conv = sequence(depthwise, project, norm)
        else:
            expand = conv_norm(inputs, hidden, activation=relu6())
            self.conv = sequence(expand, depthwise, project, norm, entrance=symmetric())
        self.residual = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return images + self.conv(images) if self.residual else self.conv(images)


class QuantizedMobileNetV2(AuthorsNetwork):
    """The authors' MobileNet-v2: 524 keys, of which 314 are torchvision's and 210 are ranges.

    Parameters
    ----------
    num_classes : int
    width : float
        Of all channels, rounded to multiples of 8 (published: 1).
    last_channels : int, optional
        Instead of 1280, for small networks.
    dropout : float
    reduction : int
        By how much the image shrinks (published: 32).
    """

    last_layer = "classifier.1"

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        width: float = 1.0,
        last_channels: int | None = None,
        dropout: float = 0.2,
        reduction: int = 32,
    ) -> None:
        super().__init__()
        check_sizes(width, num_classes)
        strides = reduced_strides([2, *(stride for *_, stride in V2_STAGES)], reduction)
        last = last_channels or divisible(1280 * max(1.0, width))
        layers = [conv_norm(3, divisible(32 * width), 3, stride=strides[0], activation=relu6())]
        for inputs, outputs, expansion, stride in v2_blocks(width, strides[1:]):
            layers.append(QuantizedInvertedResidual(inputs, outputs, expansion=expansion, stride=stride))
        self.features = sequence(*layers)
        self.features.add_module(f"-{len(layers)}", symmetric())
        self.features.add_module(str(len(layers)), conv_norm(outputs, last))
        self.classifier = nn.Sequential(nn.Dropout(dropout), DuQLinear(last, num_classes))
        self.relu6 = relu6()
        for module in self.modules():
            if isinstance(module, DuQConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, DuQLinear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        pooled = self.features(images).relu().mean(dim=(2, 3))
        return self.classifier(self.relu6(pooled))


class QuantizedSqueezeExcitation(nn.Module):
    """A factor in [0, 1] per channel from quantised means; the factors themselves are not quantised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = -(-channels // 32) * 8  # a quarter, rounded up to a multiple of 8
        layers = [DuQLinear(channels, squeezed), relu(), DuQLinear(squeezed, channels), nn.Hardsigmoid()]
        self.fc = sequence(*layers, entrance=symmetric())

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) times its factors."""
        return images * self.fc(images.mean(dim=(2, 3)))[:, :, None, None]


class QuantizedInvertedResidualV3(nn.Module):
    """Block of v3: squeeze-and-excite before the nonlinearity, padding on the h-swish grid."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, hidden: int, squeeze: bool, swish: bool, stride: int
    ) -> None:
        super().__init__()
        expands = hidden != inputs
        activation = hswish if swish else relu
        # without expansion, the first block's, the input is the stem's h-swish
        padding = HSWISH_MINIMUM if swish or not expands else 0.0
        depthwise = DuQConv2d(
            hidden,
            hidden,
            kernel,
            stride,
            (kernel - 1) // 2,
            groups=hidden,
            bias=False,
            padding_value=padding,
        )
        body = [
            depthwise,
            v3_norm(hidden),
            QuantizedSqueezeExcitation(hidden) if squeeze else nn.Identity(),
            activation(),
            DuQConv2d(hidden, outputs, 1, bias=False),
            v3_norm(outputs),
        ]
        if expands:
            body = [DuQConv2d(inputs, hidden, 1, bias=False), v3_norm(hidden), activation(), *body]
        entrance = symmetric() if expands else hswish(activate=False)
        self.conv = sequence(*body, entrance=entrance)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return images + self.conv(images) if self.residual else self.conv(images)


def v3_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the authors' slow momentum."""
    return nn.BatchNorm2d(channels, momentum=V3_MOMENTUM)


class QuantizedMobileNetV3Large(AuthorsNetwork):
    """The authors' MobileNet-v3-Large: 566 keys, 254 of them ranges.

    Parameters as `QuantizedMobileNetV2`, without ``last_channels``.
    """

    last_layer = "classifier.3"

    def __init__(
        self, *, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.2, reduction: int = 32
    ) -> None:
        super().__init__()
        check_sizes(width, num_classes)
        strides = reduced_strides([2, *(stride for *_, stride in V3_LARGE_BLOCKS)], reduction)
        channels = divisible(16 * width)
        stem = DuQConv2d(3, channels, 3, strides[0], 1, bias=False)
        layers: list[nn.Module] = [nn.Sequential(stem, v3_norm(channels), nn.Hardswish())]
        for (outputs, kernel, hidden, squeeze, swish, _), stride in zip(
            V3_LARGE_BLOCKS, strides[1:], strict=True
        ):
            sizes = {"hidden": divisible(hidden * width), "kernel": kernel, "stride": stride}
            outputs = divisible(outputs * width)
            layers.append(
                QuantizedInvertedResidualV3(channels, outputs, squeeze=squeeze, swish=swish, **sizes)
            )
            channels = outputs
        hidden, last = 6 * channels, divisible(1280 * width)
        head = nn.Sequential(DuQConv2d(channels, hidden, 1, bias=False), v3_norm(hidden), nn.Hardswish())
        self.features = sequence(*layers)
        self.features.add_module(f"-{len(layers)}", symmetric())
        self.features.add_module(str(len(layers)), head)
        self.classifier = sequence(
            DuQLinear(hidden, last),
            hswish(),
            nn.Dropout(dropout),
            DuQLinear(last, num_classes),
            entrance=hswish(activate=False),
        )
        for module in self.modules():
            if isinstance(module, DuQConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, DuQLinear):
                nn.init.kaiming_uniform_(module.weight, mode="fan_out", nonlinearity="sigmoid")
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def has_average(held: object) -> bool:
    """Whether a file that holds this has a moving average of the weights."""
    return isinstance(held, Mapping) and held.get("model_ema") is not None


def read_authors(held: object, *, average: bool = False) -> dict[str, Tensor]:
    """The state dict in what an authors' file holds, without ``module.`` before its keys.

    Raises
    ------
    ValueError
        As `lib.models.authors.read_state_dict`; or there is no moving average where one is asked for.
    """
    if average and not has_average(held):
        raise ValueError("there is no moving average (model_ema) in this checkpoint")
    return read_state_dict(held, wrappers=("model_ema" if average else "model",), prefix="module.")
