"""The archive: runs that were announced, and the evidence that came of them, judged again by today's ledger.

``book/archive/<chapter>/plan.yml`` says which runs will be made, before they are: `load_plan`. A folder
``<scale>-<date>`` beside it holds what came of one of them: ``evidence.json`` and its tables, written by
`lib.runs.archive`. `archived` reads all of a chapter and forms every verdict anew from the raw measurements,
so that one that was edited by hand cannot survive. `strongest` goes by scale, never by verdict. Here nothing
is executed, and nothing is known of a chapter's code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from lib.files import ROOT
from lib.ledger.evidence import ClaimEvidence, Digest, Evidence, Measurement
from lib.ledger.provenance import Commit
from lib.ledger.rules import Schema, Text
from lib.ledger.schema import SCALES, Ledger, ScaleName, load_ledger
from lib.ledger.verdicts import not_tested
from lib.yaml_reader import parse_yaml

if TYPE_CHECKING:
    import pandas as pd

#: Parameters that a plan has other fields for, or that say only where things lie.
RESERVED = ("seeds", "scale", "data_dir", "run_dir")


# --- what is planned ---------------------------------------------------------------------------------------


class PlannedRun(Schema):
    """A run that is announced before it is made.

    `parameters` are overrides of the scale's own; `stopping` says when it ends; `claims` are those it is to
    decide; `written` is the day. Its seeds may run as one or as many: they are pooled.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    scale: ScaleName
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    stopping: Text
    claims: tuple[Text, ...] = Field(min_length=1)
    written: date

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise ValueError(f"seed {twice[0]} is named twice")
        return seeds

    @field_validator("parameters", mode="wrap")
    @classmethod
    def _others(
        cls, parameters: dict[str, JsonValue], validated: ValidatorFunctionWrapHandler
    ) -> dict[str, JsonValue]:
        validated(parameters)  # text in them is kept as it is, with the spaces at its ends
        if named := [name for name in RESERVED if name in parameters]:
            raise ValueError(f"{named[0]} is no parameter that a plan overrides")
        return parameters


def plan_file(chapter: str) -> str:
    """Where the plan of a chapter lies, relative to the repository."""
    return f"book/archive/{chapter}/plan.yml"


def read_plan(text: str | bytes, where: str) -> tuple[PlannedRun, ...]:
    """A plan from the text of its file; ValueError in one line that begins with `where`."""
    try:
        planned = TypeAdapter(tuple[PlannedRun, ...]).validate_python(parse_yaml(text, where))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{where}: {field}: {first['msg'].removeprefix('Value error, ')}") from None
    names = [one.name for one in planned]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{where}: {twice[0]!r} is planned twice")
    return planned


def load_plan(chapter: str, root: Path | str | None = None) -> tuple[PlannedRun, ...]:
    """The planned runs of a chapter, in the file's order; none without a file.

    Raises
    ------
    ValueError
        In one line: not YAML, or which field breaks the schema.
    """
    path = Path(root or ROOT) / plan_file(chapter)
    return read_plan(path.read_bytes(), plan_file(chapter)) if path.is_file() else ()


# --- what was archived -------------------------------------------------------------------------------------


class RunMade(Schema):
    """One of the runs that a piece of evidence is pooled from."""

    seeds: tuple[int, ...]
    fingerprint: Digest
    commit: Commit
    processor: str
    accelerator: str | None
    threads: int = Field(ge=1)
    started: AwareDatetime
    ended: AwareDatetime
    wall_seconds: FiniteFloat = Field(ge=0)
    peak_memory_bytes: int = Field(ge=0)


