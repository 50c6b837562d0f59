"""The photometric machinery on a real pair of photographs: which disparity makes the pictures agree?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.stereo import StereoPair
from lib.models.depth.photometric import PhotometricError, smoothness
from lib.models.depth.view_synthesis import sampling_grid, warped

#: A disparity is wrong if it is off by more than so many pixels of the full picture, as Middlebury counts.
WRONG = 3.0

#: The longest disparity that is tried, in pixels of the full picture.
LONGEST = 70


@dataclass(frozen=True, eq=False)
class Matched:
    """Disparities of a pair's left picture.

    Attributes
    ----------
    disparity : (H, W)
        In pixels, at the resolution that was worked at.
    scale : float
        Pixels of the full picture in one of them.
    """

    disparity: Tensor
    scale: float

    def at(self, size: tuple[int, int]) -> Tensor:
        """In pixels of the full picture, at its size."""
        full = F.interpolate(self.disparity[None, None], size, mode="bilinear", align_corners=False)
        return full[0, 0] * self.scale


def smaller(pair: StereoPair, factor: int) -> StereoPair:
    """A pair at a fraction of its resolution, with every so manyth of its disparities."""
    height, width = (length // factor for length in pair.left.shape[1:])

    def reduced(image: Tensor) -> Tensor:
        cut = image[:, : height * factor, : width * factor]
        return F.avg_pool2d(cut, factor)

    def camera(intrinsics: Tensor) -> Tensor:
        scaled = intrinsics / factor
        scaled[:2, 2] = (intrinsics[:2, 2] + 0.5) / factor - 0.5  # centres of pixels have whole coordinates
        scaled[2, 2] = 1
        return scaled

    return StereoPair(
        reduced(pair.left),
        reduced(pair.right),
        camera(pair.intrinsics),
        camera(pair.right_intrinsics),
        pair.baseline,
        pair.disparity[::factor, ::factor][:height, :width] / factor,
    )


def mirrored(pair: StereoPair) -> StereoPair:
    """A pair as a mirror shows it: the right picture is the left one then. Its disparities are not known."""
    last = pair.left.shape[2] - 1

    def camera(intrinsics: Tensor) -> Tensor:
        turned = intrinsics.clone()
        turned[0, 2] = last - intrinsics[0, 2]
        return turned

    return StereoPair(
        pair.right.flip(2),
        pair.left.flip(2),
        camera(pair.right_intrinsics),
        camera(pair.intrinsics),
        pair.baseline,
        torch.zeros_like(pair.disparity),
    )


def depth_of(disparity: Tensor, pair: StereoPair) -> Tensor:
    """Depths of disparities in the pair's pixels; as of `StereoPair.depth`."""
    offset = pair.right_intrinsics[0, 2] - pair.intrinsics[0, 2]
    return pair.intrinsics[0, 0] * pair.baseline / (disparity + offset).clamp_min(1e-3)


def photometric_error(disparity: Tensor, pair: StereoPair, error: PhotometricError) -> Tensor:
    """Of the right picture drawn as the left by disparities (B, 1, H, W), as (B, 1, H, W)."""
    count = len(disparity)
    grid = sampling_grid(
        depth_of(disparity, pair),
        pair.motion.expand(count, 4, 4),
        pair.intrinsics.expand(count, 3, 3),
        source_intrinsics=pair.right_intrinsics.expand(count, 3, 3),
    )
    return error(warped(pair.right.expand(count, -1, -1, -1), grid))


