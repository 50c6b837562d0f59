"""Oracles of the temporal kernels, of the relative terms that avoid writing them out, and of dropout."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lib.models.recommenders import relative_attention, temporal_kernels
from lib.models.recommenders.dot_product_attention import attend, attention_weights, padding_bias
from lib.models.recommenders.dropout import Dropout
from lib.models.recommenders.relative_attention import (
    GapGrid,
    GridTerm,
    Interpolate,
    MaterialisedTerm,
    SinTerm,
)
from lib.models.recommenders.temporal_kernels import (
    decay_rates,
    exp_kernel,
    log_kernel,
    relative_kernel,
    sin_frequencies,
    sin_kernel,
)

# --- kernels ---


def test_kernel_values_at_a_gap_of_100():
    gap = torch.tensor(100.0, dtype=torch.float64)
    sin = [math.sin(100), math.sin(1), math.cos(100), math.cos(1)]
    assert_close(sin_kernel(gap, 4), torch.tensor(sin, dtype=torch.float64))
    exp = [math.exp(-100), 4.540e-05, 0.367879, 0.904837]
    log = [4.615121, 2.397895, 0.693147, 0.095310]
    for sign in (1, -1):
        assert_close(exp_kernel(sign * gap, 4), torch.tensor(exp, dtype=torch.float64), rtol=0, atol=1e-6)
        assert_close(log_kernel(sign * gap, 4), torch.tensor(log, dtype=torch.float64), rtol=0, atol=1e-6)
    zero = torch.tensor(0)
    assert sin_kernel(zero, 4).tolist() == [0, 0, 1, 1]
    assert exp_kernel(zero, 4).tolist() == [1, 1, 1, 1]
    assert log_kernel(zero, 4).tolist() == [0, 0, 0, 0]


def test_kernel_symmetry_over_pairs():
    gaps = relative_attention.pairwise_gaps(torch.tensor([[0, 100, 160, 4000]]))[0].double()
    sine, cosine = sin_kernel(gaps, 8).chunk(2, dim=-1)
    assert_close(sine, -sine.transpose(0, 1))
    assert_close(cosine, cosine.transpose(0, 1))
    for kernel in (exp_kernel, log_kernel):
        assert_close(kernel(gaps, 8), kernel(gaps, 8).transpose(0, 1))


def test_longest_period_and_slowest_decay():
    assert 2 * math.pi / float(sin_frequencies(64)[-1]) == pytest.approx(47_117, rel=1e-4)
    assert 1 / float(decay_rates(64)[-1]) == pytest.approx(8_660, rel=1e-4)


@given(
    st.sampled_from("sel"),
    st.lists(st.integers(-(10**8), 10**8), min_size=1, max_size=5),
    st.sampled_from([2.0, 60.0, 3600.0, 86400.0]),
)
def test_a_longer_unit_divides_the_gaps(letter, gaps, unit):
    gaps, kernel = torch.tensor(gaps, dtype=torch.float64), relative_kernel(letter)
    assert_close(kernel(gaps, 8, 10_000.0, unit), kernel(gaps / unit, 8))


# --- the factored terms ---


def _terms(letter, timestamps, hidden_size, unit, dtype):
    shape = (timestamps, hidden_size, 10_000.0, unit)
    exact = MaterialisedTerm(letter, *shape, dtype=torch.float64)
    if letter == "s":
        return SinTerm(*shape, dtype=dtype), exact
    return GridTerm(GapGrid(letter, *shape, dtype=dtype)), exact


@given(
    letter=st.sampled_from("sel"),
    gaps=st.lists(
        st.one_of(st.integers(0, 300), st.integers(0, 10**6), st.integers(0, 2 * 10**9)),
        min_size=1,
        max_size=8,
    ),
    hidden_size=st.sampled_from([2, 8, 64]),
    unit=st.sampled_from([0.5, 1.0, 60.0, 86400.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_factored_terms_equal_the_materialised_ones(letter, gaps, hidden_size, unit, dtype):
    timestamps = torch.tensor([gaps]).cumsum(1) + 900_000_000
    timestamps = torch.cat([torch.zeros(1, 1, dtype=torch.int64), timestamps], dim=1)
    generator = torch.Generator().manual_seed(len(gaps))
    query = torch.randn(1, timestamps.shape[1], 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, hidden_size, generator=generator, dtype=torch.float64)
    fast, exact = _terms(letter, timestamps, hidden_size, unit, dtype)
    difference = fast.logits(query.to(dtype), weight.to(dtype)) - exact.logits(query, weight)
    scale = (query.abs() @ weight.abs()).sum(-1).max() * (25 if letter == "l" else 1)
    assert difference.abs().max() <= 1e-6 * scale


@pytest.mark.parametrize("letter", ["e", "l"])
def test_interpolation_error_over_all_gaps(letter):
    gaps = torch.cat([torch.arange(4000), torch.logspace(3, math.log10(2e9), 40_000).long()])
    timestamps = torch.stack([torch.zeros_like(gaps), gaps], dim=1)
    grid = GapGrid(letter, timestamps, 64, 10_000.0, 1.0, dtype=torch.float64)
    values = grid.nodes.T.expand(1, -1, -1).transpose(1, 2)  # every component is its own query
    index, weights = grid.index[:, 1, 0], grid.weights[:, :, 1, 0]
    read = Interpolate.apply(values, index.expand(1, 64, -1), weights[:, None, None].expand(-1, 1, 64, -1))
    exact = relative_kernel(letter)(gaps.double(), 64)
    assert (read[0].T - exact).abs().max() < 3e-7


def test_sin_keeps_its_phase_at_stamps_of_a_billion():
    timestamps = torch.tensor([[1_000_000_000, 1_000_000_007, 1_030_000_001]])
    query, weight = torch.ones(1, 3, 1), torch.ones(1, 64)
    fast, exact = _terms("s", timestamps, 64, 1.0, torch.float32)
    expected = exact.logits(query.double(), weight.double()).float()
    assert_close(fast.logits(query, weight), expected, rtol=0, atol=1e-4)
    rounded = MaterialisedTerm("s", timestamps, 64, 10_000.0, 1.0, dtype=torch.float32).logits(query, weight)
    assert (rounded - expected).abs().max() > 1e-3  # float32 phases, as the authors', are coarser


def test_grid_refuses_gaps_beyond_its_end():
    with pytest.raises(ValueError, match="gaps must be below"):
        GapGrid("l", torch.tensor([[0, 2**62]]), 8, 10_000.0, 1e-3, dtype=torch.float64)


def test_gradcheck_of_interpolation_and_attention():
    torch.manual_seed(0)
    grid = GapGrid("l", torch.tensor([[0, 5, 90]]), 2, 10_000.0, 1.0, dtype=torch.float64)
    values = torch.randn(1, 3, grid.nodes.shape[1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: Interpolate.apply(v, grid.index, grid.weights), values)

    shape = (2, 3, 4, 2)
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    terms = [torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    bias = padding_bias(torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]]), torch.float64)

    def attention(query, key, value, *terms):
        torch.manual_seed(1)  # the same dropout mask in every call
        return attend(query, key, value, bias, Dropout(0.3).train(), terms)

    assert torch.autograd.gradcheck(attention, (query, key, value, *terms))


@pytest.mark.parametrize("num_terms", [0, 1, 2])
def test_attention_with_terms_equals_its_definition(num_terms):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 5, 4, dtype=torch.float64)
    terms = tuple(torch.randn(num_terms, 2, 5, 5, dtype=torch.float64))
    bias = padding_bias(torch.tensor([[0, 1, 2, 3, 4], [1, 1, 1, 1, 1]]), torch.float64)
    expected = attention_weights(query, key, bias, terms) @ value
    assert_close(attend(query, key, value, bias, Dropout(0.0), terms), expected)
    if not num_terms:
        assert_close(F.scaled_dot_product_attention(query, key, value, bias > -1), expected)


def test_kernel_functions_refuse_wrong_arguments():
    for call in (
        lambda: sin_kernel(torch.tensor(1.0), 3),
        lambda: exp_kernel(torch.tensor(1.0), 0),
        lambda: log_kernel(torch.tensor(1.0), 4, frequency=0.5),
        lambda: log_kernel(torch.tensor(1.0), 4, time_unit=0),
        lambda: temporal_kernels.relative_kernel("x"),
    ):
        with pytest.raises(ValueError):
            call()


# --- dropout ---


@pytest.mark.parametrize("letter", ["s", "e", "l"])
def test_tied_dropout_keeps_the_distribution_of_a_logit(letter):
    """Mean and variance of one logit over masks are those of dropping single kernel elements."""
    torch.manual_seed(0)
    draws, p = 4000, 0.4
    timestamps = torch.tensor([[0, 1000]]).expand(draws, -1)
    query, weight = torch.ones(draws, 2, 1), torch.randn(1, 8)
    shape = (timestamps, 8, 10_000.0, 1.0)
    keep = Dropout(p).train()(torch.ones(draws, 2, 8))
    tied = (
        SinTerm(*shape, dtype=torch.float32, keep=keep)
        if letter == "s"
        else GridTerm(GapGrid(letter, *shape, dtype=torch.float32), keep)
    ).logits(query, weight)[:, 1, 0]
    single = MaterialisedTerm(letter, *shape, dtype=torch.float32, dropout=p).logits(query, weight)[:, 1, 0]
    contributions = weight[0] * relative_kernel(letter)(torch.tensor(1000), 8)
    spread = (contributions.square().sum() * p / (1 - p)).sqrt()
    for sample in (tied, single):
        assert abs(sample.mean() - contributions.sum()) < 5 * spread / math.sqrt(draws)
        assert (sample.std() / spread).item() == pytest.approx(1, abs=0.07)


@given(st.floats(0.05, 0.9), st.integers(1, 9))
def test_dropout_keeps_the_mean_and_its_backward_matches(p, odd):
    torch.manual_seed(odd)
    x = torch.ones(20_000 + odd, requires_grad=True)
    y = Dropout(p).train()(x)
    y.sum().backward()
    assert_close(x.grad, y.detach())
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / 20_000)
    assert len(y.unique()) == 2
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=2e-4)


def test_dropout_of_neighbours_is_independent():
    torch.manual_seed(0)
    kept = (Dropout(0.5).train()(torch.ones(100_000, 4)) > 0).float()
    assert (torch.corrcoef(kept.T) - torch.eye(4)).abs().max() < 0.02
