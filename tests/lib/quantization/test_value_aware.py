"""Value-aware quantization against torch's own quantiser, hand computation, closed forms and a slow twin."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.quantization import largest, value_aware
from lib.quantization.largest import large_count, split
from lib.quantization.value_aware import ValueAware, encode, fake_quantize, stored_bits

GRIDS = ("unsigned", "relu", "signed")
RATIOS = (0.0, 0.001, 0.02, 0.1, 1.0)


def activations(count: int = 10_000, seed: int = 0) -> torch.Tensor:
    """Like a ReLU's output: half zeros, heavy tail."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator).exp() * torch.randn(count, generator=generator)
    return x.relu()


def sample_of(grid: str, count: int = 10_000, seed: int = 0) -> torch.Tensor:
    return activations(count, seed) - (activations(count, seed + 1) if grid == "signed" else 0)


def slow_split(x: torch.Tensor, ratio: float) -> tuple[list[int], float]:
    """By sorting: larger magnitude first, then first in memory; never a zero."""
    magnitude = x.abs().flatten()
    order = sorted(range(x.numel()), key=lambda i: (-float(magnitude[i]), i))
    large = [i for i in order[: round(ratio * x.numel())] if magnitude[i] > 0]
    small = [float(magnitude[i]) for i in order[len(large) :]]
    return sorted(large), max(small, default=0.0)


# --- the split ---------------------------------------------------------------------------------------------

values = st.lists(st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, 1.0, -1.0, 2.0])), max_size=60)


@given(values=values, ratio=st.floats(0, 1), signed=st.booleans())
def test_the_split_is_exact(values, ratio, signed):
    x = torch.tensor(values, dtype=torch.float32)
    x = x if signed else x.relu()
    found = split(x, ratio, signed=signed)
    index, top = slow_split(x, ratio)
    assert found.index.tolist() == index and found.top == top
    assert torch.equal(found.values, x[found.index])


