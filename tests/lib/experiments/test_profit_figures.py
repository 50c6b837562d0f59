"""The figures of the PROFIT chapter: the numbers that they draw, and their labels."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.experiments.profit_figures import hswish_figure, instability_figure, staircase_figure


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(axis) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in axis.get_lines()}


def test_staircases_and_slopes():
    output, slope = (lines(axis) for axis in staircase_figure().axes)
    assert {name: len(np.unique(np.round(y, 5))) for name, (_, y) in output.items() if name != "h-swish"} == {
        "behind ReLU": 8,
        "symmetric": 7,
        "behind h-swish": 8,
    }
    assert output["behind h-swish"][1].min() == pytest.approx(-0.375)
    x, y = slope["behind ReLU"]
    assert set(y[(x > 0.01) & (x < 2.99)]) == {1.0} and not y[(x < 0) | (x > 3)].any()
    x, y = slope["behind h-swish"]
    inside = (x > -1.4) & (x < 2.5)
    assert y[inside] == pytest.approx((2 * x[inside] + 3) / 6, abs=1e-5)  # the slope of x (x + 3) / 6


def test_instability_by_layer_and_by_kind():
    aiwq = pd.DataFrame(
        {(2, 0): [1e-3, 2e-3], (2, 1): [3e-3, 4e-3], (8, 0): [1e-6, 2e-6], (8, 1): [1e-6, 2e-6]}
    )
    aiwq = aiwq.rename_axis(columns=["weight bits", "seed"])
    kinds = pd.DataFrame({"depthwise": [1e-3, 1e-6], "project": [2e-3, 1e-6]}, index=[2, 8])
    left, right = instability_figure(aiwq, kinds).axes
    assert lines(left)["2 bits"][1] == pytest.approx([2e-3, 3e-3]) and list(lines(left)["2 bits"][0]) == [
        1,
        2,
    ]
    assert lines(right)["project"][1] == pytest.approx([2e-3, 1e-6])
    assert (left.get_yscale(), left.get_ylabel()) == ("log", "AIWQ (nats)")


def test_quality_of_grids():
    normal = pd.DataFrame({"from 0": [9.0, 20.0], "symmetric": [15.0, 18.0]}, index=[1.0, 4.0])
    layers = pd.DataFrame({"from 0": [10.0, 12.0, 14.0], "symmetric": [1.0, 2.0, 3.0]})
    left, right = hswish_figure(normal, layers).axes
    assert lines(left)["from 0"][1] == pytest.approx([9, 20])
    heights = [container.lines[0].get_ydata()[0] for container in right.containers]
    assert heights == pytest.approx([12, 2])
    assert [label.get_text() for label in right.get_xticklabels()] == ["from 0", "symmetric"]
