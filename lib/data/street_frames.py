"""What a camera sees of a made-up street: rays cast surface by surface, each where it can be on the picture.

Geometry first, each surface within the rectangle of pixels that its corners span, then one look at the
photographs for all pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.streets import (
    LABELS,
    PLAIN,
    TEXTURES,
    Camera,
    Street,
    Textures,
    drive,
    intrinsics,
    make_street,
)

#: Nearest surface that is seen, in metres.
NEAREST = 0.2


@dataclass(frozen=True, eq=False)
class Frames:
    """Pictures of one drive, or of many.

    Attributes
    ----------
    images : (N, 3, H, W) uint8
    depth : (N, H, W) float32
        Along the camera's axis, in metres; 0 in the sky.
    labels : (N, H, W) uint8
        Cityscapes' train ids, `lib.data.streets.LABELS`.
    plain : (N, H, W) bool
        Weak texture: surfaces of little contrast, and the sky.
    poses : (N, 4, 4) float64
        From camera to world coordinates.
    intrinsics : (3, 3) float32
        In pixels.
    """

    images: Tensor
    depth: Tensor
    labels: Tensor
    plain: Tensor
    poses: Tensor
    intrinsics: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def motion(self, target: int, source: int) -> Tensor:
        """From one frame's camera coordinates to another's, (4, 4) float32; of frames of one drive.

        Raises
        ------
        torch.linalg.LinAlgError
            The source's pose is singular.
        """
        return (torch.linalg.inv(self.poses[source]) @ self.poses[target]).float()


def render(street: Street, cameras: list[Camera], textures: Textures, size: tuple[int, int]) -> Frames:
    """The pictures that a camera takes, one a frame; what moves has moved by as many frames.

    Parameters
    ----------
    street
    cameras
        One for each frame.
    textures
        From `lib.data.streets.STREETS`.
    size
        Height and width in pixels.

    Raises
    ------
    ValueError
        There is no frame, or it has fewer than two rows or columns.
    """
    if not cameras or min(size) < 2:
        raise ValueError(f"expected a frame or more of 2×2 pixels or more, got {len(cameras)} of {size}")
    scene, k = _Scene(street), intrinsics(size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1], np.ones(size)])
    poses = [camera.pose for camera in cameras]
    seen = [_seen(scene.at(number), pose, k, rays, textures) for number, pose in enumerate(poses)]
    images, depth, labels, plain = (torch.from_numpy(np.stack(kind)) for kind in zip(*seen, strict=True))
    return Frames(images, depth, labels, plain, torch.tensor(np.stack(poses)), torch.tensor(k).float())


def render_drive(
    textures: Textures,
    *,
    seed: int,
    number: int = 0,
    frames: int = 3,
    size: tuple[int, int] = (96, 320),
    moving: float = 0.0,
) -> Frames:
    """A drive through a street of its own, a function of seed and number.

    Parameters
    ----------
    seed, number
        Of the street and the drive.
    frames
        How many.
    size, moving
        As of `render` and `lib.data.streets.make_street`.
    """
    random = np.random.default_rng((seed, number))
    return render(make_street(random, moving=moving), drive(random, frames), textures, size)


@dataclass(frozen=True, eq=False)
class Drives:
    """Drives to learn from: every frame that has a neighbour before and after is a sample.

    Attributes
    ----------
    drives : tuple of Frames
        Of three frames or more, all of one size.
    """

    drives: tuple[Frames, ...]

    def __post_init__(self) -> None:
        if not self.drives or min(map(len, self.drives)) < 3:
            raise ValueError("expected drives of at least three frames each")

    @classmethod
    def render(cls, textures: Textures, count: int, *, seed: int, **options: Any) -> Drives:
        """Drives number 0 to ``count`` − 1 of a seed; options of `render_drive`."""
        return cls(tuple(render_drive(textures, seed=seed, number=k, **options) for k in range(count)))

    def __len__(self) -> int:
        return sum(len(drive) - 2 for drive in self.drives)

    def batch(self, step: int, batch_size: int, *, seed: int, flip: bool = True) -> dict[str, Tensor]:
        """Samples of a step, from 0: a function of seed and step; epochs are cut into whole batches.

        Parameters
        ----------
        step, batch_size : int
        seed : int
        flip : bool
            Mirror every second sample on average, left to right, its principal point as well.

        Returns
        -------
        dict
            As `lib.models.depth.self_supervision.Objective.terms` wants it: ``images`` (B, 3, 3, H, W) in
            [0, 1], ``labels`` (B, H, W), ``intrinsics`` (B, 3, 3); and ``depth`` (B, H, W), 0 where there
            is none, and ``motions`` (B, 2, 4, 4), the true ones to the frame before and to that after.

        Raises
        ------
        ValueError
            There are not as many samples.
        """
        if not 1 <= batch_size <= len(self):
            raise ValueError(f"batch_size must be in 1..{len(self)}, got {batch_size}")
        places = [(drive, k) for drive in self.drives for k in range(1, len(drive) - 1)]
        epoch, place = divmod(step, len(places) // batch_size)
        order = np.random.default_rng((seed, 0, epoch)).permutation(len(places))
        mirrored = np.random.default_rng((seed, 1, step)).random(batch_size) < (0.5 if flip else 0)
        samples = [
            _sample(*places[number], mirror=mirror)
            for number, mirror in zip(order[place * batch_size :], mirrored, strict=False)
        ]
        return {name: torch.stack([one[name] for one in samples]) for name in samples[0]}


def _sample(frames: Frames, number: int, *, mirror: bool) -> dict[str, Tensor]:
    sample = {
        "images": frames.images[number - 1 : number + 2] / 255,
        "labels": frames.labels[number].long(),
        "depth": frames.depth[number],
    }
    intrinsics = frames.intrinsics.clone()
    motions = torch.stack([frames.motion(number, number + away) for away in (-1, 1)])
    if mirror:
        sample = {name: value.flip(-1) for name, value in sample.items()}
        intrinsics[0, 2] = frames.images.shape[-1] - 1 - intrinsics[0, 2]
        other_x = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
        motions = other_x @ motions @ other_x
    return sample | {"intrinsics": intrinsics, "motions": motions}


def label_boundaries(labels: Tensor, width: int = 2) -> Tensor:
    """Where another label is at most ``width`` pixels away, in rows and columns: (N, H, W) bool.

    Raises
    ------
    ValueError
        The width is below 1.
    """
    if width < 1:
        raise ValueError(f"the width is at least 1 pixel, got {width}")
    window, values = 2 * width + 1, labels[:, None].float()
    extremes = (F.max_pool2d(sign * values, window, 1, width) for sign in (1, -1))
    return (sum(extremes) > 0)[:, 0]


@dataclass(eq=False)
class _Scene:
    """A street as arrays: flat surfaces first, then round ones, the sky last."""

    street: Street

    def __post_init__(self) -> None:
        street = self.street
        flat = np.array(street.flat, np.float64).reshape(-1, 7)
        self.flat, self.upper = flat[:, :6], flat[:, 6] > 0
        self.round = np.array(street.round, np.float64).reshape(-1, 7)
        of = street.of_flat + street.of_round
        self.speed = np.array([speed for _, speed, _ in of])
        self.anchor = np.array([anchor for _, _, anchor in of], np.float64).reshape(-1, 3)
        materials = [material for material, _, _ in of]
        self.texture = np.array([TEXTURES.index(one.texture) for one in materials])
        self.texels = np.array([one.texels for one in materials], np.float32)
        self.colour = np.array([one.colour for one in materials], np.float32)
        self.contrast = np.array([one.contrast for one in materials], np.float32)
        self.label = np.array([LABELS[one.label] for one in materials] + [LABELS["sky"]], np.uint8)
        self.plain = np.append(self.contrast < PLAIN, True)
        self.axis = np.append(self.flat[:, 0].astype(int), np.full(len(self.round), 3))

    def at(self, frame: int) -> _Scene:
        """The same at another moment."""
        if not self.speed.any() or frame == 0:
            return self
        moved = _Scene(self.street)
        shift = frame * self.speed
        flat, round_ = shift[: len(self.flat)], shift[len(self.flat) :]
        for axis, columns in ((0, (4, 5)), (1, (4, 5)), (2, (1,))):
            for column in columns:
                moved.flat[:, column] += np.where(self.flat[:, 0] == axis, flat, 0)
        moved.round[:, 2] += round_
        moved.anchor[:, 2] += shift
        return moved


def _seen(
    scene: _Scene, pose: np.ndarray, k: np.ndarray, rays: np.ndarray, textures: Textures
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One frame: image, depth, labels, plain."""
    directions = np.tensordot(pose[:3, :3], rays, 1).astype(np.float32)
    centre = pose[:3, 3].astype(np.float32)
    depth = np.full(rays.shape[1:], np.inf, np.float32)
    surface = np.full(rays.shape[1:], len(scene.axis), np.int32)
    extents = _extents(_corners(scene.flat, scene.round), pose, k, depth.shape)
    # of the two faces across an axis, the camera sees the one on its side
    beyond = centre[scene.flat[:, 0].astype(int)] > scene.flat[:, 1]
    extents[: len(scene.flat)][beyond != scene.upper, 1] = -1
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / directions
        for number in np.flatnonzero((extents[:, 1] >= extents[:, 0]) & (extents[:, 3] >= extents[:, 2])):
            top, bottom, left, right = extents[number]
            part = slice(top, bottom + 1), slice(left, right + 1)
            if number < len(scene.flat):
                _cast_flat(number, scene.flat[number], part, centre, directions, inverse, depth, surface)
            else:
                row = scene.round[number - len(scene.flat)]
                _cast_round(number, row, part, centre, directions, depth, surface)
    image = _coloured(scene, centre, directions, depth, surface, k[0, 0], textures)
    sky = surface == len(scene.axis)
    return image, np.where(sky, 0, depth), scene.label[surface], scene.plain[surface]


