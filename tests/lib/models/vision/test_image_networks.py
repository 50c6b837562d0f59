"""MobileNets, SqueezeNet, DenseNet, Inception: published counts, torchvision's names, real weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.data import weights
from lib.data.dataset import DataUnavailable
from lib.data.photographs import PHOTOGRAPHS, photograph_tensor
from lib.data.preprocessing import IMAGENET, SQUEEZENET
from lib.models.vision.densenet import DenseNet
from lib.models.vision.inception import InceptionV3
from lib.models.vision.mobilenet import MobileNetV1, MobileNetV2, MobileNetV3Large, divisible, reduced_strides
from lib.models.vision.squeezenet import SqueezeNet

# ImageNet classes that describe the picture, as people would.
DEPICTED = {"camera": {872}, "chelsea": {281, 282, 285}, "coffee": {504, 967, 968}, "rocket": {657, 744, 812}}


def multiply_adds(network: nn.Module, size: int) -> tuple[int, int]:
    """Of all convolutions and linear layers on one image, and those of depthwise convolutions."""
    counts = [0, 0]

    def count(layer, inputs, output):
        per_output = layer.weight[0].numel()
        counts[0] += output[0].numel() * per_output
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            counts[1] += output[0].numel() * per_output

    hooks = [
        layer.register_forward_hook(count)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.device("meta"):
        network.eval().to("meta")(torch.empty(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return counts[0], counts[1]


def layers(network: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize(
    ("build", "parameters", "weights_only", "macs", "depthwise"),
    [
        (MobileNetV1, 4_231_976, 4_209_088, 568_740_352, 17_385_984),
        (MobileNetV2, 3_504_872, 3_469_760, 300_774_272, 20_716_416),
        (MobileNetV3Large, 5_483_032, 5_451_272, 216_589_760, 18_392_640),
    ],
)
def test_mobilenets_have_the_published_counts(build, parameters, weights_only, macs, depthwise):
    network = build()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1) == weights_only
    assert multiply_adds(network, 224) == (macs, depthwise)


@pytest.mark.parametrize(
    ("build", "size", "parameters", "giga", "keys"),
    [
        (SqueezeNet, 224, 1_235_496, 0.35, 52),
        (InceptionV3, 299, 23_834_568, 5.71, 566),
        (DenseNet, 224, 7_978_856, 2.83, 727),
        (lambda: DenseNet(depth=201), 224, 20_013_928, 4.29, 1207),
    ],
)
def test_other_networks_have_the_published_counts(build, size, parameters, giga, keys):
    network = build()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == keys
    assert round(multiply_adds(network, size)[0] / 1e9, 2) == giga


@pytest.mark.parametrize(
    ("build", "keys"),
    [
        (
            InceptionV3,
            ["Mixed_5b.branch5x5_2.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var", "fc.bias"],
        ),
        (
            DenseNet,
            ["features.denseblock4.denselayer16.conv2.weight", "features.transition3.norm.weight"],
        ),
        (
            MobileNetV3Large,
            ["features.4.block.2.fc1.bias", "features.16.1.running_mean", "classifier.3.weight"],
        ),
    ],
)
def test_names_are_torchvisions(build, keys):
    assert not set(keys) - set(build().state_dict())


def load(network: nn.Module, source) -> nn.Module:
    try:
        network.load_state_dict(source.load("data"), strict=True)
    except DataUnavailable as error:
        pytest.skip(str(error))
    return network.eval()


def hits(network: nn.Module, preprocessing, topk: int) -> set[str]:
    photographs = PHOTOGRAPHS.load("data")
    batch = photograph_tensor({name: photographs[name] for name in DEPICTED}, preprocessing)
    with torch.no_grad():
        best = network(batch).topk(topk).indices.tolist()
    return {name for (name, classes), row in zip(DEPICTED.items(), best, strict=True) if classes & set(row)}


def test_mobilenet_v2_names_what_it_sees():
    network = load(MobileNetV2(), weights.MOBILENET_V2)
    assert hits(network, IMAGENET, 1) == {"camera", "chelsea", "coffee"}
    assert hits(network, IMAGENET, 5) == set(DEPICTED)
    for block in network.features[1:-1]:  # the twin without skip connections sees nothing
        block.residual = False
    assert not hits(network, IMAGENET, 1)


def test_squeezenet_names_what_it_sees_in_its_own_colours_only():
    network = load(SqueezeNet(), weights.SQUEEZENET)
    assert hits(network, SQUEEZENET, 5) == set(DEPICTED)
    assert len(hits(network, IMAGENET, 5)) < len(DEPICTED)  # torchvision's preprocessing is the wrong one


def test_v3_against_a_functional_forward():
    """Blocks written out from the table, with random statistics of the norms."""
    torch.manual_seed(0)
    network = MobileNetV3Large(num_classes=7, width=0.5).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    images, state = torch.randn(2, 3, 64, 64), network.state_dict()

    def norm(x, name):
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / (variance + 0.001).sqrt()
        return x * scale[:, None, None] + (state[f"{name}.bias"] - mean * scale)[:, None, None]

    def conv(x, name, stride=1, groups=1):
        weight = state[f"{name}.0.weight"]
        return norm(F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups), f"{name}.1")

    def act(x, hswish):
        return x * (x + 3).clamp(0, 6) / 6 if hswish else x.clamp(min=0)

    table = "16,3,16,0,0,1 24,3,64,0,0,2 24,3,72,0,0,1 40,5,72,1,0,2 40,5,120,1,0,1 40,5,120,1,0,1 "
    table += "80,3,240,0,1,2 80,3,200,0,1,1 80,3,184,0,1,1 80,3,184,0,1,1 112,3,480,1,1,1 112,3,672,1,1,1 "
    table += "160,5,672,1,1,2 160,5,960,1,1,1 160,5,960,1,1,1"
    x = act(conv(images, "features.0", 2), True)
    for k, row in enumerate(table.split(), start=1):
        _, _, _, squeeze, hswish, stride = map(int, row.split(","))
        y, step, prefix = x, 0, f"features.{k}.block"
        if k > 1:
            y, step = act(conv(y, f"{prefix}.0"), hswish), 1
        y = act(conv(y, f"{prefix}.{step}", stride, y.shape[1]), hswish)
        if squeeze:
            name = f"{prefix}.{step + 1}"
            pooled = y.mean((2, 3), keepdim=True)
            pooled = F.conv2d(pooled, state[f"{name}.fc1.weight"], state[f"{name}.fc1.bias"]).clamp(min=0)
            pooled = F.conv2d(pooled, state[f"{name}.fc2.weight"], state[f"{name}.fc2.bias"])
            y = y * ((pooled + 3).clamp(0, 6) / 6)
        y = conv(y, f"{prefix}.{step + 1 + squeeze}")
        x = x + y if y.shape == x.shape else y
    x = act(conv(x, "features.16"), True).mean((2, 3))
    x = act(F.linear(x, state["classifier.0.weight"], state["classifier.0.bias"]), True)
    expected = F.linear(x, state["classifier.3.weight"], state["classifier.3.bias"])
    assert torch.allclose(network(images), expected, atol=1e-5)


@pytest.mark.parametrize("build", [MobileNetV1, MobileNetV2, MobileNetV3Large])
def test_small_images_and_widths(build):
    network = build(num_classes=10, width=0.25, reduction=8).eval()
    shapes = []
    network.features.register_forward_hook(lambda layer, inputs, output: shapes.append(output.shape[-2:]))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(4, 4)]


def test_rounding_of_channels_and_strides():
    assert [divisible(value) for value in (3, 8, 16 * 0.35, 32 * 0.75, 24 * 0.35, 72 / 4, 120 / 4)] == [
        8, 8, 8, 24, 8, 24, 32,
    ]  # fmt: skip
    assert reduced_strides([2, 1, 2, 2], 4) == [1, 1, 2, 2]
    assert reduced_strides([2, 1, 2, 2], 8) == [2, 1, 2, 2]
    assert reduced_strides([2, 1, 2, 2], 1) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MobileNetV1(reduction=64), "reduction must be a power of two from 1 to 32, got 64"),
        (lambda: MobileNetV2(reduction=6), "got 6"),
        (lambda: MobileNetV3Large(width=0), r"width multiplies the channels and must be in \(0, 10\], got 0"),
        (lambda: MobileNetV1(num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: SqueezeNet(num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: DenseNet(depth=169), "depth must be one of 121, 201, got 169"),
        (lambda: InceptionV3()(torch.zeros(1, 3, 64, 64)), "at least 75"),
    ],
)
def test_wrong_settings_are_refused_at_the_door(build, message):
    with pytest.raises(ValueError, match=message):
        build()
