"""Memory of a training step, by hand and on networks small enough to know the answer."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib.experiments.value_aware_memory import (
    DEEP,
    FEW,
    MANY,
    blocks,
    conventions,
    conventions_figure,
    distances,
    expected_hits,
    gains,
    judged_reductions,
    measure_networks,
    measure_steps,
    memory_by_network,
    overheads,
    sensitivities,
    step_figure,
    stored_ratios,
)
from lib.models.vision.inception import InceptionV3
from lib.models.vision.resnet import BasicBlock, ResNet, resnet
from lib.quantization.training_memory import Stored, units
from lib.training.loop import seeded

SMALL = {"ResNet-18": (lambda: resnet(18), 64), "ResNet-34": (lambda: resnet(34), 64)}


def network() -> ResNet:
    return ResNet(block=BasicBlock, blocks=(1, 1), num_classes=10, width=0.25, small_images=True)


# --- counted -----------------------------------------------------------------------------------------------


def test_the_two_published_ratios():
    ratios = stored_ratios()
    assert list(ratios) == ["V-Quant", "RV-Quant"]
    assert ratios["V-Quant"] == pytest.approx(32 / 5.28) and ratios["RV-Quant"] == pytest.approx(32 / 4.28)


def test_the_judged_convention_is_the_one_that_is_counted_directly():
    tried = conventions(1, SMALL)
    judged = judged_reductions(tried)
    for name, (make, size) in SMALL.items():
        stored = Stored.of(make(), units(make()), (1, 3, size, size))
        assert judged[name] == stored.reduction()
    assert list(tried) == ["counted", "stem", "checkpoints", "factor", *SMALL]
    assert set(tried["counted"]) == {"inputs of layers"}
    assert len(conventions(2, SMALL)) > len(tried) > 20
    table = sensitivities(SMALL)
    assert table.iloc[0][list(SMALL)].to_dict() == judged
    assert list(table) == ["reduction (%)", *SMALL]


@pytest.mark.parametrize("ways", [0, 4])
def test_ways_of_counting_that_do_not_exist_are_refused(ways):
    with pytest.raises(ValueError, match=f"there are 1 to 3 ways of counting, {ways} were asked for"):
        conventions(ways, SMALL)


def test_the_distance_is_that_of_the_worse_network():
    tried = pd.DataFrame({"a": [10.0, 20.0], "b": [5.0, 1.0], "factor": [1.0, 2.0]})
    assert distances(tried, {"a": 11.0, "b": 5.5}).tolist() == [1.0, 9.0]


def test_expected_hits_are_those_of_a_smooth_density():
    """Of normal points: a box of a point about their mean holds 1 / (2π σ²)."""
    points = np.random.default_rng(0).normal([40, 50], 8, (1000, 2))
    tried = pd.DataFrame(points, columns=["a", "b"])
    assert expected_hits(tried, {"a": 40.0, "b": 50.0}) == pytest.approx(1000 / (2 * np.pi * 64), rel=0.2)
    assert expected_hits(tried, {"a": 100.0, "b": 50.0}) < 1e-3


def test_memory_of_a_network_by_hand():
    def make():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    row = memory_by_network({"tiny": (make, 8)}).loc["tiny"]
    assert row["full precision"] * 1e6 == pytest.approx(4 * (256 + 192))
    assert row["RV-Quant"] * 1e6 == pytest.approx(256 * 4.28 / 8 + 4 * 192)
    assert row["V-Quant"] * 1e6 == pytest.approx(256 * 5.28 / 8 + 4 * 192)
    assert row["gain"] == pytest.approx(row["full precision"] / row["RV-Quant"])


def test_every_deep_network_is_set_against_alexnet():
    sizes = pd.DataFrame({"gain": {"AlexNet": 3.0, "ResNet-50": 7.0, "Inception-v3": 6.0, "ResNet-18": 5.0}})
    assert gains(sizes) == {"deep network": [6.0, 7.0], "AlexNet": [3.0, 3.0]}
    assert set(DEEP) < set(MANY) and set(FEW) < set(MANY)


# --- measured ----------------------------------------------------------------------------------------------


def test_checkpoints_are_put_at_residual_and_at_mixed_blocks():
    with torch.device("meta"):
        assert len(blocks(resnet(50))) == 16 and len(blocks(InceptionV3())) == 11


def test_a_step_is_measured_in_three_modes():
    seeded(0)
    memory, seconds = measure_steps(network(), torch.randn(8, 3, 32, 32), rounds=2)
    kept, peak = memory["kept"], memory["peak"]
    assert kept["packed"] < 0.35 * kept["full precision"]
    assert peak["packed"] < peak["full precision"] > peak["checkpointing"]
    assert kept["checkpointing"] < kept["full precision"]
    assert seconds.shape == (2, 3) and (seconds > 0).all(axis=None)


def test_networks_are_measured_under_their_names():
    networks = {"first": (network, 16), "Inception-v3": (network, 32)}
    memory, overhead = measure_networks(networks, batch=2, rounds=3, seed=0)
    assert memory.index.names == ["network", "mode"] and overhead.index.names == ["network", "round"]
    kept = memory["kept"].xs("full precision", level="mode")
    assert kept["Inception-v3"] == pytest.approx(4 * kept["first"], rel=0.1)  # pixels
    assert overhead.shape == (6, 3) and (overhead["full precision"] == 0).all()
    found = overheads(overhead)
    assert list(found) == ["overhead, residual network", "overhead, Inception-v3"]
    residual = found["overhead, residual network"]
    assert residual == {mode: overhead.loc["first", mode].tolist() for mode in ("packed", "checkpointing")}
    with pytest.raises(ValueError, match=r"and Inception-v3 are compared, got \['first'\]"):
        overheads(overhead.loc[["first"]])
    left, right = step_figure(memory, overhead).axes
    assert [bar.get_height() for bar in left.containers[0]] == [
        memory.loc[(name, "full precision"), what] for name in networks for what in ("kept", "peak")
    ]
    assert [bar.get_height() for bar in right.patches] == [
        overhead.loc[name, mode].median() for name in networks for mode in ("checkpointing", "packed")
    ]


def test_the_map_of_conventions_has_the_papers_cross():
    tried = pd.DataFrame({"counted": ["x", "x", "y"], "one": [1.0, 2.0, 3.0], "two": [4.0, 5.0, 6.0]})
    axis = conventions_figure(tried, {"one": 2.5, "two": 5.5}).axes[0]
    *points, cross = axis.lines
    assert [line.get_label() for line in points] == ["x", "y"]
    assert points[0].get_xydata().tolist() == [[1, 4], [2, 5]]
    assert cross.get_xydata().tolist() == [[2.5, 5.5]] and cross.get_label() == "the paper"
