"""Arms of Precision Highway: what each rounds, on which batches it is trained, and that only once."""

import copy
import importlib
from functools import partial

import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

from lib.data.dataset import DataSet
from lib.data.imagenet import ImageFolder
from lib.data.images import ImageSet
from lib.data.text import Corpus, TextBatches
from lib.experiments import precision_highway as experiment
from lib.experiments.precision_highway import (
    IMAGE_ARMS,
    LSTM_ARMS,
    PICTURES,
    TEXTS,
    PACTFromMean,
    data_sets,
    data_table,
    image_arm,
    image_batches,
    lstm_arm,
    lstm_forms,
    text_batches,
    train_images,
    train_text,
)
from lib.models.language.language_model import LSTMLanguageModel
from lib.models.vision.resnet import ResNet, resnet
from lib.quantization.dorefa import DoReFaWeight
from lib.quantization.laplace import Laplace
from lib.quantization.lsq import LSQ
from lib.quantization.quantizer import Quantizer
from lib.runs.request import read_chapter
from lib.training.loop import seeded

FABRIC = Fabric(accelerator="cpu", devices=1)
TOKENS = torch.randint(20, (400,), generator=torch.Generator().manual_seed(0))


def pictures(count: int = 64) -> ImageSet:
    """Two classes that the upper half of the picture tells apart."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (count, 1, 12, 12), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 2
    images[labels == 1, :, :6] += 120
    return ImageSet(images, labels, mean=0.4, std=0.2, classes=("dark", "light"))


def network() -> ResNet:
    seeded(0)
    return resnet(18, width=0.125, in_channels=1, num_classes=2, small_images=True)


def language_model() -> LSTMLanguageModel:
    seeded(0)
    return LSTMLanguageModel(20, hidden_size=8, layers=1, dropout=0.0, embedding_range=0.5)


# --- data ---


def test_data_sets_by_name():
    assert [source.name for source in data_sets("imagenet", "ptb")] == [
        "ImageNet (ILSVRC-2012)",
        "Penn Treebank (Mikolov's version: 10,000 words)",
    ]
    with pytest.raises(ValueError, match="expected one of fashion-mnist-sample, .*, got 'cifar'"):
        data_sets("cifar", "ptb")
    with pytest.raises(ValueError, match="expected one of state-of-the-union, .*, got 'imagenet'"):
        data_sets("imagenet", "imagenet")


def test_a_run_reads_the_data_that_it_is_named_by():
    """The front matter, by which a run's data are identified, names the data sets that cells load."""
    entries = read_chapter("precision_highway").metadata["companion"]["data"]
    named = {parameter: choices for entry in entries for parameter, choices in entry.items()}
    assert named.keys() == {"dataset", "text"}
    for parameter, known in (("dataset", PICTURES), ("text", TEXTS)):
        assert named[parameter].keys() == known.keys()
        for name, source in named[parameter].items():
            module, _, attribute = source.partition(":")
            assert getattr(importlib.import_module(module), attribute) is known[name]


def test_the_table_of_data_by_hand():
    corpus = Corpus.of({"train": ["a", "b", "a"], "valid": ["c", "a"], "test": ["b"] * 1200})
    source = {"licence": "", "citation": "", "homepage": "", "sources": (), "read": None}
    sets = DataSet(name="pictures", **source), DataSet(name="words", **source)
    table = data_table(sets[0], {"train": pictures(1500), "test": pictures(3)}, sets[1], corpus)
    assert table.to_numpy().tolist() == [
        ["pictures", "train", "1,500 images"],
        ["pictures", "test", "3 images"],
        ["words", "train", "3 tokens, 0.0 % outside the 4 words"],
        ["words", "valid", "2 tokens, 50.0 % outside the 4 words"],
        ["words", "test", "1,200 tokens, 0.0 % outside the 4 words"],
    ]


def test_another_seed_gives_other_pictures_and_the_same_seed_the_same():
    batches = [image_batches(pictures(), 16, seed=seed).batch(3) for seed in (0, 0, 1)]
    assert torch.equal(batches[0]["images"], batches[1]["images"])
    assert not torch.equal(batches[0]["labels"], batches[2]["labels"])
    plain = pictures().batches(16, seed=0).batch(3)
    assert torch.equal(plain["labels"], batches[0]["labels"])
    assert not torch.equal(plain["images"], batches[0]["images"])  # mirrored and moved


