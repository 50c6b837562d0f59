"""StyleMapGAN: the arms, one training of an arm, and how well its encoder reconstructs.

Source: Kim et al., CVPR 2021 (arXiv:2104.14754). An arm is a shape of the latent: a map of height and width
s with C channels, or a vector. Two tracks train it: *reconstruction*, where encoder and generator minimise
the squared error alone, and *all losses*, the published training with a discriminator. Edits are in
`lib.experiments.stylemapgan_edits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.avatars import AvatarStyle
from lib.data.drawings import Drawings
from lib.data.image_folder import PictureFiles, find_pictures
from lib.data.openmoji import OPENMOJI
from lib.data.weights import ALEXNET, LPIPS_ALEX, LPIPS_VGG, VGG16
from lib.metrics.images import LPIPS, mean_squared_error
from lib.models.images.stylemapgan import StyleMapGAN
from lib.models.images.stylemapgan_losses import (
    Distance,
    LossWeights,
    discriminator_losses,
    generator_losses,
    latent_losses,
    reconstruction_losses,
)
from lib.streams import stream_seed
from lib.training.adversarial import Rounds, Turn, lazy_adam, r1_turn
from lib.training.loop import Evaluation, History, one_device, run_steps, seeded

#: Latents of 256 numbers each: map size and channels.
EQUAL = {
    "vector of 256": (1, 256),
    "map 2×2×64": (2, 64),
    "map 4×4×16": (4, 16),
    "map 8×8×4": (8, 4),
    "map 16×16×1": (16, 1),
}

#: Latents of 16 channels each: the size grows with the map.
WIDE = {
    "vector of 16": (1, 16),
    "map 2×2×16": (2, 16),
    "map 4×4×16": (4, 16),
    "map 8×8×16": (8, 16),
    "map 16×16×16": (16, 16),
}

ARMS = EQUAL | WIDE

#: What most claims are of; all that is trained on the second set of pictures.
MAIN = ("vector of 256", "map 8×8×4")

#: What is trained with all losses; the last in two stages, generator first and encoder afterwards.
JOINT, JOINT_VECTOR, SEQUENTIAL = "jointly", "jointly, vector of 256", "one after the other"
ALL_LOSSES = {JOINT: "map 8×8×4", JOINT_VECTOR: "vector of 256", SEQUENTIAL: "map 8×8×4"}

#: What needs no network: the mean of the training pictures, the nearest of them, and a thumbnail that holds
#: 8×8 pixels of three colours, enlarged.
MEAN, NEAREST, THUMBNAIL = "mean picture", "nearest training picture", "thumbnail 8×8"

#: Adam's, as published for the game of two networks, and with momentum where there is one error to minimise.
GAME_BETAS, ERROR_BETAS = (0.0, 0.99), (0.9, 0.99)

Checkpoint = Callable[[str], Path | None]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures to train on and to test with, (N, 3, size, size) uint8, in memory."""

    train: Tensor
    test: Tensor

    def batch(self, number: int, batch_size: int, seed: int) -> Tensor:
        """Training pictures of a step in [−1, 1]; each epoch has another order, cut into whole batches."""
        epoch, place = divmod(number, max(1, len(self.train) // batch_size))
        order = np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(len(self.train))
        return signed(self.train[order[place * batch_size : (place + 1) * batch_size]])

    @property
    def held_out(self) -> Tensor:
        """The test's pictures in [−1, 1]."""
        return signed(self.test)


def signed(pixels: Tensor) -> Tensor:
    """Pixels of 0…255 as numbers in [−1, 1]."""
    return pixels.float() / 127.5 - 1


def quantised(images: Tensor) -> Tensor:
    """Images as they are when saved with 8 bits and read again, in [−1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def faces(
    style: AvatarStyle, size: int, train: int, test: int, *, seed: int, shift: float, data_dir: str | Path
) -> Pictures:
    """Drawn faces, each moved by at most a share `shift` of the side."""
    some = style.faces(train + test, seed=seed, shift=shift)
    drawn = Drawings.of(style, some, size, data_dir=data_dir).colour()
    return Pictures(drawn[:train], drawn[train:])


def second_set(size: int, train: int, test: int, data_dir: str | Path, folder: str | Path = "") -> Pictures:
    """OpenMoji's drawings or the pictures of a folder, in a mixed order: the same for every seed.

    Raises
    ------
    ValueError
        There are not as many.
    DataUnavailable
        The folder has no pictures, or one that cannot be read.
    """
    if not folder:
        drawn = OPENMOJI.load(data_dir, size=size, count=train + test).colour
        return Pictures(drawn[:train], drawn[train:])
    files = own_pictures(folder, size)
    if len(files) < train + test:
        raise ValueError(f"{folder} has {len(files)} pictures, {train + test} are asked for")
    order = np.random.default_rng(0).permutation(len(files))[: train + test]
    pixels = torch.cat(
        [
            (files.tensor(part) + 1).mul(127.5).round().byte()
            for part in np.array_split(order, -(-len(order) // 100))
        ]
    )
    return Pictures(pixels[:train], pixels[train:])


def own_pictures(folder: str | Path, size: int) -> PictureFiles:
    """All pictures in a folder, as the authors resize them; `DataUnavailable` names what is none."""
    return PictureFiles(find_pictures(Path(folder)), size)


def perceptual_distance(network: str, data_dir: str | Path, device: str = "cpu") -> LPIPS | None:
    """LPIPS on AlexNet ("alex") or VGG-16 ("vgg", as published); for "none" nothing."""
    if network == "none":
        return None
    backbone, heads = {"alex": (ALEXNET, LPIPS_ALEX), "vgg": (VGG16, LPIPS_VGG)}[network]
    return LPIPS(network, backbone.load(data_dir), heads.load(data_dir)).to(device)


@dataclass(frozen=True)
class Settings:
    """What all arms share, under the names of the chapter's parameters.

    Attributes
    ----------
    resolution, width, channel_multiplier
        Of the networks.
    batch_size
    learning_rate, steps
        Of the reconstruction track.
    adversarial_rate, adversarial_steps
        Learning rate of all networks, and rounds, with all losses.
    average_decay
        Of the running average of the weights, which is what is tested.
    device
        Of every training.
    """

    resolution: int
    width: int
    channel_multiplier: int
    batch_size: int
    learning_rate: float
    adversarial_rate: float
    steps: int
    adversarial_steps: int
    average_decay: float
    device: str = "cpu"

    def model(self, arm: str, seed: int) -> StyleMapGAN:
        """An arm's untrained networks; the same seed gives the same.

        Raises
        ------
        ValueError
            There is no such arm, or it has no such resolution.
        """
        if arm not in ARMS:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
        map_size, channels = ARMS[arm]
        seeded(stream_seed(seed, "weights", arm))
        return StyleMapGAN(
            resolution=self.resolution,
            map_size=map_size,
            style_channels=channels,
            width=self.width,
            channel_multiplier=self.channel_multiplier,
        )


def train(
    pictures: Pictures,
    arm: str,
    seed: int,
    settings: Settings,
    *,
    name: str = "",
    checkpoint: Checkpoint = lambda name: None,
) -> tuple[StyleMapGAN, History]:
    """Train encoder and generator of an arm on the squared error alone.

    Parameters
    ----------
    pictures
    arm
        One of `ARMS`.
    seed
        Of the first weights and the order of the pictures.
    settings
    name
        Of the pictures, where there are others, too.
    checkpoint
        File from which a training of a name continues, or None.

    Returns
    -------
    StyleMapGAN
        The running averages of the weights, in evaluation mode. Its mapping network is not trained.
    History
        With the test's error ten times on the way, for the figure: nothing is chosen by it.
    """
    model = settings.model(arm, seed)

    def error(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"image_reconstruction": F.mse_loss(model(batch["images"]), batch["images"])}

    label = f"{name}{', ' if name else ''}{arm}, seed {seed}"
    turns = [Turn(error, ("generator", "encoder"))]
    plan = _Plan(turns, settings.steps, settings.learning_rate, ERROR_BETAS)
    return _rounds(model, pictures, plan, settings, seed, label, checkpoint)


def train_all_losses(
    pictures: Pictures,
    arm: str,
    seed: int,
    settings: Settings,
    *,
    weights: LossWeights,
    distance: Distance | None,
    sequential: bool = False,
    checkpoint: Checkpoint = lambda name: None,
) -> tuple[StyleMapGAN, History]:
    """Train an arm with the published losses, jointly or the encoder after the generator.

    Parameters
    ----------
    pictures, arm, seed, settings, checkpoint
        As `train`.
    weights
        Of the losses.
    distance
        The perceptual loss, if any.
    sequential
        First generator and discriminator play alone; then the encoder learns to reconstruct through the
        generator, which stands still. As many rounds each as there are of the joint training.

    Returns
    -------
    StyleMapGAN
        As `train`, with a trained mapping network.
    History
        Of the last stage.
    """
    model = settings.model(arm, seed)

    def generate(batch: dict[str, Tensor]) -> Mapping[str, Tensor]:
        losses, (batch["style maps"], batch["generated"]) = generator_losses(model, batch["latents"])
        return losses

    def discriminate(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return discriminator_losses(model, batch["images"], batch["other latents"])

    def reconstruct(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return reconstruction_losses(model, batch["images"], distance)

    alone = replace(weights, domain_discriminator=0.0, domain_encoder=0.0)
    said = alone if sequential else weights
    game = [
        Turn(generate, ("generator",), said.total),
        Turn(
            lambda batch: latent_losses(model, batch["style maps"], batch["generated"]),
            ("encoder",),
            said.total,
        ),
        Turn(discriminate, ("discriminator",), said.total),
        r1_turn(model.discriminator, ("discriminator",), weight=weights.r1, every=weights.r1_every),
    ]
    both = Turn(reconstruct, ("encoder", "generator"), said.total)
    label, told = f"all losses, {arm}, seed {seed}", (settings.adversarial_steps, settings.adversarial_rate)
    if not sequential:
        plan = _Plan([*game, both], *told)
        return _rounds(model, pictures, plan, settings, seed, label, checkpoint)
    plan = _Plan([game[0], *game[2:]], *told)
    model, _ = _rounds(model, pictures, plan, settings, seed, f"{label}, generator", checkpoint)
    model.to(settings.device).requires_grad_(True)
    plan = _Plan([Turn(reconstruct, ("encoder",), alone.total)], *told)
    return _rounds(model, pictures, plan, settings, seed, f"{label}, encoder", checkpoint)


@dataclass(frozen=True)
class _Plan:
    """What is done in each round, how many there are, and Adam's learning rate and betas."""

    turns: Sequence[Turn]
    rounds: int
    rate: float
    betas: tuple[float, float] = GAME_BETAS


def _rounds(
    model: StyleMapGAN,
    pictures: Pictures,
    plan: _Plan,
    settings: Settings,
    seed: int,
    label: str,
    checkpoint: Checkpoint,
) -> tuple[StyleMapGAN, History]:
    """Carry out a plan; the model then has the averaged weights."""
    turns, rounds = plan.turns, plan.rounds
    moved = {name for turn in turns for name in turn.moves}
    networks = {name: getattr(model, name) for name in ("generator", "encoder", "discriminator")}
    optimizers = {
        name: torch.optim.Adam(network.parameters(), lr=plan.rate, betas=plan.betas)
        for name, network in networks.items()
        if name in moved
    }
    if "discriminator" in moved:
        every = max(turn.every for turn in turns)
        optimizers["discriminator"] = lazy_adam(
            model.discriminator.parameters(), learning_rate=plan.rate, betas=plan.betas, every=every
        )

    def batch_at(number: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(stream_seed(seed, "latents", label, number))
        latents = torch.randn(2, settings.batch_size, model.generator.mapping.latent_size, generator=random)
        images = pictures.batch(number, settings.batch_size, seed)
        return {"images": images, "latents": latents[0], "other latents": latents[1]}

    averages = dict.fromkeys(("generator", "encoder"), settings.average_decay)
    fabric = one_device(settings.device)
    steps = Rounds(networks, optimizers, turns, batch_at, averages=averages, fabric=fabric)

    def test(generator: nn.Module, encoder: nn.Module) -> dict[str, float]:
        images = pictures.held_out.to(settings.device)
        return {"MSE": F.mse_loss(generator(encoder(images)).clamp(-1, 1), images)}

    evaluation = Evaluation(test, max(1, rounds // 10), of=("generator average", "encoder average"))
    history = run_steps(
        steps,
        rounds,
        state=steps.state,
        evaluation=evaluation,
        checkpoint=checkpoint(label),
        fabric=fabric,
        name=label,
    )
    for name in averages:
        setattr(model, name, steps.averaged[name].module)
    model.zero_grad(set_to_none=True)
    return model.to("cpu").eval(), history


# --- reconstruction ---


def reconstructed(model: StyleMapGAN, images: Tensor, *, batch_size: int = 50) -> Tensor:
    """Reconstructions of images (N, 3, H, W) in [−1, 1], with 8 bits as the authors save them."""
    with torch.no_grad():
        return torch.cat([quantised(model(part)) for part in images.split(batch_size)])


def error_of(images: Tensor, targets: Tensor, region: Tensor | None = None) -> float:
    """Mean over pictures of the mean squared error in [−1, 1], in a region (N, H, W) if one is given."""
    return float(mean_squared_error(images, targets, region).double().mean())


def untrained_errors(pictures: Pictures) -> dict[str, float]:
    """Error of what anybody gets without a network: `MEAN`, `NEAREST` and `THUMBNAIL`."""
    known, images = signed(pictures.train), pictures.held_out
    nearest = torch.cdist(images.flatten(1), known.flatten(1)).argmin(1)
    small = F.interpolate(images, size=8, mode="area")
    enlarged = F.interpolate(small, size=images.shape[-1], mode="bicubic", align_corners=False)
    found = {MEAN: known.mean(0, keepdim=True).expand_as(images), NEAREST: known[nearest]}
    return {name: error_of(quantised(one), images) for name, one in (found | {THUMBNAIL: enlarged}).items()}


def reconstruction_errors(
    models: Mapping[str, StyleMapGAN], pictures: Pictures, *, untrained: bool = True
) -> dict[str, float]:
    """Error of the test's reconstructions by arm, and of what needs no network."""
    images = pictures.held_out
    found = {arm: error_of(reconstructed(model, images), images) for arm, model in models.items()}
    return found | (untrained_errors(pictures) if untrained else {})


def gathered(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """By metric and arm a number per seed, of what each seed gave by metric and arm."""
    found: dict[str, dict[str, list[float]]] = {}
    for scores in seeds:
        for metric, arms in scores.items():
            for arm, value in arms.items():
                found.setdefault(metric, {}).setdefault(arm, []).append(value)
    return found


def score_table(scores: Mapping[str, Mapping[str, Sequence[float]]], seeds: Sequence[int]) -> pd.DataFrame:
    """The same as a table: a row per arm and seed, a column per metric."""
    columns = [
        pd.Series(values, pd.MultiIndex.from_product([[arm], seeds], names=["arm", "seed"]), name=metric)
        for metric, arms in scores.items()
        for arm, values in arms.items()
    ]
    merged = pd.concat([pd.concat([c for c in columns if c.name == metric]) for metric in scores], axis=1)
    return merged.reset_index().set_index("seed")


def courses(histories: Mapping[str, History], seed: int) -> pd.DataFrame:
    """The test's error on the way: a row per arm and evaluation, of one seed."""
    rows = [
        {"seed": seed, "arm": arm, "step": one["step"], "MSE": one["MSE"]}
        for arm, history in histories.items()
        for one in history.evaluations
    ]
    return pd.DataFrame(rows).set_index("seed")
