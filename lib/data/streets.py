"""Streets that are made up: colour, true depth and labels as a camera that drives through them sees them.

A street is rectangles along the axes and upright round things, cast ray by ray: a road between pavements,
houses, hedges, trees, parked and driving cars, poles, signs and people. They are covered with photographs
that scikit-image carries, so that there is real texture; some houses and all cars are nearly plain, as weak
texture is what monocular depth finds hard. Cameras, motions and labels are known exactly. Coordinates
are metres, x to the right, y down, z ahead; labels are Cityscapes' train ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib.data.dataset import DataSet
from lib.data.imagenet import open_image
from lib.data.photographs import PHOTOGRAPHS

#: Label to Cityscapes' train id, of what there is in these streets.
LABELS = {
    "road": 0, "sidewalk": 1, "building": 2, "pole": 5, "traffic sign": 7, "vegetation": 8, "sky": 10,
    "person": 11, "car": 13,
}  # fmt: skip
#: Photographs and what they cover, of side 2·`TILE` pixels with their mirror images.
TEXTURES = ("brick", "gravel", "grass", "coffee", "astronaut", "chelsea", "retina")
TILE = 128
#: Height of the camera above the road, and how far a street goes, in metres.
HEIGHT, LENGTH = 1.65, 90.0
#: Contrast of a photograph below which a surface counts as plain.
PLAIN = 0.15


class Textures:
    """Photographs as tiles that join without seams, each at half the size again and again.

    Parameters
    ----------
    tiles : (N, TILE, TILE, 3)
        In 0…1; their mean is taken out, and added again where they are seen.
    """

    def __init__(self, tiles: np.ndarray) -> None:
        levels, self.starts, count = [], [], 0
        tiles = np.concatenate([tiles, tiles[:, ::-1]], 1)
        tiles = np.concatenate([tiles, tiles[:, :, ::-1]], 2)
        tiles = (tiles - tiles.mean((1, 2), keepdims=True)).astype(np.float32)
        while True:
            self.starts.append(count)
            levels.append(tiles.reshape(-1, 3))
            count += len(levels[-1])
            if tiles.shape[1] == 1:
                break
            tiles = tiles.reshape(len(tiles), tiles.shape[1] // 2, 2, -1, 2, 3).mean((2, 4))
        self.texels, self.starts = np.concatenate(levels), np.array(self.starts)

    def seen(self, number: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colours (P, 3) about 0 at places (P,) in texels of the finest level, a pixel being so many wide."""
        level = np.log2(np.maximum(footprint, 1.0)) + 0.5
        level = np.minimum(level.astype(np.int32), len(self.starts) - 1)
        size = 2 * TILE >> level
        base = self.starts[level] + number * size * size
        shrink = np.float32(0.5) ** level
        u, v = u * shrink - 0.5, v * shrink - 0.5
        left, top = np.floor(u), np.floor(v)
        u, v = (u - left)[:, None], (v - top)[:, None]
        left, top = left.astype(np.int32), top.astype(np.int32)
        columns = left & (size - 1), (left + 1) & (size - 1)
        rows = base + (top & (size - 1)) * size, base + ((top + 1) & (size - 1)) * size
        upper, lower = (
            self.texels[row + columns[0]] * (1 - u) + self.texels[row + columns[1]] * u for row in rows
        )
        return upper * (1 - v) + lower * v


def read_textures(*paths: Path) -> Textures:
    """The middle of each photograph as a tile."""
    tiles = []
    for path in paths:
        image = open_image(path)
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        square = image.crop((left, top, left + side, top + side)).resize((TILE, TILE))
        tiles.append(np.asarray(square, np.float32) / 255)
    return Textures(np.stack(tiles))


#: Made-up streets; `load` gives their `Textures`.
STREETS = DataSet(
    name="rendered streets",
    licence="made up; " + PHOTOGRAPHS.licence,
    citation=PHOTOGRAPHS.citation,
    homepage=PHOTOGRAPHS.homepage,
    sources=tuple(
        source for name in TEXTURES for source in PHOTOGRAPHS.sources if source.name.startswith(f"{name}.")
    ),
    read=read_textures,
    synthetic=True,
)


@dataclass(frozen=True)
class Material:
    """What covers a surface: a photograph's deviations from its mean, on a colour."""

    label: str
    texture: str
    colour: tuple[float, float, float]
    contrast: float = 1.0
    texels: float = 40.0  # per metre


