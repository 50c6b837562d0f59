"""The first few of a list, in words."""

import pytest

from lib.listing import first_few


@pytest.mark.parametrize(
    ("items", "options", "text"),
    [
        ([], {}, ""),
        (["a"], {}, "a"),
        (["a", "b", "c"], {}, "a, b, c"),
        (["a", "b", "c", "d"], {}, "a, b, c and 1 more"),
        (list("abcdefg"), {"separator": "; "}, "a; b; c and 4 more"),
        (("a", "b"), {"shown": 1}, "a and 1 more"),
    ],
)
def test_the_first_items_and_how_many_are_left(items, options, text):
    assert first_few(items, **options) == text
