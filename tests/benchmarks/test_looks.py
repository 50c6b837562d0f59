"""The second look itself."""

import pytest

from tests.benchmarks import conftest


@pytest.fixture
def clock(monkeypatch):
    """What calls take is what they return, and pauses are only counted."""
    paused = []
    monkeypatch.setattr(conftest, "processor_time", lambda function: function())
    monkeypatch.setattr(conftest.time, "sleep", paused.append)
    return paused


@pytest.mark.benchmark
def test_what_is_too_slow_at_every_look_fails(takes, clock):
    with pytest.raises(AssertionError, match="twice: "):
        takes(1.9, lambda: 2.0, lambda: 1.0, what="twice")
    assert clock == list(conftest.PAUSES)


@pytest.mark.benchmark
def test_one_quiet_look_will_do(takes, clock):
    busy = iter([9.0] * 6)
    takes(1.9, lambda: next(busy, 1.5), lambda: 1.0, what="twice", rounds=3)
    assert clock == [0, 2, 4]
