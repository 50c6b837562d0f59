"""Hand-drawn avatar parts, put together by DiceBear and rendered by resvg, so that every pixel is explained.

Artists drew the parts of a style: heads, eyes, hair, each in many variants whose colours are free. A face is
a choice of variants and colours (`Faces`), and all of it is explicit: nothing is left to DiceBear's chance.
`AvatarStyle.render` does not draw a picture but what a picture of any colours is made of, in four passes over
one vector drawing.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from lib.data.dataset import UnexpectedFormat
from lib.listing import printable
from lib.streams import stream_seed

#: Colours by the names that Danbooru's tags have, where it has them.
COLOURS: Mapping[str, Mapping[str, str]] = {
    "background": {
        "white": "f7f7f7", "grey": "a9adb2", "blue": "a7cdf0", "pink": "f6c1d3", "yellow": "f7e59a",
        "green": "b5dfb0", "purple": "cdb8e8", "orange": "f5c190",
    },
    "hair": {
        "blonde": "e8c872", "brown": "6a4e35", "black": "2b2b33", "blue": "3f6fb5", "purple": "7d4fa0",
        "pink": "e58fb0", "silver": "c9ced6", "green": "4c9a57", "red": "c0392b", "white": "f5f5f5",
        "orange": "e0792b", "aqua": "62c4c3",
    },
    "eyes": {
        "blue": "2f6fd0", "red": "d03030", "brown": "7a4a20", "green": "2f9a4a", "purple": "8a3fc0",
        "yellow": "e8c020", "pink": "f070b0", "aqua": "30c0c0",
    },
    "skin": {"light": "f2d3b1", "tan": "ecad80", "brown": "9e5622", "dark": "763900"},
    "clothes": {
        "white": "f0f0f0", "black": "33333b", "red": "c94040", "blue": "4a78c8", "pink": "e88fb4",
        "green": "4f9a5c", "yellow": "e8cf56",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What the components and colours of a style mean.

    Attributes
    ----------
    parts : mapping
        Of a drawing that have a colour of their own, to the style's colour; the background is one more.
    ink : str
        The style's colour of lines.
    coloured : tuple of str
        Components of which only variants with their part's colour are drawn: closed eyes have none.
    """

    parts: Mapping[str, str]
    ink: str = "ink"
    coloured: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Faces:
    """N faces as choices, before anything is drawn.

    Attributes
    ----------
    variants : (N, components) int16
        Number of each component's variant in `AvatarStyle.variants`; -1 where the face has no such thing.
    colours : (N, parts) int16
        Number of each part's colour in its palette, in the order of `AvatarStyle.parts`.
    shift : (N, 2) float64
        By how much the drawing is moved right and down, as a share of the picture's side.
    """

    variants: np.ndarray
    colours: np.ndarray
    shift: np.ndarray

    def __len__(self) -> int:
        return len(self.variants)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Faces:
        return Faces(self.variants[index], self.colours[index], self.shift[index])


