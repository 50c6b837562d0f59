"""The one training loop: progress, checkpoint and resume, evaluation and early stopping, processes.

`run_steps` runs a step, which is a function of its number over any modules and optimisers, and can be killed
and started again at any moment. `GradientStep` is the step of all but adversarial trainings, and `fit` runs
it: arms of a chapter that are trained by `fit` differ in their model and data only. A batch is a function of
the step's number, which is what lets a killed training continue with the very batches it would have seen.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.files import remove_leftovers
from lib.training import checkpoints
from lib.training.checkpoints import Stateful
from lib.training.progress import LOG_EVERY, Evaluation, History, Progress

__all__ = [
    "LOG_EVERY", "Batch", "Evaluation", "GradientStep", "History",
    "fit", "run_steps", "seeded", "shard", "warmup_cosine",
]  # fmt: skip

logger = logging.getLogger("lib.training.loop")

Batch = Mapping[str, Tensor]


def seeded(seed: int) -> None:
    """Seed Python, NumPy and torch, so that what is built next is a function of ``seed`` (0..2**32 - 1)."""
    Fabric.seed_everything(seed, verbose=False)


def one_device(device: str = "cpu") -> Fabric:
    """A Fabric of one device in this process.

    Its environment is said, not looked for: where Slurm is installed, Lightning would put a warning with a
    path of the machine on the page, and in a job of several tasks refuse to start.
    """
    return Fabric(accelerator=device, devices=1, plugins=[LightningEnvironment()])


def shard(batch: Batch, rank: int, world_size: int) -> Batch:
    """Return the rows ``rank``, ``rank + world_size``, … of a batch: the share of one process."""
    return batch if world_size == 1 else {key: value[rank::world_size] for key, value in batch.items()}


def warmup_cosine(steps: int, *, warmup: int = 0, floor: float = 0.0) -> Callable[[int], float]:
    """Learning-rate factor that rises linearly to 1 over ``warmup`` steps, then falls as half a cosine.

    Parameters
    ----------
    steps
        Length of the whole schedule; from the last step on the factor is ``floor``, if two steps or more
        follow the rise.
    warmup
        Steps of the rise, from ``1 / warmup`` to 1.
    floor
        Factor at the end, in 0…1.

    Raises
    ------
    ValueError
        ``warmup`` is not in 0…``steps``, or ``floor`` is not in 0…1.
    """
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup must be in 0..{steps} steps, got {warmup}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is a factor on the learning rate, in 0..1, got {floor}")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
        return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2

    return factor


class GradientStep:
    """One step of gradient descent on a loss, as `run_steps` takes it.

    Parameters
    ----------
    model
        Has ``loss(batch) -> scalar tensor``.
    batch_at
        Returns the batch of a step (from 0) as a dictionary of tensors; the same batch each time it is asked.
    optimizer
        Of the model's parameters; None for Adam.
    learning_rate
        Of Adam.
    schedule
        Factor on every parameter group's learning rate at a step (from 0), as `warmup_cosine` gives.
    clip_norm
        Global norm above which gradients are scaled down to it; 0 for none.
    after_step
        Called with the number of steps taken, right after the optimiser has moved the weights: averages of
        weights and the like. What it changes belongs in the training's state.
    fabric
        Lightning Fabric for other devices, precisions or several processes. Each process takes its share of
        the rows of every batch; gradients are averaged over processes, so a loss that is a mean over selected
        positions weighs processes, not positions, equally.

    Attributes
    ----------
    state : dict of str to Stateful
        What a checkpoint must hold: ``model``, ``optimizer`` and ``precision`` (the loss scale of float16).
    """

    def __init__(
        self,
        model: nn.Module,
        batch_at: Callable[[int], Batch],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        learning_rate: float = 1e-3,
        schedule: Callable[[int], float] | None = None,
        clip_norm: float = 5.0,
        after_step: Callable[[int], None] | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        self.fabric = fabric or one_device()
        optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # torch's own name for it; checkpoints keep it
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        self.model.mark_forward_method("loss")
        self.batch_at, self.schedule = batch_at, schedule
        self.clip_norm, self.after_step = clip_norm, after_step
        precision = self.fabric.strategy.precision
        self.state = {"model": model, "optimizer": self.optimizer, "precision": precision}

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Take the step of this number (from 0), and return its loss."""
        batch = shard(self.batch_at(number), self.fabric.global_rank, self.fabric.world_size)
        loss = self.model.loss(self.fabric.to_device(batch))
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if self.clip_norm:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False
            )
        if self.schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.schedule(number)
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step(number + 1)
        return {"loss": loss}


