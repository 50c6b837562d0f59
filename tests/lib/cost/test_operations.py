"""Counts of operations, weights and bytes against closed forms and against torch's own counter."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lib.cost import operations
from lib.cost.operations import CountsDiffer, count_operations, count_parameters, parameter_bytes, totals


def by_torch(model: nn.Module, *inputs: torch.Tensor) -> int:
    """MACs that torch counts while the model really runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(*inputs)
    return counter.get_total_flops() // 2


class Convolve(nn.Module):
    """A convolution that is no layer."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 3, 3, 3))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(F.conv2d(x, self.kernel))


# --- single layers ---


def test_convolution_by_hand():
    row = count_operations(nn.Conv2d(3, 8, (3, 5), padding=(1, 2)), (2, 3, 10, 12)).iloc[0]
    assert (row["layer"], row["kind"], row["kernel"], row["groups"]) == ("", "conv", (3, 5), 1)
    assert row["input_shape"] == (2, 3, 10, 12) and row["output_shape"] == (2, 8, 10, 12)
    assert (row["weights"], row["biases"]) == (3 * 8 * 15, 8)
    assert row["macs"] == 2 * 8 * 10 * 12 * 3 * 15
    assert row["operations"] == 2 * row["macs"]
    assert row["bias_adds"] == row["output_elements"] == 2 * 8 * 10 * 12
    assert row["input_elements"] == 2 * 3 * 10 * 12


@given(
    dimensions=st.integers(1, 3),
    transposed=st.booleans(),
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 3),
    bias=st.booleans(),
)
def test_any_convolution_as_torch_counts_it(
    dimensions, transposed, groups, channels, kernel, stride, dilation, batch, bias
):
    name = f"Conv{'Transpose' * transposed}{dimensions}d"
    layer = getattr(nn, name)(
        channels[0] * groups,
        channels[1] * groups,
        kernel,
        stride=stride,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    shape = (batch, channels[0] * groups, *(9, 7, 6)[:dimensions])
    row = count_operations(layer, shape).iloc[0]
    x = torch.zeros(shape)
    assert row["macs"] == by_torch(layer, x)
    assert row["output_shape"] == tuple(layer(x).shape)
    assert row["weights"] + row["biases"] == count_parameters(layer)
    if transposed:
        assert row["kind"] == "transposed conv"
    else:
        one = channels[0] == 1 and groups > 1
        assert row["kind"] == ("depthwise conv" if one else "grouped conv" if groups > 1 else "conv")


def test_macs_are_the_products_really_done():
    """Each output of a layer with unit weights on a unit input counts its own products (no padding)."""
    layer = nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.ones(2, 4, 9, 8)
    assert count_operations(layer, (2, 4, 9, 8))["macs"].item() == layer(x).sum().item()


def test_linear_on_a_sequence():
    row = count_operations(nn.Linear(5, 7), (2, 3, 5)).iloc[0]
    assert (row["kind"], row["macs"], row["bias_adds"], row["weights"]) == ("linear", 2 * 3 * 35, 42, 35)


@pytest.mark.parametrize(
    ("cell", "gates", "kind"), [(nn.LSTM, 4, "lstm"), (nn.GRU, 3, "gru"), (nn.RNN, 1, "rnn")]
)
@pytest.mark.parametrize("device", ["meta", None])
def test_recurrent(cell, gates, kind, device):
    layer = cell(16, 32, num_layers=2, bidirectional=True)
    row = count_operations(layer, (5, 3, 16), device=device).iloc[0]
    weights = 2 * gates * 32 * ((16 + 32) + (64 + 32))
    assert (row["kind"], row["weights"], row["biases"]) == (kind, weights, 2 * 2 * 2 * gates * 32)
    assert row["macs"] == 15 * weights
    assert row["weights"] + row["biases"] == count_parameters(layer)
    assert row["output_shape"] == (5, 3, 64)


def test_recurrent_cells_projection_and_packed_sequences():
    cell = nn.GRUCell(4, 6)
    assert count_operations(cell, (3, 4))["macs"].item() == 3 * 3 * 6 * (4 + 6)
    projected = nn.LSTM(8, 16, proj_size=4)
    assert count_operations(projected, (5, 2, 8))["macs"].item() == 10 * (4 * 16 * (8 + 4) + 16 * 4)
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(5, 2, 8), [5, 3])
    table = count_operations(nn.LSTM(8, 16), inputs=packed, device=None)
    assert table["macs"].item() == 8 * 4 * 16 * (8 + 16)


def test_embeddings():
    indices = torch.zeros(6, 10, dtype=torch.long)
    row = count_operations(nn.Embedding(1000, 16), inputs=indices).iloc[0]
    assert (row["kind"], row["weights"], row["weights_read"], row["operations"]) == (
        "embedding",
        16_000,
        960,
        0,
    )
    row = count_operations(nn.EmbeddingBag(1000, 16, mode="sum"), inputs=indices).iloc[0]
    assert (row["kind"], row["weights_read"], row["operations"], row["macs"]) == (
        "embedding bag",
        960,
        960,
        0,
    )
    weighted = (indices, None, torch.zeros(6, 10))
    row = count_operations(nn.EmbeddingBag(1000, 16, mode="sum"), inputs=weighted, device=None).iloc[0]
    assert (row["weights_read"], row["operations"], row["macs"]) == (960, 1920, 960)


# --- models ---


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


def test_rows_stand_in_order_of_execution_and_sum_to_torchs_total():
    model = small()
    table = count_operations(model, (2, 3, 8, 8))
    assert table["layer"].tolist() == ["0", "3", "5"]
    assert table["kind"].tolist() == ["conv", "depthwise conv", "linear"]
    assert totals(table)["macs"] == by_torch(model, torch.zeros(2, 3, 8, 8))
    assert totals(table)["weights"] + totals(table)["biases"] + 16 == count_parameters(model)


def test_the_model_is_left_as_it_was():
    model = small().train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(module._forward_hooks) for module in model.modules()]
    for device in ("meta", None):
        count_operations(model, (1, 3, 8, 8), device=device)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) and value.device.type == "cpu"


def test_a_model_too_large_for_any_memory_is_counted():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**6, 10**6, bias=False))
    assert count_operations(model, (1, 10**6))["macs"].item() == 10**12


def test_shared_weights_are_counted_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 8)
            self.mix = nn.Linear(8, 8)
            self.output = nn.Linear(8, 50, bias=False)
            self.output.weight = self.table.weight

        def forward(self, index):
            return self.output(self.mix(self.mix(self.table(index))))

    table = count_operations(Tied(), inputs=torch.zeros(3, dtype=torch.long))
    assert table["layer"].tolist() == ["table", "mix", "mix", "output"]
    assert table["use"].tolist() == [0, 0, 1, 1]
    assert totals(table)["weights"] == 50 * 8 + 64
    assert totals(table)["macs"] == 3 * (2 * 64 + 400)


def test_a_subclass_counts_as_its_layer_and_inner_layers_once():
    class Twice(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x)

    assert count_operations(nn.Sequential(Twice()), (1, 4))["layer"].tolist() == ["0"]


# --- what would be lost ---


def test_products_outside_layers_are_reported():
    with pytest.warns(UserWarning, match="3888 MACs of convolution"):
        table = count_operations(Convolve(), (1, 3, 8, 8))
    assert table["layer"].tolist() == ["last"]
    with pytest.raises(CountsDiffer, match="outside its layers"):
        count_operations(Convolve(), (1, 3, 8, 8), outside="raise")
    table = count_operations(Convolve(), (1, 3, 8, 8), outside="rows")
    assert table["kind"].tolist() == ["conv", "convolution"]
    assert totals(table)["macs"] == by_torch(Convolve(), torch.zeros(1, 3, 8, 8))
    assert len(count_operations(Convolve(), (1, 3, 8, 8), outside="ignore")) == 1


def test_attention_is_not_hidden_by_a_fused_kernel():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    for device in ("meta", None):
        table = count_operations(model, (1, 5, 16), device=device, outside="rows")
        assert totals(table)["macs"] == 5 * (3 * 256 + 256 + 2 * 16 * 32) + 2 * 5 * 5 * 16
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_wrong_count_is_caught_by_torchs(monkeypatch):
    right = operations._row
    monkeypatch.setattr(operations, "_row", lambda *a: right(*a) | {"macs": right(*a)["macs"] + 1})
    with pytest.raises(CountsDiffer, match="torch counts 432 MACs, the layer's shapes give 433"):
        count_operations(nn.Conv2d(3, 4, 3), (1, 3, 4, 4))


# --- bytes ---


def test_bytes_at_given_bits():
    model = small()
    weights, others = 216 + 72 + 512, 8 + 16 + 8 + 4
    assert parameter_bytes(model) == 4 * (weights + others)
    assert parameter_bytes(model, weight_bits=4) == weights // 2 + 4 * others
    mixed = {"0": 3, "5": 1}
    assert parameter_bytes(model, weight_bits=mixed) == math.ceil(216 * 3 / 8) + 64 + 4 * (72 + others)
    assert parameter_bytes(nn.Linear(3, 3, bias=False), weight_bits=1) == 2
    assert parameter_bytes(nn.LSTM(2, 3), weight_bits=8) == 4 * 3 * 5 + 4 * 24


# --- bad input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count_operations(nn.ReLU(), (1, 3)), "ReLU runs no layer with weights"),
        (
            lambda: count_operations(small(), (1, 4, 8, 8)),
            r"Sequential does not run on inputs of shape \(1, 4, 8, 8\)",
        ),
        (lambda: count_operations(small()), "either input_shape or inputs"),
        (
            lambda: count_operations(small(), (1, 3, 8, 8), inputs=torch.zeros(1)),
            "either input_shape or inputs",
        ),
        (lambda: count_operations(small(), (0, 3, 8, 8)), "positive integers"),
        (lambda: count_operations(small(), (1, 3, 8, 8), device="cuda"), 'device must be "meta" or None'),
        (lambda: count_operations(small(), (1, 3, 8, 8), outside="lose"), "outside must be"),
        (lambda: parameter_bytes(small(), weight_bits=0), "bits must be positive"),
        (lambda: parameter_bytes(small(), weight_bits={"1": 8}), "'1' is no layer with weights"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_that_looks_at_values_is_told_how():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) if x.sum().item() >= 0 else x

    with pytest.raises(ValueError, match="needs device=None"):
        count_operations(Looks(), (1, 2))
    assert count_operations(Looks(), (1, 2), device=None)["macs"].item() == 4
