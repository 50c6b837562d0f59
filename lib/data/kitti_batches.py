"""Batches of KITTI's raw recordings as FSRE-Depth is trained on them: neighbours, labels, colours changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.data.kitti import KittiRaw, Sample, read_pseudo_labels

#: Shares of the picture's sides that Monodepth2 has for every camera of KITTI.
FOCAL = (0.58, 1.92)
#: How far brightness, contrast and saturation are changed, as factors, and hue, as a share of a turn.
FACTORS, TURN = (0.8, 1.2), 0.1


@dataclass(frozen=True, eq=False)
class KittiTriplets:
    """Samples to learn from, each with the frames before and after.

    Attributes
    ----------
    raw : KittiRaw
    samples : tuple of Sample
    size : tuple of int
        Height and width.
    labels : bool
        Whether pseudo-labels are read: ``segmentation/<drive>/image_0x/<frame>.png`` beside the dates.
    """

    raw: KittiRaw
    samples: tuple[Sample, ...]
    size: tuple[int, int]
    labels: bool = True

    def __len__(self) -> int:
        return len(self.samples)

    def label_path(self, sample: Sample) -> Path:
        """Of a sample's pseudo-labels."""
        camera = self.raw.picture_path(sample).parent.parent.name
        return self.raw.root / "segmentation" / sample.drive / camera / f"{sample.frame:010d}.png"

    def batch(self, step: int, batch_size: int, *, seed: int) -> dict[str, Tensor]:
        """Samples of a step, from 0: a function of seed and step; epochs are cut into whole batches.

        Every second sample on average is mirrored, and every second has other colours, the same in all its
        frames, where the networks see them.

        Returns
        -------
        dict
            ``images`` and ``jittered`` (B, 3, 3, H, W) in [0, 1], ``intrinsics`` (B, 3, 3) in pixels, and
            ``labels`` (B, H, W) if they are read.

        Raises
        ------
        ValueError
            There are not as many samples.
        DataUnavailable
            A file is not there, or a recorded picture damaged; the message names it.
        UnexpectedFormat, OSError
            Labels are not those that are trained, or damaged.
        """
        if not 1 <= batch_size <= len(self):
            raise ValueError(f"batch_size must be in 1..{len(self)}, got {batch_size}")
        epoch, place = divmod(step, len(self) // batch_size)
        order = np.random.default_rng((seed, 0, epoch)).permutation(len(self))
        draw = np.random.default_rng((seed, 1, step))
        chosen = order[place * batch_size : (place + 1) * batch_size]
        rows = [self._sample(self.samples[number], draw) for number in chosen]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _sample(self, sample: Sample, draw: np.random.Generator) -> dict[str, Tensor]:
        height, width = self.size
        row = {"images": self.raw.triplet(sample, self.size)}
        if self.labels:
            row["labels"] = read_pseudo_labels(self.label_path(sample), self.size)
        if draw.random() < 0.5:
            row = {name: value.flip(-1) for name, value in row.items()}
        row["jittered"] = other_colours(row["images"], draw) if draw.random() < 0.5 else row["images"]
        across, down = FOCAL
        row["intrinsics"] = torch.tensor(
            [[across * width, 0, 0.5 * width], [0, down * height, 0.5 * height], [0, 0, 1.0]]
        )
        return row


def other_colours(images: Tensor, draw: np.random.Generator) -> Tensor:
    """Pictures (…, 3, H, W) in [0, 1] with brightness, contrast, saturation and hue changed, in any order.

    The ranges are Monodepth2's and FSRE-Depth's. They shift hue in HSV (torchvision's ColorJitter); here it
    is turned in the plane of chroma (YIQ), which keeps brightness but where values are clipped.
    """
    brightness, contrast, saturation = draw.uniform(*FACTORS, size=3)
    turn = _hue(2 * np.pi * draw.uniform(-TURN, TURN))
    changes = (
        lambda x: x * brightness,
        lambda x: contrast * x + (1 - contrast) * _grey(x).mean((-2, -1), keepdim=True),
        lambda x: saturation * x + (1 - saturation) * _grey(x),
        lambda x: torch.einsum("dc, ...chw -> ...dhw", turn, x),
    )
    for number in draw.permutation(len(changes)):
        images = changes[number](images).clamp(0, 1)
    return images


#: What red, green and blue give to brightness.
LUMA = (0.299, 0.587, 0.114)


def _grey(images: Tensor) -> Tensor:
    return torch.einsum("c, ...chw -> ...hw", images.new_tensor(LUMA), images).unsqueeze(-3)


def _hue(angle: float) -> Tensor:
    """The matrix that turns colours in the plane of chroma (YIQ) by an angle."""
    to_yiq = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return torch.from_numpy(np.linalg.inv(to_yiq) @ turn @ to_yiq).float()
