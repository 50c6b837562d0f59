"""What every news recommender is: articles encoded once, candidates scored from that, one loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


def clicked_first_loss(scores: Tensor) -> Tensor:
    """−log softmax of column 0 of (B, 1+K), over the batch; candidates of score −∞ are not there."""
    return -torch.log_softmax(scores, -1)[:, 0].mean()


class NewsScorer(nn.Module):
    """Scores the candidates of impressions; a test encodes its articles once for all impressions."""

    def encode_news(self, batch: Batch) -> Tensor:
        """What a model makes of each distinct article of a batch, a row each."""
        raise NotImplementedError

    def score(self, news: Tensor, batch: Batch) -> Tensor:
        """Scores (B, C) from encoded articles; −∞ where there is no candidate."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        """Scores (B, C); −∞ where there is no candidate."""
        return self.score(self.encode_news(batch), batch)

    def loss(self, batch: Batch) -> Tensor:
        """Softmax cross-entropy of the first candidate, the clicked one, against the others."""
        return clicked_first_loss(self(batch))
