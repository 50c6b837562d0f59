"""Counted memory of a training step, against brute force, hand computation and the square root law."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lib.cost.checkpointing import checkpoint_cost, checkpoint_optimum
from lib.models.vision.inception import InceptionV3
from lib.models.vision.resnet import resnet
from lib.quantization.training_memory import KINDS, Stored, bits_per_value, family, sensitivity, units

sizes = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6)


@given(sizes=sizes, factor=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_the_optimum_is_that_of_all_placements(sizes, factor):
    outputs, interiors = zip(*sizes, strict=True)
    costs = []
    for count in range(len(outputs) + 1):
        for kept in combinations(range(len(outputs)), count):
            cost = checkpoint_cost(outputs, interiors, list(kept))
            costs.append(cost.checkpoints + factor * cost.segment)
    stored = Stored(outputs, interiors, 0)
    assert stored.checkpoint_bytes(factor=factor) == 4 * min(costs)
    found = checkpoint_optimum(outputs, interiors, factor=factor)
    assert found.checkpoints + factor * found.segment == min(costs)


def test_equal_units_need_twice_the_square_root():
    stored = Stored((10,) * 100, (0,) * 100, 0)
    assert stored.checkpoint_bytes() / 40 == pytest.approx(2 * 100**0.5, abs=1.5)
    assert stored.checkpoint_bytes(10) == 4 * (9 * 10 + 10 * 10)
    assert stored.checkpoint_bytes("every unit") == 4 * 100 * 10


def test_bits_per_value():
    assert bits_per_value() == pytest.approx(4.28) and bits_per_value(mask=True) == pytest.approx(5.28)
    assert bits_per_value(4, 0.01, value_bits=16, index_bits=0) == pytest.approx(4.16)


def test_a_network_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1), nn.ReLU())
    stored = Stored.of(net, ["1", "2", "4"], (1, 3, 8, 8))
    assert (stored.outputs, stored.interiors, stored.image) == ((256, 64, 32), (0, 0, 0), 192)
    assert stored.full_bytes() == 4 * (256 + 64 + 32 + 192)
    assert stored.packed_bytes() == pytest.approx((256 + 64 + 32) * 4.28 / 8 + 192 * 4)
    assert stored.packed_bytes(8, image_bits=0) == 256 + 64 + 32
    joined = stored.with_first_units_joined(2)
    assert (joined.outputs, joined.interiors) == ((64, 32), (256, 0))


@pytest.fixture(scope="module")
def networks():
    with torch.device("meta"):
        return {
            "ResNet-152": (resnet(152), (1, 3, 224, 224)),
            "Inception-v3": (InceptionV3(), (1, 3, 299, 299)),
        }


def test_megabytes_of_the_two_networks_under_the_natural_convention(networks):
    """Numbers computed independently, by hooks on other implementations of the two networks."""
    expected = {"ResNet-152": (85.60, 20.673, 11.971, 42.1), "Inception-v3": (47.80, 15.795, 7.322, 53.6)}
    for name, (full, checkpoints, packed, reduction) in expected.items():
        net, shape = networks[name]
        stored = Stored.of(net, units(net), shape)
        assert stored.full_bytes() / 1e6 == pytest.approx(full, abs=0.01)
        assert stored.checkpoint_bytes() / 1e6 == pytest.approx(checkpoints, abs=0.001)
        assert stored.packed_bytes() / 1e6 == pytest.approx(packed, abs=0.0015)
        assert stored.reduction() == pytest.approx(reduction, abs=0.06)


def test_the_reduction_with_one_detail_changed(networks):
    """Numbers computed independently for two other formats and two other ways with the image."""
    expected = {
        "4.22 bits per value (codes for the small values only)": (42.9, 54.2),
        "3.96 bits per value (large values of 16 bits)": (46.2, 56.6),
        "image not counted": (43.4, 57.6),
        "image packed like all else": (44.6, 59.5),
    }
    for column, (net, shape) in enumerate(networks.values()):
        found = sensitivity(net, shape)
        assert found.iloc[0] == Stored.of(net, units(net), shape).reduction()
        for detail, reductions in expected.items():
            assert found[detail] == pytest.approx(reductions[column], abs=0.06)


def test_the_family_of_a_small_network():
    net, shape = resnet(18), (1, 3, 64, 64)
    table = family(net, shape)
    assert set(table["counted"]) == set(KINDS) and set(table["stem"]) == {"cut", "whole"}
    for cut, name in ((True, "cut"), (False, "whole")):
        for counted in KINDS if name == "whole" else list(KINDS)[:2]:
            direct = Stored.of(net, units(net, cut_stem=cut), shape, counted=counted)
            rows = table[(table["counted"] == counted) & (table["stem"] == name)]
            row = rows[(rows["checkpoints"] == "optimal") & (rows["factor"] == 1)]
            assert float(row["reduction"].iloc[0]) == direct.reduction()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="counted must be one of"):
        Stored.of(nn.Conv2d(3, 3, 1), [""], (1, 3, 8, 8), counted="all")
    with pytest.raises(ValueError, match="from 1 to 2 groups"):
        Stored((1, 2), (0, 0), 0).checkpoint_bytes(3)
