"""Projection by optimisation: finds what a generator made, and changes nothing but the latents."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lib.models.images.stylemapgan import StyleMapGAN
from lib.models.images.stylemapgan_editing import mean_map, random_maps
from lib.models.images.stylemapgan_losses import feature_distance
from lib.models.images.stylemapgan_projection import project


@pytest.fixture(scope="module")
def model() -> StyleMapGAN:
    torch.manual_seed(0)
    return StyleMapGAN(resolution=16, map_size=4, style_channels=4, latent_size=4, width=8)


@pytest.fixture(scope="module")
def images(model) -> torch.Tensor:
    with torch.no_grad():
        return model.generator(random_maps(model.generator, 2, random=torch.Generator().manual_seed(1)))


def test_the_error_falls_and_style_codes_fall_further(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = mean_map(model.generator, count=100)
    single = project(model.generator, images, start, steps=60, learning_rate=0.05)
    extended = project(model.generator, images, start, steps=60, learning_rate=0.05, extended=True)
    for found, count in ((single, 1), (extended, 6)):
        assert found.errors.shape == (61, 2) and len(found.latents) == count
        assert (found.errors[-1] < 0.3 * found.errors[0]).all()
        assert not any(latent.requires_grad for latent in found.latents)
    torch.testing.assert_close(single.errors[0], extended.errors[0])
    assert extended.errors[-1].mean() < single.errors[-1].mean()
    with torch.no_grad():
        again = model.generator(single.latents[0])
    torch.testing.assert_close((again - images).square().mean(dim=(1, 2, 3)), single.errors[-1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_images_are_projected_each_by_itself(model, images):
    start = mean_map(model.generator, count=100)
    both = project(model.generator, images, start, steps=5).latents[0]
    alone = project(model.generator, images[1:], start, steps=5).latents[0]
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_refinement_stays_in_the_encoders_domain(model, images):
    start = model.encoder(images)
    free = project(model.generator, images, start, steps=40, learning_rate=0.02)
    kept = project(
        model.generator,
        images,
        start,
        steps=40,
        learning_rate=0.02,
        encoder=model.encoder,
        domain_weight=50.0,
    )

    def outside(found):
        with torch.no_grad():
            return float(
                (model.encoder(model.generator(found.latents[0])) - found.latents[0]).square().mean()
            )

    assert outside(kept) < 0.5 * outside(free)
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_a_perceptual_distance_is_minimised_too(model, images):
    network = nn.Conv2d(3, 6, 3).requires_grad_(False)
    distance = partial(feature_distance, lambda x: [network(x)])
    start = mean_map(model.generator, count=100)
    options = {"steps": 30, "learning_rate": 0.05}
    without = project(model.generator, images, start, **options)
    with_it = project(model.generator, images, start, distance=distance, distance_weight=10.0, **options)
    with torch.no_grad():
        first, second = (
            distance(model.generator(found.latents[0]), images).mean() for found in (with_it, without)
        )
    assert first < second


def test_wrong_arguments_are_refused(model, images):
    start, generator = torch.zeros(1, 4, 4, 4), model.generator
    for wrong, message in (
        ({"images": images[..., :8]}, r"images must be \(N, 3, 16, 16\)"),
        ({"start": start[:, :2]}, r"style maps to start from must be \(N, 4, 4, 4\)"),
        ({"start": start.repeat(3, 1, 1, 1)}, "there must be 1 or 2 style maps to start from, got 3"),
        ({"steps": 0}, "steps must be at least 1 and learning_rate positive, got 0 and 0.01"),
        ({"learning_rate": 0.0}, "learning_rate positive, got 2 and 0.0"),
        ({"extended": True, "encoder": model.encoder}, "of style maps, not of style codes"),
    ):
        with pytest.raises(ValueError, match=message):
            project(generator, **{"images": images, "start": start, "steps": 2} | wrong)
