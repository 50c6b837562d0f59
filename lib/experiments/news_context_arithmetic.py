"""What no training settles of contextual features: inputs, agreement with public code, ties."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lib.metrics.impressions import impression_metrics
from lib.models.recommenders.news import LSTUR, NAML, NRMS
from lib.models.recommenders.news_popularity import PPRec

#: The keys of a batch that say something of an article's past.
CONTEXTUAL = ("context", "ctr", "history_ctr", "age")

#: Two candidates and three clicks of the values that an independent program gave.
BATCH = {
    "title": torch.tensor([[1, 2, 3, 0], [5, 9, 0, 0], [7, 8, 10, 4], [0, 0, 0, 0]]),
    "abstract": torch.tensor([[4, 5, 6, 7, 0], [1, 1, 2, 0, 0], [3, 9, 8, 2, 10], [0, 0, 0, 0, 0]]),
    "category": torch.tensor([1, 2, 1, 0]),
    "subcategory": torch.tensor([3, 4, 4, 0]),
    "candidates": torch.tensor([[0, 2]]),
    "history": torch.tensor([[3, 1, 0]]),
    "user": torch.tensor([2]),
    "context": torch.tensor([[[0, 1, 1], [2, 1, 0]]]),
    "ctr": torch.tensor([[0.1, 0.4]]),
    "history_ctr": torch.tensor([[0.0, 0.25, 1.0]]),
    "age": torch.tensor([[0.0, 3.0]]),
}


class _Watched(dict):
    """A batch that remembers which of its parts were read."""

    def __init__(self, batch: Mapping[str, Tensor]) -> None:
        super().__init__(batch)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)


def contextual_inputs() -> dict[str, int]:
    """How many of click-through rate, popularity and freshness each model reads, by running it once.

    A rate of candidates and one of clicked articles are one feature.
    """
    sizes = {"word_size": 6, "query_size": 4}
    nrms = {"num_heads": 2, "head_size": 3, **sizes}
    models = {
        "NRMS": NRMS(10, **nrms),
        "NAML": NAML(10, 4, filters=4, **sizes),
        "LSTUR": LSTUR(10, 4, 3, filters=4, **sizes),
        "PP-Rec": PPRec(NRMS(10, **nrms), NRMS(10, **nrms), 6, num_heads=2),
    }
    found = {}
    for name, model in models.items():
        batch = _Watched(BATCH)
        model.eval()(batch)
        read = {key.removeprefix("history_") for key in batch.read & set(CONTEXTUAL)}
        found[f"contextual features that {name} reads"] = len(read)
    return found


def parity() -> dict[str, float]:
    """Scores of two candidates by each content model, its weights laid out and filled as a public program's.

    Element n of the t-th distinct tensor, in the order of their names in yusanshi/news-recommendation, is
    0.5 sin(0.37 n + 1.3 t).
    """
    found = {}
    torch.set_default_dtype(torch.float64)
    try:
        for name, layout in public_layouts().items():
            options = {"num_heads": 2} if name == "NRMS" else {}
            model = {"NRMS": NRMS, "NAML": NAML, "LSTUR": LSTUR}[name]
            network = model.from_checkpoint({"model_state_dict": filled(layout)}, **options)
            for place, score in enumerate(network(BATCH)[0].tolist(), 1):
                found[f"{name}, candidate {place}"] = score
    finally:
        torch.set_default_dtype(torch.float32)
    return found


def ties(candidates: int = 10) -> dict[str, float]:
    """MRR of a constant score with one click among ``candidates``: expected, and by two ways to sort.

    A stable descending sort leaves the clicked one first where a file lists it first; the official scorer's
    reversed ascending sort puts it last.
    """
    clicked = np.arange(candidates) == 0
    scores, offsets = np.zeros(candidates), np.array([0, candidates])
    expected = impression_metrics(scores, clicked, offsets)["MRR"][0]
    stable = np.argsort(-scores, kind="stable")
    reverse = np.argsort(scores, kind="stable")[::-1]
    found = {"MRR of a constant score, expected": float(expected)}
    for name, order in (("stable sort", stable), ("reversed sort", reverse)):
        found[f"MRR of a constant score, {name}"] = float(1 / (np.flatnonzero(clicked[order])[0] + 1))
    return found


Layout = Mapping[str, tuple[int, ...]]


def public_layouts() -> dict[str, Layout]:
    """Names and shapes of the weights of yusanshi/news-recommendation, in a tiny setting."""
    nrms: dict[str, tuple[int, ...]] = {"news_encoder.word_embedding.weight": (11, 6)}
    for part in ("news_encoder", "user_encoder"):
        for name in "QKV":
            nrms |= _linear(f"{part}.multihead_self_attention.W_{name}", 6, 6)
        nrms |= _additive(f"{part}.additive_attention", 6)
    naml = _additive("news_encoder.final_attention", 4) | _additive("user_encoder.additive_attention", 4)
    for name in ("title", "abstract"):
        prefix = f"news_encoder.text_encoders.{name}"
        naml |= {f"{prefix}.word_embedding.weight": (11, 6), f"{prefix}.CNN.weight": (4, 1, 3, 6)}
        naml |= {f"{prefix}.CNN.bias": (4,)} | _additive(f"{prefix}.additive_attention", 4)
    for name in ("category", "subcategory"):
        prefix = f"news_encoder.element_encoders.{name}"
        naml |= {f"{prefix}.embedding.weight": (5, 3)} | _linear(f"{prefix}.linear", 3, 4)
    lstur = {
        "news_encoder.word_embedding.weight": (11, 6),
        "news_encoder.category_embedding.weight": (5, 4),
        "news_encoder.title_CNN.weight": (4, 1, 3, 6),
        "news_encoder.title_CNN.bias": (4,),
        **_additive("news_encoder.title_attention", 4),
        **{f"user_encoder.gru.weight_{kind}_l0": (36, 12) for kind in ("ih", "hh")},
        **{f"user_encoder.gru.bias_{kind}_l0": (36,) for kind in ("ih", "hh")},
        "user_embedding.weight": (4, 12),
    }
    return {"NRMS": nrms, "NAML": naml, "LSTUR": lstur}


def filled(layout: Layout) -> dict[str, Tensor]:
    """Weights of a layout; tables that both texts, or both levels of categories, share are filled once."""
    state: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    count = 0
    for key in sorted(layout):
        tied = key.rpartition(".")[0].rpartition(".")[2] if "encoders." in key else ""
        if tied in shared:
            state[key] = shared[tied]
            continue
        flat = torch.arange(int(np.prod(layout[key])), dtype=torch.float64)
        state[key] = (0.5 * torch.sin(0.37 * flat + 1.3 * count)).reshape(layout[key])
        count += 1
        if tied in ("word_embedding", "embedding"):
            shared[tied] = state[key]
    return state


def _linear(prefix: str, inputs: int, outputs: int) -> Layout:
    return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}


def _additive(prefix: str, size: int) -> Layout:
    vectors = {f"{prefix}.attention_query_vector": (4,), f"{prefix}.linear.bias": (4,)}
    return vectors | {f"{prefix}.linear.weight": (4, size)}
