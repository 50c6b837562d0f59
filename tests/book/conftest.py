"""A whole book on made-up runs: the real pages and ledgers, chapters executed on paper only."""

import base64
import shutil
import sys
from datetime import date, timedelta
from pathlib import Path
from zlib import crc32

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from book import build as builder  # noqa: E402
from book import verdict_simulation  # noqa: E402
from lib.chapter.record import Record  # noqa: E402
from lib.ledger.archive import ArchivedEvidence, RunMade  # noqa: E402
from lib.ledger.evidence import Evidence  # noqa: E402
from lib.ledger.provenance import Provenance  # noqa: E402
from lib.runs.parameters import RequestError  # noqa: E402
from lib.runs.request import Request  # noqa: E402
from lib.runs.sweep import simulation_folder  # noqa: E402

SCALE = "smoke"
PROVENANCE = Provenance.model_fields


def made_up(claim, rng):
    """Three replicates per arm that a rule accepts; what they say does not matter here."""
    if claim.kind == "arithmetic":
        return {n.name: n.value if n.between is None else sum(n.between) / 2 for n in claim.paper}
    if claim.unit:  # per unit, and the same in every claim that reads them
        return {
            metric: {arm: per_unit(f"{metric}, {arm}") for arm in arms}
            for metric, arms in claim.arms(floor=True).items()
        }
    return {
        metric: {arm: list(rng.normal(1 - 0.1 * place, 0.02, 3)) for place, arm in enumerate(arms)}
        for metric, arms in claim.arms(floor=True).items()
    }


def per_unit(name):
    """Three replicates, five units: (3, 5)."""
    return np.random.default_rng(crc32(name.encode())).normal(1, 0.02, (3, 5))


