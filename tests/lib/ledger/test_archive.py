"""The archive, judged again: plans, edited files, what is stale, the strongest, the check of a machine."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from lib.chapter.record import Record
from lib.ledger.archive import (
    Piece,
    archived,
    load_archived,
    load_plan,
    read_plan,
    repeats,
    same_setting,
    strongest,
)
from lib.ledger.evidence import Evidence
from lib.ledger.schema import load_ledger

ROOT = Path(__file__).resolve().parents[3]
TABLED = [0.93, 0.94, 0.95, 0.96]
COVERED = {"Student": TABLED, "normal": [0.8, 0.81, 0.79, 0.805]}
SIZES = [f"coverage at n = {n}" for n in (3, 5, 10)]
PLANNED = {
    "name": "main",
    "scale": "long",
    "seeds": [5, 6],
    "stopping": "After one draw.",
    "claims": ["T2"],
    "written": "2026-11-26",
}


@pytest.fixture
def root(tmp_path):
    """A project with the template's ledger; with a long scale for its T2."""
    (tmp_path / "book/claims").mkdir(parents=True)
    ledger = (ROOT / "book/claims/template.yml").read_text()
    long = "book: {tested: true, synthetic: true}\n      long: {tested: true, synthetic: true}"
    ledger = ledger.replace("book: {tested: true, synthetic: true}", long)
    (tmp_path / "book/claims/template.yml").write_text(ledger)
    return tmp_path


def keep(root, scale="long", day="2026-11-26", *, covered=COVERED, t1=(4.303, 1.96), seeds=(0, 1, 2, 3)):
    """Put made-up evidence into the archive; returns its file."""
    run = root / "runs" / f"{scale}-{day}"
    record = Record("template", scale=scale, run_dir=run, root=root)
    names = [number.name for number in record.ledger["T1"].paper]
    if scale == "long":
        record.not_tested("T1")
    else:
        record.judge("T1", dict(zip(names, t1, strict=True)))
    record.judge("T2", dict.fromkeys(SIZES, covered), synthetic=True)
    record.not_tested("T3")
    record.close()
    evidence = Evidence.of_run(run, {"scale": scale, "seeds": list(seeds), "samples": 10})
    ended = datetime.fromisoformat(f"{day}T12:00:00+00:00")
    made = {"started": ended - timedelta(hours=2), "ended": ended, "wall_seconds": 7200.0, "threads": 2}
    provenance = evidence.provenance.model_copy(update=made)
    folder = root / "book/archive/template" / f"{scale}-{day}"
    folder.mkdir(parents=True)
    evidence.model_copy(update={"provenance": provenance}).save(folder / "evidence.json")
    return folder / "evidence.json"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- plans ---


def write_plan(root, *planned):
    path = root / "book/archive/template/plan.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(list(planned)))


