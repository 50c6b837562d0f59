"""What changes the identity of a run's measurements, and what is only said about them."""

import ast
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from lib.runs import fingerprint
from lib.runs.fingerprint import code_cells, data_sources, imported_names, package_versions
from lib.runs.parameters import RequestError

SET = """\
'''A set.'''
from pathlib import Path


class Set:
    def __init__(self, name):
        self.name = name

    def files(self, data_dir):
        return [Path(data_dir) / self.name]


SET, OTHER = Set('numbers.txt'), Set('letters.txt')
"""
UPPER = """\
'''A method.'''
import arithmetic


def number(x=1):
    '''Twice.'''
    from lib.models.lower import NUMBER
    return NUMBER * x + arithmetic.nothing  # of x
"""


def lay(project):
    """``tiny`` imports lib.models.upper, which imports lib.models.lower and the package ``arithmetic``;
    ``other`` imports lib.models.other and the intervals. ``tiny`` reads the data set that its parameter
    ``text`` chooses."""
    project.write("lib/models/lower.py", "NUMBER = 4\n")
    project.write("lib/models/upper.py", UPPER)
    project.write("lib/models/other.py", "NUMBER = 5\n")
    project.write("lib/models/apart.py", "")
    project.write("lib/data/tinyset.py", SET)
    project.write("data/numbers.txt", "1 2 3\n")
    project.write("data/letters.txt", "a b c\n")
    project.write("arithmetic.py", "nothing = 0\n")
    project.write(
        "arithmetic-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: arithmetic\nVersion: 1.0\n"
    )
    choice = "{text: {numbers: 'lib.data.tinyset:SET', letters: 'lib.data.tinyset:OTHER'}}"
    project.chapter("tiny", "from lib.models import upper", f"[{choice}]")
    chapter = (project.root / "notebooks/tiny.md").read_text()
    line = 'text: str = "numbers"  # which\nvalue: float'
    project.write("notebooks/tiny.md", chapter.replace("value: float", line, 1))
    project.chapter("other", "from lib.ledger import intervals\nfrom lib.models import other")
    return project


@pytest.fixture
def layered(project):
    return lay(project)


@pytest.fixture(scope="module")
def shared(shared_project):
    return lay(shared_project)


def folder_of(done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0].rsplit("/", 1)[-1]


@pytest.fixture
def folder(request_run):
    """``folder(*arguments)``: where ``lib.run`` would leave a run of ``tiny``."""
    return lambda *arguments: folder_of(request_run("tiny", "--dry-run", *arguments))


def replace(before: str, after: str):
    def change(text: str) -> str:
        assert before in text
        return text.replace(before, after)

    return change


def append(line: str):
    return lambda text: f"{text}\n{line}\n"


CELL = "## End\n\n```{code-cell} ipython3\n"
METADATA = "arithmetic-1.0.dist-info/METADATA"
TESTED = "book: {tested: true}", "book: {tested: false, why: x, command: y}"

# File, change, the chapters whose measurements it voids.
PROBES = {
    "help text of the command": ("lib/run.py", replace("examples:", "try these:"), []),
    "a word in the record's tables": ("lib/chapter/tables.py", replace("bear in mind", "note"), []),
    "a comment in the runner": ("lib/runs/execution.py", append("# a comment"), []),
    "code of the runner": ("lib/runs/execution.py", append("LATER = 1"), []),
    "a docstring below": ("lib/models/upper.py", replace("A method.", "The method."), []),
    "a docstring of a function": ("lib/models/upper.py", replace("Twice.", "Two times."), []),
    "a comment in the method": ("lib/models/upper.py", replace("# of x", "# not of x"), []),
    "layout of the method": ("lib/models/upper.py", replace("x=1", "x = 1"), []),
    "grid colour": ("lib/chapter/figures.py", replace("#dddddd", "#cccccc"), []),
    "version of a linter": ("requirements.lock", append("ruff==9.9.9"), []),
    "a rule of the ledger": ("book/claims/tiny.yml", replace("decimals: 1", "decimals: 2"), []),
    "a caveat": ("book/claims/tiny.yml", append("    caveat: Only one."), []),
    "a word of prose": ("notebooks/tiny.md", replace("# A tiny chapter", "# A very tiny chapter"), []),
    "a cell's option": ("notebooks/tiny.md", replace(CELL, f"{CELL}:tags: [hide-input]\n\n"), []),
    "help of a parameter": ("notebooks/tiny.md", replace("# what is measured", "# what it measures"), []),
    "a comment in a cell": ("notebooks/tiny.md", replace("if crash:", "if crash:  # never"), []),
    "a module that nobody imports": ("lib/models/apart.py", append("X = 1"), []),
    "an operator": ("lib/models/upper.py", replace("NUMBER * x", "NUMBER + x"), ["tiny"]),
    "a default of a function": ("lib/models/upper.py", replace("x=1", "x=2"), ["tiny"]),
    "a number further below": ("lib/models/lower.py", replace("4", "3"), ["tiny"]),
    "the package of a module": ("lib/models/__init__.py", append("X = 1"), ["other", "tiny"]),
    "what intervals are": ("lib/ledger/intervals.py", append("X = 1"), ["other"]),
    "another chapter's method": ("lib/models/other.py", replace("5", "6"), ["other"]),
    "a default of a parameter": ("notebooks/tiny.md", replace("float = 4.0", "float = 4.5"), ["tiny"]),
    "code of a cell": ("notebooks/tiny.md", replace('{"number": value}', '{"number": +value}'), ["tiny"]),
    "the data": ("data/numbers.txt", replace("3", "4"), ["tiny"]),
    "data that are not selected": ("data/letters.txt", replace("c", "d"), []),
    "a package that the method imports": (METADATA, replace("Version: 1.0", "Version: 1.1"), ["tiny"]),
    "a claim that is no longer tested": ("book/claims/tiny.yml", replace(*TESTED), ["tiny"]),
}  # fmt: skip


