"""What a chapter opens with: drawn and quoted from the strongest evidence."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from lib.chapter import findings
from lib.chapter.figures import use_style
from lib.ledger.evidence import ClaimEvidence
from lib.ledger.schema import load_ledger
from lib.ledger.units import UnitSpread
from lib.ledger.verdicts import judge, not_tested

mpl.use("Agg")
ARMS = ("MEANTIME", "MEANTIME p-p-p-p, one table", "popularity")


@pytest.fixture(autouse=True)
def style():
    use_style()
    yield
    plt.close("all")


def evidence(claim_id: str, shift: float = 0.2, seeds: int = 4) -> ClaimEvidence:
    """C3 of MEANTIME judged from made-up overlaps, the mixture's lower by `shift`."""
    claim = load_ledger("meantime")[claim_id]
    random = np.random.default_rng(0)
    users = {arm: 0.8 + 0.01 * random.standard_normal((seeds, 50)) for arm in ARMS[:2]}
    users["MEANTIME"] -= shift
    measured = {"head overlap": {arm: values.mean(1) for arm, values in users.items()}}
    measured["NDCG@10"] = {ARMS[1]: [0.3] * seeds, "popularity": [0.1]}
    units = {"head overlap": UnitSpread.of(users, "user")}
    verdict = judge(claim, measured, "long", None, units)
    return ClaimEvidence.of(claim, verdict, claim.protocol, "meantime-c3")


def test_the_line_of_a_claim_lies_on_the_claimed_side_if_it_holds():
    for shift, side in ((0.2, 1), (-0.2, -1)):
        claim = evidence("C3", shift)
        axis = findings.findings_figure([claim]).axes[0]
        (bar,) = axis.containers
        ends = bar.lines[2][0].get_segments()[0][:, 0]
        assert (np.sign(ends) == side).all()
        assert np.abs(ends).max() == pytest.approx(1)
        texts = [text.get_text() for text in axis.texts]
        assert texts[1] == f"C3: {claim.verdict}" and texts[0].startswith(
            "head overlap: MEANTIME − MEANTIME p"
        )
        assert "[" in texts[0] and texts[2] == "96 % interval"


def test_a_long_label_takes_lines_and_leaves_the_intervals_their_width():
    drawn = []
    for name in ("short", "a name of an arm that is long, like others − " * 3):
        claim = evidence("C3")
        claim = claim.model_copy(update={"interval": claim.interval.model_copy(update={"label": name})})
        figure = findings.findings_figure([evidence("C3"), claim, evidence("C3")])
        figure.canvas.draw()
        drawn.append((figure.axes[0], figure.axes[0].texts[3].get_text().splitlines()))
    (narrow, short), (wide, long) = drawn
    assert len(short) == 1 < len(long) and max(map(len, long)) <= findings.LABEL
    assert "[" in long[-1] and "]" in long[-1], "an interval stays in a line"
    assert wide.get_position().width == pytest.approx(narrow.get_position().width)
    for axis, _ in drawn:
        above, own = (bar.lines[0].get_window_extent().y0 for bar in axis.containers[:2])
        label = axis.texts[3].get_window_extent()
        assert own < label.y0 and label.y1 < above, "it stands between the interval above and its own"


def test_the_interval_of_a_mean_ends_where_the_metric_does():
    claim = evidence("C3")
    mean = claim.interval.model_copy(
        update={
            "label": "head overlap: MEANTIME",
            "quantity": 0.99,
            "quantity_low": 0.97,
            "quantity_high": 1.01,
            "unit": "",
        }
    )
    for possible, text in (({"head overlap": (0, 1)}, "[0.970, 1.000]"), ({}, "[0.970, 1.010]")):
        shown = claim.model_copy(update={"interval": mean, "effects": (mean,), "possible": possible})
        label = findings.findings_figure([shown]).axes[0].texts[0].get_text()
        assert label.endswith(f"0.990 {text}".replace(" ", "\N{NO-BREAK SPACE}"))
        assert findings.numbers([shown], None)["C3-effect"] == f"0.990 {text}"


def test_without_an_interval_the_figure_says_so():
    figure = findings.findings_figure([evidence("C3", seeds=2)])
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "No interval yet: too few seeds, or nothing judged so far."
    ]


def test_the_arms_of_a_claim_are_drawn_with_every_seed():
    figure = findings.found_figure(evidence("C3"))
    (axis,) = figure.axes  # the floor's metric is not the rule's
    assert axis.get_xlabel() == "head overlap"
    seeds = [line.get_xdata() for line in axis.lines if line.get_marker() == "."]
    assert [len(values) for values in seeds] == [4, 4] and seeds[0].mean() == pytest.approx(0.6, abs=0.01)


