"""Outliers and 16-bit sums of whole networks: counts by hand, sums without a cut, what rules compare."""

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from lib.data.preprocessing import IMAGENET, SQUEEZENET
from lib.experiments import facebook_inference_pretrained as experiment
from lib.models.vision.mobilenet import MobileNetV2


@pytest.fixture
def small():
    torch.manual_seed(0)
    return MobileNetV2(width=0.1, last_channels=8, num_classes=3).eval()


def images(count):
    random = torch.Generator().manual_seed(0)
    return {f"picture {k}": torch.randn(1, 3, 32, 32, generator=random) for k in range(count)}


def test_photographs_are_cut_to_the_centre():
    grey = {"one": Image.new("RGB", (300, 300), (124, 117, 104))}
    for prepare, side in ((IMAGENET, 64), (SQUEEZENET, 227), (IMAGENET, 224)):
        assert experiment.cropped(grey, prepare, side)["one"].shape == (1, 3, side, side)
    assert experiment.cropped(grey, IMAGENET, 227)["one"].shape == (1, 3, 224, 224)


def test_outliers_are_counted_by_hand():
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[127.0, 63.0, 64.0, -64.0], [1.0, 1.0, 0.2, -0.6]])
    shares = experiment.outlier_shares(nn.Sequential(layer, nn.ReLU())).set_index(["scales", "bits"])
    assert shares["outliers"].to_dict() == {
        ("tensor", 7): 2 / 8,  # 127 and 64
        ("tensor", 6): 4 / 8,
        ("channel", 7): 5 / 8,  # 127, 64; both ones and −0.6, which is −76
        ("channel", 6): 7 / 8,
    }
    assert (shares["weights"] == 8).all()
    dead = nn.Linear(3, 2)
    nn.init.zeros_(dead.weight)
    assert (experiment.outlier_shares(dead)["outliers"] == 0).all()


def test_layers_with_few_outliers():
    rows = [("AlexNet", "tensor", 7, 0.001), ("AlexNet", "tensor", 6, 0.5), ("VGG-16", "tensor", 7, 0.0011)]
    rows += [("MobileNet-v2", "tensor", 7, 0.0), ("SqueezeNet", "channel", 7, 0.0)]
    shares = pd.DataFrame(rows, columns=["network", "scales", "bits", "outliers"])
    found = {"AlexNet and VGG-16": [1, 0], "SqueezeNet and MobileNet-v2": [1]}
    assert experiment.few_outliers(shares) == found


def test_errors_of_products(small):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    table = experiment.product_errors(small, images(2), layers=6)
    assert len(table) == 2 * 2 * len(experiment.SUMS)
    errors = table.groupby("sums")[["error", "cut"]].mean()
    assert 0 < errors.loc[experiment.EXACT, "error"] < 0.05 and errors.loc[experiment.EXACT, "cut"] == 0
    uncut = table[(table["cut"] == 0) & (table["sums"] != experiment.EXACT)]
    assert (uncut["error"] == 0).all() and len(uncut) < len(table)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    summed = experiment.errors_by_sums(table.assign(network="a"))
    assert list(summed) == ["error of products, a", "error of products, a, scales per channel"]
    rows = table.query("scales == 'channel' and sums == 'no split, after 64'")
    channel = summed["error of products, a, scales per channel"]
    assert channel["no split, after 64"] == rows["error"].tolist()
    pd.testing.assert_frame_equal(table, experiment.product_errors(small, images(2), layers=6))


def test_the_layer_of_the_image_and_groups_are_left_out():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False)
    )
    network[0].weight.data *= 1e6  # not a word of it in the result: behind it everything is relative
    ours = experiment.product_errors(network, images(1)).set_index(["scales", "sums"])["error"]
    with torch.no_grad():
        seen = network[:4](images(1)["picture 0"])
        alone = list(experiment._layer_errors(network[4], seen))
    assert {row[:2]: row[2] for row in alone} == ours.to_dict()


def test_errors_of_predictions(small):
    table = experiment.prediction_errors(small, images(3))
    assert len(table) == 3 * 2 * 3 and set(table["agreement"]) <= {0.0, 100.0}
    assert (table[table["sums"] == experiment.EXACT]["error"] < 0.5).all()
    found = experiment.errors_by_scales(table.assign(network="a"))
    assert list(found) == ["error of the logits, a"]
    scales = found["error of the logits, a"]
    assert sorted(scales) == ["one scale per channel", "one scale per tensor"]
    row = table.query("image == 'picture 1' and scales == 'tensor' and sums == '8 bits, sums exact'")
    assert scales["one scale per tensor"][1] == row["error"].item()
    with pytest.raises(ValueError, match="at least two are needed"):
        experiment.prediction_errors(small, images(1))
