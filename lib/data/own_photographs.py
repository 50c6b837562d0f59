"""Somebody's own photographs, for networks trained on ImageNet: a folder of pictures, labelled or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lib.data.dataset import DataUnavailable
from lib.data.imagenet import ENDINGS, ImageFolder
from lib.data.imagenet_classes import WORDNET_IDS
from lib.data.preprocessing import Preprocessing

#: A longer picture would become a strip of millions of pixels.
LONGEST = 50


def open_photograph(path: Path) -> Image.Image:
    """The picture in RGB, as people see it: turned as its camera says, on white where it is transparent.

    Raises
    ------
    DataUnavailable
        It is no whole image, or more than `LONGEST` times as long as wide; the message names the file.
    """
    try:
        with Image.open(path) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise ValueError("{} × {} pixels are too long a strip".format(*image.size))
            picture = ImageOps.exif_transpose(image)
            if picture.mode.startswith("I"):  # 16 bits a pixel
                picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for damaged images
        raise DataUnavailable(f"{path} cannot be used as a photograph: {error}") from error


class Pictures(Mapping):
    """Pictures by their path in a folder, each read when it is asked for."""

    def __init__(self, folder: Path, files: tuple[Path, ...]) -> None:
        self._files = {path.relative_to(folder).as_posix(): path for path in files}

    def __getitem__(self, name: str) -> Image.Image:
        return open_photograph(self._files[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class LabelledPhotographs(ImageFolder):
    """An `ImageFolder` that reads pictures as photographs; labels are numbers of ImageNet's classes."""

    def tensor(self, index: slice) -> Tensor:
        """The centres of some pictures, in their order: (n, 3, crop, crop) float32."""
        return torch.stack([self.preprocessing.test(open_photograph(file)) for file in self.files[index]])


@dataclass(frozen=True)
class OwnPhotographs:
    """The pictures in a folder and in its folders; what is hidden, or no picture by its name, is not read.

    Where they lie in folders with names of ImageNet's classes (``n01440764``), these are their labels.

    Attributes
    ----------
    folder : Path
    """

    folder: Path
    name: str = "own photographs"
    licence: str = "their owner's"
    synthetic: bool = False

    def files(self, data_dir: object = None) -> list[Path]:
        """The pictures, in the order of their names, wherever the data lie.

        Raises
        ------
        DataUnavailable
            There is no such folder, or no picture in it.
        """
        if not self.folder.is_dir():
            raise DataUnavailable(f"photos: there is no folder {self.folder.absolute()}")
        found = sorted(
            path
            for path in [*self.folder.glob("*"), *self.folder.glob("*/*")]
            if path.suffix.lower() in ENDINGS and path.is_file() and not self._hidden(path)
        )
        if not found:
            raise DataUnavailable(
                f"photos: no pictures ({', '.join(ENDINGS)}) in {self.folder.absolute()} or the folders in it"
            )
        return found

    def _hidden(self, path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(self.folder).parts)

    def load(self, data_dir: object = None) -> Pictures:
        """The pictures by their path in the folder.

        Raises
        ------
        DataUnavailable
            As `files` and `labels`; or one of them is damaged.
        """
        self.labels()
        pictures = Pictures(self.folder, tuple(self.files()))
        for name in pictures:
            pictures[name]
        return pictures

    def labels(self) -> list[int] | None:
        """The pictures' classes among ImageNet's; None where no folder has the name of one.

        Raises
        ------
        DataUnavailable
            Some pictures are labelled and others not; the message names the first of these.
        """
        files = self.files()
        number = {name: k for k, name in enumerate(WORDNET_IDS)}
        labels = [number.get(path.parent.name) if path.parent != self.folder else None for path in files]
        if not any(label is not None for label in labels):
            return None
        if None in labels:
            raise DataUnavailable(
                f"photos: {files[labels.index(None)]} has no label, others have: put it into a folder with "
                f"the name of its ImageNet class, such as n01440764"
            )
        return labels

    def labelled(self, preprocessing: Preprocessing) -> LabelledPhotographs | None:
        """The pictures with their labels, for a network with this preprocessing; None if they have none."""
        if (labels := self.labels()) is None:
            return None
        return LabelledPhotographs(tuple(self.files()), torch.tensor(labels), WORDNET_IDS, preprocessing)
