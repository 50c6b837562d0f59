"""Oracles of MEANTIME: the authors' numbers, algebra, and twins broken on purpose that must fail them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lib.models import mixed_attention, relative_attention
from lib.models.attention import attend, padding_bias
from lib.models.meantime import Meantime, kernel_letters
from lib.models.temporal_kernels import (
    log_kernel,
    sin_kernel,
)

TOKENS = torch.tensor([[0, 0, 3, 1, 7, 8]])
BATCH = {
    "tokens": TOKENS,
    "timestamps": torch.tensor([[0, 0, 100, 160, 4000, 90000]]),
    "days": torch.tensor([[0, 0, 0, 0, 1, 2]]),
    "labels": torch.tensor([[0, 0, 3, 0, 0, 5]]),
}
CANDIDATES = torch.tensor([[2, 5, 7, 1]])
TERMS = ["factored", "materialised"]

# Made with the authors' code, commit a9ca2e7, in float64 with float64 kernels, dropout off.
AUTHORS_SCORES = [
    ("p-d", "s-l", 66, [-0.730816039, -0.489253823, -0.885803250, 0.895830096]),
    ("p-d", "", 58, [-0.732708021, 0.085890179, 0.057979168, 0.062627626]),
    ("c", "e", 53, [-1.250674360, 0.285659597, 0.152719905, 0.498351598]),
    ("c", "s", 53, [-1.250677514, 0.285597130, 0.152622726, 0.498377410]),
    ("c", "l", 53, [-1.251425167, 0.284087289, 0.149813652, 0.499861762]),
    ("p", "", 49, [-0.705804542, 0.617396753, 0.180851396, 0.772795992]),
    ("d", "", 49, [-0.704688519, 0.617744667, 0.182145643, 0.771244454]),
]


def authors_state(absolute="p-d", relative="s-l"):
    """A state dict under the authors' keys: element n of the t-th key by name is sin(0.37 n + 1.3 t)/2."""
    model = Meantime(7, num_days=5, max_length=6, hidden_size=8, absolute=absolute, relative=relative)
    state = model.to_authors()
    state.pop("head.token_embeddings.weight")
    for t, key in enumerate(sorted(state)):
        n = torch.arange(state[key].numel(), dtype=torch.float64)
        state[key] = (0.5 * torch.sin(0.37 * n + 1.3 * t)).reshape(state[key].shape)
    return state


def authors_model(absolute="p-d", relative="s-l", relative_term="factored") -> Meantime:
    state = authors_state(absolute, relative)
    return Meantime.from_authors(state, absolute=absolute, relative=relative, relative_term=relative_term)


def small(absolute="p-d", relative="s-l", **options) -> Meantime:
    """A float64 model with weights large enough that everything matters, in evaluation mode."""
    torch.manual_seed(0)
    config = {"num_days": 40, "max_length": 9, "hidden_size": 12, "init_std": 0.5, "dropout": 0.0, **options}
    return Meantime(20, absolute=absolute, relative=relative, **config).double().eval()


def random_batch(length=9, batch_size=3, *, padded=3):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 22, (batch_size, length), generator=generator)
    tokens[0, :padded] = 0
    gaps = torch.randint(0, 90_000, (batch_size, length), generator=generator)
    timestamps = gaps.cumsum(1) + 1_000_000_000
    days = (timestamps - 1_000_000_000) // 86_400
    labels = torch.randint(1, 21, (batch_size, length), generator=generator) * (tokens > 0)
    return {"tokens": tokens, "timestamps": timestamps, "days": days, "labels": labels}


