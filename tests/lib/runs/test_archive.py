"""Runs of a plan, pooled and kept: equal to one run with all seeds, and everything that is refused."""

import gzip
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lib.ledger import pooling
from lib.ledger.archive import archived, strongest
from lib.ledger.evidence import JUDGING, Evidence, Measurement, rule_identity
from lib.ledger.pooling import pool
from lib.ledger.schema import load_ledger
from lib.ledger.units import UnitSpread
from lib.runs import archive as archive_module
from lib.runs.archive import archive, complete_run, rules_then
from lib.runs.parameters import RequestError
from lib.runs.sweep import planned_grids
from tests.lib.runs.conftest import PLAN, commit, git

SEEDS = [11, 12, 13, 14]


@pytest.fixture
def copies(made, tmp_path):
    """Copies of the runs seed by seed, in the order of their seeds, that a test may spoil."""
    folders = (made.root / "runs/long/planned").iterdir()
    found = {Evidence.load(one / "evidence.json").parameters["seeds"][0]: one for one in folders}
    return [Path(shutil.copytree(found[seed], tmp_path / str(seed))) for seed in SEEDS]


@pytest.fixture
def root(made, tmp_path):
    """A clone of the project, whose archive a test may fill."""
    git(made.root, "clone", "-q", str(made.root), str(tmp_path / "clone"))
    return tmp_path / "clone"


def edit(folder: Path, file: str, **changes) -> None:
    """Change keys (``provenance__dirty`` of ``provenance``) of one of a run's JSON files."""
    content = json.loads((folder / file).read_text())
    for name, value in changes.items():
        place = content
        *path, last = name.split("__")
        for key in path:
            place = place[key]
        place[last] = value
    (folder / file).write_text(json.dumps(content))


