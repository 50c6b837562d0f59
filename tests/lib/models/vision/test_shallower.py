"""Networks made shallower: which blocks are left, and that they still compute and convert."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib.models.vision.mobilenet import MobileNetV2
from lib.models.vision.shallower import shallower
from lib.quantization.convert import quantize, quantized_layers
from lib.quantization.duq import DuQ


@pytest.mark.parametrize(("repeats", "blocks"), [(1, 7), (2, 12), (3, 16), (4, 17)])
def test_shallower_mobilenets(repeats, blocks):
    model = shallower(MobileNetV2(num_classes=10, reduction=8), repeats)
    assert len(model.features) == blocks + 2  # the stem and the last convolution
    assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    layers = 3 * blocks - 1 + 2 + 1  # the first block has two convolutions
    sample_ = torch.rand(2, 3, 32, 32)
    converted = quantize(model, sample_, weights=lambda layer: DuQ(3, grid="weight"))
    assert len(list(quantized_layers(converted))) == layers


def test_what_cannot_be_made_shallower_is_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        shallower(MobileNetV2(num_classes=10), 0)
    plain = nn.Module()
    plain.features = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="residual blocks"):
        shallower(plain, 1)
