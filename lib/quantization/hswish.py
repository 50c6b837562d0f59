"""What different grids make of h-swish, the activation of MobileNet-v3: values from −3/8 up."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lib.metrics.signal import sqnr
from lib.quantization.duq import HSWISH_MINIMUM
from lib.quantization.uniform import Uniform

GRIDS = ("from 0", "symmetric", "from −3/8")


def grid_quality(h: Tensor, bits: int) -> dict[str, float]:
    """Signal to quantisation noise, in dB, of three grids, each at its range of least squared error.

    Parameters
    ----------
    h : (...)
        Outputs of h-swish.
    bits
        2..8.

    Returns
    -------
    dict
        ``"from 0"``: 2^bits levels from zero, as behind a ReLU. ``"symmetric"``: 2^bits − 1 levels about
        zero. ``"from −3/8"``: 2^bits levels from the minimum of h-swish.
    """
    results = {}
    for grid in GRIDS:
        shift = HSWISH_MINIMUM if grid == GRIDS[2] else 0.0
        quantizer = Uniform(bits, signed=grid == GRIDS[1], range_from="mse").initialise(h - shift)
        results[grid] = sqnr(h, quantizer(h - shift) + shift)
    return results


@torch.no_grad()
def hswish_outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Output of each ``nn.Hardswish``, flat, in order, with a copy of the network in evaluation mode."""
    kept, network = [], copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, nn.Hardswish):
            module.register_forward_hook(lambda module, inputs, output: kept.append(output.flatten().cpu()))
    network(images)
    return kept
