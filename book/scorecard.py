"""The scorecard: from evidence files to counts, a table of every claim, its downloads and its picture.

`collect` makes one row per claim; counts, CSV, JSON and the picture are functions of those rows. Everywhere
three groups are kept apart: what a paper says, our own checks, and numbers that are only remembered. No
verdict is computed here: they are read from the evidence, the strongest for each claim, with that of this
build beside it (`lib.ledger.standing`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from docutils.nodes import make_id
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from book.answers import answer, answers_markdown
from book.claim_tables import badge_markdown, claims_markdown, plain
from lib.chapter.figures import use_style
from lib.chapter.tables import mean_text
from lib.ledger.archive import Piece
from lib.ledger.evidence import ClaimEvidence, Evidence
from lib.ledger.schema import SCALES, Ledger, load_ledger
from lib.ledger.standing import GROUPS, Standing, group, standings
from lib.ledger.verdicts import VERDICTS
from lib.ledger.wording import format_number, paper_number

# Fill and hatch of each verdict: the hatches and the printed words tell them apart without colour.
LOOKS = {
    "exact": ("#7fc8a0", ""),
    "reproduced": ("#b4e3c8", "//"),
    "holds": ("#a5cdea", "\\\\"),
    "inconclusive": ("#f7dd8b", ".."),
    "contradicted": ("#ef9a93", "xx"),
    "consistent": ("#d4bff0", "--"),
    "matches memory": ("#dcdfe3", "||"),
    "differs from memory": ("#b9bfc6", "++"),
    "not tested": ("#ffffff", ""),
}


def collect(standings: Iterable[Standing]) -> pd.DataFrame:
    """One row per claim, in the order given; text and numbers only.

    A row is by the strongest evidence: its scale is in ``strongest_scale``, its day in ``made``, and
    ``method_changed`` says that the method is another today. What the run of this build says stands in
    ``verdict_of_this_build``, its scale in ``scale``. ``mean``, ``low`` and ``high`` are of the quantity in
    ``effect``, the one that decided (empty for arithmetic); ``group`` is one of `GROUPS`; ``changed`` says
    that the rule was changed after a run, ``unlearned`` that the reference does not beat the claim's floor.
    """
    rows = []
    for one in standings:
        claim, effect = one.claim, one.claim.interval
        rows.append(
            {
                "chapter": one.chapter,
                "claim": claim.id,
                "statement": claim.statement,
                "source": claim.source,
                "kind": claim.kind,
                "verdict": claim.verdict,
                "unlearned": claim.unlearned,
                "group": group(claim),
                "changed": claim.changed is not None,
                "synthetic": claim.synthetic,
                "rule_is_younger": claim.rule_is_younger,
                "scale": one.here_scale,
                "scope": claim.scope,
                "protocol": claim.protocol,
                "paper": "; ".join(
                    f"{n.name} = {paper_number(n)} ({n.where}, {n.provenance})" for n in claim.paper
                ),
                "paper_provenance": claim.provenance_of_paper_number,
                "measured": _measured_text(claim),
                "effect": effect.label if effect else None,
                "claimed": effect.claimed if effect else None,
                "mean": effect.quantity if effect else None,
                "low": effect.quantity_low if effect else None,
                "high": effect.quantity_high if effect else None,
                "level": effect.level if effect else None,
                "unit": effect.unit if effect else None,
                "reason": claim.reason,
                "command": claim.command,
                "anchor": f"notebooks/{one.chapter}.html#{make_id(one.here.anchor)}",
                "strongest_scale": one.piece.scale,
                "made": one.made.isoformat(),
                "method_changed": bool(one.piece.changed),
                "verdict_of_this_build": one.here.verdict,
            }
        )
    if not rows:
        raise ValueError("a scorecard needs the evidence of at least one chapter, got none")
    return pd.DataFrame(rows)


def _no_formula(value: object) -> object:
    """A cell of a table; before text that a spreadsheet would compute stands an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _measured_text(claim: ClaimEvidence) -> str:
    """Every measured number as plain text."""
    parts = []
    for name, value in claim.measured.items():
        if isinstance(value, Mapping):
            parts += [f"{name}, {arm} = {mean_text(claim, name, one)}" for arm, one in value.items()]
        else:
            parts.append(f"{name} = {format_number(value)}")
    return "; ".join(parts)


