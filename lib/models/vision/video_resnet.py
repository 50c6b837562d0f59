"""Residual networks for video with channel-separated convolutions.

Tran, Wang, Torresani and Feiszli, "Video Classification with Channel-Separated Convolutional Networks", ICCV
2019 (arXiv 1904.02811): bottlenecks whose 3×3×3 convolution is depthwise, "interaction-reduced" (ir-CSN), or
after one more 1×1×1 convolution, "interaction-preserved" (ip-CSN). Stem and strides as in the authors' code
(VMZ).

Park et al. 2018 characterise a "ResNeXt3D-101" by a few printed figures; `ir_csn` 101 is the public
network that comes nearest. That it is theirs is a hypothesis; `ip_csn` 101 is another reading of the same
cells, which the chapter's ledger lists.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.models.vision.resnet import ResidualBlock

#: Depth to blocks per stage.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class VideoBottleneck(ResidualBlock):
    """1×1×1, depthwise 3×3×3 and 1×1×1 convolutions and a skip connection.

    Parameters
    ----------
    inputs
        Channels of the input.
    channels
        Inside; the output has four times as many.
    stride
        Of the 3×3×3 convolution, in time, height and width alike.
    preserve_interaction
        A 1×1×1 convolution with normalisation before the 3×3×3.
    """

    expansion = 4

    def __init__(self, inputs: int, channels: int, *, stride: int, preserve_interaction: bool) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = nn.Conv3d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.mix = (
            nn.Sequential(nn.Conv3d(channels, channels, 1, bias=False), nn.BatchNorm3d(channels))
            if preserve_interaction
            else nn.Identity()
        )
        self.conv2 = nn.Conv3d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv3 = nn.Conv3d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm3d(outputs)
            )

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut, before the addition."""
        x = self.mix(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class VideoResNet(nn.Module):
    """Clips (B, 3, T, H, W) to logits (B, classes).

    Parameters
    ----------
    blocks
        Number of blocks in each stage; every stage after the first halves time and space.
    preserve_interaction
        See `VideoBottleneck`.
    num_classes
        Outputs; 400 for Kinetics.
    stem_pool
        Whether the stem ends with max-pooling over space.

    Raises
    ------
    ValueError
        For sizes below 1.
    """

    def __init__(
        self,
        *,
        blocks: tuple[int, ...] = (3, 4, 23, 3),
        preserve_interaction: bool = False,
        num_classes: int = 400,
        stem_pool: bool = True,
    ) -> None:
        super().__init__()
        if not blocks or min(*blocks, num_classes) < 1:
            raise ValueError(f"sizes must be positive, got {blocks}, {num_classes}")
        self.stem = nn.Sequential(
            nn.Conv3d(3, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)) if stem_pool else nn.Identity(),
        )
        inputs, stages = 64, []
        for stage, count in enumerate(blocks):
            channels = 64 << stage
            for index in range(count):
                made = VideoBottleneck(
                    inputs,
                    channels,
                    stride=2 if stage > 0 and index == 0 else 1,
                    preserve_interaction=preserve_interaction,
                )
                stages.append(made)
                inputs = channels * made.expansion
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clips: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(clips))), 1))


def ir_csn(depth: int = 101, **options) -> VideoResNet:
    """Interaction-reduced channel-separated network. Options as `VideoResNet`."""
    return VideoResNet(blocks=_blocks(depth), **options)


def ip_csn(depth: int = 101, **options) -> VideoResNet:
    """Interaction-preserved channel-separated network. Options as `VideoResNet`."""
    return VideoResNet(blocks=_blocks(depth), preserve_interaction=True, **options)


def _blocks(depth: int) -> tuple[int, ...]:
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
    return DEPTHS[depth]
