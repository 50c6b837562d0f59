"""The first few of a list, and how many there are, in words."""

import pytest

from lib.listing import first_few, one_line, plural


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


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "bit", "1 bit"),
        (2, "bit", "2 bits"),
        (0, "seed", "0 seeds"),
        (5, "block of rounds", "5 blocks of rounds"),
        (1, "block of rounds", "1 block of rounds"),
        (3, "deep network", "3 deep networks"),
    ],
)
def test_one_is_singular_and_the_plural_is_that_of_the_head(count, noun, text):
    assert plural(count, noun) == text


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be\nCompile with", "CUDA error: out of memory"),
        ("\n \n  later\nlast", "later"),
        ("", ""),
        (ValueError("a\tb  c"), "a b c"),
        ("\x1b[31;1mred\x1b[0m \x1b]0;a title\x07text \x1b[2K\x1bMup", "red text up"),
        ("a\u202eb\x00c\udcff", "a b c"),
        ("x" * 499, "x" * 499),
        ("x" * 500, "x" * 197 + " … " + "x" * 100),
        ("x" * 2_000_000 + " put it there", "x" * 197 + " … " + "x" * 87 + " put it there"),
    ],
)
def test_an_error_in_one_line(said, line):
    assert one_line(said) == line
