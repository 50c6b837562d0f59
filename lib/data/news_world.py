"""A made-up news service whose readers' reasons are known. It shows when a claim holds, not that it does.

Readers have tastes, articles a topic that their words tell and a quality that they do not, stories break and
age, and a service may show more of what was clicked. How much each of these decides a click is a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lib.data.news import Articles, ImpressionLog
from lib.streams import stream_seed

HOUR, DAY = 3600, 86_400


@dataclass(frozen=True, eq=False)
class Reasons:
    """Why the candidates of a world's log were clicked, (N,) each.

    Attributes
    ----------
    logit : float64
        Of each candidate's click, place included: what a perfect ranker would know, but for the luck.
    taste : float64
        The reader's part in it: what a perfect ranker by content would know.
    """

    logit: np.ndarray
    taste: np.ndarray


@dataclass(frozen=True)
class NewsWorld:
    """How a service and its readers behave. Synthetic, ours.

    A reader u, shown article a at ``place`` 0, 1, … at age ``d`` days, clicks with probability

        σ(base + taste·θ_u[category] + quality·(q_a + burst_a·exp(−d / breaking_days)) − ageing·d
          − position·log(1 + place))

    independently of the other candidates. θ and q are standard normal; a share of the articles, the breaking
    ones, have a burst of 2, the others none. If nothing was clicked, one click is drawn from the same logits;
    impressions with nothing but clicks are left out. What is shown are ``candidates`` of the articles of the
    last ``alive_days``, drawn without replacement with weights exp(−d)·(1 + clicks so far)^feedback.

    Parameters
    ----------
    taste, quality, ageing : float
        What drives clicks: the reader's taste, the article's hidden quality, its age.
    position, feedback : float
        How much the upper places are preferred, and how much the service shows more of what was clicked.
    breaking_share, breaking_days : float
        Of articles; of their bursts' decay.
    base : float
        Of the logit: few candidates are clicked.
    users, impressions, days, articles_per_day, candidates : int
        Sizes; impressions fall in the days from 2 on.
    categories, subcategories, words, title_words, abstract_words : int
        Of the texts: a word is drawn from its category's distribution or from its subcategory's, with equal
        probability; both are draws of a Dirichlet(0.05).
    alive_days : float
        After these an article is no longer shown.
    """

    taste: float = 1.5
    quality: float = 1.0
    ageing: float = 1.0
    position: float = 0.0
    feedback: float = 0.0
    breaking_share: float = 0.0
    breaking_days: float = 0.25
    base: float = -2.2
    users: int = 300
    impressions: int = 4000
    days: int = 6
    articles_per_day: int = 120
    candidates: int = 15
    categories: int = 10
    subcategories: int = 2
    words: int = 400
    title_words: int = 8
    abstract_words: int = 16
    alive_days: float = 2.0

    def __post_init__(self) -> None:
        """Refuse a world in which nothing can be shown."""
        sizes = ("users", "impressions", "articles_per_day", "categories", "subcategories", "words")
        for name in (*sizes, "title_words", "abstract_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.days < 3 or self.candidates < 2 or not self.alive_days > 0 or not self.breaking_days > 0:
            raise ValueError(
                "expected days >= 3, candidates >= 2, alive_days and breaking_days > 0, got "
                f"{self.days}, {self.candidates}, {self.alive_days} and {self.breaking_days}"
            )
        if not 0 <= self.breaking_share <= 1:
            raise ValueError(f"breaking_share must be in 0..1, got {self.breaking_share}")
        if self.candidates > self.articles_per_day * min(self.alive_days, 2) / 2:
            raise ValueError(f"{self.candidates} candidates are too many for so few articles alive")

    def draw(self, seed: int) -> tuple[ImpressionLog, Reasons]:
        """One history of the service.

        Returns
        -------
        log : ImpressionLog
            Times in seconds from the service's beginning; candidates in shuffled order, as logs have them.
        reasons : Reasons
            Of its candidates.
        """
        draw = np.random.default_rng(stream_seed(seed, "news world"))
        articles, quality, burst = self._articles(draw, self._topics(seed))
        category, published = articles.category, articles.published
        taste = draw.normal(size=(self.users + 1, self.categories + 1))
        time = np.sort(draw.integers(2 * DAY, self.days * DAY, self.impressions))
        user = draw.integers(1, self.users + 1, self.impressions)
        clicks = np.zeros(len(published))
        place_cost = self.position * np.log1p(np.arange(self.candidates))
        begin = np.searchsorted(published[1:], time - int(self.alive_days * DAY)) + 1
        end = np.searchsorted(published[1:], time, "right") + 1
        shown, clicked, logits, tastes, kept = [], [], [], [], []
        for i, t in enumerate(time):
            alive = np.arange(begin[i], end[i])
            weight = -(t - published[alive]) / DAY + self.feedback * np.log1p(clicks[alive])
            order = np.argsort(-(weight + draw.gumbel(size=len(alive))))[: self.candidates]
            rows = alive[draw.permutation(order)]  # the service's places are no ranking of its own weights
            age = (t - published[rows]) / DAY
            pull = quality[rows] + burst[rows] * np.exp(-age / self.breaking_days)
            liked = self.taste * taste[user[i], category[rows]]
            logit = self.base + liked + self.quality * pull
            logit = logit - self.ageing * age - place_cost[: len(rows)]
            hit = draw.random(len(rows)) < 1 / (1 + np.exp(-logit))
            if not hit.any():
                hit[np.argmax(logit + draw.gumbel(size=len(rows)))] = True
            clicks[rows[hit]] += 1
            if hit.all():
                continue
            mixed = draw.permutation(len(rows))
            shown.append(rows[mixed])
            clicked.append(hit[mixed])
            logits.append(logit[mixed])
            tastes.append(liked[mixed])
            kept.append(i)
        log = self._log(time[kept], user[kept], shown, clicked, articles)
        return log, Reasons(np.concatenate(logits), np.concatenate(tastes))

    def word_vectors(self, seed: int, size: int) -> np.ndarray:
        """What a large corpus of such texts would teach of each word: the counterpart of pretrained vectors.

        Singular vectors of the positive pointwise mutual information of words in one text (Levy & Goldberg,
        NeurIPS 2014), of an infinite corpus: the probabilities themselves. Scaled to a mean square of 1, as
        PyTorch draws its tables.

        Parameters
        ----------
        seed : int
            As of `draw`.
        size : int
            At most ``words``.

        Returns
        -------
        array (words + 1, size) float32
            Row 0, for padding, is zero.
        """
        if not 1 <= size <= self.words:
            raise ValueError(f"size must be in 1..{self.words}, the number of words, got {size}")
        topics = self._topics(seed)
        of = 1 + np.arange(self.categories).repeat(self.subcategories)
        mixed = (topics[of] + topics[self.categories + 1 :]) / 2  # a text's words, by subcategory
        joint, alone = mixed.T @ mixed / len(mixed), mixed.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            information = np.nan_to_num(np.log(joint / np.outer(alone, alone)), neginf=0.0)
        left, strength, _ = np.linalg.svd(np.maximum(information, 0))
        vectors = left[:, :size] * np.sqrt(strength[:size])
        vectors /= np.sqrt((vectors**2).mean())
        return np.concatenate([np.zeros((1, size)), vectors]).astype(np.float32)

    def _topics(self, seed: int) -> np.ndarray:
        """Probabilities of the words in each category and subcategory, in rows from 1."""
        draw = np.random.default_rng(stream_seed(seed, "news topics"))
        return draw.dirichlet(np.full(self.words, 0.05), self.categories * (1 + self.subcategories) + 1)

    def _articles(
        self, draw: np.random.Generator, topics: np.ndarray
    ) -> tuple[Articles, np.ndarray, np.ndarray]:
        """All articles by publication, with their hidden quality and burst; row 0 is none."""
        count = self.days * self.articles_per_day
        published = np.append(-1, np.sort(draw.integers(0, self.days * DAY, count)))
        category = np.append(0, draw.integers(1, self.categories + 1, count))
        level = draw.integers(0, self.subcategories, count)
        names = [f"topic {i}" for i in range(1, self.categories + 1)]
        names += [f"topic {i}.{j}" for i in range(1, self.categories + 1) for j in range(self.subcategories)]
        subcategory = self.categories + 1 + (category[1:] - 1) * self.subcategories + level
        subcategory = np.append(0, subcategory)
        topics = topics.cumsum(1)

        def text(length: int) -> np.ndarray:
            of = np.where(draw.random((count, length)) < 0.5, category[1:, None], subcategory[1:, None])
            drawn = draw.random((count, length))
            words = np.empty((count + 1, length), np.int32)
            words[0] = 0
            for topic in range(1, len(names) + 1):
                here = of == topic
                found = np.searchsorted(topics[topic], drawn[here] * topics[topic, -1], "right")
                words[1:][here] = np.minimum(found, self.words - 1) + 1
            return words

        articles = Articles(
            ids=np.array(["", *(f"N{i}" for i in range(1, count + 1))]),
            category=category,
            subcategory=subcategory,
            title=text(self.title_words),
            abstract=text(self.abstract_words),
            published=published,
            category_names=tuple(names),
            words=tuple(f"word {i}" for i in range(1, self.words + 1)),
        )
        quality = np.append(0.0, draw.normal(size=count))
        burst = np.append(0.0, 2.0 * (draw.random(count) < self.breaking_share))
        return articles, quality, burst

    def _log(self, time, user, shown, clicked, articles: Articles) -> ImpressionLog:
        """The log, each impression with the clicks that its reader had made before."""
        sizes = np.array([len(rows) for rows in shown], np.int64)
        candidate, clicked = np.concatenate(shown), np.concatenate(clicked)
        offsets = np.append(0, np.cumsum(sizes))
        impression = np.repeat(np.arange(len(time)), sizes)
        # A reader's clicks in the order of time; an impression's history is the part before it.
        by_user = np.flatnonzero(clicked)[np.argsort(user[impression[clicked]], kind="stable")]
        key = user[impression[by_user]] * len(time) + impression[by_user]
        return ImpressionLog(
            time=time,
            user=user,
            offsets=offsets,
            candidate=candidate.astype(np.int32),
            clicked=clicked,
            history=candidate[by_user].astype(np.int32),
            history_begin=np.searchsorted(key, user * len(time)),
            history_end=np.searchsorted(key, user * len(time) + np.arange(len(time))),
            articles=articles,
        )
