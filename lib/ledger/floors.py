"""Has the reference learned? A claim's floor, held against what was measured.

A loss or a gain of trained arms says something only where the arm that they are compared with has learned the
task. `lib.ledger.rules.Floor` is what a ledger asks; here is what comes of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lib.ledger.rules import Floor
from lib.ledger.wording import format_number


def unlearned(floor: Floor, values: Mapping[str, np.ndarray]) -> str:
    """Why the reference has not learned, in a sentence; empty if every reference has.

    Parameters
    ----------
    floor : Floor
    values : mapping
        Measured values of the floor's metric by arm, arrays of any shape: their means count. It has the
        floor's arm and every reference.
    """
    least = float(np.mean(values[floor.arm]))
    asked = floor.by * abs(least) / 100 if floor.relative else floor.by
    sign = 1.0 if floor.direction == "higher" else -1.0
    below = []
    for name in floor.references:
        mean = float(np.mean(values[name]))
        ahead = sign * (mean - least)
        # Decimal fractions are not exact in binary: 82.6 is less than 81.6 + 1 by a hair.
        hair = 8 * np.finfo(float).eps * max(abs(mean), abs(least))
        if ahead <= 0 or ahead + hair < asked:
            below.append(f"of {name} {format_number(mean)}")
    if not below:
        return ""
    return (
        f"The reference has not learned: {floor.metric} {', '.join(below)}, of the {floor.arm} "
        f"{format_number(least)}; {_asked(floor)} is asked for."
    )


def asked_first(floor: Floor | None) -> list[str]:
    """What a ledger asks before its rule, as a line of its details; nothing where it asks nothing."""
    if floor is None:
        return []
    size = f" by {_size(floor)}" if floor.by else ""
    names = " and ".join(floor.references)
    return [f"Asked first: {names} beat{'s' * (len(floor.references) == 1)} the {floor.arm}{size}."]


def _asked(floor: Floor) -> str:
    side = "above" if floor.direction == "higher" else "below"
    return f"at least {_size(floor)} {side}" if floor.by else f"a value {side}"


def _size(floor: Floor) -> str:
    unit = "%" if floor.relative else floor.unit
    return format_number(floor.by, unit="point" if (floor.by, unit) == (1, "points") else unit)
