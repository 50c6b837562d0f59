"""Conversion: what is replaced, what is kept, which ranges and kinds are found, and what is refused."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lib.models.vision.mobilenet import MobileNetV2, MobileNetV3Large
from lib.quantization.convert import quantize, quantized_layers, set_bits
from lib.quantization.duq import DuQ, DuQConv2d
from lib.quantization.lsq import LSQ
from lib.quantization.quantized_layers import QuantizedConv2d, QuantizedLinear
from lib.quantization.uniform import Uniform


def of_weights(layer, bits=4):
    return DuQ(bits, grid="weight")


def of_activations(kind, bits=4):
    return DuQ(bits, grid="symmetric" if kind == "signed" else kind)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Hardswish(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 6, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 25, 5),
    )


SAMPLE = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_kinds_of_inputs_and_what_is_replaced():
    model = small()
    before = copy.deepcopy(model.state_dict())
    new = quantize(model, SAMPLE, weights=of_weights, activations=of_activations)
    assert [name for name, _ in quantized_layers(new)] == ["0", "2", "4", "7"]
    assert new[0].input_quantizer is None  # the image
    assert [new[i].input_quantizer.kind for i in (2, 4, 7)] == ["hswish", "symmetric", "unsigned"]
    assert [new[i].padding_value for i in (0, 2, 4)] == [0.0, -0.375, 0.0]
    assert isinstance(new[3], nn.BatchNorm2d)
    assert set(before) <= set(new.state_dict())
    assert all(torch.equal(before[key], new.state_dict()[key]) for key in before)
    assert not list(quantized_layers(model))  # the original is untouched
    assert not any(module.training for module in [quantize(model.eval(), SAMPLE, weights=of_weights)])


def test_a_checkpoint_of_the_original_loads():
    model = small()
    new = quantize(small(), SAMPLE, weights=of_weights, activations=of_activations)
    missing, unexpected = new.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert all("_quantizer." in key for key in missing)


def test_the_output_is_that_of_the_layers_by_hand():
    model = small().eval()
    new = quantize(model, SAMPLE, weights=of_weights, activations=of_activations).eval()
    x = model[1](model[0](SAMPLE).clone())
    conv = model[0]
    w = DuQ(4, grid="weight").initialise(conv.weight)(conv.weight)
    x = nn.functional.hardswish(nn.functional.conv2d(SAMPLE, w, conv.bias, padding=1))
    q = new[2].input_quantizer(x)
    x = nn.functional.conv2d(
        nn.functional.pad(q, [1] * 4, value=-0.375), new[2].weight_quantizer(model[2].weight), groups=4
    )
    torch.testing.assert_close(new[:3](SAMPLE), x)


def test_ranges_are_measured_on_the_full_precision_network():
    model = small().eval()
    new = quantize(
        model, SAMPLE, weights=of_weights, activations=lambda kind: Uniform(8, signed=kind != "unsigned")
    )
    x = model[:7](SAMPLE)
    assert new[7].input_quantizer.upper == x.max()


def test_eight_bits_come_close_and_two_do_not():
    model = small().eval()
    errors = {}
    for bits in (8, 2):
        new = quantize(
            model,
            SAMPLE,
            weights=partial(of_weights, bits=bits),
            activations=partial(of_activations, bits=bits),
        )
        errors[bits] = (new.eval()(SAMPLE) - model(SAMPLE)).norm() / model(SAMPLE).norm()
    assert errors[8] < 0.2 < errors[2]


def test_full_precision_is_the_network_itself():
    model = small().eval()
    new = quantize(model, SAMPLE, weights=of_weights, activations=None)
    set_bits(new, weights=None)
    torch.testing.assert_close(new.eval()(SAMPLE), model(SAMPLE))


@pytest.mark.parametrize(("policy", "bits"), [("same", (2, 2)), (8, (8, 8)), (None, None)])
def test_first_and_last_layer(policy, bits):
    new = quantize(small(), SAMPLE, weights=partial(of_weights, bits=2), activations=of_activations,
                   first_last=policy)  # fmt: skip
    ends = [module for module in (new[0], new[7]) if isinstance(module, QuantizedConv2d | QuantizedLinear)]
    assert (tuple(module.weight_quantizer.bits for module in ends) or None) == bits
    assert new[2].weight_quantizer.bits == 2
    if policy == 8:
        assert new[7].input_quantizer.bits == 8


def test_options():
    new = quantize(small(), SAMPLE, weights=of_weights, activations=of_activations, quantize_image=True,
                   kinds={"2": "signed"}, skip=["4"])  # fmt: skip
    assert new[0].input_quantizer.kind == "symmetric"
    assert new[2].input_quantizer.kind == "symmetric" and new[2].padding_value == 0
    assert type(new[4]) is nn.Conv2d
    per_channel = quantize(small(), SAMPLE, weights=lambda layer: LSQ(4, channels=len(layer.weight)))
    assert per_channel[7].weight_quantizer.step.shape == (5,)
    model = small()
    assert quantize(model, SAMPLE, weights=of_weights, inplace=True) is model


def test_bits_are_set_apart():
    new = quantize(small(), SAMPLE, weights=of_weights, activations=of_activations)
    set_bits(new, weights=3)
    assert (new[2].weight_quantizer.bits, new[2].input_quantizer.bits) == (3, 4)
    set_bits(new, activations=None)
    assert (new[2].weight_quantizer.bits, new[2].input_quantizer.bits) == (3, None)
    authors = nn.Sequential(DuQConv2d(1, 1, 1), DuQ(8))
    set_bits(authors, weights=2, activations=5)
    assert (authors[0].bits, authors[1].bits) == (2, 5)


def test_a_layer_used_twice_is_replaced_once():
    model = small()
    shared = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(model[0], shared, nn.ReLU(), shared)
    new = quantize(model, SAMPLE, weights=of_weights, activations=of_activations)
    assert new[1] is new[3] and isinstance(new[1], QuantizedConv2d)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.LSTM(5, 3)), {}, "0 is a LSTM: Conv2d and Linear"),
        (nn.Sequential(nn.ConvTranspose2d(3, 3, 1)), {}, "0 is a ConvTranspose2d"),
        (nn.Sequential(nn.ReLU()), {}, "no convolution or linear layer"),
        (small(), {"skip": ["9"]}, "no module '9'"),
        (small(), {"kinds": {"2": "positive"}}, "kinds are unsigned, signed, hswish, got 'positive'"),
        (nn.Sequential(DuQConv2d(3, 3, 1)), {}, "0 is quantised already"),
    ],
)
def test_what_cannot_be_converted_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        quantize(model, SAMPLE, weights=of_weights, **options)


def test_a_layer_that_the_sample_does_not_reach_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.left = nn.Conv2d(3, 2, 1), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="does not reach left"):
        quantize(Unused(), SAMPLE, weights=of_weights)


@pytest.mark.parametrize(
    ("network", "convolutions", "linears"), [(MobileNetV2, 52, 1), (MobileNetV3Large, 62, 2)]
)
def test_the_real_networks(network, convolutions, linears):
    """v3's 62 convolutions are 46 and two for each of its eight squeeze-and-excite modules."""
    model = network(num_classes=10, width=0.25, reduction=8)
    sample = torch.randn(2, 3, 32, 32)
    new = quantize(model, sample, weights=of_weights, activations=of_activations)
    kinds = [type(layer) for _, layer in quantized_layers(new)]
    assert (kinds.count(QuantizedConv2d), kinds.count(QuantizedLinear)) == (convolutions, linears)
    new(sample).sum().backward()
    assert all(parameter.grad is not None for parameter in new.parameters())
    padded = [layer.padding_value for _, layer in quantized_layers(new) if getattr(layer, "groups", 1) > 1]
    if network is MobileNetV3Large:
        assert padded.count(-0.375) == 10  # the blocks with h-swish; the first block's input is the stem's
    else:
        assert set(padded) == {0.0}


