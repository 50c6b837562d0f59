"""The loader of image folders, on a made-up ImageNet of real JPEG files."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lib.chapter.record import Record
from lib.data.dataset import DataUnavailable
from lib.data.fashion_mnist import FASHION_MNIST_SAMPLE
from lib.data.imagenet import IMAGENET_2012, ImageFolder, as_used, open_image
from lib.data.preprocessing import Preprocessing
from lib.files import file_hash

CLASSES = ["n01440764", "n01443537", "n01484850"]
SMALL = Preprocessing(resize=36, crop=32)


def make(root, split, per_class, classes=CLASSES):
    """Pictures of the class's colour, in different sizes; one is grey, one a PNG called JPEG, one CMYK."""
    random = np.random.default_rng(0)
    for k, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        for n in range(per_class):
            pixels = random.integers(0, 40, (40 + 9 * n, 50, 3))
            pixels[..., k] += 200
            image = Image.fromarray(pixels.astype(np.uint8))
            form = "PNG" if (k, n) == (0, 1) else "JPEG"
            mode = {(1, 0): "L", (2, 0): "CMYK"}.get((k, n), "RGB")
            image.convert(mode).save(folder / f"{name}_{n}.JPEG", format=form)


@pytest.fixture
def root(tmp_path):
    make(tmp_path / "imagenet", "train", 4)
    make(tmp_path / "imagenet", "val_pt", 2)
    (tmp_path / "imagenet" / "train" / "LICENCE.txt").write_text("not a class")
    return tmp_path


def test_folders_are_classes_in_alphabetical_order(root):
    splits = IMAGENET_2012.load(root)
    assert (len(splits["train"]), len(splits["test"])) == (12, 6)
    assert splits["train"].classes == tuple(CLASSES)
    assert splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_other_folders_than_imagenets_are_not_called_imagenet(root, monkeypatch):
    images = IMAGENET_2012.load(root)
    used = as_used(IMAGENET_2012, images)
    assert (used.name, used.licence) == ("own pictures, 3 classes", "their owner's")
    assert [path.name for path in used.files(root)] == ["train-files.txt", "test-files.txt"]
    monkeypatch.setattr("lib.data.imagenet.IMAGENET_VALIDATION", 6)
    assert as_used(IMAGENET_2012, images) is IMAGENET_2012
    assert as_used(FASHION_MNIST_SAMPLE, FASHION_MNIST_SAMPLE.load(root)) is FASHION_MNIST_SAMPLE


def test_a_single_class_is_refused(tmp_path):
    for split in ("train", "val"):
        make(tmp_path / "imagenet", split, 2, classes=["cats"])
    with pytest.raises(DataUnavailable, match=r"train/cats is the only class: put a second one beside it"):
        as_used(IMAGENET_2012, IMAGENET_2012.load(tmp_path))


def test_centres_come_in_the_files_order(root):
    images = ImageFolder.of(root / "imagenet" / "val_pt", SMALL)
    pixels = torch.cat([images.tensor(slice(0, 4)), images.tensor(slice(4, 9))])
    assert pixels.shape == (6, 3, 32, 32)
    coloured = [0, 1, 3, 5]  # all but the grey and the CMYK one have their class's colour
    means = pixels.mean((2, 3)) * torch.tensor(SMALL.std) + torch.tensor(SMALL.mean)
    assert means.argmax(1)[coloured].tolist() == [0, 0, 1, 2]


def test_a_batch_is_a_function_of_seed_and_step(root):
    images = ImageFolder.of(root / "imagenet" / "train", SMALL)
    batches = images.batches(5, seed=1)
    first = batches.batch(3)
    assert first["images"].shape == (5, 3, 32, 32) and first["images"].dtype == torch.float32
    batches.batch(0)  # whatever was asked for in between, and by however many threads
    again = images.batches(5, seed=1, workers=1).batch(3)
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = images.batches(5, seed=2).batch(3)
    assert not torch.equal(first["images"], other["images"])


def test_another_seed_and_another_epoch_give_another_order(root):
    """Each file is its own class here, so that the labels alone say which pictures came."""
    images = ImageFolder.of(root / "imagenet" / "train", SMALL)
    images = replace(images, labels=torch.arange(len(images)))

    def order(seed, epoch):
        batches = images.batches(4, seed=seed)
        return [n for step in range(3) for n in batches.batch(3 * epoch + step)["labels"].tolist()]

    assert order(1, 0) == order(1, 0) and sorted(order(1, 0)) == list(range(12))
    assert order(0, 0) != order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


def test_another_seed_step_and_place_give_another_crop(root):
    """One file over and over, so that whatever the order, only the crops differ."""
    images = ImageFolder.of(root / "imagenet" / "train", SMALL)
    images = replace(images, files=images.files[:1] * 8, labels=torch.zeros(8, dtype=torch.int64))

    def crops(seed, step):
        return images.batches(4, seed=seed).batch(step)["images"]

    assert torch.equal(crops(1, 0), crops(1, 0))
    for seed, step in ((0, 0), (2, 0), (1, 1), (1, 2)):  # the last one is in another epoch
        assert not torch.equal(crops(1, 0), crops(seed, step))
    first, *others = crops(1, 0)
    assert not any(torch.equal(first, other) for other in others)


