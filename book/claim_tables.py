"""Every claim of a paper, as the scorecard shows them: the paper's own, our checks, what is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape, unescape
from re import sub

from lib.chapter.tables import (
    WHOSE,
    badge,
    beside,
    change_told,
    measured,
    paper_numbers,
    tally,
    verdict_marks,
    where_made,
)
from lib.ledger.floors import asked_first
from lib.ledger.standing import Standing, group


def claims_markdown(standings: Sequence[Standing]) -> str:
    """The claims of a chapter; each id is a checked reference to its place in the chapter."""
    text = []
    for name, whose in WHOSE.items():
        chosen = [one for one in standings if group(one.claim) == name]
        if chosen:
            counted = tally([one.claim for one in chosen])
            text += [f"**{whose}**: {counted}.", "", *_table(chosen)]
    return "\n".join(text)


def _table(standings: Sequence[Standing]) -> list[str]:
    lines = [":::{list-table}", ":header-rows: 1", ":class: claims", ""]
    lines += ["* - claim", "  - verdict", "  - the paper's number", "  - ours, and why"]
    for one in standings:
        claim = one.claim
        command = f"<br><code>{escape(claim.command)}</code>" if claim.command else ""
        details = [where_made(one), escape(claim.protocol)]
        details += [f"Scope: {escape(claim.scope)}"] if claim.scope else []
        details += [escape(text) for text in asked_first(claim.floor)]
        details += [f"Caveat: {escape(claim.caveat)}"] if claim.caveat else []
        details += change_told(claim.changed)
        folded = f"<summary>scale {one.piece.scale}, protocol</summary>{'<br>'.join(details)}"
        ours = measured(claim) if claim.measured else ""
        verdict = badge(claim.verdict) + verdict_marks(claim)
        if one.stronger:
            verdict += f"<p class='fine'>{beside(one)}</p>"
        lines += [f"* - {{ref}}`{claim.id} <{one.here.anchor}>`", ""]
        lines += raw(f"{escape(claim.statement)} <small>({escape(claim.source)})</small>")
        for content in (
            verdict,
            paper_numbers(claim.paper, claim.see),
            f"{ours}<p class='fine'>{escape(claim.reason)}{command}</p>"
            f"<details class='fine'>{folded}</details>",
        ):
            lines += ["  -", *raw(content)]
    return [*lines, ":::", ""]


def raw(html: str) -> list[str]:
    """Markup as a block of its own in a list of Markdown, on one line so that no text can end it."""
    return ["    ```{raw} html", f"    <div>{' '.join(html.split())}</div>", "    ```", ""]


def plain(text: str) -> str:
    """Text that Markdown shows as it is, wherever it stands in a line or in a table."""
    shown = sub(r"([\\`*_{}\[\]$|#~^@<>%&])", r"\\\1", " ".join(unescape(text).split()))
    return sub(r"^(\d*)([-+=:.)])(?!\d)", r"\1\\\2", shown)  # no list, definition or underline begins with it


def badge_markdown(text: str, verdict: str) -> str:
    """Text, the verdict's word or a link of it, as the verdict's badge in Markdown."""
    return f"[{text}]{{.verdict .verdict-{verdict.replace(' ', '-')}}}"
