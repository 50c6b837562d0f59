"""Whether a classifier was right, image by image."""

from __future__ import annotations

from torch import Tensor


def in_top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the k largest logits.

    Parameters
    ----------
    logits : (N, classes)
    labels : (N,) int64
    k : int

    Returns
    -------
    (N,) bool

    Raises
    ------
    ValueError
        k is below 1 or above the number of classes, or the shapes do not fit.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected logits (N, classes) and labels (N,), got {shapes}")
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be in 1..{logits.shape[1]}, got {k}")
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1)
