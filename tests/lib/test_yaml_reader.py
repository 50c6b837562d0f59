"""What is written in YAML is what is read, or it is refused in a line that says where."""

import datetime
import math

import pytest
import yaml

from lib.files import ROOT
from lib.yaml_reader import parse_yaml, read_yaml, whole_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # PyYAML's own reader makes other values of these.
        ("010", "010"),
        ("-017", "-017"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0b11", "0b11"),
        ("0x1F", "0x1F"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("1e-3", 1e-3),
        ("1e5", 1e5),
        ("1.5e3", 1500.0),
        # And what it reads well.
        ("8", 8),
        ("-3", -3),
        ("0", 0),
        ("1_000", 1000),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-1.5E-3", -0.0015),
        ("010.5", 10.5),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("1.2.3", "1.2.3"),
        (".", "."),
        ("-", [None]),
        ("e5", "e5"),
        ("１.５", "１.５"),
        ("2026-11-26", datetime.date(2026, 11, 26)),
        ("[1, 2e0, no]", [1, 2.0, "no"]),
        ('"\\ud83d\\ude42"', "🙂"),
        ("{a: {b: 1}, c: {b: 2}}", {"a": {"b": 1}, "c": {"b": 2}}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ],
)
def test_what_is_written_is_what_is_read(text, value):
    for form in (text, text.encode()):
        read = parse_yaml(form, "x.yml")
        assert read == value and type(read) is type(value)


def test_not_a_number_is_read():
    assert math.isnan(parse_yaml(".nan", "x.yml"))


def test_text_of_whole_characters():
    assert whole_text("\ud83d\ude42 é") == "🙂 é"
    for odd in ("\ud83d", "\ude42\ud83d", "\udcff"):
        with pytest.raises(ValueError, match="is no text"):
            whole_text(odd)


def test_merged_keys_may_be_overridden():
    text = "base: &base {a: 1, b: 2}\nlater: {<<: *base, b: 3}\n"
    assert parse_yaml(text, "x.yml")["later"] == {"a": 1, "b": 3}
    with pytest.raises(ValueError, match="^x.yml, line 2: not YAML: 'b' twice$"):
        parse_yaml("base: &base {a: 1, b: 2}\nlater: {b: 4, <<: *base, b: 3}\n", "x.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yml, line 3: not YAML: 'a' twice"),
        ("a: 1\n'a': 1\n", "x.yml, line 2: not YAML: 'a' twice"),
        ("1: a\n1.0: b\n", "x.yml, line 2: not YAML: 1.0 twice"),
        ("a:\n  b: {c: 1, d: 2, c: 3}\n", "x.yml, line 2: not YAML: 'c' twice"),
        ("- {a: 1, a: 1}", "x.yml, line 1: not YAML: 'a' twice"),
        ("a: &x {b: 1}\nc: {<<: *x, <<: *x}", "x.yml, line 2: not YAML: '<<' twice"),
        ("? [a]\n: 1", "x.yml, line 1: not YAML: a key of parts"),
        ("{a: 1}: 2", "x.yml, line 1: not YAML: a key of parts"),
        ("a: [", "x.yml, line 1: not YAML: "),
        ("a: 1\n\tb: 2", "x.yml, line 2: not YAML: "),
        ("a: 1\n---\nb: 2", "x.yml, line 2: not YAML: but found another document"),
        ("!!python/object/apply:os.getcwd []", "x.yml, line 1: not YAML: could not determine a constructor"),
        ("a: *nobody", "x.yml, line 1: not YAML: found undefined alias 'nobody'"),
        ("a: 2026-13-45", "x.yml: not YAML: month must be in 1..12"),
        ("a: b\0c", "x.yml: not YAML: character 5 is no text"),
        ('"\\ud83d"', "x.yml: not YAML: '\\ud83d' is no text: half a character"),
        ("9" * 5_000, "x.yml: not YAML: Exceeds the limit (4300 digits)"),
        ("!!timestamp x", "x.yml: not YAML: 'NoneType' object has no attribute 'groupdict'"),
        ("!!int ''", "x.yml: not YAML: string index out of range"),
        ("!!bool x", "x.yml: not YAML: 'x'"),
        ("[" * 20_000, "x.yml: not YAML: nested too deeply"),
        ("a: 1\nb: Käse".encode("latin-1"), "x.yml, line 2: not UTF-8; save it as UTF-8"),
        ("a: 1".encode("utf-16"), "x.yml, line 1: not UTF-8; save it as UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(tmp_path, text, message):
    path = tmp_path / "file"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:
        read_yaml(path, "x.yml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_every_file_of_the_book_says_the_same_to_both_readers():
    """So the stricter reading changed nothing that was measured."""
    paths = [*ROOT.glob("book/**/*.yml"), *ROOT.glob("notebooks/**/*.yml"), *ROOT.glob("*.yml")]
    assert len(paths) > 20
    for path in paths:
        assert read_yaml(path, path.name) == yaml.safe_load(path.read_text(encoding="utf-8"))
