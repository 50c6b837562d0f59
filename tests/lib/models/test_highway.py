"""Precision highway: where it is the conventional network, where it is exact, what it adds by counting."""

import math

import pytest
import torch
from torch import nn

from lib.metrics.signal import sqnr
from lib.models.highway import (
    QuantizedLSTMLayer,
    block_outputs,
    cell_states,
    error_by_depth,
    error_by_step,
    quantize_language_model,
    quantize_resnet,
    settle_norms,
    skip_traffic,
)
from lib.models.language.language_model import LSTMLanguageModel
from lib.models.vision.resnet import BasicBlock, Bottleneck, ResNet, resnet
from lib.quantization.convert import set_bits
from lib.quantization.laplace import Laplace
from lib.quantization.lsq import LSQ
from lib.quantization.quantizer import Quantizer
from lib.quantization.uniform import Uniform


def network(block=BasicBlock, blocks=(2, 2)) -> ResNet:
    torch.manual_seed(0)
    net = ResNet(block=block, blocks=blocks, width=0.25, in_channels=2, num_classes=5, small_images=True)
    for module in net.modules():  # statistics and scales of a network that has seen something
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


IMAGES = torch.randn(6, 2, 12, 12, generator=torch.Generator().manual_seed(1))


def quantized(net, bits, skip_bits, *, weight_bits=None, **options):
    return quantize_resnet(
        net,
        IMAGES,
        skip_bits=skip_bits,
        weights=lambda layer: Laplace(weight_bits) if weight_bits else None,
        activations=lambda kind: Uniform(bits, signed=kind != "unsigned", range_from="mse"),
        first_last="same",
        **options,
    )


# --- residual networks ---


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("quantize_projection", [True, False])
def test_a_highway_as_narrow_as_the_branch_is_the_conventional_network(block, quantize_projection):
    net = network(block)
    options = {"weight_bits": 3, "quantize_projection": quantize_projection}
    conventional = quantized(net, 3, "shared", **options)(IMAGES)
    assert torch.equal(quantized(net, 3, 3, **options)(IMAGES), conventional)
    assert not torch.allclose(quantized(net, 3, 8, **options)(IMAGES), conventional, atol=1e-3)
    assert not torch.allclose(quantized(net, 3, None, **options)(IMAGES), conventional, atol=1e-3)


@pytest.mark.parametrize("skip_bits", ["shared", None, 8])
def test_without_bits_all_are_the_network_in_full_precision(skip_bits):
    net = network()
    new = quantized(net, 2, skip_bits, weight_bits=2)
    assert not torch.allclose(new(IMAGES), net(IMAGES), atol=1e-2)
    set_bits(new, weights=None, activations=None)
    assert torch.allclose(new(IMAGES), net(IMAGES), atol=1e-6)


def test_what_the_recursion_says_of_one_block():
    """Conventional: relu(q(x) + F(q(x))); highway: relu(x + F(q(x)))."""
    net = network(blocks=(1,))
    conventional, highway = quantized(net, 3, "shared"), quantized(net, 3, None)
    block, other = conventional.layer1[0], highway.layer1[0]
    x = torch.rand(3, 16, 5, 5)
    q = other.entrance(x)
    assert torch.equal(q, block.entrance(x))
    branch = other.branch(q)
    assert torch.equal(block(x), torch.relu(branch + q)) and torch.equal(other(x), torch.relu(branch + x))


def test_with_branches_of_zero_the_highway_is_exact_and_the_conventional_skip_rounds_once():
    """The first block rounds; a grid leaves its own levels alone, so later blocks add nothing."""
    net = network(blocks=(3,))
    for block in net.layer1:
        nn.init.zeros_(block.bn2.weight)
        nn.init.zeros_(block.bn2.bias)
    fixed = {"weights": lambda layer: None, "activations": lambda kind: Uniform(3, signed=kind != "unsigned")}
    reference = block_outputs(net, IMAGES)
    for skip_bits in (None, "shared"):
        new = quantize_resnet(net, IMAGES, skip_bits=skip_bits, first_last=None, **fixed)
        found = [sqnr(a, b) for a, b in zip(reference, block_outputs(new, IMAGES), strict=True)]
        if skip_bits is None:
            assert found == [math.inf] * 3
        else:
            assert 5 < found[0] < 30 and found == pytest.approx([found[0]] * 3)


def test_projections_take_the_quantised_input_or_stay_in_full_precision():
    net = network()
    taken = quantized(net, 2, None, weight_bits=2).layer2[0]
    left = quantized(net, 2, None, weight_bits=2, quantize_projection=False).layer2[0]
    seen = {}
    for name, block in {"taken": taken, "left": left}.items():
        block.downsample[0].register_forward_pre_hook(
            lambda module, inputs, name=name: seen.setdefault(name, inputs[0])
        )
        block(torch.rand(2, 16, 8, 8))
    assert len(seen["taken"].unique()) <= 4 < len(seen["left"].unique())
    assert type(left.downsample[0]) is nn.Conv2d


