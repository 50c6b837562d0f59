"""Tables of verdicts say what is possible, with few digits."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from bs4 import BeautifulSoup

from lib.chapter.record import Record
from lib.chapter.tables import numbers_table
from lib.ledger.paper_numbers import PaperNumber
from lib.ledger.schema import SCALES

ROOT = Path(__file__).resolve().parents[3]
RULE = {"parts": [{"metric": "Recall@10", "arm": "ours", "op": ">=", "limit": 0.5}]}
CLAIM = {
    "id": "C1",
    "statement": "Ours finds most.",
    "source": "Table 1",
    "kind": "bound",
    "rule": RULE,
    "scales": {scale: {"tested": True} for scale in SCALES},
    "protocol": "One training per seed.",
}
PAPER = {"id": "toy", "title": "A toy", "authors": ["A"], "venue": "x", "year": 2020, "code_licence": "none"}


@pytest.mark.parametrize(("ends", "high"), [({"Recall@10": [0, 1]}, "1.00"), ({}, "1.04")])
def test_no_interval_reaches_beyond_what_is_possible(tmp_path, ends, high):
    """Nor does that of the quantity that decided, where it is an arm's value."""
    (tmp_path / "book/claims").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ledger = {"paper": PAPER, "possible": ends, "claims": [CLAIM]}
    (tmp_path / "book/claims/toy.yml").write_text(yaml.safe_dump(ledger))
    record = Record("toy", scale="book", run_dir=tmp_path / "run", root=tmp_path)
    record.judge("C1", {"Recall@10": {"ours": [0.99, 0.98, 0.80, 0.97, 0.99, 0.99, 0.70, 0.99, 0.99, 0.30]}})
    text = BeautifulSoup(record.verdicts(), "html.parser").get_text()
    assert f"Recall@10: ours = 0.87 [0.70, {high}]" in text
    assert f"Recall@10, ours: 0.87 [0.70, {high}]" in text


@pytest.mark.parametrize(
    ("value", "decimals", "ours", "verdict", "shown"),
    [
        (1.2345, 4, 1.23462, "exact", "1.2346"),
        (1.2345, 4, 1.23462, "contradicted", "1.234620"),
        (25.0, 0, 25.4, "contradicted", "25.4"),  # outside of a tolerance of 0.3, say
    ],
)
def test_a_number_that_differs_has_more_digits_than_the_reference(value, decimals, ours, verdict, shown):
    number = PaperNumber(label="ratio", value=value, decimals=decimals, where="Table 1", provenance="paper")
    claim = SimpleNamespace(id="E1", paper=(number,), measured={"ratio": ours}, verdict=verdict)
    cells = [cell.get_text() for cell in BeautifulSoup(str(numbers_table([claim])), "html.parser")("td")]
    assert cells[-2] == shown
