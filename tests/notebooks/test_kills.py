"""Every chapter, killed at random moments of its smoke run: the same command goes on, to the same numbers.

A moment is so much processor time: a busy machine kills where a quiet one does. In one run of two the first
falls behind the first checkpoint of a training. ``--kills N --seed SEED`` asks for more, and for others.
"""

import json
import random
import signal
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

import nbformat
import psutil
import pytest
from PIL import Image

from lib.ledger.schema import load_ledger
from lib.runs.request import chapters
from tests.notebooks.conftest import ROOT, processor_seconds, start_at_smoke

CHAPTERS = chapters(ROOT)
IN_A_ROW = 2  # the second kill is of a run that continues
PATIENCE = 300  # seconds until a process is gone, on whatever machine
READERS = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".ipynb": lambda path: nbformat.read(path, as_version=4),
    ".png": lambda path: Image.open(path).load(),
    ".svg": xml.etree.ElementTree.parse,
}


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        first, kills = 1000 * metafunc.config.getoption("--seed"), metafunc.config.getoption("--kills")
        seeds = range(first, first + -(-kills // IN_A_ROW))
        cases = [pytest.param(CHAPTERS[seed % len(CHAPTERS)], seed) for seed in seeds]
        metafunc.parametrize(("chapter", "seed"), cases)


def measurements(folder: Path, chapter: str) -> dict[str, dict]:
    """What a complete run measured, claim by claim, but for those about a machine: times are never equal."""
    kinds = {claim.id: claim.kind for claim in load_ledger(chapter).claims}
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    return {
        entry["claim"]: {name: arms for name, arms in entry["measured"].items() if "second" not in name}
        for entry in evidence["measurements"]
        if kinds[entry["claim"]] != "measurement"
    }


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read_all(folder: Path) -> None:
    """Raise where a file is not whole, whatever was going on; hidden ones are not there yet."""
    for path in folder.rglob("*"):
        if path.suffix in READERS and not path.name.startswith("."):
            READERS[path.suffix](path)


def processes_with(temporary: str) -> list[psutil.Process]:
    """Those whose temporary files go there: a run's, also when it is nobody's child any more."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == temporary:
                found.append(process)
        except psutil.Error:  # somebody else's, or just gone
            continue
    return found


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert not alive


def kill(process: psutil.Popen, moment: float, draw: random.Random) -> str:
    """Kill the runner, its kernel or both once they have taken `moment`; says what was done."""
    while process.poll() is None and processor_seconds(process) < moment:
        time.sleep(0.01)
    number, whom = draw.choice([signal.SIGTERM, signal.SIGKILL]), draw.choice(["runner", "kernel", "both"])
    if process.poll() is not None:
        return "was over"
    family = process.children(recursive=True)
    struck = {"runner": [process], "kernel": family, "both": [process, *family]}[whom] or [process]
    for one in struck:
        try:
            one.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    wait_until_gone([process, *family])
    return f"{number.name} to {whom} of {len(family) + 1}"


@pytest.mark.kills
def test_a_killed_chapter_measures_what_an_undisturbed_one_does(chapter, seed, at_smoke, tmp_path):
    reference, out, draw = at_smoke(chapter), tmp_path / "run", random.Random(seed)
    turn = seed // len(CHAPTERS)  # of this chapter, whose seeds may all be even
    earliest, latest = (reference.trained if turn % 2 == 0 else 0.0), reference.seconds
    with tempfile.TemporaryDirectory() as temporary:
        # Undisturbed runs, too, leave torch's cache among the temporary files.
        places = {"TMPDIR": temporary, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch")}
        for _ in range(IN_A_ROW):
            moment = draw.uniform(earliest, latest)
            done = kill(start_at_smoke(chapter, out, **places), moment, draw)
            print(f"{chapter}, seed {seed}: at {moment:.2f} of {reference.seconds:.2f} s {done}")
            read_all(out)
            earliest, latest = 0.0, reference.seconds - moment
        last = start_at_smoke(chapter, out, **places)
        assert last.wait() == 0, Path(f"{out}.said").read_text()
        wait_until_gone(processes_with(temporary))
        assert list(Path(temporary).iterdir()) == []
    assert files(out) == files(Path(reference.folder))
    assert measurements(out, chapter) == measurements(Path(reference.folder), chapter)
    read_all(out)


def test_what_is_not_whole_is_seen(tmp_path):
    (tmp_path / ".evidence.json.tmp").write_text("{")
    read_all(tmp_path)
    for name in ("evidence.json", "notebook.partial.ipynb", "a.png", "a.svg"):
        (tmp_path / name).write_text("")
        with pytest.raises((ValueError, OSError, SyntaxError)):
            read_all(tmp_path)
        (tmp_path / name).unlink()
