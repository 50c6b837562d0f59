"""What every data set of the book has: a name, terms of use, files with hashes, and a loader."""

from __future__ import annotations

import codecs
import functools
import gzip
import itertools
import operator
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from lib.files import ROOT
from lib.listing import printable


class DataUnavailable(RuntimeError):
    """A data file cannot be had or is not the file it should be. The message is one line and says what to
    do."""


class UnexpectedFormat(DataUnavailable):
    """A file is there, and its content is not what its name says.

    Attributes
    ----------
    reason : str
        What is wrong, and in which line.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is not in the expected format ({reason}): correct it, or delete it and run again"
        )
        self.reason = reason


def data_folder(data_dir: str | Path) -> Path:
    """Where data lie: a relative path counts from the repository, wherever a notebook is; ``~`` is home."""
    return ROOT / Path(data_dir).expanduser()


def writable_folder(folder: Path) -> Path:
    """The folder, or a temporary one for this process where it cannot be written."""
    return folder if os.access(folder, os.W_OK) else Path(_scratch().name)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="does-it-hold-")  # goes with the process


class Source(Protocol):
    """Where one file comes from, of the kinds in `lib.data.packages` and `lib.data.download`."""

    @property
    def name(self) -> str: ...

    def fetch(self, data_dir: Path) -> Path:
        """The file on this machine, checked; raises `DataUnavailable` with one line that says what to do."""
        ...


@runtime_checkable
class Trusting(Protocol):
    """A source that notes what it finds at the first use."""

    def forget(self, data_dir: Path) -> None:
        """Note it no longer."""
        ...


@dataclass(frozen=True)
class DataSet:
    """A data set, from its origin to what a chapter reads: a table, image sets by split, text, weights, ….

    Attributes
    ----------
    name : str
        As people know it.
    licence : str
        What its terms allow, in a sentence.
    citation : str
        The publication to cite.
    homepage : str
        Where its owners describe it.
    sources : tuple of Source
        Where its files come from, in the order that `read` expects them.
    read : callable
        Turns the paths of those files into it.
    synthetic : bool
        True for made-up data, which cannot confirm a claim about real users.
    """

    name: str
    licence: str
    citation: str
    homepage: str
    sources: tuple[Source, ...]
    read: Callable[..., Any]
    synthetic: bool = False

    def files(self, data_dir: str | Path) -> list[Path]:
        """The files on this machine, fetched if need be and checked against their hashes.

        Raises
        ------
        DataUnavailable
            With one line that says what is missing and what to do.
        """
        try:
            return [source.fetch(Path(data_dir)) for source in self.sources]
        except OSError as error:
            raise DataUnavailable(f"{error.filename} cannot be read: {error.strerror}") from error

    def load(self, data_dir: str | Path) -> Any:
        """What `read` makes of the files.

        Interaction data are a table with the columns user, item, rating and timestamp (Unix seconds); images
        are a dictionary from split to `lib.data.images.ImageSet`. What `read` refuses is not trusted: no hash
        of it is kept.
        """
        files = self.files(data_dir)
        try:
            return self.read(*files)
        except DataUnavailable:
            for source in self.sources:
                if isinstance(source, Trusting):
                    source.forget(Path(data_dir))
            raise


def opened(path: Path) -> IO[str]:
    """A text file, whatever saved it: UTF-8 with or without a mark, UTF-16 with one, any line ends, gzip.

    Raises
    ------
    OSError
        It cannot be read.
    """
    opener = gzip.open if _begins(path, b"\x1f\x8b") else open
    with opener(path, "rb") as file:
        utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return opener(path, "rt", encoding="utf-16" if utf16 else "utf-8-sig")


def _begins(path: Path, mark: bytes) -> bool:
    with Path(path).open("rb") as file:
        return file.read(len(mark)) == mark


def read_table(
    path: Path, *, dtype: Mapping[str, str], columns: Mapping[str, str] | None = None, **options: Any
) -> pd.DataFrame:
    """`pandas.read_csv` without guessing: every field is there and of its column's type.

    What editors and systems add is no matter (`opened`; quotes, blanks around fields).

    Parameters
    ----------
    path : Path
    dtype : mapping
        From columns to ``str``, ``int64`` or ``float64``; numbers are finite, text is not empty.
    columns : mapping, optional
        From the names in the file's first line, in any order, to those of `dtype`.
    options
        Of `pandas.read_csv`.

    Raises
    ------
    UnexpectedFormat
        A field is missing or of another type; the message has its line. Or the file is empty.
    DataUnavailable
        It cannot be read.
    """
    options |= {"index_col": False, "keep_default_na": False, "skipinitialspace": True}
    try:
        if columns is not None:
            options |= _by_name(path, columns, options)
        table = _read(path, options | {"dtype": dict(dtype)})
    except _UNREADABLE as error:
        reason = _misfit(path, dtype, options) or printable(error)
        raise UnexpectedFormat(path, reason) from error
    except OSError as error:
        raise DataUnavailable(f"{path} cannot be read: {error.strerror or error}") from error
    if len(table) == 0:
        raise UnexpectedFormat(path, "it is empty")
    for name, kind in dtype.items():
        if kind == "str":
            table[name] = table[name].str.strip()
        whole = (table[name] != "") & table[name].notna() if kind == "str" else np.isfinite(table[name])
        if not whole.all():
            raise UnexpectedFormat(path, _misfit(path, dtype, options))
    return table


#: What reading a file of another format raises. `gzip.BadGzipFile` is an OSError.
_UNREADABLE = (ValueError, OverflowError, pd.errors.ParserWarning, EOFError, zlib.error, gzip.BadGzipFile)


def _read(path: Path, options: Mapping[str, Any]) -> pd.DataFrame:
    # Python's strings also where PyArrow is installed: with its own, an empty last column counts as left out.
    python_strings = pd.option_context("mode.string_storage", "python")
    with warnings.catch_warnings(), python_strings, opened(path) as file:
        warnings.simplefilter("error", pd.errors.ParserWarning)  # fields left out
        return pd.read_csv(file, **options)


def _by_name(path: Path, columns: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that take the columns of a file by their names in its first line."""
    found = [str(name).strip() for name in _read(path, {**options, "nrows": 0}).columns]
    if absent := [name for name in columns if found.count(name) != 1]:
        raise UnexpectedFormat(path, f"line 1: no column {absent[0]} in {', '.join(found)[:80]!r}")
    return {
        "header": 0,
        "names": [columns.get(name, f"other {place}") for place, name in enumerate(found)],
    }


def _misfit(path: Path, dtype: Mapping[str, str], options: Mapping[str, Any]) -> str:
    """The first field of a table that is missing or of another type, with its line; nothing if none is."""
    try:
        table = _read(path, {**options, "dtype": "str"})
    except _UNREADABLE:
        return ""
    misfits = []
    for name, kind in dtype.items():
        column = table[name].fillna("").str.strip()
        number = pd.to_numeric(column, errors="coerce")
        fits = {
            "str": column != "",
            "int64": column.str.fullmatch(r"[+-]?[0-9]+") & (abs(number) < 2**63),
            "float64": np.isfinite(number),
        }[kind]
        misfits += [(int(row), name, column.iloc[row]) for row in np.flatnonzero(~fits)[:1]]
    if not misfits:
        return ""
    row, name, field = min(misfits, key=operator.itemgetter(0))
    with opened(path) as file:
        lines = (number for number, line in enumerate(file, 1) if line.strip())
        line = next(itertools.islice(lines, row + (options["header"] is not None), None))
    return f"line {line}: {name} is " + (repr(field[:40]) if field else "missing")
