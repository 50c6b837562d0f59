"""Forward passes of single layers, to be timed by `lib.cost.latency`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn


def forward_pass(module: nn.Module, input_shape: Sequence[int]) -> Callable[[], Tensor]:
    """A function that runs ``module`` on one fixed random input, without gradients: () to its output."""
    parameter = next(module.parameters(), torch.empty(0))
    images = torch.randn(tuple(input_shape), dtype=parameter.dtype, device=parameter.device)

    def run() -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


def layer_passes(model: nn.Module, table: pd.DataFrame) -> dict[str, Callable[[], Tensor]]:
    """A `forward_pass` of every layer in a table of `lib.cost.operations.count_operations`, by its name.

    A layer that is used twice gets its first input's shape.

    Raises
    ------
    AttributeError
        The model has no layer of that name.
    """
    once = table[table["use"] == 0]
    return {
        row.layer: forward_pass(model.get_submodule(row.layer), row.input_shape) for row in once.itertuples()
    }
