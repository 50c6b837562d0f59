"""SASRec (Kang and McAuley, ICDM 2018) and TiSASRec (Li, Wang and McAuley, WSDM 2020).

Both as the MEANTIME authors train them (github.com/SungMinCho/MEANTIME, commit a9ca2e7; no licence, nothing
of it is copied), which is not everywhere what the models' own authors published: each class says where it
differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.authors import Source, opened
from lib.models.recommenders.dot_product_attention import attend, causal_bias, merge_heads, split_heads
from lib.models.recommenders.dropout import Dropout
from lib.models.recommenders.meantime_checkpoints import load_authors, read_state, save_authors
from lib.models.recommenders.meantime_layouts import (
    sasrec_layout,
    sasrec_sizes,
    tisasrec_layout,
    tisasrec_sizes,
)
from lib.models.recommenders.sequential_parts import (
    check_beside,
    check_candidates,
    check_heads,
    check_range,
    check_sizes,
    check_tokens,
    initialise,
    labelled_rows,
    take_rows,
)


class SASBlock(nn.Module):
    """Block of SASRec: queries from LN(x), keys and values from x itself, no output projection.

    y = LN₁(x) + attention; x ← LN₂(y) + drop(W₂ drop(ReLU(W₁ LN₂(y)))).
    """

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        check_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.outer = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, context: TimeContext | None = None) -> Tensor:
        """(B, T, H) and an additive mask (B, 1, T, T) to (B, T, H); ``context`` as TiSASRec needs it."""
        residual = self.attention_norm(x)
        query = split_heads(self.query(residual), self.num_heads)
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(x).chunk(2, dim=-1))
        if context is None:
            mixed = attend(query, key, value, bias, self.dropout)
        else:
            mixed = context.attend(query, key, value, bias, self.dropout)
        y = self.feed_forward_norm(residual + merge_heads(mixed))
        return y + self.dropout(self.outer(self.dropout(F.relu(self.inner(y)))))


class SASRec(nn.Module):
    """SASRec (Kang and McAuley, ICDM 2018) as the MEANTIME authors train it.

    Against the original program (github.com/kang205/SASRec): the item embedding is not multiplied by √H,
    padded positions are not zeroed after each block, layer norms have eps 1e−5 (1e−8 there), 2 heads (1
    there).

    Parameters
    ----------
    num_items
        V. Tokens are 0 (padding) and 1…V; the table keeps a row V+1, unused, as the authors' does.
    max_length, hidden_size, num_blocks, num_heads, dropout, init_std
        As for `BERT4Rec`.
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
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_sizes(num_items=num_items, max_length=max_length, num_blocks=num_blocks)
        self.num_items, self.max_length, self.hidden_size = num_items, max_length, hidden_size
        self.items = nn.Embedding(num_items + 2, hidden_size)
        self.blocks = nn.ModuleList(
            SASBlock(hidden_size, num_heads, dropout=dropout) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)
        self._add_tables()
        initialise(self, init_std)

    def _add_tables(self) -> None:
        self.positions = nn.Embedding(self.max_length, self.hidden_size)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states (B, T, H) of int64 ``tokens`` (B, T), left-padded with 0.

        The state at a real position depends on that and earlier positions only. Padded positions, which
        nothing reads, attend to all positions alike.

        Raises
        ------
        ValueError
            For T > ``max_length`` or tokens outside 0…V+1.
        """
        tokens = batch["tokens"]
        check_tokens(tokens, max_length=self.max_length)
        check_range("tokens", tokens, self.num_items + 2)
        x, context = self._inputs(batch)
        bias = causal_bias(tokens, x.dtype)
        for block in self.blocks:
            x = block(x, bias, context)
        return self.norm(x)

    def _inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, TimeContext | None]:
        tokens = batch["tokens"]
        return self.dropout(self.items(tokens) + self.positions.weight[-tokens.shape[1] :]), None

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Binary cross-entropy of the next item (``labels``) against one of the ``negatives`` per position.

        −log σ(s⁺) − log(1 − σ(s⁻)), mean over positions with ``labels`` > 0. The authors add 1e−24 inside the
        logarithms; the softplus form used here needs no such guard. In exact arithmetic it differs for scores
        beyond ±50 only; in float32 their 1 − σ(s⁻) is coarse from s⁻ = 15 on and 0 from 17 on, where the loss
        is 55.3 and has no gradient, and softplus gives s⁻.

        Raises
        ------
        ValueError
            As `forward`; for labels or negatives of another shape or outside 0…V; if no position has a
            label.
        """
        rows = labelled_rows(batch, self.num_items)
        check_beside(batch, "negatives")
        check_range("negatives", batch["negatives"], self.num_items + 1)
        hidden = take_rows(self(batch), rows)
        pairs = torch.stack([batch["labels"], batch["negatives"]], dim=-1).flatten(0, 1)[rows]
        positive, negative = torch.einsum("nh,nch->cn", hidden, self.items(pairs))
        return (F.softplus(-positive) + F.softplus(negative)).mean()

    def scores(self, batch: Mapping[str, Tensor], candidates: Tensor | None = None) -> Tensor:
        """⟨last hidden, E[item]⟩: (B, C) for ``candidates`` (B, C), else (B, V), column v−1 = item v.

        Raises
        ------
        ValueError
            As `forward`; for candidates outside 0…V.
        """
        hidden = self(batch)[:, -1]
        if candidates is None:
            return hidden @ self.items.weight[1 : self.num_items + 1].T
        check_candidates(candidates, rows=len(hidden), num_items=self.num_items)
        return torch.einsum("bh,bch->bc", hidden, self.items(candidates))

    @classmethod
    def from_authors(cls, source: Source, **config):
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
            If it is no such checkpoint: names the first missing, unexpected, misshapen or mistyped keys,
            or a weight that is not finite.
        """
        with opened(source) as held:
            state = read_state(held)
            model = cls(**cls._authors_sizes(state), **config)
            load_authors(model, model.authors_layout(), state, cls.__name__)
        return model.eval()

    def to_authors(self) -> dict[str, Tensor]:
        """The weights under the authors' keys: the inverse of `from_authors`."""
        return save_authors(self, self.authors_layout())

    _authors_sizes = staticmethod(sasrec_sizes)
    authors_layout = sasrec_layout


