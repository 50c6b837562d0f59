"""Where to checkpoint activations so that a training step needs the least memory.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv 1604.06174): keep
the outputs of some units, recompute what lies between two kept ones when the backward pass comes to it.
Memory is what is kept plus the largest recomputed segment. With n equal units of size s and nothing inside
them the best is about 2·√n·s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Placement:
    """A choice of checkpoints.

    ``kept`` are the indices of the units whose outputs are kept, ``checkpoints`` their sum, ``segment`` the
    largest sum over a segment between them, ``total`` the two together.
    """

    kept: tuple[int, ...]
    checkpoints: float
    segment: float

    @property
    def total(self) -> float:
        return self.checkpoints + self.segment


def checkpoint_cost(outputs: Sequence[float], interiors: Sequence[float], kept: Sequence[int]) -> Placement:
    """Memory with the outputs of the units ``kept`` as checkpoints.

    Parameters
    ----------
    outputs, interiors
        Per unit, in order: size of its output, and of all else in it that its backward pass needs. Any unit
        (elements, bytes); see `lib.cost.stored_activations.stored_by_unit`.
    kept
        Indices of units.

    Returns
    -------
    Placement. A segment reaches from behind a kept unit to the next kept one (or to the end). It holds the
    interiors of its units and the outputs of all but a kept last one.

    Raises
    ------
    ValueError
        If sizes are negative, not finite, of different number or none, or an index is out of range or twice.
    """
    _check(outputs, interiors)
    kept = tuple(sorted(kept))
    if len(set(kept)) < len(kept) or (kept and not 0 <= kept[0] <= kept[-1] < len(outputs)):
        raise ValueError(f"kept must be different indices in 0..{len(outputs) - 1}, got {kept}")
    segments = [0.0]
    for index, (output, interior) in enumerate(zip(outputs, interiors, strict=True)):
        segments[-1] += interior
        if index in kept:
            segments.append(0.0)
        else:
            segments[-1] += output
    return Placement(kept, sum(outputs[index] for index in kept), max(segments))


def checkpoint_optimum(
    outputs: Sequence[float], interiors: Sequence[float], *, factor: float = 1.0
) -> Placement:
    """The placement of checkpoints with the least ``checkpoints + factor * segment``, of all 2ⁿ.

    For each size S that a segment can have, the cheapest checkpoints with no segment above S are found by
    dynamic programming: O(n²) sizes, O(n²) steps each.

    Parameters
    ----------
    outputs, interiors
        As `checkpoint_cost`.
    factor
        How often the recomputed segment counts, above 0; with 1 the memory (``total``) is least.

    Returns
    -------
    Placement

    Raises
    ------
    ValueError
        As `checkpoint_cost`, and if the factor is not above 0 or not finite.
    """
    _check(outputs, interiors)
    if not 0 < factor < math.inf:
        raise ValueError(f"factor must be finite and above 0, got {factor!r}")
    n = len(outputs)
    inside = [0.0, *accumulate(o + i for o, i in zip(outputs, interiors, strict=True))]

    def segment(start: int, end: int) -> float:
        """Units start … end − 1, the last of them kept unless it is the network's."""
        return inside[end] - inside[start] - (outputs[end - 1] if end <= n else 0.0)

    # position n + 1 is the end of the network without its last output kept: units up to n − 1
    inside.append(inside[n])
    sizes = sorted({segment(start, end) for start in range(n + 1) for end in range(start + 1, n + 2)})
    best, least = checkpoint_cost(outputs, interiors, []), math.inf
    for bound in sizes:
        if factor * bound >= least:
            break
        kept = _cheapest(n, bound, outputs, segment)
        if kept is not None:
            found = checkpoint_cost(outputs, interiors, kept)
            if (needed := found.checkpoints + factor * found.segment) < least:
                best, least = found, needed
    return best


def _cheapest(
    n: int, bound: float, outputs: Sequence[float], segment: Callable[[int, int], float]
) -> list[int] | None:
    """Cheapest checkpoints with every segment at most ``bound``; None if there are none."""
    cost = [0.0] + [math.inf] * (n + 1)
    before = [-1] * (n + 2)
    for end in range(1, n + 2):
        price = outputs[end - 1] if end <= n else 0.0
        for start in range(min(end - 1, n), -1, -1):
            if segment(start, end) > bound:
                break
            if cost[start] + price < cost[end]:
                cost[end], before[end] = cost[start] + price, start
    if math.isinf(cost[n + 1]):
        return None
    kept, position = [], before[n + 1]
    while position > 0:
        kept.append(position - 1)
        position = before[position]
    return kept


def _check(outputs: Sequence[float], interiors: Sequence[float]) -> None:
    if len(outputs) != len(interiors) or not len(outputs):
        raise ValueError(f"give as many outputs as interiors, got {len(outputs)} and {len(interiors)}")
    worst = min(*outputs, *interiors)
    if not (worst >= 0 and math.isfinite(sum(outputs) + sum(interiors))):
        raise ValueError("sizes must be finite and not negative")
