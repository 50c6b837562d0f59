"""Which texts name a folder of this machine, and which only look like it."""

from pathlib import Path

import pytest

from lib.runs.private_paths import named

PLACES = [Path("/"), Path("/root"), Path('/home/a "b"'), Path("/home/me")]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("in /home/me/book/a.py:3", "/home/me"),
        ("'/home/me'", "/home/me"),
        ("file:///home/me.", "/home/me"),
        (r'{"a": "/home/a \"b\"/x"}', '/home/a "b"'),
        ("/root" + "/.cache", "/root"),
        ("/home/men /home/me-too", None),
        ("https://example.org/home/me", None),
        ("<root>a/root</root>", None),
        ("a / b", None),
    ],
)
def test_a_folder_is_named_whole(text, place):
    assert named(text, PLACES) == place