def test_both_have_as_many_quantisers_and_torchvisions_keys():
    net = network()
    counts = []
    for skip_bits in ("shared", None):
        new = quantized(net, 2, skip_bits, weight_bits=2)
        counts.append(sum(isinstance(module, Quantizer) for module in new.modules()))
        assert set(net.state_dict()) <= set(new.state_dict())
    assert counts[0] == counts[1]
    ends = quantize_resnet(
        net, IMAGES, weights=lambda layer: Laplace(2), activations=lambda kind: LSQ(2, signed=False)
    )
    assert ends.conv1.weight_quantizer.bits == 8 == ends.fc.input_quantizer.bits
    assert ends.layer1[0].conv2.weight_quantizer.bits == 2 and not ends.layer1[0].conv1.input_quantizer


def test_learned_ranges_of_branch_and_skip_get_gradients():
    net = network()
    new = quantize_resnet(
        net,
        IMAGES,
        skip_bits=8,
        weights=lambda layer: Laplace(2),
        activations=lambda kind: LSQ(2, signed=kind != "unsigned"),
    ).train()
    new(IMAGES).square().sum().backward()
    missing = [name for name, parameter in new.named_parameters() if parameter.grad is None]
    # the projection's block shares the quantised input, so its own skip quantiser is not used
    assert missing == ["layer2.0.highway.step"]


def test_errors_at_the_door():
    with pytest.raises(ValueError, match="skip_bits must be None, 'shared' or a number of bits, got 'float'"):
        quantized(network(), 2, "float")
    with pytest.raises(ValueError, match="no residual block"):
        quantize_resnet(
            nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()),
            IMAGES,
            weights=lambda layer: None,
            activations=lambda kind: None,
        )


# --- LSTM ---


def lstm(hidden=6, **options) -> QuantizedLSTMLayer:
    torch.manual_seed(0)
    base = {"weight_bits": None, "input_bits": None, "weights": Laplace}
    base["values"] = lambda bits, signed: Uniform(bits, signed=signed)
    return QuantizedLSTMLayer(4, hidden, **(base | options)).eval()


def test_without_bits_the_layer_is_an_lstm():
    layer, theirs = lstm(), nn.LSTM(4, 6)
    theirs.load_state_dict({f"{name}_l0": value for name, value in layer.named_parameters()})
    x, zeros = torch.randn(9, 2, 4), torch.zeros(2, 6)
    out, (_, c) = layer(x, (zeros, zeros))
    expected, (_, c_n) = theirs(x)
    assert torch.allclose(out, expected, atol=1e-6) and torch.allclose(c, c_n[0], atol=1e-6)


def test_on_the_highway_only_the_operands_of_products_are_quantised():
    layer = lstm(weight_bits=3, input_bits=3)
    x = torch.randn(5, 2, 4)
    h, c = torch.rand(2, 6), torch.randn(2, 6)
    gates = torch.nn.functional.linear(layer.quantize_input(x[0]), layer.quantize_weight_ih(layer.weight_ih))
    gates = gates + torch.nn.functional.linear(
        layer.quantize_hidden(h), layer.quantize_weight_hh(layer.weight_hh)
    )
    i, f, g, o = (gates + layer.bias_ih + layer.bias_hh).chunk(4, dim=1)
    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
    out, (_, found) = layer(x[:1], (h, c))
    assert torch.allclose(found, cell, atol=1e-6)
    assert torch.allclose(out[0], o.sigmoid() * cell.tanh(), atol=1e-6)
    assert len(out.unique()) == out.numel()
    conventional = lstm(weight_bits=3, input_bits=3, gate_bits=3, state_bits=3)
    assert len(conventional(x, (h, c))[0].unique()) <= 7


@pytest.mark.parametrize(("gate_bits", "state_bits"), [(None, None), (2, 2)])
def test_a_remembered_cell_is_exact_on_the_highway_and_rounded_once_without(gate_bits, state_bits):
    """f = 1 and i = 0: c never changes. Fixed grids leave their own levels alone."""
    layer = lstm(weight_bits=2, input_bits=2, gate_bits=gate_bits, state_bits=state_bits)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih[:6], layer.bias_ih[6:12] = -200.0, 200.0
    c = torch.rand(2, 6) * 2 - 1
    states, state = [], (torch.zeros(2, 6), c)
    for x in torch.randn(30, 1, 2, 4):
        _, state = layer(x, state)
        states.append(state[1])
    assert all(torch.equal(value, states[0]) for value in states)
    if state_bits is None:
        assert torch.equal(states[-1], c)
    else:
        assert torch.equal(states[-1], layer.quantize_cell(c)) and not torch.allclose(states[-1], c)


