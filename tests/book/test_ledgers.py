"""The book's ledgers: what would mislead a reader of their verdicts is not in them."""

import re

import pytest

from book.build import ROOT
from lib.ledger.rules import Contrast
from lib.ledger.schema import Arithmetic, load_ledger
from lib.ledger.wording import paper_number

LEDGERS = {path.stem: load_ledger(path.stem) for path in sorted((ROOT / "book/claims").glob("*.yml"))}
NO_RATIO = re.compile(r"\bdB\b|SQNR|\blog(10|2)?\b", re.IGNORECASE)  # scales whose zero does not mean "none"

every_ledger = pytest.mark.parametrize("chapter", sorted(LEDGERS))


def contrasts(chapter):
    for claim in LEDGERS[chapter].claims:
        if not isinstance(claim, Arithmetic):
            yield from ((claim.id, part) for part in claim.rule.parts if isinstance(part, Contrast))


def shows_percent_of_no_ratio(part):
    return part.percent and bool(NO_RATIO.search(" ".join((*part.metric, part.unit))))


@every_ledger
def test_no_percentage_of_decibels_or_logarithms(chapter):
    assert [name for name, part in contrasts(chapter) if shows_percent_of_no_ratio(part)] == []


@pytest.mark.parametrize(
    ("metric", "unit", "wrong"),
    [("SQNR", "", True), ("error", "dB", True), ("log10 AIWQ", "", True), ("NDCG@10", "", False)],
)
def test_a_percentage_of_decibels_would_be_seen(metric, unit, wrong):
    part = Contrast(metric=metric, better="a", worse="b", direction="higher", unit=unit)
    assert shows_percent_of_no_ratio(part) == wrong


@every_ledger
def test_how_near_ours_must_be_stands_beside_the_papers_number(chapter):
    """A tolerance or a range is printed with the number; else the printed digits say it."""
    for claim in LEDGERS[chapter].claims:
        if not isinstance(claim, Arithmetic):
            continue
        for number in claim.paper:
            low, high = claim.allowed(number)
            shown = paper_number(number)
            if number.between is not None:
                assert " to " in shown
            elif "±" not in shown:
                assert high - low == pytest.approx(10.0**-number.decimals), (claim.id, number.name)


@every_ledger
def test_intervals_of_accuracies_end_where_accuracies_do(chapter):
    ledger = LEDGERS[chapter]
    metrics = {metric for claim in ledger.claims for metric in claim.arms()}
    bounded = {m for m in metrics if re.search(r"^(test )?accuracy$|^top-1", m)}
    assert bounded <= set(ledger.possible)
