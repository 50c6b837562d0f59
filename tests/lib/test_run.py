"""`lib.run` through its real command line, in a project with one tiny chapter."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import nbformat
import pytest

from lib import claims, run
from lib.evidence import Evidence
from lib.parameters import SCALES


def only_run(project, scale="book", chapter="tiny") -> Path:
    (folder,) = (project.root / "runs" / scale / chapter).iterdir()
    return folder


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else True


def kernel_pid(project) -> int:
    log = next((project.root / "runs").rglob("log.txt")).read_text()
    return int(log.split("pid=")[1].split()[0])


def started(project) -> bool:
    """The chapter is in the middle of its first step."""
    return any((project.root / "runs").rglob("checkpoints/0"))


def test_a_run_leaves_the_whole_folder_and_is_not_repeated(project):
    first = project.run("lib.run", "tiny", "--threads", "2")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    folder = only_run(project)
    left = {path.name for path in folder.iterdir()} - {".lock"}
    assert left == {"evidence.json", "claims.json", "notebook.ipynb", "parameters.json", "log.txt"}
    evidence = Evidence.load(folder / "evidence.json")
    assert (evidence.chapter, evidence.scale, evidence.claims[0].verdict) == ("tiny", "book", "exact")
    assert evidence.parameters == {
        "scale": "book",
        "seeds": [0],
        "device": "cpu",
        "value": 4.0,
        "crash": False,
    }
    assert set(evidence.provenance.sections) == {"A tiny chapter", "Work", "End"}
    assert folder.name == json.loads((folder / "parameters.json").read_text())["fingerprint"][:12]
    lines = first.stdout.splitlines()
    assert lines[0].startswith("[tiny] 2/8 A tiny chapter · ")
    assert any(line.startswith("[tiny] 5/8 Work · ") for line in lines)
    assert any(line.startswith("[tiny]   ") and line.endswith(" step 0") for line in lines)
    assert "complete" in lines[-1] and "1 exact" in lines[-1]
    assert not any("\r" in line or "%|" in line for line in lines), "no bar where nobody watches"
    assert "env=['2', '2', '1', '0', 'UTC']" in first.stdout
    assert f"cwd={project.root.resolve()} " in first.stdout

    before = (folder / "notebook.ipynb").stat().st_mtime_ns
    second = project.run("lib.run", "tiny")
    assert second.returncode == 0
    assert "already complete" in second.stdout
    assert (folder / "notebook.ipynb").stat().st_mtime_ns == before
    forced = project.run("lib.run", "tiny", "--force")
    assert forced.returncode == 0
    assert (folder / "notebook.ipynb").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], "unknown chapter 'tinny' (did you mean 'tiny'?)"),
        (["tiny", "--scale", "smok"], "unknown scale 'smok' (did you mean 'smoke'?)"),
        (["tiny", "--scale", "paper"], "tiny has no scale 'paper'"),
        (["tiny", "-p", "valu", "3"], "unknown parameter 'valu' (did you mean 'value'?)"),
        (["tiny", "-p", "value", "four"], "parameter value must be float, got 'four' (str)"),
        (["tiny", "-p", "value", ".nan"], "parameter value must be float, got nan"),
        (["tiny", "-p", "crash", "1"], "parameter crash must be bool, got 1 (int)"),
        (["tiny", "-p", "seeds", "3"], "parameter seeds must be list[int], got 3 (int); write [3]"),
        (["tiny", "-p", "seeds", "[0, true]"], "parameter seeds must be list[int]"),
        (["tiny", "-p", "seeds", "[1, 1]"], "parameter seeds must name at least one seed"),
        (["tiny", "-p", "value", "1", "-p", "value", "2"], "parameter value is given twice"),
        (["tiny", "-p", "scale", "smoke"], "parameter scale is set by --scale"),
        (["tiny", "-p", "run_dir", "x"], "parameter run_dir is set by --out"),
        (["tiny", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["tiny", "--seeds", "1"], "unrecognized arguments: --seeds 1"),
        (["tiny", "--out", "lib"], "is not empty and holds no run"),
        (["tiny", "--out", "pyproject.toml"], "is a file"),
        ([], "which chapter?"),
    ],
)
def test_a_bad_request_is_one_line_and_writes_nothing(project, arguments, message):
    before = sorted(project.root.rglob("*"))
    done = project.run("lib.run", *arguments, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert sorted(project.root.rglob("*")) == before


def test_a_scale_file_is_checked_like_the_command_line(project):
    for text, message in [
        ("sedes: [1]", "smoke/tiny.yml: unknown parameter 'sedes' (did you mean 'seeds'?)"),
        ("seeds: 1", "smoke/tiny.yml: parameter seeds must be list[int]"),
        ("run_dir: here", "smoke/tiny.yml must not set run_dir"),
        ("[1]", "smoke/tiny.yml must map parameters to values, got list"),
        ("a: [", "smoke/tiny.yml is not YAML"),
    ]:
        project.write("notebooks/scales/smoke/tiny.yml", text)
        done = project.run("lib.run", "tiny", "--scale", "smoke")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr


def test_a_number_without_a_dot_is_a_float(project):
    """YAML 1.1 reads 1e-3 as text, on the command line as in a scale's file."""
    project.write("notebooks/scales/smoke/tiny.yml", "value: 1e-3\n")
    for arguments in (["-p", "value", "1e-3"], ["--scale", "smoke"], ["-p", "value", "0.001"]):
        done = project.run("lib.run", "tiny", *arguments, "--dry-run")
        assert "value: 0.001\n" in done.stdout, done.stderr
    assert not (project.root / "runs").exists()


