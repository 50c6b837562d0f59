"""What a bare clone is made of: the lock, Binder's environment, CI, and nothing that only one machine has."""

import os
import re
import subprocess
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lib.data.dataset import DataSet
from lib.data.packages import PackageFile
from lib.ledger.provenance import git

ROOT = Path(__file__).resolve().parents[1]
# Written in parts, or this file would be the first to break its own rule.
HOSTS = [
    "pypi" + ".org",
    "python" + "hosted",
    "download." + "pytorch",
    "conda." + "anaconda",
    "index" + "-url=",
]
PLACES = ["/" + "work/", "/" + "root/", "/" + "tmp/", "/" + "opt/"]


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked() -> list[Path]:
    names = git(ROOT, "ls-files", "-z")
    if names is None:
        pytest.skip("git does not say what is tracked: no checkout, or another user's (git's safe.directory)")
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_the_lock_has_one_exact_version_a_line():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line), line
    assert lines == sorted(lines, key=str.upper)
    assert len({canonicalize_name(line.split("==")[0]) for line in lines}) == len(lines)


def test_the_lock_installs_on_every_python_3_11():
    """Debian 12 has 3.11.2: a package that needs a later one would stop its users at the first command."""
    for name, version in lock().items():
        required = metadata(name)["Requires-Python"]
        assert SpecifierSet(required or "").contains("3.11.2"), f"{name} {version} needs Python {required}"


def test_the_lock_satisfies_the_project():
    wanted = project()["dependencies"] + project()["optional-dependencies"]["test"]
    locked = lock()
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in requirements.lock: make lock"
        assert requirement.specifier.contains(locked[name]), (
            f"{requirement}, locked {locked[name]}: make lock"
        )


def test_every_dependency_says_why():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    named = [line for line in lines if re.match(r'    "[A-Za-z][^ ]*>=', line)]
    assert len(named) >= len(project()["dependencies"])
    for line in named:
        assert re.search(r'",\s+# \w', line), line


def test_binder_has_the_versions_of_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(line.split("=", 1) for line in environment if isinstance(line, str) and "=" in line)
    assert conda == {"python": "3.11", "pytorch-cpu": lock()["torch"]}
    (pip,) = (line["pip"] for line in environment if isinstance(line, dict))
    assert pip == ["-r requirements.lock"]
    assert project()["requires-python"] == ">=3.11,<3.12"
    post = (ROOT / "postBuild").read_text()
    assert "--no-deps -r requirements-data.txt" in post and "jupytext --to ipynb" in post
    assert os.access(ROOT / "postBuild", os.X_OK)


def test_data_wheels_are_the_ones_that_the_loaders_read():
    lines = (ROOT / "requirements-data.txt").read_text().splitlines()
    pinned = {line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()}
    from lib.data import drawings, movielens, openmoji, photographs, rating_feed, stereo, weights

    modules = (drawings, movielens, photographs, rating_feed, stereo, weights)
    sets = [value for module in modules for value in vars(module).values()]
    parts = [part for value in sets if isinstance(value, DataSet) for part in value.sources]
    read = {part.requirement for part in parts if isinstance(part, PackageFile)}
    assert read | {openmoji.OPENMOJI.requirement} == pinned
    assert not {name.split("==")[0] for name in pinned} & set(lock())


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    for command in ("make test", "make book"):
        assert command in script and command in readme
    weekly = yaml.safe_load((ROOT / ".github/workflows/chance.yml").read_text())["jobs"]["harsh"]
    assert ".ci/harsh" in [step.get("run") for step in weekly["steps"]]
    for name in ("run", "harsh"):
        assert os.access(ROOT / ".ci" / name, os.X_OK)
    workflow = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
    steps = workflow["jobs"]["book"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert {"python-version": "3.11"}.items() <= next(
        s["with"] for s in steps if "python" in s.get("uses", "")
    ).items()


def test_ci_looks_for_the_browsers_that_the_tests_look_for():
    names = set(re.findall(r"type -P ([\w-]+)", (ROOT / ".ci/run").read_text()))
    pages = (ROOT / "tests/book/test_pages.py").read_text()
    (looked_for,) = re.findall(r"map\(shutil\.which, \((.*?)\)\)", pages)
    assert names == set(re.findall(r'"(.*?)"', looked_for)) != set()


def test_workflows_keep_no_token_on_the_disk_and_stop_no_deployment():
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            checkouts = [step for step in job["steps"] if "actions/checkout@" in step.get("uses", "")]
            assert all(step["with"]["persist-credentials"] is False for step in checkouts)
    book = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())
    assert book["concurrency"]["cancel-in-progress"] == "${{ github.ref != 'refs/heads/main' }}"


