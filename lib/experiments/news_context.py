"""Contextual features in news recommendation: the arms, one training of an arm, and scores per impression.

Source: Cho et al., arXiv 2112.14370, of which the abstract could be read: naive models of click-through rate,
popularity and freshness, a simple module of the same features beside content models, and deeper uses of them.
What these are in detail is ours. Here is what is compared with what on one impression log; the worlds in
which that is done are in `lib.experiments.news_context_worlds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from lib.data.news import ImpressionLog
from lib.data.news_batches import CandidateContext, NewsBatches
from lib.data.news_context import Buckets, ContextFeatures, Feedback
from lib.inspection import evaluating
from lib.metrics.impressions import impression_metrics
from lib.models.recommenders.news import LSTUR, NAML, NRMS, NewsRecommender
from lib.models.recommenders.news_popularity import ContextualScorer, DeepContext, PPRec, WithContext
from lib.models.recommenders.news_scorer import NewsScorer
from lib.streams import stream_seed
from lib.training.loop import Evaluation, History, fit, one_device, seeded

HOUR = 3600

#: Models that read what an article says and what its reader clicked.
CONTENT = ("NRMS", "NAML", "LSTUR")

CONTEXT_ONLY = "context only"

#: Without parameters: the features themselves as scores, in the order of `lib.data.news_context.FEATURES`.
RULES = ("CTR", "popularity", "freshness")

#: Content without a network: the candidate's category, or its words, in what the reader clicked.
AFFINITY, OVERLAP = "category affinity", "word overlap"

WITH_MODULE = tuple(f"{name} + module" for name in CONTENT)

#: Deeper uses of the module's three features in NRMS.
DEEP = {f"NRMS, context in the {where}": where for where in ("article", "gate", "network")}

#: The module with what PP-Rec reads.
TWO_FEATURES = "NRMS + module, CTR and freshness"

TRAINED = (CONTEXT_ONLY, *CONTENT, *WITH_MODULE, *DEEP, TWO_FEATURES, "PP-Rec")

METRICS = ("AUC", "MRR", "nDCG@5", "nDCG@10")


@dataclass(frozen=True)
class Split:
    """Impressions by number: counters warm up before ``train``, tested is from ``test`` to before ``end``."""

    train: int
    validation: int
    test: int
    end: int

    @classmethod
    def by_shares(cls, log: ImpressionLog, *, warm: float, validation: float, test: float) -> Split:
        """Shares of the impressions in the order of time; training has what the three leave."""
        count = len(log)
        return cls(int(warm * count), int((1 - test - validation) * count), int((1 - test) * count), count)


@dataclass
class NewsComparison:
    """What all arms share on one log, under the names of the chapter's parameters.

    Attributes
    ----------
    log, split
        The data; training, validation and test follow each other in time.
    delay_hours, window_hours, alpha, num_buckets
        Of the contextual features: feedback is known after ``delay_hours``; counted are the last
        ``window_hours``, all if 0.
    word_size, num_heads, head_size, query_size, dropout
        Of the content models; an article's vector has ``num_heads · head_size`` numbers, LSTUR's three times
        as many.
    history_length, negatives, batch_size, learning_rate, learning_rates, steps, evaluate_every, patience
        Of every training; ``learning_rates`` are of single arms.
    device
        Of every training.
    word_vectors
        Pretrained, (W+1, word_size), or None.

    Raises
    ------
    ValueError
        A learning rate of an arm that there is not. Sizes are refused where batches are made.
    """

    log: ImpressionLog
    split: Split
    _: KW_ONLY
    delay_hours: float
    window_hours: float
    alpha: float
    num_buckets: int
    word_size: int
    num_heads: int
    head_size: int
    query_size: int
    dropout: float
    history_length: int
    negatives: int
    batch_size: int
    learning_rate: float
    steps: int
    evaluate_every: int
    patience: int
    device: str = "cpu"
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    word_vectors: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.learning_rates) - set(TRAINED)):
            raise ValueError(f"arm must be one of {', '.join(TRAINED)}, got {unknown[0]!r}")

    def sizes(self) -> dict[str, int | float]:
        """What the log holds, for a table."""
        split, log = self.split, self.log
        parts = {"warm-up": split.train, "training": split.validation - split.train}
        parts |= {"validation": split.test - split.validation, "test": split.end - split.test}
        test = slice(log.offsets[split.test], log.offsets[split.end])
        sizes = {"articles": len(log.articles), "users": len(np.unique(log.user)), **parts}
        sizes["clicks per candidate"] = round(float(log.clicked.mean()), 3)
        seen = np.unique(log.candidate[: log.offsets[split.validation]])
        sizes["new articles in test"] = round(
            float(1 - np.isin(np.unique(log.candidate[test]), seen).mean()), 3
        )
        return sizes

    # --- features ---

    def limits(self, *, frozen: bool = False) -> dict[str, int]:
        """As `Feedback.before` takes them; frozen: feedback of the training part alone is ever known."""
        limits = {"delay": round(self.delay_hours * HOUR)}
        if self.window_hours:
            limits["window"] = round(self.window_hours * HOUR)
        if frozen:
            limits["until"] = int(self.log.time[self.split.validation - 1])
        return limits

    @cached_property
    def feedback(self) -> Feedback:
        """Of the whole log, to be asked about moments."""
        return Feedback(self.log)

    @cached_property
    def online(self) -> ContextFeatures:
        """What was known of each candidate when it was shown."""
        return ContextFeatures.of(self.log, **self.limits())

    @cached_property
    def buckets(self) -> Buckets:
        """Cut at the quantiles of the training part."""
        part = slice(self.log.offsets[self.split.train], self.log.offsets[self.split.validation])
        return Buckets.fit(self.online.table(self.alpha)[part], self.online.shown[part], self.num_buckets)

    def context(self, *, frozen: bool = False) -> CandidateContext:
        """Of all candidates in a regime."""
        features = ContextFeatures.of(self.log, **self.limits(frozen=True)) if frozen else self.online
        limits = self.limits(frozen=frozen)

        def of_history(history: np.ndarray, time: np.ndarray) -> np.ndarray:
            known = history >= 0
            rates = np.zeros(history.shape)
            when = np.broadcast_to(time, history.shape)[known]
            rates[known] = self.feedback.before(history[known], when, **limits).ctr(self.alpha)
            return rates

        buckets = self.buckets(features.table(self.alpha), features.shown)
        return CandidateContext(buckets, features, of_history, self.alpha)

    def batches(self, seed: int, *, frozen: bool = False) -> NewsBatches:
        """Of all arms trained with a seed."""
        sizes = {"history_length": self.history_length, "negatives": self.negatives}
        return NewsBatches(
            self.log, self.context(frozen=frozen), batch_size=self.batch_size, seed=seed, **sizes
        )

    # --- models ---

    def content_model(self, name: str) -> NewsRecommender:
        """NRMS, NAML or LSTUR, untrained; its weights follow the global random state."""
        articles, size = self.log.articles, self.num_heads * self.head_size
        same = {"word_size": self.word_size, "query_size": self.query_size, "dropout": self.dropout}
        same["word_vectors"] = self.word_vectors
        words, categories = len(articles.words), len(articles.category_names)
        if name == "NRMS":
            return NRMS(words, num_heads=self.num_heads, head_size=self.head_size, **same)
        if name == "NAML":
            return NAML(words, categories, filters=size, **same)
        return LSTUR(words, categories, int(self.log.user.max()), filters=size, **same)

    def model(self, arm: str) -> NewsScorer:
        """The arm's untrained network; ValueError for an arm that is not trained."""
        if arm not in TRAINED:
            raise ValueError(f"arm must be one of {', '.join(TRAINED)}, got {arm!r}")
        sizes, size = self.buckets.sizes, self.num_heads * self.head_size
        if arm in CONTENT:
            return self.content_model(arm)
        if arm == CONTEXT_ONLY:
            return ContextualScorer(sizes)
        content = self.content_model(arm.split(" ")[0].removesuffix(",") if arm != "PP-Rec" else "NRMS")
        if arm == "PP-Rec":
            return PPRec(content, self.content_model("NRMS"), size, num_heads=self.num_heads)
        if arm in DEEP:
            return DeepContext(content, ContextualScorer(sizes), size, fusion=DEEP[arm])
        columns = [0, 2] if arm == TWO_FEATURES else None
        return WithContext(content, ContextualScorer(sizes, columns=columns))

    def train(self, arm: str, seed: int, checkpoint: Path | None = None) -> tuple[NewsScorer, History]:
        """Train an arm once, in evaluation mode afterwards, with the weights of its best validation AUC.

        Parameters
        ----------
        arm
            One of `TRAINED`.
        seed
            Of the first weights, the order of the clicks and the negatives.
        checkpoint
            File from which a training that was killed continues.
        """
        seeded(stream_seed(seed, "weights", arm))
        model, batches = self.model(arm), self.batches(seed)
        training = batches.training(self.split.train, self.split.validation)

        def validate(model: NewsScorer) -> dict[str, float]:
            scores = scores_of(model, batches, self.split.validation, self.split.test, self.device)
            return {"AUC": self.metrics(scores, self.split.validation, self.split.test)["AUC"].mean()}

        rate = self.learning_rates.get(arm, self.learning_rate)
        history = fit(
            model,
            training,
            steps=self.steps,
            optimizer=torch.optim.Adam(model.parameters(), lr=rate, fused=True),
            evaluation=Evaluation(validate, self.evaluate_every, monitor="AUC", patience=self.patience),
            checkpoint=checkpoint,
            fabric=one_device(self.device),
            name=f"{arm}, seed {seed}",
        )
        return model, history

    # --- scores ---

    def metrics(self, scores: np.ndarray, first: int, last: int) -> pd.DataFrame:
        """A row per impression from scores of the candidates of impressions ``first`` to before ``last``."""
        begin, end = self.log.offsets[first], self.log.offsets[last]
        found = impression_metrics(
            scores, self.log.clicked[begin:end], self.log.offsets[first : last + 1] - begin
        )
        return pd.DataFrame(found, index=pd.RangeIndex(first, last, name="impression"))

    def test(self, model: NewsScorer, seed: int, *, frozen: bool = False) -> pd.DataFrame:
        """`METRICS` of each test impression by a trained model, in the online or the frozen regime."""
        first, last = self.split.test, self.split.end
        scores = scores_of(model, self.batches(seed, frozen=frozen), first, last, self.device)
        return self.metrics(scores, first, last)

    def test_rule(self, rule: str, features: ContextFeatures | None = None) -> pd.DataFrame:
        """The same of a feature (online, if none are given), of `AFFINITY` or of `OVERLAP` as the score."""
        if rule in (AFFINITY, OVERLAP):
            return self.test_scores((category_affinity if rule == AFFINITY else word_overlap)(self.log))
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join((*RULES, AFFINITY, OVERLAP))}, got {rule!r}")
        return self.test_scores((features or self.online).table(self.alpha)[:, RULES.index(rule)])

    def test_scores(self, scores: np.ndarray) -> pd.DataFrame:
        """The same of given scores of all candidates, (N,)."""
        part = slice(self.log.offsets[self.split.test], self.log.offsets[self.split.end])
        return self.metrics(scores[part], self.split.test, self.split.end)


