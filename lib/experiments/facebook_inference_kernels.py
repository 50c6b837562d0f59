"""The kernels that the chapter on inference in data centres times, and what it makes of their times.

Linear layers in every precision that torch has a kernel for, pooled look-ups in embedding tables, and fused
operators against separate ones. Started as a program, this module times them, and whole models
(`lib.experiments.facebook_inference_operators`), at the instruction set that `lib.experiments.kernel_times`
set; `measure` starts it.

``torch.ops.quantized`` and ``torch.ops.mkldnn`` are torch's own: the first is what the modules of
``torch.ao.nn.quantized`` call, the second what ``torch.compile`` makes of a linear layer on a processor. No
documented function multiplies with weights packed in advance, which is what inference does. Known with torch
2.13; pyproject.toml keeps torch below 2.14.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.cost.latency import paired_latency
from lib.experiments import kernel_times
from lib.experiments.facebook_inference_operators import time_operators
from lib.experiments.kernel_times import block_ratios, timed_rounds

FP32 = ("fp32, BLAS", "fp32, oneDNN")
SKINNY, SQUARE = (
    (1, 4096, 1024),
    (1024, 1024, 1024),
)  # M, N, K: limited by weights read, limited by arithmetic
# Weights of 67 MB in int8, 268 MB in fp32: more than a last-level cache holds.
MEMORY = (1, 4096, 16384)
# Of the authors' benchmark files, for translation and ranking.
SERVICE = ((6, 4096, 1024), (16, 256, 512), (64, 800, 320), (102, 1024, 512))
JUDGED = (*FP32, "fp16 weights", "int8, FBGEMM")


def measure(tasks: Mapping[str, Mapping[str, Any]], *, level: str = "native") -> dict[str, Any]:
    """Time tasks of `TASKS` in a process of their own, as `lib.experiments.kernel_times.run_apart`.

    ValueError for an unknown task or level.
    """
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {unknown[0]!r}")
    return kernel_times.run_apart(__name__, tasks, level=level)


def read_shapes(texts: Sequence[str]) -> list[tuple[int, int, int]]:
    """``6x4096x1024`` as (6, 4096, 1024); ValueError for what is no M x N x K of positive numbers."""
    found = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text) for text in texts]
    if None in found:
        raise ValueError(f"a shape is M, N, K as in 6x4096x1024, got {texts[found.index(None)]!r}")
    return [tuple(map(int, shape.groups())) for shape in found]


# --- what is timed -----------------------------------------------------------------------------------------


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of an embedding row of `dim` numbers, as FBGEMM packs it; 32 bits mean plain float32.

    Codes of 8 bits are followed by a scale and a bias in float32, codes of 4 bits by both in float16.
    """
    if bits not in (32, 8, 4):
        raise ValueError(f"bits must be 32, 8 or 4, got {bits}")
    if dim < 1 or (bits == 4 and dim % 2):
        raise ValueError(f"dim must be positive, and even with 4 bits, got {dim}")
    return {32: 4 * dim, 8: dim + 8, 4: dim // 2 + 4}[bits]


def linear_kernels(
    rows: int, outputs: int, depth: int, *, only: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Callable[[], Any]]:
    """Torch's ways to multiply activations (rows, depth) with packed weights (outputs, depth), by name.

    `only` names those that are wanted: others pack no weights, which are large where memory is timed.

    fp32 from the BLAS library and from oneDNN; bf16; fp16 weights with fp32 arithmetic (FBGEMM, the paper's
    use of fp16); int8 with 32-bit sums: static (activations are integers already) and dynamic (their range is
    found at each call). Where this processor or build lacks a kernel, it is left out.
    """
    for name, size in {"rows": rows, "outputs": outputs, "depth": depth}.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")
    random = torch.Generator().manual_seed(seed)
    x, w = torch.randn(rows, depth, generator=random), torch.randn(outputs, depth, generator=random)
    images = torch.quantize_per_tensor(x, float(x.max() - x.min()) / 255, 128, torch.quint8)
    kernels: dict[str, Callable[[], Any]] = {}

    def wanted(name: str) -> bool:
        return only is None or name in only

    if wanted("fp32, BLAS"):
        kernels["fp32, BLAS"] = lambda: F.linear(x, w)
    if torch.backends.mkldnn.is_available():
        if wanted("fp32, oneDNN"):
            one = _onednn_linear(w, rows)
            kernels["fp32, oneDNN"] = lambda: one(x, None, "none")
        if wanted("bf16"):
            halves = x.bfloat16(), w.bfloat16()
            kernels["bf16"] = lambda: F.linear(*halves)
    for engine, name in {"fbgemm": "FBGEMM", "onednn": "oneDNN"}.items():
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        if engine == "fbgemm" and wanted("fp16 weights"):
            fp16 = torch.ops.quantized.linear_prepack_fp16(w, None)
            kernels["fp16 weights"] = lambda p=fp16: torch.ops.quantized.linear_dynamic_fp16(x, p)
        # Packed apart: oneDNN keeps a primitive with the weights, and the other operator crashes on it.
        if wanted(f"int8, {name}"):
            static = torch.ops.quantized.linear_prepack(_codes(w), None)
            kernels[f"int8, {name}"] = lambda p=static: torch.ops.quantized.linear(images, p, 1.0, 128)
        if wanted(f"int8 dynamic, {name}"):
            dynamic = torch.ops.quantized.linear_prepack(_codes(w), None)
            kernels[f"int8 dynamic, {name}"] = lambda p=dynamic: torch.ops.quantized.linear_dynamic(x, p)
    return kernels


def _onednn_linear(weight: Tensor, rows: int) -> Callable[[Tensor, Tensor | None, str], Tensor]:
    """oneDNN's linear layer with packed fp32 weights, for so many rows: of input, bias, "none" or "relu"."""
    # Private, known with torch 2.13: what is documented packs the weights at each call, and fuses no ReLU.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x, bias, then: product(x, packed, bias, then, [], "")


def _codes(weight: Tensor) -> Tensor:
    """Weights (outputs, inputs) in int8, one scale per output, of which the largest is ±127."""
    scale = weight.abs().amax(1).double() / 127
    zero = torch.zeros(len(weight), dtype=torch.int64)
    return torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)


