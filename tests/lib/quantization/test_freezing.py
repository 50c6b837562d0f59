"""Freezing: which layers, in which round, and which bytes move."""

import pytest
import torch
from torch import nn

from lib.models.vision.mobilenet import MobileNetV2, MobileNetV3Large
from lib.quantization.convert import quantize, quantized_layers
from lib.quantization.duq import DuQ, DuQConv2d
from lib.quantization.freezing import freeze, freezing_rounds, parameter_groups
from lib.quantization.instability import Instability


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    return quantize(
        model,
        random(16, 3, 8, 8),
        weights=lambda layer: DuQ(3, grid="weight"),
        activations=lambda kind: DuQ(3),
    )


def train(model, *, steps=3, momentum=0.9):
    groups = parameter_groups(model, learning_rate=0.1, weight_decay=0.1, quantizer_factor=0.5)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=True)
    for seed in range(steps):
        optimizer.zero_grad()
        model.train()(random(16, 3, 8, 8, seed=seed)).square().mean().backward()
        optimizer.step()


def moved(model, names=(), **options):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    freeze(model, names)
    train(model, **options)
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def test_thirds_by_truncation_most_unstable_first():
    values = {f"layer {i}": float(i) for i in range(7)}
    first, second, third = freezing_rounds(values)
    assert first == ()
    assert second == ("layer 6", "layer 5")  # 7 / 3, truncated
    assert third == ("layer 6", "layer 5", "layer 4", "layer 3")
    assert freezing_rounds(values, 1) == [()]
    with pytest.raises(ValueError, match="at least 1 round"):
        freezing_rounds(values, 0)
    with pytest.raises(ValueError, match="no instability was measured for b"):
        freezing_rounds({"a": 1.0, "b": float("nan")})


@pytest.mark.parametrize(("network", "cut"), [(MobileNetV2, (17, 34)), (MobileNetV3Large, (15, 30))])
def test_the_papers_numbers_of_frozen_layers(network, cut):
    """In the authors' v3 squeeze-and-excite layers are linear, and not measured."""
    model = network(width=0.25, num_classes=10)
    convolutions = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not name.endswith(("fc1", "fc2"))
    ]  # fmt: skip
    rounds = freezing_rounds(dict.fromkeys(convolutions, 1.0))
    assert tuple(len(names) for names in rounds) == (0, *cut)


def test_frozen_weights_are_bit_identical_and_all_else_moves():
    model = network()
    everything = set(model.state_dict()) - {key for key in model.state_dict() if "input_quantizer" in key}
    train(model)  # an optimiser with momentum was there before
    changed = moved(model, ["3"])
    assert {"3.weight", "3.bias"}.isdisjoint(changed)
    # An output range before a norm has (almost) no gradient: the norm undoes it.
    before_norm = {"0.weight_quantizer.c", "3.weight_quantizer.c"}
    assert everything - changed - before_norm == {"3.weight", "3.bias"}
    assert {"3.weight_quantizer.a", "4.weight", "4.running_mean"} <= changed
    # Thawed, it moves again.
    assert "3.weight" in moved(model)


def test_a_freeze_that_lets_weights_move_would_be_seen():
    model = network()
    groups = parameter_groups(model, learning_rate=0.1)  # made before freezing, and without it
    freeze(model, ["3"])
    before = model[3].weight.clone()
    model[3].weight.grad = torch.ones_like(before)
    torch.optim.SGD(groups, lr=0.1).step()
    assert not torch.equal(model[3].weight, before)


def test_all_layers_frozen_leaves_norms_and_ranges():
    model = network()
    changed = moved(model, [name for name, _ in quantized_layers(model)])
    assert not {key for key in changed if key.endswith((".weight", ".bias")) and key[0] in "037"}
    assert {"1.weight", "1.bias", "0.weight_quantizer.a"} <= changed


def test_groups():
    model = network()
    groups = parameter_groups(model, learning_rate=0.2, weight_decay=1e-3)
    sizes = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in groups}
    # 3 weight and 2 input quantisers with two ranges; 2 norms and 3 biases; 3 weights
    assert sizes == {(0.002, 0.0): 10, (0.2, 0.0): 7, (0.2, 1e-3): 3}
    freeze(model, ["0"])
    groups = parameter_groups(model, learning_rate=0.2, weight_decay=1e-3)
    assert {(g["lr"], g["weight_decay"]): len(g["params"]) for g in groups} == {
        (0.002, 0.0): 10, (0.2, 0.0): 6, (0.2, 1e-3): 2,
    }  # fmt: skip
    authors = DuQConv2d(1, 1, 1, bits=3)
    sizes = {g["lr"]: len(g["params"]) for g in parameter_groups(authors, learning_rate=1.0)}
    assert sizes == {0.01: 2, 1.0: 1}


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'1' is no quantised layer"):
        freeze(network(), ["1"])


def test_the_pipeline_from_sampling_to_freezing():
    model = network()
    with Instability(model, skip=1) as monitor:
        train(model, steps=6)
    rounds = freezing_rounds(monitor.values(), rounds=2)
    worst = max(monitor.values(), key=monitor.values().get)
    assert rounds == [(), (worst,)]
    assert f"{worst}.weight" not in moved(model, rounds[1])
