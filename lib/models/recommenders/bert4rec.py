"""BERT4Rec (Sun et al., CIKM 2019, arXiv 1904.06690) as the MEANTIME authors train it.

Details by their code (github.com/SungMinCho/MEANTIME, commit a9ca2e7; no licence, nothing of it is copied).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from lib.models.recommenders.attention import (
    attend,
    attention_weights,
    merge_heads,
    padding_bias,
    split_heads,
)
from lib.models.recommenders.authors import (
    BLOCK,
    Slot,
    authors_sizes,
    cloze_block_layout,
    cloze_head_layout,
    cloze_head_options,
    linear,
    load_authors,
    pop_tied_table,
    projections_layout,
    read_state,
    require,
    whole,
)
from lib.models.recommenders.cloze import ClozeModel
from lib.models.recommenders.dropout import Dropout
from lib.models.recommenders.parts import (
    ClozeHead,
    FeedForward,
    check_heads,
    check_range,
    check_sizes,
    check_tokens,
    initialise,
    take_rows,
)


class SelfAttention(nn.Module):
    """Multi-head self-attention with an output projection, as BERT4Rec has it."""

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        check_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.dropout = Dropout(dropout)
        self.projections = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, T, H) and an additive mask to (B, T, H), or to (n, H) for n ``rows``."""
        query, key, value = (
            split_heads(part, self.num_heads) for part in self.projections(x).chunk(3, dim=-1)
        )
        mixed = attend(query, key, value, bias, self.dropout)
        return self.output(take_rows(merge_heads(mixed), rows))


class BertBlock(nn.Module):
    """x ← LN(x + drop(attention(x))), then x ← LN(x + drop(feed-forward(x)))."""

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden_size, num_heads, dropout=dropout)
        self.feed_forward = FeedForward(hidden_size, inner_dropout=0.0)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), or to (n, H) for n ``rows``."""
        x = self.attention_norm(take_rows(x, rows) + self.dropout(self.attention(x, bias, rows)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class BERT4Rec(ClozeModel):
    """BERT4Rec (Sun et al., CIKM 2019) as the MEANTIME authors train it.

    x = dropout(LN(E[tokens] + P)), post-LN blocks, the cloze head of MEANTIME. Against the original program
    (github.com/FeiSun/BERT4Rec) the network is the same; its training is not (see the chapter).

    Parameters
    ----------
    num_items
        V. Tokens are 0 (padding), 1…V, and the mask token V+1.
    max_length
        N, rows of the position table. A shorter input is the right end of the window.
    hidden_size, num_blocks, num_heads
        H (a multiple of the heads), at least 1 block.
    dropout
        In [0, 1).
    head, head_layer_norm
        See `lib.models.recommenders.parts.ClozeHead`.
    init_std
        Standard deviation of all weights and tables at the start.

    Raises
    ------
    ValueError
        For sizes below 1 or heads that do not divide H.
    """

    def __init__(
        self,
        num_items: int,
        *,
        max_length: int = 200,
        hidden_size: int = 64,
        num_blocks: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
        head: str = "dot",
        head_layer_norm: bool = True,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_sizes(num_items=num_items, max_length=max_length, num_blocks=num_blocks)
        self.num_items, self.max_length, self.hidden_size = num_items, max_length, hidden_size
        self.items = nn.Embedding(num_items + 2, hidden_size)
        self.positions = nn.Embedding(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.blocks = nn.ModuleList(
            BertBlock(hidden_size, num_heads, dropout=dropout) for _ in range(num_blocks)
        )
        self.head = ClozeHead(num_items, hidden_size, kind=head, layer_norm=head_layer_norm)
        self.dropout = Dropout(dropout)
        initialise(self, init_std)

    def attention_weights(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Attention probabilities (B, h, T, T) of every block."""
        x, bias = self._inputs(batch)
        weights = []
        for block in self.blocks:
            query, key, _ = block.attention.projections(x).chunk(3, dim=-1)
            query, key = (split_heads(part, block.attention.num_heads) for part in (query, key))
            weights.append(attention_weights(query, key, bias))
            x = block(x, bias)
        return weights

    def _inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        tokens = batch["tokens"]
        check_tokens(tokens, max_length=self.max_length)
        check_range("tokens", tokens, self.num_items + 2)
        x = self.dropout(self.norm(self.items(tokens) + self.positions.weight[-tokens.shape[1] :]))
        return x, padding_bias(tokens, x.dtype)

    @classmethod
    def from_authors(cls, source: str | os.PathLike | Mapping[str, Tensor], **config) -> BERT4Rec:
        """The model of a checkpoint that the MEANTIME authors' program wrote, in evaluation mode.

        Parameters
        ----------
        source
            Path of the ``.pth`` file, or what it holds.
        config
            What the file cannot tell: ``num_heads``, ``dropout``.

        Raises
        ------
        ValueError
            If it is no such checkpoint: names the first missing, unexpected or misshapen keys.
        """
        state = read_state(source)
        require(state, ["token_embedding.emb.weight", "positional_embedding.emb.weight"], "BERT4Rec")
        pop_tied_table(state)
        model = cls(**authors_sizes(state), **cloze_head_options(state), **config)
        load_authors(model, model._authors_layout(), state, "BERT4Rec")
        return model.eval()

    def _authors_layout(self) -> dict[str, Slot]:
        layout = {
            "token_embedding.emb.weight": whole("items.weight"),
            "positional_embedding.emb.weight": whole("positions.weight"),
            **linear("ln", "norm"),
            **cloze_head_layout(self.head.kind, isinstance(self.head.norm, nn.LayerNorm)),
        }
        for b in range(len(self.blocks)):
            theirs, ours = BLOCK.format(b), f"blocks.{b}"
            layout |= projections_layout(theirs, f"{ours}.attention.projections", self.hidden_size)
            layout |= cloze_block_layout(theirs, ours)
        return layout
