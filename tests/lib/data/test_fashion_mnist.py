"""Fashion-MNIST: the carried part is the head of the whole; files in the IDX format, and what is none."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.data.dataset import DataUnavailable
from lib.data.fashion_mnist import (
    CLASSES,
    FASHION_MNIST,
    FASHION_MNIST_SAMPLE,
    MEAN,
    STD,
    read_idx,
    read_splits,
)
from lib.data.packages import SystemFile


def idx(values: np.ndarray) -> bytes:
    """A gzipped IDX file of bytes."""
    head = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
    return gzip.compress(head + values.astype(np.uint8).tobytes(), mtime=0)


def test_the_sample(tmp_path):
    splits = FASHION_MNIST_SAMPLE.load(tmp_path)
    assert {split: len(images) for split, images in splits.items()} == {"train": 10_000, "test": 2_000}
    train = splits["train"]
    assert train.images.shape == (10_000, 1, 28, 28) and train.classes == CLASSES
    assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]  # the data set's well-known beginning
    assert train.labels.bincount().min() > 900 and train.labels.max() == 9
    assert train.tensor().mean().abs() < 0.01 and abs(train.tensor().std() - 1) < 0.01


@pytest.mark.skipif(
    not Path(FASHION_MNIST.sources[0].path).is_file(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_the_sample_is_the_head_of_the_whole(tmp_path):
    whole, sample = FASHION_MNIST.load(tmp_path), FASHION_MNIST_SAMPLE.load(tmp_path)
    assert {split: len(images) for split, images in whole.items()} == {"train": 60_000, "test": 10_000}
    for split, images in sample.items():
        assert torch.equal(whole[split].images[: len(images)], images.images)
        assert torch.equal(whole[split].labels[: len(images)], images.labels)
    pixels = whole["train"].images.double() / 255
    assert pixels.mean().item() == pytest.approx(MEAN, abs=5e-5)
    assert pixels.std().item() == pytest.approx(STD, abs=5e-5)


def test_idx_files_are_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28))
    for name, values in {"images": images, "labels": np.array([4, 0, 9])}.items():
        (tmp_path / name).write_bytes(idx(values))
        assert np.array_equal(read_idx(tmp_path / name), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", "no whole gzip file"),
        (idx(np.zeros((2, 28, 28)))[:-9], "no whole gzip file"),
        (gzip.compress(b"\0\0\0\0"), "magic number"),
        (gzip.compress(gzip.decompress(idx(np.zeros(5)))[:-1]), "4 bytes of data where 5"),
        (gzip.compress(struct.pack(">I", 0x801)), "0 bytes of data where 0"),
        (gzip.compress(struct.pack(">IH", 0x803, 0)), "0 bytes of data where 0"),
        (
            gzip.compress(struct.pack(">4I", 0x803, *[2**32 - 1] * 3)),
            "0 bytes of data where 7922816245892",
        ),
    ],
    ids=["a web page", "cut off", "another kind", "a byte short", "no head", "half a head", "beyond 64 bits"],
)
def test_what_is_no_idx_file_is_named(tmp_path, content, message):
    file = tmp_path / "train-images"
    file.write_bytes(content)
    with pytest.raises(DataUnavailable, match=message):
        read_idx(file)


def test_images_without_their_labels_are_named(tmp_path):
    files = {"a": np.zeros((3, 28, 28)), "b": np.zeros(2), "c": np.zeros(3)}
    for name, values in files.items():
        (tmp_path / name).write_bytes(idx(values))
    images, too_few, labels = (tmp_path / name for name in files)
    assert len(read_splits(images, labels, images, labels)["test"]) == 3
    for first, second in ((images, too_few), (labels, images)):
        with pytest.raises(DataUnavailable, match=f"{first} and {second.name} do not fit"):
            read_splits(images, labels, first, second)


def test_a_system_file_is_used_only_if_it_is_the_right_one(tmp_path):
    class Elsewhere:
        name = "elsewhere"

        def fetch(self, data_dir):
            return data_dir / "elsewhere"

    there = tmp_path / "file"
    there.write_bytes(b"right")
    sha256 = hashlib.sha256(b"right").hexdigest()
    assert SystemFile(str(there), sha256, Elsewhere()).fetch(tmp_path) == there
    there.write_bytes(b"wrong")
    assert SystemFile(str(there), sha256, Elsewhere()).fetch(tmp_path) == tmp_path / "elsewhere"
    there.unlink()
    assert SystemFile(str(there), sha256, Elsewhere()).fetch(tmp_path) == tmp_path / "elsewhere"
    assert SystemFile(str(there), sha256, Elsewhere()).name == "file"
