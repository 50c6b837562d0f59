"""From a photograph to the tensor that a network trained on ImageNet expects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's red, green, blue in [0, 1], as every torchvision model uses
STD = (0.229, 0.224, 0.225)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Shorter side to `resize` pixels, square of `crop` pixels, then ``(value - mean) / std`` per channel.

    Attributes
    ----------
    resize, crop : int
        In pixels.
    mean, std : tuple of three floats
        Of red, green, blue in [0, 1].
    interpolation : {"bilinear", "bicubic"}
        Of Pillow, which averages over the source pixels when it shrinks.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must be from 1 to resize={self.resize} pixels, got {self.crop}")
        if self.interpolation not in FILTERS:
            raise ValueError(f"interpolation must be one of {', '.join(FILTERS)}, got {self.interpolation!r}")

    def test(self, image: Image.Image) -> Tensor:
        """The centre of the image: (3, crop, crop), float32."""
        image = image.convert("RGB")
        width, height = image.size
        # torchvision's Resize: the longer side is truncated, not rounded
        short = min(width, height)
        size = (self.resize * width // short, self.resize * height // short)
        image = image.resize(size, FILTERS[self.interpolation])
        left, top = round((size[0] - self.crop) / 2), round((size[1] - self.crop) / 2)
        return self.normalised(image.crop((left, top, left + self.crop, top + self.crop)))

    def train(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        """A random part of the image at a random aspect ratio, flipped half the time: (3, crop, crop).

        The part has 8 to 100 % of the area and sides in a ratio of 3/4 to 4/3, drawn as torchvision's
        RandomResizedCrop does (ten attempts, then the largest centre that fits).
        """
        image = image.convert("RGB")
        box = random_box(*image.size, random)
        image = image.resize((self.crop, self.crop), FILTERS[self.interpolation], box=box)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.normalised(image)

    def normalised(self, image: Image.Image) -> Tensor:
        """Channels first, in [0, 1], minus the mean, over the standard deviation."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random part of an image of `width` by `height` pixels."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(random.integers(0, room + 1)) for room in (width - w, height - h))
            return left, top, left + w, top + h
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


#: torchvision's networks: 256, 224, ImageNet's mean and standard deviation.
IMAGENET = Preprocessing()

#: `lib.data.weights.SQUEEZENET`: only a mean is subtracted, in units of 1/255; 227 pixels.
SQUEEZENET = Preprocessing(
    resize=256,
    crop=227,
    mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
)