@pytest.mark.parametrize("what", PROBES)
def test_a_change_voids_what_measures_with_it_and_nothing_else(shared, shared_requests, what):
    def identities():
        return {chapter: folder_of(shared_requests(chapter, "--dry-run")) for chapter in ("other", "tiny")}

    name, change, voided = PROBES[what]
    path = shared.root / name
    before, content = identities(), path.read_text()
    path.write_text(change(content))
    after = identities()
    path.write_text(content)
    assert [chapter for chapter in after if after[chapter] != before[chapter]] == voided
    assert identities() == before, "back to its content, back to its run"


METHOD = """
import json, sys
from lib.runs.request import resolve
print(json.dumps([dict(resolve("tiny", "book", asked).method) for asked in json.loads(sys.argv[1])]))
"""


def test_the_method_is_what_runs_of_other_seeds_share_part_by_part(layered):
    layered.write("ask.py", METHOD)

    def methods(*asked):
        done = layered.run("ask", json.dumps(asked))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def changed(name, change):
        path = layered.root / name
        content = path.read_text()
        path.write_text(change(content))
        (after,) = methods({})
        path.write_text(content)
        return [part for part in before if after.get(part) != before[part]]

    before, others, letters = methods({}, {"seeds": [7, 8], "value": 5.0}, {"text": "letters"})
    assert before == others, "values of parameters stand beside it"
    assert set(before) ^ set(letters) == {"data lib.data.tinyset:SET", "data lib.data.tinyset:OTHER"}
    assert before["package arithmetic"] == "1.0"
    assert "lib.chapter.record" not in before
    assert changed("lib/models/lower.py", replace("4", "3")) == ["lib.models.lower"]
    assert changed("notebooks/tiny.md", replace("if crash:", "if not crash:")) == ["cell 3"]
    assert changed("data/numbers.txt", append("4")) == ["data lib.data.tinyset:SET"]
    assert changed(METADATA, replace("Version: 1.0", "Version: 1.1")) == ["package arithmetic"]
    assert changed("book/claims/tiny.yml", replace(*TESTED)) == [], "it changes no number"
    (layered.root / "data/numbers.txt").unlink()
    assert methods({})[0]["data lib.data.tinyset:SET"] == "absent"


def test_dates_and_places_decide_nothing(layered, folder):
    before = folder()
    layered.chapter("another")
    for path in layered.root.rglob("*"):
        os.utime(path, (1, 1))
    assert folder() == before
    assert folder("--out", "elsewhere").endswith("elsewhere")
    # Where the data lie does not count, what they are does.
    layered.write("moved/numbers.txt", "1 2 3\n")
    assert folder("-p", "data_dir", "moved") == before
    layered.write("moved/numbers.txt", "1 2 4\n")
    assert folder("-p", "data_dir", "moved") != before


def test_the_data_that_count_are_those_that_the_parameters_select(layered, folder):
    numbers, letters = folder(), folder("-p", "text", "letters")
    layered.write("data/letters.txt", "a b d\n")
    assert folder() == numbers and folder("-p", "text", "letters") != letters


def test_what_selects_no_data_is_refused_in_one_line(layered, request_run):
    done = request_run("tiny", "--dry-run", "-p", "text", "leters")
    assert done.returncode == 2
    assert done.stderr == "python -m lib.run: parameter text: unknown 'leters' (did you mean 'letters'?)\n"


def test_data_that_somebody_must_put_there_are_missed_by_the_run_and_not_before(layered, folder):
    layered.write(
        "lib/data/tinyset.py", SET.replace("return [", "raise RuntimeError('put it there')\n        return [")
    )
    assert folder()


