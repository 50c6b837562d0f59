"""All quantisers: what they share, each against its published formula and against torch's own."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.quantization import rounding as core
from lib.quantization.dorefa import DoReFaActivation, DoReFaWeight
from lib.quantization.duq import DuQ
from lib.quantization.laplace import Laplace, laplace_error, laplace_step
from lib.quantization.lsq import LSQ, LSQPlus
from lib.quantization.pact import PACT
from lib.quantization.qil import QIL
from lib.quantization.quantizer import Quantizer
from lib.quantization.rounding import fake_quantize
from lib.quantization.uniform import Uniform

#: Quantisers whose levels are on the scale of their input, with a grid that does not follow each tensor.
ON_SCALE = {
    "uniform symmetric": Uniform,
    "uniform asymmetric": lambda bits: Uniform(bits, symmetric=False),
    "uniform unsigned": lambda bits: Uniform(bits, signed=False),
    "uniform least squares": lambda bits: Uniform(bits, range_from="mse"),
    "DoReFa activations": DoReFaActivation,
    "PACT": PACT,
    "PACT signed": lambda bits: PACT(bits, signed=True),
    "LSQ": LSQ,
    "LSQ narrow": lambda bits: LSQ(bits, narrow=True),
    "LSQ unsigned": lambda bits: LSQ(bits, signed=False),
    "LSQ+": LSQPlus,
    "DuQ": DuQ,
    "DuQ symmetric": lambda bits: DuQ(bits, grid="symmetric"),
    "DuQ h-swish": lambda bits: DuQ(bits, grid="hswish"),
    "DuQ weight": lambda bits: DuQ(bits, grid="weight"),
    "Laplace": lambda bits: Laplace(bits, adaptive=False),
    "Laplace mid-rise": lambda bits: Laplace(bits, grid="mid-rise", adaptive=False),
    "Laplace one-sided": lambda bits: Laplace(bits, one_sided=True),
}
OTHERS = {
    "DoReFa weights": DoReFaWeight,
    "QIL": QIL,
    "QIL without exponent": lambda bits: QIL(bits, learn_exponent=False),
    "QIL activations": lambda bits: QIL(bits, signed=False),
    "Laplace of each tensor": Laplace,
}
EVERY = ON_SCALE | OTHERS
every = pytest.mark.parametrize("name", EVERY)
on_scale = pytest.mark.parametrize("name", ON_SCALE)
values = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40).map(torch.tensor)
widths = st.integers(2, 8)


def made(name: str, bits: int, x: torch.Tensor) -> Quantizer:
    return EVERY[name](bits).initialise(x)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- what all share ---------------------------------------------------------------------------------------


def check_values_are_levels(quantizer, x):
    y = quantizer(x)
    assert torch.isin(y, quantizer.levels()).all()
    assert torch.equal(quantizer.decode(quantizer.encode(x)), y)


def check_monotone(quantizer, x):
    y = quantizer(x.sort().values)
    assert (y.diff() >= 0).all()


def check_half_step(quantizer, x):
    levels = quantizer.levels()
    inside = (x >= levels[0]) & (x <= levels[-1])
    half = quantizer.grid().step / 2
    assert ((quantizer(x) - x).abs()[inside] <= half * (1 + 1e-5) + 1e-6 * x.abs()[inside]).all()
    assert torch.equal(quantizer(x)[x < levels[0]], levels[:1].expand(int((x < levels[0]).sum())))
    assert torch.equal(quantizer(x)[x > levels[-1]], levels[-1:].expand(int((x > levels[-1]).sum())))


def check_exact_at_its_levels(quantizer, x):
    assert torch.equal(quantizer(quantizer.levels()), quantizer.levels())
    assert torch.equal(quantizer(quantizer(x)), quantizer(x))


@every
@given(x=values, bits=widths)
def test_every_value_is_a_level_and_codes_are_exact(name, x, bits):
    check_values_are_levels(made(name, bits, x), x)


@every
@given(x=values, bits=widths)
def test_monotone(name, x, bits):
    check_monotone(made(name, bits, x), x)


@on_scale
@given(x=values, bits=widths, other=values)
def test_within_half_a_step_and_exact_at_its_levels(name, x, bits, other):
    quantizer = made(name, bits, x)
    check_half_step(quantizer, other)
    check_exact_at_its_levels(quantizer, other)


class Floor(LSQ):
    """Broken: rounds down."""

    def quantize(self, x):
        low, high = self._bounds()
        return torch.floor(x / self.step).clamp(low, high) * self.step


class Shuffled(LSQ):
    """Broken: neither monotone nor idempotent."""

    def quantize(self, x):
        return super().quantize(-x)


class Unrounded(LSQ):
    """Broken: clips, but does not round."""

    def quantize(self, x):
        low, high = self._bounds()
        return (x / self.step).clamp(low, high) * self.step


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Floor, check_half_step),
        (Shuffled, check_monotone),
        (Shuffled, check_exact_at_its_levels),
        (Unrounded, check_values_are_levels),
    ],
)
def test_the_checks_fail_broken_quantisers(broken, check):
    x = random(200)
    check(LSQ(3).initialise(x), x)
    with pytest.raises(AssertionError):
        check(broken(3).initialise(x), x)


@every
def test_number_of_levels(name):
    x = random(5000)
    for bits in (2, 3, 4, 8):
        quantizer = made(name, bits, x)
        quantizer(x)
        count = len(quantizer.levels())
        symmetric = name in ("uniform symmetric", "uniform least squares", "PACT signed", "LSQ narrow",
                             "DuQ symmetric", "DuQ weight", "Laplace", "QIL", "QIL without exponent",
                             "Laplace of each tensor")  # fmt: skip
        assert count == (2**bits - 1 if symmetric else 2**bits)
        assert (quantizer.levels().diff() > 0).all()
        assert quantizer.encode(x).dtype == torch.uint8


@every
def test_bits_are_checked_and_may_be_set(name):
    for bits in (0, 9, -1, True, 2.5):
        with pytest.raises(ValueError, match=r"bits must be in [12]\.\.8 or None, got"):
            EVERY[name](bits)
    quantizer = EVERY[name](4)
    with pytest.raises(ValueError, match="bits must be in"):
        quantizer.bits = 16
    quantizer.bits = 2
    assert f"bits={quantizer.bits}" in repr(quantizer)
    x = random(10)
    quantizer.bits = None
    assert torch.equal(quantizer(x), x)
    with pytest.raises(ValueError, match="set bits"):
        quantizer.levels()


@pytest.mark.parametrize(
    "name", ["uniform symmetric", "PACT signed", "LSQ", "DuQ symmetric", "Laplace", "QIL"]
)
def test_one_bit_has_no_sign(name):
    with pytest.raises(ValueError, match=r"bits must be in 2\.\.8"):
        EVERY[name](1)


@pytest.mark.parametrize("name", ["PACT", "LSQ unsigned", "DuQ", "DuQ h-swish", "DoReFa weights",
                                  "DoReFa activations", "Laplace mid-rise", "Laplace one-sided"])  # fmt: skip
def test_one_bit_has_two_levels(name):
    x = random(100)
    quantizer = made(name, 1, x)
    assert len(quantizer(x).unique()) == len(quantizer.levels()) == 2


@every
def test_wrong_input_is_refused(name):
    quantizer = EVERY[name](3)
    with pytest.raises(ValueError, match=r"floating-point tensors, got torch\.int64"):
        quantizer(torch.arange(3))
    for bad in (torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.empty(0)):
        with pytest.raises(ValueError, match="at least one finite floating-point value"):
            quantizer.initialise(bad)
    with pytest.raises(ValueError, match="at least one finite"):
        quantizer.initialise(torch.arange(3))
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        quantizer.encode(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="codes are integers"):
        quantizer.decode(torch.rand(3))
    with pytest.raises(ValueError, match=r"codes are in 0\.\.\d+, got 0\.\.200"):
        quantizer.decode(torch.tensor([0, 200]))


TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INPUTS = {
    "normal": random(3, 20).abs() * 0.8,
    "both signs": random(3, 20),
    "zeros": torch.zeros(3, 4),
    "constant": torch.full((3, 4), 0.75),
    "negative constant": torch.full((3, 4), -0.75),
    "no axes": torch.tensor(0.75),
    "one element": torch.tensor([0.75]),
    "large": torch.tensor([0.5, 3000.0, -3000.0]),
    "tiny": torch.tensor([3e-5, 6e-5]),
}


@every
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("label", INPUTS)
def test_any_type_and_any_values(name, dtype, label):
    """Shape and type stay, values are finite levels in the input's type, gradients finite, codes exact."""
    x = INPUTS[label].to(dtype)
    quantizer = made(name, 4, x)
    inputs = x.clone().requires_grad_()
    y = quantizer(inputs)
    assert y.shape == x.shape and y.dtype == dtype and y.isfinite().all()
    codes = quantizer.encode(x)
    assert codes.shape == x.shape and torch.equal(quantizer.decode(codes, dtype), y)
    levels = quantizer.levels()
    assert levels.isfinite().all() and (levels.diff() > 0).all()
    assert torch.isin(y.float(), levels.to(dtype).float()).all() or dtype == torch.float64
    y.sum().backward()
    grads = [inputs.grad, *(p.grad for p in quantizer.parameters())]
    assert all(grad.isfinite().all() for grad in grads)


