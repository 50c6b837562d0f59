"""Evidence that somebody sends: its verdicts must be what its raw numbers give, by today's rules."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lib.chapter.record import Record
from lib.ledger.evidence import Evidence, rule_identity
from lib.ledger.pooling import units_of
from lib.ledger.schema import load_ledger
from lib.runs.check import check
from tests.lib.runs.conftest import CHAPTER, DRAWN, LEDGER

ROOT = Path(__file__).resolve().parents[3]
SEEDS = [5, 6, 7]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "book/claims").mkdir(parents=True)
    (tmp_path / "book/claims/planned.yml").write_text(LEDGER)
    return tmp_path


@pytest.fixture
def sent(root):
    """The folder of a complete run, as made on somebody's machine."""
    folder = root / "sent"
    drawn: dict = {}
    exec(DRAWN, drawn)
    record = Record("planned", scale="long", run_dir=folder, root=root)
    users = {arm: drawn["users"](arm, SEEDS, 0.2 * (arm == "method")) for arm in ("method", "baseline")}
    record.judge("C1", {"score": users})
    record.judge("C2", {"score": {arm: list(frame.mean(axis=1)) for arm, frame in users.items()}})
    record.judge("C3", {"seconds": {"method": [1.0, 1.1, 1.2], "baseline": [2.0, 2.15, 2.2]}})
    record.judge("E1", {"number": 4.0})
    record.not_tested("C4")
    record.close()
    Evidence.of_run(folder, {"scale": "long", "seeds": SEEDS}).save(folder / "evidence.json")
    return folder


def edit(folder, change):
    content = json.loads((folder / "evidence.json").read_text())
    change(content)
    (folder / "evidence.json").write_text(json.dumps(content))


def answer(sent, root):
    said = []
    return check(sent, root, said.append), said


def test_verdicts_stand_beside_ours_and_follow_from_the_numbers(sent, root):
    whole, said = answer(sent, root)
    assert whole, said
    assert said[0] == "planned at scale long, seeds 5, 6, 7"
    assert said[1].split() == ["claim", "in", "the", "file", "by", "its", "numbers", "ours"]
    assert [line.split() for line in said[2:7]] == [
        ["C1", "holds", "holds", "–"],
        ["C2", "holds", "holds", "–"],
        ["C3", "holds", "holds", "–"],
        ["C4", "not", "tested", "not", "tested", "–"],
        ["E1", "exact", "exact", "–"],
    ]
    assert said[-1].endswith("sent: its verdicts follow from its numbers")
    # Where we have evidence of our own, it stands beside theirs; a disagreement is not their fault.
    ours = Path(shutil.copytree(sent, root / "book/archive/planned/long-2026-11-26"))

    def equal(content):
        for measurement in content["measurements"]:
            if measurement["claim"] == "C2":
                score = measurement["measured"]["score"]
                score["method"] = score["baseline"]

    edit(ours, equal)
    whole, said = answer(sent, root)
    assert whole and said[3].split() == ["C2", "holds", "holds", "inconclusive", "(long-2026-11-26)"]


def test_a_verdict_that_its_numbers_do_not_give_is_named(sent, root):
    def better(content):
        next(claim for claim in content["claims"] if claim["id"] == "C2")["verdict"] = "reproduced"

    edit(sent, better)
    whole, said = answer(sent, root)
    assert not whole
    assert any(line.endswith("sent: C2: the file says reproduced, its numbers holds") for line in said)
    assert said[-1].endswith("not what its numbers give")


