"""What different grids make of h-swish, the activation of MobileNet-v3: values from −3/8 up."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lib.inspection import captured, evaluating
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
def hswish_outputs(
    network: nn.Module, images: Tensor, side: Literal["input", "output"] = "output"
) -> list[Tensor]:
    """What each `nn.Hardswish` gives or takes, flat, on the CPU, in order of the pass, in evaluation mode."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Hardswish)]
    with evaluating(network), captured(network, names, side) as seen:
        network(images)
    return [values.flatten().cpu() for values in seen.values()]
