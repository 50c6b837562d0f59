"""One view drawn from another by depth and the camera's motion: what self-supervised depth learns from.

After Monodepth2 (Godard et al., ICCV 2019) and FSRE-Depth's code. A camera looks along z, x goes right and y
down; a pixel's centre has whole coordinates, so that pictures are sampled with ``align_corners=True``.
Intrinsics are (B, 3, 3) in pixels of the full resolution, motions are (B, 4, 4) from the target's camera
coordinates to the source's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Published limits of the depth that a network can tell.
NEAREST, FARTHEST = 0.1, 100.0


def disparity_to_depth(sigmoid: Tensor, *, nearest: float = NEAREST, farthest: float = FARTHEST) -> Tensor:
    """Depth in nearest…farthest whose inverse is linear in a network's output in 0…1.

    Raises
    ------
    ValueError
        The limits are not 0 < nearest < farthest.
    """
    if not 0 < nearest < farthest:
        raise ValueError(f"depths must be 0 < nearest < farthest, got {nearest} and {farthest}")
    return 1 / (1 / farthest + (1 / nearest - 1 / farthest) * sigmoid)


def rotation(axis_angle: Tensor) -> Tensor:
    """Rodrigues' rotation matrices (B, 3, 3) of axes times angles (B, 3), in radians.

    The axis is ω/(‖ω‖ + 1e-7), as published: exact but for small angles, and finite at none.
    """
    angle = torch.linalg.vector_norm(axis_angle, dim=1, keepdim=True)
    x, y, z = (axis_angle / (angle + 1e-7)).unbind(1)
    cosine, sine = angle[:, 0].cos(), angle[:, 0].sin()
    c = 1 - cosine
    rows = (
        *(x * x * c + cosine, x * y * c - z * sine, z * x * c + y * sine),
        *(x * y * c + z * sine, y * y * c + cosine, y * z * c - x * sine),
        *(z * x * c - y * sine, y * z * c + x * sine, z * z * c + cosine),
    )
    return torch.stack(rows, 1).unflatten(1, (3, 3))


def camera_motion(axis_angle: Tensor, translation: Tensor, *, inverse: bool = False) -> Tensor:
    """Motions (B, 4, 4): rotate, then translate; the inverse translates back, then rotates back.

    Parameters
    ----------
    axis_angle, translation : (B, 3)
    inverse
        Of pairs whose earlier picture is the source, as the pose network sees the earlier one first.
    """
    turn = rotation(axis_angle)
    shift = translation[:, :, None]
    if inverse:
        turn = turn.transpose(1, 2)
        shift = -turn @ shift
    last = turn.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(turn), 1, 4)
    return torch.cat([torch.cat([turn, shift], 2), last], 1)


def sampling_grid(
    depth: Tensor, motion: Tensor, intrinsics: Tensor, *, source_intrinsics: Tensor | None = None
) -> Tensor:
    """Where the target's pixels are in the source, as `grid_sample` with ``align_corners=True`` wants it.

    A pixel u at depth D is seen at K (R D K⁻¹u + t). The 3×3 matrix K R K⁻¹ is formed once, so that a pixel
    costs nine products.

    Parameters
    ----------
    depth : (B, 1, H, W)
        In the units of the translation, above 0, which is not checked: `disparity_to_depth` gives no others,
        and every step of a training comes by here.
    motion : (B, 4, 4)
        From the target's camera to the source's.
    intrinsics : (B, 3, 3)
        In pixels.
    source_intrinsics : (B, 3, 3), optional
        Of the source's camera, if it is another.

    Returns
    -------
    (B, H, W, 2)
        −1…1 is from the centre of the first pixel to the centre of the last.

    Raises
    ------
    ValueError
        A shape is another, or the picture has fewer than two rows or columns.
    torch.linalg.LinAlgError
        The intrinsics are singular.
    """
    batch, height, width = len(depth), *depth.shape[-2:]
    shapes = depth.shape, motion.shape, intrinsics.shape
    if shapes != ((batch, 1, height, width), (batch, 4, 4), (batch, 3, 3)) or min(height, width) < 2:
        raise ValueError(
            "expected depth (B, 1, H, W), motion (B, 4, 4) and intrinsics (B, 3, 3), 2×2 pixels or more, got "
            + ", ".join(str(tuple(shape)) for shape in shapes)
        )
    seen = (intrinsics if source_intrinsics is None else source_intrinsics) @ motion[:, :3]
    turned = seen[:, :, :3] @ torch.linalg.inv(intrinsics)
    columns = torch.arange(width, dtype=depth.dtype, device=depth.device)
    rows = torch.arange(height, dtype=depth.dtype, device=depth.device)[:, None]
    place = [
        (turned[:, k, 0, None, None] * columns + turned[:, k, 1, None, None] * rows)
        .add(turned[:, k, 2, None, None])
        .mul(depth[:, 0])
        .add(seen[:, k, 3, None, None])
        for k in range(3)
    ]
    inverse = 1 / (place[2] + 1e-7)
    x, y = (
        (2 / (length - 1)) * coordinate * inverse - 1
        for coordinate, length in ((place[0], width), (place[1], height))
    )
    return torch.stack([x, y], -1)


def warped(source: Tensor, grid: Tensor) -> Tensor:
    """Pictures (B, C, H, W) at a `sampling_grid`, bilinearly; outside them, their border."""
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=True)


def normalized_intrinsics(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Intrinsics in shares of the picture's sides, as in Monodepth2's code, to pixels.

    Parameters
    ----------
    intrinsics : (B, 3, 3)
        The first row in widths, the second in heights.
    """
    return intrinsics * intrinsics.new_tensor([width, height, 1.0])[:, None]


#: Monodepth2's for every picture of KITTI, in shares of its sides.
KITTI_INTRINSICS = torch.tensor([[0.58, 0.0, 0.5], [0.0, 1.92, 0.5], [0.0, 0.0, 1.0]])
