"""Drawings whose truth is known: picture, exact line art of the same drawing, tags, regions, paired edits.

Two styles of `lib.data.avatars`, each of an artist's hand-drawn parts; the *combinations* are drawn by
chance, so the sets count as made up:

* `ADVENTURER`: heads with hair, eyes and skin of any colour. Lisa Wischofsky, CC BY 4.0.
* `OPEN_PEEPS`: busts with clothes and skin of any colour; most hair is ink. Pablo Stanley, CC0 1.0.

OpenMoji, a second kind of drawing, is in `lib.data.openmoji`.

The same seed, size and versions of the packages give the same bytes. What was drawn once is kept as one file,
named by all that decides it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from lib.data.avatars import AvatarStyle, Faces, Layout
from lib.data.dataset import DataSet, data_folder, writable_folder
from lib.data.packages import PackageFile
from lib.files import remove_leftovers, replacing
from lib.streams import stream_seed

logger = logging.getLogger(__name__)

Index = slice | Sequence[int] | Tensor | np.ndarray
Arrays = Mapping[str, np.ndarray]
_ALL = slice(None)


@dataclass(frozen=True, eq=False)
class Drawings:
    """N drawings of one style, size × size pixels, in any colours.

    Attributes
    ----------
    style : AvatarStyle
    faces : Faces
        What was drawn.
    planes, labels : (N, parts + 4, size, size), (N, size, size) uint8
        As `AvatarStyle.render` gives them.
    """

    style: AvatarStyle
    faces: Faces
    planes: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls, style: AvatarStyle, faces: Faces, size: int, *, data_dir: str | Path | None = None
    ) -> Drawings:
        """Draw faces, or read what was drawn before. About 100 a second at 64 pixels, 50 at 128.

        Parameters
        ----------
        style, faces
        size : int
            In pixels, at least 8.
        data_dir : path, optional
            Kept in ``drawings/`` there, whatever number of processes ask for it. None: nothing is kept.

        Raises
        ------
        ValueError
            The size is too small, or there is no face.
        """
        if size < 8 or len(faces) == 0:
            raise ValueError(f"expected size >= 8 and at least one face, got {size} and {len(faces)}")

        def make() -> Arrays:
            return dict(zip(("planes", "labels"), style.render(faces, size), strict=True))

        if data_dir is None:
            arrays = make()
        else:
            name = f"{style.name}-{size}-{_identity(style, faces, size)[:16]}.npz"
            planes = len(faces), len(style.parts) + 4, size, size
            shapes = {"planes": planes, "labels": (len(faces), size, size)}
            arrays = kept(data_dir, name, shapes, make)
        return cls(style, faces, torch.from_numpy(arrays["planes"]), torch.from_numpy(arrays["labels"]))

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: slice) -> Drawings:
        """Some of the drawings."""
        return Drawings(self.style, self.faces[index], self.planes[index], self.labels[index])

    def colour(self, index: Index = _ALL, colours: np.ndarray | None = None) -> Tensor:
        """Pictures, (n, 3, size, size) uint8.

        Parameters
        ----------
        index
            Which drawings.
        colours : (n, parts) int, optional
            Numbers of colours in the parts' palettes, instead of the drawings' own: the same lines under
            other tags. The renderer itself differs by three levels of 255 at most.

        Raises
        ------
        ValueError
            There are no such colours.
        """
        colours = self._colours(index, colours)
        palettes = [
            np.array([list(bytes.fromhex(code)) for code in self.style.palettes[part].values()], np.float32)
            for part in self.style.parts
        ]
        paint = np.stack([palette[colours[:, k]] for k, palette in enumerate(palettes)], 1)
        planes = self.planes[index]
        count = len(palettes)
        mixed = torch.einsum("nkhw,nkc->nchw", planes[:, :count].float() / 255, torch.from_numpy(paint))
        return (mixed + planes[:, count + 1 :]).round_().clamp_(0, 255).byte()

    def lines(self, index: Index = _ALL) -> Tensor:
        """Line art of the same drawings, black on white, (n, 1, size, size) uint8."""
        ink = len(self.style.parts)
        return 255 - self.planes[index][:, ink : ink + 1]

    def coverage(self, part: str, index: Index = _ALL) -> Tensor:
        """Which share of each pixel a coloured part covers, (n, size, size) float32 in 0…1.

        Raises
        ------
        ValueError
            The style has no such part.
        """
        return self.planes[index][:, _place(self.style.parts, part)] / 255

    def region(self, component: str, index: Index = _ALL) -> Tensor:
        """Where a component is on top, its lines included, (n, size, size) bool.

        Raises
        ------
        ValueError
            The style has no such component.
        """
        return self.labels[index] == _place(self.style.components, component) + 2

    @property
    def colour_tags(self) -> tuple[str, ...]:
        """Names such as ``blue eyes``, in the order of `colour_tag_vectors`."""
        return tuple(f"{name} {part}" for part in self.style.parts for name in self.style.palettes[part])

    def colour_tag_vectors(self, index: Index = _ALL, colours: np.ndarray | None = None) -> Tensor:
        """One tag for each part, (n, tags) float32 of 0 and 1; parameters and errors as of `colour`."""
        colours = self._colours(index, colours)
        vectors = [
            np.eye(len(self.style.palettes[part]), dtype=np.float32)[colours[:, k]]
            for k, part in enumerate(self.style.parts)
        ]
        return torch.from_numpy(np.concatenate(vectors, 1))

    @property
    def shape_tags(self) -> tuple[str, ...]:
        """Names such as ``long hair`` or ``glasses``, in the order of `shape_tag_vectors`."""
        return self._shape[0]

    def shape_tag_vectors(self, index: Index = _ALL) -> Tensor:
        """What was drawn, even if a cut picture hides it, (n, tags) float32 of 0 and 1; no colours."""
        return self._shape[1][index]

    @functools.cached_property
    def _shape(self) -> tuple[tuple[str, ...], Tensor]:
        """Variants by their artist's names, without numbers; what every face has is no tag."""
        columns: dict[str, np.ndarray] = {}
        for k, (component, variants) in enumerate(
            zip(self.style.components, self.style.variants, strict=True)
        ):
            optional = self.style.definition["components"][component].get("probability", 100) < 100
            names = [re.sub(r"\d+$", "", variant) for variant in variants]
            if len(set(names)) == 1 and not optional:
                continue
            for name in sorted(set(names)):
                tag = component if name == "variant" else f"{name} {component}"
                having = [number for number, one in enumerate(names) if one == name]
                columns[tag] = np.isin(self.faces.variants[:, k], having)
        return tuple(columns), torch.from_numpy(np.stack(list(columns.values()), 1).astype(np.float32))

    def _colours(self, index: Index, colours: np.ndarray | None) -> np.ndarray:
        if colours is None:
            return self.faces.colours[index]
        colours = np.asarray(colours)
        most = np.array([len(self.style.palettes[part]) for part in self.style.parts])
        expected = (len(self.labels[index]), len(most))
        if colours.shape != expected or (colours < 0).any() or (colours >= most).any():
            raise ValueError(
                f"colours must be {expected} numbers below {most.tolist()}, got {colours.shape} "
                f"in {colours.min(initial=0)}..{colours.max(initial=0)}"
            )
        return colours


