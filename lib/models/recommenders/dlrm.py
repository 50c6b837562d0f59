"""Recommendation networks of the DLRM shape, and the public configurations of industrial size.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019
(arXiv 1906.00091): dense features pass a bottom MLP, each categorical feature sums rows of its embedding
table, both interact (concatenation, or dot products of all pairs), a top MLP gives the click probability. RM1
to RM3 are the configurations of Gupta et al., "DeepRecSys", ISCA 2020 (their published JSON files).

Tables of many gigabytes are counted on the meta device (``with torch.device("meta")``); to run a model, give
its tables fewer rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class DLRM(nn.Module):
    """Click probabilities (B,) from dense features (B, D) and indices (tables, B, lookups).

    Parameters
    ----------
    bottom
        Sizes of the bottom MLP, the dense features first; the last is the embedding dimension.
    top
        Sizes of the top MLP without its input, which follows from the interaction; the last is 1.
    table_rows
        Rows of each embedding table.
    lookups
        Rows that a sample reads from each table, for `requests`; any number can be given to the model.
    interaction
        ``"concat"``: bottom output and pooled embeddings side by side; ``"dot"``: the bottom output and the
        products of all pairs among it and the pooled embeddings.

    Raises
    ------
    ValueError
        For sizes below 1, a top that does not end in 1, or another interaction.
    """

    def __init__(
        self,
        *,
        bottom: Sequence[int],
        top: Sequence[int],
        table_rows: Sequence[int],
        lookups: int,
        interaction: str = "concat",
    ) -> None:
        super().__init__()
        if interaction not in ("concat", "dot"):
            raise ValueError(f"interaction must be concat or dot, got {interaction!r}")
        if len(bottom) < 2 or not top or not table_rows or min(*bottom, *top, *table_rows, lookups) < 1:
            raise ValueError(f"sizes must be positive, got {bottom}, {top}, {table_rows}, {lookups}")
        if top[-1] != 1:
            raise ValueError(f"the top MLP must end in 1 output, got {top[-1]}")
        dimension, tables = bottom[-1], len(table_rows)
        self.interaction, self.lookups = interaction, lookups
        pairs = torch.tril_indices(tables + 1, tables + 1, offset=-1)
        self.register_buffer("pairs", pairs, persistent=False)
        width = dimension + (tables * dimension if interaction == "concat" else (tables + 1) * tables // 2)
        self.bottom = _perceptron(bottom, nn.ReLU())
        self.tables = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(_table(rows, dimension), freeze=False, mode="sum")
            for rows in table_rows
        )
        self.top = _perceptron([width, *top], nn.Sigmoid())

    def forward(self, dense: Tensor, indices: Tensor) -> Tensor:
        if indices.dim() != 3 or len(indices) != len(self.tables):
            raise ValueError(
                f"indices must be ({len(self.tables)}, batch, lookups), got {tuple(indices.shape)}"
            )
        features = [self.bottom(dense), *(table(i) for table, i in zip(self.tables, indices, strict=True))]
        return self.top(self.interact(features)).squeeze(-1)

    def interact(self, features: list[Tensor]) -> Tensor:
        """Interaction of the bottom output and the pooled embeddings, each (B, dimension)."""
        if self.interaction == "concat":
            return torch.cat(features, dim=1)
        stacked = torch.stack(features, dim=1)
        products = stacked @ stacked.transpose(1, 2)
        rows, columns = self.pairs
        return torch.cat([features[0], products[:, rows, columns]], dim=1)

    def requests(self, batch_size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Made-up inputs: normal dense features, and independent uniform indices.

        Returns
        -------
        dense (B, D) float32 and indices (tables, B, lookups) int64, on the CPU.
        """
        generator = torch.Generator().manual_seed(seed)
        dense = torch.randn(batch_size, self.bottom[0].in_features, generator=generator, device="cpu")
        shape = (batch_size, self.lookups)
        indices = [
            torch.randint(table.num_embeddings, shape, generator=generator, device="cpu")
            for table in self.tables
        ]
        return dense, torch.stack(indices)


def rm1(*, table_rows: int = 4_000_000) -> DLRM:
    """RM1: 8 tables of 32 columns with 80 lookups each; small MLPs."""
    return DLRM(bottom=(128, 64, 32), top=(256, 64, 1), table_rows=(table_rows,) * 8, lookups=80)


def rm2(*, table_rows: int = 500_000) -> DLRM:
    """RM2: 32 tables of 64 columns with 120 lookups each: the heaviest in embeddings."""
    return DLRM(bottom=(256, 128, 64), top=(128, 64, 1), table_rows=(table_rows,) * 32, lookups=120)


def rm3(*, table_rows: int = 2_000_000) -> DLRM:
    """RM3: 10 tables of 32 columns with 20 lookups each: the heaviest in fully connected layers."""
    return DLRM(bottom=(2560, 1024, 256, 32), top=(512, 256, 1), table_rows=(table_rows,) * 10, lookups=20)


def _perceptron(sizes: Sequence[int], last: nn.Module) -> nn.Sequential:
    """Linear layers with ReLU between them; weights normal with variance 2/(in + out), as DLRM's."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.normal_(linear.weight, std=(2 / (inputs + outputs)) ** 0.5)
        nn.init.normal_(linear.bias, std=(1 / outputs) ** 0.5)
        layers += [linear, nn.ReLU()]
    layers[-1] = last
    return nn.Sequential(*layers)


def _table(rows: int, dimension: int) -> Tensor:
    bound = rows**-0.5
    return torch.empty(rows, dimension).uniform_(-bound, bound)
