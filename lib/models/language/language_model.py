"""Word-level language model: embedding, stacked LSTM, softmax over the vocabulary.

Zaremba, Sutskever & Vinyals, *Recurrent Neural Network Regularization*, 2014 (arXiv:1409.2329): dropout
between layers, never along time. The defaults are its "medium" model for the Penn Treebank (650 units, two
layers, dropout 0.5); the LSTM's first weights are torch's, the others uniform in ±0.05. The LSTM is written
out step by step, so that a quantised cell can take its place (`lib.models.language.highway`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LSTMLayer(nn.Module):
    """One layer of ``nn.LSTM``, with the same parameters and gates in the same order (i, f, g, o).

    c_t = σ(f) c_{t−1} + σ(i) tanh(g) and h_t = σ(o) tanh(c_t), with (i, f, g, o) = W_x x_t + W_h h_{t−1} + b.

    Parameters
    ----------
    inputs, hidden : int
        Widths of x and h.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        if min(inputs, hidden) < 1:
            raise ValueError(f"widths must be at least 1, got {inputs} and {hidden}")
        self.hidden_size = hidden
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Hidden states of all steps, and the last hidden and cell state.

        Parameters
        ----------
        inputs : (T, B, inputs)
        state : h and c, each (B, hidden)

        Returns
        -------
        (T, B, hidden) and (h, c)
        """
        h, c = state
        outputs = []
        # the inputs' part of all steps is one matrix product
        for projected in F.linear(inputs, self.weight_ih, self.bias_ih + self.bias_hh):
            h, c = self.step(projected + F.linear(h, self.weight_hh), c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)

    def step(self, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """h and c of one step, from the gates before their nonlinearity, (B, 4 · hidden)."""
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class LSTMLanguageModel(nn.Module):
    """Words so far to logits of the next word.

    Parameters
    ----------
    vocabulary_size : int
    hidden_size : int
        Width of embedding and LSTM.
    layers : int
    dropout : float
        On the embedding and on each layer's output.
    embedding_range : float
        First weights of the embedding are uniform in ± this; the output's in ± 0.05. A small network that
        trains briefly leaves the plateau of word frequencies sooner from a wider range.
    tied : bool
        One matrix for embedding and output (Press & Wolf, EACL 2017).
    layer : callable
        Makes a layer from its two widths.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        hidden_size: int = 650,
        layers: int = 2,
        dropout: float = 0.5,
        embedding_range: float = 0.05,
        tied: bool = False,
        layer: Callable[[int, int], nn.Module] = LSTMLayer,
    ) -> None:
        super().__init__()
        if vocabulary_size < 2 or layers < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"at least 2 words and 1 layer, dropout in [0, 1): got {vocabulary_size}, {layers}, {dropout}"
            )
        self.hidden_size = hidden_size
        self.embedding = nn.Embedding(vocabulary_size, hidden_size)
        self.layers = nn.ModuleList(layer(hidden_size, hidden_size) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, vocabulary_size)
        nn.init.uniform_(self.embedding.weight, -embedding_range, embedding_range)
        nn.init.uniform_(self.output.weight, -0.05, 0.05)
        nn.init.zeros_(self.output.bias)
        if tied:
            self.output.weight = self.embedding.weight

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros, (2, layers, B, hidden): hidden states and cell states."""
        return self.output.weight.new_zeros(2, len(self.layers), batch_size, self.hidden_size)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of each next word, and the state after the last.

        Parameters
        ----------
        tokens : (B, T) int64
        state : (2, layers, B, hidden), optional
            Zeros if not given.

        Returns
        -------
        (B, T, vocabulary_size) and (2, layers, B, hidden)
        """
        state = self.initial_state(len(tokens)) if state is None else state
        x = self.dropout(self.embedding(tokens.T))
        ends = []
        for k, layer in enumerate(self.layers):
            x, end = layer(x, (state[0, k], state[1, k]))
            x = self.dropout(x)
            ends.append(torch.stack(end))
        return self.output(x).transpose(0, 1), torch.stack(ends, dim=1)