@pytest.mark.parametrize(
    ("altered", "parameters", "wrong"),
    [
        ([], {"gain": 0.1}, ""),
        (None, {"gain": 0.1}, "C2: the file says reproduced, its numbers holds"),
        ([], {"gain": 0.2}, "its gain is not that of scale long, and it does not say so"),
        (["gain"], {"gain": 0.2}, "C2: the file says reproduced, its numbers holds"),
    ],
)
def test_what_is_reproduced_has_the_parameters_of_its_scale(sent, root, altered, parameters, wrong):
    (root / "notebooks/scales/long").mkdir(parents=True)
    (root / "notebooks/planned.md").write_text(CHAPTER)
    (root / "notebooks/scales/long/planned.yml").touch()
    ledger, path = yaml.safe_load(LEDGER), root / "book/claims/planned.yml"
    mean = Evidence.load(sent / "evidence.json").claims[1].measured["score"]["method"].mean
    number = {"value": mean, "arm": "method", "metric": "score", "where": "Table 1", "provenance": "paper"}
    ledger["claims"][1] |= {"paper": [number]}
    ledger["claims"][1]["scales"]["long"]["reproduces"] = True
    path.write_text(yaml.safe_dump(ledger))

    def stated(content):
        content["claims"][1]["verdict"], content["altered"] = "reproduced", altered
        content["parameters"] |= parameters
        content["measurements"][1]["rule"] = rule_identity(load_ledger("planned", root)["C2"], "long")

    edit(sent, stated)
    whole, said = answer(sent, root)
    assert whole == (not wrong), said
    assert not wrong or any(line.endswith(wrong) for line in said), said


def test_a_rule_of_today_that_is_another_is_no_fault(sent, root):
    ledger = root / "book/claims/planned.yml"
    ledger.write_text(ledger.read_text().replace("direction: higher", "direction: lower"))
    whole, said = answer(sent, root)
    assert whole
    assert said[3].split()[:3] == ["C2", "holds", "contradicted"]
    assert said[3].endswith("rule changed since")
    # Nor is it called right: a file that names another rule could say anything.
    younger = [line.split()[0] for line in said[2:7] if line.endswith("rule changed since")]
    reason = "today's rule is not the one that the file names"
    assert said[-2].endswith(f"sent: not compared: {', '.join(younger)}: {reason}")
    assert said[-1].endswith(f"{5 - len(younger)} of 5 verdicts compared, which follow from its numbers")


def test_a_verdict_that_cannot_be_held_against_todays_is_told(sent, root):
    ledger = root / "book/claims/planned.yml"
    text = ledger.read_text()
    ledger.write_text(
        text.replace(
            "{metric: score, better: method, worse: baseline, direction: higher}]}",
            "{metric: depth, better: method, worse: baseline, direction: higher}]}",
            1,
        )
    )
    whole, said = answer(sent, root)
    assert whole and said[2].split()[:4] == ["C1", "holds", "not", "tested"]
    (line,) = [line for line in said if ": not compared: C1: " in line]
    assert "C1: expected the metrics depth" in line
    ledger.write_text(text[: text.index("  - id: E1")])
    whole, said = answer(sent, root)
    assert whole and any(line.endswith("E1: today's ledger has no such claim") for line in said)
    assert said[-1].endswith("4 of 5 verdicts compared, which follow from its numbers")