class ArchivedEvidence(Evidence):
    """``evidence.json`` of the archive: as of a run, and what it was pooled from.

    `plan` names the planned run and `planned` its seeds, of which the first may be there so far; `method` is
    what it was measured with, part by part; `runs` are in the order of their first seeds. Without them
    it is the evidence of a single run that nobody archived.
    """

    plan: str = ""
    planned: tuple[int, ...] = ()
    method: dict[str, str] = Field(default_factory=dict)
    runs: tuple[RunMade, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Evidence of one planned run, or of any complete run, under today's ledger.

    Attributes
    ----------
    evidence : ArchivedEvidence
        Every claim of today's ledger with the verdict that today's rules give the raw measurements.
    folder : str
        Where it lies, relative to the repository; empty for evidence that lies elsewhere.
    stale : mapping of str to str
        Claims that today's ledger cannot judge from what was measured then, and why.
    changed : tuple of str
        Parts of the method that are others today (`lib.runs.archive` can tell); empty if none is, or if
        nobody looked.
    """

    evidence: ArchivedEvidence
    folder: str = ""
    stale: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()

    @classmethod
    def of(cls, evidence: ArchivedEvidence, ledger: Ledger, folder: str = "") -> Piece:
        """Judge evidence by today's ledger, claim by claim: one that no longer fits leaves the others."""
        stale: dict[str, str] = {}
        there = {measurement.claim: measurement for measurement in evidence.measurements}
        claims = tuple(
            _judged(claim.id, there.get(claim.id), ledger, evidence, stale) for claim in ledger.claims
        )
        return cls(evidence.model_copy(update={"claims": claims}), folder, stale)

    @classmethod
    def of_run(cls, evidence: Evidence) -> Piece:
        """A run that lies nowhere in the archive, judged by today's ledger already."""
        return cls(ArchivedEvidence(**{name: getattr(evidence, name) for name in Evidence.model_fields}))

    @property
    def chapter(self) -> str:
        """Whose evidence it is."""
        return self.evidence.chapter

    @property
    def scale(self) -> str:
        """At which scale it was measured."""
        return self.evidence.scale

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, in the order of the measurements."""
        return tuple(self.evidence.parameters.get("seeds", ()))

    @property
    def missing(self) -> tuple[int, ...]:
        """Planned seeds that are still to run."""
        return tuple(seed for seed in self.evidence.planned if seed not in self.seeds)

    @property
    def progress(self) -> str:
        """``6 of 8 planned seeds so far``; empty if none is missing."""
        planned = len(self.evidence.planned)
        return f"{planned - len(self.missing)} of {planned} planned seeds so far" if self.missing else ""

    @property
    def ended(self) -> datetime:
        """When its last run ended."""
        return self.evidence.provenance.ended

    @property
    def commits(self) -> tuple[str, ...]:
        """The commits that its runs were made from."""
        made = [run.commit for run in self.evidence.runs] or [self.evidence.provenance.commit or ""]
        return tuple(dict.fromkeys(made))

    @property
    def machines(self) -> tuple[str, ...]:
        """Processors, with the accelerators beside them."""
        made = self.evidence.runs or (self.evidence.provenance,)
        names = [run.processor + (f", {run.accelerator}" if run.accelerator else "") for run in made]
        return tuple(dict.fromkeys(names))

    @property
    def core_hours(self) -> float:
        """Wall hours of all runs, times their threads."""
        made = self.evidence.runs or (self.evidence.provenance,)
        return sum(run.wall_seconds * run.threads for run in made) / 3600

    def begins(self, other: Piece) -> bool:
        """Whether it is the first seeds of the planned run that `other` has more of."""
        planned = (self.chapter, self.scale, self.evidence.plan)
        same = bool(self.evidence.plan) and planned == (other.chapter, other.scale, other.evidence.plan)
        return same and set(self.seeds) < set(other.seeds)

    def claim(self, claim_id: str) -> ClaimEvidence:
        """What today's rules say of a claim; ValueError for one that the ledger does not have."""
        for claim in self.evidence.claims:
            if claim.id == claim_id:
                return claim
        raise ValueError(f"{self.folder or self.chapter}: no claim {claim_id!r}")

    def tests(self, claim_id: str) -> bool:
        """Whether the claim was measured, and can be judged; also if the reference had not learned."""
        tested = [m.claim for m in self.evidence.measurements if m.tested]
        return claim_id in tested and claim_id not in self.stale


def _judged(
    claim_id: str,
    measurement: Measurement | None,
    ledger: Ledger,
    evidence: Evidence,
    stale: dict[str, str],
) -> ClaimEvidence:
    """One claim's evidence by today's ledger; why it cannot be judged goes into `stale`."""
    try:
        if measurement is None:
            raise ValueError("it is younger than the run")
        return measurement.judged_by(ledger, evidence.scale, evidence.settings, evidence.altered)
    except ValueError as error:
        stale[claim_id] = str(error)
    reason = f"Not judged by today's ledger: {stale[claim_id]}."
    claim = ledger[claim_id]
    anchor = f"{evidence.chapter}-claims"
    return ClaimEvidence.of(claim, not_tested(claim, evidence.scale, reason), claim.protocol, anchor)


def load_archived(path: Path, where: str) -> ArchivedEvidence:
    """Read ``evidence.json`` of an archive or of a run, and see that its tables are there.

    Raises
    ------
    ValueError
        In one line that begins with `where`: there is no such file, it does not fit the schema, its seeds are
        no whole numbers, or a table is missing.
    """
    if not path.is_file():
        raise ValueError(f"{where}: {path.name} is not there")
    try:
        evidence = ArchivedEvidence.load(path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    seeds = evidence.parameters.get("seeds", [])
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"{where}: seeds must be a list of whole numbers, got {seeds!r}")
    for artifact in evidence.artifacts:
        for name in artifact.files if artifact.kind == "table" else ():
            if not (path.parent / name).is_file():
                raise ValueError(f"{where}: table {artifact.name!r}: {name} is not there")
    return evidence


def archived(chapter: str, root: Path | str | None = None) -> tuple[Piece, ...]:
    """All archived evidence of a chapter under today's ledger, by scale and date.

    Raises
    ------
    ValueError
        In one line: a file does not fit the schema, a table is missing, or it is another chapter's.
    """
    root = Path(root or ROOT)
    pieces = []
    for path in sorted((root / "book" / "archive" / chapter).glob("[!.]*/evidence.json")):
        folder = path.parent.relative_to(root).as_posix()
        evidence = load_archived(path, folder)
        if evidence.chapter != chapter or not path.parent.name.startswith(f"{evidence.scale}-"):
            raise ValueError(f"{folder} holds {evidence.chapter} at scale {evidence.scale}")
        pieces.append(Piece.of(evidence, load_ledger(chapter, root), folder))
    return tuple(sorted(pieces, key=lambda piece: (SCALES.index(piece.scale), piece.ended)))


def strongest(claim_id: str, pieces: Iterable[Piece]) -> Piece | None:
    """The piece that speaks for a claim: of those that test it the largest scale, of one scale the latest.

    Verdicts have no part in it: paper goes before long before book, whatever they say.
    """
    return largest(piece for piece in pieces if piece.tests(claim_id))


def largest(pieces: Iterable[Piece]) -> Piece | None:
    """The piece of the largest scale; of one scale the latest, of one moment that with most seeds."""

    def rank(piece: Piece) -> tuple[int, datetime, int]:
        return SCALES.index(piece.scale), piece.ended, len(piece.seeds)

    return max(pieces, key=rank, default=None)


# --- the check of a machine --------------------------------------------------------------------------------


def same_setting(evidence: Evidence, pieces: Iterable[Piece]) -> Piece | None:
    """The latest piece with the chapter, scale and parameters of a run, and at least its seeds; or None."""
    able = [piece for piece in pieces if not _another(evidence, piece.evidence)]
    return max(able, key=lambda piece: piece.ended, default=None)


def repeats(book: Evidence, archive: Evidence) -> pd.DataFrame:
    """A run made again beside the archived one of the same parameters: does this machine repeat it?

    Parameters
    ----------
    book, archive : Evidence
        Of the same chapter and parameters; the seeds of `book` are among those of `archive`.

    Returns
    -------
    DataFrame
        A row per metric and arm that both measured: ``here`` and ``archived`` (means over replicates; over
        the seeds of `book` where replicates are seeds), their ``difference``, the ``spread`` (standard
        deviation of all archived replicates, NaN for one) and whether the difference lies ``within`` it, a
        rounding error included; None without a spread.

    Raises
    ------
    ValueError
        Another chapter, a parameter that differs, or a seed that was not archived.
    """
    import numpy as np
    import pandas as pd

    if difference := _another(book, archive):
        raise ValueError(f"not the same setting: {difference}")
    theirs = {measurement.claim: measurement.measured for measurement in archive.measurements}
    kept, seeds = archive.parameters["seeds"], book.parameters["seeds"]
    rows = {}
    for measurement in book.measurements:
        for metric, arms in measurement.measured.items():
            for arm, values in arms.items() if isinstance(arms, Mapping) else ():
                then = theirs.get(measurement.claim, {}).get(metric, {}).get(arm, ())
                if then:
                    rows.setdefault((metric, arm, values, then))
    table = []
    for metric, arm, values, then in rows:
        a_seed_each = (len(values), len(then)) == (len(seeds), len(kept))
        same = [then[kept.index(seed)] for seed in seeds] if a_seed_each else then
        here, archived_mean = float(np.mean(values)), float(np.mean(same))
        spread = float(np.std(then, ddof=1)) if len(then) > 1 else np.nan
        near = abs(here - archived_mean) <= spread + 1e-9 * max(abs(here), abs(archived_mean))
        within = near if len(then) > 1 else None
        table.append((metric, arm, here, archived_mean, here - archived_mean, spread, within))
    columns = ["metric", "arm", "here", "archived", "difference", "spread", "within"]
    return pd.DataFrame(table, columns=columns)


def _another(book: Evidence, archive: Evidence) -> str:
    """What differs between the settings of two runs; empty if nothing but that `archive` has more seeds."""
    one, other = (
        {"chapter": evidence.chapter, "scale": evidence.scale, **evidence.parameters}
        for evidence in (book, archive)
    )
    if set(one["seeds"]) <= set(other["seeds"]):
        one["seeds"] = other["seeds"]
    return first_difference(one, other)


def first_difference(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    """``steps is 10, not 20``: the first name whose values differ; empty if none does."""
    for name in dict.fromkeys([*one, *other]):
        mine, theirs = one.get(name, "absent"), other.get(name, "absent")
        if mine != theirs:
            return f"{name} is {mine!r}, not {theirs!r}"
    return ""
