"""What Tag2Pix's arms are trained and tested on: portraits in any colours, emoji, and a reader's Danbooru."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.avatars import COLOURS, AvatarStyle
from lib.data.danbooru import LineArtPairs, TaggedPictures, TagTable
from lib.data.dataset import data_folder
from lib.data.drawings import Drawings
from lib.data.line_art import random_xdog, xdog
from lib.data.openmoji import COLOURS as EMOJI_COLOURS
from lib.data.openmoji import OPENMOJI, Emoji
from lib.streams import stream_seed

#: Pixels of which so much is one part's are the part's.
COVERED = 0.75

#: Seed of the test portraits and of the colours that they are asked for; on others the sizes were chosen.
TESTED = 3

#: Pixels that a part has at least, and so many that eyes have of a thousand.
FEWEST, EYES = 3, 14

#: Six colours of each part that few pixels can tell apart.
PALETTES = {
    part: {name: COLOURS[part][name] for name in names.split()}
    for part, names in {
        "background": "white grey blue pink yellow green",
        "hair": "blonde brown black blue pink green",
        "eyes": "blue red brown green purple yellow",
    }.items()
}

#: A portrait shows so much of a drawing's side, from so far right and down: hair, face, some background.
PORTRAIT, LEFT, TOP = 0.5, 0.14, 0.14


def portraits(style: AvatarStyle, count: int, size: int, *, seed: int, data_dir: str | Path) -> Drawings:
    """Heads that fill the picture, so that eyes are as large as so few pixels allow.

    Parameters
    ----------
    style : AvatarStyle
    count : int
        Drawings to begin with; those are left out of which a part is not seen, or eyes are small.
    size : int
        In pixels.
    seed : int
    data_dir : path
        Where drawings are kept.
    """
    whole = round(size / PORTRAIT)
    drawn = Drawings.of(style, style.faces(count, seed=seed), whole, data_dir=data_dir)
    top, left = round(TOP * whole), min(round(LEFT * whole), whole - size)
    top = min(top, whole - size)
    window = np.s_[..., top : top + size, left : left + size]
    cut = replace(drawn, planes=drawn.planes[window].contiguous(), labels=drawn.labels[window].contiguous())
    least = {"eyes": max(FEWEST, round(EYES * size**2 / 1000))}
    seen = [regions(cut, part).sum((1, 2)) >= least.get(part, FEWEST) for part in style.parts]
    seen = torch.stack(seen).all(0).numpy()
    return Drawings(style, cut.faces[seen], cut.planes[seen], cut.labels[seen])


def line_art(drawings: Drawings, index: slice | Sequence[int] | np.ndarray = slice(None)) -> Tensor:
    """Black on white, (n, 1, size, size) uint8: the drawings' own lines, and the outline of the eyes' colour.

    The artist leaves that to the colour; without it nobody could tell from the lines where eyes look.
    """
    eyes = drawings.coverage("eyes", index)[:, None]
    outline = (F.max_pool2d(eyes, 3, stride=1, padding=1) - eyes) * 255
    return torch.minimum(drawings.lines(index), (255 - outline).round().byte())


def regions(drawings: Drawings, part: str, index: slice | Sequence[int] = slice(None)) -> Tensor:
    """Pixels of a part without lines, (n, size, size) bool."""
    return drawings.coverage(part, index) >= COVERED


def grey(pictures: Tensor) -> np.ndarray:
    """Luma of pictures (N, 3, H, W) uint8, (N, H, W) in 0…255."""
    return torch.einsum("nchw,c->nhw", pictures.float(), torch.tensor([0.299, 0.587, 0.114])).numpy()


def to_signed(pictures: Tensor) -> Tensor:
    """Bytes as floats in −1…1."""
    return pictures.float() / 127.5 - 1


@dataclass(eq=False)
class Portraits:
    """Line art of portraits, the same under any colours.

    A training batch draws portraits, and for each one new colours: the lines say nothing of them. A share of
    the line art is XDoG of the coloured picture, as the authors make it, which may; single tags are missing,
    as on Danbooru.

    Attributes
    ----------
    train, test : Drawings
    xdog_share, missing_tags : float
        Of the pictures, and of the tags.
    """

    train: Drawings
    test: Drawings
    xdog_share: float = 0.5
    missing_tags: float = 0.1

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.train.planes.shape[-1]

    @property
    def colour_tags(self) -> tuple[str, ...]:
        """Such as ``blue eyes``."""
        return self.train.colour_tags

    @property
    def shape_tags(self) -> tuple[str, ...]:
        """Such as ``glasses``."""
        return self.train.shape_tags

    @cached_property
    def _palettes(self) -> list[int]:
        return [len(self.train.style.palettes[part]) for part in self.train.style.parts]

    def colours(self, count: int, seed: int) -> np.ndarray:
        """Colours by chance, (count, parts)."""
        draw = np.random.default_rng(seed)
        return np.stack([draw.integers(number, size=count) for number in self._palettes], 1)

    def batch(self, step: int, batch_size: int, *, seed: int) -> dict[str, Tensor]:
        """Portraits of a step, in new colours."""
        draw = np.random.default_rng(stream_seed(seed, "portraits", step))
        rows = draw.integers(len(self.train), size=batch_size)
        colours = self.colours(batch_size, stream_seed(seed, "colours", step))
        pictures, lines = self.train.colour(rows, colours), line_art(self.train, rows)
        luma = grey(pictures)
        for place in np.flatnonzero(draw.random(batch_size) < self.xdog_share):
            lines[place, 0] = torch.from_numpy(random_xdog(luma[place], draw))
        tags = self.train.colour_tag_vectors(rows, colours)
        first = 0
        for number in self._palettes:
            left_out = torch.from_numpy(draw.random(batch_size) < self.missing_tags)
            tags[left_out, first : first + number] = 0
            first += number
        mirrored = torch.from_numpy(draw.random(batch_size) < 0.5)[:, None, None, None]
        pair = torch.cat([lines / 255, to_signed(pictures)], 1)
        pair = torch.where(mirrored, pair.flip(-1), pair)
        shapes = self.train.shape_tag_vectors(rows)
        return {"lines": pair[:, :1], "images": pair[:, 1:], "variant": tags, "invariant": shapes}

    @cached_property
    def asked(self) -> np.ndarray:
        """Colours that test portraits are asked for, (tested, parts); their line art knows none."""
        return self.colours(len(self.test), stream_seed(TESTED, "asked"))

    def held_out(self, count: int) -> dict[str, Tensor]:
        """Test portraits in the colours that are asked for."""
        rows = slice(0, count)
        return {
            "lines": line_art(self.test, rows) / 255,
            "images": to_signed(self.test.colour(rows, self.asked[rows])),
            "variant": self.test.colour_tag_vectors(rows, self.asked[rows]),
            "invariant": self.test.shape_tag_vectors(rows),
        }


def portraits_of(
    style: AvatarStyle,
    drawings: int,
    tested: int,
    size: int,
    *,
    xdog_share: float,
    missing_tags: float,
    data_dir: str | Path,
) -> Portraits:
    """Training and test portraits, the same for every seed of a run.

    Raises
    ------
    ValueError
        Of so few pixels there are not enough portraits with eyes.
    """
    style = style.with_palettes(PALETTES)
    train = portraits(style, drawings, size, seed=1, data_dir=data_dir)
    drawn = 5 * tested
    test = portraits(style, drawn, size, seed=TESTED, data_dir=data_dir)
    if len(test) < tested:
        raise ValueError(
            f"at {size} pixels only {len(test)} of {drawn} portraits show all parts, not {tested}"
        )
    return Portraits(train, test[:tested], xdog_share, missing_tags)


def xdog_of(drawings: Drawings, colours: np.ndarray) -> Tensor:
    """XDoG of drawings in these colours, (N, 1, S, S) in 0…1."""
    pictures = grey(drawings.colour(colours=colours))
    return torch.from_numpy(np.stack([xdog(picture) for picture in pictures]))[:, None] / 255


def words_of(names: Sequence[str], count: int, fewest: int = 4) -> tuple[str, ...]:
    """The words in most of the names, with at least ``fewest`` letters."""
    having: dict[str, int] = {}
    for name in names:
        for word in {word for word in name.split() if len(word) >= fewest and word.isalpha()}:
            having[word] = having.get(word, 0) + 1
    return tuple(sorted(having, key=lambda word: (-having[word], word))[:count])


@dataclass(eq=False)
class EmojiSet:
    """OpenMoji: a tag says that a colour is somewhere, not where; the last ``tested`` are held out."""

    emoji: Emoji
    tested: int

    @classmethod
    def load(cls, size: int, count: int | None, tested: int, data_dir: str | Path) -> EmojiSet:
        """Those that have a colour."""
        emoji = OPENMOJI.load(data_dir, size=size, count=count)
        coloured = np.flatnonzero(emoji.colour_tag_vectors().any(1).numpy())
        return cls(
            Emoji(
                tuple(emoji.names[k] for k in coloured),
                emoji.colour[coloured],
                emoji.lines[coloured],
                emoji.labels[coloured],
            ),
            tested,
        )

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.emoji.colour.shape[-1]

    @property
    def colour_tags(self) -> tuple[str, ...]:
        """OpenMoji's colours."""
        return tuple(EMOJI_COLOURS)

    @cached_property
    def shape_tags(self) -> tuple[str, ...]:
        """Frequent words of the names of training emoji."""
        return words_of(self.emoji.names[: -self.tested], 16)

    @cached_property
    def _tags(self) -> tuple[Tensor, Tensor]:
        words = [[word in name.split() for word in self.shape_tags] for name in self.emoji.names]
        return self.emoji.colour_tag_vectors(), torch.tensor(words, dtype=torch.float32)

    def _of(self, rows: np.ndarray) -> dict[str, Tensor]:
        variant, invariant = self._tags
        images, lines = to_signed(self.emoji.colour[rows]), self.emoji.lines[rows] / 255
        return {"lines": lines, "images": images, "variant": variant[rows], "invariant": invariant[rows]}

    def batch(self, step: int, batch_size: int, *, seed: int) -> dict[str, Tensor]:
        """Emoji of a step, mirrored by chance."""
        draw = np.random.default_rng(stream_seed(seed, "emoji", step))
        batch = self._of(draw.integers(len(self.emoji) - self.tested, size=batch_size))
        mirrored = torch.from_numpy(draw.random(batch_size) < 0.5)[:, None, None, None]
        flipped = {key: torch.where(mirrored, batch[key].flip(-1), batch[key]) for key in ("lines", "images")}
        return batch | flipped

    def held_out(self, count: int) -> dict[str, Tensor]:
        """Test emoji."""
        return self._of(self.test_rows[:count])

    @property
    def test_rows(self) -> np.ndarray:
        """Of the emoji that no batch has."""
        return np.arange(len(self.emoji) - self.tested, len(self.emoji))


