"""What the Tag2Pix chapter compares: lines without colours, scores by hand, arms that differ in one thing."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lib.chapter.figures import pictures_figure
from lib.data.drawings import ADVENTURER
from lib.experiments import tag2pix_measurements as measurements
from lib.experiments.tag2pix import ARMS, SECAT, Colouring
from lib.experiments.tag2pix_arithmetic import biased, identities, tag_gates
from lib.experiments.tag2pix_figures import TAG_SETS, recoloured, set_names, strips, tag_sets
from lib.experiments.tag2pix_sets import EmojiSet, line_art, portraits_of, regions, to_signed, words_of
from lib.models.images.tag2pix_blocks import ChannelGate
from lib.models.images.tag2pix_losses import LossWeights
from lib.training.loop import History

SMALL = {
    "width": 4,
    "blocks": (1, 1, 1),
    "tag_size": 8,
    "groups": 8,
    "discriminator_width": 16,
    "discriminator_stages": 1,
    "discriminator_last": 1,
    "extractor_width": 0.25,
    "extractor_blocks": (1, 1),
    "extractor_groups": 8,
    "extractor_steps": 1,
    "weights": LossWeights(),
    "batch_size": 4,
    "learning_rate": 1e-3,
    "steps": 2,
    "first_step": 0.5,
    "evaluations": 2,
}


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    style, folder = ADVENTURER.load("data"), tmp_path_factory.mktemp("drawings")
    return portraits_of(style, 60, 12, 24, xdog_share=0.5, missing_tags=0.25, data_dir=folder)


@pytest.fixture(scope="module")
def colouring(portraits):
    return Colouring(material=portraits, **SMALL)


@pytest.fixture(scope="module")
def trained(colouring):
    return colouring.train_arms(ARMS, 0, lambda name: None)


# --- portraits ----------------------------------------------------------------------------------------------


def test_exact_lines_know_no_colours_and_xdog_does(portraits):
    others = portraits.asked[::-1].copy()
    assert not torch.equal(
        portraits.test.colour(colours=portraits.asked), portraits.test.colour(colours=others)
    )
    bright, dark = (np.zeros_like(portraits.asked) for _ in range(2))
    dark[:, portraits.test.style.parts.index("hair")] = 2
    lines = [measurements.xdog_of(portraits.test, colours) for colours in (bright, dark)]
    assert not torch.equal(*lines)


def test_line_art_has_the_iris_and_all_lines_of_the_drawing(portraits):
    drawn, lines = line_art(portraits.test).int(), portraits.test.lines().int()
    assert (drawn <= lines).all()
    added = (lines - drawn > 128)[:, 0]
    assert added.any((1, 2)).all()
    near = torch.nn.functional.max_pool2d(portraits.test.coverage("eyes")[:, None], 3, stride=1, padding=1)
    assert (near[:, 0][added] > 0.5).all()


def test_every_portrait_shows_every_part(portraits):
    for drawings in (portraits.train, portraits.test):
        for part in drawings.style.parts:
            assert (regions(drawings, part).sum((1, 2)) >= 3).all()
    assert len(portraits.test) == 12


def test_batches_follow_seed_and_step(portraits):
    first, again = (portraits.batch(3, 8, seed=1) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["images"], portraits.batch(4, 8, seed=1)["images"])
    assert not torch.equal(first["images"], portraits.batch(3, 8, seed=2)["images"])
    assert first["lines"].min() >= 0 and first["lines"].max() <= 1
    assert first["images"].min() >= -1 and first["images"].max() <= 1


def test_tags_are_left_out_as_often_as_asked(portraits):
    tags = torch.cat([portraits.batch(step, 50, seed=0)["variant"] for step in range(8)])
    assert tags.sum(1).mean() == pytest.approx(4 * 0.75, abs=0.15)
    assert tags.sum(1).max() == 4


def test_too_few_portraits_are_refused(tmp_path):
    style = ADVENTURER.load("data")
    with pytest.raises(ValueError, match="at 8 pixels only .* of 50 portraits show all parts, not 10"):
        portraits_of(style, 20, 10, 8, xdog_share=0.0, missing_tags=0.0, data_dir=tmp_path)


def test_words_are_ordered_by_how_many_names_have_them():
    names = ["cat face", "dog face", "cat face cat", "a b-c flag"]
    assert words_of(names, 2) == ("face", "flag")


# --- measurements -------------------------------------------------------------------------------------------


def test_the_truth_scores_perfectly_and_mean_colours_do_not(portraits):
    truth = to_signed(portraits.test.colour(colours=portraits.asked))
    scores = measurements.picture_scores(truth, portraits)
    for part in portraits.test.style.parts:
        assert scores[measurements.accuracy_name(part)].mean() == 1
    assert not scores[measurements.ERROR].any()
    assert not scores[measurements.BLEEDING].any()
    mean = measurements.picture_scores(measurements.mean_colours(portraits), portraits)
    assert mean["hair as asked"].mean() < 0.7
    filled = measurements.picture_scores(measurements.flood_filled(portraits), portraits)
    assert filled["hair as asked"].mean() == 1
    assert filled[measurements.ERROR].mean() < mean[measurements.ERROR].mean()


def test_another_colour_of_one_part_is_counted_there_alone(portraits):
    place = portraits.test.style.parts.index("hair")
    colours = portraits.asked.copy()
    colours[:, place] = (colours[:, place] + 1) % len(portraits.test.style.palettes["hair"])
    scores = measurements.picture_scores(to_signed(portraits.test.colour(colours=colours)), portraits)
    assert [scores[f"{part} as asked"].mean() for part in portraits.test.style.parts] == [1, 0, 1, 1]


def test_borders_are_near_other_parts_and_cores_are_not(portraits):
    border, core = measurements.borders(portraits)
    assert not (border & core).any()
    assert border.any() and core.any()
    everything = torch.stack([regions(portraits.test, part) for part in portraits.test.style.parts]).any(0)
    assert torch.equal(border | core, everything)


def test_bleeding_is_the_error_at_borders_less_that_elsewhere(portraits):
    truth = to_signed(portraits.test.colour(colours=portraits.asked))
    border, _ = measurements.borders(portraits)
    spoilt = truth + border[:, None] * 10 / 127.5
    scores = measurements.picture_scores(spoilt, portraits)
    assert scores[measurements.BLEEDING] == pytest.approx(np.full(12, 10.0), abs=1e-3)


def test_fluctuation_is_of_the_last_half():
    errors = [100.0, 50.0, 10.0, 12.0, 10.0, 12.0]
    assert measurements.fluctuation(History(evaluations=[{"error": e} for e in errors])) == 2
    assert measurements.fluctuation(History(evaluations=[{"error": 1.0}])) == 0


def test_areas_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    scores, truth = draw.integers(0, 5, 40).astype(float), draw.random(40) < 0.4
    assert measurements._area(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert measurements._area(scores, np.ones(40, bool)) == 0.5


def test_exact_lines_leak_nothing_by_construction(portraits):
    found = measurements.leak(portraits, 0)
    assert set(found) == {"XDoG", "exact lines"}
    assert all(0 <= value <= 1 for value in found.values())


def test_altered_tags_miss_or_double_what_they_say(portraits):
    altered = measurements.altered(portraits)
    counts = {name: tags.sum(1).unique().tolist() for name, tags in altered.items()}
    assert counts["as asked"] == [4]
    assert counts["no tag for hair"] == counts["no tag for eyes"] == [3]
    assert set(counts["two tags for hair"]) <= {4, 5}
    assert counts["no tags"] == [0]
    hair = [k for k, name in enumerate(portraits.colour_tags) if name.endswith("hair")]
    assert not altered["no tag for hair"][:, hair].any()


# --- arms ---------------------------------------------------------------------------------------------------


def test_arms_differ_as_they_say(trained):
    assert set(trained) == set(ARMS)
    generators = {arm: one.generator for arm, one in trained.items()}
    assert all((one.map_of_tags is None) == ("alone" in arm) for arm, one in generators.items())
    assert all((one.guide is None) == (arm == "no guide") for arm, one in generators.items())
    assert all((one.features == 0) == (arm == "no extractor") for arm, one in generators.items())
    assert generators["SE"].vector_of_tags is None
    assert generators["AdaIN, scale from 0"].decoder[0][0].bn1.bias.abs().max() < 0.1
    assert generators["AdaIN"].decoder[0][0].bn1.bias[:16].min() > 0.9


def test_an_unknown_arm_is_refused(colouring):
    classifier, _ = colouring.train_extractor(0)
    with pytest.raises(ValueError, match="arm must be one of SECat, SE"):
        colouring.train("sketch", 0, classifier)


def test_a_training_is_a_function_of_its_seed(colouring, trained, portraits):
    again = colouring.train_arms([SECAT], 0, lambda name: None)[SECAT]
    other = colouring.train_arms([SECAT], 1, lambda name: None)[SECAT]
    held_out = portraits.held_out(3)
    drawn = [one.draw(held_out["lines"], held_out["variant"]) for one in (trained[SECAT], again, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_drawing_leaves_the_network_in_its_mode_and_does_not_depend_on_the_batch(trained, portraits):
    held_out = portraits.held_out(6)
    one = trained[SECAT]
    before = one.generator.training
    whole = one.draw(held_out["lines"], held_out["variant"])
    parts = one.draw(held_out["lines"], held_out["variant"], batch_size=2)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    assert one.generator.training is before


def test_scores_of_all_arms_and_what_needs_no_training(trained, portraits):
    scores = measurements.portrait_scores({SECAT: trained[SECAT]}, portraits)
    assert set(scores) == {SECAT, "mean colours", "flood fill"}
    by_seed = {arm: {7: found} for arm, found in scores.items()}
    frames = measurements.by_metric(by_seed)
    assert frames["eyes as asked"][SECAT].shape == (1, 12)
    means = measurements.seed_means(by_seed)
    assert means.index.tolist() == [7, 7, 7]
    assert measurements.spread(means).index.tolist() == list(scores)


def test_tag_heads_spill_and_contradicted_lines(trained, portraits):
    told = measurements.tag_head_precision(trained[SECAT], portraits)
    assert set(told) == {"colour tags (AP)", "shape tags (AP)"}
    assert all(0 <= value <= 1 for found in told.values() for value in found.values())
    spilt = measurements.spill(trained[SECAT], portraits)
    assert all(values.shape == (12,) and (values >= 0).all() for values in spilt.values())
    assert set(measurements.contradicted(trained[SECAT], portraits)) == {
        "lines of the same colours",
        "lines of other colours",
    }


# --- emoji --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    return EmojiSet.load(24, 60, 12, tmp_path_factory.mktemp("emoji"))


def test_emoji_as_they_are_score_best(emoji):
    held_out = emoji.held_out(emoji.tested)
    truth = measurements.emoji_scores(held_out["images"], emoji)
    floor = measurements.emoji_scores(measurements.emoji_floor(emoji), emoji)
    assert not truth["emoji: error (levels)"].any()
    assert truth["emoji: pixels"].mean() > floor["emoji: pixels"].mean()


def test_held_out_emoji_are_in_no_batch(emoji):
    held_out = {picture.numpy().tobytes() for picture in emoji.held_out(12)["images"]}
    for step in range(10):
        images = emoji.batch(step, 16, seed=0)["images"]
        for picture in torch.cat([images, images.flip(-1)]):
            assert picture.contiguous().numpy().tobytes() not in held_out


# --- what SECat is, pictures --------------------------------------------------------------------------------


def test_secat_is_a_bias_and_a_wrong_bias_is_seen():
    found = identities()
    assert found["SECat − SE with a bias from the tags"] < 1e-12
    assert found["factor of a gate without a squeeze"] == 0.5
    assert found["rank of the tags' biases"] == 64
    gate = ChannelGate(32, 8)
    images, tags = torch.randn(2, 32, 3, 3), torch.randn(2, 8)
    torch.testing.assert_close(biased(gate, images, tags), gate(images, tags))
    assert not torch.allclose(biased(gate, images, -tags), gate(images, tags))


def test_gates_of_tags_are_of_gates_that_see_them(trained, portraits):
    names = list(portraits.colour_tags)
    change = tag_gates(trained[SECAT].generator, names)
    assert change.shape == (len(names), 4 * 32)
    assert change.abs().max() > 0
    with pytest.raises(ValueError, match="no gate that sees tags"):
        tag_gates(trained["SE"].generator, names)


def test_strips_come_back_as_pictures(trained, portraits):
    rows = recoloured(trained[SECAT], portraits, 2)
    table = strips({10: rows, 11: rows}, columns=set_names())
    assert table["row"].tolist() == ["drawing 1", "drawing 2"] * 2
    figure = pictures_figure(table)
    assert len(figure.axes) == 2
    image = figure.axes[0].images[0].get_array()
    assert image.shape[:2] == (24, 24 * (1 + len(TAG_SETS)))
    assert len(pictures_figure(table, rows=["drawing 2"], seed=11).axes) == 1
    with pytest.raises(ValueError, match="no row 'x' of seed 10"):
        pictures_figure(table, rows=["x"])


def test_tag_sets_have_a_tag_for_each_part(portraits):
    assert tag_sets(portraits).sum(1).tolist() == [4] * len(TAG_SETS)


def test_pictures_of_a_strip_keep_their_colours(portraits):
    truth = to_signed(portraits.test.colour(slice(0, 2), portraits.asked[:2]))
    table = strips({0: {"truth": truth}})
    shown = pictures_figure(table).axes[0].images[0].get_array()[..., :3]
    expected = torch.cat(list((truth + 1) / 2), 2).permute(1, 2, 0).numpy()
    assert np.abs(shown - expected).mean() < 0.02
