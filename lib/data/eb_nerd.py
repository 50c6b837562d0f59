"""EB-NeRD, the Ekstra Bladet News Recommendation Dataset (Kruse et al., RecSys Challenge 2024).

A Danish newspaper's impressions, in Parquet files that the reader has: its terms (Ekstra Bladet's, for
research, to be accepted at its home page) are the reader's to accept, so there is no download here. A folder
has ``articles.parquet`` and, for each of ``train`` and ``validation``, ``behaviors.parquet`` and
``history.parquet``. The names and types of their columns are from memory of its public description and have
not been compared with its files; a column of another name or type is refused by name.

The time of publication is known, so an article's age is its true one. ``total_inviews``, ``total_pageviews``
and ``total_read_time`` of an article are sums over its *future*, too: they are never read, and a model that
takes them for features has seen the clicks that it is to foretell. The same holds of ``read_time`` and
``next_read_time`` of an impression. Times are taken as UTC, since they have no zone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib.data.dataset import UnexpectedFormat
from lib.data.news import Articles, ImpressionLog
from lib.data.news_rows import Skipped, Tally, in_order
from lib.data.news_text import Text, article_table, vocabulary
from lib.listing import printable

#: Rows read at once; a user's history may have some hundred clicks, of which there are a few copies.
ROWS = 1 << 15
#: In place of a number or time that is null.
MISSING = np.iinfo(np.int64).min

Lists = tuple[np.ndarray, np.ndarray, np.ndarray]


def _is_list(of: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and of(kind.value_type)


_KINDS = {
    "whole numbers": pa.types.is_integer,
    "times": pa.types.is_timestamp,
    "texts": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "lists of whole numbers": _is_list(pa.types.is_integer),
    "lists of times": _is_list(pa.types.is_timestamp),
    "lists of numbers": _is_list(pa.types.is_floating),
}
_ARTICLES = {
    "article_id": "whole numbers",
    "title": "texts",
    "subtitle": "texts",
    "category_str": "texts",
    "subcategory": "lists of whole numbers",
    "published_time": "times",
}
_HISTORY = {
    "user_id": "whole numbers",
    "article_id_fixed": "lists of whole numbers",
    "impression_time_fixed": "lists of times",
}
_BEHAVIORS = {
    "user_id": "whole numbers",
    "impression_time": "times",
    "article_ids_inview": "lists of whole numbers",
    "article_ids_clicked": "lists of whole numbers",
}


def read_articles(
    path: Path,
    *,
    title_length: int = 30,
    abstract_length: int = 50,
    min_word_count: int = 1,
    words_until: int | None = None,
) -> tuple[Articles, Skipped]:
    """Articles of ``articles.parquet``; the subtitle is the abstract.

    Parameters
    ----------
    path : path
    title_length, abstract_length, min_word_count : int
        As `lib.data.news_text.article_table` has them.
    words_until : int, optional
        The vocabulary is of the articles published before, in Unix seconds: those of the training.

    Returns
    -------
    Articles
        Category by its text, the first of an article's subcategories as ``category/number``.
    Skipped
        Rows without a number or with an earlier row's.

    Raises
    ------
    FileNotFoundError, UnexpectedFormat
        No such file; no Parquet file, a part of one, a column that is missing or of another type (by name),
        or no article.
    """
    texts: dict[str, Text] = {}
    tally = Tally(path, "row")
    for first, batch in _batches(path, _ARTICLES, tally):
        values, sizes, _ = batch["subcategory"]
        heads = np.cumsum(sizes) - sizes
        columns = (batch[name] for name in ("article_id", "category_str", "title", "subtitle"))
        for row, (name, category, title, subtitle) in enumerate(zip(*columns, strict=True)):
            if name == MISSING or str(name) in texts:
                reason = "article_id is missing" if name == MISSING else f"article {name} is there twice"
                tally.skip_all([first + row], lambda _, reason=reason: reason)
                continue
            subcategory = f"{category}/{values[heads[row]]}" if sizes[row] else ""
            published = batch["published_time"][row]
            texts[str(name)] = Text(category, subcategory, title, subtitle, max(int(published), -1))
    if not texts:
        raise UnexpectedFormat(path, f"no article: {tally.skipped()}")
    known = [text for text in texts.values() if words_until is None or text.published < words_until]
    articles = article_table(
        texts,
        title_length=title_length,
        abstract_length=abstract_length,
        words=vocabulary(known, min_word_count),
    )
    return articles, tally.skipped()


def read_impressions(
    folder: Path, articles: Articles, users: dict[int, int] | None = None
) -> tuple[ImpressionLog, tuple[Skipped, Skipped]]:
    """Impressions of a split, the folder of ``behaviors.parquet`` and ``history.parquet``, in order of time.

    Read `ROWS` rows at a time into flat arrays: 5 bytes a candidate, 24 an impression and 4 a click of a
    history, and about twice that at the end, while they are put in order.

    Parameters
    ----------
    folder : path
    articles : Articles
        Of `read_articles`.
    users : dict, optional
        Numbers from 1 by ``user_id``, added to; give the same one for both splits.

    Returns
    -------
    ImpressionLog
        A user's history is that of the split's ``history.parquet``, the same for all impressions: clicks of
        the split itself are not in it. Clicks in it on unknown articles, and those that are not before the
        split's first impression, are left out.
    tuple of Skipped
        Of the behaviors: rows with a null, nothing in view, no click, an unknown article in view, a click
        that is not in view, or a user who has no history. Of the histories: rows with a null, two lists of
        different lengths, or a user of an earlier row.

    Raises
    ------
    FileNotFoundError, UnexpectedFormat
        As `read_articles`; or no impression that can be read.
    """
    users = {} if users is None else users
    behaviors = Tally(Path(folder) / "behaviors.parquet", "row")
    histories = Tally(Path(folder) / "history.parquet", "row")
    ids = pd.Index(articles.ids[1:].astype(np.int64))
    start = first_impression(behaviors.path)
    who, ends, history = _read_history(histories, ids, start)
    who = pd.Index(who)
    numbers = np.array([0, *(users.setdefault(user, len(users) + 1) for user in who.tolist())])
    parts: list[tuple[np.ndarray, ...]] = []
    for first, batch in _batches(behaviors.path, _BEHAVIORS, behaviors):
        keep, candidate, clicked, sizes, place = _labelled(first, batch, ids, who, behaviors)
        parts.append((batch["impression_time"][keep], place[keep], sizes[keep], candidate, clicked))
    time, place, sizes, candidate, clicked = map(np.concatenate, zip(*parts, strict=True))
    del parts
    if not len(time):
        raise UnexpectedFormat(behaviors.path, f"no impression could be read: {behaviors.skipped()}")
    log = ImpressionLog(
        time=np.zeros(len(time), np.int64),
        user=numbers[place],
        offsets=np.append(0, np.cumsum(sizes)),
        candidate=candidate,
        clicked=clicked,
        history=history,
        history_begin=ends[place - 1],
        history_end=ends[place],
        articles=articles,
    )
    return in_order(log, time), (behaviors.skipped(), histories.skipped())


def first_impression(path: Path) -> int:
    """Unix seconds of the earliest impression of a ``behaviors.parquet``."""
    tally = Tally(path, "row")
    column = {"impression_time": _BEHAVIORS["impression_time"]}
    times = [batch["impression_time"] for _, batch in _batches(path, column, tally)]
    known = [time.min() for part in times if len(time := part[part != MISSING])]
    if not known:
        raise UnexpectedFormat(path, "no impression has a time")
    return int(min(known))


def read_vectors(path: Path, articles: Articles) -> tuple[np.ndarray, Skipped]:
    """Embeddings of articles that EB-NeRD offers: a number and a list of floats a row.

    Parameters
    ----------
    path : path
        ``document_vector.parquet``, say: ``article_id`` and one other column.
    articles : Articles

    Returns
    -------
    array (A+1, D) float32
        Zeros for articles that have none.
    Skipped
        Rows of unknown articles, without a list, or with one of another length than the first.

    Raises
    ------
    FileNotFoundError, UnexpectedFormat
        As `read_articles`; or no vector of a known article.
    """
    ids = pd.Index(articles.ids[1:].astype(np.int64))
    others = [name for name in _opened(path).schema_arrow.names if name != "article_id"]
    if len(others) != 1:
        raise UnexpectedFormat(path, f"one column beside article_id is expected, not {len(others)}")
    tally = Tally(path, "row")
    table = np.zeros((len(articles) + 1, 0), np.float32)
    for first, batch in _batches(path, {"article_id": "whole numbers", others[0]: "lists of numbers"}, tally):
        values, sizes, _ = batch[others[0]]
        rows = ids.get_indexer(batch["article_id"]) + 1
        if not table.size and sizes.any():
            table = np.zeros((len(articles) + 1, sizes[sizes > 0][0]), np.float32)
        length = table.shape[1]
        owner = np.repeat(np.arange(len(rows)), sizes)
        reasons = {
            "no such article": rows == 0,
            f"not {length} numbers" if length else "no numbers": (sizes != length) | (sizes == 0),
            "a number that is none": np.bincount(owner[~np.isfinite(values)], minlength=len(rows)) > 0,
        }
        good = _without(first, reasons, tally)
        table[rows[good]] = values[good[owner]].reshape(good.sum(), length)
    if tally.count == tally.lines:
        raise UnexpectedFormat(path, f"no vector of a known article: {tally.skipped()}")
    return table, tally.skipped()


def _read_history(tally: Tally, ids: pd.Index, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users (H,), where their clicks end (H+1,), and all clicks, oldest first."""
    who, sizes_of, history = [], [], []
    seen: set[int] = set()
    for first, batch in _batches(tally.path, _HISTORY, tally):
        user = batch["user_id"]
        (article, sizes, null), (time, times, _) = batch["article_id_fixed"], batch["impression_time_fixed"]
        twice = np.array([one in seen or seen.add(one) is not None for one in user.tolist()], bool)
        reasons = {
            "user_id is missing": user == MISSING,
            "article_id_fixed is missing": null,
            "article_id_fixed and impression_time_fixed differ in length": sizes != times,
            "its user is there twice": twice,
        }
        keep = _without(first, reasons, tally)
        owner = np.repeat(np.arange(len(user)), sizes)
        rows = ids.get_indexer(article[keep[owner]]) + 1
        time, owner = time[np.repeat(keep, times)], owner[keep[owner]]
        order = np.lexsort((time, owner))
        order = order[(rows[order] > 0) & (time[order] < start) & (time[order] != MISSING)]
        who.append(user[keep])
        sizes_of.append(np.bincount(owner[order], minlength=len(user))[keep])
        history.append(rows[order].astype(np.int32))
    if not who:
        raise UnexpectedFormat(tally.path, "it is empty")
    return np.concatenate(who), np.append(0, np.cumsum(np.concatenate(sizes_of))), np.concatenate(history)


