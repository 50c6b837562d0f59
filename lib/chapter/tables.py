"""A chapter's tables of claims, verdicts and provenance, as HTML that reads without a style sheet.

The book's style sheet colours the classes ``verdict`` and ``mark-…`` (synthetic, recalled, own, ...); the
words are always there, so nothing depends on colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from docutils.nodes import make_id

from lib.ledger.evidence import scope_of
from lib.ledger.floors import asked_first
from lib.ledger.paper_numbers import PaperNumber
from lib.ledger.provenance import Provenance, direct_dependencies
from lib.ledger.schema import Changed, Ledger, Setting
from lib.ledger.standing import Standing, group
from lib.ledger.verdicts import VERDICTS, Effect, Summary
from lib.ledger.wording import badge, format_interval, format_number, interval_of, paper_number, signs
from lib.listing import plural

if TYPE_CHECKING:
    import pandas as pd

    from lib.ledger.evidence import ClaimEvidence, DataUsed

# JupyterLab aligns table cells to the right unless told otherwise.
CELL = 'style="text-align:left;vertical-align:top"'
SHOWN = 3  # numbers that a cell shows unfolded
MARK = "companion"  # in the metadata of outputs

WHOSE = {
    "paper": "What the paper says",
    "own": "Our own checks",
    "memory": "Held against numbers that are only remembered",
}

JUDGED_BY = {
    "arithmetic": "equal at the printed precision, or within the stated tolerance",
    "comparison": "paired differences",
    "bound": "interval against the limit",
    "measurement": "direction, hardware beside",
}


class Html(str):
    """Markup that a notebook shows as such, marked with what it shows so that a page can be made again."""

    shows: str = ""

    def marked(self, shows: str) -> Html:
        """The same, marked."""
        self.shows = shows
        return self

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, object]]:
        data = {"text/html": str(self), "text/plain": repr(self)}
        return data, mark(self.shows)

    def __repr__(self) -> str:
        return f"<{len(self)} characters of HTML>"


def mark(shows: str) -> dict[str, object]:
    """Metadata of a cell's output that says what of the record it shows, as ``ledger`` or ``verdict C1``."""
    return {MARK: {"shows": shows}} if shows else {}


def ledger_table(ledger: Ledger, chapter: str, scale: str, settings: Mapping[str, Setting]) -> Html:
    """The claims of a paper, a line each: what is said, and how `scale` tests it. The rest unfolds."""
    rows = []
    for claim in ledger.claims:
        entry = claim.entry(scale)
        place = make_id(f"{chapter}-{claim.id}")  # Sphinx makes hyphens of underscores
        label = f'<a href="#{place}">{claim.id}</a>' if entry.tested else claim.id
        how = f"by {claim.kind}" if entry.tested else "not tested here"
        scope = scope_of(entry.scope, settings) or "the whole claim"
        here = f"Tested: {scope}" if entry.tested else f"Not tested: {entry.why}"
        if entry.tested and entry.when:
            here += f" (with {entry.conditions()})"
        mark = ' <span class="mark-synthetic">synthetic</span>' if entry.synthetic else ""
        told = [
            escape(f"Said in: {claim.source}. Judged by {claim.kind}: {JUDGED_BY[claim.kind]}."),
            escape(f"{here}.") + _command(entry.command if not entry.tested else ""),
            f"The paper's numbers: {paper_numbers(claim.paper, claim.see)}",
            *(escape(text) for text in [*asked_first(claim.floor), claim.caveat] if text),
            *change_told(claim.changed),
        ]
        unfolds = "".join(f"<p>{line}</p>" for line in told)
        summary = f"{escape(claim.statement)} <small>({how})</small>{mark}"
        rows.append((label, f"<details><summary>{summary}</summary>{unfolds}</details>"))
    caption = f"{len(rows)} claims, and what the {scale} scale tests of them"
    return html_table("ledger", caption, ("claim", "what it says, and how it is tested"), rows)


