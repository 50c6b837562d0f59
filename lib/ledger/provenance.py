"""Where a result comes from: code, packages, machine, time and memory.

Nothing here names a person, a host or a folder: what it collects is published.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field, FiniteFloat

from lib.files import ROOT
from lib.ledger.rules import Schema
from lib.machine import peak_memory, processor_name

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{4,64}$")]
PackageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9.!+_-]+$")]


class Provenance(Schema):
    """How a run came about.

    `commit` and `dirty` are None outside a git checkout; `dirty` is true when tracked files differ from the
    commit or untracked ones lie beside them. `wall_seconds` are of all sittings of a run that was killed and
    continued; `started`, `ended` and `sections`, wall seconds by heading of the chapter, are of the last one.
    """

    commit: Commit | None
    dirty: bool | None
    packages: dict[PackageName, Version]
    python: Version
    platform: str
    processor: str
    instruction_set: str
    accelerator: str | None = None
    threads: int = Field(ge=1)
    started: AwareDatetime
    ended: AwareDatetime
    wall_seconds: FiniteFloat = Field(ge=0)
    peak_memory_bytes: int = Field(ge=0)
    sections: dict[str, FiniteFloat] = Field(default_factory=dict)


def collect(
    started: datetime,
    root: Path = ROOT,
    made_from: tuple[str | None, bool | None] | None = None,
    seconds: float | None = None,
    earlier_seconds: float = 0.0,
) -> Provenance:
    """Provenance of what this process did since `started` (a time with a zone), up to now.

    `seconds` is how long ago that was by a clock that nobody sets (`time.monotonic`), `earlier_seconds` what
    the run had taken before it was killed and continued.

    `made_from` is the `git_state` when it started, as a run of hours should name it: others may work in the
    folder while it goes on, and `lib.runs.runner` sees to it that what it measured with stayed the same.
    """
    import torch  # slow to import, and only a kernel that has it loaded already calls this

    ended = datetime.now(UTC) if seconds is None else started + timedelta(seconds=seconds)
    commit, dirty = made_from or git_state(root)
    return Provenance(
        commit=commit,
        dirty=dirty,
        packages=package_versions(root),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=processor_name(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        threads=torch.get_num_threads(),
        started=started,
        ended=ended,
        wall_seconds=earlier_seconds + max(0.0, (ended - started).total_seconds()),
        peak_memory_bytes=peak_memory(),
    )


def git(root: Path, *arguments: str) -> str | None:
    """What git says about the checkout at `root`, times in UTC; None where it cannot say."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"TZ": "UTC", "GIT_OPTIONAL_LOCKS": "0"}  # looking must not lock out a commit under way
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def is_checkout(root: Path) -> bool:
    """Whether `root` is a checkout of its own: a folder inside somebody else's (unpacked, say) is none."""
    top = git(root, "rev-parse", "--show-toplevel")
    return top is not None and Path(top.strip()).resolve() == Path(root).resolve()


def git_state(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """Commit that `root` is checked out at, and whether anything differs from it; None, None without git."""
    if not is_checkout(root):
        return None, None
    commit, differs = (
        git(root, "rev-parse", "HEAD"),
        git(root, "status", "--porcelain", "--untracked-files=normal"),
    )
    return (None, None) if commit is None or differs is None else (commit.strip(), bool(differs.strip()))


def package_versions(root: Path = ROOT) -> dict[str, str]:
    """Installed versions of the packages that ``requirements.lock`` names, else ``pyproject.toml``."""
    lock, project = Path(root) / "requirements.lock", Path(root) / "pyproject.toml"
    lines: list[str] = []
    if lock.is_file():
        lines = lock.read_text(encoding="utf-8").splitlines()
    elif project.is_file():
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    found = {}
    for line in lines:
        if name := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line):
            try:
                found[name[0]] = version(name[0])
            except PackageNotFoundError:
                continue
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def direct_dependencies(root: Path = ROOT) -> tuple[str, ...]:
    """Names of the packages that ``pyproject.toml`` asks for; empty without one."""
    project = Path(root) / "pyproject.toml"
    if not project.is_file():
        return ()
    wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return tuple(re.match(r"[A-Za-z0-9._-]+", line)[0] for line in wanted)
