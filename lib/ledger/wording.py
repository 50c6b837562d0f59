"""Verdicts and numbers as people read them: one way to write each, in chapters and on the book's pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from lib.ledger.paper_numbers import PaperNumber
from lib.ledger.rules import Range
from lib.ledger.schema import VERDICT_REFERENCE
from lib.listing import first_few

if TYPE_CHECKING:
    from lib.ledger.verdicts import Effect

VERBS = ("holds", "matches memory", "differs from memory")  # of the verdicts; the others are adjectives


def badge(verdict: str) -> str:
    """A verdict as a word that the book's style sheet turns into a badge."""
    return f'<strong class="verdict verdict-{verdict.replace(" ", "-")}">{escape(verdict)}</strong>'


def listed(text: str, items: list[str], shown: int = 3) -> str:
    """``text: a; b; c and 4 more.``: the first items of a list, and how many are left."""
    return f"{text}: {first_few(items, shown, '; ')}."


def format_number(value: float, decimals: int | None = None, unit: str = "") -> str:
    """A number for people: `decimals` as printed, else four digits, or a whole number."""
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif (float(value).is_integer() and abs(value) < 1e15) or 1000 <= abs(value) < 1e15:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}" if 1e-4 <= abs(value) < 1e3 else f"{value:.3e}"
    return f"{signs(text)} {unit}".strip()


def paper_number(number: PaperNumber) -> str:
    """A number as the paper gives it, with the tolerance stated for it: ``25 ± 1 M``, ``1 to 10 M``."""
    if number.between is not None:
        ends = " to ".join(format_number(end) for end in number.between)
        return f"{ends} {number.unit}".strip()
    text = format_number(number.value, number.decimals)
    if number.tolerance is not None:
        text += f" ± {format_number(number.tolerance)}"
    return f"{text} {number.unit}".strip()


def off_number(ours: float, low: float, high: float) -> str:
    """A number outside of [low, high], with more digits than usual where only they show that it is."""
    shown = round(ours) if abs(ours) >= 1000 else float(f"{ours:.4g}")
    if not low <= shown <= high:
        return format_number(ours)
    decimals = max(0, 4 - int(np.floor(np.log10(abs(ours)))))
    while decimals < 12 and low <= round(ours, decimals) <= high:
        decimals += 1
    return format_number(ours, decimals)


def interval_of(effect: Effect) -> str:
    """``96 % interval``: how sure; empty where there are too few replicates for one."""
    return f"{100 * effect.level:.3g} % interval" if effect.low is not None else ""


def with_verdicts(text: str, verdicts: Mapping[str, str], show: Callable[[str, str], str]) -> str:
    """A text of the ledger with each ``{C4}`` replaced by ``show("C4", its verdict)``."""
    text = verdicts_as_verbs(text, VERDICT_REFERENCE, verdicts)
    return VERDICT_REFERENCE.sub(lambda found: show(found[1], verdicts[found[1]]), text)


def verdicts_as_verbs(text: str, reference: re.Pattern[str], verdicts: Mapping[str, str]) -> str:
    """A text in which a reference to a verdict that is a verb stands alone, without an "is" before it.

    So a sentence can be written for all verdicts: "that it is faster is inconclusive", or "holds".

    Parameters
    ----------
    text : str
        With references in its sentences, in italics or not.
    reference : pattern
        Of a reference; its first group is the name that it refers to.
    verdicts : mapping of str to str
        Verdicts by name; references to other names are left as they are.
    """

    def read(found: re.Match[str]) -> str:
        return found[1] if verdicts.get(found[2]) in VERBS else found[0]

    return re.sub(rf"\bis\s+(\**{reference.pattern})", read, text)


def signs(text: str, *, of_nought: bool = False) -> str:
    """A number with a true minus sign, and a space between thousands if there are at least five digits.

    A nought has no sign, unless `of_nought` says that it tells a side.
    """
    if not of_nought:
        text = re.sub(r"^-(?=0(\.0+)?$)", "", text)
    text = re.sub(r"(?<![\d,])(\d),(\d{3})(?![\d,])", r"\1\2", text)
    return text.replace("-", "−").replace(",", " ")


def format_interval(
    mean: float,
    low: float | None,
    high: float | None,
    unit: str = "",
    possible: Range = (None, None),
) -> str:
    """``0.031 [0.010, 0.052] unit``, to two digits of the half-width.

    The interval is cut where `possible` ends: a share of 0.9 has no upper end of 1.1.
    """
    if low is None or high is None:
        return format_number(mean, unit=unit)
    half = (high - low) / 2
    digits = min(12, max(0, 1 - int(np.floor(np.log10(half))))) if half > 0 else 4
    least, most = possible
    low = low if least is None else max(low, least)
    high = high if most is None else min(high, most)
    low, high = (signs(f"{end:,.{digits}f}", of_nought=True) for end in (low, high))
    return f"{signs(f'{mean:,.{digits}f}')} [{low}, {high}] {unit}".strip()
