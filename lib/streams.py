"""Independent random streams of one experiment, kept apart by name."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *names: str | int) -> int:
    """Seed of the random stream that an experiment uses for one purpose.

    Parameters
    ----------
    seed : int
        The experiment's own: each replicate has another.
    names : str or int
        What the stream is for, such as ``"fine-tuning", 4``. Other names give an unrelated stream.

    Returns
    -------
    int
        In 0..2**32 - 1, which NumPy, torch and Fabric take; the same on every machine.
    """
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:4], "big")