def run_chapter(root, chapter, scale=SCALE):
    """Leave a complete run of `chapter` as `lib.run` would, without running it; returns its folder."""
    folder = root / "runs" / scale / chapter / "made-up"
    shutil.rmtree(folder, ignore_errors=True)
    record = Record(chapter, scale=scale, run_dir=folder, root=root)
    rng = np.random.default_rng(0)
    cells = [
        new_markdown_cell(f"# Chapter {chapter}\n\nA made-up run."),
        new_code_cell("seeds: list[int] = [0, 1, 2]", metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell(
            f'seeds = [0, 1, 2]\nscale = "{scale}"\nrun_dir = "{folder}"',
            metadata={"tags": ["injected-parameters"]},
            execution_count=2,
        ),
        new_markdown_cell(f"({chapter}-claims)=\n## What is claimed\n\n$E = mc^2$ {{cite}}`cho2020meantime`"),
        html_cell(record.ledger_table()),
    ]
    for claim in record.ledger.claims:
        label = f"{chapter}-{claim.id.lower()}"
        if record.ledger[claim.id].entry(scale).tested:
            record.judge(claim.id, made_up(claim, rng))
        else:
            record.not_tested(claim.id)
        cells.append(new_markdown_cell(f"({label})=\n### Claim {claim.id}\n\nMeasured."))
    figure = plt.figure(figsize=(6, 2))
    figure.subplots().plot([0, 1])
    record.figure(figure, "line")
    record.table(pd.DataFrame({"a": [1.0]}), "numbers")
    png = (folder / "figures/line.png").read_bytes()
    image = new_output("display_data", {"image/png": base64.b64encode(png).decode()})
    mystnb = {"image": {"alt": "A line."}, "figure": {"caption": "A line.", "name": f"fig-{chapter}-line"}}
    cells.append(new_code_cell("figure", metadata={"mystnb": mystnb}, outputs=[image], execution_count=3))
    cells += [new_markdown_cell("## Verdicts"), html_cell(record.verdicts()), html_cell(record.provenance())]
    record.close()
    notebook = new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    notebook["metadata"]["language_info"] = {"name": "python"}
    nbformat.write(notebook, folder / "notebook.ipynb")
    Evidence.of_run(folder, {"seeds": [0, 1, 2]}).save(folder / "evidence.json")
    return folder


def request(chapter, scale, overrides=None, *, root):
    """In the place of `lib.runs.request.resolve`: the made-up run's own text is the chapter's."""
    if not (root / "book" / "claims" / f"{chapter}.yml").exists():
        raise RequestError(f"unknown chapter {chapter!r}")
    folder = root / "runs" / scale / chapter / "made-up"
    text = new_notebook()
    if (folder / "notebook.ipynb").exists():
        text = nbformat.read(folder / "notebook.ipynb", as_version=4)
        text.cells = [c for c in text.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    return Request(chapter, scale, text, {}, {"seeds": [0, 1, 2]}, "made-up", root)


def html_cell(html):
    data, metadata = html._repr_mimebundle_()
    return new_code_cell(
        "record", outputs=[new_output("display_data", data, metadata=metadata)], execution_count=1
    )


def make_root(root, toc=None):
    """Copy what the book is made of to `root`, with a made-up run of every chapter of the contents."""
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "lib", root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    if toc is not None:
        (root / "_toc.yml").write_text(toc)
    for page in builder.toc_pages(root):
        if page.startswith("notebooks/"):
            run_chapter(root, page.removeprefix("notebooks/"))
    return root


def archive_chapter(root, chapter, scale=SCALE):
    """Keep the made-up run of a chapter in its archive, as announced by a plan; returns the folder."""
    run = root / "runs" / scale / chapter / "made-up"
    evidence = Evidence.load(run / "evidence.json")
    folder = root / "book/archive" / chapter / f"{scale}-{evidence.provenance.ended:%Y-%m-%d}"
    shutil.copytree(run / "tables", folder / "tables")
    made = {name: getattr(evidence.provenance, name) for name in RunMade.model_fields if name in PROVENANCE}
    made |= {"commit": "0123456789abcdef", "wall_seconds": 7200.0, "threads": 2}
    ran = [RunMade(seeds=[seed], fingerprint=f"{seed}", **made) for seed in (0, 1, 2)]
    tables = [artifact for artifact in evidence.artifacts if artifact.kind == "table"]
    fields = dict(evidence) | {"artifacts": tables, "plan": "main", "runs": ran, "method": {"cell 1": "then"}}
    later = evidence.provenance.ended + timedelta(hours=1)  # so it speaks, the page beside it
    fields["provenance"] = evidence.provenance.model_copy(update={"ended": later})
    ArchivedEvidence(**fields).save(folder / "evidence.json")
    claims = [claim.id for claim in evidence.claims[:2]]
    planned = {"scale": scale, "seeds": [0, 1, 2], "claims": claims, "written": date(2026, 11, 26)}
    plan = [
        planned | {"name": "main", "stopping": "After 10 | 20 steps."},
        planned | {"name": "later", "stopping": "When it stops.", "parameters": {"samples": 5}},
    ]
    (folder.parent / "plan.yml").write_text(yaml.safe_dump(plan))
    return folder


@pytest.fixture
def made_up_request():
    """Resolves a chapter to its made-up run."""
    return request


@pytest.fixture(scope="session")
def book(once, tmp_path_factory):
    """Root of the whole book, built once on made-up runs; tests leave it as it is."""

    def make():
        root = make_root(tmp_path_factory.mktemp("book"))
        for chapter in ("template", "meantime"):
            archive_chapter(root, chapter)
        verdict_simulation.write(root / simulation_folder(root), claims=200)
        builder.build(root, SCALE, environ={}, resolve=request)
        return str(root)

    return Path(once("book", make))


SMALL_TOC = """\
format: jb-book
root: book/index
parts:
- caption: Papers
  chapters:
  - file: notebooks/template
- caption: Reference
  chapters:
  - file: book/bibliography
"""


@pytest.fixture
def small_root(tmp_path):
    """Root of a book of two pages and one chapter, not built."""
    root = make_root(tmp_path, SMALL_TOC)
    (root / "book/index.md").write_text("# Small\n\n```{include} _generated/headline.md\n```\n")
    (root / simulation_folder(root)).mkdir(parents=True)
    return root


@pytest.fixture
def build_small(small_root):
    """A function that builds the small book."""
    return lambda: builder.build(small_root, SCALE, environ={}, resolve=request)


@pytest.fixture
def evidence(tmp_path):
    """Evidence of a made-up run of the template chapter."""
    (tmp_path / "book/claims").mkdir(parents=True)
    shutil.copy(ROOT / "book/claims/template.yml", tmp_path / "book/claims")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return Evidence.load(run_chapter(tmp_path, "template") / "evidence.json")
