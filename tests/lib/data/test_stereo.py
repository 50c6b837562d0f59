"""Rectified pairs: the motorcycle's truth draws one picture from the other; rooms in their real layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.dataset import UnexpectedFormat
from lib.data.stereo import MOTORCYCLE, StereoPair, read_rooms
from lib.models.depth.photometric import PhotometricError
from lib.models.depth.view_synthesis import sampling_grid, warped


def drawn_left(pair: StereoPair, depth):
    grid = sampling_grid(
        depth[None, None],
        pair.motion[None],
        pair.intrinsics[None],
        source_intrinsics=pair.right_intrinsics[None],
    )
    return warped(pair.right[None], grid)


def test_the_motorcycles_truth_explains_its_pictures():
    pair = MOTORCYCLE.load("data")
    assert pair.left.shape == pair.right.shape == (3, 500, 741)
    known = pair.disparity > 0
    assert float(known.float().mean()) == pytest.approx(0.9265, abs=1e-3)
    assert float(pair.depth[known].min()) > 2 and float(pair.depth.max()) < 6
    right = drawn_left(pair, torch.where(known, pair.depth, 3.0))[0]
    errors = {"true": (right - pair.left).abs().mean(0)[known].mean()}
    errors["none"] = (pair.right - pair.left).abs().mean(0)[known].mean()
    nearer = drawn_left(pair, 0.9 * torch.where(known, pair.depth, 3.0))[0]
    errors["nearer"] = (nearer - pair.left).abs().mean(0)[known].mean()
    levels = {name: 255 * float(value) for name, value in errors.items()}
    assert levels["true"] < 9 < 2 * levels["true"] < min(levels["none"], levels["nearer"])
    error = PhotometricError(pair.left[None])
    assert float(error(right[None]).mean()) < 0.5 * float(error(pair.right[None]).mean())


def rooms(folder, **change):
    held = {"fx": 451.0, "cx0": 299.0, "cx1": 299.0, "cy": 255.2, "baseline_meters": 0.075} | change
    calibration = folder / "stereodemo_calibration.json"
    calibration.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))
    paths = [folder / f"toy_{side}.png" for side in ("left", "right")]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((48, 64), 100 + 50 * number, np.uint8)).save(path)
    return calibration, *paths


def test_rooms(tmp_path):
    pair = read_rooms(*rooms(tmp_path))["toy"]
    assert pair.left.shape == (3, 48, 64)
    assert float(pair.left.mean()) == pytest.approx(100 / 255)
    assert float(pair.right.mean()) == pytest.approx(150 / 255)
    assert not pair.depth.any()
    torch.testing.assert_close(pair.motion[:3, 3], torch.tensor([-0.075, 0, 0]))


def test_depth_by_the_formula():
    k = torch.tensor([[100.0, 0, 5], [0, 100, 5], [0, 0, 1]])
    other = k + torch.tensor([[0, 0, 3.0], [0, 0, 0], [0, 0, 0]])
    picture = torch.zeros(3, 1, 2)
    pair = StereoPair(picture, picture, k, other, 0.5, torch.tensor([[7.0, 0.0]]))
    assert pair.depth.tolist() == [[5.0, 0.0]]
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        StereoPair(picture, picture, k, other, 0, pair.disparity)


def test_what_is_no_pair_is_refused(tmp_path):
    calibration, left, _ = rooms(tmp_path)
    with pytest.raises(UnexpectedFormat, match="without another of their pair"):
        read_rooms(calibration, left)
    with pytest.raises(UnexpectedFormat, match="no number for 'fx'"):
        read_rooms(*rooms(tmp_path, fx=None))
    with pytest.raises(ValueError, match="baseline and focal lengths"):
        read_rooms(*rooms(tmp_path, baseline_meters=0))
