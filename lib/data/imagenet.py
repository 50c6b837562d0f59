"""ImageNet (ILSVRC-2012) from folders of JPEG files, one folder a class, without torchvision.

The images are not downloaded: image-net.org asks everyone to register, for non-commercial research. Expected
are ``train/<wnid>/*.JPEG`` and validation images sorted into ``val/<wnid>/`` (or ``val_pt/<wnid>/``, the
name that PROFIT's authors use). Any folder laid out like that will do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.data.dataset import DataSet, DataUnavailable, data_folder, writable_folder
from lib.data.images import ImageSet
from lib.data.preprocessing import IMAGENET, Preprocessing
from lib.files import file_hash, write_atomically
from lib.listing import first_few, printable

ENDINGS = (".jpeg", ".jpg", ".png")
VALIDATION = ("val", "val_pt")
#: Pictures of a split that are told apart by their content; of more by their size.
FEW = 10_000
#: Pictures that ILSVRC-2012 has in it.
IMAGENET_VALIDATION = 50_000


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Image files and their classes; pixels are read when asked for.

    Attributes
    ----------
    files : tuple of Path
    labels : (N,) int64
        Index of each file's class in `classes`.
    classes : tuple of str
        Folder names in alphabetical order, which for ImageNet's is the order of torchvision's outputs.
    preprocessing : Preprocessing
    """

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    preprocessing: Preprocessing = IMAGENET

    def __len__(self) -> int:
        return len(self.files)

    @classmethod
    def of(cls, folder: Path, preprocessing: Preprocessing = IMAGENET) -> ImageFolder:
        """All images of ``folder/<class>/``. Hidden files and folders, such as systems leave, are none.

        Raises
        ------
        DataUnavailable
            If there are no class folders, a class has no images, or a folder cannot be read.
        """
        classes = [path.name for path in _listed(folder) if path.is_dir()]
        if not classes:
            raise DataUnavailable(f"{folder} has no folders of classes (expected {folder}/<wnid>/*.JPEG)")
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = [path for path in _listed(Path(folder) / name) if path.suffix.lower() in ENDINGS]
            if not found:
                raise DataUnavailable(f"{Path(folder) / name} has no images ({', '.join(ENDINGS)})")
            files += found
            labels += [label] * len(found)
        return cls(tuple(files), torch.tensor(labels), tuple(classes), preprocessing)

    def batches(self, batch_size: int, *, seed: int, workers: int = 8) -> FolderBatches:
        """Training batches; see `FolderBatches`."""
        return FolderBatches(self, batch_size, seed=seed, workers=workers)

    def tensor(self, index: slice) -> Tensor:
        """The centres of some images, in their order: (n, 3, crop, crop) float32, as `ImageSet.tensor`."""
        with ThreadPoolExecutor(8) as pool:
            images = pool.map(lambda file: self.preprocessing.test(open_image(file)), self.files[index])
            return torch.stack(list(images))


class FolderBatches:
    """Shuffled batches of random crops; a batch is a function of seed and step, whatever `workers` is.

    Parameters
    ----------
    source : ImageFolder
    batch_size : int
        At most the number of images; the rest of an epoch that fills no batch is left out.
    seed : int
    workers : int
        Threads that decode (Pillow lets go of Python's lock while it does).
    """

    def __init__(self, source: ImageFolder, batch_size: int, *, seed: int, workers: int = 8) -> None:
        if not 1 <= batch_size <= len(source):
            raise ValueError(f"batch_size must be in 1..{len(source)}, got {batch_size}")
        self.source, self.batch_size, self.seed, self.workers = source, batch_size, seed, workers
        self.steps_per_epoch = len(source) // batch_size

    def batch(self, step: int) -> dict[str, Tensor]:
        """``images`` (B, 3, crop, crop) float32 and ``labels`` (B,) int64 of a step, from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.source))
        index = order[place * self.batch_size : (place + 1) * self.batch_size]
        with ThreadPoolExecutor(self.workers) as pool:
            images = list(pool.map(self._crop, index, range(len(index)), [step] * len(index)))
        return {"images": torch.stack(images), "labels": self.source.labels[torch.from_numpy(index)]}

    def _crop(self, file: int, place: int, step: int) -> Tensor:
        random = np.random.default_rng((self.seed, 1, step, place))
        return self.source.preprocessing.train(open_image(self.source.files[file]), random)


def open_image(path: Path) -> Image.Image:
    """The decoded picture in RGB (ImageNet has a few CMYK and PNG files under the name JPEG).

    Raises
    ------
    DataUnavailable
        If it is no whole image; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for damaged and for huge images
        problem = printable(error)
        raise DataUnavailable(f"{path} is no whole image: put the original there ({problem})") from error


