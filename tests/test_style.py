"""Code and the cells of chapters are as ruff wants them: `make lint`, where the tests see it."""

import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).resolve().parents[1]


def ruff(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ruff", *map(str, arguments), "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """The chapters as notebooks, which ruff reads cell by cell."""
    folder = tmp_path_factory.mktemp("cells")
    for chapter in (ROOT / "notebooks").glob("*.md"):
        jupytext.write(jupytext.read(chapter), folder / f"{chapter.stem}.ipynb")
    return folder


def test_code():
    for command in (["check"], ["format", "--check"]):
        done = ruff(*command, ROOT)
        assert done.returncode == 0, done.stdout


def test_cells_of_chapters(cells):
    for command in (["check", "--output-format", "concise"], ["format", "--check"]):
        done = ruff(*command, cells)
        assert done.returncode == 0, done.stdout


def test_a_badly_written_cell_is_found(tmp_path):
    notebook = jupytext.read(ROOT / "notebooks/template.md")
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.source += "\nx = [ 1,2 ]\nimport os"
    jupytext.write(notebook, tmp_path / "bad.ipynb")
    assert "F401" in ruff("check", tmp_path).stdout
    assert ruff("format", "--check", tmp_path).returncode == 1
