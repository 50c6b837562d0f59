"""The authors' quantised MobileNets: their keys by checksum, outputs and gradients against formulas.

The reference forward below is written from the published formulas with torch.nn.functional alone: it knows a
state dict and the tables of the networks, and none of the modules under test.
"""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.data import weights
from lib.data.dataset import DataUnavailable
from lib.models.vision.mobilenet import MobileNetV1, MobileNetV2, MobileNetV3Large
from lib.models.vision.mobilenet_authors import QuantizedMobileNetV2, QuantizedMobileNetV3Large

# sha256 of "key [shape]" lines in the state dict's order, and the number of keys, from the authors' program
KEYS = {
    QuantizedMobileNetV2: ("7fb076e6e55df45d1d973ffad3aad4b6fc62bf7d85841f498165cabde1d57b3b", 524),
    QuantizedMobileNetV3Large: ("55513a6596e514681ee5f9dbd1d940fbf74e2264ffaec8432f9de07b69830ddc", 566),
}
COUNTS = {  # parameters without ranges, convolutions, depthwise ones, linear layers
    QuantizedMobileNetV2: (3_504_872, 52, 17, 1),
    QuantizedMobileNetV3Large: (5_483_032, 46, 15, 18),
}
V2 = "1,16,1,1 6,24,2,2 6,32,3,2 6,64,4,2 6,96,3,1 6,160,3,2 6,320,1,1"
V3 = "16,3,16,0,0,1 24,3,64,0,0,2 24,3,72,0,0,1 40,5,72,1,0,2 40,5,120,1,0,1 40,5,120,1,0,1 80,3,240,0,1,2 "
V3 += "80,3,200,0,1,1 80,3,184,0,1,1 80,3,184,0,1,1 112,3,480,1,1,1 112,3,672,1,1,1 160,5,672,1,1,2 "
V3 += "160,5,960,1,1,1 160,5,960,1,1,1"


