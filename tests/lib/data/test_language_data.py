"""Text: tokens by hand, vocabulary and splits, streams that go on, PTB's layout, the real addresses."""

import gzip
import lzma

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.data.dataset import DataUnavailable
from lib.data.penn_treebank import PENN_TREEBANK, WIKITEXT_2
from lib.data.state_of_the_union import STATE_OF_THE_UNION, read_addresses, read_corpus
from lib.data.text import END, UNKNOWN, Corpus, TextBatches, read_words, tokenise


def test_tokens_by_hand():
    assert tokenise("The Nation’s debt: $1,200.50 — (Applause.)") == [
        "the", "nation's", "debt", ":", "$", "1", ",", "200", ".", "50", "—", "(", "applause", ".", ")",
    ]  # fmt: skip


def test_the_vocabulary_is_of_the_training_split_by_count_then_alphabet():
    corpus = Corpus.of(
        {"train": ["b", "a", "c", "b", END, "a", "d"], "valid": ["a", "z"], "test": ["d", END]}, size=5
    )
    assert corpus.vocabulary == (UNKNOWN, END, "a", "b", "c")
    assert corpus.train.tolist() == [3, 2, 4, 3, 1, 2, 0]
    assert corpus.valid.tolist() == [2, 0] and corpus.test.tolist() == [0, 1]
    small = corpus.limited(3)
    assert small.vocabulary == (UNKNOWN, END, "a") and small.train.tolist() == [0, 2, 0, 0, 1, 2, 0]
    assert small.unknown_share() == pytest.approx(4 / 7)


@given(tokens=st.integers(7, 120), batch_size=st.integers(1, 3), length=st.integers(1, 2))
def test_streams_go_on_where_they_ended(tokens, batch_size, length):
    """Inputs of one pass, stream by stream, are the text in order; each target is the next token."""
    batches = TextBatches(torch.arange(tokens), batch_size=batch_size, length=length)
    parts = [batches.batch(step) for step in range(batches.pieces)]
    assert [part["fresh"].any().item() for part in parts] == [True] + [False] * (len(parts) - 1)
    inputs = torch.cat([part["tokens"] for part in parts], dim=1)
    assert torch.equal(inputs.flatten(), torch.arange(inputs.numel()))
    assert torch.equal(torch.cat([part["targets"] for part in parts], dim=1), inputs + 1)
    assert tokens - inputs.numel() <= batch_size * length + 1  # no more is lost than a piece of each stream
    again = batches.batch(batches.pieces)
    assert torch.equal(again["tokens"], parts[0]["tokens"]) and again["fresh"].all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TextBatches(torch.arange(6), batch_size=2, length=3), "6 tokens do not fill 2 streams of 3"),
        (lambda: TextBatches(torch.arange(6), batch_size=0, length=3), "got 0 and 3"),
        (lambda: Corpus.of({"train": ["a"], "valid": [], "test": ["a"]}), "the valid split has no tokens"),
        (
            lambda: Corpus.of({n: ["a"] for n in ("train", "valid", "test")}).limited(4),
            r"in 3..3 words, got 4",
        ),
        (lambda: Corpus(*[torch.zeros(1)] * 3, vocabulary=("a",)), "begins with <unk> and <eos>"),
    ],
)
def test_wrong_input_is_refused_at_the_door(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_penn_treebank_layout(tmp_path):
    with pytest.raises(DataUnavailable, match=r"ptb.train.txt .* put it at .*ptb.ptb.train.txt"):
        PENN_TREEBANK.load(tmp_path)
    (tmp_path / "ptb").mkdir()
    lines = " mr. <unk> is chairman of <unk> n.v. \n the dutch publishing group is N years old \n"
    for name in ("train", "valid", "test"):
        (tmp_path / "ptb" / f"ptb.{name}.txt").write_text(lines)
    corpus = PENN_TREEBANK.load(tmp_path)
    assert len(corpus.train) == 7 + 8 + 2 and len(corpus.vocabulary) == 14
    assert corpus.train[1] == 0 and corpus.vocabulary[corpus.train[7]] == END
    assert [source.name for source in WIKITEXT_2.sources] == [
        f"wiki.{name}.tokens" for name in ("train", "valid", "test")
    ]
    (tmp_path / "ptb" / "ptb.valid.txt").write_text("")
    with pytest.raises(DataUnavailable, match="the valid split has no tokens"):
        PENN_TREEBANK.load(tmp_path)


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: gzip.compress(text.encode()),
    ],
    ids=["UTF-8 with its mark", "UTF-16", "line ends of Windows", "no last line end", "gzip"],
)
def test_other_editors_change_no_word(tmp_path, saved):
    text = "the café <unk> \n the end\n"
    for name, content in {"plain": text.encode(), "saved": saved(text)}.items():
        (tmp_path / name).write_bytes(content)
    plain, again = (read_words(*[tmp_path / name] * 3) for name in ("plain", "saved"))
    assert again.vocabulary == plain.vocabulary == (UNKNOWN, END, "the", "café", "end")
    assert torch.equal(again.train, plain.train)


def test_what_is_no_text_is_named(tmp_path):
    path = tmp_path / "ptb.train.txt"
    for content in ("café".encode("latin-1"), gzip.compress(b"the end " * 99)[:-9], b"\xff\xfea"):
        path.write_bytes(content)
        with pytest.raises(DataUnavailable, match=r"ptb.train.txt cannot be read as text") as caught:
            read_words(path, path, path)
        assert str(caught.value).isprintable()


def test_the_addresses():
    (path,) = STATE_OF_THE_UNION.files("data")
    addresses = read_addresses(path)
    assert len(addresses) == 123
    assert [addresses[k][:2] for k in (0, -1)] == [(1900, "william_mc_kinley_r"), (2021, "joseph_r_biden_d")]
    corpus = STATE_OF_THE_UNION.load("data")
    sizes = [len(corpus.train), len(corpus.valid), len(corpus.test)]
    assert sum(sizes) == sum(len(tokenise(text)) + 1 for *_, text in addresses)
    assert sizes == [873_672, 60_938, 65_564]
    assert len(corpus.vocabulary) == 10_000
    assert corpus.vocabulary[2:5] == ("the", ",", "of")
    assert 0.01 < corpus.unknown_share() < corpus.unknown_share("test") < 0.05
    assert (corpus.train == 1).sum() + (corpus.valid == 1).sum() + (corpus.test == 1).sum() == 123


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "addresses.txt.xz"
    path.write_bytes(b"no xz")
    with pytest.raises(DataUnavailable, match="is not the file of addresses"):
        read_corpus(path)
    path.write_bytes(lzma.compress(b"nineteen hundred\n"))
    with pytest.raises(DataUnavailable, match="is not the file of addresses"):
        read_corpus(path)
