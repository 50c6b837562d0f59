"""Oracles of MEANTIME: algebra, training, sizes, errors."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lib.data.interactions import InteractionLog
from lib.data.sequences import evaluation_batches
from lib.inspection import captured, hooked
from lib.models.recommenders import cloze, dot_product_attention, relative_attention
from lib.models.recommenders.bert4rec import BERT4Rec
from lib.models.recommenders.dot_product_attention import padding_bias
from lib.models.recommenders.meantime import Meantime
from lib.models.recommenders.temporal_kernels import kernel_letters

TERMS = ["factored", "materialised"]


def small(absolute="p-d", relative="s-l", **options) -> Meantime:
    """A float64 model with weights large enough that everything matters, in evaluation mode."""
    torch.manual_seed(0)
    config = {"num_days": 40, "max_length": 9, "hidden_size": 12, "init_std": 0.5, "dropout": 0.0, **options}
    return Meantime(20, absolute=absolute, relative=relative, **config).double().eval()


def states(model, batch):
    """Hidden states (B, T, H): what the head reads of all positions."""
    with captured(model, ["head"]) as seen:
        model(batch)
    return seen["head"]


def attention_inputs(model, batch):
    """What the first block's attention is given: x, absolute kernels, relative terms, bias."""
    given = []
    attention = model.blocks[0].attention
    with hooked([(attention, "input", lambda module, inputs: given.extend(inputs))]):
        model(batch)
    return given[:4]


def random_batch(length=9, batch_size=3, *, padded=3):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 22, (batch_size, length), generator=generator)
    tokens[0, :padded] = 0
    gaps = torch.randint(0, 90_000, (batch_size, length), generator=generator)
    timestamps = gaps.cumsum(1) + 1_000_000_000
    days = (timestamps - 1_000_000_000) // 86_400
    labels = torch.randint(1, 21, (batch_size, length), generator=generator) * (tokens > 0)
    return {"tokens": tokens, "timestamps": timestamps, "days": days, "labels": labels}


# --- invariances and reductions ---


