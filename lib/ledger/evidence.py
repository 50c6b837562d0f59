"""What a run leaves behind, as data: the chapter's record, and the evidence made of it.

``claims.json`` is what the chapter itself knows at its end (`lib.chapter.record` writes it); the runner adds
the parameters and saves ``evidence.json`` as the very last thing, whole or not at all. A run without that
file is not finished, whatever else lies in its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, FiniteFloat, JsonValue, ValidationError

from lib.files import write_atomically
from lib.ledger.provenance import Provenance
from lib.ledger.rules import Schema
from lib.ledger.schema import Claim, Interpretation, PaperNumber, ScaleName
from lib.ledger.schema import Provenance as NumberProvenance
from lib.ledger.verdicts import Effect, Summary, Verdict, VerdictName


class ClaimEvidence(Schema):
    """One claim of a chapter, what was measured, and what became of it.

    `provenance_of_paper_number` is the least certain one among the numbers that the claim was judged against;
    `anchor` is the label of the place in the chapter where the measurement is made.
    """

    id: str
    statement: str
    source: str
    kind: Literal["arithmetic", "comparison", "bound", "measurement"]
    verdict: VerdictName
    reason: str
    measured: dict[str, dict[str, Summary]] | dict[str, FiniteFloat]
    interval: Effect | None
    effects: tuple[Effect, ...]
    paper: tuple[PaperNumber, ...]
    see: tuple[str, ...]
    provenance_of_paper_number: NumberProvenance | None
    protocol: str
    replicate: str
    synthetic: bool
    scope: str
    command: str
    caveat: str
    interpretations: tuple[Interpretation, ...]
    anchor: str

    @classmethod
    def of(cls, claim: Claim, verdict: Verdict, protocol: str, anchor: str) -> Self:
        """A claim of the ledger with its verdict."""
        shared = {name: getattr(claim, name) for name in ("statement", "source", "kind", "paper", "see")}
        shared |= {name: getattr(claim, name) for name in ("replicate", "caveat", "interpretations")}
        return cls(
            **shared,
            **{name: getattr(verdict, name) for name in Verdict.model_fields},
            provenance_of_paper_number=claim.provenance,
            protocol=protocol,
            anchor=anchor,
        )


class DataUsed(Schema):
    """A data set as used: each file's SHA-256, the licence, and whether the data are made up."""

    name: str
    licence: str
    synthetic: bool
    files: dict[str, str] = Field(default_factory=dict)


class Artifact(Schema):
    """A figure or a table, and its files, relative to the run's folder."""

    name: str
    kind: Literal["figure", "table"]
    files: tuple[str, ...]


class ChapterRecord(Schema):
    """``claims.json``: all that the chapter itself knows at its end."""

    chapter: str
    scale: ScaleName
    claims: tuple[ClaimEvidence, ...]
    data: tuple[DataUsed, ...]
    artifacts: tuple[Artifact, ...]
    provenance: Provenance

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file of this schema; ValueError in one line if it is anything else."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise ValueError(f"{Path(path).name}: {field or 'the file'}: {first['msg']}") from None

    def save(self, path: Path | str) -> None:
        """Write, whole or not at all."""
        write_atomically(path, self.model_dump_json(indent=2) + "\n")


class Evidence(ChapterRecord):
    """``evidence.json``: a whole run of one chapter, and the parameters that it used."""

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
