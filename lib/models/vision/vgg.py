"""VGG-16 and its family of plain 3 × 3 networks, and VGG-S.

`VGG` is configuration D of Simonyan and Zisserman (ICLR 2015, arXiv:1409.1556) by default, under
torchvision's parameter names, and any smaller network of the same plan by its parameters. `VGGS` is the
"slow" network of Chatfield et al. (BMVC 2014, arXiv:1405.3531) in the definition of its Caffe release
(``VGG_CNN_S``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from lib.models.vision.alexnet import check_positive, fully_connected

#: Output channels of VGG-16's convolutions; a 2 × 2 pooling ends each stage.
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Stages of 3 × 3 convolutions with ReLU, each ended by 2 × 2 pooling, then fully connected layers.

    The default is VGG-16: 138,357,544 parameters, 15,470 million MACs for one 224 × 224 image;
    torchvision's state dicts load with ``strict=True``.

    Parameters
    ----------
    stages
        Output channels of the convolutions of each stage.
    hidden
        Units of the hidden fully connected layers.
    num_classes, channels : int
        Of the output and of the image.
    input_size : int
        Height and width of the images in pixels; each stage halves it, rounding down.
    width : float
        Factor on all channels and hidden units, rounded; 1 is the network as given.
    dropout : float
        After each hidden fully connected layer, in training.
    batch_norm : bool
        Normalise the output of each convolution; torchvision's ``vgg16_bn`` has the same names then.

    Attributes
    ----------
    map : (channels, height, width)
        The feature map that the first fully connected layer reads: (512, 7, 7) in VGG-16.
    input_shape : (channels, height, width)

    Raises
    ------
    ValueError
        A size is not positive, or stages leave no pixel.
    """

    def __init__(
        self,
        *,
        stages: Sequence[Sequence[int]] = VGG16_STAGES,
        hidden: Sequence[int] = (4096, 4096),
        num_classes: int = 1000,
        channels: int = 3,
        input_size: int = 224,
        width: float = 1.0,
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, channels=channels, width=width)
        side = input_size >> len(stages)
        if side < 1:
            raise ValueError(f"{len(stages)} stages leave nothing of {input_size} pixels")
        self.input_shape = (channels, input_size, input_size)
        layers: list[nn.Module] = []
        inputs = channels
        for stage in stages:
            for planned in stage:
                outputs = max(1, round(width * planned))
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                inputs = outputs
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.map = (inputs, side, side)
        inputs = inputs * side * side
        layers = []
        for planned in hidden:
            outputs = max(1, round(width * planned))
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            inputs = outputs
        self.classifier = nn.Sequential(*layers, nn.Linear(inputs, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, input_size, input_size) to logits (B, num_classes)."""
        return self.classifier(self.features(images).flatten(1))


class VGGS(nn.Module):
    """VGG-S: 102,908,520 parameters, 2,638 million MACs for one 224 × 224 image.

    Convolutions of 7, 5 and 3 pixels; pooling rounds its output size up, as Caffe does; response
    normalisation after the first convolution only.

    Parameters
    ----------
    num_classes : int
    width : float
        Factor on all channels and hidden units, rounded.
    dropout : float
        After the two hidden fully connected layers, in training.

    Attributes
    ----------
    map : (channels, height, width)
        The feature map that ``fc6`` reads: (512, 6, 6).
    """

    input_shape = (3, 224, 224)

    def __init__(self, *, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, width=width)
        c1, c2, c3, hidden = (max(1, round(width * n)) for n in (96, 256, 512, 4096))
        self.map = (c3, 6, 6)
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, c1, 7, stride=2),
                relu1=nn.ReLU(inplace=True),
                norm1=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
                pool1=nn.MaxPool2d(3, 3, ceil_mode=True),
                conv2=nn.Conv2d(c1, c2, 5),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(2, 2, ceil_mode=True),
                conv3=nn.Conv2d(c2, c3, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(c3, c3, 3, padding=1),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(c3, c3, 3, padding=1),
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(3, 3, ceil_mode=True),
            )
        )
        self.classifier = fully_connected(c3 * 6 * 6, hidden, num_classes, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 224, 224) to logits (B, num_classes)."""
        return self.classifier(self.features(images).flatten(1))
