"""What the status page says of the archive: every run that was announced, and every one that was kept.

Read from the plans, the archived evidence (judged by today's ledger) and git's dates; whatever a run showed,
it stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from book.claim_tables import plain
from lib.ledger.archive import Piece, PlannedRun, load_plan, repeats, same_setting
from lib.ledger.evidence import Evidence
from lib.ledger.provenance import git, is_checkout
from lib.listing import first_few, plural
from lib.runs.archive import pieces
from lib.runs.request import Request


def load(
    chapters: Sequence[str], root: Path, resolve: Callable[..., Request]
) -> dict[str, tuple[Piece, ...]]:
    """The archived evidence of each chapter, judged by today's ledger; ValueError, a line a chapter."""
    found, problems = {}, []
    for chapter in chapters:
        try:
            load_plan(chapter, root)  # refused here, and not in the middle of a page
            found[chapter] = pieces(chapter, root, resolve)
        except ValueError as error:
            problems.append(f"notebooks/{chapter}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return found


def committed(root: Path, path: str, commit: str = "HEAD") -> str:
    """When a file was last committed, as `commit` has it: ``2026-11-26 19:20`` in UTC; empty where unknown.

    A shallow clone has one commit, which would be the date of everything.
    """
    if not is_checkout(root) or git(root, "rev-parse", "--is-shallow-repository") != "false\n":
        return ""
    form = "--format=%cd", "--date=format-local:%Y-%m-%d %H:%M"
    return (git(root, "log", "-1", *form, commit, "--", path) or "").strip()


def status(
    archive: Mapping[str, Sequence[Piece]], root: Path, evidence: Mapping[str, Evidence] | None = None
) -> str:
    """A section per chapter that has announced or kept a run.

    Parameters
    ----------
    archive : mapping
        By chapter, from `load`.
    evidence : mapping, optional
        Of this build's runs, by chapter.
    root : Path
        The repository, with the plans.
    """
    lines: list[str] = []
    for chapter, kept in archive.items():
        planned = {one.name: one for one in load_plan(chapter, root)}
        made = {one.evidence.plan: one for one in kept if not any(one.begins(other) for other in kept)}
        if not planned and not made:
            continue
        lines += [f"### {chapter}", ""]
        lines += ["| run | announced | ledger | made (UTC) | core-hours, machine | commit | evidence |"]
        lines += ["|---" * 7 + "|"]
        for name in dict.fromkeys([*planned, *made]):
            lines.append(_row(chapter, name, planned.get(name), made.get(name), root))
        lines += ["", ":::{dropdown} What was announced, and what became of it", ""]
        for name in dict.fromkeys([*planned, *made]):
            told = _told(name, planned.get(name), made.get(name))
            here = (evidence or {}).get(chapter)
            lines += [told + _still(made.get(name), kept, here), ""]
        lines += [":::", ""]
    return "\n".join(lines or ["No long run has been announced yet.", ""])


def machine_check(evidence: Mapping[str, Evidence], archive: Mapping[str, Sequence[Piece]]) -> str:
    """How far the runs of this build repeat archived runs of the same setting, a row per chapter.

    Parameters
    ----------
    evidence : mapping
        Of this build's runs, by chapter.
    archive : mapping
        From `load`.
    """
    rows = []
    for chapter, one in evidence.items():
        piece = same_setting(one, archive[chapter])
        table = repeats(one, piece.evidence) if piece else None
        table = table[table["spread"] > 0] if piece else ()
        if not len(table):
            continue
        far = (table["difference"].abs() / table["spread"]).idxmax()
        share = abs(table["difference"][far]) / table["spread"][far]
        where = f"{table['metric'][far]}, {table['arm'][far]}: {share:.2g} times the spread"
        then = f"{piece.ended:%Y-%m-%d}, {plain('; '.join(piece.machines))}"
        near = f"{sum(table['within'])} of {len(table)}"
        rows.append(f"| [{chapter}](../notebooks/{chapter}) | {then} | {near} | {plain(where)} |")
    if not rows:
        return "No run of this book's scale has been archived yet.\n"
    head = [
        "| chapter | archived run | means within the spread over its seeds | farthest |",
        "|---" * 4 + "|",
    ]
    return "\n".join([*head, *rows, ""])


def _row(chapter: str, name: str, planned: PlannedRun | None, piece: Piece | None, root: Path) -> str:
    one = planned or piece
    ledger = f"book/claims/{chapter}.yml"
    what = f"**{plain(name)}**, {one.scale}, {(piece and piece.progress) or plural(len(one.seeds), 'seed')}"
    announced = f"{planned.written:%Y-%m-%d}" if planned else "no longer in the plan"
    if piece is None:
        changed = committed(root, ledger)
        return f"| {what} | {announced} | {changed or '–'} | not made yet | – | – | – |"
    commits = ", ".join(f"`{commit[:10]}`" for commit in piece.commits) or "none"
    changed = committed(root, ledger, piece.commits[0])
    first = piece.evidence.provenance.started
    folder = piece.folder.removeprefix("book/")
    return (
        f"| {what} | {announced} | {changed or '–'} | {first:%Y-%m-%d %H:%M} to {piece.ended:%Y-%m-%d %H:%M} "
        f"| {piece.core_hours:.1f}, {plain('; '.join(piece.machines))} | {commits} "
        f"| {{download}}`JSON <{folder}/evidence.json>` |"
    )


def _told(name: str, planned: PlannedRun | None, piece: Piece | None) -> str:
    """Seeds, claims, settings and stopping rule as announced; the verdicts of today's rules; what changed."""
    parts = [f"**{plain(name)}**."]
    if planned:
        settings = ", ".join(f"{key} = {value}" for key, value in planned.parameters.items())
        parts.append(
            f"Seeds {', '.join(map(str, planned.seeds))}. To decide: {plain(', '.join(planned.claims))}."
        )
        parts += [f"Beside the scale's own parameters: {plain(settings)}."] if settings else []
        parts.append(f"Stopping: {plain(planned.stopping)}")
    if piece:
        asked = planned.claims if planned else [claim.id for claim in piece.evidence.claims]
        known = [claim for claim in piece.evidence.claims if claim.id in asked]
        verdicts = ", ".join(f"{claim.id} {claim.verdict}" for claim in known)
        parts.append(f"By today's rules: {verdicts}.")
        if piece.changed:
            parts.append(f"Other today than in that run: {plain(first_few(piece.changed))}.")
    return " ".join(parts)


def _still(piece: Piece | None, kept: Sequence[Piece], here: Evidence | None) -> str:
    """Whether what has changed since a run changes numbers, where this build can say.

    It can where a run of this build's setting was archived with the method that `piece` was measured with.
    """
    if piece is None or not piece.changed or here is None:
        return ""
    then = same_setting(here, [one for one in kept if one.evidence.method == piece.evidence.method])
    table = repeats(here, then.evidence) if then else ()
    if not len(table):
        return ""
    if (table["difference"].abs() <= 1e-9 * table["archived"].abs()).all():
        return (
            f" In this build's own run the change changes nothing: {plural(len(table), 'mean')} as archived."
        )
    spread = table[table["spread"] > 0]
    near = f"{sum(spread['within'])} of {len(spread)} means within the spread over its seeds"
    return f" This build's own run differs from the one archived with the method of then: {near}."


def write(
    root: Path,
    evidence: Mapping[str, Evidence],
    archive: Mapping[str, Sequence[Piece]],
    folder: Path,
) -> None:
    """Write both fragments, ``archive.md`` and ``machine.md``, into `folder`."""
    (folder / "archive.md").write_text(status(archive, root, evidence), encoding="utf-8")
    (folder / "machine.md").write_text(machine_check(evidence, archive), encoding="utf-8")
