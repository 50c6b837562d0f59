"""Head overlap against SciPy's Jensen–Shannon distance and its limits."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from lib.metrics.attention import head_overlap, jensen_shannon_divergence


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def test_divergence_is_scipys_squared_distance():
    p, q = maps(7, 5), maps(7, 5, seed=1)
    expected = jensenshannon(p.numpy(), q.numpy(), base=2, axis=-1) ** 2
    np.testing.assert_allclose(jensen_shannon_divergence(p, q).numpy(), expected, atol=1e-6)


def test_limits():
    same = maps(2, 1, 4, 4).expand(2, 3, 4, 4)
    real = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(head_overlap(same, real), torch.ones(2))
    disjoint = torch.eye(4).repeat(1, 2, 1, 1)
    disjoint[:, 1] = disjoint[:, 1].roll(1, -1)
    torch.testing.assert_close(head_overlap(disjoint, real[:1]), torch.zeros(1))


def test_mean_over_pairs_and_real_queries_only():
    attention, real = maps(2, 3, 5, 5), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    expected = []
    for b in range(2):
        pairs = [
            1 - jensenshannon(attention[b, i, t], attention[b, j, t], base=2) ** 2
            for i, j in ((0, 1), (0, 2), (1, 2))
            for t in range(5)
            if real[b, t]
        ]
        expected.append(np.mean(pairs))
    np.testing.assert_allclose(head_overlap(attention, real).numpy(), expected, atol=1e-6)
    padded = attention.clone()
    padded[0, :, :2] = maps(3, 2, 5, seed=9)
    torch.testing.assert_close(head_overlap(padded, real), head_overlap(attention, real))


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="heads >= 2"):
        head_overlap(maps(1, 1, 4, 4), torch.ones(1, 4).bool())
    with pytest.raises(ValueError, match="real must be"):
        head_overlap(maps(1, 2, 4, 4), torch.ones(1, 3).bool())
