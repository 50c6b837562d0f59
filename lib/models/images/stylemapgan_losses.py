"""The eight losses of StyleMapGAN (Kim et al., CVPR 2021), and which networks each of them trains.

An iteration of the authors trains, in this order: the generator by `generator_losses`; the encoder by
`latent_losses`, from the same forward pass; the discriminator by `discriminator_losses`, and every 16th time
once more by `regularisation_losses`; encoder and generator together by `reconstruction_losses`, without the
mapping network. Each returns the losses by the names of `LossWeights`, whose `total` is what is minimised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.images.stylemapgan import StyleMapGAN

#: How far images (N, 3, H, W) are from others as they are seen: (N,), such as LPIPS.
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossWeights:
    """What each loss is multiplied with, as published; `r1` is applied every `r1_every`-th iteration only.

    Raises
    ------
    ValueError
        A weight that is negative or not finite, or an `r1_every` below 1.
    """

    adversarial_generator: float = 1.0
    latent_reconstruction: float = 1.0
    adversarial_discriminator: float = 1.0
    domain_discriminator: float = 1.0
    domain_encoder: float = 1.0
    image_reconstruction: float = 1.0
    perceptual: float = 1.0
    r1: float = 10.0
    r1_every: int = 16

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight {name} must be in [0, inf), got {weight}")
        if self.r1_every < 1:
            raise ValueError(f"r1_every must be at least 1, got {self.r1_every}")

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of losses by name; R1 counts r1 / 2 · r1_every."""
        weights = vars(self) | {"r1": self.r1 / 2 * self.r1_every}
        return sum(weights[name] * loss for name, loss in losses.items())


def adversarial_generator(logits: Tensor) -> Tensor:
    """Mean softplus(−D(G(F(z)))); where the logits are of G(E(x)), the domain-guided loss."""
    return F.softplus(-logits).mean()


def adversarial_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Mean softplus(−D(x)) plus mean softplus(D(G(F(z)))), from logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """R1: the mean squared norm of the discriminator's gradient with respect to real images (N, C, H, W)."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = discriminator(images)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def feature_distance(
    network: Callable[[Tensor], Sequence[Tensor]], images: Tensor, others: Tensor, *, epsilon: float = 1e-10
) -> Tensor:
    """Perceptual distance in a network's features: LPIPS without its learned heads.

    Features are divided by their length over channels; of their difference the squares are summed over
    channels, averaged over places and summed over layers.

    Parameters
    ----------
    network
        From images to feature maps (N, C, H, W) of some layers.
    images, others : Tensor (N, 3, H, W)
    epsilon : float
        Added to the length.

    Returns
    -------
    Tensor (N,)
    """

    def directions(maps: Sequence[Tensor]) -> list[Tensor]:
        return [m / (torch.linalg.vector_norm(m, dim=1, keepdim=True) + epsilon) for m in maps]

    pairs = zip(directions(network(images)), directions(network(others)), strict=True)
    return sum((a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs)


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """What is computed inside has no gradient with respect to these networks' parameters."""
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def generator_losses(model: StyleMapGAN, latents: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """What the generator with its mapping network minimises; and style maps and images for `latent_losses`.

    Parameters
    ----------
    model
    latents : Tensor (N, latent_size)
    """
    with frozen(model.discriminator):
        style_maps = model.generator.mapping(latents)
        images = model.generator(style_maps)
        losses = {"adversarial_generator": adversarial_generator(model.discriminator(images))}
    return losses, (style_maps.detach(), images.detach())


def latent_losses(model: StyleMapGAN, style_maps: Tensor, images: Tensor) -> dict[str, Tensor]:
    """What the encoder minimises on generated images: (F(z) − E(G(F(z))))², no gradient into F and G."""
    encoded = model.encoder(images.detach())
    return {"latent_reconstruction": F.mse_loss(encoded, style_maps.detach())}


def discriminator_losses(model: StyleMapGAN, images: Tensor, latents: Tensor) -> dict[str, Tensor]:
    """What the discriminator minimises: real images against generated ones and against reconstructions.

    Parameters
    ----------
    model
    images : Tensor (N, 3, H, W)
        Real, in [−1, 1].
    latents : Tensor (N, latent_size)
    """
    with torch.no_grad():
        generated = model.generator(model.generator.mapping(latents))
        reconstructed = model(images)
    real, fake = model.discriminator(images), model.discriminator(generated)
    return {
        "adversarial_discriminator": adversarial_discriminator(real, fake),
        "domain_discriminator": F.softplus(model.discriminator(reconstructed)).mean(),
    }


def regularisation_losses(model: StyleMapGAN, images: Tensor) -> dict[str, Tensor]:
    """What the discriminator minimises on real images every `LossWeights.r1_every`-th time."""
    return {"r1": gradient_penalty(model.discriminator, images)}


def reconstruction_losses(
    model: StyleMapGAN, images: Tensor, distance: Distance | None = None
) -> dict[str, Tensor]:
    """What encoder and generator minimise together on real images.

    Parameters
    ----------
    model
    images : Tensor (N, 3, H, W)
        Real, in [−1, 1].
    distance
        LPIPS, or ``functools.partial(feature_distance, network)``; without any there is no perceptual loss.
        The authors' LPIPS has dropout on its heads in training; `lib.metrics.images.LPIPS` has none.
    """
    with frozen(model.discriminator):
        reconstructed = model(images)
        losses = {
            "domain_encoder": adversarial_generator(model.discriminator(reconstructed)),
            "image_reconstruction": F.mse_loss(reconstructed, images),
        }
        if distance is not None:
            losses["perceptual"] = distance(reconstructed, images).mean()
    return losses
