"""One training step of MEANTIME against the straightforward one, side by side: time, memory, equal results.

The straightforward step, below, does what the definition says: it writes each relative kernel out for every
pair, drops its elements, projects it to the head's size and contracts it with the queries. Sizes are the
paper's with a batch of 64: T = 200, H = 64, heads p-d + s-l, 2 blocks, 3416 items, 1040 days, one thread.
"""

from __future__ import annotations

import copy
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from lib.models.recommenders.meantime import Meantime
from lib.models.recommenders.temporal_kernels import relative_kernel

ITEMS, DAYS, LENGTH, HIDDEN, HEADS = 3416, 1040, 200, 64, 4


def make_batch(batch_size: int, length: int = LENGTH, *, largest_gap: float = 1e6) -> dict[str, torch.Tensor]:
    """Sessions of seconds, with pauses up to ``largest_gap`` seconds; the first sequence is half padding."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(3, batch_size, length, generator=generator)
    gaps = torch.where(uniform[0] < 0.9, uniform[1] * 60, uniform[1] * largest_gap / length)
    timestamps = 956_703_932 + gaps.long().cumsum(1)
    items = torch.randint(1, ITEMS + 1, (batch_size, length), generator=generator)
    selected = uniform[2] < 0.2
    real = torch.ones(batch_size, length, dtype=torch.bool)
    real[0, : length // 2] = False
    return {
        "tokens": torch.where(selected, ITEMS + 1, items) * real,
        "timestamps": timestamps * real,
        "days": (timestamps - 956_703_932) // 86_400 * real,
        "labels": items * (selected & real),
    }


def straightforward_loss(
    weights: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], dropout: float
) -> torch.Tensor:
    """The training loss from weights under the authors' keys, kernels written out pair by pair."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def drop(x):
        return F.dropout(x, dropout)

    def heads(x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    tokens = batch["tokens"]
    items = weights["token_embedding.emb.weight"]
    x = drop(items[tokens])
    positions = weights["absolute_kernel_embeddings_list.0.emb.weight"].expand(*x.shape)
    days = weights["absolute_kernel_embeddings_list.1.emb.weight"][batch["days"]]
    absolute = [drop(positions), drop(days)]
    gaps = batch["timestamps"][:, :, None] - batch["timestamps"][:, None, :]
    relative = [drop(relative_kernel(letter)(gaps.to(x.dtype), HIDDEN)) for letter in "sl"]
    for b in range(2):
        block = f"body.transformer_blocks.{b}"
        y, name = norm(x, f"{block}.input_sublayer.norm"), f"{block}.attention"
        query, key, value = (heads(linear(y, f"{name}.content_linear_layers.{k}")) for k in range(3))
        logits = []
        for k, kernel in enumerate(absolute):
            q = query[:, k] + linear(kernel, f"{name}.abs_position_query_linear_layers.{k}")
            logits.append(q @ (key[:, k] + linear(kernel, f"{name}.abs_position_key_linear_layers.{k}")).mT)
        for k, kernel in enumerate(relative):
            projected = linear(kernel, f"{name}.rel_position_key_linear_layers.{k}")
            q = query[:, 2 + k] + weights[f"{name}.rel_position_bias"][0, k, 0]
            logits.append(query[:, 2 + k] @ key[:, 2 + k].mT + torch.einsum("bid,bijd->bij", q, projected))
        scaled = torch.stack(logits, dim=1) / (HIDDEN // HEADS) ** 0.5
        masked = scaled.masked_fill((tokens == 0)[:, None, None], -1e9)
        mixed = (drop(masked.softmax(-1)) @ value).transpose(1, 2).flatten(2)
        x = x + drop(linear(mixed, f"{name}.output_linear"))
        y = norm(x, f"{block}.output_sublayer.norm")
        inner = drop(F.gelu(linear(y, f"{block}.feed_forward.w_1"), approximate="tanh"))
        x = drop(x + drop(linear(inner, f"{block}.feed_forward.w_2")))
    selected = batch["labels"] > 0
    z = norm(F.gelu(linear(x[selected], "head.out.0"), approximate="tanh"), "head.out.2")
    return F.cross_entropy(z @ items[:-1].T + weights["head.bias"], batch["labels"][selected])


def make_model(dropout: float, **options) -> Meantime:
    torch.manual_seed(0)
    options = {"num_days": DAYS, "max_length": LENGTH, "hidden_size": HIDDEN, **options}
    return Meantime(ITEMS, dropout=dropout, **options).train()


def authors_weights(model: Meantime) -> dict[str, torch.Tensor]:
    weights = model.to_authors()
    weights.pop("head.token_embeddings.weight")
    return {key: value.requires_grad_() for key, value in weights.items()}


def make_step(kind: str, batch_size: int, dropout: float, length: int = LENGTH):
    """A function that does one step: forward, loss, backward."""
    model, batch = make_model(dropout, max_length=length), make_batch(batch_size, length)
    if kind == "ours":
        return lambda: model.loss(batch).backward()
    weights = authors_weights(model)
    return lambda: straightforward_loss(weights, batch, dropout).backward()


def gradients_under_authors_keys(model: Meantime) -> dict[str, torch.Tensor]:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            ours.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    gradients = twin.to_authors()
    gradients.pop("head.token_embeddings.weight")
    return gradients


@pytest.mark.benchmark
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradients_equal_the_straightforward_ones(dtype):
    # The straightforward side is in float64 always: its float32 phases are noise for gaps of 10⁷ s.
    batch = make_batch(2, largest_gap=1e8)
    model = make_model(0.0, init_std=0.1).to(dtype)
    weights = {key: value.detach().double().requires_grad_() for key, value in authors_weights(model).items()}
    expected = straightforward_loss(weights, batch, 0.0)
    expected.backward()
    loss = model.loss(batch)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    largest = max(weight.grad.abs().max() for weight in weights.values())
    for key, gradient in gradients_under_authors_keys(model).items():
        # Biases that are constant over the keys have gradient zero but for rounding: hence the second term.
        tolerance = 1e-5 * weights[key].grad.abs().max() + 1e-7 * largest
        assert (gradient - weights[key].grad).abs().max() <= tolerance, key


@pytest.mark.benchmark
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_step_is_three_times_as_fast(dropout, takes):
    ours, theirs = (make_step(kind, 64, dropout) for kind in ("ours", "straightforward"))
    ours()  # allocations and caches; the straightforward step is long enough not to need it
    takes(1 / 3, ours, theirs, what=f"a step at B=64, T=200, dropout {dropout}", rounds=1)


@pytest.mark.benchmark
def test_a_small_step_is_not_slower(takes):
    ours, theirs = (make_step(kind, 64, 0.2, length=30) for kind in ("ours", "straightforward"))
    ours(), theirs()
    takes(1, ours, theirs, what="a step at B=64, T=30, H=64")


@pytest.mark.benchmark
def test_a_step_needs_a_quarter_of_the_memory(record_property):
    # A batch of 16 keeps the straightforward step under a gigabyte; all large tensors grow with the batch.
    ours, theirs = (_peak_tensor_bytes(make_step(kind, 16, 0.2)) for kind in ("ours", "straightforward"))
    record_property("ratio", theirs / ours)
    print(f"\nmemory at B=16, T=200: {ours / 1e6:.0f} MB against {theirs / 1e6:.0f} MB, {theirs / ours:.1f}x")
    assert theirs >= 4 * ours


def _peak_tensor_bytes(step) -> int:
    """The most bytes that one step holds in tensors at once, beyond weights and data."""
    step()  # gradients exist from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        step()
    events = [event for event in log.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(sizes))