@dataclass(frozen=True, eq=False)
class PairedEdits:
    """N faces, N others, and the first with one thing of the second: what a perfect edit would show.

    Attributes
    ----------
    source, reference, edited : Drawings
    changed : (N, size, size) bool
        Pixels of the source that are others after the edit.
    """

    source: Drawings
    reference: Drawings
    edited: Drawings
    changed: Tensor


def paired_edits(
    style: AvatarStyle,
    count: int,
    size: int,
    attribute: str,
    *,
    seed: int,
    shift: float = 0.0,
    data_dir: str | Path | None = None,
) -> PairedEdits:
    """Faces, and the same faces with one attribute of another face, whose shape (or colour) is another.

    Parameters
    ----------
    style : AvatarStyle
    count : int
        Of pairs.
    size : int
        In pixels.
    attribute : str
        A component, a part, or what is both: then shape and colour are taken over.
    seed, shift
        As of `AvatarStyle.faces`. Source and reference are moved independently; the edit stays where the
        source is.
    data_dir : path, optional
        As of `Drawings.of`.

    Raises
    ------
    ValueError
        The style has no such attribute, or an argument is out of range.
    """
    if attribute not in style.components + style.parts:
        raise ValueError(
            f"{style.name} has no {attribute!r}, but {', '.join(style.components + style.parts)}"
        )
    both = style.faces(2 * count, seed=seed, shift=shift)
    source, reference = both[:count], both[count:]
    variants, colours = source.variants.copy(), source.colours.copy()
    draw = np.random.default_rng(stream_seed(seed, "paired edits", style.name, attribute))
    if attribute in style.components:
        place = style.components.index(attribute)
        choices = len(style.variants[place])
        if choices == 1:
            raise ValueError(f"{style.name} has one {attribute} only: nothing to edit")
        variants[:, place] = _other(variants[:, place], reference.variants[:, place], choices, draw)
    if attribute in style.parts:
        place = style.parts.index(attribute)
        if attribute in style.components:
            colours[:, place] = reference.colours[:, place]
        else:
            choices = len(style.palettes[attribute])
            colours[:, place] = _other(colours[:, place], reference.colours[:, place], choices, draw)
    edited = Faces(variants, colours, source.shift)
    faces = (source, reference, edited)
    drawn = [Drawings.of(style, one, size, data_dir=data_dir) for one in faces]
    changed = (drawn[0].colour() != drawn[2].colour()).any(1)
    return PairedEdits(*drawn, changed)


