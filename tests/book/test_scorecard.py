"""The scorecard says what the evidence says: counts, references, downloads; no text becomes markup."""

import json
import re

import pandas as pd
import pytest

from book import scorecard
from lib.ledger.rules import Floor
from lib.ledger.verdicts import VERDICTS


@pytest.fixture
def varied(evidence):
    """Evidence with one claim per verdict, and a second `holds` that is ours and one that is remembered."""
    pattern = next(claim for claim in evidence.claims if claim.interval)
    pattern = pattern.model_copy(update={"own": False, "provenance_of_paper_number": "paper"})
    claims = [pattern.model_copy(update={"id": f"A{n}", "verdict": v}) for n, v in enumerate(VERDICTS)]
    remembered = {"provenance_of_paper_number": "recalled", "synthetic": False}
    claims.append(pattern.model_copy(update=remembered | {"id": "B1", "verdict": "matches memory"}))
    claims.append(pattern.model_copy(update=remembered | {"id": "B2", "verdict": "not tested"}))
    claims.append(pattern.model_copy(update={"id": "E1", "verdict": "holds", "own": True}))
    return evidence.model_copy(update={"claims": tuple(claims)})


def test_counts_add_up_and_whose_number_it_is_stands_apart(varied):
    claims = scorecard.collect([varied, varied.model_copy(update={"chapter": "other"})])
    ours, own, memory = (scorecard.counts(claims, group) for group in ("paper", "own", "memory"))
    assert list(ours.columns) == list(VERDICTS)
    none = dict.fromkeys(VERDICTS, 0)
    assert ours.loc["template"].to_dict() == dict.fromkeys(VERDICTS, 1) | {"not tested": 2}
    assert own.loc["template"].to_dict() == none | {"holds": 1}
    assert memory.loc["template"].to_dict() == none | {"matches memory": 1}
    assert (
        sum(table.loc["all"].sum() for table in (ours, own, memory)) == len(claims) == 2 * (len(VERDICTS) + 3)
    )


def test_counts_of_chapters_that_have_none_are_zero(evidence):
    apart = scorecard.counts(scorecard.collect([evidence]), "memory")
    assert apart.loc["template"].sum() == apart.loc["all"].sum() == 0


def test_what_verdicts_rest_on_is_said_in_a_line(varied):
    line = scorecard.rests_on(scorecard.collect([varied]))
    # Nine verdicts of the paper, one of which is "not tested" and one "inconclusive"; one more untested.
    assert line.startswith("Of 12 claims 9 are decided: 7 are what a paper says, 7 of these against a number")
    assert (
        "1 are our own checks, 1 are held against numbers that are only remembered. 1 claims are reproduced"
        in line
    )
    claims = tuple(claim for claim in varied.claims if claim.verdict != "reproduced")
    changed = claims[0].model_copy(update={"changed": {"was": "a", "why": "b", "after": "c"}})
    line = scorecard.rests_on(
        scorecard.collect([varied.model_copy(update={"claims": (changed, *claims[1:])})])
    )
    assert "No table of any paper is reproduced here yet. Rules that were changed after a run: 1" in line


def test_no_evidence_is_refused():
    with pytest.raises(ValueError, match="at least one chapter, got none"):
        scorecard.collect([])


def test_downloads_agree_with_the_evidence(evidence, tmp_path):
    scorecard.write([evidence], tmp_path / "out", tmp_path)
    table = pd.read_csv(tmp_path / "out/scorecard.csv")
    records = json.loads((tmp_path / "out/scorecard.json").read_text())
    assert len(table) == len(records) == len(evidence.claims)
    for claim, row, record in zip(evidence.claims, table.to_dict("records"), records, strict=True):
        for one in (row, record):
            assert (one["claim"], one["verdict"], one["synthetic"]) == (
                claim.id,
                claim.verdict,
                claim.synthetic,
            )
            assert one["statement"] == claim.statement
            if claim.interval:
                shown = (one["mean"], one["low"], one["high"])
                effect = claim.interval
                assert shown == pytest.approx((effect.quantity, effect.quantity_low, effect.quantity_high))
            for number in claim.paper:
                assert number.name in one["paper"] and number.provenance in one["paper"]


