"""Execution and recording of one run of one chapter.

A run lives in ``runs/<scale>/<chapter>/<run>/``, where ``<run>`` is the beginning of its fingerprint
(`lib.runs.fingerprint`): the same measurement is the same folder. ``evidence.json`` is written last and
whole, so a folder that has it is complete and one that has not can be started again: training continues from
``checkpoints/``, the rest is made anew. Not here: what a claim is and how it is judged (`lib.ledger`), what
runs where (``Snakefile``), the command line (`lib.run`).
"""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
from filelock import FileLock, Timeout
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from lib.files import parse_json, remove_leftovers, write_atomically
from lib.listing import one_line
from lib.runs.domains import PATHS
from lib.runs.execution import ChapterFailed, Watch, execute, section_seconds
from lib.runs.fingerprint import fingerprint
from lib.runs.parameters import PLACES, Parameter, RequestError
from lib.runs.private_paths import first_named, home
from lib.runs.request import Request, read_chapter

# What network and other file systems without locks answer.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# What the system says of a folder that there may well be: another account, or another day, can write it.
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def is_complete(folder: Path, identity: str) -> bool:
    """Whether ``folder`` holds a whole run with this fingerprint, which can be read."""
    ended = (folder / "evidence.json").is_file() and held(folder).get("fingerprint") == identity
    return ended and not damage(folder)


def damage(folder: Path) -> str:
    """What is wrong with the run that ended in ``folder``, in a line; empty if it is whole.

    The evidence is read by its schema and the notebook as JSON; figures and tables are there and not empty.
    """
    from lib.ledger.evidence import Evidence  # scipy and more come with it: not for a refused request

    try:
        evidence = Evidence.load(folder / "evidence.json")
    except (OSError, ValueError) as error:
        return one_line(error)
    for name in (name for artifact in evidence.artifacts for name in artifact.files):
        if not (folder / name).is_file() or not (folder / name).stat().st_size:
            return f"{name} is not there, or empty"
    try:
        cells = parse_json((folder / "notebook.ipynb").read_bytes())["cells"]
    except (OSError, ValueError, TypeError, LookupError) as error:
        return f"notebook.ipynb cannot be read: {one_line(error)}"
    return "" if cells else "notebook.ipynb has no cells"


