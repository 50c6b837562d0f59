"""Tag2Pix: the arms, one training of an arm, and the pictures that it draws.

Source: Kim, Jhoo, Park & Yoo, ICCV 2019 (arXiv:1908.05840). What the arms are trained on is in
`lib.experiments.tag2pix_sets`, what is measured in `lib.experiments.tag2pix_measurements`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from lib.inspection import evaluating
from lib.models.images.tag2pix import Generator
from lib.models.images.tag2pix_blocks import AdaptiveBottleneck, BlockMaker
from lib.models.images.tag2pix_discriminator import Discriminator
from lib.models.images.tag2pix_extractor import LineArtClassifier, SemanticExtractor
from lib.models.images.tag2pix_losses import ChangingLoss, LossWeights
from lib.streams import stream_seed
from lib.training.loop import Evaluation, History, fit, one_device, run_steps, seeded
from lib.training.tag2pix import Tag2PixStep


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is trained; the defaults are the paper's.

    Attributes
    ----------
    block
        Of the decoder, as of `Generator`.
    tag_map
        Whether tags also enter at the bottom.
    guide, extractor
        Whether there is a guide decoder, and whether the generator sees the extractor's features. Without
        them the tags' losses stay as they are, where the authors' switch drops one of them as well.
    tag_losses
        From the second part of the training on, from its start, or never.
    """

    block: str | BlockMaker = "secat"
    tag_map: bool = True
    guide: bool = True
    extractor: bool = True
    tag_losses: Literal["later", "always", "never"] = "later"


#: The paper's network and training, by the name of what is special in it.
SECAT = "SECat"

ARMS: Mapping[str, Arm] = {
    SECAT: Arm(),
    "SE": Arm(block="senet"),
    "concatenation": Arm(block="catall"),
    "AdaIN": Arm(block="seadain"),
    "AdaIN, scale from 0": Arm(block=partial(AdaptiveBottleneck, initial_scale=0.0)),
    "SECat alone": Arm(tag_map=False),
    "concatenation alone": Arm(block="catall", tag_map=False),
    "one step": Arm(tag_losses="always"),
    "no tag losses": Arm(tag_losses="never"),
    "no extractor": Arm(extractor=False),
    "no guide": Arm(guide=False),
}

#: What a short run trains: the paper's network, and the one that hands tags to every pixel.
MAIN = (SECAT, "concatenation")


class LineArtSet(Protocol):
    """What arms are trained on.

    Attributes
    ----------
    size
        Of the pictures, in pixels.
    colour_tags, shape_tags
        Names, in the order of the vectors.
    """

    size: int
    colour_tags: Sequence[str]
    shape_tags: Sequence[str]

    def batch(self, step: int, batch_size: int, *, seed: int) -> dict[str, Tensor]:
        """As `lib.training.tag2pix.Tag2PixStep` takes it, a function of seed and step."""

    def held_out(self, count: int) -> dict[str, Tensor]:
        """The same of so many pictures that no batch has."""


@dataclass
class Trained:
    """An arm after its training."""

    generator: Generator
    discriminator: Discriminator
    extractor: SemanticExtractor | None
    history: History

    @torch.no_grad()
    def draw(self, lines: Tensor, tags: Tensor, *, batch_size: int = 50) -> Tensor:
        """Pictures (N, 3, S, S) in −1…1 of line art (N, 1, S, S) and tags (N, colour tags), on the CPU."""
        device = next(self.generator.parameters()).device
        pictures = []
        with evaluating(self.generator):
            for line, tag in zip(lines.split(batch_size), tags.split(batch_size), strict=True):
                line = line.to(device)
                features = None if self.extractor is None else self.extractor(line)
                pictures.append(self.generator(line, features, tag.to(device))[0].cpu())
        return torch.cat(pictures)