@torch.no_grad()
def swept(pair: StereoPair, disparities: Tensor, *, window: int = 7) -> Tensor:
    """At each pixel the disparity with the least error over a window around it, (H, W)."""
    error = PhotometricError(pair.left[None])
    costs = []
    for disparity in disparities:
        plane = disparity.expand(1, 1, *pair.left.shape[1:])
        cost = photometric_error(plane, pair, error)
        padded = F.pad(cost, (window // 2,) * 4, mode="replicate")
        costs.append(F.avg_pool2d(padded, window, stride=1)[0, 0])
    return disparities[torch.stack(costs).argmin(0)]


def descended(
    pair: StereoPair, start: Tensor, *, steps: int, rate: float = 0.01, weight: float = 0.1
) -> Tensor:
    """Disparities (H, W) by descent on error and smoothness, as a network would be trained, from a start.

    Parameters
    ----------
    pair, start
    steps, rate
        Of Adam, on the logarithm of the disparity.
    weight
        Of the smoothness.
    """
    error, image = PhotometricError(pair.left[None]), pair.left[None]
    log = start.clamp_min(0.5).log()[None, None].clone().requires_grad_()
    optimizer = torch.optim.Adam([log], lr=rate)
    for _ in range(steps):
        disparity = log.exp()
        loss = photometric_error(disparity, pair, error).mean() + weight * smoothness(disparity, image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return log.detach().exp()[0, 0]


def wrong_share(found: Tensor, pair: StereoPair) -> float:
    """Per cent of the pixels with a truth whose disparity (H, W), of the full picture, is `WRONG`."""
    known = pair.disparity > 0
    return float(100 * ((found - pair.disparity).abs() > WRONG)[known].double().mean())


def matched(pair: StereoPair, *, factor: int, planes: int, steps: int) -> dict[str, Matched]:
    """The pair's disparities by what found them: a plane in the middle, the sweep, and descent from it.

    Parameters
    ----------
    factor
        By which the pictures are reduced.
    planes
        Disparities that are tried, from 1 to `LONGEST` pixels of the full picture.
    steps
        Of the descent.
    """
    small = smaller(pair, factor)
    sweep = swept(small, torch.linspace(1, LONGEST, planes) / factor)
    flat = sweep.median().expand_as(sweep)
    refined = descended(small, sweep, steps=steps)
    return {
        name: Matched(disparity, factor)
        for name, disparity in (("one plane", flat), ("plane sweep", sweep), ("sweep and descent", refined))
    }


@dataclass(frozen=True, eq=False)
class Agreement:
    """Whether the pictures of a pair find each other.

    Attributes
    ----------
    disparity : (H, W)
        Of the left picture by the sweep, in pixels of the reduced one.
    at_odds : (H, W) bool
        The sweep of the right picture, at the place that is pointed to, is off by more than `WRONG` pixels of
        the full picture, or that place lies outside.
    """

    disparity: Tensor
    at_odds: Tensor


def agreement(pair: StereoPair, *, factor: int, planes: int) -> Agreement:
    """Sweep a pair from either side, as `matched` does; no truth is needed (left-right consistency)."""
    small = smaller(pair, factor)
    tried = torch.linspace(1, LONGEST, planes) / factor
    disparity, back = swept(small, tried), swept(mirrored(small), tried).flip(1)
    place = (torch.arange(disparity.shape[1]) - disparity).round().long()
    off = (back.gather(1, place.clamp_min(0)) - disparity).abs() > WRONG / factor
    return Agreement(disparity, off | (place < 0))


def agreements(
    rooms: Mapping[str, StereoPair], *, factor: int, planes: int
) -> dict[str, dict[str, Agreement]]:
    """Of every pair, and of its left picture with the right one of the next pair: another room."""
    others = [*list(rooms.values())[1:], next(iter(rooms.values()))]
    pairs = {
        "own pair": rooms,
        "another room": {
            name: replace(pair, right=other.right)
            for (name, pair), other in zip(rooms.items(), others, strict=True)
        },
    }
    return {
        kind: {name: agreement(pair, factor=factor, planes=planes) for name, pair in held.items()}
        for kind, held in pairs.items()
    }


def at_odds(found: Mapping[str, Agreement]) -> float:
    """Per cent of the pixels of all pairs that are at odds."""
    return 100 * float(torch.stack([one.at_odds.double().mean() for one in found.values()]).mean())
