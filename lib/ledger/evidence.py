"""What a run leaves behind, as data: the chapter's record, and the evidence made of it.

``claims.json`` is what the chapter itself knows at its end (`lib.chapter.record` writes it); the runner adds
the parameters and saves ``evidence.json`` as the very last thing, whole or not at all. A run without that
file is not finished, whatever else lies in its folder.

Beside the verdicts stand the raw measurements, so that `ChapterRecord.judged_by` can judge a run again by
today's ledger without executing anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from lib.files import parse_json, syntax_digest, write_atomically
from lib.ledger.paper_numbers import PaperNumber
from lib.ledger.paper_numbers import Provenance as NumberProvenance
from lib.ledger.provenance import Provenance
from lib.ledger.rules import Floor, Range, Schema
from lib.ledger.schema import Arithmetic, Changed, Claim, Interpretation, Ledger, ScaleName, Setting
from lib.ledger.units import UnitSpread
from lib.ledger.verdicts import Effect, Summary, Verdict, VerdictName, judge, not_tested
from lib.listing import first_few

ChapterName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
ClaimId = Annotated[str, Field(pattern=r"^[A-Z][0-9]+[a-z]?$")]
Anchor = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
ParameterName = Annotated[str, Field(pattern=r"^\w+$")]
ArtifactName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
ArtifactFile = Annotated[str, Field(pattern=r"^(figures|tables)/[a-z0-9][a-z0-9_-]*(\.[a-z]+)+$")]


class Measurement(Schema):
    """What a cell handed over for one claim, before any rule: all that judging it again takes.

    `measured` is empty where the run does not test the claim, and `reason` says why. `units` is what the test
    units add to the error bars, by metric, where results per unit were handed over. `rule` is the identity of
    the rule that was in force when it was measured.
    """

    claim: ClaimId
    measured: dict[str, dict[str, tuple[FiniteFloat, ...]]] | dict[str, FiniteFloat] = Field(
        default_factory=dict
    )
    units: dict[str, UnitSpread] = Field(default_factory=dict)
    tested: bool
    reason: str = ""
    protocol: str = ""
    synthetic: bool | None = None
    anchor: Anchor
    rule: Digest

    def judged_by(
        self,
        ledger: Ledger,
        scale: str,
        settings: Mapping[str, Setting],
        altered: tuple[str, ...] | None = None,
    ) -> ClaimEvidence:
        """The claim's evidence by `ledger`, for these settings; ValueError where it does not fit.

        `altered` are the parameters that were not the scale's own; None if nothing tells.
        """
        claim = ledger[self.claim]
        if self.tested:
            asked = claim.entry(scale)  # of settings that a cell gave with its results nothing is kept
            if any(settings.get(name, values[0]) not in values for name, values in asked.when.items()):
                raise ValueError(f"{claim.id} needs {asked.conditions()}")
            verdict = judge(claim, own_part(claim, self.measured), scale, self.synthetic, self.units)
            verdict = _with_what_decided(_of_the_scale(verdict, claim, scale, altered))
        else:
            verdict = not_tested(claim, scale, self.reason)
        younger = self.tested and self.rule != rule_identity(claim, scale)
        protocol = self.protocol or claim.protocol
        one = ClaimEvidence.of(claim, verdict, protocol, self.anchor, rule_is_younger=younger)
        possible = {metric: ends for metric, ends in ledger.possible.items() if metric in verdict.measured}
        return one.model_copy(update={"possible": possible, "scope": scope_of(verdict.scope, settings)})


def _with_what_decided(verdict: Verdict) -> Verdict:
    """The verdict with an effect of the worst outcome as its interval.

    `judge` takes the one with the lowest t statistic: not the same where seeds are copies of each other, or
    intervals have different degrees of freedom.
    """
    outcomes = [effect.outcome for effect in verdict.effects]
    worst = min(outcomes, key=("contradicted", "inconclusive", "holds").index, default=None)
    if verdict.interval is None or verdict.interval.outcome == worst:
        return verdict
    return verdict.model_copy(update={"interval": verdict.effects[outcomes.index(worst)]})


def _of_the_scale(verdict: Verdict, claim: Claim, scale: str, altered: tuple[str, ...] | None) -> Verdict:
    """Nothing is reproduced with other parameters than the scale's own, but for what the claim names."""
    if verdict.verdict != "reproduced" or altered == ():
        return verdict
    if altered is None:
        why = "nothing tells whether the parameters were the scale's own"
    elif others := [name for name in altered if name not in claim.entry(scale).when]:
        why = f"with other parameters than the scale's own: {first_few(others)}"
    else:
        return verdict
    reason = f"{verdict.reason.removesuffix('.')}, but {why}."
    return verdict.model_copy(update={"verdict": "holds", "reason": reason})