@dataclass(kw_only=True)
class Colouring:
    """What all arms share on one set, under the names of the chapter's parameters.

    Attributes
    ----------
    material
        What they are trained on.
    width, blocks, tag_size, groups
        Of `Generator`; of the authors' are 16, (12, 8, 5, 5), 64 and 16.
    discriminator_width, discriminator_stages, discriminator_last
        Of `Discriminator`; of the authors' are 32, 4 and 3.
    extractor_width, extractor_blocks, extractor_groups, extractor_steps
        Of `LineArtClassifier`, and how long it is trained before all else; of the authors' are 1,
        (3, 4, 6, 3) and 32.
    weights
        Of the losses.
    batch_size, learning_rate, steps
        Of every training.
    first_step
        Share of the steps before tags are asked for.
    evaluations
        How often the error on held-out pictures is taken during a training, evenly.
    device
        Of every training.
    """

    material: LineArtSet
    width: int
    blocks: tuple[int, ...]
    tag_size: int
    groups: int
    discriminator_width: int
    discriminator_stages: int
    discriminator_last: int
    extractor_width: float
    extractor_blocks: tuple[int, ...]
    extractor_groups: int
    extractor_steps: int
    weights: LossWeights
    batch_size: int
    learning_rate: float
    steps: int
    first_step: float
    evaluations: int
    device: str = "cpu"

    def train_extractor(self, seed: int, checkpoint: Path | None = None) -> tuple[LineArtClassifier, History]:
        """Train what predicts the shapes' tags from line art; it is the same for all arms of a seed."""
        seeded(stream_seed(seed, "weights", "extractor"))
        model = LineArtClassifier(
            num_tags=len(self.material.shape_tags),
            blocks=self.extractor_blocks,
            width=self.extractor_width,
            groups=self.extractor_groups,
            width_per_group=128 // self.extractor_groups,
        )
        history = fit(
            model,
            lambda step: self._batch(step, stream_seed(seed, "extractor")),
            steps=self.extractor_steps,
            checkpoint=checkpoint,
            fabric=one_device(self.device),
            name=f"extractor, seed {seed}",
        )
        return model, history

    def train_arms(
        self,
        arms: Iterable[str],
        seed: int,
        checkpoint: Callable[[str], Path | None],
        name: str = "portraits",
    ) -> dict[str, Trained]:
        """Train the extractor, then arms with it; `checkpoint` gives a file for each training's name."""
        classifier, _ = self.train_extractor(seed, checkpoint(f"{name}, extractor, seed {seed}"))
        return {
            arm: self.train(arm, seed, classifier, checkpoint(f"{name}, {arm}, seed {seed}")) for arm in arms
        }

    def train(
        self,
        arm: str,
        seed: int,
        classifier: LineArtClassifier,
        checkpoint: Path | None = None,
    ) -> Trained:
        """Train an arm once; batches of a seed are the same for all arms.

        Parameters
        ----------
        arm
            One of `ARMS`.
        seed
            Of the first weights and the batches.
        classifier
            As `train_extractor` gives it.
        checkpoint
            File from which a training that was killed continues.

        Raises
        ------
        ValueError
            There is no such arm.
        """
        if arm not in ARMS:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
        chosen, set_ = ARMS[arm], self.material
        seeded(stream_seed(seed, "weights", arm))
        extractor = classifier.extractor() if chosen.extractor else None
        generator = Generator(
            image_size=set_.size,
            colour_tags=len(set_.colour_tags),
            features=0 if extractor is None else extractor.channels,
            width=self.width,
            blocks=self.blocks,
            tag_size=self.tag_size,
            block=chosen.block,
            groups=self.groups,
            guide=chosen.guide,
            tag_map=chosen.tag_map,
        )
        discriminator = Discriminator(
            colour_tags=len(set_.colour_tags),
            invariant_tags=len(set_.shape_tags),
            width=self.discriminator_width,
            stages=self.discriminator_stages,
            last_blocks=self.discriminator_last,
            groups=self.groups,
        )
        starts = {"later": 1 + round(self.first_step * self.steps), "always": 0, "never": self.steps + 1}
        step = Tag2PixStep(
            generator,
            discriminator,
            extractor,
            lambda number: self._batch(number, seed),
            steps_per_epoch=1,
            schedule=ChangingLoss(two_step_epoch=starts[chosen.tag_losses], brightness_epoch=None),
            weights=self.weights,
            learning_rate=self.learning_rate,
            fabric=one_device(self.device),
        )
        trained = Trained(generator, discriminator, extractor, History())

        def error(generator: Generator) -> dict[str, float]:
            held_out = self._held_out
            drawn = trained.draw(held_out["lines"], held_out["variant"])
            return {"error": float((drawn - held_out["images"]).abs().mean() * 127.5)}

        trained.history = run_steps(
            step,
            self.steps,
            state=step.state,
            evaluation=Evaluation(error, max(1, self.steps // self.evaluations), of=("generator",)),
            checkpoint=checkpoint,
            fabric=step.fabric,
            name=f"{arm}, seed {seed}",
        )
        return trained

    @cached_property
    def _held_out(self) -> dict[str, Tensor]:
        return self.material.held_out(50)

    def _batch(self, step: int, seed: int) -> dict[str, Tensor]:
        return self.material.batch(step, self.batch_size, seed=seed)
