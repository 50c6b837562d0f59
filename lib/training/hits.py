"""Which test pictures a classifier recognises: what intervals over seeds *and* pictures are made of."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn

from lib.data.images import ImageSet
from lib.training.classifiers import logits


def hits(
    network: nn.Module, images: ImageSet, *, topk: int = 1, batch_size: int = 250, device: str = "cpu"
) -> np.ndarray:
    """100 for each picture that is recognised, 0 for the others: (N,), whose mean is the accuracy in percent.

    Recognised: its label has one of the `topk` largest logits.

    Parameters
    ----------
    network, images, batch_size, device
        As for `lib.training.classifiers.logits`.
    topk
        From 1 to the number of classes.

    Raises
    ------
    ValueError
        `topk` is out of range, or a logit is not a number.
    """
    scores = logits(network, images, batch_size=batch_size, device=device)
    if not scores.isfinite().all():
        raise ValueError("logits must be finite to be ranked, some are not")
    if not 1 <= topk <= scores.shape[1]:
        raise ValueError(f"k must be in 1..{scores.shape[1]}, got {topk}")
    order = scores.topk(topk, dim=1).indices
    return 100.0 * (order == images.labels[:, None]).any(dim=1).numpy()


def by_arm(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`hits` as rules with a unit want them: a frame (seeds, pictures) of each arm.

    Parameters
    ----------
    scores
        A row per arm and seed: ``arm``, ``seed`` and ``hits``.
    """
    return {
        arm: pd.DataFrame(np.stack(rows["hits"]), index=pd.Index(rows["seed"], name="seed"))
        for arm, rows in scores.groupby("arm", sort=False)
    }
