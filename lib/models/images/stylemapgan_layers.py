"""Layers of StyleMapGAN: its two custom operations in plain PyTorch, and equalised convolutions.

Source: Kim, Choi, Kim, Yoo & Uh, Exploiting Spatial Dimensions of Latent in GAN for Real-time Image Editing,
CVPR 2021 (arXiv:2104.14754). The networks are in `lib.models.images.stylemapgan`.

What costs a pass over memory is folded: leaky ReLU commutes with positive factors, so its √2, the scale of
an equalised weight and the 1/√2 of a residual sum all go into the weights, and the bias into the convolution.
Feature maps are channels-last, where oneDNN needs no reordering and blurs at the speed of memory.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of leaky ReLU where negative
GAIN = math.sqrt(2)  # keeps the variance behind leaky ReLU
BLUR = 1.0, 3.0, 3.0, 1.0  # divided by its sum; the blur is its outer product with itself

Resample = Literal["up", "down"]
Normalise = Literal["layer", "instance"]


def fused_leaky_relu(
    inputs: Tensor, bias: Tensor | None = None, *, slope: float = SLOPE, scale: float = GAIN
) -> Tensor:
    """Add a bias per channel, take the leaky ReLU, multiply by `scale`.

    Parameters
    ----------
    inputs : Tensor (N, C, ...)
    bias : Tensor (C,), optional
    slope, scale : float
    """
    if bias is not None:
        inputs = inputs + bias.view(-1, *[1] * (inputs.ndim - 2))
    return F.leaky_relu(inputs, slope) * scale


def upfirdn2d(
    inputs: Tensor,
    kernel: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    pad: tuple[int, int] = (0, 0),
) -> Tensor:
    """Upsample, filter, downsample; one convolution per channel, which never stores the inserted zeros.

    In this order: behind each sample `up` − 1 zeros; `pad` zeros before and behind (negative: samples are
    cut); convolution with `kernel` (flipped, as mathematics has it) where it fits; every `down`-th sample.

    Parameters
    ----------
    inputs : Tensor (N, C, H, W)
    kernel : Tensor (K, K)
    up, down : int
        At least 1; one of them is 1.
    pad : pair of int
        The same for both axes.

    Returns
    -------
    Tensor (N, C, H', W')
        H' = (H · up + pad[0] + pad[1] − K) // down + 1.

    Raises
    ------
    ValueError
        A kernel that is not square, factors below 1 or both above, or less than a kernel to filter.
    """
    if inputs.ndim != 4 or kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        shapes = f"{tuple(inputs.shape)} and {tuple(kernel.shape)}"
        raise ValueError(f"upfirdn2d filters (N, C, H, W) with a kernel (K, K), got {shapes}")
    if min(up, down) != 1:
        raise ValueError(f"upfirdn2d wants up and down at least 1 and one of them 1, got {up} and {down}")
    channels, size, before, after = inputs.shape[1], len(kernel), *pad
    if min(inputs.shape[2:]) * up + before + after < size:
        raise ValueError(f"{tuple(inputs.shape)} with pad {pad} is smaller than the kernel of {size}")
    kernel = kernel.to(inputs).expand(channels, 1, size, size)
    if up > 1:  # transposed, the convolution is flipped as it is; what it gives too much is cut
        before, after = size - 1 - before, size - up - after
        if before == after >= 0:
            return F.conv_transpose2d(inputs, kernel, stride=up, padding=before, groups=channels)
        full = F.conv_transpose2d(inputs, kernel, stride=up, groups=channels)
        return F.pad(full, (-before, -after, -before, -after))
    if before != after or before < 0:
        inputs, before = F.pad(inputs, (before, after, before, after)), 0
    return F.conv2d(inputs, kernel.flip(2, 3), stride=down, padding=before, groups=channels)


class EqualLinear(nn.Module):
    """Linear layer whose weights are scaled when used, so that all learn at one rate.

    Parameters
    ----------
    inputs, outputs : int
    rate : float
        Multiplies weights and biases when used, and divides the first weights: how fast this layer learns.
    activate : bool
        Whether leaky ReLU times √2 follows.
    """

    def __init__(self, inputs: int, outputs: int, *, rate: float = 1.0, activate: bool = False) -> None:
        super().__init__()
        self.rate, self.activate = rate, activate
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs)."""
        weight, bias = self.weight * (self.rate / math.sqrt(self.weight.shape[1])), self.bias * self.rate
        if self.activate:
            return fused_leaky_relu(F.linear(inputs, weight), bias)
        return F.linear(inputs, weight, bias)