def test_an_epoch_shows_each_image_at_most_once_and_labels_belong_to_images(root):
    images = ImageFolder.of(root / "imagenet" / "train", SMALL)
    batches = images.batches(4, seed=0)
    assert batches.steps_per_epoch == 3
    epoch = [batches.batch(step) for step in range(3)]
    labels = torch.cat([batch["labels"] for batch in epoch])
    assert labels.bincount().tolist() == [4, 4, 4]
    means = torch.cat([batch["images"] for batch in epoch]).mean((2, 3))
    colour = (means * torch.tensor(SMALL.std) + torch.tensor(SMALL.mean)).argmax(1)
    assert (colour == labels).sum() >= 10  # all but the grey and the CMYK picture
    assert (colour == labels.roll(1)).sum() < 10


def test_the_record_of_a_run_knows_the_files(root, tmp_path):
    used = Record("template", scale="smoke", run_dir=tmp_path / "run").data(IMAGENET_2012, root)
    assert set(used.files) == {"train-files.txt", "test-files.txt"}
    listed = (root / "imagenet" / "test-files.txt").read_text().splitlines()
    first = root / "imagenet" / "val_pt" / "n01440764" / "n01440764_0.JPEG"
    assert listed[0] == f"n01440764/n01440764_0.JPEG {file_hash(first)}" and len(listed) == 6


@pytest.mark.parametrize(("few", "change"), [(12, "of the same size"), (11, "a byte longer")])
def test_other_pictures_under_the_same_names_are_other_data(root, monkeypatch, few, change):
    monkeypatch.setattr("lib.data.imagenet.FEW", few)
    before = IMAGENET_2012.identity(root)
    picture = root / "imagenet" / "train" / "n01440764" / "n01440764_2.JPEG"
    content = picture.read_bytes()
    picture.write_bytes(content[:-3] + b"xyz" if change == "of the same size" else content + b"x")
    assert IMAGENET_2012.identity(root) != before
    picture.write_bytes(content)
    assert IMAGENET_2012.identity(root) == before


def test_what_systems_hide_is_no_class_and_no_image(root):
    """Folders that file managers and notebooks make, and the forks of files that a Mac copied."""
    before = {split: images.files for split, images in IMAGENET_2012.load(root).items()}
    train = root / "imagenet" / "train"
    for name in (".ipynb_checkpoints", ".Trashes"):
        (train / name).mkdir()
    (train / CLASSES[0] / f"._{CLASSES[0]}_0.JPEG").write_bytes(b"\0\5\x16\7")
    assert {split: images.files for split, images in IMAGENET_2012.load(root).items()} == before


def test_a_read_only_folder_is_enough(root, small_disk, tmp_path):
    for split in ("train", "val"):
        folder = small_disk / "imagenet" / split / CLASSES[0]
        folder.mkdir(parents=True)
        shutil.copy(next((root / "imagenet" / "train" / CLASSES[0]).iterdir()), folder)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    used = Record("template", scale="smoke", run_dir=tmp_path / "run").data(IMAGENET_2012, small_disk)
    assert set(used.files) == {"train-files.txt", "test-files.txt"}


def test_a_folder_that_is_none_is_named(root):
    with pytest.raises(DataUnavailable, match="LICENCE.txt cannot be read: Not a directory"):
        ImageFolder.of(root / "imagenet" / "train" / "LICENCE.txt")


def test_what_decoders_raise_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataUnavailable, match=r"a.png is no whole image: .*decompression bomb"):
        open_image(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataUnavailable, match=r"a.png is no whole image"):
        open_image(path)


def test_problems_end_in_one_line_that_says_what_to_do(root, tmp_path):
    with pytest.raises(DataUnavailable, match=r"not downloaded for you .* put it at .*train/<wnid>"):
        IMAGENET_2012.load(tmp_path / "elsewhere")
    broken = root / "imagenet" / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(DataUnavailable, match=f"{broken.name} is no whole image"):
        ImageFolder.of(root / "imagenet" / "train", SMALL).batches(12, seed=0).batch(0)
    with pytest.raises(ValueError, match=r"batch_size must be in 1..12, got 13"):
        ImageFolder.of(root / "imagenet" / "train", SMALL).batches(13, seed=0)
    (root / "imagenet" / "val_pt" / "n99999999").mkdir()
    with pytest.raises(DataUnavailable, match="n99999999 has no images"):
        IMAGENET_2012.load(root)
    make(root / "other", "train", 1, ["n99999999"])
    image = root / "other" / "train" / "n99999999" / "n99999999_0.JPEG"
    image.rename(root / "imagenet" / "val_pt" / "n99999999" / "a.JPEG")
    with pytest.raises(DataUnavailable, match="n99999999 are in one of train and validation only"):
        IMAGENET_2012.load(root)
    with pytest.raises(DataUnavailable, match="has no folders of classes"):
        ImageFolder.of(root / "imagenet" / "train" / CLASSES[1])
