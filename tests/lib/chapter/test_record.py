"""The record of a chapter and the evidence of a run: complete, whole, readable again, shown."""

import base64
import hashlib
import json
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from pydantic import ValidationError

from lib.chapter.figures import arms_figure, redraw, save, use_style
from lib.chapter.record import Record
from lib.ledger.evidence import ChapterRecord, Evidence, evidence_schema
from lib.ledger.schema import SCALES, load_ledger
from lib.ledger.verdicts import VERDICTS

SMALL = {
    "smoke": {"tested": True},
    "book": {"tested": True, "scope": "on <small> data"},
    "paper": {"tested": True, "reproduces": True},
}
ELSEWHERE = {
    "smoke": {"tested": False, "why": "needs the data", "command": "run me"},
    "book": {"tested": False, "why": "needs the data", "command": "run me"},
    "paper": {"tested": True},
}
RULE = {"parts": [{"metric": "accuracy", "better": "ours", "worse": "theirs", "direction": "higher"}]}
NUMBER = {"value": 0.9, "where": "Table 1", "provenance": "recalled", "arm": "ours", "metric": "accuracy"}
COMMON = {"statement": "Ours & theirs.", "source": "Table 1", "protocol": "As stated."}
LEDGER = {
    "paper": {
        "id": "toy",
        "title": "A toy",
        "authors": ["A. Author"],
        "venue": "Nowhere",
        "year": 2020,
        "code_licence": "none",
    },
    "other_arms": ["chance"],
    "other_metrics": ["loss"],
    "claims": [
        COMMON | {"id": "C1", "kind": "comparison", "rule": RULE, "scales": SMALL, "paper": [NUMBER]},
        COMMON | {"id": "C2", "kind": "comparison", "rule": RULE, "scales": ELSEWHERE, "see": ["C1"]},
        COMMON
        | {
            "id": "E1",
            "kind": "arithmetic",
            "own": True,
            "scales": {scale: {"tested": True, "synthetic": True} for scale in SCALES},
            "paper": [
                {"label": "answer", "value": 42, "decimals": 0, "where": "p. 1", "provenance": "paper"}
            ],
        },
    ],
}
RESULTS = {
    "accuracy": {"ours": [0.90, 0.91, 0.92], "theirs": [0.80, 0.82, 0.81], "chance": [0.5, 0.5, 0.5]},
    "loss": {"ours": [1, 2, 3]},
}


class Ratings:
    name = "ratings <of films>"
    licence = "research only"
    synthetic = False

    def files(self, data_dir):
        return [data_dir / "ratings.csv"]


class World:
    synthetic = True


@pytest.fixture
def root(tmp_path):
    (tmp_path / "book" / "claims").mkdir(parents=True)
    (tmp_path / "book" / "claims" / "toy.yml").write_text(yaml.safe_dump(LEDGER))
    return tmp_path


@pytest.fixture
def record(root):
    return Record("toy", scale="book", run_dir=root / "run", root=root)


def fill(record):
    record.judge("C1", RESULTS)
    record.not_tested("C2")
    record.judge("E1", {"answer": 42})
    return record


def soup(html):
    data, _ = html._repr_mimebundle_()
    return BeautifulSoup(data["text/html"], "html.parser")


# --- the record --------------------------------------------------------------------------------------------


