"""Judging: from raw numbers per seed to a verdict, by the rule in the ledger.

`judge` applies a claim's rule to measurements, `not_tested` says why a scale cannot test it. No verdict is
set by hand anywhere. The claims' schema is in `lib.ledger.schema`; the statistics, and why they give false
verdicts less than once in twenty, are in `lib.ledger.intervals` and on the book's page on verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field, FiniteFloat

from lib.ledger.floors import unlearned
from lib.ledger.intervals import (
    LEVEL,
    MINIMUM_REPLICATES,
    adjusted_level,
    combined,
    decide_parts,
    mean_interval,
    replicated,
    smallest_effect,
)
from lib.ledger.paper_numbers import PaperNumber
from lib.ledger.rules import Schema, Term
from lib.ledger.schema import Arithmetic, Claim, Measurement
from lib.ledger.units import UnitSpread, shared_by_replicates
from lib.ledger.wording import format_number, listed, off_number, paper_number
from lib.listing import plural

VerdictName = Literal[
    "exact",
    "reproduced",
    "holds",
    "inconclusive",
    "contradicted",
    "consistent",
    "matches memory",
    "differs from memory",
    "not tested",
]
VERDICTS: tuple[str, ...] = get_args(VerdictName)

#: What a verdict is called where the paper's number was not read anywhere, but remembered.
MEMORY = {
    "exact": "matches memory",
    "reproduced": "matches memory",
    "holds": "matches memory",
    "consistent": "matches memory",
    "contradicted": "differs from memory",
}


class Summary(Schema):
    """What was measured for one arm: the values, their mean, and its interval (None below three values)."""

    values: tuple[FiniteFloat, ...]
    mean: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


class Effect(Schema):
    """One part of a rule, as measured: a quantity, what is claimed of it, and the margin between the two.

    `mean`, `low` and `high` are the margin in the claim's favour and its interval; `quantity`,
    `quantity_low` and `quantity_high` the same of the quantity itself, as people read it. `relative` is a
    difference as a share of the other arm's mean, where that makes sense; `level` the interval's confidence,
    higher than usual where several parts share the chance of a false contradiction; `units` how many test
    units the interval is over, beside the replicates; `smallest` the smallest effect that this design finds
    four times in five.
    """

    label: str
    claimed: str
    quantity: FiniteFloat
    quantity_low: FiniteFloat | None
    quantity_high: FiniteFloat | None
    unit: str
    mean: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    level: float
    replicates: int
    units: int | None = None
    relative: FiniteFloat | None
    smallest: FiniteFloat | None = None
    outcome: Literal["holds", "inconclusive", "contradicted"]

    @property
    def says(self) -> str:
        """The inequality in words."""
        return f"{self.label}, claimed {self.claimed}"


class Verdict(Schema):
    """What became of a claim, and on what ground.

    `interval` is the effect that decided: the one that contradicts, else the weakest. `effects` are all.
    `unlearned` says that it was measured and still is not tested, as the reference does not beat the floor.
    """

    id: str
    verdict: VerdictName
    reason: str
    measured: dict[str, dict[str, Summary]] | dict[str, FiniteFloat] = Field(default_factory=dict)
    interval: Effect | None = None
    effects: tuple[Effect, ...] = ()
    unlearned: bool = False
    synthetic: bool = False
    scope: str = ""
    command: str = ""


def judge(
    claim: Claim,
    measured: Mapping[str, Any],
    scale: str,
    synthetic: bool | None = None,
    units: Mapping[str, UnitSpread] | None = None,
) -> Verdict:
    """Apply a claim's rule to raw measurements.

    Parameters
    ----------
    claim : Claim
        From `load_ledger`.
    measured : mapping
        ``{metric: {arm: one number per replicate}}``, the same replicates in the same order for every arm
        (seed i of one arm is compared with seed i of the other); for an arithmetic claim ``{name: number}``.
        It holds what the rule and the claim's floor need and nothing else. What only the floor needs may
        have one number where it has no randomness.
    scale : {"smoke", "book", "long", "paper"}
    synthetic : bool, optional
        Whether this is a made-up world. The ledger knows; given, it must agree.
    units : mapping, optional
        What the test units add to the error bar, by metric; needed where the claim names a `unit`.

    Raises
    ------
    ValueError
        A missing or unknown metric, arm or name; unequal numbers of replicates; a value that is not finite; a
        scale at which the ledger says the claim is not tested.
    """
    entry = claim.entry(scale)
    if not entry.tested:
        raise ValueError(f"{claim.id} is not tested at scale {scale}: {entry.why}")
    if synthetic is not None and synthetic != entry.synthetic:
        says = "synthetic" if entry.synthetic else "real data"
        raise ValueError(f"{claim.id}: the ledger says {says} at scale {scale}, the chapter the opposite")
    outcome = (
        _arithmetic(claim, measured)
        if isinstance(claim, Arithmetic)
        else _by_replicates(claim, measured, scale, units or {})
    )
    if claim.interpretations and outcome["verdict"] in ("exact", "reproduced", "holds"):
        tried = "; ".join(f"{tried.reading}: {tried.outcome}" for tried in claim.interpretations)
        outcome["verdict"] = "consistent"
        outcome["reason"] += f" Under a reading chosen after the paper's number was known. Tried: {tried}."
    if claim.provenance == "recalled":
        outcome["verdict"] = MEMORY.get(outcome["verdict"], outcome["verdict"])
    return Verdict(id=claim.id, synthetic=entry.synthetic, scope=entry.scope, **outcome)


def not_tested(claim: Claim, scale: str, reason: str = "") -> Verdict:
    """The verdict for a claim that a run does not test, with the ledger's reason and command.

    Where the ledger says that this scale does test it, a reason is needed, or a `when` that explains it.
    """
    entry = claim.entry(scale)
    if entry.tested and entry.when:
        reason = reason or f"Needs {entry.conditions()}."
    elif entry.tested and not reason:
        raise ValueError(f"the ledger says that scale {scale} tests {claim.id}: judge it, or give a reason")
    return Verdict(id=claim.id, verdict="not tested", reason=reason or entry.why, command=entry.command)


# --- arithmetic --------------------------------------------------------------------------------------------


def _arithmetic(claim: Arithmetic, measured: Mapping[str, Any]) -> dict[str, Any]:
    expected = {number.name: number for number in claim.paper}
    _same_names(claim, "numbers", expected, measured)
    ours, off = {}, []
    for name, number in expected.items():
        ours[name] = float(_vector(claim, name, [measured[name]])[0])
        low, high = claim.allowed(number)
        # Decimal fractions are not exact in binary: a difference of half a digit may come out a hair larger.
        hair = 1e-9 * (high - low) + 1e-12 * max(abs(low), abs(high))
        if not low - hair <= ours[name] <= high + hair:
            off.append(
                f"{name}: ours {off_number(ours[name], low, high)}, the paper's {paper_number(number)}"
            )
    if off:
        return {"verdict": "contradicted", "reason": "; ".join(off) + ".", "measured": ours}
    count = "The number agrees" if len(ours) == 1 else f"{len(ours)} of {len(ours)} numbers agree"
    return {"verdict": "exact", "reason": f"{count} to the stated precision.", "measured": ours}


# --- everything with chance in it --------------------------------------------------------------------------


def _by_replicates(
    claim: Claim, measured: Mapping[str, Any], scale: str, units: Mapping[str, UnitSpread]
) -> dict[str, Any]:
    terms = claim.rule.terms()
    values = _values(claim, measured)
    shared = shared_by_replicates(claim, terms, values, units)
    margins = np.stack([term.margin(values[term.metric]) for term in terms])
    # What rounding can do to a difference of numbers of this size.
    sizes = [max(np.abs(values[term.metric][arm]).max() for arm in term.arms) for term in terms]
    resolution = 8 * np.finfo(float).eps * np.maximum(sizes, [abs(term.limit) for term in terms])
    outcomes = decide_parts(margins, LEVEL, resolution, **shared)
    effects = tuple(
        _effect(term, margin, int(outcome), values[term.metric], len(terms), variance, shared["units"])
        for term, margin, outcome, variance in zip(
            terms, margins, outcomes, shared["unit_variance"], strict=True
        )
    )
    result = {
        "measured": {m: {a: _summary(v) for a, v in arms.items()} for m, arms in values.items()},
        "effects": effects,
        "interval": _deciding(effects, margins, shared["unit_variance"]),
    }
    if claim.floor and (reason := unlearned(claim.floor, values[claim.floor.metric])):
        return result | {"verdict": "not tested", "unlearned": True, "reason": reason}
    whole = combined(outcomes)
    if whole < 0:
        against = [effect.says for effect in effects if effect.outcome == "contradicted"]
        return result | {
            "verdict": "contradicted",
            "reason": listed("The measurements say the opposite", against),
        }
    if whole > 0:
        return result | _agreeing(claim, values, scale)
    return result | {"verdict": "inconclusive", "reason": _doubt(claim, margins, effects, resolution)}


def _values(claim: Claim, measured: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The measurements as checked vectors (replicates,), by metric and arm."""
    ruled, needed = claim.arms(), claim.arms(floor=True)
    _same_names(claim, "metrics", needed, measured)
    values: dict[str, dict[str, np.ndarray]] = {}
    for metric, arms in needed.items():
        _same_names(claim, f"arms of {metric}", arms, measured[metric])
        values[metric] = {arm: _vector(claim, f"{metric} of {arm}", measured[metric][arm]) for arm in arms}
    counts = {
        f"{arm} ({metric})": len(vector)
        for metric, arms in values.items()
        for arm, vector in arms.items()
        if arm in ruled.get(metric, ()) or len(vector) > 1
    }
    if len(set(counts.values())) > 1:
        seen = ", ".join(f"{name} {count}" for name, count in counts.items())
        several = plural(2, claim.replicate).removeprefix("2 ")
        raise ValueError(f"{claim.id}: every arm needs the same number of {several}, got {seen}")
    return values


