"""What readers of news logs share: what was skipped of a file, and impressions put in the order of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lib.data.news import ImpressionLog
from lib.listing import plural

#: Skipped lines of which a message says why.
TOLD = 3


@dataclass(frozen=True)
class Skipped:
    """Lines of a file that could not be read: how many of how many, and why the first ones.

    Attributes
    ----------
    path : Path
    lines, count : int
        All, and the skipped ones.
    first : tuple of (int, str)
        Numbers of lines and reasons.
    unit : str
        ``line``, counted from 1 as editors do, or ``row``, from 0 as pandas does.
    """

    path: Path
    lines: int
    count: int
    first: tuple[tuple[int, str], ...]
    unit: str = "line"

    def __str__(self) -> str:
        """One line of text."""
        whole = plural(self.lines, self.unit)
        if not self.count:
            return f"{self.path.name}: {whole}, all read"
        told = "; ".join(f"{self.unit} {number}: {reason}" for number, reason in self.first)
        more = "; …" if self.count > len(self.first) else ""
        return f"{self.path.name}: {self.count} of {whole} skipped ({told}{more})"


class Tally:
    """Counts a file's lines, and those that are skipped."""

    def __init__(self, path: Path, unit: str = "line") -> None:
        self.path, self.unit = Path(path), unit
        self.lines = self.count = 0
        self.first: list[tuple[int, str]] = []

    def skip(self, reason: str) -> None:
        """Leave out the current line."""
        self.skip_all([self.lines], lambda _: reason)

    def skip_all(self, numbers: Iterable[int], reason: Callable[[int], str]) -> None:
        """Leave out lines; the reasons of the first ones are asked for."""
        for number in numbers:
            self.count += 1
            if len(self.first) < TOLD:
                self.first.append((int(number), reason(int(number))))

    def skipped(self) -> Skipped:
        """What it has come to."""
        return Skipped(self.path, self.lines, self.count, tuple(self.first), self.unit)


def in_order(log: ImpressionLog, time: np.ndarray) -> ImpressionLog:
    """The log with these times, sorted by them; of one second, in the order of the file."""
    order = np.argsort(time, kind="stable")
    sizes = np.diff(log.offsets)[order]
    offsets = np.append(0, np.cumsum(sizes))
    candidate, clicked = np.empty_like(log.candidate), np.empty_like(log.clicked)
    # In parts: of 140 million candidates, the places alone would take 3 GB.
    for first in range(0, len(order), 1 << 18):
        part = slice(first, min(first + (1 << 18), len(order)))
        begin, end = offsets[part.start], offsets[part.stop]
        places = np.repeat(log.offsets[order[part]] - offsets[part], sizes[part]) + np.arange(begin, end)
        candidate[begin:end], clicked[begin:end] = log.candidate[places], log.clicked[places]
    return replace(
        log,
        time=time[order],
        user=log.user[order],
        offsets=offsets,
        candidate=candidate,
        clicked=clicked,
        history_begin=log.history_begin[order],
        history_end=log.history_end[order],
    )
