"""The command ``python -m lib.run`` (see ``--help``): one run of one chapter."""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from lib.runs.execution import ChapterFailed
from lib.runs.parameters import RequestError, parse, read_parameters
from lib.runs.request import chapters, read_chapter, refuse_absent, resolve
from lib.runs.runner import is_complete, refuse_foreign, run, shown

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
  130  interrupted (Ctrl-C or SIGTERM); the same command continues
"""


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
        print(f"{name}: {parameter.kind} = {value!r}")
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
    parser.add_argument("--out", type=Path, metavar="DIR", help="leave the run there, not under runs/")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads per operation (default: 1)"
    )
    parser.add_argument("--force", action="store_true", help="run again, from the start, even if complete")
    parser.add_argument("--dry-run", action="store_true", help="check the request, show it and stop")
    parser.add_argument(
        "--list", action="store_true", help="the chapters, or the parameters of CHAPTER, and stop"
    )
    parser.add_argument(
        "--archive",
        nargs="+",
        type=Path,
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
        type=Path,
        metavar="FOLDER",
        help="judge the evidence in FOLDER by today's rules, beside ours, and stop",
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


def _keep(folders: list[Path], partial: bool) -> int:
    from lib.runs.archive import archive  # what judges takes seconds to import

    archive(folders, say=_say, partial=partial)
    return 0


def _check(folder: Path) -> int:
    from lib.runs.check import check

    return 0 if check(folder.resolve(), say=_say) else 1


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
        if options.partial and not options.archive:
            parser.error("--partial goes with --archive")
        if options.archive or options.check:
            if options.chapter is not None:
                parser.error("--archive and --check take folders, and no chapter")
            if options.archive and options.check:
                parser.error("--archive or --check, not both")
            return _keep(options.archive, options.partial) if options.archive else _check(options.check)
        if options.chapter is None:
            parser.error(f"which chapter? ({', '.join(chapters())})")
        if options.threads < 1:
            parser.error(f"--threads must be at least 1, got {options.threads}")
        given = _given(options.overrides, options.chapter)
        request = resolve(options.chapter, options.scale, given, fetch=not options.dry_run)
        folder = (options.out or request.folder).resolve()
        complete = is_complete(folder, request.fingerprint) and not options.force
        if not complete:  # a dry run may ask what another machine would do at a scale
            refuse_absent(request, given if options.dry_run else request.parameters)
        if options.dry_run:
            refuse_foreign(folder, request)
            state = "complete" if complete else "would run"
            print(f"[{request.chapter}] {state} · {shown(folder)}")
            print(yaml.safe_dump(request.parameters, sort_keys=False, default_flow_style=None), end="")
            return 0
        run(request, folder, threads=options.threads, force=options.force, say=_say)
    except RequestError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except ChapterFailed as error:
        log = shown(folder / "log.txt")
        print(f"[{options.chapter}] failed in {error} · log {log}", file=sys.stderr)
        return 1
    except OSError as error:
        what = options.chapter or "archive"
        print(f"[{what}] cannot write: {error}; the same command continues", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"[{options.chapter or 'archive'}] interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