class TimeContext:
    """What TiSASRec's attention adds to SASRec's: positions and intervals, in keys and in values.

    An interval is one of at most k+1 numbers, so neither R^K_ij nor R^V_ij is looked up per pair: queries
    meet the table of the U intervals that occur in the batch and each pair gathers its product; attention
    weights are summed per interval before they meet the value table. O(B·h·T·(T+U)) memory instead of
    O(B·T²·H).

    Dropout: the authors drop elements of R^K_ij and R^V_ij pair by pair. Here one mask per query stands for
    all its keys, drawn once per forward pass and shared by the blocks: each element has the same
    distribution, those of one query are tied.

    Parameters
    ----------
    intervals
        int64 (B, T, T) in 0…k.
    key_position, value_position
        (T, H) or (B, T, H).
    key_interval, value_interval
        Tables (k+1, H).
    key_keep, value_keep
        Dropout masks (B, T, H) of the interval vectors, or None.
    """

    def __init__(
        self,
        intervals: Tensor,
        *,
        key_position: Tensor,
        value_position: Tensor,
        key_interval: Tensor,
        value_interval: Tensor,
        key_keep: Tensor | None = None,
        value_keep: Tensor | None = None,
    ) -> None:
        occurs = torch.zeros(key_interval.shape[0], dtype=torch.bool, device=intervals.device)
        occurs[intervals.flatten()] = True
        self.index = (occurs.cumsum(0) - 1)[intervals]
        rows = occurs.nonzero().squeeze(1)
        self.key_interval, self.value_interval = key_interval[rows], value_interval[rows]
        self.key_position, self.value_position = key_position, value_position
        self.key_keep, self.value_keep = key_keep, value_keep

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: nn.Module) -> Tensor:
        """Mixed values (B, h, T, d) of queries, keys and values (B, h, T, d), under an additive mask.

        S_ij = q_i·(k_j + P^K_j + R^K_ij)/√d; o_i = Σ_j A_ij (v_j + P^V_j + R^V_ij).
        """
        batch, heads, length, size = query.shape
        index = self.index[:, None].expand(-1, heads, -1, -1)
        by_interval = self._heads(self.key_interval, heads).mT
        asked = query if self.key_keep is None else query * split_heads(self.key_keep, heads)
        key = key + self._heads(self.key_position, heads)
        logits = query @ key.mT + (asked @ by_interval).gather(-1, index)
        weights = dropout(torch.softmax(logits / math.sqrt(size) + bias, dim=-1))
        summed = weights.new_zeros(batch, heads, length, by_interval.shape[-1]).scatter_add(
            -1, index, weights
        )
        timed = summed @ self._heads(self.value_interval, heads)
        if self.value_keep is not None:
            timed = timed * split_heads(self.value_keep, heads)
        return weights @ (value + self._heads(self.value_position, heads)) + timed

    @staticmethod
    def _heads(table: Tensor, heads: int) -> Tensor:
        return table.unflatten(-1, (heads, -1)).transpose(-2, -3)


