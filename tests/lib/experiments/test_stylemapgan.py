"""What the chapter on StyleMapGAN compares: its trainings, its edits against the truth, its counts."""

import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lib.chapter.figures import pictures_figure
from lib.data.dataset import DataUnavailable
from lib.data.drawings import ADVENTURER, Drawings, PairedEdits
from lib.experiments import stylemapgan as experiments
from lib.experiments import stylemapgan_edits as edits
from lib.experiments.stylemapgan import (
    ALL_LOSSES,
    ARMS,
    EQUAL,
    MEAN,
    NEAREST,
    THUMBNAIL,
    WIDE,
    Pictures,
    Settings,
    courses,
    error_of,
    faces,
    gathered,
    own_pictures,
    quantised,
    reconstruction_errors,
    score_table,
    second_set,
    signed,
    train,
    train_all_losses,
    untrained_errors,
)
from lib.experiments.stylemapgan_figures import sheet
from lib.experiments.stylemapgan_measurements import (
    ENCODER,
    FROM_ENCODER,
    check_published,
    counts,
    edited_by_halves,
    noise_inputs,
    projections,
    published_scores,
    sample_scores,
)
from lib.ledger.schema import load_ledger
from lib.models.images.stylemapgan import StyleMapGAN
from lib.models.images.stylemapgan_checkpoints import to_authors
from lib.models.images.stylemapgan_losses import LossWeights
from lib.runs.request import resolve

SETTINGS = Settings(
    resolution=32,
    width=4,
    channel_multiplier=2,
    batch_size=4,
    learning_rate=0.004,
    adversarial_rate=0.002,
    steps=3,
    adversarial_steps=2,
    average_decay=0.5,
)


@pytest.fixture(scope="module")
def style():
    try:
        return ADVENTURER.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def drawn(style, tmp_path_factory) -> Pictures:
    return faces(style, 32, 16, 8, seed=3, shift=0.1, data_dir=tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def models() -> dict[str, StyleMapGAN]:
    return {arm: SETTINGS.model(arm, 0).eval() for arm in edits.EDITED}


@pytest.fixture(scope="module")
def pairs(style, tmp_path_factory) -> PairedEdits:
    folder = tmp_path_factory.mktemp("pairs")
    return edits.pairs_with_change(style, 6, 32, "hair", seed=5, shift=0.0, data_dir=folder)


# --- arms and trainings ---


def test_equal_latents_have_256_numbers_and_wide_ones_16_channels():
    assert {size * size * channels for size, channels in EQUAL.values()} == {256}
    assert {channels for _, channels in WIDE.values()} == {16}
    for arm, (size, channels) in ARMS.items():
        assert SETTINGS.model(arm, 0).generator.map_shape == (channels, size, size)


def test_an_unknown_arm_is_refused():
    with pytest.raises(ValueError, match="arm must be one of vector of 256"):
        SETTINGS.model("map 3×3×3", 0)


def test_batches_are_a_function_of_their_number_and_an_epoch_has_every_picture_once():
    pictures = Pictures(
        torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 32, 32), torch.empty(0)
    )
    first = [pictures.batch(number, 4, seed=1) for number in (0, 1)]
    assert torch.equal(pictures.batch(1, 4, seed=1), first[1])
    seen = torch.cat(first)[:, 0, 0, 0]
    assert torch.equal(seen.sort().values, signed(torch.arange(8)))
    assert not torch.equal(pictures.batch(2, 4, seed=1), first[0])


def test_quantising_is_writing_eight_bits_and_reading_them():
    images = torch.tensor([-1.7, -1.0, 0.0, 0.3337, 1.0, 2.0])
    pixels = np.rint((images.clamp(-1, 1).numpy() + 1) * 127.5).astype(np.uint8)
    assert torch.allclose(quantised(images), signed(torch.from_numpy(pixels)), atol=1e-6)


