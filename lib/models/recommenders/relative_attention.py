"""The relative logits of MEANTIME without the (B, T, T, H) kernels they are defined by.

A relative head adds (Q_i + u)·(W R_ij) to its logits (MEANTIME, RecSys 2020; the authors' code, commit
a9ca2e7, builds R for every pair and projects it). Seen from query i this is q̃_i·R_ij with q̃_i = Wᵀ(Q_i +
u), and R_ij depends on one number, the gap d_ij = (t_i − t_j)/τ. So:

Sin
    q̃_i·R_ij is a sum of sines and cosines of differences. With the angle-difference identities it is a dot
    product of a query rotated by t_i and a key made of t_j: O(T·H) memory, exact. Phases are reduced to one
    turn in float64, so that stamps of 10⁹ s lose nothing.
Exp and Log
    q̃_i·R(d) is, for each query, a smooth function of y = log(1 + |d|). It is computed at K ≈ 100 fixed nodes
    in y (one small matrix product) and read off between them by interpolation of degree 5: six gathers per
    pair and head instead of H transcendental functions. Index and weights (32 bytes per pair) are shared by
    all heads of a kind and all blocks. The error is below 3·10⁻⁷·Σ_c |q̃_c|, about float32's own rounding.

`MaterialisedTerm` is the authors' way, kept for their float32 rounding and their element-wise dropout.

Dropout. The authors drop single elements of R, once per forward pass. That needs R. The factored terms
instead drop the elements of q̃_i, one mask per query and kernel, drawn once per forward pass and shared by
the blocks: each single logit has exactly the authors' distribution, but the masks of the pairs of one query
are tied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from lib.models.recommenders.dropout import dropout as drop
from lib.models.recommenders.temporal_kernels import decay_rates, relative_kernel, sin_frequencies

#: Nodes that an interpolated value is made of.
ORDER = 6
#: Per kernel: distance of the nodes in y = log(1 + |d|), and where they end, in y − log(frequency).
#: Exp is zero at its end; gaps beyond the end of Log are refused.
GRIDS = {"e": (0.1, 5.0), "l": (0.25, 28.0)}


def relative_terms(
    letters: Sequence[str],
    timestamps: Tensor,
    shape: tuple[int, float, float],
    *,
    dtype: torch.dtype,
    dropout: float = 0.0,
    materialised: bool = False,
) -> list[RelativeTerm]:
    """One term per relative head.

    Parameters
    ----------
    letters
        Kernel of each head: ``"s"``, ``"e"`` or ``"l"``.
    timestamps
        Integers (B, T).
    shape
        Hidden size, frequency and time unit: see `lib.models.recommenders.temporal_kernels.sin_kernel`.
    dtype
        Of the logits.
    dropout
        Probability; 0 outside training.
    materialised
        Whether the kernels are written out for every pair.
    """
    if materialised:
        return [
            MaterialisedTerm(letter, timestamps, *shape, dtype=dtype, dropout=dropout) for letter in letters
        ]
    grids = {letter: GapGrid(letter, timestamps, *shape, dtype=dtype) for letter in set(letters) - {"s"}}
    terms: list[RelativeTerm] = []
    for letter in letters:
        keep = None
        if dropout:
            keep = drop(timestamps.new_ones(*timestamps.shape, shape[0], dtype=dtype), dropout)  # (B, T, H)
        if letter == "s":
            terms.append(SinTerm(timestamps, *shape, dtype=dtype, keep=keep))
        else:
            terms.append(GridTerm(grids[letter], keep))
    return terms


class RelativeTerm(Protocol):
    """What a relative head adds to its logits."""

    def logits(self, query: Tensor, weight: Tensor) -> Tensor:
        """(Q + u)·(W R) for query Q + u (B, T, d) and projection W (d, H): (B, T, T), not divided by √d."""
        ...


class MaterialisedTerm:
    """q̃·R with the kernel written out for every pair: O(B·T²·H) memory.

    Parameters
    ----------
    letter
        ``"s"``, ``"e"`` or ``"l"``.
    timestamps
        Integers (B, T).
    hidden_size, frequency, time_unit
        See `lib.models.recommenders.temporal_kernels.sin_kernel`.
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
            self.kernel = drop(self.kernel, dropout)

    def logits(self, query: Tensor, weight: Tensor) -> Tensor:
        """As `RelativeTerm.logits`."""
        return (self.kernel @ (query @ weight).unsqueeze(-1)).squeeze(-1)


