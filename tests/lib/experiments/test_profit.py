"""The stages of PROFIT: what moves, at which rate, on which batches; and networks made shallower."""

import pytest
import torch
from torch import nn

from lib.experiments.profit import Recipe, finetune, sample, stabilise, train_stage
from lib.models.vision.mobilenet import MobileNetV2
from lib.models.vision.shallower import shallower
from lib.quantization.convert import quantize, quantized_layers
from lib.quantization.duq import DuQ
from lib.quantization.freezing import freezing_rounds
from lib.training.loop import seeded

RECIPE = Recipe(learning_rate=0.1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    seeded(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False),
        nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    return quantize(
        model,
        random(8, 3, 8, 8),
        weights=lambda layer: DuQ(3, grid="weight"),
        activations=lambda kind: DuQ(4),
    )


class Batches:
    """Counts which steps were asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, step):
        self.asked.append(step)
        return {"images": random(8, 3, 8, 8, seed=step), "labels": torch.arange(8) % 3}


def moved(before, model):
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_stabilising_moves_norms_and_ranges_only():
    model, batches = network(), Batches()
    before = state(model)
    stabilise(model, batches, 3, RECIPE)
    changed = moved(before, model)
    assert {"1.weight", "1.running_mean", "3.input_quantizer.a"} <= changed
    assert {"0.weight", "3.weight", "7.weight", "7.bias"}.isdisjoint(changed)
    assert batches.asked == [0, 1, 2]
    stabilise(model, batches, 0, RECIPE)
    assert len(batches.asked) == 3


def test_sampling_trains_at_a_constant_rate_and_ranks():
    model, batches, rates = network(), Batches(), []
    made = torch.optim.SGD.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[-1]["lr"])
        return made(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", watched)
        values = sample(model, batches, 5, RECIPE)
        train_stage(model, batches, 10, RECIPE)
    assert set(values) == {"0", "3"} and all(value > 0 for value in values.values())
    assert rates[:5] == [0.1] * 5
    # warm-up over a fifth, then half a cosine to a thousandth
    assert rates[5:7] == [0.05, 0.1]
    assert rates[-1] == pytest.approx(1e-4) and rates[7:] == sorted(rates[7:], reverse=True)


def test_rounds_freeze_more_and_more_on_fresh_batches():
    model, batches = network(), Batches()
    rounds = freezing_rounds(sample(model, Batches(), 5, RECIPE), rounds=2)
    frozen = rounds[1][0]
    seen = []
    finetune(model, batches, 2, RECIPE, rounds[:1])
    seen.append(model.get_submodule(frozen).weight.clone())
    finetune(model, batches, 2, RECIPE, [rounds[1], rounds[1]])
    assert torch.equal(model.get_submodule(frozen).weight, seen[0])
    assert batches.asked == [0, 1, 0, 1, 2, 3]


def test_equal_budget_with_and_without_freezing():
    asked = []
    for rounds in (freezing_rounds({"0": 1.0, "3": 2.0}, rounds=2), [(), ()]):
        batches = Batches()
        finetune(network(), batches, 3, RECIPE, rounds)
        asked.append(batches.asked)
    assert asked[0] == asked[1] == [0, 1, 2, 3, 4, 5]


def test_the_average_follows_slowly():
    model = network()
    before = state(model)
    average = finetune(model, Batches(), 4, RECIPE, [()], ema_rate=1e-6)
    assert average is not model
    far = (model[0].weight - before["0.weight"]).norm()
    near = (average[0].weight - model[0].weight).norm()
    # The average starts at the weights of its first update, and hardly moves.
    assert near > 0 and (average[0].weight - before["0.weight"]).norm() < far
    assert finetune(model, Batches(), 1, RECIPE, [()]) is model


def test_a_killed_training_goes_on(tmp_path):
    whole = network()
    values = sample(whole, Batches(), 4, RECIPE, checkpoint=tmp_path / "sample.pt")
    finetune(whole, Batches(), 2, RECIPE, [(), ("0",)], checkpoint=tmp_path / "tune.pt")
    assert {path.name for path in tmp_path.iterdir()} == {
        "sample.json",
        "sample.pt",
        "tune-1.pt",
        "tune-2.pt",
    }
    (tmp_path / "tune-2.pt").unlink()
    again, batches = network(), Batches()
    assert sample(again, batches, 4, RECIPE, checkpoint=tmp_path / "sample.pt") == values
    finetune(again, batches, 2, RECIPE, [(), ("0",)], checkpoint=tmp_path / "tune.pt")
    assert batches.asked == [2, 3]  # the second round alone
    assert not moved(state(whole), again)


def test_a_teacher_is_matched():
    model, teacher = network(), network()
    plain, taught = network(), network()
    train_stage(plain, Batches(), 2, RECIPE)
    train_stage(taught, Batches(), 2, RECIPE, teacher=teacher)
    assert moved(state(plain), taught)
    assert not moved(state(teacher), model)


def test_defaults_are_the_authors():
    recipe = Recipe()
    assert (recipe.learning_rate, recipe.weight_decay, recipe.quantizer_factor) == (0.04, 2e-5, 0.01)
    # 15 epochs, 3 of warm-up: the multipliers by epoch, but for the first of warm-up (0.1 there)
    assert recipe.warmup * 15 == 3 and recipe.floor == 1e-3


@pytest.mark.parametrize(("repeats", "blocks"), [(1, 7), (2, 12), (3, 16), (4, 17)])
def test_shallower_mobilenets(repeats, blocks):
    model = shallower(MobileNetV2(num_classes=10, reduction=8), repeats)
    assert len(model.features) == blocks + 2  # the stem and the last convolution
    assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    layers = 3 * blocks - 1 + 2 + 1  # the first block has two convolutions
    sample_ = torch.rand(2, 3, 32, 32)
    converted = quantize(model, sample_, weights=lambda layer: DuQ(3, grid="weight"))
    assert len(list(quantized_layers(converted))) == layers


def test_what_cannot_be_made_shallower_is_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        shallower(MobileNetV2(num_classes=10), 0)
    plain = nn.Module()
    plain.features = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="residual blocks"):
        shallower(plain, 1)
