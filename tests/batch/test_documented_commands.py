"""Every command line that pages, ledgers, Snakefile, Makefile and ``--help`` show, taken there and tried.

What would run for long is only planned: ``--dry-run``, ``-n``, ``--prepare-only``. What cannot be tried here
(`UNTRIED`) is at least a command that bash can read.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jupytext
import pytest

from lib.ledger.schema import SCALES, load_ledger
from lib.run import EXAMPLES, INTERRUPTS, main
from lib.runs.parameters import RequestError
from lib.runs.request import chapters
from lib.runs.sweep import sweep

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = "cp|git|jupytext|make|papermill|pip|python|snakemake|source"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.md")]

#: What needs a network, another program, or a chapter that is not there, and how many such lines there are.
UNTRIED = {
    r"git (clone|worktree) ": 2,
    r"pip install ": 2,
    r"snakemake --executor (slurm|kubernetes) ": 4,
    r"cp notebooks/template\.md ": 1,
    r"jupytext --to ipynb$": 1,
}


def blocks(text: str) -> Iterator[str]:
    """The lines of a page's blocks of commands, continued ones joined."""
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield re.sub(r"\s{2,}#.*", "", line).strip()


def shown() -> Iterator[tuple[str, str]]:
    """Where a command line stands, and the line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in blocks(text):
            yield page.name, line
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(rf"(?<!`)`((?:{PROGRAMS}) [^`]+)`(?!`)", prose):
            yield page.name, " ".join(code.split())
    header = (ROOT / "Snakefile").read_text(encoding="utf-8").split("\n\n")[0]
    for line in re.findall(r"^#   (\S.*)$", header, re.MULTILINE):
        yield "Snakefile", line.split("  ")[0]
    for said in re.findall(r"## .*?(make [a-z]+ [A-Z].*)$", (ROOT / "Makefile").read_text(), re.MULTILINE):
        yield "Makefile", said
    for line in re.findall(r"^  (python .*)$", EXAMPLES, re.MULTILINE):
        yield "--help", line.split("  ")[0]
    for chapter in chapters(ROOT):
        for claim in load_ledger(chapter, ROOT).claims:
            for command in filter(None, (claim.entry(scale).command for scale in SCALES)):
                yield f"book/claims/{chapter}.yml", command


SHOWN = list(shown())
COMMANDS = sorted({command for _, command in SHOWN})


def untried(command: str) -> str | None:
    """The rule by which a command is only read."""
    return next((rule for rule in UNTRIED if re.match(rule, command)), None)


def environment() -> dict[str, str]:
    """This one's, without what a `make` that started the tests would tell another."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def done(command: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """What bash makes of a command."""
    called = ["bash", "-c", command]
    return subprocess.run(called, cwd=folder, env=environment(), capture_output=True, text=True, timeout=200)


@cache
def plan(command: str) -> subprocess.CompletedProcess:
    """What Snakemake makes of a batch that several commands ask for; its start takes longest."""
    return done(command)


def filled_in(command: str, folder: Path) -> str:
    """A command with something real for what the reader is to put there."""
    kept = next(ROOT.glob("book/archive/meantime/long-*"))
    (folder / "authors.pth").touch()
    command = re.sub(r"\S+\.(pth|pt|pkl|png)\b", shlex.quote(str(folder / "authors.pth")), command)
    grid = folder / "grid.yml"
    grid.write_text("{chapter: template, scale: smoke, grid: {seeds: [0, 1]}}\n")
    command = re.sub(r"/path/to/\w+", shlex.quote(str(folder)), command)
    real = {"FOLDER": kept, "grid.yml": grid, "<id>": "meantime"}
    for name, value in (real | {"<date>": kept.name.removeprefix("long-")}).items():
        command = command.replace(name, shlex.quote(str(value)))
    return command


def plan_run(command: str, capsys) -> None:
    """``python -m lib.run``: the request is checked, nothing is executed."""
    arguments = shlex.split(command, comments=True)[3:]
    asked = arguments if {"--list", "--check", "--archive"} & set(arguments) else [*arguments, "--dry-run"]
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    try:
        code = main(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    said = capsys.readouterr()
    if "--archive" in arguments:  # long runs are not here
        assert code == 2 and ("…" in asked or "runs/long/" in said.err), said
    else:
        assert code == 0 and said.out, said


def plan_batch(command: str) -> None:
    """``snakemake``: the batch is planned, nothing is executed."""
    uncommitted = "planned runs start from a commit"
    if other := re.search(r"sweep --config planned=(?!meantime\b)(\w+) scale=(\w+)$", command):
        # Snakemake plans one such batch, and is handed the others' runs alike.
        try:
            assert sweep({"planned": other[1], "scale": other[2]}, fetch=False)
        except RequestError as error:
            assert uncommitted in str(error)
        return
    dry = f"{shlex.quote(sys.executable)} -m snakemake -n"
    planned = plan(re.sub(r"^(\S+ -m )?snakemake( -n)?", dry, command))
    accepted = planned.returncode == 0 or ("planned=" in command and uncommitted in planned.stderr)
    assert accepted, planned.stdout + planned.stderr


def plan_make(command: str, capsys) -> None:
    """``make``: it knows the target, and the runs and batches that it would start are planned."""
    shown = done(re.sub("^make", "make --dry-run", command))
    assert shown.returncode == 0, shown.stderr
    for line in shown.stdout.splitlines():
        if " -m lib.run " in line:
            plan_run(line, capsys)
        elif " -m snakemake" in line:
            plan_batch(line)


def prepare(command: str, folder: Path) -> None:
    """``papermill``: the parameters are put into the notebook, which is not executed."""
    (folder / "notebooks").mkdir()
    (folder / "notebooks/scales").symlink_to(ROOT / "notebooks/scales")
    for name in re.findall(r"notebooks/(\w+)\.ipynb", command):
        jupytext.write(jupytext.read(ROOT / f"notebooks/{name}.md"), folder / f"notebooks/{name}.ipynb")
    asked = "" if "--help-notebook" in command else " --prepare-only"
    prepared = done(f"{shlex.quote(sys.executable)} -m {command}{asked}", folder)
    assert prepared.returncode == 0, prepared.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_shown_works(command, tmp_path, capsys):
    program = command.split()[0]
    real = filled_in(command, tmp_path)
    assert done(f"set -n; {real}").returncode == 0
    if untried(command):
        return
    if command.startswith("python -m lib.run"):
        plan_run(real, capsys)
    elif program == "snakemake":
        plan_batch(real)
    elif program == "make":
        plan_make(real, capsys)
    elif program == "papermill":
        prepare(real, tmp_path)
    else:
        assert program == "source", f"how is {command} tried?"
        (tmp_path / ".venv").symlink_to(sys.prefix)
        assert done(real, tmp_path).returncode == 0


def test_what_is_not_tried_is_known():
    assert Counter(rule for rule in map(untried, (command for _, command in SHOWN)) if rule) == UNTRIED


def test_commands_are_found_wherever_they_stand():
    places = Counter(place for place, _ in SHOWN)
    least = {
        "README.md": 9,
        "CONTRIBUTING.md": 10,
        "run.md": 25,
        "index.md": 3,
        "Snakefile": 7,
        "Makefile": 4,
    }
    least |= {"--help": 9, "meantime.md": 6, "template.md": 2, "book/claims/meantime.yml": 5}
    assert {place: found for place, found in places.items() if found < least.get(place, 0)} == {}
    assert set(least) <= set(places)
