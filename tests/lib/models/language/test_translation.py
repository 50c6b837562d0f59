"""The translation model: sizes, attention by hand, steps against teacher forcing, sentence lengths."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lib.cost.operations import count_operations, count_parameters, totals
from lib.models.language.translation import TranslationModel

SMALL = {
    "source_vocabulary": 20,
    "target_vocabulary": 15,
    "embedding_size": 6,
    "hidden_size": 8,
    "layers": 2,
}


def small(**options) -> TranslationModel:
    torch.manual_seed(0)
    return TranslationModel(**SMALL | options).eval()


@pytest.mark.parametrize(("cell", "parameters"), [("lstm", 33_587_200), ("gru", 25_190_400)])
def test_four_layers_of_1024(cell, parameters):
    with torch.device("meta"):
        model = TranslationModel(cell=cell)
    for stack in (model.encoder, model.decoder):
        assert count_parameters(stack) == parameters
    words, width = 50_000, 1024
    tables_and_output = 2 * words * width + words * width + words
    attention = width * width + 2 * width * width
    assert count_parameters(model) == tables_and_output + attention + 2 * parameters


@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_intensity_of_a_decoding_step_is_twice_the_tokens(tokens):
    with torch.device("meta"):
        model = TranslationModel()
    memory, state = torch.zeros(tokens, 10, 1024), torch.zeros(4, tokens, 1024)
    inputs = (torch.zeros(tokens, 1, dtype=torch.long), memory, (state, state))
    table = count_operations(model, inputs=inputs, method="decode", outside="rows")
    products = table[table["kind"].isin(["lstm", "linear"])]
    assert (products["operations"] == 2 * tokens * products["weights"]).all()
    assert totals(table)["macs"] == products["macs"].sum() + tokens * 2 * 10 * 1024  # attention
    assert "encoder" not in set(table["layer"])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_steps_equal_teacher_forcing(cell, bidirectional):
    model = small(cell=cell, bidirectional=bidirectional)
    source, target = torch.randint(20, (3, 7)), torch.randint(15, (3, 5))
    whole = model(source, target)
    memory, state = model.encode(source)
    steps = []
    for token in target.split(1, dim=1):
        logits, state = model.decode(token, memory, state)
        steps.append(logits)
    assert whole.shape == (3, 5, 15)
    assert_close(torch.cat(steps, dim=1), whole)


def test_attention_written_out():
    model = small()
    source, target = torch.randint(20, (2, 4)), torch.randint(15, (2, 3))
    memory, state = model.encode(source)
    hidden, _ = model.decoder(model.target_embedding(target), state)
    scores = torch.einsum("bth,hk,bsk->bts", hidden, model.score.weight.T, memory)
    context = torch.einsum("bts,bsh->bth", scores.softmax(-1), memory)
    attended = torch.tanh(torch.cat([context, hidden], -1) @ model.combine.weight.T)
    assert_close(model(source, target), attended @ model.output.weight.T + model.output.bias)


def test_both_directions_reach_the_decoder():
    model = small(bidirectional=True)
    source = torch.randint(20, (2, 4))
    _, (hidden, _) = model.encode(source)
    _, (raw, _) = model.encoder(model.source_embedding(source))
    for layer in range(2):
        assert_close(hidden[layer], torch.cat([raw[2 * layer], raw[2 * layer + 1]], dim=-1))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_follows_a_sentence_has_no_influence(bidirectional):
    model = small(bidirectional=bidirectional)
    source, target = torch.randint(20, (2, 7)), torch.randint(15, (2, 3))
    lengths = torch.tensor([4, 7])
    logits = model(source, target, lengths)
    assert_close(logits[:1], model(source[:1, :4], target[:1]))
    assert_close(logits[1:], model(source[1:], target[1:]))
    assert not torch.allclose(model(source, target)[0], logits[0])  # without lengths it has


def test_greedy_takes_the_best_and_stops():
    model = small()
    source = torch.randint(20, (4, 6))
    tokens = model.greedy(source, start=1, end=2, max_length=6)
    given = torch.cat([torch.ones(4, 1, dtype=torch.long), tokens[:, :-1]], dim=1)
    best = model(source, given).argmax(-1)
    ended = (tokens == 2).cumsum(1).bool()
    before = torch.cat([torch.zeros(4, 1, dtype=torch.bool), ended[:, :-1]], dim=1)
    assert torch.equal(tokens[~before], best[~before])
    assert (tokens[before] == 2).all()
    with torch.no_grad():
        nn.init.zeros_(model.output.weight)
        model.output.bias.copy_(torch.arange(15) == 2)
    assert model.greedy(source, start=1, end=2, max_length=6).tolist() == [[2]] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "sizes must be positive"),
        ({"cell": "rnn"}, "cell must be lstm or gru, got 'rnn'"),
        ({"hidden_size": 7, "bidirectional": True}, "even hidden_size, got 7"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TranslationModel(**SMALL | options)
