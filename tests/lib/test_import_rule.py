"""The rooms of `lib` and who may know whom: the contracts in pyproject.toml, and that they can fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_rule_is_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("lib/models/recommenders/meantime.py", "from lib.ledger.verdicts import judge"),
        ("lib/models/recommenders/meantime.py", "from lib.training.loop import fit"),
        ("lib/metrics/ranking.py", "def late():\n    import lib.run"),
        ("lib/quantization/lsq.py", "from lib.data import images"),
        ("lib/data/interactions.py", "from lib.ledger import evidence"),
        ("lib/data/images.py", "from lib.experiments import profit"),
        ("lib/data/images.py", "from lib.chapter.figures import use_style"),
        ("lib/training/loop.py", "from lib.runs.request import resolve"),
        ("lib/training/language_models.py", "from lib.ledger.verdicts import judge"),
        ("lib/experiments/profit.py", "from lib.runs.runner import run"),
        ("lib/experiments/profit.py", "from lib.chapter.record import Record"),
        ("lib/ledger/intervals.py", "from lib.ledger.verdicts import judge"),
        ("lib/chapter/tables.py", "from lib.models.vision import resnet"),
        ("lib/files.py", "import lib.machine"),
        ("lib/odds_and_ends.py", '"""A module that has no place."""'),
    ],
)
def test_a_module_that_breaks_it_is_caught(module, line, tmp_path):
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / module
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout or "odds_and_ends" in done.stdout