@dataclass
class Street:
    """What stands in a street, as numbers: one row for each surface.

    Attributes
    ----------
    flat : list
        Rectangles: normal axis, place along it, bounds along the two other axes in their order, and whether
        its outside is that of larger (1) or smaller (0) coordinates.
    round : list
        Centre, radius, 1 for a sphere or 0 for an upright cylinder, upper and lower bound of y.
    of_flat, of_round : list
        Of each rectangle, and of all that is round: material, metres per frame along z, texture's origin.
    """

    flat: list[tuple] = field(default_factory=list)
    round: list[tuple] = field(default_factory=list)
    of_flat: list[tuple] = field(default_factory=list)
    of_round: list[tuple] = field(default_factory=list)

    def box(self, low, high, material: Material, *, speed: float = 0.0, anchor=(0.0, 0.0, 0.0)) -> None:
        """A box without the face below."""
        for axis in range(3):
            b, c = (other for other in range(3) if other != axis)
            for side, place in enumerate((low[axis], high[axis])[: 1 if axis == 1 else 2]):
                self.flat.append((axis, place, low[b], high[b], low[c], high[c], side))
                self.of_flat.append((material, speed, anchor))

    def cylinder(self, x, z, radius, top, material: Material, *, speed: float = 0.0) -> None:
        """An upright cylinder that stands on the ground."""
        self.round.append((x, 0.0, z, radius, 0.0, top, HEIGHT))
        self.of_round.append((material, speed, (x, 0.0, z)))

    def sphere(self, x, y, z, radius, material: Material) -> None:
        self.round.append((x, y, z, radius, 1.0, y - radius, y + radius))
        self.of_round.append((material, 0.0, (x, y, z)))


def make_street(random: np.random.Generator, *, moving: float = 0.0) -> Street:
    """Draw a street.

    Parameters
    ----------
    random
    moving : float
        Share of the cars and people that move.

    Raises
    ------
    ValueError
        The share is not in 0…1.
    """
    if not 0 <= moving <= 1:
        raise ValueError(f"moving is a share, in 0..1, got {moving}")
    street, half = Street(), random.uniform(3.5, 5)
    grey = random.uniform(0.3, 0.45)
    road = Material("road", "gravel", (grey,) * 3, random.uniform(0.5, 0.9))
    pavement = Material("sidewalk", "brick", (grey + 0.15,) * 3, random.uniform(0.4, 0.8), 60.0)
    street.flat.append((1, HEIGHT, -half, half, -10.0, 2 * LENGTH, 0))
    street.of_flat.append((road, 0.0, (0.0, 0.0, 0.0)))
    for side in (-1, 1):
        _houses(street, random, side, half, pavement)
        _kerbside(street, random, side, half, moving)
    return street


def _across(side: int, near: float, far: float) -> tuple[float, float]:
    """Bounds of x of what is on one side of the street."""
    return (near, far) if side > 0 else (-far, -near)


def _houses(street: Street, random, side: int, half: float, pavement: Material) -> None:
    left, right = _across(side, half, half + 40)
    street.box((left, HEIGHT - 0.15, -10), (right, HEIGHT, 2 * LENGTH), pavement)
    front, z = half + random.uniform(1.5, 3.5), -8.0
    while z < LENGTH:
        width = random.uniform(5, 14)
        near = front + random.uniform(0, 1.5)
        left, right = _across(side, near, near + 12)
        if random.random() < 0.2:
            green = Material("vegetation", "grass", (0.22, 0.36, 0.18), 1.2, 50.0)
            street.box((left, HEIGHT - random.uniform(1, 2.5), z), (right, HEIGHT, z + width), green)
        else:
            contrast = 0.08 if random.random() < 0.3 else random.uniform(0.6, 1.1)
            texture = ("brick", "brick", "coffee", "astronaut", "chelsea", "retina")[random.integers(6)]
            colour = tuple(random.uniform(0.35, 0.75) + random.uniform(-0.08, 0.08, 3))
            wall = Material("building", texture, colour, contrast, random.uniform(30, 60))
            top = HEIGHT - random.uniform(4, 14)
            street.box((left, top, z), (right, HEIGHT, z + width), wall, anchor=(0.0, 0.0, z))
        z += width + (random.uniform(1, 5) if random.random() < 0.3 else 0)


