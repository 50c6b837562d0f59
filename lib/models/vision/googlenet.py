"""GoogLeNet (Szegedy et al., CVPR 2015, arXiv:1409.4842) in the definition of Caffe's model zoo.

It differs from torchvision's in three ways: no batch normalisation, biases everywhere, and a real 5 × 5
convolution in the third branch of each inception module.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from lib.models.vision.alexnet import check_positive

#: Channels of each module: 1×1; 3×3 reduce, 3×3; 5×5 reduce, 5×5; 1×1 after pooling (the paper's table 1).
INCEPTIONS = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}


def convolution(inputs: int, outputs: int, size: int, **options: int) -> nn.Sequential:
    """Convolution and ReLU, the layer named ``conv``."""
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(inputs, outputs, size, **options), relu=nn.ReLU(inplace=True))
    )


class Inception(nn.Module):
    """Four branches side by side: 1×1, 3×3, 5×5 and pooling, each with a 1×1 convolution."""

    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int):
        super().__init__()
        self.branch1 = convolution(inputs, one, 1)
        self.branch3 = nn.Sequential(
            OrderedDict(
                reduce=convolution(inputs, reduce3, 1), conv=convolution(reduce3, three, 3, padding=1)
            )
        )
        self.branch5 = nn.Sequential(
            OrderedDict(reduce=convolution(inputs, reduce5, 1), conv=convolution(reduce5, five, 5, padding=2))
        )
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), convolution(inputs, pooled, 1))
        self.out_channels = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, out_channels, H, W)."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


class Auxiliary(nn.Sequential):
    """A classifier on the way, used in training only: (B, inputs, 14, 14) to logits (B, num_classes)."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__(
            nn.AvgPool2d(5, 3, ceil_mode=True),
            convolution(inputs, 128, 1),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(0.7),
            nn.Linear(1024, num_classes),
        )


class GoogLeNet(nn.Module):
    """GoogLeNet: 6,998,552 parameters, 1,583 million MACs for one 224 × 224 image, without auxiliary heads.

    Parameters
    ----------
    num_classes : int
    width : float
        Factor on all channels, rounded; 1 is the published network.
    dropout : float
        Before the classifier, in training.
    auxiliary : bool
        Build the two auxiliary classifiers; in training the output is then a list of three logits, the main
        ones first. They are not part of the network that is deployed, nor of the paper's counts.
    """

    input_shape = (3, 224, 224)

    def __init__(
        self, *, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.4, auxiliary: bool = False
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, width=width)

        def scaled(channels: int) -> int:
            return max(1, round(width * channels))

        norm = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}
        self.stem = nn.Sequential(
            OrderedDict(
                conv1=convolution(3, scaled(64), 7, stride=2, padding=3),
                pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
                norm1=nn.LocalResponseNorm(**norm),
                conv2_reduce=convolution(scaled(64), scaled(64), 1),
                conv2=convolution(scaled(64), scaled(192), 3, padding=1),
                norm2=nn.LocalResponseNorm(**norm),
                pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
            )
        )
        inputs = scaled(192)
        self.inceptions = nn.ModuleDict()
        heads = {}
        for name, channels in INCEPTIONS.items():
            self.inceptions[name] = Inception(inputs, *map(scaled, channels))
            inputs = self.inceptions[name].out_channels
            if auxiliary and name in ("inception_4a", "inception_4d"):
                heads[name] = Auxiliary(inputs, num_classes)
        self.auxiliary = nn.ModuleDict(heads)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images (B, 3, 224, 224) to logits (B, num_classes), with auxiliary heads in training a list."""
        x = self.stem(images)
        extra = []
        for name, module in self.inceptions.items():
            x = module(x)
            if self.training and name in self.auxiliary:
                extra.append(self.auxiliary[name](x))
            if name in ("inception_3b", "inception_4e"):
                x = self.pool(x)
        logits = self.classifier(self.dropout(x.mean((2, 3))))
        return [logits, *extra] if extra else logits
