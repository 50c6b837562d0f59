"""ResNet and ResNeXt: published parameter counts, operation counts, key names, and what a block computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lib.cost.operations import count_operations, count_parameters, totals
from lib.models.vision.resnet import BasicBlock, Bottleneck, ResNet, resnet, resnext


def on_meta(make, **options) -> nn.Module:
    with torch.device("meta"):
        return make(**options)


@pytest.mark.parametrize(
    ("make", "options", "parameters"),
    [
        (resnet, {"depth": 18}, 11_689_512),
        (resnet, {"depth": 34}, 21_797_672),
        (resnet, {"depth": 50}, 25_557_032),
        (resnet, {"depth": 101}, 44_549_160),
        (resnet, {"depth": 152}, 60_192_808),
        (resnext, {"depth": 50}, 25_028_904),
        (resnext, {"width_per_group": 8}, 88_791_336),
        (resnext, {"groups": 64}, 83_455_272),
    ],
)
def test_parameters_are_torchvisions(make, options, parameters):
    assert count_parameters(on_meta(make, **options)) == parameters


@pytest.mark.parametrize(
    ("make", "options", "weights", "macs"),
    [
        (resnet, {"stride_in_1x1": True}, 25_502_912, 3_857_973_248),
        (resnet, {}, 25_502_912, 4_089_184_256),
    ],
)
def test_resnet50_counts(make, options, weights, macs):
    table = count_operations(on_meta(make, **options), (1, 3, 224, 224), outside="raise")
    assert totals(table)["weights"] == weights
    assert totals(table)["macs"] == macs
    assert len(table) == 54


@pytest.mark.parametrize(
    ("width", "weights", "macs"),
    [(4, 44_038_848, 7_969_996_800), (8, 88_587_456, 16_414_015_488), (48, 827_557_056, 153_310_199_808)],
)
def test_resnext101_counts(width, weights, macs):
    """Published, rounded: 43 M weights (of convolutions), 88 M and 16 G, 829 M and 153 G."""
    table = totals(count_operations(on_meta(resnext, width_per_group=width), (1, 3, 224, 224)))
    assert table["weights"] == weights
    assert table["macs"] == macs


def test_keys_are_torchvisions():
    keys = list(on_meta(resnet, depth=18).state_dict())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert keys[:6] == ["conv1.weight", *(f"bn1.{leaf}" for leaf in norm)]
    assert keys[-2:] == ["fc.weight", "fc.bias"]
    assert [k for k in keys if k.startswith("layer2.0") and "bn" not in k] == [
        "layer2.0.conv1.weight",
        "layer2.0.conv2.weight",
        "layer2.0.downsample.0.weight",
        *(f"layer2.0.downsample.1.{leaf}" for leaf in norm),
    ]
    assert len(keys) == 122
    assert len(on_meta(resnet, depth=50).state_dict()) == 320
    assert "layer1.0.conv3.weight" in on_meta(resnet, depth=50).state_dict()


@pytest.mark.parametrize(
    ("block", "options"),
    [
        (BasicBlock, {"stride": 2}),
        (Bottleneck, {"stride": 2}),
        (Bottleneck, {"stride": 2, "stride_in_1x1": True}),
        (Bottleneck, {"groups": 4, "width": 8}),
    ],
)
def test_a_block_written_out(block, options):
    torch.manual_seed(0)
    made = block(8, 8, **options).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 8, 7, 7)

    def norm(layer, y):
        return F.batch_norm(y, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    stride, groups = options.get("stride", 1), options.get("groups", 1)
    if block is BasicBlock:
        y = F.relu(norm(made.bn1, F.conv2d(x, made.conv1.weight, stride=stride, padding=1)))
        y = norm(made.bn2, F.conv2d(y, made.conv2.weight, padding=1))
    else:
        first, second = (stride, 1) if options.get("stride_in_1x1") else (1, stride)
        y = F.relu(norm(made.bn1, F.conv2d(x, made.conv1.weight, stride=first)))
        y = F.relu(norm(made.bn2, F.conv2d(y, made.conv2.weight, stride=second, padding=1, groups=groups)))
        y = norm(made.bn3, F.conv2d(y, made.conv3.weight))
    side = x
    if made.downsample is not None:
        side = norm(made.downsample[1], F.conv2d(x, made.downsample[0].weight, stride=stride))
    assert_close(made.branch(x), y)
    assert_close(made.shortcut(x), side)
    assert_close(made(x), F.relu(y + side))


def test_the_two_strides_differ_only_in_where():
    torch.manual_seed(0)
    first, second = resnet(18 + 32, width=0.125, stride_in_1x1=True), resnet(50, width=0.125)
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert first.eval()(x).shape == second.eval()(x).shape == (1, 1000)
    assert not torch.allclose(first(x), second(x))


def test_small_images_and_width():
    model = resnet(18, width=0.25, small_images=True, num_classes=10, in_channels=1)
    table = count_operations(model, (2, 1, 32, 32))
    assert table.iloc[0][["kernel", "input_shape", "output_shape"]].tolist() == [
        (3, 3),
        (2, 1, 32, 32),
        (2, 16, 32, 32),
    ]
    assert table.iloc[-1]["input_shape"] == (2, 128)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_three_stages():
    model = ResNet(block=BasicBlock, blocks=(3, 3, 3), width=0.25, small_images=True, num_classes=10)
    # the 20-layer network for CIFAR (He et al., section 4.2), with projections instead of padding
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == 19 + 2
    assert count_parameters(model) == 272_474


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(20), "depth must be one of 18, 34, 50, 101, 152, got 20"),
        (lambda: resnet(18, stride_in_1x1=True), "a basic block has no groups"),
        (lambda: resnet(18, groups=2), "a basic block has no groups"),
        (lambda: resnet(50, width=0.001), "must be positive"),
        (lambda: ResNet(blocks=()), "must be positive"),
        (lambda: resnext(50, width=0.2), "do not divide into 32 groups"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_projections_of_eight_channels_train_in_channels_last_order():
    torch.manual_seed(0)
    network = resnet(18, width=1 / 8, num_classes=3, small_images=True)
    images = torch.randn(4, 3, 16, 16)
    gradients = []
    for order in (torch.contiguous_format, torch.channels_last):
        network.zero_grad()
        network(images.contiguous(memory_format=order)).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in network.parameters()])
    for here, there in zip(*gradients, strict=True):
        assert_close(here, there, rtol=1e-3, atol=1e-4 * float(here.abs().max()))
