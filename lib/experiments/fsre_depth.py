"""FSRE-Depth: the arms, one training of an arm, and how wrong its depths are in each part of a picture.

Source: Jung et al., ICCV 2021 (arXiv:2108.08829). All arms have the same encoder, pictures, batches and
steps. They are tested against true depths, over whole pictures and where the paper says that labels help: at
the boundaries of objects and on weak texture. KITTI and the authors' weights are in
`lib.experiments.fsre_depth_kitti`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.data.street_frames import Drives, label_boundaries
from lib.data.streets import Textures
from lib.metrics.depth import METRICS, counted, depth_errors
from lib.models.depth.fsre_depth import FsreDepth
from lib.models.depth.self_supervision import Objective
from lib.models.depth.semantic_losses import TripletTerms, nearest_labels
from lib.models.depth.view_synthesis import FARTHEST, NEAREST
from lib.streams import stream_seed
from lib.training.loop import Evaluation, History, fit, one_device, seeded, warmup_cosine

#: The classes of Cityscapes, which the published networks tell.
CLASSES = 19
#: Of the paper: levels of attention, and the weights of its terms; labels alone weigh 1.
ATTENTION, TRIPLET, SEGMENTATION, SEGMENTATION_ALONE = (4, 3, 2), 0.1, 0.3, 1.0


@dataclass(frozen=True)
class Arm:
    """What a training has of the paper.

    Attributes
    ----------
    weighting : {"fsre", "monodepth2"}
        Of the scales.
    labels, attention, triplet : bool
        A decoder of labels, attention between both decoders, the triplet loss.
    wrong : bool
        Whether a share of the labels is wrong.
    """

    weighting: str = "fsre"
    labels: bool = False
    attention: bool = False
    triplet: bool = False
    wrong: bool = False


MONODEPTH2, FSRE, FLOOR = "Monodepth2", "FSRE-Depth", "median depth"
ARMS = {
    MONODEPTH2: Arm("monodepth2"),
    "changed weighting": Arm(),
    "labels": Arm(labels=True),
    "labels + triplet": Arm(labels=True, triplet=True),
    "labels + attention": Arm(labels=True, attention=True),
    FSRE: Arm(labels=True, attention=True, triplet=True),
    f"{FSRE}, wrong labels": Arm(labels=True, attention=True, triplet=True, wrong=True),
}
#: What the page itself trains.
MAIN = (MONODEPTH2, FSRE)

#: The seven numbers of the protocol, as papers write them.
NAMES = dict(zip(METRICS, ("AbsRel", "SqRel", "RMSE", "RMSElog", "δ1", "δ2", "δ3"), strict=True))
#: Where else the first of them is looked at.
REGIONS = {"boundaries": "AbsRel at boundaries", "plain": "AbsRel on weak texture"}
SEPARATION = "separation at boundaries"

Checkpoint = Callable[[str], Path | None]
Errors = dict[str, np.ndarray]


class World(Protocol):
    """What arms are trained on and tested with."""

    def batch(self, step: int, batch_size: int, seed: int) -> Mapping[str, Tensor]:
        """The batch of a step, from 0, as `FsreDepth.loss` wants it."""

    def errors(self, predict: Callable[[Tensor], Tensor]) -> Errors:
        """By metric a number for each test picture, of what turns pictures (B, 3, H, W) into depths."""

    def floor(self) -> Errors:
        """The same of the training's median depth at each pixel."""


