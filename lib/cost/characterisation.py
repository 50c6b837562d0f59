"""A network as a row of the table in which Park et al. (arXiv:1811.09886) characterise theirs.

The table's own conventions could not be read, so every count is given in each way that it may be meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import nn

from lib.cost.activations import live_activations
from lib.cost.intensity import mean_and_minimum
from lib.cost.operations import count_operations, count_parameters, totals


def characterise(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    table: pd.DataFrame | None = None,
    separate_add: bool = True,
) -> pd.Series:
    """Parameters, live activations and arithmetic intensity of one pass, in each convention.

    Parameters and errors as `lib.cost.operations.count_operations`, whose result `table` is, if at hand.

    `separate_add` of False leaves out the second count of live activations.

    Returns
    -------
    Series with

    ``parameters (M)``
        All trainable ones, in millions.
    ``live (M)``, ``live, separate add (M)``
        Most elements of activations at once, in millions: skip connections added in place, or not.
    ``weights (M), W``
        Of the layers W, which are ``all layers`` or ``convolutions`` (all but the linear ones).
    ``average per weight, W`` and so on
        ``average`` (ratio of the sums) or ``minimum`` (smallest layer) of the operations ``per weight`` or
        ``per weight and activation`` (elements, not bytes).
    """
    if table is None:
        table = count_operations(model, input_shape, inputs=inputs)
    row = {"parameters (M)": count_parameters(model) / 1e6}
    ways = {"live (M)": True} | ({"live, separate add (M)": False} if separate_add else {})
    for name, in_place in ways.items():
        row[name] = (
            live_activations(model, input_shape, inputs=inputs, inplace_add=in_place)["live"].max() / 1e6
        )
    words = {"weights": "weight", "activations_and_weights": "weight and activation"}
    for layers, part in {"all layers": table, "convolutions": table[table["kind"] != "linear"]}.items():
        row[f"weights (M), {layers}"] = totals(part)["weights"] / 1e6
        for statistic, values in mean_and_minimum(part).iterrows():
            row |= {f"{statistic} per {words[name]}, {layers}": value for name, value in values.items()}
    return pd.Series(row, dtype=float)


def average_intensity(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    method: str = "forward",
    kind: str | None = None,
    per: str = "weights",
) -> float:
    """Operations per element, over all layers of a kind: the ratio of the sums.

    Parameters
    ----------
    model, input_shape, inputs, method
        As `lib.cost.operations.count_operations`; products outside the layers are left out.
    kind : str, optional
        Only layers of this kind, as ``lstm``; None: all.
    per : {"weights", "activations_and_weights"}

    Raises
    ------
    ValueError
        No layer of this kind, or an unknown `per`.
    """
    table = count_operations(model, input_shape, inputs=inputs, method=method, outside="ignore")
    if kind is not None and kind not in set(table["kind"]):
        raise ValueError(f"no layer of kind {kind!r}, only {', '.join(sorted(set(table['kind'])))}")
    if per not in ("weights", "activations_and_weights"):
        raise ValueError(f"per must be weights or activations_and_weights, got {per!r}")
    return float(
        mean_and_minimum(table if kind is None else table[table["kind"] == kind]).loc["average", per]
    )
