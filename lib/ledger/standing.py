"""What the book says of a claim: its strongest evidence, and what the run that a page shows says beside it.

A page shows a run at one scale; the archive may hold a longer one. `standings` puts the two side by side,
claim by claim; which of them speaks is decided by scale and date alone (`lib.ledger.archive.strongest`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from lib.ledger.archive import Piece, strongest
from lib.ledger.evidence import ClaimEvidence, Evidence

GROUPS = {
    "paper": "what the papers say",
    "own": "our own checks",
    "memory": "numbers only remembered",
}
"""Whose number a verdict rests on; the three are counted and shown apart."""


@dataclass(frozen=True)
class Standing:
    """A claim, by its strongest evidence and by the run that the page shows.

    Attributes
    ----------
    chapter : str
        Whose claim it is.
    claim : ClaimEvidence
        As the strongest evidence has it.
    here : ClaimEvidence
        As the run of the page has it, at scale `here_scale`.
    here_scale : str
        Of the run of the page.
    piece : Piece
        What `claim` comes from; the run of the page itself where nothing is stronger.
    others : tuple of Piece
        Archived evidence that tests the claim as well, but for the first seeds of the run in `piece`.
    stronger : bool
        Whether `piece` is another run than that of the page.
    """

    chapter: str
    claim: ClaimEvidence
    here: ClaimEvidence
    here_scale: str
    piece: Piece
    others: tuple[Piece, ...]
    stronger: bool

    @property
    def made(self) -> date:
        """The day on which the strongest evidence was complete."""
        return self.piece.ended.date()

    @property
    def trained(self) -> bool:
        """Whether replicates of trainings decide, so that a short run cannot speak for a long one."""
        return self.claim.kind in ("comparison", "bound") and self.claim.replicate == "seed"


def standings(evidence: Evidence, archive: Iterable[Piece] = ()) -> tuple[Standing, ...]:
    """Every claim of a run with its strongest evidence.

    Parameters
    ----------
    evidence : Evidence
        The run that the page shows, judged by today's ledger.
    archive : iterable of Piece
        What the archive holds of this chapter (`lib.ledger.archive.archived`).

    Returns
    -------
    tuple of Standing
        In the order of the run's claims.

    Raises
    ------
    ValueError
        A piece of another chapter.
    """
    archive = tuple(archive)
    if foreign := [piece.chapter for piece in archive if piece.chapter != evidence.chapter]:
        raise ValueError(f"expected evidence of {evidence.chapter}, got that of {foreign[0]}")
    own = Piece.of_run(evidence)
    found = []
    for here in evidence.claims:
        piece = strongest(here.id, (own, *archive)) or own  # first: it may be the very run that is archived
        others = tuple(
            other
            for other in archive
            if other is not piece and other.tests(here.id) and not other.begins(piece)
        )
        claim = here if piece is own else piece.claim(here.id)
        stronger = piece is not own
        found.append(Standing(evidence.chapter, claim, here, evidence.scale, piece, others, stronger))
    return tuple(found)


def group(claim: ClaimEvidence) -> str:
    """Whose number it is, of `GROUPS`; a claim of the paper that was not tested stays the paper's."""
    if claim.own:
        return "own"
    remembered = claim.provenance_of_paper_number == "recalled" and claim.verdict != "not tested"
    return "memory" if remembered else "paper"
