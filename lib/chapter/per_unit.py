"""Results per unit of the test set (user, picture): kept raw in a table, and as what a rule needs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lib.ledger.schema import Claim
from lib.ledger.units import UnitSpread


def means(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The same measurements with one number per replicate: results (replicates, units) become their means."""
    return {
        metric: {arm: _means(values) for arm, values in by_arm.items()}
        if isinstance(by_arm, Mapping)
        else by_arm
        for metric, by_arm in measured.items()
    }


def _means(values: Any) -> Any:
    return np.asarray(values, dtype=float).mean(1) if np.ndim(values) == 2 else values


def spreads(claim: Claim, measured: Mapping[str, Any]) -> dict[str, UnitSpread]:
    """What the units add to the claim's error bars, by metric; nothing if the claim names no unit.

    Raises
    ------
    ValueError
        The claim names a unit, and an arm of its rule has one number per replicate only, or a value that is
        not finite.
    """
    if not claim.unit:
        return {}
    found = {}
    for metric, arms in claim.arms().items():
        by_arm = {arm: measured[metric][arm] for arm in arms if arm in measured.get(metric, {})}
        if flat := [arm for arm, values in by_arm.items() if np.ndim(values) != 2]:
            raise ValueError(
                f"{claim.id}: the ledger asks for {metric} of {flat[0]} per {claim.unit}: "
                f"({claim.replicate}s, {claim.unit}s)"
            )
        for arm, values in by_arm.items():
            if not np.isfinite(np.asarray(values, dtype=float)).all():
                raise ValueError(f"{claim.id}: {metric} of {arm} has a value that is not finite")
        if by_arm:
            found[metric] = UnitSpread.of(by_arm, claim.unit)
    return found


class UnitTable:
    """The raw results of all claims with the same unit, to be written when the chapter ends.

    With `replacing`, later results take the place of earlier ones, which otherwise must be the same.
    """

    def __init__(self, *, replacing: bool = False) -> None:
        self._replacing = replacing
        self._parts: dict[str, dict[tuple[str, str], pd.DataFrame]] = {}

    def add(self, unit: str, measured: Mapping[str, Any]) -> None:
        """Keep every result (replicates, units) in `measured`; a frame's labels name replicates and units.

        Raises
        ------
        ValueError
            Other numbers than were kept before for the same metric and arm.
        """
        kept = self._parts.setdefault(unit, {})
        for metric, by_arm in measured.items():
            for arm, values in by_arm.items():
                if np.ndim(values) == 2:
                    frame = pd.DataFrame(values)
                    if self._replacing:
                        kept.pop((metric, arm), None)
                    if not kept.setdefault((metric, arm), frame).equals(frame):
                        raise ValueError(f"{metric} of {arm}: other results per {unit} than before")

    def frames(self) -> dict[str, pd.DataFrame]:
        """By unit: a row per arm, seed and unit, a column per metric."""
        return {unit: _long(unit, parts) for unit, parts in self._parts.items() if parts}


def _long(unit: str, parts: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Frames (seeds × units) by metric and arm as one long one."""
    metrics, arms = (list(dict.fromkeys(names)) for names in zip(*parts, strict=True))
    rows = []
    for arm in arms:
        there = {metric: parts[metric, arm] for metric in metrics if (metric, arm) in parts}
        seeds, units = (  # of all metrics: one may be of another set of pictures
            list(dict.fromkeys(label for frame in there.values() for label in frame.axes[axis]))
            for axis in (0, 1)
        )
        block = {"arm": arm, "seed": np.repeat(seeds, len(units)), unit: np.tile(units, len(seeds))}
        block |= {
            metric: frame.reindex(seeds, columns=units).to_numpy().ravel() for metric, frame in there.items()
        }
        rows.append(pd.DataFrame(block))
    return pd.concat(rows, ignore_index=True)[["arm", "seed", unit, *metrics]]
