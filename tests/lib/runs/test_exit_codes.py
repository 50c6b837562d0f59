"""How a run can end: its exit code as ``--help`` says, and on standard error one line or none."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

LAUNCHER = """\
import os, sys, time
if "SLOW" in os.environ:
    time.sleep(60)
sys.exit("this kernel is broken")
"""
KERNEL = '{"argv": ["/bin/false"], "display_name": "another Python", "language": "python"}'
FOREIGN = {"JUPYTER_PATH": "foreign", "JUPYTER_PREFER_ENV_PATH": "0", "JUPYTER_DEFAULT_PROVISIONER_NAME": "x"}
BROKEN = {"PYTHONPATH": "broken"}

# Arguments and what a shell does with the streams, the environment, exit code, standard error.
WAYS = {
    "success, whatever kernels are installed": (
        "",
        FOREIGN | {"IPYTHONDIR": "/proc/x", "HOME": "/proc/x"},
        0,
        "",
    ),
    "complete already": ("--out whole", {}, 0, ""),
    "bad request": ("-p valu 3", {}, 2, "python -m lib.run: tiny: unknown parameter 'valu' (did you mean"),
    "failing cell": ("-p crash true", {}, 1, "`if crash:`): ValueError: first line · log "),
    "dead kernel": ("", {"TINY_DIE": "1"}, 1, "`if crash:`): the kernel died (out of memory?) · log "),
    "kernel that ends at once": (
        "",
        BROKEN,
        1,
        "[tiny] failed: the kernel did not start: Kernel died before",
    ),
    "kernel that takes too long": (
        "--start-timeout 2",
        BROKEN | {"SLOW": "1"},
        1,
        "did not start: Kernel didn't respond in 2 seconds; --start-timeout gives it longer · log ",
    ),
    "closed standard streams": ("<&- >&- 2>&-", {}, 0, ""),
    "failure that nobody can hear": ("-p crash true 2>&-", {}, 1, ""),
    "standard output on a full disk": (">/dev/full", {}, 0, ""),
    "standard output of few characters": ("", {"PYTHONIOENCODING": "ascii"}, 0, ""),
}


@pytest.fixture(scope="module")
def tiny(shared_project):
    """A project with a complete run, and two Jupyters that are not this one."""
    shared_project.chapter("tiny")
    shared_project.write("broken/ipykernel_launcher.py", LAUNCHER)
    shared_project.write("foreign/kernels/python3/kernel.json", KERNEL)
    done = shared_project.run("lib.run", "tiny", "--out", "whole")
    assert done.returncode == 0, done.stderr
    return shared_project


def start(project, out: Path, arguments: str = "", **environment: str) -> subprocess.Popen:
    """Start a run by a shell, into a folder of its own unless `arguments` say another."""
    out = "" if "--out" in arguments else f"--out '{out}'"
    return subprocess.Popen(
        ["sh", "-c", f'exec "$0" -m lib.run tiny {out} {arguments}', sys.executable],
        cwd=project.root,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in SIGNALS],
    )


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("way", WAYS)
def test_the_exit_code_and_the_line(tiny, tmp_path, way):
    arguments, environment, code, said = WAYS[way]
    process = start(tiny, tmp_path / "run", arguments, **environment)
    out, err = process.communicate()
    assert (process.returncode, err.count("\n")) == (code, int(bool(said))), out + err
    assert said in err
    folder = tiny.root / "whole" if "--out" in arguments else tmp_path / "run"
    assert (folder / "evidence.json").exists() == (code == 0)
    assert (folder / "failed.txt").exists() == (code == 1)
    assert "\x1b" not in err and len(err) < 700


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_kernel_and_keeps_checkpoints(tiny, tmp_path, number):
    folder = tmp_path / "run"
    process = start(tiny, folder, TINY_PAUSE="60")
    wait_for((folder / "checkpoints/0").exists)
    kernel = int(re.search(r"pid=(\d+)", (folder / "log.txt").read_text())[1])
    process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "[tiny] interrupted; the same command continues\n")
    assert not alive(kernel)
    assert (folder / "checkpoints/0").exists() and not (folder / "evidence.json").exists()


def test_ctrl_c_before_anything_is_imported_is_no_traceback(tiny, tmp_path):
    """Where a slow disk takes seconds for that."""
    started = tiny.write(
        "slow/argparse.py", "import os, time\nopen(os.environ['SEEN'], 'x')\ntime.sleep(60)\n"
    )
    process = start(tiny, tmp_path / "run", PYTHONPATH=str(started.parent), SEEN=str(tmp_path / "seen"))
    wait_for((tmp_path / "seen").exists)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "") and process.returncode == -signal.SIGINT  # 130 in a shell


def test_a_disk_without_locks_is_told(tiny, tmp_path):
    """As network file systems without a lock server answer."""
    refused = "import errno, fcntl\ndef flock(*_):\n    raise OSError(errno.ENOLCK, 'No locks available')\n"
    tiny.write("lockless/sitecustomize.py", refused + "fcntl.flock = flock\n")
    process = start(tiny, tmp_path / "run", PYTHONPATH=str(tiny.root / "lockless"))
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out + err
    assert "[tiny] this disk has no locks: start nothing else in " in out


def test_a_reader_who_goes_away_does_not_end_the_run(tiny, tmp_path):
    process = start(tiny, tmp_path / "run")
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, "")
    process.stderr.close()
    assert (tmp_path / "run/evidence.json").exists() and (tmp_path / "run/log.txt").read_text()


def test_a_folder_that_cannot_be_written(tiny, small_disk):
    made = start(tiny, small_disk / "run")
    assert (made.communicate()[1], made.returncode) == ("", 0)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    complete = start(tiny, small_disk / "run")
    out, err = complete.communicate()
    assert (complete.returncode, err) == (0, "") and "[tiny] already complete · " in out
    for arguments in ("--force", "--dry-run"):
        other = start(tiny, small_disk / ("run" if arguments == "--force" else "new"), arguments)
        _, err = other.communicate()
        assert (other.returncode, err.count("\n")) == (1, 1)
        assert err.startswith("[tiny] cannot write: [Errno 30] Read-only file system")
        assert err.endswith("; choose another folder with --out\n")