@dataclass(eq=False)
class DanbooruSet:
    """A reader's folder in the authors' layout; every 20th line of ``tags.txt`` is held out.

    A picture and the crop of its face (ids n and −n) are two lines, so one may be trained on and the other
    held out: errors on held-out pictures are too low for pictures that nobody has seen.
    """

    folder: Path
    size: int

    @cached_property
    def _table(self) -> TagTable:
        return TagTable.read(self.folder / "tag_dump.pkl")

    @cached_property
    def _parts(self) -> dict[str, LineArtPairs]:
        tagged = TaggedPictures.read(self.folder / "tags.txt", self._table)
        held = np.arange(len(tagged)) % 20 == 0
        parts = {}
        for name, rows in (("train", np.flatnonzero(~held)), ("test", np.flatnonzero(held))):
            some = TaggedPictures(tagged.ids[rows], tagged.variant[rows], tagged.invariant[rows])
            parts[name] = LineArtPairs(self.folder, some, self.size)
        return parts

    @property
    def colour_tags(self) -> tuple[str, ...]:
        """Danbooru's names."""
        return self._table.variant_names

    @property
    def shape_tags(self) -> tuple[str, ...]:
        """Likewise."""
        return self._table.invariant_names

    def batch(self, step: int, batch_size: int, *, seed: int) -> dict[str, Tensor]:
        """As `LineArtPairs.batch`."""
        return self._parts["train"].batch(step, batch_size, seed=seed)

    def held_out(self, count: int) -> dict[str, Tensor]:
        """Pictures as they are."""
        test = self._parts["test"]
        return test.batch(0, min(count, len(test.tagged)), seed=0, flip=False)


def danbooru(data_dir: str | Path, size: int) -> DanbooruSet:
    """A reader's folder ``danbooru`` in the data folder."""
    return DanbooruSet(data_folder(data_dir) / "danbooru", size)