def test_a_whole_run(record, root):
    (root / "ratings.csv").write_bytes(b"1,2,3\n")
    record.data(Ratings(), root)
    record.data(World())
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    data, metadata = record.figure(figure, "curve")._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata == {"companion": {"shows": "figure curve"}}
    frame = pd.DataFrame({"a": [1.5]})
    assert record.table(frame, "numbers") is frame
    record.log.info("half-way")
    path = fill(record).close()

    assert path == root / "run" / "claims.json"
    sections = {"Data": 1.5}
    whole = Evidence.of_run(root / "run", {"seeds": [0, 1, 2], "name": "x"}, sections)
    whole.save(root / "run" / "evidence.json")
    again = Evidence.load(root / "run" / "evidence.json")
    assert again == whole
    assert [(c.id, c.verdict) for c in again.claims] == [
        ("C1", "matches memory"),
        ("C2", "not tested"),
        ("E1", "exact"),
    ]
    first, second, third = again.claims
    assert (first.anchor, second.anchor) == ("toy-c1", "toy-claims")
    assert first.provenance_of_paper_number == "recalled"
    assert second.provenance_of_paper_number is None
    assert first.interval.low > 0
    assert first.scope == "on <small> data"
    assert (second.reason, second.command) == ("needs the data", "run me")
    assert third.synthetic and third.measured == {"answer": 42}
    assert again.provenance.sections == sections
    assert again.provenance.started <= again.provenance.ended
    ratings, world = again.data
    assert ratings.files == {"ratings.csv": hashlib.sha256(b"1,2,3\n").hexdigest()}
    assert (world.name, world.synthetic, world.licence) == ("World", True, "made here")
    for artifact in again.artifacts:
        assert all((root / "run" / file).stat().st_size for file in artifact.files)
    assert (root / "run" / "tables" / "numbers.csv").read_text() == "a\n1.5\n"
    assert "half-way" in (root / "run" / "log.txt").read_text()
    assert "C1: matches memory" in (root / "run" / "log.txt").read_text()


def test_files_of_one_name_in_two_folders_are_both_recorded(record, root):
    class Pictures(Ratings):
        def files(self, data_dir):
            return [data_dir / "a" / "1.jpg", data_dir / "b" / "1.jpg", data_dir / "b" / "2.jpg"]

    for number, path in enumerate(Pictures().files(root)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number]))
    used = record.data(Pictures(), root).files
    assert list(used) == ["a/1.jpg", "b/1.jpg", "2.jpg"] and len(set(used.values())) == 3


def test_evidence_has_the_published_keys(record):
    fill(record).close()
    whole = json.loads(Evidence.of_run(record.folder, {}).model_dump_json())
    keys = {"chapter", "scale", "parameters", "claims", "measurements", "data", "artifacts", "provenance"}
    assert set(whole) == keys | {"settings", "altered"}
    required = {"id", "verdict", "measured", "interval", "paper", "protocol", "synthetic", "anchor", "reason"}
    assert required | {"provenance_of_paper_number"} <= set(whole["claims"][0])
    schema = evidence_schema()
    assert set(schema["required"]) >= {"chapter", "scale", "parameters", "claims", "provenance"}
    assert set(schema["$defs"]["ClaimEvidence"]["properties"]["verdict"]["enum"]) == set(VERDICTS)


def test_nothing_private_is_recorded(record, private):
    fill(record).close()
    text = Evidence.of_run(record.folder, {}).model_dump_json() + record.provenance()
    for name in (os.getcwd(), str(record.folder), *private):
        assert name not in text


def test_a_number_of_the_text_has_one_value(record):
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance()
    for value in (0.5, 0.5, np.float32(0.5)):
        record.number("half", value)
    record.number("nothing", float("nan"))
    with pytest.raises(ValueError, match=r"^number 'half' is 0\.5 already, got 0\.75$"):
        record.number("half", 0.75)


def test_what_was_closed_too_early_can_be_closed(root):
    """Results per unit are written with the rest, or not at all."""
    changed(root, unit="user")
    record = Record("toy", scale="book", run_dir=root / "run", root=root)
    users = {arm: np.add.outer(values, [-0.01, 0.01]) for arm, values in RESULTS["accuracy"].items()}
    record.judge("C1", {"accuracy": users})
    with pytest.raises(ValueError, match="neither judged nor marked not tested: C2, E1"):
        record.close()
    assert not (root / "run/tables").exists()
    record.not_tested("C2")
    record.judge("E1", {"answer": 42})
    record.close()
    assert (root / "run/tables/per-user.csv.gz").is_file()
    assert "means, over seeds alone" in record.verdicts(), "the interval of the claim is over users, too"