def test_a_language_model_keeps_its_weights_and_gets_ranges_from_text():
    torch.manual_seed(0)
    model = LSTMLanguageModel(30, hidden_size=8, tied=True)
    tokens = torch.randint(30, (4, 12))
    options = {"weights": Laplace, "values": lambda bits, signed: LSQ(bits, signed=signed)}
    plain = quantize_language_model(model, tokens, weight_bits=None, input_bits=None, **options)
    assert plain.training and plain.output.weight is plain.embedding.weight
    assert torch.allclose(plain.eval()(tokens)[0], model.eval()(tokens)[0], atol=1e-6)
    new = quantize_language_model(
        model, tokens, weight_bits=2, input_bits=4, gate_bits=4, state_bits=4, **options
    )
    steps = [layer.quantize_cell.step.item() for layer in new.layers]
    assert steps[0] != steps[1] and 1.0 not in steps
    with pytest.raises(ValueError, match="must be in full precision"):
        quantize_language_model(new, tokens, weight_bits=2, input_bits=2, **options)


def test_cell_states_are_those_of_torch():
    torch.manual_seed(0)
    model = LSTMLanguageModel(11, hidden_size=5, layers=1)
    tokens = torch.randint(11, (3, 7))
    cells = cell_states(model, tokens)
    theirs = nn.LSTMCell(5, 5)
    theirs.load_state_dict(model.layers[0].state_dict())
    h = c = torch.zeros(3, 5)
    for t in range(7):
        h, c = theirs(model.embedding(tokens[:, t]), (h, c))
        assert torch.allclose(cells[t, 0], c, atol=1e-6)
    assert cells.shape == (7, 1, 3, 5) and model.training


def test_errors_by_depth_and_step_are_those_of_the_outputs():
    net = network()
    new = quantized(net, 3, None, weight_bits=3)
    before = net.state_dict()["bn1.running_mean"].clone()
    found = error_by_depth(net, new, IMAGES)
    assert torch.equal(net.state_dict()["bn1.running_mean"], before) and not net.training
    signal, approximation = (block_outputs(each.train(), IMAGES) for each in (net, new))
    assert found == [sqnr(a, b) for a, b in zip(signal, approximation, strict=True)]
    assert len(found) == 4 and all(0 < value < 40 for value in found)
    torch.manual_seed(0)
    model = LSTMLanguageModel(11, hidden_size=5, layers=2)
    tokens = torch.randint(11, (3, 7))
    options = {"weights": Laplace, "values": lambda bits, signed: Laplace(bits, adaptive=False)}
    other = quantize_language_model(model, tokens, weight_bits=4, input_bits=4, **options)
    steps = error_by_step(model, other, tokens)
    assert len(steps) == 7
    assert steps[3] == sqnr(cell_states(model, tokens)[3, 1], cell_states(other, tokens)[3, 1])


def test_settled_norms_compute_with_the_statistics_of_the_batch():
    torch.manual_seed(0)
    net = ResNet(block=BasicBlock, blocks=(4,), width=0.25, in_channels=2, num_classes=3, small_images=True)
    images = torch.randn(64, 2, 12, 12)
    settle_norms(net.eval(), images)
    assert not net.training and net.bn1.momentum == 0.1
    running, batch = (net.train(mode)(images) for mode in (False, True))
    # running variances are unbiased, batch ones are not: one part in 9216 here
    assert torch.allclose(running, batch, rtol=1e-2, atol=1e-3)


def test_a_kept_cell_has_no_grid():
    options = {"gate_bits": 2, "state_bits": 2}
    assert lstm(**options).quantize_cell.bits == 2
    kept = lstm(**options, keep_cell=True)
    assert kept.quantize_cell.bits is None and kept.quantize_output.bits == 2


# --- counting, and the measure ---


def test_traffic_of_a_skip_connection():
    assert [skip_traffic(2), skip_traffic(2, 8), skip_traffic(2, 8, store_both=False)] == [6, 20, 24]
    with pytest.raises(ValueError, match="bits must be positive, got 2 and 0"):
        skip_traffic(2, 0)


def test_the_blocks_of_resnet_50_put_out_5519_thousand_values():
    with torch.device("meta"):
        outputs = block_outputs(resnet(50).eval(), torch.empty(1, 3, 224, 224))
    assert len(outputs) == 16
    assert sum(output.numel() for output in outputs) == 5_519_360


def test_sqnr_by_hand():
    signal = torch.tensor([3.0, 1.0, -2.0])
    assert sqnr(signal, signal + torch.tensor([0.1, 0.2, -0.2])) == pytest.approx(10 * math.log10(14 / 0.09))
    assert sqnr(signal, 0 * signal) == pytest.approx(0.0)
    assert sqnr(signal, signal) == math.inf
    assert sqnr(signal + 10, signal + 10.5, centred=True) == pytest.approx(
        10 * math.log10(((signal - signal.mean()) ** 2).sum().item() / 0.75), abs=1e-5
    )
    assert sqnr(0 * signal, signal) == -math.inf
    for bad in (torch.ones(2), signal * math.nan):
        with pytest.raises(ValueError, match=r"one shape|finite"):
            sqnr(signal, bad)


def test_sqnr_of_a_fine_grid_is_six_decibels_a_bit():
    x = torch.rand(200_000) * 2 - 1
    found = [sqnr(x, Uniform(bits)(x)) for bits in (5, 6, 7)]
    assert found == pytest.approx([20 * math.log10(2**b - 2) for b in (5, 6, 7)], abs=0.05)
