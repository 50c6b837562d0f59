"""What skip connections cost in memory traffic: bits moved per value of a residual block's output.

A block's output is written once and read twice, by the next block's branch and by its shortcut. Not counted:
weights, what stays in a cache, and the multiplications, which a wider shortcut does not change. The model is
ours; that of Park et al., *Precision Highway for Ultra Low-Precision Quantization*, 2018, could not be read.
"""

from __future__ import annotations


def skip_traffic(bits: int, skip_bits: int | None = None, *, store_both: bool = True) -> int:
    """Bits of memory traffic per value of a block's output: one write and two reads.

    Parameters
    ----------
    bits : int
        b, of the branch's input.
    skip_bits : int, optional
        H, of the precision highway on the shortcut. None: conventional, one copy for both.
    store_both : bool
        Two copies, one of each width; otherwise one copy in `skip_bits`, from which the branch's input is
        quantised each time.

    Returns
    -------
    int
        3 b, 2 b + 2 H or 3 H.

    Raises
    ------
    ValueError
        If a number of bits is not positive.
    """
    if bits < 1 or (skip_bits is not None and skip_bits < 1):
        raise ValueError(f"bits must be positive, got {bits} and {skip_bits}")
    if skip_bits is None:
        return 3 * bits
    return 2 * bits + 2 * skip_bits if store_both else 3 * skip_bits
