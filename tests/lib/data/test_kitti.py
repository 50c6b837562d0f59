"""KITTI's raw layout on made-up frames in the real formats; the conventions of its truth; clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.dataset import DataUnavailable, UnexpectedFormat
from lib.data.kitti import SPLITS, KittiRaw, Sample, projected, read_pseudo_labels, read_split

DATE, DRIVE = "2011_09_26", "2011_09_26/2011_09_26_drive_0002_sync"
SAMPLE = Sample(DRIVE, 69, "l")
ROWS, COLUMNS = 12, 40
#: Forward, left, up of the laser to right, down, ahead of the camera, which is 0.3 m before it.
LASER_TO_CAMERA = "0 -1 0 0 0 -1 1 0 0"
POINTS = np.array(
    [
        [10.0, 0.0, 0.0, 0.5],  # ahead
        [8.0, 0.0, 0.0, 0.5],  # the same pixel, nearer
        [10.0, -2.0, 0.5, 0.5],  # to the right and up
        [-5.0, 0.0, 0.0, 0.5],  # behind
        [10.0, 50.0, 0.0, 0.5],  # beside the picture
    ],
    np.float32,
)


@pytest.fixture
def raw(tmp_path) -> KittiRaw:
    root = tmp_path / "KITTI"
    date, drive = root / DATE, root / DRIVE
    for side in (2, 3):
        (drive / f"image_0{side}/data").mkdir(parents=True)
        (drive / f"proj_depth/groundtruth/image_0{side}").mkdir(parents=True)
    (drive / "velodyne_points/data").mkdir(parents=True)
    for frame in (68, 69, 70):
        image = Image.new("RGB", (COLUMNS, ROWS), (frame, 2 * frame, 255))
        image.save(drive / f"image_02/data/{frame:010d}.png")
    POINTS.tofile(drive / "velodyne_points/data/0000000069.bin")
    truth = np.zeros((ROWS, COLUMNS), np.uint16)
    truth[3, 5] = 2560
    Image.fromarray(truth).save(drive / "proj_depth/groundtruth/image_02/0000000069.png")
    lines = [
        "calib_time: 09-Jan-2012 13:57:47",
        "corner_dist: 9.950000e-02",
        f"S_rect_02: {COLUMNS:e} {ROWS:e}",
        "R_rect_00: 1 0 0 0 1 0 0 0 1",
        "P_rect_02: 20 0 20 0 0 20 6 0 0 0 1 0",
    ]
    (date / "calib_cam_to_cam.txt").write_text("\n".join(lines))
    (date / "calib_velo_to_cam.txt").write_text(f"calib_time: x\nR: {LASER_TO_CAMERA}\nT: 0 0 -0.3\n")
    return KittiRaw(root)


def test_truth_by_laser(raw):
    """u = 20 + 20·2/9.7 = 24.1, v = 6 − 20·0.5/9.7 = 5.0; counted from 1; the depth is the laser's x."""
    depth = raw.laser_depth(SAMPLE)
    assert depth.shape == (ROWS, COLUMNS)
    found = {(r, c): float(depth[r, c]) for r, c in depth.nonzero().tolist()}
    assert found == {(5, 19): 8.0, (4, 23): 10.0}


def test_points_are_kept_by_place():
    eye = np.concatenate([np.eye(3), np.zeros((3, 1))], 1)[[1, 2, 0]]  # u = y/x, v = z/x
    points = np.array([[1.0, 1, 1, 0], [1, 4, 3, 0], [1, 5, 3, 0], [2, 2, 2, 0]], np.float32)
    depth = projected(points, eye, (3, 4))
    assert {tuple(at): depth[tuple(at)] for at in np.argwhere(depth)} == {(0, 0): 1.0, (2, 3): 1.0}


def test_improved_truth(raw):
    depth = raw.improved_depth(SAMPLE)
    assert depth.nonzero().tolist() == [[3, 5]] and float(depth[3, 5]) == 10.0