class TiSASRec(SASRec):
    """TiSASRec (Li, Wang and McAuley, WSDM 2020) as the MEANTIME authors train it.

    SASRec without the positions in its input; positions and clipped time intervals enter keys and values of
    the attention. Against the original program (github.com/JiachengLi1995/TiSASRec): clip 2048 (256 there), 2
    heads (1 there), no L2 on the embeddings.

    Parameters
    ----------
    max_interval
        k ≥ 1: larger intervals count as k.
    num_items, max_length, hidden_size, num_blocks, num_heads, dropout, init_std
        As for `SASRec`.

    Notes
    -----
    ``timestamps`` of a batch are integers in the unit the intervals should have. The paper's are personal:
    r_i = round((t_i − t_min)/τ)+1 with τ the user's smallest non-zero gap, and 0 at padding.
    """

    def __init__(self, num_items: int, *, max_interval: int = 2048, **config) -> None:
        check_sizes(max_interval=max_interval)
        self.max_interval = max_interval  # before the tables, which the parent makes, need it
        super().__init__(num_items, **config)

    def _add_tables(self) -> None:
        for name, rows in (("position", self.max_length), ("interval", self.max_interval + 1)):
            for use in ("key", "value"):
                self.add_module(f"{use}_{name}", nn.Embedding(rows, self.hidden_size))

    def _inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, TimeContext]:
        tokens = batch["tokens"]
        check_beside(batch, "timestamps")
        x = self.dropout(self.items(tokens))
        stamps = batch["timestamps"]
        intervals = (stamps[:, :, None] - stamps[:, None, :]).abs_().clamp_(max=self.max_interval)
        positions = {
            f"{use}_position": self.dropout(
                self.get_submodule(f"{use}_position").weight[-tokens.shape[1] :].expand(*x.shape)
            )
            for use in ("key", "value")
        }
        keeps = {}
        if self.training and self.dropout.p:
            keeps = {f"{use}_keep": self.dropout(torch.ones_like(x)) for use in ("key", "value")}
        return x, TimeContext(
            intervals,
            **positions,
            **keeps,
            key_interval=self.key_interval.weight,
            value_interval=self.value_interval.weight,
        )

    _authors_sizes = staticmethod(tisasrec_sizes)
    authors_layout = tisasrec_layout
