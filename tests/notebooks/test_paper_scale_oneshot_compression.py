"""The paper scale of one-shot compression, dry: AlexNet at full size, two steps, on a made-up ImageNet.

The pictures are noise. Decomposing the full fully connected layers takes a minute, so the whole chain of
compression and baselines runs on the same network with a quarter of the channels.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from lib.compression.compressed_layers import compress
from lib.compression.published import ALEXNET_RANKS
from lib.models.vision.alexnet import AlexNet
from lib.runs.request import read_chapter, resolve

CLASSES = [f"n{k:08d}" for k in range(8)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """``imagenet/{train,val}/<wnid>/*.JPEG`` as image-net.org's archives unpack."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for name in CLASSES:
            folder = root / "imagenet" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 256, (280 + 40 * k, 300, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{k}.JPEG")
    return root


@pytest.fixture(scope="module")
def chapter(data_dir, tmp_path_factory) -> dict:
    """What the chapter's cells define at scale paper, up to its functions; two steps, on the processor."""
    asked = resolve("oneshot_compression", "paper").parameters
    small = {"device": "cpu", "batch_size": 8, "steps": 2, "finetune_steps": 2, "seeds": [0]}
    names = asked | small | {"data_dir": str(data_dir), "run_dir": str(tmp_path_factory.mktemp("run"))}
    code = [cell.source for cell in read_chapter("oneshot_compression").cells if cell.cell_type == "code"]
    for mark in ("import matplotlib", "sources = {", "def score(", "def one_shot("):
        (cell,) = [source for source in code if mark in source]
        if mark == "sources = {":
            names["count"] = names["operations"].count_operations
        exec(cell, names)
    return names


def test_the_scale_is_the_papers():
    asked = resolve("oneshot_compression", "paper").parameters
    setting = {
        "network": "alexnet",
        "dataset": "imagenet",
        "finetune_learning_rate": 0.001,
        "batch_size": 256,
    }
    assert {name: asked[name] for name in setting} == setting
    assert asked["steps"] == 90 * (1_281_167 // 256)
    assert asked["finetune_steps"] == 15 * (1_281_167 // 256)
    assert asked["initial_std"] == 0.01


def test_two_steps_of_the_original_and_of_the_compressed_network_at_full_size(chapter):
    assert chapter["image_shape"] == (3, 227, 227) and len(chapter["images"]["train"]) == 16
    with torch.device("meta"):
        blank = AlexNet()
    ranks = {
        f"{'features' if n.startswith('conv') else 'classifier'}.{n}": r for n, r in ALEXNET_RANKS.items()
    }
    thin = compress(blank, ranks, maps={"classifier.fc6": (256, 6, 6)}, weights="fresh").model
    for model, parameters in ((blank, 60_965_224), (thin, 10_735_456)):
        network = model.to_empty(device="cpu")
        chapter["baselines"].initialise_gaussian(network)
        assert sum(p.numel() for p in network.parameters()) == parameters
        before = network.classifier[-1].state_dict()
        before = {key: value.clone() for key, value in before.items()}
        curve = chapter["train"](network, 0, 2, 0.001, f"dry {parameters}")
        assert curve["step"].tolist() == [2] and curve["epoch"].tolist() == [1.0]
        assert 0 <= curve["accuracy"].iloc[0] <= 100
        after = network.classifier[-1].state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before)


def test_one_shot_and_its_baselines_from_weights_given_by_path(chapter, tmp_path):
    torch.manual_seed(0)
    given = AlexNet(width=1 / 4)
    for layer in given.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):  # ten directions and a little noise
            matrix = layer.weight.flatten(1)
            signal = torch.randn(len(matrix), 10) @ torch.randn(10, matrix.shape[1]) / matrix.shape[1] ** 0.5
            layer.weight.data = (0.3 * signal).reshape(layer.weight.shape) + 1e-3 * layer.weight.data
    torch.save(given.state_dict(), tmp_path / "trained.pt")
    names = chapter | {"checkpoint": str(tmp_path / "trained.pt")}
    names["build"] = lambda width=1.0: AlexNet(width=width / 4)
    code = [cell.source for cell in read_chapter("oneshot_compression").cells if cell.cell_type == "code"]
    exec(next(source for source in code if "def one_shot(" in source), names)
    arms, report = names["one_shot"](0)
    assert torch.equal(arms["original"].features.conv3.weight, given.features.conv3.weight)
    assert list(arms)[:2] == ["original", "EVBMF, fine-tuned"] and len(arms) == 6
    assert report["kind"].tolist() == ["Tucker-1", *["Tucker-2"] * 5, "SVD", "SVD"]
    assert report["output_rank"].tolist() == [10] * 8
    budget = names["cost"](arms["EVBMF, fine-tuned"])
    for arm, model in arms.items():
        assert arm == "original" or names["cost"](model) <= budget
        assert 0 <= names["score"](model) <= 100
