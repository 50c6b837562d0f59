"""The scorecard says what the evidence says: counts, references, downloads; no text becomes markup."""

import json
import re
from datetime import timedelta

import pandas as pd
import pytest

from book import scorecard
from book.answers import answer, answers_markdown
from book.claim_tables import claims_markdown
from lib.ledger.archive import ArchivedEvidence, Piece
from lib.ledger.evidence import Evidence
from lib.ledger.rules import Floor
from lib.ledger.standing import standings
from lib.ledger.verdicts import VERDICTS


def rows_of(*evidence, archive=()):
    """The scorecard's rows of runs and of what was archived beside them."""
    return scorecard.collect(one for run in evidence for one in standings(run, archive))


def long_run(evidence, days=0, changed=(), **verdicts):
    """A long run in the archive that tests the named claims, with these verdicts."""
    claims = tuple(
        claim.model_copy(update={"verdict": verdicts.get(claim.id, claim.verdict)})
        for claim in evidence.claims
    )
    tested = tuple(m.model_copy(update={"tested": m.claim in verdicts}) for m in evidence.measurements)
    made = evidence.provenance.model_copy(update={"ended": evidence.provenance.ended + timedelta(days=days)})
    fields = {name: getattr(evidence, name) for name in Evidence.model_fields}
    fields |= {"scale": "long", "claims": claims, "measurements": tested, "provenance": made}
    return Piece(ArchivedEvidence(**fields), changed=changed)


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
    claims = rows_of(varied, varied.model_copy(update={"chapter": "other"}))
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
    apart = scorecard.counts(rows_of(evidence), "memory")
    assert apart.loc["template"].sum() == apart.loc["all"].sum() == 0


def test_what_verdicts_rest_on_is_said_in_a_line(varied):
    line = scorecard.rests_on(rows_of(varied))
    # Nine verdicts of the paper, one of which is "not tested" and one "inconclusive"; one more untested.
    assert line.startswith("Of 12 claims 9 are decided. Of these, 7 are what a paper says: 7 with a number")
    # Comparisons, all of them: a number beside a direction is no number that was met, but for `reproduced`.
    assert "Held against a number that was read, and not judged by direction or limit alone: 1." in line
    assert (
        "Our own checks: 1. Held against numbers that are only remembered: 1. Claims that are reproduced: 1."
        in line
    )
    assert line.endswith("Decided by scale of the strongest evidence: 9 at smoke.")
    counted = tuple(claim.model_copy(update={"kind": "arithmetic"}) for claim in varied.claims)
    line = scorecard.rests_on(rows_of(varied.model_copy(update={"claims": counted})))
    assert "direction or limit alone: 7." in line
    claims = tuple(claim for claim in varied.claims if claim.verdict != "reproduced")
    changed = claims[0].model_copy(update={"changed": {"was": "a", "why": "b", "after": "c"}})
    line = scorecard.rests_on(rows_of(varied.model_copy(update={"claims": (changed, *claims[1:])})))
    assert "No table of any paper is reproduced here yet. Rules that were changed after a run: 1" in line


def test_no_evidence_is_refused():
    with pytest.raises(ValueError, match="at least one chapter, got none"):
        rows_of()


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
    assert list(rows_of(both)["unlearned"]) == [False, True]
    plain, marked = claims_markdown(standings(both)).split("* - {ref}")[1:]
    for text in (
        "the reference has not learned</span>",
        "Asked first: full beats the linear classifier by 1",
    ):
        assert text in marked and text not in plain


def test_every_claim_refers_to_its_place_in_the_chapter(evidence):
    text = claims_markdown(standings(evidence))
    references = re.findall(r"\{ref\}`(\S+) <([\w-]+)>`", text)
    assert references == [(claim.id, claim.anchor) for claim in evidence.claims]
    assert all(claim.anchor.startswith("template-") for claim in evidence.claims)


def test_each_row_shows_verdict_protocol_and_whether_synthetic(varied):
    rows = claims_markdown(standings(varied)).split("* - {ref}")[1:]
    assert len(rows) == len(varied.claims)
    by_claim = {re.match(r"`(\w+) ", row)[1]: row for row in rows}
    for claim in varied.claims:
        row = by_claim[claim.id]
        assert f'verdict-{claim.verdict.replace(" ", "-")}"' in row
        assert ("mark-synthetic" in row) == claim.synthetic
        assert f"scale {varied.scale}" in row and claim.protocol[:30] in row


def test_nothing_in_a_claim_can_become_markup(evidence):
    nasty = '<script>alert("x")</script> ``` ::: | $x$ [a](b) {ref}`c`'
    claim = evidence.claims[1].model_copy(update=dict.fromkeys(("statement", "reason", "protocol"), nasty))
    text = claims_markdown(standings(evidence.model_copy(update={"claims": (claim,)})))
    assert "<script>" not in text and "&lt;script&gt;" in text
    # Each cell is one line of raw HTML between its own fences, so no fence of the text can end it.
    fences = [line for line in text.splitlines() if line.strip().startswith("```")]
    assert len(fences) == 8 and not any(line.strip() not in ("```", "```{raw} html") for line in fences)