class SinTerm:
    """The Sin term in O(B·T·H) memory. Parameters as `MaterialisedTerm`; ``keep`` is a dropout mask.

    Frequencies and phases are float64 up to the reduction to one turn. The authors' float32 phases are off by
    6·10⁻⁸ of themselves, so that their fast components are noise for gaps of weeks; these are not, and differ
    from theirs.
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
        omega = sin_frequencies(hidden_size, frequency, dtype=torch.float64, device=timestamps.device)
        turns_per_stamp = omega / (2 * math.pi * time_unit)  # (H/2,)
        turns = (timestamps - timestamps[:, -1:]).double()[..., None] * turns_per_stamp  # (B, T, H/2)
        phase = ((turns - turns.round()) * (2 * math.pi)).to(dtype)
        self.sin, self.cos = phase.sin(), phase.cos()  # (B, T, H/2) each
        self.keys = torch.cat([self.cos, self.sin], dim=-1).transpose(1, 2)  # (B, H, T)
        self.keep = keep

    def logits(self, query: Tensor, weight: Tensor) -> Tensor:
        """As `RelativeTerm.logits`.

        a·sin(α−β) + b·cos(α−β) = (a·sin α + b·cos α)·cos β + (b·sin α − a·cos α)·sin β.
        """
        mixed = query @ weight  # (B, T, H): (Q + u) W_R
        a, b = (mixed if self.keep is None else mixed * self.keep).chunk(2, dim=-1)  # (B, T, H/2) each
        # α, the phase of the query's time: sin and cos are (B, T, H/2); β of the keys' times is in the keys.
        rotated = torch.cat([a * self.sin + b * self.cos, b * self.sin - a * self.cos], dim=-1)  # (B, T, H)
        return rotated @ self.keys  # (B, T, H) @ (B, H, T) = (B, T, T)


class GapGrid:
    """Where each pair's gap lies between the nodes of a kernel.

    Built once per batch, for all heads and blocks; 8 + 6·4 bytes per pair in float32.

    Parameters
    ----------
    letter
        ``"e"`` or ``"l"``.
    timestamps
        Integers (B, T).
    hidden_size, frequency, time_unit
        See `lib.models.recommenders.temporal_kernels.exp_kernel`.
    dtype
        Of the interpolation weights.

    Raises
    ------
    ValueError
        If a gap is beyond the Log kernel's grid, 1.4·10¹² f units of time (10¹⁶ at f = 10⁴).
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
    ) -> None:
        step, end = GRIDS[letter]
        end += math.log(frequency)
        position = pairwise_gaps(timestamps).to(dtype).abs_().div_(time_unit).log1p_()
        if letter == "e":
            position.clamp_(max=end)  # the kernel is zero there
        elif position.max() >= end:
            raise ValueError(f"gaps must be below {math.expm1(end):.0e} units of time, got a larger one")
        position.div_(step)
        self.index = position.to(torch.int64)
        powers = position.new_ones(ORDER, *position.shape)
        torch.sub(position, self.index, out=powers[1])
        for k in range(2, ORDER):
            torch.mul(powers[k - 1], powers[1], out=powers[k])
        lagrange = _lagrange().to(position)
        self.weights = (lagrange @ powers.flatten(1)).unflatten(1, position.shape)
        count = int(self.index.max()) + ORDER
        self.nodes = _nodes(letter, hidden_size, frequency, dtype, position.device)[:, :count]


class GridTerm:
    """The Exp or Log term, read off a `GapGrid`; ``keep`` is a dropout mask (B, T, H) or None."""

    def __init__(self, grid: GapGrid, keep: Tensor | None = None) -> None:
        self.grid, self.keep = grid, keep

    def logits(self, query: Tensor, weight: Tensor) -> Tensor:
        """As `RelativeTerm.logits`."""
        if self.keep is None:
            values = query @ (weight @ self.grid.nodes)
        else:
            values = (query @ weight * self.keep) @ self.grid.nodes
        # Under autocast the product is narrower than the grid.
        return Interpolate.apply(values.to(self.grid.weights.dtype), self.grid.index, self.grid.weights)


class Interpolate(torch.autograd.Function):
    """Σ_o weights[o] · values[…, index + o]: values (B, T, K) read at (B, T, T).

    Differentiable in the values; index (B, T, T) and weights (p, B, T, T) are data.
    """

    @staticmethod
    def forward(ctx, values: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(index, weights)
        ctx.count = values.shape[-1]
        span = ctx.count - len(weights) + 1
        out = values.narrow(-1, 0, span).gather(-1, index).mul_(weights[0])
        for o in range(1, len(weights)):
            out.addcmul_(values.narrow(-1, o, span).gather(-1, index), weights[o])
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        index, weights = ctx.saved_tensors
        span = ctx.count - len(weights) + 1
        total = grad.new_zeros(*index.shape[:-1], ctx.count)
        for o in range(len(weights)):
            total.narrow(-1, o, span).scatter_add_(-1, index, grad * weights[o])
        return total, None, None


def pairwise_gaps(timestamps: Tensor) -> Tensor:
    """t_i − t_j, in the stamps' own type: (B, T) to (B, T, T)."""
    return timestamps[:, :, None] - timestamps[:, None, :]


@lru_cache(maxsize=1)
def _lagrange() -> Tensor:
    # Row o: coefficients, by rising power of t in [0, 1), of the polynomial that is 1 at node o, 0 at others.
    with torch.inference_mode(False):  # what is kept has to serve a later training
        nodes = torch.arange(ORDER, dtype=torch.float64) - (ORDER // 2 - 1)
        return torch.linalg.inv(torch.linalg.vander(nodes)).T.contiguous()


@lru_cache(maxsize=32)
def _nodes(
    letter: str, hidden_size: int, frequency: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Kernel values (H, K) at the nodes."""
    step, end = GRIDS[letter]
    below = ORDER // 2 - 1  # nodes at y < 0, where the kernels are continued analytically: no absolute value
    count = math.ceil((end + math.log(frequency)) / step) + ORDER
    with torch.inference_mode(False):  # what is kept has to serve a later training
        gaps = torch.expm1((torch.arange(count, dtype=torch.float64) - below) * step)
        scaled = gaps * decay_rates(hidden_size, frequency, dtype=torch.float64)[:, None]
        return (torch.exp(-scaled) if letter == "e" else torch.log1p(scaled)).to(device, dtype)
