"""Folders of pictures as the real sets have them, every kind of file in them; the layout of Tag2Pix."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.danbooru import EYES, HAIR, LineArtPairs, TaggedPictures, TagTable
from lib.data.dataset import DataUnavailable, UnexpectedFormat
from lib.data.image_folder import AFHQ, CELEBA_HQ, FFHQ, LSUN_CAR, LSUN_CHURCH, PictureFiles, find_pictures


def save(path, colour=(200, 40, 90), mode="RGB", size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)
    return path


def test_pictures_are_found_in_folders_by_their_paths(tmp_path):
    names = ["b/2.PNG", "a/1.jpg", "3.webp", "a/deep/4.bmp"]
    for name in names:
        save(tmp_path / name)
    save(tmp_path / ".hidden/5.png")
    save(tmp_path / "a/.6.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = [path.relative_to(tmp_path).as_posix() for path in find_pictures(tmp_path)]
    assert found == ["3.webp", "a/1.jpg", "a/deep/4.bmp", "b/2.PNG"]
    with pytest.raises(DataUnavailable, match="there is no folder .*elsewhere"):
        find_pictures(tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataUnavailable, match="no pictures .* in .*empty"):
        find_pictures(tmp_path / "empty")


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("RGB", "a.png", (200, 40, 90)),
        ("RGBA", "a.png", (200, 40, 90)),
        ("P", "a.png", (200, 40, 90)),
        ("L", "a.png", (93, 93, 93)),
        ("CMYK", "a.jpg", (200, 40, 90)),
    ],
)
def test_pictures_of_any_mode_are_red_green_blue(tmp_path, mode, name, expected):
    save(tmp_path / name, mode=mode)
    pixels = (PictureFiles(find_pictures(tmp_path), 4).tensor(slice(0, 1)) + 1) * 127.5
    assert pixels.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(pixels[0, :, 2, 2], expected, atol=12)


def test_sixteen_bits_and_transparency(tmp_path):
    Image.fromarray(np.full((8, 8), 64 * 256, np.uint16)).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "b.png")
    grey, clear = (PictureFiles(find_pictures(tmp_path), 8).tensor(slice(0, 2)) + 1) * 127.5
    assert torch.allclose(grey, torch.tensor(64.0), atol=1e-3) and torch.allclose(clear, torch.tensor(255.0))


def damaged(folder):
    whole = save(folder / "whole.png", size=(64, 64)).read_bytes()
    yield "cut.png", whole[: len(whole) // 2]
    jpeg = folder / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(jpeg)
    yield "cut.jpg", jpeg.read_bytes()[:2000]
    yield "text.png", b"no picture"
    yield "empty.jpg", b""


def test_what_is_no_whole_picture_is_refused_by_its_name(tmp_path):
    for name, content in damaged(tmp_path / "sources"):
        path = tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(DataUnavailable, match=f"{name} cannot be used") as refused:
            PictureFiles((path,), 8).tensor(slice(0, 1))
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_a_wide_picture_is_stretched_or_cut(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255  # the middle third is white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    files = find_pictures(tmp_path)
    cut = PictureFiles(files, 10, crop=True).tensor(slice(0, 1))
    assert (cut == 1).all()
    stretched = PictureFiles(files, 30).tensor(slice(0, 1))
    assert (stretched[..., 12:18] == 1).all() and (stretched[..., :8] == -1).all()


def test_a_batch_is_a_function_of_the_step(tmp_path):
    for k in range(10):
        image = np.zeros((4, 4, 3), np.uint8)
        image[:, :2] = 20 * k
        image[:, 2:] = 20 * k + 10
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    pictures = PictureFiles(find_pictures(tmp_path), 4)
    plain = [pictures.batch(step, 3, seed=1, flip=False)["images"] for step in range(6)]
    seen = [[round(float(v)) // 20 for v in (one[:, 0, 0, 0] + 1) * 127.5] for one in plain]
    for epoch in (seen[:3], seen[3:]):  # nine of ten, none twice
        assert len({k for batch in epoch for k in batch}) == 9
    assert seen[:3] != seen[3:]
    flipped = pictures.batch(2, 3, seed=1)["images"]
    mirrored = [torch.equal(one, other.flip(-1)) for one, other in zip(flipped, plain[2], strict=True)]
    kept = [torch.equal(one, other) for one, other in zip(flipped, plain[2], strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert torch.equal(pictures.batch(2, 3, seed=1)["images"], flipped)
    with pytest.raises(ValueError, match=r"batch_size must be in 1\.\.10, got 11"):
        pictures.batch(0, 11, seed=0)
    with pytest.raises(ValueError, match="size >= 1"):
        PictureFiles((), 4)


@pytest.mark.parametrize("source", [CELEBA_HQ, AFHQ, FFHQ, LSUN_CAR, LSUN_CHURCH], ids=lambda s: s.name)
def test_a_real_set_says_what_it_is_and_where_it_goes(source, tmp_path):
    assert source.identity(tmp_path) == "absent"
    with pytest.raises(DataUnavailable, match="not downloaded for you") as refused:
        source.load(tmp_path)
    first = next(iter(source.folders.values()))
    assert str(tmp_path / first) in str(refused.value) and source.licence in str(refused.value)
    for k, folder in enumerate(source.folders.values()):
        save(tmp_path / folder / "images" / f"{k}.jpg")
        save(tmp_path / folder / "images" / f"{k}b.png", mode="L")
    splits = source.load(tmp_path, size=16)
    assert list(splits) == list(source.folders) and all(len(split) == 2 for split in splits.values())
    assert splits["train"].tensor(slice(0, 2)).shape == (2, 3, 16, 16)
    listed = source.files(tmp_path)
    assert len(listed) == len(source.folders) and "images/0.jpg " in listed[0].read_text()
    identity = source.identity(tmp_path)
    save(tmp_path / first / "images/another.png")
    assert source.identity(tmp_path) != identity


# --- Tag2Pix -----------------------------------------------------------------------------------------------


NUMBERS = {name: k for k, name in enumerate(("1girl", "1boy", *HAIR, *EYES, "long_hair", "smile"), 100)}


@pytest.fixture
def table(tmp_path) -> TagTable:
    content = {
        "iv_tag_list": [NUMBERS["long_hair"], NUMBERS["smile"]],
        "cv_tag_list": [NUMBERS[name] for name in (*EYES, *HAIR)],
        "iv_part_list": [("face", [NUMBERS["smile"]])],
        "tag_dict": NUMBERS,
        "tag_count_dict": {},
    }
    path = tmp_path / "tag_dump.pkl"
    path.write_bytes(pickle.dumps(content))
    return TagTable.read(path)


def line(name, *tags):
    return " ".join(map(str, [name, *(NUMBERS[tag] for tag in tags)]))


def test_lines_of_tags(table, tmp_path):
    path = tmp_path / "tags.txt"
    good = line(40, "1girl", "blue_eyes", "light_brown_hair", "smile")
    lines = [
        good + " 999999",
        line(-3, "1boy", "red_eyes", "green_hair", "long_hair", "smile"),
        line(41, "1girl", "blue_eyes", "red_hair", "green_hair", "smile"),  # two colours of hair
        line(42, "1girl", "1boy", "blue_eyes", "red_hair", "smile"),  # two persons
        line(43, "1girl", "red_hair", "smile"),  # no eyes
        "",
        line(44, "1girl", "blue_eyes", "red_hair"),  # nothing that does not depend on colours
    ]
    path.write_text("\r\n".join(lines))
    tagged = TaggedPictures.read(path, table)
    assert tagged.ids.tolist() == [40, -3] and tagged.variant.shape == (2, 27)
    assert tagged.invariant.tolist() == [[0, 1], [1, 1]]
    names = [*EYES, *HAIR]
    assert [names[k] for k in tagged.variant[0].nonzero().flatten()] == ["blue_eyes", "light_brown_hair"]
    assert len(TaggedPictures.read(path, table, training=False)) == 6
    for text, message in (
        (f"{good}\n40x 1 2", r"line 2: '40x 1 2'"),
        (f"{good}\n{good}", "line 2: 40 is there twice"),
        ("7 1", "no picture is left"),
        ("", "no picture is left"),
    ):
        path.write_text(text)
        with pytest.raises(UnexpectedFormat, match=message):
            TaggedPictures.read(path, table)
    path.unlink()
    with pytest.raises(DataUnavailable, match=r"tags\.txt cannot be read"):
        TaggedPictures.read(path, table)


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_table_of_tags_runs_no_code(tmp_path):
    path = tmp_path / "tag_dump.pkl"
    for content, message in (
        (pickle.dumps({"tag_dict": Runs()}), "it asks for (posix|nt).system"),
        (pickle.dumps({"iv_tag_list": [1]}), "cv_tag_list"),
        (pickle.dumps([1, 2]), "no table of tags"),
        (b"no pickle", "no table of tags"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnexpectedFormat, match=message):
            TagTable.read(path)
    with pytest.raises(DataUnavailable, match="cannot be read"):
        TagTable.read(tmp_path / "absent.pkl")


def test_line_art_and_pictures_belong_together(table, tmp_path):
    """Colours tell the picture, brightness of line art which one and of which folder; mirrored together."""
    text = []
    for k in range(4):
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[:, 4:] = (10 * k, 100, 200)
        (tmp_path / "rgb_train").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"rgb_train/{k}.png")
        for kind, value in (("keras_train", 50), ("xdog_train", 150)):
            lines = np.full((8, 8), value + k, np.uint8)
            lines[:, :4] = 0
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(lines).save(tmp_path / kind / f"{k}.png")
        text.append(line(k, "1girl", EYES[k], "red_hair", "smile"))
    (tmp_path / "tags.txt").write_text("\n".join(text))
    pairs = LineArtPairs(tmp_path, TaggedPictures.read(tmp_path / "tags.txt", table), 8)
    assert pairs.kinds == ("keras_train", "xdog_train")
    kinds, sides = set(), set()
    for step in range(12):
        batch = pairs.batch(step, 2, seed=0)
        assert batch["lines"].shape == (2, 1, 8, 8) and batch["images"].shape == (2, 3, 8, 8)
        assert torch.equal(batch["lines"], pairs.batch(step, 2, seed=0)["lines"])
        for lines, image, variant in zip(batch["lines"], batch["images"], batch["variant"], strict=True):
            side = 7 if lines[0, 0, 7] > lines[0, 0, 0] else 0
            picture = round(float((image[0, 0, side] + 1) * 127.5)) // 10
            value = round(float(lines[0, 0, side]) * 255)
            assert image[2, 0, side] > image[2, 0, 7 - side], "mirrored together"
            assert value in (50 + picture, 150 + picture) and variant[picture] == 1
            kinds.add(value > 100)
            sides.add(side)
    assert kinds == {False, True} and sides == {0, 7}
    (tmp_path / "rgb_train/2.png").write_bytes(b"no picture")
    with pytest.raises(DataUnavailable, match=r"rgb_train/2\.png cannot be used"):
        pairs.batch(0, 4, seed=0)
    with pytest.raises(ValueError, match=r"1\.\.4, got 5"):
        pairs.batch(0, 5, seed=0)
    with pytest.raises(DataUnavailable, match="needs rgb_train and one of keras_train"):
        LineArtPairs(tmp_path / "elsewhere", pairs.tagged)
