"""AlexNet: the original with two groups (as Caffe has it) and the later one with a single tower.

`AlexNet` is the network of Krizhevsky, Sutskever and Hinton (NIPS 2012) in the definition of Caffe's model
zoo (``bvlc_alexnet``): 227 × 227 inputs, two groups in the second, fourth and fifth convolution, response
normalisation *before* pooling. `AlexNetOneTower` is the variant of Krizhevsky's "One weird trick"
(arXiv:1404.5997) as torchvision has it, under its parameter names: fewer channels, no groups, no
normalisation.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def check_positive(**values: float) -> None:
    """ValueError in one line if a size is not positive."""
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def fully_connected(inputs: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """The classifier of Caffe's AlexNet and of VGG-S: ``fc6`` to ``fc8``, dropout behind the first two."""
    return nn.Sequential(
        OrderedDict(
            fc6=nn.Linear(inputs, hidden),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(dropout),
            fc7=nn.Linear(hidden, hidden),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(dropout),
            fc8=nn.Linear(hidden, num_classes),
        )
    )


class AlexNet(nn.Module):
    """The two-group network: 60,965,224 parameters, 724 million MACs for one 227 × 227 image.

    Parameters
    ----------
    num_classes : int
    width : float
        Factor on all channels and hidden units, rounded to an even number; 1 is the published network.
    dropout : float
        Behind each hidden fully connected layer, in training.

    Attributes
    ----------
    map : (channels, height, width)
        The feature map that ``fc6`` reads: (256, 6, 6).
    """

    input_shape = (3, 227, 227)

    def __init__(self, *, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, width=width)
        planned = (96, 256, 384, 384, 256, 4096)
        c1, c2, c3, c4, c5, hidden = (2 * max(1, round(width * n / 2)) for n in planned)
        self.map = (c5, 6, 6)
        norm = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, c1, 11, stride=4),
                relu1=nn.ReLU(inplace=True),
                norm1=nn.LocalResponseNorm(**norm),
                pool1=nn.MaxPool2d(3, 2),
                conv2=nn.Conv2d(c1, c2, 5, padding=2, groups=2),
                relu2=nn.ReLU(inplace=True),
                norm2=nn.LocalResponseNorm(**norm),
                pool2=nn.MaxPool2d(3, 2),
                conv3=nn.Conv2d(c2, c3, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(c3, c4, 3, padding=1, groups=2),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(c4, c5, 3, padding=1, groups=2),
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(3, 2),
            )
        )
        self.classifier = fully_connected(c5 * 6 * 6, hidden, num_classes, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 227, 227) to logits (B, num_classes)."""
        return self.classifier(self.features(images).flatten(1))


class AlexNetOneTower(nn.Module):
    """The one-tower network: 61,100,840 parameters; torchvision's state dicts load with ``strict=True``.

    Parameters
    ----------
    num_classes : int
    width : float
        Factor on all channels and hidden units, rounded; 1 is the published network.
    dropout : float
        Before the first two fully connected layers, in training.

    Attributes
    ----------
    map : (channels, height, width)
        The feature map that the first fully connected layer reads: (256, 6, 6).
    """

    input_shape = (3, 224, 224)

    def __init__(self, *, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, width=width)
        planned = (64, 192, 384, 256, 256, 4096)
        c1, c2, c3, c4, c5, hidden = (max(1, round(width * n)) for n in planned)
        self.map = (c5, 6, 6)
        self.features = nn.Sequential(
            nn.Conv2d(3, c1, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(c5 * 6 * 6, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), 224 pixels in training, to logits (B, num_classes)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))
