"""A small project of its own, with tiny chapters, for the tests of the runner and of the batch."""

import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

CHAPTER = """\
---
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
companion:
  id: {name}
  data: {data}
---

# A tiny chapter

```{{code-cell}} ipython3
:tags: [parameters]

scale: str = "book"  # the scale
seeds: list[int] = [0]  # the seeds
device: str = "cpu"  # the device
data_dir: str = "data"  # the data
run_dir: str = ""  # the run
value: float = 4.0  # what is measured
crash: bool = False  # raise an error
```

```{{code-cell}} ipython3
import os
import time

{imports}
from lib.chapter.record import Record

record = Record("{name}", scale=scale, run_dir=run_dir)
```

## Work

```{{code-cell}} ipython3
names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "COMPANION_RUN", "PYTHONHASHSEED", "TZ")
record.log.info("pid=%d cwd=%s env=%s", os.getpid(), os.getcwd(), [os.environ[name] for name in names])
checkpoints = record.folder / "checkpoints"
checkpoints.mkdir(exist_ok=True)
for step in range(2):
    if (checkpoints / str(step)).exists():
        record.log.info("step %d was done", step)
        continue
    record.log.info("step %d", step)
    (checkpoints / str(step)).touch()
    while not os.path.exists(os.environ.get("TINY_PAUSE", os.curdir)):  # the name of a file that ends it
        time.sleep(0.05)
```

```{{code-cell}} ipython3
if crash:
    raise ValueError("first line\\nlast line")
if "TINY_DIE" in os.environ:
    os._exit(1)
```

## End

```{{code-cell}} ipython3
record.judge("T1", {{"number": value}})
record.close()
```
"""
LEDGER = """\
paper:
  {id: tiny, title: Tiny, authors: [Nobody], venue: Nowhere, year: 2000, code_licence: none}
claims:
  - id: T1
    statement: The number is four.
    source: Table 1
    paper: [{label: number, value: 4.0, decimals: 1, where: Table 1, provenance: derived}]
    kind: arithmetic
    scales: {smoke: {tested: true}, book: {tested: true}, paper: {tested: true}}
    protocol: Counting.
"""
# The record asks torch for the processor's instruction set, which would be most of a tiny chapter's time.
TORCH = """\
from types import SimpleNamespace as _Names
backends = _Names(cpu=_Names(get_cpu_capability=lambda: "NONE"))
cuda = _Names(is_available=lambda: False)
get_num_threads = lambda: 1
"""


# Many requests to the command line of `lib.run` in one process: starting it takes longer than most answers.
REQUESTS = """
import contextlib, io, json, sys
from lib.run import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(json.loads(line))
        except SystemExit as error:
            code = error.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


# Property tests see the same examples at each `make test`; --hypothesis-profile random draws others, more.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("random", derandomize=False, deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("fixed")


# Tests of git see no settings of whoever runs them: what is signed, hooked or hidden.
os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="how often runs of chapters are killed")
    parser.addoption("--lowest", type=int, default=1, help="how many lowest values of parameters are tried")
    parser.addoption(
        "--seed", type=int, default=0, help="of those moments, and of what is drawn without a seed"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Whatever a test draws without a seed of its own is the same alone, in any order and in any process."""
    seed = item.config.getoption("--seed")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """The folder that all processes of one `pytest -n` have together."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def once(shared_folder) -> Callable[[str, Callable], object]:
    """``once(name, make)``: what `make()` returned, as JSON has it, in the first process that asked."""

    def get(name: str, make: Callable) -> object:
        told = shared_folder / f"{name}.json"
        with FileLock(f"{told}.lock"):
            if not told.exists():
                told.write_text(json.dumps(make()), encoding="utf-8")
        return json.loads(told.read_text(encoding="utf-8"))

    return get


class Project:
    """A copy of what a run needs, with tiny chapters in place of the real ones."""

    def __init__(self, root: Path):
        self.root, self.processes = root, []
        shutil.copytree(ROOT / "lib", root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "profiles", root / "profiles")
        for name in ("Snakefile", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        (root / "torch.py").write_text(TORCH)
        (root / "requirements.lock").write_text("pydantic==2.0\n")

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def chapter(self, name: str, imports: str = "", data: str = "[]") -> None:
        self.write(f"notebooks/{name}.md", CHAPTER.format(name=name, imports=imports, data=data))
        self.write(f"notebooks/scales/smoke/{name}.yml", "seeds: [1]\n")
        self.write(f"book/claims/{name}.yml", LEDGER)

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        """Start Python with ``-m`` and these arguments in the project, in a process group of its own."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env={**inherited, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Tests that are themselves in the background of a shell would pass on that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.processes.append(process)
        return process

    def end(self) -> None:
        """Kill what a test that failed has left waiting."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*command, **environment)
        out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


@contextmanager
def requests(project: Project) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """A function of arguments that gives the answer of ``python -m lib.run``, without a start for each."""
    process = subprocess.Popen(
        [sys.executable, "-c", REQUESTS],
        cwd=project.root,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(*arguments: str) -> subprocess.CompletedProcess:
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        return subprocess.CompletedProcess(arguments, *json.loads(process.stdout.readline()))

    yield ask
    process.communicate()


@pytest.fixture
def request_run(project) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """As `requests`, for a project of the test's own."""
    with requests(project) as ask:
        yield ask


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory) -> Project:
    """A project for all tests of a module, which leave it as it was."""
    return Project(tmp_path_factory.mktemp("shared") / "project")


@pytest.fixture(scope="module")
def shared_requests(shared_project) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """As `requests`, for that project."""
    with requests(shared_project) as ask:
        yield ask


@pytest.fixture
def private(tmp_path_factory, monkeypatch) -> tuple[str, str]:
    """Where this machine's user is at home and what it is called: names that are in no text by chance."""
    home, machine = str(tmp_path_factory.mktemp("home-of-its-user")), "name-of-this-machine"
    names = os.uname()
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((names[0], machine, *names[2:])))
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    monkeypatch.setattr(platform, "node", lambda: machine)
    return home, machine


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs Linux and root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project with one chapter, ``tiny``."""
    made = Project(tmp_path / "project")
    made.chapter("tiny")
    yield made
    made.end()
