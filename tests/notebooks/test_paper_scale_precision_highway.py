"""The paper scale of Precision Highway, dry: ResNet-50 and the LSTM of 650 units, two steps per arm.

The chapter's own cells run, on a made-up ImageNet and a made-up Penn Treebank in the real layouts. Batches
are small: a step with the real 256 pictures would take minutes here.
"""

import numpy as np
import pytest
from PIL import Image

from lib.runs.request import read_chapter, resolve

CLASSES = 1000
WORDS = 10_000


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
def names(tmp_path_factory) -> dict:
    """What the chapter's cells define at scale ``paper``, up to its data."""
    folder = tmp_path_factory.mktemp("data")
    made_up_imagenet(folder)
    made_up_treebank(folder)
    names = dict(resolve("precision_highway", "paper").parameters)
    assert (names["depth"], names["width"], names["lstm_units"], names["lstm_layers"]) == (50, 1.0, 650, 2)
    names |= {"device": "cpu", "data_dir": str(folder), "run_dir": str(folder / "run"), "seeds": [0]}
    names |= {"batch_size": 2, "steps": 2, "quantised_steps": 2, "streams": 2, "lstm_steps": 2}
    names["display"] = lambda value: value
    for part in ("import matplotlib", "record = Record", "pictures = {"):
        run(part, names)
    return names


def run(part: str, names: dict, *, until: str = "") -> None:
    """The chapter's one cell with this text in it, as far as `until`."""
    cells = [cell.source for cell in read_chapter("precision_highway").cells if cell.cell_type == "code"]
    (source,) = (source for source in cells if part in source)
    exec(source[: source.index(until)] if until else source, names)


def test_the_data_are_read_in_their_layouts(names):
    images, corpus = names["images"], names["corpus"]
    assert names["classes"] == CLASSES and names["channels"] == 3
    assert (len(images["train"]), len(images["test"])) == (CLASSES, CLASSES)
    assert len(corpus.vocabulary) == WORDS


def test_two_steps_of_resnet_50(names):
    run("def train_images", names)
    network = names["trained"][0]
    assert sum(p.numel() for p in network.parameters()) == 25_557_032
    run("def lsq(bits)", names, until="rows, more")
    sample = names["images"]["train"].batches(2, seed=0).batch(0)["images"]
    for arm in ("conventional W2A2", "highway W3A3", "PACT and DoReFa W2A2"):
        new = names["highway"].quantize_resnet(network, sample, **names["ARMS"][arm])
        before = new.layer3[4].conv2.weight.clone()
        size = {"steps": 2, "rate": names["quantised_learning_rate"], "offset": 2, "teacher": network}
        names["train_images"](new, 0, arm, **size)
        moved = (new.layer3[4].conv2.weight - before).abs().max()
        assert moved > 0 and new(sample).isfinite().all()


def test_two_steps_of_the_lstm(names):
    run("LSTM_ARMS = {", names)
    model = names["LSTMLanguageModel"](WORDS, **names["sizes"])
    assert sum(p.numel() for p in model.parameters()) == 19_780_400
    for arm in names["LSTM_ARMS"]:
        trained = names["train_text"](model, arm, 0)
        value = names["perplexity"](trained, names["corpus"].test[:400], batch_size=2, length=35)
        assert value == pytest.approx(WORDS, rel=0.5)
        assert (trained.layers[1].weight_hh - model.layers[1].weight_hh).abs().max() > 0