def refused(folders, root, **options) -> str:
    """The line with which the runs are refused; nothing is written."""
    before = sorted((root / "book/archive").rglob("*"))
    with pytest.raises(RequestError) as caught:
        archive(folders, root, **options)
    assert sorted((root / "book/archive").rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def frame(folder: Path, name: str) -> pd.DataFrame:
    content = (folder / "tables" / name).read_bytes()
    return pd.read_csv(io.BytesIO(gzip.decompress(content) if name.endswith(".gz") else content))


def test_a_plan_is_run_seed_by_seed_and_nothing_twice(made):
    folders = list((made.root / "runs/long/planned").iterdir())
    seeds = [Evidence.load(folder / "evidence.json").parameters["seeds"] for folder in folders]
    assert sorted(seeds) == [[seed] for seed in SEEDS]
    assert made.batch.stdout.count("] complete · ") == 4
    (table,) = (made.root / "runs/sweeps").glob("*.csv")
    table.unlink()
    one = next(folder for folder in folders)
    kept = (one / "notebook.ipynb").read_bytes()
    shutil.move(one, made.root / "runs/gone")
    again = made.run("snakemake", "sweep", "--config", "planned=planned", "scale=long")
    assert again.stdout.count("] complete · ") == 1, "what is complete is not executed"
    shutil.rmtree(one)
    shutil.move(made.root / "runs/gone", one)
    assert (one / "notebook.ipynb").read_bytes() == kept


def test_pooled_runs_are_what_one_run_with_all_seeds_is(made, copies, root):
    said = []
    folder = archive(copies[::-1], root, said.append)  # in any order
    whole = made.root / "runs/whole"
    one, (piece,) = Evidence.load(whole / "evidence.json"), archived("planned", root)
    pooled = piece.evidence
    assert folder.name == f"long-{one.provenance.ended:%Y-%m-%d}"
    assert pooled.parameters == one.parameters and pooled.parameters["seeds"] == SEEDS
    theirs = {measurement.claim: measurement for measurement in one.measurements}
    for measurement in pooled.measurements:
        if measurement.claim != "C3":
            assert measurement.measured == theirs[measurement.claim].measured, measurement.claim
    (spread,), (whole_spread,) = (
        [m.units["score"] for m in evidence.measurements if m.units] for evidence in (pooled, one)
    )
    assert (spread.unit, spread.count, spread.arms) == ("user", 20, whole_spread.arms)
    assert np.array(spread.covariance) == pytest.approx(np.array(whole_spread.covariance), rel=1e-3)
    mine = copies[0] / "evidence.json"
    alone = next(m.units["score"] for m in Evidence.load(mine).measurements if m.units)
    assert not np.allclose(alone.covariance, whole_spread.covariance, rtol=1e-2), "one seed says less"
    for claim, theirs in zip(pooled.claims, one.claims, strict=True):
        if claim.id != "C3":
            assert claim.verdict == theirs.verdict
        if claim.id in ("C1", "C2"):
            assert claim.interval.low == pytest.approx(theirs.interval.low, rel=1e-4)
            assert claim.interval.replicates == 4
    assert piece.claim("C3").reason == "Measured per block in each of several runs, which pool by seed only."
    # Tables: strung together, kept once, or once per run; what the ledger makes again is left out.
    assert {path.name for path in (folder / "tables").iterdir()} == {
        "scores.csv",
        "same.csv",
        *(f"own-seed-{seed}.csv" for seed in SEEDS),
        *(f"columns-seed-{seed}.csv" for seed in SEEDS),
        "per-user.csv.gz",
    }
    assert (folder / "tables/scores.csv").read_text() == (whole / "tables/scores.csv").read_text()
    assert [[*frame(folder, f"columns-seed-{seed}.csv")] for seed in SEEDS] == [[f"seed {s}"] for s in SEEDS]
    by = ["arm", "seed", "user"]
    users = [frame(one, "per-user.csv.gz").sort_values(by, ignore_index=True) for one in (folder, whole)]
    pd.testing.assert_frame_equal(*users)
    assert {path.name for path in folder.iterdir()} == {"evidence.json", "tables"}
    # Every run is named, and what all took together.
    assert [run.seeds for run in pooled.runs] == [(seed,) for seed in SEEDS]
    head = git(made.root, "rev-parse", "HEAD")
    assert {run.commit for run in pooled.runs} == {head} == set(piece.commits)
    seconds = [Evidence.load(one / "evidence.json").provenance.wall_seconds for one in copies]
    assert [run.wall_seconds for run in pooled.runs] == seconds
    assert pooled.provenance.wall_seconds == pytest.approx(sum(seconds))
    assert piece.core_hours == pytest.approx(sum(seconds) / 3600)
    assert pooled.plan == "main" and piece.seeds == tuple(SEEDS)
    assert said[0].startswith("[planned] 4 runs, 0.0")
    assert "[planned]   C1: holds (planned)" in said and "[planned]   E1: exact" in said


def test_one_run_with_all_seeds_is_archived_in_the_same_way(made, copies, root):
    folder = archive([made.root / "runs/whole"], root)
    (piece,) = archived("planned", root)
    assert [run.seeds for run in piece.evidence.runs] == [tuple(SEEDS)]
    assert piece.claim("C3").verdict == "holds", "blocks of one run need no pooling"
    assert "is archived already: book/archive/planned/long-" in refused(copies, root)
    (book,) = (made.root / "runs/book/planned").iterdir()
    machine = archive([book], root)
    assert machine.name.startswith("book-") and machine.parent == folder.parent
    assert [piece.scale for piece in archived("planned", root)] == ["book", "long"]


def test_what_is_written_over_nothing_and_never_by_half(made, copies, root, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(archive_module.os, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            archive(copies, root)
    assert [path.name for path in (root / "book/archive/planned").iterdir()] == ["plan.yml"]
    monkeypatch.setattr(archive_module, "LARGEST", 1000)
    assert "an archive holds at most" in refused(copies, root)
    monkeypatch.undo()
    # Another plan's folder of the same day is not touched.
    day = Evidence.load(copies[0] / "evidence.json").provenance.ended
    there = root / f"book/archive/planned/long-{day:%Y-%m-%d}"
    archive(copies, root).rename(root / "elsewhere")
    there.mkdir()
    (there / "kept").touch()
    assert archive(copies, root).name == f"{there.name}-main-4"
    assert [path.name for path in there.iterdir()] == ["kept"]


def test_a_run_that_cannot_be_defended_is_refused(made, copies, root):
    def alone(**changes) -> str:
        evidence = (copies[0] / "evidence.json").read_bytes()
        edit(copies[0], "evidence.json", **changes)
        line = refused(copies, root)
        (copies[0] / "evidence.json").write_bytes(evidence)
        return line

    assert "was made with changes that are in no commit" in alone(provenance__dirty=True)
    assert "was not made from a git checkout" in alone(provenance__commit=None)
    assert "commit 0000000000, which is not in this history" in alone(provenance__commit="0" * 40)
    foreign = git(root, "commit-tree", "-m", "elsewhere", "HEAD^{tree}")
    assert f"commit {foreign[:10]}, which is not in this history" in alone(provenance__commit=foreign)
    for file in ("evidence.json", "notebook.ipynb", "parameters.json"):
        (copies[1] / file).rename(copies[1] / "away")
        assert f"is no complete run: {file} is not there" in refused(copies, root)
        (copies[1] / "away").rename(copies[1] / file)
    (copies[1] / "tables/scores.csv").rename(copies[1] / "away")
    assert "table 'scores': tables/scores.csv is not there" in refused(copies, root)
    (copies[1] / "away").rename(copies[1] / "tables/scores.csv")
    (copies[1] / "evidence.json").write_text("{}")
    assert "evidence.json: chapter: Field required" in refused(copies, root)


def test_parameters_that_are_not_those_of_the_folder_are_refused(copies, root):
    edit(copies[0], "evidence.json", parameters__gain=0.3)
    assert "parameters of evidence.json is not that of parameters.json" in refused(copies, root)


def test_a_run_that_does_not_say_its_method_is_refused(copies, root):
    content = json.loads((copies[0] / "parameters.json").read_text())
    del content["method"]
    (copies[0] / "parameters.json").write_text(json.dumps(content))
    assert "does not say what it measured with: run it again" in refused(copies, root)


def test_seeds_are_the_plans(made, copies, root):
    assert "seed 14 of the planned run 'main' is missing" in refused(copies[:3], root)
    assert "seed 11 is in more than one of the runs" in refused([*copies, made.root / "runs/whole"], root)
    for file in ("evidence.json", "parameters.json"):
        edit(copies[3], file, parameters__seeds=[15])
    assert "seed 15 is not planned by 'main'" in refused(copies, root)


def test_the_first_seeds_of_a_plan_are_kept_as_such_and_all_of_them_later(copies, root):
    assert "seed 11 comes before others in the plan" in refused(copies[1:], root, partial=True)
    said = []
    archive(copies[:3], root, said.append, partial=True)
    (piece,) = archived("planned", root)
    assert piece.missing == (14,) and piece.progress == "3 of 4 planned seeds so far"
    assert "3 of 4 planned seeds so far" in said[0] and piece.claim("C1").interval.replicates == 3
    assert "archived already" in refused(copies[:3], root, partial=True)
    assert "archived already" in refused(copies[:2], root, partial=True)
    archive(copies, root, said.append)
    both = archived("planned", root)
    assert {one.missing for one in both} == {(14,), ()}
    whole = strongest("C1", both)
    assert whole.missing == () and whole.progress == ""


def test_the_rest_of_a_plan_joins_the_seeds_that_are_archived(copies, root, tmp_path):
    """Whose folders are gone: what is archived of them pools with the rest as they would."""
    first = archive(copies[:2], root, partial=True)
    assert "is in no commit" in refused([first, *copies[2:]], root)
    commit(SimpleNamespace(root=root))
    assert "seed 12 is in more than one of the runs" in refused([first, *copies[1:]], root)
    assert "seed 14 of the planned run 'main' is missing" in refused([first, copies[2]], root)
    (first / "tables/same.csv").write_text("edited\n")
    assert "is not what the last commit has there" in refused([first, *copies[2:]], root)
    git(root, "checkout", "--", ".")
    said = []
    joined = archive([copies[3], first, copies[2]], root, said.append)
    assert said[0].startswith("[planned] 4 runs, ")
    git(root, "checkout", "-q", "-b", "beside", "HEAD~1")
    shutil.move(joined, tmp_path / "joined")
    at_once = archive(copies, root)
    for file in sorted(path.relative_to(at_once) for path in at_once.rglob("*") if path.is_file()):
        one, other = ((folder / file).read_bytes() for folder in (tmp_path / "joined", at_once))
        if file.name == "evidence.json":
            one, other = (json.loads(content) for content in (one, other))
            for content in (one, other):  # sums of other order
                content["provenance"]["wall_seconds"] = round(content["provenance"]["wall_seconds"], 6)
                content["provenance"]["sections"] = None
        assert one == other, file
    assert len(list((tmp_path / "joined").rglob("*"))) == len(list(at_once.rglob("*")))


def test_runs_that_differ_in_more_than_seeds_do_not_pool(copies, root):
    def changed(*, pair: bool = False, **changes) -> str:
        files = ["evidence.json"] if not pair else ["evidence.json", "parameters.json"]
        before = {file: (copies[2] / file).read_bytes() for file in files}
        for file in files:
            edit(copies[2], file, **changes)
        line = refused(copies, root)
        for file, content in before.items():
            (copies[2] / file).write_bytes(content)
        return line

    assert "do not pool: parameter gain is 0.3, not 0.2" in changed(pair=True, parameters__gain=0.3)
    lock = changed(provenance__packages={"pydantic": "1.0"})
    assert "do not pool: package pydantic is '1.0', not " in lock
    data = [{"name": "set", "licence": "free", "synthetic": False, "files": {"a": "1"}}]
    assert "do not pool: data set set is {'a': '1'}, not 'absent'" in changed(data=data)
    held = json.loads((copies[2] / "parameters.json").read_text())
    edit(copies[2], "parameters.json", method=held["method"] | {"lib.models.drawn": "other"})
    assert "do not pool: method, lib.models.drawn is 'other', not " in refused(copies, root)
    edit(copies[2], "parameters.json", method=held["method"])
    content = json.loads((copies[2] / "evidence.json").read_text())
    numbers = {m["claim"]: m for m in content["measurements"]}
    numbers["E1"]["measured"]["number"] = 5.0
    line = changed(measurements=list(numbers.values()))
    assert "E1, " in line and "number is 5.0, not 4.0: arithmetic does not vary by seed" in line
    numbers["E1"]["measured"]["number"] = 4.0
    numbers["C2"]["tested"] = False
    assert "C2: tested is False in " in changed(measurements=list(numbers.values()))
    numbers["C2"]["tested"] = True
    numbers["C2"]["measured"]["score"]["method"] = [0.1, 0.2]
    line = changed(measurements=list(numbers.values()))
    assert "score of method: neither one number per seed nor all equal" in line
    numbers["C2"]["measured"]["score"].pop("method")
    assert "'method' is measured in some runs only" in changed(measurements=list(numbers.values()))


def test_tables_by_seed_that_have_other_columns_do_not_pool(copies, root):
    path = copies[2] / "tables/scores.csv"
    path.write_text(path.read_text().replace("baseline", "reference"))
    line = refused(copies, root)
    assert "scores.csv: columns seed, method, reference, not seed, method, baseline" in line


def test_the_last_digits_of_another_processor_do_not_keep_runs_apart(copies, root):
    content = json.loads((copies[2] / "evidence.json").read_text())
    (arithmetic,) = (m for m in content["measurements"] if m["claim"] == "E1")
    arithmetic["measured"]["number"] = 4.0 * (1 + 3e-6)
    edit(copies[2], "evidence.json", measurements=content["measurements"])
    assert "arithmetic does not vary by seed" in refused(copies, root)
    arithmetic["measured"]["number"] = 4.0 * (1 + 3e-7)
    edit(copies[2], "evidence.json", measurements=content["measurements"])
    pooled = json.loads((archive(copies, root) / "evidence.json").read_text())
    (kept,) = (m["measured"] for m in pooled["measurements"] if m["claim"] == "E1")
    assert kept["number"] == 4.0


@pytest.mark.parametrize(("share", "pooled"), [(0.09, True), (0.11, False)])
def test_what_is_measured_on_the_same_replicates_pools_within_a_tenth_of_their_spread(
    copies, root, share, pooled
):
    for number, copy in enumerate(copies):
        content = json.loads((copy / "evidence.json").read_text())
        (part,) = (m for m in content["measurements"] if m["claim"] == "C3")
        for by_arm in part["measured"].values():
            for arm in by_arm:
                values = np.linspace(1.0, 2.0, 6)
                values[2] += number * share * np.std(values, ddof=1) / (len(copies) - 1)
                by_arm[arm] = values.tolist()
        edit(copy, "evidence.json", measurements=content["measurements"])
    content = json.loads((archive(copies, root) / "evidence.json").read_text())
    (kept,) = (m for m in content["measurements"] if m["claim"] == "C3")
    assert kept["tested"] is pooled
    for by_arm in kept["measured"].values():
        for values in by_arm.values():
            assert values == np.linspace(1.0, 2.0, 6).tolist(), "the first run's stand"


def test_results_per_unit_must_be_those_of_the_claims(copies, root):
    path = copies[1] / "tables/per-user.csv.gz"
    content = path.read_bytes()
    table = frame(copies[1], "per-user.csv.gz")

    def with_table(changed: pd.DataFrame) -> str:
        path.write_bytes(gzip.compress(changed.to_csv(index=False).encode()))
        line = refused(copies, root)
        path.write_bytes(content)
        return line

    assert "means of score of method are not those of the claim" in with_table(table.assign(score=1.0))
    assert "has no method, seed 12" in with_table(table.assign(seed=99))
    assert "has a user of method twice" in with_table(table.assign(user=0))
    assert "columns arm, seed, user, points, not arm, seed, user, score" in with_table(
        table.rename(columns={"score": "points"})
    )


def test_a_plan_is_committed_before_its_run(made, copies, root):
    plan = root / "book/archive/planned/plan.yml"
    plan.write_text(
        PLAN.replace("After one draw.\n  claims: [C1, C2]", "When it looks good.\n  claims: [C1]")
    )
    assert "whose plan does not have 'main' as it is now: a plan is committed before" in refused(copies, root)
    commit(SimpleNamespace(root=root))
    assert "a plan is committed before its run" in refused(copies, root), "a later commit is too late"
    plan.write_text(PLAN.replace("gain: 0.2", "gain: 0.3"))
    assert "is not the planned run 'main': gain is 0.2, not 0.3" in refused(copies, root)
    plan.write_text(PLAN.replace("scale: long", "scale: paper"))
    assert "plan.yml plans no run at scale long" in refused(copies, root)
    plan.write_text(PLAN.replace("seeds: [11", "seeds: [11, 11"))
    assert "plan.yml: 0.seeds: seed 11 is named twice" in refused(copies, root)
    plan.unlink()
    assert "plan.yml plans no run at scale long" in refused(copies, root)


def test_the_plan_speaks_of_the_scales_file_as_it_was_at_the_runs_commit(made, copies, root):
    """The scale's file may change later; the run is still the one that was planned."""
    (root / "notebooks/scales/long/planned.yml").write_text("rates: {method: 9.0}\n")
    assert archive(copies, root).is_dir()


def test_a_plan_of_a_later_day_may_ask_for_what_the_runs_commit_does_not_know(copies, root):
    later = PLAN.split("- {name: machine")[0].replace("main", "later").replace("gain: 0.2", "width: 2")
    with (root / "book/archive/planned/plan.yml").open("a") as plan:
        plan.write(later)
    assert archive(copies, root).is_dir()


def test_a_table_that_ends_early_is_named(copies, root):
    path = copies[1] / "tables/per-user.csv.gz"
    for content in (path.read_bytes()[:-9], b"no gzip"):
        path.write_bytes(content)
        assert f"{copies[1].name} cannot be read whole: " in refused(copies, root)


def test_one_number_of_a_reference_without_training_pools_with_what_was_pooled_before():
    def of(seeds, floor):
        scores = {"method": tuple(seeds), "floor": floor}
        measurement = Measurement(claim="C1", measured={"score": scores}, tested=True, anchor="c1", rule="0")
        provenance = SimpleNamespace(started=0)
        evidence = SimpleNamespace(measurements=[measurement], provenance=provenance)
        return SimpleNamespace(name=str(seeds), seeds=seeds, evidence=evidence)

    runs = [of((0.0, 1.0), (5.0, 5.0)), of((2.0, 3.0, 4.0), (5.0,))]
    pooled = pooling._measurement(runs, 0, "seed")
    assert pooled.measured == {"score": {"method": (0.0, 1.0, 2.0, 3.0, 4.0), "floor": (5.0,)}}
    runs[1] = of((2.0, 3.0, 4.0), (6.0,))
    with pytest.raises(ValueError, match="score of floor: neither one number per seed nor all equal"):
        pooling._measurement(runs, 0, "seed")


def test_pictures_of_a_metric_are_those_that_it_has():
    draw = np.random.default_rng(0)
    errors = {arm: draw.normal(size=(2, 3)) for arm in "ab"}
    spread = UnitSpread.of(errors, "picture")
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "picture": picture,
            "error": errors[arm][seed, picture] if picture < 3 else None,
        }
        for arm in "ab"
        for seed in (0, 1)
        for picture in range(5)  # two more, of another metric
    ]
    table = gzip.compress(pd.DataFrame(rows).to_csv(index=False).encode())
    means = {arm: tuple(values.mean(1)) for arm, values in errors.items()}
    one = Measurement(
        claim="C1", measured={"error": means}, units={"error": spread}, tested=True, anchor="c1", rule="0"
    )
    found = pooling.units_of(one, {"tables/per-picture.csv.gz": table}, [0, 1])["error"]
    assert np.allclose(found.covariance, spread.covariance) and found.count == spread.count == 3


def test_pooling_keeps_the_oldest_rule_so_that_a_younger_one_is_marked(made, copies):
    first = min(copies, key=lambda one: Evidence.load(one / "evidence.json").provenance.started)
    content = json.loads((first / "evidence.json").read_text())
    for measurement in content["measurements"]:
        measurement["rule"] = "01de5"
    (first / "evidence.json").write_text(json.dumps(content))
    evidence, _ = pool([complete_run(one) for one in copies], load_ledger("planned", made.root))
    assert {measurement.rule for measurement in evidence.measurements} == {"01de5"}
    with pytest.raises(ValueError, match="no run to pool"):
        pool([], load_ledger("planned", made.root))


def test_the_rules_are_named_as_of_the_runs_commit_by_todays_names(made, copies, root, monkeypatch):
    """A new way of naming rules does not make them look changed; a changed rule does."""
    project = Path(archive_module.__file__).parents[2]
    for name in JUDGING:
        (root / "lib/ledger").mkdir(parents=True, exist_ok=True)
        shutil.copy(project / "lib/ledger" / name, root / "lib/ledger" / name)
    commit(SimpleNamespace(root=root))
    head = git(root, "rev-parse", "HEAD")
    today = {c.id: rule_identity(c, "long") for c in load_ledger("planned", root).claims}
    assert rules_then(head, "planned", "long", root) == today
    path = root / "lib/ledger/rules.py"
    path.write_text(path.read_text() + "\nLIMIT = 2\n")
    commit(SimpleNamespace(root=root))
    then = rules_then(git(root, "rev-parse", "HEAD"), "planned", "long", root)
    assert not set(then.values()) & set(today.values()), "other code judged then"
    assert rules_then(head, "none", "long", root) == {}, "no such ledger then: what the run noted"
    monkeypatch.setattr(archive_module, "rules_then", lambda *_: {"C1": "0123456789abcdef"})
    archive(copies, root)
    (piece,) = archived("planned", root)
    rules = {measurement.claim: measurement.rule for measurement in piece.evidence.measurements}
    noted = Evidence.load(copies[0] / "evidence.json").measurements
    expected = {one.claim: one.rule for one in noted} | {"C1": "0123456789abcdef"}
    assert rules == expected and piece.claim("C1").rule_is_younger


CHANGES = """
from lib.runs.archive import pieces
for piece in pieces("planned"):
    print(piece.folder, *piece.changed, sep=" | ")
"""


def test_a_method_that_has_changed_since_is_named(made):
    made.write("ask.py", CHANGES)
    folders = [os.path.relpath(path, made.root) for path in (made.root / "runs/long/planned").iterdir()]
    kept = made.run("lib.run", "--archive", *folders)
    assert (kept.returncode, kept.stderr) == (0, ""), kept.stderr
    (folder,) = (made.root / "book/archive/planned").glob("long-*")

    def said() -> str:
        done = made.run("ask")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    name = folder.relative_to(made.root).as_posix()
    assert said() == name, "nothing has changed"
    for file, before, after, part in [
        ("lib/models/drawn.py", "0.05", "0.06", "lib.models.drawn"),
        ("notebooks/planned.md", '{"number": 4.0}', '{"number": +4.0}', "cell 2"),
        ("notebooks/planned.md", "gain: float = 0.1", "rise: float = 0.1", "unknown parameter 'gain'"),
        ("book/claims/planned.yml", "Means over users.", "Mean over all users.", ""),
        ("lib/models/drawn.py", "Made-up results", "Results", ""),
    ]:
        path = made.root / file
        text = path.read_text()
        path.write_text(text.replace(before, after))
        assert path.read_text() != text
        line = said()
        path.write_text(text)
        assert part in line and (line == name) == (not part), line
    shutil.rmtree(folder)


def test_a_request_that_could_not_be_archived_does_not_start(made):
    def refused_by_batch() -> str:
        done = made.run("snakemake", "sweep", "--config", "planned=planned", "scale=long", "-n")
        assert done.returncode == 1
        return done.stdout + done.stderr

    plan = made.root / "book/archive/planned/plan.yml"
    plan.write_text(PLAN + "# not committed\n")
    assert "planned runs start from a commit, or they could not be archived: there are" in refused_by_batch()
    plan.write_text(PLAN.replace("claims: [C1, C2]", "claims: [C9]"))
    assert "'main' cannot decide C9: no such claim" in refused_by_batch()
    plan.write_text(PLAN.replace("claims: [C1, C2]", "claims: [C4]"))
    assert "'main' cannot decide C4: no long run of this chapter is planned yet" in refused_by_batch()
    plan.write_text(PLAN.replace("scale: long", "scale: paper"))
    assert "plan.yml plans no run at scale long" in refused_by_batch()
    plan.write_text(PLAN)


def test_a_plan_fans_out_by_seed_and_the_books_scale_does_not(root):
    (long,) = planned_grids("planned", "long", root)
    assert long == {"chapter": "planned", "scale": "long", "grid": {"gain": [0.2], "seeds": SEEDS}}
    (book,) = planned_grids("planned", "book", root)
    assert book["grid"] == {"seeds": [[0, 1, 2]]}
    shutil.rmtree(root / ".git")
    with pytest.raises(RequestError, match="could not be archived: this is no git checkout"):
        planned_grids("planned", "long", root)


def test_the_command_line_refuses_in_one_line(made, request_run):
    done = made.run("lib.run", "--archive", "runs/nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("python -m lib.run: runs/nothing is no complete run: evidence.json is not there\n")
    done = made.run("lib.run", "planned", "--check", "runs/whole")
    assert done.returncode == 2 and "take folders, and no chapter" in done.stderr
    for options, line in [
        (["planned", "--partial"], "--partial goes with --archive"),
        (["--archive", "runs/whole", "--check", "runs/whole"], "--archive or --check, not both"),
        (["planned", "--list", "-p", "gain", "1"], "-p and --out go with a chapter that is to be run"),
        (["--check", "runs/whole", "--out", "runs/x"], "-p and --out go with a chapter that is to be run"),
    ]:
        done = made.run("lib.run", *options)
        assert (done.returncode, done.stderr) == (2, f"python -m lib.run: {line}\n")