def test_findings_are_of_claims_that_there_are(record):
    with pytest.raises(ValueError, match="no claim 'C9': expected one of C1, C2, E1"):
        record.findings("C1", "C9")
    with pytest.raises(ValueError, match="no claim 'C9'"):
        record.found("C9")
    with pytest.raises(ValueError, match="C1 is not in the archive: judge it before its figure is drawn"):
        record.found("C1")
    fill(record)
    assert record.found("C1").shows == "found C1"
    assert "means, over" not in record.verdicts(), "all intervals of this claim are over seeds"


def test_closing_asks_for_every_claim(record):
    record.judge("C1", RESULTS)
    with pytest.raises(ValueError, match="neither judged nor marked not tested: C2, E1"):
        record.close()
    assert not (record.folder / "claims.json").exists()


def test_a_claim_is_judged_once(record):
    record.judge("C1", RESULTS)
    with pytest.raises(ValueError, match="C1 was already judged: matches memory"):
        record.judge("C1", RESULTS)
    with pytest.raises(ValueError, match="C1 was already judged"):
        record.not_tested("C1")
    with pytest.raises(ValueError, match="no claim 'C9': expected one of C1, C2, E1"):
        record.judge("C9", RESULTS)
    with pytest.raises(ValueError, match="C2 is not tested at scale book"):
        record.judge("C2", RESULTS)
    with pytest.raises(ValueError, match="scale book tests E1"):
        record.not_tested("E1")
    assert record.tests("C1") and not record.tests("C2")


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"acuracy": {"ours": [1]}}, "unknown metric 'acuracy': the ledger has accuracy, loss"),
        ({"accuracy": {"our": [1], "theirs": [1]}}, "unknown arm 'our': the ledger has chance, ours, theirs"),
        ({"accuracy": {"ours": [1, 2, 3]}}, "C1: expected the arms of accuracy ours, theirs; got ours"),
        ({"loss": {"ours": [1, 2, 3]}}, "C1: expected the metrics accuracy; got none"),
        ({"accuracy": [1, 2, 3]}, "C1: expected the arms of accuracy"),
    ],
)
def test_a_slip_of_the_pen_is_refused_and_judges_nothing(record, measured, message):
    with pytest.raises(ValueError, match=message):
        record.judge("C1", measured)
    record.judge("C1", RESULTS, protocol="Another.")


def test_a_finished_run_is_not_written_over(record, root):
    fill(record).close()
    Evidence.of_run(record.folder, {}).save(record.folder / "evidence.json")
    with pytest.raises(ValueError, match="finished run is already in run"):
        Record("toy", scale="book", run_dir=record.folder, root=root)


def test_by_hand_it_lands_in_interactive(root):
    for _ in range(2):  # a notebook is run again
        record = Record("toy", scale="book", run_dir="", root=root)
        fill(record).close()
    assert record.folder == root / "runs" / "book" / "toy" / "interactive"
    assert ChapterRecord.load(record.folder / "claims.json").chapter == "toy"


def test_by_hand_a_cell_that_is_run_again_replaces_what_it_kept(root):
    """With another parameter, say; a run of `lib.run` refuses the second instead (above and below)."""
    record = Record("toy", scale="book", root=root)
    for accuracy in (0.5, 0.9):
        record.judge("C1", {"accuracy": {arm: [accuracy] * 3 for arm in RESULTS["accuracy"]}})
        record.number("best", accuracy)
        record.table(pd.DataFrame({"a": [accuracy]}), "t")
        record.figure(plt.figure(), "f")
        record.not_tested("C2")
    record.judge("E1", {"answer": 42})
    kept = ChapterRecord.load(record.close())
    measured = next(one for one in kept.measurements if one.claim == "C1").measured
    assert {values for arms in measured.values() for values in arms.values()} == {(0.9, 0.9, 0.9)}
    assert (record.folder / "tables/t.csv").read_text() == "a\n0.9\n"
    assert [artifact.name for artifact in kept.artifacts] == ["t", "f"]