def test_a_reference_below_its_floor_is_marked_told_and_a_column(evidence):
    floor = {"metric": "accuracy", "arm": "linear classifier", "references": ["full"], "by": 1}
    below = {"verdict": "not tested", "unlearned": True, "floor": Floor(**floor, direction="higher")}
    pattern = evidence.claims[1]
    both = evidence.model_copy(update={"claims": (pattern, pattern.model_copy(update=below))})
    assert list(scorecard.collect([both])["unlearned"]) == [False, True]
    plain, marked = scorecard.claims_markdown(both).split("* - {ref}")[1:]
    for text in (
        "the reference has not learned</span>",
        "Asked first: full beats the linear classifier by 1",
    ):
        assert text in marked and text not in plain


def test_every_claim_refers_to_its_place_in_the_chapter(evidence):
    text = scorecard.claims_markdown(evidence)
    references = re.findall(r"\{ref\}`(\S+) <([\w-]+)>`", text)
    assert references == [(claim.id, claim.anchor) for claim in evidence.claims]
    assert all(claim.anchor.startswith("template-") for claim in evidence.claims)


def test_each_row_shows_verdict_protocol_and_whether_synthetic(varied):
    rows = scorecard.claims_markdown(varied).split("* - {ref}")[1:]
    for claim, row in zip(varied.claims, rows, strict=True):
        assert f'verdict-{claim.verdict.replace(" ", "-")}"' in row
        assert ("mark-synthetic" in row) == claim.synthetic
        assert f"scale {varied.scale}" in row and claim.protocol[:30] in row


def test_nothing_in_a_claim_can_become_markup(evidence):
    nasty = '<script>alert("x")</script> ``` ::: | $x$ [a](b) {ref}`c`'
    claim = evidence.claims[1].model_copy(update=dict.fromkeys(("statement", "reason", "protocol"), nasty))
    text = scorecard.claims_markdown(evidence.model_copy(update={"claims": (claim,)}))
    assert "<script>" not in text and "&lt;script&gt;" in text
    # Each cell is one line of raw HTML between its own fences, so no fence of the text can end it.
    fences = [line for line in text.splitlines() if line.strip().startswith("```")]
    assert len(fences) == 8 and not any(line.strip() not in ("```", "```{raw} html") for line in fences)


def test_headline_has_words_for_every_count(varied):
    claims = scorecard.collect([varied])
    text = scorecard.headline_markdown(claims, {"template": "Student (1908)"})
    alternative = re.search(r":alt: (.*)", text)[1]
    for verdict in VERDICTS:
        assert verdict in alternative
    assert "our own checks: 1 holds; numbers only remembered: 1 matches memory" in alternative


def test_headline_tells_verdicts_apart_without_colour(varied):
    figure = scorecard.headline(scorecard.collect([varied]), {"template": "Student (1908)"})
    bars = figure.axes[0].patches
    looks = [(bar.get_hatch(), bar.get_linestyle()) for bar in bars[: len(VERDICTS)]]
    assert len(set(looks)) == len(VERDICTS)
    words = {text.get_text() for text in figure.axes[0].texts}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(VERDICTS)
    assert {"Student (1908)", "our own checks", "numbers only remembered"} <= words


def test_fragments_are_the_same_for_the_same_evidence(evidence, tmp_path):
    for name in ("one", "two"):
        scorecard.write([evidence], tmp_path / name, tmp_path)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_tables_of_counts_have_only_the_verdicts_that_occur(varied):
    text = scorecard.summary_markdown(scorecard.collect([varied]), {"template": "Student (1908)"})
    heads = [line for line in text.splitlines() if line.startswith("| paper")]
    assert [head.count(".verdict-") for head in heads] == [len(VERDICTS), 1, 1]