class Reference:
    """Formulas on a state dict of leaves; `bits` of weights and activations, or None for full precision."""

    def __init__(self, state, weight_bits, activation_bits):
        self.state, self.weight_bits, self.activation_bits = state, weight_bits, activation_bits

    def grid(self, u, points):
        """clip to the given interval outside, round to `points` − 1 steps, gradient of the clip alone."""
        return u + (torch.round(u * (points - 1)) / (points - 1) - u).detach()

    def range(self, name, raw):
        return F.softplus(self.state[f"{name}.{raw}"])

    def weight(self, name):
        w, bits = self.state[f"{name}.weight"], self.weight_bits
        if bits is None:
            return w
        alpha, gamma = self.range(name, "a"), self.range(name, "c")
        return gamma * self.grid(F.hardtanh(w / alpha, -1, 1), 2 ** (bits - 1))

    def quantise(self, x, name, kind):
        """R and R6: behind ReLU. S: symmetric. H and h: on the grid of h-swish, with and without it."""
        bits = self.activation_bits
        x = {"R": F.relu, "H": lambda v: v * (v + 3).clamp(0, 6) / 6}.get(kind, lambda v: v)(x)
        if bits is None:
            return x
        alpha, gamma = self.range(name, "a"), self.range(name, "c")
        if kind == "S":
            return gamma * self.grid(F.hardtanh(x / alpha, -1, 1), 2 ** (bits - 1))
        offset = 0.375 if kind in "Hh" else 0.0
        return gamma * self.grid(F.hardtanh((x + offset) / alpha, 0, 1), 2**bits) - offset

    def conv(self, x, name, stride=1, groups=1, padding_value=0.0):
        w = self.weight(name)
        x = F.pad(x, [w.shape[-1] // 2] * 4, value=padding_value)
        return F.conv2d(x, w, None, stride, 0, 1, groups)

    def linear(self, x, name):
        return F.linear(x, self.weight(name), self.state[f"{name}.bias"])

    def norm(self, x, name):
        s = {k: self.state[f"{name}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        return F.batch_norm(x, s["running_mean"], s["running_var"], s["weight"], s["bias"], False, 0.0, 1e-5)

    def v2(self, x):
        def unit(x, name, stride=1, groups=1):
            x = self.norm(self.conv(x, f"{name}.0", stride, groups), f"{name}.1")
            return self.quantise(x, f"{name}.2", "R")

        x, k = unit(x, "features.0", 2), 0
        for row in V2.split():
            expansion, _, repeats, first = map(int, row.split(","))
            for repeat in range(repeats):
                k += 1
                name, y, stride = f"features.{k}.conv", x, first if repeat == 0 else 1
                if expansion > 1:
                    y = unit(self.quantise(y, f"{name}.-0", "S"), f"{name}.0")
                step = 1 if expansion > 1 else 0
                y = unit(y, f"{name}.{step}", stride, y.shape[1])
                y = self.norm(self.conv(y, f"{name}.{step + 1}"), f"{name}.{step + 2}")
                x = x + y if x.shape == y.shape else y
        x = self.quantise(x, f"features.-{k + 1}", "S")
        x = self.norm(self.conv(x, f"features.{k + 1}.0"), f"features.{k + 1}.1").relu().mean((2, 3))
        return self.linear(self.quantise(x, "relu6", "R"), "classifier.1")

    def v3(self, x):
        x = F.hardswish(self.norm(self.conv(x, "features.0.0", 2), "features.0.1"))
        for k, row in enumerate(V3.split(), start=1):
            _, _, _, squeeze, swish, stride = map(int, row.split(","))
            name, y, at, kind = f"features.{k}.conv", x, 0, "H" if swish else "R"
            y = self.quantise(y, f"{name}.-0", "h" if k == 1 else "S")
            if k > 1:
                y, at = self.norm(self.conv(y, f"{name}.0"), f"{name}.1"), 3
                y = self.quantise(y, f"{name}.2", kind)
            border = -0.375 if swish or k == 1 else 0.0
            y = self.norm(self.conv(y, f"{name}.{at}", stride, y.shape[1], border), f"{name}.{at + 1}")
            if squeeze:
                fc = f"{name}.{at + 2}.fc"
                z = self.linear(self.quantise(y.mean((2, 3)), f"{fc}.-0", "S"), f"{fc}.0")
                z = self.linear(self.quantise(z, f"{fc}.1", "R"), f"{fc}.2")
                y = y * (F.relu6(z + 3) / 6)[:, :, None, None]
            y = self.quantise(y, f"{name}.{at + 3}", kind)
            y = self.norm(self.conv(y, f"{name}.{at + 4}"), f"{name}.{at + 5}")
            x = x + y if x.shape == y.shape else y
        x = self.quantise(x, "features.-16", "S")
        x = F.hardswish(self.norm(self.conv(x, "features.16.0"), "features.16.1")).mean((2, 3))
        x = self.linear(self.quantise(x, "classifier.-0", "h"), "classifier.0")
        return self.linear(self.quantise(x, "classifier.1", "H"), "classifier.3")


def checkpoint(build):
    """A state dict as the authors' program would save: ranges near what data give, norms with statistics."""
    torch.manual_seed(0)
    state = build(num_classes=11).double().state_dict()
    for key, value in state.items():
        if key.endswith("running_mean") or (key.endswith("bias") and value.dim() == 1):
            value.normal_(0, 0.2)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith((".a", ".c")):
            of_weight = f"{key[:-2]}.weight" in state
            value.uniform_(0.05, 0.4) if of_weight else value.uniform_(1.0, 3.0)
            if of_weight:  # softplus⁻¹ of about the largest weight
                value.copy_(torch.log(torch.expm1(value * 2 * state[f"{key[:-2]}.weight"].abs().max())))
    return state


@pytest.mark.parametrize("build", KEYS)
def test_keys_shapes_and_their_order_are_the_authors(build):
    lines = [f"{key} {list(value.shape)}" for key, value in build().state_dict().items()]
    assert (hashlib.sha256("\n".join(lines).encode()).hexdigest(), len(lines)) == KEYS[build]


@pytest.mark.parametrize("build", COUNTS)
def test_counts(build):
    network = build()
    ranges = sum(p.numel() for name, p in network.named_parameters() if name.endswith((".a", ".c")))
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert (
        sum(p.numel() for p in network.parameters()) - ranges,
        len(convs),
        sum(conv.groups > 1 for conv in convs),
        sum(isinstance(module, nn.Linear) for module in network.modules()),
    ) == COUNTS[build]


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(None, None), (4, 4), (3, 5)])
@pytest.mark.parametrize(("build", "name"), [(QuantizedMobileNetV2, "v2"), (QuantizedMobileNetV3Large, "v3")])
def test_outputs_and_gradients_are_those_of_the_formulas(build, name, weight_bits, activation_bits):
    state = checkpoint(build)
    network = build.from_authors(state, weight_bits=weight_bits, activation_bits=activation_bits)
    leaves = {
        key: value.clone().requires_grad_(value.is_floating_point() and "running" not in key)
        for key, value in state.items()
    }
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    reference = Reference(leaves, weight_bits, activation_bits)
    expected, found = getattr(reference, name)(images), network(images)
    assert found.shape == (2, 11)
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10)
    mix = torch.randn_like(found)
    (found * mix).sum().backward()
    (expected * mix).sum().backward()
    compared = 0
    for key, parameter in network.named_parameters():
        theirs = leaves[key].grad
        if theirs is None:  # a range that this precision does not use
            assert parameter.grad is None or not parameter.grad.any()
            continue
        compared += 1
        scale = theirs.abs().max().clamp_min(1e-12)
        assert ((parameter.grad - theirs).abs().max() / scale) < 1e-5, key
    assert compared > 150


def test_twins_that_deviate_where_torchvision_does_are_found():
    """Zero padding behind h-swish and squeeze-and-excite after the nonlinearity both change the outputs."""
    state = checkpoint(QuantizedMobileNetV3Large)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = Reference(state, 4, 4).v3(images)

    def error(change):
        network = QuantizedMobileNetV3Large.from_authors(state, weight_bits=4, activation_bits=4)
        change(network)
        return (network(images) - expected).abs().max().item()

    def zero_padding(network):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_value = 0.0

    def late_squeeze(network):
        block = network.features[11].conv
        squeeze, activation = block[6], block[7]
        block[6], block[7] = activation, squeeze

    assert error(lambda network: None) < 1e-8
    assert error(zero_padding) > 1e-4 and error(late_squeeze) > 1e-4


def test_full_precision_has_no_cap_of_six():
    """With torchvision's weights the authors' network is MobileNet-v2 with ReLU in the place of ReLU6."""
    try:
        state = weights.MOBILENET_V2.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))
    network, plain = QuantizedMobileNetV2().eval(), MobileNetV2().eval()
    missing = network.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and len(missing.missing_keys) == 210
    plain.load_state_dict(state)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        capped = plain(images)
        for module in list(plain.modules()):
            for child, layer in module.named_children():
                if isinstance(layer, nn.ReLU6):
                    setattr(module, child, nn.ReLU())
        assert torch.allclose(network(images), plain(images), atol=1e-4)
        assert not torch.allclose(network(images), capped, atol=1e-2)


