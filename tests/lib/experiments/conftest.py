"""What the tests of the PROFIT chapter's experiments share: small trainings on made-up pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.data.images import ImageSet
from lib.experiments.profit import Recipe
from lib.experiments.profit_trainings import Trainings
from lib.models.vision.mobilenet import MobileNetV2


def pictures(count: int) -> ImageSet:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=random)
    return ImageSet(images, torch.arange(count) % 3, 0.5, 0.25, classes=("a", "b", "c"))


@pytest.fixture
def profit_trainings() -> Callable[..., Trainings]:
    """``profit_trainings(folder)``: trainings with checkpoints in a folder, or without any."""

    def make(folder: Path | None = None, **options) -> Trainings:
        recipe = Recipe(learning_rate=0.3, clip_norm=1.0)
        settings = {"images": {"train": pictures(24), "test": pictures(12)}, "batch_size": 8}
        settings |= {"recipe": recipe, "first": recipe, "augmentation": {"flip": True, "shift": 2}}
        if folder:
            settings["checkpoint"] = lambda name: folder / f"{name}.pt"
        return Trainings(**settings | options)

    return make


@pytest.fixture
def small_mobilenet() -> Callable[..., nn.Module]:
    """``small_mobilenet(trainings, seed, steps)``: a tiny MobileNet-v2, trained in full precision."""

    def make(trainings: Trainings, seed: int = 0, steps: int = 2, **options) -> nn.Module:
        sizes = {"width": 0.1, "last_channels": 16}
        return trainings.full_precision(MobileNetV2, seed, steps, repeats=1, **sizes, **options)

    return make


@pytest.fixture
def weights_of() -> Callable[[nn.Module], torch.Tensor]:
    """All weights of a network in one vector."""
    return lambda network: torch.cat([p.detach().flatten() for p in network.parameters()])
