"""Ratings as impressions: what is drawn beside a click, and what must not be."""

import numpy as np
import pandas as pd
import pytest

from lib.data.dataset import DataUnavailable
from lib.data.news_context import ContextFeatures
from lib.data.rating_feed import DAY, ML_100K_FILMS, rating_feed

FILMS = pd.DataFrame(
    {
        "item": [10, 20, 30, 40, 50],
        "title": ["Toy Story", "Usual Suspects, The", "Heat", "Heat", "Fargo"],
        "genres": ["Animation Children's Comedy", "Crime Thriller", "Action", "Crime", "Crime Drama"],
    }
)


def ratings(*rows):
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


def made_up(seed, events=400, users=12, films=25):
    """Sittings: many ratings share a second, of one user and of several."""
    draw = np.random.default_rng(seed)
    pairs = draw.permutation(users * films)[: min(events, users * films)]
    time = 1000 + np.sort(draw.integers(0, 40, len(pairs))) * draw.choice([1, DAY // 8])
    table = pd.DataFrame({"user": pairs // films, "item": pairs % films, "timestamp": time})
    names = pd.DataFrame({"item": range(films), "title": "a film", "genres": "Drama"})
    return table.sample(frac=1, random_state=seed), names


def shown(log):
    """Of each impression: its time, its user, the film clicked, and the others."""
    ids = log.articles.ids
    for i in range(len(log)):
        part = slice(log.offsets[i], log.offsets[i + 1])
        films, clicked = ids[log.candidate[part]], log.clicked[part]
        yield int(log.time[i]), int(log.user[i]), films[clicked].tolist(), set(films[~clicked].tolist())


def test_by_hand():
    log = rating_feed(
        ratings(
            ("a", 10, 100),  # nothing is alive yet: these two make films alive
            ("b", 20, 100),
            ("c", 10, 105),  # 20 is the only other film; the same second's 30 is not alive
            ("d", 30, 105),
            ("a", 20, 110),  # 30 is left: 10 is rated
            ("a", 30, 110),  # 20 is rated in the same second, 10 before: nothing left
            ("b", 10, 120),  # 30
            ("e", 40, 125),  # was never rated: no impression
        ),
        FILMS,
        negatives=1,
        seed=0,
    )
    assert list(shown(log)) == [(105, 3, ["10"], {"20"}), (120, 2, ["10"], {"30"})]
    log = rating_feed(
        ratings(("a", 10, 0), ("b", 20, 0), ("c", 30, 0), ("d", 30, 9), ("d", 10, 9), ("d", 20, 20)),
        FILMS,
        negatives=1,
        seed=0,
    )
    assert list(shown(log)) == [(9, 4, ["30"], {"20"}), (9, 4, ["10"], {"20"})]
    assert log.recent_history(np.arange(2), 2).tolist() == [[-1, -1]] * 2, "nothing of the same second"


def test_histories_have_all_ratings_before():
    rows = [("a", 10, 0), ("b", 20, 0), ("c", 40, 0), ("a", 30, 1), ("a", 20, 2), ("b", 10, 2), ("b", 40, 3)]
    log = rating_feed(ratings(*reversed(rows)), FILMS, negatives=1, seed=1)
    found = dict(zip(zip(log.time.tolist(), log.user.tolist(), strict=True), range(len(log)), strict=True))
    assert log.recent_history(np.array([found[2, 1]]), 3).tolist() == [[1, 3, -1]]
    assert log.recent_history(np.array([found[2, 2], found[3, 2]]), 2).tolist() == [[2, -1], [2, 1]]


def test_films_as_articles():
    articles = rating_feed(
        ratings(("a", 10, 0), ("b", 20, 0), ("c", 10, 1)), FILMS, negatives=1, seed=0
    ).articles
    words, names = ["", *articles.words], ["", *articles.category_names]
    assert [words[i] for i in articles.title[2][:5]] == ["usual", "suspects", ",", "the", ""]
    assert [words[i] for i in articles.abstract[1][:5]] == ["animation", "children", "s", "comedy", ""]
    assert [names[i] for i in articles.category] == ["", "Animation", "Crime", "Action", "Crime", "Crime"]
    assert [names[i] for i in articles.subcategory[1:4]] == [
        "Animation/Children's/Comedy",
        "Crime/Thriller",
        "",
    ]
    assert (articles.published == -1).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("negatives", "alive_days"), [(1, 30), (4, 30), (6, 0.6), (3, 0.2)])
def test_what_is_drawn_was_alive_and_not_rated(seed, negatives, alive_days):
    table, films = made_up(seed)
    log = rating_feed(table, films, negatives=negatives, alive_days=alive_days, seed=seed)
    window = int(alive_days * DAY)
    users = sorted(set(table["user"]))
    expected = 0
    for row in table.itertuples():
        past = table[(table.timestamp < row.timestamp) & (table.timestamp >= row.timestamp - window)]
        mine = table[(table.user == row.user) & (table.timestamp <= row.timestamp)]
        alive = set(past["item"])
        expected += row.item in alive and len(alive - set(mine["item"])) >= negatives
    assert len(log) == expected > 0
    for time, user, clicked, others in shown(log):
        past = table[(table.timestamp < time) & (table.timestamp >= time - window)]
        mine = table[(table.user == users[user - 1]) & (table.timestamp <= time)]
        alive = set(past["item"].astype(str))
        assert len(clicked) == 1 and clicked[0] in alive
        assert len(others) == negatives and others <= alive - set(mine["item"].astype(str))


def test_a_second_rating_of_a_film_is_no_impression():
    """Films that the user has rated are never drawn: it would be known as the click."""
    rows = [("a", 10, 0), ("b", 20, 0), ("c", 30, 0), ("c", 10, 5), ("c", 10, 6), ("a", 10, 7)]
    log = rating_feed(ratings(*rows), FILMS, negatives=1, seed=0)
    assert list(shown(log)) == [(5, 3, ["10"], {"20"})]


def test_the_future_draws_nothing():
    table, films = made_up(3)
    whole = rating_feed(table, films, negatives=3, seed=5)
    half = np.sort(table["timestamp"])[len(table) // 2]
    cut = rating_feed(table[table["timestamp"] <= half], films, negatives=3, seed=5)
    assert 0 < len(cut) < len(whole)
    assert np.array_equal(cut.candidate, whole.candidate[: len(cut.candidate)])
    assert np.array_equal(cut.clicked, whole.clicked[: len(cut.candidate)])


def test_seeds_decide_the_negatives_alone():
    table, films = made_up(1)
    one, again, other = (rating_feed(table, films, negatives=5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.candidate, again.candidate) and np.array_equal(one.clicked, again.clicked)
    assert not np.array_equal(one.candidate, other.candidate)
    assert [row[:3] for row in shown(one)] == [row[:3] for row in shown(other)]


def test_feedback_shows_what_is_rated_and_order_tells_nothing():
    """Two films, one with nine times the ratings of the other; exposure follows to the power asked for."""
    rows = [(f"early {i}", 10 if i % 10 else 20, 0) for i in range(1000)]
    rows += [("someone", 30, 0)] + [(f"late {i}", 30, 1) for i in range(4000)]
    for feedback, share in ((0.0, 0.5), (0.5, 0.75), (1.0, 0.9)):
        log = rating_feed(ratings(*rows), FILMS, negatives=1, feedback=feedback, seed=0)
        assert len(log) == 4000
        assert np.isclose((log.candidate[~log.clicked] == 1).mean(), share, atol=0.03)
        assert np.isclose(log.clicked.reshape(-1, 2)[:, 0].mean(), 0.5, atol=0.03)


def test_refusals():
    good = ratings(("a", 10, 0), ("b", 20, 0), ("c", 10, 1))
    for table, films, options, message in (
        (good.assign(item=7), FILMS, {}, "not among the 5 films: 7"),
        (good, pd.concat([FILMS, FILMS]), {}, "a film is there twice: 10"),
        (good[:0], FILMS, {}, "there are no clicks"),
        (good, FILMS, {"negatives": 2}, "none of 3 clicks has 2 other articles alive"),
        (good, FILMS, {"negatives": 0}, "got 0 and 2592000"),
        (good, FILMS, {"alive_days": 0.0}, "got 1 and 0$"),
    ):
        with pytest.raises(ValueError, match=message):
            rating_feed(table, films, **{"negatives": 1, "seed": 0} | options)


def test_movielens_100k():
    try:
        table, films = ML_100K_FILMS.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))
    assert len(films) == 1682 and films["genres"].str.split().str.len().max() == 6
    log = rating_feed(table, films, seed=0)
    assert len(log) == 97_226 and set(np.diff(log.offsets)) == {15} and log.clicked.sum() == len(log)
    assert (np.add.reduceat(log.clicked, log.offsets[:-1]) == 1).all()
    popularity = ContextFeatures.of(log).popularity().reshape(-1, 15)
    clicked = popularity[log.clicked.reshape(-1, 15)][:, None]
    auc = ((popularity < clicked).sum(1) + ((popularity == clicked).sum(1) - 1) / 2) / 14
    assert 0.77 < auc.mean() < 0.80, "negatives that are drawn alike leave much to popularity"
