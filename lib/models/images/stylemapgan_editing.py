"""Editing with StyleMapGAN (Kim et al., CVPR 2021): locally by mask, by transplantation, mixing, directions.

Style maps and style codes come from the encoder or the mapping network of a
`lib.models.images.stylemapgan.StyleMapGAN`; wherever masks say what comes from the reference, 1 is all of it.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from lib.models.images.stylemapgan import Generator, check_shape

Pool = Literal["any", "most"]
Space = Literal["map", "codes"]


def reduced_mask(mask: Tensor, size: int, *, pool: Pool = "any") -> Tensor:
    """A mask at the size of a style map or code.

    Parameters
    ----------
    mask : bool Tensor (N or 1, 1, H, W)
        What is edited, at the images' size. That of two pictures of parts is the union of both masks.
    size : int
        Divides H and W, which are equal.
    pool : "any" or "most"
        A cell is edited where any of its pixels is (the authors' evaluation), or more than half of them (the
        authors' demonstration).

    Returns
    -------
    bool Tensor (N or 1, 1, size, size)

    Raises
    ------
    ValueError
        Another shape or type, or an unknown `pool`.
    """
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1 or not mask.numel():
        raise ValueError(f"a mask must be bool (N, 1, H, W), got {mask.dtype} {tuple(mask.shape)}")
    if mask.shape[2] != mask.shape[3] or size < 1 or mask.shape[2] % size:
        raise ValueError(f"a mask must be a square of a multiple of {size} pixels, got {tuple(mask.shape)}")
    cells = mask.float().unflatten(3, (size, -1)).unflatten(2, (size, -1))
    if pool == "any":
        return cells.amax(dim=(3, 5)) > 0
    if pool == "most":
        return cells.mean(dim=(3, 5)) > 0.5
    raise ValueError(f"pool must be 'any' or 'most', got {pool!r}")


def edit(
    generator: Generator,
    source: Tensor,
    reference: Tensor,
    mask: Tensor,
    *,
    space: Space = "codes",
    pool: Pool = "any",
    strength: float = 1.0,
) -> Tensor:
    """Local editing: source images with the reference's content where the mask is.

    Parameters
    ----------
    generator
    source, reference : Tensor (N, C, s, s)
        Style maps.
    mask : bool Tensor (N or 1, 1, resolution, resolution)
    space : "codes" or "map"
        Where both are mixed: in all style codes w⁺, which keeps the edit more local, or once in the map w.
    pool
        See `reduced_mask`.
    strength : float
        From 0, the source, to 1, the reference.

    Returns
    -------
    Tensor (N, 3, resolution, resolution)

    Raises
    ------
    ValueError
        Shapes that do not fit, an unknown `space` or `pool`, a strength outside [0, 1].
    """
    check_shape(source, generator.map_shape, "the source's style maps")
    if source.shape != reference.shape or len(mask) not in (1, len(source)):
        shapes = f"{tuple(source.shape)}, {tuple(reference.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"source, reference and mask must be as many, got {shapes}")
    if mask.shape[-1] != generator.resolution:
        raise ValueError(f"a mask must have {generator.resolution} pixels a side, got {tuple(mask.shape)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")

    def mixed(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.lerp(ours, theirs, strength * reduced_mask(mask, ours.shape[-1], pool=pool).to(ours))

    if space == "map":
        return generator(mixed(source, reference))
    if space != "codes":
        raise ValueError(f"space must be 'codes' or 'map', got {space!r}")
    both = (codes.chunk(2) for codes in generator.codes(torch.cat([source, reference])))
    return generator.synthesise([mixed(ours, theirs) for ours, theirs in both])


def half_mask(resolution: int, side: Literal["left", "right", "top", "bottom"]) -> Tensor:
    """The mask (1, 1, resolution, resolution) of one half of an image, as for the authors' animal faces."""
    sides = {"left": (3, 0), "right": (3, 1), "top": (2, 0), "bottom": (2, 1)}
    if side not in sides or resolution < 2:
        raise ValueError(f"there is no half {side!r} of {resolution} pixels")
    axis, second = sides[side]
    mask = torch.zeros(1, 1, resolution, resolution, dtype=torch.bool)
    half = resolution // 2
    mask.narrow(axis, half * second, half).fill_(True)
    return mask


def transplanted(
    source: Tensor,
    reference: Tensor,
    *,
    source_corner: tuple[int, int],
    reference_corner: tuple[int, int],
    height: int,
    width: int,
) -> Tensor:
    """Style maps (N, C, s, s) of the source with a rectangle of the reference's cells at another place.

    Parameters
    ----------
    source, reference : Tensor (N, C, s, s)
    source_corner, reference_corner : pair of int
        Row and column of the rectangle's first cell: where it goes, and where it is from.
    height, width : int
        In cells.

    Raises
    ------
    ValueError
        A rectangle without cells or outside the map, or maps of different shapes.
    """
    if source.shape != reference.shape or source.ndim != 4:
        raise ValueError(f"style maps must be alike, got {tuple(source.shape)} and {tuple(reference.shape)}")
    cells = []
    for row, column in (source_corner, reference_corner):
        inside = 0 <= row <= source.shape[2] - height and 0 <= column <= source.shape[3] - width
        if min(height, width) < 1 or not inside:
            place = f"{height}×{width} cells from ({row}, {column})"
            raise ValueError(f"there are no {place} in a map of {source.shape[2]}×{source.shape[3]}")
        cells.append((..., slice(row, row + height), slice(column, column + width)))
    result = source.clone()
    result[cells[0]] = reference[cells[1]]
    return result


def interpolated(first: Tensor, second: Tensor, weight: float | Tensor) -> Tensor:
    """Style maps (N, C, s, s) between `first` (weight 0) and `second` (1); one weight or (N,) of them."""
    weight = torch.as_tensor(weight, dtype=first.dtype, device=first.device)
    return torch.lerp(first, second, weight.view(-1, 1, 1, 1) if weight.ndim else weight)


def style_mixed(generator: Generator, coarse: Tensor, fine: Tensor, *, layers: int = 2) -> Tensor:
    """Images (N, 3, H, W) with the first style codes of one style map and all others of another.

    Parameters
    ----------
    generator
    coarse, fine : Tensor (N, C, s, s)
    layers : int
        How many codes are `coarse`'s: 2 as published, those at the map's own size.
    """
    if not 0 <= layers <= len(generator.resizer.convs):
        raise ValueError(f"layers must be in 0..{len(generator.resizer.convs)}, got {layers}")
    return generator.synthesise([*generator.codes(coarse)[:layers], *generator.codes(fine)[layers:]])


def mean_map(
    generator: Generator, *, count: int = 4992, batch: int = 1024, random: torch.Generator | None = None
) -> Tensor:
    """The mean style map (1, C, s, s) of `count` random vectors (published: 4992)."""
    if min(count, batch) < 1:
        raise ValueError(f"count and batch must be at least 1, got {count} and {batch}")
    total = torch.zeros(1, *generator.map_shape, dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, count, batch):
            latents = generator.draw(min(batch, count - start), generator=random)
            total += generator.mapping(latents).double().sum(dim=0, keepdim=True).cpu()
    return (total / count).to(generator.constant)


def random_maps(
    generator: Generator,
    count: int,
    *,
    truncation: float = 1.0,
    mean: Tensor | None = None,
    random: torch.Generator | None = None,
) -> Tensor:
    """Style maps (count, C, s, s) of random vectors, moved towards the mean map where truncated.

    Parameters
    ----------
    generator
    count : int
    truncation : float
        ψ of mean + ψ (w − mean): 0.7 for the authors' pictures, 1 for their Fréchet distances.
    mean : Tensor (1, C, s, s), optional
        Needed below a truncation of 1, see `mean_map`.
    random
        Source of the random vectors, on the CPU.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if truncation != 1 and mean is None:
        raise ValueError("a truncation other than 1 needs the mean style map")
    maps = generator.mapping(generator.draw(count, generator=random))
    return maps if mean is None else torch.lerp(mean, maps, truncation)


def direction(style_maps: Tensor, labels: Tensor, *, penalty: float = 1.0) -> Tensor:
    """The direction in which an attribute grows: unit normal of a linear support vector machine.

    The squared hinge loss in place of the authors' hinge loss: it is smooth, and is solved to the end.

    Parameters
    ----------
    style_maps : Tensor (N, C, s, s)
    labels : bool Tensor (N,)
        Whether the attribute is there.
    penalty : float
        C, what an example inside the margin costs.

    Returns
    -------
    Tensor (C, s, s)

    Raises
    ------
    ValueError
        Labels of another shape or type, or of one kind only.
    """
    if labels.dtype != torch.bool or labels.shape != style_maps.shape[:1]:
        raise ValueError(
            f"labels must be bool ({len(style_maps)},), got {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.all() or not labels.any():
        raise ValueError("labels must have examples with and without the attribute")
    points = style_maps.detach().flatten(1).double().cpu().numpy()
    signs = np.where(labels.cpu().numpy(), 1.0, -1.0)
    centre = points.mean(axis=0)
    # The normal is a sum of the examples: with more values than examples it is sought in their span.
    basis = np.linalg.qr((points - centre).T)[0] if points.shape[1] > len(points) else np.eye(points.shape[1])
    points = (points - centre) @ basis

    def objective(solution: np.ndarray) -> tuple[float, np.ndarray]:
        normal, bias = solution[:-1], solution[-1]
        inside = np.maximum(1 - signs * (points @ normal + bias), 0)
        slope = -2 * penalty * inside * signs
        return normal @ normal / 2 + penalty * inside @ inside, np.append(
            normal + slope @ points, slope.sum()
        )

    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(objective, np.zeros(points.shape[1] + 1), jac=True, method="L-BFGS-B", options=options)
    normal = basis @ found.x[:-1]
    return torch.from_numpy(normal / np.linalg.norm(normal)).to(style_maps).view(style_maps.shape[1:])


def moved(
    style_maps: Tensor,
    direction: Tensor,
    amount: float,
    *,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> Tensor:
    """Style maps (N, C, s, s) moved along a direction (C, s, s), everywhere or in a box of cells only.

    Parameters
    ----------
    style_maps, direction : Tensor
    amount : float
        In lengths of the direction (the authors go to 20).
    rows, columns : slice
        The box; ``slice(5, 7)`` and ``slice(2, 6)`` for the authors' local make-up.
    """
    if style_maps.shape[1:] != direction.shape:
        shapes = f"{tuple(direction.shape)} for maps {tuple(style_maps.shape)}"
        raise ValueError(f"the direction must be of one style map, got {shapes}")
    if not math.isfinite(amount):
        raise ValueError(f"amount must be finite, got {amount}")
    box = torch.zeros_like(direction)
    box[:, rows, columns] = direction[:, rows, columns]
    return style_maps + amount * box


def edit_errors(
    edited: Tensor, source: Tensor, reference: Tensor, mask: Tensor, *, batch: int = 4
) -> tuple[float, float]:
    """MSE_src outside the mask and MSE_ref inside it, of images (N, 3, H, W) in [−1, 1].

    Errors are pooled over the pixels of a batch, then averaged over batches that have any, as the authors
    evaluate. A pasted picture has zero in both: alone they say nothing of how an edit looks.

    Parameters
    ----------
    edited, source, reference : Tensor (N, 3, H, W)
    mask : bool Tensor (N, 1, H, W)
    batch : int

    Raises
    ------
    ValueError
        Shapes that do not fit, or a mask that is empty, or full, in all images.
    """
    if not edited.shape == source.shape == reference.shape or edited.ndim != 4 or batch < 1:
        shapes = f"{tuple(edited.shape)}, {tuple(source.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"edited, source and reference images must be alike (N, 3, H, W), got {shapes}")
    if mask.dtype != torch.bool or mask.shape != (len(edited), 1, *edited.shape[2:]):
        raise ValueError(f"a mask must be bool and of the images' size, got {mask.dtype} {tuple(mask.shape)}")

    def pooled(others: Tensor, where: Tensor) -> float:
        errors = (edited - others).square().mean(dim=1, keepdim=True)
        batches = zip(errors.split(batch), where.split(batch), strict=True)
        means = [float(e[w].double().mean()) for e, w in batches if w.any()]
        if not means:
            raise ValueError("the mask must have pixels inside and outside")
        return math.fsum(means) / len(means)

    return pooled(source, ~mask), pooled(reference, mask)
