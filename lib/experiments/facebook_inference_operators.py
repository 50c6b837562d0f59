"""Where the time of whole models goes, by kind of operator, as torch's profiler sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch.autograd.profiler import profile  # torch.profiler's engine, without what it imports

from lib.models.language.translation import TranslationModel
from lib.models.recommenders.dlrm import rm3
from lib.models.vision.resnet import resnet

#: The kind of work an operator of torch does, by what its name begins with; the longest counts.
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
    if not batches:
        raise ValueError("no operators to time: one of the models needs a batch of at least 1")
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


def operator_shares(operators: pd.DataFrame) -> pd.DataFrame:
    """Share of each kind of operator (columns) in the time of each family's model; from `time_operators`."""
    kinds = operators.groupby(["family", "kind"])["milliseconds"].sum().unstack("kind").fillna(0)  # noqa: PD010
    return kinds.div(kinds.sum(axis=1), axis=0)


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
