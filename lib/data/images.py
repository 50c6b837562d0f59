"""Labelled images in memory: normalised on the way out, drawn in batches that are a function of the step.

Pixels stay bytes, a quarter of the memory of floats; `ImageSet.tensor` turns the asked-for ones into
standardised floats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels.

    Attributes
    ----------
    images : (N, C, H, W) uint8
        Pixels, 0…255.
    labels : (N,) int64
        Class numbers from 0.
    mean, std : float or tuple of C floats
        Of the training pixels on the scale 0…1, which `tensor` subtracts and divides by.
    classes : tuple of str
        Names of the classes, if known.

    Raises
    ------
    ValueError
        Images are not bytes in four dimensions, there are none, or their number is not that of the labels.
    """

    images: Tensor
    labels: Tensor
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8 or len(self.images) == 0:
            raise ValueError(
                f"images must be uint8 (N, C, H, W) with N at least 1, "
                f"got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def tensor(self, index: Tensor | slice | None = None) -> Tensor:
        """Standardised images, (n, C, H, W) float32: those of `index`, or all."""
        pixels = self.images if index is None else self.images[index]
        mean, std = (torch.as_tensor(value).reshape(1, -1, 1, 1) for value in (self.mean, self.std))
        return (pixels / 255.0 - mean) / std

    def take(self, count: int) -> ImageSet:
        """The first `count` images; ValueError if there are not as many."""
        if not 1 <= count <= len(self):
            raise ValueError(f"there are {len(self)} images, {count} were asked for")
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def padded(self, size: int) -> ImageSet:
        """Black margins around each image, as equal as they can be, up to `size` × `size` pixels."""
        height, width = self.images.shape[-2:]
        if size < max(height, width):
            raise ValueError(f"images of {height} × {width} pixels cannot be padded to {size}")
        top, left = (size - height) // 2, (size - width) // 2
        margins = (left, size - width - left, top, size - height - top)
        return replace(self, images=F.pad(self.images, margins))

    def batches(self, batch_size: int, *, seed: int, flip: bool = False, shift: int = 0) -> ImageBatches:
        """Training batches; see `ImageBatches`."""
        return ImageBatches(self, batch_size, seed=seed, flip=flip, shift=shift)


class ImageBatches:
    """Shuffled batches, each a function of the step number, so that a resumed training sees the same ones.

    Parameters
    ----------
    source : ImageSet
    batch_size : int
        At most the number of images. Epochs are cut into whole batches; an epoch's last images that do not
        fill one are left out, others in each epoch.
    seed : int
        Of the order and of the augmentation.
    flip : bool
        Mirror every second image on average, left to right.
    shift : int
        Move each image by up to this many pixels, up or down and left or right; black comes in.
    """

    def __init__(
        self, source: ImageSet, batch_size: int, *, seed: int, flip: bool = False, shift: int = 0
    ) -> None:
        if not 1 <= batch_size <= len(source):
            raise ValueError(f"batch_size must be in 1..{len(source)}, got {batch_size}")
        if shift < 0:
            raise ValueError(f"shift counts pixels and cannot be negative, got {shift}")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.flip, self.shift = flip, shift
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the images."""
        return len(self.source) // self.batch_size

    def batch(self, step: int) -> dict[str, Tensor]:
        """``images`` (B, C, H, W) float32 and ``labels`` (B,) int64 of a step, from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.source), generator=self._generator(0, epoch))
            self._epoch, self._order = epoch, order
        index = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        pixels = self.source.images[index]
        if self.flip or self.shift:
            pixels = self._augmented(pixels, self._generator(1, step))
        augmented = replace(self.source, images=pixels, labels=self.source.labels[index])
        return {"images": augmented.tensor(), "labels": augmented.labels}

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 2 + purpose) * 1_000_003 + number)

    def _augmented(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = pixels.shape
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        if self.shift:
            span = 2 * self.shift + 1
            down, right = torch.randint(span, (2, count, 1), generator=generator)
            padded = F.pad(pixels, [self.shift] * 4)
            rows, columns = down + torch.arange(height), right + torch.arange(width)
            image = torch.arange(count)[:, None, None]
            channels_last = padded.permute(0, 2, 3, 1)
            pixels = channels_last[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return pixels
