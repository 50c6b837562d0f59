"""MIND, the Microsoft News Dataset (Wu et al., ACL 2020), from files that the reader has.

Its terms (Microsoft Research licence, non-commercial research) forbid to pass it on, so there is no download
here: `read_news` and `read_behaviors` take the files of an unpacked split, ``news.tsv`` and
``behaviors.tsv``. Tab separated UTF-8 without header and without quoting. There is no time zone, no time of
publication, and no time of the clicks in a history; times are as the service's clock shows them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from lib.data.news import Articles, ImpressionLog
from lib.data.news_rows import Skipped, Tally, in_order
from lib.data.news_text import Text, article_table


class _Lines(Tally):
    """The fields of a file's lines, and what was skipped of them."""

    def __init__(self, path: Path, columns: Sequence[int]) -> None:
        super().__init__(path)
        self.columns = columns
        if not self.path.is_file():
            raise FileNotFoundError(f"no {self.path.name} at {self.path}")

    def __iter__(self) -> Iterator[list[str]]:
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for line in file:
                self.lines += 1
                fields = line.rstrip("\r\n").split("\t")
                if len(fields) in self.columns:
                    yield fields
                else:
                    self.skip(f"{len(fields)} columns, not {' or '.join(map(str, self.columns))}")


def read_news(
    paths: Sequence[Path],
    *,
    title_length: int = 30,
    abstract_length: int = 50,
    min_word_count: int = 1,
    words: Sequence[str] | None = None,
) -> tuple[Articles, tuple[Skipped, ...]]:
    """Articles of one or more ``news.tsv``; one that is in several is that of the first.

    Parameters
    ----------
    paths : sequence of path
        The training split's first.
    title_length, abstract_length : int
        Words kept.
    min_word_count : int
        Rarer words of all titles and abstracts are left out of the vocabulary, and of the texts.
    words : sequence of str, optional
        The vocabulary, from index 1; by default all words, the commonest first.

    Returns
    -------
    Articles
        Subcategories are named ``category/subcategory``; no time of publication.
    tuple of Skipped
        One a file.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; or no article in any.
    """
    texts: dict[str, Text] = {}
    reports = []
    for path in paths:
        lines = _Lines(path, (7, 8))  # the documentation says seven, the files have eight
        for name, category, subcategory, title, abstract, *_ in lines:
            if not name or not category:
                lines.skip("no article's name, or no category")
            elif name not in texts:
                texts[name] = Text(category, f"{category}/{subcategory}", title, abstract)
        reports.append(lines.skipped())
    if not texts:
        raise ValueError(f"no article in {', '.join(str(path) for path in paths)}: {reports[0]}")
    articles = article_table(
        texts,
        title_length=title_length,
        abstract_length=abstract_length,
        min_word_count=min_word_count,
        words=words,
    )
    return articles, tuple(reports)


def read_behaviors(
    path: Path, articles: Articles, users: dict[str, int] | None = None
) -> tuple[ImpressionLog, Skipped]:
    """Impressions of one ``behaviors.tsv``, in the order of time.

    Parameters
    ----------
    path : path
    articles : Articles
        Of `read_news`. A click on an unknown article in a history is left out of the history; an impression
        that shows one is skipped.
    users : dict, optional
        Numbers from 1 by name, added to; give the same one for all splits.

    Returns
    -------
    ImpressionLog
    Skipped
        Other numbers of columns, a time that is none, labels other than 0 and 1 (the test split has none),
        an unknown article among the candidates, or no candidate.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; or no impression in it that can be read.
    """
    users = {} if users is None else users
    index = {name: i for i, name in enumerate(articles.ids.tolist()) if i}
    time, user, sizes = array("q"), array("q"), array("q")
    candidate, clicked = array("i"), bytearray()
    history, begin, end = array("i"), array("q"), array("q")
    known: dict[str, tuple[int, int]] = {}
    lines = _Lines(path, (5,))
    for _, name, stamp, before, shown in lines:
        tokens = shown.split()
        labels = {token[-2:] for token in tokens}
        if not tokens or not labels <= {"-0", "-1"}:
            other = min(labels - {"-0", "-1"}, default="")
            lines.skip(f"a candidate ends in {other!r}, not in -0 or -1" if tokens else "no candidate")
            continue
        try:
            moment = _seconds(stamp)
            rows = [index[token[:-2]] for token in tokens]
        except KeyError as error:
            lines.skip(f"no article {error.args[0]!r}")
            continue
        except ValueError:
            lines.skip(f"{stamp!r} is no time like 11/15/2019 8:55:22 AM")
            continue
        if before not in known:
            clicks = [index[one] for one in before.split() if one in index]
            known[before] = (len(history), len(history) + len(clicks))
            history.extend(clicks)
        time.append(moment)
        user.append(users.setdefault(name, len(users) + 1))
        sizes.append(len(rows))
        candidate.extend(rows)
        clicked.extend(token[-1] == "1" for token in tokens)
        begin.append(known[before][0])
        end.append(known[before][1])
    report = lines.skipped()
    if not time:
        raise ValueError(f"no impression could be read: {report}")
    log = ImpressionLog(
        time=np.zeros(len(time), np.int64),
        user=np.array(user),
        offsets=np.append(0, np.cumsum(np.array(sizes))),
        candidate=np.array(candidate),
        clicked=np.frombuffer(bytes(clicked), np.uint8).astype(bool),
        history=np.array(history, np.int32),
        history_begin=np.array(begin),
        history_end=np.array(end),
        articles=articles,
    )
    return in_order(log, np.array(time)), report


def _seconds(stamp: str) -> int:
    """``11/15/2019 8:55:22 AM`` in seconds since 1970, as if it were UTC."""
    date, clock, half = stamp.split(" ")
    hour, minute, second = map(int, clock.split(":"))
    if half not in ("AM", "PM") or not (1 <= hour <= 12 and 0 <= minute < 60 and 0 <= second < 60):
        raise ValueError(stamp)
    return _day(date) + (hour % 12 + 12 * (half == "PM")) * 3600 + minute * 60 + second


@lru_cache(maxsize=1024)
def _day(date: str) -> int:
    month, day, year = map(int, date.split("/"))
    return (datetime(year, month, day) - datetime(1970, 1, 1)).days * 86_400