def test_a_training_moves_encoder_and_generator_and_leaves_mapping_and_discriminator(drawn):
    before, (after, history) = SETTINGS.model("map 8×8×4", 1), train(drawn, "map 8×8×4", 1, SETTINGS)
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert {name.split(".")[0] for name in moved} == {"generator", "encoder"}
    assert not any(name.startswith("generator.mapping") for name in moved)
    assert not after.training and all(weight.grad is None for weight in after.parameters())
    assert history.steps == 3 and courses({"map": history}, 1)["MSE"].notna().all()


def test_what_is_returned_is_the_running_average(drawn):
    """With a decay near 1 hardly anything has moved; with 0 it is what the last step left."""
    still, _ = train(drawn, "map 8×8×4", 1, replace(SETTINGS, average_decay=1 - 1e-9))
    first = SETTINGS.model("map 8×8×4", 1)
    for name in ("generator", "encoder"):
        for old, new in zip(
            getattr(first, name).parameters(), getattr(still, name).parameters(), strict=True
        ):
            assert torch.allclose(old, new, atol=1e-6)


def test_trainings_repeat_exactly_and_go_on_from_a_checkpoint(drawn, tmp_path):
    def file(name):
        return tmp_path / f"{name}.pt"

    once, _ = train(drawn, "vector of 256", 2, SETTINGS)
    train(drawn, "vector of 256", 2, replace(SETTINGS, steps=2), checkpoint=file)
    on, _ = train(drawn, "vector of 256", 2, SETTINGS, checkpoint=file)
    for one, other in zip(once.parameters(), on.parameters(), strict=True):
        assert torch.equal(one, other)


def test_all_losses_move_every_network_and_one_after_the_other_leaves_the_generator_of_the_first_stage(
    drawn, monkeypatch
):
    options = {"weights": LossWeights(), "distance": None}
    joint, history = train_all_losses(drawn, "map 8×8×4", 1, SETTINGS, **options)
    start = SETTINGS.model("map 8×8×4", 1)
    for part in ("generator.mapping", "generator.blocks", "encoder", "discriminator"):
        old, new = start.get_submodule(part), joint.get_submodule(part)
        assert any(not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)), (
            part
        )
    assert set(history.losses[-1]) >= {"adversarial_generator", "latent_reconstruction", "domain_encoder"}

    kept, stages, rounds = {}, [], experiments._rounds

    def watched(*arguments, **named):
        model, history = rounds(*arguments, **named)
        stages.append([weight.clone() for weight in model.generator.parameters()])
        return model, history

    monkeypatch.setattr(experiments, "_rounds", watched)
    _, history = train_all_losses(
        drawn,
        "map 8×8×4",
        1,
        SETTINGS,
        sequential=True,
        checkpoint=lambda name: kept.setdefault(name),
        **options,
    )
    assert [name.rpartition(", ")[2] for name in kept] == ["generator", "encoder"]
    assert "adversarial_generator" not in history.losses[-1]
    first, second = stages
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- errors without a network ---


def test_what_needs_no_network_by_hand():
    known = torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 255.0)]).byte()
    pictures = Pictures(known, torch.full((1, 3, 32, 32), 51).byte())
    found = untrained_errors(pictures)
    value = 51 / 127.5 - 1
    assert found[MEAN] == pytest.approx((quantised(torch.zeros(1)).item() - value) ** 2, abs=1e-6)
    assert found[NEAREST] == pytest.approx((-1 - value) ** 2, abs=1e-6)
    assert found[THUMBNAIL] == pytest.approx(0, abs=1e-6)


def test_scores_of_seeds_as_numbers_and_as_a_table():
    scores = gathered(
        [
            {"MSE": {"a": 1.0, "b": 2.0}, "other": {"a": 5.0}},
            {"MSE": {"a": 3.0, "b": 4.0}, "other": {"a": 6.0}},
        ]
    )
    assert scores == {"MSE": {"a": [1.0, 3.0], "b": [2.0, 4.0]}, "other": {"a": [5.0, 6.0]}}
    found = score_table(scores, [10, 11]).reset_index().set_index(["arm", "seed"])
    assert found.loc[("b", 11), "MSE"] == 4.0 and np.isnan(found.loc[("b", 11), "other"])
    assert found.loc[("a", 11), "other"] == 6.0


