"""What MEANTIME and BERT4Rec share: they restore masked items, and score by the mask at the end.

Source: the authors' code of MEANTIME, commit a9ca2e7, in which both have this head, loss and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.models.recommenders.meantime_checkpoints import Slot, save_authors
from lib.models.recommenders.sequential_parts import check_candidates, labelled_rows, last_rows

#: Classes up to which the logits of all rows are held at once; beyond, they would be most of a step's memory.
MOST_AT_ONCE = 1 << 14
#: Logits held at once where there are more classes.
LOGITS = 1 << 22


class ClozeHead(nn.Module):
    """From hidden states to logits of the items 0…V (0, the padding, is a class; the mask token is not).

    ``dot``: z = LN(GELU(Wx + b)), logit_v = z·E[v] + β_v with the input table E. ``linear``: Linear H→H,
    GELU, LN, Linear H→V+1. GELU is the tanh approximation.

    Parameters
    ----------
    num_items
        V.
    hidden_size
        H.
    kind
        ``"dot"`` or ``"linear"``.
    layer_norm
        Whether the LN is there.

    Raises
    ------
    ValueError
        Another kind.
    """

    def __init__(
        self, num_items: int, hidden_size: int, *, kind: str = "dot", layer_norm: bool = True
    ) -> None:
        super().__init__()
        if kind not in ("dot", "linear"):
            raise ValueError(f"head must be 'dot' or 'linear', got {kind!r}")
        self.kind = kind
        self.transform = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size) if layer_norm else nn.Identity()
        if kind == "dot":
            self.output_bias = nn.Parameter(torch.zeros(num_items + 1))
        else:
            self.output = nn.Linear(hidden_size, num_items + 1)

    def forward(self, hidden: Tensor, table: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits of all classes (…, V+1), or of ``items``.

        Parameters
        ----------
        hidden
            (…, H).
        table
            The token table (V+2, H); the linear head does not read it.
        items
            None, or int64 (B, C) with ``hidden`` (B, H): then the result is (B, C).
        """
        z, weight, bias = self._factors(hidden, table)
        if items is None:
            return F.linear(z, weight[: bias.shape[0]], bias)
        return torch.einsum("bh,bch->bc", z, F.embedding(items, weight)) + bias[items]

    def loss(self, hidden: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of hidden states (n, H) over all classes; ``labels`` int64 (n,).

        Beyond `MOST_AT_ONCE` classes the rows are taken in parts, whose logits are computed again for the
        gradient: the same sums in another order, O(`LOGITS` + V·H) memory in the place of O(n·V).
        """
        z, weight, bias = self._factors(hidden, table)
        weight = weight[: bias.shape[0]]
        if len(bias) <= MOST_AT_ONCE:
            return F.cross_entropy(F.linear(z, weight, bias), labels)
        rows = max(1, LOGITS // len(bias))
        parts = [
            checkpoint(_summed_loss, *part, weight, bias, use_reentrant=False, preserve_rng_state=False)
            for part in zip(z.split(rows), labels.split(rows), strict=True)
        ]
        return torch.stack(parts).sum() / len(labels)

    def _factors(self, hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.norm(F.gelu(self.transform(hidden), approximate="tanh"))
        if self.kind == "dot":
            return z, table, self.output_bias
        return z, self.output.weight, self.output.bias


def _summed_loss(z: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(z, weight, bias), labels, reduction="sum")


class ClozeModel(nn.Module):
    """Loss and scores of a model that gives logits of the items at the positions that are asked for.

    A subclass has ``num_items``, the table ``items``, a `ClozeHead` named ``head``, ``hidden(batch, rows)``
    and ``authors_layout()``.
    """

    def forward(
        self, batch: Mapping[str, Tensor], rows: Tensor | None = None, candidates: Tensor | None = None
    ) -> Tensor:
        """Logits of the items 0…V, at all positions or at some, or of some items.

        Parameters
        ----------
        batch, rows
            As for ``hidden``.
        candidates
            int64 (n, C), items of each row.

        Returns
        -------
        (B, T, V+1), (n, V+1) with ``rows``, (n, C) with ``candidates`` too. Logits at padded positions are
        unspecified finite numbers.

        Raises
        ------
        ValueError
            As ``hidden``.
        """
        return self.head(self.hidden(batch, rows), self.items.weight, candidates)

    def hidden(self, batch: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """What the head reads, (B, T, H), or (n, H) at n ``rows`` of the flattened (B, T)."""
        raise NotImplementedError

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the V+1 classes at the positions with ``labels`` > 0.

        Only those positions go through the last block's second half and the head.

        Raises
        ------
        ValueError
            As ``forward``; for labels of another shape or outside 0…V; if no position is selected.
        """
        rows = labelled_rows(batch, self.num_items)  # (n,)
        return self.head.loss(self.hidden(batch, rows), self.items.weight, batch["labels"].flatten()[rows])

    def scores(self, batch: Mapping[str, Tensor], candidates: Tensor | None = None) -> Tensor:
        """Logits at the last position, which holds the mask token.

        Parameters
        ----------
        batch
            As for ``forward``.
        candidates
            int64 (B, C ≥ 1) items, or None for all items.

        Returns
        -------
        (B, C); or (B, V), column v−1 = item v.

        Raises
        ------
        ValueError
            As ``forward``; for candidates of another shape or outside 0…V.
        """
        if candidates is not None:
            check_candidates(candidates, rows=len(batch["tokens"]), num_items=self.num_items)
        logits = self(batch, last_rows(batch["tokens"]), candidates)  # (B, V+1) or (B, C)
        return logits[:, 1:] if candidates is None else logits

    def to_authors(self) -> dict[str, Tensor]:
        """The weights under the authors' keys, tied head included: the inverse of ``from_authors``."""
        state = save_authors(self, self.authors_layout())
        if self.head.kind == "dot":
            state["head.token_embeddings.weight"] = state["token_embedding.emb.weight"]
        return state

    def authors_layout(self) -> dict[str, Slot]:
        """Which of the authors' keys holds which of these parameters."""
        raise NotImplementedError