def _kerbside(street: Street, random, side: int, half: float, moving: float) -> None:
    """Cars, poles, signs, trees and people of one side."""
    z = random.uniform(2, 8)
    while z < LENGTH:
        z += random.uniform(5, 16)
        drives = random.random() < moving
        speed = side * random.uniform(-0.6, -0.2) if drives else 0.0
        x, length = side * (half - 1.1 - drives * random.uniform(0.8, 1.2)), random.uniform(3.6, 4.8)
        paint = Material("car", "retina", tuple(random.uniform(0.1, 0.9, 3)), 0.1)
        glass = Material("car", "retina", (0.12, 0.13, 0.16), 0.1)
        for bottom, top, before, behind, material in (
            (HEIGHT - 0.2, HEIGHT - 0.85, 0.0, 0.0, paint),
            (HEIGHT - 0.85, HEIGHT - 1.4, 0.9, 0.5, glass),
        ):
            low, high = (x - 0.85, top, z + before), (x + 0.85, bottom, z + length - behind)
            street.box(low, high, material, speed=speed, anchor=low)
    z = random.uniform(1, 8)
    while z < LENGTH:
        x = side * (half + random.uniform(0.3, 0.6))
        kind = random.random()
        if kind < 0.6:
            metal = Material("pole", "gravel", (random.uniform(0.15, 0.6),) * 3, 0.3)
            street.cylinder(x, z, random.uniform(0.04, 0.1), -random.uniform(1, 4), metal)
            if random.random() < 0.5:
                colours = ((0.75, 0.1, 0.1), (0.1, 0.2, 0.7), (0.8, 0.7, 0.1))
                sign = Material("traffic sign", "coffee", colours[random.integers(3)], 0.3)
                low = (x - 0.35, -random.uniform(0.9, 1.4), z - 0.15)
                street.box(low, (x + 0.35, low[1] + 0.7, z - 0.1), sign, anchor=low)
        else:
            bark = Material("vegetation", "gravel", (0.3, 0.22, 0.16), 0.8, 80.0)
            leaves = Material("vegetation", "grass", (0.2, 0.38, 0.16), 1.3, 50.0)
            radius = random.uniform(0.8, 1.6)
            street.cylinder(x, z, 0.16, -1.8, bark)
            street.sphere(x, -1.4 - radius, z, radius, leaves)
        z += random.uniform(4, 12)
    for _ in range(random.integers(0, 5)):
        x, z = side * (half + random.uniform(0.6, 1.4)), random.uniform(4, 40)
        speed = random.uniform(-0.1, 0.1) if random.random() < moving else 0.0
        clothes = Material("person", "astronaut", tuple(random.uniform(0.15, 0.7, 3)), 0.6, 100.0)
        street.cylinder(x, z, 0.24, HEIGHT - random.uniform(1.7, 1.9), clothes, speed=speed)


@dataclass(frozen=True)
class Camera:
    """Where a camera is, and where it looks: turned about y by the yaw, then about its x by the pitch."""

    x: float
    z: float
    yaw: float = 0.0
    pitch: float = 0.0

    @property
    def pose(self) -> np.ndarray:
        """From camera to world coordinates, (4, 4)."""
        (cy, sy), (cp, sp) = ((math.cos(angle), math.sin(angle)) for angle in (self.yaw, self.pitch))
        about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = about_y @ about_x, (self.x, 0, self.z)
        return pose


def intrinsics(size: tuple[int, int]) -> np.ndarray:
    """KITTI's angle of view across, and square pixels: f is 0.58 of the width; (3, 3) in pixels."""
    height, width = size
    focal = 0.58 * width
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, 0.45 * (height - 1)], [0, 0, 1]])


def drive(random: np.random.Generator, frames: int) -> list[Camera]:
    """A camera on its way: 0.4 to 0.8 metres a frame, with slight turns."""
    x, z, yaw = random.uniform(-1, 1), random.uniform(0, 10), random.normal(0, 0.02)
    speed, cameras = random.uniform(0.4, 0.8), []
    for _ in range(frames):
        cameras.append(Camera(x, z, yaw, random.normal(0, 0.003)))
        yaw = 0.9 * yaw + random.normal(0, 0.012)
        x, z = x + speed * math.sin(yaw), z + speed * math.cos(yaw)
    return cameras
