"""Batches of KITTI: neighbours in order, labels by name, colours that change together."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.dataset import DataUnavailable
from lib.data.kitti import KittiRaw, Sample
from lib.data.kitti_batches import KittiTriplets, other_colours

DRIVE = "2011_09_26/2011_09_26_drive_0002_sync"
SIZE = (64, 96)


@pytest.fixture
def triplets(tmp_path) -> KittiTriplets:
    frames, labels = tmp_path / DRIVE / "image_02/data", tmp_path / "segmentation" / DRIVE / "image_02"
    for folder in (frames, labels):
        folder.mkdir(parents=True)
    for frame in range(6):
        pixels = np.zeros((20, 60, 3), np.uint8)
        pixels[:, :30] = (10 * frame, 40, 90)
        Image.fromarray(pixels).save(frames / f"{frame:010d}.png")
        ids = np.full((20, 60), 7, np.uint8)
        ids[:, :30] = 26
        Image.fromarray(ids).save(labels / f"{frame:010d}.png")
    return KittiTriplets(KittiRaw(tmp_path), tuple(Sample(DRIVE, frame, "l") for frame in (1, 2, 3, 4)), SIZE)


def test_a_batch_has_all_that_the_loss_reads(triplets):
    batch = triplets.batch(0, 2, seed=0)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "images": (2, 3, 3, *SIZE), "jittered": (2, 3, 3, *SIZE), "labels": (2, *SIZE),
        "intrinsics": (2, 3, 3),
    }  # fmt: skip
    expected = torch.tensor([[0.58 * 96, 0, 48], [0, 1.92 * 64, 32], [0, 0, 1.0]])
    torch.testing.assert_close(batch["intrinsics"][0], expected)
    again = triplets.batch(0, 2, seed=0)
    assert all(torch.equal(value, again[name]) for name, value in batch.items())


def test_neighbours_and_labels_are_of_the_sample_mirrored_or_not(triplets):
    mirrored = 0
    for step in range(8):
        batch = triplets.batch(step, 2, seed=1)
        for images, labels in zip(batch["images"], batch["labels"], strict=True):
            left, right = images[:, 2, 32, 2], images[:, 2, 32, -2]
            flipped = bool(right.max() > left.max())
            mirrored += flipped
            column = -2 if flipped else 2
            assert (255 * images[:, 0, 32, column]).round().diff().tolist() == [10, 10]
            assert (labels[32, column], labels[32, -column - 1]) == (13, 0)
    assert 3 <= mirrored <= 13


def test_an_epoch_has_every_sample_once(triplets):
    seen = torch.cat(
        [triplets.batch(step, 2, seed=0)["images"][:, 1, 0, 32, (2, -2)].amax(1) for step in (0, 1)]
    )
    assert (255 * seen).round().sort().values.tolist() == [10, 20, 30, 40]


def test_labels_are_read_only_where_they_are_wanted(triplets):
    plain = KittiTriplets(triplets.raw, triplets.samples, SIZE, labels=False)
    (triplets.label_path(triplets.samples[0])).unlink()
    assert "labels" not in plain.batch(0, 4, seed=0)
    with pytest.raises(DataUnavailable, match=r"no labels .*segmentation.*image_02/0000000001\.png"):
        triplets.batch(0, 4, seed=0)
    with pytest.raises(ValueError, match=r"batch_size must be in 1\.\.4"):
        triplets.batch(0, 5, seed=0)


def test_colours_change_within_limits_and_greys_stay_grey():
    grey = torch.linspace(0.3, 0.6, 12).view(1, 1, 3, 4).expand(2, 3, 3, 4)
    colour = torch.tensor([0.6, 0.3, 0.3])[:, None, None].expand(3, 4, 4)
    hues = []
    for seed in range(40):
        changed = other_colours(grey, np.random.default_rng(seed))
        assert torch.allclose(changed[:, 0], changed[:, 1], atol=2e-3)
        assert changed.min() >= 0 and changed.max() <= 1
        assert torch.equal(changed[0], changed[1])
        found = other_colours(colour, np.random.default_rng(seed))[:, 0, 0].tolist()
        hues.append((colorsys.rgb_to_hsv(*found)[0] + 0.5) % 1 - 0.5)
    assert max(map(abs, hues)) < 0.14 and np.std(hues) > 0.03
