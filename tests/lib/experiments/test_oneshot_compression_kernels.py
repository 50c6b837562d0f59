"""Ranks and errors of kernels whose structure is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.compression.vbmf import evbmf
from lib.experiments import oneshot_compression_kernels as trained
from lib.models.vision.alexnet import AlexNetOneTower
from lib.models.vision.vgg import VGG


def low_rank(outputs, inputs, taps, r3, r4, noise=0.0):
    """A kernel of these multilinear ranks, and noise."""
    u4, core, u3 = torch.randn(outputs, r4), torch.randn(r4, r3, *taps), torch.randn(r3, inputs)
    kernel = torch.einsum("tq,qrij,rs->tsij", u4, core, u3)
    return kernel / kernel.std() + noise * torch.randn(outputs, inputs, *taps)


def test_the_planted_matrix_holds_ten_directions():
    matrix = trained.planted_matrix()
    assert matrix.shape == (64, 576) and evbmf(matrix).rank == 10
    assert np.array_equal(matrix, trained.planted_matrix())
    assert evbmf(trained.planted_matrix(rank=4)).rank == 4


def test_the_figure_draws_threshold_and_edge():
    matrix = trained.planted_matrix()
    figure = trained.spectra_figure({"left": matrix, "right": torch.from_numpy(matrix[:32])})
    for axis, rows in zip(figure.axes, (64, 32), strict=True):
        found = evbmf(matrix[:rows])
        points, threshold, edge = axis.lines
        np.testing.assert_array_equal(points.get_ydata(), found.singular_values)
        assert threshold.get_ydata()[0] == found.threshold
        assert edge.get_ydata()[0] == pytest.approx(found.noise_variance**0.5 * (rows**0.5 + 24))
        assert found.threshold > edge.get_ydata()[0]
        assert threshold.get_label() == "threshold: rank 10"


@pytest.fixture(scope="module")
def found():
    """One kernel of each network has planted ranks, the others are noise."""
    torch.manual_seed(0)
    states = []
    for build in (AlexNetOneTower, VGG):
        with torch.device("meta"):
            shapes = {f"features.{name}": p.shape for name, p in build().features.named_parameters()}
        states.append({key: torch.randn(shape) for key, shape in shapes.items()})
    states[0]["features.3.weight"] = low_rank(192, 64, (5, 5), 7, 9, noise=0.5)
    states[1]["features.2.weight"] = low_rank(64, 64, (3, 3), 3, 5, noise=0.5)
    return trained.trained_ranks(*states, sweeps=0, vgg_layers=2)


def test_ranks_of_trained_convolutions(found):
    ranks = found.by_rule["EVBMF"]
    assert list(ranks) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert ranks["conv2"] == (7, 9) == found.by_rule["EVBMF, root"]["conv2"]
    assert ranks["conv1"] == 1 and ranks["conv4"] == (1, 1)  # noise
    r3, r4 = found.by_rule["90 % of energy"]["conv2"]
    assert 7 < r3 <= 64 and 9 < r4 <= 192
    assert found.vgg16["kind"].tolist() == ["Tucker-1", "Tucker-2", *["kept"] * 11]
    assert found.vgg16_ranks == {"features.0": 1, "features.2": (3, 5)}
    # What is lost is the noise, a fifth of the variance but for the share of it that the factors keep.
    assert found.alexnet.loc["3", "relative_error"] == pytest.approx(np.sqrt(0.2), rel=0.02)


def test_the_table_of_ranks(found):
    paper = {f"conv{k}": f"{k}, {k}" for k in range(1, 6)}
    table = trained.ranks_table(found, paper)
    assert table.loc["conv2", "EVBMF"] == "7, 9" and table.loc["conv1", "EVBMF"] == "1"
    assert table["paper's ranks (recalled)"].tolist() == list(paper.values())
    assert table.loc["conv2", "error at EVBMF"] == found.alexnet.loc["3", "relative_error"]


def test_kernels_by_name():
    state = {}
    for layer in (0, 3, 6, 8, 10):
        state |= {
            f"features.{layer}.weight": torch.full((1,), layer),
            f"features.{layer}.bias": torch.ones(1),
        }
    assert {name: int(kernel) for name, kernel in trained.alexnet_kernels(state).items()} == {
        "conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10,
    }  # fmt: skip


def test_error_over_weights():
    torch.manual_seed(0)
    kernel = low_rank(12, 8, (3, 3), 2, 3)
    curves, points = trained.error_over_weights({"k": kernel}, [0.1, 0.25, 1.0], {"k": (2, 3)}, sweeps=2)
    (row,) = points.to_numpy().tolist()
    assert row[:2] == ["k", pytest.approx(100 * (8 * 2 + 9 * 2 * 3 + 12 * 3) / 864)]
    assert row[2] < 1e-6  # its own ranks lose nothing
    one, share, whole = curves.to_numpy().tolist()
    assert one[1] == pytest.approx(100 * (8 + 9 + 12) / 864)  # one channel a side at least
    assert share[1:] == [pytest.approx(row[1]), pytest.approx(0, abs=1e-6)]  # a quarter of 8 and of 12
    assert whole[1] == pytest.approx(100 * (64 + 864 + 144) / 864) and one[2] > 0.3
    leading = np.linalg.svd(kernel.flatten(1).double().numpy(), compute_uv=False)
    assert one[2] ** 2 > 1 - leading[0] ** 2 / (leading**2).sum() - 1e-9  # two sides lose more than one


def test_the_chosen_ranks_are_drawn_over_the_curves():
    columns = ["layer", "weights kept (%)", "relative error"]
    curves = pd.DataFrame([("a", 10.0, 0.8), ("a", 50.0, 0.3), ("b", 20.0, 0.5)], columns=columns)
    points = pd.DataFrame([("a", 12.0, 0.7), ("b", 25.0, 0.4)], columns=columns)
    (axis,) = trained.errors_figure(curves, points).axes
    assert [12.0, 0.7] in [list(offset) for part in axis.collections for offset in part.get_offsets()]


@pytest.mark.parametrize("layers", [0, 1, 14])
def test_layers_that_vgg16_does_not_have_are_refused(layers):
    with torch.device("meta"):
        features = [network().features.state_dict() for network in (AlexNetOneTower, VGG)]
    states = [{f"features.{key}": value for key, value in one.items()} for one in features]
    with pytest.raises(ValueError, match=f"vgg_layers must be from 2 to VGG-16's 13, got {layers}"):
        trained.trained_ranks(*states, sweeps=0, vgg_layers=layers)
