"""Articles' texts as tables of word numbers, the same way for every news data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lib.data.news import Articles

#: As recommenders-team/recommenders splits titles, after lower case.
WORD = re.compile(r"\w+|[.,!?;|]")


class Text(NamedTuple):
    """What a data set says of one article; an empty category or subcategory is none, −1 no time."""

    category: str
    subcategory: str
    title: str
    abstract: str = ""
    published: int = -1


def article_table(
    texts: Mapping[str, Text],
    *,
    title_length: int = 30,
    abstract_length: int = 50,
    min_word_count: int = 1,
    words: Sequence[str] | None = None,
) -> Articles:
    """Articles by name, in this order.

    Parameters
    ----------
    texts : mapping
        From articles' names.
    title_length, abstract_length : int
        Words kept.
    min_word_count : int
        Rarer words of all titles and abstracts are left out of the vocabulary, and of the texts.
    words : sequence of str, optional
        The vocabulary, from index 1; by default that of `vocabulary`.
    """
    titles = [WORD.findall(text.title.lower()) for text in texts.values()]
    abstracts = [WORD.findall(text.abstract.lower()) for text in texts.values()]
    if words is None:
        words = _commonest(Counter(word for text in (*titles, *abstracts) for word in text), min_word_count)
    index = {word: i for i, word in enumerate(words, 1)}

    def table(found: list[list[str]], length: int) -> np.ndarray:
        numbers = np.zeros((len(found) + 1, length), np.int32)
        for i, text in enumerate(found, 1):
            known = [index[word] for word in text if word in index][:length]
            numbers[i, : len(known)] = known
        return numbers

    categories = sorted({text.category for text in texts.values()} - {""})
    subcategories = sorted({text.subcategory for text in texts.values()} - {""})
    category = {"": 0} | {name: i for i, name in enumerate(categories, 1)}
    subcategory = {"": 0} | {name: i for i, name in enumerate(subcategories, len(categories) + 1)}
    return Articles(
        ids=np.array(["", *texts]),
        category=np.array([0, *(category[text.category] for text in texts.values())]),
        subcategory=np.array([0, *(subcategory[text.subcategory] for text in texts.values())]),
        title=table(titles, title_length),
        abstract=table(abstracts, abstract_length),
        published=np.array([-1, *(text.published for text in texts.values())]),
        category_names=(*categories, *subcategories),
        words=tuple(words),
    )


def vocabulary(texts: Iterable[Text], min_word_count: int = 1) -> list[str]:
    """Words of titles and abstracts that are at least so common, the commonest first."""
    counts = Counter(word for text in texts for part in text[2:4] for word in WORD.findall(part.lower()))
    return _commonest(counts, min_word_count)


def _commonest(counts: Counter[str], least: int) -> list[str]:
    return sorted((word for word in counts if counts[word] >= least), key=lambda w: (-counts[w], w))