def fit(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    *,
    steps: int,
    evaluation: Evaluation | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    fabric: Fabric | None = None,
    name: str = "model",
    also: Mapping[str, Stateful] | None = None,
    **options: Any,
) -> History:
    """Train a model in place by gradient descent, and leave it in evaluation mode with its best weights.

    Parameters
    ----------
    model, batch_at
        As for `GradientStep`.
    steps, evaluation, checkpoint, checkpoint_seconds, name
        As for `run_steps`. The evaluation is of the model unless it names something in ``also``.
    fabric
        Of both: the device, the precision and the processes.
    also
        What else is saved and resumed with the training: averages of weights, instability samples, samplers.
    **options
        ``learning_rate``, ``optimizer``, ``schedule``, ``clip_norm`` and ``after_step`` of `GradientStep`.

    Returns
    -------
    History

    Raises
    ------
    ValueError, FloatingPointError
        As `run_steps`.
    """
    fabric = fabric or one_device()
    step = GradientStep(model, batch_at, fabric=fabric, **options)
    if clash := step.state.keys() & (also or {}).keys():
        raise ValueError(f"also must not hold {', '.join(sorted(clash))}: fit saves its own under that name")
    model.train()
    history = run_steps(
        step,
        steps,
        state=step.state | dict(also or {}),
        evaluation=evaluation,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        fabric=fabric,
        name=name,
    )
    model.eval()
    return history


def run_steps(
    step: Callable[[int], Mapping[str, Tensor]],
    steps: int,
    *,
    state: Mapping[str, Stateful],
    evaluation: Evaluation | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    fabric: Fabric | None = None,
    name: str = "training",
) -> History:
    """Run the steps of a training; killed at any moment and called again, it ends as if never killed.

    Parameters
    ----------
    step
        Takes the step of a number (from 0), whatever that is, and returns scalars to be logged, its losses.
    steps
        How many, at least 1.
    state
        All that the steps change, by name: modules, optimisers, averages of weights, samplers. Modules train
        in the mode that they are given in, and are put into evaluation mode for evaluations only.
    evaluation
        None: the losses alone are logged, every `LOG_EVERY` steps.
    checkpoint
        File to continue from when it exists. Rewritten at the end, and after steps that are at least
        ``checkpoint_seconds`` apart. None: no file.
    fabric
        The Lightning Fabric that the step works with, if any: its device, and which process writes.
    name
        Shown in progress lines and errors, and kept in the checkpoint, which no other training may continue.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        A setting is out of range, the state cannot be saved, or ``checkpoint`` belongs to another training.
    FloatingPointError
        A loss or the monitored number is not finite.

    Examples
    --------
    Two networks that play against each other, each with its optimiser; ``distance`` takes the generator:

    >>> def step(number):
    ...     real = batch_at(number)["images"]
    ...     fake = generator(torch.randn(len(real), 16))
    ...     critic_loss = F.softplus(critic(fake.detach())).mean() + F.softplus(-critic(real)).mean()
    ...     critic_optimizer.zero_grad()
    ...     critic_loss.backward()
    ...     critic_optimizer.step()
    ...     generator_loss = F.softplus(-critic(fake)).mean()
    ...     generator_optimizer.zero_grad()
    ...     generator_loss.backward()
    ...     generator_optimizer.step()
    ...     return {"critic loss": critic_loss, "generator loss": generator_loss}
    >>> state = {"generator": generator, "critic": critic}
    >>> state |= {"generator optimizer": generator_optimizer, "critic optimizer": critic_optimizer}
    >>> evaluation = Evaluation(distance, every=50, of=("generator",))
    >>> history = run_steps(step, 200, state=state, evaluation=evaluation, checkpoint=file)
    """
    progress = Progress(name, steps, state, evaluation)
    if "progress" in state:
        raise ValueError("the state must not hold 'progress': the loop saves its own under that name")
    everything = dict(state) | {"progress": progress}
    fabric = fabric or one_device()
    if checkpoint is not None:
        checkpoints.check_readable(state)
        if fabric.is_global_zero:
            remove_leftovers(checkpoint)
        if checkpoint.exists():
            checkpoints.restore(checkpoint, name, everything, fabric.device)
            taken = progress.history.steps
            if taken > steps:
                raise ValueError(
                    f"{checkpoint} is {taken} steps into {name!r}, {steps} were asked for: remove it"
                )
            progress.close_if_due()  # another evaluation may be asked for than before
            logger.info("%s: continues at step %d of %d", name, taken, steps)
        fabric.barrier()  # nobody writes before all have read

    saved, quiet = time.monotonic(), _batch_run() or not fabric.is_global_zero
    with tqdm(initial=progress.history.steps, total=steps, desc=name, disable=quiet) as bar:
        while not progress.ended:
            progress.add(step(progress.history.steps))
            progress.close_if_due()
            bar.set_postfix_str(progress.text, refresh=False)
            bar.update()
            late = time.monotonic() - saved >= checkpoint_seconds
            if checkpoint is not None and fabric.is_global_zero and (late or progress.ended):
                progress.mean_losses()  # not finite: the checkpoint before is the one to go on from
                checkpoints.save(checkpoint, name, everything)
                saved = time.monotonic()
    if checkpoint is not None:
        fabric.barrier()  # nobody goes on before it is written
    return progress.finish()


def _batch_run() -> bool:
    """Progress bars would fill the log of a batch run; its log has a line per evaluation instead."""
    return "COMPANION_RUN" in os.environ or "PYTEST_CURRENT_TEST" in os.environ