def time_linear(
    shapes: Sequence[Sequence[int]],
    *,
    rounds: int = 30,
    at_least_ms: float = 1.0,
    only: Sequence[str] | None = None,
) -> list[dict]:
    """Time every kernel of `linear_kernels` (`only` some) for shapes (M, N, K): rows of ``M``, ``N``, ``K``,
    ``function``, ``round``, ``milliseconds`` per call.

    A fast kernel is called several times in a row, so that each measurement takes about `at_least_ms`.
    """
    rows = []
    for shape in shapes:
        kernels = linear_kernels(*shape, only=only)
        table = timed_rounds(kernels, rounds, at_least_ms)
        rows += table.assign(M=shape[0], N=shape[1], K=shape[2]).to_dict("records")
    return rows


def time_embedding(
    *, table_rows: int = 2_000_000, dim: int = 64, bags: int = 64, lookups: int = 80, rounds: int = 30
) -> list[dict]:
    """Time pooled look-ups in tables of 32, 8 and 4 bits, and a copy as long as the fp32 table.

    Every call looks up rows drawn anew, uniformly, so that only chance finds one in a cache; the tables have
    to exceed the last-level cache by far. Rows have ``bytes``: those of the table rows read, or those that
    the copy reads and writes.
    """
    random = torch.Generator().manual_seed(0)
    offsets = torch.arange(0, bags * lookups + 1, lookups)
    tables = {32: torch.full((table_rows, dim), 0.5)}
    for bits in (8, 4):
        tables[bits] = torch.full((table_rows, row_bytes(dim, bits)), 60, dtype=torch.uint8)

    def fresh() -> Callable[[], Tensor]:
        drawn = [torch.randint(table_rows, (bags * lookups,), generator=random) for _ in range(rounds + 3)]
        return cycle(drawn).__next__

    pooled = torch.ops.quantized
    of = {bits: fresh() for bits in tables}
    half = len(tables[32]) // 2
    functions: dict[str, Callable[[], Any]] = {
        "32 bits": lambda: F.embedding_bag(of[32](), tables[32], offsets[:-1], mode="sum"),
        "8 bits": lambda: pooled.embedding_bag_byte_rowwise_offsets(
            tables[8], of[8](), offsets, False, 0, False, None, None, True
        ),
        "4 bits": lambda: pooled.embedding_bag_4bit_rowwise_offsets(
            tables[4], of[4](), offsets, False, 0, False, None, None, True
        ),
        "copy": lambda: tables[32][:half].copy_(tables[32][half : 2 * half]),
    }
    moved = {f"{bits} bits": bags * lookups * row_bytes(dim, bits) for bits in tables}
    moved["copy"] = 2 * half * dim * 4
    table = paired_latency(functions, repeats=rounds, warmup=2, clock=time.thread_time)
    return table.assign(bytes=table["function"].map(moved)).to_dict("records")


