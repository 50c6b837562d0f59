"""Batches of a Cloze training against building them user by user."""

import numpy as np
import pytest
import torch

from lib.data.sequences import ClozeTraining
from tests.lib.data.test_sequences import make_log, padded


@pytest.mark.benchmark
def test_batches_cost_less_than_a_loop_over_events(takes):
    """64 windows of 30 events: at least 5 times as fast."""
    log = make_log([200] * 100, num_items=500)
    training = ClozeTraining(log, max_length=30, stride=10, batch_size=64, seed=0)

    def by_loop(step):
        rows = []
        for user, end in zip(*training.windows.at(step), strict=True):
            where = log.events(user)
            rows.append([padded(column[where][:end], 30) for column in (log.item, log.timestamp, log.day)])
        return torch.tensor(np.array(rows))

    steps = range(20)
    takes(
        0.2,
        lambda: [training.batch(step) for step in steps],
        lambda: [by_loop(step) for step in steps],
        what="20 batches of 64 windows of 30 events",
    )