def _other(here: np.ndarray, there: np.ndarray, choices: int, draw: np.random.Generator) -> np.ndarray:
    """`there`, which is changed where it is as `here`, to one of the other choices."""
    moved = (here + draw.integers(1, choices, len(here))) % choices
    there[:] = np.where(here == there, moved, there)
    return there


def _place(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise ValueError(f"there is no {name!r}, but {', '.join(names)}")
    return names.index(name)


# --- what was drawn before ---------------------------------------------------------------------------------


def kept(
    data_dir: str | Path, name: str, shapes: Mapping[str, tuple[int, ...]], make: Callable[[], Arrays]
) -> Arrays:
    """Arrays of bytes from ``drawings/`` in the data folder, made if need be, by one process at a time.

    Parameters
    ----------
    data_dir : path
    name : str
        Of the file, which says all that decides its content.
    shapes : mapping
        Of the arrays by name: a file with others is damaged, and made again.
    make : callable
        Returns the arrays.
    """
    folder = data_folder(data_dir) / "drawings"
    if (arrays := _read(folder / name, shapes)) is not None:
        return arrays
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    path = writable_folder(folder) / name
    with FileLock(f"{path}.lock"):
        if (arrays := _read(path, shapes)) is not None:  # another process was quicker
            return arrays
        remove_leftovers(path)
        arrays = make()
        try:
            with replacing(path) as file:
                np.savez_compressed(file, **arrays)
        except OSError as error:
            logger.warning("%s is not kept: %s", path, error.strerror or error)
    return arrays


def _identity(style: AvatarStyle, faces: Faces, size: int) -> str:
    """SHA-256 of all that decides the pixels but the colours."""
    digest = hashlib.sha256()
    packages = {name: version(name) for name in ("dicebear-core", "resvg_py")}
    digest.update(repr((FORMAT, style.sha256, style.layout, style.variants, packages, size)).encode())
    for array in (faces.variants, faces.shift):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


#: Of the files: raised when what `AvatarStyle.render` gives has another meaning.
FORMAT = 1


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Arrays | None:
    """The arrays of a whole file; None if it is absent, cut, or another."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in shapes}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    fits = all(array.dtype == np.uint8 and array.shape == shapes[key] for key, array in arrays.items())
    return arrays if fits else None


# --- the sets ----------------------------------------------------------------------------------------------


def _set(
    name: str, title: str, licence: str, creator: str, homepage: str, sha256: str, layout: Layout
) -> DataSet:
    return DataSet(
        name=f"{title} drawings (parts by {creator}, combined by chance)",
        licence=licence,
        citation=f"{creator}, {title}, {homepage}; DiceBear styles 10.6.0",
        homepage=homepage,
        sources=(
            PackageFile("dicebear_styles", f"{name}.json", sha256, requirement="dicebear-styles==10.6.0"),
        ),
        read=functools.partial(AvatarStyle.read, name=name, sha256=sha256, layout=layout),
        synthetic=True,
    )


#: `load` gives an `AvatarStyle`: 44 kinds of hair × 24 of eyes × 30 mouths × 15 brows, and accessories.
ADVENTURER = _set(
    "adventurer",
    "Adventurer",
    "CC BY 4.0: a remix of Adventurer by Lisa Wischofsky, who is to be named where pictures are shown",
    "Lisa Wischofsky",
    "https://www.figma.com/community/file/1184595184137881796",
    "05b7daa394dba1fdc6040fb9091ccaf7a12f6288248b6134cb4402e1ee33fc32",
    Layout({"hair": "hair", "skin": "skin", "eyes": "eyes"}, coloured=("eyes", "hair")),
)

#: `load` gives an `AvatarStyle`: 48 heads × 30 expressions, beards, glasses and masks; most hair is ink.
OPEN_PEEPS = _set(
    "open-peeps",
    "Open Peeps",
    "CC0 1.0: no conditions",
    "Pablo Stanley",
    "https://www.openpeeps.com/",
    "1d93f30c5c0be8282225533e2eb3d6b32eb30cba6408f3e04604df093b2b1cf5",
    Layout({"skin": "skin", "clothes": "clothing"}),
)
