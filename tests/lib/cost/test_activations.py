"""Live activations and arithmetic intensity: by hand, by closed forms, and on known networks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lib.cost.activations import live_activations, trace
from lib.cost.intensity import arithmetic_intensity, mean_and_minimum
from lib.cost.operations import count_operations
from lib.models.vision.resnet import resnet, resnext

IMAGE = (1, 3, 224, 224)


def on_meta(make, **options) -> nn.Module:
    with torch.device("meta"):
        return make(**options)


def peak(model, shape, **options) -> int:
    return int(live_activations(model, shape, **options)["live"].max())


class Residual(nn.Module):
    def __init__(self, channels: int = 4, inplace: bool = False):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)


class Concatenate(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return torch.cat([self.wide(x), self.narrow(x)], dim=1)


# --- live ---


@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    batch=st.integers(1, 3),
    inplace=st.booleans(),
)
def test_a_chain_needs_its_largest_layer(widths, batch, inplace):
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=inplace)]
    model = nn.Sequential(*layers)
    expected = batch * 6 * max(a + b for a, b in pairwise(widths))
    assert peak(model, (batch, widths[0], 2, 3)) == expected
    assert peak(model, (batch, widths[0], 2, 3), inplace_add=False) == expected


@pytest.mark.parametrize("inplace", [False, True])
def test_a_skip_connection_is_held(inplace):
    size = 4 * 6 * 6
    # at the second convolution live x, its input and its output
    assert peak(Residual(inplace=inplace), (1, 4, 6, 6)) == 3 * size
    live = live_activations(Residual(inplace=inplace), (1, 4, 6, 6), inplace_add=False)
    assert live["operator"].str.rstrip("_").tolist() == ["convolution", "relu", "convolution", "add", "relu"]
    assert live["live"].tolist() == [2 * size, 2 * size, 3 * size, 3 * size, size]
    assert live_activations(Residual(), (1, 4, 6, 6))["live"].tolist()[3] == 2 * size


def test_a_concatenation_holds_its_parts():
    live = live_activations(Concatenate(), (1, 4, 5, 5))
    assert live["live"].tolist() == [25 * (4 + 6), 25 * (4 + 6 + 2), 25 * (8 + 8)]


def test_what_is_still_read_is_not_overwritten():
    class Before(
        nn.Module
    ):  # normalisation and ReLU in front of the convolution, as in later residual networks
        def __init__(self):
            super().__init__()
            self.relu, self.conv = nn.ReLU(), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(self.relu(x)) + x

    assert live_activations(Before(), (1, 2, 3, 3))["live"].tolist() == [36, 54, 36]


def test_views_and_weights_take_nothing():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)
            self.scale = nn.Parameter(torch.ones(5, 6))

        def forward(self, x):
            weight = self.layer.weight * self.scale.sigmoid()  # made of weights: no activation
            return nn.functional.linear(x.transpose(1, 2).flatten(1), weight)

    live = live_activations(Views(), (2, 6, 1))
    assert live.iloc[-1]["live"] == 12 + 10
    assert live["live"].max() == 22


def test_unused_and_returned_activations():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            self.b(x)
            kept = self.a(x)
            return kept, self.b(x)

    assert live_activations(Two(), (1, 4))["live"].tolist() == [4 + 2, 4 + 3, 4 + 3 + 2]


@pytest.mark.parametrize(
    ("make", "options", "inplace", "separate"),
    [
        (resnet, {"stride_in_1x1": True}, 1_806_336, 2_408_448),
        (resnet, {}, 1_806_336, 2_408_448),
        (resnext, {}, 2_007_040, 2_408_448),
        (resnext, {"width_per_group": 8}, 2_809_856, 2_809_856),
        (resnext, {"width_per_group": 48}, 12_845_056, 12_845_056),
    ],
)
def test_live_activations_of_known_networks(make, options, inplace, separate):
    model = on_meta(make, **options)
    assert peak(model, IMAGE) == inplace
    assert peak(model, IMAGE, inplace_add=False) == separate


def test_live_grows_with_the_batch_and_is_at_least_any_layer():
    model = on_meta(resnet, depth=18)
    table = count_operations(model, IMAGE)
    one = peak(model, IMAGE)
    assert one >= (table["input_elements"] + table["output_elements"]).max()
    assert peak(model, (3, 3, 224, 224)) == 3 * one


def test_trace_of_a_chain():
    model = nn.Sequential(*(nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise((3, 8, 16, 2))))
    made = trace(model, (1, 3, 4, 4))
    assert made.elements == [3 * 16, 8 * 16, 16 * 16, 2 * 16]
    assert [(step.layer, step.reads, step.writes) for step in made.steps] == [
        ("0", [0], [1]),
        ("1", [1], [2]),
        ("2", [2], [3]),
    ]
    assert (made.inputs, made.outputs, made.last_uses()) == ([0], [3], [0, 1, 2, 3])


# --- intensity ---


@given(st.integers(1, 100), st.integers(1, 200), st.integers(1, 200))
def test_intensity_of_a_fully_connected_layer(m, n, k):
    row = arithmetic_intensity(count_operations(nn.Linear(k, n), (m, k))).iloc[0]
    assert row["weights"] == pytest.approx(2 * m)
    assert row["activations_and_weights"] == pytest.approx(2 * m * n * k / (n * k + m * k + m * n))
    assert row["activations_and_weights"] < min(2 * m, 2 * n * k / (n + k))


@pytest.mark.parametrize(("rows", "printed"), [(1, 2.0), (10, 19.6), (16, 31.0), (64, 113.8), (100, 167.3)])
def test_intensity_of_a_square_layer_of_1024(rows, printed):
    table = count_operations(on_meta(nn.Linear, in_features=1024, out_features=1024), (rows, 1024))
    assert mean_and_minimum(table).loc["average", "weights"] == 2 * rows
    assert round(mean_and_minimum(table).loc["average", "activations_and_weights"], 1) == printed


@given(batch=st.integers(1, 4), groups=st.integers(1, 4), inner=st.integers(1, 3), stride=st.integers(1, 2))
def test_intensity_of_a_convolution_is_its_area(batch, groups, inner, stride):
    layer = nn.Conv2d(groups * inner, groups, 3, padding=1, stride=stride, groups=groups)
    row = arithmetic_intensity(count_operations(layer, (batch, groups * inner, 8, 10))).iloc[0]
    assert row["weights"] == 2 * batch * (8 // stride) * (10 // stride)


def test_depthwise_limits():
    def intensity(layer, shape):
        return arithmetic_intensity(count_operations(layer, shape))["activations_and_weights"].item()

    plain = nn.Conv2d(64, 64, 3, padding=1, groups=64, device="meta")
    assert intensity(plain, (1, 64, 100, 100)) == pytest.approx(18 * 10_000 / (9 + 2 * 10_000))
    strided = nn.Conv2d(64, 64, 3, padding=1, stride=2, groups=64, device="meta")
    assert intensity(strided, (1, 64, 1000, 1000)) == pytest.approx(3.6, abs=1e-3)
    video = nn.Conv3d(8, 8, 3, padding=1, stride=2, groups=8, device="meta")
    assert intensity(video, (1, 8, 64, 256, 256)) == pytest.approx(6.0, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "options", "weights", "both", "convolutions", "least"),
    [
        (resnet, {"stride_in_1x1": True}, 302.6, 166.9, (328.8, 174.6), 54.9),
        (resnet, {}, 320.7, 173.0, (348.5, 180.7), 63.4),
        (resnext, {}, 362.0, 185.3, (379.5, 189.7), 28.3),
        (resnext, {"width_per_group": 8}, 370.6, 218.0, (379.3, 221.0), 55.6),
        (resnext, {"width_per_group": 48}, 370.5, 281.5, (371.4, 282.0), 85.7),
    ],
)
def test_intensity_of_known_networks(make, options, weights, both, convolutions, least):
    table = count_operations(on_meta(make, **options), IMAGE)
    whole = mean_and_minimum(table).round(1)
    assert whole.loc["average"].tolist() == [weights, both]
    assert whole.loc["minimum", "weights"] == 2  # the fully connected layer, at batch 1
    part = mean_and_minimum(table[table["kind"] != "linear"]).round(1)
    assert tuple(part.loc["average"]) == convolutions
    assert part.loc["minimum"].tolist() == [98, least]
    assert arithmetic_intensity(table)["weights"].mean() > 3 * weights  # the mean of ratios is another number


# --- corners ---


def test_the_model_is_left_as_it_was():
    model = resnet(18, width=0.125, small_images=True).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    live_activations(model, (2, 3, 8, 8))
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"does not run on inputs of shape \(1, 3, 6, 6\)"):
        live_activations(Residual(), (1, 3, 6, 6))


@pytest.mark.parametrize(("depth", "convolved"), [(50, 11.114), (152, 22.554)])
def test_outputs_of_the_convolutions(depth, convolved):
    table = count_operations(on_meta(resnet, depth=depth), IMAGE)
    assert round(table["output_elements"][table["kind"] == "conv"].sum() / 1e6, 3) == convolved


def test_an_input_that_the_model_overwrites_is_left():
    x = torch.full((1, 2), -1.0)
    count_operations(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), inputs=x, device=None)
    live_activations(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), inputs=x, device=None)
    assert x.tolist() == [[-1.0, -1.0]]
