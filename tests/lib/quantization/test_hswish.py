"""Grids for h-swish against numbers found by a grid search of another program, and outputs of real layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.models.vision.mobilenet import MobileNetV3Large
from lib.quantization.hswish import grid_quality, hswish_outputs

#: Standard deviation of normal inputs, bits, dB of the three grids; 200,000 samples, best range by search.
MEASURED = [
    (1, 3, 9.16, 9.67, 14.17), (1, 4, 9.67, 15.39, 19.32), (2, 3, 14.74, 11.49, 15.60),
    (2, 4, 16.36, 15.24, 21.48), (4, 3, 18.07, 13.07, 16.96), (4, 4, 21.95, 18.07, 20.62),
]  # fmt: skip


@pytest.mark.parametrize(("sigma", "bits", "zero", "symmetric", "shifted"), MEASURED)
def test_quality_of_three_grids(sigma, bits, zero, symmetric, shifted):
    h = F.hardswish(sigma * torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    quality = grid_quality(h, bits)
    expected = {"from 0": zero, "symmetric": symmetric, "from −3/8": shifted}
    assert quality == pytest.approx(expected, abs=0.25)


def test_outputs_of_the_layers():
    network = MobileNetV3Large(num_classes=10, width=0.25).train()
    images = torch.rand(2, 3, 32, 32)
    outputs = hswish_outputs(network, images)
    assert len(outputs) == sum(isinstance(m, nn.Hardswish) for m in network.modules())
    assert all(h.dim() == 1 and h.min() >= -0.375 for h in outputs)
    assert all(m.training and not m._forward_hooks for m in network.modules())
    with torch.no_grad():  # the first is the stem's, in evaluation mode
        stem = network.eval().features[0](images)
    assert torch.equal(outputs[0], stem.flatten())
    inputs = hswish_outputs(network, images, "input")
    assert all(torch.allclose(F.hardswish(x), h) for x, h in zip(inputs, outputs, strict=True))
