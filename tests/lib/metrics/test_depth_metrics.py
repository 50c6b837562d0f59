"""Errors of depth by hand: the dossier's numbers, crops in pixels, caps, medians, means of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.metrics.depth import (
    GARG_CROP,
    METRICS,
    counted,
    cropped,
    depth_errors,
    mean_errors,
    median_ratio,
)

TRUTH = torch.tensor([[2.0, 4.0, 8.0, 10.0, 50.0]]).double()
FOUND = torch.tensor([[2.2, 3.0, 9.0, 10.0, 70.0]]).double()


def test_numbers_by_hand():
    found = depth_errors(FOUND, TRUTH, scale=False)
    expected = (0.175, 1.679, 8.9670507972, 0.2092517215, 0.6, 1.0, 1.0)
    assert [found[name] for name in METRICS] == pytest.approx(expected, abs=5e-7)
    assert found["ratio"] == 1


def test_the_median_is_the_truths():
    found = depth_errors(FOUND, TRUTH)
    assert found["ratio"] == pytest.approx(8 / 9)
    assert found == pytest.approx(depth_errors(FOUND * 8 / 9, TRUTH, scale=False) | {"ratio": 8 / 9})
    assert depth_errors(7 * FOUND, TRUTH)["abs_rel"] == pytest.approx(found["abs_rel"])
    assert float(median_ratio(FOUND, TRUTH, TRUTH < 50)) == pytest.approx(1.0)  # (4 + 8) over (3 + 9)
    values = torch.rand(2, 3, 4).double()
    ours = median_ratio(values[0], values[1], torch.ones(3, 4, dtype=torch.bool))
    assert float(ours) == pytest.approx(np.median(values[1]) / np.median(values[0]))


@pytest.mark.parametrize(
    "shape, rows, columns",
    [
        ((375, 1242), (153, 371), (44, 1197)),
        ((370, 1224), (151, 366), (43, 1180)),
        ((370, 1226), (151, 366), (44, 1181)),
        ((374, 1238), (152, 370), (44, 1193)),
        ((376, 1241), (153, 372), (44, 1196)),
    ],
)
def test_the_crop_in_pixels(shape, rows, columns):
    assert cropped(shape) == (slice(*rows), slice(*columns))
    assert int(counted(torch.ones(shape), crop=GARG_CROP).sum()) == (rows[1] - rows[0]) * (
        columns[1] - columns[0]
    )


def test_caps_leave_truth_out_and_hold_predictions():
    truth = torch.tensor([[0.0, 79.0, 80.0, 9e-4, 10.0]]).double()
    assert counted(truth).tolist() == [[False, True, False, False, True]]
    found = depth_errors(torch.tensor([[1.0, 200.0, 1.0, 1.0, 10.0]]).double(), truth, scale=False)
    assert found["abs_rel"] == pytest.approx((1 / 79 + 0) / 2)


def test_a_region_keeps_the_scale_of_the_picture():
    region = torch.tensor([[False, True, False, False, True]])
    found = depth_errors(FOUND, TRUTH, region=region)
    assert found["ratio"] == pytest.approx(8 / 9)
    expected = (abs(4 - 3 * 8 / 9) / 4 + abs(50 - 70 * 8 / 9) / 50) / 2
    assert found["abs_rel"] == pytest.approx(expected)


def test_factors_are_strictly_below():
    found = depth_errors(torch.tensor([[1.25, 1.0]]).double(), torch.ones(1, 2).double(), scale=False)
    assert (found["delta_1"], found["delta_2"]) == (0.5, 1.0)


def test_means_are_of_pictures():
    """Of roots, and whatever the number of pixels."""
    one = depth_errors(torch.full((1, 1), 2.0), torch.ones(1, 1), scale=False)
    two = depth_errors(torch.ones(8, 8), torch.ones(8, 8), scale=False)
    means = mean_errors([one, two | {"ratio": 3.0}])
    assert (means["rmse"], means["abs_rel"], means["delta_1"]) == (0.5, 0.5, 0.5)
    assert (means["ratio"], means["ratio_spread"]) == (2.0, 0.5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: depth_errors(FOUND, TRUTH[:, :4]), r"must be \(H, W\)"),
        (lambda: depth_errors(FOUND - 3, TRUTH), "finite and above 0"),
        (lambda: depth_errors(FOUND / 0, TRUTH), "finite and above 0"),
        (lambda: depth_errors(FOUND, 0 * TRUTH), "no pixel has a truth in 0.001..80.0"),
        (lambda: depth_errors(FOUND, TRUTH, region=TRUTH < 0), "no pixel of the region"),
        (lambda: mean_errors([]), "no picture"),
    ],
)
def test_other_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
