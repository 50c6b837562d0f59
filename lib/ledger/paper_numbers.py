"""Numbers of a paper, and where each was read."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, FiniteFloat, model_validator

from lib.ledger.rules import Schema, Text

Provenance = Literal["paper", "authors' code", "cited", "derived", "recalled"]

# From the most to the least certain reading of a paper's number.
PROVENANCES: tuple[str, ...] = get_args(Provenance)


class PaperNumber(Schema):
    """A number of the paper, and where it was read.

    `arm` and `metric` tie it to a measurement (a number without them is context: shown, never judged
    against); `decimals` is the printed precision, `tolerance` an absolute one in the number's unit. Where the
    paper gives a range (``[1, 10]``), `between` stands in the place of `value`.
    """

    value: FiniteFloat | None = None
    between: tuple[FiniteFloat, FiniteFloat] | None = None
    where: Text
    provenance: Provenance
    unit: str = ""
    label: str = ""
    arm: str | None = None
    metric: str | None = None
    decimals: int | None = Field(default=None, ge=0, le=12)
    tolerance: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _named(self) -> PaperNumber:
        if not self.name:
            raise ValueError("a number needs a label, or an arm and a metric")
        if (self.value is None) == (self.between is None):
            raise ValueError("a number has a value or, where the paper gives a range, between")
        if self.between is not None and self.between[0] >= self.between[1]:
            raise ValueError(f"between must be the lower and the upper end, got {list(self.between)}")
        return self

    @property
    def name(self) -> str:
        """Its label, else ``metric, arm``."""
        return self.label or ", ".join(part for part in (self.metric, self.arm) if part)