def held(folder: Path) -> dict[str, Any]:
    """What the folder says that it holds; empty when it says nothing, or nothing of ours."""
    try:
        found = parse_json((folder / "parameters.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    ours = {"chapter", "scale", "fingerprint", "commit"}
    return found if isinstance(found, dict) and ours <= found.keys() else {}


def refuse_foreign(folder: Path, request: Request) -> None:
    """Refuse a folder that holds another run or no run at all, or that cannot be one.

    Raises
    ------
    RequestError
        In one line: what is there, or why there can be no such folder.
    OSError
        The disk is full, or not to be written by this account.
    """
    if not _is_there(folder):
        return
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


def _is_there(folder: Path) -> bool:
    """Whether there is this folder; if not, it can be made. Errors as `refuse_foreign`."""
    try:
        name = str(folder).encode()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if there != folder and there.is_dir():
            longest = max(len(part.encode()) for part in folder.relative_to(there).parts)
            most, whole = (os.pathconf(there, limit) for limit in ("PC_NAME_MAX", "PC_PATH_MAX"))
            if longest > most or len(name) > whole - 256:  # there will be files in it
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            os.rmdir(tempfile.mkdtemp(prefix=".", dir=there))
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in NOT_WRITABLE:
            raise
        why = "it is no UTF-8" if isinstance(error, UnicodeError) else error
        why = getattr(error, "strerror", None) or why
        raise RequestError(
            f"{one_line(folder, 150)} cannot be a folder: {why}; choose another --out"
        ) from None
    if not there.is_dir():
        raise RequestError(f"{there} is a file: choose another --out")
    return there == folder


def run(
    request: Request,
    folder: Path | None = None,
    *,
    threads: int = 1,
    force: bool = False,
    start_timeout: int = 300,
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
    start_timeout : int
        Seconds that the kernel may take to start.
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
    if not force and is_complete(folder, request.fingerprint):  # without a lock: others' folders can be read
        say(f"[{request.chapter}] already complete · {shown(folder)}")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, request.chapter, say):
        refuse_foreign(folder, request)  # who held the lock may have left another run
        if is_complete(folder, request.fingerprint) and not force:
            say(f"[{request.chapter}] already complete · {shown(folder)}")
            return False
        if (folder / "evidence.json").exists() and not force:
            say(f"[{request.chapter}] damaged, so it is made again: {damage(folder)} · {shown(folder)}")
        _clear(folder, everything=force)
        try:
            _execute(request, folder, threads, start_timeout, say)
        except ChapterFailed as error:
            _note_failure(request.chapter, folder, error)
            raise
    return True


def _note_failure(chapter: str, folder: Path, error: ChapterFailed) -> None:
    line = f"{chapter}: {error} · log {shown(folder / 'log.txt')}"
    with suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8", errors="replace") as log:
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
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        say(f"[{chapter}] this disk has no locks: start nothing else in {shown(folder)} meanwhile")
    try:
        yield
    finally:
        lock.release()


def _clear(folder: Path, everything: bool) -> None:
    """Remove what a former run left, evidence first; `everything`: also its log and checkpoints."""
    names = ["evidence.json", "claims.json", "failed.txt", "notebook.ipynb", "notebook.partial.ipynb"]
    for name in names + ["log.txt"] * everything:
        (folder / name).unlink(missing_ok=True)
    for name in ("parameters.json", *names):
        remove_leftovers(folder / name)
    for name in ["figures", "tables"] + ["checkpoints"] * everything:
        shutil.rmtree(folder / name, ignore_errors=True)


def _execute(
    request: Request, folder: Path, threads: int, start_timeout: int, say: Callable[[str], None]
) -> None:
    from lib.ledger.provenance import git_state

    chapter, partial = request.chapter, folder / "notebook.partial.ipynb"
    used = {name: told(request.declared[name], value) for name, value in request.parameters.items()}
    used = {name: value for name, value in used.items() if name not in PLACES}
    description = {"chapter": chapter, "scale": request.scale, "fingerprint": request.fingerprint}
    commit, _ = git_state(request.root)
    if commit is None and (request.root / ".git").exists():
        say(f"[{chapter}] no commit in the evidence: git does not tell it (see its safe.directory)")
    description |= {"commit": commit, "parameters": used, "altered": list(request.altered)}
    description |= {"method": request.method, "earlier_seconds": _earlier_seconds(folder)}
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
            start_timeout=start_timeout,
        )
    if held(folder).get("fingerprint") != request.fingerprint:
        raise ChapterFailed("its folder was removed or emptied while it ran: run it again")
    if _identity_now(request) != request.fingerprint:
        # A kernel imports as it goes: what ran is neither the code from before nor that of now.
        raise ChapterFailed("code or data that it measures with changed while it ran: run it again")
    counts = _record(folder, used, executed)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    places = [request.root, folder, Path(request.parameters["data_dir"]), *home()]
    if where := first_named(folder, places):
        say(f"[{chapter}] {where}, a folder of this machine: it is not archived, nor shown in the book")
    say(f"[{chapter}] complete · {time.monotonic() - began:.0f} s · {counts} · {shown(folder)}")


def _earlier_seconds(folder: Path) -> float:
    """What a run that is continued had taken before, by the times of its files; 0 for one that starts."""
    before, checkpoints = held(folder), list((folder / "checkpoints").glob("**/*"))
    if not checkpoints or not before:
        return 0.0
    began = (folder / "parameters.json").stat().st_mtime
    written = [path.stat().st_mtime for path in [*checkpoints, folder / "log.txt"] if path.exists()]
    return float(before.get("earlier_seconds", 0.0)) + max(0.0, max(written) - began)


def _keep_notebook(folder: Path, chapter: str, executed: NotebookNode) -> None:
    """Write ``notebook.ipynb`` in the place of the partial one: its first cell says where the page is."""
    line = (
        f"*{chapter} as it was executed. What stands in braces, such as `{{cite}}` and `{{glue:text}}`, is "
        f"filled in on its page, `_build/html/notebooks/{chapter}.html`, which `make book` makes.*"
    )
    executed = copy.copy(executed)
    executed.cells = [new_markdown_cell(line, id="as-executed"), *executed.cells]
    write_atomically(folder / "notebook.ipynb", nbformat.writes(executed) + "\n")
    (folder / "notebook.partial.ipynb").unlink(missing_ok=True)


def told(parameter: Parameter, value: Any) -> Any:
    """A parameter's value as it is kept: a file or folder elsewhere by its name: its content counts."""
    private = parameter.domain in PATHS and os.path.isabs(value)
    return Path(value).name if private else value


def _identity_now(request: Request) -> str:
    try:
        text = read_chapter(request.chapter, request.root)
        return fingerprint(request.chapter, request.scale, text, request.parameters, request.root)
    except RequestError as error:
        raise ChapterFailed(str(error)) from None


def _record(folder: Path, used: Mapping[str, Any], executed: NotebookNode) -> str:
    """Write the evidence, which makes the run complete; returns the count of verdicts as text."""
    from lib.ledger.evidence import Evidence  # scipy and more come with it: not for a refused request

    try:
        evidence = Evidence.of_run(folder, used, section_seconds(executed))
    except ValueError as error:
        raise ChapterFailed(str(error)) from None
    _keep_notebook(folder, evidence.chapter, executed)
    evidence.save(folder / "evidence.json")
    counts = Counter(claim.verdict for claim in evidence.claims)
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items())


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
