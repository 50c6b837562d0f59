"""MEANTIME: self-attention in which every head has its own kind of temporal embedding.

Source: S. M. Cho, E. Park and S. Yoo, "MEANTIME: Mixture of Attention Mechanisms with Multi-temporal
Embeddings for Sequential Recommendation", RecSys 2020, doi 10.1145/3383313.3412216, arXiv 2008.08273; details
by the authors' code (github.com/SungMinCho/MEANTIME, commit a9ca2e7; no licence, nothing of it is copied).

What is not here: the kernels' values (`lib.models.recommenders.temporal_kernels`), the relative logits
(`lib.models.recommenders.relative_attention`), training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib.models.recommenders.attention import padding_bias
from lib.models.recommenders.authors import (
    BLOCK,
    Slot,
    cloze_block_layout,
    cloze_head_layout,
    cloze_head_options,
    count,
    linear,
    load_authors,
    part,
    pop_tied_table,
    read_state,
    require,
    rows_of_linear,
    whole,
)
from lib.models.recommenders.cloze import ClozeModel
from lib.models.recommenders.dropout import Dropout, check_probability
from lib.models.recommenders.dropout import dropout as drop
from lib.models.recommenders.mixed_attention import MeantimeBlock, MixedAttention
from lib.models.recommenders.parts import (
    ClozeHead,
    check_beside,
    check_heads,
    check_range,
    check_sizes,
    check_tokens,
    initialise,
)
from lib.models.recommenders.relative_attention import GapGrid, GridTerm, MaterialisedTerm, SinTerm
from lib.models.recommenders.temporal_kernels import RELATIVE_KERNELS

ABSOLUTE_KERNELS = ("d", "p", "c")


class Meantime(ClozeModel):
    """MEANTIME.

    Tokens are 0 (padding), items 1…V and the mask token V+1. No positional vector is added to an item; time
    enters through the attention logits alone. A batch has ``timestamps`` beside its ``tokens`` if there is a
    relative kernel, and ``days`` if there is a Day kernel.

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
        self.tables = nn.ModuleList(nn.Embedding(rows[letter], hidden_size) for letter in self.absolute)
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

    def attention_weights(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Attention probabilities (B, h, T, T) of every block; absolute heads come first, in order."""
        x, absolute, relative, bias = self._inputs(batch)
        weights = []
        for block in self.blocks:
            weights.append(block.attention.weights(block.attention_input(x), absolute, relative, bias))
            x = block(x, absolute, relative, bias)
        return weights

    def _inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor], list, Tensor]:
        tokens = batch["tokens"]
        check_tokens(tokens, max_length=self.max_length)
        needed = [("timestamps", self.relative), ("days", "d" in self.absolute)]
        for name in (name for name, wanted in needed if wanted):
            check_beside(batch, name)
        check_range("tokens", tokens, self.num_items + 2)
        x = self.dropout(self.items(tokens))
        absolute = self._absolute(batch)
        relative = self._relative(batch["timestamps"], x.dtype) if self.relative else []
        return x, absolute, relative, padding_bias(tokens, x.dtype)

    def _absolute(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        batch_size, length = batch["tokens"].shape
        kernels = []
        for letter, table in zip(self.absolute, self.tables, strict=True):
            if letter == "d":
                check_range("days", batch["days"], self.num_days)
                kernel = table(batch["days"])
            else:
                kernel = table.weight[-length:].expand(length, -1)[None]
            if self.training and self.kernel_dropout:
                kernel = drop(kernel.expand(batch_size, -1, -1), self.kernel_dropout)
            kernels.append(kernel)
        return kernels

    def _relative(self, timestamps: Tensor, dtype: torch.dtype) -> list:
        dropout = self.kernel_dropout if self.training else 0.0
        shape = (self.hidden_size, self.frequency)
        if self.relative_term == "materialised":
            return [
                MaterialisedTerm(letter, timestamps, *shape, self.time_unit, dtype=dtype, dropout=dropout)
                for letter in self.relative
            ]
        options = (timestamps, *shape, self.time_unit)
        grids = {letter: GapGrid(letter, *options, dtype=dtype) for letter in set(self.relative) - {"s"}}
        terms = []
        for letter in self.relative:
            keep = None
            if dropout:
                keep = drop(timestamps.new_ones(*timestamps.shape, self.hidden_size, dtype=dtype), dropout)
            if letter == "s":
                terms.append(SinTerm(*options, dtype=dtype, keep=keep))
            else:
                terms.append(GridTerm(grids[letter], keep))
        return terms

    @classmethod
    def from_authors(
        cls,
        source: str | os.PathLike | Mapping[str, Tensor],
        *,
        absolute: str = "p-d",
        relative: str = "s-l",
        **config,
    ) -> Meantime:
        """The model of a checkpoint that the authors' program wrote, in evaluation mode and the file's dtype.

        Parameters
        ----------
        source
            Path of the ``.pth`` file, or what it holds: see `lib.models.recommenders.authors.read_state`.
        absolute, relative
            The kernels, which the file does not name; their numbers are checked against it.
        config
            What else the file cannot tell: ``dropout``, ``frequency``, ``normalization``, ``max_length`` if
            there is no Pos kernel, and so on. ``relative_term`` is ``"materialised"`` unless given, since the
            weights were trained with the float32 kernels as that path computes them.

        Raises
        ------
        ValueError
            If it is no such checkpoint: names the first missing, unexpected or misshapen keys.
        """
        state = read_state(source)
        table = "absolute_kernel_embeddings_list.{}.emb.weight"
        bias = BLOCK.format(0) + ".attention.rel_position_bias"
        require(state, ["token_embedding.emb.weight", bias, "head.out.0.weight"], "MEANTIME")
        letters = kernel_letters(absolute, ABSOLUTE_KERNELS, "absolute")
        found = count(state, table), state[bias].shape[1]
        wanted = len(letters), len(kernel_letters(relative, RELATIVE_KERNELS, "relative"))
        if found != wanted:
            raise ValueError(
                f"the checkpoint has {found[0]} absolute and {found[1]} relative heads, "
                f"absolute={absolute!r} and relative={relative!r} name {wanted[0]} and {wanted[1]}"
            )
        for k, letter in enumerate(letters):
            rows = state[table.format(k)].shape[0]
            if letter != "c":
                config.setdefault("num_days" if letter == "d" else "max_length", rows)
        pop_tied_table(state)
        items = state["token_embedding.emb.weight"]
        config = {"relative_term": "materialised", **config}
        model = cls(
            items.shape[0] - 2,
            hidden_size=items.shape[1],
            num_blocks=count(state, BLOCK + "."),
            absolute=absolute,
            relative=relative,
            **cloze_head_options(state),
            **config,
        )
        load_authors(model, model._authors_layout(), state, "MEANTIME")
        return model.eval()

    def _authors_layout(self) -> dict[str, Slot]:
        layout = {"token_embedding.emb.weight": whole("items.weight")}
        for k in range(len(self.absolute)):
            layout[f"absolute_kernel_embeddings_list.{k}.emb.weight"] = whole(f"tables.{k}.weight")
        for b in range(len(self.blocks)):
            layout |= self._authors_block(BLOCK.format(b), f"blocks.{b}")
        return layout | cloze_head_layout(self.head.kind, isinstance(self.head.norm, nn.LayerNorm))

    def _authors_block(self, theirs: str, ours: str) -> dict[str, Slot]:
        size, heads = self.hidden_size, len(self.absolute + self.relative)
        a, o = f"{theirs}.attention", f"{ours}.attention"
        layout = {f"{a}.rel_position_bias": part(f"{o}.relative_query", None, slice(None), None)}
        for k in range(3):
            rows = slice(k * size, (k + 1) * size)
            layout |= rows_of_linear(f"{a}.content_linear_layers.{k}", f"{o}.content", rows)
        for k in range(len(self.absolute)):
            query, key = slice(0, size // heads), slice(size // heads, None)
            layout |= rows_of_linear(f"{a}.abs_position_query_linear_layers.{k}", f"{o}.absolute.{k}", query)
            layout |= rows_of_linear(f"{a}.abs_position_key_linear_layers.{k}", f"{o}.absolute.{k}", key)
        for k in range(len(self.relative)):
            layout |= linear(f"{a}.rel_position_key_linear_layers.{k}", f"{o}.relative.{k}")
        return layout | cloze_block_layout(theirs, ours)


def kernel_letters(kinds: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The letters of a dash-separated string, e.g. ``"p-d"``; ``""`` has none.

    Raises
    ------
    ValueError
        For a letter that is not among ``known``.
    """
    letters = tuple(kinds.split("-")) if kinds else ()
    for letter in letters:
        if letter not in known:
            raise ValueError(
                f"{what} kernels are {', '.join(known)}, joined by dashes; got {letter!r} in {kinds!r}"
            )
    return letters