class EqualConv(nn.Module):
    """Equalised convolution, blurred where it changes the size, with bias and leaky ReLU times √2.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    kernel : int
        1 or 3; any with `padding`. With "same" padding where the size stays.
    resample : "up" or "down", optional
        Doubles the size (transposed convolution, then blur) or halves it (blur, then convolution).
    activate, bias : bool
    gain : float
        Multiplies what is returned.
    padding : int, optional
        Instead of the "same".
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        resample: Resample | None = None,
        activate: bool = True,
        bias: bool = True,
        gain: float = 1.0,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.resample, self.activate, self.padding = resample, activate, kernel // 2
        if padding is not None:
            self.padding = padding
        self.gain = gain * GAIN if activate else gain
        self.scale = self.gain / math.sqrt(inputs * kernel**2)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        blur = torch.tensor(BLUR) / sum(BLUR)
        self.register_buffer("blur", torch.outer(blur, blur) if resample else None, persistent=False)

    def scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they are used."""
        return self.weight * self.scale, None if self.bias is None else self.bias * self.gain

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H', W'), H' being H, 2H or H/2."""
        weight, bias = self.scaled()
        pointwise = weight.shape[-1] == 1
        if self.resample == "up":
            kernel = 4 * self.blur  # of what it filters three quarters are inserted zeros
            if pointwise:
                outputs = upfirdn2d(F.conv2d(inputs, weight), kernel, up=2, pad=(2, 1))
            else:
                wide = F.conv_transpose2d(inputs, weight.transpose(0, 1), stride=2)
                outputs = upfirdn2d(wide, kernel, pad=(1, 1))
            if bias is not None:  # in the blur's convolution it would cost the gradient of the kernel
                outputs.add_(bias.view(-1, 1, 1))
        elif self.resample == "down":
            if pointwise:
                outputs = F.conv2d(upfirdn2d(inputs, self.blur, down=2, pad=(1, 1)), weight, bias)
            else:
                outputs = F.conv2d(upfirdn2d(inputs, self.blur, pad=(2, 2)), weight, bias, stride=2)
        else:
            outputs = F.conv2d(inputs, weight, bias, padding=self.padding)
        return F.leaky_relu_(outputs, SLOPE) if self.activate else outputs


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, the second of which halves the size, and a skip connection: sum over √2.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = EqualConv(inputs, inputs, 3)
        self.conv2 = EqualConv(inputs, outputs, 3, resample="down", gain=1 / GAIN)
        self.skip = skip(inputs, outputs, "down")

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H/2, W/2)."""
        return self.conv2(self.conv1(inputs)) + self.skip(inputs)


def skip(inputs: int, outputs: int, resample: Resample) -> EqualConv:
    """The 1×1 convolution of a residual sum, already divided by √2."""
    return EqualConv(inputs, outputs, 1, resample=resample, activate=False, bias=False, gain=1 / GAIN)


class StyledConv(nn.Module):
    """Spatially variant modulation, then convolution: conv(γ(w⁺) ⊙ (h − μ) / σ + β(w⁺)), leaky ReLU times √2.

    μ and σ are over channels and places of a sample. The biases of γ and β start at 1 and 0.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    kernel : 1 or 3
    code_channels : int
        Of the style code w⁺.
    code_kernel : 1 or 3
        1 where the style code is a vector.
    normalise : "layer" or "instance"
        "instance": μ and σ of each channel by itself.
    resample, gain
        As of `EqualConv`; a `kernel` of 1 does not resample.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        code_channels: int,
        code_kernel: int = 3,
        normalise: Normalise = "layer",
        resample: Resample | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.gamma = EqualConv(code_channels, inputs, code_kernel, activate=False)
        self.beta = EqualConv(code_channels, inputs, code_kernel, activate=False)
        nn.init.ones_(self.gamma.bias)
        self.conv = EqualConv(inputs, outputs, kernel, resample=resample, gain=gain)

    def forward(self, inputs: Tensor, code: Tensor) -> Tensor:
        """(N or 1, inputs, H, W), with a style code (N, C, H, W) or (N, C, 1, 1), to (N, outputs, H', W')."""
        inputs, gamma = normalised(inputs, by=self.normalise), self.gamma(code)
        if self.conv.weight.shape[-1] > 1:
            return self.conv(torch.addcmul(self.beta(code), gamma, inputs))
        # A 1×1 convolution to few channels: that of β is convolved with it first, and is of as few channels.
        weight, bias = self.conv.scaled()
        outer, inner = weight[..., 0, 0], self.beta.scaled()
        shift = torch.einsum("oi, ichw -> ochw", outer, inner[0]), outer @ inner[1] + bias
        outputs = F.conv2d(inputs * gamma, weight) + F.conv2d(code, *shift, padding=self.beta.padding)
        return F.leaky_relu_(outputs, SLOPE)


def normalised(inputs: Tensor, *, by: Normalise, epsilon: float = 1e-5) -> Tensor:
    """Feature maps (N, C, H, W) with mean 0 and variance 1, of each sample or of each of its channels."""
    if by == "instance":
        return F.instance_norm(inputs, eps=epsilon)
    places = inputs.permute(0, 2, 3, 1)  # of a channels-last tensor a contiguous view, in any order as good
    return F.layer_norm(places, places.shape[1:], eps=epsilon).permute(0, 3, 1, 2)