def test_headline_has_words_for_every_count(varied):
    claims = rows_of(varied)
    text = scorecard.headline_markdown(claims, {"template": "Student (1908)"})
    alternative = re.search(r":alt: (.*)", text)[1]
    for verdict in VERDICTS:
        assert verdict in alternative
    assert "our own checks: 1 holds; numbers only remembered: 1 matches memory" in alternative


def test_headline_tells_verdicts_apart_without_colour(varied):
    figure = scorecard.headline(rows_of(varied), {"template": "Student (1908)"})
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
    text = scorecard.summary_markdown(rows_of(varied), {"template": "Student (1908)"})
    heads = [line for line in text.splitlines() if line.startswith("| paper")]
    assert [head.count(".verdict-") for head in heads] == [len(VERDICTS), 1, 1]


def test_a_claim_is_counted_by_its_strongest_evidence_and_this_build_stands_beside(evidence):
    own = {claim.id: claim.verdict for claim in evidence.claims}
    assert own["T2"] == "holds"
    worse = long_run(evidence, T2="contradicted", changed=("lib.metrics",))
    rows = rows_of(evidence, archive=[worse]).set_index("claim")
    assert rows.loc["T2", ["verdict", "verdict_of_this_build"]].tolist() == ["contradicted", "holds"]
    assert rows.loc["T2", ["strongest_scale", "scale", "method_changed"]].tolist() == ["long", "smoke", True]
    assert rows.loc["T2", "made"] == evidence.provenance.ended.date().isoformat()
    others = rows.drop(index="T2")
    assert others["verdict"].to_dict() == {name: own[name] for name in others.index}
    assert (others["verdict"] == others["verdict_of_this_build"]).all()
    assert set(others["strongest_scale"]) == {"smoke"} and not others["method_changed"].any()
    counted = scorecard.counts(rows.reset_index())
    assert counted.loc["all", "contradicted"] == 1
    assert "1 at long" in scorecard.rests_on(rows.reset_index())


def test_the_table_shows_where_the_strongest_evidence_is_from_and_every_other(evidence):
    latest = long_run(evidence, days=3, T2="contradicted", changed=("lib.metrics",))
    before = long_run(evidence, days=1, T2="inconclusive")
    text = claims_markdown(standings(evidence, [before, latest]))
    (row,) = [part for part in text.split("* - {ref}") if part.startswith("`T2 ")]
    day = f"{evidence.provenance.ended + timedelta(days=3):%Y-%m-%d}"
    earlier = f"{evidence.provenance.ended + timedelta(days=1):%Y-%m-%d}"
    assert f"From scale long, {day}" in row and "method changed since" in row
    assert (
        row.index("contradicted")
        < row.index("Here: ")
        < row.index("holds")
        < row.index(f"Also long, {earlier}")
    )
    assert "not trained to a plateau: the verdict is the long run's." in row
    (other,) = [part for part in text.split("* - {ref}") if part.startswith("`T3 ")]
    assert "From scale" not in other and "Here: " not in other


def test_claims_stand_in_a_table_for_each_group(varied):
    tables = claims_markdown(standings(varied)).split("**What the paper says**")[1]
    paper, own = tables.split("**Our own checks**")
    own, memory = own.split("**Held against numbers that are only remembered**")
    assert "{ref}`A0 " in paper and "{ref}`B2 " in paper
    assert "{ref}`E1 " in own and own.count("{ref}") == 1
    assert "{ref}`B1 " in memory and memory.count("{ref}") == 1


def test_an_answer_has_todays_verdicts_and_what_they_rest_on(evidence):
    told = standings(evidence, [long_run(evidence, days=3, T2="contradicted")])
    text = answer("Not *decided* yet: short {T2} and {T1}.", told, "1 holds")
    verdict = {claim.id: claim.verdict for claim in evidence.claims}["T1"]
    day = f"{evidence.provenance.ended + timedelta(days=3):%Y-%m-%d}"
    assert text == (
        r"Not \*decided\* yet: short [[contradicted](#template-t2)]{.verdict .verdict-contradicted} and "
        f"[[{verdict}](#template-t1)]{{.verdict .verdict-{verdict}}}.\n\n"
        f"[What the paper says: 1 holds; strongest evidence: scale long, {day}.]{{.fine}}"
    )
    assert answer("", told, "1 holds").startswith("[What the paper says: 1 holds;")


def test_an_answer_says_how_many_references_have_not_learned(varied):
    below = varied.claims[-1].model_copy(update={"verdict": "not tested", "unlearned": True})
    run = varied.model_copy(update={"claims": (*varied.claims[:-1], below)})
    assert "; 1 not tested because the reference has not learned;" in answer("", standings(run), "none")


def test_the_front_page_has_one_item_per_paper():
    text = answers_markdown({"a": "Yes.\n\n[facts]{.fine}", "b": "No."}, {"a": "A (2018)", "b": "B_b (2020)"})
    assert text == (
        "- **[A (2018)](../notebooks/a)**: Yes.\n  \n  [facts]{.fine}\n\n"
        r"- **[B\_b (2020)](../notebooks/b)**: No." + "\n"
    )