@every
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nan_stays_where_it_is_and_infinities_are_clipped(name, dtype):
    quantizer = made(name, 3, random(100))
    x = torch.tensor([0.3, torch.nan, torch.inf, -torch.inf, 0.9], dtype=dtype)
    y = quantizer(x)
    assert y.isnan().tolist() == [False, True, False, False, False]
    if name not in ("DoReFa weights", "Laplace of each tensor"):  # their grids follow the tensor
        assert torch.equal(y[2:4], quantizer(torch.tensor([9.0, -9.0], dtype=dtype)))
        finite = torch.tensor([0.3, 0.3, 9.0, -9.0, 0.9], dtype=dtype)
        assert torch.equal(y[[0, 4]], quantizer(finite)[[0, 4]])
    infinite = torch.tensor([0.3, torch.inf, -torch.inf], dtype=dtype, requires_grad=True)
    quantizer(infinite).sum().backward()
    assert all(p.grad.isfinite().all() for p in [infinite, *quantizer.parameters()])


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_measured_in_single(name):
    """Squared errors, and twice a mean, leave float16; a range in bfloat16 has three digits."""
    x = (random(50_000) * 3000).half()
    for values in (x, x.bfloat16()):
        ranges, expected = (made(name, 4, v).state_dict() for v in (values, values.float()))
        assert all(torch.equal(ranges[key], expected[key]) for key in expected)