@pytest.mark.parametrize(("asked", "threads"), [(None, 1), ("2", 2)])
def test_one_thread_by_hand_unless_the_environment_asks_for_more(root, monkeypatch, asked, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    try:
        Record("toy", scale="book", root=root)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_unknown_scale_or_chapter_before_anything_is_made(root):
    with pytest.raises(ValueError, match="unknown scale 'big'"):
        Record("toy", scale="big", root=root)
    with pytest.raises(ValueError, match="no ledger for chapter 'toi'"):
        Record("toi", scale="book", root=root)
    assert not (root / "runs").exists()


def test_one_log_at_a_time(root):
    first = Record("toy", scale="book", run_dir=root / "one", root=root)
    second = Record("toy", scale="book", run_dir=root / "two", root=root)
    first.log.info("once")
    assert not (root / "one" / "log.txt").exists()
    assert (root / "two" / "log.txt").read_text().count("once") == 1
    assert first.log is second.log


def test_artifacts_have_names_of_their_own(record):
    with pytest.raises(ValueError, match=r"lower-case letters, digits, - and _, got '\.\./x'"):
        record.table(pd.DataFrame(), "../x")
    record.table(pd.DataFrame({"a": [1]}, index=pd.Index([3], name="k")), "t")
    assert (record.folder / "tables" / "t.csv").read_text() == "k,a\n3,1\n"
    with pytest.raises(ValueError, match="already a table named 't'"):
        record.figure(plt.figure(), "t")


def test_figures_are_the_same_bytes_again(root):
    written = []
    for name in ("one", "two"):
        record = Record("toy", scale="book", run_dir=root / name, root=root)
        figure, axes = plt.subplots()
        axes.plot(np.arange(3))
        with plt.rc_context({"svg.hashsalt": "x"}):
            record.figure(figure, "line")
        assert not plt.fignum_exists(figure.number)
        written.append([(record.folder / "figures" / f"line.{kind}").read_bytes() for kind in ("png", "svg")])
    assert written[0] == written[1]


def test_real_data_must_be_identifiable(record):
    class Nothing:
        synthetic = False

    with pytest.raises(ValueError, match="Nothing: real data without files"):
        record.data(Nothing())


# --- the file ----------------------------------------------------------------------------------------------


def test_evidence_needs_a_closed_record_and_its_artifacts(record):
    with pytest.raises(ValueError, match="did not close its record"):
        Evidence.of_run(record.folder, {})
    record.table(pd.DataFrame({"a": [1]}), "t")
    fill(record).close()
    (record.folder / "tables" / "t.csv").unlink()
    with pytest.raises(ValueError, match="table 't': tables/t.csv is not there"):
        Evidence.of_run(record.folder, {})


def test_what_is_no_evidence_is_refused_in_one_line(record, tmp_path):
    fill(record).close()
    whole = Evidence.of_run(record.folder, {"seeds": [0]})
    good = json.loads(whole.model_dump_json())
    path = tmp_path / "evidence.json"
    for broken, message in [
        (b"", "Invalid JSON"),
        (json.dumps(good).encode()[:-9], "Invalid JSON"),
        (json.dumps(good).encode()[:-1] + b', "scale": "paper"}', "evidence.json: 'scale' is given twice"),
        (json.dumps(good | {"scale": "big"}).encode(), "scale: "),
        (json.dumps(good | {"mood": "good"}).encode(), "mood: Extra"),
        (json.dumps({k: v for k, v in good.items() if k != "parameters"}).encode(), "parameters: "),
    ]:
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=message) as error:
            Evidence.load(path)
        assert str(error.value).startswith("evidence.json: ")
        assert "\n" not in str(error.value)
    with pytest.raises(ValidationError):
        whole.chapter = "other"


