"""A step of StyleMapGAN's generator and discriminator against the straightforward one, side by side.

The straightforward networks, below, are the published definition, operation by operation, from weights under
the authors' keys: weights scaled, transposed convolution, blur of every plane as an image of its own, bias,
leaky ReLU and √2 one after the other, feature maps channels-first. As that blur is most of its time, there is
a second look with a blur by one grouped convolution. Sizes: 64 pixels, a map of 8×8, batch 8, one thread.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.models.images.stylemapgan import StyleMapGAN
from lib.models.images.stylemapgan_checkpoints import authors_tensors
from lib.models.images.stylemapgan_losses import (
    adversarial_discriminator,
    generator_losses,
    gradient_penalty,
)

OPTIONS = {"resolution": 64, "map_size": 8, "style_channels": 16, "latent_size": 64}


def blurred_by_plane(x, kernel, pad):
    planes = F.conv2d(F.pad(x, (pad, pad, pad, pad)).flatten(0, 1)[:, None], kernel[None, None])
    return planes.view(*x.shape[:2], *planes.shape[2:])


def blurred_by_group(x, kernel, pad):
    channels = x.shape[1]
    return F.conv2d(F.pad(x, (pad, pad, pad, pad)), kernel.expand(channels, 1, 4, 4), groups=channels)


class Weights(dict):
    """Of one network, and how it blurs."""

    def __init__(self, network, blurred):
        self.blurred = blurred
        for key, value in authors_tensors(network).items():
            self[key] = value.detach().clone().contiguous().requires_grad_(not key.endswith(".kernel"))


class Straightforward:
    """The published networks as functions of weights under the authors' keys."""

    def __init__(self, model, blurred):
        networks = ("generator", "encoder", "discriminator")
        self.weights = {name: Weights(getattr(model, name), blurred) for name in networks}

    def generator(self, latents):
        w = self.weights["generator"]
        x = latents * torch.rsqrt(latents.square().mean(1, keepdim=True) + 1e-8)
        layers = sum(key.startswith("mapping_z") for key in w) // 2
        for k in range(1, layers + 1):
            x = linear(x, w[f"mapping_z.{k}.weight"], w[f"mapping_z.{k}.bias"], rate=0.01, activate=True)
        constant = w["decoder.input.input"]
        side = constant.shape[-1]
        style = x.view(len(x), -1, side, side)
        codes = []
        for k in range(sum(key.startswith("decoder.convs_latent") and key.endswith("bias") for key in w)):
            style = conv_layer(w, f"decoder.convs_latent.{k}", style, "up" if k and k % 2 == 0 else None)
            codes.append(style)
        x = styled(w, "decoder.conv1", constant.repeat(len(latents), 1, 1, 1), codes[0])
        for b in range((len(codes) - 2) // 2):
            name = f"decoder.convs.{b}"
            y = styled(w, f"{name}.conv1", x, codes[2 * b + 1], up=True)
            y = styled(w, f"{name}.conv2", y, codes[2 * b + 2])
            x = (y + conv_layer(w, f"{name}.skip", x, "up")) / math.sqrt(2)
        return styled(w, "decoder.to_rgb", x, codes[-1])

    def encoder(self, images):
        w = self.weights["encoder"]
        x = conv_layer(w, "from_rgb", images)
        for b in range(sum(key.startswith("convs.") and key.endswith("skip.1.weight") for key in w)):
            x = residual(w, f"convs.{b}", x)
        return conv_layer(w, "final_conv", x)

    def discriminator(self, images):
        w = self.weights["discriminator"]
        x = conv_layer(w, "convs.0", images)
        for b in range(1, 1 + sum(key.endswith("skip.1.weight") for key in w)):
            x = residual(w, f"convs.{b}", x)
        count, channels, height, width = x.shape
        group = min(count, 4)
        deviation = x.view(group, -1, 1, channels, height, width)
        deviation = (deviation.var(0, unbiased=False) + 1e-8).sqrt().mean([2, 3, 4], keepdim=True).squeeze(2)
        x = conv_layer(w, "final_conv", torch.cat([x, deviation.repeat(group, 1, height, width)], 1))
        x = linear(x.flatten(1), w["final_linear.0.weight"], w["final_linear.0.bias"], activate=True)
        return linear(x, w["final_linear.1.weight"], w["final_linear.1.bias"])


def activated(x, bias):
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * math.sqrt(2)


def linear(x, weight, bias, rate=1.0, activate=False):
    x = F.linear(x, weight * rate / math.sqrt(weight.shape[1]))
    return activated(x, bias * rate) if activate else x + bias * rate


def equalised(weight):
    return weight / math.sqrt(weight[0].numel())


def conv_layer(w, name, x, resample=None):
    if resample == "up":
        weight, kernel = w[f"{name}.0.weight"], w[f"{name}.1.kernel"]
        x = F.conv_transpose2d(x, equalised(weight).transpose(0, 1), stride=2)
        x = w.blurred(x, kernel, 1 if weight.shape[-1] == 3 else 2)
    elif f"{name}.0.kernel" in w:
        weight = w[f"{name}.1.weight"]
        x = F.conv2d(
            w.blurred(x, w[f"{name}.0.kernel"], 2 if weight.shape[-1] == 3 else 1),
            equalised(weight),
            stride=2,
        )
    else:
        weight = w[f"{name}.0.weight"]
        x = F.conv2d(x, equalised(weight), padding=weight.shape[-1] // 2)
    bias = next((w[f"{name}.{k}.bias"] for k in (1, 2) if f"{name}.{k}.bias" in w), None)
    return x if bias is None else activated(x, bias)


def residual(w, name, x):
    y = conv_layer(w, f"{name}.conv2", conv_layer(w, f"{name}.conv1", x))
    return (y + conv_layer(w, f"{name}.skip", x)) / math.sqrt(2)


def styled(w, name, x, code, up=False):
    gamma, beta = (
        F.conv2d(code, equalised(w[f"{name}.conv.{part}.weight"]), w[f"{name}.conv.{part}.bias"], padding=1)
        for part in ("gamma", "beta")
    )
    x = F.layer_norm(x, x.shape[1:]) * gamma + beta
    weight = equalised(w[f"{name}.conv.weight"][0])
    if up:
        x = w.blurred(
            F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), w[f"{name}.conv.blur.kernel"], 1
        )
    else:
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return activated(x, w[f"{name}.activate.bias"])


def make(width, blurred=blurred_by_group, dtype=torch.float32):
    """Ours and the straightforward model, of the same weights; biases at 0 would hide what is wrong there."""
    torch.manual_seed(0)
    model = StyleMapGAN(width=width, **OPTIONS).to(dtype)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    return model, Straightforward(model, blurred)


def our_step(model, latents, images):
    """Gradients of one step of the generator and one of the discriminator; the sum of what they minimise."""
    losses, _ = generator_losses(model, latents)
    first = sum(losses.values())
    first.backward()
    with torch.no_grad():
        generated = model.generator(model.generator.mapping(latents))
    second = adversarial_discriminator(model.discriminator(images), model.discriminator(generated))
    second.backward()
    return (first + second).detach()


def their_step(model, latents, images):
    """The same of the straightforward networks."""
    kept = [value for value in model.weights["discriminator"].values() if value.requires_grad]
    for value in kept:
        value.requires_grad_(False)
    first = F.softplus(-model.discriminator(model.generator(latents))).mean()
    for value in kept:
        value.requires_grad_(True)
    first.backward()
    with torch.no_grad():
        generated = model.generator(latents)
    real, fake = model.discriminator(images), model.discriminator(generated)
    second = F.softplus(-real).mean() + F.softplus(fake).mean()
    second.backward()
    return (first + second).detach()


def batch(dtype=torch.float32, count=8):
    generator = torch.Generator().manual_seed(1)
    shapes = (count, OPTIONS["latent_size"]), (count, 3, 64, 64)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.benchmark
@pytest.mark.parametrize("blurred", [blurred_by_plane, blurred_by_group])
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_outputs_losses_and_gradients_equal_the_straightforward_ones(blurred, dtype, close):
    ours, theirs = make(8, blurred, dtype)
    latents, images = batch(dtype, count=4)
    for found, expected in (
        (ours.generator(ours.generator.mapping(latents)), theirs.generator(latents)),
        (ours.encoder(images), theirs.encoder(images)),
        (ours.discriminator(images), theirs.discriminator(images)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=close * float(expected.detach().abs().max()))
    loss = our_step(ours, latents, images)
    torch.testing.assert_close(loss, their_step(theirs, latents, images), rtol=close, atol=0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    for name in ("generator", "discriminator"):
        gradients = authors_tensors(getattr(ours, name))
        for key, weight in theirs.weights[name].items():
            if weight.requires_grad:
                tolerance = 100 * close * float(weight.grad.abs().max())
                difference = (gradients[key].detach() - weight.grad).abs().max()
                assert float(difference) <= tolerance, (name, key)
    penalties = [gradient_penalty(model.discriminator, images) for model in make(8, blurred, dtype)]
    torch.testing.assert_close(*penalties, rtol=close, atol=0)


@pytest.mark.benchmark
@pytest.mark.parametrize("width", [16, 64])
def test_a_step_is_half_again_as_fast(width, takes):
    ours, theirs = make(width, blurred_by_plane)
    data = batch()
    our_step(ours, *data), their_step(theirs, *data)
    what = f"a step at 64 pixels, {width} channels"
    takes(1 / 1.5, lambda: our_step(ours, *data), lambda: their_step(theirs, *data), what=what, rounds=1)


@pytest.mark.benchmark
@pytest.mark.parametrize("width", [16, 64])
def test_the_blur_is_not_all_of_it(width, takes):
    ours, theirs = make(width, blurred_by_group)
    data = batch()
    our_step(ours, *data), their_step(theirs, *data)
    what = f"a step at 64 pixels, {width} channels, against blurs of one grouped convolution"
    takes(1 / 1.1, lambda: our_step(ours, *data), lambda: their_step(theirs, *data), what=what, rounds=3)