# --- layers with several names, called by keyword, with hooks ---


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.second(input=self.first(input=x).relu())


def test_a_layer_called_by_keyword():
    torch.manual_seed(0)
    model = ByKeyword().eval()
    new = quantize(model, SAMPLE, weights=of_weights, activations=of_activations)
    assert new.second.input_quantizer.kind == "unsigned"
    plain = nn.Sequential(model.first, nn.ReLU(), model.second)
    expected = quantize(plain, SAMPLE, weights=of_weights, activations=of_activations)
    assert torch.equal(new(SAMPLE), expected(SAMPLE))


def test_a_model_that_is_a_layer():
    layer = nn.Linear(5, 2)
    new = quantize(layer, SAMPLE, weights=of_weights)
    assert type(layer) is nn.Linear
    assert torch.equal(
        new(SAMPLE), nn.functional.linear(SAMPLE, new.weight_quantizer(layer.weight), layer.bias)
    )


def test_a_layer_answers_to_each_of_its_names():
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared)
    options = {"weights": of_weights, "activations": of_activations}
    for name in ("1", "3"):
        assert (
            quantize(model, SAMPLE, kinds={name: "unsigned"}, **options)[1].input_quantizer.kind == "unsigned"
        )
        left = quantize(model, SAMPLE, skip=[name], **options)
        assert [name for name, _ in quantized_layers(left)] == ["0"] and left[1] is left[3]


def test_a_shared_weight_stays_shared_with_a_quantiser_for_each_layer():
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    new = quantize(model, SAMPLE, weights=of_weights)
    assert new[0].weight is new[1].weight is not model[0].weight
    assert new[0].weight_quantizer is not new[1].weight_quantizer


def test_hooks_mode_and_what_is_frozen_stay():
    model, calls = small(), []
    model[4].register_forward_hook(lambda *_: calls.append("behind"))
    model[4].bias.requires_grad_(False)
    model[4].eval()
    new = quantize(model, SAMPLE, weights=of_weights)
    calls.clear()
    new(SAMPLE)
    assert calls == ["behind"]
    assert not new[4].training and new[7].training
    assert [name for name, p in new.named_parameters() if not p.requires_grad] == ["4.bias"]


def test_layers_of_other_kinds_are_named_and_may_be_skipped():
    class Other(nn.Linear):
        """May compute something else."""

    model = nn.Sequential(nn.Linear(5, 5), Other(5, 5))
    with pytest.raises(ValueError, match="1 is a Other: Conv2d and Linear are quantised; skip it by name"):
        quantize(model, SAMPLE, weights=of_weights)
    assert len(list(quantized_layers(quantize(model, SAMPLE, weights=of_weights, skip=["1"])))) == 1
