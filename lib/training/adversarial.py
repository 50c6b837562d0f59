"""Networks that are trained against each other, on the one loop.

A round is one step of `lib.training.loop.run_steps`: turns in a fixed order, each of which trains some
networks on its own losses while the others stand still. Some turns come every k-th round only, as the
discriminator's regularisation R1 does. A running average of a network's weights is what draws the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.files import replacing
from lib.models.images.stylemapgan_losses import gradient_penalty
from lib.training.checkpoints import Stateful
from lib.training.loop import Batch, one_device

#: Losses by name of a round's batch, to which a turn may add what later turns of the round need.
Losses = Callable[[dict[str, Any]], Mapping[str, Tensor]]


def _sum(losses: Mapping[str, Tensor]) -> Tensor:
    return sum(losses.values())


@dataclass(frozen=True)
class Turn:
    """What one turn of a round minimises, and what it moves.

    Attributes
    ----------
    losses : callable
        Takes the round's batch and returns scalars by name.
    moves : tuple of str
        Names of the optimisers that take a step; the weights of other optimisers have no gradient meanwhile.
        A network without an optimiser is not frozen: it gets gradients and never steps.
    total : callable
        From the losses to the scalar that is minimised; their sum if nothing else is given.
    every : int
        Rounds between two of these turns: 16 for rounds 0, 16, 32, …. `total` has to make up for it.

    Raises
    ------
    ValueError
        Nothing is moved, or `every` is below 1.
    """

    losses: Losses
    moves: tuple[str, ...]
    total: Callable[[Mapping[str, Tensor]], Tensor] = _sum
    every: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.moves, str) or not self.moves:
            raise ValueError(f"moves is a tuple of names of optimisers, got {self.moves!r}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1 round, got {self.every}")


def r1_turn(
    discriminator: Callable[[Tensor], Tensor],
    moves: tuple[str, ...],
    *,
    weight: float = 10.0,
    every: int = 16,
    images: str = "images",
) -> Turn:
    """R1, lazily: ``weight / 2 · every`` times the mean squared norm of D's gradient at real images.

    Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018; applied every k-th round
    with k times the weight, as in Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020.
    Their optimiser for it is `lazy_adam`.

    Parameters
    ----------
    discriminator : callable
        From images to logits.
    moves, every
        As of `Turn`.
    weight : float
        γ.
    images : str
        Name of the real images in the batch.
    """
    return Turn(
        lambda batch: {"r1": gradient_penalty(discriminator, batch[images])},
        moves,
        lambda losses: weight / 2 * every * losses["r1"],
        every,
    )


def lazy_adam(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    every: int = 16,
) -> torch.optim.Adam:
    """Adam for a network that takes k + 1 steps in k rounds, one of them R1's.

    Learning rate and logarithms of the betas are k / (k + 1) times what they would be without R1.
    """
    share = every / (every + 1)
    betas = (float(betas[0]) ** share, float(betas[1]) ** share)
    return torch.optim.Adam(parameters, lr=learning_rate * share, betas=betas)


class Rounds:
    """The step of a training of several networks, for `lib.training.loop.run_steps`.

    Parameters
    ----------
    networks : mapping of str to Module
        All that take part, by name; what is trained, and what only looks on.
    optimizers : mapping of str to Optimizer
        By name; no weight belongs to two.
    turns : sequence of Turn
        Of a round, in their order.
    batch_at : callable
        Returns the batch of a round (from 0) as a dictionary of tensors, latents included; the same batch
        each time it is asked.
    averages : mapping of str to float
        From names of networks to the decay of their running average, in [0, 1): after each round it keeps
        that share of itself and takes the rest of the network. It begins as a copy of the network.
    fabric : Fabric, optional
        The device and the precision, in one process.

    Attributes
    ----------
    taken : int
        Rounds.
    averaged : dict of str to AveragedModel
        Of each network in `averages`.
    state : dict of str to Stateful
        What a checkpoint must hold: networks by their names, ``… average``, ``… optimizer``, ``precision``
        and ``rounds``.

    Raises
    ------
    ValueError
        A turn moves, or an average follows, what is not there; two optimisers share a weight; a decay is out
        of range; or several processes are asked for.

    Examples
    --------
    >>> rounds = Rounds(
    ...     {"generator": generator, "critic": critic},
    ...     {"generator": lazy_free, "critic": lazy},
    ...     [Turn(fool, ("generator",)), Turn(tell_apart, ("critic",)), r1_turn(critic, ("critic",))],
    ...     batch_at,
    ...     averages={"generator": 0.999},
    ... )
    >>> evaluation = Evaluation(draw, every=500, of=("generator average",))
    >>> history = run_steps(rounds, 10_000, state=rounds.state, evaluation=evaluation, checkpoint=file)
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        turns: Sequence[Turn],
        batch_at: Callable[[int], Batch],
        *,
        averages: Mapping[str, float] | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        averages = dict(averages or {})
        self.fabric = fabric or one_device()
        if self.fabric.world_size > 1:
            raise ValueError(f"these trainings run in one process, {self.fabric.world_size} were asked for")
        for names, there in (
            ({name for turn in turns for name in turn.moves}, optimizers),
            (averages, networks),
        ):
            if missing := sorted(set(names) - set(there)):
                raise ValueError(f"there is no {missing[0]!r}, but {', '.join(there) or 'nothing'}")
        if wrong := [decay for decay in averages.values() if not 0 <= decay < 1]:
            raise ValueError(f"a decay is in [0, 1), got {wrong[0]}")
        self._weights = {name: _parameters(optimizer) for name, optimizer in optimizers.items()}
        together = [id(weight) for weights in self._weights.values() for weight in weights]
        if len(together) != len(set(together)):
            raise ValueError("two optimisers share a weight")
        for network in networks.values():
            network.to(self.fabric.device)
        self.optimizers = {name: self.fabric.setup_optimizers(one) for name, one in optimizers.items()}
        self.networks, self.turns, self.batch_at = dict(networks), tuple(turns), batch_at
        self.averaged = {name: _average(networks[name], decay) for name, decay in averages.items()}
        self.taken = 0
        self.state: dict[str, Stateful] = dict(networks)
        self.state |= {f"{name} average": average for name, average in self.averaged.items()}
        self.state |= {f"{name} optimizer": one for name, one in self.optimizers.items()}
        self.state |= {"precision": self.fabric.strategy.precision, "rounds": self}

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Take the round of this number (from 0), and return the losses of its turns."""
        batch, told = dict(self.fabric.to_device(dict(self.batch_at(number)))), {}
        for turn in self.turns:
            if number % turn.every:
                continue
            with self._moving(turn.moves):
                with self.fabric.autocast():
                    losses = turn.losses(batch)
                    total = turn.total(losses)
                for name in turn.moves:
                    self.optimizers[name].zero_grad(set_to_none=True)
                self.fabric.backward(total)
            for name in turn.moves:
                self.optimizers[name].step()
            told |= {name: loss.detach() for name, loss in losses.items()}
        for name, average in self.averaged.items():
            average.update_parameters(self.networks[name])
        self.taken = number + 1
        return told

    def state_dict(self) -> dict[str, int]:
        """Return how many rounds were taken."""
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self.taken = state["taken"]

    @contextmanager
    def _moving(self, names: tuple[str, ...]) -> Iterator[None]:
        """Meanwhile no weights of other optimisers have gradients."""
        still = [
            weight
            for name, weights in self._weights.items()
            if name not in names
            for weight in weights
            if weight.requires_grad
        ]
        for weight in still:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in still:
                weight.requires_grad_(True)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _average(network: nn.Module, decay: float) -> AveragedModel:
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.n_averaged.fill_(1)  # what it begins with counts: else the first round would replace it
    return average.requires_grad_(False)


def save_sheet(path: Path, images: Tensor, *, columns: int = 8) -> None:
    """Write pictures side by side as a PNG, whole or not at all; its folder is made.

    Parameters
    ----------
    path : Path
    images : (N, 3, H, W) or (N, 1, H, W) in [-1, 1]
        What is outside is cut off.
    columns : int
        Pictures in a row.

    Raises
    ------
    ValueError
        They are no pictures, or not finite.
    OSError
        It cannot be written.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) == 0 or columns < 1:
        raise ValueError(f"expected pictures (N, 3 or 1, H, W) and columns >= 1, got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ValueError("pictures to be saved are not finite")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    sheet = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    sheet[:count] = pixels
    sheet = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    array = sheet.reshape(rows * height, columns * width, channels).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(array.squeeze(-1) if channels == 1 else array).save(file, format="PNG", optimize=True)
