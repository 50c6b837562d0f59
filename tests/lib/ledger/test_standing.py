"""The strongest evidence speaks, by scale and date; what a page's own run says is kept beside it."""

from datetime import datetime, timedelta

import pytest
import yaml
from bs4 import BeautifulSoup

from lib.chapter.record import Record
from lib.chapter.tables import verdict_line, verdict_table
from lib.ledger.archive import ArchivedEvidence, Piece
from lib.ledger.evidence import Evidence
from lib.ledger.schema import SCALES, load_ledger
from lib.ledger.standing import GROUPS, group, standings

PAPER = {"id": "toy", "title": "A toy", "authors": ["A"], "venue": "x", "year": 2020, "code_licence": "none"}
RULE = {"parts": [{"metric": "accuracy", "better": "ours", "worse": "theirs", "direction": "higher"}]}
SIZE = {"label": "size", "value": 3, "decimals": 0, "where": "Table 2", "provenance": "recalled"}
CLAIMS = [
    {"id": "C1", "statement": "Better.", "kind": "comparison", "rule": RULE},
    {"id": "C2", "statement": "Three.", "kind": "arithmetic", "paper": [SIZE]},
    {"id": "E1", "statement": "Three again.", "kind": "arithmetic", "own": True, "paper": [SIZE]},
]
SHARED = {
    "source": "Table 1",
    "protocol": "One training per seed.",
    "scales": {scale: {"tested": True} for scale in SCALES},
}
HOLDS = [[0.90, 0.91, 0.92], [0.80, 0.82, 0.81]]
OPEN = [[0.9, 0.8, 0.7], [0.8, 0.9, 0.7]]
OPPOSITE = HOLDS[::-1]


@pytest.fixture
def root(tmp_path):
    """A project with a ledger of three claims: the paper's, one against a memory, and one of our own."""
    (tmp_path / "book/claims").mkdir(parents=True)
    content = {"paper": PAPER, "claims": [SHARED | claim for claim in CLAIMS]}
    (tmp_path / "book/claims/toy.yml").write_text(yaml.safe_dump(content))
    return tmp_path


def run(root, scale, accuracy, day, size=3.0):
    """Evidence of a run that ended on a day of November 2026."""
    folder = root / "runs" / f"{scale}-{day}"
    record = Record("toy", scale=scale, run_dir=folder, root=root)
    record.judge("C1", {"accuracy": dict(zip(("ours", "theirs"), accuracy, strict=True))})
    record.judge("C2", {"size": size})
    record.judge("E1", {"size": size})
    record.close()
    evidence = Evidence.of_run(folder, {"scale": scale})
    ended = datetime.fromisoformat(f"2026-11-{day:02}T12:00:00+00:00")
    times = {"started": ended - timedelta(hours=1), "ended": ended, "processor": f"processor {day}"}
    return evidence.model_copy(update={"provenance": evidence.provenance.model_copy(update=times)})


def kept(root, *arguments, changed=()):
    """The same as a piece of the archive."""
    evidence = run(root, *arguments)
    fields = {name: getattr(evidence, name) for name in Evidence.model_fields}
    piece = Piece.of(ArchivedEvidence(**fields), load_ledger("toy", root), "book/archive/toy/x")
    return Piece(piece.evidence, piece.folder, piece.stale, changed)


def test_without_an_archive_the_run_of_the_page_speaks(root):
    here = run(root, "book", HOLDS, 20)
    for one, claim in zip(standings(here), here.claims, strict=True):
        assert one.claim == one.here == claim and not one.stronger and one.others == ()
        assert (one.piece.scale, one.made.day, one.here_scale) == ("book", 20, "book")


@pytest.mark.parametrize("decided", [OPEN, OPPOSITE, HOLDS])
def test_the_larger_scale_speaks_whatever_it_says(root, decided):
    here = run(root, "book", HOLDS, 20)
    first = standings(here, [kept(root, "long", decided, 3), kept(root, "smoke", OPPOSITE, 25)])[0]
    assert first.stronger and first.here.verdict == "holds" and first.piece.scale == "long"
    assert (
        first.claim.verdict
        == {0: "inconclusive", 1: "contradicted", 2: "holds"}[[OPEN, OPPOSITE, HOLDS].index(decided)]
    )
    assert [other.scale for other in first.others] == ["smoke"]


def test_of_one_scale_the_latest_speaks_and_the_other_is_kept(root):
    here = run(root, "book", HOLDS, 20)
    first = standings(here, [kept(root, "long", OPPOSITE, 9), kept(root, "long", OPEN, 5)])[0]
    assert (first.claim.verdict, first.made.day) == ("contradicted", 9)
    assert [other.claim("C1").verdict for other in first.others] == ["inconclusive"]