def scope_of(scope: str, settings: Mapping[str, Setting]) -> str:
    """A ledger's scope for a run with these settings, each in the place of its name in braces.

    ``{pictures}`` is ``this run's pictures`` where the run does not tell what they are.
    """
    return re.sub(r"\{(\w+)\}", lambda name: str(settings.get(name[1], f"this run's {name[1]}")), scope)


#: Modules whose code decides a verdict; what reads a ledger is none of them.
JUDGING = ("rules.py", "paper_numbers.py", "intervals.py", "units.py", "floors.py", "verdicts.py")


def judging_code(sources: Iterable[str]) -> str:
    """Identity of the code that judges, the sources of `JUDGING`, without its sentences."""
    return "".join(syntax_digest(source, sentences=False) for source in sources)


@cache
def _judging() -> str:
    here = Path(__file__).parent
    return judging_code((here / name).read_text(encoding="utf-8") for name in JUDGING)


def rule_identity(claim: Claim, scale: str, judging: str = "") -> str:
    """Identity of all that decides a claim's verdict from its measurements: rule, numbers, and the code.

    The code is today's unless `judging`, from `judging_code`, is that of another day.
    """
    number = {"value", "between", "arm", "metric", "label", "decimals", "tolerance", "provenance"}
    decisive = {"kind": True, "rule": True, "unit": True, "interpretations": True, "computed_from": True}
    decisive |= {"paper": {"__all__": number}, "floor": True}
    content = claim.model_dump_json(include=decisive)
    content += f" {claim.entry(scale).reproduces} {judging or _judging()}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def own_part(claim: Claim, measured: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a whole table of results, what `claim` needs."""
    if isinstance(claim, Arithmetic):
        asked = {number.name for number in claim.paper}
        return {name: value for name, value in measured.items() if name in asked}
    needed = claim.arms(floor=True)
    if not all(isinstance(arms, Mapping) for arms in measured.values()):
        return measured
    return {
        metric: {arm: values for arm, values in by_arm.items() if arm in needed[metric]}
        for metric, by_arm in measured.items()
        if metric in needed
    }


class ClaimEvidence(Schema):
    """One claim of a chapter, what was measured, and what became of it.

    `provenance_of_paper_number` is the least certain one among the numbers that the claim was judged against;
    `anchor` is the label of the place in the chapter where the measurement is made. `rule_is_younger` says
    that the rule, or a number that it uses, was changed after the measurement; `unlearned` that the reference
    did not beat `floor`, so that a claim which was measured is not tested. `possible` has the lowest and
    highest value that a metric can take.
    """

    id: ClaimId
    statement: str
    source: str
    kind: Literal["arithmetic", "comparison", "bound", "measurement"]
    verdict: VerdictName
    reason: str
    measured: dict[str, dict[str, Summary]] | dict[str, FiniteFloat]
    interval: Effect | None
    effects: tuple[Effect, ...]
    paper: tuple[PaperNumber, ...]
    see: tuple[ClaimId, ...]
    provenance_of_paper_number: NumberProvenance | None
    protocol: str
    replicate: str
    unit: str = ""
    synthetic: bool
    scope: str
    command: str
    caveat: str
    own: bool = False
    changed: Changed | None = None
    floor: Floor | None = None
    unlearned: bool = False
    interpretations: tuple[Interpretation, ...]
    anchor: Anchor
    rule_is_younger: bool = False
    possible: dict[str, Range] = Field(default_factory=dict)

    @classmethod
    def of(
        cls, claim: Claim, verdict: Verdict, protocol: str, anchor: str, *, rule_is_younger: bool = False
    ) -> Self:
        """A claim of the ledger with its verdict."""
        shared = {name: getattr(claim, name) for name in ("statement", "source", "kind", "paper", "see")}
        more = ("replicate", "unit", "caveat", "changed", "floor", "interpretations")
        shared |= {name: getattr(claim, name) for name in more}
        shared["own"] = claim.own
        return cls(
            **shared,
            **{name: getattr(verdict, name) for name in Verdict.model_fields},
            provenance_of_paper_number=claim.provenance,
            protocol=protocol,
            anchor=anchor,
            rule_is_younger=rule_is_younger,
        )