def test_pictures_and_neighbours(raw):
    triplet = raw.triplet(SAMPLE, (6, 20))
    assert triplet.shape == (3, 3, 6, 20)
    assert (255 * triplet[:, 0, 0, 0]).round().tolist() == [68, 69, 70]
    assert raw.picture(SAMPLE).shape == (3, ROWS, COLUMNS)
    assert "image_03" in str(raw.picture_path(Sample(DRIVE, 1, "r")))


def test_split_files(tmp_path):
    path = tmp_path / "test_files.txt"
    path.write_text(f"{DRIVE} 0000000069 l\n{DRIVE} 54 r\n")
    assert read_split(path) == [SAMPLE, Sample(DRIVE, 54, "r")]
    with pytest.raises(DataUnavailable, match=r"instead of e226d4ca16e0\.\.\. of eigen/test_files.txt"):
        read_split(path, published="eigen/test_files.txt")
    for text, message in (
        (f"{DRIVE} 1 l\n{DRIVE} 2 x\n", "line 2"),
        ("", "it is empty"),
        ("a 1 l", "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(UnexpectedFormat, match=message):
            read_split(path)
    with pytest.raises(DataUnavailable, match="no split file"):
        read_split(tmp_path / "none.txt")
    assert sum(lines for _, lines in SPLITS.values()) == 697 + 39_810 + 4_424 + 652


def test_missing_drives_are_named(raw):
    raw.require([SAMPLE])
    other = "2011_09_28/2011_09_28_drive_0002_sync"
    with pytest.raises(DataUnavailable, match=f"1 of 2 drives .* {other} \\(2 samples\\)"):
        raw.require([SAMPLE, Sample(other, 1, "l"), Sample(other, 2, "l")])


def test_what_is_missing_or_damaged_is_named(raw):
    drive = raw.root / DRIVE
    for call, message in (
        (lambda: raw.picture(SAMPLE, offset=5), "no picture .*0000000074.png"),
        (lambda: raw.improved_depth(Sample(DRIVE, 68, "l")), "no improved ground truth .*0000000068.png"),
        (lambda: raw.laser_depth(Sample(DRIVE, 68, "l")), "no laser scan .*0000000068.bin"),
        (lambda: raw.laser_depth(Sample(DRIVE, 69, "r")), "expected 2 numbers for S_rect_03"),
    ):
        with pytest.raises(DataUnavailable, match=message):
            call()
    (drive / "velodyne_points/data/0000000069.bin").write_bytes(b"12345")
    with pytest.raises(UnexpectedFormat, match="rows of four"):
        raw.laser_depth(SAMPLE)
    (raw.root / DATE / "calib_velo_to_cam.txt").unlink()
    with pytest.raises(DataUnavailable, match="no calibration .*calib_velo_to_cam.txt"):
        raw.laser_depth(SAMPLE)
    Image.new("L", (4, 4)).save(drive / "proj_depth/groundtruth/image_02/0000000069.png")
    with pytest.raises(UnexpectedFormat, match="have 16 bits"):
        raw.improved_depth(SAMPLE)


def test_pseudo_labels(tmp_path):
    path = tmp_path / "0000000069.png"
    Image.fromarray(np.array([[7, 8, 11], [33, 26, 23]], np.uint8)).save(path)
    assert read_pseudo_labels(path, (2, 3)).tolist() == [[0, 1, 2], [18, 13, 10]]
    assert read_pseudo_labels(path, (4, 6)).dtype == torch.int64
    Image.fromarray(np.array([[7, 0]], np.uint8)).save(path)
    with pytest.raises(UnexpectedFormat, match="ids 0"):
        read_pseudo_labels(path, (1, 2))
    with pytest.raises(DataUnavailable, match="no labels"):
        read_pseudo_labels(tmp_path / "none.png", (1, 2))
