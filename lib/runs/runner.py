"""Execution and recording of one run of one chapter.

A run lives in ``runs/<scale>/<chapter>/<run>/``, where ``<run>`` is the beginning of its fingerprint
(`lib.runs.fingerprint`): the same measurement is the same folder. ``evidence.json`` is written last and
whole, so a folder that has it is complete and one that has not can be started again: training continues from
``checkpoints/``, the rest is made anew. Not here: what a claim is and how it is judged (`lib.ledger`), what
runs where (``Snakefile``), the command line (`lib.run`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lib.files import write_atomically
from lib.runs.execution import ChapterFailed, Watch, execute, section_seconds
from lib.runs.fingerprint import fingerprint
from lib.runs.parameters import PLACES, RequestError
from lib.runs.request import Request, read_chapter


def is_complete(folder: Path, identity: str) -> bool:
    """Whether ``folder`` holds a whole run with this fingerprint."""
    whole = (folder / "evidence.json").is_file() and (folder / "notebook.ipynb").is_file()
    return whole and held(folder).get("fingerprint") == identity


def held(folder: Path) -> dict[str, Any]:
    """What the folder says that it holds; empty when it says nothing, or nothing of ours."""
    try:
        found = json.loads((folder / "parameters.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    ours = {"chapter", "scale", "fingerprint", "commit"}
    return found if isinstance(found, dict) and ours <= found.keys() else {}


def refuse_foreign(folder: Path, request: Request) -> None:
    """Refuse a folder that holds another run or no run at all; RequestError that says what is there."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RequestError(f"{folder} is a file: choose another --out")
    there = held(folder)
    if there and there["fingerprint"] != request.fingerprint:
        raise RequestError(
            f"{folder} holds another run: {there['chapter']} at {there['scale']}, "
            f"{there['fingerprint'][:12]}, commit {there['commit'] or 'unknown'}; this is "
            f"{request.fingerprint[:12]}; "
            "choose another --out, or remove it"
        )
    # Hidden: the lock, and what a kill may have left of a file that was being written.
    if not there and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise RequestError(f"{folder} is not empty and holds no run: choose another --out, or remove it")


def run(
    request: Request,
    folder: Path | None = None,
    *,
    threads: int = 1,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Execute a run, or find it complete.

    Parameters
    ----------
    request : Request
        From `resolve`.
    folder : Path, optional
        Where to leave it, by default ``request.folder``.
    threads : int
        Threads of one numerical operation in the kernel, at least 1.
    force : bool
        Run again, from the start, what is complete.
    say : callable
        Prints one line.

    Returns
    -------
    bool
        Whether anything was executed.

    Raises
    ------
    RequestError
        ``folder`` holds something else.
    ChapterFailed
        A cell failed, or the chapter ended without closing its record.
    OSError
        The folder cannot be written, for example because the disk is full.
    """
    folder = (folder or request.folder).resolve()
    refuse_foreign(folder, request)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, request.chapter, say):
        refuse_foreign(folder, request)  # who held the lock may have left another run
        if is_complete(folder, request.fingerprint) and not force:
            say(f"[{request.chapter}] already complete · {shown(folder)}")
            return False
        _clear(folder, everything=force)
        try:
            try:
                _execute(request, folder, threads, say)
            except ChapterFailed as error:
                _note_failure(request.chapter, folder, error)
                raise
        except OSError:
            (folder / "notebook.partial.ipynb").unlink(missing_ok=True)  # it may end in the middle
            raise
    return True


def _note_failure(chapter: str, folder: Path, error: ChapterFailed) -> None:
    line = f"{chapter}: {error} · log {shown(folder / 'log.txt')}"
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"{error.traceback}\n{line}\n")
    write_atomically(folder / "failed.txt", line + "\n")


@contextmanager
def _locked(folder: Path, chapter: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder; the system lets go of it when this process ends, however it ends."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"[{chapter}] waiting for the process that is running {shown(folder)}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _clear(folder: Path, everything: bool) -> None:
    """Remove what a former run left, evidence first; `everything`: also its log and checkpoints."""
    names = ["evidence.json", "claims.json", "failed.txt", "notebook.ipynb", "notebook.partial.ipynb"]
    for name in names + ["log.txt"] * everything:
        (folder / name).unlink(missing_ok=True)
    for name in ["figures", "tables"] + ["checkpoints"] * everything:
        shutil.rmtree(folder / name, ignore_errors=True)


def _execute(request: Request, folder: Path, threads: int, say: Callable[[str], None]) -> None:
    from lib.ledger.provenance import git_state

    chapter, partial = request.chapter, folder / "notebook.partial.ipynb"
    used = {name: value for name, value in request.parameters.items() if name not in PLACES}
    description = {"chapter": chapter, "scale": request.scale, "fingerprint": request.fingerprint}
    description |= {"commit": git_state(request.root)[0], "parameters": used, "method": request.method}
    write_atomically(folder / "parameters.json", json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    if (folder / "checkpoints").exists():
        say(f"[{chapter}] continues from the checkpoints in {shown(folder)}")
    began = time.monotonic()
    with Watch(chapter, folder / "log.txt", say) as watch:
        executed = execute(
            request.notebook,
            partial,
            request.parameters | {"run_dir": str(folder)},
            root=request.root,
            threads=threads,
            watch=watch,
        )
    if _identity_now(request) != request.fingerprint:
        # A kernel imports as it goes: what ran is neither the code from before nor that of now.
        raise ChapterFailed("code or data that it measures with changed while it ran: run it again")
    counts = _record(folder, used, section_seconds(executed))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    say(f"[{chapter}] complete · {time.monotonic() - began:.0f} s · {counts} · {shown(folder)}")


def _identity_now(request: Request) -> str:
    try:
        text = read_chapter(request.chapter, request.root)
        return fingerprint(request.chapter, request.scale, text, request.parameters, request.root)
    except RequestError as error:
        raise ChapterFailed(str(error)) from None


def _record(folder: Path, used: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """Write the evidence, which makes the run complete; returns the count of verdicts as text."""
    from lib.ledger.evidence import Evidence  # scipy and more come with it: not for a refused request

    try:
        evidence = Evidence.of_run(folder, used, seconds)
    except ValueError as error:
        raise ChapterFailed(str(error)) from None
    os.replace(folder / "notebook.partial.ipynb", folder / "notebook.ipynb")
    evidence.save(folder / "evidence.json")
    counts = Counter(claim.verdict for claim in evidence.claims)
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items())


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
