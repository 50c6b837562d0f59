"""Shallower versions of networks made of stages of residual blocks."""

from __future__ import annotations

from torch import nn


def shallower(network: nn.Module, repeats: int = 1) -> nn.Module:
    """Keep at most ``repeats`` blocks of each stage, in place; returns the network.

    A stage is a block that changes the shape and the residual blocks behind it, which do not: without some
    of them every other layer still fits.

    Parameters
    ----------
    network
        With ``features``, a sequence in which a residual block has ``residual = True``, as
        `lib.models.vision.mobilenet` has them.
    repeats
        At least 1, which leaves no residual block.

    Raises
    ------
    ValueError
        ``repeats`` is below 1, or the network has no residual blocks to leave out.
    """
    blocks = list(network.features)
    if repeats < 1 or not any(getattr(block, "residual", False) for block in blocks):
        raise ValueError(f"repeats must be at least 1 and there must be residual blocks, got {repeats}")
    kept, run = [], 0
    for block in blocks:
        run = run + 1 if getattr(block, "residual", False) else 0
        if run < repeats:
            kept.append(block)
    network.features = nn.Sequential(*kept)
    return network
