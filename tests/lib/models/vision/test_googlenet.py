"""GoogLeNet as Caffe has it: counts by equality, the paper's own table of modules, auxiliary heads."""

import pytest
import torch

from lib.cost.operations import count_operations, totals
from lib.models.vision.googlenet import INCEPTIONS, GoogLeNet

#: Output maps of the modules in the paper's table 1.
OUTPUTS = {
    "inception_3a": (256, 28), "inception_3b": (480, 28), "inception_4a": (512, 14),
    "inception_4b": (512, 14), "inception_4c": (512, 14), "inception_4d": (528, 14),
    "inception_4e": (832, 14), "inception_5a": (832, 7), "inception_5b": (1024, 7),
}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    with torch.device("meta"):
        return count_operations(GoogLeNet(), (1, 3, 224, 224))


def test_counts(table):
    sums = totals(table)
    assert (sums.weights, sums.biases) == (6_990_272, 8_280)
    assert (sums.macs, sums.macs + sums.bias_adds) == (1_582_671_872, 1_585_899_032)
    assert len(table) == 58  # 57 convolutions and the classifier


def test_what_the_paper_leaves_alone(table):
    spatial = table["kernel"].isin([(3, 3), (5, 5), (7, 7)])
    assert table.loc[spatial, ["weights", "macs"]].sum().tolist() == [3_705_792, 1_212_503_040]
    assert table.loc[~spatial, ["weights", "macs"]].sum().tolist() == [3_284_480, 370_168_832]


def test_the_modules_have_the_published_maps():
    with torch.device("meta"):
        model = GoogLeNet().eval()
        seen = {}
        for name, module in model.inceptions.items():
            module.register_forward_hook(
                lambda module, given, output, name=name: seen.update(
                    {name: (output.shape[1], output.shape[2])}
                )
            )
        model(torch.zeros(1, 3, 224, 224))
    assert seen == OUTPUTS and list(INCEPTIONS) == list(OUTPUTS)


def test_branches_stand_side_by_side():
    torch.manual_seed(0)
    module = GoogLeNet(width=1 / 8).inceptions["inception_3a"].eval()
    x = torch.randn(1, 24, 6, 6)
    out = module(x)
    for k, (start, stop) in enumerate(((0, 8), (8, 24), (24, 28), (28, 32))):
        part = list(module.children())[k](x)
        torch.testing.assert_close(out[:, start:stop], part)


def test_auxiliary_heads_in_training_only():
    model = GoogLeNet(width=1 / 8, num_classes=7, auxiliary=True)
    images = torch.randn(2, 3, 224, 224)
    logits = model.train()(images)
    assert [tuple(x.shape) for x in logits] == [(2, 7)] * 3
    sum(x.sum() for x in logits).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(images).shape == (2, 7)
    assert GoogLeNet(width=1 / 8, num_classes=7).train()(images).shape == (2, 7)


def test_bad_sizes():
    with pytest.raises(ValueError, match="width must be positive"):
        GoogLeNet(width=0)
