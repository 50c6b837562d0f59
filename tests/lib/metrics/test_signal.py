"""Signal to quantisation noise: by hand, by a closed form, and what is refused."""

import math

import pytest
import torch

from lib.metrics.signal import sqnr


def test_by_hand():
    signal = torch.tensor([1.0, -2.0, 3.0])
    approximation = signal + torch.tensor([0.5, 0.0, -0.5])
    assert sqnr(signal, approximation) == pytest.approx(10 * math.log10(14 / 0.5))
    assert sqnr(approximation, signal) != pytest.approx(10 * math.log10(14 / 0.5))  # the first is the signal
    centred = 14 - 4 / 3  # Σ (x − mean)²
    assert sqnr(signal, approximation, centred=True) == pytest.approx(10 * math.log10(centred / 0.5))


def test_a_tenth_is_twenty_decibels_at_any_scale():
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1.0, 1e30):  # squares of these are no float32
        assert sqnr(scale * x, 1.1 * scale * x) == pytest.approx(20, abs=1e-4)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_rounding_uniform_values_is_the_closed_form(bits):
    """Values over 0..1 have the power 1/3 and rounding to steps Δ the noise Δ²/12: 6.02 dB a bit."""
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    steps = 2**bits - 1
    assert sqnr(x, (x * steps).round() / steps) == pytest.approx(10 * math.log10(4 * steps**2), abs=0.05)


def test_the_ends_of_the_scale():
    x = torch.ones(3)
    assert sqnr(x, x) == sqnr(0 * x, 0 * x) == math.inf
    assert sqnr(0 * x, x) == -math.inf
    assert sqnr(x, 0 * x) == 0


@pytest.mark.parametrize(
    ("signal", "approximation", "message"),
    [
        (torch.ones(10), torch.ones(1), r"two tensors of one shape are compared, got \(10,\) and \(1,\)"),
        (torch.ones(0), torch.ones(0), r"got \(0,\) and \(0,\)"),
        (torch.tensor([1.0, math.nan]), torch.ones(2), "must be finite"),
        (torch.ones(2), torch.tensor([1.0, math.inf]), "must be finite"),
    ],
)
def test_bad_input_is_refused_in_one_line(signal, approximation, message):
    with pytest.raises(ValueError, match=message) as caught:
        sqnr(signal, approximation)
    assert "\n" not in str(caught.value)


def test_the_unchecked_ratio_answers_where_it_should_not():
    """The broken twin: shapes are broadcast and NaN goes through."""

    def unchecked(x, approximation):
        return float(10 * torch.log10(x.square().sum() / (x - approximation).square().sum()))

    assert math.isfinite(unchecked(torch.arange(10.0), torch.ones(1)))
    assert math.isnan(unchecked(torch.tensor([1.0, math.nan]), torch.ones(2)))
