"""Arithmetic intensity: operations per element moved (Park et al., "Deep Learning Inference in Facebook Data
Centers", 2018), of layers and of whole networks, from the tables of `lib.cost.operations`.
"""

from __future__ import annotations

import pandas as pd


def arithmetic_intensity(table: pd.DataFrame) -> pd.DataFrame:
    """Operations of each layer per element that it must read or write.

    With M rows of activation, a fully connected layer M×K·K×N does 2M operations per weight and
    2MNK/(NK + MK + MN) per element of all three; a convolution with A output positions does 2·batch·A per
    weight, whatever its channels and groups. Elements, not bytes, so that the figures hold at any precision.

    Parameters
    ----------
    table
        From `lib.cost.operations.count_operations`; rows may be left out. The batch is that of the
        input it was counted with.

    Returns
    -------
    DataFrame with ``layer``, ``kind``, ``operations``, ``weights`` (operations per weight read) and
    ``activations_and_weights`` (operations per element of input, output and weights).
    """
    moved = table["weights_read"] + table["input_elements"] + table["output_elements"]
    return pd.DataFrame(
        {
            "layer": table["layer"],
            "kind": table["kind"],
            "operations": table["operations"],
            "weights": table["operations"] / table["weights_read"],
            "activations_and_weights": table["operations"] / moved,
        }
    )


def mean_and_minimum(table: pd.DataFrame) -> pd.DataFrame:
    """Arithmetic intensity of a whole network: the ratio of the sums, and its smallest layer.

    Leave out rows before, as ``table[table["kind"] != "linear"]``: a fully connected layer at batch 1 has
    two operations per weight and would be every minimum. The mean of the layers' ratios is another number,
    several times higher.

    Returns
    -------
    DataFrame with the rows ``average`` and ``minimum`` and the columns ``weights`` and
    ``activations_and_weights``.
    """
    layers = arithmetic_intensity(table)
    columns = ["weights", "activations_and_weights"]
    operations = table["operations"].sum()
    weights = table["weights_read"].sum()
    moved = weights + table["input_elements"].sum() + table["output_elements"].sum()
    return pd.DataFrame(
        [[operations / weights, operations / moved], layers[columns].min().tolist()],
        index=["average", "minimum"],
        columns=columns,
    )