def _labelled(
    first: int, batch: Mapping[str, np.ndarray | Lists], ids: pd.Index, who: pd.Index, tally: Tally
) -> tuple[np.ndarray, ...]:
    """Which rows are impressions, their candidates and clicks; and of all rows sizes and users' places."""
    user = batch["user_id"]
    (shown, sizes, none_shown), (click, clicks, none_clicked) = (
        batch["article_ids_inview"],
        batch["article_ids_clicked"],
    )
    owner, of_click = np.repeat(np.arange(len(user)), sizes), np.repeat(np.arange(len(user)), clicks)
    candidate, place = ids.get_indexer(shown) + 1, who.get_indexer(user) + 1
    count = len(ids) + 1
    keys = owner * count + candidate
    click_keys = of_click * count + ids.get_indexer(click) + 1
    clicked = pd.Index(keys).isin(click_keys)
    elsewhere = ~pd.Index(click_keys).isin(keys)
    reasons = {
        "impression_time is missing": batch["impression_time"] == MISSING,
        "user_id is missing": user == MISSING,
        "article_ids_inview is missing": none_shown,
        "article_ids_clicked is missing": none_clicked,
        "nothing in view": sizes == 0,
        "no click": clicks == 0,
        "an unknown article in view": np.bincount(owner[candidate == 0], minlength=len(user)) > 0,
        "a click that is not in view": np.bincount(of_click[elsewhere], minlength=len(user)) > 0,
        "its user has no history": place == 0,
    }
    keep = _without(first, reasons, tally)
    return keep, candidate[keep[owner]].astype(np.int32), clicked[keep[owner]], sizes, place


