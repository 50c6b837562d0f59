"""The paper scale of value-aware quantization, dry: ResNet-50 at 224 pixels, two steps, batches of two.

The pictures are made up; their files are laid out as ImageNet's are, in a thousand folders of JPEG files.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from lib.experiments.value_aware_memory import measure_steps
from lib.experiments.value_aware_training import (
    gradient_errors,
    gradient_settings,
    images_of,
    new_network,
    train,
    training_arms,
)
from lib.models.vision.inception import InceptionV3
from lib.runs.request import resolve
from lib.training.classifiers import accuracy
from lib.training.loop import seeded

CLASSES = 1000


@pytest.fixture(scope="module")
def asked() -> dict:
    return resolve("value_aware", "paper").parameters


@pytest.fixture(scope="module")
def data(asked, made_up_imagenet) -> dict:
    return images_of(asked["dataset"]).source.load(made_up_imagenet("train", "val"))


@pytest.fixture(scope="module")
def make(asked) -> partial:
    """What makes the network of the paper scale."""
    sizes = {name: asked[name] for name in ("depth", "blocks", "width")}
    return partial(new_network, images_of(asked["dataset"]), **sizes)


def test_the_scale_is_resnet_50_on_imagenet(asked):
    assert asked["steps"] == 90 * (1_281_167 // 256)
    expected = {"dataset": "imagenet", "depth": 50, "batch_size": 256, "bits": 3}
    assert {name: asked[name] for name in expected} == expected


def test_the_images_are_read(data):
    assert (len(data["train"]), len(data["test"])) == (CLASSES, CLASSES)
    batch = data["train"].batches(2, seed=0).batch(0)
    assert batch["images"].shape == (2, 3, 224, 224)


@pytest.mark.parametrize("arm", ["full precision", "(3, 2 %), inputs of normalisation packed"])
def test_two_steps_at_full_model_size(arm, asked, data, make):
    options = dict(seed=0, steps=2, batch_size=2, learning_rate=asked["learning_rate"])
    model = train(training_arms(asked["bits"])[arm], make, data["train"], **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    seeded(0)
    first = dict(make().named_parameters())
    unmoved = [name for name, value in model.network.named_parameters() if torch.equal(value, first[name])]
    assert unmoved == []
    test = data["test"]
    few = replace(test, files=test.files[:4], labels=test.labels[:4])
    with torch.no_grad():
        classes = model(few.tensor(slice(0, 4))).argmax(1)
    right = torch.tensor([True, True, True, False])  # labels that agree with three of its four answers
    known = replace(few, labels=torch.where(right, classes, (classes + 1) % CLASSES))
    assert accuracy(model, known)["top-1"] == 75
    if arm == "full precision":
        batch = data["train"].batches(2, seed=1).batch(0)
        settings = {"(3, 2 %)": gradient_settings(asked["bits"])["(3, 2 %)"]}
        assert 0 < gradient_errors(model.network, batch, settings)["error"].item() < 1


def test_a_step_of_inception_at_its_own_size_is_measured():
    memory, seconds = measure_steps(InceptionV3(), torch.randn(1, 3, 299, 299), rounds=1)
    assert memory.loc["packed", "kept"] < 0.35 * memory.loc["full precision", "kept"]
    assert (memory["peak"] > 0).all() and (seconds > 0).all(axis=None)