def _same_names(claim: Claim, what: str, expected: Any, got: Any) -> None:
    if not isinstance(got, Mapping) or set(got) != set(expected):
        came = ", ".join(map(str, got)) if isinstance(got, Mapping) else type(got).__name__
        raise ValueError(f"{claim.id}: expected the {what} {', '.join(expected)}; got {came or 'none'}")


def _vector(claim: Claim, what: str, values: Any) -> np.ndarray:
    try:
        vector = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{claim.id}: {what} must be numbers, got {values!r}") from None
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(
            f"{claim.id}: {what} must be a list with one number per {claim.replicate}, got {values!r}"
        )
    if not np.isfinite(vector).all():
        raise ValueError(f"{claim.id}: {what} has a value that is not finite: {vector.tolist()}")
    return vector


def _summary(vector: np.ndarray) -> Summary:
    if vector.size < MINIMUM_REPLICATES:
        return Summary(values=vector.tolist(), mean=vector.mean())
    mean, low, high = mean_interval(vector)
    return Summary(values=vector.tolist(), mean=mean, low=low, high=high)


def _effect(
    term: Term,
    margin: np.ndarray,
    outcome: int,
    values: dict[str, np.ndarray],
    parts: int,
    unit_variance: float,
    units: int | None,
) -> Effect:
    # The interval that decided: against the claim the parts share the chance of an error.
    against = outcome < 0 or (outcome == 0 and margin.mean() < 0)
    level = adjusted_level(parts) if against else LEVEL
    low = high = smallest = None
    if margin.size >= MINIMUM_REPLICATES:
        _, low, high = mean_interval(margin, level, unit_variance, units)
        smallest = smallest_effect(margin, unit_variance=unit_variance, units=units)
    ends = [end if end is None else term.quantity_of(end) for end in (low, high)]
    reference = abs(values[term.arms[-1]].mean())
    quantity = term.quantity_of(margin.mean())
    return Effect(
        label=term.label,
        claimed=term.claimed,
        quantity=quantity,
        quantity_low=ends[0] if term.sign > 0 else ends[1],
        quantity_high=ends[1] if term.sign > 0 else ends[0],
        unit=term.unit,
        mean=margin.mean(),
        low=low,
        high=high,
        level=level,
        replicates=margin.size,
        units=units,
        relative=quantity / reference if term.percent and reference else None,
        smallest=smallest,
        outcome=("inconclusive", "holds", "contradicted")[outcome],
    )


