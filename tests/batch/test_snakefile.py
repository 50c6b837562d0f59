"""The batch, in a project with two tiny chapters: what runs again and what does not."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGES = """import sys
from pathlib import Path

out = Path("_build/html")
out.mkdir(parents=True, exist_ok=True)
(out / "index.html").write_text(Path("book/page.md").read_text())
print("pages built")
"""


SIMULATION = """import sys
from pathlib import Path

Path(sys.argv[1]).mkdir(parents=True)
print("verdicts simulated")
"""


@pytest.fixture
def batch(project):
    """``one`` and ``two`` import different modules, and share one through others; ``two`` reads a file."""
    (project.root / "notebooks" / "tiny.md").unlink()
    project.write("lib/models/low.py", "")
    project.write("lib/models/left.py", "from lib.models import low\n")
    project.write("lib/models/right.py", "")
    project.write(
        "lib/data/tinyset.py",
        "from pathlib import Path\n\n\nclass Set:\n"
        "    def files(self, data_dir):\n        return [Path(data_dir) / 'numbers.txt']\n\n\nSET = Set()\n",
    )
    project.write("data/numbers.txt", "1 2 3\n")
    project.write("book/page.md", "first\n")
    project.write("book/build.py", PAGES)  # the real one takes a whole book
    project.write("book/verdict_simulation.py", SIMULATION)
    project.chapter("one", "from lib.models import left")
    project.chapter("two", "from lib.models import right", '["lib.data.tinyset:SET"]')
    return project


def executed(batch, *arguments: str, code: int = 0) -> list[str]:
    """Chapters that one call of Snakemake executed, and ``pages`` when it built them."""
    done = batch.run("snakemake", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    batch.last = done
    pages = ["pages"] * done.stdout.count("pages built")
    return sorted(re.findall(r"^\[(\w+)\] complete · ", done.stdout, re.MULTILINE)) + pages


def planned(batch, *arguments: str) -> list[str]:
    """As `executed`, of what would be."""
    done = batch.run("snakemake", *arguments, "-n", "--quiet", "host")
    assert done.returncode == 0, done.stdout + done.stderr
    pages = ["pages"] * ("rule pages:" in done.stdout)
    return sorted(re.findall(r"^ +output: runs/(?:smoke|book)/(\w+)/", done.stdout, re.MULTILINE)) + pages


def change(batch, name: str) -> None:
    path = batch.root / name
    path.write_text(path.read_text() + ("\nCHANGED = 1\n" if name.endswith(".py") else "\n# changed\n"))


def test_what_runs_again_is_what_depends_on_the_change(batch):
    assert executed(batch) == ["one", "two", "pages"]
    for path in batch.root.rglob("*.py"):
        os.utime(path)
    assert executed(batch) == [], "dates decide nothing"
    change(batch, "lib/models/low.py")
    assert executed(batch) == ["one", "pages"], "imported through another module"
    for name, wanted in [
        ("data/numbers.txt", ["two", "pages"]),
        ("requirements.lock", ["pages"]),
        ("notebooks/one.md", ["pages"]),
        ("book/claims/two.yml", ["pages"]),
        ("lib/chapter/tables.py", ["pages"]),
    ]:
        content = (batch.root / name).read_text()
        change(batch, name)
        assert planned(batch) == wanted, name
        (batch.root / name).write_text(content)
    change(batch, "book/page.md")
    assert executed(batch) == ["pages"]
    assert "verdicts simulated" not in batch.last.stdout, "its two inputs are what they were"
    (log,) = (batch.root / "_build/logs").glob("book-two-*.log")
    assert "[two] complete · " in log.read_text()
    batch.write("book/page.md", "first\n")
    assert executed(batch) == ["pages"], "back to a content that was built before"
    assert (batch.root / "_build/html/index.html").read_text() == "first\n"
    batch.write("book/build.py", "raise SystemExit('no book')\n")
    assert executed(batch, code=1) == []
    assert (batch.root / "_build/html/index.html").read_text() == "first\n", "a failure leaves the pages"
    batch.write("book/build.py", PAGES)
    assert executed(batch) == ["pages"], "and is not forgotten"
    shutil.rmtree(batch.root / "_build/html")
    assert planned(batch) == ["pages"], "nor are pages that are gone"


def test_a_failure_hides_no_other_chapter_and_is_named_last(batch):
    path = batch.root / "notebooks" / "one.md"
    path.write_text(path.read_text().replace("if crash:", "if True:"))
    batch.chapter("three")
    path = batch.root / "notebooks" / "three.md"
    path.write_text(path.read_text().replace("value: float", "value: real"))
    assert executed(batch, code=1) == ["two"]
    last = batch.last.stderr.strip().splitlines()[-2:]
    assert "one: cell 6 (section 'Work', `if True:`): ValueError: first line · log runs/book/one/" in last[0]
    assert "three: notebooks/three.md: type of value must be one of" in last[1]
    assert not (batch.root / "_build/html/index.html").exists(), "no book with chapters missing"


def test_a_grid_fans_out_as_separate_runs(batch):
    asked = ["sweep", "--config", "chapter=one", "scale=smoke", "seeds=[0, 1]", "value=[4, 5.0]"]
    assert executed(batch, *asked) == ["one"] * 4
    (table,) = (batch.root / "runs/sweeps").glob("*.csv")
    rows = list(csv.DictReader(table.open()))
    assert [row["verdict"] for row in rows] == ["exact", "contradicted"] * 2
    assert len({row["run"] for row in rows}) == 4
    assert executed(batch, *asked) == []
    batch.write("grid.yml", "{chapter: one, scale: smoke, grid: {seeds: [1, [0, 1]]}}\n")
    assert len(planned(batch, "sweep", "--config", "sweep=grid.yml")) == 1, "seed 1 was run before"
    written = ["chapter=one", "scale=smoke", "value=010"]
    assert executed(batch, "sweep", "--config", *written, code=1) == [], "010 is no number, and not 10"
    assert "parameter value must be float, got '010' (str)" in batch.last.stderr
    assert executed(batch, "sweep", "--config", "chapter=one", "sede=[0]", code=1) == []
    assert "snakemake: one: unknown parameter 'sede' (did you mean 'seeds'?)" in batch.last.stderr


def test_a_batch_works_in_a_folder_with_an_odd_name_and_without_a_home(batch):
    """The environment lies in the checkout, so its Python has the folder's name, too."""
    root = batch.root.rename(batch.root.with_name('it\'s a "new" (копия) $HOME'))
    environment = root / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").symlink_to(sys.executable)
    (environment / "pyvenv.cfg").write_bytes((Path(sys.prefix) / "pyvenv.cfg").read_bytes())
    (environment / "lib").symlink_to(Path(sys.prefix) / "lib")
    done = subprocess.run(
        [environment / "bin/python", "-m", "snakemake", "sweep", "--config", "chapter=one", "value=[4, 5.0]"],
        cwd=root,
        env={"PATH": os.defpath, "HOME": "/proc/nowhere", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = (root / "runs/sweeps").glob("*.csv")
    assert len(table.read_text().splitlines()) == 3
    executed = [json.loads(path.read_text()) for path in root.glob("runs/book/one/*/notebook.ipynb")]
    outputs = [
        output for notebook in executed for cell in notebook["cells"] for output in cell.get("outputs", [])
    ]
    assert len(executed) == 2 and "stderr" not in [output.get("name") for output in outputs]


def test_a_killed_batch_starts_again(batch):
    process = batch.start("snakemake", "execute_all", "--cores", "2", TINY_PAUSE="never")
    while len(list((batch.root / "runs").rglob("checkpoints/0"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1.5)  # the kernels notice
    assert batch.run("lib.run", "one").returncode == 0
    assert executed(batch, "execute_all") == ["two"], "a run finished by hand is finished"
    assert "continues from the checkpoints" in batch.last.stdout


def test_a_run_made_while_the_batch_goes_on_is_not_made_again(batch):
    process = batch.start("snakemake", "execute_all", "--cores", "1", TINY_PAUSE="other")
    while not (first := list((batch.root / "runs").rglob("checkpoints/0"))):
        assert process.poll() is None
        time.sleep(0.1)
    (other,) = {"one", "two"} - {first[0].parents[2].name}
    assert batch.run("lib.run", other).returncode == 0
    (evidence,) = (batch.root / "runs/book" / other).rglob("evidence.json")
    made = evidence.read_bytes()  # with the time of day
    batch.write("other", "is made")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert f"[{other}] already complete" in out
    assert evidence.read_bytes() == made


def test_a_run_asks_a_cluster_for_what_the_front_matter_says(batch):
    path = batch.root / "notebooks" / "one.md"
    text = path.read_text()
    said = "  id: one\n  resources: {book: {minutes: 7, memory_mb: 1234, gpus: 2, threads: 2}}\n"
    path.write_text(text.replace("  id: one\n", said))
    done = batch.run("snakemake", "execute_all", "-n", "--quiet", "host")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = done.stdout.split("rule execute:")
    (one,) = [job for job in jobs if "output: runs/book/one/" in job]
    (two,) = [job for job in jobs if "output: runs/book/two/" in job]
    assert "threads: 2" in one
    for asked in ("mem_mb=1234", "runtime=7", "gpu=2"):
        assert asked in one and asked not in two


def test_a_killed_run_is_named_with_its_command(batch):
    process = batch.start("snakemake", "execute_all", "--cores", "1", TINY_DIE="yes")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "one: cell" in err.split("failed:")[-1] and "two: cell" in err.split("failed:")[-1]


def test_a_sweep_without_a_request_says_so(batch):
    done = batch.run("snakemake", "sweep", "-n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("snakemake: which sweep? --config chapter=… or sweep=FILE")