# --- what is shown -----------------------------------------------------------------------------------------


def test_tables_are_tables(record):
    fill(record)
    for html in (record.ledger_table(), record.verdicts(), record.provenance()):
        page = soup(html)
        assert page.table
        for table in page.find_all("table"):
            assert table.caption.text
            columns = table.find_all("th", scope="col")
            for row in table.tbody.find_all("tr"):
                assert row.find_all("th", scope="row", recursive=False)
                assert len(row.find_all(["th", "td"], recursive=False)) == len(columns)
        assert not page.find("small", string="data")  # the text <small> was escaped
        assert "<characters" not in repr(html) and "HTML" in repr(html)


def test_verdicts_are_words_and_caveats_are_always_there(record):
    fill(record)
    page = soup(record.verdicts())
    assert [one.text for one in page.select(".verdict")] == ["not tested", "exact", "matches memory"]
    assert page.select(".verdict")[0]["class"] == ["verdict", "verdict-not-tested"]
    assert len(page.select(".mark-synthetic")) == 1
    recalled = page.select(".mark-recalled")
    assert [one.text for one in recalled] == ["recalled: not verified"]
    assert not recalled[0].find_parent("details")
    assert "run me" in page.text and "on <small> data" in page.text
    assert [caption.text for caption in page.find_all("caption")] == [
        "What the paper says: 1 not tested",
        "Our own checks: 1 exact; 1 of them on synthetic data",
        "Held against numbers that are only remembered: 1 matches memory",
    ]
    assert [link["href"] for link in page.find_all("a")] == ["#toy-claims", "#toy-e1", "#toy-c1"]
    assert "96 % interval, 3 seeds" in page.text


def test_the_ledger_says_what_is_tested_here(record):
    page = soup(record.ledger_table())
    rows = page.tbody.find_all("tr")
    assert "Tested: on <small> data." in rows[0].text
    assert [row.summary.text for row in rows[:2]] == [
        "Ours & theirs. (by comparison)",
        rows[1].summary.text.partition(" (")[0] + " (not tested here)",
    ]
    assert "recalled" in rows[0].text
    assert "Not tested: needs the data" in rows[1].text and "run me" in rows[1].text
    assert "see C1" in rows[1].text
    assert "synthetic" in rows[2].text
    assert [a["href"] for a in page.find_all("a")] == ["#toy-c1", "#toy-e1"]


def test_the_ledger_of_meantime_is_shown_at_every_scale(tmp_path):
    for scale in SCALES:
        record = Record("meantime", scale=scale, run_dir=tmp_path / scale)
        assert len(soup(record.ledger_table()).tbody.find_all("tr")) == len(record.ledger.claims)


def test_a_verdict_shows_itself_and_says_so(record):
    data, metadata = record.judge("C1", RESULTS)._repr_mimebundle_()
    assert data["text/html"].startswith(
        '<p>C1: <strong class="verdict verdict-matches-memory">matches memory</strong> Every'
    )
    assert metadata == {"companion": {"shows": "verdict C1"}}


def test_raw_measurements_are_kept_with_what_other_claims_may_need(record):
    record.judge("C1", {"accuracy": {arm: np.array(v) for arm, v in RESULTS["accuracy"].items()}} | RESULTS)
    record.not_tested("C2")
    record.judge("E1", {"answer": np.float32(42), "not asked": 1})
    record.close()
    first, second, third = ChapterRecord.load(record.folder / "claims.json").measurements
    assert first.measured["accuracy"]["chance"] == (0.5, 0.5, 0.5)
    assert (second.tested, second.measured) == (False, {})
    assert third.measured == {"answer": 42, "not asked": 1}


def changed(root, **fields):
    """The ledger with other fields in its first claim."""
    claims = [LEDGER["claims"][0] | fields, *LEDGER["claims"][1:]]
    (root / "book/claims/toy.yml").write_text(yaml.safe_dump(LEDGER | {"claims": claims}))
    return load_ledger("toy", root)


