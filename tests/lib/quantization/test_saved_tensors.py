"""Training with packed activations against full precision, and against a simulation that packs nothing.

The simulation replaces torch's convolution, ReLU and batch normalisation by functions that say what quantized
back-propagation means: save the quantised input, as floats, and an explicit mask.
"""

import contextlib
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.models.vision.inception import InceptionV3
from lib.models.vision.resnet import ResNet, resnet
from lib.quantization.packing import packed_bytes
from lib.quantization.saved_tensors import PackedActivations, PackedTraining, checkpointed, peak_bytes
from lib.quantization.value_aware import fake_quantize, stored_bits
from lib.training.loop import seeded

CONV2D, BATCH_NORM, RELU = F.conv2d, F.batch_norm, F.relu


def network(**options) -> ResNet:
    seeded(0)
    return ResNet(blocks=(1, 1), num_classes=10, width=0.25, small_images=True, **options).train()


def batch(size: int = 16, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 10


def gradients(net: nn.Module, context=None, images=None) -> dict[str, torch.Tensor]:
    default, labels = batch()
    net.zero_grad()
    seeded(2)  # dropout
    with context or contextlib.nullcontext():
        loss = F.cross_entropy(net(default if images is None else images), labels)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in first if not torch.equal(first[name], second[name])]


# --- the simulation ----------------------------------------------------------------------------------------


class SimulatedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride, padding, quantise):
        ctx.save_for_backward(quantise(x), weight)
        ctx.stride, ctx.padding, ctx.needs = stride, padding, x.requires_grad
        return CONV2D(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        arguments = (g, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)
        dx, dw, _ = torch.ops.aten.convolution_backward(*arguments, (ctx.needs, True, False))
        return dx, dw, None, None, None


class SimulatedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mask = x > 0
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return torch.where(ctx.mask, g, 0.0)


class SimulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, quantise):
        y, mean, invstd = torch.native_batch_norm(x, weight, bias, None, None, True, 0.1, eps)
        ctx.save_for_backward(quantise(x), weight, mean, invstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, g):
        x, weight, mean, invstd = ctx.saved_tensors
        arguments = (g, x, weight, None, None, mean, invstd, True, ctx.eps, (True, True, True))
        return (*torch.ops.aten.native_batch_norm_backward(*arguments), None, None)


@pytest.fixture
def simulate(monkeypatch):
    """Replace the functions, with these quantisers of the inputs of convolutions and normalisation."""

    def switch(quantise_conv, quantise_norm):
        def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
            exact = not x.requires_grad or x.numel() < 4096
            chosen = (lambda x: x) if exact else quantise_conv
            switch.of_stored = CONV2D(chosen(x).detach(), weight.detach(), None, stride, padding)
            return SimulatedConvolution.apply(x, weight, stride, padding, chosen)

        def batch_norm(x, mean, var, weight, bias, training, momentum, eps):
            chosen = (lambda x: x) if x.numel() < 4096 else quantise_norm
            return SimulatedNorm.apply(x, weight, bias, eps, chosen)

        monkeypatch.setattr(F, "conv2d", conv2d)
        monkeypatch.setattr(F, "batch_norm", batch_norm)
        monkeypatch.setattr(F, "relu", lambda x, inplace=False: SimulatedRelu.apply(x))

    return switch


@pytest.mark.parametrize("separate_mask", [False, True])
@pytest.mark.parametrize("bn_input", ["packed", "exact"])
def test_gradients_are_those_of_the_simulation_bit_for_bit(simulate, separate_mask, bn_input):
    options = dict(separate_mask=separate_mask, bn_input=bn_input, bn_bits=5, bn_ratio=0.01)
    packed = gradients(network(), PackedActivations(3, 0.02, **options))
    exact = gradients(network())
    grid = "unsigned" if separate_mask else "relu"
    norm = {
        "packed": lambda x: fake_quantize(x, 5, 0.01, grid="signed"),
        "exact": lambda x: x,
    }
    simulate(lambda x: fake_quantize(x, 3, 0.02, grid=grid), norm[bn_input])
    simulated = gradients(network())
    assert differing(packed, simulated) == []
    assert len(differing(packed, exact)) >= 8  # and it is not full precision that both compute


