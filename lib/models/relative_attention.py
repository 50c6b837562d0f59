"""The relative logits of MEANTIME without the (B, T, T, H) kernels they are defined by.

A relative head adds (Q_i + u)·(W R_ij) to its logits (MEANTIME, RecSys 2020; the authors' code, commit
a9ca2e7, builds R for every pair and projects it). Seen from query i this is q̃_i·R_ij with q̃_i = Wᵀ(Q_i +
u), and R_ij depends on one number, the gap d_ij = (t_i − t_j)/τ. So:

Sin
    q̃_i·R_ij is a sum of sines and cosines of differences. With the angle-difference identities it is a dot
    product of a query rotated by t_i and a key made of t_j: O(T·H) memory, exact. Phases are reduced to one
    turn in float64, so that stamps of 10⁹ s lose nothing.
Exp and Log
    q̃_i·R(d) is, for each query, a smooth function of y = log(1 + |d|). It is computed on a fixed grid of K
    nodes in y (one small matrix product) and read off between them by cubic interpolation: 4 gathers per pair
    and head instead of H transcendental functions. Index and weights (24 bytes per pair) are shared by all
    such heads and blocks. The error is below 3·10⁻⁷ per unit of Σ_c |q̃_c|, under float32's own rounding of
    the Log kernel.

:class:`MaterialisedTerm` is the authors' way, kept for their float32 rounding and their element-wise dropout.

Dropout. The authors drop single elements of R, once per forward pass. That needs R. The factored terms
instead drop the elements of q̃_i, one mask per query and kernel, drawn once per forward pass and shared by
the blocks: each single logit has exactly the authors' distribution, but the masks of the pairs of one query
are tied.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from lib.models.temporal_kernels import exp_kernel, log_kernel, relative_kernel, sin_frequencies

#: Distance of neighbouring nodes in y = log(1 + |d|); the error grows with its fourth power.
GRID_STEP = 0.05
#: Largest y of the grid: gaps up to 1.6·10¹⁷ units of time.
GRID_END = 39.6


class MaterialisedTerm:
    """q̃·R with the kernel written out for every pair: O(B·T²·H) memory.

    Parameters
    ----------
    letter
        ``"s"``, ``"e"`` or ``"l"``.
    timestamps
        Integers (B, T).
    hidden_size, frequency, time_unit
        See :func:`lib.models.temporal_kernels.sin_kernel`.
    dtype
        Of the kernel.
    dropout
        Probability with which each element of the kernel is dropped.
    """

    def __init__(
        self,
        letter: str,
        timestamps: Tensor,
        hidden_size: int,
        frequency: float,
        time_unit: float,
        *,
        dtype: torch.dtype,
        dropout: float = 0.0,
    ) -> None:
        gaps = pairwise_gaps(timestamps).to(dtype)
        self.kernel = relative_kernel(letter)(gaps, hidden_size, frequency, time_unit)
        if dropout:
            self.kernel = torch.nn.functional.dropout(self.kernel, dropout)

    def logits(self, query: Tensor, weight: Tensor) -> Tensor:
        """(Q + u)·(W R) for query Q + u (B, T, d) and projection W (d, H): (B, T, T), not divided by √d."""
        return (self.kernel @ (query @ weight).unsqueeze(-1)).squeeze(-1)


class SinTerm:
    """The Sin term in O(B·T·H) memory. Parameters as :class:`MaterialisedTerm`; ``keep`` is a dropout mask.

    The frequencies are rounded to ``dtype`` first, as the authors' are; their product with the gap is not, so
    that float32 results differ from the authors' by their rounding of the phase (6·10⁻⁸ of it) and are nearer
    the truth.
    """

    def __init__(
        self,
        timestamps: Tensor,
        hidden_size: int,
        frequency: float,
        time_unit: float,
        *,
        dtype: torch.dtype,
        keep: Tensor | None = None,
    ) -> None:
        omega = sin_frequencies(hidden_size, frequency, dtype=dtype, device=timestamps.device)
        turns_per_stamp = omega.double() / (2 * math.pi * time_unit)
        turns = (timestamps - timestamps[:, -1:]).double()[..., None] * turns_per_stamp
        phase = ((turns - turns.round()) * (2 * math.pi)).to(dtype)
        self.sin, self.cos = phase.sin(), phase.cos()
        self.keys = torch.cat([self.cos, self.sin], dim=-1).transpose(1, 2)
        self.keep = keep

    def logits(self, query: Tensor, weight: Tensor) -> Tensor:
        """As :meth:`MaterialisedTerm.logits`.

        a·sin(α−β) + b·cos(α−β) = (a·sin α + b·cos α)·cos β + (b·sin α − a·cos α)·sin β.
        """
        a, b = _dropped(query @ weight, self.keep).chunk(2, dim=-1)
        rotated = torch.cat([a * self.sin + b * self.cos, b * self.sin - a * self.cos], dim=-1)
        return rotated @ self.keys


class GapGrid:
    """Where each pair's gap lies between the nodes: built once per batch, for all Exp and Log heads.

    Parameters
    ----------
    timestamps
        Integers (B, T).
    time_unit
        Length of the unit of time in the stamps' unit.
    dtype
        Of the interpolation weights.
    """

    def __init__(self, timestamps: Tensor, time_unit: float, *, dtype: torch.dtype) -> None:
        position = pairwise_gaps(timestamps).to(dtype).abs_().div_(time_unit).log1p_().div_(GRID_STEP)
        self.index = position.to(torch.int64)
        t = position.sub_(self.index)
        lower, upper = t * (t - 1) / 6, t * (t + 1) / 6
        self.weights = (lower * (2 - t), (t * t - 1) * (t - 2) / 2, upper * (2 - t) * 3, upper * (t - 1))
        self.count = int(self.index.max()) + 4
        if self.count > _node_positions().numel():
            raise ValueError(f"gaps must be below {math.exp(GRID_END):.0e} units of time, got a larger one")


class GridTerm:
    """The Exp or Log term by interpolation. ``keep`` is a dropout mask (B, T, H) or None."""

    def __init__(
        self,
        letter: str,
        grid: GapGrid,
        hidden_size: int,
        frequency: float,
        *,
        dtype: torch.dtype,
        keep: Tensor | None,
    ) -> None:
        self.grid = grid
        self.nodes = _node_values(letter, hidden_size, frequency, dtype, grid.index.device)[:, : grid.count]
        self.keep = keep

    def logits(self, query: Tensor, weight: Tensor) -> Tensor:
        """As :meth:`MaterialisedTerm.logits`."""
        if self.keep is None:
            values = query @ (weight @ self.nodes)
        else:
            values = _dropped(query @ weight, self.keep) @ self.nodes
        return Interpolate.apply(values, self.grid.index, *self.grid.weights)


class Interpolate(torch.autograd.Function):
    """Σ_o weight_o · values[…, index + o], o = 0…3: values (B, T, K) read at (B, T, T).

    Differentiable in the values; index and weights are data.
    """

    @staticmethod
    def forward(ctx, values: Tensor, index: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(index, *weights)
        ctx.count = values.shape[-1]
        span = ctx.count - len(weights) + 1
        out = values.narrow(-1, 0, span).gather(-1, index).mul_(weights[0])
        for o, weight in enumerate(weights[1:], 1):
            out.addcmul_(values.narrow(-1, o, span).gather(-1, index), weight)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        index, *weights = ctx.saved_tensors
        span = ctx.count - len(weights) + 1
        total = grad.new_zeros(*index.shape[:-1], ctx.count)
        for o, weight in enumerate(weights):
            total.narrow(-1, o, span).scatter_add_(-1, index, grad * weight)
        return total, None, *[None for _ in weights]


def pairwise_gaps(timestamps: Tensor) -> Tensor:
    """t_i − t_j, in the stamps' own type: (B, T) to (B, T, T)."""
    return timestamps[:, :, None] - timestamps[:, None, :]


def _dropped(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep


def _node_positions() -> Tensor:
    # One node below zero, so that the cubic is centred in the first interval too.
    return torch.arange(-1, round(GRID_END / GRID_STEP) + 3, dtype=torch.float64) * GRID_STEP


@lru_cache(maxsize=32)
def _node_values(
    letter: str, hidden_size: int, frequency: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    gaps = torch.expm1(_node_positions())
    # Continue the kernels analytically to the node below zero, where the public functions would mirror them.
    kernel = {"e": exp_kernel, "l": log_kernel}[letter](gaps, hidden_size, frequency)
    kernel[0] = 1 / kernel[0] if letter == "e" else _log_below_zero(gaps[0], hidden_size, frequency)
    return kernel.T.to(device, dtype).contiguous()


def _log_below_zero(gap: Tensor, hidden_size: int, frequency: float) -> Tensor:
    rates = frequency ** (-torch.arange(hidden_size, dtype=torch.float64) / hidden_size)
    return torch.log1p(gap * rates)