def test_float64_beyond_float32_is_refused():
    with pytest.raises(ValueError, match="1 NaN or infinite values"):
        LSQ(4).initialise(torch.tensor([1.0, 1e300], dtype=torch.float64))


def test_there_is_one_channel_at_least():
    for make in (LSQ, Laplace, Uniform):
        with pytest.raises(
            ValueError, match=f"^{make.__name__}: channels must be at least 1 or None, got 0$"
        ):
            make(4, channels=0)


@every
def test_full_precision_has_no_sign_of_its_own(name):
    quantizer = EVERY[name](None).initialise(random(10))
    with pytest.raises(ValueError, match="set bits"):
        assert quantizer.signed is None


@every
def test_empty_batches_pass(name):
    quantizer = made(name, 3, random(10))
    x = torch.empty(0, 3, 4, 4, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert quantizer.encode(x.detach()).shape == x.shape


@every
def test_memory_layout_does_not_matter(name):
    x = random(4, 6, 5, 3)
    layouts = {
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "permuted": lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "with gaps": lambda t: torch.stack([t, -t], dim=-1)[..., 0],
        "expanded gradient": lambda t: t,
    }
    results = {}
    for label, arrange in ({"contiguous": torch.Tensor.contiguous} | layouts).items():
        quantizer = made(name, 3, x)
        inputs = arrange(x.clone()).requires_grad_()
        y = quantizer(inputs)
        g = random(4, 6, 5, 3, seed=1)
        y.backward(torch.ones(1).expand(4, 6, 5, 3) if label == "expanded gradient" else g)
        results[label] = (y, inputs.grad, [p.grad for p in quantizer.parameters()])
        if label == "channels last" and name in ON_SCALE:
            assert y.is_contiguous(memory_format=torch.channels_last)
    del results["expanded gradient"]
    first = results.pop("contiguous")
    for y, dx, grads in results.values():
        assert torch.equal(y, first[0])
        torch.testing.assert_close(dx, first[1])
        torch.testing.assert_close(grads, first[2])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_keep_their_type(name, dtype):
    x = random(300)
    quantizer = made(name, 3, x)
    inputs = x.to(dtype).requires_grad_()
    y = quantizer(inputs)
    y.float().sum().backward()
    assert y.dtype == inputs.grad.dtype == dtype
    assert all(p.grad.dtype == torch.float32 for p in quantizer.parameters())
    if dtype == torch.float64 and name in ON_SCALE:
        torch.testing.assert_close(y.float(), quantizer(x), rtol=1e-5, atol=1e-6)


@every
def test_state_round_trip(name):
    x = random(500)
    quantizer, other = made(name, 3, x), EVERY[name](3)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer(x), other(x))


