"""Residual networks with a highway: where they are the conventional network, and where they are exact."""

import math

import pytest
import torch
from torch import nn

from lib.inspection import captured
from lib.metrics.signal import sqnr
from lib.models.vision.highway import HighwayBasicBlock, quantize_resnet
from lib.models.vision.resnet import BasicBlock, Bottleneck, ResNet
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
    blocks = [f"layer1.{k}" for k in range(3)]
    with captured(net, blocks, "output") as reference:
        net(IMAGES)
    for skip_bits in (None, "shared"):
        new = quantize_resnet(net, IMAGES, skip_bits=skip_bits, first_last=None, **fixed)
        with captured(new, blocks, "output") as outputs:
            new(IMAGES)
        found = [sqnr(reference[block], outputs[block]) for block in blocks]
        if skip_bits is None:
            assert found == [math.inf] * 3
        else:
            assert 5 < found[0] < 30 and found == pytest.approx([found[0]] * 3)


def test_projections_take_the_quantised_input_or_stay_in_full_precision():
    net = network()
    taken = quantized(net, 2, None, weight_bits=2).layer2[0]
    left = quantized(net, 2, None, weight_bits=2, quantize_projection=False).layer2[0]
    values = []
    for block in (taken, left):
        with captured(block, ["downsample.0"]) as seen:
            block(torch.rand(2, 16, 8, 8))
        values.append(len(seen["downsample.0"].unique()))
    assert values[0] <= 4 < values[1]
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


@pytest.mark.parametrize("training", [True, False])
def test_a_block_is_made_of_the_layers_of_another(training):
    """Their order, names and modes, none twice and none new but the two of the highway."""
    block = network().layer2[0].train(training)
    block.bn1.eval()
    entrance = Uniform(2, signed=False)
    new = HighwayBasicBlock.of(block, entrance, None, True)
    names = [name for name, _ in new.named_children()]
    assert names == [*(name for name, _ in block.named_children()), "entrance", "highway"]
    assert all(getattr(new, name) is layer for name, layer in block.named_children())
    assert new.training == training and not new.bn1.training and new.entrance is entrance
    plain = HighwayBasicBlock.of(network().layer1[0], entrance, "shared", True)
    assert plain.downsample is None and plain.shares and not new.shares


def test_the_network_that_is_quantised_is_left_as_it_was():
    net = network().train()
    net.bn1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quantized(net, 2, 8, weight_bits=2)
    assert net.training and not net.bn1.training and net.layer1[0].bn1.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
