"""Pictures of any kind in a folder, without labels: CelebA-HQ, FFHQ, AFHQ, LSUN, or somebody's own.

None of these sets is downloaded: their owners ask for registration, or allow research only. A picture may be
grey, of a palette, of 16 bits, turned by its camera or transparent (`lib.data.own_photographs`); what is no
whole picture is refused in a line that names the file.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.data.dataset import DataUnavailable, data_folder, writable_folder
from lib.data.own_photographs import open_photograph
from lib.files import write_atomically

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


def find_pictures(folder: Path) -> tuple[Path, ...]:
    """All pictures in a folder and its folders by their paths, without hidden ones.

    Raises
    ------
    DataUnavailable
        The folder is not there or cannot be read, or has no pictures.
    """
    if not folder.is_dir():
        raise DataUnavailable(f"there is no folder {folder}")
    found = []
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place) / name
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    if not found:
        raise DataUnavailable(f"no pictures ({', '.join(ENDINGS)}) in {folder} or the folders in it")
    return tuple(sorted(found))


def _unreadable(error: OSError) -> None:
    raise DataUnavailable(f"{error.filename} cannot be read: {error.strerror}") from error


def squared(image: Image.Image, size: int, *, crop: bool = False) -> Tensor:
    """A picture in RGB as (3, size, size) uint8, by Pillow's bilinear filter.

    Parameters
    ----------
    image : Image
    size : int
        In pixels.
    crop : bool
        Cut the middle square out of it; else it is stretched, as StyleMapGAN's authors do.
    """
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side) if crop else None
    image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """Pictures that are read when they are asked for.

    Attributes
    ----------
    files : tuple of Path
    size : int
        Of the square pictures, in pixels.
    crop : bool
        As of `squared`.
    workers : int
        Threads that decode.
    """

    files: tuple[Path, ...]
    size: int
    crop: bool = False
    workers: int = 8

    def __post_init__(self) -> None:
        if self.size < 1 or not self.files:
            raise ValueError(f"expected size >= 1 and at least one file, got {self.size}, {len(self.files)}")

    def __len__(self) -> int:
        return len(self.files)

    def tensor(self, index: slice | np.ndarray) -> Tensor:
        """Some pictures, (n, 3, size, size) float32 in [-1, 1].

        Raises
        ------
        DataUnavailable
            One is no whole picture; the message names it.
        """
        files = self.files[index] if isinstance(index, slice) else [self.files[k] for k in index]
        with ThreadPoolExecutor(self.workers) as pool:
            pixels = pool.map(lambda file: squared(open_photograph(file), self.size, crop=self.crop), files)
            return torch.stack(list(pixels)) / 127.5 - 1

    def batch(self, step: int, batch_size: int, *, seed: int, flip: bool = True) -> dict[str, Tensor]:
        """``images`` of a step, from 0: a function of seed and step; epochs are cut into whole batches.

        Parameters
        ----------
        step : int
        batch_size : int
            At most the number of pictures.
        seed : int
        flip : bool
            Mirror every second picture on average, left to right.

        Raises
        ------
        ValueError
            There are not as many pictures.
        DataUnavailable
            As `tensor`.
        """
        if not 1 <= batch_size <= len(self):
            raise ValueError(f"batch_size must be in 1..{len(self)}, got {batch_size}")
        epoch, place = divmod(step, len(self) // batch_size)
        order = np.random.default_rng((seed, 0, epoch)).permutation(len(self))
        images = self.tensor(order[place * batch_size : (place + 1) * batch_size])
        if flip:
            mirrored = np.random.default_rng((seed, 1, step)).random(batch_size) < 0.5
            images = torch.where(torch.from_numpy(mirrored)[:, None, None, None], images.flip(-1), images)
        return {"images": images}


@dataclass(frozen=True)
class PictureSet:
    """A set of pictures that people put into the data folder by hand.

    Attributes
    ----------
    name, licence, citation, homepage : str
    folders : dict of str to str
        From a split to its folder in the data folder; pictures may lie in folders in it.
    """

    name: str
    licence: str
    citation: str
    homepage: str
    folders: dict[str, str] = field(hash=False)
    synthetic: bool = False

    def found(self, data_dir: str | Path) -> dict[str, tuple[Path, ...]]:
        """The pictures of every split.

        Raises
        ------
        DataUnavailable
            A folder is not there or empty; the message has the licence and says where to put what.
        """
        splits = {}
        for split, folder in self.folders.items():
            path = data_folder(data_dir) / folder
            try:
                splits[split] = find_pictures(path)
            except DataUnavailable as error:
                raise DataUnavailable(
                    f"{self.name} is not downloaded for you ({self.licence}): {error}; see {self.homepage} "
                    f"and put its pictures there"
                ) from error
        return splits

    def load(self, data_dir: str | Path, *, size: int = 256, crop: bool = False) -> dict[str, PictureFiles]:
        """The splits as `PictureFiles`; errors as of `found`."""
        return {split: PictureFiles(files, size, crop) for split, files in self.found(data_dir).items()}

    def identity(self, data_dir: str | Path) -> str:
        """SHA-256 of the list of all pictures, ``absent`` where they are not there; nothing is written."""
        try:
            listed = "".join(self._lists(data_dir).values())
        except DataUnavailable:
            return "absent"
        return hashlib.sha256(os.fsencode(listed)).hexdigest()

    def files(self, data_dir: str | Path) -> list[Path]:
        """A text file per split that lists its pictures with their sizes in bytes, in the data folder.

        Where that cannot be written, they are in a temporary folder until this process ends.
        """
        written = []
        for split, listed in self._lists(data_dir).items():
            name = f"{self.folders[split].replace('/', '-')}-files.txt"
            written.append(writable_folder(data_folder(data_dir)) / name)
            write_atomically(written[-1], os.fsencode(listed))
        return written

    def _lists(self, data_dir: str | Path) -> dict[str, str]:
        """A line per picture: its path in the folder, and its number of bytes; they are too many to hash."""
        lists = {}
        for split, files in self.found(data_dir).items():
            root = data_folder(data_dir) / self.folders[split]
            lists[split] = "".join(
                f"{one.relative_to(root).as_posix()} {one.stat().st_size}\n" for one in files
            )
        return lists


def _splits(folder: str) -> dict[str, str]:
    return {split: f"{folder}/raw_images/{split}" for split in ("train", "val", "test")}


#: 29,000, 500 and 500 faces, as StyleMapGAN's authors lay them out.
CELEBA_HQ = PictureSet(
    "CelebA-HQ",
    "non-commercial research",
    "Karras et al., Progressive Growing of GANs for Improved Quality, Stability, and Variation, ICLR 2018",
    "https://github.com/tkarras/progressive_growing_of_gans",
    _splits("celeba_hq"),
)
#: 15,130, 500 and 500 cats, dogs and wild animals, mixed: a split of StyleMapGAN's authors, not AFHQ's own.
AFHQ = PictureSet(
    "AFHQ",
    "CC BY-NC 4.0",
    "Choi et al., StarGAN v2: Diverse Image Synthesis for Multiple Domains, CVPR 2020",
    "https://github.com/clovaai/stargan-v2",
    _splits("afhq"),
)
FFHQ = PictureSet(
    "FFHQ",
    "CC BY-NC-SA 4.0",
    "Karras et al., A Style-Based Generator Architecture for Generative Adversarial Networks, CVPR 2019",
    "https://github.com/NVlabs/ffhq-dataset",
    {"train": "ffhq"},
)
_YU = "Yu et al., LSUN: Construction of a Large-scale Image Dataset, arXiv:1506.03365, 2015"
LSUN_CAR = PictureSet("LSUN car", "research", _YU, "https://www.yf.io/p/lsun", {"train": "lsun/car"})
LSUN_CHURCH = PictureSet(
    "LSUN church outdoor", "research", _YU, "https://www.yf.io/p/lsun", {"train": "lsun/church_outdoor"}
)
