"""What of MEANTIME arithmetic settles, before any training: sizes, memory, a guess, two reaches, the gains.

In the authors' setting for ML-1M (their code, commit a9ca2e7). Numbers have the names of the chapter's
ledger, so that claims E1 to E7 find them in one dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lib.metrics.ranking import chance_level
from lib.models.recommenders.bert4rec import BERT4Rec
from lib.models.recommenders.marank import MARank
from lib.models.recommenders.meantime import Meantime
from lib.models.recommenders.sasrec import SASRec, TiSASRec
from lib.models.recommenders.temporal_kernels import decay_rates, sin_frequencies

ITEMS, USERS, DAYS = 3416, 6040, 1040  # of ML-1M without items that have fewer than five events
BATCH, LENGTH, WIDTH, HEADS = 256, 200, 64, 4
METRICS = ("Recall@5", "Recall@10", "NDCG@5", "NDCG@10")
BASELINES = ("BERT4Rec", "TiSASRec", "SASRec", "MARank")


def parameter_counts() -> dict[str, int]:
    """Parameters of our five models, a tensor used twice counted once."""
    models = {"MEANTIME": Meantime(ITEMS, num_days=DAYS), "MARank": MARank(ITEMS, USERS)}
    models |= {model.__name__: model(ITEMS) for model in (BERT4Rec, SASRec, TiSASRec)}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def meantime_parameters(
    *,
    num_items: int = ITEMS,
    num_days: int = DAYS,
    max_length: int = LENGTH,
    hidden_size: int = WIDTH,
    num_blocks: int = 2,
    absolute: str = "pd",
    num_relative: int = 2,
) -> int:
    """Parameters of MEANTIME in closed form.

    (V+2)H + [NH per p, DH per d, H per c] + L(4(H²+H) + 2A(Hd+d) + R(Hd+d) + Rd + 8H²+5H + 4H) + (V+1) +
    H²+3H, with A absolute and R relative heads of width d = H/(A+R).

    Parameters
    ----------
    num_items, num_days, max_length, hidden_size, num_blocks
        V, D, N, H and L.
    absolute
        A letter per absolute head.
    num_relative
        R.
    """
    width, num_absolute = hidden_size, len(absolute)
    head = width // (num_absolute + num_relative)
    rows = {"p": max_length, "d": num_days, "c": 1}
    tables = (num_items + 2 + sum(rows[letter] for letter in absolute)) * width
    attention = 4 * (width**2 + width) + (2 * num_absolute + num_relative) * (width * head + head)
    attention += num_relative * head
    feed_forward, norms = 8 * width**2 + 5 * width, 4 * width
    output = (num_items + 1) + width**2 + 3 * width
    return tables + num_blocks * (attention + feed_forward + norms) + output


def stored_kernel(channels: int) -> float:
    """Memory, in units of 2³⁰ bytes, of float32 vectors of so many channels for every pair of a batch."""
    return torch.empty(BATCH, LENGTH, LENGTH, channels, device="meta").nbytes / 2**30


def chance_metrics(candidates: int = 101) -> dict[str, float]:
    """Recall and NDCG at 5 and 10 of a guess among one positive and the others."""
    return {
        f"{metric}@{k}": level
        for k in (5, 10)
        for metric, level in zip(("Recall", "NDCG"), chance_level(k, candidates), strict=True)
    }


def longest_period() -> float:
    """Seconds after which the slowest wave of the sinusoid kernel repeats."""
    return 2 * math.pi / sin_frequencies(WIDTH, dtype=torch.float64).min().item()


def longest_decay() -> float:
    """Seconds in which the slowest decay of the exponential kernel falls to 1/e."""
    return 1 / decay_rates(WIDTH, dtype=torch.float64).min().item()


def gains(printed: Mapping[str, float]) -> dict[str, float]:
    """MEANTIME's score over the best baseline's, minus one, in per cent, by metric.

    Parameters
    ----------
    printed
        Scores of one data set as the ledger names them: ``"Recall@5, MEANTIME"``.
    """
    best = {m: max(printed[f"{m}, {baseline}"] for baseline in BASELINES) for m in METRICS}
    return {m: 100 * (printed[f"{m}, MEANTIME"] / best[m] - 1) for m in METRICS}


def arithmetic(printed: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All numbers of claims E1 to E7 by their names in the ledger.

    Parameters
    ----------
    printed
        Scores of the main result table by data set, as for `gains`.
    """
    period, decay, head = longest_period(), longest_decay(), WIDTH // HEADS
    numbers = parameter_counts() | chance_metrics()
    numbers["MEANTIME by the closed form"] = meantime_parameters()
    numbers[f"one kernel, {BATCH} × {LENGTH} × {LENGTH} × {WIDTH} numbers"] = stored_kernel(WIDTH)
    numbers[f"its projection for one head, {BATCH} × {LENGTH} × {LENGTH} × {head} numbers"] = stored_kernel(
        head
    )
    numbers |= {"longest period in seconds": period, "longest period in hours": period / 3600}
    numbers |= {"longest decay constant in seconds": decay, "longest decay constant in hours": decay / 3600}
    for dataset, scores in printed.items():
        numbers |= {f"{dataset}, {metric}": gain for metric, gain in gains(scores).items()}
    return numbers
