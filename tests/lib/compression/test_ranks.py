"""Rank rules in closed form, and the plans that are made of their answers."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.compression.ranks import Plan, choose, energy_rank, kernels, plan


def test_energy_rank():
    left, right = (np.linalg.qr(np.random.RandomState(0).randn(n, 4))[0] for n in (6, 9))
    matrix = left * np.sqrt([5.0, 3.0, 1.5, 0.5]) @ right.T  # of 10: 5, 8, 9.5, 10
    expected = {0.4: 1, 0.5: 1, 0.51: 2, 0.8: 2, 0.9: 3, 0.96: 4}
    assert {share: energy_rank(matrix, share) for share in expected} == expected
    assert energy_rank(np.zeros((3, 4))) == 0
    with pytest.raises(ValueError, match="share must be in"):
        energy_rank(matrix, 0.0)


def test_a_rule_is_asked_about_each_side_of_each_group():
    """The unfoldings by indexing: a row for each channel of the side, in the kernel's own order."""
    layer = nn.Conv2d(4, 6, (2, 3), groups=2)
    weight = layer.weight.detach().numpy()  # (6, 2, 2, 3): two groups of three outputs and two inputs
    seen = []

    def rule(unfolding):
        seen.append(unfolding)
        return len(seen) % 2 + 1

    assert choose(layer, rule, None, one_sided=False) == Plan("Tucker-2", 1, 2)
    expected = []
    for group in (weight[:3], weight[3:]):
        expected.append(np.stack([group[t].ravel() for t in range(3)]))
        expected.append(np.stack([group[:, s].ravel() for s in range(2)]))
    for asked, unfolding in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(asked, unfolding)
    assert not np.array_equal(expected[1], expected[0].reshape(2, -1))  # a plain reshape is no unfolding
    seen.clear()
    assert choose(layer, rule, None, one_sided=True) == Plan("Tucker-1", None, 2) and len(seen) == 2


def test_rank_zero_becomes_one_and_is_noted():
    layer = nn.Conv2d(4, 6, 3)
    assert choose(layer, lambda v: 0 if len(v) == 4 else 3, None, one_sided=False) == Plan(
        "Tucker-2", 1, 3, True
    )
    assert choose(nn.Linear(4, 6), lambda v: 0, None, one_sided=False) == Plan("SVD", None, 1, True)


def test_given_ranks():
    matrix, convolution = nn.Linear(12, 5), nn.Conv2d(4, 6, 3)
    assert plan(convolution, (2, 3), None) == Plan("Tucker-2", 2, 3)
    assert plan(convolution, 3, None) == Plan("Tucker-1", None, 3)
    assert plan(matrix, 3, None) == Plan("SVD", None, 3)
    assert plan(matrix, (2, 3), (3, 2, 2)) == Plan("Tucker-2", 2, 3, feature_map=(3, 2, 2))
    (kernel,) = kernels(matrix, (3, 2, 2))
    assert torch.equal(
        kernel[1, 2], matrix.weight[1, 8:].reshape(2, 2)
    )  # map channels come one after the other
    with pytest.raises(ValueError, match="rank must be a whole number in 1..5, got 6"):
        plan(matrix, 6, None)
    with pytest.raises(ValueError, match="input rank R3 must be a whole number in 1..4, got 5"):
        plan(convolution, (5, 3), None)


def test_ranks_are_whole_numbers():
    layer = nn.Conv2d(4, 5, 3)
    for ranks in (2.0, 2.5, (2, 2.0)):
        with pytest.raises(ValueError, match=r"must be a whole number in 1\.\.5, got 2"):
            plan(layer, ranks, None)
    assert plan(layer, (np.int64(2), 3), None) == Plan("Tucker-2", 2, 3)
    with pytest.raises(ValueError, match=r"the rule chose rank 2\.7"):
        choose(layer, lambda unfolding: 2.7, None, one_sided=True)


def test_energy_in_any_unit():
    matrix = np.random.RandomState(0).randn(6, 20)
    assert energy_rank(matrix) == energy_rank(matrix * 1e200) == energy_rank(matrix * 1e-200) > 1