def test_files_are_cropped_as_their_data_set_has_it(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.new("RGB", (300, 260), (80 * k, 0, 0)).save(tmp_path / name / f"{k}.jpeg")
    folder = ImageFolder.of(tmp_path)
    found = [image_batches(folder, 3, seed=seed).batch(0) for seed in (0, 1)]
    assert torch.equal(found[0]["images"], folder.batches(3, seed=0).batch(0)["images"])
    assert not torch.equal(found[0]["images"], found[1]["images"])


def test_each_seed_reads_the_whole_text_from_another_place():
    starts = []
    for seed in range(4):
        batches = text_batches(torch.arange(401), 4, 10, seed=seed)
        again = text_batches(torch.arange(401), 4, 10, seed=seed)
        read = torch.cat([batches.batch(step)["tokens"] for step in range(10)], dim=1).flatten()
        assert torch.equal(read, torch.cat([again.batch(s)["tokens"] for s in range(10)], dim=1).flatten())
        assert torch.equal(read[1:], (read[:-1] + 1) % 401)  # in order, and on at the beginning
        starts.append(read[0].item())
    assert len(set(starts)) == 4 and max(starts) - min(starts) > 100
    with pytest.raises(ValueError, match="41 tokens do not fill 4 streams of 11 tokens"):
        text_batches(torch.arange(41), 4, 11, seed=2**32 - 1)


# --- arms ---


def test_what_the_image_arms_round():
    trained, sample = network().eval(), pictures().tensor(slice(0, 16))
    before = copy.deepcopy(trained.state_dict())
    arms = {arm: image_arm(trained, arm, sample) for arm in IMAGE_ARMS}
    assert list(arms) == [
        "full precision",
        "conventional W3A3",
        "highway W3A3",
        "conventional W2A2",
        "highway W2A2",
        "highway of 8 bits W2A2",
        "PACT and DoReFa W2A2",
        "PACT and DoReFa W2A2 with a highway",
    ]
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    full = arms.pop("full precision")
    assert full is not trained and not any(isinstance(module, Quantizer) for module in full.modules())
    counts = set()
    for arm, quantised in arms.items():
        block = quantised.layer2[1]
        of_weight, of_value = block.conv2.weight_quantizer, block.conv2.input_quantizer
        assert of_weight.bits == of_value.bits == block.entrance.bits == (3 if "3" in arm else 2), arm
        assert block.shares == ("highway" not in arm)
        assert getattr(block.highway, "bits", None) == (8 if "8 bits" in arm else None)
        kinds = (DoReFaWeight, PACTFromMean) if "PACT" in arm else (Laplace, LSQ)
        assert (type(of_weight), type(of_value)) == kinds
        assert quantised.conv1.weight_quantizer.bits == 8 == quantised.fc.input_quantizer.bits
        of_highway = {
            id(m) for b in quantised.modules() if hasattr(b, "highway") for m in b.highway.modules()
        }
        counts.add(sum(isinstance(m, Quantizer) and id(m) not in of_highway for m in quantised.modules()))
    assert len(counts) == 1  # as many quantisers in every arm's branches


def test_learned_ranges_of_values_begin_alike():
    trained, sample = network().eval(), pictures().tensor(slice(0, 16))
    tops = {
        arm: [
            module.levels()[-1].item()
            for name, module in image_arm(trained, arm, sample).named_modules()
            if isinstance(module, LSQ | PACTFromMean)
        ]
        for arm in IMAGE_ARMS
        if "W2A2" in arm and "8 bits" not in arm
    }
    assert len(tops) == 4 and len(tops["highway W2A2"]) == 17  # two a block, and the classifier's
    for arm, found in tops.items():
        assert found == pytest.approx(tops["highway W2A2"], rel=1e-6), arm


def test_what_the_lstm_arms_round():
    untrained, sample = language_model(), TOKENS[:120].view(4, 30)
    assert list(LSTM_ARMS) == ["full precision", *lstm_forms(2)]
    bits = {}
    for arm in LSTM_ARMS:
        (layer,) = lstm_arm(untrained, arm, sample).layers
        bits[arm] = {
            name.removeprefix("quantize_"): module.bits
            for name, module in layer.named_children()
            if module.bits is not None
        }
    products = dict.fromkeys(("weight_ih", "weight_hh", "input", "hidden"), 2)
    rounded = products | dict.fromkeys(("gates", "candidate", "output"), 2)
    assert bits == {
        "full precision": {},
        "conventional": rounded | {"cell": 2},
        "conventional with an exact cell": rounded,
        "hidden state alone": products | {"output": 2},
        "highway": products,
    }
    assert lstm_forms(3)["highway"] == {"weight_bits": 3, "input_bits": 3}


def test_the_first_range_of_the_output_reaches_to_its_bound():
    """An untrained hidden state is small: a range measured on it would hold hardly any trained value."""
    untrained, sample = language_model(), TOKENS[:120].view(4, 30)
    outputs = [lstm_arm(untrained, arm, sample).layers[0].quantize_output for arm in lstm_forms(2)]
    assert [quantizer.bits for quantizer in outputs] == [2, 2, 2, None]
    assert all(quantizer.levels().tolist() == [-1, -0.5, 0, 0.5] for quantizer in outputs[:3])


def test_an_arm_is_a_copy_with_the_same_weights():
    untrained, sample = language_model(), TOKENS[:120].view(4, 30)
    for arm in LSTM_ARMS:
        model = lstm_arm(untrained, arm, sample)
        assert model is not untrained
        for name, value in untrained.state_dict().items():
            twin = model.state_dict()[name]
            assert torch.equal(twin, value) and twin.data_ptr() != value.data_ptr(), (arm, name)


# --- training ---


class Watched:
    """Batches that keep which steps were asked for, and break down at one."""

    def __init__(self, batches, *, breaks_at: int | None = None):
        self.batches, self.breaks_at, self.asked = batches, breaks_at, []
        self.inputs = getattr(batches, "inputs", None)

    def batch(self, step):
        if step == self.breaks_at:
            raise KeyboardInterrupt
        self.asked.append(step)
        return self.batches.batch(step)


def loss_of(model: ResNet, images: ImageSet) -> float:
    return torch.nn.functional.cross_entropy(model(images.tensor()), images.labels).item()


def test_images_are_trained_on_from_where_the_first_training_ended():
    images, model = pictures(), network()
    batches = Watched(image_batches(images, 16, seed=0))
    before = loss_of(copy.deepcopy(model), images)  # with the statistics of these images: in training mode
    out = train_images(
        model, batches, steps=12, learning_rate=0.05, first_step=30, fabric=FABRIC, name="a training"
    )
    assert out is model and not model.training
    assert batches.asked == list(range(30, 42))
    with torch.no_grad():
        assert loss_of(copy.deepcopy(model).train(), images) < 0.7 * before


def test_a_teacher_changes_what_is_learned():
    learned = []
    for teacher in (None, network(), network()):
        model = network()
        options = {"steps": 3, "learning_rate": 0.1, "fabric": FABRIC, "name": "a training"}
        train_images(model, image_batches(pictures(), 16, seed=0), teacher=teacher, **options)
        learned.append(model.fc.weight.detach())
    assert not torch.equal(learned[0], learned[1]) and torch.equal(learned[1], learned[2])


@pytest.mark.parametrize("arm", ["full precision", "conventional", "hidden state alone", "highway"])
def test_a_text_is_learned(arm):
    """Words that follow each other in a ring: one word tells the next."""
    text = torch.arange(20).repeat(40)
    model = lstm_arm(language_model(), arm, text[:120].view(4, 30))
    start = torch.nn.functional.cross_entropy(model(text[None, :60])[0][0], text[1:61]).item()
    batches = Watched(text_batches(text, 4, 10, seed=1))
    out = train_text(model, batches, steps=60, learning_rate=0.05, fabric=FABRIC, name="a text")
    assert out is model and not model.training and batches.asked == list(range(60))
    assert torch.nn.functional.cross_entropy(model(text[None, :60])[0][0], text[1:61]).item() < 0.5 * start


def trained_arm(arm: str, batches, checkpoint):
    """An arm of pictures or of the text after four steps."""
    options = {"steps": 4, "learning_rate": 0.05, "fabric": FABRIC, "name": arm, "checkpoint": checkpoint}
    if arm in LSTM_ARMS:
        return train_text(lstm_arm(language_model(), arm, TOKENS[:40].view(4, 10)), batches, **options)
    sample = pictures().tensor(slice(0, 16))
    return train_images(image_arm(network().eval(), arm, sample), batches, **options)


@pytest.mark.parametrize("arm", ["highway W2A2", "PACT and DoReFa W2A2", "conventional"])
def test_an_arm_is_trained_once_and_goes_on_where_it_was_cut_off(arm, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "fit", partial(experiment.fit, checkpoint_seconds=0))
    text = arm in LSTM_ARMS
    batches = text_batches(TOKENS, 4, 10, seed=0) if text else image_batches(pictures(), 16, seed=0)
    whole = trained_arm(arm, batches, tmp_path / "whole.pt").state_dict()
    with pytest.raises(KeyboardInterrupt):
        trained_arm(arm, Watched(batches, breaks_at=3), tmp_path / "cut off.pt")
    rest = Watched(batches)
    state = trained_arm(arm, rest, tmp_path / "cut off.pt").state_dict()
    assert rest.asked == [3]
    assert all(torch.equal(value, state[name]) for name, value in whole.items())
    none = Watched(batches)
    state = trained_arm(arm, none, tmp_path / "whole.pt").state_dict()
    assert none.asked == []
    assert all(torch.equal(value, state[name]) for name, value in whole.items())


# --- other people's texts ----------------------------------------------------------------------------------


def corpus_of(**lengths: int) -> Corpus:
    splits = {"train": 400, "valid": 400, "test": 2000} | lengths
    words = {split: [f"w{k % 20}" for k in range(count)] for split, count in splits.items()}
    return Corpus.of(words)


ASKED = {"vocabulary_size": 10, "streams": 20, "length": 10}


def test_a_text_that_is_long_enough_gets_its_words(tmp_path):
    assert len(experiment.fitted_text(corpus_of(), tmp_path, **ASKED).vocabulary) == 10
    assert (
        len(experiment.fitted_text(corpus_of(), tmp_path, **ASKED | {"vocabulary_size": 0}).vocabulary) == 22
    )


@pytest.mark.parametrize(
    ("lengths", "asked", "message"),
    [
        ({}, {"vocabulary_size": 1000}, "training text has 22 words, vocabulary_size is 1000 \\(0: all\\)"),
        ({"train": 200}, {}, "the train split has 200 tokens, more than 200 are needed"),
        ({"valid": 320}, {}, "the valid split has 320 tokens, more than 320 are needed"),
        ({"test": 1920}, {}, "the test split has 1920 tokens, more than 1920 are needed"),
    ],
)
def test_a_text_that_is_too_short_is_named_before_anything_is_trained(tmp_path, lengths, asked, message):
    with pytest.raises(ValueError, match=f"^{tmp_path}: .*{message}$"):
        experiment.fitted_text(corpus_of(**lengths), tmp_path, **ASKED | asked)


def test_a_short_text_is_scored_in_fewer_streams():
    for tokens, streams in ((10_000, 100), (3501, 100), (3500, 99), (1921, 54)):
        assert experiment.scored_streams(torch.zeros(tokens), 20) == streams
        TextBatches(torch.zeros(tokens), batch_size=streams, length=experiment.PIECE)


def test_other_texts_than_the_treebank_are_not_called_by_its_name(monkeypatch):
    corpus, treebank, speeches = corpus_of(), TEXTS["ptb"], TEXTS["state-of-the-union"]
    used = experiment.text_as_used(treebank, corpus)
    assert (used.name, used.licence) == ("own text, 400 tokens for training", "its owner's")
    assert used.sources == treebank.sources and experiment.text_as_used(speeches, corpus) is speeches
    monkeypatch.setitem(experiment.TRAINING_TOKENS, treebank.name, 400)
    assert experiment.text_as_used(treebank, corpus) is treebank
