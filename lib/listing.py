"""Counts, lists and errors in a sentence: the first few items, one bit and two bits, the one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Escape codes of a terminal: colours and cursor, window titles, the rest.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")


def first_few(items: Sequence[str], shown: int = 3, separator: str = ", ") -> str:
    """``a, b, c and 4 more``: a list of any length as part of a line."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(items[:shown]) + more


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``, ``5 blocks of rounds``."""
    head, of, rest = noun.partition(" of ")
    return f"{count} {head}{'' if count == 1 else 's'}{of}{rest}"


def one_line(said: object, most: int = 300) -> str:
    """What something says as a line for a terminal: its first line that is not empty, without escape codes.

    Parameters
    ----------
    said : object
        Text, or an error.
    most : int
        Of a line that is much longer (by two thirds and more) the middle is left out, so that it has as many
        characters: its end often says what to do.
    """
    line = next(filter(None, map(_plain, str(said).splitlines())), "")
    return line if 3 * len(line) < 5 * most else f"{line[: most - most // 3 - 3]} … {line[-(most // 3) :]}"


def printable(error: object) -> str:
    """All that an error says, wherever its text is from: a line of 200 characters at most, without escapes.

    `one_line` is for what a person reads as the whole message; this is for a reason within one.
    """
    line = _plain(str(error)) or type(error).__name__
    return line if len(line) <= 200 else f"{line[:198]} …"


def _plain(text: str) -> str:
    """Text in one line, without escape codes and what cannot be printed."""
    text = ESCAPES.sub("", text)
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())
