"""Latency of several functions side by side.

On a shared machine the clock frequency, the caches and the neighbours drift within seconds. Timing one
function a hundred times and then the other compares two moments, not two functions. Here each round calls
every function once, so that a drift meets them all, and the comparison is made within rounds.

Which statistic?

* *A is faster than B by a factor*: the median over rounds of their ratio within each round. A disturbance
  that lasts longer than a round cancels, one that hits a single call is an outlier of the median.
* *What the kernel needs* (GFLOP/s, GB/s): the minimum of ``milliseconds``. Disturbances only ever add time.
* *What a user waits*: the median and a high quantile.

The mean is none of these: a single interruption decides it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import pandas as pd
import torch


def paired_latency(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 30,
    warmup: int = 3,
    seconds: float | None = None,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> pd.DataFrame:
    """Time functions in interleaved rounds. The order within a round rotates, so that none is always first.

    Parameters
    ----------
    functions
        Name to function without arguments. On a graphics processor it must wait for its result.
    repeats
        Rounds, at least 1.
    warmup
        Rounds before these that are not recorded.
    seconds
        No new round starts once this much time has passed since the first call, warm-up included; one round
        is always recorded. ``None``: no limit.
    threads
        Of torch, within this call. More than one measures the scheduler too unless the machine is idle.
    clock
        Seconds, never going back.

    Returns
    -------
    DataFrame with ``function``, ``round`` (from 0) and ``milliseconds``, in the order of measurement.

    Raises
    ------
    ValueError
        If there is no function, ``repeats`` or ``threads`` is below 1, ``warmup`` below 0 or ``seconds`` not
        positive.
    """
    if not functions:
        raise ValueError("give at least one function to time")
    if repeats < 1 or threads < 1:
        raise ValueError(f"repeats and threads must be at least 1, got {repeats} and {threads}")
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, got {warmup}")
    if seconds is not None and seconds <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    names = list(functions)
    rows = []
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        first = clock()
        for turn in range(-warmup, repeats):
            if seconds is not None and turn != 0 and clock() - first >= seconds:
                if turn > 0:
                    break
                continue  # skip what is left of the warm-up
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                function = functions[name]
                start = clock()
                function()
                elapsed = clock() - start
                if turn >= 0:
                    rows.append((name, turn, 1e3 * elapsed))
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()
    return pd.DataFrame(rows, columns=["function", "round", "milliseconds"])
