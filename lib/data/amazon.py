"""Amazon product ratings, the 2014 edition (McAuley et al., SIGIR 2015): Beauty and Video Games.

Time stamps are whole days (midnight UTC): the order of a user's events within a day is the order of the file,
and a model that reads seconds sees only multiples of 86 400. Users and items are strings.

The owners publish no hashes. The sha256 found at the first use is written beside the file and must hold from
then on; that first download is taken on trust, so compare it with a colleague's.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.data.dataset import DataSet, UnexpectedFormat, read_table
from lib.data.download import Download

LICENCE = "Amazon review data of J. McAuley, 2014 edition: research use"
CITATION = (
    "McAuley, Targett, Shi & van den Hengel, Image-based Recommendations on Styles and Substitutes, "
    "SIGIR 2015, doi:10.1145/2766462.2767755"
)
TYPES = {"user": "str", "item": "str", "rating": "float64", "timestamp": "int64"}
#: How Amazon names products; books go by their ISBN. A user's name begins with A and is mostly longer.
PRODUCT = r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]"


def read_ratings(path: Path) -> pd.DataFrame:
    """ratings_*.csv: `user,item,rating,timestamp`, no header, ids as strings.

    Raises
    ------
    DataUnavailable
        It is another file, such as one of the 2018 edition, which has the items first.
    """
    table = read_table(path, header=None, names=list(TYPES), dtype=TYPES)
    products = table[["user", "item"]].head(1000).apply(lambda ids: ids.str.fullmatch(PRODUCT))
    if products["user"].all() and not products["item"].any():
        raise UnexpectedFormat(path, "items come first, as in the edition of 2018, and not users")
    return table


def _whole(path: Path) -> None:
    """Refuse what can only be the beginning of a file: both of these have more than a million ratings."""
    if (found := len(read_ratings(path))) < 1_000_000:
        raise UnexpectedFormat(path, f"{found} ratings, not more than a million")


def _category(name: str, code: str, size: str) -> DataSet:
    file = f"ratings_{code}.csv"
    return DataSet(
        name=f"Amazon {name} (2014)",
        licence=LICENCE,
        citation=CITATION,
        homepage="https://snap.stanford.edu/data/amazon/productGraph/",
        sources=(
            Download(
                name=file,
                addresses=(f"https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/{file}",),
                size=size,
                licence=LICENCE,
                check=_whole,
            ),
        ),
        read=read_ratings,
    )


BEAUTY = _category("Beauty", "Beauty", "about 80 MB")
VIDEO_GAMES = _category("Video Games", "Video_Games", "about 55 MB")
