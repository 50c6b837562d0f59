"""The chapter's experiments on networks small enough to know the answer."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from lib.data.preprocessing import IMAGENET
from lib.experiments.value_aware import (
    annealing,
    crops,
    gradient_error,
    gradient_figure,
    inference_errors,
    input_errors,
    layer_inputs,
    measure_steps,
    memory_by_network,
    sqnr,
)
from lib.models.vision.resnet import BasicBlock, ResNet
from lib.quantization.saved_tensors import PackedActivations, PackedTraining
from lib.quantization.value_aware import fake_quantize
from lib.training.loop import seeded


def network() -> ResNet:
    seeded(0)
    options = dict(block=BasicBlock, blocks=(1, 1), num_classes=10, width=0.25, small_images=True)
    return ResNet(**options)


def test_sqnr_of_a_tenth_is_twenty_decibels():
    x = torch.ones(50)
    assert sqnr(x, 1.1 * x) == pytest.approx(20, abs=1e-4)


def test_inputs_of_all_convolutions_but_the_first():
    net, images = network(), torch.randn(2, 3, 8, 8)
    found = layer_inputs(net, images)
    assert next(iter(found)) == "layer1.0.conv1" and len(found) == 5
    torch.testing.assert_close(found["layer1.0.conv1"], net.relu(net.bn1(net.conv1(images))))
    table = input_errors(net, images, (4,), (0, 0.01))
    one = layer_inputs(net, images[:1]).values()
    expected = np.mean([sqnr(x, fake_quantize(x, 4, 0.01, grid="unsigned")) for x in one])
    got = table[(table["image"] == 0) & (table["ratio"] == 0.01)]["SQNR"].iloc[0]
    assert got == pytest.approx(expected)


def test_gradient_error_leaves_the_network_as_it_was():
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batch = {"images": torch.randn(8, 3, 16, 16), "labels": torch.arange(8)}
    settings = {
        "counted": PackedActivations(None),
        "nothing": PackedActivations(1, 0.0, bn_input="exact", smallest=1),
        "three": PackedActivations(3, 0.02, bn_input="exact", smallest=1),
    }
    errors = gradient_error(net, batch, settings)
    assert errors["counted"] == 0 and errors["nothing"] == 1  # with nothing stored the gradient is zero
    assert 0 < errors["three"] < 0.3
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_annealing_goes_through_its_stages():
    model = PackedTraining(nn.Identity())
    choose = annealing(model, 6, [(2, 0.0), (3, 0.02), (None, 0.0)])
    seen = []
    for step in range(6):
        choose(step)
        seen.append(model.activations.bits)
    assert seen == [2, 2, 3, 3, None, None]


def test_a_step_is_measured_in_three_modes():
    memory, seconds = measure_steps(network(), torch.randn(8, 3, 32, 32), rounds=2)
    kept, peak = memory["kept"], memory["peak"]
    assert kept["packed"] < 0.35 * kept["full precision"]
    assert peak["packed"] < peak["full precision"] > peak["checkpointing"]
    assert kept["checkpointing"] < kept["full precision"]
    assert seconds.shape == (2, 3) and (seconds > 0).all(axis=None)


def test_memory_of_alexnet_like_network_by_hand():
    def make():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    row = memory_by_network({"tiny": (make, 8)}).loc["tiny"]
    assert row["full precision"] * 1e6 == pytest.approx(4 * (256 + 192))
    assert row["RV-Quant"] * 1e6 == pytest.approx(256 * 4.28 / 8 + 4 * 192)
    assert row["V-Quant"] * 1e6 == pytest.approx(256 * 5.28 / 8 + 4 * 192)
    assert row["gain"] == pytest.approx(row["full precision"] / row["RV-Quant"])


def test_inference_with_everything_kept_is_full_precision():
    net = network().eval()
    images = {"a": torch.randn(3, 3, 16, 16), "b": torch.randn(2, 3, 16, 16)}
    table = inference_errors(net, images, (0.0, 0.05, 1.0), bits=4).set_index(["group", "ratio"])
    assert (table.xs(1.0, level="ratio")["error"] < 1e-2).all()  # but for rounding to 16 bits
    assert (table.xs(1.0, level="ratio")["agreement"] == 100).all()
    few, none = (table.xs(ratio, level="ratio")["error"] for ratio in (0.05, 0.0))
    assert (few < none).all()


def test_crops_are_a_function_of_the_seed():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    first, again, other = (crops(image, 2, IMAGENET, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (2, 3, 224, 224)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_gradient_figure_draws_a_line_per_width():
    settings = {f"({b}, {r} %)": 0.1 / b / (1 + r) for b in (3, 4) for r in (0, 2)} | {
        "normalisation exact": 1
    }
    axis = gradient_figure(pd.Series(settings)).axes[0]
    assert [line.get_label() for line in axis.lines][:2] == ["3 bits", "4 bits"]
    assert list(axis.lines[0].get_xdata()) == [0, 2]
