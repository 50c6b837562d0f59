"""Networks trained on ImageNet, from installed packages: what several chapters measure on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lib.data import preprocessing, weights
from lib.data.dataset import DataSet
from lib.data.preprocessing import Preprocessing
from lib.models.vision.alexnet import AlexNetOneTower
from lib.models.vision.mobilenet import MobileNetV2
from lib.models.vision.squeezenet import SqueezeNet
from lib.models.vision.vgg import VGG

#: In the order of their publication. Of the first two only the convolutions are at hand.
SOURCES: dict[str, DataSet] = {
    "AlexNet": weights.ALEXNET,
    "VGG-16": weights.VGG16,
    "SqueezeNet": weights.SQUEEZENET,
    "MobileNet-v2": weights.MOBILENET_V2,
}
_CLASSIFIERS = {"SqueezeNet": SqueezeNet, "MobileNet-v2": MobileNetV2}
_CONVOLUTIONS = {"AlexNet": AlexNetOneTower, "VGG-16": VGG}


class Pretrained(NamedTuple):
    """A network trained on ImageNet, in evaluation mode, and what its images go through."""

    network: nn.Module
    preprocessing: Preprocessing


def load_pretrained(name: str, data_dir: str | Path) -> Pretrained:
    """One of `SOURCES`: a classifier of 1000 classes, or the convolutional part (``features``) of one.

    ValueError for another name.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}")
    state = SOURCES[name].load(data_dir)
    with torch.device("meta"):
        if name in _CLASSIFIERS:
            network = _CLASSIFIERS[name]()
        else:
            network = _CONVOLUTIONS[name]().features
            state = {key.removeprefix("features."): value for key, value in state.items()}
    network.load_state_dict(state, assign=True)
    prepare = preprocessing.SQUEEZENET if name == "SqueezeNet" else preprocessing.IMAGENET
    return Pretrained(network.eval(), prepare)
