"""The ledger's schema, and verdicts from raw numbers."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from lib.ledger.evidence import Measurement
from lib.ledger.intervals import LEVEL
from lib.ledger.paper_numbers import PROVENANCES
from lib.ledger.schema import SCALES, load_ledger
from lib.ledger.units import UnitSpread
from lib.ledger.verdicts import MEMORY, VERDICTS, judge, not_tested
from lib.ledger.wording import format_interval, format_number, off_number, paper_number, with_verdicts

ROOT = Path(__file__).resolve().parents[3]

PAPER = {
    "id": "toy",
    "title": "A toy",
    "authors": ["A. Author"],
    "venue": "Nowhere",
    "year": 2020,
    "code_licence": "none",
}
TESTED = {scale: {"tested": True} for scale in SCALES}
ACCURACY = {"value": 0.9, "arm": "ours", "metric": "accuracy", "where": "Table 1", "provenance": "paper"}


def claim(**fields):
    base = {
        "id": "C1",
        "statement": "Ours is better.",
        "source": "Table 1",
        "paper": [ACCURACY],
        "kind": "comparison",
        "rule": {
            "parts": [{"metric": "accuracy", "better": "ours", "worse": "theirs", "direction": "higher"}]
        },
        "scales": {
            "smoke": {"tested": True},
            "book": {"tested": True},
            "paper": {"tested": True, "reproduces": True},
        },
        "protocol": "One training per seed.",
    }
    content = copy.deepcopy(base | fields)
    if content["kind"] == "arithmetic":
        content.pop("rule", None)
    return content


def write(tmp_path, *claims, text=None, **top):
    folder = tmp_path / "book" / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    content = text if text is not None else yaml.safe_dump({"paper": PAPER, "claims": list(claims)} | top)
    (folder / "toy.yml").write_text(content)
    return tmp_path


def load(tmp_path, **fields):
    return load_ledger("toy", write(tmp_path, claim(**fields))).claims[0]


def results(ours, theirs, metric="accuracy"):
    return {metric: {"ours": ours, "theirs": theirs}}


# --- verdicts ----------------------------------------------------------------------------------------------

CLEAR = results([0.90, 0.91, 0.92], [0.80, 0.82, 0.81])


def test_comparison_holds_and_says_how_large(tmp_path):
    verdict = judge(load(tmp_path), CLEAR, "book")
    assert verdict.verdict == "holds"
    assert verdict.interval.mean == pytest.approx(0.1)
    assert verdict.interval.relative == pytest.approx(0.1 / 0.81)
    assert verdict.interval.low > 0
    assert verdict.interval.level == LEVEL
    assert verdict.measured["accuracy"]["ours"].mean == pytest.approx(0.91)
    assert verdict.measured["accuracy"]["ours"].values == (0.90, 0.91, 0.92)


def test_the_other_way_round_is_contradicted(tmp_path):
    verdict = judge(load(tmp_path), results(*reversed(CLEAR["accuracy"].values())), "book")
    assert verdict.verdict == "contradicted"
    assert "accuracy: ours − theirs, claimed above 0" in verdict.reason


def test_lower_can_be_better(tmp_path):
    rule = {"parts": [{"metric": "accuracy", "better": "ours", "worse": "theirs", "direction": "lower"}]}
    assert judge(load(tmp_path, rule=rule), CLEAR, "book").verdict == "contradicted"
    assert judge(load(tmp_path, rule=rule, kind="measurement"), CLEAR, "book").verdict == "contradicted"


def test_seeds_are_paired(tmp_path):
    """Far apart between seeds, close within: only the pairing shows the difference."""
    theirs = np.array([0.2, 0.5, 0.8])
    ours = theirs + np.array([0.010, 0.011, 0.012])
    assert judge(load(tmp_path), results(ours, theirs), "book").verdict == "holds"
    assert judge(load(tmp_path), results(ours, theirs[[1, 2, 0]]), "book").verdict == "inconclusive"


def test_reproduced_needs_the_papers_data_and_its_numbers(tmp_path):
    one = load(tmp_path)
    near, far = [0.89, 0.90, 0.91], [0.84, 0.85, 0.86]
    theirs = [0.80, 0.82, 0.81]
    assert judge(one, results(near, theirs), "paper").verdict == "reproduced"
    assert judge(one, results(near, theirs), "book").verdict == "holds"
    verdict = judge(one, results(far, theirs), "paper")
    assert verdict.verdict == "holds"
    assert "ours 0.85, the paper's 0.9" in verdict.reason
    assert judge(load(tmp_path, kind="measurement"), results(near, theirs), "paper").verdict == "holds"
    assert judge(load(tmp_path, paper=[]), results(near, theirs), "paper").verdict == "holds"


def test_the_tolerance_of_reproduced_is_the_rules_or_the_numbers(tmp_path):
    parts = claim()["rule"]["parts"]
    off = results([0.92, 0.93, 0.94], [0.80, 0.82, 0.81])  # 3.3 % above the paper's 0.9
    assert judge(load(tmp_path), off, "paper").verdict == "holds"
    assert (
        judge(load(tmp_path, rule={"parts": parts, "tolerance": 0.04}), off, "paper").verdict == "reproduced"
    )
    assert judge(load(tmp_path, paper=[ACCURACY | {"tolerance": 0.05}]), off, "paper").verdict == "reproduced"


def test_all_parts_must_hold_and_the_weakest_is_shown(tmp_path):
    rule = {"parts": [{"metric": ["a", "b"], "better": "ours", "worse": ["x", "y"], "direction": "higher"}]}
    one = load(tmp_path, rule=rule, paper=[])
    high, low = [0.9, 0.91, 0.93], [0.1, 0.11, 0.12]
    arms = {"ours": high, "x": low, "y": low}
    verdict = judge(one, {"a": arms, "b": arms}, "book")
    assert (verdict.verdict, len(verdict.effects)) == ("holds", 4)
    verdict = judge(one, {"a": arms, "b": arms | {"y": [0.9, 0.9, 0.95]}}, "book")
    assert verdict.verdict == "inconclusive"
    assert verdict.interval.label == "b: ours − y"
    assert [effect.outcome for effect in verdict.effects] == ["holds", "holds", "holds", "inconclusive"]
    verdict = judge(one, {"a": arms, "b": arms | {"y": [9.9, 9.91, 9.92]}}, "book")
    assert verdict.verdict == "contradicted"
    assert verdict.interval.label == "b: ours − y"
    assert verdict.interval.level == pytest.approx(1 - (1 - LEVEL) / 4)


def test_bounds(tmp_path):
    def bound(**part):
        rule = {"parts": [{"metric": "accuracy", "arm": "ours"} | part]}
        return load(tmp_path, kind="bound", rule=rule, paper=[])

    ours = {"accuracy": {"ours": [0.90, 0.91, 0.92]}}
    assert judge(bound(op=">=", limit=0.8), ours, "book").verdict == "holds"
    assert judge(bound(op="<=", limit=0.8), ours, "book").verdict == "contradicted"
    assert judge(bound(op=">=", limit=0.905), ours, "book").verdict == "inconclusive"
    loss = {"of": "difference", "to": "theirs"}
    pair = results([0.900, 0.911, 0.922], [0.905, 0.914, 0.926])
    assert judge(bound(op=">=", limit=-0.01, **loss), pair, "book").verdict == "holds"
    ratio = {"of": "ratio", "to": "theirs"}
    assert judge(bound(op=">=", limit=0.99, **ratio), pair, "book").verdict == "holds"
    assert judge(bound(op="<=", limit=0.99, **ratio), pair, "book").verdict == "contradicted"
    with pytest.raises(ValueError, match="zero"):
        judge(bound(op=">=", limit=0.99, **ratio), results([1, 2, 3], [1, 0, 1]), "book")


def test_arithmetic(tmp_path):
    numbers = [
        {"label": "count", "value": 418329, "decimals": 0, "where": "code", "provenance": "derived"},
        {"label": "hours", "value": 13.09, "decimals": 2, "where": "code", "provenance": "authors' code"},
        {"label": "gain", "value": 9.31, "tolerance": 0.02, "where": "Table", "provenance": "paper"},
    ]
    one = load(tmp_path, kind="arithmetic", paper=numbers)
    assert one.provenance == "derived"
    ours = {"count": 418329, "hours": 13.0881, "gain": 9.2941}
    assert judge(one, ours, "smoke").verdict == "exact"
    assert judge(one, ours | {"hours": 13.095}, "smoke").verdict == "exact"  # the last half digit
    for wrong in ({"count": 418330}, {"hours": 13.0849}, {"gain": 9.2899}):
        verdict = judge(one, ours | wrong, "smoke")
        assert verdict.verdict == "contradicted"
        assert next(iter(wrong)) in verdict.reason


def test_a_range_of_the_paper_is_a_range(tmp_path):
    size = {"label": "parameters", "between": [1, 10], "unit": "M", "where": "Table", "provenance": "paper"}
    one = load(tmp_path, kind="arithmetic", paper=[size])
    assert paper_number(one.paper[0]) == "1 to 10 M"
    for ours, verdict in (
        (1, "exact"),
        (5.5, "exact"),
        (10, "exact"),
        (0.999, "contradicted"),
        (11, "contradicted"),
    ):
        assert judge(one, {"parameters": ours}, "smoke").verdict == verdict
    assert "ours 11, the paper's 1 to 10 M" in judge(one, {"parameters": 11}, "smoke").reason
    for wrong in ({"value": 5}, {"between": [10, 1]}, {"between": None}):
        with pytest.raises(ValueError, match="value or, where|lower and the upper"):
            load(tmp_path, kind="arithmetic", paper=[size | wrong])


def test_a_tolerance_stands_beside_its_number(tmp_path):
    one = load(tmp_path, paper=[ACCURACY | {"value": 25, "tolerance": 1, "unit": "M"}])
    assert paper_number(one.paper[0]) == "25 ± 1 M"


@pytest.mark.parametrize(
    ("provenance", "agreeing", "disagreeing"),
    [
        ("paper", "holds", "contradicted"),
        ("authors' code", "holds", "contradicted"),
        ("cited", "holds", "contradicted"),
        ("recalled", "matches memory", "differs from memory"),
    ],
)
def test_whose_number_it_is_decides_the_word(tmp_path, provenance, agreeing, disagreeing):
    one = load(tmp_path, paper=[ACCURACY | {"provenance": provenance}])
    turned = results(*reversed(CLEAR["accuracy"].values()))
    assert judge(one, CLEAR, "book").verdict == agreeing
    assert judge(one, turned, "book").verdict == disagreeing
    # What could not be decided, or not be tested, is no matter of memory.
    assert judge(one, results([0.9, 0.8, 0.7], [0.8, 0.9, 0.7]), "book").verdict == "inconclusive"


def test_every_verdict_on_a_memory_has_its_word():
    assert set(MEMORY) == set(VERDICTS) - set(MEMORY.values()) - {"inconclusive", "not tested"}


def test_an_effect_is_the_quantity_with_what_is_claimed_of_it(tmp_path):
    loss = {"metric": "loss", "arm": "ours", "op": "<=", "limit": 0.3, "unit": "points"}
    one = load(tmp_path, kind="bound", rule={"parts": [loss]}, paper=[])
    (effect,) = judge(one, {"loss": {"ours": [-0.1, 0.0, 0.1]}}, "book").effects
    assert (effect.label, effect.claimed, effect.relative) == ("loss: ours", "≤ 0.3", None)
    assert effect.quantity == pytest.approx(0)
    assert effect.quantity_low == pytest.approx(-effect.quantity_high)
    assert effect.mean == pytest.approx(0.3)  # the margin to the limit
    (effect,) = judge(load(tmp_path), results([0.6, 0.7, 0.5], [0.4, 0.4, 0.4]), "book").effects
    assert effect.relative == pytest.approx(0.5)
    rule = {"parts": [PART | {"percent": False}]}
    (effect,) = judge(load(tmp_path, rule=rule), CLEAR, "book").effects
    assert effect.relative is None
    lower = {"parts": [PART | {"direction": "lower"}]}
    (effect,) = judge(load(tmp_path, rule=lower), CLEAR, "book").effects
    assert effect.quantity > 0 and effect.mean < 0 and effect.claimed == "below 0"
    assert effect.quantity_low < effect.quantity < effect.quantity_high


def test_a_changed_rule_is_declared_whole(tmp_path):
    changed = {"was": "means", "why": "one layer decided", "after": "a complete run"}
    assert load(tmp_path, changed=changed).changed.was == "means"
    with pytest.raises(ValueError, match="changed.after"):
        load(tmp_path, changed={"was": "means", "why": "x"})


def test_a_reading_chosen_afterwards_is_only_consistent(tmp_path):
    tried = [{"reading": "per block", "outcome": "0.5"}, {"reading": "per layer", "outcome": "agrees"}]
    one = load(tmp_path, exploratory=True, interpretations=tried)
    verdict = judge(one, CLEAR, "paper")
    assert verdict.verdict == "consistent"
    assert "per block: 0.5" in verdict.reason
    assert judge(one, results([1, 1.1, 1.2], [2, 2.2, 2.1]), "paper").verdict == "contradicted"


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ([0.9], [0.1], "1 seed; an interval needs at least 3"),
        ([0.9, 0.91], [0.1, 0.1], "2 seeds; an interval needs at least 3"),
        ([0.2, 0.3, 0.4], [0.1, 0.2, 0.3], "same difference for every seed"),
        ([0.9, 0.9, 0.9], [0.1, 0.1, 0.1], "same difference for every seed"),
        ([1e6 + 0.1, 2e6 + 0.1, 3e6 + 0.1], [1e6, 2e6, 3e6], "same difference for every seed"),
        ([0.9, 0.5, 0.1], [0.1, 0.5, 0.9], "lies on both sides"),
    ],
)
def test_what_cannot_be_told_is_inconclusive(tmp_path, ours, theirs, reason):
    verdict = judge(load(tmp_path), results(ours, theirs), "book")
    assert verdict.verdict == "inconclusive"
    assert reason in verdict.reason


@pytest.mark.filterwarnings("error")
def test_a_large_margin_of_one_seed_is_judged_without_a_warning(tmp_path):
    verdict = judge(load(tmp_path), results([900.0], [1.0]), "book")
    assert verdict.verdict == "inconclusive" and verdict.interval.mean == 899


def test_one_seed_has_no_interval_and_the_unit_is_the_ledgers(tmp_path):
    verdict = judge(load(tmp_path, replicate="repetition"), results([0.9], [0.1]), "smoke")
    assert verdict.reason.startswith("1 repetition;")
    assert verdict.interval.low is None
    assert verdict.interval.mean == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({}, "expected the metrics accuracy; got none"),
        ({"accurcy": {}}, "expected the metrics accuracy; got accurcy"),
        ({"accuracy": {"ours": [1, 2, 3]}}, "arms of accuracy ours, theirs; got ours"),
        (results([1, 2, 3], [1, 2, 3]) | {"loss": {}}, "got accuracy, loss"),
        ({"accuracy": {"ours": [1, 2, 3], "them": [1, 2, 3]}}, "got ours, them"),
        ({"accuracy": [1, 2, 3]}, "got list"),
        (results([1, 2, 3], [1, 2]), r"same number of seeds, got ours \(accuracy\) 3, theirs \(accuracy\) 2"),
        (results([1, 2, float("nan")], [1, 2, 3]), "not finite"),
        (results([1, 2, float("inf")], [1, 2, 3]), "not finite"),
        (results(0.5, [1]), "one number per seed"),
        (results([], []), "one number per seed"),
        (results([[1, 2]], [1]), "one number per seed"),
        (results(["a"], [1]), "must be numbers"),
        (results([1, None, 2], [1, 2, 3]), "not finite"),
    ],
)
def test_measurements_that_cannot_be_judged(tmp_path, measured, message):
    with pytest.raises(ValueError, match=message) as error:
        judge(load(tmp_path), measured, "book")
    assert str(error.value).startswith("C1: ")
    assert "\n" not in str(error.value)


def test_arithmetic_names_and_values_are_checked(tmp_path):
    one = load(tmp_path, kind="arithmetic", paper=[ACCURACY | {"tolerance": 0.1}])
    with pytest.raises(ValueError, match="expected the numbers accuracy, ours; got acc"):
        judge(one, {"acc": 0.9}, "book")
    with pytest.raises(ValueError, match="not finite"):
        judge(one, {"accuracy, ours": float("nan")}, "book")


def test_scales_are_kept_apart(tmp_path):
    scales = {
        "smoke": {"tested": True},
        "book": {"tested": False, "why": "needs the data", "command": "python -m lib.run toy --scale paper"},
        "paper": {"tested": True, "when": {"dataset": ["a", "b"]}, "command": "… -p dataset a"},
    }
    one = load(tmp_path, scales=scales)
    with pytest.raises(ValueError, match="C1 is not tested at scale book: needs the data"):
        judge(one, CLEAR, "book")
    with pytest.raises(ValueError, match="unknown scale 'big': expected one of smoke, book, long, paper"):
        judge(one, CLEAR, "big")
    verdict = not_tested(one, "book")
    assert (verdict.verdict, verdict.reason) == ("not tested", "needs the data")
    assert verdict.command == "python -m lib.run toy --scale paper"
    with pytest.raises(ValueError, match="scale smoke tests C1"):
        not_tested(one, "smoke")
    assert not_tested(one, "paper").reason == "Needs dataset = a or b."
    assert one.tested_at("smoke")
    assert not one.tested_at("book")
    assert one.tested_at("paper", dataset="b", seeds=[0])
    assert not one.tested_at("paper", dataset="c")
    assert not one.tested_at("paper")


def test_synthetic_is_the_ledgers_to_say_and_never_reproduces(tmp_path):
    one = load(tmp_path, scales=TESTED | {"book": {"tested": True, "synthetic": True}})
    assert judge(one, CLEAR, "book").synthetic
    assert judge(one, CLEAR, "book", synthetic=True).synthetic
    with pytest.raises(ValueError, match="the ledger says synthetic at scale book"):
        judge(one, CLEAR, "book", synthetic=False)
    with pytest.raises(ValueError, match="the ledger says real data"):
        judge(one, CLEAR, "smoke", synthetic=True)


# --- the ledger --------------------------------------------------------------------------------------------

PART = claim()["rule"]["parts"][0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "opinion"}, "claim C1, .*opinion.*comparison"),
        ({"statement": ""}, "claim C1, statement: .*at least 1"),
        ({"colour": "red"}, "claim C1, colour: Extra inputs"),
        ({"id": "one"}, "claim one, id: "),
        ({"rule": {"parts": []}}, "claim C1, rule.parts: .*at least 1"),
        ({"rule": {"parts": [PART | {"metric": []}]}}, "claim C1, rule.parts.0.metric"),
        ({"rule": {"parts": [PART | {"worse": "ours"}]}}, "rule.parts.0: .*both sides"),
        ({"rule": {"parts": [PART | {"direction": "up"}]}}, "rule.parts.0.direction: .*got 'up'"),
        ({"rule": {"parts": [PART, PART]}}, "rule: stated twice: accuracy: ours − theirs above 0"),
        ({"rule": {"parts": [PART], "tolerance": 2}}, "rule.tolerance: .*got 2"),
        ({"paper": [ACCURACY | {"provenance": "hearsay"}]}, "claim C1, paper.0.provenance: .*got 'hearsay'"),
        ({"paper": [ACCURACY | {"value": float("nan")}]}, "claim C1, paper.0.value"),
        ({"paper": [{"value": 1, "where": "x", "provenance": "paper"}]}, "paper.0: a number needs a label"),
        ({"scales": {"book": {"tested": True}}}, "claim C1, scales.smoke: Field required .and 1 more"),
        ({"scales": TESTED | {"book": {"tested": False}}}, "scales.book: .*must say why"),
        ({"scales": TESTED | {"book": {"tested": False, "why": "x"}}}, "scales.book: .*give the command"),
        (
            {"scales": TESTED | {"book": {"tested": True, "synthetic": True, "reproduces": True}}},
            "scales.book: a synthetic world",
        ),
        ({"exploratory": True}, "claim C1, .*interpretations"),
        ({"interpretations": [{"reading": "a", "outcome": "b"}]}, "claim C1, .*interpretations"),
        ({"see": ["C9"]}, "claim C1, see: no claim C9"),
        ({"kind": "arithmetic"}, "claim C1, paper: 'accuracy, ours' needs decimals"),
        ({"kind": "arithmetic", "paper": []}, "claim C1, paper: .*at least one number"),
        ({"kind": "bound", "rule": {"parts": [PART]}}, "claim C1, rule.parts.0"),
        (
            {
                "kind": "bound",
                "rule": {"parts": [{"metric": "a", "arm": "b", "op": "<=", "limit": 1, "to": "c"}]},
            },
            "rule.parts.0: 'to' names the other arm",
        ),
    ],
)
def test_a_malformed_claim_is_one_line_that_names_it(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, **fields)
    assert str(error.value).startswith("book/claims/toy.yml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paper: [", "book/claims/toy.yml, line 1: not YAML"),
        ("a: 1\na: 2\n", "line 2: not YAML: 'a' twice"),
        ("", "book/claims/toy.yml: .*valid dictionary"),
        ("claims: [1]\n", "toy.yml: paper: Field required"),
        ("!!python/object/apply:os.getcwd []", "not YAML: could not determine a constructor"),
        ("- 1", "toy.yml: .*valid dictionary"),
    ],
)
def test_what_is_no_ledger(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load_ledger("toy", write(tmp_path, text=text))
    assert "\n" not in str(error.value)


def test_claims_that_are_no_mapping_or_come_twice(tmp_path):
    with pytest.raises(ValueError, match="toy.yml: claim number 2, "):
        load_ledger("toy", write(tmp_path, claim(), 3))
    with pytest.raises(ValueError, match="claim C1 is there twice"):
        load_ledger("toy", write(tmp_path, claim(), claim()))


@pytest.mark.parametrize("chapter", ["toys", "../claims/toy", "/etc/passwd", ""])
def test_unknown_chapters(tmp_path, chapter):
    with pytest.raises(
        ValueError, match=re.escape(f"no ledger for chapter {chapter!r}: book/claims has toy")
    ):
        load_ledger(chapter, write(tmp_path, claim()))


def test_unknown_claims(tmp_path):
    ledger = load_ledger("toy", write(tmp_path, claim()))
    with pytest.raises(ValueError, match="no claim 'C2': expected one of C1"):
        ledger["C2"]
    with pytest.raises(Exception, match="frozen"):
        ledger["C1"].statement = "softened"


def test_every_ledger_of_the_book_loads():
    chapters = sorted(path.stem for path in (ROOT / "book" / "claims").glob("*.yml"))
    assert "meantime" in chapters
    for chapter in chapters:
        assert load_ledger(chapter).claims


# --- the claims of MEANTIME --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def meantime():
    return load_ledger("meantime")


@pytest.fixture(scope="module")
def table(meantime):
    """The paper's main table as read from the ledger: {claim: {metric: {arm: score}}}."""
    scores = {}
    for name in ("C6", "C7", "C8", "C9"):
        for number in meantime[name].judged_numbers():
            scores.setdefault(name, {}).setdefault(number.metric, {})[number.arm] = number.value
    return scores