def test_a_run_that_is_archived_itself_speaks_for_the_page(root):
    here = run(root, "book", HOLDS, 20)
    first = standings(here, [kept(root, "book", HOLDS, 20)])[0]
    assert first.claim is first.here and not first.stronger
    assert standings(here, [kept(root, "book", OPEN, 21)])[0].stronger, "a later one speaks"


def test_the_first_seeds_of_a_run_are_no_other_run(root):
    def planned(piece, seeds, plan="main"):
        update = {"plan": plan, "parameters": {"seeds": seeds}}
        return Piece(piece.evidence.model_copy(update=update))

    here, late, early = (
        run(root, "book", HOLDS, 20),
        kept(root, "long", OPEN, 9),
        kept(root, "long", HOLDS, 5),
    )
    whole = planned(late, [1, 2, 3, 4])
    for part, others in [
        (planned(early, [1, 2]), 0),
        (planned(early, [1, 2], "another"), 1),
        (planned(early, [1, 2, 3, 4]), 1),
        (planned(early, [8]), 1),
    ]:
        first = standings(here, [part, whole])[0]
        assert first.piece is whole and len(first.others) == others
    alone = standings(here, [planned(early, [1, 2])])[0]
    assert alone.stronger and alone.claim.verdict == "holds", "until the others are there it speaks"


def test_a_piece_of_another_chapter_is_refused(root):
    here = run(root, "book", HOLDS, 20)
    foreign = kept(root, "long", HOLDS, 9)
    foreign = Piece(foreign.evidence.model_copy(update={"chapter": "other"}))
    with pytest.raises(ValueError, match="expected evidence of toy, got that of other"):
        standings(here, [foreign])


def test_only_what_is_trained_seed_by_seed_counts_as_trained(root):
    here = run(root, "book", HOLDS, 20)
    assert [one.trained for one in standings(here)] == [True, False, False]


def test_groups_go_by_whose_number_it_is(root):
    here = run(root, "book", HOLDS, 20)
    assert [group(claim) for claim in here.claims] == ["paper", "memory", "own"]
    untested = here.claims[1].model_copy(update={"verdict": "not tested"})
    assert group(untested) == "paper" and set(GROUPS) == {"paper", "own", "memory"}


# --- as a page shows it ---


def shown(here, *archive):
    told = {one.claim.id: one for one in standings(here, archive)}
    tables = BeautifulSoup(verdict_table(here.claims, told), "html.parser").select("table")
    return told, tables


def test_a_table_for_each_group(root):
    _, tables = shown(run(root, "book", HOLDS, 20))
    assert [table.caption.text for table in tables] == [
        "What the paper says: 1 holds",
        "Our own checks: 1 matches memory",
        "Held against numbers that are only remembered: 1 matches memory",
    ]
    assert [table.tbody.th.text for table in tables] == ["C1", "E1", "C2"]


def test_the_long_runs_verdict_stands_first_and_the_pages_beside_it(root):
    here = run(root, "book", HOLDS, 20)
    told, tables = shown(
        here, kept(root, "long", OPPOSITE, 9, changed=("lib.x",)), kept(root, "long", OPEN, 5)
    )
    row = tables[0].tbody.tr
    assert [one.text for one in row.select(".verdict")] == ["contradicted", "holds", "inconclusive"]
    text = " ".join(row.text.split())
    assert "From scale long, 2026-11-09, processor 9 method changed since." in text
    assert "Re-executed here, not trained to a plateau: the verdict is the long run's. Here: holds" in text
    assert "Also long, 2026-11-05: inconclusive" in text
    assert "ours − theirs = −0.100" in text  # the long run's quantity
    line = BeautifulSoup(verdict_line(here.claims[0], told["C1"]), "html.parser").text
    assert line.startswith("C1: holds Every interval")
    assert line.endswith(
        "Re-executed here, not trained to a plateau: the verdict is the long run's. contradicted"
    )
    counted = BeautifulSoup(verdict_line(here.claims[1], told["C2"]), "html.parser").text
    assert "plateau" not in counted and "Re-executed here: the verdict is the long run's." in counted


def test_a_run_that_nothing_outdoes_says_nothing_of_others(root):
    here = run(root, "book", HOLDS, 20)
    told, tables = shown(here, kept(root, "smoke", OPPOSITE, 25))
    assert "Re-executed" not in tables[0].text and "From scale" not in tables[0].text
    assert verdict_line(here.claims[0], told["C1"]) == verdict_line(here.claims[0])
