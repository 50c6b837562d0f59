"""MovieLens ratings with time stamps (Harper & Konstan, TiiS 2015).

Every rating counts as an interaction. The stamps record when a film was *rated*, in sessions of many films a
minute, not when it was watched: in MovieLens-100K half of a user's consecutive ratings share one second.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.dataset import DataSet, UnexpectedFormat, read_table
from lib.data.download import Download, ZipMember
from lib.data.packages import PackageFile

LICENCE = "GroupLens: research with acknowledgement, no redistribution without permission, not commercial"
CITATION = (
    "Harper & Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015, doi:10.1145/2827872"
)
TYPES = {"user": "int64", "item": "int64", "rating": "float64", "timestamp": "int64"}


def read_atomic(path: Path) -> pd.DataFrame:
    """RecBole's atomic file: tab separated, with the header user_id:token, item_id:token, and so on."""
    return read_table(path, sep="\t", dtype=TYPES, columns=_ATOMIC)[list(TYPES)]


def read_dat(path: Path) -> pd.DataFrame:
    """MovieLens-1M's ratings.dat: `user::item::rating::timestamp`, no header."""
    # "::" needs pandas' slow parser; a single ":" gives empty columns between, which the fast one skips.
    table = read_table(path, sep=":", header=None, names=_EVERY_OTHER, dtype=TYPES)
    if not table.drop(columns=list(TYPES)).isin(["", np.nan]).all(axis=None):
        raise UnexpectedFormat(path, "fields that are not between two colons each")
    return table[list(TYPES)]


def read_csv(path: Path) -> pd.DataFrame:
    """ratings.csv of MovieLens-20M and all later ones: header userId,movieId,rating,timestamp."""
    return read_table(path, dtype=TYPES, columns=_LATER)[list(TYPES)]


_EVERY_OTHER = [name for column in TYPES for name in (column, f"after {column}")][:-1]
_ATOMIC = dict(zip(("user_id:token", "item_id:token", "rating:float", "timestamp:float"), TYPES, strict=True))
_LATER = dict(zip(("userId", "movieId", "rating", "timestamp"), TYPES, strict=True))

ML_100K = DataSet(
    name="MovieLens-100K",
    licence=LICENCE,
    citation=CITATION,
    homepage="https://grouplens.org/datasets/movielens/100k/",
    sources=(
        PackageFile(
            package="recbole",
            path="dataset_example/ml-100k/ml-100k.inter",
            sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            requirement="recbole==1.2.1",
        ),
    ),
    read=read_atomic,
)


def _archive(code: str, size: str, md5: str) -> Download:
    """GroupLens' zip file. Plain http is only a second way in: the hash decides.

    GroupLens publishes the md5 of each archive in a file beside it. The values below are from memory of those
    files and have not been compared with them since; a failed check names that file, which decides.
    """
    host = "files.grouplens.org/datasets/movielens"
    return Download(
        name=f"{code}.zip",
        addresses=(f"https://{host}/{code}.zip", f"http://{host}/{code}.zip"),
        size=size,
        licence=LICENCE,
        known_hash=f"md5:{md5}",
        published_hash=f"https://{host}/{code}.zip.md5",
    )


ML_1M = DataSet(
    name="MovieLens-1M",
    licence=LICENCE,
    citation=CITATION,
    homepage="https://grouplens.org/datasets/movielens/1m/",
    sources=(
        ZipMember(_archive("ml-1m", "about 6 MB", "c4d9eecfca2ab87c1945afe126590906"), "ml-1m/ratings.dat"),
    ),
    read=read_dat,
)

ML_20M = DataSet(
    name="MovieLens-20M",
    licence=LICENCE,
    citation=CITATION,
    homepage="https://grouplens.org/datasets/movielens/20m/",
    sources=(
        ZipMember(
            _archive("ml-20m", "about 190 MB", "cd245b17a1ae2cc31bb14903e1204af3"), "ml-20m/ratings.csv"
        ),
    ),
    read=read_csv,
)
