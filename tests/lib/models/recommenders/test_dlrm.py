"""Recommendation networks: sizes of the public configurations, interactions by hand, made-up requests."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lib.cost.operations import count_operations
from lib.models.recommenders.dlrm import DLRM, rm1, rm2, rm3

SMALL = {"bottom": (5, 7, 4), "top": (6, 1), "table_rows": (10, 20, 30), "lookups": 3}


@pytest.mark.parametrize(
    ("make", "embeddings", "parameters", "gathered", "macs"),
    [
        (rm1, 1_024_000_000, 100_833, 20_480, 100_416),
        (rm2, 1_024_000_000, 319_937, 245_760, 319_552),
        (rm3, 640_000_000, 3_205_409, 6_400, 3_203_328),
    ],
)
def test_public_configurations(make, embeddings, parameters, gathered, macs):
    with torch.device("meta"):
        model = make()
    table = count_operations(model, inputs=model.requests(1), outside="rows")
    bags, layers = table[table["kind"] == "embedding bag"], table[table["kind"] == "linear"]
    assert bags["weights"].sum() == embeddings
    assert layers["weights"].sum() + layers["biases"].sum() == parameters
    assert bags["weights_read"].sum() == bags["operations"].sum() == gathered  # one operation per element
    assert layers["macs"].sum() == macs


def test_dot_interaction_written_out():
    torch.manual_seed(0)
    model = DLRM(**SMALL, interaction="dot")
    features = [torch.randn(2, 4) for _ in range(4)]
    expected = [features[0]]
    for i in range(4):
        expected += [(features[i] * features[j]).sum(1, keepdim=True) for j in range(i)]
    assert_close(model.interact(features), torch.cat(expected, dim=1))
    assert model.top[0].in_features == 4 + 6


@pytest.mark.parametrize("interaction", ["concat", "dot"])
def test_forward_written_out(interaction):
    torch.manual_seed(0)
    model = DLRM(**SMALL, interaction=interaction)
    dense, indices = model.requests(6)
    pooled = [
        table.weight[rows].sum(1) for table, rows in zip(model.tables, indices, strict=True)
    ]  # (B, L, 4) → (B, 4)
    mixed = model.interact([model.bottom(dense), *pooled])
    logits = torch.relu(mixed @ model.top[0].weight.T + model.top[0].bias) @ model.top[2].weight.T
    assert_close(model(dense, indices), torch.sigmoid(logits + model.top[2].bias).squeeze(1))
    assert isinstance(model.bottom[-1], torch.nn.ReLU)


def test_requests_are_uniform_and_seeded():
    model = DLRM(**SMALL | {"table_rows": (50, 50), "lookups": 400})
    dense, indices = model.requests(50, seed=3)
    assert dense.shape == (50, 5) and indices.shape == (2, 50, 400)
    share = torch.bincount(indices[0].flatten(), minlength=50) / indices[0].numel()
    assert_close(share, torch.full((50,), 1 / 50), atol=0.005, rtol=0)
    assert torch.equal(indices, model.requests(50, seed=3)[1])
    assert not torch.equal(indices[0], indices[1])


def test_fewer_rows_leave_all_else():
    model = rm1(table_rows=100)
    dense, indices = model.requests(2)
    assert model(dense, indices).shape == (2,) and indices.shape == (8, 2, 80)
    with torch.device("meta"):
        whole = rm1()
    shapes = [{name: p.shape for name, p in each.named_parameters()} for each in (model, whole)]
    differing = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert differing == {f"tables.{table}.weight" for table in range(8)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DLRM(**SMALL, interaction="sum"), "interaction must be concat or dot, got 'sum'"),
        (lambda: DLRM(**SMALL | {"top": (6, 2)}), "must end in 1 output, got 2"),
        (lambda: DLRM(**SMALL | {"table_rows": ()}), "sizes must be positive"),
        (lambda: DLRM(**SMALL | {"lookups": 0}), "sizes must be positive"),
        (
            lambda: DLRM(**SMALL)(torch.zeros(1, 5), torch.zeros(2, 1, 3, dtype=torch.long)),
            r"indices must be \(3, batch, lookups\), got \(2, 1, 3\)",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
