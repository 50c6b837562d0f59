"""What a service knows of single articles over their lives."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.experiments.news_context import NewsComparison

HOUR = 3600


def article_lives(comparison: NewsComparison, count: int = 4) -> pd.DataFrame:
    """What was known of the articles that were shown most, each time they were shown.

    Returns
    -------
    Article after article, by time: article, age in hours, shown, clicks, CTR.
    """
    log, features = comparison.log, comparison.online
    most = np.argsort(-np.bincount(log.candidate), kind="stable")[:count]
    parts = []
    for number, article in enumerate(most, 1):
        here = np.flatnonzero(log.candidate == article)
        known = {"shown": features.shown, "clicks": features.clicks, "CTR": features.ctr(comparison.alpha)}
        columns = {"age": features.age[here] / HOUR} | {name: value[here] for name, value in known.items()}
        parts.append(pd.DataFrame({"article": f"article {number}", **columns}))
    return pd.concat(parts, ignore_index=True)


def lives_figure(lives: pd.DataFrame) -> Figure:
    """Known clicks and smoothed click-through rate of single articles over their age."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 5.4), sharex=True)
    for style, (name, life) in zip(
        ("-", "--", "-.", ":"), lives.groupby("article", sort=False), strict=False
    ):
        for axis, column in zip(axes, ("clicks", "CTR"), strict=True):
            axis.plot(life["age"], life[column], style, label=name)
    axes[0].set_ylabel("clicks known")
    axes[1].set(ylabel="click-through rate", xlabel="age of the article (hours)")
    axes[0].legend(fontsize="small")
    return figure