def _without(first: int, reasons: Mapping[str, np.ndarray], tally: Tally) -> np.ndarray:
    """True for rows to which none of the reasons applies; the others are counted, each with its first one."""
    wrong = np.stack(list(reasons.values()))
    bad = wrong.any(0)
    tally.skip_all(
        np.flatnonzero(bad) + first, lambda row: list(reasons)[int(np.argmax(wrong[:, row - first]))]
    )
    return ~bad


def _opened(path: Path) -> pq.ParquetFile:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {Path(path).name} at {path}")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UnexpectedFormat(path, f"not Parquet, or a part of a file: {printable(error)}") from error


def _batches(
    path: Path, columns: Mapping[str, str], tally: Tally
) -> Iterator[tuple[int, dict[str, np.ndarray | Lists]]]:
    """Columns as arrays, some rows at a time, with the number of the first row; the tally counts them.

    Numbers and times (Unix seconds) are int64 (n,), texts lists of str, lists three arrays: their values one
    after the other, their lengths (n,), and which are null (n,).
    """
    file = _opened(path)
    for name, kind in columns.items():
        at = file.schema_arrow.get_all_field_indices(name)
        if len(at) != 1:
            found = ", ".join(file.schema_arrow.names)
            raise UnexpectedFormat(path, f"no column {name} in {found[:120]!r}")
        if not _KINDS[kind](found := file.schema_arrow.field(at[0]).type):
            raise UnexpectedFormat(path, f"column {name} has {found}, not {kind}")
    try:
        for batch in file.iter_batches(ROWS, columns=list(columns)):
            first, tally.lines = tally.lines, tally.lines + len(batch)
            yield first, {name: _array(batch.column(name)) for name in columns}
    except (pa.ArrowException, OSError) as error:
        raise UnexpectedFormat(path, f"cannot be read from row {tally.lines}: {printable(error)}") from error


def _array(column: pa.Array) -> np.ndarray | list[str] | Lists:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        null = column.is_null().to_numpy(zero_copy_only=False)
        return _array(column.flatten()), sizes, null
    if _KINDS["texts"](column.type):
        return column.fill_null("").to_pylist()
    if pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s"), safe=False)
    return column.cast(pa.int64()).fill_null(MISSING).to_numpy()