# --- the authors' numbers ---


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize(("absolute", "relative", "keys", "scores"), AUTHORS_SCORES)
def test_scores_of_the_authors_program(absolute, relative, keys, scores, term):
    model = authors_model(absolute, relative, term)
    assert len(authors_state(absolute, relative)) == keys
    expected = torch.tensor([scores], dtype=torch.float64)
    assert_close(model.scores(BATCH, CANDIDATES), expected, rtol=0, atol=2e-9)  # nine digits were printed
    assert_close(model.float().scores(BATCH, CANDIDATES), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("term", TERMS)
def test_hidden_state_and_loss_of_the_authors_program(term):
    model = authors_model(relative_term=term)
    last = [0.5110933, 1.9690411, -3.2040325, 1.0731611, -2.3663615, 3.3703899, -0.5454052, 2.8445103]
    assert_close(model(BATCH)[0, -1], torch.tensor(last, dtype=torch.float64), rtol=0, atol=1e-7)
    assert model.loss(BATCH).item() == pytest.approx(2.139359879, abs=1e-8)


def _interleaved(gaps, hidden_size=64, frequency=10_000.0, time_unit=1.0):
    halves = sin_kernel(gaps, hidden_size, frequency, time_unit)
    return halves.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _unsigned(gaps, *shape):
    return sin_kernel(gaps.abs(), *shape)


@pytest.mark.parametrize("twin", [_interleaved, _unsigned])
def test_a_twin_with_another_sin_kernel_fails_parity(twin, monkeypatch):
    kernels = {"s": twin, "l": log_kernel}
    monkeypatch.setattr(relative_attention, "relative_kernel", kernels.get)
    expected = torch.tensor([AUTHORS_SCORES[0][3]], dtype=torch.float64)
    scores = authors_model(relative_term="materialised").scores(BATCH, CANDIDATES)
    assert (scores - expected).abs().max() > 5e-6


def test_a_twin_with_kernels_on_values_fails_parity(monkeypatch):
    def attend_with_positions_in_values(query, key, value, *rest):
        return attend(query, key, value + key, *rest)

    monkeypatch.setattr(mixed_attention, "attend", attend_with_positions_in_values)
    expected = torch.tensor([AUTHORS_SCORES[0][3]], dtype=torch.float64)
    assert (authors_model().scores(BATCH, CANDIDATES) - expected).abs().max() > 1e-3


def test_a_twin_without_the_query_bias_fails_parity():
    model = authors_model()
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.relative_query)
    expected = torch.tensor([AUTHORS_SCORES[0][3]], dtype=torch.float64)
    assert (model.scores(BATCH, CANDIDATES) - expected).abs().max() > 1e-5


# --- invariances and reductions ---


@pytest.mark.parametrize("term", TERMS)
def test_a_shift_of_all_stamps_changes_nothing(term):
    model, batch = small("c", "s-e-l", relative_term=term), random_batch()
    shifted = {**batch, "timestamps": batch["timestamps"] + 123_456_789}
    assert_close(model(batch), model(shifted), rtol=1e-6, atol=1e-6)


