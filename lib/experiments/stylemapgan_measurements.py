"""StyleMapGAN against optimisation, its random samples, its counts, and the authors' published weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.data.image_folder import PictureFiles
from lib.experiments.stylemapgan import Pictures, error_of, perceptual_distance, quantised, signed
from lib.metrics.images import LPIPS, FrechetDistance
from lib.models.images.stylemapgan import StyleMapGAN
from lib.models.images.stylemapgan_editing import edit, half_mask, interpolated, random_maps
from lib.models.images.stylemapgan_projection import project
from lib.streams import stream_seed

ENCODER = "encoder"

#: Optimisations: of the map from the mean of the training maps, and from the encoder's, alone or with the
#: term of in-domain refinement; of all style codes.
FROM_MEAN, FROM_ENCODER, IN_DOMAIN, ALL_CODES = (
    "optimisation from the mean",
    "optimisation from the encoder",
    "optimisation in the encoder's domain",
    "optimisation of all codes",
)

#: Sets of pictures beside the samples: other real ones, and the mean of two.
REAL, CROSS_FADES = "other real pictures", "pixel cross-fades"


def projections(
    model: StyleMapGAN, pictures: Pictures, *, count: int, steps: int, learning_rate: float
) -> tuple[dict[str, dict[str, float]], pd.DataFrame, dict[str, Tensor]]:
    """Reconstruction of test pictures by the encoder and by optimisation through the same generator.

    Parameters
    ----------
    model
    pictures
        The mean map is of the first 500 training pictures.
    count : int
        Test pictures.
    steps, learning_rate
        Of Adam.

    Returns
    -------
    scores
        ``MSE (projection)`` and ``seconds per picture`` (of processor time, one thread) by arm.
    course : DataFrame
        arm, step, MSE: the mean over pictures, at the start and at some of the steps.
    images
        By arm.
    """
    images = pictures.held_out[:count]
    with torch.no_grad():
        known = torch.cat([model.encoder(part) for part in signed(pictures.train[:500]).split(50)])
    mean = known.mean(0, keepdim=True)
    encoded, seconds = timed(lambda: model.encoder(images))
    found, generating = timed(lambda: model.generator(encoded))
    shown, spent = {ENCODER: found}, {ENCODER: (seconds + generating) / count}
    rows = []
    at_steps = sorted({0, *(round(steps * share) for share in np.linspace(0, 1, 11))})
    ways = {
        FROM_MEAN: {"start": mean},
        FROM_ENCODER: {"start": encoded},
        IN_DOMAIN: {"start": encoded, "encoder": model.encoder},
        ALL_CODES: {"start": encoded, "extended": True},
    }
    for arm, options in ways.items():
        begun = time.process_time()
        projection = project(model.generator, images, steps=steps, learning_rate=learning_rate, **options)
        spent[arm] = (time.process_time() - begun) / count
        latents = projection.latents
        with torch.no_grad():
            one = model.generator.synthesise(latents) if len(latents) > 1 else model.generator(latents[0])
        shown[arm] = one
        errors = projection.errors.mean(1)
        rows += [{"arm": arm, "step": at, "MSE": float(errors[at])} for at in at_steps]
    shown = {arm: quantised(one) for arm, one in shown.items()}
    scores = {
        "MSE (projection)": {arm: error_of(one, images) for arm, one in shown.items()},
        "seconds per picture": spent,
    }
    return scores, pd.DataFrame(rows), shown


@torch.no_grad()
def timed(work: Callable[[], Tensor], times: int = 3) -> tuple[Tensor, float]:
    """What a function returns, and the least processor time of several calls, in seconds."""
    spent = []
    for _ in range(times):
        begun = time.process_time()
        found = work()
        spent.append(time.process_time() - begun)
    return found, min(spent)


@torch.no_grad()
def sample_scores(
    models: Mapping[str, StyleMapGAN], pictures: Pictures, network: LPIPS, *, count: int, seed: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Fréchet distance of random samples to half of the training pictures, and of what stands beside them.

    Parameters
    ----------
    models
        Trained with all losses, by arm.
    pictures
        One half of the training pictures is compared with; `REAL` and `CROSS_FADES` are of the other.
    network
        The features are its last ones, averaged over places.
    count : int
        Samples of each arm at most, and pictures of each half.
    seed : int

    Returns
    -------
    scores, images : dict
        By arm.
    """
    distance = FrechetDistance(lambda images: network.features(images)[-1].mean((2, 3)), "AlexNet")
    half = min(count, len(pictures.train) // 2)
    real, others = signed(pictures.train[:half]), signed(pictures.train[half : 2 * half])
    sets = {REAL: others, CROSS_FADES: (others + others.flip(0)) / 2}
    for arm, model in models.items():
        random = torch.Generator().manual_seed(stream_seed(seed, "samples"))
        maps = random_maps(model.generator, half, random=random)
        sets[arm] = torch.cat([quantised(model.generator(part)) for part in maps.split(50)])
    return {arm: distance(one, real) for arm, one in sets.items()}, sets


# --- counts ---


def counts() -> dict[str, int]:
    """Parameters of the published networks, built without memory, by the names of the ledger."""
    found = {}
    with torch.device("meta"):
        for size, map_size, small in ((256, 8, False), (256, 4, False), (256, 16, False), (1024, 32, True)):
            model = StyleMapGAN(resolution=size, map_size=map_size, small_resizer=small)
            where = f"{size} pixels, map {map_size}×{map_size}"
            for part in ("generator", "encoder", "discriminator"):
                found[f"{part}, {where}"] = sum(p.numel() for p in getattr(model, part).parameters())
    return found


def noise_inputs() -> int:
    """Parameters and buffers of the published generator whose name speaks of noise."""
    with torch.device("meta"):
        return sum("noise" in name for name in StyleMapGAN().generator.state_dict())


# --- the authors' weights ---


@torch.no_grad()
def published_scores(
    model: StyleMapGAN,
    pictures: PictureFiles,
    data_dir: str | Path,
    *,
    device: str = "cpu",
    batch_size: int = 4,
) -> dict[str, float]:
    """MSE and LPIPS (VGG-16) of reconstructions, as the authors evaluate: 8 bits, means over pictures."""
    network = perceptual_distance("vgg", data_dir).to(device)
    model, errors, distances = model.to(device), [], []
    for start in range(0, len(pictures), batch_size):
        images = pictures.tensor(slice(start, start + batch_size)).to(device)
        found = quantised(model(images))
        errors += [error_of(found[k : k + 1], images[k : k + 1]) for k in range(len(images))]
        distances += network(found, images).tolist()
    return {"MSE": float(np.mean(errors)), "LPIPS": float(np.mean(distances))}


@torch.no_grad()
def edited_by_halves(model: StyleMapGAN, images: Tensor) -> dict[str, Tensor]:
    """Pictures (N, 3, H, W), reconstructed, with the right half of the next one, and halfway to it."""
    maps = model.encoder(images)
    others = maps.roll(-1, 0)
    mask = half_mask(model.generator.resolution, "right")
    shown = {
        "picture": images,
        "reconstruction": model.generator(maps),
        "right half of the next": edit(model.generator, maps, others, mask),
        "halfway to the next": model.generator(interpolated(maps, others, 0.5)),
    }
    return {name: quantised(one) for name, one in shown.items()}


def check_published(checkpoint: str, pictures: str, published: str) -> None:
    """ValueError unless the authors' file and pictures are both named, or neither and no numbers."""
    if bool(checkpoint) != bool(pictures):
        raise ValueError("checkpoint and pictures go together: the authors' weights need pictures to edit")
    if published != "none" and not checkpoint:
        raise ValueError(
            f"published {published} needs checkpoint and pictures: the authors' file and the test"
        )