def test_files_as_published_are_read_and_others_refused(tmp_path):
    state = QuantizedMobileNetV2(num_classes=3).state_dict()
    torch.save(state, tmp_path / "ts_mobilenetv2_4_4_bn2_best.pth")
    wrapped = {f"module.{key}": value for key, value in state.items()}
    average = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model": wrapped, "model_ema": average, "epoch": 3}, tmp_path / "ts_3.ckpt")
    plain = QuantizedMobileNetV2.from_authors(tmp_path / "ts_mobilenetv2_4_4_bn2_best.pth")
    again = QuantizedMobileNetV2.from_authors(tmp_path / "ts_3.ckpt")
    mean = QuantizedMobileNetV2.from_authors(tmp_path / "ts_3.ckpt", average=True)
    assert not plain.training
    for key, value in state.items():
        assert torch.equal(plain.state_dict()[key], value) and torch.equal(again.state_dict()[key], value)
        assert torch.equal(mean.state_dict()[key], average[key])
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        QuantizedMobileNetV2.from_authors(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="no moving average"):
        QuantizedMobileNetV2.from_authors(state, average=True)
    for nothing in ({"model": state}, {"model": state, "model_ema": None}):
        with pytest.raises(ValueError, match="no moving average"):
            QuantizedMobileNetV2.from_authors(nothing, average=True)
    with pytest.raises(ValueError, match="holds no state dict"):
        QuantizedMobileNetV2.from_authors({"epoch": 3})
    del state["features.0.0.weight"]
    state["features.99.weight"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"missing features.0.0.weight; unexpected features.99.weight$"):
        QuantizedMobileNetV2.from_authors(state)
    with pytest.raises(
        ValueError, match="no QuantizedMobileNetV3Large checkpoint of PROFIT's authors: missing"
    ):
        QuantizedMobileNetV3Large.from_authors(average)
    average["features.0.0.weight"] = torch.ones(32, 3, 5, 5)
    with pytest.raises(ValueError, match=r"0.0.weight must be \(32, 3, 3, 3\), got \(32, 3, 5, 5\)$"):
        QuantizedMobileNetV2.from_authors(average)


