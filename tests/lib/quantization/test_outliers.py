"""The outlier-aware split: W = main + outliers, and products that are exact where they should be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lib.quantization.integer import affine_quantizer, gemm_i16, gemm_i32
from lib.quantization.outliers import gemm_outlier_aware, sparse_gemm_i32, split_outliers

SAFE = {7: 2, 6: 4, 5: 8, 4: 16}  # products with weights of so many bits: 32767 // (255 * 2 ** (bits - 1))


def matrices(seed, rows=3, columns=5, depth=40):
    random = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 256, (rows, depth), dtype=torch.uint8, generator=random)
    return a, torch.randint(-128, 128, (columns, depth), dtype=torch.int8, generator=random)


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_the_parts_add_up(seed, bits):
    _, w = matrices(seed)
    split = split_outliers(w, bits=bits)
    assert torch.equal(split.main + split.outliers(), w)
    limit = 2 ** (bits - 1)
    assert split.main.min() >= -limit and split.main.max() <= limit - 1
    assert ((split.value < -limit) | (split.value >= limit)).all()
    assert split.density == pytest.approx(float((split.outliers() != 0).double().mean()))


def test_the_border_of_seven_bits():
    w = torch.tensor([[-65, -64, 63, 64]], dtype=torch.int8)
    split = split_outliers(w)
    assert split.main.tolist() == [[0, -64, 63, 0]] and split.outliers().tolist() == [[-65, 0, 0, 64]]


@given(st.integers(0, 10**6), st.sampled_from(list(SAFE)))
def test_exact_when_spilled_in_time(seed, bits):
    a, w = matrices(seed)
    split = split_outliers(w, bits=bits)
    result = gemm_outlier_aware(a, split, spill_every=SAFE[bits])
    assert torch.equal(result.values, gemm_i32(a, w)) and not result.saturated.any()
    assert torch.equal(sparse_gemm_i32(a, split), gemm_i32(a, split.outliers()))


def test_without_the_split_the_same_product_saturates():
    a, w = matrices(0)
    assert gemm_i16(a, w, spill_every=2).saturated.any()
    assert not torch.equal(
        gemm_outlier_aware(a, split_outliers(w, bits=8), spill_every=2).values, gemm_i32(a, w)
    )


@pytest.mark.parametrize("bits", [7, 6])
@pytest.mark.parametrize("distribution", [stats.norm, stats.laplace], ids=["normal", "Laplace"])
def test_density_of_known_distributions(distribution, bits):
    """8 × 512 × 1024 values, the largest of each matrix mapped to 127: the tails beyond the limits."""
    random = torch.Generator().manual_seed(0)
    uniform = torch.rand(8, 512, 1024, generator=random, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    shares, tails = [], []
    for weight in torch.from_numpy(distribution.ppf(uniform.numpy())):
        quantizer = affine_quantizer(*weight.aminmax(), signed=True, symmetric=True)
        shares.append(split_outliers(quantizer.quantize(weight), bits=bits).density)
        step, limit = float(weight.abs().max()) / 127, 2 ** (bits - 1)
        tails.append(distribution.sf((limit - 0.5) * step) + distribution.cdf(-(limit + 0.5) * step))
    share, tail = sum(shares) / 8, sum(tails) / 8
    assert abs(share - tail) < 4 * (tail / uniform.numel()) ** 0.5, "beyond chance"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_outliers(torch.zeros(2, 2)), "int8"),
        (lambda: split_outliers(torch.zeros(0, 2, dtype=torch.int8)), "int8 matrix"),
        (lambda: split_outliers(torch.zeros(2, 2, dtype=torch.int8), bits=0), r"bits must be in 1\.\.8"),
        (lambda: split_outliers(torch.zeros(2, 2, dtype=torch.int8), bits=9), r"bits must be in 1\.\.8"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
