"""What the two figures of MEANTIME's kernels are drawn from, against the kernels' formulas."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.interactions import InteractionLog
from lib.experiments.meantime_figures import kernel_maps, kernels_figure, maps_figure, newest_events

DAY = 86_400


@pytest.fixture
def log() -> InteractionLog:
    """User 1 has events on one day, user 2 on three days lately, user 3 on three days long ago."""
    stamps = {
        1: [10, 20, 30, 40, 50],
        2: [0, 0, DAY, 2 * DAY, 2 * DAY + 5],
        3: [0, DAY, 2 * DAY, 2 * DAY, 2 * DAY],
    }
    rows = [(user, item, 1.0, stamp) for user, own in stamps.items() for item, stamp in enumerate(own)]
    frame = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    return InteractionLog.from_frame(frame, min_item_count=1)


def test_the_newest_events_of_the_user_with_the_most_days_are_shown(log):
    stamps, days = newest_events(log, max_length=4)
    assert stamps.tolist() == [0, DAY, 2 * DAY, 2 * DAY + 5] and days.tolist() == [0, 1, 2, 2]
    assert newest_events(log, max_length=100)[0].tolist() == [0, 0, DAY, 2 * DAY, 2 * DAY + 5]


def test_maps_show_what_each_kernel_makes_of_a_pair(log):
    stamps, days = newest_events(log, max_length=4)
    maps = kernel_maps(log, stamps, days, max_length=4)
    assert list(maps) == ["Pos (p)", "Day (d)", "Con (c)", "Sin (s)", "Exp (e)", "Log (l)"]
    gap = (stamps[:, None] - stamps[None]).double()
    slow = 10_000 ** (-63 / 64)
    assert torch.allclose(maps["Log (l)"].double(), torch.log1p(gap.abs() * slow), atol=1e-5)
    assert torch.allclose(maps["Exp (e)"].double(), torch.exp(-gap.abs() * slow), atol=1e-5)
    assert torch.allclose(maps["Sin (s)"].double(), torch.cos(gap * 10_000 ** (-62 / 64)), atol=1e-4)
    assert torch.allclose(maps["Con (c)"], torch.ones(4, 4))
    assert ((maps["Pos (p)"] > 0.999) == torch.eye(4, dtype=torch.bool)).all()
    same_day = days[:, None] == days[None]
    assert ((maps["Day (d)"] > 0.999) == same_day).all()
    again = kernel_maps(log, stamps, days, max_length=4)
    assert all(torch.equal(maps[name], again[name]) for name in maps)


def test_the_figures_draw_these_values(log):
    figure = kernels_figure()
    sin, exp, logarithm = figure.axes
    for axis, slowest in (
        (sin, lambda gap: np.sin(gap * 10_000 ** (-62 / 64))),
        (exp, lambda gap: np.exp(-gap * 10_000 ** (-63 / 64))),
        (logarithm, lambda gap: np.log1p(gap * 10_000 ** (-63 / 64))),
    ):
        line = next(line for line in axis.lines if line.get_label() == "slowest")
        gap = line.get_xdata()
        assert (gap[0], gap[-1]) == pytest.approx((1, 365 * DAY))
        assert line.get_ydata() == pytest.approx(slowest(gap), abs=1e-9)
    stamps, days = newest_events(log, max_length=4)
    maps = kernel_maps(log, stamps, days, max_length=4)
    drawn = maps_figure(maps)
    for axis, (name, values) in zip(drawn.axes, maps.items(), strict=True):
        assert axis.get_title() == name and np.array_equal(axis.images[0].get_array(), values)
    assert drawn.axes[0].images[0].get_clim() == (-1, 1) != drawn.axes[5].images[0].get_clim()
    plt.close("all")
