"""AIWQ: the divergence against torch.distributions, and the measurement against one made by hand."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from lib.models.vision.mobilenet import MobileNetV2
from lib.quantization.convert import quantize, set_bits
from lib.quantization.duq import DuQ, DuQConv2d
from lib.quantization.instability import Instability, convolution_kind, divergence, moments, thirds_ratio


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_divergence_is_that_of_torch():
    mean, std = random(50).double(), random(50, seed=1).double().exp()
    old_mean, old_std = random(50, seed=2).double(), random(50, seed=3).double().exp()
    expected = kl_divergence(Normal(mean, std), Normal(old_mean, old_std)).mean()
    torch.testing.assert_close(divergence((mean, std), (old_mean, old_std)), expected)
    with pytest.raises(AssertionError):  # the other way round is another number
        torch.testing.assert_close(divergence((old_mean, old_std), (mean, std)), expected)


def test_known_values():
    zero, one = torch.zeros(1), torch.ones(1)
    assert divergence((zero, 2 * one), (zero, one)).item() == pytest.approx(0.806853, abs=1e-6)
    assert divergence((one, one), (one, one)).item() == 0
    # Weights times 1 + e: KL = e² + μ² e² / (2 σ²), to second order.
    e, mean, std = 1e-4, torch.tensor([3.0]).double(), torch.tensor([2.0]).double()
    grown = divergence((mean * (1 + e), std * (1 + e)), (mean, std)).item()
    assert grown == pytest.approx(e**2 + 9 * e**2 / 8, rel=1e-3)


def test_no_float_noise_below_zero():
    """A relative change of 1e-6 of every deviation is 1e-12, to a few percent."""
    ratio = 1 + 1e-6 * random(1000)
    zeros, ones = torch.zeros(1000), torch.ones(1000)
    precise = divergence((zeros, ratio), (zeros, ones)).item()
    assert precise == pytest.approx(1e-12, rel=0.2, abs=0)
    old = random(1000).double().exp()
    new = old * (1 + 1e-8)
    written_out = (torch.log(old / new) + new.square() / (2 * old.square()) - 0.5).mean().item()
    assert divergence((zeros, new), (zeros, old)).item() == pytest.approx(1e-16, rel=1e-6, abs=0)
    assert written_out != pytest.approx(1e-16, rel=0.2, abs=0)  # the formula term by term loses every digit


def test_invariant_under_a_common_affine_map():
    new, old = random(4, 6, 5, 5), random(4, 6, 5, 5, seed=1) * 1.3
    value = divergence(moments(new), moments(old))
    mapped = divergence(moments(3 * new + 2), moments(3 * old + 2))
    torch.testing.assert_close(value, mapped, rtol=1e-4, atol=1e-7)


def test_moments_are_unbiased_and_per_channel():
    x = random(4, 6, 5, 5)
    mean, std = moments(x)
    rows = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close((mean, std), (rows.mean(1), rows.std(1)))


def test_constant_channels_are_left_out_and_nothing_left_is_zero():
    std = torch.tensor([1.0, 0.0, 1.0])
    value = divergence((torch.zeros(3), 2 * std), (torch.zeros(3), std))
    assert value.item() == pytest.approx(0.806853, abs=1e-6)
    assert divergence((torch.zeros(1), torch.zeros(1)), (torch.zeros(1), torch.ones(1))).item() == 0


def network(bits=3) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    return quantize(
        model,
        random(16, 3, 8, 8),
        weights=lambda layer: DuQ(bits, grid="weight"),
        activations=lambda kind: DuQ(4, grid="symmetric" if kind == "signed" else kind),
    )


def step(model, seed, size=0.02):
    model(random(16, 3, 8, 8, seed=seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.add_(random(*parameter.shape, seed=seed), alpha=size)


def test_measured_as_by_hand():
    """The new output is the layer's; the old one has the weights quantised one forward earlier, and the same
    input and padding."""
    model = network().train()
    layer = model[2]
    with Instability(model) as monitor:
        step(model, 1)
        old = layer.quantized_weight().detach()  # not yet: the step has moved the weights
        model(random(16, 3, 8, 8, seed=2))
        assert monitor.samples["0"] and monitor.samples["2"]
    fresh = network().train()
    before = fresh[2].quantized_weight().detach()
    step(fresh, 1)
    x = fresh[2].quantized_input(fresh[:2](random(16, 3, 8, 8, seed=2)))
    new = fresh[2].compute(x, fresh[2].quantized_weight())
    expected = divergence(moments(new), moments(fresh[2].compute(x, before))).item()
    assert expected > 0
    assert monitor.values()["2"] == pytest.approx(expected, rel=1e-6)
    # The authors' old output is padded with zero: a bias even where no weight has changed.
    zero_padded = nn.functional.conv2d(x, old, layer.bias, padding=1, groups=8)
    new = fresh[2].compute(x, old)
    assert divergence(moments(new), moments(zero_padded)) > 1e-4
    assert divergence(moments(new), moments(fresh[2].compute(x, old))) == 0


def test_fewer_bits_are_less_stable():
    values = {}
    for bits in (None, 5, 3, 2):
        model = network(8).train()
        set_bits(model, weights=bits)
        with Instability(model, skip=1) as monitor:
            for seed in range(60):
                step(model, seed, size=5e-4)
        values[bits] = monitor.values()["0"]  # 216 weights: some cross a threshold even at 2 bits
    assert values[None] < values[5] < values[3] < values[2]


def test_nothing_is_measured_in_evaluation_or_after_the_end():
    model = network()
    with Instability(model.eval()) as monitor:
        model(random(2, 3, 8, 8))
        model(random(2, 3, 8, 8))
    assert all(math.isnan(value) for value in monitor.values().values())
    model.train()
    step(model, 0)
    step(model, 1)
    assert not monitor.samples["0"]


def test_sampling_and_averages():
    model = network().train()
    with Instability(model, every=3, skip=2) as monitor:
        for seed in range(9):
            step(model, seed)
    assert len(monitor.samples["2"]) == 2  # forwards 3 and 6 of 0…8
    monitor.samples["2"] = [1.0, 0.5]
    assert monitor.values()["2"] == 0.75
    monitor.rate = 0.001
    assert monitor.values()["2"] == pytest.approx(0.001 * 0.5 + 0.999 * 0.001 * 1.0)
    with pytest.raises(ValueError, match="every is at least 1"):
        Instability(model, every=0)
    with pytest.raises(ValueError, match="no quantised convolution"):
        Instability(nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_large_samples_are_left_out_unless_there_are_no_others():
    model = network().train()
    with Instability(model, discard_above=1e-12) as monitor:
        for seed in range(3):
            step(model, seed, size=0.1)
        model(torch.full((16, 3, 8, 8), float("nan")))
    assert [len(samples) for samples in monitor.samples.values()] == [2, 2]  # NaN is none
    assert monitor.values() == {"0": 1e-12, "2": 1e-12}
    monitor.samples["0"] += [5e-13, 1e-13]
    assert monitor.values() == {"0": 3e-13, "2": 1e-12}


def test_the_authors_layout_is_measured_too():
    torch.manual_seed(0)
    model = nn.Sequential(DuQConv2d(3, 8, 3, bits=3), DuQ(4, activation="relu"))
    model[0].initialise()
    with Instability(model.train()) as monitor:
        step(model, 0)
        step(model, 1)
    assert monitor.values()["0"] > 0


def test_thirds_ratio():
    values = {"a": 8.0, "b": 4.0, "c": 2.0, "d": 2.0, "e": 1.0, "f": 2.0, "g": 5.0}
    assert thirds_ratio(values, values) == 6.5 / 1.5
    assert thirds_ratio(values, {name: -value for name, value in values.items()}) == 1.5 / 6.5
    noise = {name: random(1, seed=place).item() for place, name in enumerate(map(str, range(3000)))}
    flat = {name: abs(random(1, seed=place + 5000).item()) for place, name in enumerate(noise)}
    assert thirds_ratio(flat, noise) == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="at least 3 layers, got 2"):
        thirds_ratio({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0})


def test_kinds_of_convolutions_in_the_real_network():
    kinds = [convolution_kind(m) for m in MobileNetV2().modules() if isinstance(m, nn.Conv2d)]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "dense": 1, "depthwise": 17, "project": 17, "expand": 17,
    }  # fmt: skip


def test_a_killed_measurement_goes_on(tmp_path):
    """With the samples, the calls that were counted, and the weights of the last forward."""

    def measured(monitor, model, seeds):
        with monitor:
            for seed in seeds:
                step(model, seed)
        return monitor.samples

    options = {"every": 2, "skip": 1}
    model = network().train()
    whole = measured(Instability(model, **options), model, range(9))
    for killed_at in (1, 4, 5):
        model = network().train()
        first = Instability(model, **options)
        measured(first, model, range(killed_at))
        torch.save(first.state_dict(), tmp_path / "state.pt")
        measured(first, model, [])  # whatever becomes of the first, the file stays
        second = Instability(model, **options)
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert measured(second, model, range(killed_at, 9)) == whole
    # Without its state, the first forward after the kill has none before it to compare with.
    fresh, model = Instability(network(), **options), network().train()
    assert measured(Instability(model, **options), model, range(4, 9)) != whole
    assert math.isnan(fresh.values()["0"])


def test_a_state_is_a_copy():
    model = network().train()
    with Instability(model) as monitor:
        step(model, 0)
        step(model, 1)
        state = monitor.state_dict()
        step(model, 2)
    assert [len(samples) for samples in state["samples"].values()] == [1, 1]
    again = Instability(model)
    again.load_state_dict(state)
    again.samples["0"].append(1.0)
    assert [len(samples) for samples in state["samples"].values()] == [1, 1]


def test_another_measurement_is_refused():
    state = Instability(network(), every=2).state_dict()
    with pytest.raises(ValueError, match=r"measured with \{'every': 2, .* here with \{'every': 1, "):
        Instability(network()).load_state_dict(state)
    other = nn.Sequential(network()[0])
    with pytest.raises(ValueError, match="measured other layers: 2 in one of both only"):
        Instability(other, every=2).load_state_dict(state)


def test_a_third_without_any_instability_has_no_ratio():
    values = {"a": 2.0, "b": 1.0, "c": 0.0}
    with pytest.raises(ValueError, match="^no weight of the most stable third of the layers moved"):
        thirds_ratio(values, values)
