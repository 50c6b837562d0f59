"""The PROFIT chapter's trainings: pictures, named streams, checkpoints, and the compared quantisers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.experiments import profit_trainings
from lib.experiments.profit import Recipe, train_stage
from lib.experiments.profit_trainings import (
    NORM_BATCHES,
    QUANTISERS,
    SOURCES,
    augmentation,
    load_images,
    quantiser_scores,
    starting_weights,
)
from lib.models.vision.mobilenet import MobileNetV3Large
from lib.quantization.convert import quantized_layers
from lib.quantization.dorefa import DoReFaWeight
from lib.quantization.duq import DuQ
from lib.quantization.quantizer import Quantizer


def test_pictures_are_padded_and_have_three_equal_channels():
    grey, sets = SOURCES["fashion-mnist-sample"].load("data"), load_images("fashion-mnist-sample", "data")
    assert {split: tuple(s.images.shape) for split, s in sets.items()} == {
        "train": (10_000, 3, 32, 32),
        "test": (2_000, 3, 32, 32),
    }
    test = sets["test"]
    assert torch.equal(test.images[:, 0], test.images[:, 2])
    assert torch.equal(test.images[:, 0, 2:30, 2:30], grey["test"].images[:, 0])
    assert not test.images[:, :, :2].any() and not test.images[:, :, :, 30:].any()
    assert augmentation("imagenet") == {} != augmentation("fashion-mnist")


def test_the_trained_start_is_what_fits_the_network(monkeypatch):
    fitting = {"classes": 1000, "width": 1.0, "repeats": 4}
    found = {"features.0.0.weight": 1, "classifier.1.weight": 2, "classifier.1.bias": 3}
    monkeypatch.setattr(profit_trainings.MOBILENET_V2.__class__, "load", lambda self, data_dir: found)
    assert starting_weights("imagenet", "data", **fitting) == found
    assert starting_weights("imagenet", "data", **fitting | {"classes": 10}) == {"features.0.0.weight": 1}
    for other in ({"width": 0.25}, {"repeats": 3}):
        assert starting_weights("imagenet", "data", **fitting | other) == {}
    assert starting_weights("fashion-mnist", "data", **fitting | {"classes": 10}) == {}


def test_more_pictures_in_a_batch_than_there_are_are_refused_at_once(profit_trainings):
    with pytest.raises(ValueError, match=r"^batch_size must be in 1..24, got 25$"):
        profit_trainings(batch_size=25)


def test_streams_of_batches_are_functions_of_seed_and_name(profit_trainings):
    made = profit_trainings()
    first = made.batches(0, "stabilising", 3)(0)["images"]
    assert torch.equal(first, profit_trainings().batches(0, "stabilising", 3)(0)["images"])
    others = [(1, "stabilising", 3), (0, "sampling", 3), (0, "stabilising", 2), (0, "stabilising")]
    for other in others:
        assert not torch.equal(first, made.batches(*other)(0)["images"]), other
    assert not torch.equal(first, made.batches(0, "stabilising", 3)(1)["images"])


def test_a_stage_has_its_own_batches_dropout_and_checkpoint(tmp_path, profit_trainings):
    made, seen = profit_trainings(tmp_path), []

    def stage(network, batch_at, steps, recipe, *rest, **options):
        seen.append((batch_at(0)["images"], torch.rand(1), steps, recipe, rest, options))
        return "done"

    run = {"seed": 3, "stream": ("fine-tuning", 2)}
    assert made.run(stage, nn.Identity(), 5, "rounds", name="PROFIT, 2 bits", **run) == "done"
    made.run(stage, nn.Identity(), 5, name="no freezing, 2 bits", recipe=Recipe(), **run)
    made.run(stage, nn.Identity(), 5, name="another seed", seed=4, stream=("fine-tuning", 2), teacher=None)
    (images, dropout, steps, recipe, rest, options), second, third = seen
    assert (steps, recipe, rest) == (5, made.recipe, ("rounds",))
    assert options["checkpoint"] == tmp_path / "PROFIT, 2 bits.pt" and options["name"] == "PROFIT, 2 bits"
    assert options["fabric"] is made.fabric
    # arms differ in their name only
    assert torch.equal(second[0], images) and second[1] == dropout and second[3] == Recipe()
    assert not torch.equal(third[0], images) and third[1] != dropout and "teacher" in third[5]


def test_networks_in_full_precision_are_functions_of_their_seed(
    profit_trainings, small_mobilenet, weights_of
):
    made = profit_trainings()
    again = [small_mobilenet(made, 0), small_mobilenet(made, 0), small_mobilenet(made, 1)]
    assert torch.equal(weights_of(again[0]), weights_of(again[1]))
    assert not torch.equal(weights_of(again[0]), weights_of(again[2]))
    first = [weights_of(small_mobilenet(made, seed, steps=0)) for seed in (0, 1)]
    assert not torch.equal(*first)
    assert again[0].classifier[1].out_features == 3 and len(again[0].features) == 8 < 19
    norms = {module.momentum for module in again[0].modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms == {0.1}
    norms = small_mobilenet(made, steps=0, norm_momentum=0.3).modules()
    assert {module.momentum for module in norms if isinstance(module, nn.BatchNorm2d)} == {0.3}


def test_a_training_in_full_precision_starts_from_given_weights(profit_trainings, small_mobilenet):
    start = {
        key: torch.full_like(value, 2)
        for key, value in small_mobilenet(profit_trainings(), steps=0).state_dict().items()
    }
    network = small_mobilenet(profit_trainings(), steps=0, start=start)
    assert all(bool((value == 2).all()) for value in network.state_dict().values())
    body = {name: value for name, value in start.items() if not name.startswith("classifier.")}
    own = small_mobilenet(profit_trainings(), steps=0, start=body).state_dict()
    fresh = small_mobilenet(profit_trainings(), steps=0).state_dict()
    for name, value in own.items():
        assert torch.equal(value, body.get(name, fresh[name])), name


def test_a_finished_training_is_not_trained_again(
    tmp_path, monkeypatch, profit_trainings, small_mobilenet, weights_of
):
    first = small_mobilenet(profit_trainings(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [
        "MobileNetV2 width 0.1, last_channels 16, seed 0.pt"
    ]

    def no_batch(self, step):
        raise AssertionError("a step was taken")

    again = profit_trainings(tmp_path)
    monkeypatch.setattr(type(again.images["train"].batches(8, seed=0)), "batch", no_batch)
    assert torch.equal(weights_of(small_mobilenet(again)), weights_of(first))
    with pytest.raises(AssertionError, match="a step was taken"):
        small_mobilenet(profit_trainings())


@pytest.mark.parametrize("arm", QUANTISERS)
def test_every_quantiser_takes_every_kind_of_input(arm, profit_trainings, weights_of):
    made = profit_trainings()
    network = made.full_precision(MobileNetV3Large, 0, 1, repeats=1, width=0.1)
    before = weights_of(network)
    copy = made.quantised(network, arm, 0, weights=3, activations=5)
    layers = [layer for _, layer in quantized_layers(copy)]
    assert {layer.weight_quantizer.bits for layer in layers} == {3}
    assert {layer.input_quantizer.bits for layer in layers[1:]} == {5} and layers[0].input_quantizer is None
    assert all(isinstance(layer.weight_quantizer, Quantizer) for layer in layers)
    made.run(train_stage, copy, 1, seed=0, stream=("quantisers", 3), name=arm)
    assert all(parameter.isfinite().all() for parameter in copy.parameters())
    assert torch.equal(weights_of(network), before)


def test_only_duq_has_a_grid_for_h_swish():
    for arm, (_, of_input) in QUANTISERS.items():
        lowest = {kind: of_input(4, kind).initialise(torch.linspace(-1, 3, 99)).levels().min().item()
                  for kind in ("unsigned", "signed", "hswish")}  # fmt: skip
        assert lowest["unsigned"] == 0 > lowest["signed"], arm
        assert (lowest["hswish"] == -0.375) == arm.startswith("DuQ"), arm


@pytest.mark.parametrize("kind", ["unsigned", "hswish"])
@pytest.mark.parametrize("arm", ["PACT", "QIL"])
def test_ranges_of_pact_and_qil_start_where_duq_has_them(arm, kind):
    """From the largest value they would need thousands of steps to where the others begin."""
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    x[0] = 9.0
    x = x.relu() if kind == "unsigned" else x.clamp_min(-0.375)
    duq = DuQ(3, grid="unsigned" if kind == "unsigned" else "symmetric", range_from="mse").initialise(x)
    first = QUANTISERS[arm][1](3, kind).initialise(x)
    torch.testing.assert_close(first.levels(), duq.levels())
    assert first.levels().max() < 4


def test_levels_of_dorefa_keep_the_scale_of_the_weights():
    weight = 0.2 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    quantiser = QUANTISERS["PACT"][0](3).initialise(weight)
    torch.testing.assert_close(quantiser.levels(), weight.abs().max() * DoReFaWeight(3).levels())
    torch.testing.assert_close(quantiser(weight), weight.abs().max() * DoReFaWeight(3)(weight))
    torch.testing.assert_close(quantiser.decode(quantiser.encode(weight)), quantiser(weight))
    assert QUANTISERS["PACT"][0](3).initialise(torch.zeros(4))(torch.zeros(4)).isfinite().all()


def test_the_step_of_lsq_learns_at_the_rate_of_weights(monkeypatch, profit_trainings, small_mobilenet):
    made, factors = profit_trainings(), {}

    def run(self, stage, network, steps, *, name, recipe, **options):
        factors.setdefault(name.partition(",")[0], set()).add(recipe.quantizer_factor)
        assert replace(recipe, quantizer_factor=0.01) == self.recipe

    networks = {0: small_mobilenet(made, 0, 1)}
    monkeypatch.setattr(type(made), "run", run)
    quantiser_scores(made, networks, bits=3, stabilise_steps=1, steps=1)
    assert factors == {"DuQ": {0.01}, "LSQ": {1.0}, "PACT": {0.01}, "QIL": {0.01}}


def test_scores_of_quantisers_have_a_row_per_arm_and_seed(tmp_path, profit_trainings, small_mobilenet):
    made = profit_trainings(tmp_path)
    networks = {seed: small_mobilenet(made, seed, 1) for seed in (0, 4)}
    scores = quantiser_scores(made, networks, bits=3, stabilise_steps=1, steps=2)
    assert list(scores) == ["arm", "seed", "top-1", "hits"]
    assert list(scores.groupby("arm", sort=False)["seed"].apply(list).items()) == [
        (arm, [0, 4]) for arm in (*QUANTISERS, "full precision")
    ]
    full = scores[scores["arm"] == "full precision"]["top-1"].tolist()
    assert full == [made.scores(networks[0])["top-1"], made.scores(networks[4])["top-1"]]
    names = {path.stem for path in tmp_path.iterdir()}
    assert {f"LSQ, {stage}, 3 bits, seed 4" for stage in ("stabilise", "train_stage")} <= names
    assert len(names) == 2 + 2 * 2 * len(QUANTISERS)


def test_norms_of_today_are_those_of_training_pictures(profit_trainings, small_mobilenet):
    made = profit_trainings()
    network = small_mobilenet(made).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    settled = made.with_norms_of_today(network, 3)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    pictures = torch.cat([made.batches(3, "norms")(step)["images"] for step in range(NORM_BATCHES)])
    with torch.no_grad():
        stem = network.features[0][0](pictures)
    torch.testing.assert_close(settled.features[0][1].running_mean, stem.mean((0, 2, 3)))
    assert settled.features[0][1].num_batches_tracked == NORM_BATCHES


def test_top_1_is_the_share_of_right_first_guesses(profit_trainings):
    class Says(nn.Module):
        def forward(self, images):
            return torch.eye(3)[torch.ones(len(images), dtype=torch.long)]

    made = profit_trainings()
    assert made.scores(Says())["top-1"] == pytest.approx(100 / 3) and made.classes == 3
    fewer = {"train": made.images["train"], "test": made.images["test"].take(4)}
    assert profit_trainings(images=fewer).scores(Says())["top-1"] == 25
