"""Line art, pictures and tags in the layout of Tag2Pix (Kim et al., ICCV 2019), put there by hand.

``rgb_train/<id>.png`` are pictures, ``keras_train``, ``simpl_train`` and ``xdog_train`` line art of the same
name made in three ways, ``tags.txt`` has a line ``<id> <tag> <tag> …`` of numbers for each, and
``tag_dump.pkl`` says which tags there are. The pictures are their artists'; nothing of them is downloaded or
passed on.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.data.dataset import DataUnavailable, UnexpectedFormat, opened
from lib.data.own_photographs import open_photograph
from lib.listing import printable

LINE_ART = ("keras_train", "simpl_train", "xdog_train")
PERSONS = ("1girl", "1boy")
HAIR = tuple(
    f"{colour}_hair"
    for colour in (
        "blonde", "brown", "black", "blue", "purple", "pink", "silver", "green", "red", "white", "orange",
        "grey", "aqua", "lavender", "light_brown",
    )
)  # fmt: skip
EYES = tuple(
    f"{colour}_eyes"
    for colour in (
        "blue", "red", "brown", "green", "purple", "yellow", "pink", "black", "aqua", "orange", "grey",
        "silver",
    )
)  # fmt: skip


class _Plain(pickle.Unpickler):
    """An unpickler of numbers, text, lists, tuples and dictionaries: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


@dataclass(frozen=True)
class TagTable:
    """Which tags there are; the place in a tuple is the place in a network's vector.

    Attributes
    ----------
    invariant, variant : tuple of int
        Danbooru's numbers of tags that do not depend on colours (370 published), and of those that do (115).
    numbers : dict of str to int
        From a tag's name.
    """

    invariant: tuple[int, ...]
    variant: tuple[int, ...]
    numbers: dict[str, int]

    @property
    def variant_names(self) -> tuple[str, ...]:
        """Names of the colour tags, in their order; a tag without a name goes by its number."""
        return self._names(self.variant)

    @property
    def invariant_names(self) -> tuple[str, ...]:
        """Likewise of the others."""
        return self._names(self.invariant)

    def _names(self, numbers: tuple[int, ...]) -> tuple[str, ...]:
        names = {number: name for name, number in self.numbers.items()}
        return tuple(names.get(number, str(number)) for number in numbers)

    @classmethod
    def read(cls, path: Path) -> TagTable:
        """The table of ``tag_dump.pkl``, whose content can only be numbers, text and containers of them.

        Raises
        ------
        UnexpectedFormat
            It is another file.
        DataUnavailable
            It cannot be read.
        """
        try:
            with path.open("rb") as file:
                content = _Plain(file).load()
            lists = [tuple(map(int, content[key])) for key in ("iv_tag_list", "cv_tag_list")]
            numbers = {str(name): int(number) for name, number in content["tag_dict"].items()}
        except OSError as error:
            raise DataUnavailable(f"{path} cannot be read: {error.strerror}") from error
        except Exception as error:  # a damaged pickle may raise anything
            raise UnexpectedFormat(path, f"no table of tags: {printable(error)}") from error
        return cls(*lists, numbers)


@dataclass(frozen=True, eq=False)
class TaggedPictures:
    """Tags of N pictures.

    Attributes
    ----------
    ids : (N,) int64
        Names of the files; of crops of faces they are negative.
    variant, invariant : (N, 115), (N, 370) float32
        0 or 1, in the order of a `TagTable`.
    """

    ids: np.ndarray
    variant: Tensor
    invariant: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def read(cls, path: Path, table: TagTable, *, training: bool = True) -> TaggedPictures:
        """The lines of ``tags.txt``.

        Parameters
        ----------
        path : Path
        table : TagTable
            Tags that it has not are left out.
        training : bool
            Keep only what the authors train on: exactly one person, one colour of hair and one of eyes, and
            at least one tag of each kind.

        Raises
        ------
        UnexpectedFormat
            A line is something else than whole numbers, an id comes twice, or nothing is left.
        DataUnavailable
            It cannot be read.
        """
        once = [{table.numbers.get(name) for name in names} for names in (PERSONS, HAIR, EYES)]
        places = [{number: k for k, number in enumerate(of)} for of in (table.variant, table.invariant)]
        rows: dict[int, tuple[list[int], list[int]]] = {}
        try:
            with opened(path) as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    try:
                        name, *tags = map(int, line.split())
                    except ValueError:
                        raise UnexpectedFormat(path, f"line {number}: {line.strip()[:40]!r}") from None
                    if name in rows:
                        raise UnexpectedFormat(path, f"line {number}: {name} is there twice")
                    having = [sorted(of[tag] for tag in set(tags) if tag in of) for of in places]
                    alone = all(len(of & set(tags)) == 1 for of in once)
                    if not training or (alone and all(having)):
                        rows[name] = tuple(having)
        except (OSError, UnicodeError) as error:
            raise DataUnavailable(f"{path} cannot be read: {printable(error)}") from error
        if not rows:
            raise UnexpectedFormat(path, "no picture is left")
        vectors = [torch.zeros(len(rows), len(of)) for of in places]
        for row, having in enumerate(rows.values()):
            for vector, columns in zip(vectors, having, strict=True):
                vector[row, columns] = 1.0
        return cls(np.fromiter(rows, np.int64), *vectors)