def test_text_in_frames_is_pythons_own(record):
    """As without Arrow, whose text raises where it is compared with numbers and text."""
    assert pd.Series(["a"]).dtype.storage == "python"
    assert (pd.Series(["a", "end"]) == pd.Series([1, "end"])).tolist() == [False, True]


def test_measurements_are_judged_again_by_todays_ledger(record, root):
    fill(record).close()
    stored = Evidence.of_run(record.folder, {})
    assert stored.judged_by(record.ledger) == stored
    (part,) = RULE["parts"]
    turned = stored.judged_by(changed(root, rule={"parts": [part | {"direction": "lower"}]}))
    assert [(c.id, c.verdict, c.rule_is_younger) for c in turned.claims] == [
        ("C1", "differs from memory", True), ("C2", "not tested", False), ("E1", "exact", False)
    ]  # fmt: skip
    # An arm that no rule asked for when it was measured.
    other = stored.judged_by(changed(root, rule={"parts": [part | {"worse": "chance"}]}))
    assert other.claims[0].effects[0].label == "accuracy: ours − chance"
    # Words are no rule.
    said = stored.judged_by(changed(root, statement="Better.", caveat="Only here."))
    assert (said.claims[0].statement, said.claims[0].rule_is_younger) == ("Better.", False)
    # A verdict edited by hand does not survive.
    forged = stored.claims[0].model_copy(update={"verdict": "reproduced"})
    edited = stored.model_copy(update={"claims": (forged, *stored.claims[1:])})
    assert edited.judged_by(record.ledger) == stored


@pytest.mark.parametrize(
    ("noted", "verdict", "why"),
    [
        ({"altered": []}, "reproduced", ""),
        ({"altered": ["depth"]}, "reproduced", ""),  # one that the claim itself asks for
        ({"altered": ["depth", "steps", "rate"]}, "holds", "than the scale's own: steps, rate."),
        ({}, "holds", "nothing tells whether the parameters were the scale's own."),
    ],
)
def test_nothing_is_reproduced_with_toy_parameters(root, noted, verdict, why):
    paper = {"tested": True, "reproduces": True, "when": {"depth": 2}}
    changed(root, scales=SMALL | {"paper": paper}, paper=[NUMBER | {"provenance": "paper"}])
    (root / "run").mkdir()
    (root / "run/parameters.json").write_text(json.dumps(noted))
    record = Record("toy", scale="paper", run_dir=root / "run", root=root)
    line = soup(record.judge("C1", RESULTS)).text
    assert line.startswith(f"C1: {verdict}") and why in line and line.endswith("(96 % interval)")
    record.not_tested("C2", "not now")
    record.judge("E1", {"answer": 42})
    record.close()
    stored = Evidence.of_run(record.folder, {})
    assert stored.claims[0].verdict == verdict and stored.judged_by(record.ledger) == stored


def test_the_scope_names_the_data_that_were_used(root):
    scales = SMALL | {"book": {"tested": True, "scope": "on {words}, {depth} layers", "when": {"depth": 2}}}
    changed(root, scales=scales)
    record = Record("toy", scale="book", run_dir=root / "run", root=root)
    assert "on this run's words, this run's depth layers" in soup(record.ledger_table()).text
    assert not record.tests("C1") and record.tests("C1", depth=2)
    record.settings(words="speeches <x>", depth=2)
    assert record.tests("C1") and not record.tests("C1", depth=3)
    assert "on speeches <x>, 2 layers" in soup(record.ledger_table()).text
    assert "Scope: on speeches <x>, 2 layers." in soup(fill(record).verdicts()).text
    record.close()
    stored = Evidence.of_run(record.folder, {})
    assert stored.claims[0].scope == "on speeches <x>, 2 layers" and stored.claims[1].scope == ""
    assert stored.judged_by(record.ledger) == stored
    reworded = scales | {"book": {"tested": True, "scope": "with {words}"}}
    later = stored.judged_by(changed(root, scales=reworded))
    assert later.claims[0].scope == "with speeches <x>"