# --- edits ---


def test_the_truth_itself_has_no_error_and_pasting_none_of_the_published(models, pairs):
    edited, mask = edits.local_edits({}, pairs), pairs.changed[:, None]
    source, reference, truth = edits.pictures_of(pairs)
    scores = edits.edit_scores(edited | {"truth": truth}, pairs)
    assert scores["MSE to the true edit"]["truth"] == scores["MSE in the changed region"]["truth"] == 0
    assert scores["MSE_src"][edits.PASTE] == scores["MSE_ref"][edits.PASTE] == 0
    assert scores["MSE_src"][edits.NO_EDIT] == 0 < scores["MSE_ref"][edits.NO_EDIT]
    assert scores["MSE in the changed region"][edits.NO_EDIT] == pytest.approx(
        error_of(source, truth, pairs.changed), rel=1e-6
    )
    assert torch.equal(torch.where(mask, reference, source), edited[edits.PASTE])


def test_maps_are_edited_in_both_spaces_and_vectors_as_wholes(models, pairs):
    edited = edits.local_edits(models, pairs)
    assert "map 8×8×4, codes" in edited and "map 8×8×4, map" in edited
    assert "vector of 256, mean of both" in edited and "vector of 256, codes" not in edited
    known = load_ledger("stylemapgan")
    arms = {arm for claim in known.claims for group in claim.arms(floor=True).values() for arm in group}
    assert set(edited) <= arms | set(known.other_arms)


def test_pairs_without_a_change_are_left_out_and_none_left_is_an_error(style, tmp_path, monkeypatch):
    real = edits.paired_edits

    def unchanged(*arguments, **options):
        pairs = real(*arguments, **options)
        pairs.changed[1:] = False
        return pairs

    monkeypatch.setattr(edits, "paired_edits", unchanged)
    kept = edits.pairs_with_change(style, 4, 32, "hair", seed=1, shift=0.0, data_dir=tmp_path)
    assert len(kept.source) == len(kept.edited) == len(kept.changed) == 1

    def nothing(*arguments, **options):
        pairs = real(*arguments, **options)
        pairs.changed[:] = False
        return pairs

    monkeypatch.setattr(edits, "paired_edits", nothing)
    with pytest.raises(ValueError, match="no pair of 4 shows another hair at 32 pixels"):
        edits.pairs_with_change(style, 4, 32, "hair", seed=1, shift=0.0, data_dir=tmp_path)


def test_rectangles_lie_in_the_map_and_are_as_far_apart_as_the_faces(style, tmp_path):
    pairs = edits.pairs_with_change(style, 24, 32, "eyes", seed=2, shift=0.25, data_dir=tmp_path)
    for number in range(len(pairs.source)):
        place = edits.rectangle(pairs, number, 8)
        assert place["height"] <= 4 and place["width"] <= 6  # eyes, not the whole head
        apart = pairs.source.faces.shift[number] - pairs.reference.faces.shift[number]
        for axis, side in ((0, "height"), (1, "width")):
            here, there = place["source_corner"][axis], place["reference_corner"][axis]
            assert here - there == round(apart[1 - axis] * 8)
            assert min(here, there) >= 0 and max(here, there) + place[side] <= 8


def test_moved_pixels_put_the_eyes_of_a_moved_copy_back(style, tmp_path):
    """Source and reference are one face at two places, whole cells apart: pasting changes nothing."""
    still = style.faces(4, seed=3)
    there = replace(still, shift=np.tile((0.125, 0.125), (4, 1)))
    here, moved = (Drawings.of(style, one, 32, data_dir=tmp_path) for one in (still, there))
    changed = here.labels > 0
    pairs = PairedEdits(here, moved, here, changed)
    edited = edits.moved_edits({"map 8×8×4": SETTINGS.model("map 8×8×4", 0).eval()}, pairs)
    assert edits.moved_scores(edited, pairs)["MSE in the changed region (moved)"][edits.PASTE] < 1e-4


