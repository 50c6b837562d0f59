"""A page is made again from what a run stored: today's words, rules and style, and nothing is executed."""

import json
from pathlib import Path

import pytest

CHAPTER = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
companion: {id: page, data: []}
---

# A page

```{code-cell} ipython3
:tags: [parameters]

scale: str = "book"  # the scale
seeds: list[int] = [0, 1, 2]  # the seeds
device: str = "cpu"  # the device
data_dir: str = "data"  # the data
run_dir: str = ""  # the run
```

```{code-cell} ipython3
import pandas as pd
from lib.chapter.figures import arms_figure, use_style
from lib.chapter.record import Record
from lib.runs.request import parameter_table

use_style()
record = Record("page", scale=scale, run_dir=run_dir)
(record.folder / "executed").open("a").write("x")
record.ledger_table()
```

```{code-cell} ipython3
---
mystnb: {figure: {caption: Scores.}}
---
scores = pd.DataFrame({"arm": ["a"] * 3 + ["b"] * 3, "score": [3.0, 3.1, 3.2, 1.0, 1.1, 1.3]})
record.figure(arms_figure(scores, ["score"]), "scores")
```

```{code-cell} ipython3
figure = arms_figure(scores, ["score"])
figure.axes[0].axvline(2.0)
record.figure(figure, "changed")
```

```{code-cell} ipython3
record.table(scores.assign(grid=0.5, seed=[0, 1, 2] * 2).drop(columns="arm").set_index("seed"), "grid")
record.table_figure("grid", "arms_figure", metrics=["score"], arm="grid")
```

```{code-cell} ipython3
record.judge("E1", {"number": 4.04, "other": 1.0})
```

```{code-cell} ipython3
record.judge("C1", {"score": {"a": [3.0, 3.1, 3.2], "b": [1.0, 1.1, 1.3]}})
```

```{code-cell} ipython3
record.numbers("E1", name="numbers")
```

```{code-cell} ipython3
parameter_table("page")
```

```{code-cell} ipython3
record.verdicts()
```

```{code-cell} ipython3
record.close()
record.provenance()
```
"""
LEDGER = """\
paper: {id: page, title: Page, authors: [Nobody], venue: Nowhere, year: 2000, code_licence: none}
claims:
  - id: E1
    statement: The number is four.
    source: Table 1
    paper: [{label: number, value: 4.0, decimals: 1, where: Table 1, provenance: derived}]
    kind: arithmetic
    scales: {smoke: {tested: true}, book: {tested: true}, paper: {tested: true}}
    protocol: Counting.
  - id: C1
    statement: The first is better.
    source: Table 2
    kind: comparison
    rule: {parts: [{metric: score, better: a, worse: b, direction: higher}]}
    scales: {smoke: {tested: true}, book: {tested: true}, paper: {tested: true}}
    protocol: Made up.
"""
PRESENT = """
import json, sys
from pathlib import Path
from lib.runs.presentation import present
from lib.runs.request import resolve
request = resolve("page")
try:
    made = present(request, request.folder, Path(sys.argv[1]))
except ValueError as error:
    print(json.dumps({"refused": str(error), "folder": str(request.folder)}))
    raise SystemExit