def test_time_unit_equals_stamps_in_that_unit():
    batch = random_batch()
    batch["timestamps"] = batch["timestamps"] // 3600 * 3600
    hours = {**batch, "timestamps": batch["timestamps"] // 3600}
    assert_close(
        small("c", "s-e-l", time_unit=3600.0)(batch), small("c", "s-e-l")(hours), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kernels", [("d-c", "s"), ("c", "e-l"), ("", "s-e-l"), ("d", "")])
def test_permuting_events_permutes_hidden_states(kernels):
    model, batch = small(*kernels), random_batch()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    permuted = {key: value[:, order] for key, value in batch.items()}
    assert_close(model(permuted), model(batch)[:, order], rtol=1e-6, atol=1e-6)


def test_positions_break_the_permutation():
    model, batch = small("p", ""), random_batch()
    order = torch.arange(9).flip(0)
    permuted = {key: value[:, order] for key, value in batch.items()}
    assert (model(permuted) - model(batch)[:, order]).abs().max() > 1e-2


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
    assert_close(model(batch)[0, 3:], model(changed)[0, 3:], rtol=1e-9, atol=1e-9)
    assert_close(model(batch)[1:], model(changed)[1:], rtol=1e-9, atol=1e-9)


def test_attention_is_bidirectional():
    model, batch = small(), random_batch()
    later = {**batch, "tokens": batch["tokens"].clone()}
    later["tokens"][:, -1] = 2
    assert (model(batch)[:, 4] - model(later)[:, 4]).abs().max() > 1e-3


def test_without_temporal_weights_it_is_plain_attention():
    model, batch = small(num_blocks=1), random_batch()
    attention = model.blocks[0].attention
    for layer in [*attention.absolute, *attention.relative]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.nn.init.zeros_(attention.relative_query)
    x, absolute, relative, bias = model._inputs(batch)
    heads = (part.unflatten(-1, (4, 3)).transpose(1, 2) for part in attention.content(x).chunk(3, dim=-1))
    real = (batch["tokens"] > 0)[:, None, None, :]
    expected = F.scaled_dot_product_attention(*heads, attn_mask=real).transpose(1, 2).flatten(2)
    assert_close(attention(x, absolute, relative, bias), attention.output(expected))


@pytest.mark.parametrize("kernels", [("p-d", "s-l"), ("p", "")])
def test_a_window_without_real_keys_attends_uniformly(kernels):
    model, batch = small(*kernels), random_batch()
    empty = {key: torch.zeros_like(value) for key, value in batch.items()}
    for weights in model.attention_weights(empty):
        assert_close(weights, torch.full_like(weights, 1 / 9))
    assert model(empty).isfinite().all()


def test_a_twin_that_masks_with_infinity_fails_on_an_empty_window():
    scores = torch.zeros(1, 4).masked_fill(torch.ones(1, 4, dtype=torch.bool), -math.inf)
    assert torch.softmax(scores, dim=-1).isnan().all()
    kept = torch.zeros(1, 4) + padding_bias(torch.zeros(1, 4, dtype=torch.int64), torch.float32)[0, 0]
    assert_close(torch.softmax(kept, dim=-1), torch.full((1, 4), 0.25))


def test_attention_weights_are_those_of_the_forward_pass():
    model, batch = small(num_blocks=1), random_batch()
    x, *context = model._inputs(batch)
    block = model.blocks[0]
    value = block.attention.content(block.attention_norm(x)).chunk(3, dim=-1)[2]
    mixed = model.attention_weights(batch)[0] @ value.unflatten(-1, (4, 3)).transpose(1, 2)
    expected = block.attention.output(mixed.transpose(1, 2).flatten(2))
    assert_close(block.attention(block.attention_norm(x), *context), expected)


def test_a_shorter_window_is_its_right_end():
    model, batch = small(), random_batch(padded=4)
    one = {key: value[:1] for key, value in batch.items()}
    short = {key: value[:, 4:] for key, value in one.items()}
    assert_close(model(one)[:, 4:], model(short), rtol=1e-6, atol=1e-6)


# --- training ---


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("kernels", [("p-d", "s-l"), ("c-p", "e"), ("", "l-l")])
def test_loss_is_cross_entropy_at_the_selected_positions(kernels, term):
    model, batch = small(*kernels, relative_term=term), random_batch()
    logits = model.head(model(batch), model.items.weight)
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
    assert_close(model(batch), model(batch))
    model.train()
    first, second = model(batch), model(batch)
    assert (first - second).abs().max() > 1e-3
    _, absolute, relative, _ = model._inputs(batch)
    assert (absolute[0] == 0).any()
    assert (relative[0].keep == 0).any()


def test_it_trains_under_bfloat16_autocast():
    model, batch = small().float().train(), random_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


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


# --- checkpoints ---


@pytest.mark.parametrize(
    ("kernels", "options"),
    [
        (("p-d", "s-l"), {}),
        (("c", "l"), {}),
        (("p", ""), {"head_layer_norm": False}),
        (("d-d", "e"), {"head": "linear", "hidden_size": 12}),
        (("", "s"), {"head": "linear", "head_layer_norm": False, "num_blocks": 1}),
    ],
)
def test_layouts_make_the_round_trip(kernels, options):
    model = small(*kernels, **options)
    state = model.to_authors()
    loaded = Meantime.from_authors(
        state, absolute=kernels[0], relative=kernels[1], max_length=9, relative_term="factored"
    )
    assert_close(loaded(random_batch()), small(*kernels, **options)(random_batch()))
    assert loaded.to_authors().keys() == state.keys()
    biases = [v for k, v in state.items() if k.endswith("rel_position_bias")]
    heads = sum(len(k.split("-")) if k else 0 for k in kernels)
    relative = len(kernels[1].split("-")) if kernels[1] else 0
    assert {tuple(b.shape) for b in biases} == {(1, relative, 1, model.hidden_size // heads)}


def test_layout_of_the_linear_head():
    keys = small(head="linear").to_authors().keys()
    assert {"head.out.3.weight", "head.out.2.weight"} <= keys
    assert not {"head.bias", "head.token_embeddings.weight"} & keys
    keys = small(head="linear", head_layer_norm=False).to_authors().keys()
    assert "head.out.2.weight" in keys and "head.out.3.weight" not in keys
    assert "head.out.2.weight" not in small(head_layer_norm=False).to_authors()


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_checkpoint_files_as_the_authors_write_them(tmp_path, wrapper, prefix):
    state = {prefix + key: value for key, value in small().to_authors().items()}
    checkpoint = {wrapper: state, "epoch": 3, "steps": (3, 768)} if wrapper else state
    torch.save(checkpoint, tmp_path / "best_model.pth")
    model = Meantime.from_authors(tmp_path / "best_model.pth")
    assert not model.training and model.num_days == 40 and model.relative_term == "materialised"
    assert_close(model(random_batch()), small(relative_term="materialised")(random_batch()))


def test_other_checkpoints_are_refused_by_name(tmp_path):
    state = small().to_authors()
    without = {k: v for k, v in state.items() if not k.endswith("0.feed_forward.w_2.bias")}
    with pytest.raises(ValueError, match=r"missing body\.transformer_blocks\.0\.feed_forward\.w_2\.bias"):
        Meantime.from_authors(without)
    with pytest.raises(ValueError, match=r"unexpected extra\.weight"):
        Meantime.from_authors({**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no MEANTIME checkpoint.*missing token_embedding"):
        Meantime.from_authors({"item_emb.weight": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="2 absolute and 2 relative heads"):
        Meantime.from_authors(state, absolute="p", relative="s-l")
    with pytest.raises(ValueError, match="must be"):
        Meantime.from_authors({**state, "head.out.0.bias": torch.zeros(5, dtype=torch.float64)})
    with pytest.raises(ValueError, match="must equal token_embedding"):
        Meantime.from_authors({**state, "head.token_embeddings.weight": torch.zeros(22, 12)})
    with pytest.raises(FileNotFoundError):
        Meantime.from_authors(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="no state dict"):
        Meantime.from_authors({"model_state_dict": {"epoch": 3}})


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
        ({"tokens": torch.ones(3, 10, dtype=torch.int64)}, r"T in 1\.\.9, got \(3, 10\)"),
        ({"tokens": torch.full((3, 9), 22)}, r"tokens must be in 0\.\.21, got 22"),
        ({"days": torch.full((3, 9), 40)}, r"days must be in 0\.\.39, got 40"),
        ({"days": torch.full((3, 9), -1)}, r"days must be in 0\.\.39, got -1"),
        ({"timestamps": torch.zeros(3, 8)}, r"timestamps must have the shape of tokens, \(3, 9\)"),
        ({"labels": torch.zeros(3, 9, dtype=torch.int64)}, "select no position"),
    ],
)
def test_wrong_batches_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small().loss({**random_batch(), **change})


def test_missing_timestamps_are_named_and_not_needed_without_relative_kernels():
    batch = random_batch()
    batch.pop("timestamps")
    with pytest.raises(ValueError, match="timestamps must have the shape of tokens.*got nothing"):
        small()(batch)
    assert small("p", "")(batch).shape == (3, 9, 12)