class DataUsed(Schema):
    """A data set as used: each file's SHA-256, the licence, and whether the data are made up."""

    name: str
    licence: str
    synthetic: bool
    files: dict[str, Digest] = Field(default_factory=dict)


class Artifact(Schema):
    """A figure or a table, and its files, relative to the run's folder.

    `numbers` names the arithmetic claims whose numbers a table holds: it is made again with their verdicts.
    """

    name: ArtifactName
    kind: Literal["figure", "table"]
    files: tuple[ArtifactFile, ...]
    numbers: tuple[ClaimId, ...] = ()


class ChapterRecord(Schema):
    """``claims.json``: all that the chapter itself knows at its end.

    `settings` are the data and sizes that the ledger's scopes and conditions speak of, as used; `altered` the
    parameters whose values were not the scale's own, None if nothing tells.
    """

    chapter: ChapterName
    scale: ScaleName
    settings: dict[str, Setting] = Field(default_factory=dict)
    altered: tuple[ParameterName, ...] | None = None
    claims: tuple[ClaimEvidence, ...]
    measurements: tuple[Measurement, ...]
    data: tuple[DataUsed, ...]
    artifacts: tuple[Artifact, ...]
    provenance: Provenance

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file of this schema; ValueError in one line if it is anything else."""
        content = Path(path).read_bytes()
        try:
            found = cls.model_validate_json(content)
            parse_json(content)  # refuses a key given twice
            return found
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise ValueError(f"{Path(path).name}: {field or 'the file'}: {first['msg']}") from None
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error}") from None

    def judged_by(self, ledger: Ledger) -> Self:
        """The same measurements under today's ledger: claims, rules and words may have changed since.

        Raises
        ------
        ValueError
            They do not fit: a rule asks for what was not measured, or a claim was added.
        """
        asked, there = ([c.id for c in ledger.claims], [m.claim for m in self.measurements])
        if missing := [claim for claim in asked if claim not in there]:
            raise ValueError(f"{', '.join(missing)}: not in this run's measurements")
        by_claim = {measurement.claim: measurement for measurement in self.measurements}
        of_the_run = (ledger, self.scale, self.settings, self.altered)
        claims = tuple(by_claim[claim].judged_by(*of_the_run) for claim in asked)
        return self.model_copy(update={"claims": claims})

    def save(self, path: Path | str) -> None:
        """Write, whole or not at all."""
        write_atomically(path, self.model_dump_json(indent=2) + "\n")


class Evidence(ChapterRecord):
    """``evidence.json``: a whole run of one chapter, and the parameters exactly as it used them."""

    model_config = ConfigDict(str_strip_whitespace=False)

    parameters: dict[str, JsonValue]

    @classmethod
    def of_run(
        cls, run_dir: Path | str, parameters: Mapping[str, Any], sections: Mapping[str, float] | None = None
    ) -> Self:
        """Evidence from the ``claims.json`` of `run_dir`, the parameters and the sections' wall seconds.

        ValueError when there is no ``claims.json``, or an artifact that it names is not there.
        """
        path = Path(run_dir) / "claims.json"
        if not path.is_file():
            raise ValueError("no claims.json in the run's folder: the chapter did not close its record")
        record = ChapterRecord.load(path)
        for artifact in record.artifacts:
            if missing := [name for name in artifact.files if not (Path(run_dir) / name).is_file()]:
                raise ValueError(f"{artifact.kind} {artifact.name!r}: {missing[0]} is not there")
        fields = {name: getattr(record, name) for name in ChapterRecord.model_fields}
        if sections is not None:
            fields["provenance"] = record.provenance.model_copy(update={"sections": dict(sections)})
        return cls(**fields, parameters=dict(parameters))


def evidence_schema() -> dict[str, Any]:
    """JSON schema of ``evidence.json``, as published in the book."""
    return Evidence.model_json_schema(mode="serialization")
