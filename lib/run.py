"""One run of one chapter: parameters checked, executed, recorded (``python -m lib.run --help``).

A run lives in ``runs/<scale>/<chapter>/<run>/``, where ``<run>`` is the beginning of its fingerprint
(`lib.fingerprint`): the same content is the same folder. ``evidence.json`` is written last and whole, so a
folder that has it is complete and one that has not can be started again: training continues from
``checkpoints/``, the rest is made anew. Not here: what a claim is and how it is judged (`lib.claims`), what
runs where (``Snakefile``).
"""

import argparse
import json
import os
import shutil
import signal
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lib.execution import ChapterFailed, Watch, execute, section_seconds
from lib.files import write_atomically
from lib.parameters import PLACES, RequestError, parse, read_parameters
from lib.request import Request, chapters, read_chapter, resolve, run_folder

__all__ = ["Request", "chapters", "is_complete", "resolve", "run", "run_folder"]

EXAMPLES = """\
examples:
  python -m lib.run --list                          the chapters
  python -m lib.run meantime --list                 its parameters: type, value, meaning
  python -m lib.run meantime                        as the book shows it: minutes, one core
  python -m lib.run meantime --scale smoke          does every line run: seconds
  python -m lib.run meantime --scale paper -p dataset ml-20m
  python -m lib.run meantime -p seeds '[0, 1, 2, 3, 4]' -p learning_rate 1e-3 --out my-run
  python -m lib.run meantime --dry-run              what would run, with which values, and where

what a run leaves in runs/<scale>/<chapter>/<run>/ (or --out):
  evidence.json      verdict and numbers of each claim, data, versions, times; only there when all is complete
  notebook.ipynb     the chapter as executed
  figures/ tables/   what the chapter shows, as PNG, SVG and CSV
  parameters.json    values as used, fingerprint, commit
  log.txt            what the chapter said while it ran
  after a failure    notebook.partial.ipynb, failed.txt (one line) and checkpoints/ instead of evidence

<run> is derived from the content of all that decides the result: text, parameters, imported code, lock file,
ledger, data. What is complete is not run again; what was killed continues from its checkpoints on the same
command.

exit codes:
  0    complete, or was complete already
  1    the chapter failed, or its folder could not be written
  2    the request was wrong; nothing was started and nothing written
  130  interrupted (Ctrl-C or SIGTERM); the same command continues
"""


def is_complete(folder: Path, identity: str) -> bool:
    """Whether ``folder`` holds a whole run with this fingerprint."""
    whole = (folder / "evidence.json").is_file() and (folder / "notebook.ipynb").is_file()
    return whole and _held(folder).get("fingerprint") == identity


