"""Timing functions on this processor at a chosen instruction set, in a process of its own.

A program that times something calls `answer` with its tasks; `run_apart` starts it with the instruction set
limited by the environment, which torch's libraries read when they load, sends a request as JSON to its
standard input and reads its answer as JSON. What a limit did is checked in there, not assumed: without VNNI
the processor cuts sums of two 8-bit products to 16 bits, so an int8 product of large numbers tells which
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
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
import torch

from lib.cost.latency import paired_latency
from lib.files import ROOT
from lib.machine import processor_name
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
SECONDS = 900  # after which a measurement is taken for hung


# --- asking ------------------------------------------------------------------------------------------------


def levels() -> list[str]:
    """The levels that differ on this processor, from the lowest to everything it has."""
    widest = torch.backends.cpu.get_cpu_capability()
    if widest.startswith("AVX512"):
        return list(LEVELS)
    return ["AVX2", "native"] if widest.startswith("AVX2") else ["native"]


def offered(names: Iterable[str]) -> list[str]:
    """Those of some levels that this processor has, the widest last; ``native`` if it has none of them.

    ValueError for a name that is not in `LEVELS`: it would silently not be timed.
    """
    asked = list(names)
    if unknown := [name for name in asked if name not in LEVELS]:
        raise ValueError(f"levels must be of {', '.join(LEVELS)}, got {unknown[0]!r}")
    return [level for level in levels() if level in asked] or ["native"]


def run_apart(
    program: str, tasks: Mapping[str, Mapping[str, Any]], *, level: str = "native"
) -> dict[str, Any]:
    """Run tasks one after the other in one process of their own, with one thread.

    Parameters
    ----------
    program : str
        Module that calls `answer` when it is started (``python -m``).
    tasks : mapping
        Task of that program to the arguments of its function, as far as JSON knows them.
    level : str
        Of `LEVELS`.

    Returns
    -------
    dict
        ``level``, ``facts`` (`facts` in that process), and by task a DataFrame of its rows.

    Raises
    ------
    ValueError
        An unknown level.
    RuntimeError
        The process failed, or took too long; its last line says why.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    ours = {name for settings in LEVELS.values() for name in settings}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= LEVELS[level] | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", program]
    request = json.dumps({"level": level, "tasks": tasks})
    what = f"timing of {', '.join(tasks)} at level {level}"
    try:
        done = subprocess.run(
            command, input=request, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{what} took more than {SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{what} failed: {last}")
    answered = json.loads(done.stdout)
    return answered | {task: pd.DataFrame(answered[task]) for task in tasks}


def facts_table(answers: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Processor, and how each int8 engine summed pairs of products, by level; from answers of `run_apart`."""
    facts = {level: answer["facts"] for level, answer in answers.items()}
    rows = {level: {"processor": seen["processor"]} | seen["pairs"] for level, seen in facts.items()}
    return pd.DataFrame(rows).T.rename_axis("level")


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


# --- in the process ----------------------------------------------------------------------------------------


def timed_rounds(functions: Mapping[str, Callable[[], Any]], rounds: int, at_least_ms: float) -> pd.DataFrame:
    """Interleaved rounds of functions; where a call is short, of so many that they take `at_least_ms`.

    As `lib.cost.latency.paired_latency`, by the thread's processor time; ``milliseconds`` are per call.
    """
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
        codes = torch.quantize_per_tensor(w.float(), 1.0, 0, torch.qint8)  # the integers as they are
        packed = torch.ops.quantized.linear_prepack(codes, None)
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


def answer(tasks: Mapping[str, Callable[..., list[dict]]]) -> None:
    """Answer the request on standard input: rows of each task that was asked for, and `facts`."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    seen = facts()
    check_level(asked["level"], seen)
    rows = {task: tasks[task](**request) for task, request in asked["tasks"].items()}
    print(json.dumps({"level": asked["level"], "facts": seen} | rows))