def verdict_table(claims: Sequence[ClaimEvidence], standings: Mapping[str, Standing] | None = None) -> Html:
    """What became of the claims: of the paper's, our own checks, and what is held against a memory.

    Where `standings` (by claim) has stronger evidence than this run, that speaks, and this run stands beside.
    """
    standings = standings or {}
    rows: dict[str, list[tuple[str, ...]]] = {name: [] for name in WHOSE}
    spoken: dict[str, list[ClaimEvidence]] = {name: [] for name in WHOSE}
    for here in claims:
        standing = standings.get(here.id)
        claim = standing.claim if standing else here
        told = (claim.scope and f"Scope: {claim.scope}.", *asked_first(claim.floor), claim.caveat)
        limits = [escape(text) for text in told if text] + change_told(claim.changed)
        spoken[group(claim)].append(claim)
        rows[group(claim)].append(
            (
                f'<a href="#{make_id(here.anchor)}">{escape(claim.id)}</a>',
                escape(claim.statement) + _details("bear in mind", limits),
                badge(claim.verdict)
                + verdict_marks(claim)
                + f" <small>{escape(claim.reason)}</small>"
                + _command(claim.command)
                + (f"<small>{beside(standing)}</small>" if standing and standing.stronger else ""),
                measured(claim) + f"<div>The paper: {paper_numbers(claim.paper, claim.see)}</div>",
            )
        )
    head = ("claim", "what it says", "verdict, and why", "measured")
    parts = [
        html_table("verdicts", f"{whose}: {tally(spoken[name])}", head, rows[name])
        for name, whose in WHOSE.items()
        if rows[name]
    ]
    return Html("".join(parts))


def verdict_line(claim: ClaimEvidence, standing: Standing | None = None) -> Html:
    """A claim's verdict and its reason in a line, as it stands below the cell that judged it."""
    line = f"{escape(claim.id)}: {badge(claim.verdict)}{verdict_marks(claim)} {escape(claim.reason)}"
    if claim.interval and (sure := interval_of(claim.interval)):
        line += f" <small>({sure})</small>"
    if standing and standing.stronger:
        line += f" {since(standing)} {badge(standing.claim.verdict)}"
    return Html(f"<p>{line}</p>").marked(f"verdict {claim.id}")


def where_made(standing: Standing) -> str:
    """Scale and day of the strongest evidence, and whether the method has changed since."""
    piece = standing.piece
    text = f"scale {piece.scale}, {standing.made:%Y-%m-%d}, {escape(', '.join(piece.machines))}"
    if piece.missing:
        text += f' <span class="mark-younger">{piece.progress}</span>'
    if piece.changed:
        text += ' <span class="mark-younger">method changed since</span>'
    return text


def since(standing: Standing) -> str:
    """Why this run's verdict is not the last word."""
    plateau = ", not trained to a plateau" if standing.trained else ""
    return f"Re-executed here{plateau}: the verdict is the {standing.piece.scale} run's."


def beside(standing: Standing) -> str:
    """Where stronger evidence comes from, what this run says, and every other run that was archived."""
    lines = [f"From {where_made(standing)}."]
    if standing.here.verdict != "not tested" or standing.here.unlearned:
        lines.append(f"{since(standing)} Here: {badge(standing.here.verdict)}{verdict_marks(standing.here)}")
    lines += [
        f"Also {other.scale}, {other.ended:%Y-%m-%d}: {badge(other.claim(standing.claim.id).verdict)}"
        for other in standing.others
    ]
    return "<br>".join(lines)


def numbers_frame(claims: Sequence[ClaimEvidence]) -> pd.DataFrame:
    """Numbers of arithmetic claims: a row each with reference, where it was read, ours, verdict."""
    import pandas as pd

    rows = []
    for claim in claims:
        for number in claim.paper:
            ours = claim.measured[number.name]
            reference = paper_number(number)
            row = (claim.id, number.name, number.provenance, reference, ours, number.unit, claim.verdict)
            rows.append(row)
    names = ["claim", "number", "reference is", "reference", "ours", "unit", "verdict"]
    return pd.DataFrame(rows, columns=names)