def test_parameters_count_by_value(folder):
    before = folder()
    assert folder("-p", "value", "4") == before
    assert folder("-p", "value", "4.5") != before
    assert folder("--scale", "smoke") != before


def test_a_parameter_that_names_a_file_counts_by_its_content(project, folder):
    project.write("weights.bin", "one")
    before = folder("-p", "device", "weights.bin")
    project.write("weights.bin", "two")
    assert folder("-p", "device", "weights.bin") != before


def test_a_folder_counts_by_what_is_in_it(tmp_path):
    (tmp_path / "sub").mkdir()
    seen = [fingerprint.content(tmp_path)]
    for name, content in (("1.jpg", b"x"), ("sub/2.jpg", b"y"), ("sub/2.jpg", b"z")):
        (tmp_path / name).write_bytes(content)
        seen.append(fingerprint.content(tmp_path))
    (tmp_path / "sub/2.jpg").rename(tmp_path / "sub/3.jpg")
    seen.append(fingerprint.content(tmp_path))
    assert len(set(seen)) == 5
    os.utime(tmp_path / "1.jpg", (0, 0))
    assert fingerprint.content(tmp_path) == seen[-1]


def test_a_number_of_the_ledger_counts_where_a_cell_computes_with_it(project, folder):
    ledger = (project.root / "book/claims/tiny.yml").read_text()

    def with_number(number):
        project.write("book/claims/tiny.yml", ledger.replace("value: 4.0", f"value: {number}"))
        return folder()

    assert with_number(4.0) == with_number(5.0), "only judged by"
    project.chapter("tiny", "def computed(record):\n    return record.published('T1')")
    assert with_number(4.0) != with_number(5.0)
    project.chapter(
        "tiny", "def computed(record):\n    return [record.published(claim) for claim in ('T1',)]"
    )
    assert with_number(4.0) != with_number(5.0), "any claim's, when which one is not written"


def test_what_cannot_be_read_is_refused_in_one_line(layered, request_run):
    def refused(message):
        done = request_run("tiny", "--dry-run")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr

    layered.chapter("tiny", data='["lib.data.tinyset:SETT"]')
    refused("data source lib.data.tinyset:SETT")
    layered.chapter("tiny", data='["lib.data.absent:SET"]')
    refused("data source 'lib.data.absent:SET' must be module:attribute of a module in lib")
    layered.chapter("tiny", data="[{devise: {cpu: 'lib.data.tinyset:SET'}}]")
    refused("the front matter selects data by 'devise', which is no parameter")
    layered.chapter("tiny", imports="import (")
    refused("a code cell is not Python: invalid syntax, in `import (`")
    layered.chapter("tiny")
    layered.write("book/claims/tiny.yml", "paper: [")
    refused("book/claims/tiny.yml, line")
    layered.chapter("tiny")
    layered.write("lib/models/other.py", "def broken(:\n")
    refused("Syntax error in")


def test_imports_are_found_wherever_they_stand():
    source = """import numpy, lib.a.b as c
from lib.d import e, F
def late():
    from lib.g import h
"""
    wanted = {"numpy", "lib.a.b", "lib.d", "lib.d.e", "lib.d.F", "lib.g", "lib.g.h"}
    assert imported_names(ast.parse(source)) == wanted


def test_cells_that_measure():
    cells = [nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_markdown_cell("x"), nbformat.v4.new_code_cell("%matplotlib inline\nx = 2")]
    assert code_cells(nbformat.v4.new_notebook(cells=cells)) == ["x = 2"]


def test_packages_are_named_as_they_are_installed():
    code = "import os, PIL.Image, torch\nfrom yaml import safe_load\nimport matplotlib, lib.files, no_such"
    assert package_versions([code]) == {
        "pillow": version("pillow"), "PyYAML": version("pyyaml"), "torch": version("torch").partition("+")[0]
    }  # fmt: skip


def test_entries_without_choice_and_with():
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["companion"] = {"data": ["a:A", {"text": {"x": "b:X", "y": "b:Y"}}]}
    assert data_sources(notebook, {"text": "y"}) == ("a:A", "b:Y")
    with pytest.raises(RequestError, match=r"parameter text: unknown 'z' \(known: x, y\)"):
        data_sources(notebook, {"text": "z"})


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


def test_a_file_unpacked_by_hand_counts_by_its_content(tmp_path: Path, monkeypatch):
    archive = SimpleNamespace(name="x.zip", addresses=("nowhere",), known_hash="md5:0")
    source = SimpleNamespace(sources=(SimpleNamespace(archive=archive, member="x/ratings"),))
    monkeypatch.setattr(fingerprint.importlib, "import_module", lambda _: SimpleNamespace(SET=source))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "ratings").write_bytes(b"ratings")
    digest = hashlib.sha256(b"ratings").hexdigest()
    assert fingerprint._data_digests("any:SET", tmp_path) == [f"sha256:{digest}"]
