"""The paper scale of Precision Highway, dry: ResNet-50 and the LSTM of 650 units, a few steps per arm.

The functions of the experiment run with the parameters of the paper scale, on a made-up ImageNet and a
made-up Penn Treebank in the real layouts. Batches are small: a step of 256 pictures would take minutes here.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

from lib.data.text import TextBatches
from lib.experiments.precision_highway import (
    LSTM_ARMS,
    data_sets,
    data_table,
    image_arm,
    image_batches,
    lstm_arm,
    text_batches,
    train_images,
    train_text,
)
from lib.models.language.language_model import LSTMLanguageModel
from lib.models.vision.resnet import resnet
from lib.runs.request import resolve
from lib.training.language_models import perplexity
from lib.training.loop import seeded

CLASSES = 1000
WORDS = 10_000
FABRIC = Fabric(accelerator="cpu", devices=1)


def made_up_imagenet(root) -> None:
    """A thousand classes with one picture of 300 × 260 pixels in each split."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (26, 30, 3), dtype=np.uint8))
    picture = root / "picture.JPEG"
    image.resize((300, 260)).save(picture, quality=30)
    for split in ("train", "val"):
        for k in range(CLASSES):
            folder = root / "imagenet" / split / f"n{k:08d}"
            folder.mkdir(parents=True)
            (folder / f"n{k:08d}_1.JPEG").hardlink_to(picture)


def made_up_treebank(root) -> None:
    """Sentences of twenty words, all of the vocabulary in training."""
    random = np.random.default_rng(0)
    (root / "ptb").mkdir()
    for name, words in (("train", np.arange(WORDS - 2)), ("valid", None), ("test", None)):
        words = random.integers(0, WORDS - 2, 4000) if words is None else random.permutation(words)
        lines = [" ".join(["<unk>", *(f"w{word}" for word in line)]) for line in words.reshape(-1, 2)]
        (root / "ptb" / f"ptb.{name}.txt").write_text("".join(f" {line} \n" for line in lines))


@pytest.fixture(scope="module")
def paper() -> SimpleNamespace:
    """The chapter's parameters at scale ``paper``."""
    return SimpleNamespace(**resolve("precision_highway", "paper").parameters)


@pytest.fixture(scope="module")
def data(paper, tmp_path_factory) -> dict:
    """What the chapter's cells load at that scale."""
    folder = tmp_path_factory.mktemp("data")
    made_up_imagenet(folder)
    made_up_treebank(folder)
    pictures, words = data_sets(paper.dataset, paper.text)
    images, corpus = pictures.load(folder), words.load(folder)
    table = data_table(pictures, images, words, corpus)
    return {"images": images, "corpus": corpus, "table": table}


@pytest.fixture
def network(paper):
    seeded(0)
    return resnet(paper.depth, width=paper.width, in_channels=3, num_classes=CLASSES)


@pytest.fixture
def model(paper, data):
    seeded(0)
    return LSTMLanguageModel(
        len(data["corpus"].vocabulary),
        hidden_size=paper.lstm_units,
        layers=paper.lstm_layers,
        dropout=paper.lstm_dropout,
        embedding_range=paper.embedding_range,
    )


def test_the_data_are_read_in_their_layouts(data):
    images, corpus = data["images"], data["corpus"]
    assert (len(images["train"]), len(images["test"])) == (CLASSES, CLASSES)
    assert len(images["train"].classes) == CLASSES and images["test"].tensor(slice(0, 1)).shape[1] == 3
    assert len(corpus.vocabulary) == WORDS
    assert data["table"]["size"].tolist()[:2] == ["1,000 images"] * 2 and len(data["table"]) == 5


def test_the_networks_have_their_published_sizes(network, model):
    assert sum(p.numel() for p in network.parameters()) == 25_557_032
    assert sum(p.numel() for p in model.parameters()) == 19_780_400


@pytest.mark.parametrize(
    ("arm", "levels"), [("conventional W2A2", 3), ("highway W3A3", 7), ("PACT and DoReFa W2A2", 4)]
)
def test_two_steps_of_resnet_50(paper, data, network, arm, levels):
    images = data["images"]["train"]
    sample = images.batches(2, seed=0).batch(0)["images"]
    new = image_arm(network, arm, sample)
    before = new.layer3[4].conv2.weight.clone()
    train_images(
        new,
        image_batches(images, 2, seed=0),
        first_step=2,
        steps=2,
        learning_rate=paper.quantised_learning_rate,
        teacher=network,
        fabric=FABRIC,
        name=arm,
    )
    layer = new.layer3[4].conv2
    assert (layer.weight - before).abs().max() > 0 and new(sample).isfinite().all()
    assert len(layer.weight_quantizer(layer.weight).unique()) == levels


@pytest.mark.parametrize("arm", LSTM_ARMS)
def test_three_steps_of_the_lstm(paper, data, model, arm):
    """With an output of zeros every word is as likely: perplexity is the size of the vocabulary, exactly.

    From there the text that it is trained on can only become likelier, unless steps go the wrong way.
    """
    torch.nn.init.zeros_(model.output.weight)
    tokens = data["corpus"].train[: 2 * 3 * paper.length + 1]
    sample = TextBatches(tokens, batch_size=2, length=paper.length).batch(0)["tokens"]
    new = lstm_arm(model, arm, sample)
    assert perplexity(new, tokens, batch_size=2, length=paper.length) == pytest.approx(WORDS, rel=1e-5)
    train_text(
        new,
        text_batches(tokens, 2, paper.length, seed=0),
        steps=3,  # the first moves the output alone, the last has a rate of zero
        learning_rate=paper.lstm_learning_rate,
        fabric=FABRIC,
        name=arm,
    )
    learned = perplexity(new, tokens, batch_size=2, length=paper.length)
    if LSTM_ARMS[arm] and LSTM_ARMS[arm].get("state_bits"):
        assert (
            learned < 0.999 * WORDS
        )  # an untrained output is rounded to zero: at first the bias alone learns
    else:
        assert learned < 0.99 * WORDS
        assert (new.layers[1].weight_hh - model.layers[1].weight_hh).abs().max() > 0
