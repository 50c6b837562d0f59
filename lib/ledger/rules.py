"""The rules of a ledger, as data, and the margins that they ask of measurements.

Every rule with chance in it comes down to terms: inequalities of the form "this margin, per seed, is above
zero". What is decided from margins is in `lib.ledger.intervals`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

Text = Annotated[str, Field(min_length=1)]
Names = Annotated[
    tuple[Text, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v), Field(min_length=1)
]

# The values that a metric can take at all; None where it has no end.
Range = tuple[FiniteFloat | None, FiniteFloat | None]


class Schema(BaseModel):
    """Base of everything people write by hand or a run leaves: immutable, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Floor(Schema):
    """What the arms that others are compared with must beat first, or the rule is not asked.

    `arm` is something that anybody gets without the method (a linear classifier, the most popular items), and
    every one of `references` must lie `by` on the better side of it, in the metric's unit or, if `relative`,
    in per cent of the arm's mean. Means are compared: the floor often has no randomness, and one value.
    """

    metric: Text
    arm: Text
    references: Names
    by: float = Field(ge=0, allow_inf_nan=False)
    direction: Literal["higher", "lower"]
    unit: str = ""
    relative: bool = False

    @model_validator(mode="after")
    def _another_arm(self) -> Floor:
        if self.arm in self.references:
            raise ValueError(f"{self.arm!r} is the floor and a reference")
        return self


class Contrast(Schema):
    """Every `better` arm beats every `worse` arm on every `metric`; `direction` says which way is better.

    `percent` says whether a difference may be shown as a share of the other arm: not for decibels, logarithms
    and other scales without a zero that means "none".
    """

    metric: Names
    better: Names
    worse: Names
    direction: Literal["higher", "lower"]
    unit: str = ""
    percent: bool = True

    @model_validator(mode="after")
    def _two_sides(self) -> Contrast:
        if both := set(self.better) & set(self.worse):
            raise ValueError(f"{sorted(both)} on both sides of a comparison")
        return self

    def terms(self) -> Iterator[Term]:
        """Its single comparisons: one metric, one arm against one arm."""
        sign = 1.0 if self.direction == "higher" else -1.0
        for metric in self.metric:
            for better in self.better:
                for worse in self.worse:
                    yield Term(
                        label=f"{metric}: {better} − {worse}",
                        claimed="above 0" if self.direction == "higher" else "below 0",
                        metric=metric,
                        arms=(better, worse),
                        sign=sign,
                        unit=self.unit,
                        percent=self.percent,
                    )


class Limit(Schema):
    """A quantity stays within a limit: an arm's value, or its difference from or ratio to another arm."""

    metric: Text
    arm: Text
    of: Literal["value", "difference", "ratio"] = "value"
    to: str | None = None
    op: Literal["<=", ">="]
    limit: FiniteFloat
    unit: str = ""

    @model_validator(mode="after")
    def _other_arm(self) -> Limit:
        if (self.of == "value") != (self.to is None):
            raise ValueError("'to' names the other arm of a difference or a ratio, and of nothing else")
        return self

    def terms(self) -> Iterator[Term]:
        """Itself, as one term."""
        what = {
            "value": self.arm,
            "difference": f"{self.arm} − {self.to}",
            "ratio": f"{self.arm} / {self.to}",
        }
        yield Term(
            label=f"{self.metric}: {what[self.of]}",
            claimed=f"{'≤' if self.op == '<=' else '≥'} {self.limit:g}".replace("-", "−"),
            metric=self.metric,
            arms=(self.arm,) if self.to is None else (self.arm, self.to),
            sign=-1.0 if self.op == "<=" else 1.0,
            of=self.of,
            limit=self.limit,
            unit=self.unit,
        )


class Term(Schema):
    """One inequality of a rule, read as "this margin, per seed, is above zero".

    `label` names the quantity in it, `claimed` what is said of that.
    """

    label: str
    claimed: str
    metric: str
    arms: tuple[str, ...]
    sign: float
    of: Literal["value", "difference", "ratio"] = "difference"
    limit: float = 0.0
    unit: str = ""
    percent: bool = False

    def quantity_of(self, margin: float) -> float:
        """The quantity at a margin: of a limit "x ≤ 3" a margin of 1 is x = 2."""
        return self.sign * margin + self.limit

    def weights(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The margin as a sum of the arms' means times these, to first order: exact but for ratios."""
        if self.of == "value":
            return {self.arms[0]: self.sign}
        if self.of == "difference":
            return {self.arms[0]: self.sign, self.arms[1]: -self.sign}
        above, below = (float(np.mean(values[arm])) for arm in self.arms)
        return {self.arms[0]: self.sign / below, self.arms[1]: -self.sign * above / below**2}

    def margin(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Margin (seeds,) in favour of the claim, from each arm's values (seeds,)."""
        first = values[self.arms[0]]
        if self.of == "value":
            quantity = first
        elif self.of == "difference":
            quantity = first - values[self.arms[1]]
        else:
            if not np.all(values[self.arms[1]]):
                raise ValueError(f"{self.metric}: a ratio to {self.arms[1]}, which is zero for some seed")
            quantity = first / values[self.arms[1]]
        return self.sign * (quantity - self.limit)


class Rule(Schema):
    """Comparisons that must all hold. `tolerance` (relative): how near `reproduced` asks our means to be."""

    parts: tuple[Contrast, ...] = Field(min_length=1)
    tolerance: float = Field(default=0.02, gt=0, le=0.5)

    def terms(self) -> tuple[Term, ...]:
        """Every inequality of the rule."""
        return tuple(term for part in self.parts for term in part.terms())

    @model_validator(mode="after")
    def _no_term_twice(self) -> Rule:
        labels = [f"{term.label} {term.claimed}" for term in self.terms()]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"stated twice: {twice[0]}")
        return self


class BoundRule(Rule):
    """As `Rule`, with limits in the place of comparisons."""

    parts: tuple[Limit, ...] = Field(min_length=1)  # type: ignore[assignment]
