"""Word vectors of a text file: each word has its own, padding none, the unknown an ordinary one."""

import pytest
import torch

from lib.data.dataset import UnexpectedFormat
from lib.data.word_vectors import read_word_vectors

WORDS = ("the", "of", "Ísland", "unheard", ". . .")


def test_words_have_the_vectors_of_the_file(tmp_path):
    path = tmp_path / "glove.txt"
    lines = ("of 1 2", "the -0.5 3e-1", ". . . 7 8", "Ísland 5 6", "of 9 9", "other 0 0")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    vectors = read_word_vectors(path, WORDS, 2)
    assert vectors.dtype == torch.float32 and vectors[0].tolist() == [0, 0]
    expected = [[-0.5, 0.3], [1, 2], [5, 6], [7, 8]]
    assert vectors[[1, 2, 3, 5]].tolist() == [pytest.approx(row) for row in expected]
    assert vectors[4].any() and torch.equal(vectors, read_word_vectors(path, WORDS, 2))


def test_the_first_line_of_word2vec_is_left_out(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("2 2\nthe 1 2\nof 3 4\n")
    assert read_word_vectors(path, ("the", "of"), 2)[1:].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 1 2\nof 3\n", "line 2 is not a word and 2 numbers"),
        ("the 1 two\n", "line 1 has no 2 numbers"),
        ("das 1 2\n", "it has none of the 5 words"),
        ("", "it has none of the 5 words"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, text, message):
    path = tmp_path / "glove.txt"
    path.write_text(text)
    with pytest.raises(UnexpectedFormat, match=message):
        read_word_vectors(path, WORDS, 2)
    with pytest.raises(FileNotFoundError, match="no file of word vectors"):
        read_word_vectors(tmp_path / "none.txt", WORDS, 2)
