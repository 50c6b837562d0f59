"""ResNet and ResNeXt for images, with the key names of torchvision's weights.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), Table 1; Xie et al.,
"Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017 (arXiv 1611.05431), Table 1.

Two definitions of the bottleneck are in use. The first has stride 2 in its first 1×1 convolution (the paper,
Caffe models); most later code, torchvision's "v1.5" among it, has it in the 3×3. ``stride_in_1x1`` chooses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """What residual blocks share: relu(branch(x) + shortcut(x)); `downsample` is the projection, or None."""

    relu: nn.Module
    downsample: nn.Module | None

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, before the addition."""
        raise NotImplementedError

    def shortcut(self, x: Tensor) -> Tensor:
        """The input itself, or its projection where the shape changes."""
        return x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions and a skip connection: relu(branch(x) + shortcut(x)).

    Parameters
    ----------
    inputs
        Channels of the input.
    channels
        Channels inside; the output has ``channels · expansion``.
    stride
        Of the block.
    groups, width, stride_in_1x1
        Only of the bottleneck; refused here.
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        width: int | None = None,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        if groups != 1 or width not in (None, channels) or stride_in_1x1:
            raise ValueError("a basic block has no groups, no inner width and no 1×1 convolution")
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample = _projection(inputs, channels, stride)

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, before the addition."""
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(ResidualBlock):
    """1×1, 3×3 (in groups) and 1×1 convolutions and a skip connection: relu(branch(x) + shortcut(x)).

    Parameters
    ----------
    inputs
        Channels of the input.
    channels
        The output has ``channels · expansion``.
    stride
        Of the block.
    groups
        Of the 3×3 convolution.
    width
        Channels of the 3×3 convolution; ``None``: ``channels``.
    stride_in_1x1
        Stride in the first 1×1 convolution instead of the 3×3.
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        width: int | None = None,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        width = channels if width is None else width
        outputs = channels * self.expansion
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=second, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _projection(inputs, outputs, stride)

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, before the addition."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(nn.Module):
    """A residual network: images (B, C, H, W) to logits (B, classes).

    State dicts have torchvision's keys, so its files load with ``strict=True`` where the sizes agree.
    Convolutions start from He's normal distribution (fan out), as torchvision's.

    Parameters
    ----------
    block
        `BasicBlock` or `Bottleneck`.
    blocks
        Number of blocks in each stage; channels double and resolution halves from stage to stage.
    num_classes, in_channels
        Sizes of output and input.
    groups, width_per_group
        ResNeXt's cardinality and bottleneck width: the 3×3 of the first stage has ``groups ·
        width_per_group`` channels.
    width
        Factor on all channels (1/4: a network of about 1/16 of the weights). With fewer than 8 channels
        (basic blocks narrower than 1/8) the projections meet a fault of PyTorch 2.13 on CPUs: the backward
        pass of a 1×1 convolution of stride 2 writes out of bounds where its input is in channels-last order.
    stride_in_1x1
        The paper's bottleneck rather than torchvision's.
    small_images
        A stem for images of about 32×32: 3×3 convolution of stride 1, no pooling.

    Raises
    ------
    ValueError
        If channels do not divide into groups, a size is not positive, or basic blocks get options of the
        bottleneck.
    """

    def __init__(
        self,
        *,
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        num_classes: int = 1000,
        in_channels: int = 3,
        groups: int = 1,
        width_per_group: int = 64,
        width: float = 1.0,
        stride_in_1x1: bool = False,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        base = round(64 * width)
        if not blocks or min(base, *blocks, num_classes, in_channels, groups, width_per_group) < 1:
            raise ValueError(
                "blocks, classes, channels, groups and widths must be positive, got "
                f"{blocks}, {num_classes}, {in_channels}, {groups}, {width_per_group}, {width}"
            )
        inner = round(groups * width_per_group * width)
        if inner % groups:
            raise ValueError(f"{inner} channels do not divide into {groups} groups")
        self.conv1 = (
            nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
            if small_images
            else nn.Conv2d(in_channels, base, 7, stride=2, padding=3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        inputs = base
        for stage, count in enumerate(blocks):
            channels = base << stage
            options = {"groups": groups, "width": inner << stage, "stride_in_1x1": stride_in_1x1}
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(inputs, channels, stride=stride, **options))
                inputs = channels * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


#: Depth to block and blocks per stage (He et al., Table 1).
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def resnet(depth: int = 50, **options) -> ResNet:
    """A ResNet of the paper by its depth: 18, 34, 50, 101 or 152. Options as `ResNet`.

    Raises
    ------
    ValueError
        For another depth.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
    block, blocks = DEPTHS[depth]
    return ResNet(block=block, blocks=blocks, **options)


def resnext(depth: int = 101, groups: int = 32, width_per_group: int = 4, **options) -> ResNet:
    """A ResNeXt, "101-32×4d" by default; depth 50, 101 or 152. Options as `ResNet`."""
    return resnet(depth, groups=groups, width_per_group=width_per_group, **options)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