def test_a_table_that_cannot_be_read_is_named(sent, root):
    path = sent / "tables/per-user.csv.gz"
    content = path.read_bytes()
    for spoilt, message in [
        (b"no archive", "C1: tables/per-user.csv.gz cannot be read: "),
        (content[: len(content) // 2], "C1: tables/per-user.csv.gz cannot be read: "),
        (gzip.compress(b"arm,user,score\nmethod,1,0.5\n"), "C1: tables/per-user.csv.gz has no column 'seed'"),
    ]:
        path.write_bytes(spoilt)
        whole, said = answer(sent, root)
        assert not whole and any(message in line for line in said), said


def test_what_units_add_is_computed_from_their_raw_results(sent, root):
    def surer(content):
        for measurement in content["measurements"]:
            for spread in measurement["units"].values():
                spread["covariance"] = [[0.0, 0.0], [0.0, 0.0]]

    before = (sent / "evidence.json").read_bytes()
    edit(sent, surer)
    whole, said = answer(sent, root)
    assert not whole
    assert any("C1: score per user is not what the table gives" in line for line in said)
    (sent / "evidence.json").write_bytes(before)
    path = sent / "tables/per-user.csv.gz"
    table = pd.read_csv(path)
    path.write_bytes(gzip.compress(table.assign(score=table["score"] + 0.01).to_csv(index=False).encode()))
    whole, said = answer(sent, root)
    assert not whole
    assert any("per-user.csv.gz: the means of score of " in line for line in said)


def test_the_units_part_is_that_of_the_run_itself(sent):
    """The table holds six digits; more than enough."""
    evidence = Evidence.load(sent / "evidence.json")
    measurement = next(m for m in evidence.measurements if m.units)
    tables = {"tables/per-user.csv.gz": (sent / "tables/per-user.csv.gz").read_bytes()}
    again = units_of(measurement, tables, SEEDS)["score"]
    stored = measurement.units["score"]
    assert (again.arms, again.count) == (stored.arms, stored.count)
    for row, other in zip(again.covariance, stored.covariance, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    with pytest.raises(ValueError, match=r"C1: tables/per-user\.csv\.gz is not there"):
        units_of(measurement, {}, SEEDS)
    # One seed cannot tell a user from what is left to chance; three can.
    alone = {"score": {arm: values[:1] for arm, values in measurement.measured["score"].items()}}
    first = units_of(measurement.model_copy(update={"measured": alone}), tables, SEEDS[:1])["score"]
    assert first.covariance[0][0] != pytest.approx(again.covariance[0][0], rel=1e-2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "evidence.json").write_text("{"), "sent: evidence.json: the file: "),
        (lambda folder: (folder / "evidence.json").unlink(), "sent: evidence.json is not there"),
        (lambda folder: (shutil.rmtree(folder), folder.touch()), "sent: evidence.json is not there"),
        (lambda folder: (folder / "tables/per-user.csv.gz").unlink(), "tables/per-user.csv.gz is not there"),
        (lambda folder: edit(folder, lambda c: c.update(chapter="nobody")), "no ledger for chapter 'nobody'"),
        (
            lambda folder: edit(folder, lambda c: c["parameters"].update(seeds="5, 6")),
            "sent: seeds must be a list of whole numbers, got '5, 6'",
        ),
    ],
)
def test_a_folder_that_is_not_whole_says_so_in_one_line(sent, root, spoil, message):
    spoil(sent)
    whole, said = answer(sent, root)
    assert not whole and len(said) == 1 and message in said[0]


def test_a_verdict_without_measurements_is_named(sent, root):
    def bare(content):
        content["measurements"] = [m for m in content["measurements"] if m["claim"] != "C2"]

    edit(sent, bare)
    whole, said = answer(sent, root)
    assert not whole and any("C2: a verdict without measurements" in line for line in said)


def test_the_command_ends_with_0_or_1(tmp_path):
    """On this repository's own ledger."""
    record = Record("template", scale="smoke", run_dir=tmp_path / "sent")
    names = [number.name for number in record.ledger["T1"].paper]
    record.judge("T1", dict(zip(names, (4.303, 1.96), strict=True)))
    sizes = [f"coverage at n = {n}" for n in (3, 5, 10)]
    covered = {"Student": [0.9, 0.91, 0.95], "normal": [0.8, 0.81, 0.82]}
    record.judge("T2", {size: covered for size in sizes})
    record.not_tested("T3")
    record.close()
    Evidence.of_run(tmp_path / "sent", {"seeds": [0, 1, 2]}).save(tmp_path / "sent/evidence.json")

    def ask():
        command = [sys.executable, "-m", "lib.run", "--check", str(tmp_path / "sent")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = ask()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "T2     holds                holds" in done.stdout
    edit(tmp_path / "sent", lambda content: content["claims"][1].update(verdict="contradicted"))
    done = ask()
    assert done.returncode == 1
    assert "T2: the file says contradicted, its numbers holds" in done.stdout


def test_the_archive_of_this_repository_passes():
    for folder in sorted((ROOT / "book/archive").glob("*/*/")):
        whole, said = answer(folder, ROOT)
        assert whole, "\n".join(said)
