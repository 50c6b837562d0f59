"""What was found, from the strongest evidence there is: the figures and numbers that a chapter opens with.

The strongest evidence of a claim is an archived run of the largest scale (`lib.ledger.archive`); where there
is none, this run's own. All of it is drawn from evidence, so a page is made again without a run.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from nbformat import NotebookNode
from nbformat.v4 import new_output

from lib.chapter.figures import KINDS, arms_figure
from lib.chapter.tables import quantity_text
from lib.ledger.archive import Piece, largest, strongest
from lib.ledger.evidence import ClaimEvidence
from lib.ledger.schema import SCALES
from lib.ledger.wording import interval_of
from lib.listing import plural

LABEL = 84  # characters of a line above an interval
LINE = 0.3  # height of one more such line, where a claim's place is 1


def findings_figure(claims: Iterable[ClaimEvidence]) -> Figure:
    """A line for each claim with an effect: its interval around the limit, every line on a scale of its own.

    To the right of the dotted line lies what is claimed.
    """
    shown = [claim for claim in claims if claim.interval and claim.interval.low is not None]
    if not shown:
        return _words("No interval yet: too few seeds, or nothing judged so far.")
    told = [_label(claim) for claim in shown]
    places = list(accumulate((1 + LINE * (len(lines) - 1) for lines in told[1:]), initial=0))
    above = LINE * (len(told[0]) - 1)  # the first line, where it needs more than one
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.62 * (places[-1] + 1 + above)))
    for place, claim, lines in zip(places, shown, told, strict=True):
        effect = claim.interval
        widest = max(abs(effect.low), abs(effect.high)) or 1.0
        ends = [[(effect.mean - effect.low) / widest], [(effect.high - effect.mean) / widest]]
        axis.errorbar(effect.mean / widest, place, xerr=ends, fmt="o", color="#1f5f8b", capsize=4)
        label = axis.text(-1.05, place - 0.22, "\n".join(lines), fontsize=9, va="bottom", parse_math=False)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # the limit's line runs below
        label.set_in_layout(False)  # it may be wider than the lines, which stay as wide as they are
        axis.text(1.12, place, f"{claim.id}: {claim.verdict}", fontsize=10, va="center", weight="bold")
        axis.text(1.12, place + 0.33, interval_of(effect), fontsize=9, va="center")
    axis.axvline(0, color="#555555", linestyle=":")
    axis.set(xlim=(-1.1, 1.1), ylim=(places[-1] + 0.4, -0.75 - above), xticks=[], yticks=[])
    axis.set_xlabel("against the claim  ←  limit  →  for the claim")
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)
    return figure


def _label(claim: ClaimEvidence) -> list[str]:
    """What was measured, in lines that tear no number apart."""
    number = quantity_text(claim.interval, claim).replace(" ", "\N{NO-BREAK SPACE}")
    return textwrap.wrap(f"{claim.interval.label}: {number}", LABEL)


def _words(text: str) -> Figure:
    """What stands where there is nothing to draw."""
    figure, axis = plt.subplots(figsize=(7, 0.8))
    axis.text(0, 0.5, text, va="center")
    axis.axis("off")
    return figure


def found_figure(claim: ClaimEvidence) -> Figure:
    """The arms of one claim on every metric of its rule: seeds as points, means with intervals, the floor.

    The intervals of the means are over seeds alone, whatever the claim's own is over.
    """
    if not claim.effects:
        return _words(f"{claim.id}: {claim.verdict}; no arms were measured.")
    frames, floor = [], {}
    ruled = dict.fromkeys(effect.label.partition(": ")[0] for effect in claim.effects)
    for metric, arms in ((metric, claim.measured[metric]) for metric in ruled):
        for arm, summary in arms.items():
            if claim.floor and arm == claim.floor.arm:
                floor[metric] = summary.mean
            else:
                values = list(summary.values)
                frames.append(pd.DataFrame({"arm": arm, "seed": range(len(values)), metric: values}))
    frame = pd.concat(frames).groupby(["arm", "seed"], sort=False).first().reset_index()
    label = claim.floor.arm if claim.floor else ""
    return arms_figure(frame, list(ruled), reference=floor, reference_label=label)


def table_figure(table: pd.DataFrame, kind: str, options: Mapping[str, Any]) -> Figure:
    """A figure of one of the book's kinds, drawn from a table of the strongest run there is.

    Parameters
    ----------
    table : DataFrame
    kind : str
        Name of a function of `lib.chapter.figures`.
    options : mapping
        Its arguments by name.

    Raises
    ------
    ValueError
        No such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](table, **options)


