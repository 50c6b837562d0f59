"""Inception-v3 (Szegedy et al., CVPR 2016, arXiv:1512.00567), with torchvision's parameter names.

Each block is a few chains of convolutions side by side; `Mixed` runs them and concatenates their outputs. The
auxiliary classifier, which serves training only, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Kernel = int | tuple[int, int]


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Kernel, *, stride: int = 1, padding: Kernel = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H', W')."""
        return self.relu(self.bn(self.conv(images)))


def same(inputs: int, outputs: int, kernel: Kernel) -> ConvNorm:
    """A convolution that keeps height and width."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return ConvNorm(inputs, outputs, kernel, padding=(height // 2, width // 2))


class Mixed(nn.Module):
    """Chains of layers side by side, their outputs concatenated in the order given.

    Parameters
    ----------
    layers : dict from name to module
        All convolutions of the block, under torchvision's names.
    chains : sequence of tuples of str
        Each chain's layers in order; "pool" is the block's pooling. A tuple inside a chain is a fork: its
        layers all see what came before, and their outputs are concatenated (block E).
    pool : module
    """

    def __init__(
        self,
        layers: dict[str, ConvNorm],
        chains: Sequence[tuple[str | tuple[str, ...], ...]],
        pool: nn.Module,
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.pool = pool
        self.chains = tuple(chains)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        outputs = []
        for chain in self.chains:
            value = images
            for step in chain:
                if isinstance(step, tuple):
                    value = torch.cat([self.get_submodule(name)(value) for name in step], dim=1)
                else:
                    value = self.get_submodule(step)(value)
            outputs.append(value)
        return torch.cat(outputs, dim=1)


def mean_pool() -> nn.AvgPool2d:
    """3×3 mean, same size."""
    return nn.AvgPool2d(3, stride=1, padding=1)


def block_a(inputs: int, pooled: int) -> Mixed:
    """35×35: 224 + `pooled` channels out."""
    layers = {
        "branch1x1": same(inputs, 64, 1),
        "branch5x5_1": same(inputs, 48, 1),
        "branch5x5_2": same(48, 64, 5),
        "branch3x3dbl_1": same(inputs, 64, 1),
        "branch3x3dbl_2": same(64, 96, 3),
        "branch3x3dbl_3": same(96, 96, 3),
        "branch_pool": same(inputs, pooled, 1),
    }
    double = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
    chains = [("branch1x1",), ("branch5x5_1", "branch5x5_2"), double, ("pool", "branch_pool")]
    return Mixed(layers, chains, mean_pool())


def block_b(inputs: int) -> Mixed:
    """35×35 to 17×17: 480 channels and the input's."""
    layers = {
        "branch3x3": ConvNorm(inputs, 384, 3, stride=2),
        "branch3x3dbl_1": same(inputs, 64, 1),
        "branch3x3dbl_2": same(64, 96, 3),
        "branch3x3dbl_3": ConvNorm(96, 96, 3, stride=2),
    }
    double = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
    return Mixed(layers, [("branch3x3",), double, ("pool",)], nn.MaxPool2d(3, 2))


def block_c(inputs: int, hidden: int) -> Mixed:
    """17×17, 7×7 convolutions as pairs of 1×7 and 7×1: 768 channels out."""
    across, down = (1, 7), (7, 1)
    layers = {
        "branch1x1": same(inputs, 192, 1),
        "branch7x7_1": same(inputs, hidden, 1),
        "branch7x7_2": same(hidden, hidden, across),
        "branch7x7_3": same(hidden, 192, down),
        "branch7x7dbl_1": same(inputs, hidden, 1),
        "branch7x7dbl_2": same(hidden, hidden, down),
        "branch7x7dbl_3": same(hidden, hidden, across),
        "branch7x7dbl_4": same(hidden, hidden, down),
        "branch7x7dbl_5": same(hidden, 192, across),
        "branch_pool": same(inputs, 192, 1),
    }
    single = tuple(f"branch7x7_{k}" for k in (1, 2, 3))
    double = tuple(f"branch7x7dbl_{k}" for k in (1, 2, 3, 4, 5))
    return Mixed(layers, [("branch1x1",), single, double, ("pool", "branch_pool")], mean_pool())


def block_d(inputs: int) -> Mixed:
    """17×17 to 8×8: 512 channels and the input's."""
    layers = {
        "branch3x3_1": same(inputs, 192, 1),
        "branch3x3_2": ConvNorm(192, 320, 3, stride=2),
        "branch7x7x3_1": same(inputs, 192, 1),
        "branch7x7x3_2": same(192, 192, (1, 7)),
        "branch7x7x3_3": same(192, 192, (7, 1)),
        "branch7x7x3_4": ConvNorm(192, 192, 3, stride=2),
    }
    seven = tuple(f"branch7x7x3_{k}" for k in (1, 2, 3, 4))
    return Mixed(layers, [("branch3x3_1", "branch3x3_2"), seven, ("pool",)], nn.MaxPool2d(3, 2))


def block_e(inputs: int) -> Mixed:
    """8×8, with forks: 2048 channels out."""
    layers = {
        "branch1x1": same(inputs, 320, 1),
        "branch3x3_1": same(inputs, 384, 1),
        "branch3x3_2a": same(384, 384, (1, 3)),
        "branch3x3_2b": same(384, 384, (3, 1)),
        "branch3x3dbl_1": same(inputs, 448, 1),
        "branch3x3dbl_2": same(448, 384, 3),
        "branch3x3dbl_3a": same(384, 384, (1, 3)),
        "branch3x3dbl_3b": same(384, 384, (3, 1)),
        "branch_pool": same(inputs, 192, 1),
    }
    chains = [
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
        ("pool", "branch_pool"),
    ]
    return Mixed(layers, chains, mean_pool())


class InceptionV3(nn.Module):
    """Inception-v3 for images of 299 pixels: 23,834,568 parameters for 1000 classes.

    Parameters
    ----------
    num_classes : int
    dropout : float

    Raises
    ------
    ValueError
        No class; images below 75 pixels.
    """

    def __init__(self, *, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = same(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b, self.Mixed_6c = block_c(768, 128), block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = block_c(768, 160), block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b, self.Mixed_7c = block_e(1280), block_e(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, 0, 0.1, -2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W), at least 75 pixels high and wide."""
        if min(images.shape[-2:]) < 75:
            raise ValueError(f"images must be at least 75 × 75 pixels, got {tuple(images.shape[-2:])}")
        for name, layer in self.named_children():
            if name not in ("dropout", "fc"):
                images = layer(images)
        return self.fc(self.dropout(images.flatten(1)))
