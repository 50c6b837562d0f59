"""EVBMF against planted ranks, the evidence minimised numerically, published numbers and its invariances."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lib.compression import vbmf
from lib.compression.spectrum import (
    as_matrix,
    gram,
    leading_vectors,
    singular_values,
    squared_singular_values,
)
from lib.compression.vbmf import acceptance, evbmf, noise_objective, tau_of, tau_threshold

#: (L, M, planted rank, noise) in sequence from one RandomState(0); rank, σ², threshold by a public port.
PORTED = [
    ((20, 50, 3, 1.0), (3, 0.93139156, 12.285403)),
    ((50, 100, 5, 0.5), (5, 0.24821741, 9.398015)),
    ((64, 576, 10, 1.0), (10, 0.99885219, 34.605006)),
    ((100, 100, 7, 1.0), (7, 1.00715713, 22.239591)),
]


def planted(random, rows, columns, rank, noise):
    left, right = random.randn(rows, rank), random.randn(rank, columns)
    return left @ right + noise * random.randn(rows, columns)


def test_it_agrees_with_a_public_implementation():
    random = np.random.RandomState(0)
    for shape, (rank, variance, threshold) in PORTED:
        found = evbmf(planted(random, *shape))
        assert found.rank == rank
        assert found.noise_variance == pytest.approx(variance, rel=3e-6)  # the port stops its search at 1e-5
        assert found.threshold == pytest.approx(threshold, rel=3e-6)
    outer = np.outer(np.arange(1, 11), np.arange(1, 21)) + 0.1 * np.random.RandomState(2).randn(10, 20)
    found = evbmf(outer)
    assert found.rank == 1 and found.shrunk[0] == pytest.approx(1051.249536, abs=1e-6)
    # The port stops its search 1e-5 from the optimum, whatever the unit; here that is a lot.
    assert found.noise_variance == pytest.approx(0.01144334, rel=1e-3)


def test_pure_noise_has_rank_zero_and_its_own_variance():
    noise = np.random.RandomState(1).randn(40, 200)
    found = evbmf(noise)
    assert found.rank == 0 and found.shrunk.size == 0
    # With nothing kept, the evidence is highest at the mean square. (The port gives 0.998035: its tolerance.)
    assert found.noise_variance == pytest.approx((noise**2).mean(), rel=1e-12)
    assert found.singular_values[0] == pytest.approx(19.87, abs=0.005)
    assert found.singular_values[0] < found.threshold


@pytest.mark.parametrize(
    ("alpha", "root", "x"),
    [
        (1.0, 2.512862417252339, 4.910815),
        (0.5, 1.782640, 3.563123),
        (0.25, 1.272608, 2.719055),
        (0.1, 0.822211, 2.043834),
        (0.01, 0.282876, 1.328228),
        (0.001, 0.099073, 1.110167),
    ],
)
def test_thresholds(alpha, root, x):
    assert tau_threshold(alpha, "root") == pytest.approx(root, abs=1e-6)
    assert acceptance(alpha, "root") == pytest.approx(x, abs=1e-6)
    assert tau_of(acceptance(alpha, "root"), alpha) == pytest.approx(tau_threshold(alpha, "root"))
    assert acceptance(alpha) < acceptance(alpha, "root") + 1e-4  # the shortcut accepts more (but at α = 1)
    assert acceptance(alpha) > (1 + math.sqrt(alpha)) ** 2  # and yet less than what noise reaches


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha must be in"):
        tau_threshold(alpha)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'shortcut' or 'root'"):
        evbmf(np.eye(3), tau="guess")


@pytest.mark.parametrize("shape", [(50, 50), (40, 160), (64, 576), (200, 60)])
@pytest.mark.parametrize("rank", [0, 1, 4, 10])
@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_planted_ranks_are_found(shape, rank, noise):
    matrix = planted(np.random.RandomState(rank), *shape, rank, noise)
    for tau in ("shortcut", "root"):
        found = evbmf(matrix, tau=tau)
        assert found.rank == rank
        assert found.noise_variance == pytest.approx(noise**2, rel=0.15)
        assert evbmf(matrix, tau=tau, noise_variance=noise**2).rank == rank


def test_planted_kernel_ranks():
    random = np.random.RandomState(4)
    core = random.randn(6, 5, 3, 3)
    outputs = np.linalg.qr(random.randn(64, 6))[0]
    inputs = np.linalg.qr(random.randn(32, 5))[0]
    kernel = np.einsum("qrij,tq,sr->tsij", core, outputs, inputs)
    for noise in (0.01, 0.05, 0.1, 0.2):
        noisy = kernel + noise * random.randn(*kernel.shape)
        assert evbmf(noisy.reshape(64, -1)).rank == 6
        assert evbmf(np.moveaxis(noisy, 1, 0).reshape(32, -1)).rank == 5


# --- the posterior is the optimum of the evidence ----------------------------------------------------------


def free_energy(log_parameters, gamma, short, long, variance):
    """2F of one component, priors eliminated (Nakajima et al. 2013, equation 17), by its definition."""
    mean_a, mean_b, var_a, var_b = np.exp(log_parameters)
    a, b = mean_a**2 + long * var_a, mean_b**2 + short * var_b
    entropy = long * np.log(a / (long * var_a)) + short * np.log(b / (short * var_b))
    return entropy + (gamma**2 - 2 * gamma * mean_a * mean_b + a * b) / variance


def test_the_posterior_minimises_the_free_energy():
    matrix = planted(np.random.RandomState(5), 12, 30, 2, 0.7)
    found = evbmf(matrix, noise_variance=0.5, tau="root")
    assert found.rank == 2
    total = 12 * 30 * np.log(2 * np.pi * 0.5) + (found.singular_values[2:] ** 2).sum() / 0.5
    for h in range(2):
        gamma = found.singular_values[h]
        ours = np.log([found.mean_a[h], found.mean_b[h], found.variance_a[h], found.variance_b[h]])
        value = free_energy(ours, gamma, 12, 30, 0.5)
        best = min(
            minimize(free_energy, start, (gamma, 12, 30, 0.5), "Nelder-Mead", options={"maxiter": 4000}).fun
            for start in (ours, ours + np.array([0.5, -0.5, 0.3, -0.3]), np.zeros(4))
        )
        assert value <= best + 1e-5  # nothing near it or far from it is lower
        assert value < gamma**2 / 0.5  # nor is dropping the component
        for wrong in (ours + np.eye(4)[0] / 20, ours + np.eye(4)[2] / 5):  # and the check can fail
            assert free_energy(wrong, gamma, 12, 30, 0.5) > best + 1e-4
        total += value
    assert 2 * found.free_energy == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(found.mean_a * found.mean_b, found.shrunk, rtol=1e-12)


def test_a_component_at_the_threshold_gains_nothing():
    """At γ² = x̲Mσ² keeping and dropping have the same evidence; below, dropping wins."""
    short, long = 20, 60
    x = acceptance(short / long, "root")
    for factor, gain in ((1.0, 0.0), (1.05, 1.0), (0.97, -1.0)):
        gamma = math.sqrt(factor * x * long)
        runs = [
            minimize(
                free_energy,
                np.log([start, start, 0.02, 0.05]),
                (gamma, short, long, 1.0),
                "Nelder-Mead",
                options={"maxiter": 4000, "xatol": 1e-10, "fatol": 1e-10},
            ).fun
            for start in (0.5, 1.0, 3.0)
        ]
        assert np.sign(round(gamma**2 - min(runs), 4)) == gain if gain >= 0 else min(runs) >= gamma**2 - 1e-3


def test_the_noise_variance_is_the_global_minimum():
    for seed in range(6):
        random = np.random.RandomState(seed)
        matrix = planted(random, 30, 45, 5, 1.0) * np.linspace(0.5, 2, 30)[:, None]
        found = evbmf(matrix)
        squares = found.singular_values**2
        grid = np.geomspace(1e-3, 1.0, 200_000) * (matrix**2).mean()
        values = np.concatenate([noise_objective(g, squares, (30, 45)) for g in np.array_split(grid, 50)])
        ours = noise_objective(np.array([found.noise_variance]), squares, (30, 45))[0]
        assert ours <= values.min() + 1e-9
        assert grid[np.argmin(values)] == pytest.approx(found.noise_variance, rel=1e-4)


def test_the_objective_is_the_free_energy_up_to_a_constant():
    matrix = planted(np.random.RandomState(3), 15, 40, 3, 1.0)
    squares = squared_singular_values(matrix)
    candidates = np.array([0.6, 0.9, 1.1, 2.0])
    energy = np.array([evbmf(matrix, noise_variance=v, tau="root").free_energy for v in candidates])
    objective = noise_objective(candidates, squares, (15, 40), tau="root") * 40 / 2
    np.testing.assert_allclose(energy - energy[0], objective - objective[0], rtol=1e-9)


# --- invariances -------------------------------------------------------------------------------------------


@given(
    rows=st.integers(2, 40),
    columns=st.integers(2, 40),
    rank=st.integers(0, 5),
    exponent=st.integers(-150, 150),
    seed=st.integers(0, 2**16),
)
def test_the_rank_does_not_depend_on_unit_order_or_rotation(rows, columns, rank, exponent, seed):
    random = np.random.RandomState(seed)
    matrix = planted(random, rows, columns, rank, 1.0)
    found = evbmf(matrix)
    assert found.rank == (np.linalg.svd(matrix, compute_uv=False) > found.threshold).sum()
    assert (found.shrunk < found.singular_values[: found.rank]).all()
    edge = math.sqrt(found.noise_variance) * (math.sqrt(rows) + math.sqrt(columns))
    assert found.threshold >= edge * (1 - 1e-12)
    rotation = np.linalg.qr(random.randn(rows, rows))[0]
    unit = 10.0**exponent
    same = {
        "scaled": matrix * unit,
        "transposed": matrix.T,
        "permuted": matrix[random.permutation(rows)][:, random.permutation(columns)],
        "rotated": rotation @ matrix,
    }
    for what, other in same.items():
        again = evbmf(other)
        assert again.rank == found.rank, what
        factor = unit if what == "scaled" else 1.0
        assert again.threshold == pytest.approx(found.threshold * factor, rel=1e-5), what


def test_the_unit_matters_in_a_search_with_absolute_tolerance():
    """The trap that dividing by the root mean square avoids: a broken twin gives another rank."""
    random = np.random.RandomState(0)
    left, right = (np.linalg.qr(random.randn(n, 128))[0] for n in (128, 576))
    matrix = (left * np.arange(1, 129) ** -0.3) @ right.T
    matrix *= 0.002 / matrix.std()

    def broken(v):
        squares = squared_singular_values(v)
        low, high = vbmf._search_interval(squares, v.shape, 128, "shortcut")
        variance = (low + high) / 2  # where an interval shorter than the tolerance is left
        assert high - low < 1e-5
        return int((np.sqrt(squares) > math.sqrt(variance * 576 * acceptance(128 / 576))).sum())

    assert evbmf(matrix).rank == evbmf(1000 * matrix).rank != broken(matrix)


def test_options():
    matrix = planted(np.random.RandomState(0), 30, 60, 6, 0.5)
    assert evbmf(matrix, max_rank=4).rank == 4
    assert evbmf(matrix, noise_variance=1e6).rank == 0
    for dtype in (torch.float32, torch.float64):
        tensor = torch.from_numpy(matrix).to(dtype).requires_grad_()
        assert evbmf(tensor).noise_variance == pytest.approx(evbmf(matrix).noise_variance, rel=1e-5)
    assert evbmf(torch.from_numpy(matrix).bfloat16()).rank == 6
    strided = np.asfortranarray(np.repeat(matrix, 2, axis=0))[::2]
    assert evbmf(strided).noise_variance == pytest.approx(evbmf(matrix).noise_variance, rel=1e-9)
    assert evbmf(np.arange(12).reshape(3, 4)).singular_values.shape == (3,)  # integers are numbers


# --- small noise, exact low rank ---------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1e-3, 1e-6, 1e-9, 1e-12])
def test_small_noise_is_not_lost_in_squares(noise):
    matrix = planted(np.random.RandomState(0), 40, 100, 5, noise)
    found = evbmf(matrix)
    assert found.rank == 5
    assert found.noise_variance == pytest.approx(noise**2, rel=0.15)
    if noise < 1e-8:  # and the squares alone would have lost it
        smallest = np.sqrt(squared_singular_values(matrix))[5:]
        assert abs(smallest / singular_values(matrix)[5:] - 1).max() > 0.1


def test_where_the_gram_matrix_is_used_it_is_as_good_as_the_decomposition(monkeypatch):
    """The same result with singular values by LAPACK, down to the noise at which the fallback begins."""
    for noise in (1.0, 1e-2, 1e-3):
        matrix = planted(np.random.RandomState(1), 64, 576, 8, noise)
        fast = evbmf(matrix)
        monkeypatch.setattr(vbmf, "SAFE", math.inf)  # always the decomposition
        direct = evbmf(matrix)
        monkeypatch.undo()
        assert fast.rank == direct.rank
        assert fast.threshold == pytest.approx(direct.threshold, rel=1e-7)


def test_exactly_low_rank():
    matrix = np.outer(np.arange(1.0, 11), np.arange(1.0, 21))
    found = evbmf(matrix)
    assert (found.rank, found.noise_variance, found.threshold) == (1, 0.0, 0.0)
    assert found.free_energy == -math.inf
    np.testing.assert_allclose(found.shrunk, np.linalg.norm(matrix), rtol=1e-12)
    assert found.mean_a * found.mean_b == pytest.approx(found.shrunk)
    zero = evbmf(np.zeros((3, 4)))
    assert zero.rank == 0 and zero.noise_variance == 0 and not zero.singular_values.any()
    assert evbmf(np.zeros((3, 4)), noise_variance=2.0).noise_variance == 2.0
    assert evbmf(np.ones((1, 7))).rank == 0  # one row cannot tell signal from noise


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        (np.ones((2, 3, 4)), "two-dimensional"),
        (np.ones(5), "two-dimensional"),
        (np.ones((0, 4)), "not empty"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "finite"),
        (np.array([[1.0, np.inf], [0.0, 1.0]]), "finite"),
        (np.ones((2, 2), complex), "real"),
        (torch.tensor([[1.0, float("nan")]]), "finite"),
    ],
)
def test_bad_matrices(matrix, match):
    with pytest.raises(ValueError, match=match):
        evbmf(matrix)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"noise_variance": 0.0}, "noise_variance must be positive"),
        ({"noise_variance": math.nan}, "noise_variance must be positive"),
        ({"max_rank": 0}, "max_rank must be a whole number in 1..3"),
        ({"max_rank": 4}, "max_rank must be a whole number in 1..3"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        evbmf(np.random.RandomState(0).randn(3, 5), **options)


# --- the linear algebra ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (6, 6)])
def test_spectrum_equals_lapack(shape):
    matrix = np.random.RandomState(0).randn(*shape)
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(np.sqrt(squared_singular_values(matrix, 2.0)), expected / 2, rtol=1e-10)
    left = np.linalg.svd(matrix)[0]
    for rank in (1, 4, 6):
        ours = leading_vectors(matrix, rank)
        assert ours.shape == (shape[0], rank)
        np.testing.assert_allclose(ours.T @ ours, np.eye(rank), atol=1e-12)
        np.testing.assert_allclose(abs(ours.T @ left[:, :rank]), np.eye(rank), atol=1e-8)


def test_more_vectors_than_columns():
    tall = np.random.RandomState(0).randn(9, 4)
    vectors = leading_vectors(tall, 7)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(vectors @ (vectors.T @ tall), tall, atol=1e-12)
    with pytest.raises(ValueError, match="rank must be a whole number in 1..9"):
        leading_vectors(tall, 10)


def test_the_gram_matrix_is_made_in_blocks():
    """A wide float32 matrix of 80 MB is never converted as a whole."""
    matrix = np.random.default_rng(0).standard_normal((16, 1_250_000), dtype=np.float32)
    tracemalloc.start()
    found = gram(as_matrix(matrix))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.1 * 8 * (1 << 22) < 0.5 * 8 * matrix.size
    np.testing.assert_allclose(np.diag(found), (matrix.astype(float) ** 2).sum(1), rtol=1e-10)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e-30, 1e30, 1e200, 1e300])
def test_the_posterior_is_in_the_unit_of_the_matrix(unit):
    """Also where squared entries leave float64."""
    random = np.random.RandomState(0)
    matrix = random.randn(12, 3) @ random.randn(3, 30) + 0.1 * random.randn(12, 30)
    one, found = evbmf(matrix), evbmf(matrix * unit)
    assert found.rank == one.rank == 3
    for name in ("singular_values", "shrunk", "threshold", "variance_a", "variance_b"):
        np.testing.assert_allclose(getattr(found, name) / unit, getattr(one, name), rtol=1e-6)
    for name in ("mean_a", "mean_b"):
        np.testing.assert_allclose(getattr(found, name) / np.sqrt(unit), getattr(one, name), rtol=1e-6)
    assert found.free_energy - one.free_energy == pytest.approx(12 * 30 * np.log(unit), rel=1e-6)
