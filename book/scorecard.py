"""The scorecard: from evidence files to counts, a table of every claim, its downloads and its picture.

`collect` makes one row per claim; counts, CSV, JSON and the picture are functions of those rows. Verdicts
against a paper's number that was recalled from memory are counted apart everywhere. No verdict is computed
here: they are read from the evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape, unescape
from pathlib import Path
from re import sub
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from docutils.nodes import make_id
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lib.chapter.figures import use_style
from lib.chapter.tables import badge, measured, paper_numbers, verdict_marks
from lib.ledger.evidence import ClaimEvidence, Evidence
from lib.ledger.schema import Ledger, load_ledger
from lib.ledger.verdicts import VERDICTS
from lib.ledger.wording import format_interval, format_number

# Fill and hatch of each verdict: the hatches and the printed words tell them apart without colour.
LOOKS = {
    "exact": ("#7fc8a0", ""),
    "reproduced": ("#b4e3c8", "//"),
    "holds": ("#a5cdea", "\\\\"),
    "inconclusive": ("#f7dd8b", ".."),
    "contradicted": ("#ef9a93", "xx"),
    "consistent": ("#d4bff0", "--"),
    "not tested": ("#ffffff", ""),
}


def collect(evidence: Iterable[Evidence]) -> pd.DataFrame:
    """One row per claim, chapters and claims in the order given; text and numbers only.

    ``mean``, ``low``, ``high``, ``level`` and ``unit`` are those of the effect that decided (empty for
    arithmetic); ``recalled`` says that the verdict is against a number recalled from memory.
    """
    rows = []
    for one in evidence:
        for claim in one.claims:
            effect = claim.interval
            rows.append(
                {
                    "chapter": one.chapter,
                    "claim": claim.id,
                    "statement": claim.statement,
                    "source": claim.source,
                    "kind": claim.kind,
                    "verdict": claim.verdict,
                    "recalled": claim.provenance_of_paper_number == "recalled"
                    and claim.verdict != "not tested",
                    "synthetic": claim.synthetic,
                    "rule_is_younger": claim.rule_is_younger,
                    "scale": one.scale,
                    "scope": claim.scope,
                    "protocol": claim.protocol,
                    "paper": "; ".join(
                        f"{n.name} = {format_number(n.value, n.decimals, n.unit)} ({n.where}, {n.provenance})"
                        for n in claim.paper
                    ),
                    "paper_provenance": claim.provenance_of_paper_number,
                    "measured": _measured_text(claim),
                    "effect": effect.label if effect else None,
                    "mean": effect.mean if effect else None,
                    "low": effect.low if effect else None,
                    "high": effect.high if effect else None,
                    "level": effect.level if effect else None,
                    "unit": effect.unit if effect else None,
                    "reason": claim.reason,
                    "command": claim.command,
                    "anchor": f"notebooks/{one.chapter}.html#{make_id(claim.anchor)}",
                }
            )
    if not rows:
        raise ValueError("a scorecard needs the evidence of at least one chapter, got none")
    return pd.DataFrame(rows)


def _measured_text(claim: ClaimEvidence) -> str:
    """Every measured number as plain text."""
    parts = []
    for name, value in claim.measured.items():
        if isinstance(value, Mapping):
            parts += [
                f"{name}, {arm} = {format_interval(one.mean, one.low, one.high)}"
                for arm, one in value.items()
            ]
        else:
            parts.append(f"{name} = {format_number(value)}")
    return "; ".join(parts)


def counts(claims: pd.DataFrame, *, recalled: bool = False) -> pd.DataFrame:
    """How many claims of each chapter got each verdict, and over all chapters in the last row, ``all``.

    Parameters
    ----------
    claims : DataFrame
        From `collect`.
    recalled : bool
        Count the claims whose paper number was recalled (True) or all the others (False).

    Returns
    -------
    DataFrame
        Chapters × verdicts, in the order of `lib.ledger.verdicts.VERDICTS`.
    """
    chapters = list(dict.fromkeys(claims["chapter"]))
    chosen = claims[claims["recalled"] == recalled]
    table = pd.crosstab(chosen["chapter"], chosen["verdict"])
    table = table.reindex(index=chapters, columns=list(VERDICTS), fill_value=0)
    table.loc["all"] = table.sum()
    return table.astype(int)


def in_words(row: pd.Series) -> str:
    """``12 exact, 2 holds``: the verdicts that occur in a row of `counts`."""
    return ", ".join(f"{count} {verdict}" for verdict, count in row.items() if count) or "none"


def headline(claims: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Stacked bars of verdicts per chapter; verdicts against recalled numbers are a second, thinner bar."""
    use_style()
    bars, place = [], 0.0
    for chapter in dict.fromkeys(claims["chapter"]):
        for recalled in (False, True):
            row = counts(claims, recalled=recalled).loc[chapter]
            if row.sum():
                bars.append((place, fill(titles[chapter], 26), row[row > 0], recalled))
                place += 0.62 if recalled else 0.7
        place += 0.35
    figure, axis = plt.subplots(figsize=(7.6, 1.0 + 0.62 * place))
    for place, title, row, recalled in bars:
        _bar(axis, place, row, height=0.36 if recalled else 0.56)
        label, style = ("recalled numbers", "italic") if recalled else (title, "normal")
        name = {"fontsize": 9.5 if recalled else 10.5, "fontstyle": style, "ha": "right", "va": "center"}
        axis.text(-0.015, place, label, transform=axis.get_yaxis_transform(), **name)
    widest = max(row.sum() for _, _, row, _ in bars)
    axis.set(xlim=(-0.003 * widest, widest * 1.003), ylim=(bars[-1][0] + 0.5, -0.5))
    axis.axis("off")
    seen = [verdict for verdict in VERDICTS if any(verdict in row.index for _, _, row, _ in bars)]
    keys = [Patch(label=verdict, linewidth=1, edgecolor="#333333", **_look(verdict)) for verdict in seen]
    figure.legend(
        handles=keys, loc="outside upper center", ncols=4, frameon=False, fontsize=10, handleheight=1.4
    )
    return figure


