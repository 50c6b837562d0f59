"""Adressa (Gulla et al., WI 2017), clicks of readers of Adresseavisen, from files that the reader has.

One file a day, one JSON object a line; ``one_week.tar.gz`` (or ``three_month.tar.gz``) holds a week's (ten
weeks') files. Its terms (research, on request at its home page) are the reader's to accept, so there is no
download here. The keys that are read, ``userId``, ``id``, ``title``, ``category1`` (``a|b|c``) and ``time``
(Unix seconds), are those that a public program (newsreclib) reads; files have not been compared with them.

There are no impressions, only clicks: what was not clicked is drawn, and a click-through rate is undefined.
Where negatives are drawn from all articles of the archive, whatever their age, most are stale or of the
future, and freshness or popularity alone is close to a perfect ranker. Here they are drawn from what was
alive, with the past alone (`lib.data.click_feed`).
"""

from __future__ import annotations

import json
import tarfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lib.data.click_feed import feed_of_clicks
from lib.data.dataset import UnexpectedFormat
from lib.data.news import ImpressionLog
from lib.data.news_rows import Skipped, Tally
from lib.data.news_text import Text, article_table
from lib.listing import plural, printable

HOUR = 3600


def read_adressa(
    path: Path,
    *,
    negatives: int = 20,
    alive_hours: float = 24.0,
    feedback: float = 0.0,
    title_length: int = 30,
    min_word_count: int = 1,
    seed: int,
) -> tuple[ImpressionLog, tuple[Skipped, ...]]:
    """Clicks as impressions, each with one click.

    Parameters
    ----------
    path : path
        A folder with a file for each day, or an archive of such files, which is read without unpacking it.
    negatives, feedback, seed
        Of `lib.data.click_feed.feed_of_clicks`: articles drawn for a click, how much more clicked ones are
        shown, and of the drawing.
    alive_hours : float
        An article can be shown so long after a click on it.
    title_length, min_word_count : int
        Words kept, and how common they are at least.

    Returns
    -------
    ImpressionLog
        Articles in the order of their first clicks in the files; there is neither abstract nor time of
        publication.
    tuple of Skipped
        One a file: lines that are no JSON object, or whose ``userId``, ``id``, ``title`` or ``time`` is not
        what it should be. Lines without ``id`` are events on pages that are no article: they are left out,
        and not counted.

    Raises
    ------
    FileNotFoundError, UnexpectedFormat, ValueError
        No such file or folder; no archive, or a part of one; no click in it, or none that can be an
        impression.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no {path.name} at {path}: a folder of Adressa's daily files, or their archive"
        )
    users: dict[str, int] = {}
    texts: dict[str, Text] = {}
    rows: dict[str, int] = {}
    time, user, article = array("q"), array("q"), array("q")
    days: list[Tally] = []
    for name, when, who, text in _clicks(path, days):
        texts.setdefault(name, text)
        time.append(when)
        user.append(users.setdefault(who, len(users) + 1))
        article.append(rows.setdefault(name, len(rows) + 1))
    reports = tuple(day.skipped() for day in days)
    if not time:
        said = f": {reports[0]}" if reports else ""
        raise UnexpectedFormat(path, f"no click on an article in {plural(len(reports), 'file')}{said}")
    order = np.argsort(np.array(time), kind="stable")
    log = feed_of_clicks(
        np.array(time)[order],
        np.array(user)[order],
        np.array(article)[order],
        article_table(texts, title_length=title_length, abstract_length=1, min_word_count=min_word_count),
        negatives=negatives,
        alive=int(alive_hours * HOUR),
        feedback=feedback,
        seed=seed,
    )
    return log, reports


def _clicks(path: Path, days: list[Tally]) -> Iterator[tuple[str, int, str, Text]]:
    """Article, time, user and text of each click on an article; the files are added to `days`."""
    for line in _lines(path, days):
        day = days[-1]
        day.lines += 1
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            day.skip("no JSON")
            continue
        if not isinstance(event, dict):
            day.skip("no object")
        elif "id" in event:
            wrong = [key for key in ("id", "userId", "title") if not _text(event, key)]
            when = event.get("time")
            if type(when) is not int or not 0 <= when < 1 << 32:
                wrong.append("time")
            if wrong:
                day.skip(f"{wrong[0]} is {str(event.get(wrong[0], 'missing'))[:40]!r}")
                continue
            category, _, finer = _text(event, "category1").partition("|")
            subcategory = f"{category}/{finer.replace('|', '/')}" if finer else ""
            yield event["id"], when, event["userId"], Text(category, subcategory, event["title"])


def _lines(path: Path, days: list[Tally]) -> Iterator[bytes]:
    """Lines of the daily files, one file after the other."""
    if path.is_dir():
        for day in sorted(day for day in path.iterdir() if day.is_file() and not day.name.startswith(".")):
            days.append(Tally(day))
            with day.open("rb") as lines:
                yield from lines
        return
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile():  # no link: nothing beside the archive is read
                    days.append(Tally(Path(member.name)))
                    yield from archive.extractfile(member)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UnexpectedFormat(path, f"no archive, or a part of one: {printable(error)}") from error


def _text(event: dict, key: str) -> str:
    return event[key] if isinstance(event.get(key), str) else ""
