"""Streams are functions of seed and names, and differ in both."""

from itertools import product

from lib.streams import stream_seed


def test_same_names_same_stream_and_nothing_else():
    asked = list(product(range(50), [(), ("training",), ("training", 1), ("training", "1"), ("test",)]))
    seeds = {stream_seed(seed, *names) for seed, names in asked}
    assert len(seeds) == len(asked)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert stream_seed(3, "training", 4) == stream_seed(3, "training", 4) == 4280367457
