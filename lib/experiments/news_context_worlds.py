"""Contextual features where the reasons of clicks are known: the home world, the leak, and the map of worlds.

A made-up service shows when a claim holds, not that it does for real readers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lib.data.news_context import ContextFeatures
from lib.data.news_world import DAY, NewsWorld, Reasons
from lib.experiments.news_context import (
    AFFINITY,
    CONTEXT_ONLY,
    METRICS,
    OVERLAP,
    RULES,
    NewsComparison,
    Split,
)

#: What a perfect ranker would reach that knows the reader's taste, the rest, or all but the luck.
CEILINGS = ("taste known", "context known", "all known")

#: Ways to count a click-through rate: what is known, and how late.
LEAK = "CTR, whole log"
COUNTS = ("CTR, no delay", "CTR, 1 h", "CTR, 6 h", "CTR, 24 h", "CTR, frozen", LEAK)

#: Shares of the impressions: warm-up of the counters, validation, test.
SHARES = {"warm": 0.125, "validation": 0.075, "test": 0.45}

#: What a map's cell is measured with.
MAP_ARMS = (CONTEXT_ONLY, "NAML", "NAML + module")

#: What the map draws: a title, and the arms whose AUC are compared.
MAP_PANELS = [
    ("context only − NAML", CONTEXT_ONLY, "NAML"),
    ("NAML + module − NAML", "NAML + module", "NAML"),
]

#: AUC on MIND that others published: NAML on its test week (Wu et al., ACL 2020, Table 3), and a contest
#: report's gradient-boosted trees over the day before's click-through rates on its validation day.
MIND = {"NAML": 0.6686, CONTEXT_ONLY: 0.692}

Checkpoint = Callable[[str], Path | None]


def in_world(world: NewsWorld, seed: int, settings: Mapping[str, Any]) -> tuple[NewsComparison, Reasons]:
    """A world's log with what all arms share on it; ``settings`` are those of `NewsComparison`.

    Words come with the vectors that a large corpus of the world would teach.
    """
    log, reasons = world.draw(seed)
    vectors = torch.from_numpy(world.word_vectors(seed, settings["word_size"]))
    split = Split.by_shares(log, **SHARES)
    return NewsComparison(log, split, word_vectors=vectors, **settings), reasons


def untrained_scores(comparison: NewsComparison, reasons: Reasons) -> dict[str, pd.DataFrame]:
    """Metrics per test impression of the features themselves, of what is not trained, and of the ceilings."""
    known = dict(zip(CEILINGS, (reasons.taste, reasons.logit - reasons.taste, reasons.logit), strict=True))
    scores = {rule: comparison.test_rule(rule) for rule in (*RULES, AFFINITY, OVERLAP)}
    return scores | {name: comparison.test_scores(value) for name, value in known.items()}


def by_day(comparison: NewsComparison, scores: pd.DataFrame) -> pd.DataFrame:
    """Mean AUC and number of impressions by whole days since the end of training."""
    end = comparison.log.time[comparison.split.validation - 1]
    day = (comparison.log.time[scores.index] - end) // DAY
    return (
        scores["AUC"]
        .groupby(day)
        .agg(["mean", "size"])
        .set_axis(["AUC", "impressions"], axis=1)
        .rename_axis("day")
    )


def leak_scores(comparison: NewsComparison) -> pd.Series:
    """Mean test AUC of ranking by click-through rate, for each of `COUNTS`."""
    until = comparison.limits(frozen=True)["until"]
    limits = (
        {"delay": 0},
        {"delay": 3600},
        {"delay": 6 * 3600},
        {"delay": DAY},
        {"until": until},
        {"future": True},
    )
    found = {}
    for name, options in zip(COUNTS, limits, strict=True):
        features = ContextFeatures.of(comparison.log, **options)
        found[name] = comparison.test_rule("CTR", features)["AUC"].mean()
    return pd.Series(found, name="AUC").rename_axis("arm")


def null_world(world: NewsWorld) -> NewsWorld:
    """The same service with readers who click at random."""
    return replace(world, taste=0.0, quality=0.0, ageing=0.0, position=0.0, breaking_share=0.0)


def world_map(
    home: NewsWorld,
    tastes: Sequence[float],
    contexts: Sequence[float],
    seed: int,
    settings: Mapping[str, Any],
    checkpoint: Checkpoint,
    *,
    impressions: int,
) -> pd.DataFrame:
    """Test AUC over how much the reader's taste and the articles' context decide.

    Parameters
    ----------
    home
        All other knobs.
    tastes, contexts
        Values of ``taste``, and of ``quality`` and ``ageing`` together.
    seed
        Of worlds and trainings.
    settings
        As for `in_world`.
    checkpoint
        File from which the training of this name continues, or None.
    impressions
        Of each world.

    Returns
    -------
    A row per cell: seed, taste, context, and the AUC of `MAP_ARMS`, the three features, what reads content
    without a network, and the ceilings.
    """
    rows = []
    for taste in tastes:
        for context in contexts:
            world = replace(home, impressions=impressions, taste=taste, quality=context, ageing=context)
            comparison, reasons = in_world(world, seed, settings)
            scores = untrained_scores(comparison, reasons)
            for arm in MAP_ARMS:
                name = f"map, taste {taste:g}, context {context:g}, {arm}, seed {seed}"
                model, _ = comparison.train(arm, seed, checkpoint(name))
                scores[arm] = comparison.test(model, seed)
            means = {arm: frame["AUC"].mean() for arm, frame in scores.items()}
            rows.append({"seed": seed, "taste": taste, "context": context, **means})
    return pd.DataFrame(rows)


def mean_scores(scores: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Means over impressions: a row per arm and seed, a column per metric."""
    rows = {key: frame[list(METRICS)].mean() for key, frame in scores.items()}
    return pd.DataFrame(rows).T.rename_axis(["arm", "seed"])


def by_seed(means: pd.DataFrame, metrics: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """What a rule is handed of worlds: by metric and arm, a mean per seed, each of a world of its own."""
    return {
        metric: {arm: part.tolist() for arm, part in means[metric].groupby("arm", sort=False)}
        for metric in metrics
    }


def by_impression(
    scores: Mapping[tuple[str, int], pd.DataFrame], metrics: Mapping[str, str]
) -> dict[str, dict[str, pd.DataFrame]]:
    """What a rule is handed of one log: by metric and arm, a row per seed and a column per test impression.

    Parameters
    ----------
    scores
        Metrics per impression by arm and seed; arms without randomness have one seed.
    metrics
        The name that each of `METRICS` has in the ledger. Impressions without it (no click) are left out.
    """
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for metric, name in metrics.items():
        arms: dict[str, dict[int, pd.Series]] = {}
        for (arm, seed), frame in scores.items():
            arms.setdefault(arm, {})[seed] = frame[metric].dropna()
        found[name] = {arm: pd.DataFrame(rows).T.rename_axis("seed") for arm, rows in arms.items()}
    return found
