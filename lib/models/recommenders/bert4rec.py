"""BERT4Rec (Sun et al., CIKM 2019, arXiv 1904.06690) as the MEANTIME authors train it.

Details by their code (github.com/SungMinCho/MEANTIME, commit a9ca2e7; no licence, nothing of it is copied).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lib.inspection import hooked
from lib.models.authors import Source, opened
from lib.models.recommenders.cloze import ClozeHead, ClozeModel
from lib.models.recommenders.dot_product_attention import (
    attend,
    attention_weights,
    merge_heads,
    padding_bias,
    split_heads,
)
from lib.models.recommenders.dropout import Dropout
from lib.models.recommenders.meantime_checkpoints import load_authors, read_state
from lib.models.recommenders.meantime_layouts import bert4rec_layout, bert4rec_sizes, pop_tied_table
from lib.models.recommenders.sequential_parts import (
    FeedForward,
    check_heads,
    check_normalization,
    check_range,
    check_sizes,
    check_tokens,
    initialise,
    last_rows,
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
        query, key, value = self._projections(x)  # (B, h, T, d) each
        mixed = attend(query, key, value, bias, self.dropout)  # (B, h, T, d)
        return self.output(take_rows(merge_heads(mixed), rows))  # (B, T, H), or (n, H)

    def weights(self, x: Tensor, bias: Tensor) -> Tensor:
        """The attention probabilities (B, h, T, T), before dropout."""
        query, key, _ = self._projections(x)
        return attention_weights(query, key, bias)

    def _projections(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(split_heads(part, self.num_heads) for part in self.projections(x).chunk(3, dim=-1))


class BertBlock(nn.Module):
    """Attention and feed-forward f with residuals, ``post``: LN(x + drop(f(x))); ``pre``: x + drop(f(LN(x))).

    There is no LN after the last block.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float, normalization: str) -> None:
        super().__init__()
        check_normalization(normalization)
        self.pre = normalization == "pre"
        self.attention = SelfAttention(hidden_size, num_heads, dropout=dropout)
        self.feed_forward = FeedForward(hidden_size, inner_dropout=0.0)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, T, H) to (B, T, H), or to (n, H) for n ``rows``."""
        mixed = self.attention(self.attention_norm(x) if self.pre else x, bias, rows)
        x = take_rows(x, rows) + self.dropout(mixed)
        if self.pre:
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class BERT4Rec(ClozeModel):
    """BERT4Rec (Sun et al., CIKM 2019) as the MEANTIME authors train it.

    x = dropout(LN(E[tokens] + P)), blocks, the cloze head of MEANTIME. Against the original program
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
    normalization
        ``"post"`` or ``"pre"``, the authors' ``--residual_ln_type``.
    head, head_layer_norm
        See `lib.models.recommenders.cloze.ClozeHead`.
    init_std
        Standard deviation of all weights and tables at the start.

    Raises
    ------
    ValueError
        For sizes below 1, heads that do not divide H, or an unknown option.
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
        normalization: str = "post",
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
            BertBlock(hidden_size, num_heads, dropout=dropout, normalization=normalization)
            for _ in range(num_blocks)
        )
        self.head = ClozeHead(num_items, hidden_size, kind=head, layer_norm=head_layer_norm)
        self.dropout = Dropout(dropout)
        initialise(self, init_std)

    def hidden(self, batch: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """What the last block gives, as `lib.models.recommenders.meantime.Meantime.hidden`.

        ``batch`` has ``tokens`` (B, T), int64, 0…V+1, left-padded with 0.

        Raises
        ------
        ValueError
            For T > ``max_length`` or a token out of the table.
        """
        tokens = batch["tokens"]  # (B, T)
        check_tokens(tokens, max_length=self.max_length)
        check_range("tokens", tokens, self.num_items + 2)
        positions = self.positions.weight[-tokens.shape[1] :]  # (T, H)
        x = self.dropout(self.norm(self.items(tokens) + positions))  # (B, T, H)
        bias = padding_bias(tokens, x.dtype)  # (B, 1, 1, T)
        for block in self.blocks[:-1]:
            x = block(x, bias)  # (B, T, H)
        return self.blocks[-1](x, bias, rows)  # (B, T, H), or (n, H)

    def attention_weights(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Attention probabilities (B, h, T, T) of every block."""
        weights = []

        def keep(attention: SelfAttention, inputs: tuple) -> None:
            weights.append(attention.weights(*inputs[:2]))

        with hooked((block.attention, "input", keep) for block in self.blocks):
            self(batch, last_rows(batch["tokens"]))
        return weights

    @classmethod
    def from_authors(cls, source: Source, **config) -> BERT4Rec:
        """The model of a checkpoint that the MEANTIME authors' program wrote, in evaluation mode.

        Parameters
        ----------
        source
            Path of the ``.pth`` file, or what it holds.
        config
            What the file cannot tell: ``num_heads``, ``dropout``, ``normalization``.

        Raises
        ------
        ValueError
            If it is no such checkpoint: names the first missing, unexpected, misshapen or mistyped keys,
            or a weight that is not finite.
        """
        with opened(source) as held:
            state = read_state(held)
            sizes = bert4rec_sizes(state)
            pop_tied_table(state)
            model = cls(**sizes, **config)
            load_authors(model, model.authors_layout(), state, "BERT4Rec")
        return model.eval()

    authors_layout = bert4rec_layout