def strongest_table(name: str, own: Path, piece: Piece | None, root: Path) -> pd.DataFrame:
    """A table of `piece`, if it is archived and has it, else of the run in the folder `own`."""
    file = f"tables/{name}.csv"
    kept = piece.evidence.artifacts if piece is not None and piece.folder else ()
    archived = any(file in artifact.files for artifact in kept)
    return pd.read_csv(root / piece.folder / file if archived else own / file)


def numbers(claims: Iterable[ClaimEvidence], piece: Piece | None = None) -> dict[str, float | int | str]:
    """What a chapter's text may quote of the strongest evidence, by name.

    Parameters
    ----------
    claims : iterable of ClaimEvidence
        The strongest of each claim.
    piece : Piece, optional
        The run that most of it comes from: an arm that several claims share has its mean.

    Returns
    -------
    dict
        ``C4`` is the verdict of claim C4, ``C4-effect`` the quantity that decided with its interval,
        ``C4-NDCG@10 MEANTIME − SASRec`` that of one inequality of its rule, ``C4-smallest`` the smallest
        effect that the design finds four times in five, ``NDCG@10-SASRec`` an arm's mean. Of the run:
        ``scale``, ``date``, ``seeds``, ``core-hours`` and, in words, ``progress``.
    """
    found: dict[str, float | int | str] = {}
    for claim in sorted(claims, key=lambda claim: piece is not None and claim in piece.evidence.claims):
        found[claim.id] = claim.verdict
        for effect in claim.effects:
            found[f"{claim.id}-{effect.label.replace(': ', ' ')}"] = quantity_text(effect, claim)
        if claim.interval is not None:
            found[f"{claim.id}-effect"] = quantity_text(claim.interval, claim)
            if claim.interval.smallest is not None:
                found[f"{claim.id}-smallest"] = claim.interval.smallest
            for metric, arms in claim.measured.items():
                found |= {f"{metric}-{arm}": summary.mean for arm, summary in arms.items()}
    if piece is not None:
        found |= {
            "scale": piece.scale,
            "date": f"{piece.ended:%Y-%m-%d}",
            "seeds": len(piece.seeds),
            "core-hours": piece.core_hours,
            "progress": piece.progress or plural(len(piece.seeds), "seed"),
        }
    return found


def glued(chapter: str, found: Mapping[str, float | int | str]) -> list[NotebookNode]:
    """Outputs that let a text quote each number as ``{glue:text}`<chapter>-found-<name>` ``."""
    prefix = "application/papermill.record/"  # where MyST-NB's glue keeps what is not displayed
    return [
        new_output(
            "display_data",
            data={f"{prefix}text/plain": repr(value)},
            metadata={"scrapbook": {"name": f"{chapter}-found-{name}", "mime_prefix": prefix}},
        )
        for name, value in found.items()
    ]


def strongest_of(
    own: Mapping[str, ClaimEvidence], scale: str, archive: Sequence[Piece]
) -> dict[str, ClaimEvidence]:
    """The strongest evidence of each claim, while a chapter runs.

    Parameters
    ----------
    own : mapping
        What this run has judged so far, by claim.
    scale : str
        Its scale.
    archive : sequence of Piece
        What the archive holds of the chapter.
    """
    found = dict(own)
    for claim in dict.fromkeys(c.id for piece in archive for c in piece.evidence.claims):
        piece, here = strongest(claim, archive), own.get(claim)
        untested = here is None or (here.verdict == "not tested" and not here.unlearned)
        if piece is not None and (untested or SCALES.index(piece.scale) > SCALES.index(scale)):
            found[claim] = piece.claim(claim)
    return found


def largest_of(scale: str, archive: Iterable[Piece]) -> Piece | None:
    """The archived run of the largest scale, unless a run at `scale` is larger itself."""
    piece = largest(archive)
    return piece if piece and SCALES.index(piece.scale) >= SCALES.index(scale) else None
