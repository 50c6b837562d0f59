"""Whether the reference has learned: the floor of a claim, and what becomes of claims below it."""

import numpy as np
import pytest
import yaml

from lib.chapter.record import Record
from lib.ledger import floors
from lib.ledger.evidence import Evidence, own_part, rule_identity
from lib.ledger.floors import asked_first, unlearned
from lib.ledger.rules import Floor
from lib.ledger.schema import SCALES, load_ledger
from lib.ledger.verdicts import judge

FLOOR = {
    "metric": "accuracy",
    "arm": "linear classifier",
    "references": ["full precision"],
    "by": 1.0,
    "direction": "higher",
    "unit": "points",
}
LOSS = {"metric": "accuracy", "arm": "full precision", "of": "difference", "to": "3 bits"}
CLAIM = {
    "id": "C1",
    "statement": "Three bits lose at most one point.",
    "source": "Table 1",
    "kind": "bound",
    "rule": {"parts": [LOSS | {"op": "<=", "limit": 1}]},
    "scales": {scale: {"tested": True, "reproduces": scale == "paper"} for scale in SCALES},
    "protocol": "One training per seed.",
}
HEAD = {
    "id": "toy",
    "title": "A toy",
    "authors": ["A. Author"],
    "venue": "Nowhere",
    "year": 2020,
    "code_licence": "none",
}
FULL, THREE = [73.0, 73.5, 74.0], [72.9, 73.5, 73.8]
BELOW, ABOVE = [81.6], [70.1]


def measured(floor, full=FULL, three=THREE):
    return {"accuracy": {"full precision": full, "3 bits": three, "linear classifier": floor}}


def ledger(root, *claims):
    folder = root / "book" / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.yml").write_text(yaml.safe_dump({"paper": HEAD, "claims": list(claims)}))
    return load_ledger("toy", root)


def load(root, floor=FLOOR, **fields):
    claim = CLAIM | {"floor": floor} | fields
    if claim["kind"] == "arithmetic":
        del claim["rule"]
    return ledger(root, claim).claims[0]


# --- the verdict -------------------------------------------------------------------------------------------


def test_a_reference_below_its_floor_is_not_tested_and_keeps_its_numbers(tmp_path):
    verdict = judge(load(tmp_path), measured(BELOW), "book")
    assert (verdict.verdict, verdict.unlearned) == ("not tested", True)
    assert verdict.reason == (
        "The reference has not learned: accuracy of full precision 73.5, of the linear classifier 81.6; "
        "at least 1 point above is asked for."
    )
    assert verdict.measured["accuracy"]["linear classifier"].values == (81.6,)
    without = judge(load(tmp_path, floor=None), own_part(load(tmp_path, floor=None), measured(BELOW)), "book")
    assert without.verdict == "holds"
    assert (verdict.effects, verdict.interval) == (without.effects, without.interval)


def test_above_its_floor_the_rule_decides(tmp_path):
    verdict = judge(load(tmp_path), measured(ABOVE), "book")
    assert (verdict.verdict, verdict.unlearned) == ("holds", False)
    lost = [70.0, 71.0, 70.2]
    assert judge(load(tmp_path), measured(ABOVE, three=lost), "book").verdict == "contradicted"


def test_a_gate_that_always_opens_would_be_seen(tmp_path, monkeypatch):
    """The twin of the two above: without the comparison the verdict is the rule's."""
    monkeypatch.setattr("lib.ledger.verdicts.unlearned", lambda floor, values: "")
    assert judge(load(tmp_path), measured(BELOW), "book").verdict == "holds"
    monkeypatch.setattr("lib.ledger.verdicts.unlearned", lambda floor, values: "Never.")
    assert judge(load(tmp_path), measured(ABOVE), "book").verdict == "not tested"


def test_below_the_floor_nothing_is_contradicted_reproduced_or_remembered(tmp_path):
    recalled = {"value": 73, "arm": "full precision", "metric": "accuracy", "where": "x"}
    recalled["provenance"] = "recalled"
    for fields in ({}, {"paper": [recalled]}, {"paper": [recalled | {"provenance": "paper"}]}):
        for three in (THREE, [60.0, 61.0, 60.2], [90.0, 91.0, 90.2]):
            verdict = judge(load(tmp_path, **fields), measured(BELOW, three=three), "paper")
            assert (verdict.verdict, verdict.unlearned) == ("not tested", True)


def test_one_seed_below_the_floor_has_not_learned_either(tmp_path):
    verdict = judge(load(tmp_path), measured([81.6], [73.5], [73.4]), "smoke")
    assert (verdict.verdict, verdict.unlearned) == ("not tested", True)
    assert judge(load(tmp_path), measured([70], [73.5], [73.4]), "smoke").verdict == "inconclusive"


