"""The archive, where it touches runs and git: what may be kept, and whether it is still today's method.

`archive` puts complete runs of one planned experiment together (`lib.ledger.pooling`) and keeps them as
``book/archive/<chapter>/<scale>-<date>/``, whole or not at all. It refuses what could not be defended: code
that no commit has, a commit that this history does not have, a plan that was written afterwards, a seed more
or less than was planned. `pieces` reads a chapter's archive and says what has changed since.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jupytext

from lib.files import ROOT
from lib.ledger.archive import (
    ArchivedEvidence,
    Piece,
    PlannedRun,
    archived,
    first_difference,
    load_archived,
    load_plan,
    plan_file,
    read_plan,
)
from lib.ledger.evidence import JUDGING, Evidence, judging_code, rule_identity
from lib.ledger.pooling import CompleteRun, pool
from lib.ledger.provenance import git
from lib.ledger.schema import load_ledger, read_ledger
from lib.listing import one_line, plural
from lib.runs.parameters import PLACES, RequestError, override, read_parameters
from lib.runs.private_paths import first_named, home
from lib.runs.request import Request, resolve
from lib.runs.runner import held, shown
from lib.yaml_reader import parse_yaml

#: Bytes of a folder of the archive: it lies in git for good.
LARGEST = 20_000_000


# --- reading -----------------------------------------------------------------------------------------------


def pieces(
    chapter: str, root: Path | None = None, resolve: Callable[..., Request] = resolve
) -> tuple[Piece, ...]:
    """All archived evidence of a chapter, judged by today's ledger and marked where the method has changed.

    Raises
    ------
    ValueError
        As `lib.ledger.archive.archived`.
    """
    root = (root or ROOT).resolve()
    found = archived(chapter, root)
    return tuple(replace(piece, changed=method_changes(piece.evidence, root, resolve)) for piece in found)


def method_changes(
    evidence: ArchivedEvidence, root: Path | None = None, resolve: Callable[..., Request] = resolve
) -> tuple[str, ...]:
    """What a run with the same parameters would measure with that is another than it was then.

    Returns
    -------
    tuple of str
        Names of modules, cells, packages and data; or why the same run cannot be asked for any more. Data
        that are not here do not count.
    """
    values = {name: value for name, value in evidence.parameters.items() if name not in ("scale", *PLACES)}
    try:
        today = resolve(evidence.chapter, evidence.scale, values, root=root).method
    except RequestError as error:
        return (str(error),)
    names = dict.fromkeys([*evidence.method, *today])
    return tuple(
        name for name in names if today.get(name, "") not in (evidence.method.get(name, ""), "absent")
    )


def complete_run(folder: Path) -> CompleteRun:
    """A run that can be kept.

    Raises
    ------
    RequestError
        In one line: it is not complete, does not fit the schema, or was not made from a clean commit.
    """
    name = shown(folder)
    for file in ("evidence.json", "notebook.ipynb", "parameters.json"):
        if not (folder / file).is_file():
            raise RequestError(f"{name} is no complete run: {file} is not there")
    there = held(folder)
    try:
        evidence = Evidence.load(folder / "evidence.json")
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from None
    if "method" not in there:
        raise RequestError(f"{name} does not say what it measured with: run it again")
    for key in ("chapter", "scale", "parameters"):
        if getattr(evidence, key) != there.get(key):
            raise RequestError(f"{name}: {key} of evidence.json is not that of parameters.json")
    for artifact in evidence.artifacts:
        for file in artifact.files:
            if not (folder / file).is_file():
                raise RequestError(f"{name}: {artifact.kind} {artifact.name!r}: {file} is not there")
    try:
        where = first_named(folder, [ROOT, folder.resolve(), *home()])
    except (OSError, EOFError, ValueError, zlib.error) as error:  # a table or the notebook is damaged
        raise RequestError(f"{name} cannot be read whole: {one_line(error)}") from None
    if where:
        raise RequestError(f"{name}: {where}, a folder of this machine")
    if evidence.provenance.commit is None:
        raise RequestError(f"{name} was not made from a git checkout")
    if evidence.provenance.dirty:
        raise RequestError(f"{name} was made with changes that are in no commit")
    return CompleteRun.of(folder, name, evidence, there)


def archived_runs(folder: Path, root: Path) -> CompleteRun:
    """The first seeds of a plan, as they lie in the archive; RequestError unless a commit has them so."""
    name = folder.relative_to(root).as_posix()
    if git(root, "ls-files", "--error-unmatch", f"{name}/evidence.json") is None:
        raise RequestError(f"{name} is in no commit")
    if git(root, "status", "--porcelain", "--untracked-files=normal", "--ignored", "--", name):
        raise RequestError(f"{name} is not what the last commit has there")
    evidence = load_archived(folder / "evidence.json", name)
    return CompleteRun(folder, name, evidence, evidence.method, evidence.runs)


# --- git and the plan --------------------------------------------------------------------------------------


def _at(commit: str, path: str, root: Path) -> str:
    """A file as a commit has it; RequestError if it has none."""
    text = git(root, "show", f"{commit}:{path}")
    if text is None:
        raise RequestError(f"commit {commit[:10]} has no {path}")
    return text


def _planned(run: CompleteRun, one: PlannedRun, root: Path) -> dict[str, Any]:
    """The parameters of a planned run, by the chapter and the scale's file of the commit it was made from."""
    chapter, commit = run.evidence.chapter, run.evidence.provenance.commit
    path = f"notebooks/{chapter}.md"
    declared = read_parameters(jupytext.reads(_at(commit, path, root), fmt="md:myst"), path)
    values = {name: parameter.default for name, parameter in declared.items()}
    if one.scale != "book":
        path = f"notebooks/scales/{one.scale}/{chapter}.yml"
        values |= override(declared, parse_yaml(_at(commit, path, root), path) or {}, path)
    values |= override(declared, one.parameters, plan_file(chapter))
    return {name: value for name, value in values.items() if name not in ("seeds", "scale", *PLACES)}


