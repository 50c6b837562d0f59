"""Tucker decompositions against tensorly, LAPACK and the identities they must satisfy."""

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

from lib.compression.tucker import truncated_svd, tucker1, tucker2


def kernel(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape)


def relative(exact, approximation):
    exact, approximation = np.asarray(exact), np.asarray(approximation)
    return np.linalg.norm(exact - approximation) / np.linalg.norm(exact)


def test_published_errors():
    k = kernel(16, 12, 3, 3)
    assert tucker2(k, 5, 6, sweeps=0).relative_error == pytest.approx(0.8440461905, abs=1e-10)
    hooi = tucker2(k, 5, 6, sweeps=500, tolerance=1e-13)
    assert hooi.relative_error == pytest.approx(0.8060694453, abs=1e-9)
    assert tucker2(k, 12, 16).relative_error < 1e-14


@pytest.mark.parametrize("ranks", [(5, 6), (1, 1), (12, 3), (2, 16)])
def test_it_equals_tensorly(ranks):
    k = kernel(16, 12, 3, 3)
    ours = tucker2(k, *ranks, sweeps=200, tolerance=1e-12)
    (core, factors), _ = partial_tucker(
        tensorly.tensor(k), rank=ranks[::-1], modes=[0, 1], init="svd", n_iter_max=200, tol=1e-12
    )
    theirs = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    np.testing.assert_allclose(ours.kernel().numpy(), theirs, atol=1e-5)
    assert ours.relative_error == pytest.approx(relative(k, theirs), abs=1e-9)


def test_a_planted_kernel_is_found_exactly():
    factors = np.linalg.qr(kernel(64, 6))[0], np.linalg.qr(kernel(32, 5))[0]
    k = np.einsum("qrij,tq,sr->tsij", kernel(6, 5, 3, 3), *factors)
    for sweeps in (0, 20):
        assert tucker2(k, 5, 6, sweeps=sweeps).relative_error < 1e-13
    assert tucker2(k, 4, 6).relative_error > 0.01  # one rank too few is seen


@given(
    outputs=st.integers(1, 14),
    inputs=st.integers(1, 14),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    data=st.data(),
)
def test_identities(outputs, inputs, height, width, data):
    k = kernel(outputs, inputs, height, width, seed=data.draw(st.integers(0, 99)))
    r3, r4 = data.draw(st.integers(1, inputs)), data.draw(st.integers(1, outputs))
    found = tucker2(k, r3, r4, sweeps=6, tolerance=0)
    assert found.core.shape == (r4, r3, height, width)
    for factor in (found.output_factor, found.input_factor):
        torch.testing.assert_close(factor.T @ factor, torch.eye(factor.shape[1], dtype=torch.float64))
    measured = relative(k, found.kernel())
    assert found.relative_error == pytest.approx(measured, abs=2e-8)
    assert np.linalg.norm(k) ** 2 == pytest.approx(
        float(found.core.norm()) ** 2 + (measured * np.linalg.norm(k)) ** 2
    )
    assert all(after <= before + 1e-8 for before, after in zip(found.errors, found.errors[1:], strict=False))
    # Each side alone bounds the error from below, both together bound HOSVD's from above.
    tails = [
        np.linalg.svd(k.reshape(outputs, -1), compute_uv=False)[r4:],
        np.linalg.svd(np.moveaxis(k, 1, 0).reshape(inputs, -1), compute_uv=False)[r3:],
    ]
    discarded = [(tail**2).sum() / np.linalg.norm(k) ** 2 for tail in tails]
    assert max(discarded) - 1e-8 <= found.relative_error**2 <= found.errors[0] ** 2 + 1e-8
    assert found.errors[0] ** 2 <= sum(discarded) + 1e-8


def test_hooi_stops_when_it_gains_too_little():
    k = kernel(16, 12, 3, 3)
    assert len(tucker2(k, 5, 6, tolerance=1.0).errors) == 2
    assert 2 < len(tucker2(k, 5, 6, tolerance=1e-4).errors) < len(tucker2(k, 5, 6, tolerance=1e-8).errors)
    assert len(tucker2(k, 5, 6, sweeps=3, tolerance=0).errors) == 4


