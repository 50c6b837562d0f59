"""The paper scale of one-shot compression, dry: AlexNet at full size, two steps, on a made-up ImageNet.

The pictures are noise. Decomposing the full fully connected layers takes a minute, so the whole chain of
compression and baselines runs on the same network with a quarter of the channels.
"""

from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
from PIL import Image

from lib.experiments import oneshot_compression as oneshot
from lib.experiments.oneshot_compression_baselines import initialise_gaussian
from lib.experiments.oneshot_compression_counts import layer_ranks, published_networks, with_ranks
from lib.ledger.schema import load_ledger
from lib.models.vision.alexnet import AlexNet
from lib.runs.request import resolve

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
def setting() -> oneshot.Setting:
    """The chapter's setting at scale paper; two steps, on the processor."""
    asked = resolve("oneshot_compression", "paper").parameters
    small = {"device": "cpu", "batch_size": 8, "steps": 2, "finetune_steps": 2}
    names = [field.name for field in fields(oneshot.Setting) if field.name in asked]
    return oneshot.Setting(**{name: (asked | small)[name] for name in names})


@pytest.fixture(scope="module")
def images(setting, data_dir):
    return setting.source.load(data_dir)


def top5(network, images) -> float:
    """Percent of the test images whose label is among the five largest logits, by counting larger ones."""
    test = images["test"]
    with torch.no_grad():
        logits = network.eval()(test.tensor(slice(0, len(test))))
    larger = (logits > logits.gather(1, test.labels[:, None])).sum(1)
    return 100 * (larger < 5).double().mean().item()


def test_the_scale_is_the_papers():
    asked = resolve("oneshot_compression", "paper").parameters
    setting = {
        "network": "alexnet",
        "dataset": "imagenet",
        "finetune_learning_rate": 0.001,
        "batch_size": 128,
    }
    assert {name: asked[name] for name in setting} == setting
    assert asked["steps"] == 90 * (1_281_167 // 128)
    assert asked["finetune_steps"] == 15 * (1_281_167 // 128)
    assert asked["initial_std"] == 0.01


def test_two_steps_of_the_original_and_of_the_compressed_network_at_full_size(setting, images):
    assert setting.image_shape == (3, 227, 227) and len(images["train"]) == 16
    blank = published_networks()["AlexNet"]
    numbers = {number.name: number.value for number in load_ledger("oneshot_compression")["C9"].paper}
    thin = with_ranks(blank, layer_ranks(numbers))
    for model, parameters in ((blank, 60_965_224), (thin, 10_735_456)):
        network = initialise_gaussian(model.to_empty(device="cpu"))
        assert sum(p.numel() for p in network.parameters()) == parameters
        before = network.classifier[-1].state_dict()
        before = {key: value.clone() for key, value in before.items()}
        curve = oneshot.train(network, images, setting, 0, f"dry {parameters}", steps=2, peak=0.001)
        assert curve["step"].tolist() == [2] and curve["epoch"].tolist() == [1.0]
        assert curve["accuracy"].tolist() == [top5(network, images)]
        after = network.classifier[-1].state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before)


class Quarter(oneshot.Setting):
    """AlexNet with a quarter of its channels and sixteen classes, so that top-5 can go either way."""

    def build(self, width: float = 1.0) -> AlexNet:
        return AlexNet(width=width / 4, num_classes=16)


def test_one_shot_and_its_baselines_from_weights_given_by_path(setting, images, tmp_path):
    torch.manual_seed(0)
    setting = Quarter(**asdict(setting))
    given = setting.build()
    for layer in given.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):  # ten directions and a little noise
            matrix = layer.weight.flatten(1)
            signal = torch.randn(len(matrix), 10) @ torch.randn(10, matrix.shape[1]) / matrix.shape[1] ** 0.5
            layer.weight.data = (0.3 * signal).reshape(layer.weight.shape) + 1e-3 * layer.weight.data
    torch.save(given.state_dict(), tmp_path / "trained.pt")
    original = oneshot.trained_original(images, setting, 0, given=str(tmp_path / "trained.pt"))
    assert torch.equal(original.features.conv3.weight, given.features.conv3.weight)
    arms, report = oneshot.compressed_arms(original, setting, 0)
    assert len(arms) == 5
    assert report["kind"].tolist() == ["Tucker-1", *["Tucker-2"] * 5, "SVD", "SVD"]
    assert report["output_rank"].tolist() == [10] * 8
    budget = oneshot.size(arms["EVBMF, fine-tuned"], setting)[oneshot.MACS]
    scores = {"original": oneshot.score(original, images, setting)}
    assert scores["original"] == top5(original, images)
    for arm, model in arms.items():
        assert oneshot.size(model, setting)[oneshot.MACS] <= budget
        scores[arm] = oneshot.score(model, images, setting)
        assert scores[arm] == top5(model, images)
    assert len(set(scores.values())) > 1 and any(0 < value < 100 for value in scores.values())
