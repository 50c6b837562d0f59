"""The paper scale of PROFIT, dry: the real networks at 224 pixels, two steps a stage, batches of two.

The pictures are made up; their files are laid out as ImageNet's are, in a thousand folders of JPEG files.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.quantization.convert import quantized_layers
from lib.runs.request import read_chapter, resolve

STEPS = {"fp_steps": [2, 2], "stabilise_steps": 2, "sample_steps": 4, "map_rounds": [2]}


@pytest.fixture(scope="module")
def folder(made_up_imagenet):
    return made_up_imagenet("train", "val_pt")


class NoRecord:
    """The record's place, for cells that only tell it which data they use."""

    folder = None

    def data(self, *arguments):
        pass


@pytest.fixture(scope="module")
def chapter(folder) -> dict:
    """What the chapter's own cells define at scale ``paper``, on this processor and with few steps."""
    asked = resolve("profit", "paper").parameters
    names = asked | STEPS | {"device": "cpu", "data_dir": str(folder), "seeds": [0], "batch_size": 2}
    names |= {"quantiser_steps": 2, "record": NoRecord(), "run_dir": ""}
    sources = [cell.source for cell in read_chapter("profit").cells if cell.cell_type == "code"]
    names["cell"] = lambda text: next(source for source in sources if text in source)
    for text in ("from lib.ledger.evidence import Record", "sizes = {}"):
        imports = names["cell"](text).splitlines()
        exec("\n".join(line for line in imports if line.startswith(("import ", "from "))), names)
    exec(names["cell"]("sources = {"), names)
    test = names["sets"]["test"]
    names["sets"]["test"] = replace(test, files=test.files[:2], labels=test.labels[:2])
    for text in ("ARMS = {", "def full_precision"):
        exec(names["cell"](text), names)
    return names


def test_the_scale_is_the_authors_recipe():
    asked = resolve("profit", "paper").parameters
    epoch = 1_281_167 // 256
    assert epoch == 5004
    recipe = {
        "batch_size": 256,
        "learning_rate": 0.005,
        "v3_momentum": 0.01,
        "clip_norm": 0.0,
        "path": [8, 5],
        "other_widths": [],
    }
    recipe |= {"map_bits": [4], "map_rounds": [15 * epoch], "sample_steps": 5 * epoch}
    recipe["ema_rate"] = 0.0003
    recipe |= {"stabilise_steps": 5 * epoch, "fp_steps": [15 * epoch, 90 * epoch], "width": 1.0, "repeats": 4}
    assert {name: asked[name] for name in recipe} == recipe


def test_mobilenet_v2_down_to_four_bits(chapter):
    chapter["recipe"] = chapter["Recipe"](learning_rate=0.005, weight_decay=4e-5)
    exec(chapter["cell"]("def prepared"), chapter)
    exec(chapter["cell"]("v2 = {").split("results = []")[0], chapter)
    network = chapter["v2"][1.0, 0]
    assert sum(p.numel() for p in network.parameters()) == 3_504_872
    assert network.classifier[1].out_features == 1000
    prepared, values = chapter["prepared"]((1.0, 0), 4)
    assert len(values) == 52 and all(np.isfinite(value) and value >= 0 for value in values.values())
    assert {layer.weight_quantizer.bits for _, layer in quantized_layers(prepared)} == {4}
    assert set(chapter["along"]) == {("full precision", 1.0, 0), ("8 bits", 1.0, 0), ("5 bits", 1.0, 0)}
    rounds = chapter["freezing_rounds"](values)
    assert [len(names) for names in rounds] == [0, 17, 34]
    frozen = rounds[2]
    before = {name: prepared.get_submodule(name).weight.clone() for name in values}
    best = chapter["in_stages"](
        prepared, (1.0, 0), [(chapter["finetune"], "PROFIT", 50, 2, rounds[1:], 3e-4)]
    )
    assert best is not prepared  # the moving average
    still = {name for name in values if torch.equal(prepared.get_submodule(name).weight, before[name])}
    assert set(rounds[1]) <= still and set(values) - still >= set(values) - set(frozen)
    score = chapter["accuracy"](best, chapter["sets"]["test"])["top-1"]
    assert score in (0, 50, 100)


def test_mobilenet_v3_with_each_quantiser(chapter):
    network = chapter["full_precision"](chapter["MobileNetV3Large"], 0, 2)
    assert sum(p.numel() for p in network.parameters()) == 5_483_032
    # Norms over two pictures blow gradients up, so that here they are clipped.
    recipe = chapter["Recipe"](learning_rate=0.005, clip_norm=1.0)
    for arm in chapter["ARMS"]:
        quantised = chapter["quantised"](network, arm, 0, 3, 3)
        before = quantised.features[0][0].weight.clone()
        chapter["train_stage"](quantised, chapter["batches"](0), 2, recipe)
        assert not torch.equal(quantised.features[0][0].weight, before), arm
        assert all(p.isfinite().all() for p in quantised.parameters()), arm
