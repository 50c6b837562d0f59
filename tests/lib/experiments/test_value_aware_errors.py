"""Errors without training, on networks small enough to know the answer."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from lib.data.dataset import DataUnavailable
from lib.data.preprocessing import IMAGENET
from lib.experiments import value_aware_errors
from lib.experiments.value_aware_errors import (
    check_inference,
    crops,
    idea_figure,
    inference_errors,
    inference_figure,
    input_errors,
    layer_inputs,
    logit_errors,
    sqnr_figure,
)
from lib.metrics.signal import sqnr
from lib.models.vision.resnet import BasicBlock, ResNet
from lib.quantization.largest import split
from lib.quantization.value_aware import fake_quantize
from lib.training.loop import seeded


def network() -> ResNet:
    seeded(0)
    return ResNet(block=BasicBlock, blocks=(1, 1), num_classes=10, width=0.25, small_images=True)


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


@pytest.mark.parametrize(("bits", "ratios"), [([8], [0.0, 0.001, 0.01]), ([4], [0.0, 0.02, 0.05]), ([4], [])])
def test_what_is_judged_must_be_measured(bits, ratios):
    check_inference([4, 8], [0.0, 0.001, 0.01, 0.05])
    with pytest.raises(ValueError, match="must have 4, and inference_ratios 0, 0.001 and 0.01"):
        check_inference(bits, ratios)


def test_inputs_of_all_convolutions_but_the_first():
    net, images = network().eval(), torch.randn(2, 3, 8, 8)
    found = layer_inputs(net, images)
    assert next(iter(found)) == "layer1.0.conv1" and len(found) == 5
    torch.testing.assert_close(found["layer1.0.conv1"], net.relu(net.bn1(net.conv1(images))))
    table = input_errors(net, images, (4,), (0, 0.01))
    one = layer_inputs(net, images[:1]).values()
    expected = np.mean([sqnr(x, fake_quantize(x, 4, 0.01, grid="unsigned")) for x in one])
    got = table[(table["image"] == 0) & (table["ratio"] == 0.01)]["SQNR"].iloc[0]
    assert got == pytest.approx(expected)


def test_every_module_gets_its_mode_back():
    net = network()
    net.layer1.eval()  # some of each
    before, images = modes(net), torch.randn(2, 3, 8, 8)
    layer_inputs(net, images)
    assert modes(net) == before
    inference_errors(net, {"a": images}, (4,), (0.0,))
    assert modes(net) == before and len(set(before)) == 2
    with pytest.raises(RuntimeError):
        layer_inputs(net, torch.randn(2, 5, 8, 8))
    assert modes(net) == before
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_inputs_are_those_of_evaluation_mode():
    """The twin in training mode normalises by the batch: other inputs."""
    net, images = network(), torch.randn(2, 3, 8, 8)
    found = layer_inputs(net, images)["layer1.0.conv1"]
    torch.testing.assert_close(found, layer_inputs(net.eval(), images)["layer1.0.conv1"])
    net.train()
    assert not torch.allclose(found, net.relu(net.bn1(net.conv1(images))))


def test_inference_with_everything_kept_is_full_precision():
    net = network().eval()
    images = {"a": torch.randn(3, 3, 16, 16), "b": torch.randn(2, 3, 16, 16)}
    table = inference_errors(net, images, (4, 8), (0.0, 0.05, 1.0))
    assert len(table) == 2 * 3 * 2
    table = table.set_index(["bits", "group", "ratio"])
    assert (table.xs(1.0, level="ratio")["error"] < 1e-2).all()  # but for rounding to 16 bits
    assert (table.xs(1.0, level="ratio")["agreement"] == 100).all()
    few, none = (table.loc[4].xs(ratio, level="ratio")["error"] for ratio in (0.05, 0.0))
    assert (few < none).all()
    wide = table.loc[8].xs(0.0, level="ratio")["error"]
    assert (wide < none).all()


def results() -> pd.DataFrame:
    rows = [
        (group, bits, ratio, 90.0, bits + 1000 * ratio + 10 * k)
        for bits in (4, 8)
        for ratio in (0.0, 0.001)
        for k, group in enumerate("abc")
    ]
    table = pd.DataFrame(rows, columns=["group", "bits", "ratio", "agreement", "error"])
    return pd.concat([table.assign(network="one"), table.assign(network="two", error=table["error"] + 100)])


def test_the_numbers_of_the_rule_are_those_of_its_bits_by_photograph():
    found = logit_errors(results(), bits=4, ratios=(0.001, 0.0))
    assert list(found) == ["logit error, one", "logit error, two"]
    assert found["logit error, one"] == {"(4, 0.1 %)": [5, 15, 25], "(4, 0 %)": [4, 14, 24]}
    assert found["logit error, two"]["(4, 0 %)"] == [104, 114, 124]


def test_crops_are_a_function_of_the_seed():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    first, again, other = (crops(image, 2, IMAGENET, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (2, 3, 224, 224)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_pretrained_networks_take_what_their_preprocessing_makes():
    try:
        found = value_aware_errors.pretrained("data")
    except DataUnavailable as error:
        pytest.skip(str(error))
    sizes = {name: prepare.crop for name, (_, prepare) in found.items()}
    assert sizes == {"MobileNet-v2": 224, "SqueezeNet": 227}
    weights = {name: sum(p.numel() for p in network.parameters()) for name, (network, _) in found.items()}
    assert weights == {"MobileNet-v2": 3_504_872, "SqueezeNet": 1_235_496}


# --- figures -----------------------------------------------------------------------------------------------


def test_the_idea_figure_draws_levels_up_to_the_largest_small_value():
    x = torch.empty(5000).exponential_(generator=torch.Generator().manual_seed(0))
    levels, noise = idea_figure(x).axes
    tops = [line.get_xdata()[-1] for line in levels.lines]
    assert tops == pytest.approx([split(x, 0.0).top, split(x, 0.02).top])
    assert [line.get_label() for line in noise.lines] == ["2 bits", "3 bits", "4 bits"]
    expected = sqnr(x, fake_quantize(x, 3, 0.02, grid="unsigned"))
    assert noise.lines[1].get_ydata()[5] == pytest.approx(expected)


def test_the_band_reaches_from_the_lowest_to_the_highest_photograph():
    rows = [(image, 3, ratio, 10 * ratio + image) for image in range(3) for ratio in (0.0, 0.1)]
    axis = sqnr_figure(pd.DataFrame(rows, columns=["image", "bits", "ratio", "SQNR"])).axes[0]
    assert axis.lines[0].get_ydata().tolist() == [1, 2]
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0, 3)


def test_the_inference_figure_draws_the_means_over_photographs():
    left, right = inference_figure(results()).axes
    labels = ["one, 4 bits", "one, 8 bits", "two, 4 bits", "two, 8 bits"]
    assert [line.get_label() for line in right.lines] == labels
    assert right.lines[0].get_ydata().tolist() == pytest.approx([14, 15])
    assert left.lines[0].get_xdata().tolist() == pytest.approx([0, 0.1])  # percent
