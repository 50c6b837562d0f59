"""The eight losses of StyleMapGAN: by hand, and whom each of them trains."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from lib.models.images.stylemapgan import StyleMapGAN
from lib.models.images.stylemapgan_losses import (
    LossWeights,
    adversarial_discriminator,
    adversarial_generator,
    discriminator_losses,
    feature_distance,
    frozen,
    generator_losses,
    gradient_penalty,
    latent_losses,
    reconstruction_losses,
    regularisation_losses,
)


@pytest.fixture
def model() -> StyleMapGAN:
    torch.manual_seed(0)
    return StyleMapGAN(resolution=8, map_size=4, style_channels=3, latent_size=3, width=4)


IMAGES, LATENTS = torch.randn(4, 3, 8, 8).clamp(-1, 1), torch.randn(4, 3)


def features(images: torch.Tensor) -> list[torch.Tensor]:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(3)).to(images)
    first = F.relu(F.conv2d(images, weight))
    return [first, F.avg_pool2d(first, 2)]


def trained(model: StyleMapGAN) -> set[str]:
    """Which parts got a gradient."""
    parts = {
        "mapping": model.generator.mapping, "resizer": model.generator.resizer, "encoder": model.encoder,
        "synthesis": model.generator.blocks, "discriminator": model.discriminator,
    }  # fmt: skip
    found = set()
    for name, part in parts.items():
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()):
            found.add(name)
    return found


def test_logits_of_zero_cost_ln_2():
    zero = torch.zeros(3, 1)
    assert float(adversarial_generator(zero)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(adversarial_discriminator(zero, zero)) == pytest.approx(2 * math.log(2), abs=1e-6)
    assert adversarial_generator(torch.tensor([5.0])) < adversarial_generator(torch.tensor([-5.0]))
    good, bad = torch.tensor([5.0]), torch.tensor([-5.0])
    assert adversarial_discriminator(good, bad) < adversarial_discriminator(bad, good)


def test_a_discriminator_that_knows_nothing_pays_3_ln_2(model):
    for parameter in model.discriminator.classifier[1].parameters():
        nn.init.zeros_(parameter)
    total = LossWeights().total(discriminator_losses(model, IMAGES, LATENTS))
    assert float(total.detach()) == pytest.approx(3 * math.log(2), abs=1e-6)


def test_the_gradient_penalty_of_a_linear_function_is_its_squared_length():
    slope = torch.randn(3, 4, 4, dtype=torch.float64)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    found = gradient_penalty(lambda x: (x * slope).sum(dim=(1, 2, 3))[:, None], images)
    torch.testing.assert_close(found, slope.square().sum())
    with torch.no_grad():
        again = gradient_penalty(lambda x: (x * slope).sum(dim=(1, 2, 3))[:, None], images)
    torch.testing.assert_close(again, found)


def test_the_gradient_penalty_is_differentiated_through_the_discriminator():
    torch.manual_seed(1)
    network = StyleMapGAN(
        resolution=8, map_size=4, style_channels=2, latent_size=2, width=2
    ).discriminator.double()
    names = [name for name, _ in network.named_parameters()]
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def penalty(*weights):
        named = dict(zip(names, weights, strict=True))
        return gradient_penalty(lambda x: torch.func.functional_call(network, named, (x,)), images)

    weights = [p.detach().clone().requires_grad_() for p in network.parameters()]
    assert gradcheck(penalty, weights, atol=1e-6, rtol=1e-4)


def test_each_step_trains_whom_it_should(model):
    weights = LossWeights()
    losses, (style_maps, images) = generator_losses(model, LATENTS)
    weights.total(losses).backward()
    assert trained(model) == {"mapping", "resizer", "synthesis"}
    torch.testing.assert_close(style_maps, model.generator.mapping(LATENTS).detach())
    torch.testing.assert_close(images, model.generator(style_maps).detach())

    model.zero_grad()
    losses = latent_losses(model, style_maps.requires_grad_(), images.requires_grad_())
    weights.total(losses).backward()
    assert trained(model) == {"encoder"} and style_maps.grad is None and images.grad is None
    expected = (model.encoder(images) - style_maps).square().mean()
    torch.testing.assert_close(losses["latent_reconstruction"], expected)

    for losses in (
        lambda: discriminator_losses(model, IMAGES, LATENTS),
        lambda: regularisation_losses(model, IMAGES),
    ):
        model.zero_grad()
        weights.total(losses()).backward()
        assert trained(model) == {"discriminator"}

    model.zero_grad()
    weights.total(reconstruction_losses(model, IMAGES, partial(feature_distance, features))).backward()
    assert trained(model) == {"encoder", "resizer", "synthesis"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_losses_of_a_reconstruction(model):
    losses = reconstruction_losses(model, IMAGES, partial(feature_distance, features))
    found = model(IMAGES)
    torch.testing.assert_close(losses["image_reconstruction"], (found - IMAGES).square().mean())
    torch.testing.assert_close(losses["perceptual"], feature_distance(features, found, IMAGES).mean())
    expected = F.softplus(-model.discriminator(found)).mean()
    torch.testing.assert_close(losses["domain_encoder"], expected)
    assert "perceptual" not in reconstruction_losses(model, IMAGES)


def test_weights_of_losses(model):
    ones = {name: torch.ones(()) for name in vars(LossWeights()) if name != "r1_every"}
    assert len(ones) == 8
    assert float(LossWeights().total(ones)) == 7 + 10 / 2 * 16
    assert float(LossWeights(perceptual=0, r1=2, r1_every=4, image_reconstruction=3).total(ones)) == 5 + 3 + 4
    for wrong in ({"perceptual": -1}, {"r1": math.inf}, {"domain_encoder": math.nan}):
        with pytest.raises(ValueError, match=f"the weight {next(iter(wrong))} must be in"):
            LossWeights(**wrong)
    with pytest.raises(ValueError, match="r1_every must be at least 1, got 0"):
        LossWeights(r1_every=0)


def test_distance_in_features_by_hand():
    first = torch.tensor([[3.0, 4.0], [0.0, 2.0]])[..., None, None]
    second = torch.tensor([[1.0, 0.0], [0.0, 5.0]])[..., None, None]
    found = feature_distance(lambda x: [x, 2 * x], first, second)
    one = (0.6 - 1) ** 2 + 0.8**2
    torch.testing.assert_close(found, torch.tensor([2 * one, 0.0]))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(feature_distance(features, images, images), torch.zeros(2))
    with pytest.raises(ValueError):
        feature_distance(lambda x: [x] * int(x.sum()), torch.ones(1, 1, 1, 1), torch.ones(1, 2, 1, 1))


def test_frozen_networks_thaw_even_after_an_error(model):
    model.encoder.last.bias.requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["encoder.last.bias"]
