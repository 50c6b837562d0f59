"""The one training loop: progress, checkpoint and resume, early stopping, device, several processes.

Every arm of every chapter is trained by `fit`, so that arms differ in their model and data only.
A batch is a function of the step number, which is what lets a killed training continue with the very
batches it would have seen.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.files import replacing

logger = logging.getLogger("lib.training.loop")

Batch = Mapping[str, Tensor]


@dataclass
class History:
    """What a training left behind.

    Attributes
    ----------
    losses
        Rows of ``step`` and ``loss``: the mean training loss since the previous row.
    evaluations
        Rows of ``step`` and whatever the ``evaluate`` function returned.
    best_step
        Step whose weights the model holds now (the last step if nothing was monitored).
    steps
        Steps taken; fewer than asked for when patience ran out.
    seconds
        Wall time of training and evaluation, over all interrupted attempts.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    steps: int = 0
    seconds: float = 0.0

    def to_frame(self) -> pd.DataFrame:
        """Return the evaluations, one row per evaluated step."""
        return pd.DataFrame(self.evaluations)


def seeded(seed: int) -> None:
    """Seed Python, NumPy and torch, so that what is built next is a function of ``seed``."""
    Fabric.seed_everything(seed, verbose=False)


def shard(batch: Batch, rank: int, world_size: int) -> Batch:
    """Return the rows ``rank``, ``rank + world_size``, … of a batch: the share of one process."""
    return batch if world_size == 1 else {key: value[rank::world_size] for key, value in batch.items()}


