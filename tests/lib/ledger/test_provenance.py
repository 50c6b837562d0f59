"""Where a result comes from: inside and outside of git, with and without a lock."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lib.files import ROOT
from lib.ledger.provenance import (
    Provenance,
    collect,
    direct_dependencies,
    git_state,
    package_versions,
)
from lib.machine import peak_memory, processor_name


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_commit_and_whether_anything_changed(checkout):
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), False)
    (checkout / "file").write_text("2")
    assert git_state(checkout)[1] is True
    git(checkout, "commit", "-qam", "two")
    (checkout / "beside").write_text("3")
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), True)


def test_what_somebodys_git_hides_is_a_change(checkout, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").write_text("[status]\nshowUntrackedFiles = no\n")
    monkeypatch.setenv("HOME", str(home))
    (checkout / "beside").write_text("3")
    assert git_state(checkout)[1] is True


def test_no_checkout_or_somebody_elses(checkout, tmp_path_factory, monkeypatch):
    assert git_state(tmp_path_factory.mktemp("plain")) == (None, None)
    inside = checkout / "unpacked"
    inside.mkdir()
    assert git_state(inside) == (None, None)
    # A hook's environment must not make this look like another repository.
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
    assert git_state(inside) == (None, None)
    monkeypatch.setenv("PATH", str(inside))
    assert git_state(checkout) == (None, None)


def test_an_empty_repository_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == (None, None)


def test_versions_are_those_installed(tmp_path):
    assert package_versions(tmp_path) == {}
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["numpy>=1", "torch", "not-installed-at-all>=3"]\n'
    )
    assert package_versions(tmp_path) == {"numpy": np.__version__, "torch": torch.__version__}
    assert direct_dependencies(tmp_path) == ("numpy", "torch", "not-installed-at-all")
    (tmp_path / "requirements.lock").write_text(
        "# pinned\n--extra-index-url https://example.org\nscipy==0.0.1 ; python_version > '3'\n"
    )
    assert package_versions(tmp_path) == {"scipy": version("scipy")}
    assert direct_dependencies(tmp_path / "nowhere") == ()


def test_collected(checkout, private):
    started = datetime.now(UTC) - timedelta(seconds=5)
    found = collect(started, checkout)
    assert found.commit == git(checkout, "rev-parse", "HEAD")
    assert found.wall_seconds >= 5
    assert found.threads == torch.get_num_threads()
    assert found.instruction_set == torch.backends.cpu.get_cpu_capability()
    assert found.processor == processor_name() != ""
    assert found.sections == {}
    assert Provenance.model_validate_json(found.model_dump_json()) == found
    for name in (str(checkout), *private):
        assert name not in found.model_dump_json()


def test_a_clock_that_is_set_back_does_not_shorten_a_run(checkout):
    started = datetime.now(UTC) + timedelta(hours=3)
    found = collect(started, checkout, seconds=5.0)
    assert (found.wall_seconds, found.ended - found.started) == (5.0, timedelta(seconds=5))


def test_what_a_run_of_hours_was_made_from_is_what_was_there_when_it_started(checkout):
    before = git_state(checkout)
    (checkout / "file").write_text("somebody works on")
    found = collect(datetime.now(UTC), checkout, before)
    assert (found.commit, found.dirty) == (git(checkout, "rev-parse", "HEAD"), False)
    assert collect(datetime.now(UTC), checkout).dirty is True


def test_times_need_a_zone(checkout):
    fields = collect(datetime.now(UTC), checkout).model_dump()
    with pytest.raises(ValidationError, match="timezone"):
        Provenance(**fields | {"started": datetime(2020, 1, 1)})


def test_peak_memory_is_this_processs_and_grows():
    before = peak_memory()
    block = np.ones(2**24)
    assert 10 * 2**20 < before <= peak_memory() < 2**40
    assert peak_memory() >= block.nbytes
    # A child starts anew, not from what its parent has.
    code = "from lib.machine import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 0 < int(child.stdout) < before
