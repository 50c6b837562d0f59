"""FSRE-Depth's pictures in strips, as tables, so that an archive keeps them and a page can show them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.chapter.figures import picture_strips
from lib.data.stereo import StereoPair
from lib.data.street_frames import Drives
from lib.experiments.fsre_depth import FLOOR, Streets, depths_of
from lib.experiments.fsre_depth_stereo import Agreement, Matched
from lib.metrics.depth import CAPS, counted, median_ratio
from lib.models.depth.fsre_depth import FsreDepth
from lib.models.depth.photometric import PhotometricError, identity_errors
from lib.models.depth.view_synthesis import sampling_grid, warped

#: Nearest depth of the colours, in metres: as light as they get. Errors are dark to light up to this share.
BRIGHTEST, WORST = 3.0, 0.5
#: Where bins of true depth end, in metres.
BINS = (5, 10, 20, 30, 50, 80)
#: Side of a close-up in pixels.
CLOSE = 32


def coloured(values: Tensor, *, colours: str = "magma") -> Tensor:
    """Maps (N, H, W) in 0…1 as pictures (N, 3, H, W) in −1…1, the larger the lighter."""
    table = matplotlib.colormaps[colours](values.clamp(0, 1).numpy())[..., :3]
    return torch.from_numpy(table).float().permute(0, 3, 1, 2) * 2 - 1


def depth_colours(depths: Tensor) -> Tensor:
    """Depths (N, H, W) in metres, near ones light, the sky (0) and what is far black."""
    return coloured(torch.where(depths > 0, BRIGHTEST / depths.clamp_min(1e-3), 0))


def error_colours(depths: Tensor, truth: Tensor) -> Tensor:
    """Relative errors of scaled depths (N, H, W), black where there is no truth."""
    wrong = (depths - truth).abs() / truth.clamp_min(1e-3)
    return coloured(torch.where(counted(truth), wrong / WORST, 0))


def scaled(depths: Tensor, truth: Tensor) -> Tensor:
    """Depths (N, H, W), each scaled to the median of its truth and within the limits of the protocol."""
    ratios = [median_ratio(one, two, counted(two)) for one, two in zip(depths, truth, strict=True)]
    return (torch.stack(ratios)[:, None, None] * depths).clamp(*CAPS)


def looks(world: Streets, seed: int, count: int = 3) -> pd.DataFrame:
    """Test streets: pictures, true depths, labels, boundaries and weak texture."""
    labels = world.tested("labels")[:count].float()
    marked = torch.zeros(count, 3, *labels.shape[1:]) - 0.6
    marked[:, 0] += 1.6 * world.regions["boundaries"][:count]
    marked[:, 2] += 1.6 * world.regions["plain"][:count]
    rows = {
        "picture": world.images[:count] * 2 - 1,
        "true depth (near is light)": depth_colours(world.truth[:count]),
        "labels": coloured((labels * 7 % 19) / 19, colours="turbo"),
        "boundaries (red), weak texture (blue)": marked,
    }
    return picture_strips(rows, seed, columns=count)


def mechanism(drives: Drives, seed: int, count: int = 3) -> pd.DataFrame:
    """Training samples: a frame, the next one, that drawn by the true depth, errors, and the mask."""
    batch = drives.batch(0, count, seed=seed, flip=False)
    before, target, after = batch["images"].unbind(1)
    depth = torch.where(batch["depth"] > 0, batch["depth"], CAPS[1])[:, None]
    drawn = [
        warped(source, sampling_grid(depth, batch["motions"][:, number], batch["intrinsics"]))
        for number, source in enumerate((before, after))
    ]
    error = PhotometricError(target)
    by_depth = torch.cat([error(one) for one in drawn], 1).amin(1)
    still = identity_errors(error, (before, after), generator=torch.Generator().manual_seed(seed)).amin(1)
    rows = {
        "frame": target * 2 - 1,
        "next frame": after * 2 - 1,
        "next frame, drawn as this one by the true depth": drawn[1] * 2 - 1,
        "error by the true depth": coloured(by_depth * 4),
        "error if nothing moved": coloured(still * 4),
        "masked (light)": coloured((still < by_depth).float()),
    }
    return picture_strips(rows, seed, columns=count)


def strips(models: Mapping[str, FsreDepth], world: Streets, seed: int, count: int = 3) -> pd.DataFrame:
    """Test streets, what each arm and the floor make of them, and how wrong that is."""
    images, truth = world.images[:count], world.truth[:count]
    found = {name: depths_of(model)(images)[:, 0] for name, model in models.items()}
    found[FLOOR] = world.median_depth.expand_as(truth)
    rows = {"picture": images * 2 - 1, "true depth (near is light)": depth_colours(truth)}
    for name, depths in found.items():
        depths = scaled(depths, truth)
        rows[name] = depth_colours(depths)
        rows[f"{name}: error"] = error_colours(depths, truth)
    return picture_strips(rows, seed, columns=count)


def by_distance(models: Mapping[str, FsreDepth], world: Streets, seed: int) -> pd.DataFrame:
    """Mean relative error with its sign by true depth: a row per arm and bin, named by its end in metres."""
    found = {name: depths_of(model)(world.images)[:, 0] for name, model in models.items()}
    found[FLOOR] = world.median_depth.expand_as(world.truth)
    truth, known = world.truth, counted(world.truth)
    rows = []
    for name, depths in found.items():
        relative = (scaled(depths, truth) - truth) / truth.clamp_min(1e-3)
        for low, high in pairwise((0, *BINS)):
            where = known & (truth > low) & (truth <= high)
            if where.any():
                told = float(relative[where].mean())
                rows.append({"seed": seed, "arm": name, "true depth up to (m)": high, "too far by": told})
    return pd.DataFrame(rows).set_index("seed")


def close_ups(models: Mapping[str, FsreDepth], world: Streets, seed: int, count: int = 6) -> pd.DataFrame:
    """The squares of test pictures with the most boundary, a picture each, as truth and arms have them."""
    density = F.avg_pool2d(world.regions["boundaries"][:count, None].float(), CLOSE, stride=4)[:, 0]
    places = density.flatten(1).argmax(1)
    rows, columns = places // density.shape[2] * 4, places % density.shape[2] * 4

    def cut(pictures: Tensor) -> Tensor:
        squares = [
            picture[:, row : row + CLOSE, column : column + CLOSE]
            for picture, row, column in zip(pictures, rows.tolist(), columns.tolist(), strict=True)
        ]
        return F.interpolate(torch.stack(squares), scale_factor=2, mode="nearest")

    images, truth = world.images[:count], world.truth[:count]
    shown = {"picture": cut(images * 2 - 1), "true depth": cut(depth_colours(truth))}
    for name, model in models.items():
        shown[name] = cut(depth_colours(scaled(depths_of(model)(images)[:, 0], truth)))
    return picture_strips(shown, seed, columns=count)


def likeness(models: Mapping[str, FsreDepth], world: Streets, seed: int, count: int = 3) -> pd.DataFrame:
    """How like the features of the finest level of the triplet loss are to those of one car, tree or pole.

    The anchor, marked in the picture, lies amid the label with the most pixels, of those that are neither
    road, pavement, building nor sky; in the middle of the picture where there is no other.
    """
    images, labels = world.images[:count], world.tested("labels")[:count]
    anchors = [_anchor(one) for one in labels]
    marked = images * 2 - 1
    for picture, (row, column) in zip(marked, anchors, strict=True):
        picture[:, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = torch.tensor(
            [1.0, -1.0, 1.0]
        )[:, None, None]
    shown = {"picture, with the anchor": marked}
    for name, model in models.items():
        with torch.no_grad():
            features = F.normalize(model(images, labels=False).features[1], dim=1)
        cosines = [
            (features[number] * features[number, :, row // 2, column // 2][:, None, None]).sum(0)
            for number, (row, column) in enumerate(anchors)
        ]
        full = F.interpolate(torch.stack(cosines)[:, None], images.shape[-2:], mode="nearest")[:, 0]
        shown[f"{name}: likeness to the anchor"] = coloured((full + 1) / 2, colours="viridis")
    return picture_strips(shown, seed, columns=count)


def _anchor(labels: Tensor) -> tuple[int, int]:
    """A pixel amid the most frequent label but road, pavement, building and sky; else amid the picture."""
    values, counts = labels.unique(return_counts=True)
    things = [(int(n), int(v)) for v, n in zip(values, counts, strict=True) if int(v) not in (0, 1, 2, 10)]
    if not things:
        return labels.shape[0] // 2, labels.shape[1] // 2
    inside = F.avg_pool2d((labels == max(things)[1])[None, None].float(), 9, stride=1, padding=4)[0, 0]
    place = int(inside.argmax())
    return place // labels.shape[1], place % labels.shape[1]


def matched_pictures(pair: StereoPair, found: Mapping[str, Matched], seed: int) -> pd.DataFrame:
    """A pair's left picture, its true disparities, what was found, and where that is wrong."""
    size, known = pair.disparity.shape, pair.disparity > 0
    longest = float(pair.disparity.max())

    def small(picture: Tensor) -> Tensor:
        return F.interpolate(picture, scale_factor=0.5, mode="area")

    truth = coloured(pair.disparity[None] / longest)
    rows = {"left picture, true disparity (near is light)": torch.cat([pair.left[None] * 2 - 1, truth])}
    for name, one in found.items():
        full = one.at(size)
        wrong = torch.where(known, (full - pair.disparity).abs() / 6, 0)
        rows[f"{name}: disparity, error (light: 6 pixels or more)"] = torch.cat(
            [coloured(full[None] / longest), coloured(wrong[None])]
        )
    return picture_strips({name: small(row) for name, row in rows.items()}, seed, columns=2)


