"""Amazon product ratings, the 2014 edition (McAuley et al., SIGIR 2015): Beauty and Video Games.

Time stamps are whole days (midnight UTC): the order of a user's events within a day is the order of the file,
and a model that reads seconds sees only multiples of 86 400. Users and items are strings.

The owners publish no hashes. The sha256 found at the first use is written beside the file and must hold from
then on; that first download is taken on trust, so compare it with a colleague's.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.data.dataset import DataSet, read_table
from lib.data.download import Download

LICENCE = "Amazon review data of J. McAuley, 2014 edition: research use"
CITATION = (
    "McAuley, Targett, Shi & van den Hengel, Image-based Recommendations on Styles and Substitutes, "
    "SIGIR 2015, doi:10.1145/2766462.2767755"
)
TYPES = {"user": "str", "item": "str", "rating": "float64", "timestamp": "int64"}


def read_ratings(path: Path) -> pd.DataFrame:
    """ratings_*.csv: `user,item,rating,timestamp`, no header, ids as strings."""
    return read_table(path, header=None, names=list(TYPES), dtype=TYPES)


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
            ),
        ),
        read=read_ratings,
    )


BEAUTY = _category("Beauty", "Beauty", "about 80 MB")
VIDEO_GAMES = _category("Video Games", "Video_Games", "about 55 MB")
