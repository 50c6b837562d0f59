"""The command ``python -m lib.run`` (see ``--help``): one run of one chapter."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the rest is imported, Ctrl-C just ends it

import argparse
import errno
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import yaml

from lib.listing import one_line
from lib.runs.execution import ChapterFailed
from lib.runs.parameters import RequestError, parse, read_parameters
from lib.runs.request import chapters, read_chapter, refuse_absent, resolve
from lib.runs.runner import is_complete, refuse_foreign, run, shown

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXAMPLES = """\
examples:
  python -m lib.run --list                          the chapters
  python -m lib.run meantime --list                 its parameters: type, range, value, meaning
  python -m lib.run meantime                        as the book shows it: minutes, one core
  python -m lib.run meantime --scale smoke          does every line run: seconds
  python -m lib.run meantime --scale paper -p dataset ml-20m
  python -m lib.run meantime -p seeds '[0, 1, 2, 3, 4]' -p learning_rate 1e-3 --out my-run
  python -m lib.run meantime --dry-run              what would run, with which values, and where
  python -m lib.run --archive runs/long/meantime/*  keep the runs of a plan under book/archive/
  python -m lib.run --check FOLDER                  are the verdicts in a folder those that its numbers give

what a run leaves in runs/<scale>/<chapter>/<run>/ (or --out):
  evidence.json      verdict and numbers of each claim, data, versions, times; only there when all is complete
  notebook.ipynb     the chapter as executed
  figures/ tables/   what the chapter shows, as PNG, SVG and CSV
  parameters.json    values as used, fingerprint, commit
  log.txt            what the chapter said while it ran
  after a failure    notebook.partial.ipynb, failed.txt (one line) and checkpoints/ instead of evidence

<run> is derived from the content of all that decides the measurements: code of the cells and of the method,
parameters, data, packages. Prose, captions, comments, the ledger's words and rules are not part of it: pages
and verdicts are made again from what a run stored. What is complete is not run again; what was killed
continues from its checkpoints on the same command.

exit codes:
  0    complete, or was complete already; archived; checked, and nothing wrong
  1    the chapter failed, or its folder could not be written; checked, and something is wrong
  2    the request was wrong; nothing was started and nothing written
  130  interrupted (Ctrl-C, SIGTERM, or its terminal was closed); the same command continues
"""


def _list(chapter: str | None, scale: str) -> None:
    if chapter is None:
        for name in chapters():
            text = "\n".join(cell.source for cell in read_chapter(name).cells)
            title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "")
            _say(f"{name:16} {title}")
        return
    request = resolve(chapter, scale)
    for name, parameter in request.declared.items():
        value = request.parameters.get(name, parameter.default)
        _say(f"{name}: {parameter.kind} = {value!r}")
        _say(textwrap.indent(textwrap.fill(parameter.help, 100), "    "))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {one_line(message)}\n")


def _folder(name: str) -> Path:
    """A folder as it is named on a command line: ``~`` is the home folder, and an address is none."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        raise argparse.ArgumentTypeError(
            f"{one_line(name, 150)} is an address, and no folder of this machine"
        )
    try:
        return Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a link to itself, a NUL
        raise argparse.ArgumentTypeError(
            f"{one_line(name, 150)!r} cannot be a folder: {one_line(error, 150)}"
        ) from None


def _count(most: int) -> Callable[[str], int]:
    """Reads a whole number from 1 to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be 1 to {most}, got {one_line(text, 50)}")
        return int(text)

    return read


def _pairs(arguments: list[str]) -> tuple[list[list[str]], list[str]]:
    """The two words after each ``-p``, as they are (argparse takes ``-1e-3`` for an option), and the rest."""
    pairs, rest = [], list(arguments)
    while "-p" in rest[:-2]:
        place = rest.index("-p")
        pairs.append(rest[place + 1 : place + 3])
        del rest[place : place + 3]
    return pairs, rest


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lib.run",
        description="Execute one chapter and leave its evidence in a folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("chapter", nargs="?", metavar="CHAPTER", help="a file notebooks/CHAPTER.md")
    parser.add_argument("--scale", default="book", help="smoke, book, long or paper (default: book)")
    parser.add_argument(
        "-p",
        dest="overrides",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set one parameter of the chapter, VALUE as YAML; may be repeated",
    )
    parser.add_argument("--out", type=_folder, metavar="DIR", help="leave the run there, not under runs/")
    parser.add_argument(
        "--threads", type=_count(1024), default=1, metavar="N", help="threads per operation (default: 1)"
    )
    parser.add_argument(
        "--start-timeout",
        type=_count(86_400),
        default=300,
        metavar="SECONDS",
        help="how long Python and Jupyter may take to start, on a slow disk say (default: 300)",
    )
    parser.add_argument("--force", action="store_true", help="run again, from the start, even if complete")
    parser.add_argument("--dry-run", action="store_true", help="check the request, show it and stop")
    parser.add_argument(
        "--list", action="store_true", help="the chapters, or the parameters of CHAPTER, and stop"
    )
    parser.add_argument(
        "--archive",
        nargs="+",
        type=_folder,
        metavar="FOLDER",
        help="keep complete runs: all seeds of one planned run, from a commit that had the plan; and stop",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="with --archive: keep the first of the planned seeds, marked as such, while others still run",
    )
    parser.add_argument(
        "--check",
        type=_folder,
        metavar="FOLDER",
        help="judge the evidence in FOLDER by today's rules, beside ours, and stop",
    )
    return parser


def _given(pairs: list[list[str]], chapter: str) -> dict[str, Any]:
    """Command-line pairs as values of the declared types."""
    declared = read_parameters(read_chapter(chapter), f"notebooks/{chapter}.md")
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name in values:
            raise RequestError(f"parameter {name} is given twice")
        values[name] = parse(declared[name], text) if name in declared else text
    if "data_dir" in values:
        try:
            values["data_dir"] = str(_folder(values["data_dir"]))  # a path on a command line starts here
        except argparse.ArgumentTypeError as error:
            raise RequestError(f"parameter data_dir: {error}") from None
    return values


def _keep(folders: list[Path], partial: bool) -> int:
    from lib.runs.archive import archive  # what judges takes seconds to import

    archive(folders, say=_say, partial=partial)
    return 0


def _check(folder: Path) -> int:
    from lib.runs.check import check

    return 0 if check(folder, say=_say) else 1


def _say(line: str, stream: TextIO | None = None) -> None:
    """Print a line; a run does not end because nobody reads it any more, or because it cannot be shown."""
    try:
        print(line, file=stream or sys.stdout, flush=True)
    except OSError:  # a closed pipe or terminal, a full disk
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, (stream or sys.stdout).fileno())
        os.close(silence)


def _say_why(line: str) -> None:
    _say(one_line(line, 1000), sys.stderr)


def _open_streams() -> None:
    """See to it that there is somewhere to print to, which takes any character."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:  # or the next file would be the standard output
        pass
    os.close(opened)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")


def _interrupt(*_: object) -> None:
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)  # a second one would cut off the end of the kernel
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code (see ``--help``)."""
    _open_streams()
    parser = _parser()
    pairs, rest = _pairs(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(rest)
    for number in INTERRUPTS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup, or a shell for its background, asks for
            signal.signal(number, _interrupt)
    try:
        if options.partial and not options.archive:
            parser.error("--partial goes with --archive")
        if (pairs or options.out) and (options.list or options.archive or options.check):
            parser.error("-p and --out go with a chapter that is to be run")
        if options.list:
            _list(options.chapter, options.scale)
            return 0
        if options.archive or options.check:
            if options.chapter is not None:
                parser.error("--archive and --check take folders, and no chapter")
            if options.archive and options.check:
                parser.error("--archive or --check, not both")
            return _keep(options.archive, options.partial) if options.archive else _check(options.check)
        if options.chapter is None:
            parser.error(f"which chapter? ({', '.join(chapters())})")
        try:
            given = _given(pairs, options.chapter)
            request = resolve(options.chapter, options.scale, given, fetch=not options.dry_run)
        except OSError as error:
            raise RequestError(f"cannot read: {error}") from None
        folder = (options.out or request.folder).resolve()
        refuse_foreign(folder, request)
        complete = is_complete(folder, request.fingerprint) and not options.force
        if not complete:  # a dry run may ask what another machine would do at a scale
            refuse_absent(request, given if options.dry_run else request.parameters)
        if options.dry_run:
            state = "complete" if complete else "would run"
            _say(f"[{request.chapter}] {state} · {shown(folder)}")
            _say(yaml.safe_dump(request.parameters, sort_keys=False, default_flow_style=None).rstrip("\n"))
            return 0
        asked = {"threads": options.threads, "start_timeout": options.start_timeout, "force": options.force}
        run(request, folder, **asked, say=_say)
    except RequestError as error:
        _say_why(f"{parser.prog}: {one_line(error)}")
        return 2
    except ChapterFailed as error:
        where = " in " if error.cell else ": "
        _say_why(f"[{options.chapter}] failed{where}{error} · log {shown(folder / 'log.txt')}")
        return 1
    except OSError as error:
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        cure = "choose another folder with --out" if denied else "the same command continues"
        if options.chapter is None:
            _say_why(f"[archive] cannot read or write: {one_line(error).rstrip('.')}")
        else:
            _say_why(f"[{options.chapter}] cannot write: {one_line(error).rstrip('.')}; {cure}")
        return 1
    except KeyboardInterrupt:
        _say_why(f"[{options.chapter or 'archive'}] interrupted; the same command continues")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
