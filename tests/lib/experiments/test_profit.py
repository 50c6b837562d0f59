"""The stages of PROFIT: what moves, at which rate, on which batches, and what a killed one ends with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lib.experiments import profit
from lib.experiments.profit import Recipe, finetune, sample, stabilise, train_stage
from lib.quantization.convert import quantize
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


class Killed(BaseException):
    """What ends a process in the middle of a step."""


class Batches:
    """Counts which steps were asked for; the process is killed when it asks for a certain one."""

    def __init__(self, killed_at=None):
        self.asked, self.killed_at = [], killed_at

    def __call__(self, step):
        self.asked.append(step)
        if step == self.killed_at:
            raise Killed
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


def test_two_steps_measure_every_layer():
    assert all(value >= 0 for value in sample(network(), Batches(), 2, RECIPE).values())


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


def test_the_average_starts_at_the_network_and_follows_slowly():
    model = network()
    before = state(model)
    average = finetune(model, Batches(), 4, RECIPE, [()], ema_rate=1e-6)
    assert average is not model
    moved_by = (model[0].weight - before["0.weight"]).norm()
    assert 0 < (average[0].weight - before["0.weight"]).norm() < 1e-5 * moved_by
    assert finetune(model, Batches(), 1, RECIPE, [()]) is model


def test_the_average_is_the_one_by_hand():
    model, rate, seen = network(), 0.3, []
    mean = model[0].weight.detach().clone()
    step = torch.optim.SGD.step

    def watched(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        seen.append(model[0].weight.detach().clone())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", watched)
        average = finetune(model, Batches(), 2, RECIPE, [(), ("3",)], ema_rate=rate)
    assert len(seen) == 4
    for weight in seen:
        mean += rate * (weight - mean)
    torch.testing.assert_close(average[0].weight, mean)


def test_batches_go_on_behind_rounds_that_came_before():
    at_once, in_parts, batches = network(), network(), Batches()
    rounds = [(), ("0",), ("0", "3")]
    finetune(at_once, Batches(), 2, RECIPE, rounds)
    finetune(in_parts, batches, 2, RECIPE, rounds[:1])
    finetune(in_parts, batches, 2, RECIPE, rounds[1:], behind=1)
    assert batches.asked == [0, 1, 2, 3, 4, 5]
    assert not moved(state(at_once), in_parts)


# --- after a kill ---

ROUNDS = [("0",), ("0", "3")]
EMA_RATES = [0.0, 0.01, 0.3]


def tuned(start, folder, ema_rate, batches=None):
    """What `finetune` returns of a copy of a network, with a checkpoint after every step."""
    options = {"ema_rate": ema_rate, "checkpoint": folder / "tune, seed 0.5.pt", "checkpoint_seconds": 0.0}
    return finetune(copy.deepcopy(start), batches or Batches(), 5, RECIPE, ROUNDS, **options)


@pytest.mark.parametrize("ema_rate", EMA_RATES)
def test_complete_fine_tuning_returns_again_what_it_returned(tmp_path, ema_rate):
    start, batches = network(), Batches()
    first = tuned(start, tmp_path, ema_rate)
    again = tuned(start, tmp_path, ema_rate, batches)
    assert moved(state(start), first) and not moved(state(first), again)
    assert batches.asked == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "tune, seed 0.5, round 1.pt",
        "tune, seed 0.5, round 2.pt",
    }


@pytest.mark.parametrize("killed_at", [3, 5, 8])
@pytest.mark.parametrize("ema_rate", EMA_RATES)
def test_killed_fine_tuning_ends_as_if_it_had_not_been(tmp_path, ema_rate, killed_at):
    start = network()
    whole = tuned(start, tmp_path / "whole", ema_rate)
    with pytest.raises(Killed):
        tuned(start, tmp_path / "killed", ema_rate, Batches(killed_at))
    batches = Batches()
    resumed = tuned(start, tmp_path / "killed", ema_rate, batches)
    assert batches.asked == list(range(killed_at, 10))
    assert not moved(state(whole), resumed)


def test_a_twin_whose_average_is_in_no_checkpoint_ends_elsewhere(tmp_path, monkeypatch):
    start = network()
    whole = tuned(start, tmp_path / "whole", 0.01)
    real = profit.train_stage
    monkeypatch.setattr(profit, "train_stage", lambda *a, also=None, **options: real(*a, **options))
    with pytest.raises(Killed):
        tuned(start, tmp_path / "killed", 0.01, Batches(8))
    assert "7.weight" in moved(state(whole), tuned(start, tmp_path / "killed", 0.01))


def sampled(folder, batches=None):
    """Instability of a network, its state afterwards, with a checkpoint after every step."""
    model = network()
    options = {"checkpoint": folder / "sample.pt", "checkpoint_seconds": 0.0, "name": "sampling"}
    return sample(model, batches or Batches(), 8, RECIPE, **options), state(model)


@pytest.mark.parametrize("killed_at", [1, 2, 5, 7])
def test_killed_sampling_measures_what_it_would_have(tmp_path, killed_at):
    values, trained = sampled(tmp_path / "whole")
    with pytest.raises(Killed):
        sampled(tmp_path / "killed", Batches(killed_at))
    batches = Batches()
    again, resumed = sampled(tmp_path / "killed", batches)
    assert batches.asked == list(range(killed_at, 8))
    assert again == values and all(value > 0 for value in values.values())
    assert freezing_rounds(again) == freezing_rounds(values)
    assert all(torch.equal(trained[key], resumed[key]) for key in trained)
    assert sampled(tmp_path / "killed", batches)[0] == values  # complete: nothing is asked for
    assert len(batches.asked) == 8 - killed_at
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["sample.pt"]


def test_a_twin_that_forgets_what_was_measured_is_found(tmp_path, monkeypatch):
    values, _ = sampled(tmp_path / "whole")
    real = profit.train_stage
    monkeypatch.setattr(profit, "train_stage", lambda *a, also=None, **options: real(*a, **options))
    with pytest.raises(Killed):
        sampled(tmp_path / "killed", Batches(5))
    assert sampled(tmp_path / "killed")[0] != values


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