# --- gradients --------------------------------------------------------------------------------------------


def reference(x, step, low, high, offset, out_step, out_offset, g):
    """The table of `fake_quantize`, written out element by element in float64."""
    u = (x - offset) / step
    inside = (u > low) & (u < high)
    k = u.round().clamp(low, high)
    return {
        "y": k * out_step + out_offset,
        "x": torch.where(inside, g * out_step / step, 0.0),
        "step": -(torch.where(inside, g * u, 0.0) * out_step / step),
        "out_step": g * k,
        "offset": -torch.where(inside, g, 0.0) * out_step / step,
        "out_offset": g,
        "clip": torch.where(inside, 0.0, g * k.sign()),
    }


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("block", [7, core.BLOCK])
def test_the_gradients_of_the_core(channels, block, monkeypatch):
    monkeypatch.setattr(core, "BLOCK", block)
    x, g = random(3, 50, dtype=torch.float64) * 3, random(3, 50, seed=1, dtype=torch.float64)
    numbers = {"step": 0.4, "offset": -0.7, "out_step": 0.5, "out_offset": 0.2}
    count = 3 if channels else 1
    scales = {
        name: (value * (1 + torch.arange(count, dtype=torch.float64) / 10)).requires_grad_()
        for name, value in numbers.items()
    }
    clip = torch.ones(count, dtype=torch.float64, requires_grad=True)
    inputs = x.clone().requires_grad_()
    y = fake_quantize(inputs, scales["step"], low=-2, high=5, offset=scales["offset"],
                      out_step=scales["out_step"], out_offset=scales["out_offset"], clip=clip)  # fmt: skip
    y.backward(g)
    columns = {name: value.detach()[:, None] for name, value in scales.items()}
    expected = reference(x, low=-2, high=5, g=g, **columns)
    torch.testing.assert_close(y, expected["y"])
    torch.testing.assert_close(inputs.grad, expected["x"])
    for name, value in {**scales, "clip": clip}.items():
        total = expected[name].sum(1) if channels else expected[name].sum().reshape(1)
        torch.testing.assert_close(value.grad, total, msg=name)


def test_a_wrong_gradient_would_be_seen():
    x, g = random(100, dtype=torch.float64) * 3, random(100, seed=1, dtype=torch.float64)
    one = torch.tensor([0.4], dtype=torch.float64)
    rounded_mask = (x / one).round().abs() <= 3  # torch's mask, not the literature's
    inside = (x / one).abs() < 3
    assert not torch.equal(rounded_mask, inside)
    expected = reference(x, one, -3, 3, 0, one, 0, g)["x"]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.where(rounded_mask, g, 0.0), expected)


def test_a_collapsed_range_gives_no_infinities():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    quantizer = DuQ(3, grid="symmetric")
    with torch.no_grad():
        quantizer.a.fill_(-200.0)  # softplus is zero in float32
    quantizer(x).sum().backward()
    assert all(value.isfinite().all() for value in (x.grad, quantizer.a.grad, quantizer.c.grad))


def test_steps_per_channel_must_fit():
    with pytest.raises(ValueError, match="as many as dimension 0"):
        fake_quantize(torch.rand(4, 2), torch.ones(3), low=0, high=3)
    with pytest.raises(ValueError, match="channels, data with"):
        LSQ(3, channels=3).initialise(torch.rand(4, 2))