@dataclass(frozen=True, eq=False)
class Streets:
    """Rendered drives to train on, and rendered streets with the truth to test with.

    Attributes
    ----------
    train, test : Drives
        Of each test drive the middle frame counts.
    """

    train: Drives
    test: Drives

    @classmethod
    def render(
        cls,
        textures: Textures,
        size: tuple[int, int],
        *,
        seed: int,
        drives: int,
        frames: int,
        tested: int,
        moving: float = 0.0,
    ) -> Streets:
        """The training drives are the seed's own, the tested streets are the same for every seed."""
        options = {"size": size, "moving": moving}
        train = stream_seed(seed, "streets to train on")
        test = stream_seed(0, "streets to test with")
        return cls(
            Drives.render(textures, drives, seed=train, frames=frames, **options),
            Drives.render(textures, tested, seed=test, frames=3, **options),
        )

    def batch(self, step: int, batch_size: int, seed: int) -> dict[str, Tensor]:
        """As of `Drives.batch`."""
        return self.train.batch(step, batch_size, seed=seed)

    def tested(self, kind: str) -> Tensor:
        """``images``, ``depth``, ``labels`` or ``plain`` of the middle frames."""
        return torch.stack([getattr(drive, kind)[1] for drive in self.test.drives])

    @cached_property
    def images(self) -> Tensor:
        """The test's pictures, (N, 3, H, W) in 0…1."""
        return self.tested("images") / 255

    @cached_property
    def truth(self) -> Tensor:
        """The test's depths, (N, H, W); 0 in the sky."""
        return self.tested("depth")

    @cached_property
    def regions(self) -> dict[str, Tensor]:
        """Pixels (N, H, W) bool of each of `REGIONS` that have a truth."""
        known = counted(self.truth)
        boundaries = label_boundaries(self.tested("labels")) & known
        return {"boundaries": boundaries, "plain": self.tested("plain") & known}

    def errors(self, predict: Callable[[Tensor], Tensor]) -> Errors:
        """As of `World`, with the first metric over each of `REGIONS`; all of a picture has one scale.

        A picture without such a region has the mean of the others there.
        """
        depths = torch.cat([predict(part) for part in self.images.split(16)])
        return self._errors_of(depths[:, 0])

    def floor(self) -> Errors:
        """As of `World`."""
        return self._errors_of(self.median_depth.expand_as(self.truth))

    @cached_property
    def median_depth(self) -> Tensor:
        """Of the training's frames at each pixel, (H, W); where there is sky alone, the farthest."""
        depths = torch.cat([drive.depth[1:-1] for drive in self.train.drives])
        depths = torch.where(depths > 0, depths, torch.nan)
        return depths.nanmedian(0)[0].nan_to_num(FARTHEST)

    def _errors_of(self, depths: Tensor) -> Errors:
        rows = []
        for number, (depth, truth) in enumerate(zip(depths, self.truth, strict=True)):
            errors = depth_errors(depth, truth)
            row = {name: errors[metric] for metric, name in NAMES.items()}
            for region, name in REGIONS.items():
                where = self.regions[region][number]
                row[name] = depth_errors(depth, truth, region=where)["abs_rel"] if where.any() else np.nan
            rows.append(row)
        frame = pd.DataFrame(rows)
        return {name: column.fillna(column.mean()).to_numpy() for name, column in frame.items()}


