"""Benchmarks run on one thread, and a machine with neighbours gets more than one look."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

PAUSES = 0, 2, 4, 8, 16  # seconds before each look: neighbours that come and go are gone at one of them


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def processor_time(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


@pytest.fixture
def takes(record_property) -> Callable[..., None]:
    """``takes(0.5, ours, theirs)``: what calling `ours` takes is at most half of what calling `theirs` takes.

    Processor time, in rounds of one call of each, so that a neighbour slows down both; of its ratios
    the median. It is too much only if it was at every look.
    """

    def takes(limit: float, ours: Callable, theirs: Callable, *, what: str, rounds: int = 5) -> None:
        ratios = []
        for pause in PAUSES:
            time.sleep(pause)
            pairs = np.array([[processor_time(ours), processor_time(theirs)] for _ in range(rounds)])
            ratios.append(float(np.median(pairs[:, 0] / pairs[:, 1])))
            if ratios[-1] <= limit:
                break
        record_property(what, ratios)
        milliseconds = 1e3 * np.median(pairs, axis=0)
        print(f"\n{what}: {milliseconds[0]:.3g} ms against {milliseconds[1]:.3g} ms, {ratios[-1]:.3g}")
        assert min(ratios) <= limit, f"{what}: {ratios}"

    return takes