def _deciding(effects: tuple[Effect, ...], margins: np.ndarray, unit_variance: np.ndarray) -> Effect:
    """The effect with the lowest t statistic: what contradicts, or the weakest part."""
    errors = np.sqrt(margins.var(-1) / max(1, margins.shape[-1] - 1) + unit_variance)
    errors = np.where(errors > 0, errors, np.finfo(float).tiny)  # copies: their sign alone puts them in order
    with np.errstate(over="ignore"):  # a margin without spread is infinitely sure
        return effects[int(np.argmin(np.clip(margins.mean(-1) / errors, -1e300, 1e300)))]


def _agreeing(claim: Claim, values: dict[str, dict[str, np.ndarray]], scale: str) -> dict[str, str]:
    """Holds or reproduced: the direction is there; are the paper's numbers?"""
    numbers = claim.judged_numbers()
    if not claim.entry(scale).reproduces or isinstance(claim, Measurement) or not numbers:
        return {"verdict": "holds", "reason": "Every interval lies on the claimed side."}
    off = [
        f"{number.name} (ours {format_number(values[number.metric][number.arm].mean())}, "
        f"the paper's {paper_number(number)})"
        for number in numbers
        if not _near(claim, number, values[number.metric][number.arm].mean())
    ]
    if off:
        return {"verdict": "holds", "reason": listed("The direction holds, but not these numbers", off)}
    stated = [number.tolerance is not None or number.between is not None for number in numbers]
    within = "the range or tolerance stated for each number"
    if not all(stated):
        within = f"{100 * claim.rule.tolerance:g} % of the paper's" + (
            f", or {within}" if any(stated) else ""
        )
    reason = f"The direction holds and our means are within {within}."
    return {"verdict": "reproduced", "reason": reason}


def _near(claim: Claim, number: PaperNumber, ours: float) -> bool:
    """Whether a mean of ours reproduces a number of the paper."""
    if number.between is not None:
        return number.between[0] <= ours <= number.between[1]
    return abs(ours - number.value) <= (number.tolerance or claim.rule.tolerance * abs(number.value))


def _doubt(claim: Claim, margins: np.ndarray, effects: tuple[Effect, ...], resolution: np.ndarray) -> str:
    count = margins.shape[-1]
    if count < MINIMUM_REPLICATES:
        return f"{plural(count, claim.replicate)}; an interval needs at least {MINIMUM_REPLICATES}."
    copies = ~replicated(margins, resolution)
    if copies.any():
        labels = [effect.label for effect, copy in zip(effects, copies, strict=True) if copy]
        return listed(f"The same difference for every {claim.replicate}, so these are not replicates", labels)
    open_parts = [effect.says for effect in effects if effect.outcome != "holds"]
    return listed("The interval lies on both sides", open_parts)
