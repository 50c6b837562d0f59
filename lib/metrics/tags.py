"""How well tags are told: average precision and F1 of many tags that are each there or not."""

from __future__ import annotations

import torch
from torch import Tensor


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Average precision of each tag, (T,) float64; NaN for a tag that no picture has.

    The mean, over the pictures that have the tag, of the precision among all that score as high or higher:
    equal scores are taken together, so that their order decides nothing. A constant score gives the tag's
    share of the pictures.

    Parameters
    ----------
    scores : (N, T)
        Higher is surer; finite.
    truth : (N, T)
        0 or 1, or bool.

    Raises
    ------
    ValueError
        Shapes differ, truth is something else than 0 and 1, or a score is not a number.
    """
    truth = _checked(scores, truth)
    order = scores.argsort(0, descending=True)
    sorted_scores, hits = scores.gather(0, order), truth.gather(0, order).double()
    found = hits.cumsum(0)
    # The last place of each run of equal scores: a column of its own, so from the end upwards.
    places = torch.arange(len(scores), device=scores.device)[:, None].expand_as(scores)
    last = torch.ones_like(truth)
    last[:-1] = sorted_scores[1:] != sorted_scores[:-1]
    end = torch.where(last, places, len(scores)).flip(0).cummin(0).values.flip(0)
    precision = found.gather(0, end) / (end + 1)
    return (precision * hits).sum(0) / hits.sum(0)


def mean_average_precision(scores: Tensor, truth: Tensor) -> float:
    """The mean of `average_precision` over the tags that some picture has.

    Raises
    ------
    ValueError
        As `average_precision`; or no picture has a tag.
    """
    values = average_precision(scores, truth)
    if values.isnan().all():
        raise ValueError("no picture has any tag: there is no average precision")
    return float(values.nanmean())


def f1(predicted: Tensor, truth: Tensor) -> Tensor:
    """F1 of each tag, (T,) float64: the harmonic mean of precision and recall; 0 where nothing was right.

    NaN for a tag that is neither there nor predicted.

    Parameters
    ----------
    predicted, truth : (N, T)
        0 or 1, or bool.

    Raises
    ------
    ValueError
        Shapes differ, or a value is neither 0 nor 1.
    """
    predicted, truth = _checked(truth, predicted), _checked(predicted, truth)
    right = (predicted & truth).sum(0).double()
    return 2 * right / (predicted.sum(0) + truth.sum(0))


def micro_f1(predicted: Tensor, truth: Tensor) -> float:
    """F1 over all tags of all pictures together; parameters and errors as of `f1`.

    Raises
    ------
    ValueError
        As `f1`; or nothing is there and nothing predicted.
    """
    value = f1(predicted.reshape(-1, 1), truth.reshape(-1, 1))
    if value.isnan():
        raise ValueError("no tag is there and none predicted: there is no F1")
    return float(value)


def _checked(scores: Tensor, truth: Tensor) -> Tensor:
    if scores.dim() != 2 or scores.shape != truth.shape or not scores.numel():
        raise ValueError(f"expected two (N, T), got {tuple(scores.shape)} and {tuple(truth.shape)}")
    if not scores.isfinite().all():
        raise ValueError("scores must be finite")
    if ((truth != 0) & (truth != 1)).any():
        raise ValueError("tags are 0 or 1, something else was found")
    return truth.bool()
