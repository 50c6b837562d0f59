"""Numbers and verdicts in the text of chapters: one minus sign, one way to write thousands, verbs as verbs.

Cells write numbers as Python does (``-0.001``, ``10,000``, ``418329``), tables of the record as
`lib.ledger.wording` does. A page shows both, so what cells wrote is brought into the same form when the page
is made: a true minus, a space between thousands from five digits on, and no end of a line within a number or
before its percent sign. Nothing is rounded here. And "that it is faster is *holds*" is read as "that it is
faster *holds*", so that the text can be written before the verdict is known.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from lib.ledger.wording import signs, verdicts_as_verbs

GLUED = re.compile(r"\{glue:text\}`([^`:]+)(?::([^`]*))?`")
KEPT = "application/papermill.record/text/plain"
CELL = re.compile(r"(<t[dh]\b[^>]*>)([^<]*)(?=</t[dh]>)")
NUMBER = re.compile(r"([+-]?)([1-9]\d{0,2}(?:,\d{3})+|0|[1-9]\d*)((?:\.\d+)?(?:e[+-]?\d+)?)")
WITH_COMMAS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
NO_BREAK = "\N{NO-BREAK SPACE}"  # a number is not torn apart at the end of a line
THOUSANDS = re.compile(r"(?<!\d)\d{1,3}(?: \d{3})+(?!\d)")
BEFORE_PERCENT = re.compile(r"(\{glue:text\}`[^`]*`)|(?<=[\d\]]) (?=%)")  # the name of a glued text stays


def readable(notebook: dict[str, Any]) -> None:
    """Bring the numbers of an executed notebook, in its text and in its tables, into the book's form.

    Its verdicts become words of their sentences.

    Raises
    ------
    ValueError
        A number in its text is not finite.
    """
    kept = glued(notebook)
    words = {name: value for name, value in kept.items() if isinstance(value, str)}
    numbers = {name: value for name, value in kept.items() if name not in words}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            prose = verdicts_as_verbs("".join(cell["source"]), GLUED, words)
            prose = GLUED.sub(lambda role: _in_prose(role, numbers), prose)
            cell["source"] = _with_percent(prose)
        for output in cell.get("outputs", ()):
            html = output.get("data", {}).get("text/html")
            if html is not None:
                tables = CELL.sub(lambda cell: cell[1] + _unbroken(in_table(cell[2])), "".join(html))
                output["data"]["text/html"] = _with_percent(tables)


def glued(notebook: dict[str, Any]) -> dict[str, float | str]:
    """The numbers and words that cells kept for the text, by name; what is neither is left to MyST-NB."""
    found = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            kept = output.get("metadata", {}).get("scrapbook")
            if kept is None:
                continue
            text = "".join(output.get("data", {}).get(KEPT, ""))
            try:
                value = float(text) if text in ("nan", "inf", "-inf") else ast.literal_eval(text)
            except (SyntaxError, ValueError):
                continue
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                found[kept["name"]] = value
    return found


def _with_percent(text: str) -> str:
    """No end of a line before a percent sign; what is glued keeps its name."""
    return BEFORE_PERCENT.sub(lambda found: found[1] or NO_BREAK, text)


def _in_prose(role: re.Match[str], numbers: dict[str, float]) -> str:
    """A glued number as text; an unknown one stays as it is, and MyST-NB complains about it."""
    name, form = role[1], role[2]
    if name not in numbers:
        return role[0]
    if not math.isfinite(numbers[name]):
        raise ValueError(f"the text quotes {name}, which is {numbers[name]}")
    written = format(numbers[name], form) if form else str(numbers[name])
    return in_table(written).replace(" ", NO_BREAK)


def _unbroken(text: str) -> str:
    """Text of a cell, its thousands marked for the style sheet: lines may end elsewhere."""
    return THOUSANDS.sub(r"<span class='number'>\g<0></span>", text)


def in_table(text: str) -> str:
    """What stands in a cell of a table: a number in the book's form, else text with its thousands apart.

    >>> in_table("-0.29"), in_table("418329"), in_table("10,000 images"), in_table("W2-A2")
    ('−0.29', '418 329', '10 000 images', 'W2-A2')
    """
    number = NUMBER.fullmatch(text.strip())
    if number is None:
        return WITH_COMMAS.sub(lambda found: signs(found[0]), text)
    sign, whole, rest = number.groups()
    return signs(f"{sign}{int(whole.replace(',', '')):,}{rest}")