def counts(claims: pd.DataFrame, group: str = "paper") -> pd.DataFrame:
    """How many claims of each chapter got each verdict, and over all chapters in the last row, ``all``.

    Parameters
    ----------
    claims : DataFrame
        From `collect`.
    group : str
        Which of `GROUPS` to count.

    Returns
    -------
    DataFrame
        Chapters × verdicts, in the order of `lib.ledger.verdicts.VERDICTS`.
    """
    chapters = list(dict.fromkeys(claims["chapter"]))
    chosen = claims[claims["group"] == group]
    table = pd.crosstab(chosen["chapter"], chosen["verdict"])
    table = table.reindex(index=chapters, columns=list(VERDICTS), fill_value=0)
    table.loc["all"] = table.sum()
    return table.astype(int)


def rests_on(claims: pd.DataFrame) -> str:
    """In a few lines: what the verdicts rest on, what was not reproduced, and what is marked."""
    decided = claims[~claims["verdict"].isin(["not tested", "inconclusive"])]
    of_papers = decided[decided["group"] == "paper"]
    origin = of_papers["paper_provenance"].value_counts()
    read = of_papers["paper_provenance"].isin(["paper", "authors' code", "cited"])
    held = read & ((of_papers["kind"] == "arithmetic") | (of_papers["verdict"] == "reproduced"))
    reproduced = int((claims["verdict"] == "reproduced").sum())
    unlearned, changed = int(claims["unlearned"].sum()), int(claims["changed"].sum())
    code = origin.get("authors' code", 0) + origin.get("cited", 0)
    sentences = [
        f"Of {len(claims)} claims {len(decided)} are decided.",
        f"Of these, {len(of_papers)} are what a paper says: {origin.get('paper', 0)} with a number that "
        f"was read in the paper itself, {code} with one from its authors' code or a citing work, the "
        f"others with a derived number or none.",
        f"Held against a number that was read, and not judged by direction or limit alone: {held.sum()}.",
        f"Our own checks: {(decided['group'] == 'own').sum()}.",
        f"Held against numbers that are only remembered: {(decided['group'] == 'memory').sum()}.",
        f"Claims that are reproduced: {reproduced}."
        if reproduced
        else "No table of any paper is reproduced here yet.",
        f"Rules that were changed after a run: {changed}, each marked.",
    ]
    if unlearned:
        sentences.append(f"Not tested because the reference has not learned: {unlearned}.")
    by_scale = [(name, (decided["strongest_scale"] == name).sum()) for name in reversed(SCALES)]
    spread = ", ".join(f"{count} at {name}" for name, count in by_scale if count)
    sentences.append(f"Decided by scale of the strongest evidence: {spread or 'none'}.")
    return " ".join(sentences)


def in_words(row: pd.Series) -> str:
    """``12 exact, 2 holds``: the verdicts that occur in a row of `counts`."""
    return ", ".join(f"{count} {verdict}" for verdict, count in row.items() if count) or "none"


