"""What changes the identity of a run, and what does not."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from lib.runs import fingerprint
from lib.runs.fingerprint import direct_imports


@pytest.fixture
def layered(project):
    """``tiny`` imports lib.models.upper, which imports lib.models.lower; lib.models.other stands apart."""
    project.write("lib/models/lower.py", "NUMBER = 4\n")
    project.write("lib/models/upper.py", "def number():\n    from lib.models.lower import NUMBER\n")
    project.write("lib/models/other.py", "NUMBER = 5\n")
    project.write(
        "lib/data/tinyset.py",
        "from pathlib import Path\n\n\nclass Set:\n"
        "    def files(self, data_dir):\n        return [Path(data_dir) / 'numbers.txt']\n\n\nSET = Set()\n",
    )
    project.write("data/numbers.txt", "1 2 3\n")
    project.chapter("tiny", "from lib.models import upper", '["lib.data.tinyset:SET"]')
    return project


@pytest.fixture
def folder(request_run):
    """``folder(*arguments)``: where ``lib.run`` would leave a run of ``tiny``."""

    def ask(*arguments: str) -> str:
        done = request_run("tiny", "--dry-run", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[0].rsplit("/", 1)[-1]

    return ask


def append(project, name: str) -> None:
    path = project.root / name
    path.write_text(path.read_text() + "\n# changed\n")


DECIDES = [
    "notebooks/tiny.md",
    "lib/models/upper.py",
    "lib/models/lower.py",
    "lib/models/__init__.py",
    "lib/data/tinyset.py",
    "lib/run.py",
    "lib/runs/execution.py",
    "lib/ledger/evidence.py",
    "lib/ledger/intervals.py",
    "lib/files.py",
    "requirements.lock",
    "book/claims/tiny.yml",
    "data/numbers.txt",
]


def test_content_that_decides(layered, folder):
    at_first = folder()
    seen = {at_first}
    for name in DECIDES:
        path = layered.root / name
        content = path.read_text()
        append(layered, name)
        seen.add(folder())
        path.write_text(content)
        assert folder() == at_first, f"{name}: back to its content, back to its run"
    assert len(seen) == 1 + len(DECIDES)


def test_what_decides_nothing(layered, folder):
    before = folder()
    append(layered, "lib/models/other.py")
    append(layered, "lib/training/loop.py")
    layered.chapter("another")
    for path in layered.root.rglob("*"):
        os.utime(path, (1, 1))
    assert folder() == before
    assert folder("--out", "elsewhere").splitlines()[0].endswith("elsewhere")
    # Where the data lie does not count, what they are does.
    layered.write("moved/numbers.txt", "1 2 3\n")
    assert folder("-p", "data_dir", "moved") == before
    layered.write("moved/numbers.txt", "1 2 4\n")
    assert folder("-p", "data_dir", "moved") != before


def test_parameters_count_by_value(folder):
    before = folder()
    assert folder("-p", "value", "4") == before
    assert folder("-p", "value", "4.5") != before
    assert folder("--scale", "smoke") != before


def test_a_parameter_that_names_a_file_counts_by_its_content(layered, folder):
    layered.write("weights.bin", "one")
    before = folder("-p", "device", "weights.bin")
    layered.write("weights.bin", "two")
    assert folder("-p", "device", "weights.bin") != before


def test_what_cannot_be_read_is_refused_in_one_line(layered, request_run):
    def refused(message):
        done = request_run("tiny", "--dry-run")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr

    layered.chapter("tiny", data='["lib.data.tinyset:SETT"]')
    refused("data source lib.data.tinyset:SETT")
    layered.chapter("tiny", imports="import (")
    refused("a code cell is not Python: invalid syntax, in `import (`")
    layered.chapter("tiny")
    layered.write("lib/models/other.py", "def broken(:\n")
    refused("Syntax error in")


def test_imports_are_found_wherever_they_stand():
    source = """%matplotlib inline
import numpy, lib.a.b as c
from lib.d import e, F
def late():
    from lib.g import h
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    modules = {"lib", "lib.a", "lib.a.b", "lib.d", "lib.d.e", "lib.g", "lib.h"}
    assert direct_imports(notebook, modules) == {"lib.a.b", "lib.d", "lib.d.e", "lib.g"}


def test_fetching_a_pinned_file_does_not_change_the_run(tmp_path: Path, monkeypatch):
    """The identity is known before the first download: by the hash that the source will check."""
    content = b"ratings"
    known = f"md5:{hashlib.md5(content).hexdigest()}"
    archive = SimpleNamespace(name="x.zip", addresses=("nowhere",), known_hash=known)
    source = SimpleNamespace(sources=(archive, SimpleNamespace(archive=archive, member="x/ratings")))
    monkeypatch.setattr(fingerprint.importlib, "import_module", lambda _: SimpleNamespace(SET=source))
    before = fingerprint._data_digests("any:SET", tmp_path)
    (tmp_path / "x.zip").write_bytes(content)
    assert fingerprint._data_digests("any:SET", tmp_path) == before == [known, known]
    (tmp_path / "x.zip").write_bytes(b"other")
    assert fingerprint._data_digests("any:SET", tmp_path) != before