def test_a_claim_without_a_long_scale_says_so_and_gives_the_papers_command(tmp_path):
    away = {"tested": False, "why": "needs the data", "command": "python -m lib.run toy --scale paper"}
    scales = {"smoke": {"tested": True}, "book": away, "paper": {"tested": True}}
    one = load(tmp_path, scales=scales)
    verdict = not_tested(one, "long")
    assert (verdict.verdict, verdict.reason, verdict.command) == (
        "not tested",
        "no long run of this chapter is planned yet",
        "python -m lib.run toy --scale paper",
    )
    assert not one.tested_at("long", dataset="a")
    with pytest.raises(ValueError, match="C1 is not tested at scale long: no long run"):
        judge(one, CLEAR, "long")
    scales["paper"] = {"tested": True, "when": {"dataset": "a"}, "command": "the paper's own"}
    assert not_tested(load(tmp_path, scales=scales), "long").command == "the paper's own"
    planned = load(tmp_path, scales=scales | {"long": {"tested": True, "scope": "all of it"}})
    assert judge(planned, CLEAR, "long").verdict == "holds"
    assert judge(planned, CLEAR, "long").scope == "all of it"
    with pytest.raises(ValueError, match=r"scales\.long: not tested there: give the command"):
        load(tmp_path, scales=scales | {"long": {"tested": False, "why": "too long"}})


