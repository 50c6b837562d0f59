"""What every data set of the book has: a name, terms of use, files with hashes, and a loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd


class DataUnavailable(RuntimeError):
    """A data file cannot be had or is not the file it should be. The message is one line and says what to
    do."""


class Source(Protocol):
    """Where one file comes from, of the kinds in `lib.data.packages` and `lib.data.download`."""

    @property
    def name(self) -> str: ...

    def fetch(self, data_dir: Path) -> Path:
        """The file on this machine, checked; raises `DataUnavailable` with one line that says what to do."""
        ...


@dataclass(frozen=True)
class DataSet:
    """A data set, from its origin to what a chapter reads: a table, or a dictionary of image sets by split.

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
        return [source.fetch(Path(data_dir)) for source in self.sources]

    def load(self, data_dir: str | Path) -> Any:
        """What `read` makes of the files.

        Interaction data are a table with the columns user, item, rating and timestamp (Unix seconds); images
        are a dictionary from split to `lib.data.images.ImageSet`.
        """
        return self.read(*self.files(data_dir))


def read_table(path: Path, **options: object) -> pd.DataFrame:
    """`pandas.read_csv` without guessing; a file in another format is a `DataUnavailable` that names it."""
    try:
        table = pd.read_csv(path, index_col=False, keep_default_na=False, **options)
    except (ValueError, pd.errors.ParserError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataUnavailable(
            f"{path} is not in the expected format ({reason}): delete it and run again"
        ) from error
    if len(table) == 0:
        raise DataUnavailable(f"{path} is empty: delete it and run again")
    return table
