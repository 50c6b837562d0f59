"""Timing of torch's real kernels on this processor, at a chosen instruction set, in a process of its own.

``python -m lib.experiments.kernel_times`` reads a request as JSON from standard input and prints its
answer as JSON; `measure` starts such a process with the instruction set limited by the environment, which
torch's libraries read when they load. What a limit did is checked in there, not assumed: without VNNI the
processor cuts sums of two 8-bit products to 16 bits, so an int8 product of large numbers tells which
instructions computed it.

One thread, and the processor time of that thread: on an idle machine it is the wall time, on a busy one it
leaves out what the thread waited for its turn. Functions are timed in interleaved rounds
(`lib.cost.latency`); `block_ratios` makes replicates of them, as neighbouring rounds share the machine's
state and are no independent measurements.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch.autograd.profiler import profile  # torch.profiler's engine, without what it imports

from lib.cost.latency import paired_latency
from lib.files import ROOT
from lib.machine import processor_name
from lib.models.language.translation import TranslationModel
from lib.models.recommenders.dlrm import rm3
from lib.models.vision.resnet import resnet
from lib.quantization.embeddings import row_bytes
from lib.quantization.integer import gemm_i16, gemm_i32

#: What each library is told, by level. The paper measured on Broadwell, which has AVX2 and no AVX-512.
LEVELS: dict[str, dict[str, str]] = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "AVX-512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "native": {},
}
FP32 = ("fp32, BLAS", "fp32, oneDNN")
SECONDS = 900  # after which a measurement is taken for hung

#: The kind of work an operator of torch does, by what its name begins with; the first that fits counts.
OPERATOR_KINDS = {
    "matrix product": ("addmm", "mm", "bmm", "baddbmm", "linear", "matmul", "mkldnn_linear"),
    "convolution": ("mkldnn_convolution", "convolution", "_convolution", "conv", "_slow_conv", "thnn_conv"),
    "recurrent layer": ("mkldnn_rnn", "lstm", "gru", "_thnn_fused"),
    "embedding": ("_embedding_bag", "embedding", "index_select"),
    "normalisation": ("native_batch_norm", "_batch_norm", "batch_norm"),
    "pooling": ("max_pool", "avg_pool", "adaptive_avg_pool", "mean"),
    "tensor manipulation": (
        *("cat", "copy_", "stack", "select", "slice", "transpose", "t", "view", "reshape", "as_strided"),
        *("unbind", "split", "permute", "narrow", "expand", "contiguous", "clone", "empty", "flatten"),
        *("fill_", "zeros", "zero_", "unsqueeze", "squeeze", "to", "_to_copy", "resize_", "arange"),
        *("unflatten", "index"),
    ),
    "element-wise": (
        *("relu", "clamp", "add", "sub", "mul", "div", "sigmoid", "tanh", "_softmax", "softmax", "exp", "lt"),
        *("masked_fill", "scaled_dot_product", "_scaled_dot_product", "where", "ge", "all", "bitwise"),
    ),
}  # fmt: skip


# --- asking ------------------------------------------------------------------------------------------------


def levels() -> list[str]:
    """The levels that differ on this processor, from the lowest to everything it has."""
    widest = torch.backends.cpu.get_cpu_capability()
    if widest.startswith("AVX512"):
        return list(LEVELS)
    return ["AVX2", "native"] if widest.startswith("AVX2") else ["native"]


def measure(tasks: Mapping[str, Mapping[str, Any]], *, level: str = "native") -> dict[str, Any]:
    """Run tasks one after the other in one process of their own, with one thread.

    Parameters
    ----------
    tasks : mapping
        Of ``linear``, ``embedding``, ``operators`` and ``fusion``: the arguments of the function
        ``time_<task>``, as far as JSON knows them.
    level : str
        Of `LEVELS`.

    Returns
    -------
    dict
        ``level``, ``facts`` (`facts` in that process), and by task a DataFrame of its rows.

    Raises
    ------
    ValueError
        An unknown task or level.
    RuntimeError
        The process failed, or took too long; its last line says why.
    """
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {unknown[0]!r}")
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    ours = {name for settings in LEVELS.values() for name in settings}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= LEVELS[level] | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "lib.experiments.kernel_times"]
    asked, what = (
        json.dumps({"level": level, "tasks": tasks}),
        f"timing of {', '.join(tasks)} at level {level}",
    )
    try:
        done = subprocess.run(
            command, input=asked, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{what} took more than {SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{what} failed: {last}")
    answer = json.loads(done.stdout)
    return answer | {task: pd.DataFrame(answer[task]) for task in tasks}


def block_ratios(table: pd.DataFrame, baseline: str, blocks: int) -> pd.DataFrame:
    """Speed-ups over `baseline`, a row for each of `blocks` runs of neighbouring rounds.

    Within a round the ratio is paired, so that what disturbs both cancels; of a block's rounds the median
    counts. Columns are the other functions.

    Parameters
    ----------
    table
        ``function``, ``round`` and ``milliseconds``, as `lib.cost.latency.paired_latency` gives them.

    Raises
    ------
    ValueError
        An unknown baseline, or fewer rounds than blocks.
    """
    wide = table.set_index(["round", "function"])["milliseconds"].unstack()  # noqa: PD010
    if baseline not in wide:
        raise ValueError(f"{baseline!r} was not timed, only {', '.join(wide.columns)}")
    if not 1 <= blocks <= len(wide):
        raise ValueError(f"{len(wide)} rounds cannot be cut into {blocks} blocks")
    ratios = wide.rdiv(wide[baseline], axis=0).drop(columns=baseline)
    block = pd.Series([place * blocks // len(wide) for place in range(len(wide))], wide.index, name="block")
    return ratios.groupby(block).median()


# --- what is timed -----------------------------------------------------------------------------------------


def linear_kernels(rows: int, outputs: int, depth: int, *, seed: int = 0) -> dict[str, Callable[[], Any]]:
    """Torch's ways to multiply activations (rows, depth) with packed weights (outputs, depth), by name.

    fp32 from the BLAS library and from oneDNN; bf16; fp16 weights with fp32 arithmetic (FBGEMM, the paper's
    use of fp16); int8 with 32-bit sums: static (activations are integers already) and dynamic (their range is
    found at each call). Where this processor or build lacks a kernel, it is left out.
    """
    for name, size in {"rows": rows, "outputs": outputs, "depth": depth}.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")
    random = torch.Generator().manual_seed(seed)
    x, w = torch.randn(rows, depth, generator=random), torch.randn(outputs, depth, generator=random)
    halves = x.bfloat16(), w.bfloat16()
    scale = w.abs().amax(1).double() / 127
    codes = torch.quantize_per_channel(w, scale, torch.zeros(outputs, dtype=torch.int64), 0, torch.qint8)
    images = torch.quantize_per_tensor(x, float(x.max() - x.min()) / 255, 128, torch.quint8)
    kernels: dict[str, Callable[[], Any]] = {"fp32, BLAS": lambda: F.linear(x, w)}
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)
        kernels["fp32, oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        kernels["bf16"] = lambda: F.linear(*halves)
    for engine, name in {"fbgemm": "FBGEMM", "onednn": "oneDNN"}.items():
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        if engine == "fbgemm":
            fp16 = torch.ops.quantized.linear_prepack_fp16(w, None)
            kernels["fp16 weights"] = lambda p=fp16: torch.ops.quantized.linear_dynamic_fp16(x, p)
        # Packed apart: oneDNN keeps a primitive with the weights, and the other operator crashes on it.
        static, dynamic = (torch.ops.quantized.linear_prepack(codes, None) for _ in range(2))
        kernels[f"int8, {name}"] = lambda p=static: torch.ops.quantized.linear(images, p, 1.0, 128)
        kernels[f"int8 dynamic, {name}"] = lambda p=dynamic: torch.ops.quantized.linear_dynamic(x, p)
    return kernels


def time_linear(shapes: Sequence[Sequence[int]], *, rounds: int = 30, at_least_ms: float = 1.0) -> list[dict]:
    """Time every kernel of `linear_kernels` for shapes (M, N, K): rows of ``M``, ``N``, ``K``, ``function``,
    ``round``, ``milliseconds`` per call.

    A fast kernel is called several times in a row, so that each measurement takes about `at_least_ms`.
    """
    rows = []
    for shape in shapes:
        kernels = linear_kernels(*shape)
        table = _timed(kernels, rounds, at_least_ms)
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

    def fresh() -> Callable[[], torch.Tensor]:
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


def time_operators(
    *, batches: Mapping[str, int], table_rows: int = 100_000, vocabulary: int = 10_000, repeats: int = 3
) -> list[dict]:
    """Time spent in each kind of operator, for models of the paper's three families.

    Parameters
    ----------
    batches : mapping
        Of ``recommendation`` (RM3 of DeepRecSys, samples), ``vision`` (ResNet-50, images of 224 × 224) and
        ``language`` (four LSTM layers of 1024, sentences of 10 tokens): the batch size of each.
    table_rows, vocabulary : int
        Rows of each of RM3's tables, words of each language; the paper's sizes would not fit this memory.
    repeats : int
        Runs that are profiled, after one that is not; rows have ``repeat``.
    """
    models = {
        "recommendation": lambda batch: _recommendation(batch, table_rows),
        "vision": _vision,
        "language": lambda batch: _language(batch, vocabulary),
    }
    rows = []
    for family, batch in batches.items():
        if family not in models:
            raise ValueError(f"no model for {family!r}: expected {', '.join(models)}")
        run = models[family](batch)
        run()
        for repeat in range(repeats):
            with profile() as trace:
                run()
            for event in trace.key_averages():
                name = event.key.removeprefix("aten::")
                rows.append(
                    {
                        "family": family,
                        "repeat": repeat,
                        "operator": name,
                        "kind": operator_kind(name),
                        "milliseconds": event.self_cpu_time_total / 1e3,
                    }
                )
    return rows


def operator_kind(name: str) -> str:
    """The key of `OPERATOR_KINDS` for an operator's name, else ``other``: the longest beginning that fits."""
    found = [
        (len(start), kind)
        for kind, starts in OPERATOR_KINDS.items()
        for start in starts
        if name == start or (len(start) > 2 and name.startswith(start))
    ]
    return max(found)[1] if found else "other"