def fit(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    clip_norm: float = 5.0,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: Callable[[int], float] | None = None,
    after_step: Callable[[int], None] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    evaluate_every: int = 500,
    monitor: str | None = None,
    patience: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    fabric: Fabric | None = None,
    name: str = "model",
) -> History:
    """Train a model in place, and leave it holding its best weights.

    Parameters
    ----------
    model
        Has ``loss(batch) -> scalar tensor``.
    batch_at
        Returns the batch of a step (from 0) as a dictionary of tensors; the same batch each time it is asked.
    steps
        Optimisation steps, at least 1.
    learning_rate, clip_norm
        Of Adam (unless ``optimizer`` is given), and the global norm above which gradients are scaled.
    schedule
        Factor on every parameter group's learning rate at a step (from 0), as `warmup_cosine` gives.
    after_step
        Called with the number of steps taken, right after the optimiser has moved the weights: averages of
        weights and the like. What it keeps is not in the checkpoint.
    evaluate
        Called every ``evaluate_every`` steps and after the last, with the model in evaluation mode.
    monitor
        Key of ``evaluate``'s result, higher is better: the weights of its best step are kept.
    patience
        Stop when ``monitor`` has not improved for this many *steps* (not epochs: on small data an epoch is a
        handful of steps, and masked-item models stay at chance for hundreds).
    checkpoint
        File to continue from when it exists. Rewritten at the end, and at evaluations that are at least
        ``checkpoint_seconds`` apart.
    fabric
        Lightning Fabric for other devices, precisions or several processes. Each process takes its share of
        the rows of every batch; gradients are averaged over processes, so a loss that is a mean over selected
        positions weighs processes, not positions, equally.
    name
        Shown in progress lines and errors.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        A setting is out of range, or ``checkpoint`` belongs to another training.
    FloatingPointError
        The loss is not finite.
    """
    _check(steps, evaluate, evaluate_every, monitor, patience)
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # torch's own name for it; checkpoints keep it
    wrapped, optimizer = fabric.setup(model, optimizer)
    wrapped.mark_forward_method("loss")

    history, best, start = History(), None, 0
    if checkpoint is not None and checkpoint.exists():
        history, best = _restore(checkpoint, model, optimizer, name, fabric.device)
        start = history.steps
        logger.info("%s: continues at step %d of %d", name, start, steps)
    if start > steps:
        raise ValueError(f"{checkpoint} is {start} steps into {name!r}, {steps} were asked for: remove it")
    best_value = -math.inf
    if monitor and history.best_step:
        best_value = next(row[monitor] for row in history.evaluations if row["step"] == history.best_step)
    stopped = _exhausted(history, patience)

    began, saved, total, counted = time.monotonic(), time.monotonic(), 0.0, 0
    spent = history.seconds
    bar = tqdm(
        range(start, start if stopped else steps), initial=start, total=steps, desc=name, disable=_batch_run()
    )
    wrapped.train()
    for step in bar:
        batch = shard(batch_at(step), fabric.global_rank, fabric.world_size)
        loss = wrapped.loss(fabric.to_device(batch))
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if clip_norm:
            fabric.clip_gradients(wrapped, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
        if schedule is not None:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(step)
        optimizer.step()
        total, counted = total + loss.detach(), counted + 1
        history.steps = step + 1
        if after_step is not None:
            after_step(history.steps)

        at_end = history.steps == steps
        if at_end or history.steps % evaluate_every == 0:
            mean_loss = float(total) / counted
            if not math.isfinite(mean_loss):
                raise FloatingPointError(
                    f"{name}: the loss is {mean_loss} in the {counted} steps before step {history.steps}; "
                    f"lower learning_rate ({optimizer.param_groups[0]['lr']:g}) or check the batches"
                )
            history.losses.append({"step": history.steps, "loss": mean_loss})
            total, counted = 0.0, 0
            shown = {"loss": mean_loss}
            if evaluate is not None:
                wrapped.eval()
                with torch.no_grad():
                    shown |= evaluate(model)
                wrapped.train()
                history.evaluations.append(
                    {"step": history.steps} | {k: v for k, v in shown.items() if k != "loss"}
                )
            if monitor and monitor not in shown:
                raise ValueError(f"evaluate must return monitor={monitor!r}, got {', '.join(shown)}")
            if monitor and shown[monitor] > best_value:
                best_value, history.best_step = shown[monitor], history.steps
                best = {key: value.detach().clone() for key, value in model.state_dict().items()}
            text = ", ".join(f"{key} {value:.4f}" for key, value in shown.items())
            logger.info("%s: step %d of %d, %s", name, history.steps, steps, text)
            bar.set_postfix_str(text, refresh=False)
            stopped = _exhausted(history, patience)
            history.seconds = spent + time.monotonic() - began
            due = time.monotonic() - saved > checkpoint_seconds
            if checkpoint is not None and fabric.is_global_zero and (due or stopped or at_end):
                _save(checkpoint, model, optimizer, history, best, name)
                saved = time.monotonic()
        if stopped:
            break

    if best is not None:
        model.load_state_dict(best)
    else:
        history.best_step = history.steps
    model.eval()
    return history


def warmup_cosine(steps: int, *, warmup: int = 0, floor: float = 0.0) -> Callable[[int], float]:
    """Learning-rate factor that rises linearly to 1 over ``warmup`` steps, then falls as half a cosine.

    Parameters
    ----------
    steps
        Length of the whole schedule; from the last step on the factor is ``floor``.
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


def _check(steps, evaluate, evaluate_every, monitor, patience) -> None:
    if steps < 1 or evaluate_every < 1:
        raise ValueError(f"steps and evaluate_every must be at least 1, got {steps} and {evaluate_every}")
    if monitor is not None and evaluate is None:
        raise ValueError(f"monitor={monitor!r} needs an evaluate function that returns it")
    if patience is not None and (monitor is None or patience < evaluate_every):
        raise ValueError(
            f"patience counts steps since monitor improved: it needs a monitor and at least "
            f"evaluate_every={evaluate_every} steps, got patience={patience}, monitor={monitor!r}"
        )


def _exhausted(history: History, patience: int | None) -> bool:
    return patience is not None and history.steps - history.best_step >= patience


def _batch_run() -> bool:
    """Progress bars would fill the log of a batch run; its log has a line per evaluation instead."""
    return "COMPANION_RUN" in os.environ or "PYTEST_CURRENT_TEST" in os.environ


def _save(path: Path, model, optimizer, history: History, best, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "name": name,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": best,
        "history": asdict(history),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all(),
    }
    with replacing(path) as file:
        torch.save(state, file)


def _restore(path: Path, model, optimizer, name: str, device) -> tuple[History, dict | None]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if state["name"] != name:
            raise ValueError(f"it belongs to {state['name']!r}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        torch.cuda.set_rng_state_all([value.cpu() for value in state["random_cuda"]])
    except (ValueError, KeyError, TypeError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} is no checkpoint of {name!r} ({reason}): remove it to train anew"
        ) from error
    return History(**state["history"]), state["best"]
