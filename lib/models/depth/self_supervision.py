"""What depth is learned from: a picture, its two neighbours, labels; weights and sums of the losses.

Two weightings of the scales are published. Monodepth2 averages its photometric loss over scales; FSRE-Depth
divides each scale's by 2^s and adds them up: at four scales a weight of 1 + ½ + ¼ + ⅛ = 1.875 against 1.
Smoothness is divided by 2^s in both, and averaged or added up likewise: four times as much in FSRE-Depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models.depth.cross_task_decoder import Decoded
from lib.models.depth.photometric import (
    PhotometricError,
    identity_errors,
    minimum_reprojection,
    smoothness,
)
from lib.models.depth.semantic_losses import segmentation_loss, triplet_loss
from lib.models.depth.view_synthesis import (
    FARTHEST,
    NEAREST,
    disparity_to_depth,
    sampling_grid,
    warped,
)

WEIGHTINGS = ("fsre", "monodepth2")


@dataclass(frozen=True)
class Objective:
    """The training loss of FSRE-Depth, and with other weights those it is compared with.

    Attributes
    ----------
    weighting : {"fsre", "monodepth2"}
        Of the scales, as above.
    smoothness, segmentation, triplet : float
        Weights of the terms; what weighs nothing is not computed. Published: 1e-3; 0.3, but 1 where only
        one of triplet loss and attention is used; 0.1.
    triplet_levels : tuple of int
    window, margin, border
        Of `triplet_loss`.
    automask : bool
        Whether neighbours as they are compete with warped ones.
    nearest, farthest : float
        Limits of the depth.

    Raises
    ------
    ValueError
        The weighting is unknown or a weight negative.
    """

    weighting: str = "fsre"
    smoothness: float = 1e-3
    segmentation: float = 0.3
    triplet: float = 0.1
    triplet_levels: tuple[int, ...] = (3, 2, 1)
    window: int = 5
    margin: float = 0.3
    border: str = "official"
    automask: bool = True
    nearest: float = NEAREST
    farthest: float = FARTHEST

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")
        if min(self.smoothness, self.segmentation, self.triplet) < 0:
            raise ValueError(
                "weights must be 0 or more, got "
                f"smoothness {self.smoothness}, segmentation {self.segmentation}, triplet {self.triplet}"
            )

    def terms(
        self, decoded: Decoded, motions: tuple[Tensor, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The weighted terms of the loss, scalars by name; the loss is their sum.

        Parameters
        ----------
        decoded
            Of the middle pictures.
        motions
            From the middle pictures' cameras to those before and after, (B, 4, 4) each.
        batch
            ``images`` (B, 3, 3, H, W), the frames before, in the middle and after, in [0, 1], as they are;
            ``intrinsics`` (B, 3, 3) in pixels; ``labels`` (B, H, W) where a term reads them.

        Raises
        ------
        ValueError
            The segmentation loss weighs something and nothing decodes labels; or as the losses.
        KeyError
            ``batch`` has no ``images``, ``intrinsics`` or, where a term reads them, ``labels``; or the
            triplet loss is asked of a level that is not decoded.
        """
        before, target, after = batch["images"].unbind(1)
        error = PhotometricError(target)
        identity = identity_errors(error, (before, after)) if self.automask else None
        photometric = smooth = target.new_zeros(())
        size = target.shape[-2:]
        for scale, disparity in decoded.disparity.items():
            share = 1 / 2**scale
            full = disparity
            if disparity.shape[-2:] != size:
                full = F.interpolate(disparity, size, mode="bilinear", align_corners=False)
            depth = disparity_to_depth(full, nearest=self.nearest, farthest=self.farthest)
            drawn = [
                error(warped(source, sampling_grid(depth, motion, batch["intrinsics"])))
                for source, motion in zip((before, after), motions, strict=True)
            ]
            least = minimum_reprojection(torch.cat(drawn, 1), identity).mean()
            photometric = photometric + (share if self.weighting == "fsre" else 1) * least
            if self.smoothness:
                smooth = smooth + share * smoothness(disparity, _reduced(target, disparity.shape[-2:]))
        scales = 1 if self.weighting == "fsre" else len(decoded.disparity)
        terms = {"photometric": photometric / scales, "smoothness": self.smoothness * smooth / scales}
        if self.segmentation:
            if decoded.logits is None:
                raise ValueError("the segmentation loss weighs something and nothing decodes labels")
            terms["segmentation"] = self.segmentation * segmentation_loss(decoded.logits, batch["labels"])
        if self.triplet:
            features = {level: decoded.features[level] for level in self.triplet_levels}
            terms["triplet"] = self.triplet * triplet_loss(
                features, batch["labels"], window=self.window, margin=self.margin, border=self.border
            )
        return terms


def _reduced(image: Tensor, size: torch.Size) -> Tensor:
    """The picture at another resolution by means of areas; the authors' by Lanczos from the file."""
    return image if image.shape[-2:] == size else F.interpolate(image, size, mode="area")
