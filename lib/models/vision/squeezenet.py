"""SqueezeNet 1.1 (Iandola et al., arXiv:1602.07360; version 1.1 of the authors' repository)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fire(nn.Module):
    """Squeeze by 1×1, then expand by 1×1 and by 3×3 side by side.

    `squeezed` channels inside, ``2 * expanded`` channels out.
    """

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, 2 expanded, H, W)."""
        squeezed = self.squeeze_activation(self.squeeze(images))
        one = self.expand1x1_activation(self.expand1x1(squeezed))
        three = self.expand3x3_activation(self.expand3x3(squeezed))
        return torch.cat([one, three], dim=1)


class SqueezeNet(nn.Module):
    """Version 1.1, with torchvision's parameter names: 1,235,496 parameters for 1000 classes.

    Parameters
    ----------
    num_classes : int
    dropout : float
    """

    def __init__(self, *, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")

        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(inplace=True),
            pool(),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            pool(),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            pool(),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Conv2d(512, num_classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier[1].weight, 0, 0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes), none below 0, of images (B, 3, H, W)."""
        return self.classifier(self.features(images)).flatten(1)
