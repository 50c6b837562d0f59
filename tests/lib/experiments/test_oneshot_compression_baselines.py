"""Networks of equal cost, and the variance that initial weights pass on."""

import pytest
import torch
from torch import nn

from lib.compression.one_shot import compress
from lib.cost.operations import count_operations, totals
from lib.experiments.oneshot_compression_baselines import (
    equal_cost_baselines,
    initialise_gaussian,
    largest_within,
)
from lib.models.vision.vgg import VGG


def test_largest_within_a_budget():
    def cost(model):
        return sum(p.numel() for p in model.parameters())

    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten(), nn.Linear(24 * 16, 10))

    def build(share):
        return compress(nn.Sequential(*layers), share, weights="fresh").model

    budget = cost(build(0.5)) + 3
    share = largest_within(build, cost, budget)
    assert cost(build(share)) <= budget < cost(build(share + 0.07))
    assert share >= 0.5
    assert largest_within(build, cost, 10**9) == 1.0
    with pytest.raises(ValueError, match="already costs"):
        largest_within(build, cost, 10)


def test_baselines_of_equal_cost():
    def build(width=1.0):
        return VGG(
            stages=((16,), (32, 32)), hidden=(40,), num_classes=10, channels=1, input_size=16, width=width
        )

    def cost(model):
        return int(totals(count_operations(model, (1, 1, 16, 16)))["macs"])

    torch.manual_seed(0)
    original = build()
    how = dict(maps={"classifier.0": original.map})
    compressed = compress(original, 0.4, **how)
    found = equal_cost_baselines(original, compressed, build, cost, **how)
    budget = cost(compressed.model)
    assert list(found) == ["uniform ranks", "narrow", "structure"]
    assert all(0.9 * budget < cost(model) <= budget for model in found.values())
    # The same rule again: the same network, from the trained kernels.
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(found["uniform ranks"].eval()(x), compressed.model.eval()(x))
    shapes = [[p.shape for p in m.parameters()] for m in (found["structure"], compressed.model)]
    assert shapes[0] == shapes[1]
    core = "features.3.core.weight"
    assert not torch.equal(found["structure"].state_dict()[core], compressed.model.state_dict()[core])
    nothing = compress(
        original, lambda unfolding: 0, **how
    )  # an original that has not learned: one rank each
    least = equal_cost_baselines(original, nothing, build, cost, **how)
    assert all(cost(model) <= cost(nothing.model) for model in least.values())
    assert cost(least["uniform ranks"]) == cost(nothing.model)


@pytest.mark.parametrize(("inputs", "outputs", "ranks"), [(64, 64, (32, 32)), (32, 128, (8, 48))])
def test_gaussian_initialisation_keeps_the_variance_through_a_chain(inputs, outputs, ranks):
    """Unit variance in, twice as much out, of a whole layer and of its factors, wide or narrow.

    The two halves of the errors of ``reduce`` and ``expand`` would cancel if fan_out were taken for fan_in;
    hence each part's variance too.
    """
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.Conv2d(inputs, outputs, 3))
    model = compress(plain, {"1": ranks}, weights="fresh").model
    with torch.no_grad():
        for layer in model.modules():
            if getattr(layer, "bias", None) is not None:
                layer.bias.fill_(1.0)
    assert initialise_gaussian(model) is model
    factors, x = model[1], torch.randn(8, inputs, 16, 16)
    for layer in (model[0], factors):
        assert layer(x).var().item() == pytest.approx(2.0, rel=0.3)
    r3, r4 = ranks
    closed = {
        model[0]: 2 / (9 * inputs),
        factors.reduce: 1 / inputs,
        factors.core: 1 / (9 * r3),
        factors.expand: 2 / r4,
    }
    for layer, variance in closed.items():
        assert layer.weight.var().item() == pytest.approx(variance, rel=0.15)
    assert not factors.expand.bias.any() and not model[0].bias.any()
    nn.init.kaiming_normal_(factors.core.weight)  # a rectifier's factor where there is none: twice as much
    assert factors(x).var().item() > 3


def test_gaussian_initialisation_of_matrices_and_with_one_deviation():
    torch.manual_seed(0)
    model = initialise_gaussian(nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 200)))
    assert model[0].weight.var().item() == pytest.approx(2 / 100, rel=0.1)
    assert model[2].weight.var().item() == pytest.approx(2 / 400, rel=0.1)
    assert initialise_gaussian(model, 0.01)[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        initialise_gaussian(model, 0.0)
