"""What a batch asks for and what each run needs, without running anything."""

import csv
import os
import shlex
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import nbformat
import pytest

from lib.runs import fingerprint, request, sweep
from lib.runs.parameters import RequestError
from lib.runs.sweep import (
    Job,
    Resources,
    failures,
    pages_content,
    points,
    simulation_folder,
    specifications,
    table_name,
    write_table,
)
from lib.yaml_reader import parse_yaml


def notebook(resources):
    made = nbformat.v4.new_notebook()
    made.metadata["companion"] = {"id": "x", "resources": resources}
    return made


def test_resources_are_what_the_front_matter_says_for_the_scale():
    assert (
        Resources.of(notebook(None), "book") == Resources.of(notebook({"book": None}), "book") == Resources()
    )
    text = notebook({"paper": {"minutes": 2880, "memory_mb": 16000, "gpus": 1}})
    assert Resources.of(text, "paper") == Resources(threads=1, memory_mb=16000, minutes=2880, gpus=1)
    assert (
        Resources.of(text, "smoke") == Resources() == Resources(threads=1, memory_mb=2500, minutes=60, gpus=0)
    )


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (
            {"book": {"memory": 3}},
            r"notebooks/x\.md: resources\.book\.memory: Extra inputs are not permitted",
        ),
        (
            {"book": {"minutes": 0}},
            r"notebooks/x\.md: resources\.book\.minutes: .* greater than or equal to 1",
        ),
        ({"book": {"gpus": -1}}, r"resources\.book\.gpus"),
    ],
)
def test_resources_that_make_no_sense_are_refused(resources, message):
    with pytest.raises(RequestError, match=message):
        Resources.of(notebook(resources), "book")


def test_arguments_are_those_of_the_command_line():
    job = Job(
        "tiny", "smoke", {"seeds": [0, 1], "name": "it's", "rate": 1e-3}, resources=Resources(threads=2)
    )
    assert job.arguments == (
        "tiny --scale smoke -p seeds '[0, 1]' -p name 'it'\"'\"'s' -p rate 0.001 --threads 2"
    )


@pytest.fixture
def declared(monkeypatch):
    """A chapter ``tiny`` with a list of integers, a float and a text."""
    annotations = {"seeds": "list[int]", "rate": "float", "name": "str"}
    declared = {name: SimpleNamespace(annotation=annotation) for name, annotation in annotations.items()}
    monkeypatch.setattr(sweep, "read_chapter", lambda chapter, root: chapter)
    monkeypatch.setattr(sweep, "read_parameters", lambda notebook, path: declared)


def test_a_grid_takes_every_combination_in_order(declared):
    grid = {"seeds": [0, [1, 2]], "rate": ["1e-3", 2], "name": ["3", "x"]}
    found = points({"chapter": "tiny", "scale": "smoke", "grid": grid})
    assert len(found) == 8
    # A list parameter takes an element a point, or whole lists; text stays text; YAML reads the other values.
    assert found[0] == {"seeds": [0], "rate": 1e-3, "name": "3"}
    assert found[-1] == {"seeds": [1, 2], "rate": 2, "name": "x"}
    assert points({"chapter": "tiny"}) == [{}]
    with pytest.raises(RequestError, match="tiny: no value of rate to run"):
        points({"chapter": "tiny", "grid": {"rate": []}})


