"""What tests of whole chapters share: a run of each at scale smoke, and pictures for the paper scales."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Smoke:
    """A run of a chapter at scale smoke, by the command line, that nobody disturbed.

    Attributes
    ----------
    folder : str
        The run's.
    code, error
        How the command ended, and what it said then.
    seconds : float
        Processor time of the command and its kernel.
    trained : float
        As much of it as was over when the first training had written a checkpoint; 0 where none does.
    """

    folder: str
    code: int
    error: str
    seconds: float
    trained: float


def start_at_smoke(chapter: str, out: Path, *options: str, **environment: str) -> psutil.Popen:
    """``python -m lib.run chapter --scale smoke --out out``; what it says goes to a file beside ``out``."""
    with Path(f"{out}.said").open("ab") as said:
        return psutil.Popen(
            [sys.executable, "-m", "lib.run", chapter, "--scale", "smoke", "--out", str(out), *options],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=said,
            stderr=said,
        )


def processor_seconds(process: psutil.Process) -> float:
    """Processor time of a process and of those that it has started."""
    seconds = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                seconds += times.user + times.system
    return seconds


def run_at_smoke(chapter: str, out: Path) -> Smoke:
    """Run it to its end."""
    process = start_at_smoke(chapter, out)
    seconds = trained = 0.0
    while process.poll() is None:
        seconds = max(seconds, processor_seconds(process))
        trained = trained or seconds * any(out.glob("checkpoints/*"))
        time.sleep(0.02)
    return Smoke(str(out), process.returncode, Path(f"{out}.said").read_text(), seconds, trained)


@pytest.fixture(scope="session")
def at_smoke(once, shared_folder) -> Callable[[str], Smoke]:
    """The run of a chapter that all tests share, in whichever process they are."""

    def run(chapter: str) -> Smoke:
        return Smoke(**once(chapter, lambda: asdict(run_at_smoke(chapter, shared_folder / chapter))))

    return run


@pytest.fixture(scope="session")
def made_up_imagenet(tmp_path_factory) -> Callable[..., Path]:
    """``made_up_imagenet("train", "val")``: a data folder with ``imagenet/<split>/<wnid>/*.JPEG``, a thousand
    folders of one picture each."""

    def make(*splits: str) -> Path:
        root = tmp_path_factory.mktemp("data")
        random = np.random.default_rng(0)
        for split in splits:
            for number in range(1000):
                path = root / "imagenet" / split / f"n{number:08d}" / f"n{number:08d}_0.JPEG"
                path.parent.mkdir(parents=True)
                Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path, "JPEG")
        return root

    return make
