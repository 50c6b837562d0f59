"""Pretrained weights: names, shapes and counts of torchvision; a pickle that runs code is refused."""

import os
import pickle

import numpy as np
import pytest
import torch

from lib.data import weights
from lib.data.dataset import DataUnavailable


def state(source):
    try:
        return source.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))


def parameters(entries: dict) -> int:
    return sum(
        value.numel() for key, value in entries.items() if not key.endswith(("mean", "var", "tracked"))
    )


@pytest.mark.parametrize(
    ("source", "tensors", "count"),
    [
        (weights.MOBILENET_V2, 314, 3_504_872),
        (weights.SQUEEZENET, 52, 1_235_496),
        (weights.ALEXNET, 10, 2_469_696),  # AlexNet's 61,100,840 without its fully connected layers
        (weights.VGG16, 26, 14_714_688),
    ],
)
def test_counts_are_the_published_ones(source, tensors, count):
    entries = state(source)
    assert (len(entries), parameters(entries)) == (tensors, count)
    assert all(torch.isfinite(value).all() for value in entries.values())
    assert source.files("data")[0].is_file() and source.licence and source.citation


def test_kernels_are_turned_to_torch_order():
    """Out, in, height, width. A twin that forgets one axis swap has another shape or another kernel."""
    path = weights.VGG16.sources[0].fetch()
    kernel = weights.read_arrays(path)["VGG16_0/Conv_3/kernel"]
    weight = state(weights.VGG16)["features.7.weight"]
    assert weight.shape == (128, 128, 3, 3)
    for o, i, y, x in [(0, 1, 2, 0), (5, 100, 1, 2), (127, 3, 0, 1)]:
        assert weight[o, i, y, x].item() == kernel[y, x, i, o]
    assert not torch.equal(weight, torch.from_numpy(kernel.transpose(3, 2, 1, 0).copy()))


def test_squeezenet_takes_red_first():
    arrays = weights.read_arrays(weights.SQUEEZENET.sources[0].fetch())
    first = state(weights.SQUEEZENET)["features.0.weight"]
    assert np.array_equal(first[:, 0].numpy(), arrays["conv1/0"][:, :, 2].transpose(2, 0, 1))


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"conv": Runs()}))
    with pytest.raises(DataUnavailable, match="system"):
        weights.read_arrays(path)
    path.write_bytes(pickle.dumps({"conv": [np.arange(3.0), "a string"]}))
    with pytest.raises(DataUnavailable, match="conv/1 is a str"):
        weights.read_arrays(path)
    path.write_bytes(b"not a pickle")
    with pytest.raises(DataUnavailable, match="not a pickle"):
        weights.read_arrays(path)
    path.write_bytes(pickle.dumps({"conv": (np.arange(3.0), np.ones(2))}, protocol=4))
    assert set(weights.read_arrays(path)) == {"conv/0", "conv/1"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"conv.weight": torch.ones(2), "epoch": 3}, "no tensors at epoch"),
        (torch.ones(2, 2), "but a Tensor"),
        ({"conv": Runs()}, "damaged, or not written by torch.save"),
        (b"", "damaged, or not written by torch.save"),
        (b"<html>Please log in</html>", "damaged, or not written by torch.save"),
    ],
)
def test_what_is_no_state_dict_is_one_line(tmp_path, content, said):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(DataUnavailable, match=f"weights.pth is no state dict.* {said}") as caught:
        weights.read_state_dict(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


SPOILT = {
    "longer than memory": b"\x8e" + b"\xff" * 8,
    "a key that is none": b"}]Ns.",
    "a number of a negative length": b"\x8b\xff\xff\xff\xff.",
    "a place beyond the stack": b"r\xff\xff\xff\xff.",
    "ten thousand lists in each other": b"]" * 10_000 + b"a" * 9_999 + b".",
    "cut": pickle.dumps({"conv": np.arange(3.0)})[:-20],
    "nothing": b"",
}


@pytest.mark.parametrize("content", SPOILT.values(), ids=SPOILT.keys())
def test_a_damaged_pickle_is_one_line(tmp_path, content):
    (tmp_path / "spoilt.pkl").write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"spoilt.pkl is not a pickle of NumPy arrays") as caught:
        weights.read_arrays(tmp_path / "spoilt.pkl")
    assert str(caught.value).isprintable()
