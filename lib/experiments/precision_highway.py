"""Precision highway: data sets, arms, and the training of an arm.

What is measured without training an arm is in `lib.experiments.precision_highway_errors`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor

from lib.data.dataset import DataSet
from lib.data.fashion_mnist import FASHION_MNIST, FASHION_MNIST_SAMPLE
from lib.data.imagenet import IMAGENET_2012, FolderBatches, ImageFolder, ImageFolders
from lib.data.images import ImageBatches, ImageSet
from lib.data.penn_treebank import PENN_TREEBANK, WIKITEXT_2
from lib.data.state_of_the_union import STATE_OF_THE_UNION
from lib.data.text import SPLITS, Corpus, TextBatches
from lib.models.language.highway import quantize_language_model
from lib.models.language.language_model import LSTMLanguageModel
from lib.models.vision.highway import Skip, quantize_resnet
from lib.models.vision.resnet import ResNet
from lib.quantization.dorefa import DoReFaWeight
from lib.quantization.laplace import Laplace
from lib.quantization.lsq import LSQ
from lib.quantization.pact import PACT
from lib.streams import stream_seed
from lib.training.classifiers import ImageClassifier
from lib.training.language_models import LanguageModelling
from lib.training.loop import fit, warmup_cosine

PICTURES: dict[str, DataSet | ImageFolders] = {
    "fashion-mnist-sample": FASHION_MNIST_SAMPLE,
    "fashion-mnist": FASHION_MNIST,
    "imagenet": IMAGENET_2012,
}
TEXTS: dict[str, DataSet] = {
    "state-of-the-union": STATE_OF_THE_UNION,
    "ptb": PENN_TREEBANK,
    "wikitext-2": WIKITEXT_2,
}


#: Texts on which errors and first ranges are measured, and tokens of each along time.
SAMPLE, TOKENS = 32, 60
#: Tokens of a stream that are scored at once.
PIECE = 35

#: By which files of that layout are known for the corpora that they are named after.
TRAINING_TOKENS = {PENN_TREEBANK.name: 929_589, WIKITEXT_2.name: 2_088_628}


def _learned(bits: int, skip_bits: Skip) -> dict[str, Any]:
    """Laplace-optimal weights and learned ranges of activations (LSQ), as options of `quantize_resnet`."""
    return {
        "weights": lambda layer: Laplace(bits),
        "activations": lambda kind: LSQ(bits, signed=False),
        "skip_bits": skip_bits,
    }


class PACTFromMean(PACT):
    """PACT whose clipping level begins where the range of `LSQ` does, so that no arm has the better start.

    From the largest value it comes down by weight decay, in trainings far longer than a chapter's.
    """

    def measure(self, x: Tensor) -> None:
        self.alpha.copy_(LSQ(self.bits, signed=False).initialise(x).levels()[-1])


def _pact_and_dorefa(bits: int, skip_bits: Skip) -> dict[str, Any]:
    """The same options for PACT's activations with DoReFa's weights."""
    return {
        "weights": lambda layer: DoReFaWeight(bits),
        "activations": lambda kind: PACTFromMean(bits),
        "skip_bits": skip_bits,
    }


#: Arms of C3 to C5: options of `lib.models.vision.highway.quantize_resnet`, or None for full precision.
IMAGE_ARMS: dict[str, dict[str, Any] | None] = {
    "full precision": None,
    "conventional W3A3": _learned(3, "shared"),
    "highway W3A3": _learned(3, None),
    "conventional W2A2": _learned(2, "shared"),
    "highway W2A2": _learned(2, None),
    "highway of 8 bits W2A2": _learned(2, 8),
    "PACT and DoReFa W2A2": _pact_and_dorefa(2, "shared"),
    "PACT and DoReFa W2A2 with a highway": _pact_and_dorefa(2, None),
}


def lstm_forms(bits: int) -> dict[str, dict[str, Any]]:
    """What each form of the LSTM rounds, as options of `QuantizedLSTMLayer`: all multiply in `bits`."""
    products = {"weight_bits": bits, "input_bits": bits}
    conventional = products | {"gate_bits": bits, "state_bits": bits}
    return {
        "conventional": conventional,
        "conventional with an exact cell": conventional | {"keep_cell": True},
        "hidden state alone": products | {"state_bits": bits, "keep_cell": True},
        "highway": products,
    }


#: Arms of C6: options of `lib.models.language.highway.QuantizedLSTMLayer`, or None for full precision.
LSTM_ARMS: dict[str, dict[str, Any] | None] = {"full precision": None} | lstm_forms(2)


# --- data and training ---


def data_sets(pictures: str, text: str) -> tuple[DataSet | ImageFolders, DataSet]:
    """The data set of pictures and the text of these names; ValueError for a name that is not known."""
    for name, known in ((pictures, PICTURES), (text, TEXTS)):
        if name not in known:
            raise ValueError(f"expected one of {', '.join(known)}, got {name!r}")
    return PICTURES[pictures], TEXTS[text]


def fitted_text(corpus: Corpus, where: Path, *, vocabulary_size: int, streams: int, length: int) -> Corpus:
    """A text with so many words (0: all), once it is known to be long enough for all that is done with it.

    Parameters
    ----------
    corpus
    where
        The folder of its files, for the message.
    vocabulary_size
    streams, length
        Of the training batches.

    Raises
    ------
    ValueError
        It has fewer words, or a split has fewer tokens than are looked at.
    """
    words = len(corpus.vocabulary)
    if vocabulary_size > words:
        raise ValueError(
            f"{where}: the training text has {words} words, vocabulary_size is {vocabulary_size} (0: all)"
        )
    needed = {"train": streams * length, "valid": SAMPLE * length, "test": SAMPLE * TOKENS}
    for split, tokens in needed.items():
        if (found := len(getattr(corpus, split))) <= tokens:
            raise ValueError(f"{where}: the {split} split has {found} tokens, more than {tokens} are needed")
    return corpus.limited(vocabulary_size) if vocabulary_size else corpus


def text_as_used(source: DataSet, corpus: Corpus) -> DataSet:
    """A text under the name of what it holds: not all files in a corpus's place are that corpus."""
    found = len(corpus.train)
    if TRAINING_TOKENS.get(source.name, found) == found:
        return source
    return replace(source, name=f"own text, {found:,} tokens for training", licence="its owner's")