def test_halfway_the_cross_fade_is_the_mean_and_every_arm_has_an_error(style, models, tmp_path):
    both = {arm: models[arm] for arm in ("vector of 256", "map 8×8×4")}
    images, errors = edits.halfway(both, style, 4, 32, seed=1, shift=0.1, data_dir=tmp_path)
    fade = quantised((images["left"] + images["right"]) / 2)
    assert torch.equal(images[edits.CROSS_FADE], fade)
    assert errors[edits.CROSS_FADE] == pytest.approx(error_of(fade, images["truth"]), rel=1e-6)
    assert set(errors) == {*both, edits.CROSS_FADE}


def test_a_direction_in_the_left_half_leaves_the_right_half_of_the_map(style, tmp_path):
    class Pixels(torch.nn.Module):
        """A "network" whose map is the picture itself, in cells of 4 pixels."""

        def __init__(self):
            super().__init__()
            self.generator = torch.nn.Upsample(scale_factor=4)
            self.generator.map_size = 8
            self.encoder = torch.nn.AvgPool2d(4)

    images, scores = edits.hair_direction(Pixels(), style, 120, 40, 32, seed=1, data_dir=tmp_path)
    right = scores["brightness of the right hair"]
    left = scores["brightness of the left hair"]
    assert left["everywhere"] == left["left half"] > left["unmoved"]
    assert right["left half"] == right["unmoved"] < right["everywhere"]
    assert torch.equal(images["left half"][..., 16:], images["unmoved"][..., 16:])


# --- optimisation, samples, counts, the authors' file ---


def test_optimisation_starts_where_it_should_and_its_course_is_recorded(drawn):
    model = SETTINGS.model("map 8×8×4", 0).eval()
    scores, course, images = projections(model, drawn, count=3, steps=5, learning_rate=0.05)
    start = course[(course["arm"] == FROM_ENCODER) & (course["step"] == 0)]["MSE"].item()
    with torch.no_grad():
        raw = error_of(model(drawn.held_out[:3]), drawn.held_out[:3])
    assert start == pytest.approx(raw, rel=1e-4)
    assert set(images) == set(scores["MSE (projection)"]) == set(scores["seconds per picture"])
    assert scores["seconds per picture"][ENCODER] < scores["seconds per picture"][FROM_ENCODER]
    assert course["step"].max() == 5


def test_samples_repeat_and_stand_beside_real_pictures_and_ghosts(drawn):
    class Features:
        def features(self, images):
            return [images[:, :, ::8, ::8]]

    model = SETTINGS.model("map 8×8×4", 0).eval()
    first, images = sample_scores({"one": model}, drawn, Features(), count=8, seed=1)
    second, _ = sample_scores({"one": model}, drawn, Features(), count=8, seed=1)
    assert first == second and set(first) == {"one", "other real pictures", "pixel cross-fades"}
    assert len(images["one"]) == 8
    assert first["other real pictures"] < first["one"]


def test_counts_and_noise_are_the_ledgers():
    ledger = load_ledger("stylemapgan")
    assert counts() == {number.name: number.value for number in ledger["C11"].paper}
    assert noise_inputs() == 0


def test_every_way_of_training_is_in_the_ledger():
    arms = load_ledger("stylemapgan")["C7"].arms()["MSE (all losses)"]
    assert {"jointly", "one after the other"} == set(arms) <= set(ALL_LOSSES)


@pytest.mark.parametrize(
    ("checkpoint", "pictures", "published"), [("file", "", "none"), ("", "folder", "none"), ("", "", "5M")]
)
def test_what_belongs_together_is_asked_for_together(checkpoint, pictures, published):
    with pytest.raises(ValueError, match="checkpoint"):
        check_published(checkpoint, pictures, published)


