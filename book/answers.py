"""Our answer to each paper's title, as the ledgers give it, with today's verdicts in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from book.claim_tables import badge_markdown, plain
from lib.ledger.schema import SCALES
from lib.ledger.standing import Standing
from lib.ledger.wording import with_verdicts


def answer(text: str, standings: Sequence[Standing], counted: str) -> str:
    """The answer of a ledger as Markdown: its sentences with verdicts, then what they rest on.

    Parameters
    ----------
    text : str
        Of the ledger, with ``{C4}`` for a verdict; without it the counts speak alone.
    standings : sequence of Standing
        Of all claims of the chapter.
    counted : str
        The verdicts on what the paper says, in words.
    """
    by_claim = {one.claim.id: one for one in standings}

    def shown(claim_id: str, verdict: str) -> str:
        """A badge that leads to where the claim is measured."""
        return badge_markdown(f"[{verdict}](#{by_claim[claim_id].here.anchor})", verdict)

    verdicts = {name: one.claim.verdict for name, one in by_claim.items()}
    # The schema lets no other braces into the text than those of references.
    sentences = with_verdicts(plain(text).replace(r"\{", "{").replace(r"\}", "}"), verdicts, shown)
    facts = [f"What the paper says: {counted}"]
    if unlearned := sum(one.claim.unlearned for one in standings):
        facts.append(f"{unlearned} not tested because the reference has not learned")
    measured = [one for one in standings if one.claim.verdict != "not tested" or one.claim.unlearned]
    if measured:
        best = max(measured, key=lambda one: (SCALES.index(one.piece.scale), one.made))
        facts.append(f"strongest evidence: scale {best.piece.scale}, {best.made:%Y-%m-%d}")
    return f"{sentences}\n\n[{'; '.join(facts)}.]{{.fine}}".strip()


def answers_markdown(answers: Mapping[str, str], titles: Mapping[str, str]) -> str:
    """The front page's list: a paper a line, with its answer."""
    items = [
        f"**[{plain(titles[chapter])}](../notebooks/{chapter})**: {text}" for chapter, text in answers.items()
    ]
    return "\n\n".join(f"- {item.replace(chr(10), chr(10) + '  ')}" for item in items) + "\n"
