"""DuQ: the authors' formulas, its kinship with LSQ, negative padding, and layers in the authors' layout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.quantization.duq import (
    HSWISH_MINIMUM,
    DuQ,
    DuQConv2d,
    DuQLinear,
    convolve,
    raw_range,
    set_ranges,
)
from lib.quantization.lsq import LSQ
from lib.quantization.rounding import fake_quantize


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def authors(x, a, c, *, bits, kind):
    """The formulas of the paper's code, through torch's own autograd, straight through the rounding."""
    alpha, gamma = F.softplus(a), F.softplus(c)
    n = 2 ** (bits - 1) - 1 if kind == "symmetric" else 2**bits - 1
    low = -1.0 if kind == "symmetric" else 0.0
    offset = 0.375 if kind == "hswish" else 0.0
    u = F.hardtanh((x + offset) / alpha, low, 1.0)
    rounded = u + ((u * n).round() / n - u).detach()
    return gamma * rounded - offset


@pytest.mark.parametrize("kind", ["unsigned", "symmetric", "hswish"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_forward_and_gradients_are_the_authors(kind, bits):
    x = random(4000, dtype=torch.float64) * 1.5
    g = random(4000, seed=1, dtype=torch.float64)
    results = []
    for ours in (True, False):
        quantizer = DuQ(bits, grid=kind).double()
        with torch.no_grad():
            quantizer.a.fill_(1.1)
            quantizer.c.fill_(0.7)
        inputs = x.clone().requires_grad_()
        a, c = quantizer.a, quantizer.c
        y = quantizer(inputs) if ours else authors(inputs, a, c, bits=bits, kind=kind)
        y.backward(g)
        results.append((y.detach(), inputs.grad, a.grad, c.grad))
    torch.testing.assert_close(results[0], results[1])
    # A quantiser that forgot to part input and output range would be seen:
    with pytest.raises(AssertionError):
        torch.testing.assert_close(results[0][2], results[1][3])


@pytest.mark.parametrize(("kind", "signed"), [("symmetric", True), ("unsigned", False)])
def test_with_equal_ranges_it_is_lsq(kind, signed):
    x, g = random(3000) * 2, random(3000, seed=1)
    mine, other = DuQ(3, grid=kind), LSQ(3, signed=signed, narrow=True, scale_gradient=False)
    set_ranges(mine.a, mine.c, torch.tensor(1.7))
    n = 3 if signed else 7
    with torch.no_grad():
        other.step.fill_(1.7 / n)
    results = []
    for quantizer in (mine, other):
        inputs = x.clone().requires_grad_()
        y = quantizer(inputs)
        y.backward(g)
        results.append((y.detach(), inputs.grad))
    torch.testing.assert_close(results[0], results[1])
    slope = torch.sigmoid(mine.a.detach())  # of softplus at the raw range
    torch.testing.assert_close(n * (mine.a.grad + mine.c.grad) / slope, other.step.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("bits", "levels"), [(4, 15), (3, 7), (2, 3)])
def test_levels_of_weights(bits, levels):
    quantizer = DuQ(bits, grid="weight")
    w = random(10_000)
    assert len(quantizer.initialise(w)(w).unique()) == levels


def test_a_value_on_a_bound_has_no_gradient():
    x = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    fake_quantize(x, torch.tensor([0.5]), low=0, high=4).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]


def test_raw_range_inverts_softplus():
    value = torch.logspace(-3, 2, 60)
    torch.testing.assert_close(F.softplus(raw_range(value)), value, rtol=1e-6, atol=0)
    assert raw_range(torch.tensor(2.0)).item() == pytest.approx(1.854587, abs=1e-6)


def test_first_ranges():
    w = random(1000)
    weight = DuQ(4, grid="weight").initialise(w)
    torch.testing.assert_close(F.softplus(weight.a), 0.9 * w.abs().max().reshape(1))
    assert torch.equal(weight.a, weight.c)
    x = random(1001)
    for kind, intended in {"unsigned": x, "symmetric": x.abs(), "hswish": F.hardswish(x) + 0.375}.items():
        activation = "hswish" if kind == "hswish" else None
        quantizer = DuQ(4, grid=kind, activation=activation).initialise(x)
        positive = intended[intended > 0].sort().values
        expected = positive[int(0.95 * len(positive))]
        torch.testing.assert_close(F.softplus(quantizer.a), expected.reshape(1))
        theirs = DuQ(4, grid=kind, activation=activation, as_authors=True).initialise(x)
        positive = x[x > 0].sort().values
        torch.testing.assert_close(F.softplus(theirs.a), positive[int(0.95 * len(positive))].reshape(1))
    capped = DuQ(4, activation="relu6").initialise(100 * x.abs())
    torch.testing.assert_close(F.softplus(capped.a), torch.tensor([6.0]))
    nothing = DuQ(4).initialise(-x.abs() - 1)
    torch.testing.assert_close(F.softplus(nothing.a), torch.tensor([1e-3]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["unsigned", "symmetric", "hswish", "weight"])
def test_least_squares_ranges_beat_the_published_and_their_neighbours(kind):
    x = random(5000) ** 3  # heavy tails, as weights have
    x = F.hardswish(x) if kind == "hswish" else x.relu() if kind == "unsigned" else x
    best = DuQ(2, grid=kind, range_from="mse").initialise(x)
    error = (best(x) - x).square().sum()
    assert error < (DuQ(2, grid=kind).initialise(x)(x) - x).square().sum()
    for factor in (0.85, 1.15):
        other = DuQ(2, grid=kind)
        set_ranges(other.a, other.c, F.softplus(best.a.detach()) * factor)
        assert error <= (other(x) - x).square().sum()
    with pytest.raises(ValueError, match="range_from is"):
        DuQ(2, range_from="minmax")


def test_full_precision_is_the_activation():
    x = random(100) * 10
    assert torch.equal(DuQ(None, activation="relu6")(x), x.relu())  # no cap at 6, as in the authors' code
    assert torch.equal(DuQ(None, grid="hswish", activation="hswish")(x), F.hardswish(x))
    assert torch.equal(DuQ(None, grid="symmetric")(x), x)
    with pytest.raises(ValueError, match="grid is one of"):
        DuQ(4, grid="signed")
    with pytest.raises(ValueError, match="activation is None"):
        DuQ(4, activation="gelu")


# --- h-swish ----------------------------------------------------------------------------------------------


def test_minus_three_eighths_is_the_minimum_of_hswish():
    x = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    h = F.hardswish(x)
    assert h.min().item() == pytest.approx(HSWISH_MINIMUM, abs=1e-12)
    assert x[h.argmin()].item() == pytest.approx(-1.5, abs=1e-9)


def test_hswish_grid_begins_at_the_minimum_and_misses_zero():
    quantizer = DuQ(4, grid="hswish")
    set_ranges(quantizer.a, quantizer.c, torch.tensor(3.0))
    assert quantizer.levels()[0] == HSWISH_MINIMUM
    assert quantizer.signed
    assert (0.375 / quantizer.grid().step).item() == pytest.approx(1.875, rel=1e-6)
    assert quantizer.padding_value == HSWISH_MINIMUM


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"), [(3, 1, 1, 6), (5, 2, 2, 1), (3, 1, "same", 2)]
)
def test_negative_padding_is_one_constant_per_channel(kernel, stride, padding, groups):
    """conv with −3/8 around = step · conv of the codes with 0 around − 3/8 Σ w, everywhere."""
    quantizer = DuQ(3, grid="hswish", activation="hswish").double()
    x = random(2, 6, 9, 8, dtype=torch.float64)
    quantizer.initialise(x)
    conv = nn.Conv2d(6, 6, kernel, stride, padding, groups=groups, bias=False).double()
    y = convolve(conv, quantizer(x), conv.weight, HSWISH_MINIMUM)
    codes = quantizer.encode(x).double()
    constant = HSWISH_MINIMUM * conv.weight.sum(dim=(1, 2, 3))[:, None, None]
    from_codes = quantizer.grid().step * conv(codes) + constant
    torch.testing.assert_close(y, from_codes)
    zero_padded = conv(quantizer(x))
    error = (zero_padded - from_codes).abs()
    assert error.max() > 1e-3  # at the border
    if stride == 1:
        assert error[..., 1:-1, 1:-1].max() < 1e-12


def test_padding_value_needs_padding_with_values():
    conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
    with pytest.raises(ValueError, match="padding_mode 'zeros'"):
        convolve(conv, torch.rand(1, 3, 4, 4), conv.weight, -0.375)
    pointwise = nn.Conv2d(3, 3, 1)
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(convolve(pointwise, x, pointwise.weight, -0.375), pointwise(x))


# --- layers in the authors' layout ------------------------------------------------------------------------


def test_layers_have_the_authors_keys_and_compute_with_quantised_weights():
    conv = DuQConv2d(4, 6, 3, padding=1, bias=False, padding_value=HSWISH_MINIMUM)
    linear = DuQLinear(4, 6)
    assert list(conv.state_dict()) == ["weight", "a", "c"]
    assert list(linear.state_dict()) == ["weight", "bias", "a", "c"]
    assert conv.a.shape == linear.c.shape == (1,)
    x = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(conv(x), F.conv2d(F.pad(x, [1] * 4, value=-0.375), conv.weight))
    for layer, inputs in ((conv, x), (linear, x[..., 0, 0])):
        layer.initialise()
        layer.bits = 3
        expected = DuQ(3, grid="weight").initialise(layer.weight)(layer.weight)
        assert torch.equal(layer.quantized_weight(), expected)
        layer(inputs).sum().backward()
        assert layer.a.grad is not None and layer.weight.grad is not None
        with pytest.raises(ValueError, match=r"bits must be in 2\.\.8"):
            layer.bits = 1