def test_makefile_names_its_commands():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in (
        "book",
        "test",
        "notebooks",
        "serve",
        "sweep",
        "run",
        "long",
        "archive",
        "lint",
        "lock",
        "clean",
    ):
        assert f"make {name} " in done.stdout


@pytest.mark.parametrize(("name", "version"), [("nowhere/python3.11", ""), ("old", "Python 3.9.1")])
def test_make_refuses_another_python(name, version, tmp_path):
    for file in ("Makefile", "requirements.lock", "requirements-data.txt", "pyproject.toml"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    if version:
        old = tmp_path / name
        old.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}"\n[ "$1" != -c ]\n')
        old.chmod(0o755)
    command = ["make", "install", f"PYTHON={tmp_path / name}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Python 3.11 is needed" in done.stderr and version in done.stderr
    assert not (tmp_path / ".venv").exists()


PYTHON = """#!/bin/sh
case "$*" in
  "-m venv --clear .venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"pip install"*) echo "user=$PIP_USER prefix=$PIP_PREFIX root=$PIP_ROOT target=$PIP_TARGET" ;;
  *"import snakemake"*) exit "${ELSEWHERE:-0}" ;;
esac
"""


@pytest.fixture
def install(tmp_path):
    """A function that calls `make install` with a Python that only says what it is asked for."""
    for file in ("Makefile", "requirements.lock", "requirements-data.txt", "pyproject.toml"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def make(**environment):
        command = ["make", "install", "PYTHON=./python"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        environment = {**inherited, **environment}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return make


def test_packages_go_where_make_looks_for_them(install, tmp_path):
    """Clusters' settings of pip often say otherwise."""
    settings = {"PIP_USER": "1", "PIP_PREFIX": "/p", "PIP_ROOT": "/r", "PIP_TARGET": "/t"}
    elsewhere = install(**settings, ELSEWHERE="1")
    assert elsewhere.returncode == 2 and "pip did not install into .venv" in elsewhere.stderr
    assert not (tmp_path / ".venv/.installed").exists()
    done = install(**settings)
    assert done.stdout.splitlines()[-3:] == ["user=0 prefix= root= target="] * 3
    assert "making .venv" not in done.stdout, "what was begun is gone on with"
    assert "Nothing to be done" in install().stdout


def test_an_environment_that_was_moved_or_lost_its_python_is_made_anew(install, tmp_path):
    install()
    written = tmp_path / ".venv/pyvenv.cfg"
    written.write_text(f"command = python -m venv --clear {tmp_path.resolve()}/.venv\n")
    assert "Nothing to be done" in install().stdout
    written.write_text("command = python -m venv --clear /elsewhere/.venv\n")
    assert "making .venv" in install().stdout
    python = tmp_path / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    done = install()
    assert "making .venv" in done.stdout and done.returncode == 0, done.stderr


def test_no_file_names_a_registry_or_a_machine():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {word}" for word in HOSTS + PLACES if word in line]
    assert not found


def test_modules_stay_readable():
    for path in (ROOT / "lib").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path.name


def test_chapters_are_text():
    """Notebooks are made from the text and never committed."""
    ignored = (ROOT / ".gitignore").read_text()
    assert "/notebooks/*.ipynb" in ignored
    assert not [path for path in tracked() if path.suffix == ".ipynb"]
