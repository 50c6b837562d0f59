"""Pretrained word vectors from a text file that the reader has, such as GloVe's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.data.dataset import UnexpectedFormat


def read_word_vectors(path: str | Path, words: Sequence[str], size: int) -> Tensor:
    """Vectors of the words of a vocabulary; GloVe's format, a word and its numbers a line.

    Parameters
    ----------
    path : path
        UTF-8 text, such as ``glove.840B.300d.txt`` (Pennington et al., EMNLP 2014; PDDL). A first line with
        two whole numbers, as word2vec's text format has, is left out.
    words : sequence of str
        From index 1.
    size : int
        Numbers of a vector.

    Returns
    -------
    Tensor (len(words) + 1, size)
        Row 0, for padding, is zero; words that the file does not have are normal with the mean and the
        standard deviation of those that it has, drawn with a fixed seed.

    Raises
    ------
    FileNotFoundError
        No such file.
    UnexpectedFormat
        A line of another size or not of numbers, by its number; or no word of the vocabulary in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of word vectors at {path}")
    rows = {word: row for row, word in enumerate(words, 1)}
    vectors, found = np.zeros((len(words) + 1, size), np.float32), np.zeros(len(words) + 1, bool)
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            parts = line.rstrip("\n").rsplit(" ", size)
            if number == 1 and len(line.split()) == 2:
                continue
            if len(parts) != size + 1:
                raise UnexpectedFormat(path, f"line {number} is not a word and {size} numbers")
            row = rows.get(parts[0])
            if row is not None and not found[row]:
                try:
                    vectors[row] = [float(part) for part in parts[1:]]
                except ValueError:
                    raise UnexpectedFormat(path, f"line {number} has no {size} numbers") from None
                found[row] = True
    if not found.any():
        raise UnexpectedFormat(path, f"it has none of the {len(words)} words")
    known = vectors[found]
    missing = ~found
    missing[0] = False
    draw = np.random.default_rng(0)
    vectors[missing] = draw.normal(known.mean(0), known.std(0) + 1e-8, (int(missing.sum()), size))
    return torch.from_numpy(vectors)
