"""Activations that a training step stores: by hand, against a real step, and on known networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib.cost.stored_activations import saved_tensors, stored_by_unit, stored_inputs
from lib.models.vision.alexnet import AlexNetOneTower
from lib.models.vision.densenet import DenseNet
from lib.models.vision.inception import InceptionV3
from lib.models.vision.mobilenet import MobileNetV2
from lib.models.vision.resnet import resnet
from lib.models.vision.squeezenet import SqueezeNet
from lib.models.vision.vgg import VGG

IMAGE = (1, 3, 224, 224)


def on_meta(make, **options) -> nn.Module:
    with torch.device("meta"):
        return make(**options)


class Residual(nn.Module):
    def __init__(self, channels: int = 4, inplace: bool = False):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)


class Concatenate(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return torch.cat([self.wide(x), self.narrow(x)], dim=1)


def test_stored_inputs_of_a_block_by_hand():
    table = stored_inputs(
        nn.Sequential(Residual(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)), (1, 4, 6, 6)
    )
    assert table["layer"].tolist() == ["0.first", "0.second", "1", "3"]
    assert table["elements"].tolist() == [144, 144, 144, 36]
    assert table["is_input"].tolist() == [True, False, False, False]


def test_a_tensor_that_feeds_two_layers_is_stored_once():
    table = stored_inputs(Concatenate(), (1, 4, 5, 5))
    assert table[["layer", "readers"]].to_numpy().tolist() == [["wide", 2]]


@pytest.mark.parametrize(
    ("make", "side", "values", "saved"),
    [
        (AlexNetOneTower, 224, 581_504, 2_293_248),
        (VGG, 224, 15_086_080, 60_211_200),
        (SqueezeNet, 224, 2_750_528, 17_826_208),
        (MobileNetV2, 224, 6_616_672, 77_597_184),
        (InceptionV3, 299, 11_549_504, 91_422_336),
        (lambda: resnet(18), 224, 2_484_224, 19_970_048),
        (lambda: resnet(50), 224, 9_711_104, 83_693_568),
        (lambda: resnet(101), 224, 14_829_056, 124_637_184),
        (lambda: resnet(152), 224, 21_151_232, 175_214_592),
        (DenseNet, 224, 15_618_304, 128_149_504),
        (lambda: DenseNet(depth=201), 224, 24_613_248, 200_754_176),
    ],
)
def test_stored_and_saved_of_known_networks(make, side, values, saved):
    """Values that convolutions, linear layers and max-pooling read, and bytes of maps that torch saves."""
    model = on_meta(make)
    table = stored_inputs(model, (1, 3, side, side))
    assert table["elements"][~table["is_input"]].sum() == values
    assert table["elements"][table["is_input"]].tolist() == [3 * side**2]
    kept = saved_tensors(model, (1, 3, side, side))
    maps = (kept["dtype"] == "float32") & (kept["shape"].map(len) == 4) & ~kept["is_input"]
    assert kept["bytes"][maps].sum() == saved
    if make is InceptionV3:  # positions of max-pooling are 8 bytes each
        assert round(kept["elements"][kept["dtype"] == "int64"].sum() / 1e6, 2) == 0.71


def test_saved_tensors_are_those_of_a_real_step():
    model = nn.Sequential(
        Residual(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    )
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    real: dict[int, torch.Tensor] = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            real[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(2, 4, 6, 6))
    table = saved_tensors(model, (2, 4, 6, 6))
    assert table["bytes"].sum() == sum(tensor.untyped_storage().nbytes() for tensor in real.values())
    assert output.requires_grad


def test_units_partition_what_is_stored():
    model = on_meta(resnet, depth=50)
    blocks = [f"layer{stage + 1}.{k}" for stage, n in enumerate((3, 4, 6, 3)) for k in range(n)]
    units = stored_by_unit(model, ["maxpool", *blocks], IMAGE)
    everything = stored_inputs(model, IMAGE)
    # the last block's output is a checkpoint although no convolution reads it; the head's input is in no unit
    stored = everything["elements"][~everything["is_input"]].sum() + 2048 * 49 - 2048
    assert units["output"].sum() + units["interior"].sum() == stored
    assert units.iloc[0].tolist() == ["maxpool", 200_704, 802_816]
    saved = stored_by_unit(model, ["maxpool", *blocks], IMAGE, kinds=None)
    assert (saved["interior"] > units["interior"]).all()
    assert saved["output"].tolist() == units["output"].tolist()


def test_the_model_is_left_as_it_was():
    model = resnet(18, width=0.125, small_images=True).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for function in (stored_inputs, saved_tensors):
        function(model, (2, 3, 8, 8))
    stored_by_unit(model, ["layer1", "layer4"], (2, 3, 8, 8))
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stored_inputs(Residual()), "either input_shape or inputs"),
        (lambda: stored_by_unit(Residual(), ["third"], (1, 4, 6, 6)), "'third' is no module"),
        (lambda: stored_by_unit(Residual(), [], (1, 4, 6, 6)), "at least one end"),
        (lambda: stored_by_unit(Residual(), ["second", "first"], (1, 4, 6, 6)), "run in the order"),
        (lambda: stored_by_unit(Residual(), ["relu"], (1, 4, 6, 6)), "run in the order"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