def scored_streams(tokens: Tensor, streams: int) -> int:
    """Parallel streams in which a text is scored: five times those of the training, if it is long enough."""
    return min(5 * streams, (len(tokens) - 1) // PIECE)


def data_table(
    pictures: DataSet | ImageFolders,
    images: Mapping[str, ImageSet | ImageFolder],
    text: DataSet,
    corpus: Corpus,
) -> pd.DataFrame:
    """What a data set of pictures and a text hold, by split; `images` and `corpus` are what they load."""
    rows = [
        {"data": pictures.name, "split": split, "size": f"{len(part):,} images"}
        for split, part in images.items()
    ]
    for split in SPLITS:
        tokens, share = len(getattr(corpus, split)), 100 * corpus.unknown_share(split)
        size = f"{tokens:,} tokens, {share:.1f} % outside the {len(corpus.vocabulary):,} words"
        rows.append({"data": text.name, "split": split, "size": size})
    return pd.DataFrame(rows)


def image_batches(
    images: ImageSet | ImageFolder, batch_size: int, *, seed: int
) -> ImageBatches | FolderBatches:
    """Training batches: small pictures mirrored and moved by up to two pixels, files as their crops are."""
    augmentation = {"flip": True, "shift": 2} if isinstance(images, ImageSet) else {}
    return images.batches(batch_size, seed=seed, **augmentation)


def text_batches(tokens: Tensor, batch_size: int, length: int, *, seed: int) -> TextBatches:
    """Training batches of a text that begins, and is cut into streams, at another place for each seed.

    What stands before that place comes at the end.
    """
    start = stream_seed(seed, "first token") % len(tokens)
    return TextBatches(tokens.roll(-start), batch_size=batch_size, length=length)


def image_arm(trained: ResNet, arm: str, sample: Tensor) -> ResNet:
    """A copy of a trained network, quantised as the arm has it; ranges are measured on `sample`."""
    options = IMAGE_ARMS[arm]
    return copy.deepcopy(trained) if options is None else quantize_resnet(trained, sample, **options)


def lstm_arm(untrained: LSTMLanguageModel, arm: str, sample: Tensor) -> LSTMLanguageModel:
    """A copy of a language model, quantised as the arm has it; first ranges are measured on `sample`.

    But for that of the hidden state on its way to the output, which begins at −1, its bound: an untrained one
    is about 0.1, where learned steps stay, and after the training nearly all of it would lie outside.
    """
    options = LSTM_ARMS[arm]
    if options is None:
        return copy.deepcopy(untrained)
    makers = {"weights": Laplace, "values": lambda bits, signed: LSQ(bits, signed=signed)}
    model = quantize_language_model(untrained, sample, **makers, **options)
    for layer in model.layers:
        if layer.quantize_output.bits is not None:
            layer.quantize_output.step.data.fill_(1 / -layer.quantize_output.grid().low)
    return model


def train_images(
    network: ResNet,
    batches: ImageBatches | FolderBatches,
    *,
    steps: int,
    learning_rate: float,
    first_step: int = 0,
    teacher: ResNet | None = None,
    fabric: Fabric,
    checkpoint: Path | None = None,
    name: str,
) -> ResNet:
    """Train a network in place by SGD under a cosine, and return it in evaluation mode.

    Parameters
    ----------
    batches
        Of which the training takes `steps`, from `first_step` on.
    teacher
        A network whose predictions are to be matched as well.
    fabric, checkpoint, name
        As for `lib.training.loop.fit`.
    """
    model = ImageClassifier(network.to(fabric.device), teacher=teacher)
    fit(
        model,
        lambda step: batches.batch(first_step + step),
        steps=steps,
        optimizer=torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4),
        schedule=warmup_cosine(steps, warmup=min(10, steps // 2)),
        fabric=fabric,
        checkpoint=checkpoint,
        name=name,
    )
    return network.eval()


def train_text(
    model: LSTMLanguageModel,
    batches: TextBatches,
    *,
    steps: int,
    learning_rate: float,
    fabric: Fabric,
    checkpoint: Path | None = None,
    name: str,
) -> LSTMLanguageModel:
    """Train a language model in place by Adam under a cosine, and return it in evaluation mode.

    Gradients are clipped at norm 1. Parameters as for `train_images`.
    """
    lesson = LanguageModelling(model.train(), batch_size=len(batches.inputs))
    fit(
        lesson,
        batches.batch,
        steps=steps,
        optimizer=torch.optim.Adam(lesson.parameters(), lr=learning_rate),
        schedule=warmup_cosine(steps),
        clip_norm=1.0,
        fabric=fabric,
        checkpoint=checkpoint,
        name=name,
    )
    return model.eval()