def _used(run: CompleteRun) -> dict[str, Any]:
    values = run.evidence.parameters
    return {name: value for name, value in values.items() if name not in ("seeds", "scale")}


def _difference(run: CompleteRun, one: PlannedRun, root: Path) -> str:
    """In what a run's parameters are not those of a planned run; empty if they are."""
    try:
        return first_difference(_used(run), _planned(run, one, root))
    except RequestError as error:  # planned later, with parameters that the run's commit does not know
        return str(error)


def plan_of(runs: Sequence[CompleteRun], root: Path, *, partial: bool = False) -> PlannedRun:
    """The planned run that these runs are: all of its seeds or, if `partial`, the first of them.

    Raises
    ------
    RequestError
        In one line: nothing of their scale and parameters is planned; a seed is missing or not planned; the
        plan is not in the commit that a run was made from, or that commit not in this history.
    """
    first = runs[0]
    chapter, scale = first.evidence.chapter, first.evidence.scale
    made = [(run.name, commit) for run in runs for commit in sorted({one.commit for one in run.made})]
    for name, commit in made:
        if git(root, "merge-base", "--is-ancestor", commit, "HEAD") is None:
            raise RequestError(f"{name} was made from commit {commit[:10]}, which is not in this history")
    planned = [one for one in load_plan(chapter, root) if one.scale == scale]
    if not planned:
        raise RequestError(f"{plan_file(chapter)} plans no run at scale {scale}")
    differences = {one.name: _difference(first, one, root) for one in planned}
    asked = [one for one in planned if not differences[one.name]]
    if not asked:
        name, difference = next(iter(differences.items()))
        raise RequestError(f"{first.name} is not the planned run {name!r}: {difference}")
    seeds = [seed for run in runs for seed in run.seeds]
    one = max(asked, key=lambda one: len(set(one.seeds) & set(seeds)))
    if unplanned := [seed for seed in seeds if seed not in one.seeds]:
        raise RequestError(f"seed {unplanned[0]} is not planned by {one.name!r}")
    missing = [seed for seed in one.seeds if seed not in seeds]
    if missing and not partial:
        raise RequestError(f"seed {missing[0]} of the planned run {one.name!r} is missing")
    if missing and missing != list(one.seeds[-len(missing) :]):
        raise RequestError(f"seed {missing[0]} comes before others in the plan: partial are the first seeds")
    for name, commit in made:
        if one not in read_plan(git(root, "show", f"{commit}:{plan_file(chapter)}") or "[]", commit[:10]):
            raise RequestError(
                f"{name} was made from commit {commit[:10]}, whose plan does not have {one.name!r} as it "
                "is now: a plan is committed before its run"
            )
    return one