def test_meantime_has_all_claims(meantime):
    ids = [one.id for one in meantime.claims]
    assert [i for i in ids if i[0] == "C"] == [
        *("C1", "C1b", "C2", "C3", "C4"),  # C5 is part of C2
        *(f"C{k}" for k in range(6, 13)),
        "C12b",
    ]
    assert [i for i in ids if i[0] == "E"] == [f"E{k}" for k in range(1, 8)]
    for one in meantime.claims:
        for scale in [name for name in SCALES if getattr(one.scales, name)]:
            entry = one.entry(scale)
            assert entry.tested or entry.command.startswith("python -m lib.run meantime --scale paper")


def test_the_main_table_is_whole(table):
    assert [len(arms) for metrics in table.values() for arms in metrics.values()] == [5] * 16


def test_counts_in_the_ledger_follow_from_the_table(meantime, table):
    cells = {(c, m): arms for c, metrics in table.items() for m, arms in metrics.items()}

    def number(name):
        return meantime[name].paper[0].value

    baselines = [{a: v for a, v in arms.items() if a != "MEANTIME"} for arms in cells.values()]
    assert all(max(arms, key=arms.get) == "MEANTIME" for arms in cells.values())
    assert sum(max(arms, key=arms.get) == "BERT4Rec" for arms in baselines) == number("C10") == 14
    assert sum(min(arms, key=arms.get) == "MARank" for arms in cells.values()) == number("C11") == 16
    ahead = {cell: arms["TiSASRec"] - arms["SASRec"] for cell, arms in cells.items()}
    assert sum(d > 0 for (c, _), d in ahead.items() if c != "C9") == number("C12") == 12
    assert sum(d < 0 for (c, _), d in ahead.items() if c == "C9") == number("C12b") == 3
    assert all(arms["BERT4Rec"] == max(b.values()) for (_, m), arms, b in zip(
        cells, cells.values(), baselines, strict=True) if m == "NDCG@10")  # fmt: skip


