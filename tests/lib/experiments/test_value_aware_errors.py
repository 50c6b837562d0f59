"""Errors without training, on networks small enough to know the answer."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from lib.data.preprocessing import IMAGENET
from lib.experiments import value_aware_errors
from lib.experiments.value_aware_errors import (
    JUDGED,
    check_inference,
    compared,
    crops,
    idea_figure,
    inference_errors,
    inference_figure,
    input_errors,
    layer_inputs,
    logit_errors,
    sqnr_figure,
    weight_errors,
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


@pytest.mark.parametrize(
    ("bits", "ratios"), [([4], [0.0, 0.001, 0.01]), ([4, 6], [0.0, 0.02, 0.05]), ([4, 6], [])]
)
def test_what_is_judged_must_be_measured(bits, ratios):
    check_inference([4, 6, 8], [0.0, 0.001, 0.01, 0.05])
    with pytest.raises(ValueError, match="must have 4 and 6, and inference_ratios 0, 0.001 and 0.01"):
        check_inference(bits, ratios)


def test_inputs_of_all_convolutions_but_the_first():
    net, images = network().eval(), torch.randn(2, 3, 8, 8)
    found = layer_inputs(net, images)
    assert next(iter(found)) == "layer1.0.conv1" and len(found) == 5
    torch.testing.assert_close(found["layer1.0.conv1"], net.relu(net.bn1(net.conv1(images))))
    table = input_errors(net, images, [(4, 0, False), (4, 0.01, False), (4, 0, True)])
    one = layer_inputs(net, images[:1]).values()
    expected = np.mean([sqnr(x, fake_quantize(x, 4, 0.01, grid="unsigned")) for x in one])
    got = table[table["image"] == 0].set_index("setting")
    assert got.loc["(4, 1 %)", "SQNR"] == pytest.approx(expected)
    assert got["stored bits"].to_dict() == {"(4, 0 %)": 4, "(4, 1 %)": 4.64, "4 bits, clipped": 4}
    assert got.loc["4 bits, clipped", "SQNR"] > got.loc["(4, 0 %)", "SQNR"]


def test_weights_are_those_of_all_convolutions_each_with_its_sign():
    net = network()
    table = weight_errors(net, [(4, 0.01, False)])
    weights = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
    expected = [sqnr(x, fake_quantize(x.detach(), 4, 0.01, grid="signed")) for x in weights]
    assert table["SQNR"].tolist() == pytest.approx(expected) and len(expected) == 6


def test_rules_compare_the_settings_that_the_ledger_names():
    rows = [(one, float(k)) for k in range(3) for one in ("(2, 0 %)", *JUDGED)]
    found = compared(pd.DataFrame(rows, columns=["setting", "SQNR"]))
    assert set(found) == {"(4, 0 %)", "(4, 1 %)", "(3, 2 %)", "4 bits, clipped"}
    assert all(values == [0.0, 1.0, 2.0] for values in found.values())


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
    every = inference_errors(net, images, (4, 8), (0.0, 0.05, 1.0))
    assert len(every) == 2 * 2 * (3 + 3 + 1)  # clipped activations keep no large values
    table = every[every["scales"] == "one grid per tensor"].set_index(["bits", "group", "ratio"])
    assert (table.xs(1.0, level="ratio")["error"] < 1e-2).all()  # but for rounding to 16 bits
    assert (table.xs(1.0, level="ratio")["agreement"] == 100).all()
    few, none = (table.loc[4].xs(ratio, level="ratio")["error"] for ratio in (0.05, 0.0))
    assert (few < none).all()
    wide = table.loc[8].xs(0.0, level="ratio")["error"]
    assert (wide < none).all()


def test_weights_per_channel_survive_channels_of_different_sizes():
    """One grid for both would round the small channel away, and does."""
    layer = nn.Conv2d(2, 2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.4], [0.004, 0.01]]).reshape(2, 2, 1, 1)
    first = nn.Conv2d(2, 2, 1, bias=False)
    first.weight.data = torch.eye(2).reshape(2, 2, 1, 1)
    net, images = nn.Sequential(first, layer, nn.Flatten()), {"a": torch.rand(2, 2, 3, 3)}
    table = inference_errors(net, images, (4,), (0.0,)).set_index("scales")["error"]
    few = value_aware_errors._with_few_bits(net, images["a"], 4, 0.0, value_aware_errors.Scales(True))
    assert (few[1](images["a"])[:, 1].abs() > 0).any()
    plain = value_aware_errors._with_few_bits(net, images["a"], 4, 0.0)
    assert not plain[1](images["a"])[:, 1].any() and table["weights per channel"] > 0


def results() -> pd.DataFrame:
    ways = [("one grid per tensor", 7.0), ("weights per channel", 0.0)]
    rows = [
        (group, scales, bits, ratio, 90.0, bits + 1000 * ratio + 10 * k + more)
        for scales, more in ways
        for bits in (4, 6)
        for ratio in (0.0, 0.001, 0.005)
        for k, group in enumerate("abc")
    ]
    rows += [
        (group, "weights per channel, activations clipped", 4, 0.0, 90.0, 2.0 + 10 * k)
        for k, group in enumerate("abc")
    ]
    table = pd.DataFrame(rows, columns=["group", "scales", "bits", "ratio", "agreement", "error"])
    return pd.concat([table.assign(network="one"), table.assign(network="two", error=table["error"] + 100)])


def test_the_numbers_of_the_rule_are_those_of_its_bits_by_photograph():
    found = logit_errors(results(), "one", 4)
    expected = {"(4, 0 %)": [4, 14, 24], "(4, 0.1 %)": [5, 15, 25], "4 bits, clipped": [2, 12, 22]}
    assert found == {"logit error, one": expected}
    assert logit_errors(results(), "two", 6)["logit error, two"]["(6, 0 %)"] == [106, 116, 126]


def test_crops_are_a_function_of_the_seed():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    first, again, other = (crops(image, 2, IMAGENET, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (2, 3, 224, 224)
    assert torch.equal(first, again) and not torch.equal(first, other)


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
    rows = [
        (network, image, bits, bits + 64 * ratio, clipped, 10 * bits + image)
        for network in ("one", "two")
        for image in range(3)
        for bits, ratio, clipped in ((3, 0.0, False), (3, 0.1, False), (4, 0.0, True))
    ]
    columns = ["network", "image", "bits", "stored bits", "clipped", "SQNR"]
    first, second = sqnr_figure(pd.DataFrame(rows, columns=columns)).axes
    kept, clipped = first.lines
    assert kept.get_xdata().tolist() == pytest.approx([3, 9.4])
    assert (kept.get_ydata().tolist(), clipped.get_ydata().tolist()) == ([31, 31], [41])
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (30, 32) and "two" in second.get_ylabel()


def test_the_inference_figure_draws_the_means_over_photographs_at_four_bits():
    above, below = inference_figure(results()).axes
    ways = ["one grid per tensor", "weights per channel", "weights per channel, activations clipped"]
    assert [line.get_label() for line in above.lines] == [
        f"{n}, {way}" for n in ("one", "two") for way in ways
    ]
    assert below.lines[1].get_ydata().tolist() == pytest.approx([14, 15, 19])
    assert above.lines[1].get_xdata().tolist() == pytest.approx([0, 0.1, 0.5])  # percent