@dataclass(frozen=True)
class Settings:
    """What all arms share, under the names of the chapter's parameters.

    Attributes
    ----------
    encoder : int
        Depth of the ResNets.
    channels : float
        Factor on the published channels.
    scales : tuple of int
        That give a disparity.
    batch_size, steps, learning_rate
        Of Adam.
    schedule : {"cosine", "published"}
        Half a cosine, or a tenth of the rate after a half and after three quarters of the steps.
    motion : {"known", "learned"}
        Whether the camera's motion is told, or a second network learns it, as published.
    smoothness, triplet, margin, window, border, automask
        Of `Objective`.
    nearest, farthest, first_depth : float
        Limits of the depth, and what untrained networks say; 0 for what the published ones say, 0.2 m.
    wrong_labels : float
        Share of wrong labels in the arms that have such.
    evaluations : int
        During a training.
    device : str
    """

    encoder: int = 18
    channels: float = 1.0
    scales: tuple[int, ...] = (0, 1, 2, 3)
    batch_size: int = 12
    steps: int = 66_000
    learning_rate: float = 1.5e-4
    schedule: str = "published"
    motion: str = "learned"
    smoothness: float = 1e-3
    triplet: float = TRIPLET
    margin: float = 0.3
    window: int = 5
    border: str = "official"
    automask: bool = True
    nearest: float = NEAREST
    farthest: float = FARTHEST
    first_depth: float = 0.0
    wrong_labels: float = 0.3
    evaluations: int = 5
    device: str = "cpu"

    def objective(self, arm: Arm) -> Objective:
        """The loss of an arm."""
        both = arm.attention and arm.triplet
        return Objective(
            weighting=arm.weighting,
            smoothness=self.smoothness,
            segmentation=(SEGMENTATION if both else SEGMENTATION_ALONE) * arm.labels,
            triplet=self.triplet * arm.triplet,
            window=self.window,
            margin=self.margin,
            border=self.border,
            automask=self.automask,
            nearest=self.nearest,
            farthest=self.farthest,
        )

    def model(self, name: str, seed: int) -> FsreDepth:
        """An arm's untrained networks; encoders of one seed are the same in all arms.

        Raises
        ------
        ValueError
            There is no such arm, or the first depth is not between nearest and farthest.
        """
        if name not in ARMS:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {name!r}")
        if self.first_depth and not self.nearest < self.first_depth < self.farthest:
            raise ValueError(
                f"first_depth must be between nearest {self.nearest} and farthest {self.farthest}, or 0, "
                f"got {self.first_depth}"
            )
        arm = ARMS[name]
        seeded(stream_seed(seed, "weights"))
        model = FsreDepth(
            depth=self.encoder,
            pose_depth=self.encoder,
            width=self.channels,
            classes=CLASSES * arm.labels,
            attention_levels=ATTENTION if arm.attention else (),
            scales=self.scales,
            objective=self.objective(arm),
        )
        if self.first_depth:
            share = 1 / self.first_depth - 1 / self.farthest
            share /= 1 / self.nearest - 1 / self.farthest
            for head in model.decoder.depth.heads.values():
                nn.init.constant_(head.bias, math.log(share / (1 - share)))
        return model

    def rate_at(self, step: int) -> float:
        """Factor on the learning rate at a step."""
        if self.schedule == "published":
            return 0.1 ** ((step >= self.steps // 2) + (step >= 3 * self.steps // 4))
        return warmup_cosine(self.steps, warmup=min(100, self.steps // 5), floor=0.02)(step)


def wrong_blocks(labels: Tensor, share: float, *, seed: int, side: int = 8) -> Tensor:
    """Labels (B, H, W), of which a share of square blocks has a class that is drawn by chance.

    Segmentation networks err by regions, not by pixels; so do these.
    """
    draw = torch.Generator().manual_seed(seed)
    rows, columns = (-(-length // side) for length in labels.shape[1:])
    wrong = torch.rand(len(labels), rows, columns, generator=draw) < share
    others = torch.randint(CLASSES, wrong.shape, generator=draw)
    wrong, others = (
        one.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : labels.shape[1], : labels.shape[2]]
        for one in (wrong, others)
    )
    return torch.where(wrong, others, labels)


def train(
    world: World,
    name: str,
    seed: int,
    settings: Settings,
    *,
    checkpoint: Checkpoint = lambda name: None,
) -> tuple[FsreDepth, History]:
    """Train an arm.

    Parameters
    ----------
    world
    name
        One of `ARMS`.
    seed
        Of the first weights, the order of the pictures and the wrong labels.
    settings
    checkpoint
        File from which a training of a name continues, or None.

    Returns
    -------
    FsreDepth
        The last weights, in evaluation mode, on the CPU.
    History
        With the test's `NAMES` on the way, for the figure: nothing is chosen by it.

    Raises
    ------
    ValueError
        As of `Settings.model`, or the motion is to be known and the world does not tell it.
    """
    model, arm = settings.model(name, seed), ARMS[name]
    order = stream_seed(seed, "order")

    def batch_at(step: int) -> dict[str, Tensor]:
        batch = dict(world.batch(step, settings.batch_size, order))
        if settings.motion == "learned":
            batch.pop("motions", None)
        elif "motions" not in batch:
            raise ValueError("the camera's motion is not known here: motion must be learned")
        if arm.wrong:
            draw = stream_seed(seed, "wrong labels", step)
            batch["labels"] = wrong_blocks(batch["labels"], settings.wrong_labels, seed=draw)
        batch.pop("depth", None)  # nobody learns from the truth
        return batch

    def test(model: FsreDepth) -> dict[str, float]:
        found = world.errors(depths_of(model))
        return {name: float(values.mean()) for name, values in found.items()}

    fabric = one_device(settings.device)
    label = f"{name}, seed {seed}"
    history = fit(
        model,
        batch_at,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        schedule=settings.rate_at,
        evaluation=Evaluation(test, math.ceil(settings.steps / settings.evaluations)),
        checkpoint=checkpoint(label),
        fabric=fabric,
        name=label,
    )
    model.zero_grad(set_to_none=True)
    return model.to("cpu"), history


def depths_of(model: FsreDepth) -> Callable[[Tensor], Tensor]:
    """What turns pictures (B, 3, H, W) into depths (B, 1, H, W) without gradients, on the model's device."""

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return model.predict_depth(images.to(next(model.parameters()).device)).cpu()

    return predict


@torch.no_grad()
def separation(model: FsreDepth, world: Streets, levels: Sequence[int] = (3, 2, 1)) -> np.ndarray:
    """How much farther features of another label are than those of the same, at boundaries, (N,).

    Mean over boundary pixels of D⁻ − D⁺, by true labels, without what is outside of the picture, and over
    levels. Distances are of features of length 1: at most 2.
    """
    labels = world.tested("labels").long()
    found = []
    for images, names in zip(world.images.split(16), labels.split(16), strict=True):
        features = model(images, labels=False).features
        each = []
        for level in levels:
            here = nearest_labels(names, features[level].shape[-2:])
            terms = TripletTerms(features[level], here, border="masked")
            apart = (terms.negative - terms.positive) * terms.boundary
            each.append(apart.sum((1, 2)) / terms.boundary.sum((1, 2)).clamp_min(1))
        found.append(torch.stack(each).mean(0))
    return torch.cat(found).double().numpy()


# --- results by metric and arm ---


def by_metric(scores: Mapping[int, Mapping[str, Errors]]) -> dict[str, dict[str, pd.DataFrame]]:
    """Results by metric and arm as frames (seeds, pictures), from scores by seed and arm."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for arm in next(iter(scores.values())):
        for metric in next(iter(scores.values()))[arm]:
            frame = pd.DataFrame({seed: arms[arm][metric] for seed, arms in scores.items()}).T
            found.setdefault(metric, {})[arm] = frame.rename_axis(index="seed", columns="picture")
    return found


def seed_means(scores: Mapping[int, Mapping[str, Errors]]) -> pd.DataFrame:
    """Mean over pictures, a row per arm and seed."""
    rows = [
        {"arm": arm, "seed": seed} | {metric: float(values.mean()) for metric, values in errors.items()}
        for seed, arms in scores.items()
        for arm, errors in arms.items()
    ]
    return pd.DataFrame(rows).set_index("seed")


def courses(histories: Mapping[str, History], seed: int) -> pd.DataFrame:
    """The test's errors on the way: a row per arm and evaluation, of one seed."""
    rows = [
        {"seed": seed, "arm": arm, "step": one["step"], "AbsRel": one["AbsRel"]}
        for arm, history in histories.items()
        for one in history.evaluations
    ]
    return pd.DataFrame(rows).set_index("seed")
