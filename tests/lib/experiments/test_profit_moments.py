"""Is the instability the obstacle? Shifts and predictions of pretrained networks, on made-up photographs."""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from lib.data.preprocessing import IMAGENET, SQUEEZENET
from lib.experiments import profit_moments
from lib.experiments.pretrained import Pretrained
from lib.experiments.profit_moments import (
    NETWORKS,
    check_bits,
    grouped_crops,
    log_shifts,
    moments_figure,
    predictions,
    returned,
    shifts,
    with_few_bits,
)
from lib.models.vision.mobilenet import MobileNetV2
from lib.models.vision.shallower import shallower
from lib.quantization.convert import quantized_layers
from lib.quantization.moments import hidden_convolutions, output_moments, restore_moments

BITS = (3, 4, 8)


def photographs(count: int) -> dict[str, Image.Image]:
    random = np.random.default_rng(0)
    return {
        str(k): Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for k in range(count)
    }


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return shallower(MobileNetV2(num_classes=5, width=0.1, last_channels=16, dropout=0.0), 1).eval()


def test_the_mobile_network_comes_first_and_all_others_are_controls():
    assert NETWORKS[0] == "MobileNet-v2" and set(NETWORKS[1:]) == {"SqueezeNet", "VGG-16", "AlexNet"}


def test_crops_of_each_photograph_are_the_same_in_every_run():
    first, again = (grouped_crops(photographs(3), IMAGENET, size=32, count=2) for _ in range(2))
    assert [tuple(group.shape) for group in first] == [(2, 3, 32, 32)] * 3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], first[0][1])
    assert len(grouped_crops(photographs(20), IMAGENET, size=8, count=1)) == 12
    by_bytes = grouped_crops(photographs(3), SQUEEZENET, size=32, count=2)[0]
    assert by_bytes.std() > 20 * first[0].std()  # each network's own units
    with pytest.raises(ValueError, match=r"^moments are compared on at least 2 photographs, got 1$"):
        grouped_crops(photographs(1), IMAGENET, size=32, count=2)


def test_bits_that_rules_need_are_asked_for():
    check_bits([8, 4, 3])
    with pytest.raises(ValueError, match=r"^moment_bits must have 3 and 4, .* got \[2, 4\]$"):
        check_bits([2, 4])


def test_weights_alone_are_quantised(small):
    quantised = with_few_bits(small, torch.randn(1, 3, 32, 32), 3)
    layers = [layer for _, layer in quantized_layers(quantised)]
    assert {layer.weight_quantizer.bits for layer in layers} == {3} and not quantised.training
    assert all(layer.input_quantizer is None for layer in layers)


def test_shifts_of_every_network_bits_photograph_and_layer(small):
    crops = {"MobileNet-v2": grouped_crops(photographs(3), IMAGENET, size=32, count=2)}
    found = shifts({"MobileNet-v2": Pretrained(small, IMAGENET)}, crops, BITS)
    layers = len(hidden_convolutions(with_few_bits(small, crops["MobileNet-v2"][0], 8)))
    assert list(found) == ["network", "bits", "photograph", "layer", "divergence"]
    assert len(found) == len(BITS) * 3 * layers and set(found["photograph"]) == {0, 1, 2}
    medians = found.groupby("bits")["divergence"].median()
    assert medians.is_monotonic_decreasing and (medians > 0).all()
    logs = log_shifts(found)["log10 divergence, 3-bit weights"]["MobileNet-v2"]
    rows = found[(found["bits"] == 3) & (found["photograph"] == 1)]
    assert len(logs) == 3 and logs[1] == pytest.approx(np.log10(rows["divergence"].median()))


def test_moments_are_counted_on_other_photographs_than_predictions(small):
    groups = grouped_crops(photographs(4), IMAGENET, size=32, count=2)
    found = predictions(small, groups, BITS).set_index(["bits", "weights", "photograph"])["agreement"]
    assert len(found) == len(BITS) * 2 * 4
    quantised = with_few_bits(small, groups[0][:1], 3)
    others = torch.cat([groups[1], groups[3]])
    wanted = output_moments(small, others, hidden_convolutions(quantised))
    restored = restore_moments(quantised, wanted, others)
    for number in (0, 2):
        with torch.no_grad():
            first = small(groups[number]).argmax(1)
            for arm, network in (("quantised", quantised), ("moments restored", restored)):
                by_hand = 100 * (network(groups[number]).argmax(1) == first).double().mean()
                assert found[3, arm, number] == by_hand


PAIRS = {4: [(20.0, 70.0), (0.0, 40.0)], 3: [(0.0, 0.0), (100.0, 100.0)], 8: [(90.0, 95.0)] * 2}
AGREEMENT = pd.DataFrame(
    [
        (bits, number, weights, value)
        for bits, pairs in PAIRS.items()
        for number, pair in enumerate(pairs)
        for weights, value in zip(("quantised", "moments restored"), pair, strict=True)
    ],
    columns=["bits", "photograph", "weights", "agreement"],
)


def test_half_of_the_way_back_is_halfway_to_all_predictions():
    measured = returned(AGREEMENT)
    four, three = (measured[f"agreement, MobileNet-v2, {bits} bits (%)"] for bits in (4, 3))
    assert four["half of the way back"] == [60, 50] and four["moments restored"] == [70, 40]
    assert three["half of the way back"] == [50, 100] and len(measured) == 2


def test_the_figure_draws_shifts_and_agreement():
    rows = [
        (name, bits, photograph, layer, 10.0**-bits * (1 + layer))
        for name, bits, photograph, layer in product(NETWORKS, BITS, (0, 1), range(3))
    ]
    found = pd.DataFrame(rows, columns=["network", "bits", "photograph", "layer", "divergence"])
    both = pd.concat(AGREEMENT.assign(network=name) for name in profit_moments.CLASSIFIERS)
    above, below = moments_figure(found, both).axes
    lines = {line.get_label(): line for line in above.get_lines()}
    assert list(lines) == list(NETWORKS)
    assert lines["VGG-16"].get_ydata() == pytest.approx([2 * 10.0**-b for b in BITS])
    lines = {line.get_label(): line for line in below.get_lines()}
    restored = lines["SqueezeNet, moments restored"]
    assert dict(zip(restored.get_xdata(), restored.get_ydata(), strict=True)) == {3: 50, 4: 55, 8: 95}
    assert lines["SqueezeNet, quantised"].get_linestyle() == ":" != restored.get_linestyle()
    plt.close("all")
