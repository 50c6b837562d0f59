"""What the chapter on FSRE-Depth compares: arms, errors in parts of pictures, a stereo pair, counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.chapter.figures import pictures_figure
from lib.data.dataset import DataUnavailable
from lib.data.stereo import MOTORCYCLE, ROOMS, StereoPair
from lib.data.streets import STREETS
from lib.experiments import fsre_depth_figures as pictures
from lib.experiments.fsre_depth import (
    ARMS,
    CLASSES,
    FLOOR,
    FSRE,
    MAIN,
    MONODEPTH2,
    NAMES,
    REGIONS,
    SEPARATION,
    Settings,
    Streets,
    by_metric,
    courses,
    depths_of,
    seed_means,
    separation,
    train,
    wrong_blocks,
)
from lib.experiments.fsre_depth_counts import closed_cases, operations, parameters
from lib.experiments.fsre_depth_stereo import (
    Matched,
    agreement,
    agreements,
    at_odds,
    depth_of,
    descended,
    matched,
    mirrored,
    smaller,
    swept,
    wrong_share,
)
from lib.ledger.schema import load_ledger
from lib.metrics.depth import counted, depth_errors
from lib.runs.request import resolve

SETTINGS = Settings(
    channels=1 / 8,
    scales=(0, 1),
    batch_size=2,
    steps=2,
    learning_rate=0.003,
    schedule="cosine",
    motion="known",
    nearest=2.0,
    first_depth=10.0,
    evaluations=1,
)


@pytest.fixture(scope="module")
def textures():
    try:
        return STREETS.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def world(textures) -> Streets:
    return Streets.render(textures, (64, 96), seed=3, drives=3, frames=4, tested=4)


# --- arms and trainings ---


def test_arms_differ_in_what_they_say(world):
    models = {name: SETTINGS.model(name, 0) for name in ARMS}
    for name, arm in ARMS.items():
        model = models[name]
        assert (model.decoder.segmentation is not None) == arm.labels == bool(model.objective.segmentation)
        assert bool(model.decoder.to_depth) == arm.attention
        assert model.objective.triplet == 0.1 * arm.triplet
        assert model.objective.weighting == arm.weighting
    assert models[FSRE].objective.segmentation == 0.3
    assert models["labels + triplet"].objective.segmentation == models["labels"].objective.segmentation == 1
    assert [name for name, arm in ARMS.items() if arm.weighting == "monodepth2"] == [MONODEPTH2]
    assert [name for name, arm in ARMS.items() if arm.wrong] == [f"{FSRE}, wrong labels"]
    first = models[MONODEPTH2].encoder.state_dict()
    for model in models.values():
        assert all(torch.equal(value, first[key]) for key, value in model.encoder.state_dict().items())


def test_the_ledger_knows_every_arm_and_metric(world):
    ledger = load_ledger("fsre_depth")
    asked = [claim.arms(floor=True) for claim in ledger.claims if claim.id != "C4"]
    assert {arm for names in asked for group in names.values() for arm in group} == {*ARMS, FLOOR}
    metrics = {metric for names in asked for metric in names} | set(ledger.other_metrics)
    assert metrics == {*NAMES.values(), *REGIONS.values(), SEPARATION}
    assert set(MAIN) <= set(ARMS)


def test_untrained_networks_tell_the_first_depth(world):
    model = SETTINGS.model(MONODEPTH2, 0).eval()
    assert float(depths_of(model)(world.images).median()) == pytest.approx(10, rel=0.4)
    with pytest.raises(ValueError, match=r"first_depth must be between nearest 2.0 and farthest"):
        replace(SETTINGS, first_depth=1.0).model(MONODEPTH2, 0)
    with pytest.raises(ValueError, match="arm must be one of Monodepth2"):
        SETTINGS.model("nothing", 0)


def test_rates_fall_as_published_and_as_a_cosine():
    published = Settings(steps=20)
    assert [round(published.rate_at(step), 6) for step in (0, 9, 10, 14, 15, 19)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
    ]
    cosine = Settings(steps=1000, schedule="cosine")
    assert cosine.rate_at(99) == 1 and cosine.rate_at(999) == pytest.approx(0.02)


def test_trainings_move_all_but_the_pose_network(world):
    before = SETTINGS.model(FSRE, 1)
    whole, history = train(world, FSRE, 1, SETTINGS)
    still = {name for name, old in before.named_parameters() if torch.equal(old, whole.get_parameter(name))}
    assert {name.split(".")[0] for name in still} == {"pose"}
    assert not whole.training and history.steps == 2
    assert courses({FSRE: history}, 1)["AbsRel"].notna().all()


def test_a_learned_motion_trains_the_pose_network(world):
    learned = replace(SETTINGS, motion="learned")
    before, (after, _) = learned.model(MONODEPTH2, 0), train(world, MONODEPTH2, 0, learned)
    moved = [
        not torch.equal(old, new)
        for old, new in zip(before.pose.parameters(), after.pose.parameters(), strict=True)
    ]
    assert all(moved)


def test_a_world_that_does_not_tell_the_motion_refuses_to(world):
    class Silent:
        def batch(self, step, batch_size, seed):
            return {
                key: value for key, value in world.batch(step, batch_size, seed).items() if key != "motions"
            }

    with pytest.raises(ValueError, match="motion must be learned"):
        train(Silent(), MONODEPTH2, 0, SETTINGS)


def test_a_share_of_blocks_is_wrong():
    labels = torch.full((2, 64, 96), 3)
    assert torch.equal(wrong_blocks(labels, 0.0, seed=1), labels)
    wrong = wrong_blocks(labels, 0.5, seed=1)
    assert torch.equal(wrong, wrong_blocks(labels, 0.5, seed=1))
    blocks = wrong.unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)
    assert (blocks == blocks[..., :1]).all() and wrong.min() >= 0 and wrong.max() < CLASSES
    share = (wrong != labels).double().mean()
    assert share == pytest.approx(0.5 * (1 - 1 / CLASSES), abs=0.1)


# --- errors ---


def test_the_truth_has_no_error_and_the_floor_looks_at_no_picture(world):
    given = iter(torch.where(world.truth > 0, world.truth, 100.0)[:, None].split(16))
    perfect = world.errors(lambda images: 3 * next(given))
    assert all(perfect[name].max() < 1e-5 for name in ("AbsRel", "RMSE", *REGIONS.values()))
    assert perfect["δ1"].min() == 1
    floor = world.floor()
    by_hand = depth_errors(world.median_depth, world.truth[1])
    assert floor["AbsRel"][1] == by_hand["abs_rel"] and floor["δ3"][1] == by_hand["delta_3"]
    depths = torch.cat([drive.depth[1:-1] for drive in world.train.drives])[:, 60, 48]
    assert world.median_depth[60, 48] == depths.sort()[0][(len(depths) - 1) // 2]


def test_regions_have_a_truth_and_every_seed_the_same_test(world, textures):
    known = counted(world.truth)
    for where in world.regions.values():
        assert where.any() and not (where & ~known).any() and (where != known).any()
    other = Streets.render(textures, (64, 96), seed=4, drives=1, frames=3, tested=4)
    assert torch.equal(other.images, world.images)
    assert not torch.equal(other.train.drives[0].images[0], world.train.drives[0].images[0])


def test_separation_is_that_of_features_by_label(world, monkeypatch):
    """Features that are the label itself: nothing within, √2 across, wherever there is a boundary."""
    labels = world.tested("labels").long()

    class Telling(torch.nn.Module):
        def forward(self, images, *, labels):
            one_hot = torch.nn.functional.one_hot(world.tested("labels").long(), CLASSES)
            full = one_hot.permute(0, 3, 1, 2).float()
            return type("Decoded", (), {"features": {s: full[..., :: 2**s, :: 2**s] for s in (1, 2, 3)}})

    found = separation(Telling(), world)
    assert found.shape == (len(labels),) and np.allclose(found, 2**0.5, atol=1e-3)
    assert separation(SETTINGS.model(MONODEPTH2, 0).eval(), world).max() < 1.0


def test_results_by_metric_have_a_row_per_seed_and_a_column_per_picture(world):
    scores = {5: {FLOOR: world.floor()}, 6: {FLOOR: world.floor()}}
    frame = by_metric(scores)["AbsRel"][FLOOR]
    assert frame.index.tolist() == [5, 6] and frame.shape == (2, 4)
    means = seed_means(scores)
    assert means.loc[5, "AbsRel"] == pytest.approx(frame.loc[5].mean())


# --- the pair of photographs ---


def shifted(disparity: int) -> StereoPair:
    """Noise, seen by a second camera so many pixels to the right."""
    noise = torch.rand(3, 64, 96 + disparity, generator=torch.Generator().manual_seed(0))
    camera = torch.tensor([[50.0, 0, 47.5], [0, 50.0, 31.5], [0, 0, 1]])
    truth = torch.full((64, 96), float(disparity))
    return StereoPair(noise[..., disparity:], noise[..., :-disparity], camera, camera, 0.1, truth)


def test_the_sweep_finds_a_shift_exactly_and_descent_stays_there():
    """A point of the left picture is to the left in the right one: columns are less by the disparity."""
    noise = torch.rand(3, 64, 104, generator=torch.Generator().manual_seed(0))
    camera = torch.tensor([[50.0, 0, 47.5], [0, 50.0, 31.5], [0, 0, 1]])
    pair = StereoPair(noise[..., :-8], noise[..., 8:], camera, camera, 0.1, torch.full((64, 96), 8.0))
    found = swept(pair, torch.arange(1.0, 17))
    assert (found[:, 12:] == 8).all()  # what the right picture has
    assert torch.allclose(depth_of(torch.tensor(8.0), pair), torch.tensor(50 * 0.1 / 8))
    assert wrong_share(found[:, :], pair) < 15
    refined = descended(pair, torch.full((64, 96), 8.3), steps=60)
    assert (refined[:, 16:] - 8).abs().median() < 0.1


def test_smaller_pairs_have_smaller_cameras():
    pair = shifted(8)
    half = smaller(pair, 2)
    assert half.left.shape == (3, 32, 48) and half.disparity.unique().tolist() == [4.0]
    assert half.intrinsics[0, 0] == 25 and half.intrinsics[0, 2] == pytest.approx(23.5)
    one = Matched(half.disparity, 2)
    assert torch.allclose(one.at((64, 96)), pair.disparity) and wrong_share(one.at((64, 96)), pair) == 0


def test_the_motorcycle_is_found():
    try:
        pair = MOTORCYCLE.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))
    found = matched(pair, factor=4, planes=40, steps=5)
    wrong = {name: wrong_share(one.at(pair.disparity.shape), pair) for name, one in found.items()}
    assert wrong["plane sweep"] < 25 < 75 < wrong["one plane"]
    table = pictures.amounts(found, pair, wrong)
    assert table.loc["plane sweep", "median error (pixels)"] < 1.5
    pictures_figure(pictures.matched_pictures(pair, found, 0).reset_index())


def test_a_mirror_turns_both_cameras():
    k = torch.tensor([[50.0, 0, 20], [0, 50, 31.5], [0, 0, 1]])
    other = k + torch.tensor([[0, 0, 3.0], [0, 0, 0], [0, 0, 0]])
    pair = replace(shifted(8), intrinsics=k, right_intrinsics=other)
    turned = mirrored(pair)
    assert turned.intrinsics[0, 2] == 95 - 23 and turned.right_intrinsics[0, 2] == 95 - 20
    assert torch.equal(turned.left, pair.right.flip(2))
    assert torch.equal(depth_of(torch.tensor(8.0), turned), depth_of(torch.tensor(8.0), pair))
    again = mirrored(turned)
    assert torch.equal(again.right, pair.right) and torch.equal(again.intrinsics, pair.intrinsics)


def test_a_pair_agrees_but_where_one_picture_ends_and_another_rooms_by_chance():
    noise = torch.rand(3, 64, 104, generator=torch.Generator().manual_seed(0))
    pair = replace(shifted(8), left=noise[..., :-8], right=noise[..., 8:])
    found = agreement(pair, factor=1, planes=70)
    assert not found.at_odds[:, 12:].any() and found.at_odds[:, :8].float().mean() > 0.8
    swapped = replace(pair, left=pair.right, right=pair.left)
    assert at_odds({"cameras swapped": agreement(swapped, factor=1, planes=70)}) > 40


def test_rooms_agree_with_themselves_alone():
    try:
        rooms = ROOMS.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))
    few = {name: rooms[name] for name in ("cycles", "toy", "desk")}
    found = agreements(few, factor=8, planes=40)
    assert at_odds(found["own pair"]) < 30 < 60 < at_odds(found["another room"])
    figure = pictures_figure(pictures.room_pictures(few, found["own pair"], 0).reset_index())
    assert [axis.images[0].get_array().shape[:2] for axis in figure.axes] == [(60, 240)] * 2


# --- counts, pictures, scales ---


def test_counts_and_closed_cases_are_the_ledgers():
    ledger = load_ledger("fsre_depth")
    counts = parameters() | operations()
    for claim, found in (("C8", counts), ("C8b", counts), ("C8c", closed_cases())):
        for number in ledger[claim].paper:
            low, high = ledger[claim].allowed(number)
            assert low <= found[number.name] <= high, number.name


def test_every_strip_is_drawn(world):
    models = {arm: SETTINGS.model(arm, 0).eval() for arm in MAIN}
    tables = {
        "looks": pictures.looks(world, 0),
        "mechanism": pictures.mechanism(world.train, 0),
        "strips": pictures.strips(models, world, 0),
        "close-ups": pictures.close_ups(models, world, 0),
        "likeness": pictures.likeness(models, world, 0),
    }
    rows = {name: len(pictures_figure(table.reset_index()).axes) for name, table in tables.items()}
    assert rows == {"looks": 4, "mechanism": 6, "strips": 8, "close-ups": 4, "likeness": 3}


def test_near_is_light_and_the_sky_black():
    shown = pictures.depth_colours(torch.tensor([[[3.0, 10.0, 80.0, 0.0]]]))[0].mean(0)[0]
    assert shown.tolist() == sorted(shown.tolist(), reverse=True)
    assert shown[3] < -0.95
    depth = torch.tensor([[[2.0, 4.0, 0.0]]])
    assert torch.allclose(pictures.scaled(depth * 5 + (depth == 0), depth)[depth > 0], depth[depth > 0])


def test_the_paper_scale_is_the_published_one():
    asked = resolve("fsre_depth", "paper").parameters
    published = Settings()
    for name in ("encoder", "channels", "batch_size", "learning_rate", "schedule", "motion", "smoothness"):
        assert asked[name] == getattr(published, name), name
    assert (asked["height"], asked["width"], asked["scales"]) == (192, 640, 4)
    assert asked["steps"] == 20 * (39_810 // asked["batch_size"])
    assert (asked["nearest"], asked["farthest"], asked["first_depth"]) == (0.1, 100.0, 0.0)