def scores_of(
    model: NewsScorer, batches: NewsBatches, first: int, last: int, device: str = "cpu"
) -> np.ndarray:
    """Scores of all candidates of the impressions ``first`` to before ``last``; articles are encoded once."""
    begin = batches.log.offsets[first]
    scores = np.full(batches.log.offsets[last] - begin, np.nan)
    with torch.no_grad(), evaluating(model):
        news = torch.cat([model.encode_news(_on(device, part)) for part in batches.articles()])
        for columns, batch in batches.testing(first, last):
            found, there = model.score(news, _on(device, batch)), columns >= 0
            scores[columns[there] - begin] = found.cpu().double().numpy()[there]
    return scores


def category_affinity(log: ImpressionLog) -> np.ndarray:
    """Share of the reader's clicks that were in each candidate's category, with a click in every one added.

    Anybody gets this without a network: what a content model has to beat. (N,) float64; O(N + history).
    """
    categories = int(log.articles.category.max()) + 1
    scores = np.empty(len(log.candidate))
    kind = log.articles.category
    # A reader's histories are parts of one list: counts until each place of it, category by category.
    for category in range(categories):
        clicks = np.append(0, np.cumsum(kind[log.history] == category))
        inside = clicks[log.history_end] - clicks[log.history_begin]
        total = log.history_end - log.history_begin
        share = (inside + 1) / (total + categories)
        here = kind[log.candidate] == category
        scores[here] = share[log.impression[here]]
    return scores