def test_a_plan_is_read_in_the_order_of_its_file(root):
    assert load_plan("template", root) == ()
    write_plan(root, PLANNED, PLANNED | {"name": "second", "parameters": {"samples": 20}})
    first, second = load_plan("template", root)
    assert (first.name, first.seeds, first.parameters, str(first.written)) == (
        "main",
        (5, 6),
        {},
        "2026-11-26",
    )
    assert second.parameters == {"samples": 20}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "plan.yml: 0.seeds: seed 1 is named twice"),
        ({"seeds": []}, "plan.yml: 0.seeds: "),
        ({"seeds": [-1]}, "plan.yml: 0.seeds.0: "),
        ({"scale": "huge"}, "plan.yml: 0.scale: "),
        ({"stopping": ""}, "plan.yml: 0.stopping: "),
        ({"claims": []}, "plan.yml: 0.claims: "),
        ({"written": "some day"}, "plan.yml: 0.written: "),
        ({"name": "Main run"}, "plan.yml: 0.name: "),
        ({"sedes": [1]}, "plan.yml: 0.sedes: Extra inputs"),
        ({"parameters": {"seeds": [1]}}, "plan.yml: 0.parameters: seeds is no parameter"),
        ({"parameters": {"run_dir": "x"}}, "plan.yml: 0.parameters: run_dir is no parameter"),
    ],
)
def test_a_plan_that_says_nothing_useful_is_refused(root, changes, message):
    write_plan(root, PLANNED | changes)
    with pytest.raises(ValueError, match="plan.yml") as caught:
        load_plan("template", root)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_list_of_runs_is_refused(root):
    for text, message in [
        ("{a: 1}", "the file: "),
        ("[", "plan.yml, line 1: not YAML"),
        ("- name: main\n  name: other", "plan.yml, line 2: not YAML: 'name' twice"),
        (yaml.safe_dump([PLANNED] * 2), "'main' is planned twice"),
    ]:
        write_plan(root)
        (root / "book/archive/template/plan.yml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_plan("template", root)


# --- judged again ---


def test_a_verdict_that_was_edited_by_hand_does_not_survive(root):
    path = keep(root)

    def edited(content):
        (claim,) = [claim for claim in content["claims"] if claim["id"] == "T2"]
        claim |= {"verdict": "contradicted", "reason": "We know better.", "interval": None, "effects": []}

    edit(path, edited)
    assert Evidence.load(path).claims[1].verdict == "contradicted"
    (piece,) = archived("template", root)
    assert (piece.claim("T2").verdict, piece.claim("T2").interval.replicates) == ("holds", 4)
    # Its twin: other raw numbers are another verdict.
    edit(
        path,
        lambda content: [
            measurement["measured"].update({size: {"Student": TABLED, "normal": TABLED} for size in SIZES})
            for measurement in content["measurements"]
            if measurement["claim"] == "T2"
        ],
    )
    (piece,) = archived("template", root)
    assert piece.claim("T2").verdict == "inconclusive"


def test_todays_rule_judges_and_says_that_it_is_younger(root):
    keep(root)
    ledger = root / "book/claims/template.yml"
    ledger.write_text(ledger.read_text().replace("direction: higher", "direction: lower"))
    (piece,) = archived("template", root)
    assert piece.claim("T2").verdict == "contradicted" and piece.claim("T2").rule_is_younger


def test_a_claim_that_no_longer_fits_is_stale_and_leaves_the_others(root):
    keep(root, "book")
    ledger = root / "book/claims/template.yml"
    text = ledger.read_text()
    ledger.write_text(text.replace("coverage at n = 10]", "coverage at n = 20]"))
    (piece,) = archived("template", root)
    assert set(piece.stale) == {"T2"} and not piece.tests("T2")
    assert piece.claim("T2").verdict == "not tested"
    assert "Not judged by today's ledger: T2: expected the metrics" in piece.claim("T2").reason
    assert piece.claim("T1").verdict == "exact" and piece.tests("T1")
    # A claim that was added later.
    added = text[text.index("  - id: T1") : text.index("  - id: T2")].replace("T1", "T4")
    ledger.write_text(text + added)
    (piece,) = archived("template", root)
    assert piece.claim("T4").reason == "Not judged by today's ledger: it is younger than the run."
    assert piece.claim("T2").verdict == "holds" and not piece.tests("T4")
    with pytest.raises(ValueError, match="no claim 'T9'"):
        piece.claim("T9")


def test_what_is_no_evidence_of_the_chapter_stops_in_one_line(root):
    path = keep(root)
    assert archived("nothing", root) == ()
    shutil.copytree(path.parent, root / "book/archive/other/long-2026-11-26")
    with pytest.raises(ValueError, match="book/archive/other/long-2026-11-26 holds template at scale long"):
        archived("other", root)
    moved = path.parent.rename(path.parent.with_name("paper-2026-11-26"))
    with pytest.raises(ValueError, match="paper-2026-11-26 holds template at scale long"):
        archived("template", root)
    edit(moved / "evidence.json", lambda content: content.pop("data"))
    with pytest.raises(ValueError, match=r"book/archive/template/paper-2026-11-26: evidence\.json: data"):
        archived("template", root)
    moved.rename(moved.with_name(".archive-killed"))
    assert archived("template", root) == (), "what a killed process left is not read"


def test_a_table_that_is_named_is_there(root):
    path = keep(root)
    table = {"name": "scores", "kind": "table", "files": ["tables/scores.csv"]}
    edit(path, lambda content: content["artifacts"].append(table))
    with pytest.raises(ValueError, match=r"long-2026-11-26: table 'scores': tables/scores\.csv is not there"):
        archived("template", root)


def test_a_piece_says_when_where_and_for_how_long(root):
    keep(root)
    (piece,) = archived("template", root)
    assert piece.core_hours == 4.0, "two hours, two threads"
    assert piece.folder == "book/archive/template/long-2026-11-26"
    provenance = piece.evidence.provenance
    assert piece.machines == (provenance.processor,) and piece.seeds == (0, 1, 2, 3)
    assert piece.commits == (provenance.commit or "",)
    accelerated = provenance.model_copy(update={"accelerator": "a card"})
    faster = piece.evidence.model_copy(update={"provenance": accelerated})
    assert Piece.of(faster, load_ledger("template", root)).machines == (f"{provenance.processor}, a card",)


# --- the strongest ---


def test_the_strongest_goes_by_scale_and_never_by_verdict(root):
    worse = {"Student": COVERED["normal"], "normal": TABLED}
    keep(root, "book", "2026-11-01")
    keep(root, "long", "2026-11-20", covered=worse)
    keep(root, "long", "2026-11-10")
    pieces = archived("template", root)
    assert [Path(piece.folder).name for piece in pieces] == [
        "book-2026-11-01",
        "long-2026-11-10",
        "long-2026-11-20",
    ]
    for order in (pieces, pieces[::-1]):
        best = strongest("T2", order)
        assert Path(best.folder).name == "long-2026-11-20", "of one scale the latest, whatever it says"
        assert best.claim("T2").verdict == "contradicted"
        assert strongest("T1", order).scale == "book", "the long runs do not test it"
        assert strongest("T3", order) is None
    keep(root, "paper", "2026-10-01", covered=worse | {"Student": [0.8, 0.9, 0.7, 0.95]})
    best = strongest("T2", archived("template", root))
    assert (best.scale, best.claim("T2").verdict) == ("paper", "inconclusive")
    assert strongest("T2", []) is None


# --- a machine's check ---


def test_a_run_made_again_stands_beside_the_archived_one(root):
    then = Evidence.load(keep(root, "book", "2026-11-01"))
    near = {"Student": [value + 0.001 for value in TABLED], "normal": COVERED["normal"]}
    far = near | {"normal": [value + 0.1 for value in COVERED["normal"]]}
    same = repeats(then, then)
    assert list(same.columns) == ["metric", "arm", "here", "archived", "difference", "spread", "within"]
    assert len(same) == 6 and same["within"].all() and (same["difference"] == 0).all()
    table = repeats(Evidence.load(keep(root, "book", "2026-11-02", covered=near)), then)
    row = table.set_index(["metric", "arm"]).loc[(SIZES[0], "Student")]
    assert row["here"] == pytest.approx(0.946) and row["archived"] == pytest.approx(0.945)
    assert row["difference"] == pytest.approx(0.001)
    assert row["spread"] == pytest.approx(0.0129099, abs=1e-6) and row["within"]
    table = repeats(Evidence.load(keep(root, "book", "2026-11-03", covered=far)), then)
    assert table["within"].tolist() == [arm == "Student" for arm in table["arm"]]


def test_a_run_of_fewer_seeds_stands_beside_those_seeds(root):
    """And the spread is that over all seeds that were archived."""
    then = Evidence.load(keep(root, "book", "2026-11-01"))
    last = {arm: values[3:] for arm, values in COVERED.items()}
    here = Evidence.load(keep(root, "book", "2026-11-02", seeds=(3,), covered=last))
    assert Path(same_setting(here, archived("template", root)[:1]).folder).name == "book-2026-11-01"
    table = repeats(here, then).set_index(["metric", "arm"])
    row = table.loc[(SIZES[0], "Student")]
    assert (row["here"], row["archived"], row["difference"]) == (0.96, 0.96, 0), "0.945 is the mean of all"
    assert row["spread"] == pytest.approx(0.0129099, abs=1e-6) and row["within"]
    assert same_setting(then, archived("template", root)[1:]) is None
    with pytest.raises(ValueError, match=r"not the same setting: seeds is \[0, 1, 2, 3\], not \[3\]"):
        repeats(then, here)


def test_runs_of_another_setting_are_not_compared(root):
    then = Evidence.load(keep(root, "book", "2026-11-01"))
    other = Evidence.load(keep(root, "book", "2026-11-02", seeds=(4, 5, 6, 7)))
    with pytest.raises(
        ValueError, match=r"not the same setting: seeds is \[4, 5, 6, 7\], not \[0, 1, 2, 3\]"
    ):
        repeats(other, then)
    pieces = archived("template", root)
    assert Path(same_setting(then, pieces).folder).name == "book-2026-11-01"
    again = Evidence.load(keep(root, "book", "2026-11-03"))
    assert Path(same_setting(again, archived("template", root)).folder).name == "book-2026-11-03", (
        "the latest"
    )
    assert same_setting(then.model_copy(update={"chapter": "other"}), pieces) is None
    with pytest.raises(ValueError, match="not the same setting: scale is 'long', not 'book'"):
        repeats(Evidence.load(keep(root)), then)


def test_one_replicate_has_no_spread_to_lie_within(root):
    one = {arm: values[:1] for arm, values in COVERED.items()}
    then = Evidence.load(keep(root, "book", covered=one))
    table = repeats(then, then)
    assert table["spread"].isna().all() and set(table["within"]) == {None}


# --- what is in this repository ---


def test_a_run_of_today_can_be_read_as_a_piece(root):
    path = keep(root)
    sent = load_archived(path, "sent")
    assert (sent.plan, sent.runs, sent.method) == ("", (), {})


def test_the_plan_that_the_book_shows_is_a_plan():
    page = (ROOT / "book/run.md").read_text(encoding="utf-8")
    text = page.split("(run-long)=")[1].split("```yaml\n")[1].split("```")[0]
    (one,) = read_plan(text, "run.md")
    assert (one.name, one.scale, len(one.seeds)) == ("main", "long", 8)