@dataclass(frozen=True, eq=False)
class AvatarStyle:
    """The parts that an artist drew, and how a face is rendered from them.

    With a share ``a_p`` of a pixel covered by part p, whose colour is ``c_p``, and a share covered by ink, a
    pixel of the picture is ``Σ_p a_p c_p + fixed``: ink is black, and what has one colour in every drawing
    (teeth, tongues, flowers) is in ``fixed``. So the shares give the picture in *any* colours, its line art,
    and the exact place of each part.

    Attributes
    ----------
    name, sha256 : str
        Of the style, and of the file that it was read from.
    definition : dict
        As in that file.
    layout : Layout
    components : tuple of str
        Of which every one has `variants`.
    variants : tuple of tuples of str
        Those that are drawn.
    palettes : mapping
        From every part to its colours, names and six hexadecimal digits.
    """

    name: str
    sha256: str
    definition: Mapping
    layout: Layout
    components: tuple[str, ...]
    variants: tuple[tuple[str, ...], ...]
    palettes: Mapping[str, Mapping[str, str]]

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts with a colour of their own, the background first."""
        return ("background", *self.layout.parts)

    @classmethod
    def read(cls, path: Path, *, name: str, sha256: str, layout: Layout) -> AvatarStyle:
        """A style from the package's file.

        Raises
        ------
        UnexpectedFormat
            It is no style, or has not the colours and components of the layout.
        """
        try:
            definition = json.loads(path.read_text("utf-8"))
            components = tuple(sorted(definition["components"]))
            variants = tuple(_drawable(definition["components"], one, layout) for one in components)
            Style(definition)
            for colour in (*layout.parts.values(), layout.ink):
                definition["colors"][colour]
        except OSError:
            raise
        except Exception as error:  # DiceBear has its own
            raise UnexpectedFormat(path, f"no such style: {printable(error)}") from error
        palettes = {part: COLOURS[part] for part in ("background", *layout.parts)}
        return cls(name, sha256, definition, layout, components, variants, palettes)

    def with_palettes(self, palettes: Mapping[str, Mapping[str, str]]) -> AvatarStyle:
        """The same style in other colours; a part that is not named keeps its own.

        Raises
        ------
        ValueError
            There is no such part, no colour for it, or a colour is not six hexadecimal digits.
        """
        for part, palette in palettes.items():
            if part not in self.parts:
                raise ValueError(f"{self.name} has no part {part!r}, but {', '.join(self.parts)}")
            wrong = [code for code in palette.values() if not re.fullmatch("[0-9a-fA-F]{6}", code)]
            if wrong or not palette:
                raise ValueError(f"colours of {part} are six hexadecimal digits, got {wrong[:1] or 'none'}")
        return replace(self, palettes={**self.palettes, **palettes})

    def faces(self, count: int, *, seed: int, shift: float = 0.0) -> Faces:
        """Choices for new faces: variants and colours uniform, accessories as often as the style has them.

        Parameters
        ----------
        count : int
            At least 1. The first faces of a larger count are others.
        seed : int
        shift : float
            Largest move in each direction, as a share of the picture's side, in 0…0.5.

        Raises
        ------
        ValueError
            One is out of range.
        """
        if count < 1 or not 0 <= shift <= 0.5:
            raise ValueError(f"expected count >= 1 and shift in 0..0.5, got {count} and {shift}")
        draw = np.random.default_rng(stream_seed(seed, "faces", self.name))
        columns = []
        for component, variants in zip(self.components, self.variants, strict=True):
            probability = self.definition["components"][component].get("probability", 100) / 100
            chosen = draw.integers(len(variants), size=count)
            columns.append(np.where(draw.random(count) < probability, chosen, -1))
        colours = [draw.integers(len(self.palettes[part]), size=count) for part in self.parts]
        moved = draw.uniform(-shift, shift, (count, 2)).round(4)
        return Faces(np.stack(columns, 1).astype(np.int16), np.stack(colours, 1).astype(np.int16), moved)

    def render(self, faces: Faces, size: int) -> tuple[np.ndarray, np.ndarray]:
        """What pictures of `faces` in any colours are made of; their own colours are not looked at.

        Parameters
        ----------
        faces : Faces
        size : int
            Of the square pictures, in pixels.

        Returns
        -------
        planes : (N, parts + 4, size, size) uint8
            Shares, of which 255 are all, of the parts and of ink; then red, green, blue of ``fixed``.
        labels : (N, size, size) uint8
            What is on top at the middle of each pixel: 0 for the background, 1 for what belongs to no
            component, from 2 on the `components`.
        """
        count = len(self.parts) + 1
        shares = -(-count // 3)
        passes = [_repainted(self._pieces, _channels(3 * place)) for place in range(shares)]
        passes.append(
            _repainted(self._pieces, dict.fromkeys(map(_mark, range(count)), "#000000"), others=None)
        )
        labels = {key: self._labelled(key, piece) for key, piece in self._pieces.items()}
        planes = np.empty((len(faces), 3 * shares + 3, size, size), np.uint8)
        label = np.empty((len(faces), size, size), np.uint8)
        for number, (variants, shift) in enumerate(zip(faces.variants, faces.shift, strict=True)):
            for place, pieces in enumerate(passes):
                picture = _pixels(self._vector(pieces, variants, shift), size)
                planes[number, 3 * place : 3 * place + 3] = picture
            label[number] = _pixels(self._vector(labels, variants, shift), size, edges="crisp_edges")[0]
        return np.delete(planes, np.s_[count : 3 * shares], axis=1), label

    @functools.cached_property
    def _pieces(self) -> dict[tuple[str, str], str]:
        """The vector drawing of every variant, and under ``frame`` what is around them, all parts marked.

        DiceBear checks its options for every avatar, which takes longer than to render it, so each variant is
        asked for once; the pieces of an avatar do not depend on one another.
        """
        style = Style(self.definition)
        options: dict[str, object] = {"seed": "", "backgroundColor": [_mark(0)]}
        options |= {f"{one}Probability": 100 for one in self.components}
        for place, colour in enumerate((*self.layout.parts.values(), self.layout.ink), 1):
            options[f"{colour}Color"] = [_mark(place)]
        pieces: dict[tuple[str, str], str] = {}
        wanted = [(one, two) for one, of in zip(self.components, self.variants, strict=True) for two in of]
        for key in wanted:
            self._take_apart(style, options, key, pieces)
        for key in (key for key in wanted if key not in pieces):  # earrings are a part of some hair
            holder = next(one for one, piece in pieces.items() if f'href="#{key[0]}-' in piece)
            self._take_apart(style, {**options, f"{holder[0]}Variant": holder[1]}, key, pieces)
        return pieces

    def _take_apart(
        self, style: Style, options: Mapping, key: tuple[str, str], pieces: dict[tuple[str, str], str]
    ) -> None:
        svg = str(Avatar(style, {**options, f"{key[0]}Variant": key[1]}))
        svg = re.sub("<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub('="(black|#000|#000000)"', f'="{_mark(len(self.parts))}"', svg)
        definitions, body = re.fullmatch("(.*)</defs>(.*)", svg, re.DOTALL).groups()
        start, *found = re.split(f'(?=<g id="(?:{"|".join(self.components)})-)', definitions)
        found[-1], mark, clip = found[-1].partition("<clipPath")  # of the frame, which comes last
        for piece in found:
            pieces[re.match(r'<g id="(\w+)-(\w+)-', piece).groups()] = piece
        pieces["frame", ""] = start + mark + clip + "</defs>" + body

    def _vector(self, pieces: Mapping[tuple[str, str], str], chosen: np.ndarray, shift: np.ndarray) -> str:
        """One face of some pieces, as SVG."""
        names = {
            component: variants[number]
            for component, variants, number in zip(self.components, self.variants, chosen, strict=True)
            if number >= 0
        }

        def use(found: re.Match) -> str:
            if found[2] not in names:
                return ""
            return f'<use{found[1]} href="#{found[2]}-{names[found[2]]}-{found[3]}"/>'

        start, body = pieces["frame", ""].split("</defs>")
        side = self.definition["canvas"]["width"], self.definition["canvas"]["height"]
        move = "translate({} {})".format(*(np.array(side) * shift))
        body = re.sub("(<rect[^>]*/>)(.*)</g></svg>", rf'\1<g transform="{move}">\2</g></g></svg>', body)
        whole = start + "".join(pieces[one] for one in names.items()) + "</defs>" + body
        return re.sub(r'<use([^>]*) href="#(\w+)-\w+-(\w+)"/>', use, whole)

    def _labelled(self, key: tuple[str, str], piece: str) -> str:
        """A piece in the grey of its component, without half-transparent paint."""
        piece = re.sub(r' (fill-|stroke-)?opacity="[^"]*"', "", piece)
        grey = 1 if key[0] == "frame" else self.components.index(key[0]) + 2
        return _painted(piece, {_mark(0): "#000000"}, others=f"#{grey:02x}{grey:02x}{grey:02x}")


def _mark(place: int) -> str:
    """The colour by which part number `place` is known in a drawing; ink is the last. No style has it."""
    return f"#0{place:x}f0d{place:x}"


def _channels(first: int) -> dict[str, str]:
    """Paint for three parts: the first one red, green and blue, so that a picture has their shares."""
    return {_mark(first): "#ff0000", _mark(first + 1): "#00ff00", _mark(first + 2): "#0000ff"}


def _repainted(
    pieces: Mapping[tuple[str, str], str], seen: Mapping[str, str], others: str | None = "#000000"
) -> dict[tuple[str, str], str]:
    return {key: _painted(piece, seen, others) for key, piece in pieces.items()}


def _drawable(components: Mapping, name: str, layout: Layout) -> tuple[str, ...]:
    """Variants of a component; of one that must be coloured, those that have its part's colour."""
    variants = components[name]["variants"]
    if name not in layout.coloured:
        return tuple(sorted(variants))
    colour = {"type": "color", "name": layout.parts[name]}
    return tuple(sorted(one for one, body in variants.items() if _has(body["elements"], colour)))


def _has(elements: Sequence[Mapping], colour: Mapping) -> bool:
    return any(
        colour in (one.get("attributes") or {}).values() or _has(one.get("children") or (), colour)
        for one in elements
    )


def _painted(svg: str, seen: Mapping[str, str], others: str | None = "#000000") -> str:
    """A drawing in other paints: those of `seen`; all others in one colour or, for None, as they are."""

    def paint(found: re.Match) -> str:
        was = found[2]
        new = "none" if was == "none" else seen.get(was, was if others is None else others)
        return f'{found[1]}="{new}"'

    return re.sub(r'\b(fill|stroke)="([^"]*)"', paint, svg)


def _pixels(svg: str, size: int, edges: str = "geometric_precision") -> np.ndarray:
    """A drawing that leaves nothing transparent, (3, size, size) uint8."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, shape_rendering=edges)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1)
