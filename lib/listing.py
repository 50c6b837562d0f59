"""Counts and lists in a sentence: the first few items and how many more there are, one bit and two bits."""

from __future__ import annotations

from collections.abc import Sequence


def first_few(items: Sequence[str], shown: int = 3, separator: str = ", ") -> str:
    """``a, b, c and 4 more``: a list of any length as part of a line."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(items[:shown]) + more


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``, ``5 blocks of rounds``."""
    head, of, rest = noun.partition(" of ")
    return f"{count} {head}{'' if count == 1 else 's'}{of}{rest}"
