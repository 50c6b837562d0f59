"""Moments of activations under quantised weights: against closed forms, and norms counted anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from lib.quantization.convert import quantize, quantized_layers
from lib.quantization.duq import DuQ
from lib.quantization.instability import moments
from lib.quantization.moments import (
    RestoredMoments,
    hidden_convolutions,
    output_moments,
    reestimate_norms,
    restore_moments,
    weight_shifts,
)


def images(count=24, seed=0):
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def network(norms: bool) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(6), nn.BatchNorm2d(5)] if norms else [nn.Identity(), nn.Identity()]
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), middle[0], nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, bias=False), middle[1], nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(5 * 25, 4),
    ).eval()  # fmt: skip


def few_bits(full: nn.Module, bits: int = 2) -> nn.Module:
    return quantize(full, images(1), weights=lambda layer: DuQ(bits, grid="weight", range_from="mse"))


def test_the_last_layer_is_no_hidden_convolution():
    assert hidden_convolutions(few_bits(network(True))) == ["0", "3"]
    assert hidden_convolutions(few_bits(network(True)[:4])) == ["0"]


def test_shifts_are_the_divergence_on_the_input_of_full_precision():
    full = network(True).train()
    quantised, groups = few_bits(full), [images(4, seed) for seed in (1, 2, 3)]
    shifts = weight_shifts(full, quantised, groups)
    assert full.training and list(shifts) == ["0", "3"] and {len(found) for found in shifts.values()} == {3}
    full.eval()
    with torch.no_grad():
        inside = full[:3](groups[1]).double()
        exact = nn.functional.conv2d(inside, full[3].weight.double())
        rounded = nn.functional.conv2d(inside, quantised[3].quantized_weight().double())
    by_hand = kl_divergence(Normal(*moments(rounded)), Normal(*moments(exact))).mean()
    assert shifts["3"][1] == pytest.approx(by_hand.item(), rel=1e-4)
    eight = weight_shifts(full, few_bits(full, 8), groups)
    assert 0 < max(eight["3"]) < 1e-2 * min(shifts["3"])


def test_a_layer_gets_the_moments_that_are_asked_for_and_keeps_its_factors():
    layer = nn.Conv2d(3, 6, 3)
    with torch.no_grad():
        layer.weight[2] = 0  # a constant channel
    restored = RestoredMoments(layer, torch.arange(6.0), torch.arange(1.0, 7.0))
    first = restored(images())
    mean, std = moments(first)
    torch.testing.assert_close(mean, torch.arange(6.0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(std[[0, 1, 3, 4, 5]], torch.tensor([1.0, 2.0, 4.0, 5.0, 6.0]))
    torch.testing.assert_close(first[:, 2], torch.full_like(first[:, 2], 2.0))
    other = images(seed=5)
    expected = layer(other) * restored.factor.view(-1, 1, 1) + restored.shift.view(-1, 1, 1)
    torch.testing.assert_close(restored(other), expected)
    torch.testing.assert_close(restored(images()), first)


@pytest.mark.parametrize("norms", [False, True])
def test_full_precision_is_left_as_it_is(norms):
    full, x = network(norms), images()
    names = ["0", "3"]
    same = restore_moments(full, output_moments(full, x, names), x)
    with torch.no_grad():
        torch.testing.assert_close(same(images(seed=1)), full(images(seed=1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norms", [False, True])
def test_every_layer_has_its_moments_back_behind_restored_ones(norms):
    full, x = network(norms), images()
    quantised = few_bits(full)
    before = {key: value.clone() for key, value in quantised.state_dict().items()}
    wanted = output_moments(full, x, hidden_convolutions(quantised))
    restored = restore_moments(quantised, wanted, x)
    found = output_moments(restored, x, wanted)
    for name, (mean, std) in wanted.items():
        torch.testing.assert_close(found[name][0], mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[name][1], std, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in quantised.state_dict().items())
    assert len(list(quantized_layers(quantised))) == 3
    assert not torch.allclose(output_moments(quantised, x, ["3"])["3"][1], wanted["3"][1], rtol=1e-2)


def test_it_is_what_norms_do_whose_statistics_are_counted_anew():
    """With statistics of the same images in full precision, both give the same network."""
    x = images()
    full = reestimate_norms(network(True), [x])
    quantised = few_bits(full)
    restored = restore_moments(quantised, output_moments(full, x, ["0", "3"]), x)
    settled = reestimate_norms(quantised, [x])
    with torch.no_grad():
        other = images(seed=7)
        torch.testing.assert_close(restored(other), settled(other), atol=1e-3, rtol=1e-3)
        assert not torch.allclose(quantised(other), settled(other), rtol=1e-2)


def test_norms_get_the_plain_mean_of_the_batches():
    full = network(True).train()
    full[1].momentum = 0.5
    before = copy.deepcopy(full)
    parts = [images(seed=seed) for seed in (1, 2, 3)]
    settled = reestimate_norms(full, iter(parts))
    with torch.no_grad():
        outputs = [full[0](part) for part in parts]
    torch.testing.assert_close(settled[1].running_mean, torch.stack([moments(y)[0] for y in outputs]).mean(0))
    torch.testing.assert_close(
        settled[1].running_var, torch.stack([moments(y)[1].square() for y in outputs]).mean(0)
    )
    assert full.training and full[1].momentum == 0.5 and not settled.training
    assert all(torch.equal(a, b) for a, b in zip(full.buffers(), before.buffers(), strict=True))
    with pytest.raises(ValueError, match=r"^norms are counted anew on at least one batch, got none$"):
        reestimate_norms(full, [])