def numbers_table(claims: Sequence[ClaimEvidence]) -> Html:
    """As `numbers_frame`, to be shown; with more digits where rounding could hide a difference."""
    rows = []
    for claim in claims:
        for number in claim.paper:
            reference = escape(paper_number(number))
            differs = claim.verdict in ("contradicted", "differs from memory")
            decimals = number.decimals
            if differs:  # of a whole number four digits
                decimals = decimals + 2 if decimals else None
            ours = format_number(claim.measured[number.name], decimals)
            source = f"<small>{escape(number.provenance)}</small>"
            rows.append(
                (escape(claim.id), escape(number.name), reference, source, ours, badge(claim.verdict))
            )
    head = ("claim", "number", "reference", "reference is", "ours", "verdict of the claim")
    return html_table("numbers", f"{len(rows)} numbers", head, rows)


def change_told(changed: Changed | None) -> list[str]:
    """What was changed after a run, why, and what had been seen by then; nothing if nothing was."""
    if changed is None:
        return []
    told = {"Changed after a run. Before": changed.was, "Why": changed.why, "Seen by then": changed.after}
    return [f"{escape(head)}: {escape(text)}" for head, text in told.items()]


def verdict_marks(claim: ClaimEvidence) -> str:
    """What stands beside a verdict: made-up data, a rule that was changed, a reference below its floor."""
    marks = ' <span class="mark-unlearned">the reference has not learned</span>' if claim.unlearned else ""
    marks += ' <span class="mark-synthetic">synthetic</span>' if claim.synthetic else ""
    if claim.own:
        marks += ' <span class="mark-own">our own check</span>'
    if claim.changed:
        marks += ' <span class="mark-younger">rule changed after a run</span>'
    if claim.rule_is_younger:
        marks += ' <span class="mark-younger">rule changed after the measurement</span>'
    return marks


def tally(claims: Sequence[ClaimEvidence]) -> str:
    """``2 exact, 1 holds``: verdicts counted, those on made-up data named apart."""
    counted = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    text = ", ".join(f"{count} {verdict}" for verdict, count in counted.items() if count) or "no verdict yet"
    judged = [claim for claim in claims if claim.verdict != "not tested"]
    synthetic = sum(claim.synthetic for claim in judged)
    return text + (f"; {synthetic} of them on synthetic data" if synthetic else "")


def measured(claim: ClaimEvidence) -> str:
    """What was measured: the deciding effect with its interval and each arm's mean, or the numbers."""
    if claim.interval is None:
        numbers = [
            f"{escape(name)}: {format_number(value)}"
            for name, value in claim.measured.items()
            if isinstance(value, float)
        ]
        return _folded(numbers, "numbers") or "–"
    parts = [effect_text(claim.interval, claim)]
    others = [effect_text(effect, claim) for effect in claim.effects if effect != claim.interval]
    arms = [
        f"{escape(metric)}, {escape(arm)}: {mean_text(claim, metric, summary)}"
        for metric, by_arm in claim.measured.items()
        for arm, summary in by_arm.items()
    ]
    if others:
        parts.append(_details(plural(len(others), "other part"), others))
    # The interval of the claim covers other units as well; that of a single arm's mean does not.
    several = plural(2, claim.replicate).removeprefix("2 ")
    parts.append(_details(f"means, over {several} alone" if claim.unit else "means", arms))
    return "".join(parts)


def mean_text(claim: ClaimEvidence, metric: str, summary: Summary) -> str:
    """An arm's mean with its interval, cut where the metric ends."""
    return format_interval(
        summary.mean, summary.low, summary.high, possible=claim.possible.get(metric, (None, None))
    )


def quantity_text(effect: Effect, claim: ClaimEvidence) -> str:
    """One effect's quantity with its interval; that of an arm's mean is cut where the metric ends."""
    of_arm = [m for m, arms in claim.measured.items() if effect.label in {f"{m}: {arm}" for arm in arms}]
    possible = claim.possible.get(of_arm[0], (None, None)) if of_arm else (None, None)
    ends = (effect.quantity_low, effect.quantity_high)
    return format_interval(effect.quantity, *ends, unit=effect.unit, possible=possible)


