"""The paper scale of FSRE-Depth, dry: published sizes on a folder in KITTI's layout, the authors' files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.chapter import per_unit
from lib.data.dataset import DataUnavailable
from lib.experiments import fsre_depth_kitti
from lib.experiments.fsre_depth import FLOOR, FSRE, MONODEPTH2, NAMES, Settings, by_metric, depths_of, train
from lib.experiments.fsre_depth_kitti import Kitti, kitti_folder, published_scores
from lib.ledger.evidence import own_part
from lib.ledger.schema import load_ledger
from lib.ledger.verdicts import judge
from lib.runs.request import resolve
from tests.lib.models.depth.test_fsre_checkpoints import filled, narrow, published_shapes, save

DATE, DRIVE = "2011_09_26", "2011_09_26/2011_09_26_drive_0002_sync"
ROWS, COLUMNS = 188, 621


@pytest.fixture
def kitti(tmp_path) -> Path:
    """Two frames to train on, two to test on, of half the size of KITTI's, and a laser that sees a road."""
    root, draw = tmp_path / "KITTI", np.random.default_rng(0)
    for folder in ("image_02/data", "velodyne_points/data"):
        (root / DRIVE / folder).mkdir(parents=True)
    (root / "segmentation" / DRIVE / "image_02").mkdir(parents=True)
    for frame in range(5):
        name = f"{frame:010d}"
        pixels = draw.integers(0, 255, (ROWS, COLUMNS, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / DRIVE / "image_02/data" / f"{name}.png")
        ids = np.where(np.arange(COLUMNS) < 300, 7, 26).astype(np.uint8)
        Image.fromarray(np.tile(ids, (ROWS, 1))).save(
            root / "segmentation" / DRIVE / "image_02" / f"{name}.png"
        )
        ahead, left = np.meshgrid(np.linspace(5, 60, 60), np.linspace(-8, 8, 60))
        points = np.stack([ahead, left, np.full_like(ahead, -1.6), np.zeros_like(ahead)], -1)
        points.reshape(-1, 4).astype("<f4").tofile(root / DRIVE / "velodyne_points/data" / f"{name}.bin")
    lines = [f"S_rect_02: {COLUMNS:e} {ROWS:e}", "R_rect_00: 1 0 0 0 1 0 0 0 1"]
    lines.append("P_rect_02: 360 0 310 0 0 360 86 0 0 0 1 0")
    (root / DATE / "calib_cam_to_cam.txt").write_text("\n".join(lines))
    (root / DATE / "calib_velo_to_cam.txt").write_text("R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n")
    for name, frames in (("eigen_zhou/train_files.txt", (1, 2)), ("eigen/test_files.txt", (3, 4))):
        file = root / "splits" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{DRIVE} {frame} l\n" for frame in frames))
    return root


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """The split files here are not the published ones."""
    read = fsre_depth_kitti.read_split
    monkeypatch.setattr(fsre_depth_kitti, "read_split", lambda path, published: read(path))


def test_a_step_of_the_published_networks_and_a_verdict(kitti, unchecked):
    asked = resolve("fsre_depth", "paper").parameters
    names = ("encoder", "channels", "learning_rate", "schedule", "motion", "smoothness", "nearest")
    settings = Settings(
        **{name: asked[name] for name in names},
        scales=tuple(range(asked["scales"])),
        batch_size=1,
        steps=1,
        evaluations=1,
    )
    world = Kitti.read(kitti, (asked["height"], asked["width"]))
    scores = {FLOOR: world.floor()}
    for arm in (MONODEPTH2, FSRE):
        model, _ = train(world, arm, 0, settings)
        scores[arm] = world.errors(depths_of(model))
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weights == 38_774_029 - 2 * 513_000
    assert all(len(values) == 2 and np.isfinite(values).all() for values in scores[FSRE].values())
    handed, rule = by_metric({0: scores}), load_ledger("fsre_depth")["C5"]
    measured = own_part(rule, per_unit.means(handed))
    verdict = judge(rule, measured, "paper", None, per_unit.spreads(rule, handed))
    assert verdict.verdict in ("inconclusive", "not tested")


def test_the_floor_is_the_lasers_median(kitti, unchecked):
    """The road is the same in every frame: the floor is right wherever a laser came."""
    world = Kitti.read(kitti)
    median = world.median_depth
    assert median.shape == (24, 80) and median.isfinite().all() and float(median.min()) > 4
    assert world.floor()["AbsRel"].max() < 0.15


def test_the_authors_files_are_evaluated_at_the_size_that_they_say(kitti, unchecked, tmp_path):
    folder = tmp_path / "weights"
    shapes = {name: narrow(each) for name, each in published_shapes().items()}
    states = {name: filled(each, number) for number, (name, each) in enumerate(shapes.items())}
    save(folder, states, "encoder.pth", "pose_encoder.pth", "pose.pth", "decoder.pth")
    found = published_scores(folder, kitti)
    assert list(found) == list(NAMES.values()) and all(np.isfinite(list(found.values())))
    assert {number.name for number in load_ledger("fsre_depth")["C7"].paper} == set(found)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*encoder\.pth"):
        published_scores(tmp_path, kitti)


def test_other_splits_and_missing_recordings_are_refused(kitti, tmp_path):
    with pytest.raises(DataUnavailable, match=r"sha256 .* of eigen_zhou/train_files\.txt"):
        Kitti.read(kitti)
    with pytest.raises(DataUnavailable, match=r"no split file .*eigen/test_files\.txt"):
        Kitti.read(tmp_path / "nowhere", trained=False)
    assert kitti_folder("", tmp_path) == tmp_path / "kitti" and kitti_folder("a", tmp_path) == Path("a")
