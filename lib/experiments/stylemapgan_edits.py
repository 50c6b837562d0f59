"""StyleMapGAN's edits held against what a perfect edit shows, on drawn faces of which that is known.

Local editing of aligned faces, transplantation between faces at different places, the picture halfway
between two places, and the direction of an attribute, everywhere or in one half only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.data.avatars import AvatarStyle
from lib.data.drawings import Drawings, PairedEdits, paired_edits
from lib.experiments.stylemapgan import error_of, quantised, signed
from lib.metrics.images import mean_squared_error
from lib.models.images.stylemapgan import StyleMapGAN
from lib.models.images.stylemapgan_editing import (
    direction,
    edit,
    edit_errors,
    interpolated,
    moved,
    reduced_mask,
    style_mixed,
    transplanted,
)
from lib.streams import stream_seed

#: Whose edits are measured: aligned, and between faces at different places.
EDITED = ("vector of 256", "map 4×4×16", "map 8×8×4", "map 8×8×16", "map 16×16×16")
MOVED = ("map 8×8×4", "map 8×8×16", "map 16×16×16")

#: Edits without a network.
NO_EDIT, PASTE, CROSS_FADE = "no edit", "pixel paste", "pixel cross-fade"

#: What the transplanted rectangle is compared with: the same cells without looking where the faces are.
SAME_PLACE = "same place"

Images = dict[str, Tensor]


def pairs_with_change(
    style: AvatarStyle,
    count: int,
    size: int,
    attribute: str,
    *,
    seed: int,
    shift: float,
    data_dir: str | Path,
) -> PairedEdits:
    """Paired edits that change a pixel, and not all of them; at most `count`.

    What they change is where the attribute is in the source or in the edit: the mask that an editor is given.

    Raises
    ------
    ValueError
        None is left.
    """
    pairs = paired_edits(style, count, size, attribute, seed=seed, shift=shift, data_dir=data_dir)
    kept = (pairs.changed.any(2).any(1) & ~pairs.changed.all(2).all(1)).nonzero().flatten().numpy()
    if not len(kept):
        raise ValueError(f"no pair of {count} shows another {attribute} at {size} pixels")
    drawn = (pairs.source[kept], pairs.reference[kept], pairs.edited[kept])
    return PairedEdits(*drawn, pairs.changed[kept])


def pictures_of(pairs: PairedEdits) -> tuple[Tensor, Tensor, Tensor]:
    """Source, reference and true edit, (N, 3, H, W) in [−1, 1]."""
    return tuple(signed(drawn.colour()) for drawn in (pairs.source, pairs.reference, pairs.edited))


@torch.no_grad()
def local_edits(models: Mapping[str, StyleMapGAN], pairs: PairedEdits) -> Images:
    """Edited pictures by arm: each map in its codes and in the map itself, the vectors, and what needs none.

    A vector has no places: both latents are averaged, or the first style codes are the source's.
    """
    (source, reference, _), mask = pictures_of(pairs), pairs.changed[:, None]
    edited = {NO_EDIT: source, PASTE: torch.where(mask, reference, source)}
    for arm, model in models.items():
        ours, theirs = model.encoder(source), model.encoder(reference)
        if model.generator.map_size == 1:
            edited[f"{arm}, mean of both"] = model.generator(interpolated(ours, theirs, 0.5))
            edited[f"{arm}, mixed layers"] = style_mixed(model.generator, ours, theirs)
        else:
            for space in ("codes", "map"):
                edited[f"{arm}, {space}"] = edit(model.generator, ours, theirs, mask, space=space)
        edited[f"{arm}, {NO_EDIT}"] = model.generator(ours)
    return {arm: quantised(images) for arm, images in edited.items()}


def edit_scores(edited: Images, pairs: PairedEdits) -> dict[str, dict[str, float]]:
    """By metric and arm: errors to the true edit, everywhere and where it differs; MSE_src and MSE_ref."""
    (source, reference, truth), mask = pictures_of(pairs), pairs.changed[:, None]
    found = {
        "MSE to the true edit": {arm: error_of(images, truth) for arm, images in edited.items()},
        "MSE in the changed region": {
            arm: error_of(images, truth, pairs.changed) for arm, images in edited.items()
        },
    }
    published = {arm: edit_errors(images, source, reference, mask) for arm, images in edited.items()}
    for place, metric in enumerate(("MSE_src", "MSE_ref")):
        found[metric] = {arm: errors[place] for arm, errors in published.items()}
    return found


def rectangle(pairs: PairedEdits, number: int, map_size: int) -> dict[str, object]:
    """Which cells to transplant in one pair, for `transplanted`: those that hold a pixel of the true edit.

    Both rectangles lie in the map; between them is the difference of the faces' places, in whole cells.
    """
    apart = pairs.source.faces.shift[number] - pairs.reference.faces.shift[number]
    right, down = np.rint(apart * map_size).astype(int)
    cells = reduced_mask(pairs.changed[number][None, None], map_size)[0, 0]
    rows, columns = (torch.nonzero(cells.any(axis)).flatten() for axis in (1, 0))
    corners, lengths = [], []
    for places, offset in ((rows, int(down)), (columns, int(right))):
        first = max(int(places[0]), offset, 0)
        last = min(int(places[-1]), map_size - 1, map_size - 1 + offset)
        corners.append((first, first - offset))
        lengths.append(max(1, last - first + 1))
    (row, other_row), (column, other_column) = corners
    return {
        "source_corner": (row, column),
        "reference_corner": (other_row, other_column),
        "height": lengths[0],
        "width": lengths[1],
    }


@torch.no_grad()
def moved_edits(models: Mapping[str, StyleMapGAN], pairs: PairedEdits) -> Images:
    """Pictures of faces at different places, edited by the maps' cells: moved as the faces are, and not.

    Beside them `PASTE`, which copies and moves the same rectangle as pixels (of the first arm's cells).
    """
    source, reference, _ = pictures_of(pairs)
    edited: Images = {NO_EDIT: source}
    for arm, model in models.items():
        size = model.generator.map_size
        places = [rectangle(pairs, number, size) for number in range(len(source))]
        ours, theirs = model.encoder(source), model.encoder(reference)
        for name, told in ((arm, places), (f"{arm}, {SAME_PLACE}", [_in_place(one) for one in places])):
            maps = [transplanted(ours[k : k + 1], theirs[k : k + 1], **told[k]) for k in range(len(told))]
            edited[name] = model.generator(torch.cat(maps))
        edited[f"{arm}, {NO_EDIT}"] = model.generator(ours)
        if PASTE not in edited:
            edited[PASTE] = _pasted(source, reference, places, source.shape[-1] // size)
    return {arm: quantised(images) for arm, images in edited.items()}


def _in_place(place: Mapping[str, object]) -> dict[str, object]:
    return {**place, "reference_corner": place["source_corner"]}


def _pasted(source: Tensor, reference: Tensor, places: list[dict], cell: int) -> Tensor:
    pixels = [
        {
            "source_corner": tuple(cell * k for k in place["source_corner"]),
            "reference_corner": tuple(cell * k for k in place["reference_corner"]),
            "height": cell * place["height"],
            "width": cell * place["width"],
        }
        for place in places
    ]
    return torch.cat(
        [transplanted(source[k : k + 1], reference[k : k + 1], **one) for k, one in enumerate(pixels)]
    )


def moved_scores(edited: Images, pairs: PairedEdits) -> dict[str, dict[str, float]]:
    """By metric and arm: errors of faces at different places against the true edit."""
    truth = pictures_of(pairs)[2]
    where = {"MSE to the true edit (moved)": None, "MSE in the changed region (moved)": pairs.changed}
    return {
        metric: {arm: error_of(images, truth, region) for arm, images in edited.items()}
        for metric, region in where.items()
    }


@torch.no_grad()
def halfway(
    models: Mapping[str, StyleMapGAN],
    style: AvatarStyle,
    count: int,
    size: int,
    *,
    seed: int,
    shift: float,
    data_dir: str | Path,
) -> tuple[Images, dict[str, float]]:
    """The picture halfway between a face on the left and the same face on the right, by each arm.

    Returns
    -------
    images : dict of str to (N, 3, H, W)
        ``left``, ``right``, ``truth``, `CROSS_FADE` and the arms.
    errors : dict of str to float
        Of all that stand for the truth.
    """
    still = style.faces(count, seed=stream_seed(seed, "halfway"))
    drawn = {}
    for name, right in (("left", -shift), ("right", shift), ("truth", 0.0)):
        at = replace(still, shift=np.tile((right, 0.0), (count, 1)))
        drawn[name] = signed(Drawings.of(style, at, size, data_dir=data_dir).colour())
    left, right = drawn["left"], drawn["right"]
    between = {CROSS_FADE: (left + right) / 2}
    for arm, model in models.items():
        between[arm] = model.generator(interpolated(model.encoder(left), model.encoder(right), 0.5))
    between = {arm: quantised(images) for arm, images in between.items()}
    return drawn | between, {arm: error_of(images, drawn["truth"]) for arm, images in between.items()}


def hair_direction(
    model: StyleMapGAN,
    style: AvatarStyle,
    train: int,
    test: int,
    size: int,
    *,
    seed: int,
    data_dir: str | Path,
) -> tuple[Images, dict[str, dict[str, float]]]:
    """Dark-haired faces moved along the direction of light hair, everywhere and in the map's left half.

    The direction is learnt from faces whose hair is clearly dark or light; the way is from the mean of the
    dark ones to that of the light ones, measured along it.

    Returns
    -------
    images : dict of str to (N, 3, H, W)
        ``source`` (the dark-haired faces), ``unmoved``, ``everywhere`` and ``left half``.
    scores : by metric and arm
        Brightness of the hair in both halves, in [−1, 1], and the mean squared change against ``unmoved``
        outside the hair. Pixels of the hair are those that it covers by more than 90 %.

    Raises
    ------
    ValueError
        No dark-haired face shows hair in both halves.
    """
    drawn = Drawings.of(
        style, style.faces(train + test, seed=stream_seed(seed, "hair")), size, data_dir=data_dir
    )
    light = _is_light(style, drawn)
    pictures = signed(drawn.colour())
    known = np.flatnonzero(light[:train] >= 0)
    dark = train + np.flatnonzero(light[train:] == 0)
    with torch.no_grad():
        maps = torch.cat([model.encoder(part) for part in pictures[known].split(50)])
        ours = model.encoder(pictures[dark])
    labels = torch.from_numpy(light[known] == 1)
    normal = direction(maps, labels)
    along = (maps * normal).sum((1, 2, 3))
    way = float(along[labels].mean() - along[~labels].mean())
    half = slice(0, model.generator.map_size // 2)
    with torch.no_grad():
        shown = {
            "unmoved": model.generator(ours),
            "everywhere": model.generator(moved(ours, normal, way)),
            "left half": model.generator(moved(ours, normal, way, columns=half)),
        }
    shown = {arm: quantised(images) for arm, images in shown.items()}
    return {"source": pictures[dark], **shown}, _hair_scores(shown, drawn.coverage("hair", dark) > 0.9)


def _is_light(style: AvatarStyle, drawn: Drawings) -> np.ndarray:
    """Of each face 1 for light hair, 0 for dark, −1 for what is between, by the colour's mean."""
    means = np.array([np.mean(list(bytes.fromhex(code))) / 255 for code in style.palettes["hair"].values()])
    kinds = np.where(means > 0.6, 1, np.where(means < 0.45, 0, -1))
    return kinds[drawn.faces.colours[:, style.parts.index("hair")]]


def _hair_scores(shown: Images, hair: Tensor) -> dict[str, dict[str, float]]:
    middle = hair.shape[-1] // 2
    left = hair.clone()
    left[..., middle:] = False
    seen = left.any((1, 2)) & (hair & ~left).any((1, 2)) & ~hair.all((1, 2))
    if not seen.any():
        raise ValueError("no dark-haired face shows hair in both halves: take more faces to test with")
    scores: dict[str, dict[str, float]] = {}
    for arm, images in shown.items():
        for half, region in (("left", left), ("right", hair & ~left)):
            bright = (images.mean(1) * region).sum((1, 2))[seen] / region.sum((1, 2))[seen]
            scores.setdefault(f"brightness of the {half} hair", {})[arm] = float(bright.mean())
        change = mean_squared_error(images[seen], shown["unmoved"][seen], ~hair[seen])
        scores.setdefault("change outside the hair", {})[arm] = float(change.mean())
    return scores