def effect_text(effect: Effect, claim: ClaimEvidence) -> str:
    """One effect: the quantity with its interval, what is claimed of it, how sure, and what could be seen."""
    size = quantity_text(effect, claim)
    relative = f" ({signs(f'{100 * effect.relative:+.1f}')} %)" if effect.relative is not None else ""
    sure = ", ".join(filter(None, [interval_of(effect), escape(plural(effect.replicates, claim.replicate))]))
    text = (
        f"{escape(effect.label)} = <span class='number'>{escape(size)}</span>{relative}; claimed: "
        f"{escape(effect.claimed)} <small>({sure})</small>"
    )
    if effect.outcome == "inconclusive" and effect.smallest:
        smallest = escape(format_number(float(f"{effect.smallest:.2g}"), unit=effect.unit))
        text += f" <small>This design finds {smallest} four times in five.</small>"
    return text


def paper_numbers(numbers: Sequence[PaperNumber], see: Sequence[str] = ()) -> str:
    """The paper's numbers and where each was read; a recalled number says so, unfolded."""
    if not numbers and not see:
        return "none given"
    one_origin = len({number.provenance for number in numbers}) == 1
    items = [
        f"{escape(number.name)}: <span class='number'>"
        f"{escape(paper_number(number))}</span>"
        + ("" if one_origin else f" <small>({escape(number.provenance)})</small>")
        for number in numbers
    ]
    text = _folded(items, "numbers")
    if one_origin:
        text += f"<small>({escape(numbers[0].provenance)})</small>"
    if any(number.provenance == "recalled" for number in numbers):
        text += ' <span class="mark-recalled">recalled: not verified</span>'
    return text + (f" <small>see {escape(', '.join(see))}</small>" if see else "")


def provenance_table(provenance: Provenance, data: Sequence[DataUsed]) -> Html:
    """Code, machine, time, memory, packages and data of a run."""
    state = {None: "", False: ", nothing changed", True: ", with changes that are not committed"}
    direct = {name.lower() for name in direct_dependencies()}
    packages = [f"{escape(name)} {escape(number)}" for name, number in provenance.packages.items()]
    main = [text for text in packages if text.split()[0].lower() in direct]
    rows = [
        (
            "commit",
            f"<code>{escape(provenance.commit)}</code>{state[provenance.dirty]}"
            if provenance.commit
            else "none",
        ),
        ("processor", escape(f"{provenance.processor} ({provenance.instruction_set})")),
        ("accelerator", escape(provenance.accelerator or "none")),
        ("threads", str(provenance.threads)),
        ("system", escape(f"{provenance.platform}, Python {provenance.python}")),
        ("started (UTC)", f"{provenance.started:%Y-%m-%d %H:%M}"),
        ("wall time", format_number(provenance.wall_seconds, 0, "s")),
        ("peak memory", format_number(provenance.peak_memory_bytes / 2**20, 0, "MiB")),
        ("packages", ", ".join(main) + _details(f"all {len(packages)}", [", ".join(packages)])),
    ]
    rows += [
        (
            f"data: {escape(used.name)}",
            escape(used.licence)
            + (' <span class="mark-synthetic">synthetic</span>' if used.synthetic else "")
            + _details(
                "files (SHA-256)", [f"{escape(n)}: <code>{escape(h)}</code>" for n, h in used.files.items()]
            ),
        )
        for used in data
    ]
    return html_table("provenance", "How this page was made", ("what", "value"), rows)


def html_table(kind: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table of cells that are markup already, its first column the heads of the rows.

    Each cell knows what its column is called: a narrow screen shows one below the other.
    """
    head = "".join(f'<th scope="col" {CELL}>{name}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row" {CELL}>{row[0]}</th>'
        + "".join(
            f'<td data-column="{escape(name)}" {CELL}>{cell}</td>'
            for name, cell in zip(header[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="record record-{kind}" style="overflow-x:auto">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _folded(items: Sequence[str], what: str) -> str:
    """One item a line; behind a fold if they are many."""
    if len(items) > SHOWN:
        return _details(f"{len(items)} {what}", items)
    return "<br>".join(items) + ("<br>" if items else "")


def _details(summary: str, items: Sequence[str]) -> str:
    return f"<details><summary>{escape(summary)}</summary>{'<br>'.join(items)}</details>" if items else ""


def _command(command: str) -> str:
    return f"<br><code>{escape(command)}</code>" if command else ""
