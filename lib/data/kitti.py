"""KITTI's raw recordings as Monodepth2 and FSRE-Depth read them: frames, calibration, depth by laser, splits.

Geiger et al., "Vision meets Robotics: The KITTI Dataset", IJRR 2013. Its terms are CC BY-NC-SA 3.0
(non-commercial); it is not downloaded for you. The conventions of the evaluation are those of Eigen et
al.: the depth of a laser's point is its distance *ahead of the laser*, not of the camera.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.data.dataset import DataUnavailable, UnexpectedFormat
from lib.data.own_photographs import open_photograph
from lib.files import file_hash
from lib.listing import first_few

#: SHA-256 of the split files in the two papers' repositories, and how many lines they have.
SPLITS = {
    "eigen/test_files.txt": ("e226d4ca16e0e6e9695435014347dcf973588531330536fd8a68d298ef091a6b", 697),
    "eigen_zhou/train_files.txt": (
        "00173a231642151c4693274e701ddd4cae7916520a757c7a94eae8e1173f7b0c",
        39_810,
    ),
    "eigen_zhou/val_files.txt": ("64a868b8d2c66c3979a2d74c22ea2e9146850d5b9f5786ed8e5f92201ba1ad04", 4_424),
    "eigen_benchmark/test_files.txt": (
        "d56e5e509e6960a01fb93795f85028ac6e4a82ad40e64b6e968988e4db95b9be",
        652,
    ),
}
CAMERAS = {"l": 2, "r": 3}
#: Cityscapes' label ids to the 19 that are trained; others are none.
TRAIN_IDS = dict(
    zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True)
)


@dataclass(frozen=True)
class Sample:
    """One line of a split file.

    Attributes
    ----------
    drive : str
        Date and drive, ``2011_09_26/2011_09_26_drive_0002_sync``.
    frame : int
    side : {"l", "r"}
        Of the colour camera.
    """

    drive: str
    frame: int
    side: str


def read_split(path: str | Path, *, published: str | None = None) -> list[Sample]:
    """The samples of a split file, wherever it lies.

    Parameters
    ----------
    path
    published : str, optional
        Which of `SPLITS` it should be; its hash is then checked.

    Raises
    ------
    DataUnavailable
        It is not there, or not the published one.
    UnexpectedFormat
        A line is no sample; the message has its number.
    """
    path = Path(path)
    if not path.is_file():
        raise DataUnavailable(f"there is no split file {path}: it is in the authors' repository")
    if published is not None and (found := file_hash(path)) != SPLITS[published][0]:
        raise DataUnavailable(
            f"{path} has sha256 {found[:12]}... instead of {SPLITS[published][0][:12]}... of {published}"
        )
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if len(fields) != 3 or "/" not in fields[0] or not fields[1].isdecimal() or fields[2] not in CAMERAS:
            raise UnexpectedFormat(path, f"line {number}: {line.strip()[:60]!r}")
        samples.append(Sample(fields[0], int(fields[1]), fields[2]))
    if not samples:
        raise UnexpectedFormat(path, "it is empty")
    return samples


@dataclass(frozen=True)
class KittiRaw:
    """A folder of raw recordings.

    Attributes
    ----------
    root : Path
        With a folder for each date; in it calibration files, and a folder for each drive.
    """

    root: Path

    def require(self, samples: list[Sample]) -> None:
        """Refuse to begin where drives are missing.

        Raises
        ------
        DataUnavailable
            Names the first missing drives, and how many samples each has.
        """
        drives = Counter(sample.drive for sample in samples)
        if missing := [drive for drive in drives if not (self.root / drive).is_dir()]:
            listed = first_few([f"{drive} ({drives[drive]} samples)" for drive in missing])
            raise DataUnavailable(
                f"{len(missing)} of {len(drives)} drives of KITTI raw are missing in {self.root}: {listed}"
            )

    def picture_path(self, sample: Sample, offset: int = 0) -> Path:
        """Of a sample, or of its neighbour so many frames later."""
        folder = f"image_0{CAMERAS[sample.side]}/data"
        stem = self.root / sample.drive / folder / f"{sample.frame + offset:010d}"
        jpeg = stem.with_suffix(".jpg")
        return jpeg if jpeg.is_file() else stem.with_suffix(".png")

    def picture(self, sample: Sample, size: tuple[int, int] | None = None, *, offset: int = 0) -> Tensor:
        """A picture, (3, H, W) in 0…1, by Lanczos' filter at a size of height and width.

        Raises
        ------
        DataUnavailable
            It is not there, or no picture; the message names it.
        """
        path = self.picture_path(sample, offset)
        if not path.is_file():
            raise DataUnavailable(f"there is no picture {path}")
        image = open_photograph(path)
        if size is not None:
            image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    def triplet(self, sample: Sample, size: tuple[int, int]) -> Tensor:
        """The pictures before, of and after a sample, (3, 3, H, W); errors as of `picture`."""
        return torch.stack([self.picture(sample, size, offset=offset) for offset in (-1, 0, 1)])

    def laser_depth(self, sample: Sample) -> Tensor:
        """Depths by laser at the camera's own resolution, (H, W) float32 in metres; 0 where there is none.

        Points ahead are projected; rounded coordinates count from 1, as in the MATLAB tools that everybody's
        truth comes from; of points that share a pixel the nearest stays; the depth is the laser's x.

        Raises
        ------
        DataUnavailable, UnexpectedFormat
            A calibration or the laser's file is not there or is none.
        """
        camera = CAMERAS[sample.side]
        date = self.root / sample.drive.split("/")[0]
        cameras = read_calibration(date / "calib_cam_to_cam.txt")
        laser = read_calibration(date / "calib_velo_to_cam.txt")
        sizes = {f"S_rect_0{camera}": 2, "R_rect_00": 9, f"P_rect_0{camera}": 12}
        size, turn, project = (
            _entry(cameras, key, count, date / "calib_cam_to_cam.txt") for key, count in sizes.items()
        )
        r, t = (_entry(laser, key, n, date / "calib_velo_to_cam.txt") for key, n in (("R", 9), ("T", 3)))
        to_camera, rectify = np.eye(4), np.eye(4)
        to_camera[:3, :3], to_camera[:3, 3] = r.reshape(3, 3), t
        rectify[:3, :3] = turn.reshape(3, 3)
        path = self.root / sample.drive / f"velodyne_points/data/{sample.frame:010d}.bin"
        points = _laser_points(path)
        return torch.from_numpy(
            projected(points, project.reshape(3, 4) @ rectify @ to_camera, (int(size[1]), int(size[0])))
        )

    def improved_depth(self, sample: Sample) -> Tensor:
        """Improved ground truth (Uhrig et al., 2017), (H, W) float32 in metres; 0 where there is none.

        16-bit pictures of 1/256 metres in ``<drive>/proj_depth/groundtruth/image_0x``; no crop goes with it.

        Raises
        ------
        DataUnavailable, UnexpectedFormat
            It is not there, or no picture of 16 bits.
        OSError
            It is no picture, or cut off.
        """
        folder = self.root / sample.drive / f"proj_depth/groundtruth/image_0{CAMERAS[sample.side]}"
        path = folder / f"{sample.frame:010d}.png"
        if not path.is_file():
            raise DataUnavailable(f"there is no improved ground truth {path}")
        with Image.open(path) as image:
            if not image.mode.startswith("I"):
                raise UnexpectedFormat(path, f"pictures of depth have 16 bits, this is of mode {image.mode}")
            return torch.from_numpy(np.array(image).astype(np.float32) / 256)


def projected(points: np.ndarray, projection: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth map (H, W) float32 of laser points (N, 4), reflectance last, as of `KittiRaw.laser_depth`."""
    ahead = points[points[:, 0] >= 0]
    homogeneous = np.concatenate([ahead[:, :3], np.ones((len(ahead), 1))], 1)
    seen = homogeneous @ projection.T
    with np.errstate(divide="ignore", invalid="ignore"):
        columns, rows = (np.round(seen[:, axis] / seen[:, 2]) - 1 for axis in (0, 1))
    inside = (columns >= 0) & (rows >= 0) & (columns < size[1]) & (rows < size[0])
    depth = np.full(size, np.inf, np.float32)
    place = rows[inside].astype(int), columns[inside].astype(int)
    np.minimum.at(depth, place, ahead[inside, 0].astype(np.float32))
    return np.where(np.isfinite(depth), depth, 0)


