"""Video networks: the published zoo's counts, live activations, and a block written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lib.cost.activations import live_activations
from lib.cost.intensity import mean_and_minimum
from lib.cost.operations import count_operations, totals
from lib.models.vision.video_resnet import VideoBottleneck, ip_csn, ir_csn


def on_meta(make, *arguments, **options):
    with torch.device("meta"):
        return make(*arguments, **options)


def clip(side: int) -> tuple[int, ...]:
    return (1, 3, 32, side, side)


@pytest.mark.parametrize(
    ("make", "depth", "side", "weights", "macs"),
    [
        (ir_csn, 101, 224, 22_108_032, 56_468_187_136),
        (ip_csn, 101, 224, 24_479_616, 63_558_658_048),
        (ir_csn, 152, 224, 29_551_744, 74_046_244_864),
        (ip_csn, 152, 224, 32_840_832, 83_294_685_184),
        (ir_csn, 152, 256, 29_551_744, 96_713_211_904),
        (ip_csn, 152, 256, 32_840_832, 108_792_807_424),
    ],
)
def test_counts(make, depth, side, weights, macs):
    """At 256×256 these are the authors' published 29.6 M / 96.7 G and 32.8 M / 108.8 G."""
    table = count_operations(on_meta(make, depth), clip(side), outside="raise")
    assert (totals(table)["weights"], totals(table)["macs"]) == (weights, macs)
    zoo = {(ir_csn, 152, 256): (29.6, 96.7), (ip_csn, 152, 256): (32.8, 108.8)}.get((make, depth, side))
    if zoo:
        assert (round(weights / 1e6, 1), round(macs / 1e9, 1)) == zoo


@pytest.mark.parametrize(
    ("stem_pool", "live", "separate", "average", "convolutions", "minimum"),
    [
        (True, 57_802_752, 77_070_336, [5108, 193.0], 5305, [392, 5.9]),
        (False, 231_211_008, 308_281_344, [17_359, 175.8], 18_026, [1568, 6.0]),
    ],
)
def test_characterisation_of_ir_csn_101(stem_pool, live, separate, average, convolutions, minimum):
    model = on_meta(ir_csn, stem_pool=stem_pool)
    table = count_operations(model, clip(224))
    assert live_activations(model, clip(224))["live"].max() == live
    assert live_activations(model, clip(224), inplace_add=False)["live"].max() == separate
    whole, part = mean_and_minimum(table), mean_and_minimum(table[table["kind"] != "linear"])
    assert [round(whole.loc["average", "weights"]), whole.loc["average"].round(1).iloc[1]] == average
    assert round(part.loc["average", "weights"]) == convolutions
    assert part.loc["minimum"].round(1).tolist() == minimum


def test_kinds_of_convolution():
    ir, ip = (count_operations(on_meta(make), clip(224))["kind"].value_counts() for make in (ir_csn, ip_csn))
    assert ir["depthwise conv"] == ip["depthwise conv"] == 33
    assert ip["conv"] - ir["conv"] == 33


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_written_out(preserve, stride):
    torch.manual_seed(0)
    block = VideoBottleneck(8, 4, stride=stride, preserve_interaction=preserve).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.randn(2, 8, 4, 6, 6)
    y = F.relu(block.bn1(F.conv3d(x, block.conv1.weight)))
    if preserve:
        y = block.mix[1](F.conv3d(y, block.mix[0].weight))
    y = F.relu(block.bn2(F.conv3d(y, block.conv2.weight, stride=stride, padding=1, groups=4)))
    y = block.bn3(F.conv3d(y, block.conv3.weight))
    side = block.downsample[1](F.conv3d(x, block.downsample[0].weight, stride=stride))
    assert_close(block(x), F.relu(y + side))
    assert block(x).shape == (2, 16, 4 // stride, 6 // stride, 6 // stride)


def test_a_small_clip_runs():
    model = ir_csn(50, num_classes=5).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 8, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ir_csn(18), "depth must be one of 50, 101, 152, got 18"),
        (lambda: ir_csn(50, num_classes=0), r"sizes must be positive, got \(3, 4, 6, 3\), 0"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
