"""The attention and the block of MEANTIME: heads that each see time in their own way.

Source: MEANTIME, RecSys 2020, and the authors' code, commit a9ca2e7; see `lib.models.recommenders.meantime`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.models.recommenders.attention import attend, attention_weights, merge_heads
from lib.models.recommenders.dropout import Dropout
from lib.models.recommenders.parts import FeedForward, check_heads, take_rows


class MixedAttention(nn.Module):
    """Attention with absolute heads (a vector per position), then relative heads (a vector per pair).

    Absolute head a with kernel P: S_ij = (Q_i + W_PQ P_i)·(K_j + W_PK P_j)/√d. Relative head r with kernel R:
    S_ij = (Q_i·K_j + (Q_i + u)·(W_R R_ij))/√d. Temporal vectors enter queries and keys only, never values.

    O(B·h·T²) memory for the logits, O(B·T·H) for Sin, 32 bytes per pair for all Exp heads
    together and as many for all Log heads.

    Parameters
    ----------
    hidden_size
        H, a multiple of the number of heads.
    num_absolute, num_relative
        La and Lr; the number of heads h is their sum, the size of a head d is H/h.
    dropout
        On the attention probabilities.
    """

    def __init__(self, hidden_size: int, num_absolute: int, num_relative: int, *, dropout: float) -> None:
        super().__init__()
        self.num_absolute, self.num_relative = num_absolute, num_relative
        self.num_heads = num_absolute + num_relative
        check_heads(hidden_size, self.num_heads)
        size = hidden_size // self.num_heads
        self.content = nn.Linear(hidden_size, 3 * hidden_size)
        self.absolute = nn.ModuleList(nn.Linear(hidden_size, 2 * size) for _ in range(num_absolute))
        self.relative = nn.ModuleList(nn.Linear(hidden_size, size) for _ in range(num_relative))
        self.relative_query = nn.Parameter(torch.empty(num_relative, size))
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, absolute: list[Tensor], relative: list, bias: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Mix the values of all positions.

        Parameters
        ----------
        x
            (B, T, H).
        absolute
            La tensors (B or 1, T, H).
        relative
            Lr terms of `lib.models.recommenders.relative_attention`.
        bias
            Additive mask (B, 1, 1, T).
        rows
            Positions of the flattened (B, T) whose output is wanted; None for all.

        Returns
        -------
        Tensor of shape (B, T, H), or (n, H) for n rows.
        """
        query, key, value = self._projections(x, absolute)
        mixed = attend(query, key, value, bias, self.dropout, self._terms(query, relative))
        return self.output(take_rows(merge_heads(mixed), rows))

    def weights(self, x: Tensor, absolute: list[Tensor], relative: list, bias: Tensor) -> Tensor:
        """The attention probabilities (B, h, T, T), before dropout, for figures and head statistics."""
        query, key, _ = self._projections(x, absolute)
        return attention_weights(query, key, bias, self._terms(query, relative))

    def _projections(self, x: Tensor, absolute: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        content = self.content(x).unflatten(-1, (3, self.num_heads, -1))
        query_key, value = content[:, :, :2], content[:, :, 2]
        shifts = [
            layer(kernel).unflatten(-1, (2, -1))
            for layer, kernel in zip(self.absolute, absolute, strict=True)
        ]
        # W_R's bias is constant over the keys but for Q_i·b, which belongs to the key: K_j + b.
        zero = self.content.bias.new_zeros(self.content.in_features // self.num_heads)
        shifts += [torch.stack([zero, layer.bias])[None, None] for layer in self.relative]
        shape = torch.broadcast_shapes(*(shift.shape for shift in shifts))
        query_key = query_key + torch.stack([shift.expand(shape) for shift in shifts], dim=-2)
        query, key = query_key.permute(2, 0, 3, 1, 4)
        return query, key, value.transpose(1, 2)

    def _terms(self, query: Tensor, relative: list) -> tuple[Tensor, ...]:
        scale = query.shape[-1] ** -0.5
        return tuple(
            term.logits((query[:, self.num_absolute + r] + self.relative_query[r]) * scale, layer.weight)
            for r, (term, layer) in enumerate(zip(relative, self.relative, strict=True))
        )


class MeantimeBlock(nn.Module):
    """Attention and feed-forward with residuals, and a dropout at the end that other models' blocks lack.

    ``pre``: x + drop(f(LN(x))); ``post``: LN(x + drop(f(x))). There is no LN after the last block.
    """

    def __init__(
        self, attention: MixedAttention, hidden_size: int, *, dropout: float, normalization: str
    ) -> None:
        super().__init__()
        if normalization not in ("pre", "post"):
            raise ValueError(f"normalization must be 'pre' or 'post', got {normalization!r}")
        self.pre = normalization == "pre"
        self.attention = attention
        self.feed_forward = FeedForward(hidden_size, inner_dropout=dropout)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, absolute: list[Tensor], relative: list, bias: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """(B, T, H) to (B, T, H), or to (n, H) for n ``rows``; see `MixedAttention.forward`."""
        mixed = self.attention(self.attention_input(x), absolute, relative, bias, rows)
        x = take_rows(x, rows) + self.dropout(mixed)
        if not self.pre:
            x = self.attention_norm(x)
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x) if self.pre else x))
        if not self.pre:
            x = self.feed_forward_norm(x)
        return self.dropout(x)

    def attention_input(self, x: Tensor) -> Tensor:
        """What the attention reads of the block's input x."""
        return self.attention_norm(x) if self.pre else x
