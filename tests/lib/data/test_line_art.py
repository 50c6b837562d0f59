"""Line art: what XDoG draws of steps, sketchKeras's surroundings, users' own files, fading."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from lib.data.dataset import DataUnavailable
from lib.data.line_art import (
    darkened,
    faded,
    high_pass,
    inscribed,
    random_xdog,
    read_line_art,
    sketch,
    xdog,
)


def step(dark: int, bright: int) -> np.ndarray:
    picture = np.full((12, 20), dark, np.uint8)
    picture[:, 10:] = bright
    return picture


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_picture_of_one_grey_has_no_lines(value):
    assert (xdog(np.full((9, 9), value)) == 255).all()
    if value:  # a twin that takes away more than there is
        assert (xdog(np.full((9, 9), value), gamma=1.05) == 0).all()


def test_a_step_gives_one_dark_column_on_its_darker_side():
    lines = xdog(step(100, 140), sigma=0.4, k=2.5)
    assert (lines == lines[0]).all() and np.flatnonzero(lines[0] == 0).tolist() == [9]
    assert set(np.unique(lines)) == {0, 255}
    flipped = xdog(step(140, 100), sigma=0.4, k=2.5)
    assert np.flatnonzero(flipped[0] == 0).tolist() == [10]
    row = step(100, 140)[0].astype(float)
    d = gaussian_filter(row, 0.4) - 0.95 * gaussian_filter(row, 1.0)
    assert d[8:11].round(1).tolist() == [2.8, -4.8, 16.8]


def test_a_weak_step_gives_no_line_unless_all_of_the_wider_gaussian_is_taken_away():
    assert (xdog(step(235, 240)) == 255).all()
    assert (xdog(step(235, 240), gamma=1.0) == 0).any()


def test_what_is_far_below_epsilon_is_white():
    """A black pixel on white falls below −0.5, which the authors' rule makes white."""
    picture = np.full((9, 9), 255)
    picture[4, 4] = 0
    assert xdog(picture)[4, 4] == 255
    assert xdog(picture, epsilon=-1.0)[4, 4] == 0


def test_a_soft_threshold_is_in_between():
    lines = xdog(step(100, 140), phi=10.0)
    d = (
        gaussian_filter(step(100, 140).astype(float), 0.4)
        - 0.95 * gaussian_filter(step(100, 140).astype(float), 1.0)
    ) / 255
    assert (lines == (255 * np.minimum(1, 1 + np.tanh(10 * d))).astype(np.uint8)).all()
    assert 0 < lines[0, 9] < 255


def test_random_lines_are_a_function_of_the_generator():
    picture = np.random.default_rng(0).integers(0, 256, (16, 16))
    one, same, other = (random_xdog(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


def test_mid_greys_are_darkened():
    values = np.array([0, 64, 128, 200, 255])
    assert darkened(values).tolist() == [0, 36, 97, 181, 255]


def test_the_high_pass_is_detail_over_its_largest():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(float)
    detail = high_pass(picture, size=32)
    assert detail.shape == (32, 32, 3) and detail.max() == pytest.approx(1)
    assert not detail[20:].any() and not detail[:, 30:].any()
    one = picture[:, :, 1] - gaussian_filter(picture[:, :, 1], 3)
    ratio = detail[:20, :30, 1] / one
    assert ratio.std() < 1e-9 * ratio.mean()  # channels are not blurred into each other
    assert not high_pass(np.full((8, 8, 3), 77), size=8).any()


def test_a_sketch_is_of_the_strongest_channel():
    picture = np.zeros((6, 8, 3))
    given = []

    def network(detail):
        given.append(detail.shape)
        strength = np.zeros((16, 16, 3))
        strength[1, 2] = 0.05, 0.0, 0.09  # weaker than the threshold
        strength[2, 3] = 0.0, 1.0, 0.5
        strength[3, 4] = 0.5, 0.2, 0.1
        return strength

    lines = sketch(picture, network, size=16)
    assert given == [(16, 16, 3)] and lines.shape == (6, 8)
    assert lines[2, 3] == 0 and lines[3, 4] == darkened(np.array([127.5]))[0]
    assert np.count_nonzero(lines < 255) == 2
    with pytest.raises(ValueError, match=r"the network must give \(16, 16, 3\), got \(16, 16\)"):
        sketch(picture, lambda detail: detail[..., 0], size=16)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "1", "P"])
