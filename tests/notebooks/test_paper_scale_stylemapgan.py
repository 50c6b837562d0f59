"""The paper scale of StyleMapGAN, dry: published sizes at 256 pixels, a folder of photographs, all losses.

A round takes minutes and 5 GB, so it is not part of `make test`, whose rounds with all losses are narrower.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.data.photographs import PHOTOGRAPHS, take
from lib.experiments.stylemapgan import (
    Settings,
    perceptual_distance,
    reconstruction_errors,
    second_set,
    train_all_losses,
)
from lib.models.images.stylemapgan_losses import LossWeights
from lib.runs.request import resolve

ARM = "map 8×8×4"


@pytest.fixture(scope="module")
def asked() -> dict:
    return resolve("stylemapgan", "paper").parameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photographs of any shape in folders, as the authors' sets are before they are resized."""
    root = tmp_path_factory.mktemp("photographs")
    for number, image in enumerate(take(PHOTOGRAPHS.load(root), 3).values()):
        part = root / ("test" if number else "train")
        part.mkdir(exist_ok=True)
        image.save(part / f"{number:05d}.png")
    return root


def test_the_scale_has_the_published_sizes(asked):
    expected = {
        "resolution": 256,
        "width": 512,
        "batch_size": 16,
        "adversarial_rate": 0.002,
        "average_decay": 0.999,
        "perceptual": "vgg",
        "r1": 10.0,
        "r1_every": 16,
        "device": "cuda",
        "trained": "all",
    }
    assert {name: asked[name] for name in expected} == expected
    assert asked["adversarial_steps"] * asked["batch_size"] == 5_000_000


@pytest.mark.large
def test_a_round_with_all_losses_on_photographs(asked, folder, tmp_path):
    names = ("resolution", "width", "learning_rate", "adversarial_rate", "average_decay")
    settings = Settings(
        **{name: asked[name] for name in names},
        channel_multiplier=2,
        batch_size=1,
        steps=1,
        adversarial_steps=1,
    )
    pictures = second_set(asked["resolution"], 1, 1, tmp_path, folder)
    assert pictures.train.shape == (1, 3, 256, 256)
    losses = {"weights": LossWeights(r1=asked["r1"], r1_every=asked["r1_every"])}
    losses["distance"] = perceptual_distance(asked["perceptual"], tmp_path)
    model, _ = train_all_losses(pictures, ARM, 0, settings, **losses)
    assert sum(weights.numel() for weights in model.discriminator.parameters()) == 28_864_129
    assert 0 < reconstruction_errors({ARM: model}, pictures, untrained=False)[ARM] < 4