def test_what_a_sweep_asks_for(tmp_path):
    asked = specifications({"chapter": "tiny", "scale": "smoke", "seeds": "[0]"})
    assert asked == [{"chapter": "tiny", "scale": "smoke", "grid": {"seeds": [0]}}]
    assert specifications({}) == specifications({"scale": "smoke"}) == []
    (tmp_path / "grid.yml").write_text("- {chapter: a}\n- {chapter: b, grid: {x: [1]}}\n")
    assert specifications({"sweep": "grid.yml"}, tmp_path) == [
        {"chapter": "a"},
        {"chapter": "b", "grid": {"x": [1]}},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{chapter: a, gird: {x: [1]}}", r"grid\.yml: unknown key 'gird' \(did you mean 'grid'\?\)"),
        ("[1, 2]", r"grid\.yml: expected .*; got 1"),
        ("", r"grid\.yml: expected .*; got None"),
        ("{chapter: a, grid: [1]}", r"grid\.yml: grid must map parameters to values, got \[1\]"),
        ("{scale: smoke}", r"grid\.yml: expected {chapter, scale, grid}"),
        ("[]", r"grid\.yml asks for no run"),
        ("{chapter: [a, b]}", r"grid\.yml: chapter must be a name, got \['a', 'b'\]"),
        ("{chapter: a, scale: 3}", r"grid\.yml: scale must be a name, got 3"),
        ("a: [", r"grid\.yml, line 1: not YAML: "),
        ("{chapter: a, grid: {x: [1]}, grid: {x: [2]}}", r"grid\.yml, line 1: not YAML: 'grid' twice"),
        (None, r"grid\.yml: .*No such file"),
    ],
)
def test_a_file_that_asks_for_nothing_sensible_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "grid.yml").write_text(content)
    with pytest.raises(RequestError, match=message) as caught:
        specifications({"sweep": "grid.yml"}, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scale": "smoke", "chaptr": "tiny"}, r"unknown key 'chaptr' \(did you mean 'chapter'\?\)"),
        ({"sacle": "smoke"}, r"unknown key 'sacle' \(did you mean 'scale'\?\)"),
        ({"chapter": "tiny", "sweep": "grid.yml"}, "chapter and sweep exclude each other"),
        ({"sweep": "grid.yml", "seeds": "[0]"}, "unknown key 'seeds'"),
        ({"sweep": "grid.yml", "scale": "smoke"}, "leave scale out"),
        ({"planned": "tiny", "seeds": "[0]"}, "unknown key 'seeds'"),
        ({"planned": ""}, r"planned: unknown chapter ''"),
        ({"chapter": ""}, r"which chapter\?"),
        ({"chapter": 3}, r"--config: chapter must be a name, got 3"),
    ],
)
def test_a_command_line_that_asks_for_nothing_sensible_is_refused(tmp_path, config, message):
    (tmp_path / "grid.yml").write_text("{chapter: a}")
    with pytest.raises(RequestError, match=message):
        specifications(config, tmp_path)


def test_a_command_line_is_read_as_it_is_written(declared):
    written = sweep.as_written(["chapter=tiny", "name=a: b: #c", "rate=1e-3", "seeds=[[0, 1], 2]"])
    (asked,) = specifications(written)
    assert points(asked) == [
        {"name": "a: b: #c", "rate": 1e-3, "seeds": [0, 1]},
        {"name": "a: b: #c", "rate": 1e-3, "seeds": [2]},
    ]
    (asked,) = specifications(sweep.as_written(["chapter=tiny", "name=[010, no, 🙂]"]))
    assert [point["name"] for point in points(asked)] == ["010", "no", "🙂"]
    with pytest.raises(RequestError, match="seeds is given twice"):
        sweep.as_written(["seeds=[0]", "rate=1", "seeds=[1]"])


def test_a_chapter_is_read_once_for_all_its_points(monkeypatch):
    readers = ((request, "read_chapter"), (request, "shared_parts"), (fingerprint, "load_ledger"))
    spies = [Mock(wraps=getattr(module, name)) for module, name in readers]
    for (module, name), spy in zip(readers, spies, strict=True):
        monkeypatch.setattr(module, name, spy)
    seeds = list(range(50))
    jobs = sweep.sweep({"chapter": "template", "scale": "smoke", "seeds": seeds}, fetch=False)
    assert [spy.call_count for spy in spies] == [1, 1, 1]
    assert len({job.evidence for job in jobs}) == 50
    alone = request.resolve("template", "smoke", {"seeds": [7]})
    assert jobs[7].evidence == f"runs/smoke/template/{alone.folder.name}/evidence.json"


def test_no_chapter_has_a_scale_that_does_not_exist():
    with pytest.raises(RequestError, match=r"unknown scale 'smok' \(did you mean 'smoke'\?\)"):
        sweep.every_chapter("smok")


@pytest.mark.parametrize("value", [["🙂"], ["é", "\u2028", "\x7f\x85"], [1e-7, 2], {"a": 0.1}, True])
def test_a_value_reaches_the_command_line_as_it_is(value):
    *_, text, _, _ = shlex.split(Job("tiny", "smoke", {"x": value}).arguments)
    assert parse_yaml(text, "x") == value


