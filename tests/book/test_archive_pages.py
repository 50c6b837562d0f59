"""The status page lists every run that was announced and every one that was kept, with git's dates."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup

from book import archive_pages
from lib.runs.parameters import RequestError
from tests.book.conftest import archive_chapter, request


def git(folder, *arguments, when="2026-11-20T10:00:00+02:00"):
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments]
    dates = os.environ | {"GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when}
    done = subprocess.run(command, env=dates, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path, evidence):
    """A folder with the template's ledger, a made-up run of it, and the same in the archive."""
    archive_chapter(tmp_path, "template")
    return tmp_path


def shown(root, resolve=request) -> str:
    return archive_pages.status(archive_pages.load(["template"], root, resolve), root)


def test_runs_that_were_announced_and_kept_are_listed(root):
    text = shown(root)
    main, later = [line for line in text.splitlines() if line.startswith("| **")]
    assert main.startswith("| **main**, smoke, 3 seeds | 2026-11-26 | – |")
    assert "| 12.0, " in main, "three runs of two hours on two threads"
    assert "`0123456789`" in main and "/evidence.json>` |" in main
    assert later == "| **later**, smoke, 3 seeds | 2026-11-26 | – | not made yet | – | – | – |"
    told = [line for line in text.splitlines() if line.startswith("**")]
    assert "Seeds 0, 1, 2. To decide: T1, T2. Stopping: After 10 \\| 20 steps." in told[0]
    assert "By today's rules: T1 exact, T2 holds." in told[0]
    assert "Other today than in that run: cell 1." in told[0]
    assert "Beside the scale's own parameters: samples = 5. Stopping: When it stops." in told[1]


def test_whether_a_change_since_changes_numbers_is_told_by_this_builds_own_run(root, evidence):
    archive = archive_pages.load(["template"], root, request)
    (piece,) = archive["template"]
    same = archive_pages.status(archive, root, {"template": evidence})
    assert "In this build's own run the change changes nothing: 6 means as archived." in same
    moved = [
        measurement.model_copy(update={"measured": shifted(measurement.measured)})
        for measurement in evidence.measurements
    ]
    other = evidence.model_copy(update={"measurements": tuple(moved)})
    differs = archive_pages.status(archive, root, {"template": other})
    assert "differs from the one archived with the method of then: 0 of 6 means within" in differs
    silent = [
        ({}, archive),  # no run in this build
        ({"template": evidence.model_copy(update={"scale": "book"})}, archive),  # of another setting
        ({"template": evidence}, {"template": (replace(piece, changed=()),)}),  # nothing has changed
    ]
    for here, kept in silent:
        assert "own run" not in archive_pages.status(kept, root, here)
    elsewhere = piece.evidence.model_copy(update={"method": {"cell 1": "another"}, "plan": "later"})
    kept = {"template": (piece, replace(piece, evidence=elsewhere))}
    later = archive_pages.status({"template": kept["template"][1:]}, root, {"template": other})
    assert "method of then" in later, "its own setting and method"
    first = replace(piece, evidence=piece.evidence.model_copy(update={"scale": "long"}))
    mixed = archive_pages.status({"template": (first, kept["template"][1])}, root, {"template": evidence})
    told = next(line for line in mixed.splitlines() if line.startswith("**main**"))
    assert "own run" not in told, "archived with another method"


def shifted(measured):
    """Every number of every arm, far away."""
    return {
        metric: {arm: tuple(value + 10 for value in values) for arm, values in arms.items()}
        if isinstance(arms, Mapping)
        else arms
        for metric, arms in measured.items()
    }


def test_a_run_that_nobody_plans_any_more_is_still_listed(root):
    (root / "book/archive/template/plan.yml").write_text("[]")
    text = shown(root)
    assert "| **main**, smoke, 3 seeds | no longer in the plan |" in text
    assert "T1 exact, T2 holds, T3 not tested" in text
    shutil.rmtree(root / "book/archive")
    assert shown(root) == "No long run has been announced yet.\n"