def _held(folder: Path) -> dict[str, Any]:
    """What the folder says that it holds; empty when it says nothing, or nothing of ours."""
    try:
        held = json.loads((folder / "parameters.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    ours = {"chapter", "scale", "fingerprint", "commit"}
    return held if isinstance(held, dict) and ours <= held.keys() else {}


def _refuse_foreign(folder: Path, request: Request) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RequestError(f"{folder} is a file: choose another --out")
    held = _held(folder)
    if held and held["fingerprint"] != request.fingerprint:
        raise RequestError(
            f"{folder} holds another run: {held['chapter']} at {held['scale']}, {held['fingerprint'][:12]}, "
            f"commit {held['commit'] or 'unknown'}; this is {request.fingerprint[:12]}; "
            "choose another --out, or remove it"
        )
    # Hidden: the lock, and what a kill may have left of a file that was being written.
    if not held and any(not path.name.startswith(".") for path in folder.iterdir()):
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
    _refuse_foreign(folder, request)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, request.chapter, say):
        _refuse_foreign(folder, request)  # who held the lock may have left another run
        if is_complete(folder, request.fingerprint) and not force:
            say(f"[{request.chapter}] already complete · {_shown(folder)}")
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
    line = f"{chapter}: {error} · log {_shown(folder / 'log.txt')}"
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
        say(f"[{chapter}] waiting for the process that is running {_shown(folder)}")
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
    from lib.provenance import git_state

    chapter, partial = request.chapter, folder / "notebook.partial.ipynb"
    used = {name: value for name, value in request.parameters.items() if name not in PLACES}
    description = {"chapter": chapter, "scale": request.scale, "fingerprint": request.fingerprint}
    description |= {"commit": git_state(request.root)[0], "parameters": used}
    write_atomically(folder / "parameters.json", json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    if (folder / "checkpoints").exists():
        say(f"[{chapter}] continues from the checkpoints in {_shown(folder)}")
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
    counts = _record(folder, used, section_seconds(executed))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    say(f"[{chapter}] complete · {time.monotonic() - began:.0f} s · {counts} · {_shown(folder)}")


def _record(folder: Path, used: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """Write the evidence, which makes the run complete; returns the count of verdicts as text."""
    from lib.evidence import Evidence  # scipy and more come with it: not for a refused request

    try:
        evidence = Evidence.of_run(folder, used, seconds)
    except ValueError as error:
        raise ChapterFailed(str(error)) from None
    os.replace(folder / "notebook.partial.ipynb", folder / "notebook.ipynb")
    evidence.save(folder / "evidence.json")
    counts = Counter(claim.verdict for claim in evidence.claims)
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items())


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _list(chapter: str | None, scale: str) -> None:
    if chapter is None:
        for name in chapters():
            text = "\n".join(cell.source for cell in read_chapter(name).cells)
            title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "")
            print(f"{name:16} {title}")
        return
    request = resolve(chapter, scale)
    for name, parameter in request.declared.items():
        value = request.parameters.get(name, parameter.default)
        print(f"{name}: {parameter.annotation} = {value!r}")
        print(textwrap.indent(textwrap.fill(parameter.help, 100), "    "))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lib.run",
        description="Execute one chapter and leave its evidence in a folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("chapter", nargs="?", metavar="CHAPTER", help="a file notebooks/CHAPTER.md")
    parser.add_argument("--scale", default="book", help="smoke, book or paper (default: book)")
    parser.add_argument(
        "-p",
        dest="overrides",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set one parameter of the chapter, VALUE as YAML; may be repeated",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="leave the run there, not under runs/")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads per operation (default: 1)"
    )
    parser.add_argument("--force", action="store_true", help="run again, from the start, even if complete")
    parser.add_argument("--dry-run", action="store_true", help="check the request, show it and stop")
    parser.add_argument(
        "--list", action="store_true", help="the chapters, or the parameters of CHAPTER, and stop"
    )
    return parser


def _given(pairs: list[tuple[str, str]], chapter: str) -> dict[str, Any]:
    """Command-line pairs as values of the declared types."""
    declared = read_parameters(read_chapter(chapter), f"notebooks/{chapter}.md")
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name in values:
            raise RequestError(f"parameter {name} is given twice")
        values[name] = parse(declared[name], text) if name in declared else text
    if "data_dir" in values:
        values["data_dir"] = str(Path(values["data_dir"]).resolve())  # a path on a command line starts here
    return values


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code (see ``--help``)."""
    parser = _parser()
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.list:
            _list(options.chapter, options.scale)
            return 0
        if options.chapter is None:
            parser.error(f"which chapter? ({', '.join(chapters())})")
        if options.threads < 1:
            parser.error(f"--threads must be at least 1, got {options.threads}")
        request = resolve(options.chapter, options.scale, _given(options.overrides, options.chapter))
        folder = (options.out or request.folder).resolve()
        if options.dry_run:
            _refuse_foreign(folder, request)
            state = "complete" if is_complete(folder, request.fingerprint) else "would run"
            print(f"[{request.chapter}] {state} · {_shown(folder)}")
            print(yaml.safe_dump(request.parameters, sort_keys=False, default_flow_style=None), end="")
            return 0
        run(request, folder, threads=options.threads, force=options.force, say=_say)
    except RequestError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except ChapterFailed as error:
        log = _shown(folder / "log.txt")
        print(f"[{options.chapter}] failed in {error} · log {log}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"[{options.chapter}] cannot write: {error}; the same command continues", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"[{options.chapter}] interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
