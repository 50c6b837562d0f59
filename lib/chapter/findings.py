"""What was found, from the strongest evidence there is: the figures and numbers that a chapter opens with.

The strongest evidence of a claim is an archived run of the largest scale (`lib.ledger.archive`); where there
is none, this run's own. All of it is drawn from evidence, so a page is made again without a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lib.chapter.figures import arms_figure
from lib.ledger.evidence import ClaimEvidence
from lib.ledger.wording import format_interval

Strongest = Mapping[str, ClaimEvidence]


def findings_figure(claims: Iterable[ClaimEvidence]) -> Figure:
    """A line for each claim with an effect: its interval around the limit, every line on a scale of its own.

    To the right of the dotted line lies what is claimed.
    """
    shown = [claim for claim in claims if claim.interval and claim.interval.low is not None]
    if not shown:
        figure, axis = plt.subplots(figsize=(7, 0.8))
        axis.text(0, 0.5, "No interval yet: too few seeds, or nothing judged so far.", va="center")
        axis.axis("off")
        return figure
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.62 * len(shown)))
    for place, claim in enumerate(shown):
        effect = claim.interval
        widest = max(abs(effect.low), abs(effect.high)) or 1.0
        ends = [[(effect.mean - effect.low) / widest], [(effect.high - effect.mean) / widest]]
        axis.errorbar(effect.mean / widest, place, xerr=ends, fmt="o", color="#1f5f8b", capsize=4)
        quantity = format_interval(effect.quantity, effect.quantity_low, effect.quantity_high)
        unit = f" {effect.unit}" if effect.unit else ""
        axis.text(-1.05, place - 0.36, f"{effect.label}: {quantity}{unit}", fontsize=9, va="center")
        axis.text(1.12, place, f"{claim.id}: {claim.verdict}", fontsize=10, va="center", weight="bold")
    axis.axvline(0, color="#555555", linestyle=":")
    axis.set(xlim=(-1.1, 1.1), ylim=(len(shown) - 0.6, -0.75), xticks=[], yticks=[])
    axis.set_xlabel("against the claim  ←  limit  →  for the claim")
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)
    return figure


def found_figure(claim: ClaimEvidence) -> Figure:
    """The arms of one claim on every metric of its rule: seeds as points, means with intervals, the floor."""
    frames, floor = [], {}
    for metric, arms in claim.measured.items():
        for arm, summary in arms.items():
            if claim.floor and arm == claim.floor.arm:
                floor[metric] = summary.mean
            else:
                values = list(summary.values)
                frames.append(pd.DataFrame({"arm": arm, "seed": range(len(values)), metric: values}))
    frame = pd.concat(frames).groupby(["arm", "seed"], sort=False).first().reset_index()
    label = claim.floor.arm if claim.floor else ""
    return arms_figure(frame, list(claim.measured), reference=floor, reference_label=label)


def numbers(strongest: Strongest) -> dict[str, float | str]:
    """What a text may quote: ``C4`` the verdict, ``C4-effect`` what decided, ``NDCG@10-BERT4Rec`` a mean.

    The number of replicates is ``replicates``.
    """
    found: dict[str, float | str] = {}
    for claim in strongest.values():
        found[claim.id] = claim.verdict
        effect = claim.interval
        if effect is None:
            continue
        found[f"{claim.id}-effect"] = format_interval(
            effect.quantity, effect.quantity_low, effect.quantity_high
        )
        found["replicates"] = effect.replicates
        for one in claim.effects:
            quantity = format_interval(one.quantity, one.quantity_low, one.quantity_high)
            found[f"{claim.id}-{one.label}"] = quantity
        for metric, arms in claim.measured.items():
            for arm, summary in arms.items():
                found[f"{metric}-{arm}"] = summary.mean
    return found


def strongest_of(chapter: str, root: Path, own: Strongest) -> dict[str, ClaimEvidence]:
    """The strongest evidence of each claim; this run's `own` where nothing is archived."""
    return dict(own)
