"""MARank (Yu et al., AAAI 2019): attention over the last few items, pairwise loss.

As the MEANTIME authors train it (github.com/SungMinCho/MEANTIME, commit a9ca2e7; no licence, nothing of it is
copied).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.authors import Source, opened
from lib.models.recommenders.dropout import Dropout
from lib.models.recommenders.meantime_checkpoints import load_authors, read_state, save_authors
from lib.models.recommenders.meantime_layouts import marank_layout, marank_sizes
from lib.models.recommenders.sequential_parts import check_candidates, check_range, check_sizes, initialise


class PooledAttention(nn.Module):
    """softmax_t(σ(w·tanh(W_i drop(x_t) + W_u drop(u))))·x.

    The sigmoid bounds the ratio of two weights by e.

    Parameters
    ----------
    hidden_size
        H.
    dropout
        In [0, 1).
    with_user
        Whether there is a second input u.
    """

    def __init__(self, hidden_size: int, *, dropout: float, with_user: bool = True) -> None:
        super().__init__()
        self.item = nn.Linear(hidden_size, hidden_size)
        self.user = nn.Linear(hidden_size, hidden_size) if with_user else None
        self.out = nn.Linear(hidden_size, 1)
        self.dropout = Dropout(dropout)

    def forward(self, items: Tensor, user: Tensor | None = None) -> Tensor:
        """Items (B, T, H) and user (B, H) to (B, H)."""
        hidden = self.item(self.dropout(items))
        if self.user is not None:
            hidden = hidden + self.user(self.dropout(user))[:, None]
        weights = torch.softmax(torch.sigmoid(self.out(torch.tanh(hidden))), dim=1)
        return (weights * items).sum(dim=1)


class ResidualLayer(nn.Module):
    """h ← ReLU(W drop(h) + b + h)."""

    def __init__(self, hidden_size: int, *, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) to (…, H)."""
        return F.relu(self.linear(self.dropout(x)) + x)


class MARank(nn.Module):
    """MARank as the MEANTIME authors train it.

    Against the original program (github.com/voladorlu/MARank): dropout 0.2 (0.5 there), no L2 on the
    embeddings.

    Parameters
    ----------
    num_items, num_users
        V and U: items are 1…V, users 1…U.
    context_length
        Items that are read, the newest last; shorter histories repeat their last item.
    hidden_size
        H.
    num_attention_layers
        Residual layers of user and items, each followed by an attention pooling.
    num_linear_layers
        Residual layers after the poolings are merged.
    dropout
        In [0, 1).
    init_std
        Standard deviation of all weights and tables at the start.

    Raises
    ------
    ValueError
        For a size below 1.
    """

    def __init__(
        self,
        num_items: int,
        num_users: int,
        *,
        context_length: int = 6,
        hidden_size: int = 64,
        num_attention_layers: int = 2,
        num_linear_layers: int = 2,
        dropout: float = 0.2,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_sizes(
            num_items=num_items,
            num_users=num_users,
            context_length=context_length,
            hidden_size=hidden_size,
            num_attention_layers=num_attention_layers,
            num_linear_layers=num_linear_layers,
        )
        self.num_items, self.num_users, self.context_length = num_items, num_users, context_length
        self.user_latent = nn.Embedding(num_users + 1, hidden_size)
        self.item_latent = nn.Embedding(num_items + 1, hidden_size)
        self.item_context = nn.Embedding(num_items + 1, hidden_size)

        def residuals(layers: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualLayer(hidden_size, dropout=dropout) for _ in range(layers))

        self.user_residuals = residuals(num_attention_layers)
        self.item_residuals = residuals(num_attention_layers)
        self.output_residuals = residuals(num_linear_layers)
        self.first_pooling = PooledAttention(hidden_size, dropout=dropout)
        self.poolings = nn.ModuleList(
            PooledAttention(hidden_size, dropout=dropout) for _ in range(num_attention_layers)
        )
        self.merge = PooledAttention(hidden_size, dropout=dropout, with_user=False)
        initialise(self, init_std)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The context's vector (B, H), to be multiplied with an item's context vector.

        Parameters
        ----------
        batch
            int64 ``users`` (B,) in 1…U and ``tokens`` (B, ``context_length``) in 1…V, oldest first; the last
            column is the last item whether it is a repetition or not.

        Raises
        ------
        ValueError
            For another width, or indices out of their tables.
        """
        tokens, users = batch["tokens"], batch["users"]
        if users.dim() != 1 or not len(users) or tokens.shape != (len(users), self.context_length):
            raise ValueError(
                f"tokens must be (B, {self.context_length}) and users (B,), B ≥ 1, "
                f"got {tuple(tokens.shape)} and {tuple(users.shape)}"
            )
        check_range("tokens", tokens, self.num_items + 1)
        check_range("users", users, self.num_users + 1)
        user, items = self.user_latent(users), self.item_context(tokens)
        first = self.first_pooling(items, user) + items[:, -1]
        pooled = []
        for user_layer, item_layer, pooling in zip(
            self.user_residuals, self.item_residuals, self.poolings, strict=True
        ):
            user, items = user_layer(user), item_layer(items)
            pooled.append(pooling(items, user))
        merged = self.merge(torch.stack([*pooled, first], dim=1))
        out = merged
        for layer in self.output_residuals:
            out = layer(out)
        return out + merged

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """−log σ(score⁺ − score⁻), mean over the batch; ``labels`` and ``negatives`` are (B,).

        Raises
        ------
        ValueError
            As `forward`; for labels or negatives outside 0…V.
        """
        pairs = torch.stack([batch["labels"], batch["negatives"]], dim=1)
        positive, negative = self.scores(batch, pairs).unbind(dim=1)
        return F.softplus(negative - positive).mean()

    def scores(self, batch: Mapping[str, Tensor], candidates: Tensor | None = None) -> Tensor:
        """o·C[i] + U[u]·L[i]: (B, C) for ``candidates`` (B, C), else (B, V), column v−1 = item v.

        Raises
        ------
        ValueError
            As `forward`; for candidates outside 0…V.
        """
        hidden, user = self(batch), self.user_latent(batch["users"])
        if candidates is None:
            return hidden @ self.item_context.weight[1:].T + user @ self.item_latent.weight[1:].T
        check_candidates(candidates, rows=len(hidden), num_items=self.num_items)
        items = torch.cat([self.item_context(candidates), self.item_latent(candidates)], dim=-1)
        return torch.einsum("bh,bch->bc", torch.cat([hidden, user], dim=-1), items)

    @classmethod
    def from_authors(cls, source: Source, **config) -> MARank:
        """The model of a checkpoint that the MEANTIME authors' program wrote, in evaluation mode.

        Parameters
        ----------
        source
            Path of the ``.pth`` file, or what it holds.
        config
            What the file cannot tell: ``context_length``, ``dropout``.

        Raises
        ------
        ValueError
            If it is no such checkpoint: names the first missing, unexpected, misshapen or mistyped keys,
            or a weight that is not finite.
        """
        with opened(source) as held:
            state = read_state(held)
            model = cls(**marank_sizes(state), **config)
            load_authors(model, marank_layout(model), state, "MARank")
        return model.eval()

    def to_authors(self) -> dict[str, Tensor]:
        """The weights under the authors' keys: the inverse of `from_authors`."""
        return save_authors(self, marank_layout(self))
