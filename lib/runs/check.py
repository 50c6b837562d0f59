"""The check of evidence that somebody sends: are its verdicts what its raw numbers give, by today's rules?

A folder as `lib.run` leaves it, or as the archive keeps it. Nothing in it is executed or believed: every
verdict is formed anew from the raw measurements, and what test units add to the error bars is computed anew
from the results per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from pathlib import Path

import numpy as np

from lib.files import ROOT
from lib.ledger.archive import ArchivedEvidence, Piece, archived, load_archived, strongest
from lib.ledger.evidence import Measurement
from lib.ledger.pooling import units_of
from lib.ledger.schema import load_ledger
from lib.runs.parameters import RequestError, read_parameters
from lib.runs.request import altered, read_chapter, scale_parameters
from lib.runs.runner import shown


def check(folder: Path, root: Path | None = None, say: Callable[[str], None] = print) -> bool:
    """Check a folder of evidence, and show its verdicts beside ours.

    Parameters
    ----------
    folder : Path
        With ``evidence.json`` and ``tables/``.
    root : Path, optional
        The repository, whose ledger judges.
    say : callable
        Prints one line.

    Returns
    -------
    bool
        Whether it is whole, and no verdict in it is another than its numbers give. A verdict by another rule
        than today's, or on a claim that today's ledger does not have or cannot judge, is not compared; a line
        says so.
    """
    name = shown(folder)
    try:
        sent = load_archived(folder / "evidence.json", name)
        ledger = load_ledger(sent.chapter, root)
        piece = Piece.of(sent, ledger)
        ours = archived(sent.chapter, root or ROOT)
    except (OSError, ValueError) as error:
        say(f"{error}")
        return False
    say(f"{sent.chapter} at scale {sent.scale}, seeds {', '.join(map(str, piece.seeds)) or 'none'}")
    say(f"{'claim':7}{'in the file':21}{'by its numbers':21}ours")
    stated = {claim.id: claim.verdict for claim in sent.claims}
    for claim in piece.evidence.claims:
        best = strongest(claim.id, ours)
        our = f"{best.claim(claim.id).verdict} ({Path(best.folder).name})" if best else "–"
        mark = "  rule changed since" if claim.rule_is_younger else ""
        say(f"{claim.id:7}{stated.get(claim.id, '–'):21}{claim.verdict:21}{our}{mark}")
    aside = _not_compared(piece, stated)
    for why in dict.fromkeys(aside.values()):
        say(f"{name}: not compared: {', '.join(claim for claim in aside if aside[claim] == why)}: {why}")
    problems = _problems(sent, piece, stated, set(stated) - set(aside), folder)
    if "reproduced" in stated.values():
        problems += _other_parameters(sent, root)
    for problem in problems:
        say(f"{name}: {problem}")
    if problems:
        say(f"{name}: not what its numbers give")
    elif aside:
        compared = len(stated) - len(aside)
        say(f"{name}: {compared} of {len(stated)} verdicts compared, which follow from its numbers")
    else:
        say(f"{name}: its verdicts follow from its numbers")
    return not problems


def _not_compared(piece: Piece, stated: Mapping[str, str]) -> dict[str, str]:
    """Claims whose verdict in the file cannot be held against today's, and why."""
    today = {claim.id: claim for claim in piece.evidence.claims}
    aside = {}
    for claim in stated:
        if claim not in today:
            aside[claim] = "today's ledger has no such claim"
        elif claim in piece.stale:
            aside[claim] = piece.stale[claim]
        elif today[claim].rule_is_younger:
            aside[claim] = "today's rule is not the one that the file names"
    return aside


def _problems(
    sent: ArchivedEvidence, piece: Piece, stated: Mapping[str, str], compared: Set[str], folder: Path
) -> list[str]:
    """What is wrong with the evidence, a line each; only the verdicts of `compared` claims can be."""
    problems = []
    measured = {measurement.claim: measurement for measurement in sent.measurements}
    tables = {
        file: (folder / file).read_bytes()
        for artifact in sent.artifacts
        for file in artifact.files
        if artifact.kind == "table"
    }
    problems += [f"{claim}: a verdict without measurements" for claim in stated if claim not in measured]
    for claim in piece.evidence.claims:
        if claim.id not in stated or claim.id not in measured or claim.id in piece.stale:
            continue
        if claim.id in compared and stated[claim.id] != claim.verdict:
            problems.append(f"{claim.id}: the file says {stated[claim.id]}, its numbers {claim.verdict}")
        try:
            _refuse_other_units(measured[claim.id], tables, piece.seeds)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _other_parameters(sent: ArchivedEvidence, root: Path | None) -> list[str]:
    """What the evidence does not tell of its parameters, where it says that something is reproduced."""
    try:
        declared = read_parameters(read_chapter(sent.chapter, root), f"notebooks/{sent.chapter}.md")
        usual = scale_parameters(sent.chapter, sent.scale, declared, root or ROOT)
    except RequestError as error:
        return [f"nothing is known of its parameters: {error}"]
    untold = [name for name in altered(usual, sent.parameters) if name not in (sent.altered or ())]
    return [f"its {name} is not that of scale {sent.scale}, and it does not say so" for name in untold]


def _refuse_other_units(measurement: Measurement, tables: dict[str, bytes], seeds: tuple[int, ...]) -> None:
    """Refuse what the units are said to add, if the results per unit say something else."""
    anew = units_of(measurement, tables, seeds)
    for metric, spread in measurement.units.items():
        there = np.array(spread.covariance)
        again = np.array(anew[metric].covariance)
        if spread.count != anew[metric].count or not np.allclose(there, again, rtol=1e-3, atol=1e-12):
            raise ValueError(f"{measurement.claim}: {metric} per {spread.unit} is not what the table gives")
