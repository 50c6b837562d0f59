"""Recurrent translation: encoder, attention, decoder.

Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine Translation", EMNLP 2015:
LSTM layers of one direction (or two in the encoder), global attention with the "general" score, no input
feeding. The translation models of Park et al. 2018 are of this kind (GRU or LSTM layers with attention, beam
search); their sizes are not published, so all sizes are parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

#: State of a recurrent stack: (layers, B, H), for LSTM a pair of these.
State = Tensor | tuple[Tensor, Tensor]


class TranslationModel(nn.Module):
    """Logits (B, T, target vocabulary) from source tokens (B, S) and earlier target tokens (B, T).

    Parameters
    ----------
    source_vocabulary, target_vocabulary
        Numbers of tokens.
    embedding_size, hidden_size, layers
        Sizes of both stacks.
    cell
        ``"lstm"`` or ``"gru"``.
    bidirectional
        Whether the encoder reads both ways; each direction then has half of ``hidden_size``.
    dropout
        Between layers and on embeddings.

    Raises
    ------
    ValueError
        For sizes below 1, another cell, or an odd ``hidden_size`` with ``bidirectional``.
    """

    def __init__(
        self,
        *,
        source_vocabulary: int = 50_000,
        target_vocabulary: int = 50_000,
        embedding_size: int = 1024,
        hidden_size: int = 1024,
        layers: int = 4,
        cell: str = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = (source_vocabulary, target_vocabulary, embedding_size, hidden_size, layers)
        if min(sizes) < 1:
            raise ValueError(f"sizes must be positive, got {sizes}")
        if cell not in ("lstm", "gru"):
            raise ValueError(f"cell must be lstm or gru, got {cell!r}")
        if bidirectional and hidden_size % 2:
            raise ValueError(f"a bidirectional encoder needs an even hidden_size, got {hidden_size}")
        stack = nn.LSTM if cell == "lstm" else nn.GRU
        options = {"num_layers": layers, "batch_first": True, "dropout": dropout if layers > 1 else 0.0}
        directions = 2 if bidirectional else 1
        self.directions = directions
        self.source_embedding = nn.Embedding(source_vocabulary, embedding_size)
        self.target_embedding = nn.Embedding(target_vocabulary, embedding_size)
        self.encoder = stack(
            embedding_size, hidden_size // directions, bidirectional=bidirectional, **options
        )
        self.decoder = stack(embedding_size, hidden_size, **options)
        self.score = nn.Linear(hidden_size, hidden_size, bias=False)
        self.combine = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, target_vocabulary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        memory, state = self.encode(source, lengths)
        return self.decode(target, memory, state, lengths)[0]

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Source tokens (B, S) to states of its positions (B, S, H) and the decoder's first state.

        ``lengths`` (B,) of the sentences, on the CPU, if they are not all S; what follows a sentence has no
        influence.
        """
        embedded = self.dropout(self.source_embedding(source))
        if lengths is None:
            memory, state = self.encoder(embedded)
        else:
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            memory, state = self.encoder(packed)
            memory, _ = pad_packed_sequence(memory, batch_first=True, total_length=source.shape[1])
        return memory, tuple(map(self._join, state)) if isinstance(state, tuple) else self._join(state)

    def decode(
        self, target: Tensor, memory: Tensor, state: State, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Some further target tokens: logits and the state after them. O(T·S·H) for the attention.

        Parameters
        ----------
        target
            Integers (B, T), each the token before the one to predict; T = 1 is a step of a beam search.
        memory, state
            From `encode`, or the state of an earlier call.
        lengths
            Of the source sentences, if they are not all S.
        """
        hidden, state = self.decoder(self.dropout(self.target_embedding(target)), state)
        seen = None
        if lengths is not None:
            places = torch.arange(memory.shape[1], device=memory.device)
            seen = (places < lengths.to(memory.device).unsqueeze(1)).unsqueeze(1)
        context = F.scaled_dot_product_attention(
            self.score(hidden), memory, memory, attn_mask=seen, scale=1.0
        )
        attended = torch.tanh(self.combine(torch.cat([context, hidden], dim=-1)))
        return self.output(self.dropout(attended)), state

    @torch.no_grad()
    def greedy(
        self, source: Tensor, lengths: Tensor | None = None, *, start: int, end: int, max_length: int
    ) -> Tensor:
        """Most probable next tokens (B, ≤ max_length), ``end`` from where a sentence has ended.

        The paper's translators decode by beam search, of which this is the beam of width one. It is part of
        the model; its chapter counts and times single steps, and decodes no sentence.
        """
        memory, state = self.encode(source, lengths)
        token = torch.full((len(source), 1), start, device=source.device)
        done = torch.zeros_like(token, dtype=torch.bool)
        tokens = []
        for _ in range(max_length):
            logits, state = self.decode(token, memory, state, lengths)
            token = logits.argmax(-1).masked_fill(done, end)
            tokens.append(token)
            done |= token == end
            if done.all():
                break
        return torch.cat(tokens, dim=1)

    def _join(self, state: Tensor) -> Tensor:
        """Both directions of a layer, (2·layers, B, H/2), as one, (layers, B, H)."""
        if self.directions == 1:
            return state
        layers, batch, half = len(state) // 2, state.shape[1], state.shape[2]
        pairs = state.view(layers, 2, batch, half).transpose(1, 2)
        return pairs.reshape(layers, batch, 2 * half)
