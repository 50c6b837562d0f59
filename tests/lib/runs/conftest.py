"""A project under git with an experiment that was planned, run seed by seed and all at once."""

import subprocess
from pathlib import Path

import pytest

CHAPTER = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
companion:
  id: planned
  data: []
---

# An experiment in seeds

```{code-cell} ipython3
:tags: [parameters]

scale: str = "book"  # the scale
seeds: list[int] = [0, 1, 2]  # the seeds
device: str = "cpu"  # the device
data_dir: str = "data"  # the data
run_dir: str = ""  # the run
gain: float = 0.1  # what the method adds
rates: dict[str, float] = {"method": 1.0}  # of each arm
```

```{code-cell} ipython3
import numpy as np
import pandas as pd

from lib.chapter.record import Record
from lib.models import drawn

record = Record("planned", scale=scale, run_dir=run_dir)
```

## Work

```{code-cell} ipython3
users = {arm: drawn.users(arm, seeds, gain * (arm == "method")) for arm in ("method", "baseline")}
scores = {arm: frame.mean(axis=1) for arm, frame in users.items()}
record.table(pd.DataFrame(scores).rename_axis("seed"), "scores")
record.table(pd.DataFrame({"constant": [1.5]}), "same")
record.table(pd.DataFrame({"first": [scores["method"].iloc[0]]}), "own")
record.table(pd.DataFrame({f"seed {seed}": [scores["method"][seed]] for seed in seeds}), "columns")
record.judge("C1", {"score": users})
record.judge("C2", {"score": {arm: list(values) for arm, values in scores.items()}})
record.judge("C3", {"seconds": {"method": [1.0, 1.1, 1.2], "baseline": [2.0 + seeds[0] / 100, 2.1, 2.2]}})
record.judge("E1", {"number": 4.0})
record.numbers("E1", name="numbers")
record.not_tested("C4")
_ = record.close()
```
"""

DRAWN = '''\
"""Made-up results per user."""

import numpy as np
import pandas as pd


def users(arm, seeds, gain):
    rows = {
        seed: np.random.default_rng([seed, len(arm)]).normal(gain, 0.05, 20)
        + np.random.default_rng(1).normal(0, 0.1, 20)
        for seed in seeds
    }
    return pd.DataFrame(rows).T.rename_axis("seed")
'''

EVERYWHERE = "smoke: {tested: true}, book: {tested: true}, long: {tested: true}, paper: {tested: true}"
NOWHERE = "{tested: false, why: needs more, command: wait}"
LEDGER = f"""\
paper: {{id: planned, title: Planned, authors: [Nobody], venue: Nowhere, year: 2000, code_licence: none}}
claims:
  - id: C1
    statement: The method beats the baseline, for other users too.
    source: Table 1
    kind: comparison
    unit: user
    rule: {{parts: [{{metric: score, better: method, worse: baseline, direction: higher}}]}}
    scales: {{{EVERYWHERE}}}
    protocol: Means over users.
  - id: C2
    statement: The method beats the baseline.
    source: Table 1
    kind: comparison
    rule: {{parts: [{{metric: score, better: method, worse: baseline, direction: higher}}]}}
    scales: {{{EVERYWHERE}}}
    protocol: Means.
  - id: C3
    statement: The method is faster.
    source: Table 2
    kind: measurement
    replicate: block
    rule: {{parts: [{{metric: seconds, better: method, worse: baseline, direction: lower}}]}}
    scales: {{{EVERYWHERE}}}
    protocol: Blocks.
  - id: C4
    statement: It scales.
    source: Table 3
    kind: comparison
    rule: {{parts: [{{metric: size, better: method, worse: baseline, direction: higher}}]}}
    scales: {{smoke: {NOWHERE}, book: {NOWHERE}, paper: {{tested: true}}}}
    protocol: Sizes.
  - id: E1
    statement: The number is four.
    source: Table 1
    paper: [{{label: number, value: 4.0, decimals: 1, where: Table 1, provenance: derived}}]
    kind: arithmetic
    scales: {{{EVERYWHERE}}}
    protocol: Counting.
"""

PLAN = """\
- name: main
  scale: long
  seeds: [11, 12, 13, 14]
  parameters: {gain: 0.2}
  stopping: After one draw.
  claims: [C1, C2]
  written: 2026-11-26
- {name: machine, scale: book, seeds: [0, 1, 2], stopping: After one draw., claims: [C2], written: 2026-11-26}
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(project) -> str:
    """Everything in a project, committed."""
    git(project.root, "add", "-A")
    git(project.root, "commit", "-qm", "all", "--allow-empty")
    return git(project.root, "rev-parse", "HEAD")


def plan(project):
    """Put the planned experiment into a project, and commit it."""
    project.write("notebooks/planned.md", CHAPTER)
    project.write("notebooks/scales/long/planned.yml", "rates: {method: 2.0}\n")
    project.write("lib/models/drawn.py", DRAWN)
    project.write("book/claims/planned.yml", LEDGER)
    project.write("book/archive/planned/plan.yml", PLAN)
    project.write(".gitignore", "runs/\n_build/\n.snakemake/\n__pycache__/\n")
    project.write("book/verdict_simulation.py", "")  # the batch looks at it
    git(project.root, "init", "-q")
    commit(project)
    return project


@pytest.fixture(scope="module")
def made(shared_project):
    """The project with its planned runs made, seed by seed by the batch, all at once under ``whole``, and the
    run of the book's scale."""
    project = plan(shared_project)
    done = project.run("snakemake", "sweep", "--config", "planned=planned", "scale=long", "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    project.batch = done
    options = ["--scale", "long", "-p", "seeds", "[11, 12, 13, 14]", "-p", "gain", "0.2"]
    for arguments in ([*options, "--out", "runs/whole"], []):
        done = project.run("lib.run", "planned", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    return project
