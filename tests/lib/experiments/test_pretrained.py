"""Networks trained on ImageNet are whole, and take what they were trained on."""

import pytest
import torch

from lib.experiments.pretrained import SOURCES, load_pretrained


@pytest.mark.parametrize(
    ("name", "parameters", "outputs"),
    [
        ("AlexNet", 2_469_696, (256, 6, 6)),
        ("VGG-16", 14_714_688, (512, 7, 7)),
        ("SqueezeNet", 1_235_496, (1000,)),
        ("MobileNet-v2", 3_504_872, (1000,)),
    ],
)
def test_each_is_whole(name, parameters, outputs):
    network, prepare = load_pretrained(name, "data")
    assert sum(p.numel() for p in network.parameters()) == parameters
    with torch.no_grad():
        assert network(torch.zeros(1, 3, prepare.crop, prepare.crop)).shape == (1, *outputs)
    assert not any(module.training for module in network.modules())


def test_others_are_refused():
    with pytest.raises(ValueError, match="name must be one of AlexNet, .*, got 'ResNet'"):
        load_pretrained("ResNet", "data")
    assert list(SOURCES) == ["AlexNet", "VGG-16", "SqueezeNet", "MobileNet-v2"]