def test_files_of_any_kind_are_read_as_people_see_them(mode, tmp_path):
    grey = np.full((20, 30), 255, np.uint8)
    grey[5:8] = 0
    image = Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "RGBA":
        transparent = np.zeros((20, 30, 4), np.uint8)
        transparent[..., 3] = 255 - grey  # black ink, nothing beside it
        image = Image.fromarray(transparent)
    else:
        image = image.convert(mode)
    path = tmp_path / "lines.png"
    image.save(path)
    lines = read_line_art(path, 10)
    assert lines.shape == (10, 10) and lines.dtype == np.float32
    assert lines[0].min() > 0.95 and lines[3].max() < 0.2 and lines[-1].min() > 0.95


def test_lines_are_drawn_of_pictures(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.repeat(step(100, 140)[..., None], 3, axis=2)).save(path)
    lines = read_line_art(path, 20, extract=True)
    assert lines[:, 9].max() < 0.2 and lines[:, :8].min() > 0.8
    assert read_line_art(path, 20)[:, 9].mean() == pytest.approx(100 / 255, abs=0.05)
    path.write_bytes(b"no picture")
    with pytest.raises(DataUnavailable, match=r"picture\.png cannot be used"):
        read_line_art(path, 20)
    with pytest.raises(ValueError, match="size is a number of pixels, got 0"):
        read_line_art(path, 0)


def test_lines_fade_and_white_stays():
    lines = np.array([[0.0, 0.2, 1.0]])
    assert faded(lines, brightness=4.0).tolist() == [[0.0, 0.8, 1.0]]
    assert np.allclose(faded(lines, brightness=1.0, contrast=0.0), lines.mean())
    assert np.allclose(faded(lines, brightness=1.0), lines)
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        faded(lines, brightness=-1)


def test_the_square_in_a_turned_square():
    assert inscribed(0) == 1
    assert inscribed(45) == pytest.approx(2**-0.5)
    for angle in (3.0, 10.0, 70.0):
        assert inscribed(angle) == inscribed(-angle) < 1
        side, radians = inscribed(angle) / 2, np.deg2rad(angle)
        corner = [side * (np.cos(radians) + sign * np.sin(radians)) for sign in (-1, 1)]
        assert max(map(abs, corner)) == pytest.approx(0.5)  # it touches the border, no more
    with pytest.raises(ValueError, match="angles are from -90 to 90 degrees, got 91"):
        inscribed(91)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xdog(np.zeros((4, 4, 3))), r"a picture \(H, W\) is wanted, got \(4, 4, 3\)"),
        (lambda: xdog(np.zeros((0, 4))), r"a picture \(H, W\) is wanted, got \(0, 4\)"),
        (lambda: xdog(np.full((4, 4), 300)), r"values must be in 0\.\.255, got 300\.\.300"),
        (lambda: xdog(np.full((4, 4), np.nan)), "values must be in"),
        (lambda: xdog(np.zeros((4, 4)), sigma=0), "sigma and phi must be above 0"),
        (lambda: high_pass(np.zeros((4, 4))), r"a picture \(H, W, 3\) is wanted, got \(4, 4\)"),
        (lambda: high_pass(np.zeros((4, 4, 4))), r"a picture \(H, W, 3\) is wanted, got \(4, 4, 4\)"),
        (lambda: high_pass(np.zeros((9, 4, 3)), size=8), "9 × 4 pixels is larger than 8"),
    ],
)
def test_other_pictures_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
