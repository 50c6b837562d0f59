"""Widths of codes are whole numbers of bits, and nothing else passes for one."""

import numpy as np
import pytest

from lib.quantization.bits import checked_bits


def test_widths_pass_as_plain_integers():
    assert [checked_bits(bits) for bits in range(1, 9)] == list(range(1, 9))
    assert type(checked_bits(np.int64(3))) is int and type(checked_bits(4.0)) is int
    assert checked_bits(None, optional=True) is None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "bits must be in 1..8, got 0"),
        ((9,), {}, "bits must be in 1..8, got 9"),
        ((2.5,), {}, "bits must be in 1..8, got 2.5"),
        ((True,), {}, "bits must be in 1..8, got True"),
        (("4",), {}, "bits must be in 1..8, got '4'"),
        ((None,), {"name": "bn_bits"}, "bn_bits must be in 1..8, got None"),
        ((1, 2), {"name": "LSQ: bits", "optional": True}, "LSQ: bits must be in 2..8 or None, got 1"),
    ],
)
def test_what_is_no_width_is_refused(arguments, options, message):
    with pytest.raises(ValueError) as caught:
        checked_bits(*arguments, **options)
    assert str(caught.value) == message
