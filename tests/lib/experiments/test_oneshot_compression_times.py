"""Numbers made of times, by hand; and that what is timed is what is named."""

import pandas as pd
import pytest
import torch

from lib.experiments import oneshot_compression_counts as counts
from lib.experiments import oneshot_compression_times as times
from lib.models.vision.alexnet import AlexNet

LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


@pytest.fixture
def made_up():
    """Milliseconds of two blocks: layer k needs k + 1, compressed 1; the second block is twice as slow."""
    first = {"AlexNet": 50.0, "AlexNet*": 20.0}
    first |= {layer: k + 1.0 for k, layer in enumerate(LAYERS)} | {f"{layer}*": 1.0 for layer in LAYERS}
    rows = []
    for k in (1, 2, 3, 4):
        for part, macs, ms in (("reduce", 1e6, 0.2), ("core", 6e6, 0.5), ("expand", 3e6, 0.3)):
            rows.append((LAYERS[k], part, f"features.{LAYERS[k]}.{part}", macs))
            first[rows[-1][2]] = ms
    parts = pd.DataFrame(rows, columns=["layer", "part", "full", "macs"])
    return pd.DataFrame([first, {name: 2 * ms for name, ms in first.items()}]), parts


def test_speed_ups_are_ratios_of_sums(made_up):
    speed = times.speed_ups(made_up[0])
    assert speed.loc[0, LAYERS].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert speed.loc[1].equals(speed.loc[0].rename(1))
    groups = ["whole network", "all weighted layers", "convolutions", "fully connected layers"]
    assert speed.loc[0, groups].tolist() == [2.5, 36 / 8, 15 / 5, 21 / 3]


def test_reductions_are_ratios_of_sums():
    by_layer = pd.DataFrame({"macs": range(10, 90, 10), "macs*": [1, 2, 3, 4, 5, 2, 2, 2]}, index=LAYERS)
    found = times.reductions(by_layer).to_dict()
    assert found == {
        "all weighted layers": 360 / 21,
        "convolutions": 150 / 15,
        "fully connected layers": 210 / 6,
    }


def test_throughput_and_shares(made_up):
    time, parts = made_up
    rate = times.throughputs(time, parts)  # four layers: 4 million in 0.5 ms, 6 million in 0.5 ms
    assert rate["1 × 1 parts"].tolist() == pytest.approx([8, 4])
    assert rate["D × D cores"].tolist() == pytest.approx([12, 6])
    share = times.shares_of_parts(time, parts)
    assert share["multiply–accumulates"].to_dict() == pytest.approx({"reduce": 10, "core": 60, "expand": 30})
    assert share["time"].to_dict() == pytest.approx({"reduce": 20, "core": 50, "expand": 30})


def test_only_the_inner_convolutions_have_all_three_parts():
    parts = pd.DataFrame({"layer": LAYERS})
    assert times.inner_parts(parts)["layer"].tolist() == ["conv2", "conv3", "conv4", "conv5"]


def test_the_figure_shows_every_column(made_up):
    time, parts = made_up
    speed = times.speed_ups(time)
    fewer = dict.fromkeys(speed, 3.0)
    above, below = times.latency_figure(speed, fewer, times.shares_of_parts(time, parts)).axes
    assert [label.get_text() for label in above.get_yticklabels()] == list(speed)
    assert list(above.lines[0].get_xdata()) == [3.0] * len(fewer)
    assert [bar.get_height() for bar in below.patches] == pytest.approx([10, 60, 30, 20, 50, 30])


def test_both_networks_all_layers_and_all_parts_are_timed():
    with torch.device("meta"):
        networks = {"dense": AlexNet(width=1 / 16)}
    ranks = {layer: 2 if layer in ("conv1", "fc7", "fc8") else (2, 3) for layer in LAYERS}
    networks["thin"] = counts.with_ranks(networks["dense"], ranks)
    tables = counts.operation_tables(networks)
    dense, thin = (times.with_random_weights(network) for network in networks.values())
    assert not dense.training and dense.features.conv1.weight.std() > 0
    time = times.block_times(dense, thin, tables["dense"], tables["thin"], rounds=7)
    parts = counts.parts_of_layers(tables["thin"])
    expected = {"AlexNet", "AlexNet*", *LAYERS, *(f"{layer}*" for layer in LAYERS), *parts["full"]}
    assert len(time) == 6 and set(time.columns) == expected
    assert times.block_times(dense, thin, tables["dense"], tables["thin"], rounds=1).shape == (
        1,
        len(expected),
    )