parts = ("source", "metadata", "outputs")
cells = [{part: cell.get(part, []) for part in parts} for cell in made.notebook.cells]
files = {name: path.read_bytes().hex() for name, path in made.files.items()}
claims = {c.id: [c.verdict, c.rule_is_younger, c.reason] for c in made.evidence.claims}
print(json.dumps({"folder": str(request.folder), "cells": cells, "files": files, "claims": claims}))
"""


class Page:
    def __init__(self, project):
        self.project, self.number = project, 0
        self.at_first = self.made()

    def made(self) -> dict:
        self.number += 1
        script = self.project.write("present_it.py", PRESENT)
        done = self.project.run("present_it", f"made-{self.number}")
        script.unlink()
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def changed(self, *changes: tuple[str, str, str]) -> dict:
        """What is made of the same run after changes (file, before, after), which are then taken back."""
        texts = {name: (self.project.root / name).read_text() for name, *_ in changes}
        for name, before, after in changes:
            path = self.project.root / name
            assert before in path.read_text()
            path.write_text(path.read_text().replace(before, after))
        made = self.made()
        for name, text in texts.items():
            (self.project.root / name).write_text(text)
        assert made["folder"] == self.at_first["folder"], "it is the same run"
        assert (Path(made["folder"]) / "executed").read_text() == "x", "nothing was executed"
        return made

    def shown(self, made: dict, what: str) -> str:
        """HTML of the output that shows a part of the record."""
        outputs = [output for cell in made["cells"] for output in cell["outputs"]]
        (one,) = [o for o in outputs if o["metadata"].get("companion", {}).get("shows") == what]
        return one["data"].get("text/html") or one["data"]["image/png"]


@pytest.fixture(scope="module")
def page(shared_project):
    shared_project.write("notebooks/page.md", CHAPTER)
    shared_project.write("notebooks/scales/smoke/page.yml", "")
    shared_project.write("notebooks/scales/paper/page.yml", "")
    shared_project.write("book/claims/page.yml", LEDGER)
    done = shared_project.run("lib.run", "page")
    assert done.returncode == 0, done.stderr
    return Page(shared_project)


def test_unchanged_it_is_the_run_itself(page):
    folder = Path(page.at_first["folder"])
    assert page.at_first["claims"]["E1"][:2] == ["exact", False]
    assert page.at_first["claims"]["C1"][:2] == ["holds", False]
    ran = json.loads((folder / "notebook.ipynb").read_text())["cells"]
    for before, after in zip(ran[1:], page.at_first["cells"], strict=True):
        assert "".join(before["source"]) == after["source"]
        assert [o["output_type"] for o in before.get("outputs", [])] == [
            o["output_type"] for o in after["outputs"]
        ]
    for name, content in page.at_first["files"].items():
        assert (folder / name).read_bytes().hex() == content, name


def test_words_are_todays(page):
    made = page.changed(
        ("notebooks/page.md", "# A page", "# Another page"),
        ("notebooks/page.md", "caption: Scores.", "caption: All scores."),
        ("notebooks/page.md", "# the seeds", "# one training each"),
        ("book/claims/page.yml", "The first is better.", "The first is far better."),
    )
    assert made["cells"][0]["source"] == "# Another page"
    (figure,) = [cell for cell in made["cells"] if "figure" in cell["metadata"].get("mystnb", {})]
    assert figure["metadata"]["mystnb"]["figure"]["caption"] == "All scores." and figure["outputs"]
    assert "one training each" in page.shown(made, "parameters")
    for part in ("ledger", "verdicts"):
        assert "far better" in page.shown(made, part) and "far better" not in page.shown(page.at_first, part)
    assert not any(younger for _, younger, _ in made["claims"].values()), "words are no rule"


def test_rules_are_todays_and_say_that_they_are_younger(page):
    made = page.changed(("book/claims/page.yml", "decimals: 1", "decimals: 2"))
    assert made["claims"]["E1"] == ["contradicted", True, "number: ours 4.04, the paper's 4.00."]
    assert made["claims"]["C1"][:2] == ["holds", False], "another claim's rule"
    for part in ("verdicts", "verdict E1"):
        assert "contradicted" in page.shown(made, part)
        assert "rule changed after the measurement" in page.shown(made, part)
    assert "contradicted" in page.shown(made, "numbers E1")
    assert b"contradicted" in bytes.fromhex(made["files"]["tables/numbers.csv"])


def test_tables_figures_and_the_judging_code_are_todays(page):
    made = page.changed(
        ("lib/chapter/tables.py", '"wall time"', '"time on the wall"'),
        ("lib/chapter/figures.py", "#dddddd", "#00ff00"),
        ("lib/ledger/intervals.py", "LEVEL = 0.96", "LEVEL = 0.97"),
        ("book/claims/page.yml", "direction: higher", "direction: lower"),
    )
    assert "time on the wall" in page.shown(made, "provenance")
    assert made["claims"]["C1"][:2] == ["contradicted", True]
    assert made["claims"]["E1"][:2] == ["exact", True], "the code that judges is part of the rule"
    for name in ("figures/scores.png", "figures/scores.svg"):
        assert made["files"][name] != page.at_first["files"][name]
    assert b"#00ff00" in bytes.fromhex(made["files"]["figures/scores.svg"])
    assert page.shown(made, "figure scores") != page.shown(page.at_first, "figure scores")
    # One that a cell changed after it was drawn stays what it was: its data do not tell how it was changed.
    assert made["files"]["figures/changed.svg"] == page.at_first["files"]["figures/changed.svg"]


def test_what_the_measurements_cannot_answer_asks_for_a_run(page):
    made = page.changed(("book/claims/page.yml", "worse: b", "worse: c"))
    says = (
        "notebooks/page: C1: expected the arms of score a, c; got a; run: python -m lib.run page --scale book"
    )
    assert made["refused"] == f"{says} --force"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notebook.ipynb", "", "notebook.ipynb cannot be read: Expecting value"),
        ("evidence.json", "{", "evidence.json: the file: Invalid JSON"),
        ("tables/numbers.csv", "", "tables/numbers.csv is not there, or empty"),
    ],
)
def test_a_damaged_run_is_one_line_with_the_command(page, name, content, says):
    path = Path(page.at_first["folder"]) / name
    whole = path.read_bytes()
    path.write_text(content)
    try:
        refused = page.made()["refused"]
    finally:
        path.write_bytes(whole)
    assert refused.startswith(f"notebooks/page: {says}") and "\n" not in refused
    assert refused.endswith("; run: python -m lib.run page --scale book --force")
