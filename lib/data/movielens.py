"""MovieLens ratings with time stamps (Harper & Konstan, TiiS 2015).

Every rating counts as an interaction. The stamps record when a film was *rated*, in sessions of many films a
minute, not when it was watched: in MovieLens-100K half of a user's consecutive ratings share one second.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.data.dataset import DataSet
from lib.data.packages import PackageFile

LICENCE = (
    "GroupLens: research use with acknowledgement, no redistribution without permission, no commercial use"
)
CITATION = (
    "Harper & Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015, 10.1145/2827872"
)
COLUMNS = ["user", "item", "rating", "timestamp"]
TYPES = {"user": "int64", "item": "int64", "rating": "float64", "timestamp": "int64"}


def read_atomic(path: Path) -> pd.DataFrame:
    """RecBole's atomic file: tab separated, one header line, columns user, item, rating, timestamp."""
    return pd.read_csv(path, sep="\t", header=0, names=COLUMNS, dtype=TYPES)


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