@pytest.mark.parametrize("term", TERMS)
def test_a_shift_of_all_stamps_changes_nothing(term):
    model, batch = small("c", "s-e-l", relative_term=term), random_batch()
    shifted = {**batch, "timestamps": batch["timestamps"] + 123_456_789}
    assert_close(states(model, batch), states(model, shifted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_time_unit_equals_stamps_in_that_unit(term):
    batch = random_batch()
    batch["timestamps"] = batch["timestamps"] // 3600 * 3600
    hours = {**batch, "timestamps": batch["timestamps"] // 3600}
    by_seconds = states(small("c", "s-e-l", time_unit=3600.0, relative_term=term), batch)
    by_hours = states(small("c", "s-e-l", relative_term=term), hours)
    assert_close(by_seconds, by_hours, rtol=1e-6, atol=1e-6)
    assert (states(small("c", "s-e-l", relative_term=term), batch) - by_hours).abs().max() > 1e-2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("options", [{}, {"time_unit": 3600.0}, {"normalization": "post"}])
def test_both_relative_terms_give_the_same_states(options, dtype, tolerance):
    """Whatever the unit and the block, on a short window that is not contiguous in memory."""
    window = {key: value.T.contiguous().T[:, 2:] for key, value in random_batch().items()}
    assert not any(value.is_contiguous() for value in window.values())
    exact = states(small("p-d", "s-e-l-l", relative_term="materialised", **options), window)
    fast = states(small("p-d", "s-e-l-l", relative_term="factored", **options).to(dtype), window)
    assert_close(fast.double(), exact, rtol=tolerance, atol=tolerance)


def test_whole_days_later_changes_nothing():
    """A log moved by whole days has the same day indices, and a model scores it the same."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"user": np.repeat([1, 2, 3], 7), "item": np.tile(np.arange(7), 3), "rating": 5.0})
    frame["timestamp"] = random.integers(10 * 86_400, 40 * 86_400, len(frame))
    model = small("p-d", "s-l")
    before, later, odd = (
        InteractionLog.from_frame(frame.assign(timestamp=frame["timestamp"] + shift), min_item_count=1)
        for shift in (0, 365 * 86_400, 365 * 86_400 + 43_200)
    )
    assert before.day.tolist() == later.day.tolist() != odd.day.tolist()
    scores = [model.scores(next(evaluation_batches(log, max_length=9))) for log in (before, later, odd)]
    assert_close(scores[0], scores[1], rtol=1e-6, atol=1e-6)
    assert (scores[0] - scores[2]).abs().max() > 1e-2


@pytest.mark.parametrize("kernels", [("d-c", "s"), ("c", "e-l"), ("", "s-e-l"), ("d", "")])
def test_permuting_events_permutes_hidden_states(kernels):
    model, batch = small(*kernels), random_batch()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    permuted = {key: value[:, order] for key, value in batch.items()}
    assert_close(states(model, permuted), states(model, batch)[:, order], rtol=1e-6, atol=1e-6)


def test_positions_break_the_permutation():
    model, batch = small("p", ""), random_batch()
    order = torch.arange(9).flip(0)
    permuted = {key: value[:, order] for key, value in batch.items()}
    assert (states(model, permuted) - states(model, batch)[:, order]).abs().max() > 1e-2


def test_con_is_content_attention_with_a_content_bias():
    model = small("c", "", hidden_size=6, num_blocks=1)
    attention = model.blocks[0].attention
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    bias = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    query, key, value = attention.content(x).chunk(3, dim=-1)
    constant = attention.absolute[0](model.tables[0].weight)[0, :6]
    weights = torch.softmax((query + constant) @ key.mT / math.sqrt(6), dim=-1)
    expected = attention.output(weights @ value)
    assert_close(attention(x, [model.tables[0].weight[None]], [], bias), expected)


@pytest.mark.parametrize("kernels", [("p-d", "s-l"), ("c", "e"), ("p", "")])
def test_what_stands_at_padding_does_not_matter(kernels):
    model, batch = small(*kernels), random_batch()
    changed = {key: value.clone() for key, value in batch.items()}
    changed["timestamps"][0, :3] = torch.tensor([5, 7_000_000_000, 0])
    changed["days"][0, :3] = 31
    assert_close(states(model, batch)[0, 3:], states(model, changed)[0, 3:], rtol=1e-9, atol=1e-9)
    assert_close(states(model, batch)[1:], states(model, changed)[1:], rtol=1e-9, atol=1e-9)


def test_attention_is_bidirectional():
    model, batch = small(), random_batch()
    later = {**batch, "tokens": batch["tokens"].clone()}
    later["tokens"][:, -1] = 2
    assert (states(model, batch)[:, 4] - states(model, later)[:, 4]).abs().max() > 1e-3


@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_without_temporal_weights_it_is_a_transformer(normalization):
    model, batch = small(num_blocks=1, normalization=normalization), random_batch()
    block, mixed = model.blocks[0], model.blocks[0].attention
    for layer in [*mixed.absolute, *mixed.relative]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(mixed.relative_query)
    nn.init.normal_(block.attention_norm.weight)
    nn.init.normal_(block.feed_forward_norm.bias)
    options = {"batch_first": True, "norm_first": normalization == "pre", "dtype": torch.float64}
    plain = nn.TransformerEncoderLayer(
        12, 4, 48, dropout=0.0, activation=lambda x: F.gelu(x, approximate="tanh"), **options
    )
    ours = {
        "self_attn.in_proj_": mixed.content,
        "self_attn.out_proj.": mixed.output,
        "linear1.": block.feed_forward.expand,
        "linear2.": block.feed_forward.contract,
        "norm1.": block.attention_norm,
        "norm2.": block.feed_forward_norm,
    }
    plain.load_state_dict(
        {theirs + k: v for theirs, layer in ours.items() for k, v in layer.state_dict().items()}
    )
    expected = plain(model.items(batch["tokens"]), src_key_padding_mask=batch["tokens"] == 0)
    assert_close(states(model, batch), expected)


@pytest.mark.parametrize("kernels", [("p-d", "s-l"), ("p", "")])
@pytest.mark.parametrize("training", [False, True])
def test_a_window_without_real_keys_attends_uniformly(kernels, training):
    model, batch = small(*kernels).train(training), random_batch(padded=9)
    alone = {key: torch.zeros_like(value) for key, value in batch.items()}
    for weights in model.attention_weights(alone):
        assert_close(weights, torch.full_like(weights, 1 / 9))
    others = {key: value[1:] for key, value in batch.items()}
    assert states(model, batch).isfinite().all()
    assert_close(states(model, batch)[1:], states(model, others), rtol=1e-9, atol=1e-9)
    assert_close(model.loss(batch), model.loss(others))


def test_a_twin_that_masks_with_infinity_fails_on_an_empty_window(monkeypatch):
    batch = random_batch(padded=9)
    expected = states(small("p-d", "s-l"), batch)
    monkeypatch.setattr(dot_product_attention, "blocked_logit", lambda dtype: -math.inf)
    twin = states(small("p-d", "s-l"), batch)
    assert twin[0].isnan().all()
    assert_close(twin[1:], expected[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_blocked_key_counts_for_nothing_and_stays_finite(dtype):
    logits = torch.tensor([[9.0, -3.0, 4.0]], dtype=dtype)
    for tokens, expected in (([0, 5, 0], [0, 1, 0]), ([0, 0, 0], [1 / 3] * 3)):
        weights = torch.softmax(logits + padding_bias(torch.tensor([tokens]), dtype)[0, 0], dim=-1)
        if any(tokens) or dtype != torch.float16:  # float16 resolves a logit beside its lowest number
            assert_close(weights, torch.tensor([expected], dtype=dtype))
        assert weights.isfinite().all()


def test_attention_weights_are_those_of_the_forward_pass():
    model, batch = small(num_blocks=1), random_batch()
    attention = model.blocks[0].attention
    value = attention.content(attention_inputs(model, batch)[0]).chunk(3, dim=-1)[2]
    mixed = model.attention_weights(batch)[0] @ value.unflatten(-1, (4, 3)).transpose(1, 2)
    expected = attention.output(mixed.transpose(1, 2).flatten(2))
    with captured(model, ["blocks.0.attention"], "output") as seen:
        model(batch)
    assert_close(seen["blocks.0.attention"], expected)


def test_a_shorter_window_is_its_right_end():
    model, batch = small(), random_batch(padded=4)
    one = {key: value[:1] for key, value in batch.items()}
    short = {key: value[:, 4:] for key, value in one.items()}
    assert_close(states(model, one)[:, 4:], states(model, short), rtol=1e-6, atol=1e-6)


# --- training ---


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("kernels", [("p-d", "s-l"), ("c-p", "e"), ("", "l-l")])
def test_loss_is_cross_entropy_at_the_selected_positions(kernels, term):
    model, batch = small(*kernels, relative_term=term), random_batch()
    logits = model.head(states(model, batch), model.items.weight)
    assert_close(model(batch), logits)
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=0)
    assert_close(model.loss(batch), expected)
    assert_close(model.scores(batch), logits[:, -1, 1:])
    some = torch.tensor([[3, 1], [20, 7], [2, 2]])
    assert_close(model.scores(batch, some), logits[:, -1].gather(1, some))


def test_both_relative_terms_give_the_same_gradients():
    gradients = []
    for term in TERMS:
        model = small("p-d", "s-e", relative_term=term).train()
        model.loss(random_batch()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for fast, exact in zip(*gradients, strict=True):
        assert_close(fast, exact, rtol=1e-5, atol=1e-7)


def test_kernel_dropout_is_shared_by_the_blocks_and_off_in_evaluation():
    model = small(kernel_dropout=0.5, num_blocks=3)
    batch = random_batch()
    assert_close(states(model, batch), states(model, batch))
    model.train()
    first, second = states(model, batch), states(model, batch)
    assert (first - second).abs().max() > 1e-3
    _, absolute, relative, _ = attention_inputs(model, batch)
    assert (absolute[0] == 0).any()
    assert (relative[0].keep == 0).any()


def test_it_trains_under_bfloat16_autocast():
    model, batch = small().float().train(), random_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_inference_mode_keeps_serves_a_training():
    relative_attention._nodes.cache_clear()
    relative_attention._lagrange.cache_clear()
    model = small("c", "e-l")
    with torch.inference_mode():
        model(random_batch())
    model.train().loss(random_batch()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_second_derivatives_are_refused_rather_than_wrong():
    model = small(dropout=0.2).train()
    weight = model.blocks[0].attention.content.weight
    (gradient,) = torch.autograd.grad(model.loss(random_batch()), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_it_learns_what_only_time_tells():
    """The answer is A after a short gap and B after a long one: position-only heads stay at chance."""
    accuracy = {}
    for name, kernels in {"time": ("c", "l"), "blind": ("p", "")}.items():
        torch.manual_seed(0)
        model = Meantime(
            3,
            max_length=2,
            hidden_size=16,
            num_blocks=1,
            dropout=0.0,
            absolute=kernels[0],
            relative=kernels[1],
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(150):
            batch, answer = _gap_batch(64)
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
        batch, answer = _gap_batch(500)
        accuracy[name] = (model.eval().scores(batch).argmax(1) + 1 == answer).float().mean().item()
    assert accuracy["time"] > 0.95
    assert accuracy["blind"] < 0.6


def _gap_batch(size):
    long = torch.rand(size) < 0.5
    gap = torch.where(long, torch.randint(20_000, 200_000, (size,)), torch.randint(10, 300, (size,)))
    answer = torch.where(long, 2, 1)
    zeros = torch.zeros_like(gap)
    return {
        "tokens": torch.tensor([3, 4]).expand(size, -1),
        "timestamps": torch.stack([zeros, gap], dim=1) + 1_000_000,
        "labels": torch.stack([zeros, answer], dim=1),
    }, answer


# --- sizes ---


def test_parameter_count_of_the_movielens_template():
    model = Meantime(3416, num_days=1040)
    assert sum(p.numel() for p in model.parameters()) == 418_329
    assert len(model.to_authors()) == 67


@pytest.mark.parametrize(
    ("absolute", "relative"), [("p-d", "s-l"), ("c", "e"), ("d-d-p", ""), ("", "s-e-l-l")]
)
def test_parameter_count_in_closed_form(absolute, relative):
    items, days, length, size, blocks = 50, 11, 7, 12, 3
    letters, others = kernel_letters(absolute, ("d", "p", "c"), ""), relative.split("-") if relative else []
    head = size // (len(letters) + len(others))
    tables = sum({"p": length, "d": days, "c": 1}[letter] * size for letter in letters)
    attention = 4 * (size**2 + size) + 2 * len(letters) * (size * head + head)
    attention += len(others) * (size * head + head) + len(others) * head
    block = attention + 8 * size**2 + 5 * size + 4 * size
    expected = (items + 2) * size + tables + blocks * block + items + 1 + size**2 + 3 * size
    model = Meantime(
        items,
        num_days=days,
        max_length=length,
        hidden_size=size,
        num_blocks=blocks,
        absolute=absolute,
        relative=relative,
    )
    assert sum(p.numel() for p in model.parameters()) == expected


def test_initialisation_draws_the_padding_row_too():
    model = Meantime(3000, init_std=0.02)
    assert model.items.weight[0].std().item() == pytest.approx(0.02, rel=0.4)
    assert model.items.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[0].attention.content.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].attention.relative_query.abs().max() > 0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


# --- errors at the door ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"absolute": "p-x"}, "absolute kernels are d, p, c"),
        ({"relative": "s,l"}, "relative kernels are s, e, l"),
        ({"absolute": "", "relative": ""}, "cannot both be empty"),
        ({"hidden_size": 30}, "hidden_size must be a multiple"),
        ({"hidden_size": 9, "absolute": "p-d", "relative": "s"}, "even hidden_size"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"num_days": 0}, "num_days must be at least 1"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"kernel_dropout": -0.1}, "kernel_dropout must be in"),
        ({"frequency": 1.0}, "frequency must be > 1"),
        ({"time_unit": 0.0}, "time_unit > 0"),
        ({"normalization": "none"}, "'pre' or 'post'"),
        ({"head": "cosine"}, "'dot' or 'linear'"),
        ({"relative_term": "exact"}, "'factored' or 'materialised'"),
        ({"init_std": 0.0}, "init_std must be positive"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Meantime(10, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict.fromkeys(("tokens", "labels"), torch.ones(3, 10, dtype=torch.int64)),
            r"T in 1\.\.9, got \(3, 10\)",
        ),
        ({"tokens": torch.full((3, 9), 22)}, r"tokens must be in 0\.\.21, got 22"),
        ({"days": torch.full((3, 9), 40)}, r"days must be in 0\.\.39, got 40"),
        ({"days": torch.full((3, 9), -1)}, r"days must be in 0\.\.39, got -1"),
        ({"timestamps": torch.zeros(3, 8)}, r"timestamps must have the shape of tokens, \(3, 9\)"),
        ({"timestamps": torch.zeros(3, 9)}, r"timestamps must be integers, got torch\.float32"),
        ({"labels": torch.zeros(3, 9, dtype=torch.int64)}, "select no position"),
        ({"labels": torch.ones(3, 8, dtype=torch.int64)}, r"labels must have the shape of tokens, \(3, 9\)"),
        ({"labels": torch.full((3, 9), 21)}, r"labels must be in 0\.\.20, got 21"),
        ({"labels": torch.full((3, 9), -100)}, r"labels must be in 0\.\.20, got -100"),
    ],
)
def test_wrong_batches_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small().loss({**random_batch(), **change})


def test_an_empty_batch_and_unknown_candidates_are_refused():
    batch = random_batch()
    with pytest.raises(ValueError, match=r"B ≥ 1 and T in 1\.\.9, got \(0, 9\)"):
        small()({key: value[:0] for key, value in batch.items()})
    with pytest.raises(ValueError, match=r"candidates must be in 0\.\.20, got 21"):
        small().scores(batch, torch.full((3, 2), 21))


def test_missing_timestamps_are_named_and_not_needed_without_relative_kernels():
    batch = random_batch()
    batch.pop("timestamps")
    with pytest.raises(ValueError, match="timestamps must have the shape of tokens.*got nothing"):
        small()(batch)
    assert small("p", "")(batch).shape == (3, 9, 21)


# --- one table for all heads ---


def test_heads_that_read_one_table_are_heads_with_equal_tables():
    """Four equal tables compute what one shared table does; four different ones do not."""
    torch.manual_seed(0)
    shared = Meantime(
        20, max_length=6, hidden_size=8, absolute="p-d-p-d", relative="", num_days=9, one_table=True
    )
    apart = Meantime(20, max_length=6, hidden_size=8, absolute="p-d-p-d", relative="", num_days=9)
    assert len(shared.tables) == 2 and len(apart.tables) == 4
    state = {name: value for name, value in shared.state_dict().items() if not name.startswith("tables")}
    for head, table in enumerate([0, 1, 0, 1]):
        state[f"tables.{head}.weight"] = shared.tables[table].weight
    apart.load_state_dict(state)
    shared.eval(), apart.eval()
    tokens = torch.tensor([[0, 3, 5, 7, 21], [1, 2, 3, 4, 21]])
    batch = {"tokens": tokens, "days": torch.tensor([[0, 1, 1, 2, 8], [0, 0, 3, 4, 5]])}
    assert torch.allclose(shared(batch), apart(batch), atol=1e-6)
    with torch.no_grad():
        apart.tables[2].weight[-1].add_(100 * torch.randn(8))
    assert not torch.allclose(shared(batch), apart(batch), atol=1e-6)


def test_one_table_learns_from_every_head():
    torch.manual_seed(0)
    model = Meantime(
        20, max_length=6, hidden_size=8, absolute="p-p", relative="", dropout=0.0, one_table=True
    )
    batch = {"tokens": torch.tensor([[1, 2, 3, 4, 21]])}
    model(batch)[0, -1, 5].backward()
    whole = model.tables[0].weight.grad.clone()
    layer = model.blocks[0].attention.absolute[1]
    model.zero_grad()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.absolute[1].weight.zero_()
    model(batch)[0, -1, 5].backward()
    assert layer.weight.abs().sum() == 0 and not torch.allclose(model.tables[0].weight.grad, whole)


# --- many items ---


class MostLogits(TorchDispatchMode):
    """The most rows of logits of 21 classes that there are at once."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dim() == 2 and result.shape[1] == 21:
            self.rows = max(self.rows, len(result))
        return result


def gradients(model, batch):
    model.zero_grad()
    with MostLogits() as most:
        loss = model.loss(batch)
        loss.backward()
    return loss, [parameter.grad.clone() for parameter in model.parameters()], most.rows


@pytest.mark.parametrize("head", ["dot", "linear"])
@pytest.mark.parametrize("model", [small, lambda **options: BERT4Rec(20, max_length=9, **options).double()])
def test_with_many_items_the_loss_is_taken_in_parts(model, head, monkeypatch):
    model = model(head=head, dropout=0.0, hidden_size=12)
    batch = random_batch(batch_size=64)
    batch["labels"] = batch["tokens"].clamp(max=20)
    loss, expected, at_once = gradients(model, batch)
    monkeypatch.setattr(cloze, "MOST_AT_ONCE", 20)
    monkeypatch.setattr(cloze, "LOGITS", 21 * 16)
    again, found, in_parts = gradients(model, batch)
    assert_close(again, loss, rtol=1e-13, atol=0)
    assert_close(found, expected, rtol=1e-11, atol=1e-14)
    assert (at_once, in_parts) == (int((batch["labels"] > 0).sum()), 16)


def test_few_items_are_taken_at_once():
    """What was measured with them stays as it is, bit for bit."""
    model, batch = small(), random_batch()
    rows = (batch["labels"].flatten() > 0).nonzero()[:, 0]
    expected = F.cross_entropy(model(batch, rows), batch["labels"].flatten()[rows])
    assert torch.equal(model.loss(batch), expected)
    assert cloze.MOST_AT_ONCE >= 3417  # MovieLens