def _look(verdict: str) -> dict[str, str]:
    """Fill, hatch and outline of a verdict."""
    colour, hatch = LOOKS[verdict]
    return {"facecolor": colour, "hatch": hatch, "linestyle": ":" if verdict == "not tested" else "-"}


def _bar(axis: Axes, place: float, row: pd.Series, height: float) -> None:
    """One bar with its counts inside."""
    left = 0
    for verdict, count in row.items():
        axis.barh(place, count, left=left, height=height, linewidth=1, edgecolor="#333333", **_look(verdict))
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        text = {"ha": "center", "va": "center", "fontsize": 10, "weight": "bold", "color": "black"}
        axis.text(left + count / 2, place, str(count), bbox=white, **text)
        left += count


def headline_markdown(claims: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """The picture with its alternative text and caption."""
    parts = []
    for chapter in dict.fromkeys(claims["chapter"]):
        parts.append(f"{titles[chapter]}: {in_words(counts(claims).loc[chapter])}")
        apart = counts(claims, recalled=True).loc[chapter]
        parts[-1] += f"; against recalled numbers: {in_words(apart)}" if apart.sum() else ""
    made_up = int((claims["synthetic"] & (claims["verdict"] != "not tested")).sum())
    note = f" Verdicts that rest on made-up data: {made_up}." if made_up else ""
    return (
        "```{figure} _generated/headline.svg\n"
        ":class: headline-figure\n:name: fig-headline\n"
        f":alt: Bars of verdict counts. {_plain('. '.join(parts))}.\n\n"
        f"What became of {len(claims)} claims at the scale of this book.{note} "
        "Colour is doubled by hatching.\n```\n"
    )


def summary_markdown(claims: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Counts per paper and overall, verdicts against recalled numbers in a table of their own."""
    head = [
        "| paper | "
        + " | ".join(f"[{v}]{{.verdict .verdict-{v.replace(' ', '-')}}}" for v in VERDICTS)
        + " |"
    ]
    head += ["|---" * (len(VERDICTS) + 1) + "|"]
    names = {
        **{chapter: f"[{_plain(title)}](../notebooks/{chapter})" for chapter, title in titles.items()},
        "all": "all",
    }

    def body(table: pd.DataFrame) -> list[str]:
        return [
            f"| {names[chapter]} | " + " | ".join(str(count) if count else "–" for count in row) + " |"
            for chapter, row in table.iterrows()
        ]

    apart = counts(claims, recalled=True)
    text = [*head, *body(counts(claims)), ""]
    if apart.to_numpy().sum():
        text += [
            "Counted apart, because the paper's number was recalled from memory and not read anywhere:",
            "",
        ]
        text += [*head, *body(apart[apart.sum(axis=1) > 0]), ""]
    return "\n".join(text)


def claims_markdown(evidence: Evidence) -> str:
    """Every claim of a chapter as a table; each id is a checked reference to its place in the chapter."""
    lines = [":::{list-table}", ":header-rows: 1", ":class: claims", ""]
    lines += ["* - claim", "  - verdict", "  - the paper's number", "  - ours, and why"]
    for claim in evidence.claims:
        mark = verdict_marks(claim)
        command = f"<br><code>{escape(claim.command)}</code>" if claim.command else ""
        details = [escape(claim.protocol)]
        details += [f"Scope: {escape(claim.scope)}"] if claim.scope else []
        details += [f"Caveat: {escape(claim.caveat)}"] if claim.caveat else []
        folded = f"<summary>scale {evidence.scale}, protocol</summary>{'<br>'.join(details)}"
        ours = measured(claim) if claim.measured else ""
        lines += [f"* - {{ref}}`{claim.id} <{claim.anchor}>`", ""]
        lines += _raw(f"{escape(claim.statement)} <small>({escape(claim.source)})</small>")
        for content in (
            badge(claim.verdict) + mark,
            paper_numbers(claim.paper, claim.see),
            f"{ours}<p class='fine'>{escape(claim.reason)}{command}</p>"
            f"<details class='fine'>{folded}</details>",
        ):
            lines += ["  -", *_raw(content)]
    return "\n".join([*lines, ":::", ""])


def _raw(html: str) -> list[str]:
    return ["    ```{raw} html", f"    <div>{' '.join(html.split())}</div>", "    ```", ""]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return sub(r"([\\`*_{}\[\]$|#~^@<>])", r"\\\1", " ".join(unescape(text).split()))


def short_title(ledger: Ledger) -> str:
    """What the ledger calls the paper for short, else its title up to the colon; and the year."""
    return f"{ledger.paper.short or ledger.paper.title.split(':')[0]} ({ledger.paper.year})"


def write(evidence: Iterable[Evidence], folder: Path, root: Path) -> pd.DataFrame:
    """Write fragments, downloads and picture into `folder`; returns the rows.

    Files: ``headline.{md,svg,png}``, ``scorecard.{md,csv,json}``.
    """
    evidence = list(evidence)
    claims = collect(evidence)
    ledgers = {one.chapter: load_ledger(one.chapter, root) for one in evidence}
    titles = {chapter: short_title(ledger) for chapter, ledger in ledgers.items()}
    folder.mkdir(parents=True, exist_ok=True)
    claims.to_csv(folder / "scorecard.csv", index=False)
    records = json.loads(claims.to_json(orient="records"))
    (folder / "scorecard.json").write_text(
        json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    figure = headline(claims, titles)
    figure.savefig(folder / "headline.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / "headline.png", metadata={"Software": None})
    plt.close(figure)
    (folder / "headline.md").write_text(headline_markdown(claims, titles), encoding="utf-8")
    text = ["## Counts", "", summary_markdown(claims, titles)]
    for one in evidence:
        text += [
            f"## {_plain(titles[one.chapter])}",
            "",
            f"Chapter: [{_plain(ledgers[one.chapter].paper.title)}](../notebooks/{one.chapter})",
            "",
        ]
        text += [claims_markdown(one)]
    (folder / "scorecard.md").write_text("\n".join(text), encoding="utf-8")
    return claims