def test_measurements_that_do_not_fit_are_refused(record, root):
    fill(record).close()
    stored = Evidence.of_run(record.folder, {})
    (part,) = RULE["parts"]
    with pytest.raises(ValueError, match="C1: expected the arms of accuracy ours, others; got ours"):
        stored.judged_by(changed(root, rule={"parts": [part | {"worse": "others"}]}))
    with pytest.raises(ValueError, match="C3: not in this run's measurements"):
        more = LEDGER["claims"] + [LEDGER["claims"][0] | {"id": "C3"}]
        (root / "book/claims/toy.yml").write_text(yaml.safe_dump(LEDGER | {"claims": more}))
        stored.judged_by(load_ledger("toy", root))


def test_a_training_has_a_file_to_continue_from_when_it_is_a_run(record, root):
    assert record.checkpoint("arm, seed 0") == record.folder / "checkpoints" / "arm, seed 0.pt"
    for name in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(ValueError, match="name of a checkpoint: no slash, no leading dot"):
            record.checkpoint(name)
    assert Record("toy", scale="book", root=root).checkpoint("arm, seed 0") is None


def test_the_ledgers_numbers_by_name(record):
    assert record.published("E1") == {"answer": 42}
    assert record.published("C1") == {"accuracy, ours": 0.9}


def test_numbers_are_shown_and_saved_with_their_reference(record):
    record.judge("E1", {"answer": 42})
    shown = record.numbers("E1", name="arithmetic")
    cells = [cell.get_text() for cell in soup(shown).select("tbody tr > *")]
    assert cells == ["E1", "answer", "42", "paper", "42", "exact"]
    assert shown._repr_mimebundle_()[1] == {"companion": {"shows": "numbers E1"}}
    written = (record.folder / "tables/arithmetic.csv").read_text().splitlines()
    assert written[0] == "claim,number,reference is,reference,ours,unit,verdict"
    assert written[1] == "E1,answer,paper,42,42.0,,exact"


def test_a_number_for_the_text(record, monkeypatch):
    glued = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: glued.update({name: (value, display)}))
    record.number("half", np.float32(0.5))
    record.number("count", np.int64(3))
    assert glued == {"toy-half": (0.5, False), "toy-count": (3, False)}
    assert {type(value) for value, _ in glued.values()} == {float, int}


@pytest.mark.parametrize("kept", [True, False])
def test_a_figure_of_the_books_kind_keeps_what_it_is_drawn_from(record, kept):
    use_style()
    frame = pd.DataFrame({"arm": ["a", "a", "b", "b"], "score": [1.0, np.nan, 2.0, 3]}, index=[9, 8, 7, 6])
    figure = arms_figure(frame, ["score"], reference={"score": 1.5})
    if not kept:
        figure.axes[0].set_title("changed by a cell")
    record.figure(figure, "scores")
    drawing = record.folder / "figures/scores.json"
    assert drawing.exists() == kept
    if kept:
        again = redraw(drawing.read_text())
        save(again, record.folder / "again.png", record.folder / "again.svg")
        for suffix in ("png", "svg"):
            ours = (record.folder / f"again.{suffix}").read_bytes()
            assert ours == (record.folder / f"figures/scores.{suffix}").read_bytes()


def test_a_change_is_marked_and_told(root):
    story = {"was": "means <of thirds>", "why": "one layer decided", "after": "a complete run"}
    changed(root, changed=story)
    record = fill(Record("toy", scale="book", run_dir=root / "run", root=root))
    for html in (record.ledger_table(), record.verdicts()):
        rows = {row.th.text: row for row in soup(html).select("tbody tr")}
        for text in story.values():
            assert text in rows["C1"].details.text
    assert "rule changed after a run" in rows["C1"].text
    assert "rule changed after a run" not in rows["E1"].text
