"""Tag2Pix's pictures: strips of line art in many colours, as tables so that an archive has them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from lib.data.danbooru import TagTable
from lib.data.line_art import read_line_art
from lib.experiments.tag2pix import Trained
from lib.experiments.tag2pix_measurements import altered, flood_filled
from lib.experiments.tag2pix_sets import EmojiSet, Portraits, line_art, to_signed, xdog_of
from lib.models.images.tag2pix import Generator, to_pixels
from lib.models.images.tag2pix_colouring import colour
from lib.models.images.tag2pix_extractor import LineArtClassifier

#: Sets of colours that every line art is shown in: background, hair, skin, eyes.
TAG_SETS: tuple[dict[str, str], ...] = (
    {"background": "blue", "hair": "blonde", "skin": "light", "eyes": "blue"},
    {"background": "pink", "hair": "black", "skin": "tan", "eyes": "green"},
    {"background": "white", "hair": "brown", "skin": "light", "eyes": "purple"},
    {"background": "yellow", "hair": "blue", "skin": "brown", "eyes": "yellow"},
    {"background": "green", "hair": "pink", "skin": "dark", "eyes": "red"},
    {"background": "grey", "hair": "green", "skin": "tan", "eyes": "brown"},
)


def encoded(pictures: Tensor) -> str:
    """Pictures (N, 3, S, S) in −1…1 side by side, as a PNG of 64 colours in base64."""
    row = torch.cat(list(to_pixels(pictures)), dim=2).permute(1, 2, 0).numpy()
    image = Image.fromarray(row).quantize(64, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def strips(rows: Mapping[int, Mapping[str, Tensor]], *, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Rows of pictures as `lib.chapter.figures.pictures_figure` takes them.

    Parameters
    ----------
    rows : mapping
        By seed: pictures (N, 3, S, S) in −1…1 under what is written above each row.
    columns : sequence of N str
        Written above the first row.
    """
    above = "\t".join(columns)
    return pd.DataFrame(
        [
            {"seed": seed, "row": name, "columns": above, "png": encoded(pictures)}
            for seed, strip in rows.items()
            for name, pictures in strip.items()
        ]
    )


def as_pictures(lines: Tensor) -> Tensor:
    """Line art (N, 1, S, S) in 0…1 as pictures in −1…1."""
    return lines.expand(-1, 3, -1, -1) * 2 - 1


def recoloured(trained: Trained, portraits: Portraits, count: int = 6) -> dict[str, Tensor]:
    """Test line art, a row each: the lines, then drawn in each of `TAG_SETS`."""
    rows = {}
    for k in range(min(count, len(portraits.test))):
        line = line_art(portraits.test, slice(k, k + 1)) / 255
        drawn = trained.draw(line.expand(len(TAG_SETS), -1, -1, -1), tag_sets(portraits))
        rows[f"drawing {k + 1}"] = torch.cat([as_pictures(line), drawn])
    return rows


def tag_sets(portraits: Portraits) -> Tensor:
    """`TAG_SETS` as vectors, (sets, colour tags)."""
    known = list(portraits.colour_tags)
    vectors = torch.zeros(len(TAG_SETS), len(known))
    for k, tags in enumerate(TAG_SETS):
        vectors[k, [known.index(f"{name} {part}") for part, name in tags.items()]] = 1
    return vectors


def set_names() -> list[str]:
    """What is written above the columns of `recoloured`."""
    parts = ("hair", "eyes", "skin", "background")
    return [
        "\n".join(f"{part}:" for part in parts),
        *("\n".join(one[part] for part in parts) for one in TAG_SETS),
    ]


def by_arm(trained: Mapping[str, Trained], portraits: Portraits, count: int = 7) -> dict[str, Tensor]:
    """The same test line art and tags by every arm; the line art above, flood fill and the truth below."""
    held_out = portraits.held_out(count)
    rows = {"line art": as_pictures(held_out["lines"])}
    rows |= {name: one.draw(held_out["lines"], held_out["variant"]) for name, one in trained.items()}
    return rows | {"flood fill": flood_filled(portraits)[:count], "truth": held_out["images"]}


def with_altered_tags(trained: Trained, portraits: Portraits, count: int = 7) -> dict[str, Tensor]:
    """Test line art, a row for each thing that is wrong with the tags."""
    lines = line_art(portraits.test, slice(0, count)) / 255
    return {name: trained.draw(lines, tags[:count]) for name, tags in altered(portraits).items()}


def kinds_of_lines(portraits: Portraits, count: int = 7) -> dict[str, Tensor]:
    """Coloured pictures, their exact lines, and XDoG of them."""
    held_out = portraits.held_out(count)
    xdog = xdog_of(portraits.test[:count], portraits.asked[:count])
    return {
        "picture": held_out["images"],
        "exact lines": as_pictures(held_out["lines"]),
        "XDoG": as_pictures(xdog),
    }


def of_emoji(trained: Mapping[str, Trained], emoji: EmojiSet, count: int = 7) -> dict[str, Tensor]:
    """Test emoji: lines, as each arm draws them, and as they are."""
    held_out = emoji.held_out(count)
    rows = {"line art": as_pictures(held_out["lines"])}
    rows |= {name: one.draw(held_out["lines"], held_out["variant"]) for name, one in trained.items()}
    return rows | {"truth": held_out["images"]}


def gates_figure(change: Tensor, names: Sequence[str]) -> Figure:
    """By how much each tag alone opens (blue) or closes (red) the channels of a gate, a row for each tag."""
    limit = float(change.abs().max()) or 1.0
    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.22 * len(names)))
    image = axis.imshow(change, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axis.set(yticks=range(len(names)), xlabel="channel")
    axis.set_yticklabels(names, fontsize=9)
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="change of the gate", shrink=0.6)
    return figure


def authors_pictures(
    checkpoint: str | Path, sketch: str | Path, tags: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """A reader's line art in several sets of tags, by the authors' weights.

    Parameters
    ----------
    checkpoint
        ``tag2pix_256.pkl`` or the like as published; beside it lie ``model.pth`` and ``tag_dump.pkl``.
    sketch
        Line art, whatever kind of image.
    tags
        Names of colour tags, such as ``blue_eyes``, a list for each picture.

    Raises
    ------
    FileNotFoundError, ValueError, DataUnavailable
        A file is not there or another, or there is no such tag; the message says which.
    """
    folder = Path(checkpoint).parent
    generator = Generator.from_authors(checkpoint)
    seen = LineArtClassifier.from_authors(folder / "model.pth").extractor() if generator.features else None
    known = TagTable.read(folder / "tag_dump.pkl").variant_names
    line = torch.from_numpy(read_line_art(Path(sketch), generator.image_size))[None]
    drawn = colour(generator, seen, line, tags, known)
    return {"by the authors' weights": torch.cat([as_pictures(line[None]), to_signed(drawn)])}
