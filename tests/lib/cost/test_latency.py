"""Interleaved timing, on clocks that we drive."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from lib.cost.latency import paired_latency


class World:
    """A clock, and functions that take a stated time on a machine whose speed drifts."""

    def __init__(self, drift: float = 0.0):
        self.now, self.calls, self.drift = 0.0, [], drift

    def clock(self) -> float:
        return self.now

    def function(self, name: str, seconds: float):
        def call():
            self.calls.append(name)
            self.now += seconds * (1 + self.drift * self.now)

        return call


def test_rounds_interleave_and_rotate():
    world = World()
    functions = {name: world.function(name, seconds) for name, seconds in (("a", 0.001), ("b", 0.002))}
    table = paired_latency(functions, repeats=3, warmup=1, clock=world.clock)
    assert "".join(world.calls) == "ba" + "ab" + "ba" + "ab"
    assert table["round"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table.groupby("function")["milliseconds"].agg(list)["a"] == pytest.approx([1, 1, 1])
    assert table.groupby("function")["milliseconds"].agg(list)["b"] == pytest.approx([2, 2, 2])


def test_a_drift_cancels_in_pairs_and_not_in_blocks():
    """The machine slows down by half a percent per millisecond; b always needs twice the time of a."""
    world = World(drift=5.0)
    functions = {"a": world.function("a", 0.001), "b": world.function("b", 0.002)}
    table = paired_latency(functions, repeats=100, warmup=0, clock=world.clock)
    a, b = (table.loc[table["function"] == name, "milliseconds"].to_numpy() for name in "ab")
    assert np.median(b / a) == pytest.approx(2, rel=0.02)
    blocks = World(drift=5.0)
    apart = [
        paired_latency({name: blocks.function(name, s)}, repeats=100, warmup=0, clock=blocks.clock)
        for name, s in (("a", 0.001), ("b", 0.002))
    ]
    medians = [table["milliseconds"].median() for table in apart]
    assert medians[1] / medians[0] > 2.5


def test_time_limit():
    world = World()
    table = paired_latency(
        {"a": world.function("a", 1.0)}, repeats=100, warmup=2, seconds=5, clock=world.clock
    )
    assert table["round"].tolist() == [0, 1, 2]  # two warm-up calls, then until five seconds have passed
    world = World()
    table = paired_latency(
        {"a": world.function("a", 9.0)}, repeats=100, warmup=5, seconds=5, clock=world.clock
    )
    assert len(world.calls) == 2 and table["round"].tolist() == [0]


def test_threads_and_garbage_collection_are_put_back_even_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def fails():
        seen.append((torch.get_num_threads(), gc.isenabled()))
        raise OSError("no")

    with pytest.raises(OSError):
        paired_latency({"a": fails}, threads=2)
    assert seen == [(2, False)]
    assert torch.get_num_threads() == before and gc.isenabled()


@pytest.mark.parametrize(
    ("functions", "options", "message"),
    [
        ({}, {}, "at least one function"),
        ({"a": int}, {"repeats": 0}, "at least 1, got 0"),
        ({"a": int}, {"threads": 0}, "at least 1"),
        ({"a": int}, {"warmup": -1}, "warmup must not be negative"),
        ({"a": int}, {"seconds": 0}, "seconds must be positive"),
    ],
)
def test_bad_input_is_refused(functions, options, message):
    with pytest.raises(ValueError, match=message):
        paired_latency(functions, **options)
