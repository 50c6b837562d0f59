"""Which test pictures are recognised, by hand and against torchmetrics."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy

from lib.data.images import ImageSet
from lib.training.classifiers import accuracy
from lib.training.hits import by_arm, hits


def images(labels, classes=4):
    """Pictures of one pixel, whose logits `Echo` makes of it: the kind that it names, then the next."""
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None] % classes
    return ImageSet(pixels, torch.tensor(labels), mean=0.0, std=1 / 255)


class Echo(nn.Module):
    def forward(self, images):
        named = images.flatten().round().long()
        return -((torch.arange(4) - named[:, None]) % 4).float()


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_by_hand(batch_size):
    source = images([0, 1, 3, 2, 1])  # the pixels are 0, 1, 2, 3, 0
    assert hits(Echo(), source, batch_size=batch_size).tolist() == [100, 100, 0, 0, 0]
    assert hits(Echo(), source, topk=2, batch_size=batch_size).tolist() == [100, 100, 100, 0, 100]
    assert hits(Echo(), source, topk=4).tolist() == [100] * 5


@pytest.mark.parametrize("topk", [1, 2])
def test_their_mean_is_the_accuracy_also_of_torchmetrics(topk):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    source = ImageSet(torch.randint(0, 256, (60, 1, 3, 3), dtype=torch.uint8), torch.randint(0, 4, (60,)))
    found = hits(network, source, topk=topk)
    assert set(found) == {0.0, 100.0} and found.shape == (60,)
    assert found.mean() == pytest.approx(accuracy(network, source, topk=(topk,))[f"top-{topk}"])
    scores = network(source.tensor())
    theirs = multiclass_accuracy(scores, source.labels, num_classes=4, top_k=topk, average="micro")
    assert found.mean() == pytest.approx(100 * theirs.item(), abs=1e-4)


@pytest.mark.parametrize("topk", [0, 5])
def test_no_such_k(topk):
    with pytest.raises(ValueError, match=f"k must be in 1..4, got {topk}"):
        hits(Echo(), images([0, 1]), topk=topk)


def test_logits_that_are_no_numbers():
    with pytest.raises(ValueError, match="logits must be finite"):
        hits(nn.Sequential(Echo(), nn.Threshold(9, float("nan"))), images([0, 1]))


def test_a_frame_of_each_arm():
    rows = [("b", 7, [100, 0, 0]), ("b", 5, [100, 100, 0]), ("a", 7, [0, 0, 0])]
    scores = pd.DataFrame(
        [{"arm": a, "seed": s, "hits": np.array(h), "top-1": np.mean(h)} for a, s, h in rows]
    )
    frames = by_arm(scores)
    assert list(frames) == ["b", "a"]
    assert frames["b"].index.tolist() == [7, 5]
    assert frames["b"].to_numpy().tolist() == [[100, 0, 0], [100, 100, 0]]
