"""Training Tag2Pix: a step of the discriminator and of the generator, with a loss that changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lib.models.images.tag2pix import Generator
from lib.models.images.tag2pix_discriminator import Discriminator
from lib.models.images.tag2pix_extractor import SemanticExtractor
from lib.models.images.tag2pix_losses import (
    AUTHORS_WEIGHTS,
    ChangingLoss,
    LossWeights,
    discriminator_losses,
    generator_losses,
)
from lib.training.loop import one_device


class Tag2PixStep:
    """One step of both networks, as `lib.training.loop.run_steps` takes it.

    The authors draw each picture twice, once for each network's step. The generator does not change in
    between, so it is drawn once here, and the generator's step leaves out the gradients of the
    discriminator's weights, which nobody uses: the losses and the weights are the same. The running averages
    of the generator's batch norms move once a step, theirs twice by the same batch.

    Parameters
    ----------
    generator, discriminator
    extractor
        None for a generator without its features.
    batch_at
        Returns the batch of a step (from 0): ``lines`` (B, 1, S, S) in 0…1, ``images`` (B, 3, S, S) in −1…1,
        ``variant`` and ``invariant`` (B, number) in {0, 1}, tags of colours and others.
    steps_per_epoch
        By which the steps' numbers become epochs, which count from 1.
    schedule
        When tags are asked for.
    weights
        Of the losses.
    learning_rate, betas
        Of Adam, for both networks; the rate is constant.
    fabric
        Of one process: the device and the precision.

    Attributes
    ----------
    state : dict of str to Stateful
        What a checkpoint must hold. The extractor belongs to it only where it uses each batch's statistics.

    Raises
    ------
    ValueError
        ``steps_per_epoch`` is below 1; there are several processes; or the generator wants features and there
        is no extractor of them.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        extractor: SemanticExtractor | None,
        batch_at: Callable[[int], Mapping[str, Tensor]],
        *,
        steps_per_epoch: int,
        schedule: ChangingLoss,
        weights: LossWeights = AUTHORS_WEIGHTS,
        learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        fabric: Fabric | None = None,
    ) -> None:
        if steps_per_epoch < 1:
            raise ValueError(f"an epoch has at least one step, got {steps_per_epoch}")
        features = 0 if extractor is None else extractor.channels
        if features != generator.features:
            raise ValueError(
                f"the generator wants {generator.features} features, the extractor has {features}"
            )
        self.fabric = fabric or one_device()
        if self.fabric.world_size > 1:
            raise ValueError(f"Tag2Pix trains in one process, got {self.fabric.world_size}")
        self.generator, self.discriminator = (
            generator.to(self.fabric.device),
            discriminator.to(self.fabric.device),
        )
        self.extractor = extractor if extractor is None else extractor.to(self.fabric.device)
        self.batch_at, self.steps_per_epoch = batch_at, steps_per_epoch
        self.schedule, self.weights = schedule, weights
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=learning_rate, betas=betas, fused=True)
            for name, network in (("generator", generator), ("discriminator", discriminator))
        }
        self.state = {"generator": generator, "discriminator": discriminator}
        self.state |= {f"{name} optimizer": optimizer for name, optimizer in self.optimizers.items()}
        if extractor is not None and extractor.mode == "batch":
            self.state["extractor"] = extractor

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Take the step of this number (from 0); return both losses and the weighted reconstruction."""
        batch = self.fabric.to_device(dict(self.batch_at(number)))
        line, picture = batch["lines"], batch["images"]
        tags = batch["variant"], batch["invariant"]
        options = {
            "classify": self.schedule.classifies(1 + number // self.steps_per_epoch),
            "weights": self.weights,
        }
        features = None if self.extractor is None else self.extractor(line)
        drawn, guide = self.generator(line, features, tags[0])

        real = self.discriminator.logits(picture)
        fake = self.discriminator.logits(drawn.detach())
        judged = discriminator_losses(real, fake, *tags, **options)
        self._descend("discriminator", sum(judged.values()))

        self.discriminator.requires_grad_(False)
        fake = self.discriminator.logits(drawn)
        made = generator_losses(fake, drawn, guide, picture, *tags, **options)
        self._descend("generator", sum(made.values()))
        self.discriminator.requires_grad_(True)
        return {
            "discriminator": sum(judged.values()).detach(),
            "generator": sum(made.values()).detach(),
            "reconstruction": made["reconstruction"].detach(),
        }

    def _descend(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.optimizers[name].step()
