"""Widths of codes: one check for everything that is told a number of bits."""

from __future__ import annotations

#: Widest code: a byte.
MOST = 8


def checked_bits(bits: object, least: int = 1, *, name: str = "bits", optional: bool = False) -> int | None:
    """A width of a code, if it is one.

    Parameters
    ----------
    bits
        What somebody asked for.
    least
        The narrowest width that makes sense; the widest is 8.
    name
        What the message calls it: ``"bn_bits"``, ``"LSQ: bits"``.
    optional
        Whether None (full precision) is an answer, too.

    Returns
    -------
    int, or None

    Raises
    ------
    ValueError
        Anything but a whole number in ``least``..8, truth values included.
    """
    if optional and bits is None:
        return None
    if isinstance(bits, bool) or bits not in range(least, MOST + 1):
        alternative = " or None" if optional else ""
        raise ValueError(f"{name} must be in {least}..{MOST}{alternative}, got {bits!r}")
    return int(bits)
