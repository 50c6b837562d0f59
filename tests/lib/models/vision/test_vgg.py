"""VGG-16, VGG-S and small networks of the same plan: counts by equality, keys, shapes, bad sizes."""

import pytest
import torch

from lib.cost.operations import count_operations, totals
from lib.data.weights import VGG16
from lib.models.vision.vgg import VGG, VGG16_STAGES, VGGS


def on_meta(build, **options):
    with torch.device("meta"):
        return build(**options)


def test_vgg16_counts():
    model = on_meta(VGG)
    table = count_operations(model, (1, *model.input_shape))
    sums = totals(table)
    assert (sums.weights, sums.biases) == (138_344_128, 13_416)
    assert (sums.macs, sums.macs + sums.bias_adds) == (15_470_264_320, 15_483_821_032)
    # By hand: nine taps per input and output channel on each stage's map.
    expected, inputs, side = [], 3, 224
    for stage in VGG16_STAGES:
        for outputs in stage:
            expected.append(9 * inputs * outputs * side**2)
            inputs = outputs
        side //= 2
    expected += [512 * 49 * 4096, 4096 * 4096, 4096 * 1000]
    assert table["macs"].tolist() == expected
    assert model.map == (512, 7, 7)


def test_vgg16_has_torchvisions_names(tmp_path):
    keys = set(on_meta(VGG).state_dict())
    state = VGG16.load(tmp_path)
    assert set(state) == {key for key in keys if key.startswith("features.")}
    assert {key for key in keys if key.startswith("classifier.")} == {
        f"classifier.{n}.{leaf}" for n in (0, 3, 6) for leaf in ("weight", "bias")
    }
    features = on_meta(VGG).features.to_empty(device="cpu").eval()
    features.load_state_dict(
        {key.removeprefix("features."): value for key, value in state.items()}, strict=True
    )
    assert torch.isfinite(features(torch.randn(1, 3, 64, 64))).all()


def test_vggs_counts_and_maps():
    model = on_meta(VGGS)
    table = count_operations(model, (1, *VGGS.input_shape))
    sums = totals(table)
    assert (sums.weights, sums.biases) == (102_897_440, 11_080)
    assert (sums.macs, sums.macs + sums.bias_adds) == (2_637_708_320, 2_639_580_776)
    assert table["output_shape"].tolist() == [
        (1, 96, 109, 109),
        (1, 256, 33, 33),
        (1, 512, 17, 17),
        (1, 512, 17, 17),
        (1, 512, 17, 17),
        (1, 4096),
        (1, 4096),
        (1, 1000),
    ]


def test_small_networks_of_the_same_plan():
    model = VGG(stages=((8,), (16, 24)), hidden=(32,), num_classes=10, channels=1, input_size=28)
    assert model.map == (24, 7, 7) and model.input_shape == (1, 28, 28)
    assert model(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    assert [m.out_channels for m in model.features if hasattr(m, "out_channels")] == [8, 16, 24]
    narrow = VGG(stages=((8,), (16, 24)), hidden=(32,), num_classes=10, channels=1, input_size=28, width=0.5)
    assert narrow.map == (12, 7, 7) and narrow.classifier[0].out_features == 16
    assert narrow(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    direct = VGG(stages=((4,),), hidden=(), num_classes=5, input_size=9)
    assert direct(torch.randn(1, 3, 9, 9)).shape == (1, 5)  # 9 pixels: pooling rounds down to 4
    assert VGGS(width=1 / 16, num_classes=7).eval()(torch.randn(1, 3, 224, 224)).shape == (1, 7)


def test_batch_normalisation_has_torchvisions_names():
    keys = on_meta(VGG, batch_norm=True).state_dict()
    assert {"features.0.weight", "features.1.running_mean", "features.40.weight", "features.41.bias"} <= set(
        keys
    )
    assert keys["features.40.weight"].shape == (512, 512, 3, 3)


@pytest.mark.parametrize(
    ("build", "options", "match"),
    [
        (VGG, {"input_size": 16}, "5 stages leave nothing of 16 pixels"),
        (VGG, {"width": -1}, "width must be positive"),
        (VGG, {"channels": 0}, "channels must be positive"),
        (VGGS, {"num_classes": 0}, "num_classes must be positive"),
    ],
)
def test_bad_sizes(build, options, match):
    with pytest.raises(ValueError, match=match):
        build(**options)
