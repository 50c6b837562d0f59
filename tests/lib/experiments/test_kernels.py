"""Kernel timing: kernels compute what they claim, limits are kept and verified, a failed child is loud."""

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from lib.experiments import kernel_times as kernels
from lib.experiments.kernel_times import (
    block_ratios,
    check_level,
    levels,
    linear_kernels,
    measure,
    operator_kind,
)


@pytest.fixture(autouse=True)
def engine():
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


@pytest.mark.parametrize("shape", [(1, 32, 48), (6, 256, 64), (20, 33, 130)])
def test_every_kernel_is_the_same_product(shape):
    functions = linear_kernels(*shape)
    assert {"fp32, BLAS", "bf16", "fp16 weights", "int8, FBGEMM", "int8 dynamic, oneDNN"} <= set(functions)
    exact = functions["fp32, BLAS"]()
    assert exact.shape == shape[:2]
    with torch.no_grad():
        results = {name: function() for name, function in functions.items()}
    for name, result in results.items():
        off = (result.dequantize() if result.is_quantized else result.float()) - exact
        # static int8 leaves as integers with a step of 1; the others lose a few bits of the operands
        limit = (
            0.75 if name in ("int8, FBGEMM", "int8, oneDNN") else 0.02 * exact.norm() / exact.numel() ** 0.5
        )
        assert off.norm() / exact.numel() ** 0.5 < limit, name
        assert name.startswith("fp32") or off.abs().max() > 0, name


def test_levels_are_kept():
    """At each level below the widest, int8 pairs are cut; a process that keeps no limit says so."""
    assert levels()[-1] == "native"
    for level in levels():
        asked = {"shapes": [[1, 16, 16]], "rounds": 2, "at_least_ms": 0.01}
        answer = measure({"linear": asked}, level=level)
        assert answer["level"] == level and answer["facts"]["processor"]
        if level != "native":
            assert set(answer["facts"]["pairs"].values()) == {"cut"}
        rows = answer["linear"]
        assert set(rows["function"]) == set(linear_kernels(1, 16, 16)) and (rows["milliseconds"] > 0).all()
        assert (rows.groupby("function")["round"].nunique() == 2).all()


@pytest.mark.parametrize(
    ("level", "torch_level", "pairs", "kept"),
    [
        ("AVX2", "AVX2", "cut", True),
        ("AVX2", "AVX512", "cut", False),
        ("AVX2", "AVX2", "exact", False),
        ("AVX-512", "AVX512", "neither", False),
        ("native", "AVX512", "exact", True),
    ],
)
def test_a_limit_that_was_not_kept_is_an_error(level, torch_level, pairs, kept):
    seen = {"torch": torch_level, "pairs": {"fbgemm": "cut", "onednn": pairs}}
    if kept:
        check_level(level, seen)
    else:
        with pytest.raises(RuntimeError, match="was not kept"):
            check_level(level, seen)


def test_a_failed_process_is_loud():
    with pytest.raises(
        RuntimeError, match=r"timing of linear at level native failed: .*must be positive, got 0"
    ):
        measure({"linear": {"shapes": [[0, 1, 1]]}})


def test_a_hung_process_is_ended(monkeypatch):
    monkeypatch.setattr(kernels, "SECONDS", 0.05)
    with pytest.raises(RuntimeError, match="more than"):
        measure({"linear": {"shapes": [[1, 1, 1]]}})


def test_embedding_rows_and_bytes():
    rows = pd.DataFrame(kernels.time_embedding(table_rows=1000, dim=8, bags=2, lookups=3, rounds=3))
    moved = rows.groupby("function")["bytes"].unique().map(list).to_dict()
    assert moved == {"32 bits": [6 * 32], "8 bits": [6 * 16], "4 bits": [6 * 8], "copy": [2 * 500 * 8 * 4]}
    assert (rows["milliseconds"] > 0).all() and rows["round"].nunique() == 3


def test_fused_and_separate_are_timed_in_pairs():
    with torch.no_grad():
        rows = pd.DataFrame(kernels.time_fusion(shape=(4, 16, 8), table_rows=100, dim=4, bags=2, rounds=2))
    assert rows.groupby("pair")["function"].nunique().tolist() == [2, 2, 2]


def test_fused_operators_compute_the_same():
    x, w, b = torch.randn(4, 8), torch.randn(6, 8), torch.randn(6)
    with torch.no_grad():
        packed = torch.ops.mkldnn._reorder_linear_weight(w, 4)
        fused = torch.ops.mkldnn._linear_pointwise(x, packed, b, "relu", [], "")
    torch.testing.assert_close(fused, F.relu(F.linear(x, w, b)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("addmm", "matrix product"),
        ("t", "tensor manipulation"),
        ("tanh", "element-wise"),
        ("mkldnn_convolution", "convolution"),
        ("_slow_conv2d_forward", "convolution"),
        ("mkldnn_rnn_layer", "recurrent layer"),
        ("_embedding_bag_forward_only", "embedding"),
        ("index_select", "embedding"),
        ("add", "element-wise"),
        ("max_pool2d_with_indices", "pooling"),
        ("native_batch_norm", "normalisation"),
        ("as_strided", "tensor manipulation"),
        ("nobody_knows", "other"),
    ],
)
def test_kind_of_an_operator(name, kind):
    assert operator_kind(name) == kind


def test_blocks_are_replicates():
    times = {"slow": [4, 4, 8, 8, 2, 2], "fast": [2, 2, 2, 2, 1, 1]}
    table = pd.DataFrame(
        [{"function": f, "round": i, "milliseconds": t} for f, ts in times.items() for i, t in enumerate(ts)]
    )
    ratios = block_ratios(table, "slow", 3)
    assert ratios["fast"].tolist() == [2, 4, 2] and list(ratios.columns) == ["fast"]
    for call, message in [
        (lambda: block_ratios(table, "none", 3), "was not timed"),
        (lambda: block_ratios(table, "slow", 7), "6 rounds"),
        (lambda: measure({"nothing": {}}), "tasks must be"),
        (lambda: measure({"linear": {}}, level="MMX"), "level must be"),
        (lambda: kernels.time_operators(batches={"poetry": 1}), "poetry"),
        (lambda: linear_kernels(1, -1, 1), "outputs must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
