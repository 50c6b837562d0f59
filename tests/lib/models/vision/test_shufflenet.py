"""The reconstructed detector and its units: known counts, and what the parts compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lib.cost.activations import live_activations
from lib.cost.intensity import mean_and_minimum
from lib.cost.operations import count_operations, totals
from lib.models.vision.shufflenet import ShuffleDetector, ShuffleUnit


def on_meta(make, **options):
    with torch.device("meta"):
        return make(**options)


def regions_of(height, width, regions=25):
    return torch.zeros(1, 3, height, width, device="meta"), torch.zeros(regions, 4, device="meta")


def test_a_unit_written_out():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8, 8)
    for stride, outputs in ((1, 6), (2, 14)):
        unit = ShuffleUnit(6, outputs, stride=stride, groups=2, first_groups=2, width=4).eval()
        for norm in (unit.expand_norm, unit.depthwise_norm, unit.project_norm):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        y = F.relu(unit.expand_norm(F.conv2d(x, unit.expand.weight, groups=2)))
        y = y[:, [0, 2, 1, 3]]  # two groups of two, dealt like cards
        y = unit.depthwise_norm(F.conv2d(y, unit.depthwise.weight, stride=stride, padding=1, groups=4))
        y = unit.project_norm(F.conv2d(y, unit.project.weight, groups=2))
        y = F.relu(y + x if stride == 1 else torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        assert_close(unit(x), y)
        assert unit(x).shape == (2, outputs, 8 // stride, 8 // stride)


@pytest.mark.parametrize(
    ("height", "groups", "weights", "macs", "live", "average", "minimum"),
    [
        (600, 2, 6_332_576, 11_875_408_000, 10_020_100, [3751, 155], 3.59),
        (800, 2, 6_332_576, 13_996_186_400, 13_360_100, [4420, 147], 3.59),
        (600, 1, 12_577_984, 23_310_924_800, 10_020_100, [3707, 292], 3.59),
        (600, 4, 3_209_872, 6_157_649_600, 10_020_100, [3837, 82], 3.59),
    ],
)
def test_detector_counts(height, groups, weights, macs, live, average, minimum):
    model, inputs = on_meta(ShuffleDetector, groups=groups), regions_of(height, 800)
    table = count_operations(model, inputs=inputs, outside="raise")
    assert (totals(table)["weights"], totals(table)["macs"]) == (weights, macs)
    assert live_activations(model, inputs=inputs)["live"].max() == live
    intensity = mean_and_minimum(table)
    assert intensity.loc["average"].round().tolist() == average
    assert intensity.loc["minimum"].round(2).tolist() == [2 * 25 * 49, minimum]


def test_detector_runs_and_crops():
    detector = ShuffleDetector(channels=(48, 96, 192)).eval()
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 1.0]])
    with torch.no_grad():
        assert detector(torch.randn(1, 3, 64, 96), boxes).shape == (2, 192, 7, 7)
    features = torch.randn(1, 5, 14, 14)
    assert_close(detector.regions(features, boxes[:1]), features)  # the whole image at its own resolution
    # a map that is linear in x and y is read off exactly inside the image
    y, x = torch.meshgrid(torch.arange(28.0) + 0.5, torch.arange(56.0) + 0.5, indexing="ij")
    crops = detector.regions(torch.stack([x, y])[None], boxes[1:])
    centres = (torch.arange(14) + 0.5) / 14
    assert_close(crops[0, 0], (56 * (0.25 + 0.5 * centres)).expand(14, 14))
    assert_close(crops[0, 1, :13], (28 * (0.5 + 0.5 * centres))[:13, None].expand(13, 14))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ShuffleDetector(channels=(47, 96, 192)), r"must divide by 2·groups = 4, crop be at least 2"),
        (lambda: ShuffleDetector(crop=1), "crop be at least 2"),
        (
            lambda: ShuffleDetector(channels=(48, 96, 192))(torch.zeros(2, 3, 64, 64), torch.zeros(1, 4)),
            "give one image and boxes",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