def test_help_and_list(project):
    text = project.run("lib.run", "--help").stdout
    for part in ("examples:", "exit codes:", "evidence.json", "notebook.partial.ipynb", "--scale smoke"):
        assert part in text
    assert project.run("lib.run", "--list").stdout.split() == ["tiny", "A", "tiny", "chapter"]
    listed = project.run("lib.run", "tiny", "--list", "--scale", "smoke").stdout
    assert "seeds: list[int] = [1]\n    the seeds\n" in listed


def test_a_failing_cell_is_named_and_leaves_no_evidence(project):
    done = project.run("lib.run", "tiny", "-p", "crash", "true")
    assert done.returncode == 1
    folder = only_run(project)
    (line,) = done.stderr.splitlines()
    assert line.startswith("[tiny] failed in cell 6 (section 'Work', `if crash:`): last line")
    assert line.endswith(f"log {folder.relative_to(project.root)}/log.txt")
    assert not (folder / "evidence.json").exists() and not (folder / "notebook.ipynb").exists()
    partial = nbformat.read(folder / "notebook.partial.ipynb", as_version=4)
    assert any(out.output_type == "error" for cell in partial.cells for out in cell.get("outputs", []))
    assert "ValueError" in (folder / "log.txt").read_text()
    assert "\x1b" not in (folder / "log.txt").read_text()
    assert "cell 6" in (folder / "failed.txt").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("record.close()", "", "did not close its record"),
        ("record.close()", "raise SystemExit", "kept an error in its output: SystemExit"),
        ('if "TINY_DIE" in os.environ:', "if True:", "the kernel died"),
    ],
)
def test_a_chapter_that_only_seems_to_end_leaves_no_evidence(project, old, new, message):
    path = project.root / "notebooks" / "tiny.md"
    path.write_text(path.read_text().replace(old, new))
    done = project.run("lib.run", "tiny")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (only_run(project) / "evidence.json").exists()


def test_killed_and_started_again_it_continues(project):
    process = project.start("lib.run", "tiny", TINY_PAUSE="60")
    wait_for(lambda: started(project))
    kernel = kernel_pid(project)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not alive(kernel), 10)  # the kernel notices that it is alone
    folder = only_run(project)
    assert not (folder / "evidence.json").exists()
    again = project.run("lib.run", "tiny")
    assert again.returncode == 0, again.stderr
    assert "continues from the checkpoints" in again.stdout
    assert "step 0 was done" in again.stdout and "step 1" in again.stdout
    assert (folder / "evidence.json").exists() and not (folder / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_ends_its_kernel_and_keeps_checkpoints(project, number):
    process = project.start("lib.run", "tiny", TINY_PAUSE="60")
    wait_for(lambda: started(project))
    kernel = kernel_pid(project)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "[tiny] interrupted; the same command continues\n"
    assert not alive(kernel)
    folder = only_run(project)
    assert (folder / "checkpoints" / "0").exists() and not (folder / "evidence.json").exists()


def test_a_folder_with_another_run_is_not_touched(project):
    assert project.run("lib.run", "tiny", "--out", "mine").returncode == 0
    before = (project.root / "mine" / "evidence.json").read_bytes()
    other = project.run("lib.run", "tiny", "-p", "value", "5", "--out", "mine")
    assert other.returncode == 2
    assert "holds another run: tiny at book" in other.stderr and "choose another --out" in other.stderr
    assert (project.root / "mine" / "evidence.json").read_bytes() == before
    assert "already complete" in project.run("lib.run", "tiny", "--out", "mine").stdout


def test_two_processes_make_one_run(project):
    first = project.start("lib.run", "tiny", TINY_PAUSE="1")
    wait_for(lambda: started(project))
    second = project.run("lib.run", "tiny")
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "waiting for the process" in second.stdout and "already complete" in second.stdout


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["papermill.iorw.LocalHandler.write", "lib.evidence.Evidence.save"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(where, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(where, full)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test keeps its own handlers
    code = run.main(["template", "--scale", "smoke", "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert code == 1
    assert len(err.splitlines()) == 1 and "No space left on device" in err
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"evidence.json", "notebook.partial.ipynb"}
    assert not any(name.endswith((".new", ".tmp")) for name in left)


def test_scales_are_the_ledgers():
    assert set(SCALES) == set(claims.SCALES)