@dataclass(frozen=True)
class ImageFolders:
    """A data set of two folders of class folders, put into the data folder by hand.

    `load` gives ``{"train": ImageFolder, "test": ImageFolder}``. The record of a run has the lists of what
    was found, `files`; ImageNet's pictures are too many to hash, so that there names and sizes have to do.

    Attributes
    ----------
    name, licence, citation, homepage : str
    folder : str
        Inside the data folder.
    preprocessing : Preprocessing
    """

    name: str
    licence: str
    citation: str
    homepage: str
    folder: str
    preprocessing: Preprocessing = IMAGENET
    synthetic: bool = False

    def folders(self, data_dir: str | Path) -> tuple[Path, Path]:
        """The training and the validation folder; `DataUnavailable` if one is not there."""
        root = data_folder(data_dir) / self.folder
        validation = next((root / name for name in VALIDATION if (root / name).is_dir()), root / "val")
        for path in (root / "train", validation):
            if not path.is_dir():
                raise DataUnavailable(
                    f"{self.name} is not downloaded for you ({self.licence}): see {self.homepage} and put "
                    f"it at {path}/<wnid>/*.JPEG"
                )
        return root / "train", validation

    def load(self, data_dir: str | Path) -> dict[str, ImageFolder]:
        """Both splits, with the same classes.

        Raises
        ------
        DataUnavailable
            If a folder is missing or empty, or the two have different classes.
        """
        train, test = (ImageFolder.of(path, self.preprocessing) for path in self.folders(data_dir))
        if different := sorted(set(train.classes) ^ set(test.classes)):
            names = first_few(different)
            raise DataUnavailable(f"{self.name}: {names} are in one of train and validation only")
        return {"train": train, "test": test}

    def identity(self, data_dir: str | Path) -> str:
        """SHA-256 of the list of all images, ``absent`` where a folder is not there; nothing is written."""
        try:
            listed = "\n".join(map(_list, self.load(data_dir).values()))
        except DataUnavailable:
            return "absent"
        return hashlib.sha256(os.fsencode(listed)).hexdigest()

    def files(self, data_dir: str | Path) -> list[Path]:
        """One text file per split, which lists the images found; written beside the folders.

        Where that folder cannot be written, they are in a temporary one until this process ends.
        """
        written = []
        for split, images in self.load(data_dir).items():
            folder = writable_folder(data_folder(data_dir) / self.folder)
            written.append(folder / f"{split}-files.txt")
            write_atomically(written[-1], os.fsencode(_list(images)))
        return written


IMAGENET_2012 = ImageFolders(
    name="ImageNet (ILSVRC-2012)",
    licence="registration, non-commercial research, no redistribution",
    citation="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 115(3), 2015",
    homepage="https://image-net.org/challenges/LSVRC/2012/",
    folder="imagenet",
)


def as_used(
    source: DataSet | ImageFolders, images: Mapping[str, ImageSet | ImageFolder]
) -> DataSet | ImageFolders:
    """A source of pictures under the name of what it holds: not all folders in ImageNet's place are ImageNet.

    Parameters
    ----------
    source
    images
        ``{"train": …, "test": …}``, as loaded from it.

    Raises
    ------
    DataUnavailable
        There is a single class of pictures, so that nothing is to be told apart.
    """
    if len(images["train"].classes) == 1:
        folder = images["train"].files[0].parent
        raise DataUnavailable(f"{folder} is the only class: put a second one beside it, in both splits")
    if not isinstance(source, ImageFolders) or len(images["test"]) == IMAGENET_VALIDATION:
        return source
    name = f"own pictures, {len(images['train'].classes)} classes"
    return replace(source, name=name, licence="their owner's", citation="", homepage="")


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, in the order of the names, without what is hidden."""
    try:
        return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataUnavailable(f"{folder} cannot be read: {error.strerror or error}") from error


def _list(images: ImageFolder) -> str:
    """A line per image: folder, name, and SHA-256, or its number of bytes where there are more than `FEW`."""
    what = file_hash if len(images) <= FEW else lambda file: file.stat().st_size
    return "".join(f"{file.parent.name}/{file.name} {what(file)}\n" for file in images.files)
