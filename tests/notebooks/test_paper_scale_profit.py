"""The paper scale of PROFIT, dry: the real networks at 224 pixels, two steps a stage, batches of two.

The pictures are made up; their files are laid out as ImageNet's are, in a thousand folders of JPEG files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lib.experiments.profit import Recipe
from lib.experiments.profit_freezing import (
    ARMS,
    SETTLED,
    Descent,
    freezing_scores,
    frozen_layers,
    prepared,
)
from lib.experiments.profit_trainings import (
    QUANTISERS,
    Trainings,
    augmentation,
    load_images,
    quantiser_scores,
    starting_weights,
)
from lib.models.vision.mobilenet import MobileNetV2, MobileNetV3Large
from lib.quantization.convert import quantized_layers
from lib.runs.request import resolve

ASKED = resolve("profit", "paper").parameters
EPOCH = 1_281_167 // 256


@pytest.fixture(scope="module")
def folder(made_up_imagenet):
    return made_up_imagenet("train", "val_pt")


@pytest.fixture(scope="module")
def images(folder):
    sets = load_images(ASKED["dataset"], folder)
    return sets | {
        "test": replace(sets["test"], files=sets["test"].files[:2], labels=sets["test"].labels[:2])
    }


def trainings(images, folder, clip_norm=ASKED["clip_norm"]) -> Trainings:
    """As the chapter makes them, on this processor and with batches of two."""
    return Trainings(
        images=images,
        augmentation=augmentation(ASKED["dataset"]),
        batch_size=2,
        first=Recipe(learning_rate=ASKED["fp_rate"], weight_decay=4e-5, clip_norm=clip_norm),
        recipe=Recipe(learning_rate=ASKED["learning_rate"], weight_decay=4e-5, clip_norm=clip_norm),
        checkpoint=lambda name: folder / f"{name}.pt",
    )


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in quantized_layers(network)}


def test_the_scale_is_the_authors_recipe():
    assert EPOCH == 5004
    recipe = {"batch_size": 256, "learning_rate": 0.005, "v3_momentum": 0.01, "clip_norm": 0.0}
    recipe |= {"path": [8, 5], "width": 1.0, "repeats": 4, "teacher": "self", "ema_rate": 0.0003}
    recipe |= {"weight_bits": [4, 3], "round_steps": 15 * EPOCH, "sample_steps": 5 * EPOCH}
    recipe |= {"stabilise_steps": 5 * EPOCH, "fp_steps": [15 * EPOCH, 90 * EPOCH]}
    assert {name: ASKED[name] for name in recipe} == recipe
    assert ASKED["reduction"] == 32


def test_mobilenet_v2_down_to_four_bits(images, folder, tmp_path):
    made = trainings(images, tmp_path)
    start = starting_weights("imagenet", folder, classes=made.classes, width=ASKED["width"], repeats=4)
    full = made.full_precision(MobileNetV2, 0, 2, repeats=4, start=start, width=1.0, last_channels=1280)
    assert sum(p.numel() for p in full.parameters()) == 3_504_872
    assert full.classifier[1].out_features == 1000
    steps = {"round_steps": 2, "stabilise_steps": 2, "sample_steps": 4}
    descent = Descent(path=ASKED["path"], ema_rate=ASKED["ema_rate"], **steps)
    ready = prepared(made, full, descent, bits=ASKED["weight_bits"][0], seed=0, teacher=full)
    assert len(ready.instability) == 52
    assert all(np.isfinite(value) and value > 0 for value in ready.instability.values())
    assert {layer.weight_quantizer.bits for _, layer in quantized_layers(ready.network)} == {4}
    assert list(ready.on_the_way) == [8, 5]
    before = weights(ready.network)
    rounds = frozen_layers("PROFIT", ready.instability)
    assert [len(names) for names in rounds] == [0, 17, 34]
    rows = freezing_scores(made, ready, descent)
    assert {row["arm"] for row in rows} == {*ARMS, SETTLED}
    for name, value in weights(ready.network).items():  # arms train copies
        assert torch.equal(value, before[name]), name
    state = torch.load(tmp_path / "PROFIT, 4 bits, seed 0, round 3.pt", weights_only=True)
    shared = torch.load(tmp_path / "shared round, 4 bits, seed 0, round 1.pt", weights_only=True)
    trained, average = state["state"]["model"], state["state"]["average"]
    still = {
        name
        for name in ready.instability
        if torch.equal(trained[f"network.{name}.weight"], shared["state"]["model"][f"network.{name}.weight"])
    }
    assert still == set(rounds[1])  # the second third moved in the second round, and not in the third
    assert average["n_averaged"] == 1 + 2 * 2
    away = (average["module.classifier.1.weight"] - trained["network.classifier.1.weight"]).abs().max()
    assert 0 < away < 1e-2


def test_mobilenet_v3_with_each_quantiser(images, tmp_path):
    # Norms over two pictures blow gradients up, so that here they are clipped.
    made = trainings(images, tmp_path, clip_norm=1.0)
    sizes = {"repeats": ASKED["repeats"], "width": ASKED["width"], "norm_momentum": ASKED["v3_momentum"]}
    network = made.full_precision(MobileNetV3Large, 0, 2, **sizes)
    assert sum(p.numel() for p in network.parameters()) == 5_483_032
    scores = quantiser_scores(made, {0: network}, bits=3, stabilise_steps=0, steps=2)
    assert scores["arm"].tolist() == [*QUANTISERS, "full precision"]
    trained = [
        torch.load(tmp_path / f"{arm}, train_stage, 3 bits, seed 0.pt", weights_only=True)["state"]["model"]
        for arm in QUANTISERS
    ]
    for state in trained:
        assert not torch.equal(state["network.features.0.0.weight"], network.features[0][0].weight)
        assert all(value.isfinite().all() for value in state.values())
    # the arms end in different places
    stems = {tuple(state["network.features.0.0.weight"].flatten().tolist()) for state in trained}
    assert len(stems) == len(QUANTISERS)
