"""The LSTM against torch's own, counts of the published model, carried states, perplexity in closed form."""

import math

import pytest
import torch
from torch import nn

from lib.data.text import TextBatches
from lib.models.language.language_model import LSTMLanguageModel, LSTMLayer
from lib.training.language_models import LanguageModelling, perplexity
from lib.training.loop import fit, seeded


def twins(inputs: int, hidden: int) -> tuple[LSTMLayer, nn.LSTM]:
    ours, theirs = LSTMLayer(inputs, hidden).double(), nn.LSTM(inputs, hidden).double()
    theirs.load_state_dict({f"{name}_l0": value for name, value in ours.state_dict().items()})
    return ours, theirs


def test_parity_with_torch_forward_and_backward():
    torch.manual_seed(0)
    ours, theirs = twins(5, 7)
    x = torch.randn(11, 3, 5, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(3, 7, dtype=torch.float64) for _ in range(2))
    out, (h, c) = ours(x, state)
    expected, (h_n, c_n) = theirs(x, tuple(part[None] for part in state))
    assert torch.allclose(out, expected) and torch.allclose(h, h_n[0]) and torch.allclose(c, c_n[0])
    weights = torch.randn_like(out)
    mine = torch.autograd.grad((out * weights).sum(), [x, *ours.parameters()])
    reference = torch.autograd.grad((expected * weights).sum(), [x, *theirs.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(mine, reference, strict=True))


def test_a_twin_with_two_gates_swapped_is_found():
    torch.manual_seed(0)
    ours, theirs = twins(5, 7)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.cat([parameter[7:14], parameter[:7], parameter[14:]]))
    x, zeros = torch.randn(4, 2, 5, dtype=torch.float64), torch.zeros(2, 7, dtype=torch.float64)
    assert not torch.allclose(ours(x, (zeros, zeros))[0], theirs(x)[0])


def test_the_medium_model_of_the_penn_treebank():
    """19.8 million parameters: two matrices of 10,000 × 650 and two layers of eight 650 × 650."""
    model = LSTMLanguageModel(10_000)
    layer = 8 * 650 * 650 + 8 * 650
    assert sum(p.numel() for p in model.parameters()) == 2 * 10_000 * 650 + 10_000 + 2 * layer == 19_780_400
    tied = LSTMLanguageModel(100, hidden_size=8, tied=True)
    assert tied.output.weight is tied.embedding.weight


def test_pieces_with_a_carried_state_are_the_whole():
    torch.manual_seed(0)
    model = LSTMLanguageModel(20, hidden_size=6, dropout=0.0)
    tokens = torch.randint(20, (3, 12))
    whole, end = model(tokens)
    first, state = model(tokens[:, :5])
    second, state = model(tokens[:, 5:], state)
    assert torch.allclose(torch.cat([first, second], dim=1), whole, atol=1e-6)
    assert torch.allclose(state, end, atol=1e-6)
    forgotten, _ = model(tokens[:, 5:])
    assert not torch.allclose(forgotten, whole[:, 5:], atol=1e-4)


def test_the_state_is_carried_by_the_loss_until_a_stream_is_fresh():
    torch.manual_seed(0)
    model = LanguageModelling(LSTMLanguageModel(9, hidden_size=4, layers=1, dropout=0.0), batch_size=2)
    batches = TextBatches(torch.randint(9, (40,)), batch_size=2, length=6)
    first = model.loss(batches.batch(0))
    assert model.state.abs().sum() > 0 and not model.state.requires_grad
    model.loss(batches.batch(1))
    assert torch.equal(model.loss(batches.batch(0)), first)  # fresh: whatever was carried is dropped
    assert "state" in model.state_dict()


def test_perplexity_of_a_uniform_and_of_a_certain_model():
    model = LSTMLanguageModel(16, hidden_size=4)
    nn.init.zeros_(model.output.weight)
    tokens = torch.randint(16, (200,))
    assert perplexity(model, tokens, batch_size=2, length=7) == pytest.approx(16, rel=1e-6)
    with torch.no_grad():
        model.output.bias[3] = 40.0
    assert perplexity(model, torch.full((200,), 3), batch_size=2, length=7) == pytest.approx(1.0)
    assert model.training  # as it was


def test_perplexity_does_not_depend_on_how_the_text_is_cut():
    torch.manual_seed(0)
    model = LSTMLanguageModel(16, hidden_size=8)
    tokens = torch.randint(16, (241,))
    values = [perplexity(model, tokens, batch_size=1, length=length) for length in (10, 40, 240)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_it_learns_a_text_that_needs_memory():
    """Blocks a x b x and b x a x: what follows x depends on the word before it."""
    seeded(0)
    text = torch.tensor([0, 2, 1, 2] * 100)
    model = LanguageModelling(LSTMLanguageModel(3, hidden_size=12, layers=1, dropout=0.0), batch_size=4)
    batches = TextBatches(text, batch_size=4, length=8)
    fit(model, batches.batch, steps=80, learning_rate=0.03)
    assert perplexity(model.network, text, batch_size=1, length=20) < 1.05
    assert perplexity(model.network, text.flip(0)[torch.randperm(400)], batch_size=1, length=20) > 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LSTMLanguageModel(1), "at least 2 words"),
        (lambda: LSTMLanguageModel(5, dropout=1.0), "dropout in"),
        (lambda: LSTMLayer(0, 3), "widths must be at least 1, got 0 and 3"),
    ],
)
def test_wrong_settings_are_refused_at_the_door(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_broken_model_has_no_perplexity():
    model = LSTMLanguageModel(5, hidden_size=2)
    nn.init.constant_(model.output.bias, math.nan)
    with pytest.raises(ValueError, match="is nan"):
        perplexity(model, torch.zeros(50, dtype=torch.int64), batch_size=1, length=5)
