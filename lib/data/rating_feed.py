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

from lib.data.dataset import DataSet, read_table
from lib.data.movielens import ML_100K, read_atomic
from lib.data.news import Articles, ImpressionLog
from lib.data.news_text import Text, article_table
from lib.data.packages import PackageFile
from lib.streams import stream_seed

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
    """Each rating as an impression with one click, beside films that were around and not rated.

    A film is alive at t if anybody rated it in the ``alive_days`` before t, not counting t's own second.
    Candidates are alive, the clicked one too: a rating of a film that was not alive is no impression, or
    "nobody has rated it lately" would tell the click. It is still part of histories, and of what is alive.

    Parameters
    ----------
    ratings : DataFrame
        Columns user, item, timestamp (Unix seconds); the ratings themselves are not looked at.
    films : DataFrame
        Columns item, title, genres (with blanks between).
    negatives : int
        Films drawn for a click, without replacement, from those alive that the user neither rated before nor
        rates in the same second. What they will rate later is not spared: that would use the future. A rating
        with fewer to draw from is no impression.
    alive_days : float
        Of the past.
    feedback : float
        A film is drawn with a probability that is proportional to its earlier ratings to this power. With 0
        all are alike, and popularity alone tells clicks well; with 1 it is shown as it is rated.
    title_length : int
        Words kept.
    seed : int
        Of the drawing, and of the candidates' order.

    Returns
    -------
    ImpressionLog
        In the order of time, at one second in that of the table; each has ``1 + negatives`` candidates.
        Histories are all the user's films rated before the impression's second. Articles are the films, in
        their order: the first genre as category, all of them as subcategory where there are several, and as
        abstract; time of publication unknown, so a film's age counts from the first impression that has it.

    Raises
    ------
    ValueError
        A film is there twice or a rated one not at all, ``negatives`` is below 1, ``alive_days`` is not
        positive, or no rating can be an impression.
    """
    if negatives < 1 or not alive_days > 0:
        raise ValueError(f"expected negatives >= 1 and alive_days > 0, got {negatives} and {alive_days}")
    if films["item"].duplicated().any():
        raise ValueError(f"a film is there twice: {films['item'][films['item'].duplicated()].iloc[0]}")
    if not len(ratings):
        raise ValueError("there are no ratings")
    ratings = ratings.sort_values("timestamp", kind="stable")
    film = pd.Index(films["item"]).get_indexer(ratings["item"]) + 1
    if not film.all():
        unknown = ratings["item"].to_numpy()[film == 0][0]
        raise ValueError(f"a film that was rated is not among the {len(films)} films: {unknown}")
    time = ratings["timestamp"].to_numpy(np.int64)
    user = pd.factorize(ratings["user"], sort=True)[0] + 1
    event, shown = _drawn(time, user, film, negatives, int(alive_days * DAY), feedback, seed)
    if not len(event):
        raise ValueError(f"none of {len(time)} ratings has {negatives} other films alive to be shown beside")

    # A user's ratings in the order of time; an impression's history is the part before its second.
    by_user = np.argsort(user, kind="stable")
    keys = (user * (time[-1] - time[0] + 1) + time - time[0])[by_user]
    begins = np.searchsorted(user[by_user], user[event])
    before = np.searchsorted(keys, user[event] * (time[-1] - time[0] + 1) + time[event] - time[0])
    return ImpressionLog(
        time=time[event],
        user=user[event],
        offsets=np.arange(len(event) + 1) * (1 + negatives),
        candidate=shown.ravel().astype(np.int32),
        clicked=(shown == film[event, None]).ravel(),
        history=film[by_user].astype(np.int32),
        history_begin=begins,
        history_end=before,
        articles=_films(films, title_length),
    )


def _drawn(
    time: np.ndarray,
    user: np.ndarray,
    film: np.ndarray,
    negatives: int,
    window: int,
    feedback: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Which ratings are impressions, (I,), and the films that they show, (I, 1 + negatives), shuffled."""
    draw = np.random.default_rng(stream_seed(seed, "rating feed"))
    latest = np.full(film.max() + 1, time[0] - window - 1)
    count = np.zeros(film.max() + 1)
    rated = np.zeros((user.max() + 1, film.max() + 1), bool)
    events, shown = [], []
    for second in np.split(np.arange(len(time)), np.flatnonzero(np.diff(time)) + 1):
        now = time[second[0]]
        rated[user[second], film[second]] = True
        alive = np.flatnonzero(latest >= now - window)
        for event in second[latest[film[second]] >= now - window]:
            others = alive[~rated[user[event], alive]]
            if len(others) < negatives:
                continue
            # The smallest of exponential variables over weights: draws in turn, without replacement.
            chance = draw.standard_exponential(len(others)) / count[others] ** feedback
            drawn = np.sort(np.argpartition(chance, negatives - 1)[:negatives])  # partitions differ in order
            events.append(event)
            shown.append(draw.permutation(np.append(others[drawn], film[event])))
        latest[film[second]] = now
        np.add.at(count, film[second], 1)
    return np.array(events, np.int64), np.array(shown)


def _films(films: pd.DataFrame, title_length: int) -> Articles:
    """Their titles and genres as articles."""
    texts = {}
    for name, title, genres in zip(films["item"], films["title"], films["genres"], strict=True):
        several = genres.split()
        subcategory = "/".join(several) if len(several) > 1 else ""
        texts[str(name)] = Text("".join(several[:1]), subcategory, title, genres)
    return article_table(texts, title_length=title_length, abstract_length=10)
