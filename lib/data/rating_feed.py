"""Film ratings as a feed of impressions: a real, time-stamped log, of another domain than news.

MovieLens (Harper & Konstan, TiiS 2015) says who rated which film when, and not what else was on the screen.
So clicks are real here, and what was not clicked is drawn: what a model learns of it is in part our drawing,
and a click-through rate counts impressions that nobody saw. Films do not go stale within a day as news does,
and people rate in sittings of many films a minute, from lists that the service chose for them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.click_feed import feed_of_clicks
from lib.data.dataset import DataSet, read_table
from lib.data.movielens import ML_100K, read_atomic
from lib.data.news import Articles, ImpressionLog
from lib.data.news_text import Text, article_table
from lib.data.packages import PackageFile

DAY = 86_400
_FILMS = {"item_id:token": "item", "movie_title:token_seq": "title", "class:token_seq": "genres"}


def read_rated_films(ratings: Path, films: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """RecBole's atomic files of ratings and of films: item, title, genres (with blanks between)."""
    types = {"item": "int64", "title": "str", "genres": "str"}
    return read_atomic(ratings), read_table(films, sep="\t", dtype=types, columns=_FILMS)[list(types)]


#: Loads as two tables, for `rating_feed`.
ML_100K_FILMS = DataSet(
    name="MovieLens-100K with titles and genres",
    licence=ML_100K.licence,
    citation=ML_100K.citation,
    homepage=ML_100K.homepage,
    sources=(
        *ML_100K.sources,
        PackageFile(
            package="recbole",
            path="dataset_example/ml-100k/ml-100k.item",
            sha256="51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            requirement="recbole==1.2.1",
        ),
    ),
    read=read_rated_films,
)


def rating_feed(
    ratings: pd.DataFrame,
    films: pd.DataFrame,
    *,
    negatives: int = 14,
    alive_days: float = 30.0,
    feedback: float = 0.0,
    title_length: int = 20,
    seed: int,
) -> ImpressionLog:
    """Ratings as impressions with one click each, drawn by `lib.data.click_feed.feed_of_clicks`.

    A rating is none where the film was not rated lately, or too few others were.

    Parameters
    ----------
    ratings : DataFrame
        Columns user, item, timestamp (Unix seconds); the ratings themselves are not looked at.
    films : DataFrame
        Columns item, title, genres (with blanks between).
    negatives, feedback, seed
        As there: films drawn for a click, from those that the user has not rated by then (later ratings are
        not spared); how much more popular ones are shown; of the drawing.
    alive_days : float
        A film can be shown so long after a rating.
    title_length : int
        Words kept.

    Returns
    -------
    ImpressionLog
        In the order of time, at one second in that of the table. Articles are the films, in their order: the
        first genre as category, all of them as subcategory where there are several, and as abstract; time of
        publication unknown, so a film's age counts from the first impression that has it.

    Raises
    ------
    ValueError
        A film is there twice or a rated one not at all; or what `feed_of_clicks` refuses.
    """
    if films["item"].duplicated().any():
        raise ValueError(f"a film is there twice: {films['item'][films['item'].duplicated()].iloc[0]}")
    ratings = ratings.sort_values("timestamp", kind="stable")
    film = pd.Index(films["item"]).get_indexer(ratings["item"]) + 1
    if not film.all():
        unknown = ratings["item"].to_numpy()[film == 0][0]
        raise ValueError(f"a film that was rated is not among the {len(films)} films: {unknown}")
    return feed_of_clicks(
        ratings["timestamp"].to_numpy(np.int64),
        pd.factorize(ratings["user"], sort=True)[0] + 1,
        film,
        _films(films, title_length),
        negatives=negatives,
        alive=int(alive_days * DAY),
        feedback=feedback,
        seed=seed,
    )


def _films(films: pd.DataFrame, title_length: int) -> Articles:
    """Their titles and genres as articles."""
    texts = {}
    for name, title, genres in zip(films["item"], films["title"], films["genres"], strict=True):
        several = genres.split()
        subcategory = "/".join(several) if len(several) > 1 else ""
        texts[str(name)] = Text("".join(several[:1]), subcategory, title, genres)
    return article_table(texts, title_length=title_length, abstract_length=10)