def word_overlap(log: ImpressionLog) -> np.ndarray:
    """Cosine of each candidate's title and all that its reader clicked, words weighted by tf–idf.

    The classic content-based recommender, which reads what NRMS reads. (N,) float64; 0 without a click.
    """
    titles = log.articles.title
    rows = np.repeat(np.arange(len(titles)), titles.shape[1])
    there = titles.ravel() > 0
    ones = np.ones(int(there.sum()))
    counts = sparse.csr_matrix(
        (ones, (rows[there], titles.ravel()[there])), (len(titles), len(log.articles.words) + 1)
    )
    holding = np.bincount(counts.tocoo().col, minlength=counts.shape[1])
    weighted = counts @ sparse.diags(np.log(len(titles) / np.maximum(holding, 1)))
    norms = np.sqrt(weighted.multiply(weighted).sum(1)).A1
    weighted = sparse.diags(1 / np.where(norms > 0, norms, 1)) @ weighted
    # A reader's words until each impression are those of a part of the history.
    sizes = log.history_end - log.history_begin
    part = np.repeat(log.history_begin - np.append(0, np.cumsum(sizes))[:-1], sizes) + np.arange(sizes.sum())
    clicked = sparse.csr_matrix(
        (np.ones(len(part)), log.history[part], np.append(0, np.cumsum(sizes))), (len(log), len(titles))
    )
    readers = clicked @ weighted
    lengths = np.sqrt(readers.multiply(readers).sum(1)).A1
    readers = sparse.diags(1 / np.where(lengths > 0, lengths, 1)) @ readers
    return readers[log.impression].multiply(weighted[log.candidate]).sum(1).A1


def _on(device: str, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items()}