def test_a_simulation_with_another_quantiser_is_told_apart(simulate):
    """The broken twin: 1.9 % of large values for 2 %."""
    packed = gradients(network(), PackedActivations(3, 0.02, bn_input="exact"))
    simulate(lambda x: fake_quantize(x, 3, 0.019, grid="relu"), lambda x: x)
    assert differing(packed, gradients(network()))


def test_a_lost_mask_is_told_apart(simulate):
    """The broken twin: ReLU's derivative from V-Quant's values, whose zero is of two kinds."""

    class Lossy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.clamp(min=0)
            ctx.mask = fake_quantize(y, 3, 0.02, grid="unsigned") > 0
            return y

        @staticmethod
        def backward(ctx, g):
            return torch.where(ctx.mask, g, 0.0)

    packed = gradients(network(), PackedActivations(3, 0.02, separate_mask=True, bn_input="exact"))
    simulate(lambda x: fake_quantize(x, 3, 0.02, grid="unsigned"), lambda x: x)
    F.relu = lambda x, inplace=False: Lossy.apply(x)  # undone by the fixture
    assert differing(packed, gradients(network()))


# --- what quantized back-propagation is --------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.Linear(16, 4)])
def test_the_input_gradient_is_exact_and_the_weight_gradient_linear_in_what_is_stored(layer):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 16, 16, generator=generator).relu().requires_grad_()

    def backward(context, x=x):
        with context:
            y = layer(x)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        return torch.autograd.grad(y, [x, layer.weight], g)

    exact = backward(contextlib.nullcontext())
    packed = backward(PackedActivations(2, 0.01))
    assert torch.equal(packed[0], exact[0])
    stored = fake_quantize(x, 2, 0.01, grid="unsigned").requires_grad_()
    assert torch.equal(packed[1], backward(contextlib.nullcontext(), stored)[1])
    difference = backward(contextlib.nullcontext(), (stored - x).detach().requires_grad_())[1]
    torch.testing.assert_close(packed[1] - exact[1], difference, rtol=1e-3, atol=1e-3)


def test_one_bit_and_no_large_values_leaves_nothing_for_the_weights():
    """Every stored value is zero: the weight gradients of layers with packed inputs vanish, no others."""
    net = network()
    exact = gradients(net)
    packed = gradients(net, PackedActivations(1, 0.0, bn_input="exact"))
    inside = [name for name in packed if "layer" in name and packed[name].dim() == 4]
    assert len(inside) == 8
    for name in inside:
        assert packed[name].abs().max() == 0 < exact[name].abs().max()
    unchanged = [name for name in packed if name not in inside and not name.startswith("fc.")]
    assert not differing({name: packed[name] for name in unchanged}, exact)  # exact signals reach every layer


def test_full_precision_is_only_counted():
    net = network()
    context = PackedActivations(None)
    assert differing(gradients(net), gradients(net, context)) == []


@pytest.mark.parametrize("inplace", [False, True])
def test_error_falls_with_bits_and_with_large_values(inplace):
    net = network()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = inplace
    exact = gradients(net)

    def error(*options):
        packed = gradients(net, PackedActivations(*options, bn_input="exact"))
        off = sum(float((packed[n] - exact[n]).square().sum()) for n in packed)
        return (off / sum(float(g.square().sum()) for g in exact.values())) ** 0.5

    assert error(8, 0.0) < error(4, 0.0) < error(3, 0.0) < error(2, 0.0) < error(1, 0.0)
    assert error(3, 0.05) < error(3, 0.02) < error(3, 0.0)
    assert error(3, 0.02) < error(4, 0.0)


def test_inputs_of_normalisation_are_recomputed_as_the_convolution_would(simulate):
    """What normalisation sees is the convolution of the quantised input."""
    packed = gradients(network(), PackedActivations(3, 0.02, bn_input="recomputed"))
    simulate(lambda x: fake_quantize(x, 3, 0.02, grid="relu"), lambda x: simulate.of_stored)
    assert differing(packed, gradients(network())) == []


