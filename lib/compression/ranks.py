"""Which ranks a layer gets: by a rule that looks at its weights, or as given.

A rule is asked about each channel side's unfolding, the kernel as a matrix with a row for each channel of
that side. `choose` asks it about a whole layer, `plan` checks ranks that are given; both say what the layer
becomes (`Plan`), which `lib.compression.factored_layers` builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np
from torch import Tensor, nn

from lib.compression.spectrum import as_matrix, power_of_two, squared_singular_values
from lib.compression.vbmf import evbmf

#: From an unfolding (channels, everything else) to a rank, 0 included.
Rule = Callable[[np.ndarray], int]

#: (R3, R4) of a Tucker-2, or the one rank of a Tucker-1 or a truncated singular value decomposition.
Ranks = int | tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What a layer becomes.

    Attributes
    ----------
    kind : {"Tucker-2", "Tucker-1", "SVD"}
    input_rank : int, optional
        R3 of each group; None for Tucker-1 and SVD.
    output_rank : int
        R4 of each group.
    floored : bool
        A rule found rank 0, and 1 was taken.
    feature_map : (channels, height, width), optional
        Feature map that a fully connected layer reads, if it is to be a convolution over it.
    """

    kind: Literal["Tucker-2", "Tucker-1", "SVD"]
    input_rank: int | None
    output_rank: int
    floored: bool = False
    feature_map: tuple[int, int, int] | None = None


def evbmf_rank(unfolding: np.ndarray) -> int:
    """The paper's rule: the rank of `lib.compression.vbmf.evbmf`."""
    return evbmf(unfolding).rank


def energy_rank(unfolding: np.ndarray, share: float = 0.9) -> int:
    """The usual rule of thumb: as many components as hold ``share`` of the squared singular values.

    Raises
    ------
    ValueError
        ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    matrix = as_matrix(unfolding)
    held = np.cumsum(squared_singular_values(matrix, power_of_two(matrix)))
    return int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1 if held[-1] else 0


def rule_of(ranks: Literal["vbmf"] | float | Mapping[str, Ranks] | Rule) -> Rule | None:
    """The rule that ``ranks`` of `lib.compression.one_shot.compress` stands for; None for a mapping.

    Raises
    ------
    ValueError
        Another string, or a share that is not in (0, 1].
    """
    if isinstance(ranks, Mapping):
        return None
    if isinstance(ranks, str):
        if ranks != "vbmf":
            raise ValueError(f"ranks must be 'vbmf', a share, a mapping or a function, got {ranks!r}")
        return evbmf_rank
    if isinstance(ranks, int | float) and not isinstance(ranks, bool):
        if not 0 < ranks <= 1:
            raise ValueError(f"a share of the channels must be in (0, 1], got {ranks}")
        return lambda unfolding: round(ranks * min(unfolding.shape))
    if callable(ranks):
        return ranks
    raise ValueError(f"ranks must be 'vbmf', a share, a mapping or a function, got {ranks!r}")


def choose(
    layer: nn.Conv2d | nn.Linear, rule: Rule, feature_map: tuple[int, int, int] | None, *, one_sided: bool
) -> Plan:
    """Ask a rule about each side of a layer, and each group: the largest answer is used for all groups.

    Parameters
    ----------
    layer
        On the meta device the rule sees zeros.
    rule
        Asked about the output side's unfolding (T, S·Kh·Kw), then the input side's (S, T·Kh·Kw).
    feature_map
        See `Plan`.
    one_sided
        Whether the inputs are left alone, as those of the first convolution.

    Raises
    ------
    ValueError
        A depthwise convolution, a kernel that is not finite, or a rank that the unfolding cannot have.
    """
    _check_groups(layer)
    matrix = isinstance(layer, nn.Linear) and feature_map is None
    output_rank, input_rank = 0, 0
    for kernel in kernels(layer, feature_map):
        outputs, inputs = kernel.shape[:2]
        array = numbers(kernel)
        output_rank = max(output_rank, _asked(rule, array.reshape(outputs, -1)))
        if not (matrix or one_sided):
            input_rank = max(input_rank, _asked(rule, np.moveaxis(array, 1, 0).reshape(inputs, -1)))
    if matrix or one_sided:
        return Plan("SVD" if matrix else "Tucker-1", None, max(1, output_rank), output_rank < 1)
    floored = min(output_rank, input_rank) < 1
    return Plan("Tucker-2", max(1, input_rank), max(1, output_rank), floored, feature_map)


def plan(layer: nn.Conv2d | nn.Linear, ranks: Ranks, feature_map: tuple[int, int, int] | None) -> Plan:
    """The plan of a layer whose ranks are given: a pair asks for Tucker-2, one number for a one-sided one.

    Raises
    ------
    ValueError
        A depthwise convolution, a rank out of range, or a pair for a matrix without a feature map.
    """
    _check_groups(layer)
    outputs, inputs = kernels(layer, feature_map)[0].shape[:2]
    matrix = isinstance(layer, nn.Linear) and feature_map is None
    pair = isinstance(ranks, tuple | list)
    if matrix and pair:
        raise ValueError(
            f"a pair of ranks {tuple(ranks)} needs the feature map that the layer reads: give maps"
        )
    if pair and len(ranks) != 2:
        raise ValueError(f"ranks must be one number or a pair (R3, R4), got {ranks!r}")
    input_rank, output_rank = ranks if pair else (None, ranks)
    limits = {
        "input rank R3": (input_rank, inputs),
        "rank": (output_rank, min(inputs, outputs) if matrix else outputs),
    }
    for what, (rank, limit) in limits.items():
        if rank is not None and (not isinstance(rank, Integral) or not 1 <= rank <= limit):
            raise ValueError(f"{what} must be a whole number in 1..{limit}, got {rank}")
    kind = "Tucker-2" if pair else "SVD" if matrix else "Tucker-1"
    return Plan(kind, input_rank, output_rank, feature_map=feature_map if pair else None)


def kernels(layer: nn.Conv2d | nn.Linear, feature_map: tuple[int, int, int] | None = None) -> list[Tensor]:
    """The kernels of a layer, (T, S, Kh, Kw) for each group; a matrix that reads no map has 1 × 1 taps."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return [weight.reshape(weight.shape[0], *(feature_map or (weight.shape[1], 1, 1)))]
    return list(weight.chunk(layer.groups))


def numbers(kernel: Tensor) -> np.ndarray:
    """A kernel's numbers; on the meta device, where there are none, zeros that take no memory.

    Raises
    ------
    ValueError
        They are not all finite.
    """
    if kernel.is_meta:
        return np.broadcast_to(np.zeros((), np.float32), kernel.shape)
    return as_matrix(kernel.flatten(1), "the kernel").reshape(kernel.shape)


def _check_groups(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.in_channels == layer.groups:
        raise ValueError(
            f"a depthwise convolution ({layer.groups} groups of one input channel) has no channels to factor"
        )


def _asked(rule: Rule, unfolding: np.ndarray) -> int:
    rank = rule(unfolding)
    if not isinstance(rank, Integral) or not 0 <= rank <= min(unfolding.shape):
        raise ValueError(f"the rule chose rank {rank} for an unfolding of shape {unfolding.shape}")
    return int(rank)
