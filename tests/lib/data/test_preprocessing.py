"""Preprocessing of photographs: geometry by hand, statistics of the random crop, errors at the door."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.dataset import DataUnavailable
from lib.data.photographs import FILES, PHOTOGRAPHS, photograph_tensor, take
from lib.data.preprocessing import IMAGENET, SQUEEZENET, Preprocessing, random_box


def ramp(width: int, height: int) -> Image.Image:
    """Red rises to the right, green downwards, blue is 7."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8))


def test_the_centre_is_cut_without_resizing_when_sizes_agree():
    plain = Preprocessing(resize=40, crop=20, mean=(0, 0, 0), std=(1 / 255,) * 3)
    tensor = plain.test(ramp(60, 40))
    assert tensor.shape == (3, 20, 20) and tensor.dtype == torch.float32
    assert torch.allclose(tensor[0, 0], torch.arange(20.0, 40.0))
    assert torch.allclose(tensor[1, :, 0], torch.arange(10.0, 30.0))
    assert torch.allclose(tensor[2], torch.tensor(7.0))


def test_mean_and_deviation_are_per_channel():
    grey = Image.new("RGB", (300, 300), (255, 0, 128))
    values = IMAGENET.test(grey)[:, 5, 5]
    assert values.tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225], abs=1e-5
    )
    assert SQUEEZENET.test(grey)[:, 0, 0].tolist() == pytest.approx(
        [255 - 123.68, -116.779, 128 - 103.939], abs=1e-3
    )
    assert SQUEEZENET.test(grey).shape == (3, 227, 227)


def test_random_boxes_fit_and_have_the_published_ranges():
    random = np.random.default_rng(0)
    boxes = np.array([random_box(400, 300, random) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 400).all() and (bottom <= 300).all()
    width, height = right - left, bottom - top
    area, ratio = width * height / 120_000, width / height
    assert area.min() >= 0.079 and area.max() > 0.9
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert 0.4 < area.mean() < 0.55  # uniform would be 0.54; large boxes are refused more often


def test_an_image_too_long_for_any_box_gives_its_centre():
    assert random_box(1000, 10, np.random.default_rng(0)) == (493, 0, 506, 10)


def test_training_crops_are_a_function_of_the_generator():
    image = ramp(90, 70)
    first, again = (IMAGENET.train(image, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (3, 224, 224) and torch.equal(first, again)
    assert not torch.equal(first, IMAGENET.train(image, np.random.default_rng(4)))


def test_flips_are_a_function_of_the_generator_too():
    """Of an image that long every crop is the same centre, as it is or mirrored."""
    image = ramp(1000, 10)
    crops = [IMAGENET.train(image, np.random.default_rng(seed)) for seed in range(20)]
    mirrored = [bool((crop[0, :, 0] > crop[0, :, -1]).all()) for crop in crops]
    assert 4 <= sum(mirrored) <= 16
    for crop, flipped in zip(crops, mirrored, strict=True):
        assert torch.equal(crop.flip(-1) if flipped else crop, crops[mirrored.index(False)])


def test_settings_are_refused_at_the_door():
    with pytest.raises(ValueError, match="crop must be from 1 to resize=64"):
        Preprocessing(resize=64, crop=65)
    with pytest.raises(ValueError, match="interpolation must be one of bilinear, bicubic, got 'nearest'"):
        Preprocessing(interpolation="nearest")
    with pytest.raises(ValueError, match="at least one"):
        photograph_tensor({})


def test_no_more_photographs_are_taken_than_there_are():
    two = {"a": ramp(30, 30), "b": ramp(40, 30)}
    assert list(take(two, 1)) == ["a"] and take(two, 2) == two
    for count in (0, 3, -1):
        with pytest.raises(ValueError, match=f"there are 1 to 2 photographs, {count} were asked for"):
            take(two, count)


def test_the_photographs():
    try:
        photographs = PHOTOGRAPHS.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))
    assert list(photographs) == [name.rpartition(".")[0] for name in FILES]
    assert photographs["chelsea"].size == (451, 300)
    batch = photograph_tensor(photographs)
    assert batch.shape == (len(FILES), 3, 224, 224)
    assert all(0.05 < image.std() < 2 for image in batch)
    camera = batch[list(photographs).index("camera")]  # grey: equal channels before normalisation
    pixels = camera * torch.tensor(IMAGENET.std)[:, None, None] + torch.tensor(IMAGENET.mean)[:, None, None]
    assert torch.allclose(pixels[0], pixels[2], atol=1e-6)