@pytest.mark.parametrize(
    ("floor", "full", "learned"),
    [
        ([81.6], [82.6, 82.6, 82.6], True),  # exactly as far as is asked for, which binary fractions miss
        ([81.6], [82.5, 82.6, 82.6], False),
        ([81.0, 81.6, 82.2], [82.0, 82.9, 82.9], True),  # means count: one seed may lie below
        ([80.0, 80.0, 84.0], [82.0, 82.1, 82.2], False),  # and one large value of the floor counts
    ],
)
def test_means_are_compared(tmp_path, floor, full, learned):
    verdict = judge(load(tmp_path), measured(floor, full, [81.0, 81.2, 81.1]), "book")
    assert verdict.unlearned != learned


def test_zero_asks_for_more_than_the_same(tmp_path):
    one = load(tmp_path, floor=FLOOR | {"by": 0})
    assert judge(one, measured([73.4]), "book").verdict == "holds"
    verdict = judge(one, measured([73.5]), "book")
    assert verdict.unlearned and verdict.reason.endswith("73.5; a value above is asked for.")


PERPLEXITY = {
    "metric": "perplexity",
    "arm": "unigram model",
    "references": "full precision",
    "by": 10,
    "relative": True,
    "direction": "lower",
}


@pytest.mark.parametrize(("mean", "learned"), [(89.9, True), (90, True), (90.1, False), (120, False)])
def test_lower_can_be_better_and_the_distance_a_share(mean, learned):
    values = {"unigram model": np.array([100.0]), "full precision": np.array([mean - 1, mean + 1])}
    reason = unlearned(Floor.model_validate(PERPLEXITY), values)
    assert (reason == "") == learned
    higher = unlearned(Floor.model_validate(PERPLEXITY | {"direction": "higher"}), values)
    assert (higher == "") == (mean == 120)  # a gate that looks the wrong way lets through what it should stop
    if not learned:
        assert reason.endswith(f"{mean:g}, of the unigram model 100; at least 10 % below is asked for.")


def test_every_reference_must_beat_the_floor():
    floor = Floor.model_validate(FLOOR | {"references": ["a", "b", "c"]})
    values = {"linear classifier": [80.0], "a": [82.0], "b": [80.5], "c": [70.0]}
    values = {name: np.array(value) for name, value in values.items()}
    assert unlearned(floor, values).startswith(
        "The reference has not learned: accuracy of b 80.5, of c 70, of the linear classifier 80;"
    )
    values |= {"b": np.array([81.0]), "c": np.array([81.0])}
    assert unlearned(floor, values) == ""


# --- what is handed over -----------------------------------------------------------------------------------


def test_the_reference_need_be_in_no_rule_nor_in_the_rules_metric(tmp_path):
    """A gain in decibels of networks that are asked for their accuracy first."""
    rule = {"parts": [{"metric": "noise", "better": "new", "worse": "old", "direction": "lower"}]}
    one = load(tmp_path, kind="comparison", rule=rule)
    noise = {"noise": {"new": [1, 2, 1.5], "old": [4, 5, 6]}}
    accuracy = {"accuracy": {"full precision": [90, 91, 89], "linear classifier": [81.6]}}
    assert judge(one, noise | accuracy, "book").verdict == "holds"
    accuracy["accuracy"] |= {"full precision": [90]}  # one network for all seeds
    assert judge(one, noise | accuracy, "book").verdict == "holds"
    accuracy["accuracy"] |= {"full precision": [80]}
    assert judge(one, noise | accuracy, "book").unlearned


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"accuracy": {"full precision": FULL, "3 bits": THREE}}, "arms of .*linear classifier; got full"),
        (measured([81.6, 81.7]), r"same number of seeds, got .*linear classifier \(accuracy\) 2"),
        (measured([81.6], FULL[:1]), r"same number of seeds, got full precision \(accuracy\) 1, 3 bits .* 3"),
        (measured([float("nan")]), "accuracy of linear classifier has a value that is not finite"),
        (measured([]), "accuracy of linear classifier must be a list"),
    ],
)  # fmt: skip
def test_floors_that_are_missing_or_no_numbers(tmp_path, measured, message):
    with pytest.raises(ValueError, match=message) as error:
        judge(load(tmp_path), measured, "book")
    assert str(error.value).startswith("C1: ") and "\n" not in str(error.value)


def test_a_missing_metric_of_the_floor_is_named(tmp_path):
    rule = {"parts": [{"metric": "noise", "better": "new", "worse": "old", "direction": "lower"}]}
    one = load(tmp_path, kind="comparison", rule=rule)
    with pytest.raises(ValueError, match="C1: expected the metrics noise, accuracy; got noise"):
        judge(one, {"noise": {"new": [1, 2, 3], "old": [4, 5, 7]}}, "book")


# --- the ledger --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"floor": FLOOR | {"by": -1}}, "claim C1, floor.by: .*got -1"),
        ({"floor": FLOOR | {"by": float("inf")}}, "claim C1, floor.by: .*finite"),
        ({"floor": FLOOR | {"references": []}}, "claim C1, floor.references: .*at least 1"),
        ({"floor": FLOOR | {"direction": "up"}}, "claim C1, floor.direction: .*got 'up'"),
        ({"floor": FLOOR | {"arm": ""}}, "claim C1, floor.arm: .*at least 1"),
        ({"floor": FLOOR | {"references": ["x", FLOOR["arm"]]}}, "'linear classifier' is the floor and a"),
        ({"floor": {"arm": "x"}}, "claim C1, floor.metric: Field required"),
        (
            {
                "kind": "arithmetic",
                "paper": [{"label": "n", "value": 1, "decimals": 0, "where": "x", "provenance": "paper"}],
            },
            "claim C1, floor: nothing is trained for an arithmetic claim",
        ),
    ],
)  # fmt: skip
def test_a_malformed_floor_is_one_line(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, **fields)
    assert "\n" not in str(error.value)


