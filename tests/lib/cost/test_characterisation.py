"""Rows of the table: published sizes, hand counts, closed forms."""

import pytest
import torch
from torch import nn

from lib.cost.characterisation import average_intensity, characterise
from lib.models.vision.resnet import resnet


def test_resnet_50_in_every_convention():
    """Published sizes; the other numbers were counted independently."""
    with torch.device("meta"):
        model = resnet(50, stride_in_1x1=True)
    row = characterise(model, (1, 3, 224, 224))
    assert row["parameters (M)"] == 25.557032 and row["weights (M), all layers"] == 25.502912
    assert row["weights (M), convolutions"] == pytest.approx(25.502912 - 2.048)
    assert [row["live (M)"], row["live, separate add (M)"]] == [1.806336, 2.408448]
    expected = {
        "average per weight, all layers": 302.6,
        "average per weight, convolutions": 328.8,
        "minimum per weight, convolutions": 98,
        "minimum per weight, all layers": 2,
        "average per weight and activation, all layers": 166.9,
        "minimum per weight and activation, convolutions": 54.9,
    }
    assert {name: round(row[name], 1) for name in expected} == expected


def test_a_chain_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    row = characterise(model, (1, 2, 4, 4))
    conv, linear = 2 * 16 * 54, 2 * 240
    assert row["average per weight, all layers"] == pytest.approx((conv + linear) / (54 + 240))
    assert row["average per weight and activation, convolutions"] == pytest.approx(conv / (54 + 32 + 48))
    assert row["live (M)"] == pytest.approx((32 + 48) / 1e6)


@pytest.mark.parametrize("rows", [1, 10, 64])
def test_closed_forms(rows):
    layer = nn.Linear(32, 8, device="meta")
    assert average_intensity(layer, (rows, 32)) == 2 * rows
    moved = 32 * 8 + rows * (32 + 8)
    assert average_intensity(layer, (rows, 32), per="activations_and_weights") == 2 * rows * 32 * 8 / moved
    bag = nn.EmbeddingBag(9, 4, mode="sum", device="meta")
    index = torch.zeros(rows, 7, dtype=torch.int64)
    assert average_intensity(bag, inputs=(index,)) == 1
    assert average_intensity(bag, inputs=(index, None, torch.ones(rows, 7))) == 2


def test_bad_input_is_refused():
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="no layer of kind 'lstm', only linear"):
        average_intensity(layer, (1, 3), kind="lstm")
    with pytest.raises(ValueError, match="per must be"):
        average_intensity(layer, (1, 3), per="bytes")
