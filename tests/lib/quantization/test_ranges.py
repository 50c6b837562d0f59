"""Search of ranges by squared error, against torch's observer and against counting every value."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.ao.quantization import HistogramObserver

from lib.quantization.integer import affine_quantizer
from lib.quantization.ranges import Histogram, l2_range, squared_error


def heavy(seed, count=4000):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=random) ** 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins", [100, 2048])
def test_the_approximate_search_is_torchs(seed, bins):
    x = heavy(seed)
    observer = HistogramObserver(bins=bins, dtype=torch.quint8)
    observer(x)
    low, high = observer._non_linear_param_search()
    histogram = Histogram(observer.histogram.double(), float(observer.min_val), float(observer.max_val))
    ours = l2_range(histogram)
    assert ours == pytest.approx((float(low), float(high)), abs=1.01 * histogram.width)
    assert ours != (histogram.low, histogram.high)  # it did narrow


@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8]))
def test_no_range_is_better_than_the_exact_one(seed, bits):
    histogram = Histogram.of(heavy(seed, 300), bins=48)
    every = torch.tensor([(i, j) for i in range(48) for j in range(i, 48)])
    errors = squared_error(histogram, *every.unbind(1), bits=bits)
    chosen = every[int(errors.argmin())]
    exact = l2_range(histogram, bits=bits, method="exact")
    assert exact == pytest.approx(histogram.range_of(*chosen.tolist()))

    def error(ends):
        first = round((ends[0] - histogram.low) / histogram.width)
        last = round((ends[1] - histogram.low) / histogram.width) - 1
        return float(squared_error(histogram, torch.tensor([first]), torch.tensor([last]), bits=bits))

    # The greedy search takes its first step unseen, so it alone can be worse than the full range.
    assert error(exact) <= error(l2_range(histogram, bits=bits)) * (1 + 1e-12)
    assert error(exact) <= error((histogram.low, histogram.high)) * (1 + 1e-12)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_error_is_that_of_the_values(bits):
    """Values spread evenly in each bin, replaced by the centres of the steps, one by one."""
    random = torch.Generator().manual_seed(bits)
    counts = torch.randint(0, 9, (40,), generator=random).double()
    histogram = Histogram(counts, -1.0, 2.0)
    fine = (torch.arange(40 * 500) + 0.5) / 500 * histogram.width - 1
    weight = counts.repeat_interleave(500) / 500
    for first, last in [(0, 39), (5, 30), (17, 17), (0, 3)]:
        low, high = histogram.range_of(first, last)
        step = (high - low) / 2**bits
        index = torch.floor((fine - low) / step).clamp(0, 2**bits - 1)
        direct = float(((fine - (low + (index + 0.5) * step)) ** 2 * weight).sum())
        ours = squared_error(histogram, torch.tensor([first]), torch.tensor([last]), bits=bits)
        assert float(ours) == pytest.approx(direct, rel=1e-3)


def test_uniform_values_keep_the_full_range():
    histogram = Histogram(torch.ones(64, dtype=torch.float64), -1.0, 1.0)
    assert l2_range(histogram, bits=4, method="exact") == (-1.0, 1.0)
    assert l2_range(histogram, bits=4, symmetric=True) == (-1.0, 1.0)


def test_a_symmetric_range_is_the_best_of_the_symmetric_ones():
    histogram = Histogram.of(heavy(0), bins=200, symmetric=True)
    low, high = l2_range(histogram, bits=4, symmetric=True)
    assert low == pytest.approx(-high) and high < 0.9 * histogram.high
    cut_off = round((histogram.high - high) / histogram.width)
    errors = [
        float(squared_error(histogram, torch.tensor([i]), torch.tensor([199 - i]), bits=4))
        for i in range(100)
    ]
    assert errors.index(min(errors)) == cut_off


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_fewer_errors_on_the_values_themselves(bits):
    x = heavy(1, 20000)
    histogram = Histogram.of(x, symmetric=True)
    narrow = affine_quantizer(
        *l2_range(histogram, bits=bits, symmetric=True), bits=bits, signed=True, symmetric=True
    )
    full = affine_quantizer(*x.aminmax(), bits=bits, signed=True, symmetric=True)
    loss = [float(((q.dequantize(q.quantize(x)) - x) ** 2).mean()) for q in (narrow, full)]
    assert loss[0] < loss[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Histogram.of(torch.tensor([1.0, float("nan")])), "finite"),
        (lambda: Histogram.of(torch.ones(0)), "at least one"),
        (lambda: Histogram.of(torch.zeros(4)), "not zero"),
        (lambda: Histogram.of(torch.ones(4), bins=1), "at least 2 bins"),
        (lambda: l2_range(Histogram.of(torch.ones(4)), method="fast"), "approximate or exact"),
        (lambda: l2_range(Histogram.of(torch.ones(4)), symmetric=True), "symmetric"),
        (lambda: l2_range(Histogram.of(torch.ones(4)), bits=12), "bits"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