def test_recomputing_stores_nothing_for_normalisation():
    def kept(bn_input):
        with PackedActivations(bn_input=bn_input) as context:
            loss = network()(batch()[0]).sum()
        sizes = context.stored_bytes()
        loss.backward()
        return sizes

    recomputed, exact = kept("recomputed"), kept("exact")
    assert recomputed["packed"] == exact["packed"] and recomputed["exact"] < 0.1 * exact["exact"]


# --- what is kept ------------------------------------------------------------------------------------------


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 64, 16), nn.Tanh(), nn.Linear(16, 2),
    )  # fmt: skip


def test_bytes_are_those_of_the_formula():
    """A ReLU and the layer behind it share one tensor: RV-Quant keeps its codes, V-Quant a bit more."""
    images, n = torch.randn(8, 3, 16, 16), 8 * 8 * 16 * 16
    for separate_mask in (False, True):
        context = PackedActivations(3, 0.02, separate_mask=separate_mask)
        with context:
            output = small_network()(images)
        kept = context.stored_bytes()
        # Two ReLU outputs, and the pooled tensor, which no ReLU made.
        expected = 2 * stored_bits(n, 3, 0.02) + stored_bits(n // 4, 3, 0.02)
        assert kept["packed"] == expected / 8
        assert kept["masks"] == (2 * packed_bytes(n, 1) if separate_mask else 0)
        assert kept["positions"] == n // 4 * 2
        assert kept["exact"] == images.nbytes + 8 * 16 * 4  # tanh's result is the last layer's input
        output.sum().backward()
        del output
        assert sum(context.stored_bytes().values()) == 0  # freed with the graph


def test_full_precision_bytes_are_what_autograd_saves():
    images, n = torch.randn(8, 3, 16, 16), 8 * 8 * 16 * 16
    with PackedActivations(None) as context:
        output = small_network()(images)
    assert context.stored_bytes() == {
        "packed": 0,
        "masks": 0,
        "positions": 0,
        "exact": images.nbytes + 4 * (2 * n + n // 4 + 8 * 16) + 8 * (n // 4),
    }
    assert output.shape == (8, 2)


def test_a_relu_alone_keeps_one_bit():
    with PackedActivations() as context:
        y = torch.randn(8, 3, 64, 64, requires_grad=True).relu().add(1).relu()
    kept = context.stored_bytes()
    assert kept == {"packed": 0, "masks": 2 * packed_bytes(y.numel(), 1), "positions": 0, "exact": 0}


def test_memory_is_freed_without_the_collector():
    """No reference cycles: the graph's death is enough."""
    gc.disable()
    try:
        context = PackedActivations()
        with context:
            output = network()(batch()[0])
        assert context.stored_bytes()["packed"] > 0
        del output
        assert sum(context.stored_bytes().values()) == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("make", "size"),
    [(lambda: resnet(50, num_classes=10), 64), (lambda: InceptionV3(num_classes=10), 128)],
    ids=["ResNet-50", "Inception-v3"],
)
def test_real_networks_keep_a_third_or_less(make, size):
    seeded(0)
    net, images = make().train(), torch.randn(2, 3, size, size)

    def kept(context):
        with context:
            loss = net(images).sum()
        sizes = context.stored_bytes()
        loss.backward()
        return sum(sizes.values())

    plain, packed, exact_norm = (
        kept(PackedActivations(None)),
        kept(PackedActivations(smallest=256)),
        kept(PackedActivations(smallest=256, bn_input="exact")),
    )
    assert packed <= 0.35 * plain
    assert exact_norm > 0.4 * plain  # why the input of normalisation has to be packed too


def test_the_peak_of_a_step_falls():
    net, (images, labels) = network(), batch(size=32, count=8)

    def step(context):
        with context:
            loss = F.cross_entropy(net(images), labels)
        loss.backward()

    blocks = [block for stage in (net.layer1, net.layer2) for block in stage]
    contexts = [contextlib.nullcontext, PackedActivations, lambda: checkpointed(blocks)]
    for context in contexts:
        step(context())  # gradients exist from now on
    plain, packed, recomputed = (peak_bytes(lambda c=c: step(c())) for c in contexts)
    assert packed < 0.7 * plain and recomputed < plain


def test_checkpointing_gives_the_same_gradients():
    net = network()
    exact = gradients(net)
    assert differing(exact, gradients(net, checkpointed([net.layer1[0], net.layer2[0]]))) == []
    assert "forward" not in vars(net.layer1[0])


# --- corners -----------------------------------------------------------------------------------------------


def test_signed_inputs_get_symmetric_codes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 16, 16, generator=generator).requires_grad_()
    layer = nn.Conv2d(8, 8, 1, bias=False)
    with PackedActivations(3, 0.02):
        y = layer(x)
    y.sum().backward()
    got = layer.weight.grad
    stored = fake_quantize(x, 3, 0.02, grid="signed")
    (expected,) = torch.autograd.grad(layer(stored).sum(), layer.weight)
    assert torch.equal(got, expected)


