"""FSRE-Depth: depth from one picture, learned from video, helped by labels; and Monodepth2, which it extends.

Jung et al., "Fine-grained Semantics-aware Representation Enhancement for Self-supervised Monocular Depth
Estimation", ICCV 2021 (arXiv 2108.08829). Its code (github.com/hyBlue/FSRE-Depth, MIT) derives from
Monodepth2's (github.com/nianticlabs/monodepth2), whose licence is for non-commercial use; nothing here is
copied from either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lib.models.depth.cross_task_decoder import CHANNELS, CrossTaskDecoder, Decoded
from lib.models.depth.fsre_checkpoints import load_folder
from lib.models.depth.pose_network import MOTION_SCALE, PoseNetwork
from lib.models.depth.resnet_pyramid import ResnetPyramid
from lib.models.depth.self_supervision import Objective
from lib.models.depth.view_synthesis import camera_motion, disparity_to_depth


class FsreDepth(nn.Module):
    """The networks, and the loss that they are trained by.

    The defaults are the paper's main model. ``classes=0, attention_levels=()`` with an `Objective` of
    ``weighting="monodepth2"`` and no weight on labels is Monodepth2, but for the second motion that its pose
    network predicts and nothing uses.

    Parameters
    ----------
    depth, pose_depth
        Of the two ResNets: 18, 34, 50, 101 or 152.
    width
        Factor on all channels.
    classes
        Of the labels; 0: no decoder of labels.
    attention_levels, scales, embeddings, ratio, merged
        Of `CrossTaskDecoder`.
    channels
        Of its levels; the published ones times ``width`` by default.
    motion_scale
        Of the pose network's outputs.
    objective

    Raises
    ------
    ValueError
        A size is out of range, or attention or the objective reads labels that nothing decodes.
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        pose_depth: int = 18,
        width: float = 1.0,
        classes: int = 19,
        attention_levels: Sequence[int] = (4, 3, 2),
        scales: Sequence[int] = (0, 1, 2, 3),
        channels: Sequence[int] | None = None,
        embeddings: int = 4,
        ratio: int = 2,
        merged: bool = True,
        motion_scale: float = MOTION_SCALE,
        objective: Objective = Objective(),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        if objective.segmentation and not classes:
            raise ValueError("the segmentation loss weighs something and nothing decodes labels")
        if 0 not in scales:
            raise ValueError(f"the finest scale, 0, is what depth is read from, got {tuple(scales)}")
        self.encoder = ResnetPyramid(depth=depth, width=width)
        self.decoder = CrossTaskDecoder(
            self.encoder.channels,
            classes=classes,
            attention_levels=attention_levels,
            scales=scales,
            channels=[round(width * size) for size in CHANNELS] if channels is None else channels,
            embeddings=embeddings,
            ratio=ratio,
            merged=merged,
        )
        self.pose = PoseNetwork(depth=pose_depth, width=width, scale=motion_scale)
        self.objective = objective

    @classmethod
    def from_authors(cls, folder: str | os.PathLike, **options: object) -> FsreDepth:
        """The networks in a folder of weights as published.

        Parameters
        ----------
        folder
            With ``encoder.pth``, ``pose_encoder.pth``, ``pose.pth``, and ``decoder.pth`` or else
            ``depth.pth`` and, if it is there, ``seg.pth``.
        options
            ``merged`` and ``objective``.

        Returns
        -------
        FsreDepth
            In evaluation mode.

        Raises
        ------
        FileNotFoundError, PermissionError, ValueError
            A file is missing, unreadable or another; the message names it and its first such keys.
        """
        return load_folder(cls, folder, **options)

    def forward(self, images: Tensor, *, labels: bool = True) -> Decoded:
        """Disparities, logits and features of pictures (B, 3, H, W) in [0, 1]; H and W are divisible by 32.

        Parameters
        ----------
        labels
            Whether logits are wanted. Attention needs the labels' decoder either way, not all of it.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 32 or images.shape[3] % 32:
            raise ValueError(
                f"pictures must be (B, 3, H, W) with sides divisible by 32, got {tuple(images.shape)}"
            )
        return self.decoder(self.encoder(images), labels=labels)

    def predict_depth(self, images: Tensor) -> Tensor:
        """Depths (B, 1, H, W), right up to a factor for each training."""
        disparity = self(images, labels=False).disparity[0]
        return disparity_to_depth(disparity, nearest=self.objective.nearest, farthest=self.objective.farthest)

    def motions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Motions (B, 4, 4) from the middle one of three pictures (B, 3, 3, H, W) to its neighbours."""
        before, target, after = images.unbind(1)
        return (
            camera_motion(*self.pose(before, target), inverse=True),
            camera_motion(*self.pose(target, after)),
        )

    def terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms of the loss by name, as of `Objective.terms`.

        Parameters
        ----------
        batch
            As for `Objective.terms`; ``jittered``, if there, are the pictures that the networks see instead
            of ``images``, which the loss compares; ``motions`` (B, 2, 4, 4), if there, are known and taken
            in the place of the pose network's, which then is not run.
        """
        seen = batch.get("jittered", batch["images"])
        motions = batch["motions"].unbind(1) if "motions" in batch else self.motions(seen)
        return self.objective.terms(self(seen[:, 1]), motions, batch)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The sum of the terms."""
        return sum(self.terms(batch).values())
