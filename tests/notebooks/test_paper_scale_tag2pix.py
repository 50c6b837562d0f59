"""The paper scale of Tag2Pix, dry: authors' sizes at 256 pixels, a folder in their layout, their files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.chapter import per_unit
from lib.data.danbooru import EYES, HAIR
from lib.data.dataset import DataUnavailable
from lib.experiments.tag2pix import SECAT, Colouring
from lib.experiments.tag2pix_figures import authors_pictures
from lib.experiments.tag2pix_measurements import by_metric, danbooru_scores
from lib.experiments.tag2pix_sets import danbooru
from lib.ledger.evidence import own_part
from lib.ledger.schema import load_ledger
from lib.ledger.verdicts import judge
from lib.models.images.tag2pix_losses import LossWeights
from lib.runs.request import resolve
from tests.lib.models.images.test_tag2pix_authors import extractor_shapes, generator_shapes, weights

SIZES = ("width", "blocks", "tag_size", "groups", "discriminator_width", "discriminator_stages")
SIZES += ("discriminator_last", "extractor_width", "extractor_blocks", "extractor_groups", "learning_rate")
NUMBERS = {name: number for number, name in enumerate(("1girl", *EYES, *HAIR, "long_hair", "smile"), 100)}


@pytest.fixture(scope="module")
def asked() -> dict:
    return resolve("tag2pix", "paper").parameters


def write_table(path: Path) -> None:
    """As many tags as published: those without a name here have their number."""
    colours = [NUMBERS[name] for name in (*EYES, *HAIR)]
    content = {
        "iv_tag_list": [NUMBERS["long_hair"], NUMBERS["smile"], *range(5000, 5368)],
        "cv_tag_list": colours + list(range(9000, 9115 - len(colours))),
        "tag_dict": NUMBERS,
    }
    path.write_bytes(pickle.dumps(content))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures of which two are held out."""
    root = tmp_path / "danbooru"
    draw, lines = np.random.default_rng(0), []
    for kind in ("rgb_train", "xdog_train"):
        (root / kind).mkdir(parents=True)
    for number in range(22):
        picture = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / f"rgb_train/{number}.png")
        Image.fromarray(picture[..., 0]).save(root / f"xdog_train/{number}.png")
        tags = ("1girl", EYES[number % 12], "red_hair", "smile")
        lines.append(" ".join(map(str, [number, *(NUMBERS[tag] for tag in tags)])))
    (root / "tags.txt").write_text("\n".join(lines))
    write_table(root / "tag_dump.pkl")
    return tmp_path


def test_the_scale_has_the_authors_sizes(asked):
    expected = {
        "image_size": 256,
        "width": 16,
        "blocks": [12, 8, 5, 5],
        "tag_size": 64,
        "groups": 16,
        "discriminator_width": 32,
        "discriminator_stages": 4,
        "discriminator_last": 3,
        "extractor_width": 1.0,
        "extractor_blocks": [3, 4, 6, 3],
        "extractor_groups": 32,
        "batch_size": 112,
        "learning_rate": 2e-4,
        "device": "cuda",
    }
    assert {name: asked[name] for name in expected} == expected


def test_a_step_on_illustrations_and_a_verdict(asked, folder):
    settings = {name: asked[name] for name in SIZES}
    settings |= {name: tuple(settings[name]) for name in ("blocks", "extractor_blocks")}
    settings |= {"weights": LossWeights(), "extractor_steps": 1, "batch_size": 2, "steps": 1}
    colouring = Colouring(
        material=danbooru(folder, asked["image_size"]), first_step=0.0, evaluations=1, **settings
    )
    trained = colouring.train_arms((SECAT,), 0, lambda name: None)
    sizes = {
        name: sum(p.numel() for p in getattr(trained[SECAT], name).parameters())
        for name in ("generator", "discriminator", "extractor")
    }
    assert sizes == {"generator": 15_809_398, "discriminator": 4_515_558, "extractor": 1_564_784}
    scores = danbooru_scores({SECAT: trained[SECAT], "SE": trained[SECAT]}, colouring.material, 2)
    handed = by_metric({arm: {0: found} for arm, found in scores.items()})
    rule = load_ledger("tag2pix")["N1"]
    measured = own_part(rule, per_unit.means(handed))
    verdict = judge(rule, measured, "paper", None, per_unit.spreads(rule, handed))
    assert verdict.verdict in ("inconclusive", "not tested")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with files as the authors published them, whose numbers are made up."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"G": weights(generator_shapes()), "finish_epoch": 60}, folder / "tag2pix_256.pkl")
    torch.save({"weight": weights(extractor_shapes())}, folder / "model.pth")
    write_table(folder / "tag_dump.pkl")
    return folder


@pytest.mark.parametrize("kind", ["grey", "16 bits", "transparent", "wide"])
def test_sketches_of_any_kind_are_coloured_by_the_authors_files(published, tmp_path, kind):
    lines = np.full((40, 90 if kind == "wide" else 40), 255, np.uint8)
    lines[10:30, 20] = 0
    image = {
        "grey": lambda: Image.fromarray(lines),
        "16 bits": lambda: Image.fromarray(lines.astype(np.uint16) * 257),
        "transparent": lambda: Image.fromarray(np.dstack([lines, lines, lines, 255 - lines])),
        "wide": lambda: Image.fromarray(lines),
    }[kind]()
    image.save(tmp_path / "sketch.png")
    drawn = authors_pictures(
        published / "tag2pix_256.pkl", tmp_path / "sketch.png", [["blonde_hair", "blue_eyes"], ["red_hair"]]
    )
    (pictures,) = drawn.values()
    assert pictures.shape == (3, 3, 256, 256)
    assert pictures[0].min() < 0 < pictures[0].max()


def test_no_sketch_and_unknown_tags_are_refused(published, tmp_path):
    Image.new("L", (8, 8), 255).save(tmp_path / "sketch.png")
    with pytest.raises(ValueError, match="no colour tag 'blond_hair': did you mean 'blonde_hair'"):
        authors_pictures(published / "tag2pix_256.pkl", tmp_path / "sketch.png", [["blond_hair"]])
    (tmp_path / "sketch.png").write_bytes(b"no picture")
    with pytest.raises(DataUnavailable, match="sketch.png"):
        authors_pictures(published / "tag2pix_256.pkl", tmp_path / "sketch.png", [["red_hair"]])
