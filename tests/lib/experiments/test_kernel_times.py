"""Timing apart: limits are kept and verified, a failed process is loud, blocks are replicates."""

import pandas as pd
import pytest

from lib.experiments import facebook_inference_kernels as kernels
from lib.experiments import kernel_times
from lib.experiments.kernel_times import (
    LEVELS,
    block_ratios,
    check_level,
    facts_table,
    levels,
    offered,
    run_apart,
    timed_rounds,
)


def test_levels_are_kept():
    """At each level below the widest, int8 pairs are cut; a process that keeps no limit says so."""
    assert levels()[-1] == "native"
    answers = {}
    for level in levels():
        asked = {"shapes": [[1, 16, 16]], "rounds": 2, "at_least_ms": 0.01}
        answers[level] = answer = kernels.measure({"linear": asked}, level=level)
        assert answer["level"] == level and answer["facts"]["processor"]
        pairs = set(answer["facts"]["pairs"].values())
        assert pairs == {"cut"} if level != "native" else pairs <= {"cut", "exact"}
        rows = answer["linear"]
        assert set(rows["function"]) == set(kernels.linear_kernels(1, 16, 16))
        assert (rows["milliseconds"] > 0).all()
        assert (rows.groupby("function")["round"].nunique() == 2).all()
    table = facts_table(answers)
    assert list(table.index) == levels() and list(table) == ["processor", *answer["facts"]["pairs"]]


@pytest.mark.parametrize(
    ("level", "torch_level", "pairs", "kept"),
    [
        ("AVX2", "AVX2", "cut", True),
        ("AVX2", "AVX512", "cut", False),
        ("AVX2", "AVX2", "exact", False),
        ("AVX-512", "AVX512", "neither", False),
        ("native", "AVX512", "exact", True),
    ],
)
def test_a_limit_that_was_not_kept_is_an_error(level, torch_level, pairs, kept):
    seen = {"torch": torch_level, "pairs": {"fbgemm": "cut", "onednn": pairs}}
    if kept:
        check_level(level, seen)
    else:
        with pytest.raises(RuntimeError, match="was not kept"):
            check_level(level, seen)


@pytest.mark.parametrize(
    ("here", "asked", "timed"),
    [
        (["AVX2", "AVX-512", "native"], ["native", "AVX2"], ["AVX2", "native"]),
        (["AVX2", "native"], ["AVX2", "AVX-512"], ["AVX2"]),
        (["native"], ["AVX2"], ["native"]),
        (["AVX2", "native"], [], ["native"]),
    ],
)
def test_levels_that_the_processor_has_are_timed(monkeypatch, here, asked, timed):
    monkeypatch.setattr(kernel_times, "levels", lambda: here)
    assert offered(asked) == timed


def test_a_misspelt_level_is_refused():
    for wrong in ("avx2", "AVX512", ""):
        with pytest.raises(ValueError, match=f"levels must be of AVX2, AVX-512, native, got '{wrong}'"):
            offered(["AVX2", wrong])
    assert list(LEVELS) == ["AVX2", "AVX-512", "native"]


def test_a_short_call_is_repeated_and_a_long_one_is_not(monkeypatch):
    now = 0.0

    def lasting(milliseconds):
        def call():
            nonlocal now
            now += milliseconds / 1e3

        return call

    monkeypatch.setattr(kernel_times.time, "thread_time", lambda: now)
    short, long = lasting(0.1), lasting(7.0)
    calls = {"short": 0, "long": 0}

    def counted(name, function):
        def call():
            calls[name] += 1
            function()

        return call

    table = timed_rounds({"short": counted("short", short), "long": counted("long", long)}, 4, 1.0)
    found = table.groupby("function")["milliseconds"].mean()
    assert found["short"] == pytest.approx(0.1) and found["long"] == pytest.approx(7)
    assert calls == {"short": 2 + 5 * 10, "long": 2 + 5}  # two to find out, four rounds and one to warm up


def test_a_failed_process_is_loud():
    with pytest.raises(
        RuntimeError, match=r"timing of linear at level native failed: .*must be positive, got 0"
    ):
        kernels.measure({"linear": {"shapes": [[0, 1, 1]]}})


def test_a_hung_process_is_ended(monkeypatch):
    monkeypatch.setattr(kernel_times, "SECONDS", 0.05)
    with pytest.raises(RuntimeError, match="more than"):
        kernels.measure({"linear": {"shapes": [[1, 1, 1]]}})


def test_blocks_are_replicates():
    times = {"slow": [4, 4, 8, 8, 2, 2], "fast": [2, 2, 2, 2, 1, 1]}
    table = pd.DataFrame(
        [{"function": f, "round": i, "milliseconds": t} for f, ts in times.items() for i, t in enumerate(ts)]
    )
    ratios = block_ratios(table, "slow", 3)
    assert ratios["fast"].tolist() == [2, 4, 2] and list(ratios.columns) == ["fast"]
    for call, message in [
        (lambda: block_ratios(table, "none", 3), "was not timed"),
        (lambda: block_ratios(table, "slow", 7), "6 rounds"),
        (lambda: run_apart("nobody", {}, level="MMX"), "level must be one of .*, got 'MMX'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
