"""The chapter's figures show the numbers that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.experiments import facebook_inference_figures as figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_running_sums_over_the_range_of_sixteen_bits():
    sums = pd.DataFrame({"a": [1, 40_000], "b": [1, 32_767], "c": [1, 40_000]}, index=[8, 16])
    (axis,) = figures.sums_figure(sums).axes
    assert [line.get_ydata().tolist() for line in axis.lines] == sums.T.to_numpy().tolist()
    assert axis.lines[0].get_xdata().tolist() == [8, 16]
    band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    assert (band.y0, band.y1) == (pytest.approx(-(2**15)), pytest.approx(2**15 - 1))


def test_kernels_grow_in_intensity_and_stand_under_their_rooflines():
    shapes = {(8, 64, 32): 10.0, (1, 64, 32): 2.0}  # rows: operations per weight
    arms = dict.fromkeys(figures.ARMS, 1.0)
    faster = {
        level: {shape: pd.DataFrame(arms | {"bf16": [s, 3 * s, 2 * s]}) for shape, s in shapes.items()}
        for level in ("AVX2", "native")
    }
    names = {"8×64×32": 400.0, "1×64×32": 100.0}
    rows = [(name, arm, gops) for name, gops in names.items() for arm in figures.ELEMENT_BYTES]
    rates = pd.DataFrame(rows, columns=["M × N × K", "function", "Gop/s"])
    rates = rates.set_index(["M × N × K", "function"])
    first, last, roof = figures.kernels_figure(faster, rates, 50e9).axes
    assert [axis.get_title() for axis in (first, last, roof)] == ["AVX2", "native", "roofline"]
    assert [label.get_text() for label in last.get_xticklabels()] == ["1×64×32", "8×64×32"]
    points, _, bars = last.containers[0]
    assert points.get_ydata().tolist() == [4, 20]
    assert [bar[:, 1].tolist() for bar in bars[0].get_segments()] == [[2, 6], [10, 30]]
    ceiling, fp32, narrower, _ = roof.lines
    assert ceiling.get_ydata().max() == 400 and ceiling.get_ydata()[0] == pytest.approx(50 * 0.1)
    np.testing.assert_array_equal(ceiling.get_ydata(), narrower.get_ydata())
    m, n, k = 1, 64, 32
    assert fp32.get_ydata().tolist() == [100, 400]
    assert fp32.get_xdata()[0] == pytest.approx(2 * m * n * k / 4 / (m * n + n * k + m * k))


def test_intensities_and_rates():
    counts = {
        name: pd.DataFrame(
            {
                "layer": ["a"], "kind": ["conv"], "operations": [80], "weights_read": [size],
                "input_elements": [4], "output_elements": [6],
            }
        )
        for name, size in {"small (hypothesis)": 10, "large": 30}.items()
    }  # fmt: skip
    rates = pd.DataFrame({"small (hypothesis)": [10.0, 60.0]}, index=[0, 64])
    left, right = figures.intensity_figure(counts, rates).axes
    places = [offset[0] for part in left.collections for offset in part.get_offsets().data]
    assert sorted(places) == pytest.approx([2, 4])
    assert right.lines[0].get_ydata().tolist() == [10, 60] and right.lines[0].get_label() == "small"


def test_operators_and_accuracy():
    bandwidth = pd.DataFrame({name: [1.0, 2.0] for name in figures.ROWS}).rename_axis("function", axis=1)
    shares = pd.DataFrame({"convolution": [0.995, 1.0], "rare": [0.005, 0.0]}, index=["a", "b"])
    fused = pd.DataFrame({"one": [0.5, 0.75]})
    left, middle, right = figures.operators_figure(bandwidth, shares, fused).axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(figures.ROWS)
    assert [text.get_text() for text in middle.get_legend().get_texts()] == ["convolution"]
    assert sorted(right.collections[0].get_offsets().data[:, 0]) == [0.5, 0.75]
    techniques = pd.DataFrame({"error": [0.1, 0.2], "step": ["x", "y"], "bits": [8, 4]})
    (axis,) = figures.accuracy_figure(techniques).axes
    assert sorted(x for part in axis.collections for x in part.get_offsets().data[:, 0]) == [0.1, 0.2]


def test_sums_in_sixteen_bits_by_scales():
    errors = pd.DataFrame(
        {"scales": ["tensor", "channel"], "sums": ["a", "a"], "network": ["n", "n"], "error": [0.0, 0.5]}
    )
    above, below = figures.sixteen_bit_figure(errors).axes
    for axis, error in ((above, 1e-5), (below, 0.5)):
        assert [x for part in axis.collections for x in part.get_offsets().data[:, 0]] == pytest.approx(
            [error]
        )
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["n"]
    assert below.get_legend() is None