def test_channels_last_is_kept():
    net = network().to(memory_format=torch.channels_last)
    images = batch()[0].contiguous(memory_format=torch.channels_last)
    exact = gradients(net, images=images)
    packed = gradients(net, PackedActivations(8, 0.05), images=images)
    for name in exact:
        assert packed[name].stride() == exact[name].stride()
        torch.testing.assert_close(
            packed[name], exact[name], rtol=0.1, atol=0.1 * float(exact[name].abs().max())
        )


def test_evaluation_and_no_grad_keep_nothing():
    context = PackedActivations()
    net = network().eval()
    with torch.no_grad():
        expected = net(batch()[0])
        with context:
            assert torch.equal(net(batch()[0]), expected)
    assert sum(context.stored_bytes().values()) == 0


def test_memory_that_is_used_again_is_not_mistaken():
    """Tensors die within the forward pass and others take their place: no stale codes."""
    layer = nn.Conv2d(4, 4, 1, bias=False)
    inputs = [torch.full((4, 4, 16, 16), float(k + 1)) for k in range(20)]
    with PackedActivations(8, 0.0):
        loss = sum(layer(x.requires_grad_().relu() * 1.0).sum() for x in inputs)
    loss.backward()
    expected = sum(float(k + 1) for k in range(20)) * 4 * 16 * 16
    torch.testing.assert_close(layer.weight.grad, torch.full((4, 4, 1, 1), expected), rtol=1e-4, atol=0)


def test_a_change_in_place_is_refused_as_without_the_context():
    x = torch.randn(4, 4, 16, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="was changed in place"), PackedActivations():
        y = x.relu()
        y.add_(1)
        y.sum().backward()
    with PackedActivations():
        z = x.exp()
    z.mul_(2)
    with pytest.raises(RuntimeError, match="was changed in place"):
        z.sum().backward()


def test_backward_inside_the_context():
    net = network()
    exact = gradients(net, PackedActivations())
    net.zero_grad()
    for _ in range(2):
        net.zero_grad()
        with PackedActivations():
            F.cross_entropy(net(batch()[0]), batch()[1]).backward()
    assert differing(exact, {name: p.grad for name, p in net.named_parameters()}) == []


def test_the_module_trains_and_its_bits_can_be_annealed():
    net = PackedTraining(network(), bits=3, bn_input="exact")
    images, labels = batch()
    F.cross_entropy(net(images), labels).backward()
    three = net.network.layer1[0].conv2.weight.grad.clone()
    net.activations.bits = 2
    net.zero_grad()
    F.cross_entropy(net(images), labels).backward()
    assert not torch.equal(three, net.network.layer1[0].conv2.weight.grad)
    assert all(key.startswith("network.") for key in net.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits must be in 1..8 or None, got 0"),
        ({"bits": 9}, "bits must be in 1..8 or None, got 9"),
        ({"bn_bits": 1}, "bn_bits must be in 2..8, got 1"),
        ({"bn_bits": None}, "bn_bits must be in 2..8, got None"),
        ({"ratio": 1.1}, "ratio is the share"),
        ({"bn_ratio": -1}, "ratio is the share"),
        ({"bn_input": "float"}, "bn_input must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PackedActivations(**options)


def test_activations_that_are_not_finite_are_refused():
    x = torch.full((4, 4, 16, 16), float("nan"), requires_grad=True)
    with pytest.raises(ValueError, match="finite"), PackedActivations():
        nn.Conv2d(4, 4, 1)(x)
