"""The passes are those of the layers in the table, with the shapes that they see in the network."""

import pytest
import torch
from torch import nn

from lib.cost.operations import count_operations
from lib.cost.passes import forward_pass, layer_passes


def test_each_layer_runs_on_the_shape_that_it_sees():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5)).double()
    table = count_operations(model, (2, 3, 7, 7))
    passes = layer_passes(model, table)
    outputs = {name: run() for name, run in passes.items()}
    assert {name: tuple(out.shape) for name, out in outputs.items()} == {"0": (2, 8, 3, 3), "3": (2, 5)}
    for out in outputs.values():
        assert out.dtype == torch.float64 and not out.requires_grad
    assert torch.equal(passes["0"](), outputs["0"])  # the same input each time
    with pytest.raises(AttributeError):
        layer_passes(nn.Sequential(), table)


def test_a_module_without_weights():
    torch.manual_seed(3)
    run = forward_pass(nn.ReLU(), (2, 3))
    torch.manual_seed(3)
    images = torch.randn(2, 3)
    assert (images < 0).any()  # or the rectifier would do nothing
    assert torch.equal(run(), torch.where(images > 0, images, 0.0))
