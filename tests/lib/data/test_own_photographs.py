"""Folders of pictures as people have them: other modes, turned, hidden files, labels or none."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.dataset import DataUnavailable
from lib.data.imagenet_classes import WORDNET_IDS
from lib.data.own_photographs import OwnPhotographs, open_photograph
from lib.data.preprocessing import Preprocessing

SMALL = Preprocessing(resize=36, crop=32)
RED = (204, 0, 51)  # a palette of 216 colours has it


def save(path, mode="RGB", size=(60, 40), colour=RED, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


def colour(path) -> list[int]:
    """Of the middle."""
    image = open_photograph(path)
    return list(image.getpixel((image.width // 2, image.height // 2)))


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGB", "a.png"), ("P", "a.png"), ("RGBA", "a.png"), ("CMYK", "a.jpg"), ("RGB", "A.JPG")],
)
def test_a_picture_of_any_mode_has_its_colours(tmp_path, mode, name):
    np.testing.assert_allclose(colour(save(tmp_path / name, mode)), RED, atol=6)


def test_grey_pictures_of_8_and_16_bits_are_as_bright(tmp_path):
    save(tmp_path / "8.png", "L", colour=(100, 100, 100))
    Image.fromarray(np.full((40, 60), 100 * 256, np.uint16)).save(tmp_path / "16.png")
    assert colour(tmp_path / "8.png") == colour(tmp_path / "16.png") == [100, 100, 100]


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (60, 40), (*RED, 0)).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png") == [255, 255, 255]


def test_a_turned_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    assert open_photograph(save(tmp_path / "a.jpg", exif=exif)).size == (40, 60)


def test_a_single_pixel_is_a_picture(tmp_path):
    path = save(tmp_path / "a.png", size=(1, 1))
    assert SMALL.test(open_photograph(path)).shape == (3, 32, 32)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0 cut"])
def test_a_damaged_file_is_named_before_anything_is_computed(tmp_path, content):
    save(tmp_path / "a.jpg")
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"^.*broken\.jpg cannot be used as a photograph: [^\n]*$"):
        OwnPhotographs(tmp_path).load()


def test_a_strip_that_would_fill_the_memory_is_refused(tmp_path):
    save(tmp_path / "a.png", size=(51, 1))
    with pytest.raises(DataUnavailable, match=r"a\.png cannot .*: 51 × 1 pixels are too long a strip$"):
        OwnPhotographs(tmp_path).load()


def test_all_pictures_but_hidden_ones_in_the_order_of_their_names(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.jpeg", ".hidden.jpg", ".thumbs/d.jpg", "sub/._c.jpeg"):
        save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    own = OwnPhotographs(tmp_path)
    assert list(own.load()) == ["a.PNG", "b.jpg", "sub/c.jpeg"] and len(own.load()) == 3
    assert own.load()["b.jpg"].size == (60, 40) and own.labelled(SMALL) is None


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataUnavailable, match=r"^photos: no pictures \(.*\) in .* or the folders in it$"):
        OwnPhotographs(tmp_path).load()
    with pytest.raises(DataUnavailable, match=r"^photos: there is no folder /.*nowhere$"):
        OwnPhotographs(tmp_path / "nowhere").load()


def test_folders_with_names_of_imagenets_classes_are_labels(tmp_path):
    save(tmp_path / "n15075141" / "1.jpg", colour=(0, 0, 250))
    save(tmp_path / "n01443537" / "1.jpg", colour=(250, 0, 0))
    labelled = OwnPhotographs(tmp_path).labelled(SMALL)
    assert labelled.labels.tolist() == [1, 999] and len(labelled) == 2
    blue = labelled.tensor(slice(0, 2))[:, :, 16, 16] * torch.tensor(SMALL.std) + torch.tensor(SMALL.mean)
    assert blue.argmax(1).tolist() == [0, 2]


@pytest.mark.parametrize("other", ["cats/2.jpg", "2.jpg"])
def test_pictures_without_label_among_labelled_ones_are_named(tmp_path, other):
    save(tmp_path / "n01443537" / "1.jpg")
    save(tmp_path / other)
    with pytest.raises(DataUnavailable, match=rf"^photos: .*{other} has no label, others have"):
        OwnPhotographs(tmp_path).load()


def test_the_classes_are_in_the_order_of_the_networks():
    assert len(set(WORDNET_IDS)) == 1000 and list(WORDNET_IDS) == sorted(WORDNET_IDS)
    known = {0: "n01440764", 1: "n01443537", 207: "n02099601", 281: "n02123045", 999: "n15075141"}
    assert {number: WORDNET_IDS[number] for number in known} == known