PER_CHANNEL = [
    lambda count: LSQ(3, channels=count),
    lambda count: Laplace(3, channels=count),
    lambda count: Uniform(3, channels=count),
    lambda count: Uniform(3, channels=count, symmetric=False, range_from="mse"),
]


@pytest.mark.parametrize("make", PER_CHANNEL)
def test_per_channel_is_each_channel_alone(make):
    x = random(4, 3, 5) * torch.tensor([0.1, 1.0, 5.0, 20.0])[:, None, None]
    together = make(4).initialise(x)
    y = together(x)
    alone = [make(1).initialise(row) for row in x]
    torch.testing.assert_close(y, torch.stack([q(row) for q, row in zip(alone, x, strict=True)]))
    assert together.levels().shape == (4, len(alone[0].levels()))
    assert torch.equal(together.decode(together.encode(x)), y)
    channels_last = x[..., None].contiguous(memory_format=torch.channels_last)
    assert torch.equal(together(channels_last)[..., 0], y)


def test_pact_counts_the_clipped_elements():
    quantizer = PACT(2, alpha=1.0)
    x = torch.tensor([-1.0, 0.0, 0.3, 0.99, 1.0, 1.5, 7.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert quantizer.alpha.grad.item() == 3  # x >= alpha
    assert x.grad.tolist() == [0, 0, 1, 1, 0, 0, 0]
    signed = PACT(3, signed=True, alpha=1.0)
    signed(torch.tensor([-5.0, -2.0, 0.5, 3.0])).sum().backward()
    assert signed.alpha.grad.item() == -1


def test_lsq_step_gradient_is_the_papers():
    x = random(1000, dtype=torch.float64) * 2
    quantizer = LSQ(3).double()
    with torch.no_grad():
        quantizer.step.fill_(0.5)
    g = random(1000, seed=1, dtype=torch.float64)
    quantizer(x).backward(g)
    v = x / 0.5
    slope = torch.where(v <= -4, -4.0, torch.where(v >= 3, 3.0, v.round() - v))
    torch.testing.assert_close(quantizer.step.grad.item(), (g * slope).sum().item() / math.sqrt(1000 * 3))


@pytest.mark.parametrize("make", [LSQ, LSQPlus])
def test_gradients_that_cancel_keep_their_digits(make):
    """Σ g k and Σ g u, taken apart in float32 and subtracted, lose some hundred times more."""
    x = (random(100_000) * 4096).round() / 4096  # so that u, and what it rounds to, is exact
    g = 1 + random(100_000, seed=1) / 100
    gradients = []
    for dtype in (torch.float32, torch.float64):
        quantizer = make(8, scale_gradient=False).to(dtype)
        with torch.no_grad():
            quantizer.step.fill_(2**-5)
            if make is LSQPlus:
                quantizer.beta.fill_(-4.0)
        quantizer(x.to(dtype)).backward(g.to(dtype))
        gradients.append(torch.cat([parameter.grad for parameter in quantizer.parameters()]).double())
    assert ((gradients[0] - gradients[1]).abs() / len(x)).max() < 2e-8


def test_lsq_counts_the_elements_that_share_a_step():
    """N is the whole tensor, or a channel's share of it; a count of the whole tensor would be seen."""
    x, g = random(4, 250, dtype=torch.float64) * 2, random(4, 250, seed=1, dtype=torch.float64)
    quantizer = LSQ(3, channels=4).double()
    with torch.no_grad():
        quantizer.step.fill_(0.5)
    quantizer(x).backward(g)
    v = x / 0.5
    slope = torch.where(v <= -4, -4.0, torch.where(v >= 3, 3.0, v.round() - v))
    total = (g * slope).sum(1)
    torch.testing.assert_close(quantizer.step.grad, total / math.sqrt(250 * 3))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(quantizer.step.grad, total / math.sqrt(1000 * 3))


def test_lsq_equals_torch_outside_its_half_step_bands():
    # torch's function is private: known with torch 2.13
    x = random(20_000, dtype=torch.float64) * 3
    low, high, step = -4, 3, 0.7
    u = x / step
    x = x[
        ~(((u > high) & (u < high + 0.5)) | ((u < low) & (u > low - 0.5))) & ((u % 1 - 0.5).abs() > 1e-6)
    ].float()
    results = []
    for kind in ("ours", "torch"):
        inputs = x.clone().requires_grad_()
        quantizer = LSQ(3, scale_gradient=False)
        with torch.no_grad():
            quantizer.step.fill_(step)
        if kind == "ours":
            y = quantizer(inputs)
        else:
            y = torch._fake_quantize_learnable_per_tensor_affine(
                inputs, quantizer.step, torch.zeros(1), low, high, 1.0
            )
        y.backward(random(len(x), seed=2))
        results.append((y.detach(), inputs.grad, quantizer.step.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_in_torchs_band_lsq_is_the_papers():
    """At x/s = 7.2 with Q_P = 7 torch passes dx = 1 and ds = -0.2; the paper has 0 and 7."""
    quantizer = LSQ(4, scale_gradient=False)
    x = torch.tensor([7.2], requires_grad=True)
    quantizer(x).backward()
    assert (x.grad.item(), quantizer.step.grad.item()) == (0, 7)


@pytest.mark.parametrize("symmetric", [True, False])
def test_uniform_equals_torchs_fake_quantize(symmetric):
    x = random(5000) + 0.3
    quantizer = Uniform(4, symmetric=symmetric).initialise(x)
    grid = quantizer.grid()
    zero_point = round(float(-grid.offset / grid.step))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    near = ((x / grid.step) % 1 - 0.5).abs() < 1e-4
    y = quantizer(ours)
    expected = torch.fake_quantize_per_tensor_affine(
        theirs, float(grid.step), zero_point, grid.low, grid.high
    )
    torch.testing.assert_close(y[~near], expected[~near], rtol=1e-5, atol=1e-6)
    y.sum().backward()
    expected.sum().backward()
    ends = ((x - grid.offset) / grid.step <= grid.low) | ((x - grid.offset) / grid.step >= grid.high)
    assert torch.equal(ours.grad[~ends], theirs.grad[~ends])
    assert 0.0 in quantizer.levels()


def test_least_squares_range_beats_the_extremes_and_its_neighbours():
    x = torch.cat([random(4000), torch.tensor([30.0])])
    extremes, best = Uniform(3).initialise(x), Uniform(3, range_from="mse").initialise(x)
    error = (best(x) - x).square().sum()
    assert error < (extremes(x) - x).square().sum()
    for factor in (0.9, 1.1):
        other = Uniform(3).initialise(x)
        other.upper.copy_(best.upper * factor)
        assert error <= (other(x) - x).square().sum()
    whole = Uniform(None, range_from="mse").initialise(x)  # there is no error to search without bits
    assert whole.upper.item() == 30.0 and torch.equal(whole(x), x)


def test_dorefa_levels_and_gradient():
    w = random(3000)
    thirds = DoReFaWeight(2)
    torch.testing.assert_close(thirds(w).unique(), torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    inputs = w.double().requires_grad_()
    g = random(3000, seed=1, dtype=torch.float64)
    thirds(inputs).backward(g)
    other = w.double().requires_grad_()
    (2 * (other.tanh() / (2 * other.tanh().abs().max()) + 0.5) - 1).backward(g)  # rounding passed straight
    torch.testing.assert_close(inputs.grad, other.grad)
    one = DoReFaWeight(1)
    torch.testing.assert_close(one(w), w.sign() * w.abs().mean())
    x = torch.tensor([-0.1, 0.2, 0.9, 1.3], requires_grad=True)
    DoReFaActivation(1)(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_lsq_plus_offset_gradient_counts_what_is_outside():
    quantizer = LSQPlus(2, scale_gradient=False).initialise(torch.tensor([-1.0, 2.0]))
    assert torch.equal(quantizer.levels(), torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    quantizer(torch.tensor([-3.0, -0.5, 0.4, 1.7, 5.0, 6.0])).sum().backward()
    assert quantizer.beta.grad.item() == 3


@pytest.mark.parametrize("exponent", [False, True])
def test_qil_is_the_published_transformer(exponent):
    quantizer = QIL(3, learn_exponent=exponent).double()
    with torch.no_grad():
        quantizer.centre.fill_(0.8)
        quantizer.half_width.fill_(0.6)
        if exponent:
            quantizer.exponent.fill_(1.4)
    w = random(2000, dtype=torch.float64).requires_grad_()
    y = quantizer(w)
    g = random(2000, seed=1, dtype=torch.float64)
    y.backward(g)
    c, d, e = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.8, 0.6, 1.4 if exponent else 1.0)
    )
    other = w.detach().clone().requires_grad_()
    alpha, beta = 0.5 / d, -0.5 * c / d + 0.5
    inside = ((other.abs() > c - d) & (other.abs() < c + d)).detach()
    t = torch.where(
        inside, (alpha * other.abs() + beta).clamp(1e-12, 1) ** e, (other.abs() >= c + d).double()
    )
    expected = (t.detach() * 3).round() / 3 * other.detach().sign()
    torch.testing.assert_close(y.detach(), expected)
    (t * other.detach().sign()).backward(g)
    torch.testing.assert_close(w.grad, other.grad)
    if exponent:
        torch.testing.assert_close(quantizer.exponent.grad, e.grad.reshape(1))
    # Without an exponent the core's convention drops nothing of c and d either.
    torch.testing.assert_close(quantizer.centre.grad, c.grad.reshape(1))
    torch.testing.assert_close(quantizer.half_width.grad, d.grad.reshape(1))
    assert (y[w.abs() < 0.2] == 0).all() and (y[w > 1.4] == 1).all()


def test_qil_rescaled_keeps_the_scale():
    x = random(500) * 0.01
    y = QIL(8, rescale=True).initialise(x)(x)
    assert y.std().item() == pytest.approx(float(x.std()), rel=0.02)


# --- Laplace ----------------------------------------------------------------------------------------------

#: bits, grid, step / mean|x|, MSE / (mean|x|)²
LAPLACE = [
    (1, "mid-rise", 2.0, 1.0), (2, "mid-tread", 2.0, 0.52848), (2, "mid-rise", 1.5378, 0.39260),
    (3, "mid-tread", 1.1621, 0.16617), (3, "mid-rise", 1.0337, 0.14350), (4, "mid-tread", 0.6886, 0.05479),
    (4, "mid-rise", 0.6519, 0.05070), (5, "mid-tread", 0.4065, 0.01817), (8, "mid-tread", 0.0778, 0.00061),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "grid", "step", "error"), LAPLACE)
def test_laplace_constants(bits, grid, step, error):
    assert laplace_step(bits, grid) == pytest.approx(step, abs=5e-5)
    assert laplace_error(laplace_step(bits, grid), bits, grid) == pytest.approx(error, abs=6e-6)


def test_laplace_closed_forms():
    assert laplace_step(2) == pytest.approx(2, abs=1e-6)
    assert laplace_error(2.0, 2) == pytest.approx(2 - 4 / math.e, abs=1e-12)
    assert laplace_step(1, "mid-rise") / 2 == pytest.approx(1, abs=1e-6)  # the level is mean|w|


@pytest.mark.parametrize(("bits", "grid"), [(2, "mid-tread"), (3, "mid-rise"), (4, "mid-tread")])
def test_laplace_error_is_what_samples_have(bits, grid):
    generator = torch.Generator().manual_seed(0)
    x = -torch.rand(1_000_000, generator=generator).log() * torch.randn(1_000_000, generator=generator).sign()
    quantizer = Laplace(bits, grid=grid)
    error = (quantizer(x) - x).square().mean() / x.abs().mean() ** 2
    decibels = 10 * math.log10(laplace_error(laplace_step(bits, grid), bits, grid) / error)
    assert abs(decibels) < 0.03


def test_laplace_follows_each_tensor_and_one_sided_the_first():
    weights, activations = Laplace(3), Laplace(3, one_sided=True)
    x = random(1000)
    y = weights(x)
    torch.testing.assert_close(weights(3 * x), 3 * y)
    activations.initialise(x.relu())
    torch.testing.assert_close(activations.grid().step, laplace_step(4) * x[x > 0].mean())
    before = activations.levels()
    activations(5 * x)
    assert torch.equal(activations.levels(), before)
    with pytest.raises(ValueError, match="mid-tread"):
        Laplace(3, grid="mid-rise", one_sided=True)
    with pytest.raises(ValueError, match="grid is one of"):
        Laplace(3, grid="middle")