def test_the_printed_gains_follow_from_the_table(meantime, table):
    names = {"ML-1M": "C6", "ML-20M": "C7", "Beauty": "C8", "Game": "C9"}
    gains = {}
    for number in meantime["E7"].paper:
        data, metric = number.name.split(", ")
        arms = table[names[data]][metric]
        best = max(value for arm, value in arms.items() if arm != "MEANTIME")
        gains[number.name] = 100 * (arms["MEANTIME"] / best - 1)
        rounding = 100 * ((arms["MEANTIME"] + 5e-5) / (best - 5e-5) - 1) - gains[number.name] + 0.005
        assert number.tolerance == pytest.approx(rounding, abs=6e-4)
    assert len(gains) == 16
    assert judge(meantime["E7"], gains, "smoke").verdict == "exact"
    printed = [number.value for number in meantime["E7"].paper]
    assert np.mean(printed) == pytest.approx(meantime["C4"].paper[0].value, abs=0.005)
    wrong = gains | {"Game, NDCG@5": gains["Game, NDCG@5"] + 0.1}
    assert judge(meantime["E7"], wrong, "smoke").verdict == "contradicted"


def test_a_random_permutation_of_the_table_is_not_reproduced(meantime, table):
    """`reproduced` on ML-1M asks for the numbers of each arm, not for any numbers in the right order."""
    rng = np.random.default_rng(0)
    jitter = {
        m: {a: v + 0.001 * rng.normal(size=3) for a, v in arms.items()} for m, arms in table["C6"].items()
    }
    arms = tuple(table["C6"]["NDCG@10"])
    alike = UnitSpread(unit="user", count=6040, arms=arms, covariance=np.zeros((len(arms),) * 2).tolist())

    def verdict(measured):
        floor = {"NDCG@10": measured["NDCG@10"] | {"popularity": [0.1]}}
        return judge(meantime["C6"], measured | floor, "paper", units=dict.fromkeys(measured, alike)).verdict

    assert verdict(jitter) == "reproduced"
    assert verdict({m: {a: 0.9 * v for a, v in arms.items()} for m, arms in jitter.items()}) == "holds"


