"""Training and scoring language models, the same way in every chapter that has one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.text import TextBatches
from lib.inspection import evaluating
from lib.models.language.language_model import LSTMLanguageModel


class LanguageModelling(nn.Module):
    """A language model with the loss that `lib.training.loop.fit` asks for.

    Its state is carried from step to step, as a buffer, so that a training that was killed goes on with it.
    No gradient passes through it: truncated back-propagation through time.

    Parameters
    ----------
    network
    batch_size : int
        Streams of `lib.data.text.TextBatches`.
    """

    def __init__(self, network: LSTMLanguageModel, *, batch_size: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("state", network.initial_state(batch_size))

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy of ``targets`` (B, L) given ``tokens``, in nats per token.

        Where ``fresh`` is set, the stream begins with a state of zeros.
        """
        kept = ~batch["fresh"][None, None, :, None]
        logits, state = self.network(batch["tokens"], self.state.detach() * kept)
        self.state = state.detach()
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


def perplexity(
    network: LSTMLanguageModel, tokens: Tensor, *, batch_size: int = 10, length: int = 35
) -> float:
    """exp of the mean negative log-likelihood per token, in evaluation mode with a carried state.

    Each module's mode is what it was afterwards.

    Parameters
    ----------
    network
        From tokens (B, L) and a state to logits (B, L, words) and the next state.
    tokens
        (N,) int64, the text.
    batch_size
        Streams that the text is cut into; with one, no word but the first lacks its past.
    length
        Tokens of a piece; a stream's last piece is left out if it has fewer.

    Raises
    ------
    ValueError
        If the text is too short, or a likelihood is not a number.
    """
    device = network.output.weight.device
    batches = TextBatches(tokens.to(device), batch_size=batch_size, length=length)
    total, state = 0.0, None
    with evaluating(network), torch.no_grad():
        for step in range(batches.pieces):
            batch = batches.batch(step)
            logits, state = network(batch["tokens"], state)
            loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
            total += loss.item()
    if not math.isfinite(total):
        raise ValueError(f"the negative log-likelihood of the text is {total}")
    return math.exp(total / batches.inputs.numel())


def unigram_perplexity(
    train: Tensor, test: Tensor, *, words: int, batch_size: int = 10, length: int = 35
) -> float:
    """Perplexity of a model that knows how often each word occurs, and nothing of what came before.

    A word that occurs n times in N training tokens has the probability (n + 1) / (N + words), so that one
    that never occurs has some, too. ``<unk>`` is a word like others, as it is for a language model of this
    vocabulary.

    Parameters
    ----------
    train, test
        (N,) int64, word numbers from 0 to ``words - 1``.
    words
        Size of the vocabulary.
    batch_size, length
        As for `perplexity`, so that the same tokens of the test text are predicted.

    Raises
    ------
    ValueError
        If the text is too short, or a number is not in the vocabulary.
    """
    counts = torch.bincount(train, minlength=words)
    if len(counts) > words or int(test.max()) >= words:
        raise ValueError(f"word numbers must be below {words}, got {max(len(counts) - 1, int(test.max()))}")
    chances = (counts + 1).double() / (len(train) + words)
    targets = TextBatches(test, batch_size=batch_size, length=length).targets
    return math.exp(-chances.log()[targets].mean().item())