def room_pictures(
    rooms: Mapping[str, StereoPair], found: Mapping[str, Agreement], seed: int, count: int = 4
) -> pd.DataFrame:
    """The first rooms, a column each: the left picture, and disparities where both pictures agree."""
    left, disparities = [], []
    for name in list(rooms)[:count]:
        one = found[name]
        left.append(F.interpolate(rooms[name].left[None], one.disparity.shape, mode="area")[0] * 2 - 1)
        nearest = one.disparity[~one.at_odds].quantile(0.98)
        colours = coloured(one.disparity[None] / nearest, colours="viridis")[0]
        disparities.append(torch.where(one.at_odds, -1.0, colours))
    rows = {"left picture": left, "disparity (near is light), black where the two disagree": disparities}
    return picture_strips({name: torch.stack(row) for name, row in rows.items()}, seed, columns=count)


def amounts(found: Mapping[str, Matched], pair: StereoPair, wrong: Mapping[str, float]) -> pd.DataFrame:
    """What was found of a pair in numbers, a row each: per cent off, and the median error in pixels."""
    known = pair.disparity > 0
    size = pair.disparity.shape
    rows = [
        {
            "by": name,
            "off by more than 3 pixels (%)": wrong[name],
            "median error (pixels)": float(np.median((one.at(size) - pair.disparity).abs()[known].numpy())),
        }
        for name, one in found.items()
    ]
    return pd.DataFrame(rows).set_index("by")