def test_numbers_say_where_they_were_read(meantime):
    origins = {one.id: one.provenance for one in meantime.claims}
    assert {origins[name] for name in ("C6", "C7", "C8", "C9", "E7")} == {"authors' code"}
    assert {origins[f"E{k}"] for k in range(1, 7)} == {"derived"}
    assert {n.provenance for n in meantime["C7"].paper} == {"authors' code", "cited"}
    assert "under" not in VERDICTS and set(origins.values()) - {None} <= set(PROVENANCES)


# --- numbers for people ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((418329,), "418 329"),
        ((0.6415, 4), "0.6415"),
        ((2.44, 2, "GiB"), "2.44 GiB"),
        ((0.099009900,), "0.09901"),
        ((1.2e-9,), "1.200e−09"),
        ((-3.0,), "−3"),
        ((0.0,), "0"),
        ((1585.9,), "1586"),
        ((-15484.3,), "−15 484"),
        ((1234567.0,), "1 234 567"),
        ((1234.5, 1), "1234.5"),
    ],
)
def test_format_number(arguments, text):
    assert format_number(*arguments) == text


@pytest.mark.parametrize(
    ("copies", "verdict", "decided"),
    [
        ([0.9, 0.9, 0.9], "inconclusive", "hair"),  # equal seeds are not replicates, however far ahead
        ([0.89, 0.9, 0.91], "holds", "eyes"),
        ([0.1, 0.9, 0.5], "inconclusive", "hair"),
        ([0.09, 0.1, 0.11], "contradicted", "hair"),
    ],
)
def test_the_interval_is_of_what_decided(tmp_path, copies, verdict, decided):
    part = {"better": "ours", "worse": "theirs", "direction": "higher"}
    rule = {"parts": [part | {"metric": "eyes"}, part | {"metric": "hair"}]}
    ledger = load_ledger("toy", write(tmp_path, claim(rule=rule, paper=[])))
    measured = results((0.6, 0.9, 0.7), (0.2, 0.35, 0.18), "eyes")
    measured |= results(tuple(copies), (0.3, 0.3, 0.3), "hair")
    one = Measurement(claim="C1", measured=measured, tested=True, anchor="c1", rule="0")
    found = one.judged_by(ledger, "book", {})
    assert found.verdict == verdict and found.interval.label.startswith(decided)
    assert found.interval.outcome == verdict