@dataclass(frozen=True, eq=False)
class LineArtPairs:
    """Line art and pictures of a folder, with their tags.

    Attributes
    ----------
    folder : Path
        Which holds ``rgb_train`` and some of `LINE_ART`.
    tagged : TaggedPictures
    size : int
        In pixels.
    """

    folder: Path
    tagged: TaggedPictures
    size: int = 256

    def __post_init__(self) -> None:
        absent = [name for name in ("rgb_train",) if not (self.folder / name).is_dir()]
        if absent or not self.kinds:
            raise DataUnavailable(
                f"{self.folder} needs rgb_train and one of {', '.join(LINE_ART)}, with files <id>.png"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The folders of line art that are there."""
        return tuple(name for name in LINE_ART if (self.folder / name).is_dir())

    def batch(self, step: int, batch_size: int, *, seed: int, flip: bool = True) -> dict[str, Tensor]:
        """Pairs of a step, from 0: a function of seed and step; epochs are cut into whole batches.

        Pairs are resized (Lanczos) and, with ``flip``, every second one on average is mirrored. The authors
        also rotate by up to 10°, crop at random (0.9 to 1 of the area) and jitter the lines; not so here.

        Returns
        -------
        dict
            ``lines`` (B, 1, size, size) in [0, 1], 1 is white; ``images`` (B, 3, size, size) in [-1, 1];
            ``variant`` and ``invariant`` tags. The kind of line art is drawn for each picture.

        Raises
        ------
        ValueError
            There are not as many pictures.
        DataUnavailable
            A file is not there or no whole picture; the message names it.
        """
        if not 1 <= batch_size <= len(self.tagged):
            raise ValueError(f"batch_size must be in 1..{len(self.tagged)}, got {batch_size}")
        epoch, place = divmod(step, len(self.tagged) // batch_size)
        order = np.random.default_rng((seed, 0, epoch)).permutation(len(self.tagged))
        rows = order[place * batch_size : (place + 1) * batch_size]
        draw = np.random.default_rng((seed, 1, step))
        kinds = [self.kinds[k] for k in draw.integers(len(self.kinds), size=batch_size)]
        names = [f"{number}.png" for number in self.tagged.ids[rows]]
        lines = [
            self._pixels(self.folder / kind / name, "L") for kind, name in zip(kinds, names, strict=True)
        ]
        images = [self._pixels(self.folder / "rgb_train" / name, "RGB") for name in names]
        pair = torch.cat([torch.stack(lines) / 255, torch.stack(images) / 127.5 - 1], 1)
        if flip:
            mirrored = torch.from_numpy(draw.random(batch_size) < 0.5)[:, None, None, None]
            pair = torch.where(mirrored, pair.flip(-1), pair)
        rows = torch.from_numpy(rows)
        tags = {"variant": self.tagged.variant[rows], "invariant": self.tagged.invariant[rows]}
        return {"lines": pair[:, :1], "images": pair[:, 1:]} | tags

    def _pixels(self, path: Path, mode: str) -> Tensor:
        image = open_photograph(path).convert(mode)
        pixels = np.array(image.resize((self.size, self.size), Image.Resampling.LANCZOS))
        return torch.from_numpy(pixels).view(self.size, self.size, -1).permute(2, 0, 1)
