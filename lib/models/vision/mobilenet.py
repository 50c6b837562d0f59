"""MobileNet v1, v2 and v3-Large, at their published definitions.

Sources: Howard et al., arXiv:1704.04861 (v1); Sandler et al., CVPR 2018, arXiv:1801.04381 (v2); Howard et
al., ICCV 2019, arXiv:1905.02244 (v3). Parameters of v2 and v3 have torchvision's names, so that its weights
load. The quantised variants of PROFIT's authors, which differ in places, are in
`lib.models.vision.mobilenet_authors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor, nn

#: v1: output channels and stride of the thirteen depthwise-separable pairs.
V1_PAIRS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip

#: v2 (Table 2): expansion, output channels, repeats, stride of the first.
V2_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip

#: v3-Large (Table 1): output channels, kernel, expanded channels, squeeze-and-excite, h-swish, stride.
V3_LARGE_BLOCKS = (
    (16, 3, 16, False, False, 1),
    (24, 3, 64, False, False, 2),
    (24, 3, 72, False, False, 1),
    (40, 5, 72, True, False, 2),
    (40, 5, 120, True, False, 1),
    (40, 5, 120, True, False, 1),
    (80, 3, 240, False, True, 2),
    (80, 3, 200, False, True, 1),
    (80, 3, 184, False, True, 1),
    (80, 3, 184, False, True, 1),
    (112, 3, 480, True, True, 1),
    (112, 3, 672, True, True, 1),
    (160, 5, 672, True, True, 2),
    (160, 5, 960, True, True, 1),
    (160, 5, 960, True, True, 1),
)


def divisible(channels: float, divisor: int = 8) -> int:
    """`channels` rounded to a multiple of `divisor`, but never below nine tenths of it (v2's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def reduced_strides(strides: list[int], reduction: int) -> list[int]:
    """Strides whose product is `reduction`: the earliest strides of 2 become 1, as is usual for small images.

    Raises
    ------
    ValueError
        If `reduction` is no power of two that the published strides reach.
    """
    twos = [k for k, stride in enumerate(strides) if stride == 2]
    kept = reduction.bit_length() - 1
    if reduction != 1 << max(kept, 0) or kept > len(twos):
        raise ValueError(f"reduction must be a power of two from 1 to {1 << len(twos)}, got {reduction}")
    dropped = set(twos[: len(twos) - kept])
    return [1 if k in dropped else stride for k, stride in enumerate(strides)]


def check_sizes(width: float, num_classes: int) -> None:
    """ValueError for a width multiplier or a number of classes that no network can have."""
    if not 0 < width <= 10:
        raise ValueError(f"width multiplies the channels and must be in (0, 10], got {width}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


def initialise(network: nn.Module) -> None:
    """torchvision's: convolutions Kaiming normal by fan out, norms 1 and 0, linear layers N(0, 0.01)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: type[nn.Module] | partial = nn.BatchNorm2d,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """Convolution with "same" padding, norm and, if given, an activation."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)]
    layers.append(norm(outputs))
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class MobileNetV1(nn.Module):
    """Depthwise-separable pairs: a 3×3 convolution per channel, then a 1×1 one across them.

    Parameters
    ----------
    num_classes : int
    width : float
        Width multiplier α of all channels, rounded to multiples of 8.
    dropout : float
        Before the classifier.
    reduction : int
        By how much the image shrinks, 32 as published; for small images the earliest strides become 1.
    """

    def __init__(
        self, *, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.0, reduction: int = 32
    ) -> None:
        super().__init__()
        check_sizes(width, num_classes)
        strides = reduced_strides([2, *(stride for _, stride in V1_PAIRS)], reduction)
        channels = divisible(32 * width)
        layers = [conv_norm(3, channels, 3, stride=strides[0], activation=nn.ReLU)]
        for (outputs, _), stride in zip(V1_PAIRS, strides[1:], strict=True):
            outputs = divisible(outputs * width)
            depthwise = conv_norm(channels, channels, 3, stride=stride, groups=channels, activation=nn.ReLU)
            layers.append(nn.Sequential(depthwise, conv_norm(channels, outputs, activation=nn.ReLU)))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    """Block of v2: expand by 1×1, 3×3 per channel, project by 1×1 without activation, add the input."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [conv_norm(inputs, hidden, activation=nn.ReLU6)] if expansion != 1 else []
        layers.append(conv_norm(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6))
        self.conv = nn.Sequential(*layers, *conv_norm(hidden, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return images + self.conv(images) if self.residual else self.conv(images)


def v2_blocks(width: float, strides: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Input channels, output channels, expansion and stride of each inverted residual of v2."""
    channels = divisible(32 * width)
    for (expansion, outputs, repeats, _), stride in zip(V2_STAGES, strides, strict=True):
        outputs = divisible(outputs * width)
        for block in range(repeats):
            yield channels, outputs, expansion, stride if block == 0 else 1
            channels = outputs


class MobileNetV2(nn.Module):
    """Inverted residuals with linear bottlenecks; loads torchvision's ``mobilenet_v2`` weights.

    Parameters
    ----------
    num_classes : int
    width : float
        Of all channels, rounded to multiples of 8; the last layer never gets narrower than 1280.
    last_channels : int, optional
        Instead of that 1280, for small networks.
    dropout : float
    reduction : int
        As in `MobileNetV1`.
    """

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
        layers = [conv_norm(3, divisible(32 * width), 3, stride=strides[0], activation=nn.ReLU6)]
        for inputs, outputs, expansion, stride in v2_blocks(width, strides[1:]):
            layers.append(InvertedResidual(inputs, outputs, expansion=expansion, stride=stride))
        layers.append(conv_norm(outputs, last, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))


class SqueezeExcitation(nn.Module):
    """A factor in [0, 1] per channel, from the channels' means, through a bottleneck of a quarter of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible(channels / 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) times its factors."""
        factors = self.fc2(self.activation(self.fc1(self.avgpool(images))))
        return images * self.scale_activation(factors)


class InvertedResidualV3(nn.Module):
    """Block of v3: as v2's, with ReLU or h-swish and, in some blocks, squeeze-and-excite."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, hidden: int, squeeze: bool, hswish: bool, stride: int
    ) -> None:
        super().__init__()
        make = partial(conv_norm, norm=partial(nn.BatchNorm2d, eps=0.001, momentum=0.01))
        activation = nn.Hardswish if hswish else nn.ReLU
        layers = [make(inputs, hidden, activation=activation)] if hidden != inputs else []
        layers.append(make(hidden, hidden, kernel, stride=stride, groups=hidden, activation=activation))
        if squeeze:
            layers.append(SqueezeExcitation(hidden))
        self.block = nn.Sequential(*layers, make(hidden, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return images + self.block(images) if self.residual else self.block(images)


class MobileNetV3Large(nn.Module):
    """MobileNet-v3-Large; loads torchvision's ``mobilenet_v3_large`` weights.

    Parameters
    ----------
    num_classes : int
    width : float
        Of all channels, rounded to multiples of 8.
    dropout : float
    reduction : int
        As in `MobileNetV1`.
    """

    def __init__(
        self, *, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.2, reduction: int = 32
    ) -> None:
        super().__init__()
        check_sizes(width, num_classes)
        strides = reduced_strides([2, *(stride for *_, stride in V3_LARGE_BLOCKS)], reduction)
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        channels = divisible(16 * width)
        layers = [conv_norm(3, channels, 3, stride=strides[0], norm=norm, activation=nn.Hardswish)]
        for (outputs, kernel, hidden, squeeze, hswish, _), stride in zip(
            V3_LARGE_BLOCKS, strides[1:], strict=True
        ):
            outputs, hidden = divisible(outputs * width), divisible(hidden * width)
            layers.append(
                InvertedResidualV3(
                    channels,
                    outputs,
                    kernel=kernel,
                    hidden=hidden,
                    squeeze=squeeze,
                    hswish=hswish,
                    stride=stride,
                )
            )
            channels = outputs
        layers.append(conv_norm(channels, 6 * channels, norm=norm, activation=nn.Hardswish))
        last = divisible(1280 * width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, last), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(last, num_classes)
        )
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))
