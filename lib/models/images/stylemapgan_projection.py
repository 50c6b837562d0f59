"""Projection by optimisation: the style map, or style codes, whose image is nearest to a given one.

The baselines that StyleMapGAN's encoder (Kim et al., CVPR 2021) is compared with: one latent for all layers
(the projector of StyleGAN2, without its noise), one for each (Image2StyleGAN), and the encoder's refined,
with a term that keeps it in the encoder's domain (In-Domain GAN). The rate and the weight of that term are
what we remember of these papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.models.images.stylemapgan import Generator, check_shape
from lib.models.images.stylemapgan_losses import Distance, frozen

#: Style maps of images, such as an `Encoder`.
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """What an optimisation found.

    Attributes
    ----------
    latents : list of Tensor
        The style map (N, C, s, s) alone, or all style codes.
    errors : Tensor (steps + 1, N)
        Mean squared error of each image in [−1, 1], before each step and after the last.
    """

    latents: list[Tensor]
    errors: Tensor


def project(
    generator: Generator,
    images: Tensor,
    start: Tensor,
    *,
    steps: int,
    learning_rate: float = 0.01,
    extended: bool = False,
    distance: Distance | None = None,
    distance_weight: float = 1.0,
    encoder: Encode | None = None,
    domain_weight: float = 2.0,
) -> Projection:
    """Minimise the error of generated images by Adam over their latents, each image by itself.

    Parameters
    ----------
    generator
        Its weights stay.
    images : Tensor (N, 3, H, W)
        In [−1, 1].
    start : Tensor (N or 1, C, s, s)
        Style maps to begin with: the mean map, or the encoder's.
    steps : int
    learning_rate : float
    extended : bool
        Optimise all style codes instead of the style map.
    distance
        Perceptual distance that is added to the mean squared error, times `distance_weight`.
    encoder
        Adds the mean squared difference between a style map and that which this finds in its image, times
        `domain_weight`: in-domain refinement. Not for style codes.
    distance_weight, domain_weight : float

    Raises
    ------
    ValueError
        Shapes that do not fit, no steps, or a domain of style codes.
    """
    check_shape(images, (3, generator.resolution, generator.resolution), "images")
    check_shape(start, generator.map_shape, "style maps to start from")
    if len(start) not in (1, len(images)):
        raise ValueError(f"there must be 1 or {len(images)} style maps to start from, got {len(start)}")
    if steps < 1 or not learning_rate > 0:
        raise ValueError(
            f"steps must be at least 1 and learning_rate positive, got {steps} and {learning_rate}"
        )
    if extended and encoder is not None:
        raise ValueError("the encoder's domain is one of style maps, not of style codes")
    start = start.detach().expand(len(images), -1, -1, -1)
    encoding = [encoder] if isinstance(encoder, torch.nn.Module) else []
    with frozen(generator, *encoding), torch.enable_grad():
        first = generator.codes(start) if extended else [start]
        latents = [latent.detach().clone().requires_grad_() for latent in first]
        optimiser = torch.optim.Adam(latents, lr=learning_rate)
        errors = []
        for _ in range(steps):
            found = _images(generator, latents)
            error = (found - images).square().mean(dim=(1, 2, 3))
            loss = error
            if distance is not None:
                loss = loss + distance_weight * distance(found, images)
            if encoder is not None:
                loss = loss + domain_weight * (encoder(found) - latents[0]).square().mean(dim=(1, 2, 3))
            optimiser.zero_grad()
            loss.sum().backward()  # a sum: what one image is with does not change its steps
            optimiser.step()
            errors.append(error.detach())
    latents = [latent.detach() for latent in latents]
    with torch.no_grad():
        errors.append((_images(generator, latents) - images).square().mean(dim=(1, 2, 3)))
    return Projection(latents, torch.stack(errors))


def _images(generator: Generator, latents: Sequence[Tensor]) -> Tensor:
    return generator(latents[0]) if len(latents) == 1 else generator.synthesise(latents)
