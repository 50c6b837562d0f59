"""Many runs: what a batch asks for, what each run needs, and what became of them (used by the ``Snakefile``).

A run's folder is named by what decides its measurements (`lib.runs.fingerprint`). So a batch never asks
whether something is out of date, only whether it exists: no dates, and nothing to do when nothing has
changed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.files import ROOT, write_atomically
from lib.ledger.archive import load_plan, plan_file
from lib.ledger.evidence import Evidence
from lib.ledger.provenance import git, git_state
from lib.ledger.schema import load_ledger
from lib.listing import one_line
from lib.runs.parameters import SCALES, RequestError, read_parameters, suggest
from lib.runs.request import chapters, read_chapter, resolve_all
from lib.yaml_reader import parse_yaml, read_yaml

COLUMNS = ("chapter", "scale", "run", "parameters", "claim", "verdict", "mean", "low", "high")


class Resources(BaseModel):
    """What one run needs, as a chapter's front matter says it for each scale (``companion: resources``).

    Measured: a cluster kills what takes more. Defaults are for a chapter that says nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: int = Field(default=1, ge=1)
    memory_mb: int = Field(default=2500, ge=1)
    minutes: int = Field(default=60, ge=1)
    gpus: int = Field(default=0, ge=0)

    @classmethod
    def of(cls, notebook: NotebookNode, scale: str) -> Resources:
        """From a chapter's front matter.

        Raises
        ------
        RequestError
            In one line: an unknown field, or a value out of range.
        """
        companion = notebook.metadata.get("companion", {})
        try:
            return cls.model_validate((companion.get("resources") or {}).get(scale) or {})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, (scale, *first["loc"])))
            name = companion.get("id", "?")
            raise RequestError(f"notebooks/{name}.md: resources.{where}: {first['msg']}") from None


@dataclass(frozen=True)
class Job:
    """One run of a batch.

    Attributes
    ----------
    chapter, scale : str
    overrides : mapping
        Values of single parameters.
    evidence : str
        The file that it makes, relative to the repository.
    resources : Resources
    refused : str
        Why it cannot run, in a line; empty if it can.
    """

    chapter: str
    scale: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    evidence: str = ""
    resources: Resources = field(default_factory=Resources)
    refused: str = ""

    @property
    def arguments(self) -> str:
        """Arguments of ``python -m lib.run``, for a shell."""
        pairs = [
            ("-p", name, value if isinstance(value, str) else _as_yaml(value))
            for name, value in self.overrides.items()
        ]
        threads = ("--threads", str(self.resources.threads))
        return shlex.join([self.chapter, "--scale", self.scale, *itertools.chain(*pairs), *threads])


