"""What the PROFIT chapter counts and measures: against closed forms, and measurements made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from lib.experiments.profit import Recipe, sample
from lib.experiments.profit_measurements import (
    by_name,
    count_quantised_layers,
    crops,
    instability_by_layer,
    layers_quality,
    log_medians,
    mean_spread,
    medians_by_kind,
    network_sizes,
    normal_quality,
    overtaken,
    padding_errors,
    thirds_ratios,
)
from lib.ledger.schema import load_ledger
from lib.models.vision.mobilenet import MobileNetV2, MobileNetV3Large
from lib.models.vision.shallower import shallower
from lib.quantization import hswish
from lib.quantization.convert import quantize, quantized_layers
from lib.quantization.duq import DuQ


def test_every_count_that_the_ledger_asks_for():
    numbers = {number.name: number.value for number in load_ledger("profit")["C8"].paper}
    assert count_quantised_layers() == numbers


def test_sizes_of_the_published_networks():
    sizes = network_sizes()
    assert list(sizes.index) == ["v1", "v2", "v3-Large"] and sizes.index.name == "network"
    assert sizes.loc["v2", "parameters"] == 3_504_872
    # 3,469,760 weights at 4 bits, and 35,112 parameters of norms and the bias at 32
    assert sizes.loc["v2", "4 bits"] == pytest.approx((3_469_760 / 2 + 35_112 * 4) / 1e6)
    named = by_name(sizes)
    assert named["v1, of which depthwise"] == 17_385_984 and len(named) == 3 * 7


def real_network() -> nn.Module:
    torch.manual_seed(0)
    return shallower(MobileNetV2(num_classes=5, width=0.1, last_channels=16, dropout=0.0), 1)


def photographs() -> dict[str, Image.Image]:
    random = np.random.default_rng(0)
    return {name: Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for name in "abcd"}


def test_crops_are_labelled_by_the_network_in_evaluation_mode():
    network = real_network().train()
    batches = crops(photographs(), network, size=32, steps=3, seed=1)
    assert network.training and [batch["images"].shape for batch in batches] == [(12, 3, 32, 32)] * 3
    assert not torch.equal(batches[0]["images"], batches[1]["images"])
    network.eval()
    for batch in batches:
        assert torch.equal(batch["labels"], network(batch["images"]).argmax(1))
    many = {str(k): Image.new("L", (40, 40), k) for k in range(99)}
    shades = crops(many, network, size=32, steps=2, seed=1)
    first, second = ({float(x.mean()) for x in batch["images"]} for batch in shades)
    assert len(first) == 12 and first != second  # no photograph twice, others in each step
    again, other = (crops(photographs(), network, size=32, steps=3, seed=seed) for seed in (1, 2))
    assert torch.equal(again[2]["images"], batches[2]["images"])
    assert not torch.equal(other[2]["images"], batches[2]["images"])
    to_sort_by = crops(photographs(), network, size=32, steps=3, seed=1, stream="to sort by")
    assert not torch.equal(to_sort_by[2]["images"], batches[2]["images"])


def test_instability_of_every_convolution_for_bits_and_seeds(tmp_path):
    network = real_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    drawn = {seed: crops(photographs(), network, size=32, steps=4, seed=seed) for seed in (0, 3)}
    aiwq = instability_by_layer(network, drawn, [2, 8], checkpoint=lambda name: tmp_path / f"{name}.pt")
    assert list(aiwq.columns) == [(2, 0), (2, 3), (8, 0), (8, 3)]
    assert aiwq.columns.names == ["weight bits", "seed"] and aiwq.index.name == "layer"
    assert list(aiwq.index) == [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert aiwq.notna().all(axis=None) and not np.allclose(aiwq[2, 0], aiwq[2, 3])
    quantised = quantize(
        network, drawn[3][0]["images"], weights=lambda layer: DuQ(8, grid="weight", range_from="mse")
    )
    by_hand = sample(quantised, drawn[3].__getitem__, 4, Recipe(learning_rate=0.005, clip_norm=5.0), skip=1)
    assert aiwq[8, 3].to_dict() == by_hand and aiwq[8, 3].max() > 0
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not list(quantized_layers(network))
    assert {path.name for path in tmp_path.iterdir()} == {
        f"AIWQ, {bits} bits, seed {seed}.pt" for bits in (2, 8) for seed in (0, 3)
    }
    pd.testing.assert_frame_equal(
        aiwq, instability_by_layer(network, drawn, [2, 8], checkpoint=lambda name: tmp_path / f"{name}.pt")
    )


LAYERS = ("0.0", "1.conv.0.0", "1.conv.1", "2.conv.0.0", "2.conv.1.0", "2.conv.2")
AIWQ = pd.DataFrame(
    {
        (2, 0): [8.0, 4.0, 2.0, 1.0, 0.5, 0.1],
        (2, 1): [0.1, 0.5, 1.0, 2.0, 4.0, 8.0],
        (3, 0): [1e-3] * 6,
        (3, 1): [1e-2] * 5 + [1e9],
    },
    index=[
        f"features.{name}"
        for name in ("0.0", "1.conv.0.0", "1.conv.1", "2.conv.0.0", "2.conv.1.0", "2.conv.2")
    ],
).rename_axis(index="layer", columns=["weight bits", "seed"])


def test_medians_over_layers():
    logs = log_medians(AIWQ)
    assert logs["2-bit weights"] == pytest.approx([np.log10(1.5)] * 2)
    assert logs["3-bit weights"] == pytest.approx([-3, -2])  # one layer far above the rest decides nothing


def test_thirds_are_sorted_by_another_measurement():
    """Sorted by an order that is the opposite, the most unstable third is the least one."""
    opposite = AIWQ[2][[1, 0]].rename(columns=str)
    assert thirds_ratios(AIWQ[2], opposite) == pytest.approx([0.3 / 6, 0.3 / 6])
    assert thirds_ratios(AIWQ[2][[0]], AIWQ[2][[0]]) == pytest.approx([6 / 0.3])


def test_medians_by_kind_of_convolution():
    network = MobileNetV2()
    kinds = medians_by_kind(AIWQ, network)
    assert list(kinds.index) == [2, 3] and set(kinds) == {"depthwise", "expand", "project"}
    assert kinds.loc[2, "expand"] == pytest.approx((1 + 2) / 2)
    assert kinds.loc[2, "project"] == pytest.approx(((2 + 0.1) / 2 + (1 + 8) / 2) / 2)


def test_quality_of_grids_by_spread_and_by_layer(monkeypatch):
    normal = normal_quality((1.0, 4.0), 4)
    assert list(normal.index) == [1.0, 4.0] and list(normal) == list(hswish.GRIDS)
    assert normal.loc[1.0, "from −3/8"] > normal.loc[1.0, "symmetric"] > normal.loc[1.0, "from 0"]
    assert normal.loc[4.0, "from 0"] > normal.loc[4.0, "from −3/8"]
    torch.manual_seed(0)
    networks = {seed: shallower(MobileNetV3Large(num_classes=3, width=0.1), 1) for seed in (0, 2)}
    images = {seed: torch.randn(2, 3, 32, 32) for seed in networks}
    quality = layers_quality(networks, images, (3, 4))
    assert list(quality.index) == [(3, 0), (3, 2), (4, 0), (4, 2)] and quality.index.names == ["bits", "seed"]
    layers = hswish.hswish_outputs(networks[2], images[2])
    by_hand = np.mean([hswish.grid_quality(h, 4)["symmetric"] for h in layers])
    assert quality.loc[(4, 2), "symmetric"] == pytest.approx(by_hand)


def test_where_one_grid_overtakes_another():
    quality = pd.DataFrame(
        {"from 0": [9.0, 16.0, 22.0], "from −3/8": [19.0, 18.0, 20.0]}, index=[1.0, 2.0, 4.0]
    )
    assert overtaken(quality) == pytest.approx(3)
    assert np.isnan(overtaken(quality.iloc[:2]))
    assert 3 < overtaken(normal_quality((1.0, 2.0, 3.0, 4.0, 6.0), 4)) < 4


def test_spread_of_what_goes_into_h_swish():
    network = nn.Sequential(nn.Flatten(), nn.Hardswish(), nn.Linear(4, 4, bias=False), nn.Hardswish())
    images = torch.randn(50, 1, 2, 2)
    with torch.no_grad():
        behind = network[:3](images)
    spreads = [images.std().item(), behind.std().item()]
    assert mean_spread({0: network, 1: network}, {0: images, 1: images}) == pytest.approx(np.mean(spreads))


def test_padding_with_the_lowest_level_leaves_a_constant_and_zeros_do_not():
    errors = padding_errors()
    assert errors == padding_errors()
    assert errors["lowest value of h-swish"] == pytest.approx(-0.375, abs=1e-12)
    assert errors["largest difference from one constant"] < 1e-12
    assert errors["largest error inside"] < 1e-12 < 0.01 < errors["mean error at an edge"]
