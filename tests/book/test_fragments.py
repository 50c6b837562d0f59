"""Status, schema and library pages say what the files say."""

import json

import pytest

from book import fragments
from lib.ledger.evidence import Evidence


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", r"a \| b"),
        ("``x_1`` and y_1", r"`x_1` and y\_1"),
        ("`a|b` <b>", r"`a\|b` \<b\>"),
        ("two\n  lines [x](y)", r"two lines \[x\](y)"),
    ],
)
def test_a_cell_cannot_be_ended_by_its_text(text, shown):
    assert fragments.cell(text) == shown


def test_library_lists_public_names_with_their_first_sentence(tmp_path):
    (tmp_path / "lib").mkdir()
    source = (
        '"""A room.\n\nMore."""\ndef seen(x):\n    """Do it. And more."""\ndef _hidden():\n    """No."""\n'
    )
    (tmp_path / "lib/room.py").write_text(source)
    (tmp_path / "lib/empty.py").write_text('"""Nothing public."""\n')
    text = fragments.library(tmp_path, "https://github.com/a/b")
    assert "## lib.room\n\nA room. [Source](https://github.com/a/b/blob/main/lib/room.py)" in text
    assert "| `seen` | Do it. |" in text
    assert "_hidden" not in text and "empty" not in text


def test_schema_names_every_field_of_the_file(evidence):
    text = fragments.schema(Evidence.model_json_schema(mode="serialization"))
    assert "| `between` | pair of number or nothing |" in text
    for name in evidence.model_dump():
        assert f"| `{name}` |" in text


def test_status_has_time_memory_commit_and_versions(evidence, tmp_path):
    made = evidence.provenance.model_copy(
        update={
            "wall_seconds": 61.4,
            "peak_memory_bytes": 300 * 2**20,
            "commit": "0123456789abcdef",
            "dirty": True,
        }
    )
    text = fragments.status({"template": evidence.model_copy(update={"provenance": made})}, tmp_path)
    row = next(line for line in text.splitlines() if "template](" in line)
    assert "| 61\N{NO-BREAK SPACE}s | 300\N{NO-BREAK SPACE}MiB |" in row
    assert "`0123456789` with uncommitted changes" in row
    assert f"| Python | {made.python} |" in text
    assert all(version in text for version in made.packages.values())


def test_versions_are_told_apart_only_where_they_differ(evidence, tmp_path):
    made = evidence.provenance
    other = made.model_copy(update={"packages": {**made.packages, "numpy": "0.1"}})
    same = fragments.status({"one": evidence, "two": evidence}, tmp_path)
    assert "| package | all chapters |" in same and f"| numpy | {made.packages['numpy']} |" in same
    differ = fragments.status(
        {"one": evidence, "two": evidence.model_copy(update={"provenance": other})}, tmp_path
    )
    assert "| package | one | two |" in differ and f"| numpy | {made.packages['numpy']} | 0.1 |" in differ


def test_downloads_are_the_schema_and_the_evidence(evidence, tmp_path):
    fragments.write(tmp_path, {"template": evidence}, tmp_path / "out", repository="https://github.com/a/b")
    assert Evidence.load(tmp_path / "out/template.evidence.json") == evidence
    schema = json.loads((tmp_path / "out/evidence.schema.json").read_text())
    assert set(schema["properties"]) == set(evidence.model_dump())
