"""Integer arithmetic against 64-bit loops, closed forms and, for saturation, the processor itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.quantization.integer import (
    MAXIMUM_DEPTH,
    affine_gemm,
    affine_quantizer,
    gemm_i16,
    gemm_i32,
)

ROOT = Path(__file__).resolve().parents[3]


def matrices(seed, rows, columns, depth, bits=8):
    random = torch.Generator().manual_seed(seed)
    limit = 2 ** (bits - 1)
    a = torch.randint(0, 256, (rows, depth), dtype=torch.uint8, generator=random)
    return a, torch.randint(-limit, limit, (columns, depth), dtype=torch.int8, generator=random)


def cut(value):
    return max(-32768, min(32767, value))


def by_hand(a, w, spill, pair_cut=True):
    """One entry after the other, in Python's integers."""
    values, cuts = [], []
    for x in a.tolist():
        for y in w.tolist():
            products = [p * q for p, q in zip(x, y, strict=True)]
            total, accumulator, was_cut = 0, 0, False
            for k in range(0, len(products), 2):
                exact = sum(products[k : k + 2])
                pair = cut(exact) if pair_cut else exact
                added = cut(accumulator + pair)
                was_cut |= pair != exact or added != accumulator + pair
                accumulator = added
                if spill and (k + 2) % spill == 0:
                    total, accumulator = total + accumulator, 0
            values.append(total + accumulator)
            cuts.append(was_cut)
    shape = len(a), len(w)
    return torch.tensor(values, dtype=torch.int32).view(shape), torch.tensor(cuts).view(shape)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 70))


@given(st.integers(0, 10**6), sizes, st.sampled_from([None, 2, 4, 6, 16, 64]), st.integers(3, 8))
def test_16_bits_saturate_as_step_by_step(seed, size, spill, bits):
    a, w = matrices(seed, *size, bits=bits)
    w[0] = w[0].abs().clamp(max=2 ** (bits - 1) - 1)  # one row whose sums only grow
    values, cuts = by_hand(a, w, spill)
    ours = gemm_i16(a, w, spill_every=spill)
    assert torch.equal(ours.values, values) and torch.equal(ours.saturated, cuts)


def test_forgetting_the_pair_would_be_seen():
    a, w = (
        torch.full((1, 4), 255, dtype=torch.uint8),
        torch.tensor([[127, 127, -128, -128]], dtype=torch.int8),
    )
    assert gemm_i16(a, w).values.item() == 32767 - 32768
    assert by_hand(a, w, None, pair_cut=False)[0].item() == 32767 - 65280


@given(st.integers(0, 10**6), sizes)
def test_32_bits_are_exact(seed, size):
    a, w = matrices(seed, *size)
    exact = (a.long()[:, None] * w.long()).sum(-1)
    assert torch.equal(gemm_i32(a, w).long(), exact)


def test_32_bits_are_exact_to_the_deepest_sum():
    a = torch.full((1, MAXIMUM_DEPTH), 255, dtype=torch.uint8)
    w = torch.full((1, MAXIMUM_DEPTH), -128, dtype=torch.int8)
    assert gemm_i32(a, w).item() == -255 * 128 * MAXIMUM_DEPTH
    with pytest.raises(ValueError, match="K must be at most"):
        gemm_i32(torch.cat([a, a[:, :1]], 1), torch.cat([w, w[:, :1]], 1))


@pytest.mark.parametrize(("bits", "safe"), [(7, 2), (6, 4), (5, 8), (4, 16)])
def test_spilling_in_time_is_exact_and_later_is_not(bits, safe):
    """The worst case: largest activations times the most negative weight, 32767 // (255 · 2^(bits − 1))."""
    depth = 96
    a = torch.full((1, depth), 255, dtype=torch.uint8)
    w = torch.full((1, depth), -(2 ** (bits - 1)), dtype=torch.int8)
    exact = gemm_i32(a, w)
    for spill in range(2, depth, 2):
        result = gemm_i16(a, w, spill_every=spill)
        assert (result.values == exact).item() == (spill <= safe)
        assert result.saturated.item() == (spill > safe)


@given(st.integers(0, 10**6), sizes, st.booleans(), st.booleans())
def test_the_affine_identity(seed, size, per_channel, symmetric):
    random = torch.Generator().manual_seed(seed)
    rows, columns, depth = size
    x = torch.randn(rows, depth, generator=random, dtype=torch.float64) + 0.5
    w = torch.randn(columns, depth, generator=random, dtype=torch.float64) * 2
    ends = w.aminmax(dim=1) if per_channel else w.aminmax()
    for_x = affine_quantizer(*x.aminmax())
    for_w = affine_quantizer(*ends, signed=True, symmetric=symmetric, axis=0 if per_channel else None)
    q_x, q_w = for_x.quantize(x), for_w.quantize(w)
    real = for_x.dequantize(q_x).double() @ for_w.dequantize(q_w).double().T
    torch.testing.assert_close(affine_gemm(q_x, q_w, for_x, for_w).double(), real, rtol=1e-4, atol=1e-5)
    if not symmetric:
        without = affine_gemm(q_x, q_w, for_x, affine_quantizer(-1.0, 1.0, signed=True, symmetric=True))
        assert not torch.allclose(without.double(), real, rtol=1e-2)