def test_the_error_is_measured_where_subtraction_would_lose_it():
    k = np.einsum("qrij,tq,sr->tsij", kernel(3, 2, 3, 3), kernel(20, 3), kernel(15, 2))
    noisy = k + 1e-10 * kernel(*k.shape, seed=1)
    found = tucker2(noisy, 2, 3)
    assert found.relative_error == pytest.approx(relative(noisy, found.kernel()), rel=1e-3)
    assert 1e-12 < found.relative_error < 1e-9


def test_tucker1_and_svd_are_the_optimum():
    k = kernel(20, 3, 5, 5)
    singular = np.linalg.svd(k.reshape(20, -1), compute_uv=False)
    for rank in (1, 7, 20):
        found = tucker1(k, rank)
        assert found.input_factor is None and found.core.shape == (rank, 3, 5, 5)
        expected = np.sqrt((singular[rank:] ** 2).sum() / (singular**2).sum())
        assert found.relative_error == pytest.approx(expected, abs=1e-12)
        assert relative(k, found.kernel()) == pytest.approx(expected, abs=1e-12)
    matrix = kernel(9, 14)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    found = truncated_svd(matrix, 4)
    np.testing.assert_allclose(found.kernel()[:, :, 0, 0].numpy(), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-12)


def test_zero_kernels_and_single_channels():
    assert tucker2(np.zeros((4, 3, 2, 2)), 1, 2).relative_error == 0
    assert tucker1(np.zeros((4, 3, 2, 2)), 2).relative_error == 0
    one = tucker2(kernel(4, 1, 3, 3), 1, 4)
    assert one.relative_error < 1e-12
    assert torch.isfinite(one.core).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_dtype_layout_and_gradient(dtype):
    k = torch.from_numpy(kernel(8, 6, 3, 3)).to(dtype)
    expected = tucker2(k.double(), 3, 4)
    for other in (k, k.requires_grad_(), k.detach().to(memory_format=torch.channels_last)):
        found = tucker2(other, 3, 4)
        assert found.relative_error == pytest.approx(expected.relative_error, abs=1e-9)
        assert found.core.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tucker2(kernel(4, 3, 2, 2), 0, 2), "input_rank must be a whole number in 1..3, got 0"),
        (lambda: tucker2(kernel(4, 3, 2, 2), 4, 2), "input_rank must be a whole number in 1..3, got 4"),
        (lambda: tucker2(kernel(4, 3, 2, 2), 3, 5), "output_rank must be a whole number in 1..4, got 5"),
        (lambda: tucker2(kernel(4, 3, 2, 2), 3, 4, sweeps=-1), "must not be negative"),
        (lambda: tucker2(kernel(4, 3), 1, 1), "four axes"),
        (lambda: tucker2(kernel(4, 0, 2, 2), 1, 1), "four axes"),
        (lambda: tucker1(kernel(4, 3, 2, 2), 5), "output_rank must be a whole number in 1..4, got 5"),
        (lambda: tucker1(np.full((4, 3, 2, 2), np.nan), 2), "kernel must be finite"),
        (lambda: tucker2(torch.full((4, 3, 2, 2), float("inf")), 2, 2), "kernel must be finite"),
        (lambda: truncated_svd(kernel(4, 3), 4), "rank must be a whole number in 1..3, got 4"),
        (lambda: truncated_svd(kernel(4, 3, 1), 1), "two-dimensional"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("unit", [2.0**-1000, 2.0**-700, 2.0**700, 2.0**1000])
def test_the_factors_are_those_of_any_unit(unit):
    """Also where squared entries leave float64: a power of two loses no digit."""
    k = kernel(6, 5, 3, 3)
    for decompose in (
        lambda k: tucker2(k, 2, 3),
        lambda k: tucker1(k, 3),
        lambda k: truncated_svd(k[:, :, 0, 0], 2),
    ):
        one, found = decompose(k), decompose(k * unit)
        assert found.errors == one.errors and 0 < one.relative_error < 1
        assert torch.equal(found.core / unit, one.core)
        assert torch.equal(found.output_factor, one.output_factor)
