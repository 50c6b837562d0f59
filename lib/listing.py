"""Lists in a sentence: the first few items, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence


def first_few(items: Sequence[str], shown: int = 3, separator: str = ", ") -> str:
    """``a, b, c and 4 more``: a list of any length as part of a line."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(items[:shown]) + more