def test_a_floor_belongs_to_the_rule_and_not_to_what_the_paper_says(tmp_path):
    number = {"value": 84, "arm": "linear classifier", "metric": "accuracy", "where": "x"}
    one = load(tmp_path, paper=[number | {"provenance": "recalled"}])
    assert one.judged_numbers() == () and one.arms() == {"accuracy": ("full precision", "3 bits")}
    assert one.arms(floor=True) == {"accuracy": ("full precision", "3 bits", "linear classifier")}
    identities = {
        rule_identity(load(tmp_path, floor=floor), "book")
        for floor in (None, FLOOR, FLOOR | {"by": 2}, FLOOR | {"arm": "nearest neighbour"}, FLOOR)
    }
    assert len(identities) == 4


@pytest.mark.parametrize(
    ("floor", "line"),
    [
        (FLOOR, "Asked first: full precision beats the linear classifier by 1 point."),
        (FLOOR | {"by": 2.5}, "Asked first: full precision beats the linear classifier by 2.5 points."),
        (FLOOR | {"references": ["a", "b"], "by": 0}, "Asked first: a and b beat the linear classifier."),
        (PERPLEXITY, "Asked first: full precision beats the unigram model by 10 %."),
    ],
)
def test_what_is_asked_first_is_told(floor, line):
    assert asked_first(Floor.model_validate(floor)) == [line]
    assert asked_first(None) == []


# --- the record --------------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path):
    ledger(tmp_path, CLAIM | {"floor": FLOOR}, CLAIM | {"id": "C2"})
    return Record("toy", scale="book", run_dir=tmp_path / "run", root=tmp_path)


def close(record, floor):
    record.judge("C1", measured(floor))
    record.judge("C2", measured(floor))  # knows no floor; the arm is one of the ledger's
    record.close()
    return Evidence.of_run(record.folder, {})


def test_the_record_keeps_the_floor_and_shows_it(record):
    stored = close(record, BELOW)
    first, second = stored.claims
    assert (first.verdict, first.unlearned, first.floor.by) == ("not tested", True, 1)
    assert (second.verdict, second.unlearned, second.floor) == ("holds", False, None)
    assert stored.measurements[0].measured["accuracy"]["linear classifier"] == (81.6,)
    verdicts, asked = str(record.verdicts()), str(record.ledger_table())
    assert verdicts.count("the reference has not learned</span>") == 1
    assert "linear classifier: 81.6" in verdicts  # among the means
    for shown in (verdicts, asked):
        assert shown.count("Asked first: full precision beats the linear classifier by 1 point.") == 1


def test_stored_measurements_are_judged_again_with_todays_floor(record, tmp_path):
    stored = close(record, ABOVE)
    assert [claim.verdict for claim in stored.claims] == ["holds", "holds"]
    assert stored.judged_by(record.ledger) == stored
    higher = ledger(tmp_path, CLAIM | {"floor": FLOOR | {"by": 5}}, CLAIM | {"id": "C2"})
    first, second = stored.judged_by(higher).claims
    assert (first.verdict, first.unlearned, first.rule_is_younger) == ("not tested", True, True)
    assert (second.verdict, second.rule_is_younger) == ("holds", False)
    lifted = ledger(tmp_path, CLAIM, CLAIM | {"id": "C2"})
    assert [c.verdict for c in stored.judged_by(lifted).claims] == ["holds", "holds"]


def test_a_run_from_before_the_floor_does_not_fit(record, tmp_path):
    stored = close(record, BELOW)
    later = ledger(tmp_path, CLAIM | {"floor": FLOOR | {"arm": "nearest neighbour"}}, CLAIM | {"id": "C2"})
    with pytest.raises(ValueError, match="C1: expected the arms of accuracy .*nearest neighbour; got full"):
        stored.judged_by(later)


def test_the_code_of_the_floor_is_part_of_the_rules_identity(tmp_path, monkeypatch):
    from lib.ledger import evidence

    one, read = load(tmp_path), type(tmp_path).read_text
    before = rule_identity(one, "book")
    source = read(type(tmp_path)(floors.__file__), encoding="utf-8")
    assert source.count("ahead <= 0") == 1
    evidence._judging.cache_clear()
    monkeypatch.setattr(
        type(tmp_path), "read_text", lambda path, **k: read(path, **k).replace("ahead <= 0", "ahead < 0")
    )
    try:
        assert rule_identity(one, "book") != before
    finally:
        monkeypatch.undo()
        evidence._judging.cache_clear()