def test_failures_name_every_run_that_is_not_there(tmp_path):
    def job(name, **files):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / f"{file.replace('_', '.')}").write_text(text)
        return Job(name, "book", evidence=f"runs/{name}/evidence.json")

    done = job("done", evidence_json="{}")
    failed = job("failed", failed_txt="failed: cell 3\n")
    killed = job("killed")
    refused = replace(job("refused"), refused="refused: no such scale")
    lines = failures([done, failed, killed, refused], since=0, root=tmp_path)
    assert lines == [
        "failed: cell 3",
        "killed: not complete: python -m lib.run killed --scale book --threads 1",
        "refused: no such scale",
    ]
    # What a former batch said of a run says nothing of this one.
    os.utime(tmp_path / "runs/failed/failed.txt", (1, 1))
    assert "cell 3" not in failures([failed], since=10, root=tmp_path)[0]


def test_tables_are_named_by_what_they_hold():
    one, other = (Job("tiny", "book", {"rate": rate}, evidence=f"runs/{rate}") for rate in (1, 2))
    assert table_name([one, other]) == table_name([one, other])
    assert len({table_name(jobs) for jobs in ([], [one], [one, other], [other, one])}) == 4


def test_a_table_has_another_name_under_another_ledger_or_rule(tmp_path):
    files = [tmp_path / "book/claims/tiny.yml", tmp_path / "lib/ledger/rules.py"]
    names = set()
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("1")
    names.add(table_name([Job("tiny", "book")], tmp_path))
    for file in files:
        file.write_text("2")
        names.add(table_name([Job("tiny", "book")], tmp_path))
    assert len(names) == 3


def test_a_run_that_is_gone_is_one_line_with_its_command(tmp_path):
    gone = Job("template", "smoke", evidence="runs/gone/evidence.json")
    with pytest.raises(RequestError, match=r"^template: .*; run: python -m lib\.run template .*--force$"):
        write_table([gone], tmp_path / "t.csv")


def test_pages_and_simulation_are_named_by_content(tmp_path):
    names = ["_toc.yml", "book/page.md", "lib/a.py", "notebooks/x.md", "book/verdict_simulation.py"]
    names += ["lib/ledger/intervals.py", "lib/chapter/figures.py", "pyproject.toml"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    jobs = [Job("x", "book", evidence="runs/1")]
    seen = [pages_content(jobs, {}, tmp_path)]
    seen.append(pages_content([replace(jobs[0], evidence="runs/2")], {}, tmp_path))
    seen.append(pages_content(jobs, {"GITHUB_REPOSITORY": "a/b"}, tmp_path))
    simulated = simulation_folder(tmp_path)
    for name in names:
        (tmp_path / name).write_text("2")
        seen.append(pages_content(jobs, {}, tmp_path))
        (tmp_path / name).write_text("1")
    assert len(set(seen)) == len(seen)
    assert pages_content(jobs, {"HOME": "elsewhere"}, tmp_path) == seen[0]
    (tmp_path / "lib/a.py").write_text("2")
    assert simulation_folder(tmp_path) == simulated
    (tmp_path / "lib/ledger/intervals.py").write_text("2")
    assert simulation_folder(tmp_path) != simulated


def test_a_table_has_a_row_per_run_and_claim(tmp_path, monkeypatch):
    effect = SimpleNamespace(quantity=1.0, quantity_low=0.5, quantity_high=1.5)
    claims = [SimpleNamespace(id="C1", verdict="holds", interval=effect)]
    claims.append(SimpleNamespace(id="E1", verdict="exact", interval=None))
    evidence = SimpleNamespace(judged_by=lambda ledger: SimpleNamespace(claims=claims))
    monkeypatch.setattr(sweep.Evidence, "load", lambda path: evidence)
    monkeypatch.setattr(sweep, "load_ledger", lambda chapter, root: None)
    write_table(
        [Job("x", "smoke", {"rate": 1}, evidence="runs/smoke/x/abc/evidence.json")], tmp_path / "t.csv"
    )
    first, second = csv.DictReader((tmp_path / "t.csv").open())
    assert first == dict(
        chapter="x", scale="smoke", run="abc", parameters='{"rate": 1}', claim="C1", verdict="holds",
        mean="1.0", low="0.5", high="1.5",
    )  # fmt: skip
    assert (second["claim"], second["verdict"], second["mean"]) == ("E1", "exact", "")


def test_a_table_of_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    def refuse(path):
        raise ValueError("C1: expected the arms of x a, b; got a")

    monkeypatch.setattr(sweep.Evidence, "load", refuse)
    again = r"x: C1: expected the arms of x a, b; got a; run: python -m lib\.run x --scale book .*--force"
    with pytest.raises(RequestError, match=again):
        write_table([Job("x", "book", evidence="runs/book/x/abc/evidence.json")], tmp_path / "t.csv")
