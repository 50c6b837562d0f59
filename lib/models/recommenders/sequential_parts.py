"""Parts that the sequential recommenders share: feed-forward, initialisation, rows of a batch, checks.

Everything follows the authors' code of MEANTIME, commit a9ca2e7, in which all models of the paper's main
table are trained by one program. What belongs to one model only lives beside that model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.recommenders.dropout import Dropout


def take_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """(B, T, H) to (n, H), the given rows of the flattened B·T; x as it is if ``rows`` is None."""
    return x if rows is None else x.flatten(0, 1).index_select(0, rows)


def initialise(module: nn.Module, std: float) -> None:
    """Normal(0, std²) for every matrix, 0 for biases, 1 and 0 for layer norms.

    The padding row of an embedding is drawn like any other, as in the authors' code.

    Raises
    ------
    ValueError
        If ``std`` is not positive.
    """
    if not std > 0:
        raise ValueError(f"init_std must be positive, got {std}")
    norms = {id(p) for m in module.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    for name, parameter in module.named_parameters():
        if id(parameter) in norms:
            continue
        if name.rpartition(".")[2] in ("bias", "output_bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std)


class FeedForward(nn.Module):
    """Linear H→4H, GELU (tanh approximation), dropout, Linear 4H→H.

    Parameters
    ----------
    hidden_size
        H.
    inner_dropout
        Dropout between the two; MEANTIME has it, BERT4Rec in the same repository has not.
    """

    def __init__(self, hidden_size: int, *, inner_dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(hidden_size, 4 * hidden_size)
        self.contract = nn.Linear(4 * hidden_size, hidden_size)
        self.dropout = Dropout(inner_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) to (…, H)."""
        return self.contract(self.dropout(F.gelu(self.expand(x), approximate="tanh")))


def labelled_rows(batch: Mapping[str, Tensor], num_items: int) -> Tensor:
    """Indices (n,) into the flattened (B, T) of the positions with a label.

    Raises
    ------
    ValueError
        If the labels have not the shape of the tokens or are not in 0…V; if there is none, since the mean
        over no position is NaN.
    """
    check_beside(batch, "labels")
    labels = batch["labels"]
    check_range("labels", labels, num_items + 1)
    rows = labels.flatten().nonzero().squeeze(1)
    if not rows.numel():
        raise ValueError(f"labels of shape {tuple(labels.shape)} select no position: the loss would be NaN")
    return rows


def last_rows(tokens: Tensor) -> Tensor:
    """Indices (B,) into the flattened (B, T) of every sequence's last position."""
    return torch.arange(1, tokens.shape[0] + 1, device=tokens.device) * tokens.shape[-1] - 1


def check_tokens(tokens: Tensor, *, max_length: int) -> None:
    """Refuse tokens that are not integers (B, T) with B ≥ 1 and 1 ≤ T ≤ max_length.

    Raises
    ------
    ValueError
        Says which length was allowed and what came.
    """
    if tokens.is_floating_point():
        raise ValueError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.dim() != 2 or not tokens.shape[0] or not 1 <= tokens.shape[1] <= max_length:
        raise ValueError(f"tokens must be (B, T), B ≥ 1 and T in 1..{max_length}, got {tuple(tokens.shape)}")


def check_beside(batch: Mapping[str, Tensor], name: str) -> None:
    """Refuse a batch in which ``name`` is missing, has not the shape of ``tokens`` or holds no integers.

    Raises
    ------
    ValueError
        Says which shape was expected and what came.
    """
    shape, values = batch["tokens"].shape, batch.get(name)
    if values is None or values.shape != shape:
        came = "nothing" if values is None else tuple(values.shape)
        raise ValueError(f"{name} must have the shape of tokens, {tuple(shape)}, got {came}")
    if values.is_floating_point():  # a float32 time stamp is a minute coarse
        raise ValueError(f"{name} must be integers, got {values.dtype}")


def check_candidates(candidates: Tensor, *, rows: int, num_items: int) -> None:
    """Refuse candidates that are not integers (B, C), B as many as ``rows`` and C ≥ 1, in 0…V.

    Raises
    ------
    ValueError
        Says which shape or items were expected and what came.
    """
    if candidates.dim() != 2 or len(candidates) != rows or not candidates.shape[1]:
        raise ValueError(f"candidates must be ({rows}, C), C ≥ 1, got {tuple(candidates.shape)}")
    if candidates.is_floating_point():
        raise ValueError(f"candidates must be integers, got {candidates.dtype}")
    check_range("candidates", candidates, num_items + 1)


def check_range(name: str, indices: Tensor, size: int) -> None:
    """Refuse indices that are not rows of a table; an empty tensor passes.

    Raises
    ------
    ValueError
        Says which rows there are and which index came.
    """
    if not indices.numel():
        return
    low, high = torch.aminmax(indices)
    if low < 0 or high >= size:
        raise ValueError(f"{name} must be in 0..{size - 1}, got {int(low if low < 0 else high)}")


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1 with a ValueError that names the first."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Refuse a hidden size that the heads do not divide.

    Raises
    ------
    ValueError
        If there is no head or ``hidden_size`` is no multiple of their number.
    """
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"hidden_size must be a multiple of the number of heads, got {hidden_size} and {num_heads}"
        )


def check_normalization(normalization: str) -> None:
    """Refuse another place of the layer norms than ``"pre"`` or ``"post"`` with a ValueError."""
    if normalization not in ("pre", "post"):
        raise ValueError(f"normalization must be 'pre' or 'post', got {normalization!r}")
