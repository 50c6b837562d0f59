"""FSRE-Depth on KITTI: what arms are trained and tested on, and the evaluation of the authors' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.dataset import data_folder
from lib.data.kitti import KittiRaw, Sample, read_split
from lib.data.kitti_batches import KittiTriplets
from lib.experiments.fsre_depth import NAMES, Errors, depths_of
from lib.metrics.depth import GARG_CROP, depth_errors
from lib.models.depth.fsre_checkpoints import input_size
from lib.models.depth.fsre_depth import FsreDepth
from lib.models.depth.self_supervision import Objective

#: Of the published networks' pictures.
SIZE = (192, 640)
TRAINED, TESTED = "eigen_zhou/train_files.txt", "eigen/test_files.txt"
#: So many training frames tell the median depth.
SURVEYED = 500


@dataclass(frozen=True, eq=False)
class Kitti:
    """A folder of KITTI's raw recordings as a world of `lib.experiments.fsre_depth`.

    Attributes
    ----------
    raw : KittiRaw
    train, test : tuple of Sample
    size : tuple of int
        Height and width of the pictures that networks see.
    """

    raw: KittiRaw
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    size: tuple[int, int] = SIZE

    @classmethod
    def read(cls, folder: str | Path, size: tuple[int, int] = SIZE, *, trained: bool = True) -> Kitti:
        """The recordings in a folder, with the authors' split files in its ``splits``, checked.

        Parameters
        ----------
        trained
            Whether there is a training; else that split and its drives are not needed.

        Raises
        ------
        DataUnavailable
            A split file or drives are missing; the message names them.
        """
        raw = KittiRaw(Path(folder))
        wanted = (TRAINED, TESTED) if trained else (TESTED,)
        splits = {name: read_split(raw.root / "splits" / name, published=name) for name in wanted}
        for samples in splits.values():
            raw.require(samples)
        return cls(raw, tuple(splits.get(TRAINED, ())), tuple(splits[TESTED]), size)

    @cached_property
    def triplets(self) -> KittiTriplets:
        """What is learned from."""
        return KittiTriplets(self.raw, self.train, self.size)

    def batch(self, step: int, batch_size: int, seed: int) -> Mapping[str, Tensor]:
        """As of `KittiTriplets.batch`."""
        return self.triplets.batch(step, batch_size, seed=seed)

    def errors(self, predict: Callable[[Tensor], Tensor]) -> Errors:
        """By metric a number for each test picture, against depths by laser in Garg's crop, up to 80 m.

        The inverse of the depth is brought to the truth's resolution bilinearly, as published.
        """
        return self._errors_of(lambda sample: predict(self.raw.picture(sample, self.size)[None]))

    def floor(self) -> Errors:
        """The same of the training's median depth at each pixel."""
        return self._errors_of(lambda sample: self.median_depth[None, None])

    @cached_property
    def median_depth(self) -> Tensor:
        """Of training frames by laser at each pixel of a grid of an eighth of the size, (h, w).

        Where no laser ever came, the median of the row, or else of the row below.
        """
        grid = self.size[0] // 8, self.size[1] // 8
        places = np.linspace(0, len(self.train) - 1, min(SURVEYED, len(self.train))).astype(int)
        found = []
        for number in places:
            depth = self.raw.laser_depth(self.train[number])
            nearest = F.adaptive_max_pool2d(torch.where(depth > 0, 1 / depth, 0)[None], grid)[0]
            found.append(torch.where(nearest > 0, 1 / nearest, torch.nan))
        median = torch.stack(found).nanmedian(0)[0]
        of_rows = pd.Series(median.nanmedian(1)[0].numpy()).bfill().ffill()
        return torch.where(median.isnan(), torch.tensor(of_rows.to_numpy())[:, None], median)

    def _errors_of(self, depth_of: Callable[[Sample], Tensor]) -> Errors:
        rows = []
        for sample in self.test:
            truth = self.raw.laser_depth(sample)
            full = F.interpolate(1 / depth_of(sample), truth.shape, mode="bilinear", align_corners=False)
            errors = depth_errors(1 / full[0, 0], truth, crop=GARG_CROP)
            rows.append({name: errors[metric] for metric, name in NAMES.items()})
        return {name: column.to_numpy() for name, column in pd.DataFrame(rows).items()}


def published_scores(weights: str | Path, kitti: str | Path) -> dict[str, float]:
    """The seven means of a folder of the authors' weights on Eigen's test, by the names of the ledger.

    Raises
    ------
    FileNotFoundError, ValueError, DataUnavailable
        A file of weights, a split or a drive is missing or another.
    """
    weights = Path(weights)
    model = FsreDepth.from_authors(weights, objective=Objective(segmentation=0, triplet=0))
    world = Kitti.read(kitti, input_size(weights / "encoder.pth") or SIZE, trained=False)
    return {name: float(values.mean()) for name, values in world.errors(depths_of(model)).items()}


def kitti_folder(folder: str, data_dir: str | Path) -> Path:
    """The folder that was named, or ``kitti`` in the data's."""
    return Path(folder) if folder else data_folder(data_dir) / "kitti"