def _as_yaml(value: Any) -> str:
    """A value in one line of YAML: JSON, but 🙂 as it is, of whose two escapes YAML makes two."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def jobs_of(
    chapter: str, scale: str, points: Sequence[Mapping[str, Any]], root: Path = ROOT, *, fetch: bool = True
) -> list[Job]:
    """A run for each of several overrides; `fetch` and RequestError as `lib.runs.request.resolve`."""
    made = []
    for overrides, request in zip(
        points, resolve_all(chapter, scale, points, root, fetch=fetch), strict=True
    ):
        evidence = (request.folder / "evidence.json").relative_to(request.root).as_posix()
        resources = Resources.of(request.notebook, scale)
        made.append(Job(chapter, scale, dict(overrides), evidence, resources))
    return made


def every_chapter(scale: str, root: Path = ROOT, *, fetch: bool = True) -> list[Job]:
    """A run of every chapter; one that cannot run fails as a job of its own, beside the others.

    Raises
    ------
    RequestError
        There is no such scale.
    """
    if scale not in SCALES:
        raise RequestError(f"unknown scale {scale!r}{suggest(str(scale), SCALES)}")
    jobs = []
    for chapter in chapters(root):
        try:
            jobs += jobs_of(chapter, scale, [{}], root, fetch=fetch)
        except RequestError as error:
            evidence = f"runs/{scale}/{chapter}/refused/evidence.json"
            jobs.append(Job(chapter, scale, evidence=evidence, refused=f"{chapter}: {error}"))
    return jobs


# --- grids -------------------------------------------------------------------------------------------------


def as_written(pairs: Sequence[str]) -> dict[str, str]:
    """What a command line gives behind ``--config``, as text: each parameter knows what it reads.

    Snakemake's own reading would make ``a`` of ``a #b`` and 10 of ``010``, and keep the last of two.

    Parameters
    ----------
    pairs : sequence of str
        ``name=value`` each.

    Raises
    ------
    RequestError
        A name is given twice.
    """
    written: dict[str, str] = {}
    for name, _, text in (pair.partition("=") for pair in pairs):
        if name in written:
            raise RequestError(f"{name} is given twice")
        written[name] = text
    return written


def specifications(config: Mapping[str, Any], root: Path = ROOT) -> list[Mapping[str, Any]]:
    """What a sweep asks for: one or more of ``{chapter, scale, grid}``.

    Parameters
    ----------
    config : mapping
        ``sweep``: the name of a YAML file with one or a list of them; or ``planned``: a chapter whose plan
        has them; or ``chapter``, ``scale`` and the grid's parameters side by side, as a command line gives
        them. None of these: no sweep.

    Raises
    ------
    RequestError
        Two of these, or something beside them that nothing reads; the file cannot be read, or holds something
        else; as `planned_grids`.
    """
    ways = [way for way in ("chapter", "sweep", "planned") if way in config]
    if len(ways) > 1:
        raise RequestError(f"{ways[0]} and {ways[1]} exclude each other")
    known = ("scale", *(ways or ("chapter", "sweep", "planned")))
    if "chapter" not in config and (unknown := sorted(set(config) - set(known))):
        raise RequestError(f"unknown key {unknown[0]!r}{suggest(unknown[0], known)}")
    if not ways:
        return []
    if "planned" in config:
        return planned_grids(config["planned"], str(config.get("scale", "long")), root)
    if "chapter" in config:
        if not config["chapter"]:
            raise RequestError(f"which chapter? ({', '.join(chapters(root))})")
        grid = {name: _values(name, value) for name, value in config.items() if name not in known}
        asked = {"chapter": config["chapter"], "scale": config.get("scale", "book"), "grid": grid}
        _check_specification(asked, "--config")
        return [asked]
    if "scale" in config:
        raise RequestError("a file says its scales itself: leave scale out")
    name = str(config["sweep"])
    try:
        found = read_yaml(root / name, name)
    except OSError as error:
        raise RequestError(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise RequestError(str(error)) from None
    found = found if isinstance(found, list) else [found]
    if not found:
        raise RequestError(f"{name} asks for no run")
    for one in found:
        _check_specification(one, name)
    return found


def _values(name: str, value: Any) -> Any:
    """A list where one was written, in brackets; a single value stays the text that it is."""
    return parse_yaml(value, name) if isinstance(value, str) and value.lstrip().startswith("[") else value


def planned_grids(chapter: str, scale: str, root: Path = ROOT) -> list[Mapping[str, Any]]:
    """What the plan of a chapter asks for at a scale: a run for each seed, of the book's scale one for all.

    Raises
    ------
    RequestError
        There is no such chapter; nothing is planned, or for claims that the ledger does not test at this
        scale; or runs made here and now could not be archived, because the plan, or anything else, is not
        committed.
    """
    if chapter not in chapters(root):
        raise RequestError(f"planned: unknown chapter {chapter!r}{suggest(str(chapter), chapters(root))}")
    try:
        planned = [one for one in load_plan(chapter, root) if one.scale == scale]
        claims = {claim.id: claim.entry(scale) for claim in load_ledger(chapter, root).claims}
    except ValueError as error:
        raise RequestError(str(error)) from None
    if not planned:
        raise RequestError(f"{plan_file(chapter)} plans no run at scale {scale}")
    grids = []
    for one in planned:
        for claim in one.claims:
            if claim not in claims or not claims[claim].tested:
                why = claims[claim].why if claim in claims else "no such claim"
                raise RequestError(f"{plan_file(chapter)}: {one.name!r} cannot decide {claim}: {why}")
        seeds = [list(one.seeds)] if scale == "book" else list(one.seeds)
        grid = {name: [value] for name, value in one.parameters.items()} | {"seeds": seeds}
        grids.append({"chapter": chapter, "scale": scale, "grid": grid})
    commit, dirty = git_state(root)
    if commit is None or dirty:
        raise RequestError(
            "planned runs start from a commit, or they could not be archived: "
            + ("this is no git checkout" if commit is None else "there are changes that are in no commit")
        )
    return grids


def _check_specification(one: Any, name: str) -> None:
    if not isinstance(one, Mapping) or not one.get("chapter"):
        raise RequestError(f"{name}: expected {{chapter, scale, grid}}, or a list of them; got {one!r}")
    for key in ("chapter", "scale"):
        if not isinstance(one.get(key) or "", str):
            raise RequestError(f"{name}: {key} must be a name, got {one[key]!r}")
    known = ("chapter", "scale", "grid")
    if unknown := sorted(map(str, set(one) - set(known))):
        raise RequestError(f"{name}: unknown key {unknown[0]!r}{suggest(unknown[0], known)}")
    if not isinstance(one.get("grid") or {}, Mapping):
        raise RequestError(f"{name}: grid must map parameters to values, got {one['grid']!r}")


def points(specification: Mapping[str, Any], root: Path = ROOT) -> list[dict[str, Any]]:
    """The points of one grid, each as overrides of parameters.

    Each listed parameter takes each of its values; a parameter that is a list takes one element a point,
    unless the values are lists themselves. Values given as text are read as YAML, as the command line does.
    """
    chapter = specification["chapter"]
    declared = read_parameters(read_chapter(chapter, root), f"notebooks/{chapter}.md")
    grid = {}
    for name, values in (specification.get("grid") or {}).items():
        annotation = declared[name].annotation if name in declared else ""
        values = values if isinstance(values, list) else [values]
        if not values:
            raise RequestError(f"{chapter}: no value of {name} to run")
        if annotation != "str":
            values = [parse_yaml(value, name) if isinstance(value, str) else value for value in values]
        if annotation.startswith("list"):
            values = [value if isinstance(value, list) else [value] for value in values]
        grid[name] = values
    return [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]


def sweep(config: Mapping[str, Any], root: Path = ROOT, *, fetch: bool = True) -> list[Job]:
    """The runs of a sweep, in the order of its grids; RequestError as `specifications` and `jobs_of`."""
    jobs = []
    for one in specifications(config, root):
        jobs += jobs_of(one["chapter"], one.get("scale") or "book", points(one, root), root, fetch=fetch)
    return jobs


def table_name(jobs: Sequence[Job], root: Path = ROOT) -> str:
    """File of a sweep's table: the same runs under the same ledgers and rules are the same table."""
    asked = "\n".join(f"{job.evidence} {job.arguments}" for job in jobs)
    judges = [root / f"book/claims/{chapter}.yml" for chapter in sorted({job.chapter for job in jobs})]
    judges += sorted((root / "lib/ledger").glob("*.py"))
    asked += "".join(path.read_text(encoding="utf-8") for path in judges if path.is_file())
    return f"runs/sweeps/{hashlib.sha256(asked.encode()).hexdigest()[:12]}.csv"


