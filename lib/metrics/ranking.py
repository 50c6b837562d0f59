"""Ranking metrics for one relevant item per list: Recall@k (hit rate) and NDCG@k.

Ranks are computed once, as (how many candidates score better, how many others score the same), so that ties
can be settled honestly: each metric is its exact expectation over a uniformly random order of the tied
candidates. Sorting instead lets the sort's implementation decide, and a model with constant scores can seem
perfect or useless.

For parity with MEANTIME's authors (their code, commit a9ca2e7) there is ``tie_break="raw"``, the position in
an unstable ``argsort``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

#: Types that count: truth values do not.
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def target_rank(
    scores: Tensor, target: int | Tensor = 0, exclude: Tensor | None = None, *, tie_break: str = "expected"
) -> tuple[Tensor, Tensor]:
    """Where the target stands among the candidates.

    Parameters
    ----------
    scores
        (B, C), higher is better; infinite values are allowed, NaN is not.
    target
        Column of the relevant candidate, one for all rows or (B,).
    exclude
        (B, C) bool, candidates to leave out, such as a user's history in a full ranking.
    tie_break
        ``"expected"`` counts ties; ``"raw"`` takes the target's position in ``argsort(-scores)``, which is
        not stable, and reports no ties (the authors' way, whatever the sort makes of it).

    Returns
    -------
    better
        (B,) int64, candidates that score above the target.
    ties
        (B,) int64, other candidates with exactly the target's score.

    Raises
    ------
    ValueError
        For wrong shapes, NaN, a target that is no column, an excluded target, an unknown ``tie_break``.
    """
    if scores.is_complex():
        raise ValueError(f"scores must be real numbers, got {scores.dtype}")
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be a non-empty (B, C), got shape {tuple(scores.shape)}")
    if torch.isnan(scores).any():
        raise ValueError(
            f"scores contain {int(torch.isnan(scores).sum())} NaN of {scores.numel()}: nothing to rank"
        )
    column = torch.as_tensor(target, device=scores.device)
    if column.dtype not in INTEGERS:
        raise ValueError(f"target must be whole numbers of columns, got {column.dtype}")
    if column.shape not in ((), (len(scores),)):
        raise ValueError(f"target must be one column or ({len(scores)},), got shape {tuple(column.shape)}")
    column = column.expand(len(scores)).long()[:, None]
    if column.min() < 0 or column.max() >= scores.shape[1]:
        raise ValueError(
            f"target must be a column in 0..{scores.shape[1] - 1}, got {column.min()}..{column.max()}"
        )
    left_out = torch.zeros_like(scores, dtype=torch.bool) if exclude is None else exclude
    if left_out.shape != scores.shape or left_out.dtype != torch.bool:
        raise ValueError(
            f"exclude must be bool {tuple(scores.shape)}, got {left_out.dtype} {tuple(left_out.shape)}"
        )
    if left_out.gather(1, column).any():
        raise ValueError("the target is among the excluded candidates")
    if tie_break == "raw":
        ordered = scores if scores.is_floating_point() else scores.double()
        order = torch.argsort(-ordered.masked_fill(left_out, -math.inf), dim=1)
        better = (order == column).long().argmax(dim=1)
        return better, torch.zeros_like(better)
    if tie_break != "expected":
        raise ValueError(f'tie_break must be "expected" or "raw", got {tie_break!r}')
    own = scores.gather(1, column)
    better = ((scores > own) & ~left_out).sum(dim=1)
    equal = ((scores == own) & ~left_out).sum(dim=1)
    return better, equal - 1


def recall_at(k: int, better: Tensor, ties: Tensor) -> Tensor:
    """Recall@k of each row: the probability that the target is among the first k.

    With one relevant item this is the hit rate. 1 if better + ties < k, 0 if better >= k, else the share of
    the tied places that lie within the first k.

    Parameters
    ----------
    k
        A whole number of at least 1.
    better, ties
        (B,), from `target_rank`.

    Returns
    -------
    (B,) float64 in [0, 1].

    Raises
    ------
    ValueError
        For another k, or ``better`` and ``ties`` that are not integers of one shape.
    """
    _check(k, better, ties)
    return (k - better).clamp(min=0).minimum(ties + 1).double() / (ties + 1)


def ndcg_at(k: int, better: Tensor, ties: Tensor) -> Tensor:
    """NDCG@k of each row: the expectation of [rank <= k] / log2(rank + 1); the ideal DCG is 1.

    Parameters, result and errors as `recall_at`.
    """
    _check(k, better, ties)
    ranks = torch.arange(1, k + 1, dtype=torch.float64, device=better.device)
    gains = torch.cat(
        [ranks.new_zeros(1), (1 / torch.log2(ranks + 1)).cumsum(0)]
    )  # gains[r]: sum over ranks 1..r
    return (gains[(better + ties + 1).clamp(max=k)] - gains[better.clamp(max=k)]) / (ties + 1)


def metrics_at(ks: Sequence[int], better: Tensor, ties: Tensor) -> dict[str, Tensor]:
    """Recall and NDCG at each k, as ``{"Recall@5": (B,), "NDCG@5": (B,), ...}``; see `recall_at`."""
    metrics = {"Recall": recall_at, "NDCG": ndcg_at}
    return {f"{name}@{k}": metric(k, better, ties) for k in ks for name, metric in metrics.items()}


def chance_level(k: int, num_candidates: int) -> tuple[float, float]:
    """Recall@k and NDCG@k of a model that knows nothing, among ``num_candidates`` including the target.

    Raises
    ------
    ValueError
        If k or ``num_candidates`` is below 1.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
    better, ties = torch.tensor([0]), torch.tensor([num_candidates - 1])
    return recall_at(k, better, ties).item(), ndcg_at(k, better, ties).item()


def _check(k: int, better: Tensor, ties: Tensor) -> None:
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k}")
    if {better.dtype, ties.dtype} - INTEGERS:
        raise ValueError(f"better and ties must be integers, got {better.dtype} and {ties.dtype}")
    if better.shape != ties.shape:
        raise ValueError(f"better and ties must match, got {tuple(better.shape)} and {tuple(ties.shape)}")