@pytest.mark.parametrize("sample", ["random", "sorted", "periodic", "few", "constant"])
@pytest.mark.parametrize("ratio", [0.0001, 0.02, 0.6])
def test_the_split_is_exact_where_the_sample_misleads(sample, ratio):
    x = activations(200_000)
    if sample == "sorted":
        x = x.sort().values
    if sample == "periodic":  # the sample takes every 64th element, all of them zero
        x[:: 200_000 // max(1024, 200_000 // 64)] = 0
    if sample == "few":  # fewer positive values than large ones are asked for
        x[10:] = 0
    if sample == "constant":
        x.fill_(3.0)
    found = split(x, ratio)
    expected = min(round(ratio * 200_000), int((x > 0).sum()))
    ordered = x.sort(descending=True).values
    assert len(found.index) == expected == len(set(found.index.tolist()))
    assert torch.equal(found.values.sort(descending=True).values, ordered[:expected])
    assert found.top == ordered[expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_are_never_large(dtype):
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # the smallest positive number
    x = torch.tensor([0.0, 0.0, 5.0, 0.0, least, 0.0], dtype=dtype)
    assert split(x, 0.6).index.tolist() == [2, 4]
    assert split(-x, 0.6, signed=True).index.tolist() == [2, 4]


@given(seed=st.integers(0, 1000))
def test_the_threshold_falls_as_the_ratio_grows(seed):
    tops = [split(activations(500, seed), ratio).top for ratio in (0, 0.01, 0.02, 0.05, 0.1, 0.5)]
    assert tops == sorted(tops, reverse=True)


def test_the_threshold_of_exponential_values_is_the_closed_form():
    """T = scale · ln(1 / ratio)."""
    x = torch.empty(1_000_000).exponential_(0.5, generator=torch.Generator().manual_seed(0))
    for ratio in (0.001, 0.01, 0.02):
        # Four standard deviations of a quantile: 2 sqrt(1 / (ratio N)).
        assert split(x, ratio).top == pytest.approx(2 * math.log(1 / ratio), abs=8 / math.sqrt(ratio * 1e6))


def test_large_values_are_counted_by_rounding_half_to_even():
    assert [large_count(n, 0.02) for n in (0, 24, 25, 26, 75, 1000)] == [0, 0, 0, 1, 2, 20]


# --- the quantised values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_without_large_values_it_is_torchs_own_quantiser(bits):
    x = activations()
    top = float(x.max())
    scale = float(torch.tensor(top / (2**bits - 1)))
    expected = torch.fake_quantize_per_tensor_affine(x, scale, 0, 0, 2**bits - 1)
    assert torch.equal(fake_quantize(x, bits, 0.0, grid="unsigned"), expected)
    if bits > 1:
        scale = float(torch.tensor(top / (2**bits - 2)))
        expected = torch.fake_quantize_per_tensor_affine(x, scale, 0, 0, 2**bits - 2)
        assert torch.equal(fake_quantize(x, bits, 0.0, grid="relu"), expected)
        x, high = sample_of("signed"), 2 ** (bits - 1) - 1
        scale = float(torch.tensor(float(x.abs().max()) / high))
        expected = torch.fake_quantize_per_tensor_affine(x, scale, 0, -high, high)
        assert torch.equal(fake_quantize(x, bits, 0.0, grid="signed"), expected)


def test_the_example_by_hand():
    x = torch.tensor([0, 1.1, 2.1, 3.1, 4, 10, 0.2])
    packed = encode(x, 3, 1 / 7, grid="relu")
    step = 4 / 6  # six steps up to the largest small value
    assert packed.step == pytest.approx(step) and packed.values.tolist() == [10.0]
    expected = torch.tensor([0, 2 * step, 3 * step, 5 * step, 6 * step, 10, 0])
    torch.testing.assert_close(packed.decode(), expected)
    assert packed.mask().tolist() == [0, 1, 1, 1, 1, 1, 1]  # 0.2 is zero, and its ReLU was open


@given(
    grid=st.sampled_from(GRIDS),
    bits=st.integers(2, 8),
    ratio=st.sampled_from(RATIOS),
    count=st.integers(0, 300),
)
def test_encode_and_decode_is_fake_quantize(grid, bits, ratio, count):
    x = sample_of(grid, count)
    packed = encode(x, bits, ratio, grid=grid)
    assert torch.equal(packed.decode(), fake_quantize(x, bits, ratio, grid=grid))


@pytest.mark.parametrize(
    ("grid", "bits"), [(grid, b) for grid in GRIDS for b in (1, 2, 3, 4, 8) if (grid, b) != ("signed", 1)]
)
@pytest.mark.parametrize("ratio", RATIOS)
def test_large_values_survive_and_small_ones_move_half_a_step(grid, bits, ratio):
    x = sample_of(grid)
    packed, large = encode(x, bits, ratio, grid=grid), split(x, ratio, signed=grid == "signed")
    y = packed.decode()
    assert torch.equal(y[large.index], x[large.index])
    error = (y - x).abs()
    if grid == "relu" and bits == 1:  # no level is left but zero
        assert float(error.max()) <= large.top
    else:
        assert float(error.max()) <= packed.step / 2 * (1 + 1e-5)
        assert packed.step == pytest.approx(
            large.top / {"unsigned": 2**bits - 1, "relu": 2**bits - 2, "signed": 2 ** (bits - 1) - 1}[grid]
        )
    assert torch.equal(fake_quantize(x, bits, 1.0, grid=grid), x)


@given(bits=st.integers(1, 8), ratio=st.sampled_from(RATIOS), seed=st.integers(0, 1000))
def test_the_relu_mask_survives_any_width(bits, ratio, seed):
    x = activations(300, seed)
    x[::7] *= 1e-44  # the smallest positive numbers there are
    assert torch.equal(encode(x, bits, ratio).mask(), (x > 0).float())


def test_the_relu_mask_is_lost_without_its_second_zero():
    """The broken twin: one zero only, as V-Quant has it."""
    x = activations()
    assert not torch.equal((encode(x, 3, 0.02, grid="unsigned").decode() > 0).float(), (x > 0).float())


def test_the_error_of_uniform_values_is_a_twelfth_of_the_squared_step():
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    error = [
        float((fake_quantize(x, b, 0.0, grid="unsigned") - x).double().square().mean()) for b in range(1, 9)
    ]
    for bits, got in enumerate(error, start=1):
        assert got == pytest.approx((1 / (2**bits - 1)) ** 2 / 12, rel=0.05)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_mean_squared_error_falls_with_the_ratio(bits):
    x = activations(200_000)
    error = [float((fake_quantize(x, bits, r) - x).square().mean()) for r in (0, 0.001, 0.01, 0.02, 0.05)]
    assert error == sorted(error, reverse=True) and error[3] < error[0] / 10


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_grid_scales_with_the_values(scale, grid):
    x = sample_of(grid, 1000) / 100
    expected = fake_quantize(x, 3, 0.02, grid=grid)
    got = fake_quantize(x * scale, 3, 0.02, grid=grid)
    if scale == 1e-38:  # too small for a step: zero, and no NaN
        assert torch.isfinite(got).all() and float(got.abs().max()) <= float((x * scale).abs().max())
    else:
        torch.testing.assert_close(got / scale, expected, rtol=1e-5, atol=1e-6)


# --- what is stored ----------------------------------------------------------------------------------------


def test_bits_of_the_formula():
    assert stored_bits(1000, 3, 0.02) == 4280
    assert stored_bits(1000, 3, 0.02, mask=True) == 5280
    assert stored_bits(1000, 4, 0.01, value_bits=16, index_bits=0) == 4160
    rv, v = 32_000 / stored_bits(1000, 3, 0.02), 32_000 / stored_bits(1000, 3, 0.02, mask=True)
    assert (round(rv, 1), round(v, 1)) == (7.5, 6.1)


@given(count=st.integers(0, 400), bits=st.integers(2, 8), ratio=st.sampled_from((0.0, 0.02, 0.5)))
def test_what_is_stored_has_the_size_of_the_formula(count, bits, ratio):
    x = activations(8 * count) + 0.1  # no zeros
    for value_dtype, value_bits in ((torch.float32, 32), (torch.float16, 16)):
        packed = encode(x, bits, ratio, grid="unsigned", value_dtype=value_dtype)
        assert packed.nbytes * 8 == stored_bits(8 * count, bits, ratio, value_bits=value_bits)
    assert packed.bits == bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels last", "transposed", "expanded", "sliced", "odd", "offset"]
)
def test_layout_and_type_come_back(layout, dtype):
    x = activations(2 * 3 * 8 * 9).to(dtype).view(2, 3, 8, 9)
    x = {
        "contiguous": lambda: x,
        "channels last": lambda: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: x.permute(3, 0, 2, 1),
        "expanded": lambda: x[:1].expand(5, -1, -1, -1),
        "sliced": lambda: x[:, :, ::2],
        "odd": lambda: x[:1, :1, :3, :7],
        "offset": lambda: x[1:],
    }[layout]()
    flat = x.flatten().float()  # the same elements in another order: the same split where there are no ties
    packed = encode(x, 3, 0.05)
    y = packed.decode()
    assert y.shape == x.shape and y.dtype == dtype
    if layout in ("contiguous", "channels last", "transposed", "offset"):
        assert y.stride() == x.stride()
    assert torch.equal(packed.mask(), (x > 0).to(dtype))
    assert torch.equal(y, fake_quantize(x, 3, 0.05))
    if layout != "expanded":  # repeated values tie
        assert torch.equal(y.flatten(), fake_quantize(flat, 3, 0.05).to(dtype))


def test_blocks_leave_no_seam(monkeypatch):
    x = activations(100_000)
    whole = encode(x, 3, 0.02), fake_quantize(x, 3, 0.02)
    monkeypatch.setattr(value_aware, "BLOCK", 1000)
    monkeypatch.setattr(largest, "SCAN", 1000)
    parts = encode(x, 3, 0.02)
    assert torch.equal(parts.codes, whole[0].codes) and torch.equal(parts.index, whole[0].index)
    assert torch.equal(parts.decode(), whole[1]) and torch.equal(fake_quantize(x, 3, 0.02), whole[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode(torch.ones(8), 3, 1.5), "ratio is the share of large values, in 0..1, got 1.5"),
        (lambda: encode(torch.ones(8), 3, -0.1), "ratio is the share"),
        (lambda: encode(torch.ones(8), 3, math.nan), "ratio is the share"),
        (lambda: encode(torch.ones(8), 0), r"bits of the grid 'relu' must be in 1\.\.8, got 0"),
        (lambda: encode(torch.ones(8), 9), r"must be in 1\.\.8, got 9"),
        (lambda: encode(torch.ones(8), 1, grid="signed"), r"'signed' must be in 2\.\.8, got 1"),
        (lambda: encode(torch.ones(8), grid="ReLU"), "grid must be"),
        (lambda: encode(torch.tensor([1.0, math.nan])), "values must be finite, got 1 NaN"),
        (lambda: encode(torch.tensor([1.0, math.inf])), "values must be finite"),
        (lambda: encode(torch.tensor([1.0, -math.inf]), grid="signed"), "values must be finite"),
        (lambda: fake_quantize(torch.full((5000,), math.nan)), "got 5000 NaN"),
        (lambda: encode(torch.tensor([1.0, -2.0])), "must not be negative for this grid, the lowest is -2"),
        (lambda: encode(torch.tensor([1, 2])), "expected float32, float16 or bfloat16, got torch.int64"),
        (lambda: encode(torch.ones(8, dtype=torch.float64)), "got torch.float64"),
        (
            lambda: encode(torch.full((8,), 1e6), 3, 0.5, value_dtype=torch.float16),
            "does not fit torch.float16: 1e",
        ),
        (lambda: encode(torch.ones(8), grid="unsigned").mask(), "only the grid 'relu'"),
        (lambda: ValueAware(1, signed=True), "signed values need at least 2 bits"),
        (lambda: ValueAware(4, ratio=2.0), "ratio is the share"),
        (lambda: ValueAware(9), "bits must be in 1..8 or None, got 9"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- the module --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_the_module_keeps_the_common_interface(signed):
    quantizer = ValueAware(4, ratio=0.01, signed=signed)
    x = sample_of("signed" if signed else "unsigned").requires_grad_()
    y = quantizer(x)
    packed = quantizer.encode(x)
    assert torch.equal(quantizer.decode(packed), y.detach())
    (gradient,) = torch.autograd.grad((y * torch.arange(10_000.0)).sum(), x)
    assert torch.equal(gradient, torch.arange(10_000.0))  # straight through
    large = split(x, 0.01, signed=signed).index
    small = torch.ones(10_000, dtype=torch.bool)
    small[large] = False
    levels = quantizer.levels()
    assert len(levels) == (15 if signed else 16)
    assert torch.isin(y[small], levels).all()
    assert torch.equal(y[large], x[large].half().float())
    other = ValueAware(4, ratio=0.01, signed=signed).initialise(x.detach())
    assert torch.equal(other.levels(), levels)
    assert packed.nbytes * 8 == stored_bits(10_000, 4, 0.01, value_bits=16)
    quantizer.bits = None
    assert torch.equal(quantizer(x), x)


def test_the_module_takes_an_empty_batch_and_refuses_integers():
    quantizer = ValueAware(4)
    assert quantizer(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="floating-point"):
        quantizer(torch.ones(3, dtype=torch.int64))


# --- a clipped grid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("ratio", [0.0, 0.02])
def test_a_clipped_grid_ends_where_the_squared_error_is_least(grid, bits, ratio):
    """No other of 400 ends is better by a hundredth; the twin, an end at the largest value, is far worse."""
    x = sample_of(grid)
    found = fake_quantize(x, bits, ratio, grid=grid, clipped=True)
    least = float((found - x).square().sum())
    large = split(x, ratio, signed=grid == "signed")
    small = torch.ones(len(x), dtype=torch.bool)
    small[large.index] = False
    highest = 2 ** (bits - 1) - 1 if grid == "signed" else 2**bits - (2 if grid == "relu" else 1)
    low = -highest if grid == "signed" else 0
    errors = []
    for share in torch.linspace(0.01, 1, 400):
        step = large.top * share / highest
        errors.append(float((((x / step).round().clamp(low, highest) * step - x)[small]).square().sum()))
    assert least <= 1.01 * min(errors)
    assert torch.equal(found[large.index], x[large.index])
    if ratio == 0.0:
        assert least < 0.8 * float((fake_quantize(x, bits, ratio, grid=grid) - x).square().sum())


@pytest.mark.parametrize("grid", GRIDS)
def test_a_clipped_grid_is_stored_as_it_is_computed(grid):
    x = sample_of(grid)
    packed = encode(x, 3, 0.01, grid=grid, clipped=True)
    assert torch.equal(packed.decode(), fake_quantize(x, 3, 0.01, grid=grid, clipped=True))
    if grid == "relu":
        assert torch.equal(packed.mask(), (x > 0).float())  # clipped or not, the ReLU was open


def test_a_module_with_a_clipped_grid():
    x = sample_of("signed")
    quantizer = ValueAware(4, ratio=0.01, signed=True, clipped=True).initialise(x)
    expected = fake_quantize(x, 4, 0.01, grid="signed", value_dtype=torch.float16, clipped=True)
    assert torch.equal(quantizer(x), expected)
    small = expected[(expected != 0) & (expected.abs() <= 7.5 * quantizer.step)]
    assert torch.allclose(small / quantizer.step, (small / quantizer.step).round(), atol=1e-4)
    assert torch.equal(quantizer.decode(quantizer.encode(x)), expected)


@pytest.mark.parametrize("x", [torch.zeros(8), torch.ones(8), torch.empty(0)])
def test_a_clipped_grid_of_what_has_no_spread(x):
    assert torch.equal(fake_quantize(x, 3, 0.0, grid="relu", clipped=True), x)