def _corners(flat: np.ndarray, round_: np.ndarray) -> np.ndarray:
    """Of what bounds each surface, (N, 8, 3): rectangles have each corner twice."""
    low, high = np.empty((2, len(flat) + len(round_), 3))
    count, axis = np.arange(len(flat)), flat[:, 0].astype(int)
    for bounds, first in ((low, 2), (high, 3)):
        bounds[count, axis] = flat[:, 1]
        bounds[count, np.where(axis == 0, 1, 0)] = flat[:, first]
        bounds[count, np.where(axis == 2, 1, 2)] = flat[:, first + 2]
    x, _, z, radius, _, top, bottom = round_.T
    low[len(flat) :] = np.stack([x - radius, top, z - radius], 1)
    high[len(flat) :] = np.stack([x + radius, bottom, z + radius], 1)
    choice = np.array([[k >> 2 & 1, k >> 1 & 1, k & 1] for k in range(8)], bool)
    return np.where(choice, high[:, None], low[:, None])


def _extents(corners: np.ndarray, pose: np.ndarray, k: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """First and last row and column that each hull of corners can be in, (N, 4); none if last < first."""
    seen = (corners - pose[:3, 3]) @ pose[:3, :3]
    ahead = seen[..., 2] > NEAREST
    extents = _spans(seen, k, shape)
    for number in np.flatnonzero(ahead.any(1) & ~ahead.all(1)):
        front, behind = seen[number, ahead[number]], seen[number, ~ahead[number]]
        share = (front[:, None, 2:] - NEAREST) / (front[:, None, 2:] - behind[:, 2:])
        cut = front[:, None] + share * (behind - front[:, None])  # where edges meet the nearest plane
        extents[number] = _spans(np.concatenate([front, cut.reshape(-1, 3)])[None], k, shape)[0]
    extents[~ahead.any(1), 1] = -1
    return extents


def _spans(seen: np.ndarray, k: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    spans = []
    for axis in (1, 0):
        place = k[axis, axis] * seen[..., axis] / np.maximum(seen[..., 2], NEAREST) + k[axis, 2]
        place = place.clip(-1, shape[1 - axis])
        spans += [np.ceil(place.min(1)).clip(0), np.floor(place.max(1)).clip(None, shape[1 - axis] - 1)]
    return np.stack(spans, 1).astype(int)


def _cast_flat(number, row, part, centre, directions, inverse, depth, surface) -> None:
    axis = int(row[0])
    b, c = (other for other in range(3) if other != axis)
    place, low_b, high_b, low_c, high_c = row[1:].astype(np.float32)
    away = (place - centre[axis]) * inverse[axis][part]
    hit = (away > NEAREST) & (away < depth[part])
    for other, low, high in ((b, low_b, high_b), (c, low_c, high_c)):
        where = away * directions[other][part]
        hit &= (where >= low - centre[other]) & (where < high - centre[other])
    np.copyto(depth[part], away, where=hit)
    np.copyto(surface[part], number, where=hit)


def _cast_round(number, row, part, centre, directions, depth, surface) -> None:
    x, y, z, radius, sphere, top, bottom = row.astype(np.float32)
    dx, dy, dz = directions[(slice(None), *part)]
    ox, oy, oz = centre - np.array([x, y, z], np.float32)
    a = dx * dx + dz * dz + sphere * dy * dy
    half = ox * dx + oz * dz + sphere * oy * dy
    root = half * half - a * (ox * ox + oz * oz + sphere * oy * oy - radius * radius)
    away = (-half - np.sqrt(root)) / a
    height = centre[1] + away * dy
    hit = (away > NEAREST) & (away < depth[part]) & (height >= top) & (height < bottom)
    np.copyto(depth[part], away, where=hit)
    np.copyto(surface[part], number, where=hit)


def _coloured(scene, centre, directions, depth, surface, focal, textures) -> np.ndarray:
    """The picture, (3, H, W) uint8."""
    picture = np.empty((*depth.shape, 3), np.float32)
    solid = surface < len(scene.axis)
    up = np.clip(0.5 - directions[1][~solid], 0, 1)[:, None]
    picture[~solid] = np.array([0.85, 0.9, 0.95]) - up * np.array([0.35, 0.25, 0.05])

    number, away = surface[solid], depth[solid]
    ray = directions[:, solid]
    place = away * ray + (centre[:, None] - scene.anchor[number].T)
    axis = scene.axis[number]
    u, v = np.where(axis == 0, place[2], place[0]), np.where(axis == 1, place[2], place[1])
    facing = np.abs(np.choose(np.minimum(axis, 2), ray))
    light = np.array([0.8, 1.0, 0.92, 0.9], np.float32)[axis]
    bent = np.flatnonzero(axis == 3)
    if len(bent):
        row = scene.round[number[bent] - len(scene.flat)]
        x, z, radius = place[0, bent], place[2, bent], row[:, 3]
        u[bent] = np.arctan2(x, -z) * radius
        y = (place[1, bent] - row[:, 1]) * row[:, 4]
        facing[bent] = np.abs(x * ray[0, bent] + y * ray[1, bent] + z * ray[2, bent]) / radius
        light[bent] = 0.7 + 0.3 * np.clip(-x / radius, -1, 1)
    texels = scene.texels[number]
    length = np.sqrt((ray * ray).sum(0))
    footprint = texels * away * length / (focal * np.maximum(facing / length, 0.05))
    colour = textures.seen(scene.texture[number], u * texels, v * texels, footprint)
    picture[solid] = (scene.colour[number] + scene.contrast[number, None] * colour) * light[:, None]
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(2, 0, 1)