@given(st.integers(0, 10**6), st.integers(2, 8), st.sampled_from(["unsigned", "signed", "symmetric"]))
def test_round_trip_loses_at_most_half_a_step(seed, bits, kind):
    x = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
    options = {"signed": kind != "unsigned", "symmetric": kind == "symmetric", "bits": bits}
    quantizer = affine_quantizer(*x.aminmax(), **options)
    codes = quantizer.quantize(x)
    assert codes.min() >= quantizer.limits[0] and codes.max() <= quantizer.limits[1]
    # The zero point is rounded too, which can cost half a step at the ends.
    allowed = float(quantizer.scale) * (0.5 if kind == "symmetric" else 1.0)
    assert ((quantizer.dequantize(codes) - x).abs() <= allowed * 1.001).all()
    assert quantizer.dequantize(quantizer.quantize(torch.zeros(3))).tolist() == [0, 0, 0]
    if kind == "symmetric":
        assert int(quantizer.zero_point) == 0


def test_the_quantiser_is_torchs():
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    quantizer = affine_quantizer(*x.aminmax())
    theirs = torch.quantize_per_tensor(x, float(quantizer.scale), int(quantizer.zero_point), torch.quint8)
    assert torch.equal(quantizer.quantize(x), theirs.int_repr())
    by_row = affine_quantizer(*x.aminmax(dim=1), signed=True, symmetric=True, axis=0)
    theirs = torch.quantize_per_channel(x, by_row.scale, by_row.zero_point, 0, torch.qint8)
    assert torch.equal(by_row.quantize(x), theirs.int_repr())


@pytest.mark.parametrize("depth", [1, 3])
def test_one_scale_per_channel_is_never_worse(depth):
    w = torch.randn(16, depth, 3, 3, generator=torch.Generator().manual_seed(0))
    w *= torch.logspace(-2, 0, 16)[:, None, None, None]
    tensor = affine_quantizer(*w.aminmax(), signed=True, symmetric=True)
    channel = affine_quantizer(*w.flatten(1).aminmax(dim=1), signed=True, symmetric=True, axis=0)
    loss = [float((q.dequantize(q.quantize(w)) - w).norm()) for q in (channel, tensor)]
    assert loss[0] < loss[1]


ON_THE_PROCESSOR = """
import json, sys, torch
from lib.quantization.integer import gemm_i16, gemm_i32
torch.set_num_threads(1)
torch.backends.quantized.engine = sys.argv[1]
random = torch.Generator().manual_seed(0)
same = []
for rows, columns, depth in [(4, 64, 256), (3, 33, 130), (16, 40, 1024), (1, 20, 7)]:
    a = torch.randint(0, 256, (rows, depth), dtype=torch.uint8, generator=random)
    a[0, :2] = torch.tensor([0, 255])  # so that the range found at run time has scale 1
    w = torch.randint(-128, 128, (columns, depth), dtype=torch.int8, generator=random)
    codes = torch.quantize_per_tensor(w.float(), 1.0, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(codes, None)
    y = torch.ops.quantized.linear_dynamic(a.float(), packed)
    pairs = gemm_i16(a, w, spill_every=2)
    assert pairs.saturated.any() and not torch.equal(pairs.values, gemm_i32(a, w))
    same.append([torch.equal(y, pairs.values.float()), torch.equal(y, gemm_i32(a, w).float())])
print(json.dumps(same))
"""


@pytest.mark.parametrize("engine", ["fbgemm", "onednn"])
@pytest.mark.parametrize("level", ["AVX2", "AVX512"])
def test_saturation_is_the_processors(engine, level):
    """Torch's int8 kernels, kept from using VNNI, cut pairs of products: exactly as ``spill_every=2``."""
    if level == "AVX512" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        pytest.skip("this processor has no AVX-512")
    isa = {"AVX2": "AVX2", "AVX512": "AVX512_CORE"}[level]
    environment = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": level, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ON_THE_PROCESSOR, engine],
        cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[True, False]] * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: affine_quantizer(0.0, 1.0, bits=9), r"bits must be in 2\.\.8, got 9"),
        (lambda: affine_quantizer(0.0, 1.0, bits=1), r"bits must be in 2\.\.8, got 1"),
        (lambda: affine_quantizer(0.0, float("nan")), "finite"),
        (lambda: affine_quantizer(1.0, 0.0), "low <= high"),
        (lambda: affine_quantizer(0.0, 1.0, symmetric=True), "signed"),
        (lambda: affine_quantizer(torch.zeros(2), torch.ones(2)), "one range per tensor"),
        (lambda: affine_quantizer(0.0, 1.0).quantize(torch.tensor([float("nan")])), "1 NaN or infinite"),
        (lambda: affine_quantizer(0.0, 1.0).quantize(torch.ones(0)), "at least one"),
        (lambda: affine_quantizer(0.0, 1.0).quantize(torch.ones(2, dtype=torch.int8)), "floating-point"),
        (lambda: gemm_i32(torch.zeros(2, 2), torch.zeros(2, 2)), "uint8 and int8"),
        (lambda: gemm_i32(torch.zeros(2, 3).byte(), torch.zeros(2, 2).char()), r"\(M, K\) and \(N, K\)"),
        (lambda: gemm_i32(torch.zeros(0, 3).byte(), torch.zeros(2, 3).char()), "none of them 0"),
        (lambda: gemm_i16(*matrices(0, 1, 1, 4), spill_every=3), "even"),
        (lambda: gemm_i16(*matrices(0, 1, 1, 4), spill_every=0), "even"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
