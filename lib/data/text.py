"""Text for language models: words to numbers, three splits, batches that go on where the last ended."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lib.data.dataset import DataUnavailable, opened
from lib.listing import printable

UNKNOWN, END = "<unk>", "<eos>"
SPLITS = ("train", "valid", "test")
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\sa-z0-9]")


def tokenise(text: str) -> list[str]:
    """Lower-case words (with one apostrophe inside), numbers, and each other mark by itself."""
    return _TOKEN.findall(text.lower().replace("’", "'"))


@dataclass(frozen=True, eq=False)
class Corpus:
    """Three stretches of text as word numbers.

    Attributes
    ----------
    train, valid, test : (N,) int64
    vocabulary : tuple of str
        Word of each number: first ``<unk>`` and ``<eos>``, then the others, most frequent in training first.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.vocabulary[:2] != (UNKNOWN, END):
            raise ValueError(f"a vocabulary begins with {UNKNOWN} and {END}, got {self.vocabulary[:2]}")

    def limited(self, size: int) -> Corpus:
        """The same text with only the first `size` words of the vocabulary; all others become ``<unk>``."""
        if not 3 <= size <= len(self.vocabulary):
            raise ValueError(f"size must be in 3..{len(self.vocabulary)} words, got {size}")
        splits = {name: torch.where((t := getattr(self, name)) < size, t, 0) for name in SPLITS}
        return replace(self, **splits, vocabulary=self.vocabulary[:size])

    def unknown_share(self, split: str = "train") -> float:
        """Share of tokens that are ``<unk>``."""
        return (getattr(self, split) == 0).double().mean().item()

    @classmethod
    def of(cls, splits: dict[str, list[str]], size: int | None = None) -> Corpus:
        """Number the tokens of three splits.

        Parameters
        ----------
        splits : dict from "train", "valid", "test" to a list of tokens
        size : int, optional
            Words in the vocabulary, the two special ones included: the most frequent of the training split,
            ties in alphabetical order. All of them if not given.

        Raises
        ------
        ValueError
            If a split is empty.
        """
        if empty := [name for name in SPLITS if not splits.get(name)]:
            raise ValueError(f"the {empty[0]} split has no tokens")
        counts = Counter(splits["train"])
        for special in (UNKNOWN, END):
            counts.pop(special, None)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        vocabulary = (UNKNOWN, END, *ranked)[:size]
        number = {word: k for k, word in enumerate(vocabulary)}
        numbered = {name: torch.tensor([number.get(w, 0) for w in splits[name]]) for name in SPLITS}
        return cls(**numbered, vocabulary=vocabulary)


class TextBatches:
    """Consecutive pieces of parallel streams, as truncated back-propagation through time wants them.

    The text is cut into `batch_size` streams of equal length. Step t shows the t-th piece of every stream,
    and the next step goes on where it ended, so that the network's state can be carried over. At the end the
    streams start again, with `fresh` set. A batch is a function of its step.

    Parameters
    ----------
    tokens : (N,) int64
    batch_size : int
        Streams, B.
    length : int
        Tokens per piece, L.
    """

    def __init__(self, tokens: Tensor, *, batch_size: int, length: int) -> None:
        if batch_size < 1 or length < 1:
            raise ValueError(f"batch_size and length must be at least 1, got {batch_size} and {length}")
        self.pieces = (len(tokens) - 1) // batch_size // length
        if self.pieces < 1:
            raise ValueError(
                f"{len(tokens)} tokens do not fill {batch_size} streams of {length} tokens and their targets"
            )
        self.length = length
        span = self.pieces * length
        self.inputs = tokens[: batch_size * span].view(batch_size, span)
        self.targets = tokens[1 : batch_size * span + 1].view(batch_size, span)

    def batch(self, step: int) -> dict[str, Tensor]:
        """``tokens`` and ``targets`` (B, L) int64, and ``fresh`` (B,) bool: where a new state begins."""
        piece = step % self.pieces
        columns = slice(piece * self.length, (piece + 1) * self.length)
        fresh = torch.full((len(self.inputs),), piece == 0)
        return {"tokens": self.inputs[:, columns], "targets": self.targets[:, columns], "fresh": fresh}


def words_of_lines(lines: Iterable[str]) -> list[str]:
    """Words between blanks, and ``<eos>`` at the end of each line: how PTB and WikiText are counted."""
    return [word for line in lines for word in (*line.split(), END)]


def read_words(train: Path, valid: Path, test: Path) -> Corpus:
    """Three files of words between blanks, rare ones already replaced by ``<unk>`` (PTB, WikiText).

    Raises
    ------
    DataUnavailable
        One of them is empty, cannot be read, or is no text in UTF-8.
    """
    splits = {}
    for name, path in zip(SPLITS, (train, valid, test), strict=True):
        try:
            with opened(path) as file:
                splits[name] = words_of_lines(file)
        except (OSError, UnicodeError, EOFError, zlib.error) as error:
            raise DataUnavailable(f"{path} cannot be read as text in UTF-8: {printable(error)}") from error
    try:
        return Corpus.of(splits)
    except ValueError as error:
        raise DataUnavailable(f"{Path(train).parent}: {error}") from error
