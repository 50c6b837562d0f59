"""Top-k against torchmetrics and by hand."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from lib.metrics.classification import in_top_k


def test_by_hand_and_by_torchmetrics():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([1, 0])
    assert in_top_k(logits, labels, 1).tolist() == [False, False]
    assert in_top_k(logits, labels, 2).tolist() == [True, False]
    assert in_top_k(logits, labels, 3).tolist() == [True, True]
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 12), torch.randint(12, (500,))
    for k in (1, 5):
        expected = multiclass_accuracy(logits, labels, 12, average="micro", top_k=k)
        assert in_top_k(logits, labels, k).float().mean() == pytest.approx(expected.item())


def test_bad_input():
    with pytest.raises(ValueError, match="k must be in 1..3, got 4"):
        in_top_k(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        in_top_k(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 1)
