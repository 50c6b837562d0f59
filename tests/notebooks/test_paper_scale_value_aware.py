"""The paper scale of value-aware quantization, dry: ResNet-50 at 224 pixels, two steps, batches of two.

The pictures are made up; their files are laid out as ImageNet's are, in a thousand folders of JPEG files.
"""

from dataclasses import replace

import pytest

from lib.experiments.value_aware import gradient_error, measure_steps
from lib.models.vision.inception import InceptionV3
from lib.runs.request import read_chapter, resolve

CLASSES = 1000


@pytest.fixture(scope="module")
def folder(made_up_imagenet):
    return made_up_imagenet("train", "val")


class NoRecord:
    """The record's place, for cells that tell it which data they use and show a table."""

    folder = None

    def data(self, *arguments):
        pass

    def table(self, frame, name):
        return frame


@pytest.fixture(scope="module")
def chapter(folder) -> dict:
    """What the chapter's own cells define at scale ``paper``, on this processor and with two steps."""
    names = resolve("value_aware", "paper").parameters
    names |= {"device": "cpu", "data_dir": str(folder), "batch_size": 2, "steps": 2, "run_dir": ""}
    names["record"] = NoRecord()
    sources = [cell.source for cell in read_chapter("value_aware").cells if cell.cell_type == "code"]
    (imports,) = (source for source in sources if "from lib.ledger.evidence import Record" in source)
    exec("\n".join(line for line in imports.splitlines() if "import " in line), names)
    for text in ("sources = {", "ARMS = {"):
        (cell,) = (source for source in sources if text in source)
        exec(cell, names)
    return names


def test_the_scale_is_resnet_50_on_imagenet():
    asked = resolve("value_aware", "paper").parameters
    assert asked["steps"] == 90 * (1_281_167 // 256)
    expected = {"dataset": "imagenet", "depth": 50, "batch_size": 256, "bits": 3}
    assert {name: asked[name] for name in expected} == expected


def test_the_images_are_read(chapter):
    assert (len(chapter["data"]["train"]), len(chapter["data"]["test"])) == (CLASSES, CLASSES)
    batch = chapter["data"]["train"].batches(2, seed=0).batch(0)
    assert batch["images"].shape == (2, 3, 224, 224)


@pytest.mark.parametrize("arm", [0, 5])
def test_two_steps_at_full_model_size(chapter, arm):
    model = chapter["train"](list(chapter["ARMS"])[arm], 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    test = chapter["data"]["test"]
    few = replace(test, files=test.files[:4], labels=test.labels[:4])
    top1 = chapter["accuracy"](model, few)["top-1"]
    assert 0 <= top1 <= 100
    if arm == 0:
        batch = chapter["data"]["train"].batches(2, seed=1).batch(0)
        settings = {"(3, 2 %)": chapter["PackedActivations"](3, 0.02, bn_input="exact")}
        assert 0 < gradient_error(model.network, batch, settings)["(3, 2 %)"] < 1


def test_a_step_of_inception_at_its_own_size_is_measured(chapter):
    torch = chapter["torch"]
    memory, seconds = measure_steps(InceptionV3(), torch.randn(1, 3, 299, 299), rounds=1)
    assert memory.loc["packed", "kept"] < 0.35 * memory.loc["full precision", "kept"]
    assert (memory["peak"] > 0).all() and (seconds > 0).all(axis=None)