def write_pictures(folder):
    """A grey one of 16 bits, one with transparency, a small and a wide one."""
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 65536, (40, 50), dtype=np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(draw.integers(0, 256, (40, 40, 4), dtype=np.uint8)).save(folder / "transparent.png")
    Image.fromarray(draw.integers(0, 256, (20, 90, 3), dtype=np.uint8)).save(folder / "wide.jpg")
    Image.fromarray(draw.integers(0, 256, (3, 3), dtype=np.uint8)).save(folder / "small-grey.png")


def test_the_authors_file_edits_pictures_of_any_kind(tmp_path):
    """At the 256 pixels of their files, with few channels."""
    write_pictures(tmp_path)
    torch.manual_seed(0)
    model = StyleMapGAN(resolution=256, width=8, style_channels=8)
    file = tmp_path / "authors.pt"
    torch.save(to_authors(model) | {"train_args": argparse.Namespace(lr_mul=0.01)}, file)
    theirs, files = StyleMapGAN.from_authors(file), own_pictures(tmp_path, 256)
    shown = edited_by_halves(theirs, files.tensor(slice(0, 4)))
    assert {tuple(images.shape) for images in shown.values()} == {(4, 3, 256, 256)}
    assert all(images.isfinite().all() for images in shown.values())
    try:
        scores = published_scores(theirs, files, "data", batch_size=3)
    except DataUnavailable as error:
        pytest.skip(str(error))
    expected = error_of(shown["reconstruction"], files.tensor(slice(0, 4)))
    assert scores["MSE"] == pytest.approx(expected, rel=1e-4) and scores["LPIPS"] > 0


def test_a_folder_in_the_place_of_the_emoji(tmp_path):
    write_pictures(tmp_path)
    pictures = second_set(32, 3, 1, tmp_path, tmp_path)
    assert pictures.train.shape == (3, 3, 32, 32) and pictures.test.dtype == torch.uint8
    with pytest.raises(ValueError, match="has 4 pictures, 12 are asked for"):
        second_set(32, 8, 4, tmp_path, tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataUnavailable, match="no pictures"):
        second_set(32, 8, 4, tmp_path, tmp_path / "none")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataUnavailable, match=r"broken\.png"):
        second_set(32, 4, 1, tmp_path, tmp_path)


def test_errors_of_networks_stand_beside_those_without(drawn, models):
    found = reconstruction_errors({"map 8×8×4": models["map 8×8×4"]}, drawn)
    assert set(found) == {"map 8×8×4", MEAN, NEAREST, THUMBNAIL}
    with torch.no_grad():
        by_hand = (quantised(models["map 8×8×4"](drawn.held_out)) - drawn.held_out).square().mean().item()
    assert found["map 8×8×4"] == pytest.approx(by_hand, rel=1e-5)


def test_a_strip_holds_its_pictures(drawn):
    frame = sheet({"faces": drawn.held_out, "again": drawn.held_out}, 7, columns=3).reset_index()
    assert frame["seed"].tolist() == [7, 7] and frame["row"].tolist() == ["faces", "again"]
    figure = pictures_figure(frame)
    picture = figure.axes[0].images[0].get_array()
    assert picture.shape[:2] == (32, 96)
    shown = torch.from_numpy(np.asarray(picture)[..., :3]).permute(2, 0, 1) * 2 - 1
    wanted = torch.cat(list(drawn.held_out[:3]), 2)
    assert (shown - wanted).square().mean() < 0.01  # 64 colours


def test_the_paper_scale_has_the_published_sizes():
    asked = resolve("stylemapgan", "paper").parameters
    assert (asked["resolution"], asked["width"], asked["batch_size"]) == (256, 512, 16)
    assert asked["steps"] * asked["batch_size"] == 5_000_000
    assert (asked["adversarial_rate"], asked["average_decay"], asked["perceptual"]) == (0.002, 0.999, "vgg")
    settings = Settings(
        **{name: asked[name] for name in Settings.__annotations__ if name in asked}, channel_multiplier=2
    )
    with torch.device("meta"):
        model = settings.model("map 8×8×4", 0)
    assert sum(p.numel() for p in model.discriminator.parameters()) == 28_864_129
