"""The answers in the book's own ledgers name claims, and what they say of floors is in the ledgers too."""

import pytest

from book.build import ROOT, toc_papers
from lib.ledger.schema import VERDICT_REFERENCE, load_ledger
from lib.ledger.wording import with_verdicts

ANSWERS = {chapter: load_ledger(chapter).paper.answer for chapter in toc_papers(ROOT)}


@pytest.mark.parametrize("chapter", [chapter for chapter, answer in ANSWERS.items() if answer])
def test_an_answer_names_claims_and_types_no_verdict(chapter):
    """A verdict typed by hand would go stale in silence."""
    ledger, answer = load_ledger(chapter), ANSWERS[chapter]
    named = VERDICT_REFERENCE.findall(answer)
    assert "*" not in answer and "`" not in answer, "an answer is plain text: a page would show the marks"
    assert named and set(named) <= {claim.id for claim in ledger.claims}
    shown = with_verdicts(answer, dict.fromkeys(named, "VERDICT"), lambda name, verdict: verdict)
    assert shown.count("VERDICT") == len(named) and "{" not in shown
    assert not {"holds", "contradicted", "inconclusive", "exact", "reproduced"} & set(
        shown.replace(",", " ").replace(".", " ").split()
    )


def test_a_verdict_of_an_answer_is_read_as_a_word_of_its_sentence():
    verdicts = {"C1": "holds", "C2": "inconclusive"}
    text = "That it is faster is *{C1}*, that it is better is {C2}; this {C1}."
    shown = with_verdicts(text, verdicts, lambda name, verdict: f"[{verdict}](#{name})")
    assert (
        shown
        == "That it is faster *[holds](#C1)*, that it is better is [inconclusive](#C2); this [holds](#C1)."
    )


@pytest.mark.parametrize("chapter", sorted(ANSWERS))
def test_who_has_not_learned_is_a_matter_of_the_ledger(chapter):
    """An answer that says so names a claim with that floor; its badge shows whether it is still so."""
    ledger, answer = load_ledger(chapter), ANSWERS[chapter]
    floors = [ledger[name].floor for name in VERDICT_REFERENCE.findall(answer)]
    backed = [floor for floor in floors if floor and f"no better than a {floor.arm}" in answer]
    assert bool(backed) == ("no better than" in answer)


@pytest.mark.parametrize("chapter", sorted(ANSWERS))
def test_an_open_answer_begins_by_saying_so(chapter):
    answer = ANSWERS[chapter]
    assert ("not decided" in answer.lower()) == answer.startswith("Not decided yet: ")