def read_calibration(path: Path) -> dict[str, np.ndarray]:
    """The lines ``key: numbers`` of a calibration file; others, such as dates, are left out.

    Raises
    ------
    DataUnavailable
        It is not there.
    """
    if not path.is_file():
        raise DataUnavailable(f"there is no calibration {path}")
    entries = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, values = line.partition(":")
        try:
            entries[key] = np.array(values.split(), np.float64)
        except ValueError:
            continue
    return entries


def _entry(entries: dict[str, np.ndarray], key: str, count: int, path: Path) -> np.ndarray:
    if key not in entries or entries[key].shape != (count,):
        raise UnexpectedFormat(path, f"expected {count} numbers for {key}")
    return entries[key]


def _laser_points(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataUnavailable(f"there is no laser scan {path}")
    numbers = np.fromfile(path, "<f4")
    if len(numbers) == 0 or len(numbers) % 4 or path.stat().st_size % 4:
        raise UnexpectedFormat(path, "a laser scan is rows of four 32-bit numbers")
    return numbers.reshape(-1, 4)


def read_pseudo_labels(path: Path, size: tuple[int, int]) -> Tensor:
    """Labels of Cityscapes' ids (0 to 33) in a picture, as train ids, (H, W) at a size, by the nearest pixel.

    Raises
    ------
    DataUnavailable
        It is not there.
    UnexpectedFormat
        A pixel has an id that is not trained: the published loss leaves none out.
    OSError
        It is no picture, or cut off.
    """
    if not path.is_file():
        raise DataUnavailable(f"there are no labels {path}")
    with Image.open(path) as image:
        ids = np.array(image.resize((size[1], size[0]), Image.Resampling.NEAREST))
    if ids.ndim != 2 or (strange := sorted(set(np.unique(ids).tolist()) - TRAIN_IDS.keys())):
        reason = "more than one channel" if ids.ndim != 2 else f"ids {first_few([str(k) for k in strange])}"
        raise UnexpectedFormat(path, f"labels are one channel of Cityscapes' trained ids: {reason}")
    table = np.zeros(256, np.int64)
    table[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
    return torch.from_numpy(table[ids])
