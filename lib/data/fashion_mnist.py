"""Fashion-MNIST: grey pictures, 28 × 28, of ten kinds of clothing (Xiao, Rasul & Vollgraf, arXiv:1708.07747).

`FASHION_MNIST_SAMPLE` is the part that this repository carries (the licence allows it), so that the book
needs no network; `FASHION_MNIST` is the whole, from Debian's package or from its owners.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from lib.data.dataset import DataSet, DataUnavailable
from lib.data.download import Download
from lib.data.images import ImageSet
from lib.data.packages import PackageFile, SystemFile
from lib.listing import printable

LICENCE = "MIT, Copyright 2017 Zalando SE"
CITATION = (
    "Xiao, Rasul & Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
    "Algorithms, arXiv:1708.07747, 2017"
)
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
#: Of the pixels of all 60,000 training images, on the scale 0…1.
MEAN, STD = 0.2860, 0.3530
_IMAGES, _LABELS = 0x803, 0x801  # the format's magic numbers: bytes in three dimensions, in one


def read_idx(path: Path) -> np.ndarray:
    """The bytes of a gzipped IDX file: images (N, 28, 28) or labels (N,).

    Raises
    ------
    DataUnavailable
        It is no whole file of that format.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataUnavailable(
            f"{path} is no whole gzip file ({printable(error)}): delete it and run again"
        ) from error
    magic = int.from_bytes(raw[:4], "big")
    if magic not in (_IMAGES, _LABELS):
        raise DataUnavailable(f"{path} is no IDX file of bytes (its magic number is {magic:#x}): delete it")
    head = 4 + 4 * (3 if magic == _IMAGES else 1)
    shape = [int.from_bytes(raw[place : place + 4], "big") for place in range(4, head, 4)]
    body = np.frombuffer(raw[head:], np.uint8)
    if len(body) != math.prod(shape) or len(raw) < head:
        raise DataUnavailable(f"{path} has {len(body)} bytes of data where {math.prod(shape)} are announced")
    return body.reshape(shape)


def read_splits(train_images: Path, train_labels: Path, test_images: Path, test_labels: Path) -> dict:
    """``{"train": ImageSet, "test": ImageSet}`` of grey images (N, 1, 28, 28).

    Raises
    ------
    DataUnavailable
        A file is no whole one of its format, or images and labels do not belong together.
    """
    files = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    splits = {}
    for split, (images, labels) in files.items():
        pixels = torch.from_numpy(read_idx(images)[:, None].copy())
        numbers = torch.from_numpy(read_idx(labels).astype(np.int64))
        try:
            splits[split] = ImageSet(pixels, numbers, mean=MEAN, std=STD, classes=CLASSES)
        except ValueError as error:
            raise DataUnavailable(f"{images} and {labels.name} do not fit: {error}") from error
    return splits


def _sample(name: str, sha256: str) -> PackageFile:
    return PackageFile("lib", f"data/fashion_mnist_sample/{name}-ubyte.gz", sha256, requirement="-e .")


def _whole(name: str, size: str, md5: str, debian_sha256: str) -> SystemFile:
    """Debian's copy, compressed anew, or the owners' file; its md5 is in their README, here from memory."""
    file = f"{name}-ubyte.gz"
    return SystemFile(
        path=f"/usr/share/datasets/fashion-mnist/{file}",
        sha256=debian_sha256,
        otherwise=Download(
            name=f"fashion-mnist-{file}",
            addresses=(
                f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{file}",
                f"https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/{file}",
            ),
            size=size,
            licence=LICENCE,
            known_hash=f"md5:{md5}",
            published_hash=HOMEPAGE,
        ),
    )


FASHION_MNIST_SAMPLE = DataSet(
    name="Fashion-MNIST, the first 10,000 training and 2,000 test images",
    licence=LICENCE,
    citation=CITATION,
    homepage=HOMEPAGE,
    sources=(
        _sample("train-images-idx3", "dbc97073061adfe46b8bf8af6112364d34cf4cf2363dd8191a14d6515e121e6b"),
        _sample("train-labels-idx1", "0b1c9fd85da433904cd8c43816d58e9156256c8dde6e23698c4b9340b0494067"),
        _sample("t10k-images-idx3", "34b6848fb35a59e5287bf485522433dfd8bd017eb126fde6f02e96123c8ff741"),
        _sample("t10k-labels-idx1", "6a1ad38ad7d33240e59f70a44ddce4e9483e573ffad983d287064bd467dcbd4e"),
    ),
    read=read_splits,
)

FASHION_MNIST = DataSet(
    name="Fashion-MNIST",
    licence=LICENCE,
    citation=CITATION,
    homepage=HOMEPAGE,
    sources=(
        _whole(
            "train-images-idx3",
            "about 26 MB",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        ),
        _whole(
            "train-labels-idx1",
            "about 30 kB",
            "25c81989df183df01b3e8a0aad5dffbe",
            "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        ),
        _whole(
            "t10k-images-idx3",
            "about 4 MB",
            "bef4ecab320f06d8554ea6380940ec79",
            "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        ),
        _whole(
            "t10k-labels-idx1",
            "about 5 kB",
            "bb300cfdad3c16e7a12a480ee83cd310",
            "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        ),
    ),
    read=read_splits,
)
