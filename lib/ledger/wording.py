"""Verdicts and numbers as people read them: one way to write each, in chapters and on the book's pages."""

from __future__ import annotations

from html import escape

import numpy as np

from lib.ledger.paper_numbers import PaperNumber
from lib.listing import first_few


def badge(verdict: str) -> str:
    """A verdict as a word that the book's style sheet turns into a badge."""
    return f'<strong class="verdict verdict-{verdict.replace(" ", "-")}">{escape(verdict)}</strong>'


def listed(text: str, items: list[str], shown: int = 3) -> str:
    """``text: a; b; c and 4 more.``: the first items of a list, and how many are left."""
    return f"{text}: {first_few(items, shown, '; ')}."


def format_number(value: float, decimals: int | None = None, unit: str = "") -> str:
    """A number for people: `decimals` as printed, else at most four digits; thousands apart, true minus."""
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


def signs(text: str) -> str:
    """A number with a true minus sign, and a thin space between thousands."""
    return text.replace("-", "−").replace(",", " ")


def format_interval(
    mean: float, low: float | None, high: float | None, unit: str = "", sign: bool = False
) -> str:
    """``0.031 [0.010, 0.052] unit``, to two digits of the half-width; `sign` also writes a plus."""
    mark = "+" if sign else ""
    if low is None or high is None:
        return signs(f"{mean:{mark}.4g} {unit}".strip())
    half = (high - low) / 2
    digits = min(12, max(0, 1 - int(np.floor(np.log10(half))))) if half > 0 else 4
    numbers = [f"{value:{mark},.{digits}f}".replace(",", " ") for value in (mean, low, high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}] {unit}".replace("-", "−").strip()
