"""A plain convolutional classifier: a chain of layers, for experiments that take one apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def plain_cnn(
    channels: Sequence[int] = (16, 32, 64), *, in_channels: int = 1, size: int = 28, classes: int = 10
) -> nn.Sequential:
    """Stages of 3×3 convolution, batch normalisation, ReLU and 2×2 max-pooling, then one linear layer.

    Parameters
    ----------
    channels
        Output channels of each stage.
    in_channels, size
        Of the square images, (B, in_channels, size, size).
    classes
        Logits.

    Raises
    ------
    ValueError
        No stage, or more halvings than the images have pixels for.
    """
    if not channels or size >> len(channels) < 1:
        raise ValueError(f"from 1 to {size.bit_length() - 1} stages for {size} pixels, got {len(channels)}")
    layers: list[nn.Module] = []
    for wide in channels:
        layers += [nn.Conv2d(in_channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        in_channels, size = wide, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(in_channels * size**2, classes))