def time_fusion(
    *, shape: Sequence[int] = (25088, 256, 64), table_rows: int = 500_000, dim: int = 64, bags: int = 64,
    lookups: int = 80, rounds: int = 30,
) -> list[dict]:  # fmt: skip
    """Time sequences of operators against one fused operator with the same kernel inside; rows have ``pair``.

    Linear layer, bias and ReLU in fp32 (oneDNN) and int8 (FBGEMM), by default the shape of a 1×1 convolution
    of ResNet-50 on eight images, whose output is long and whose sums are short; gathering and adding up
    embedding rows.
    """
    random = torch.Generator().manual_seed(0)
    m, n, k = shape
    x, w, b = (torch.randn(size, generator=random) for size in ((m, k), (n, k), (n,)))
    one = _onednn_linear(w, m)
    torch.backends.quantized.engine = "fbgemm"
    codes = _codes(w)
    apart, joined = (torch.ops.quantized.linear_prepack(codes, b) for _ in range(2))
    q = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
    table = torch.full((table_rows, dim), 0.5)
    drawn = [torch.randint(table_rows, (bags, lookups), generator=random) for _ in range(2 * rounds + 6)]
    following = cycle(drawn).__next__
    pairs = {
        "linear + bias + ReLU, fp32": (
            lambda: F.relu(one(x, None, "none") + b),
            lambda: one(x, b, "relu"),
        ),
        "linear + ReLU, int8": (
            lambda: torch.relu(torch.ops.quantized.linear(q, apart, 0.1, 128)),
            lambda: torch.ops.quantized.linear_relu(q, joined, 0.1, 128),
        ),
        "embedding rows + sum, fp32": (
            lambda: F.embedding(following(), table).sum(1),
            lambda: F.embedding_bag(following(), table, mode="sum"),
        ),
    }
    rows = []
    for pair, (separate, fused) in pairs.items():
        timed = timed_rounds({"separate": separate, "fused": fused}, rounds, 1.0)
        rows += timed.assign(pair=pair).to_dict("records")
    return rows


# --- what is made of the times -----------------------------------------------------------------------------


def speed_ups(linear: pd.DataFrame, blocks: int) -> dict[tuple[int, int, int], pd.DataFrame]:
    """Speed-ups over fp32 by shape (M, N, K), as `lib.experiments.kernel_times.block_ratios` gives them.

    For each shape the faster of both fp32 kernels (by its median) is the baseline.

    Parameters
    ----------
    linear : DataFrame
        Rows of `time_linear`.
    """
    found = {}
    for shape, table in linear.groupby(["M", "N", "K"]):
        medians = table.groupby("function")["milliseconds"].median()
        baseline = medians[[name for name in FP32 if name in medians]].idxmin()
        found[shape] = block_ratios(table, baseline, blocks)
    return found


def rates(linear: pd.DataFrame) -> pd.DataFrame:
    """Gop/s of every kernel at its median time, by ``M × N × K`` (as ``1×4096×1024``) and ``function``."""
    parts = []
    for shape, table in linear.groupby(["M", "N", "K"]):
        medians = table.groupby("function")["milliseconds"].median()
        part = pd.DataFrame(
            {"M × N × K": "×".join(map(str, shape)), "Gop/s": 2e-6 * np.prod(shape) / medians}
        )
        parts.append(part.reset_index())
    return pd.concat(parts).set_index(["M × N × K", "function"])


def reduced_precision(
    faster: Mapping[tuple[int, int, int], pd.DataFrame], memory: pd.DataFrame
) -> dict[str, dict[str, list[float]]]:
    """What fp16 weights and int8 gain at AVX2, by shape: a value per block.

    Parameters
    ----------
    faster : mapping
        From `speed_ups` of that level; of its shapes only `SQUARE` and `SERVICE` are asked for.
    memory : DataFrame
        The same of `MEMORY`.
    """
    measured: dict[str, dict[str, list[float]]] = {"speed-up of int8 over fp32, AVX2": {}}
    tables = {shape: faster[shape] for shape in (SQUARE, *SERVICE) if shape in faster}
    for shape, table in {MEMORY: memory, **tables}.items():
        words = " × ".join(map(str, shape))
        measured[f"time relative to fp32, {words}, AVX2"] = {
            "fp32": [1.0] * len(table),
            "fp16 weights": (1 / table["fp16 weights"]).tolist(),
            "int8": (1 / table["int8, FBGEMM"]).tolist(),
        }
        if shape in (MEMORY, SQUARE):
            measured["speed-up of int8 over fp32, AVX2"][words] = table["int8, FBGEMM"].tolist()
    return measured


def bandwidth(embedding: pd.DataFrame, blocks: int) -> pd.DataFrame:
    """GB/s of look-ups and copy (columns), the median over each of `blocks` runs of neighbouring rounds.

    Parameters
    ----------
    embedding : DataFrame
        Rows of `time_embedding`.
    """
    rounds = embedding["round"].nunique()
    rows = embedding.assign(block=embedding["round"] * blocks // rounds)
    rows["GB/s"] = rows["bytes"] / rows["milliseconds"] / 1e6
    return rows.groupby(["function", "block"])["GB/s"].median().unstack("function")  # noqa: PD010


def fused_times(fusion: pd.DataFrame, blocks: int) -> pd.DataFrame:
    """Time of the fused operator, separate ones = 1, by block (rows) and pair; from `time_fusion`."""
    pairs = fusion.groupby("pair")
    return pd.DataFrame(
        {pair: 1 / block_ratios(table, "separate", blocks)["fused"] for pair, table in pairs}
    ).rename_axis("block")


TASKS: dict[str, Callable[..., list[dict]]] = {
    "linear": time_linear,
    "memory": time_linear,
    "embedding": time_embedding,
    "operators": time_operators,
    "fusion": time_fusion,
}


if __name__ == "__main__":
    kernel_times.answer(TASKS)
