"""What the test units add to an error bar: users, pictures or crops that all replicates share.

Replicates (seeds) and units are crossed: every seed is scored on the same users. A difference of two arms
then varies with the seed, with the user and with both together. More seeds make the first and the last
smaller; what is left is that other users would have given another mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from lib.ledger.intervals import unit_covariance
from lib.ledger.rules import Schema, Term, Text
from lib.ledger.schema import Claim


class UnitSpread(Schema):
    """How much the units of the test set alone let the arms' means of one metric vary.

    `unit` names them (user), `count` is their number, `covariance` (arms × arms) the part of the covariance
    of the arms' means that more replicates would not remove, as `lib.ledger.intervals.unit_covariance` says.
    """

    unit: Text
    count: int = Field(ge=2)
    arms: tuple[Text, ...] = Field(min_length=1)
    covariance: tuple[tuple[FiniteFloat, ...], ...]

    @model_validator(mode="after")
    def _square(self) -> UnitSpread:
        sizes = {len(self.covariance), *map(len, self.covariance)}
        if sizes != {len(self.arms)} or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"covariance must be {len(self.arms)} × {len(self.arms)}, for different arms")
        return self

    @classmethod
    def of(cls, values: Mapping[str, np.ndarray], unit: str) -> UnitSpread:
        """From each arm's results (replicates, units), the same replicates and units for every arm.

        Raises
        ------
        ValueError
            Other shapes, or fewer than two units.
        """
        shapes = {arm: np.shape(array) for arm, array in values.items()}
        if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
            seen = ", ".join(f"{arm} {shape}" for arm, shape in shapes.items())
            raise ValueError(f"expected results (replicates, {unit}s) of one shape for every arm, got {seen}")
        covariance = unit_covariance(np.stack([np.asarray(array, float) for array in values.values()]))
        count = next(iter(shapes.values()))[1]
        return cls(unit=unit, count=count, arms=tuple(values), covariance=covariance.tolist())

    def variance(self, weights: Mapping[str, float]) -> float:
        """Variance, due to the units, of the sum of the arms' means times `weights`; at least 0.

        Raises
        ------
        ValueError
            A weight for an arm without results by unit.
        """
        if missing := [arm for arm in weights if arm not in self.arms]:
            raise ValueError(f"no results per {self.unit} of {missing[0]}")
        vector = np.array([weights.get(arm, 0.0) for arm in self.arms])
        return max(0.0, float(vector @ np.array(self.covariance) @ vector))


def shared_by_replicates(
    claim: Claim,
    terms: tuple[Term, ...],
    values: Mapping[str, Mapping[str, np.ndarray]],
    units: Mapping[str, UnitSpread],
) -> dict[str, Any]:
    """What the units let each term's mean margin vary by, as `lib.ledger.intervals.decide_parts` takes it.

    Parameters
    ----------
    claim : Claim
    terms : tuple of Term
        Of its rule.
    values : mapping
        Means over units, (replicates,) by metric and arm.
    units : mapping
        By metric.

    Returns
    -------
    dict
        ``unit_variance`` (terms,) and ``units``, their number: None if the claim names no unit.

    Raises
    ------
    ValueError
        The claim names a unit, and there are no results per such unit, or different numbers of them.
    """
    if not claim.unit:
        return {"unit_variance": np.zeros(len(terms)), "units": None}
    metrics = dict.fromkeys(term.metric for term in terms)
    for metric in metrics:
        if metric not in units or units[metric].unit != claim.unit:
            raise ValueError(f"{claim.id}: the ledger asks for {metric} per {claim.unit}")
    counts = {units[metric].count for metric in metrics}
    if len(counts) > 1:
        raise ValueError(f"{claim.id}: metrics of {' and '.join(map(str, sorted(counts)))} {claim.unit}s")
    variance = [units[term.metric].variance(term.weights(values[term.metric])) for term in terms]
    return {"unit_variance": np.array(variance), "units": counts.pop()}
