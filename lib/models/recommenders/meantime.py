"""MEANTIME: self-attention in which every head has its own kind of temporal embedding.

Source: S. M. Cho, E. Park and S. Yoo, "MEANTIME: Mixture of Attention Mechanisms with Multi-temporal
Embeddings for Sequential Recommendation", RecSys 2020, doi 10.1145/3383313.3412216, arXiv 2008.08273; details
by the authors' code (github.com/SungMinCho/MEANTIME, commit a9ca2e7; no licence, nothing of it is copied).

In reading order: the attention, the block, the model. Shapes beside the lines: B sequences, T positions, H
channels, h = La + Lr heads (absolute, then relative) of d = H/h channels, V items, n rows of the flattened
(B, T). The logits of relative heads are made in `lib.models.recommenders.relative_attention`, loss and scores
in `lib.models.recommenders.cloze`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib.inspection import hooked
from lib.models.authors import Source, opened
from lib.models.recommenders.cloze import ClozeHead, ClozeModel
from lib.models.recommenders.dot_product_attention import (
    attend,
    attention_weights,
    merge_heads,
    padding_bias,
)
from lib.models.recommenders.dropout import Dropout, check_probability
from lib.models.recommenders.dropout import dropout as drop
from lib.models.recommenders.meantime_checkpoints import load_authors, read_state
from lib.models.recommenders.meantime_layouts import meantime_layout, meantime_sizes, pop_tied_table
from lib.models.recommenders.relative_attention import RelativeTerm, relative_terms
from lib.models.recommenders.sequential_parts import (
    FeedForward,
    check_beside,
    check_heads,
    check_normalization,
    check_range,
    check_sizes,
    check_tokens,
    initialise,
    last_rows,
    take_rows,
)
from lib.models.recommenders.temporal_kernels import ABSOLUTE_KERNELS, RELATIVE_KERNELS, kernel_letters

Terms = list[RelativeTerm]


class MixedAttention(nn.Module):
    """Attention with absolute heads (a vector per position), then relative heads (a vector per pair).

    Absolute head a with kernel P: S_ij = (Q_i + W_PQ P_i)·(K_j + W_PK P_j)/√d. Relative head r with kernel R:
    S_ij = (Q_i·K_j + (Q_i + u)·(W_R R_ij))/√d. Temporal vectors enter queries and keys only, never values.

    O(B·h·T²) memory for the logits, O(B·T·H) for Sin, 32 bytes per pair for all Exp heads together and as
    many for all Log heads.

    Parameters
    ----------
    hidden_size
        H, a multiple of the number of heads.
    num_absolute, num_relative
        La and Lr.
    dropout
        On the attention probabilities.
    """

    def __init__(self, hidden_size: int, num_absolute: int, num_relative: int, *, dropout: float) -> None:
        super().__init__()
        self.num_absolute, self.num_relative = num_absolute, num_relative
        self.num_heads = num_absolute + num_relative
        check_heads(hidden_size, self.num_heads)
        size = hidden_size // self.num_heads  # d
        self.content = nn.Linear(hidden_size, 3 * hidden_size)  # Q, K and V of all heads
        self.absolute = nn.ModuleList(nn.Linear(hidden_size, 2 * size) for _ in range(num_absolute))
        self.relative = nn.ModuleList(nn.Linear(hidden_size, size) for _ in range(num_relative))
        self.relative_query = nn.Parameter(torch.empty(num_relative, size))  # u of each relative head
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, absolute: list[Tensor], relative: Terms, bias: Tensor, rows: Tensor | None = None
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
        query, key, value = self._projections(x, absolute)  # (B, h, T, d) each
        terms = self._terms(query, relative)  # Lr tensors (B, T, T), for the last heads
        mixed = attend(query, key, value, bias, self.dropout, terms)  # (B, h, T, d)
        return self.output(take_rows(merge_heads(mixed), rows))  # (B, T, H), or (n, H)

    def weights(self, x: Tensor, absolute: list[Tensor], relative: Terms, bias: Tensor) -> Tensor:
        """The attention probabilities (B, h, T, T), before dropout, for figures and head statistics."""
        query, key, _ = self._projections(x, absolute)
        return attention_weights(query, key, bias, self._terms(query, relative))

    def _projections(self, x: Tensor, absolute: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        content = self.content(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, h, d): Q, K, V
        # An absolute head adds its own projections of P to Q and to K.
        shifts = [
            layer(kernel).unflatten(-1, (2, -1))  # (B or 1, T, 2, d): P W_Q, P W_K
            for layer, kernel in zip(self.absolute, absolute, strict=True)
        ]
        # A relative head adds b, the bias of W_R, to K. Its share of the logits, (Q_i + u)·b, is the same for
        # all j and the softmax cancels it: b has no effect and no gradient, and is here because the authors
        # have it.
        zero = self.content.bias.new_zeros(self.content.in_features // self.num_heads)  # (d,)
        shifts += [torch.stack([zero, layer.bias])[None, None] for layer in self.relative]  # (1, 1, 2, d)
        shape = torch.broadcast_shapes(*(shift.shape for shift in shifts))
        shift = torch.stack([shift.expand(shape) for shift in shifts], dim=-2)  # (B or 1, T, 2, h, d)
        query, key = (content[:, :, :2] + shift).permute(2, 0, 3, 1, 4)  # (B, h, T, d) each
        return query, key, content[:, :, 2].transpose(1, 2)  # and the values, (B, h, T, d)

    def _terms(self, query: Tensor, relative: Terms) -> tuple[Tensor, ...]:
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
        check_normalization(normalization)
        self.pre = normalization == "pre"
        self.attention = attention
        self.feed_forward = FeedForward(hidden_size, inner_dropout=dropout)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, absolute: list[Tensor], relative: Terms, bias: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """(B, T, H) to (B, T, H), or to (n, H) for n ``rows``; see `MixedAttention.forward`."""
        read = self.attention_norm(x) if self.pre else x
        mixed = self.attention(read, absolute, relative, bias, rows)  # (B, T, H), or (n, H)
        x = take_rows(x, rows) + self.dropout(mixed)
        if not self.pre:
            x = self.attention_norm(x)
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x) if self.pre else x))
        if not self.pre:
            x = self.feed_forward_norm(x)
        return self.dropout(x)


class Meantime(ClozeModel):
    """MEANTIME.

    Tokens are 0 (padding), items 1…V and the mask token V+1. No positional vector is added to an item; time
    enters through the attention logits alone. A batch has ``timestamps`` beside its ``tokens`` if there is a
    relative kernel, and ``days`` if there is a Day kernel. Each parameter is a setting of the authors'
    code, but ``one_table``, ``relative_term`` and a ``kernel_dropout`` other than ``dropout``.

    Parameters
    ----------
    num_items
        V ≥ 1.
    num_days
        D, rows of each Day table: day indices are 0…D−1.
    max_length
        N, rows of each Pos table. A shorter input is the right end of the window: its last position has row
        N−1.
    hidden_size
        H, a multiple of the number of heads, even if there is a Sin kernel.
    num_blocks
        At least 1.
    absolute
        Dash-separated letters of the absolute kernels: ``d`` Day, ``p`` Pos, ``c`` Con. One head each, in
        this order; a letter may be repeated, and gets its own table each time. May be empty if ``relative``
        is not.
    relative
        The same for the relative kernels: ``s`` Sin, ``e`` Exp, ``l`` Log.
    dropout
        Everywhere, in [0, 1).
    frequency
        f > 1 of the relative kernels.
    time_unit
        τ > 0: gaps are divided by it. The authors fix it to 1 (one second).
    normalization
        ``"pre"`` or ``"post"``.
    head
        ``"dot"`` (tied to the item table) or ``"linear"``.
    head_layer_norm
        Whether the head has a layer norm.
    init_std
        Standard deviation of all weights and tables at the start, the padding row included.
    kernel_dropout
        Dropout on the temporal kernels, drawn once per forward pass and shared by the blocks; None for
        ``dropout``.
    one_table
        Whether repeated absolute kernels read one table, dropped alike, in the place of one each: the control
        for "the same positional embedding in every head". Not an option of the authors' code.
    relative_term
        ``"factored"``: fast, no (B, T, T, H) tensor; equal up to rounding, but for the dropout of relative
        kernels (`lib.models.recommenders.relative_attention`). ``"materialised"``: as the authors compute it.

    Raises
    ------
    ValueError
        For an unknown kernel letter or option, a hidden size the heads do not divide, a size below 1.

    Notes
    -----
    Defaults are the authors' template for MovieLens-1M, in which V = 3416 and D = 1040.
    """

    def __init__(
        self,
        num_items: int,
        *,
        num_days: int = 1,
        max_length: int = 200,
        hidden_size: int = 64,
        num_blocks: int = 2,
        absolute: str = "p-d",
        relative: str = "s-l",
        dropout: float = 0.2,
        frequency: float = 10_000.0,
        time_unit: float = 1.0,
        normalization: str = "pre",
        head: str = "dot",
        head_layer_norm: bool = True,
        init_std: float = 0.02,
        kernel_dropout: float | None = None,
        one_table: bool = False,
        relative_term: str = "factored",
    ) -> None:
        super().__init__()
        self.absolute = kernel_letters(absolute, ABSOLUTE_KERNELS, "absolute")
        self.relative = kernel_letters(relative, RELATIVE_KERNELS, "relative")
        if not self.absolute + self.relative:
            raise ValueError("absolute and relative kernels cannot both be empty: there would be no head")
        check_sizes(num_items=num_items, num_days=num_days, max_length=max_length, num_blocks=num_blocks)
        if relative_term not in ("factored", "materialised"):
            raise ValueError(f"relative_term must be 'factored' or 'materialised', got {relative_term!r}")
        if "s" in self.relative and hidden_size % 2:
            raise ValueError(f"the Sin kernel needs an even hidden_size, got {hidden_size}")
        if not (frequency > 1 and time_unit > 0):
            raise ValueError(f"frequency must be > 1 and time_unit > 0, got {frequency} and {time_unit}")
        check_heads(hidden_size, len(self.absolute + self.relative))
        self.num_items, self.num_days, self.max_length = num_items, num_days, max_length
        self.hidden_size, self.frequency, self.time_unit = hidden_size, frequency, time_unit
        self.kernel_dropout = dropout if kernel_dropout is None else kernel_dropout
        check_probability(self.kernel_dropout, "kernel_dropout")
        self.relative_term = relative_term

        rows = {"d": num_days, "p": max_length, "c": 1}
        self.items = nn.Embedding(num_items + 2, hidden_size)
        letters = dict.fromkeys(self.absolute) if one_table else self.absolute
        self.one_table = one_table
        self.tables = nn.ModuleList(nn.Embedding(rows[letter], hidden_size) for letter in letters)
        self.blocks = nn.ModuleList(
            MeantimeBlock(
                MixedAttention(hidden_size, len(self.absolute), len(self.relative), dropout=dropout),
                hidden_size,
                dropout=dropout,
                normalization=normalization,
            )
            for _ in range(num_blocks)
        )
        self.head = ClozeHead(num_items, hidden_size, kind=head, layer_norm=head_layer_norm)
        self.dropout = Dropout(dropout)
        initialise(self, init_std)

    def hidden(self, batch: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """What the last block gives, at all positions or at some.

        Parameters
        ----------
        batch
            int64 tensors (B, T), left-padded with 0: ``tokens`` (0…V+1), ``timestamps``, ``days``.
        rows
            int64 (n,), positions of the flattened (B, T): the second half of the last block computes no
            others.

        Returns
        -------
        (B, T, H), or (n, H) with ``rows``.

        Raises
        ------
        ValueError
            For T > ``max_length``, a token or day out of its table, a missing or misshapen tensor.
        """
        self._check(batch)
        tokens = batch["tokens"]  # (B, T)
        x = self.dropout(self.items(tokens))  # (B, T, H): no position, no time is added to the items
        absolute = self._absolute_kernels(batch)  # La tensors (B or 1, T, H)
        relative = self._relative_terms(batch, x.dtype)  # Lr terms, which give logits (B, T, T)
        bias = padding_bias(tokens, x.dtype)  # (B, 1, 1, T)
        for block in self.blocks[:-1]:
            x = block(x, absolute, relative, bias)  # (B, T, H)
        return self.blocks[-1](x, absolute, relative, bias, rows)  # (B, T, H), or (n, H)

    def _check(self, batch: Mapping[str, Tensor]) -> None:
        check_tokens(batch["tokens"], max_length=self.max_length)
        if self.relative:
            check_beside(batch, "timestamps")
        if "d" in self.absolute:
            check_beside(batch, "days")
            check_range("days", batch["days"], self.num_days)
        check_range("tokens", batch["tokens"], self.num_items + 2)

    def _absolute_kernels(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        batch_size, length = batch["tokens"].shape
        letters = dict.fromkeys(self.absolute) if self.one_table else self.absolute
        kernels = []
        for letter, table in zip(letters, self.tables, strict=True):
            if letter == "d":
                kernel = table(batch["days"])  # (B, T, H)
            else:  # the rows of the last T positions, or T times the one row
                kernel = table.weight[-length:].expand(length, -1)[None]  # (1, T, H)
            if self.training and self.kernel_dropout:
                kernel = drop(kernel.expand(batch_size, -1, -1), self.kernel_dropout)  # (B, T, H)
            kernels.append(kernel)
        if self.one_table:  # each head reads the table of its letter
            of_letter = dict(zip(letters, kernels, strict=True))
            return [of_letter[letter] for letter in self.absolute]
        return kernels

    def _relative_terms(self, batch: Mapping[str, Tensor], dtype: torch.dtype) -> Terms:
        if not self.relative:
            return []
        return relative_terms(
            self.relative,
            batch["timestamps"],
            (self.hidden_size, self.frequency, self.time_unit),
            dtype=dtype,
            dropout=self.kernel_dropout if self.training else 0.0,
            materialised=self.relative_term == "materialised",
        )

    def attention_weights(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Attention probabilities (B, h, T, T) of every block; absolute heads come first, in order."""
        weights = []

        def keep(attention: MixedAttention, inputs: tuple) -> None:
            weights.append(attention.weights(*inputs[:4]))

        with hooked((block.attention, "input", keep) for block in self.blocks):
            self(batch, last_rows(batch["tokens"]))
        return weights

    @classmethod
    def from_authors(
        cls,
        source: Source,
        *,
        absolute: str = "p-d",
        relative: str = "s-l",
        **config,
    ) -> Meantime:
        """The model of a checkpoint that the authors' program wrote, in evaluation mode and the file's dtype.

        Parameters
        ----------
        source
            Path of the ``.pth`` file, or what it holds: see
            `lib.models.recommenders.meantime_checkpoints.read_state`.
        absolute, relative
            The kernels, which the file does not name; their numbers are checked against it.
        config
            What else the file cannot tell: ``dropout``, ``frequency``, ``normalization``, ``max_length`` if
            there is no Pos kernel, and so on. ``relative_term`` is ``"materialised"`` unless given, since the
            weights were trained with the float32 kernels as that path computes them.

        Raises
        ------
        ValueError
            If it is no such checkpoint: names the first missing, unexpected, misshapen or mistyped keys,
            or a weight that is not finite.
        """
        letters = (
            kernel_letters(absolute, ABSOLUTE_KERNELS, "absolute"),
            kernel_letters(relative, RELATIVE_KERNELS, "relative"),
        )
        with opened(source) as held:
            state = read_state(held)
            sizes = meantime_sizes(state, *letters)
            pop_tied_table(state)
            options = {"relative_term": "materialised", **sizes, **config}
            model = cls(absolute=absolute, relative=relative, **options)
            load_authors(model, model.authors_layout(), state, "MEANTIME")
        return model.eval()

    authors_layout = meantime_layout