def test_what_was_measured_in_another_setting_than_the_ledger_asks_for_does_not_fit(tmp_path):
    asks = TESTED | {"book": {"tested": True, "when": {"dataset": ["ml-1m"]}}}
    ledger = load_ledger("toy", write(tmp_path, claim(scales=asks)))
    measured = results((0.6, 0.9, 0.7), (0.2, 0.35, 0.18))
    one = Measurement(claim="C1", measured=measured, tested=True, anchor="c1", rule="0")
    assert one.judged_by(ledger, "book", {"dataset": "ml-1m"}).verdict == "holds"
    with pytest.raises(ValueError, match="C1 needs dataset = ml-1m"):
        one.judged_by(ledger, "book", {"dataset": "beauty"})


def test_format_interval():
    assert format_interval(0.03123, 0.0102, 0.05226, "NDCG") == "0.031 [0.010, 0.052] NDCG"
    assert format_interval(0.5, None, None) == "0.5"
    assert format_interval(-12.3, -14.5, -10.1, "s") == "−12.3 [−14.5, −10.1] s"
    assert format_interval(47117.2, None, None, "s") == "47 117 s"
    assert format_interval(1.0, 1.0, 1.0) == "1.0000 [1.0000, 1.0000]"
    # A mean of nought is on no side; an end of nought is, and an interval up to it has none of the other.
    assert format_interval(-0.003, -1.4, 1.3) == "0.0 [−1.4, 1.3]"
    assert format_interval(-41.0, -83.0, -0.2) == "−41 [−83, −0]"
    assert format_number(-0.001, 2) == "0.00"


