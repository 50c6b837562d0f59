"""Image sets and their batches: pixels keep their place, batches are a function of the step."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.data.images import ImageSet


def numbered(count=10, channels=1, size=4):
    """Each image holds its own number in every pixel; its label is that number modulo 3."""
    number = torch.arange(count)
    images = number[:, None, None, None].expand(count, channels, size, size).to(torch.uint8)
    return ImageSet(images.clone(), number % 3)


def test_standardised_by_channel():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    found = ImageSet(images, torch.tensor([0]), mean=(0.5, 0.1, 0.0), std=(0.5, 0.1, 2.0)).tensor()
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 1.0, 0.5]))


def test_padding_keeps_the_picture_in_the_middle():
    source = ImageSet(torch.full((2, 1, 3, 4), 7, dtype=torch.uint8), torch.tensor([0, 1]))
    padded = source.padded(8)
    assert padded.images.shape == (2, 1, 8, 8)
    assert torch.equal(padded.images[:, :, 2:5, 2:6], source.images)
    assert padded.images.sum() == source.images.sum()


@given(st.integers(1, 10), st.integers(0, 5), st.integers(0, 40))
def test_a_batch_is_a_function_of_seed_and_step(batch_size, seed, step):
    source = numbered()
    options = dict(seed=seed, flip=True, shift=1)
    batches = source.batches(batch_size, **options)
    for other in range(step):
        batches.batch(other)
    again = source.batches(batch_size, **options).batch(step)
    assert all(torch.equal(value, again[name]) for name, value in batches.batch(step).items())


def order(seed, **options):
    """Which images a first epoch shows, in order: their number is in every pixel, flipped or not."""
    batches = numbered(60).batches(20, seed=seed, **options)
    pixels = torch.cat([batches.batch(step)["images"][:, 0, 0, 0] for step in range(3)])
    return (255 * pixels).round().long()


@pytest.mark.parametrize("options", [{}, {"flip": True}])
def test_another_seed_gives_another_order(options):
    assert torch.equal(order(1, **options), order(1, **options))
    assert not torch.equal(order(1, **options), order(2, **options))
    assert not torch.equal(order(0, **options), order(1, **options))


def augmented(seed, step, **options):
    """A batch of one picture, over and over: whatever the order, only the augmentation is seen."""
    picture = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4)
    source = ImageSet(picture.expand(100, 1, 4, 4).contiguous(), torch.zeros(100, dtype=torch.int64))
    return source.batches(50, seed=seed, **options).batch(step)["images"]


AUGMENTATIONS = pytest.mark.parametrize(
    "options", [{"flip": True}, {"shift": 1}, {"flip": True, "shift": 1}], ids=["flip", "shift", "both"]
)


@AUGMENTATIONS
def test_another_seed_gives_another_augmentation(options):
    assert torch.equal(augmented(1, 0, **options), augmented(1, 0, **options))
    assert not torch.equal(augmented(1, 0, **options), augmented(2, 0, **options))
    assert not torch.equal(augmented(0, 0, **options), augmented(1, 0, **options))
    assert torch.equal(augmented(1, 0), augmented(2, 0)), "or it is not the augmentation alone that differs"


@AUGMENTATIONS
def test_another_step_gives_another_augmentation(options):
    """The same picture is flipped and shifted anew at each step of an epoch (two here), and in each epoch."""
    steps = [augmented(1, step, **options) for step in range(4)]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(steps, 2))


def test_an_epoch_shows_every_image_once_and_epochs_differ():
    batches = numbered(12).batches(4, seed=1)
    epochs = [
        torch.cat([batches.batch(3 * epoch + k)["images"][:, 0, 0, 0] for k in range(3)]) for epoch in (0, 1)
    ]
    for order in epochs:
        assert torch.equal((255 * order).round().long().sort().values, torch.arange(12))
    assert not torch.equal(*epochs)


def test_labels_stay_with_their_images():
    batch = numbered(250).batches(50, seed=0, flip=True, shift=2).batch(2)
    number = (255 * batch["images"].amax((1, 2, 3))).round().long()
    assert torch.equal(number % 3, batch["labels"])


def test_flips_and_shifts_are_of_whole_images():
    """Each augmented picture is one of the shifted and mirrored originals, and all of these come up."""
    picture = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    padded = torch.nn.functional.pad(picture, [1] * 4)
    flipped = torch.nn.functional.pad(picture.flip(-1), [1] * 4)
    corners = [(row, column) for row in range(3) for column in range(3)]
    possible = [whole[..., r : r + 3, c : c + 3] for whole in (padded, flipped) for r, c in corners]
    keys = {tuple(p.flatten().tolist()) for p in possible}
    source = ImageSet(picture.expand(400, 1, 3, 3).contiguous(), torch.zeros(400, dtype=torch.int64))
    drawn = (255 * source.batches(400, seed=0, flip=True, shift=1).batch(0)["images"]).round().long()
    assert {tuple(image.flatten().tolist()) for image in drawn} == keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 1, 4, 4)}, "uint8"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, "uint8"),
        (
            {"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8), "labels": torch.zeros(0).long()},
            "at least 1",
        ),
        ({"labels": torch.tensor([0])}, r"int64 \(2,\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, "int64"),
    ],
)
def test_what_is_no_image_set_is_refused(change, message):
    good = {"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        ImageSet(**(good | change))


def test_bad_requests_are_refused():
    source = numbered()
    for request in (
        lambda: source.take(11),
        lambda: source.padded(3),
        lambda: source.batches(11, seed=0),
        lambda: source.batches(2, seed=0, shift=-1),
    ):
        with pytest.raises(ValueError):
            request()
    assert len(source.take(3)) == 3
