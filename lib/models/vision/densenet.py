"""DenseNet-121 and -201 (Huang et al., CVPR 2017, arXiv:1608.06993), with torchvision's parameter names."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

#: Layers of the four dense blocks, by the network's depth.
BLOCKS = {121: (6, 12, 24, 16), 201: (6, 12, 48, 32)}


class DenseLayer(nn.Sequential):
    """norm, ReLU, 1×1 to four growth rates, norm, ReLU, 3×3 to one growth rate."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__(
            OrderedDict(
                norm1=nn.BatchNorm2d(inputs),
                relu1=nn.ReLU(inplace=True),
                conv1=nn.Conv2d(inputs, 4 * growth, 1, bias=False),
                norm2=nn.BatchNorm2d(4 * growth),
                relu2=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )
        )


class DenseBlock(nn.Module):
    """Each layer sees the concatenation of the block's input and all layers before it."""

    def __init__(self, layers: int, inputs: int, growth: int) -> None:
        super().__init__()
        for k in range(layers):
            self.add_module(f"denselayer{k + 1}", DenseLayer(inputs + k * growth, growth))

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, inputs + layers · growth, H, W)."""
        for layer in self.children():
            images = torch.cat([images, layer(images)], dim=1)
        return images


class DenseNet(nn.Module):
    """DenseNet with growth rate 32, as published for ImageNet.

    Parameters
    ----------
    depth : {121, 201}
    num_classes : int
    growth : int
        Channels that each layer adds.

    Raises
    ------
    ValueError
        Another depth.
    """

    def __init__(self, *, depth: int = 121, num_classes: int = 1000, growth: int = 32) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth}")
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, 2, padding=1),
        )
        for k, count in enumerate(BLOCKS[depth], start=1):
            layers[f"denseblock{k}"] = DenseBlock(count, channels, growth)
            channels += count * growth
            if k < len(BLOCKS[depth]):
                layers[f"transition{k}"] = nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm2d(channels),
                        relu=nn.ReLU(inplace=True),
                        conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
                        pool=nn.AvgPool2d(2, 2),
                    )
                )
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        return self.classifier(self.relu(self.features(images)).mean(dim=(2, 3)))