def test_the_floor_is_a_dotted_line_where_it_is_of_the_rules_metric():
    claim = load_ledger("meantime")["C12"]
    random = np.random.default_rng(0)
    users = {arm: 0.3 + 0.01 * random.standard_normal((4, 20)) for arm in ("TiSASRec", "SASRec")}
    measured = {metric: {arm: values.mean(1) for arm, values in users.items()} for metric in claim.arms()}
    measured["NDCG@10"]["popularity"] = [0.1]
    units = {metric: UnitSpread.of(users, "user") for metric in claim.arms()}
    judged = ClaimEvidence.of(claim, judge(claim, measured, "long", None, units), claim.protocol, "a")
    figure = findings.found_figure(judged)
    assert [axis.get_xlabel() for axis in figure.axes] == ["NDCG@10", "Recall@10"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["popularity"]
    dotted = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert dotted == [pytest.approx(0.1)] and figure.axes[1].get_legend() is None


def piece_of(*claims: ClaimEvidence) -> SimpleNamespace:
    """An archived run with these claims."""
    day = np.datetime64("2026-11-26").astype(object)
    held = SimpleNamespace(claims=claims)
    facts = {"seeds": (10, 11), "core_hours": 1.5, "progress": ""}
    return SimpleNamespace(scale="long", ended=day, evidence=held, **facts)


def test_a_claim_without_measurements_has_words_for_a_figure():
    claim = load_ledger("meantime")["C6"]
    untested = ClaimEvidence.of(claim, not_tested(claim, "book"), claim.protocol, "meantime-claims")
    figure = findings.found_figure(untested)
    assert [text.get_text() for text in figure.axes[0].texts] == ["C6: not tested; no arms were measured."]


def test_an_arm_of_several_claims_has_the_mean_of_the_archived_run():
    archived, own = evidence("C3", 0.2), evidence("C3", 0.4).model_copy(update={"id": "C4"})
    for order in ([archived, own], [own, archived]):
        found = findings.numbers(order, piece_of(archived))
        assert found["head overlap-MEANTIME"] == pytest.approx(0.6, abs=0.01)
    assert findings.numbers([archived, own])["head overlap-MEANTIME"] == pytest.approx(0.4, abs=0.01)


def test_numbers_have_the_names_that_a_text_quotes():
    claim = evidence("C3")
    piece = piece_of(claim)
    found = findings.numbers([claim], piece)
    assert (
        found["C3"] == "holds"
        and found["C3-effect"] == found[f"C3-{claim.interval.label.replace(': ', ' ')}"]
    )
    assert found["C3-effect"].startswith("−0.199")
    assert found["head overlap-MEANTIME"] == pytest.approx(0.6, abs=0.01)
    assert found["C3-smallest"] == pytest.approx(claim.interval.smallest)
    assert (found["scale"], found["date"], found["seeds"], found["core-hours"]) == (
        "long",
        "2026-11-26",
        2,
        1.5,
    )
    assert not [name for name in found if ":" in name]  # a colon would begin a format


def test_what_was_not_tested_has_a_verdict_and_nothing_else():
    claim = load_ledger("meantime")["C6"]
    untested = ClaimEvidence.of(claim, not_tested(claim, "book"), claim.protocol, "meantime-claims")
    assert findings.numbers([untested]) == {"C6": "not tested"}


def test_glued_numbers_are_what_glue_itself_would_leave():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from myst_nb import glue

    InteractiveShell.instance()
    with capture_output() as captured:
        glue("meantime-found-C3", "holds", display=False)
    (theirs,) = captured.outputs
    (ours,) = findings.glued("meantime", {"C3": "holds"})
    assert ours.data == theirs.data and ours.metadata == theirs.metadata


class FakePiece(SimpleNamespace):
    def tests(self, claim_id):
        return claim_id in self.judged

    def claim(self, claim_id):
        return self.judged[claim_id]


def archive(scale: str, **judged: ClaimEvidence) -> FakePiece:
    claims = SimpleNamespace(claims=[evidence(name) for name in judged])
    return FakePiece(scale=scale, ended=0, seeds=(), judged=judged, evidence=claims)


def test_a_larger_scale_speaks_whatever_it_says():
    own, theirs = evidence("C3", 0.2), evidence("C3", -0.2)
    assert findings.strongest_of({"C3": own}, "book", [archive("long", C3=theirs)])["C3"] is theirs
    assert findings.strongest_of({"C3": own}, "paper", [archive("long", C3=theirs)])["C3"] is own
    assert findings.strongest_of({}, "book", [archive("long", C3=theirs)])["C3"] is theirs
    assert findings.strongest_of({"C3": own}, "book", [])["C3"] is own
    untested = own.model_copy(update={"verdict": "not tested", "effects": (), "interval": None})
    counted = untested.model_copy(update={"verdict": "exact"})
    smaller = [archive("book", C3=theirs)]
    assert findings.strongest_of({"C3": untested}, "long", smaller)["C3"] is theirs
    for mine in (counted, own.model_copy(update={"verdict": "not tested", "unlearned": True})):
        assert findings.strongest_of({"C3": mine}, "long", smaller)["C3"] is mine


@pytest.mark.parametrize(("scale", "theirs"), [("book", "long"), ("long", "long"), ("paper", None)])
def test_no_archived_run_is_larger_than_one_of_the_paper_scale(scale, theirs):
    found = findings.largest_of(scale, [archive("book"), archive("long")])
    assert (found and found.scale) == theirs
    assert findings.largest_of(scale, []) is None


def test_a_table_comes_from_the_archived_run_that_has_it(tmp_path):
    for folder, value in (("own", 1), ("kept", 2)):
        (tmp_path / folder / "tables").mkdir(parents=True)
        (tmp_path / folder / "tables" / "map.csv").write_text(f"seed,score\n0,{value}\n")
    artifact = SimpleNamespace(files=("tables/map.csv",))
    piece = SimpleNamespace(folder="kept", evidence=SimpleNamespace(artifacts=[artifact]))
    other = SimpleNamespace(folder="kept", evidence=SimpleNamespace(artifacts=[]))
    found = [
        findings.strongest_table("map", tmp_path / "own", one, tmp_path)["score"].item()
        for one in (piece, other, None, SimpleNamespace(folder="", evidence=piece.evidence))
    ]
    assert found == [2, 1, 1, 1]
    with pytest.raises(ValueError, match="kind must be one of arms_figure, curves_figure, map_figure"):
        findings.table_figure(None, "pie", {})
