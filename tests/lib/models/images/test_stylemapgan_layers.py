"""StyleMapGAN's two custom operations and its layers: against SciPy, by hand, and differentiated twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d, upfirdn
from torch.autograd import gradcheck, gradgradcheck

from lib.models.images.stylemapgan_layers import (
    BLUR,
    EqualConv,
    EqualLinear,
    ResidualBlock,
    StyledConv,
    fused_leaky_relu,
    normalised,
    upfirdn2d,
)

KERNEL = torch.outer(torch.tensor(BLUR), torch.tensor(BLUR)).double() / 64
LOPSIDED = torch.tensor([[1.0, 2, 0, -1], [0, 3, 5, 2], [7, -2, 1, 4], [0, 1, -6, 2]]).double()


def by_definition(
    plane: np.ndarray, kernel: np.ndarray, up: int, down: int, pad: tuple[int, int]
) -> np.ndarray:
    stuffed = np.zeros((plane.shape[0] * up, plane.shape[1] * up))
    stuffed[::up, ::up] = plane
    cut = [slice(max(0, -pad[0]), size - max(0, -pad[1])) for size in stuffed.shape]
    padded = np.pad(stuffed[tuple(cut)], [tuple(max(0, p) for p in pad)] * 2)
    return convolve2d(padded, kernel, mode="valid")[::down, ::down]


@pytest.mark.parametrize("kernel", [KERNEL, LOPSIDED, LOPSIDED[:3, :3]], ids=["blur", "lopsided", "odd"])
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)])
@pytest.mark.parametrize("pad", [(0, 0), (1, 1), (2, 2), (2, 1), (0, 3), (4, 4), (-1, 2), (2, -1), (-1, -1)])
def test_upfirdn2d_is_scipys_convolution_of_the_stuffed_plane(kernel, up, down, pad):
    inputs = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    expected = [
        [by_definition(p.numpy(), kernel.numpy(), up, down, pad) for p in planes] for planes in inputs
    ]
    found = upfirdn2d(inputs, kernel, up=up, down=down, pad=pad)
    size = len(kernel)
    assert found.shape[2] == (7 * up + sum(pad) - size) // down + 1
    np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=1e-12)
    single = upfirdn2d(inputs.float(), kernel, up=up, down=down, pad=pad)
    torch.testing.assert_close(single.double(), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2)])
def test_a_separable_kernel_is_scipys_upfirdn_along_each_axis(up, down):
    """SciPy pads as far as the kernel reaches, and inserts no zeros behind the last sample."""
    inputs = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    expected = inputs[0, 0].numpy()
    for axis in (0, 1):
        expected = upfirdn(np.array(BLUR) / 8, expected, up, down, axis=axis)
    found = upfirdn2d(inputs, KERNEL, up=up, down=down, pad=(3, 3 - (up - 1)))
    np.testing.assert_allclose(found[0, 0], expected, rtol=0, atol=1e-12)


def test_what_upfirdn2d_cannot_do_is_refused():
    inputs = torch.zeros(1, 1, 4, 4)
    for wrong in (inputs[0], inputs.flatten(2)):
        with pytest.raises(ValueError, match=r"filters \(N, C, H, W\) with a kernel \(K, K\), got"):
            upfirdn2d(wrong, KERNEL)
    with pytest.raises(ValueError, match=r"kernel \(K, K\), got .* and \(4, 3\)$"):
        upfirdn2d(inputs, KERNEL[:, :3])
    for factors in ({"up": 2, "down": 2}, {"up": 0}, {"down": -1}):
        with pytest.raises(ValueError, match="at least 1 and one of them 1"):
            upfirdn2d(inputs, KERNEL, **factors)
    with pytest.raises(ValueError, match="smaller than the kernel of 4"):
        upfirdn2d(inputs, KERNEL, pad=(-1, 0))


def test_fused_leaky_relu():
    found = fused_leaky_relu(torch.tensor([[1.0], [-1.0], [0.0]]), torch.zeros(1))
    torch.testing.assert_close(found.flatten(), torch.tensor([1.41421, -0.28284, 0.0]), rtol=0, atol=1e-5)
    inputs, bias = torch.randn(2, 3, 4, 5), torch.randn(3)
    expected = F.leaky_relu(inputs + bias[:, None, None], 0.2) * math.sqrt(2)
    torch.testing.assert_close(fused_leaky_relu(inputs, bias), expected)
    torch.testing.assert_close(fused_leaky_relu(inputs, slope=0.5, scale=3.0), F.leaky_relu(inputs, 0.5) * 3)


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_both_operations_are_twice_differentiable(check):
    assert check(fused_leaky_relu, (double(2, 3, 2, 2), double(3)))
    for options in ({}, {"up": 2, "pad": (2, 1)}, {"down": 2, "pad": (1, 1)}, {"up": 2, "pad": (0, 4)}):
        assert check(lambda x, options=options: upfirdn2d(x, LOPSIDED, **options), double(1, 2, 4, 4))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_layers_are_twice_differentiable_in_inputs_and_weights(check, kernel, resample):
    layer = EqualConv(2, 2, kernel, resample=resample).double()

    def function(inputs, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (inputs,))

    assert check(function, (double(1, 2, 4, 4), double(*layer.weight.shape), double(2)))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_a_layer_is_its_definition(kernel, resample):
    layer = EqualConv(3, 5, kernel, resample=resample, gain=0.7).double()
    torch.nn.init.normal_(layer.bias)
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    weight = layer.weight / math.sqrt(3 * kernel**2)
    if resample == "up":
        pad = 1 if kernel == 3 else 2
        wide = F.conv_transpose2d(inputs, weight.transpose(0, 1), stride=2)
        planes = F.pad(wide, [pad] * 4)
        expected = 4 * torch.stack([filtered(x) for x in planes])
    elif resample == "down":
        pad = 2 if kernel == 3 else 1
        planes = F.pad(inputs, [pad] * 4)
        expected = F.conv2d(torch.stack([filtered(x) for x in planes]), weight, stride=2)
    else:
        expected = F.conv2d(inputs, weight, padding=kernel // 2)
    expected = 0.7 * fused_leaky_relu(expected, layer.bias)
    assert expected.shape[2] == {"up": 16, "down": 4, None: 8}[resample]
    torch.testing.assert_close(layer(inputs), expected)


def filtered(planes: torch.Tensor) -> torch.Tensor:
    kernel = KERNEL.numpy()
    return torch.stack([torch.from_numpy(convolve2d(p.detach(), kernel, mode="valid")) for p in planes])


def test_the_blur_keeps_constants():
    assert float(KERNEL.sum()) == 1
    ones = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    up = EqualConv(1, 1, 1, resample="up", activate=False, bias=False).double()
    torch.nn.init.ones_(up.weight)
    found = up(ones)[0, 0].detach()
    torch.testing.assert_close(found[1:-1, 1:-1], torch.ones(14, 14, dtype=torch.float64))
    assert float(found[0, 0]) == 0.5625  # 0.75²
    torch.testing.assert_close(found[0, 1:-1], torch.full((14,), 0.75, dtype=torch.float64))
    torch.testing.assert_close(upfirdn2d(ones, KERNEL)[0, 0], torch.ones(5, 5, dtype=torch.float64))


def test_linear_layers_scale_by_fan_in_and_rate():
    layer = EqualLinear(4, 3, rate=0.01, activate=True)
    torch.nn.init.normal_(layer.bias)
    inputs = torch.randn(2, 4)
    expected = fused_leaky_relu(inputs @ layer.weight.T * 0.01 / 2 + layer.bias * 0.01)
    torch.testing.assert_close(layer(inputs), expected)
    plain = EqualLinear(4, 3)
    torch.testing.assert_close(plain(inputs), inputs @ plain.weight.T / 2)
    assert EqualLinear(64, 4096, rate=0.01).weight.detach().std() == pytest.approx(100, rel=0.01)


def test_a_residual_block_is_a_sum_over_root_two():
    block = ResidualBlock(3, 4)
    inputs = torch.randn(2, 3, 8, 8)
    alone = EqualConv(3, 4, 3, resample="down")
    alone.load_state_dict(block.conv2.state_dict())
    skip = EqualConv(3, 4, 1, resample="down", activate=False, bias=False)
    skip.load_state_dict(block.skip.state_dict())
    expected = (alone(block.conv1(inputs)) + skip(inputs)) / math.sqrt(2)
    torch.testing.assert_close(block(inputs), expected)


def test_normalisation_by_sample_or_channel():
    inputs = torch.randn(3, 4, 5, 6) * 7 + 2
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = inputs.contiguous(memory_format=layout)
        torch.testing.assert_close(normalised(laid, by="layer"), F.layer_norm(inputs, inputs.shape[1:]))
        torch.testing.assert_close(normalised(laid, by="instance"), F.instance_norm(inputs))


@pytest.mark.parametrize("outputs, kernel, resample", [(5, 3, None), (5, 3, "up"), (3, 1, None)])
def test_modulation_with_constant_codes_and_instance_norm_is_adaptive_instance_norm(
    outputs, kernel, resample
):
    layer = StyledConv(
        4, outputs, kernel, code_channels=6, code_kernel=1, normalise="instance", resample=resample
    ).double()
    for bias in (layer.gamma.bias, layer.beta.bias, layer.conv.bias):
        torch.nn.init.normal_(bias)
    inputs, code = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 6, 1, 1).double()
    means = inputs.mean(dim=(2, 3), keepdim=True)
    deviations = (inputs.var(dim=(2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    scale, shift = (
        F.linear(code.flatten(1), part.weight.flatten(1) / math.sqrt(6), part.bias)[..., None, None]
        for part in (layer.gamma, layer.beta)
    )
    expected = layer.conv(scale * (inputs - means) / deviations + shift)
    torch.testing.assert_close(layer(inputs, code), expected)
    everywhere = code.expand(-1, -1, 8, 8)
    torch.testing.assert_close(layer(inputs, everywhere), expected)


def test_gamma_and_beta_start_at_one_and_zero():
    layer = StyledConv(4, 5, 3, code_channels=6)
    inputs = torch.randn(2, 4, 8, 8)
    expected = layer.conv(F.layer_norm(inputs, inputs.shape[1:]))
    torch.testing.assert_close(layer(inputs, torch.zeros(2, 6, 8, 8)), expected)


@pytest.mark.parametrize("outputs, kernel, resample", [(2, 3, None), (2, 3, "up"), (3, 1, None)])
def test_gradients_of_styled_convolutions(outputs, kernel, resample):
    layer = StyledConv(2, outputs, kernel, code_channels=2, resample=resample).double()
    names = [name for name, _ in layer.named_parameters()]

    def function(inputs, code, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (inputs, code))

    weights = [double(*parameter.shape) for parameter in layer.parameters()]
    assert gradcheck(function, (double(1, 2, 3, 3), double(1, 2, 3, 3), *weights))
