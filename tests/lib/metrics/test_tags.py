"""Metrics of tags against scikit-learn, ties and absent tags included."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from lib.metrics.tags import average_precision, f1, mean_average_precision, micro_f1


def drawn(seed, count=60, tags=9, levels=0):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, tags, generator=draw)
    truth = torch.rand(count, tags, generator=draw) < torch.linspace(0.05, 0.9, tags)
    truth[0] = True  # no tag is absent
    return (scores * levels).round() if levels else scores, truth


@pytest.mark.parametrize("levels", [0, 1, 4])
def test_average_precision_is_scikit_learns(levels):
    for seed in range(5):
        scores, truth = drawn(seed, levels=levels)
        expected = [average_precision_score(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]
        np.testing.assert_allclose(average_precision(scores, truth), expected, rtol=1e-12)
        assert mean_average_precision(scores, truth) == pytest.approx(np.mean(expected))


def test_average_precision_of_what_is_known():
    truth = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    scores = torch.tensor([[4.0, 0, 1], [3, 0, 2], [2, 0, 3], [1, 0, 4]])
    found = average_precision(scores, truth)
    assert found[:2].tolist() == [1.0, 0.25] and found[2].isnan()  # constant: the tag's share
    assert mean_average_precision(scores, truth) == 0.625
    assert average_precision(-scores, truth)[0] == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_f1_is_scikit_learns():
    for seed in range(5):
        scores, truth = drawn(seed)
        predicted = scores > 0.5
        np.testing.assert_allclose(f1(predicted, truth), f1_score(truth, predicted, average=None))
        expected = f1_score(truth, predicted, average="micro")
        assert micro_f1(predicted, truth) == pytest.approx(expected)
    nothing = torch.zeros(3, 2)
    assert f1(nothing, nothing).isnan().all()
    assert f1(nothing, torch.ones(3, 2)).tolist() == [0.0, 0.0]


def test_what_is_no_tag_is_refused():
    scores, truth = drawn(0)
    with pytest.raises(ValueError, match=r"two \(N, T\)"):
        average_precision(scores, truth[:, :2])
    with pytest.raises(ValueError, match="finite"):
        average_precision(scores / 0, truth)
    for measure in (average_precision, f1):
        with pytest.raises(ValueError, match="0 or 1"):
            measure(truth.float(), truth * 2)
    with pytest.raises(ValueError, match="0 or 1"):
        f1(scores, truth)
    with pytest.raises(ValueError, match="no picture has any tag"):
        mean_average_precision(scores, torch.zeros_like(truth))
    with pytest.raises(ValueError, match="no F1"):
        micro_f1(torch.zeros(3, 2), torch.zeros(3, 2))