def write_table(jobs: Sequence[Job], path: Path, root: Path = ROOT) -> None:
    """Verdicts of all runs of a sweep by today's ledger, a row per run and claim, as CSV.

    Raises
    ------
    RequestError
        The evidence of a run is not there, or does not fit its ledger.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for one in jobs:
        try:
            evidence = Evidence.load(root / one.evidence).judged_by(load_ledger(one.chapter, root))
        except (OSError, ValueError) as error:
            raise RequestError(
                f"{one.chapter}: {one_line(error)}; run: python -m lib.run {one.arguments} --force"
            ) from None
        start = (
            one.chapter,
            one.scale,
            Path(one.evidence).parent.name,
            json.dumps(one.overrides, ensure_ascii=False),
        )
        for claim in evidence.claims:
            effect = claim.interval
            ends = (effect.quantity_low, effect.quantity_high) if effect else ("", "")
            numbers = (effect.quantity, *ends) if effect else ("", "", "")
            rows.writerow((*start, claim.id, claim.verdict, *numbers))
    write_atomically(path, text.getvalue())


# --- pages, and what went wrong ----------------------------------------------------------------------------


SIMULATED_WITH = ("book/verdict_simulation.py", "lib/ledger/intervals.py", "lib/chapter/figures.py")


def simulation_folder(root: Path = ROOT) -> str:
    """Where the simulation for the page on verdicts lies: named by its script and what it simulates."""
    parts = [root / name for name in SIMULATED_WITH]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
    return f"_build/simulation/{digest[:12]}"


def pages_content(jobs: Sequence[Job], environment: Mapping[str, str], root: Path = ROOT) -> str:
    """Identity of all that the pages are made of; runs are named by what they measured.

    Days of commits, which the status page tells of ledgers and plans, are part of it.
    """
    names = ("_config.yml", "_toc.yml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "requirements.lock")
    names += ("pyproject.toml", ".git/config")  # the second names the repository that pages link to
    files = [root / name for name in names]
    for folder in ("book", "lib", "notebooks"):
        files += (path for path in (root / folder).rglob("*") if path.suffix not in (".pyc", ".ipynb"))
    whole = hashlib.sha256("\n".join(job.evidence for job in jobs).encode())
    for name in ("BOOK_REPOSITORY_URL", "GITHUB_REPOSITORY"):
        whole.update(f"{name}={environment.get(name, '')}".encode())
    for path in sorted(path for path in files if path.is_file()):
        whole.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    whole.update((git(root, "log", "-1", "--format=%H", "--", "book/claims", "book/archive") or "").encode())
    return whole.hexdigest()[:16]


def failures(jobs: Iterable[Job], since: float, root: Path = ROOT) -> list[str]:
    """A line for each run that a batch asked for and that is not there.

    Parameters
    ----------
    jobs : iterable of Job
    since : float
        When the batch started, in seconds since 1970: what failed before it is not its own.
    root : Path
    """
    lines = []
    for one in jobs:
        evidence = root / one.evidence
        said = evidence.with_name("failed.txt")
        if one.refused:
            lines.append(one.refused)
        elif said.is_file() and said.stat().st_mtime >= since:
            lines.append(said.read_text(encoding="utf-8").strip())
        elif not evidence.is_file():
            lines.append(f"{one.chapter}: not complete: python -m lib.run {one.arguments}")
    return lines
