"""AlexNet in both versions: counts by equality, Caffe's arithmetic, torchvision's keys and real kernels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.cost.operations import count_operations, totals
from lib.data.weights import ALEXNET
from lib.models.vision.alexnet import AlexNet, AlexNetOneTower

LAYERS = {  # output maps and multiply–accumulates of bvlc_alexnet, by hand: T · S/groups · D² · H · W
    "features.conv1": ((1, 96, 55, 55), 96 * 3 * 121 * 55 * 55),
    "features.conv2": ((1, 256, 27, 27), 256 * 48 * 25 * 27 * 27),
    "features.conv3": ((1, 384, 13, 13), 384 * 256 * 9 * 13 * 13),
    "features.conv4": ((1, 384, 13, 13), 384 * 192 * 9 * 13 * 13),
    "features.conv5": ((1, 256, 13, 13), 256 * 192 * 9 * 13 * 13),
    "classifier.fc6": ((1, 4096), 4096 * 256 * 36),
    "classifier.fc7": ((1, 4096), 4096 * 4096),
    "classifier.fc8": ((1, 1000), 1000 * 4096),
}


def on_meta(build, **options):
    with torch.device("meta"):
        return build(**options)


def test_the_two_group_network_layer_by_layer():
    table = count_operations(on_meta(AlexNet), (1, *AlexNet.input_shape))
    assert (
        dict(zip(table["layer"], zip(table["output_shape"], table["macs"], strict=True), strict=True))
        == LAYERS
    )
    sums = totals(table)
    assert (sums.weights, sums.biases) == (60_954_656, 10_568)
    assert (sums.macs, sums.macs + sums.bias_adds) == (724_406_816, 725_066_088)


def test_the_one_tower_network():
    sums = totals(count_operations(on_meta(AlexNetOneTower), (1, 3, 224, 224)))
    assert sums.weights + sums.biases == 61_100_840  # as torchvision prints it
    assert sums.macs == 714_188_480


def test_it_computes_what_caffes_definition_says():
    """A second writing of bvlc_alexnet's first layers: ReLU, normalisation, pooling, in this order."""
    torch.manual_seed(0)
    model = AlexNet(width=0.05).eval()
    images = 50 * torch.randn(2, 3, 227, 227)
    conv1, conv2 = model.features.conv1, model.features.conv2
    x = F.conv2d(images, conv1.weight, conv1.bias, 4).relu()
    squares = F.pad(x**2, (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)  # over five channels around each
    normed = x / (1 + 1e-4 / 5 * squares) ** 0.75
    pooled = F.max_pool2d(normed, 3, 2)
    left, right = pooled.chunk(2, 1)
    halves = [
        F.conv2d(half, weight, padding=2)
        for half, weight in zip((left, right), conv2.weight.chunk(2), strict=True)
    ]
    expected = torch.cat(halves, 1) + conv2.bias[:, None, None]
    torch.testing.assert_close(model.features[:5](images), expected, rtol=1e-4, atol=1e-4)
    swapped = F.conv2d(F.max_pool2d(x, 3, 2), conv2.weight, conv2.bias, padding=2, groups=2)
    assert (swapped - expected).abs().max() > 0.1  # without the normalisation it is another function


def test_sizes_are_parameters():
    small = AlexNet(width=1 / 16, num_classes=10).eval()
    assert small.map == (16, 6, 6)
    assert small(torch.randn(2, 3, 227, 227)).shape == (2, 10)
    tower = AlexNetOneTower(width=1 / 16, num_classes=10).eval()
    assert tower.map == (16, 6, 6)
    assert tower(torch.randn(2, 3, 224, 224)).shape == (2, 10)
    for build in (AlexNet, AlexNetOneTower):
        for options in ({"num_classes": 0}, {"width": 0.0}):
            with pytest.raises(ValueError, match="must be positive"):
                build(**options)


def test_the_real_kernels_load_and_see(tmp_path):
    features = AlexNetOneTower(num_classes=1).features.eval()
    state = {key.removeprefix("features."): value for key, value in ALEXNET.load(tmp_path).items()}
    features.load_state_dict(state, strict=True)
    # Learned filters: neighbouring taps agree, unlike those of a shuffled copy.
    first = features[0].weight.detach().numpy()
    shuffled = np.random.default_rng(0).permuted(first.reshape(64, 3, -1), axis=2).reshape(first.shape)
    correlation = [np.corrcoef(w[..., 1:].ravel(), w[..., :-1].ravel())[0, 1] for w in (first, shuffled)]
    assert correlation[0] > 0.5 > 0.2 > abs(correlation[1])
    assert torch.isfinite(features(torch.randn(1, 3, 224, 224))).all()
