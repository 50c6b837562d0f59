"""Where a training is: what is measured during it, its history, the best weights so far, when it ends."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lib.inspection import evaluating
from lib.training.checkpoints import Stateful

logger = logging.getLogger("lib.training.loop")

#: Steps between two rows of training losses where nothing is evaluated.
LOG_EVERY = 500


@dataclass
class History:
    """What a training left behind.

    Attributes
    ----------
    losses
        Rows of ``step`` and what the steps returned (``loss``, mostly): the means since the previous row.
    evaluations
        Rows of ``step`` and whatever the evaluation returned.
    best_step
        Step whose weights the evaluated modules hold now (the last step if nothing was monitored).
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


@dataclass(frozen=True)
class Evaluation:
    """What is measured during a training, how often, and what follows from it.

    Attributes
    ----------
    function
        Takes the modules named in ``of`` and returns numbers by name. Every module of the training is in
        evaluation mode meanwhile, and no gradients are kept.
    every
        Steps between two evaluations; the last step is always evaluated.
    monitor
        Name of one of the numbers, higher is better: the weights of its best step are kept.
    patience
        Stop when ``monitor`` has not improved for this many *steps* (not epochs: on small data an epoch is a
        handful of steps, and masked-item models stay at chance for hundreds).
    of
        Names, in the training's state, of the modules that are evaluated and whose best weights are kept.
        `fit` calls its model ``"model"``.

    Raises
    ------
    ValueError
        A setting is out of range.
    """

    function: Callable[..., Mapping[str, float]]
    every: int = 500
    monitor: str | None = None
    patience: int | None = None
    of: tuple[str, ...] = ("model",)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if isinstance(self.of, str):
            raise ValueError(f"of is a tuple of names, got {self.of!r}")
        if self.patience is not None and (self.monitor is None or self.patience < self.every):
            raise ValueError(
                f"patience counts steps since monitor improved: it needs a monitor and at least "
                f"every={self.every} steps, got patience={self.patience}, monitor={self.monitor!r}"
            )


class Progress:
    """How far a training is; itself a part of its checkpoint.

    Parameters
    ----------
    name, steps, state, evaluation
        As given to `lib.training.loop.run_steps`.

    Attributes
    ----------
    history : History
        As far as the training is.
    text : str
        What was measured last, for a progress bar.

    Raises
    ------
    ValueError
        There is no step to take, or the evaluation is of modules that are not in the state.
    """

    def __init__(
        self, name: str, steps: int, state: Mapping[str, Stateful], evaluation: Evaluation | None
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.name, self.steps, self.evaluation = name, steps, evaluation
        self.modules = {key: item for key, item in state.items() if isinstance(item, nn.Module)}
        self.optimizers = [item for item in state.values() if isinstance(item, torch.optim.Optimizer)]
        if evaluation is not None and (missing := [key for key in evaluation.of if key not in self.modules]):
            raise ValueError(
                f"the evaluation is of {', '.join(missing)}; the modules of the state are "
                f"{', '.join(self.modules) or 'none'}"
            )
        self.history, self.text = History(), ""
        self._best: dict[str, dict[str, Any]] | None = None
        self._best_value = -math.inf
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._since = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether all steps are taken or patience has run out."""
        return self.history.steps >= self.steps or self._exhausted()

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Count a step that was taken, and what it returned."""
        for key, value in scalars.items():
            value = torch.as_tensor(value).detach()
            value = value.to(torch.promote_types(value.dtype, torch.float32))  # sums need the digits
            self._sums[key] = self._sums.get(key, 0.0) + value  # a new tensor: the step may use its own again
            self._counts[key] = self._counts.get(key, 0) + 1
        self.history.steps += 1

    def close_if_due(self) -> None:
        """After the steps that ask for it: note the mean losses, evaluate, remember the best weights.

        Raises
        ------
        ValueError
            The evaluation returned something else than numbers, or not the monitored one.
        FloatingPointError
            A mean loss or the monitored number is not finite.
        """
        at, every = self.history.steps, self.evaluation.every if self.evaluation else LOG_EVERY
        noted = self.history.losses[-1]["step"] if self.history.losses else 0
        if at == noted or (at < self.steps and at % every):
            return
        shown = self.mean_losses()
        self.history.losses.append({"step": at} | shown)
        self._sums, self._counts = {}, {}
        if self.evaluation is not None:
            values = self._evaluate(self.evaluation)
            self.history.evaluations.append({"step": at} | values)
            shown |= values
        self.text = ", ".join(f"{key} {value:.4f}" for key, value in shown.items())
        logger.info("%s: step %d of %d, %s", self.name, at, self.steps, self.text)
        self._measure_time()

    def mean_losses(self) -> dict[str, float]:
        """Return the means of what the steps returned since the last row of losses.

        Raises
        ------
        FloatingPointError
            One is not finite.
        """
        means = {key: float(value) / self._counts[key] for key, value in self._sums.items()}
        for key, value in means.items():
            if not math.isfinite(value):
                rates = ", ".join(f"{item.param_groups[0]['lr']:g}" for item in self.optimizers)
                raise FloatingPointError(
                    f"{self.name}: the {key} is {value} in the {self._counts[key]} steps before step "
                    f"{self.history.steps}; lower learning_rate ({rates or 'unknown'}) or check the batches"
                )
        return means

    def finish(self) -> History:
        """Load the best weights if there are any, and return the history."""
        if self._best is None:
            self.history.best_step = self.history.steps
        else:
            for key, weights in self._best.items():
                self.modules[key].load_state_dict(weights)
        return self.history

    def state_dict(self) -> dict[str, Any]:
        """Return all that another `Progress` needs to go on from here."""
        self._measure_time()
        return {
            "history": asdict(self.history),
            "best": self._best,
            "best_value": self._best_value,
            "sums": self._sums,
            "counts": self._counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.history, self._since = History(**state["history"]), time.monotonic()
        self._best, self._best_value = state["best"], state["best_value"]
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def _evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        modules = [self.modules[key] for key in evaluation.of]
        with evaluating(nn.ModuleList(self.modules.values())), torch.no_grad():
            values = {key: _number(key, value) for key, value in evaluation.function(*modules).items()}
        if evaluation.monitor is None:
            return values
        if evaluation.monitor not in values:
            raise ValueError(
                f"the evaluation must return monitor={evaluation.monitor!r}, "
                f"got {', '.join(values) or 'nothing'}"
            )
        value, at = values[evaluation.monitor], self.history.steps
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{self.name}: the monitored {evaluation.monitor} is {value} at step {at}"
            )
        if value > self._best_value:
            self._best_value, self.history.best_step = value, at
            self._best = {
                key: {name: weight.detach().clone() for name, weight in module.state_dict().items()}
                for key, module in zip(evaluation.of, modules, strict=True)
            }
        return values

    def _exhausted(self) -> bool:
        evaluations, patience = self.history.evaluations, self.evaluation and self.evaluation.patience
        if not patience or not evaluations:
            return False
        return evaluations[-1]["step"] - self.history.best_step >= patience

    def _measure_time(self) -> None:
        now = time.monotonic()
        self.history.seconds += now - self._since
        self._since = now


def _number(key: str, value: object) -> float:
    """A plain float: checkpoints must be readable without NumPy's types."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the evaluation must return numbers, got {key}: {type(value).__name__}") from error