def time_fusion(
    *, shape: Sequence[int] = (64, 1024, 1024), table_rows: int = 500_000, dim: int = 64, bags: int = 64,
    lookups: int = 80, rounds: int = 30,
) -> list[dict]:  # fmt: skip
    """Time sequences of operators against one fused operator with the same kernel inside; rows have ``pair``.

    Linear layer, bias and ReLU in fp32 (oneDNN) and int8 (FBGEMM); gathering and adding up embedding rows.
    """
    random = torch.Generator().manual_seed(0)
    m, n, k = shape
    x, w, b = (torch.randn(size, generator=random) for size in ((m, k), (n, k), (n,)))
    one = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(w, m)
    torch.backends.quantized.engine = "fbgemm"
    codes = torch.quantize_per_channel(
        w, w.abs().amax(1).double() / 127, torch.zeros(n, dtype=torch.int64), 0, torch.qint8
    )
    apart, joined = (torch.ops.quantized.linear_prepack(codes, b) for _ in range(2))
    q = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
    table = torch.full((table_rows, dim), 0.5)
    drawn = [torch.randint(table_rows, (bags, lookups), generator=random) for _ in range(2 * rounds + 6)]
    following = cycle(drawn).__next__
    pairs = {
        "linear + bias + ReLU, fp32": (
            lambda: F.relu(one(x, packed, None, "none", [], "") + b),
            lambda: one(x, packed, b, "relu", [], ""),
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
        timed = _timed({"separate": separate, "fused": fused}, rounds, 1.0)
        rows += timed.assign(pair=pair).to_dict("records")
    return rows


TASKS: dict[str, Callable[..., list[dict]]] = {
    "linear": time_linear,
    "embedding": time_embedding,
    "operators": time_operators,
    "fusion": time_fusion,
}


def _timed(functions: Mapping[str, Callable[[], Any]], rounds: int, at_least_ms: float) -> pd.DataFrame:
    """Interleaved rounds, of repeated calls where one is short; milliseconds per call."""
    once = paired_latency(functions, repeats=1, warmup=1, clock=time.thread_time).set_index("function")[
        "milliseconds"
    ]
    times = {name: max(1, round(at_least_ms / once[name])) for name in functions}

    def repeated(function: Callable[[], Any], count: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(count):
                function()

        return call

    table = paired_latency(
        {name: repeated(f, times[name]) for name, f in functions.items()},
        repeats=rounds,
        warmup=1,
        clock=time.thread_time,
    )
    return table.assign(milliseconds=table["milliseconds"] / table["function"].map(times))


def _recommendation(batch: int, table_rows: int) -> Callable[[], Any]:
    model = rm3(table_rows=table_rows).eval()
    dense, indices = model.requests(batch)
    return lambda: model(dense, indices)


def _vision(batch: int) -> Callable[[], Any]:
    model, images = resnet(50, stride_in_1x1=True).eval(), torch.rand(batch, 3, 224, 224)
    return lambda: model(images)


def _language(batch: int, vocabulary: int) -> Callable[[], Any]:
    model = TranslationModel(source_vocabulary=vocabulary, target_vocabulary=vocabulary).eval()
    source, target = torch.randint(1, vocabulary, (2, batch, 10))
    return lambda: model(source, target)


# --- in the process ----------------------------------------------------------------------------------------


def facts() -> dict[str, Any]:
    """What computes here: processor, torch's own level, and for each int8 engine whether it cuts pairs.

    ``pairs`` is ``cut`` where products of 8 bits go through vpmaddubsw, bit for bit, ``exact`` where they are
    summed in 32 bits at once (VNNI and its successors), ``neither`` if neither fits.
    """
    random = torch.Generator().manual_seed(0)
    a = torch.randint(200, 256, (3, 64), dtype=torch.uint8, generator=random)
    a[0, :2] = torch.tensor([0, 255])  # the range found at run time is then 0…255, its scale 1
    w = torch.randint(100, 128, (32, 64), dtype=torch.int8, generator=random)
    pairs = {}
    for engine in ("fbgemm", "onednn"):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        packed = torch.ops.quantized.linear_prepack(torch._make_per_tensor_quantized_tensor(w, 1.0, 0), None)
        y = torch.ops.quantized.linear_dynamic(a.float(), packed)
        by_pairs, _ = gemm_i16(a, w, spill_every=2)
        results = {"exact": gemm_i32(a, w), "cut": by_pairs}
        pairs[engine] = next((name for name, z in results.items() if torch.equal(y, z.float())), "neither")
    return {"processor": processor_name(), "torch": torch.backends.cpu.get_cpu_capability(), "pairs": pairs}


def check_level(level: str, seen: Mapping[str, Any]) -> None:
    """RuntimeError if the limit that was asked for did not reach torch and the int8 kernels."""
    wanted = {"AVX2": "AVX2", "AVX-512": "AVX512"}.get(level)
    if wanted and (seen["torch"] != wanted or set(seen["pairs"].values()) - {"cut"}):
        raise RuntimeError(
            f"level {level} was not kept: torch uses {seen['torch']}, int8 pairs {seen['pairs']}"
        )


def main() -> None:
    """Answer the request on standard input."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    seen = facts()
    check_level(asked["level"], seen)
    rows = {task: TASKS[task](**request) for task, request in asked["tasks"].items()}
    print(json.dumps({"level": asked["level"], "facts": seen} | rows))


if __name__ == "__main__":
    main()