@pytest.mark.parametrize(
    ("interval", "possible", "text"),
    [
        ((0.90, 0.73, 1.07), (0, 1), "0.90 [0.73, 1.00]"),
        ((0.90, 0.73, 1.07), (None, None), "0.90 [0.73, 1.07]"),  # nothing is known of the metric
        ((0.02, -0.03, 0.07), (0, None), "0.020 [0.000, 0.070]"),
        ((0.50, 0.40, 0.60), (0, 1), "0.50 [0.40, 0.60]"),
        ((96.0, 90.0, 102.0), (0, 100), "96.0 [90.0, 100.0]"),
    ],
)
def test_an_interval_is_cut_where_the_metric_ends(interval, possible, text):
    assert format_interval(*interval, possible=possible) == text


@pytest.mark.parametrize(
    ("ours", "ends", "text"),
    [
        (166.9083313, (163.5, 164.5), "166.9"),
        (5.6835, (5.455, 5.465), "5.684"),
        (1585.90, (1565.5, 1566.5), "1586"),
        (44.18, (42, 44), "44.18"),
        (9.28996, (9.29, 9.33), "9.28996"),  # four digits would lie within
        (418330.0, (418328.5, 418329.5), "418 330"),
        (0.0, (1, 2), "0"),
        (-0.29134, (0, 1), "−0.2913"),
    ],
)
def test_a_number_that_is_off_has_four_digits_or_as_many_as_show_it(ours, ends, text):
    assert off_number(ours, *ends) == text


def test_a_text_refers_to_verdicts_and_not_to_claims_that_are_not_there(tmp_path):
    answer = "Ours is ahead: {C1}."
    paper = PAPER | {"answer": answer}
    ledger = load_ledger("toy", write(tmp_path, claim(), paper=paper))
    shown = with_verdicts(ledger.paper.answer, {"C1": "holds"}, lambda name, verdict: f"{name} {verdict}")
    assert shown == "Ours is ahead: C1 holds."
    with pytest.raises(ValueError, match="paper.answer: no claim C2$"):
        load_ledger("toy", write(tmp_path, claim(), paper=PAPER | {"answer": "{C2}"}))


def test_what_is_possible_is_said_of_metrics_that_there_are(tmp_path):
    ends = {"accuracy": [0, 1]}
    assert load_ledger("toy", write(tmp_path, claim(), possible=ends)).possible == {"accuracy": (0, 1)}
    with pytest.raises(ValueError, match="possible: no metric 'acuracy': expected one of accuracy"):
        load_ledger("toy", write(tmp_path, claim(), possible={"acuracy": [0, 1]}))
