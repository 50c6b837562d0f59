"""Colouring by names of colours: one line art, several sets of tags, and what is refused."""

from __future__ import annotations

import pytest
import torch

from lib.models.images.tag2pix import Generator, to_pixels
from lib.models.images.tag2pix_colouring import colour, tag_vector
from lib.models.images.tag2pix_extractor import LineArtClassifier

KNOWN = ("blue eyes", "red eyes", "blonde hair", "black hair")


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    extractor = LineArtClassifier(
        num_tags=3, blocks=(1, 1), groups=2, width_per_group=32, width=1 / 16
    ).extractor()
    sizes = {"image_size": 16, "width": 4, "groups": 4, "tag_size": 4, "blocks": (1, 1, 1)}
    return Generator(**sizes, colour_tags=4, features=extractor.channels), extractor


def test_tags_stand_at_their_places():
    assert tag_vector(["black hair", "red eyes"], KNOWN).tolist() == [0, 1, 0, 1]
    assert tag_vector(["red eyes", "red eyes"], KNOWN).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["blu eyes"], "^there is no colour tag 'blu eyes': did you mean 'blue eyes'\\?$"),
        (["?"], "^there is no colour tag '\\?': known are blue eyes, red eyes, blonde hair and 1 more$"),
        ([], "^give at least one tag, such as blue eyes, red eyes, blonde hair and 1 more$"),
        ("blue eyes", "^tags are a list of names, got the text 'blue eyes'$"),
    ],
)
def test_other_tags_are_refused(tags, message):
    with pytest.raises(ValueError, match=message):
        tag_vector(tags, KNOWN)


def test_pictures_are_the_generators_for_each_set_of_tags(networks):
    generator, extractor = networks
    line = torch.rand(1, 16, 16)
    sets = [["blue eyes"], ["red eyes", "black hair"], ["blue eyes"]]
    generator.train()
    pictures = colour(generator, extractor, line, sets, KNOWN)
    assert generator.training and pictures.dtype == torch.uint8 and pictures.shape == (3, 3, 16, 16)
    assert torch.equal(pictures[0], pictures[2]) and not torch.equal(pictures[0], pictures[1])
    generator.eval()
    with torch.no_grad():
        tags = tag_vector(sets[1], KNOWN)[None]
        expected = to_pixels(generator(line[None], extractor(line[None]), tags)[0])
    assert (pictures[1:2].int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (torch.rand(3, 16, 16), r"line art must be \(1, 16, 16\), grey, got \(3, 16, 16\)"),
        (torch.rand(4, 16, 16), r"got \(4, 16, 16\)"),
        (torch.rand(1, 32, 32), r"got \(1, 32, 32\)"),
        (torch.rand(16, 16), r"got \(16, 16\)"),
        (torch.full((1, 16, 16), 255.0), r"line art must be floats in 0\.\.1, .* up to 255"),
        (torch.zeros(1, 16, 16, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((1, 16, 16), torch.nan), "got torch.float32 up to nan"),
    ],
)
def test_other_line_art_is_refused(networks, line, message):
    with pytest.raises(ValueError, match=message):
        colour(*networks, line, [["blue eyes"]], KNOWN)


def test_names_of_another_generator_are_refused(networks):
    with pytest.raises(ValueError, match="the generator knows 4 colour tags, got 3 names"):
        colour(*networks, torch.rand(1, 16, 16), [["blue eyes"]], KNOWN[:3])
    with pytest.raises(ValueError, match="give at least one set of tags"):
        colour(*networks, torch.rand(1, 16, 16), [], KNOWN)
