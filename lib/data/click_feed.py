"""Impressions for a log that has clicks alone: what else could have been shown is drawn, from the past only.

What a model learns of such a feed is in part our drawing: a click-through rate counts impressions that nobody
saw, and is undefined in the source. Popularity, age and the clicks are real.
"""

from __future__ import annotations

import numpy as np

from lib.data.news import Articles, ImpressionLog
from lib.streams import stream_seed


def feed_of_clicks(
    time: np.ndarray,
    user: np.ndarray,
    article: np.ndarray,
    articles: Articles,
    *,
    negatives: int,
    alive: int,
    feedback: float = 0.0,
    seed: int,
) -> ImpressionLog:
    """Each user's first click on an article as an impression, beside articles that could have been shown.

    An article is alive at t if anybody clicked it in the ``alive`` seconds before t, not counting t's own
    second. Candidates are alive, the clicked one too: otherwise "nobody has clicked it lately" would tell the
    click. Nor is a second click on an article an impression, as what the user clicked before is never drawn.
    Both are still part of histories, and of what is alive.

    Parameters
    ----------
    time, user, article : array (E,) int64
        Of each click: seconds in ascending order; from 1; rows of ``articles``.
    articles : Articles
    negatives : int
        Articles drawn for a click, without replacement, from those alive that the user neither clicked before
        nor clicks in the same second. What they will click later is not spared: that would use the future. A
        click with fewer to draw from is no impression.
    alive : int
        Seconds.
    feedback : float
        An article is drawn with a probability that is proportional to its earlier clicks to this power. With
        0 all are alike, and popularity alone tells clicks well; with 1 it is shown as it is clicked.
    seed : int
        Of the drawing, and of the candidates' order.

    Returns
    -------
    ImpressionLog
        In the order of the clicks, each with ``1 + negatives`` candidates. Histories are all the user's
        clicks before the impression's second.

    Raises
    ------
    ValueError
        ``negatives`` or ``alive`` below 1; no clicks, or none that can be an impression.
    """
    if negatives < 1 or alive < 1:
        raise ValueError(f"expected at least 1 negative and 1 second alive, got {negatives} and {alive}")
    if not len(time):
        raise ValueError("there are no clicks")
    # A user's clicks in the order of time; what was before a moment is a part of them.
    by_user = np.argsort(user, kind="stable")
    history = article[by_user].astype(np.int32)
    origin, span = time[0], time[-1] - time[0] + 1
    keys = (user * span + time - origin)[by_user]
    begin = np.searchsorted(user[by_user], user)
    before = np.searchsorted(keys, user * span + time - origin)
    until = np.searchsorted(keys, user * span + time - origin, "right")
    first = np.zeros(len(time), bool)
    first[np.unique(user * (len(articles) + 1) + article, return_index=True)[1]] = True

    draw = np.random.default_rng(stream_seed(seed, "feed of clicks"))
    latest = np.full(len(articles) + 1, np.iinfo(np.int64).min)
    count = np.zeros(len(articles) + 1)
    own = np.zeros(len(articles) + 1, bool)
    event, shown = [], []
    for second in np.split(np.arange(len(time)), np.flatnonzero(np.diff(time)) + 1):
        since = time[second[:1]] - alive
        living = np.flatnonzero(latest >= since)
        for i in second[first[second] & (latest[article[second]] >= since)]:
            mine = history[begin[i] : until[i]]
            own[mine] = True
            others = living[~own[living]]
            own[mine] = False
            if len(others) < negatives:
                continue
            # The smallest of exponential variables over weights: draws in turn, without replacement.
            chance = draw.standard_exponential(len(others)) / count[others] ** feedback
            drawn = np.sort(np.argpartition(chance, negatives - 1)[:negatives])  # partitions differ in order
            event.append(i)
            shown.append(draw.permutation(np.append(others[drawn], article[i])))
        latest[article[second]] = time[second]
        np.add.at(count, article[second], 1)
    if not event:
        raise ValueError(
            f"none of {len(time)} clicks has {negatives} other articles alive to be shown beside"
        )
    event, candidate = np.array(event), np.array(shown, np.int32)
    return ImpressionLog(
        time=time[event],
        user=user[event],
        offsets=np.arange(len(event) + 1) * (1 + negatives),
        candidate=candidate.ravel(),
        clicked=(candidate == article[event, None]).ravel(),
        history=history,
        history_begin=begin[event],
        history_end=before[event],
        articles=articles,
    )