def headline(claims: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Stacked bars of verdicts per chapter; thinner ones for our own checks and for remembered numbers."""
    use_style()
    bars, place = [], 0.0
    for chapter in dict.fromkeys(claims["chapter"]):
        for kind, label in GROUPS.items():
            row = counts(claims, kind).loc[chapter]
            main = kind == "paper"
            if main or row.sum():
                bars.append((place, fill(titles[chapter], 26) if main else label, row[row > 0], main))
                place += 0.7 if main else 0.5
        place += 0.35
    figure, axis = plt.subplots(figsize=(7.6, 1.0 + 0.62 * place))
    for place, label, row, main in bars:
        _bar(axis, place, row, height=0.56 if main else 0.34)
        name = {"fontsize": 10.5 if main else 9, "fontstyle": "normal" if main else "italic"}
        name |= {"ha": "right", "va": "center"}
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
        for kind in ("own", "memory"):
            apart = counts(claims, kind).loc[chapter]
            parts[-1] += f"; {GROUPS[kind]}: {in_words(apart)}" if apart.sum() else ""
    made_up = int((claims["synthetic"] & (claims["verdict"] != "not tested")).sum())
    note = f" Verdicts that rest on made-up data: {made_up}." if made_up else ""
    return (
        "```{figure} _generated/headline.svg\n"
        ":class: headline-figure\n:name: fig-headline\n"
        f":alt: Bars of verdict counts. {plain('. '.join(parts))}.\n\n"
        f"What became of {len(claims)} claims, by the strongest evidence for each.{note} "
        "Colour is doubled by hatching; thin bars: our own checks, and numbers only remembered.\n```\n"
        f"\n{rests_on(claims)}\n"
    )


def summary_markdown(claims: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Counts per paper and overall, each of `GROUPS` in a table of its own."""
    names = {
        **{chapter: f"[{plain(title)}](../notebooks/{chapter})" for chapter, title in titles.items()},
        "all": "all",
    }

    def shown(table: pd.DataFrame) -> list[str]:
        """The verdicts that occur, or the table would be wider than the page."""
        table = table.loc[:, table.sum() > 0]
        words = [badge_markdown(verdict, verdict) for verdict in table]
        lines = ["| paper | " + " | ".join(words) + " |", "|---" * (len(words) + 1) + "|"]
        return lines + [
            f"| {names[chapter]} | " + " | ".join(str(count) if count else "–" for count in row) + " |"
            for chapter, row in table.iterrows()
        ]

    text = [rests_on(claims), "", "What the papers say:", "", *shown(counts(claims)), ""]
    words = {
        "own": "Our own checks, of definitions and code, and questions that the papers do not put:",
        "memory": "Held against numbers that nobody could read and that are only remembered. To agree with a "
        "memory confirms no paper, and disagreement contradicts none:",
    }
    for kind, sentence in words.items():
        apart = counts(claims, kind)
        if apart.to_numpy().sum():
            text += [sentence, "", *shown(apart[apart.sum(axis=1) > 0]), ""]
    return "\n".join(text)


def short_title(ledger: Ledger) -> str:
    """What the ledger calls the paper for short, else its title up to the colon; and the year."""
    return f"{ledger.paper.short or ledger.paper.title.split(':')[0]} ({ledger.paper.year})"


def write(
    evidence: Iterable[Evidence],
    folder: Path,
    root: Path,
    archive: Mapping[str, Iterable[Piece]] | None = None,
) -> pd.DataFrame:
    """Write fragments, downloads and picture into `folder`; returns the rows.

    Files: ``answers.md``, ``headline.{md,svg,png}``, ``scorecard.{md,csv,json}``.

    Parameters
    ----------
    evidence : iterable of Evidence
        The runs of this build, one per chapter.
    folder, root : Path
        Where to write, and the repository.
    archive : mapping, optional
        Archived evidence by chapter.
    """
    archive = archive or {}
    told = {one.chapter: standings(one, archive.get(one.chapter, ())) for one in evidence}
    claims = collect(one for chapter in told.values() for one in chapter)
    ledgers = {chapter: load_ledger(chapter, root) for chapter in told}
    titles = {chapter: short_title(ledger) for chapter, ledger in ledgers.items()}
    answers = {
        chapter: answer(ledger.paper.answer, told[chapter], in_words(counts(claims).loc[chapter]))
        for chapter, ledger in ledgers.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    claims.map(_no_formula).to_csv(folder / "scorecard.csv", index=False)
    records = json.loads(claims.to_json(orient="records", double_precision=15))
    (folder / "scorecard.json").write_text(
        json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    figure = headline(claims, titles)
    figure.savefig(folder / "headline.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / "headline.png", metadata={"Software": None})
    plt.close(figure)
    (folder / "headline.md").write_text(headline_markdown(claims, titles), encoding="utf-8")
    (folder / "answers.md").write_text(answers_markdown(answers, titles), encoding="utf-8")
    text = ["## Counts", "", summary_markdown(claims, titles)]
    for chapter, one in told.items():
        title = plain(ledgers[chapter].paper.title)
        text += [f"## {plain(titles[chapter])}", "", f"Chapter: [{title}](../notebooks/{chapter})", ""]
        text += [answers[chapter], "", claims_markdown(one)]
    (folder / "scorecard.md").write_text("\n".join(text), encoding="utf-8")
    return claims