def rules_then(commit: str, chapter: str, scale: str, root: Path) -> dict[str, str]:
    """Identities of the rules that were in force at a commit, by claim, as today's code names them.

    What a run noted itself is what the code of its day made of them, whose naming may have changed since.
    """
    where = f"book/claims/{chapter}.yml"
    try:
        ledger = read_ledger(_at(commit, where, root), f"{where} of {commit[:10]}")
        judging = judging_code(_at(commit, f"lib/ledger/{name}", root) for name in JUDGING)
    except (RequestError, ValueError):  # before there was one, or of a form that is not read any more
        return {}
    return {claim.id: rule_identity(claim, scale, judging) for claim in ledger.claims}


# --- writing -----------------------------------------------------------------------------------------------


def archive(
    folders: Sequence[Path],
    root: Path | None = None,
    say: Callable[[str], None] = print,
    *,
    partial: bool = False,
) -> Path:
    """Keep the complete runs of one planned experiment.

    Parameters
    ----------
    folders : sequence of Path
        Of runs; all seeds that were planned, in one run or in many. The folder in the archive that has the
        first of them may stand for these.
    root : Path, optional
        The repository.
    say : callable
        Prints one line.
    partial : bool
        Keep the first of the planned seeds, marked as such everywhere. All of them are kept beside it later
        and speak in its place.

    Returns
    -------
    Path
        The new folder, with ``evidence.json`` and ``tables/``; pictures, notebook and checkpoints stay away.

    Raises
    ------
    RequestError
        In one line: as `complete_run` and `plan_of`; the runs do not pool; it is archived already, or larger
        than an archive may be.
    """
    root = (root or ROOT).resolve()
    kept = root / "book" / "archive"
    try:
        runs = [
            archived_runs(folder, root) if folder.is_relative_to(kept) else complete_run(folder)
            for folder in dict.fromkeys(folder.resolve() for folder in folders)
        ]
        ledger = load_ledger(runs[0].evidence.chapter, root)
        one = plan_of(runs, root, partial=partial)
        evidence, tables = pool(runs, ledger, one.name)
        first = min(evidence.runs, key=lambda run: run.started)
        rules = rules_then(first.commit, evidence.chapter, evidence.scale, root)
        measurements = tuple(
            measurement.model_copy(update={"rule": rules.get(measurement.claim, measurement.rule)})
            for measurement in evidence.measurements
        )
        evidence = evidence.model_copy(update={"planned": one.seeds, "measurements": measurements})
        piece = Piece.of(evidence, ledger)
        earlier = archived(evidence.chapter, root)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(str(error)) from None
    for before in earlier:
        same = before.evidence.plan == one.name and before.scale == one.scale
        if same and not before.begins(piece):
            raise RequestError(f"the planned run {one.name!r} is archived already: {before.folder}")
    content = (piece.evidence.model_dump_json(indent=1) + "\n").encode()
    size = len(content) + sum(map(len, tables.values()))
    if size > LARGEST:
        raise RequestError(f"{size / 1e6:.0f} MB: an archive holds at most {LARGEST / 1e6:.0f} MB")
    name = f"{one.scale}-{piece.ended:%Y-%m-%d}"
    place = root / "book" / "archive" / evidence.chapter / name
    if place.exists():  # of another plan, or of fewer seeds, on the same day
        place = place.with_name(f"{name}-{one.name}-{len(piece.seeds)}")
    _write(place, tables | {"evidence.json": content})
    say(
        f"[{evidence.chapter}] {plural(len(piece.evidence.runs), 'run')}, {piece.core_hours:.2f} core-hours"
        f"{piece.progress and f', {piece.progress}'} · {shown(place)}"
    )
    for claim in piece.evidence.claims:
        say(f"[{evidence.chapter}]   {claim.id}: {claim.verdict}{' (planned)' * (claim.id in one.claims)}")
    return place


def _write(place: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder of files, whole or not at all, where there is none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".archive-", dir=place.parent))
    try:
        beside.chmod(0o755)
        for name, content in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_bytes(content)
        os.rename(beside, place)  # refuses a folder with something in it
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