def test_of_a_plan_all_of_whose_seeds_are_there_the_first_are_not_listed(root):
    (path,) = (root / "book/archive/template").glob("*/evidence.json")
    later = Path(shutil.copytree(path.parent, path.parent.with_name("smoke-2026-11-01-main-4")))
    content = json.loads(path.read_text())
    content["parameters"]["seeds"].append(3)
    content["provenance"]["started"] = "2026-11-01T00:00:00Z"
    (later / "evidence.json").write_text(json.dumps(content))
    (main,) = [line for line in shown(root).splitlines() if line.startswith("| **main**")]
    assert "| 2026-11-01 00:00 to " in main and "smoke-2026-11-01-main-4/evidence.json" in main


def test_a_run_that_cannot_be_asked_for_any_more_says_why(root):
    def refuse(*_, **__):
        raise RequestError("unknown parameter 'samples'")

    assert "Other today than in that run: unknown parameter 'samples'." in shown(root, refuse)


def test_the_ledgers_date_is_gits_as_of_the_run(root):
    git(root, "init", "-q")
    git(root, "add", "book/claims")
    git(root, "commit", "-qm", "ledger")
    first = git(root, "rev-parse", "HEAD")
    ledger = "book/claims/template.yml"
    (root / ledger).write_text((root / ledger).read_text() + "# changed\n")
    git(root, "commit", "-qam", "later", when="2026-11-25T00:30:00Z")
    assert archive_pages.committed(root, ledger) == "2026-11-25 00:30"
    assert archive_pages.committed(root, ledger, first) == "2026-11-20 08:00", "in UTC"
    assert archive_pages.committed(root, ledger, "0" * 40) == ""
    assert archive_pages.committed(root, "book/nothing.yml") == ""
    assert "| **later**, smoke, 3 seeds | 2026-11-26 | 2026-11-25 00:30 | not made yet |" in shown(root)
    git(root.parent, "clone", "-q", "--depth", "1", f"file://{root}", str(root / "shallow"))
    assert archive_pages.committed(root / "shallow", ledger) == "", "one commit would date everything"
    assert archive_pages.committed(root / "book", ledger) == "", "inside somebody's checkout"


def test_evidence_that_cannot_be_read_is_named_with_its_chapter(root):
    (path,) = (root / "book/archive/template").glob("*/evidence.json")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"^notebooks/template: book/archive/template/smoke-.*: chapter: Fi"):
        archive_pages.load(["template"], root, request)
    plan = root / "book/archive/template/plan.yml"
    plan.write_text(yaml.safe_dump([{"name": "main"}]))
    shutil.rmtree(path.parent)
    with pytest.raises(ValueError, match=r"plan\.yml: 0\.scale: Field required"):
        archive_pages.load(["template"], root, request)


def test_a_run_made_again_is_held_against_the_archived_one(root, evidence):
    archive = archive_pages.load(["template"], root, request)
    text = archive_pages.machine_check({"template": evidence}, archive)
    row = text.splitlines()[2]
    assert row.startswith("| [template](../notebooks/template) | ") and "| 6 of 6 |" in row
    shifted = []
    for measurement in evidence.measurements:
        measured = measurement.measured
        if measurement.claim == "T2":
            values = measured["coverage at n = 5"]["normal"]
            moved = {"normal": tuple(value + 1 for value in values)}
            measured = measured | {"coverage at n = 5": measured["coverage at n = 5"] | moved}
        shifted.append(measurement.model_copy(update={"measured": measured}))
    other = evidence.model_copy(update={"measurements": tuple(shifted)})
    row = archive_pages.machine_check({"template": other}, archive).splitlines()[2]
    assert "| 5 of 6 |" in row and "coverage at n = 5, normal: " in row
    another = evidence.model_copy(update={"parameters": {"seeds": [7, 8, 9]}})
    none = "No run of this book's scale has been archived yet.\n"
    assert archive_pages.machine_check({"template": another}, archive) == none
    assert archive_pages.machine_check({"template": evidence}, {"template": ()}) == none


def test_the_built_status_page_links_the_evidence(book):
    page = book / "_build/html/book/status.html"
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    section = soup.select_one("#status-archive, section:has(> #status-archive)") or soup
    row = next(row for row in section.select("tr") if "main" in row.get_text() and "12.0" in row.get_text())
    (link,) = [a["href"] for a in row.select("a") if a["href"].endswith("evidence.json")]
    assert '"plan": "main"' in (page.parent / link).resolve().read_text(encoding="utf-8")