def test_ranges_that_were_never_set_are_refused_at_a_finite_width():
    state = QuantizedMobileNetV2(num_classes=3).state_dict()
    state["features.1.conv.1.a"] = torch.full((1,), torch.nan)
    QuantizedMobileNetV2.from_authors(state)  # in full precision nobody looks at them
    with pytest.raises(ValueError, match=r"ranges of features.1.conv.1 were never set"):
        QuantizedMobileNetV2.from_authors(state, weight_bits=4, activation_bits=4)


def assert_variance(weight, expected, fourth):
    """Within five standard errors of the expected variance, whose own is (fourth − 1) / n of its square.

    `fourth` is the fourth moment in units of the squared variance: 3 of a normal distribution, 9/5 of a
    uniform one.
    """
    ratio = (weight.double().square().mean() / expected).item()
    assert abs(ratio - 1) < 5 * ((fourth - 1) / weight.numel()) ** 0.5, ratio


@pytest.mark.parametrize("build", [*KEYS, MobileNetV1, MobileNetV2, MobileNetV3Large])
def test_first_weights_of_convolutions_are_normal_by_fan_out(build):
    """He's variance, 2 over outputs × kernel; with inputs for outputs nearly all layers differ."""
    torch.manual_seed(0)
    convs = [module for module in build().modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        assert_variance(conv.weight, 2 / conv.weight[:, 0].numel(), fourth=3)
    assert sum(conv.weight.shape[0] != conv.weight.shape[1] for conv in convs) > len(convs) / 2
    with pytest.raises(AssertionError):
        for conv in convs:
            assert_variance(conv.weight, 2 / conv.weight[0].numel(), fourth=3)


@pytest.mark.parametrize("build", [QuantizedMobileNetV2, MobileNetV1, MobileNetV2, MobileNetV3Large])
def test_first_weights_of_linear_layers_are_small(build):
    torch.manual_seed(0)
    for linear in (module for module in build().modules() if isinstance(module, nn.Linear)):
        assert_variance(linear.weight, 1e-4, fourth=3)
        assert not linear.bias.any()


def test_first_weights_of_the_authors_v3_are_uniform_by_outputs():
    """Variance 1 over outputs, in the classifier and in squeeze-and-excite."""
    torch.manual_seed(0)
    layers = [module for module in QuantizedMobileNetV3Large().modules() if isinstance(module, nn.Linear)]
    for linear in layers:
        assert linear.in_features != linear.out_features
        assert_variance(linear.weight, 1 / linear.out_features, fourth=9 / 5)
        assert linear.weight.abs().max() <= (3 / linear.out_features) ** 0.5
        assert not linear.bias.any()
    with pytest.raises(AssertionError):
        assert_variance(layers[-1].weight, 1 / layers[-1].in_features, fourth=9 / 5)


@pytest.mark.parametrize("build", KEYS)
def test_small_versions_train(build):
    torch.manual_seed(0)
    network = build(num_classes=4, width=0.25, reduction=8).set_bits(weights=3, activations=3)
    loss = F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4))
    loss.backward()
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert loss.isfinite() and not missing
