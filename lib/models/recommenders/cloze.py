"""What MEANTIME and BERT4Rec share: they restore masked items, and score by the mask at the end.

Source: the authors' code of MEANTIME, commit a9ca2e7, in which both have this head, loss and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.recommenders.authors import Slot, save_authors
from lib.models.recommenders.parts import check_range, labelled_rows, last_rows


class ClozeModel(nn.Module):
    """Blocks over embedded items, and a `lib.models.recommenders.parts.ClozeHead` at the masked ones.

    A subclass has ``items`` (embedding of V+2 tokens), ``blocks``, ``head``, ``num_items`` and two methods:
    ``_inputs(batch)``, the first block's input and what every block gets beside it, and
    ``_authors_layout()``, where the authors' checkpoints keep its weights.
    """

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states (B, T, H) after the last block. Padded positions hold unspecified finite numbers.

        Parameters
        ----------
        batch
            int64 tensors (B, T), left-padded with 0: ``tokens`` (0…V+1), and what the model reads beside.

        Raises
        ------
        ValueError
            For T > ``max_length``, a token or day out of its table, a missing or misshapen tensor.
        """
        return self._hidden(batch, rows=None)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the V+1 classes at the positions with ``labels`` > 0.

        Only those positions go through the last block's second half and the head.

        Raises
        ------
        ValueError
            As `forward`; for labels of another shape or outside 0…V; if no position is selected.
        """
        rows = labelled_rows(batch, self.num_items)
        logits = self.head(self._hidden(batch, rows), self.items.weight)
        return F.cross_entropy(logits, batch["labels"].flatten()[rows])

    def scores(self, batch: Mapping[str, Tensor], candidates: Tensor | None = None) -> Tensor:
        """Logits at the last position, which holds the mask token.

        Parameters
        ----------
        batch
            As for `forward`.
        candidates
            int64 (B, C) items, or None for all items.

        Returns
        -------
        (B, C); or (B, V), column v−1 = item v.

        Raises
        ------
        ValueError
            As `forward`; for candidates outside 0…V.
        """
        if candidates is not None:
            check_range("candidates", candidates, self.num_items + 1)
        hidden = self._hidden(batch, last_rows(batch["tokens"]))
        scores = self.head(hidden, self.items.weight, candidates)
        return scores[:, 1:] if candidates is None else scores

    def to_authors(self) -> dict[str, Tensor]:
        """The weights under the authors' keys, tied head included: the inverse of ``from_authors``."""
        state = save_authors(self, self._authors_layout())
        if self.head.kind == "dot":
            state["head.token_embeddings.weight"] = state["token_embedding.emb.weight"]
        return state

    def _inputs(self, batch: Mapping[str, Tensor]) -> tuple:
        raise NotImplementedError

    def _authors_layout(self) -> dict[str, Slot]:
        raise NotImplementedError

    def _hidden(self, batch: Mapping[str, Tensor], rows: Tensor | None) -> Tensor:
        x, *context = self._inputs(batch)
        for block in self.blocks[:-1]:
            x = block(x, *context)
        return self.blocks[-1](x, *context, rows)
