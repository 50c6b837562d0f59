"""How exact a network is in eight bits, technique by technique, and how one sum in 16 bits goes wrong.

A small network is trained, quantised after training (`lib.quantization.integer_network`), and compared with
itself in full precision. Networks trained on ImageNet are in
`lib.experiments.facebook_inference_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from lib.data import fashion_mnist
from lib.data.images import ImageSet
from lib.models.vision.plain_cnn import plain_cnn
from lib.quantization.integer import gemm_i16, gemm_i32
from lib.quantization.integer_network import Recipe, quantize_network
from lib.quantization.outliers import gemm_outlier_aware, split_outliers
from lib.training.classifiers import ImageClassifier, accuracy, logits
from lib.training.loop import fit, seeded, warmup_cosine

#: By the names that the chapter's parameter has.
DATASETS = {
    "fashion-mnist-sample": fashion_mnist.FASHION_MNIST_SAMPLE,
    "fashion-mnist": fashion_mnist.FASHION_MNIST,
}
#: The paper's techniques, each added to those before it.
TECHNIQUES = {
    "min–max per tensor": Recipe(),
    "+ per channel": Recipe(per_channel=True),
    "+ least error": Recipe(per_channel=True, l2_ranges=True),
    "+ net-aware": Recipe(per_channel=True, l2_ranges=True, net_aware=True),
    "+ one layer in fp32": Recipe(per_channel=True, l2_ranges=True, net_aware=True, skip=1),
}


def running_sums(*, seed: int, depth: int = 256, bits: int = 5) -> tuple[pd.DataFrame, float]:
    """One dot product as it grows, summed in three ways; and the share of its weights that are outliers.

    Parameters
    ----------
    seed : int
        Of the numbers: activations uniform in 0..255, weights normal with standard deviation 24 and mean 6.
    depth : int
        Products; looked at after every 8.
    bits : int
        That are no outlier. With outliers split off, sums move to 32 bits after every 8 products.

    Returns
    -------
    DataFrame of sums by ``products added`` (rows) and way (columns), and the share as a number in 0..1.
    """
    random = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 256, (1, depth), dtype=torch.uint8, generator=random)
    w = (24 * torch.randn(1, depth, generator=random) + 6).round().clamp(-128, 127).to(torch.int8)
    rows = {}
    for k in range(8, depth + 1, 8):
        split = split_outliers(w[:, :k], bits=bits)
        rows[k] = {
            "32 bits (exact)": int(gemm_i32(a[:, :k], w[:, :k])),
            "16 bits": int(gemm_i16(a[:, :k], w[:, :k]).values),
            "16 bits, outliers apart": int(gemm_outlier_aware(a[:, :k], split, spill_every=8).values),
        }
    sums = pd.DataFrame(rows).T.rename_axis("products added")
    return sums, split_outliers(w, bits=bits).density


def trained_network(
    images: ImageSet, channels: Sequence[int], *, steps: int, seed: int, checkpoint: Path | None = None
) -> nn.Sequential:
    """A plain network (`lib.models.vision.plain_cnn`) trained with Adam, batches of 64, one cosine.

    Parameters
    ----------
    images : ImageSet
        To train on; `seed` decides the first weights and the order of the images.
    channels : sequence of int
        Of the network's stages.
    steps : int
    checkpoint : path, optional
        As for `lib.training.loop.fit`: a killed training continues, a finished one is only loaded.
    """
    seeded(seed)
    network = plain_cnn(channels)
    fit(
        ImageClassifier(network),
        images.batches(64, seed=seed).batch,
        steps=steps,
        optimizer=torch.optim.Adam(network.parameters(), lr=3e-3),
        schedule=warmup_cosine(steps),
        checkpoint=checkpoint,
        name=f"network, seed {seed}",
    )
    return network


def technique_errors(
    networks: Mapping[int, nn.Sequential], test: ImageSet, calibration: Tensor
) -> pd.DataFrame:
    """What each step of `TECHNIQUES` makes of the error of the class scores, and of the accuracy.

    Parameters
    ----------
    networks : mapping
        Seed to trained network.
    test : ImageSet
    calibration : (B, C, H, W)
        Images from which ranges are taken.

    Returns
    -------
    DataFrame with ``seed``, ``step``, ``bits`` (8 or 4), ``error`` (of the logits, relative to the network in
    full precision) and ``loss`` (points of top-1 accuracy).
    """
    rows = []
    for seed, network in networks.items():
        exact, base = logits(network, test), accuracy(network, test)["top-1"]
        for step, recipe in TECHNIQUES.items():
            for bits in (8, 4):
                narrow = replace(recipe, weight_bits=bits, activation_bits=bits)
                quantized = quantize_network(network, calibration, narrow)
                error, top = _relative_error(quantized, test, exact), accuracy(quantized, test)["top-1"]
                rows.append({"seed": seed, "step": step, "bits": bits, "error": error, "loss": base - top})
    return pd.DataFrame(rows)


def by_arm(techniques: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """What the rules compare: a metric's values by arm, one per seed.

    Parameters
    ----------
    techniques : DataFrame
        From `technique_errors`.
    """
    narrow = {
        "per channel, least error, net-aware": per_seed(techniques, "error", step="+ net-aware", bits=4),
        "min–max per tensor": per_seed(techniques, "error", step="min–max per tensor", bits=4),
    }
    loss = per_seed(techniques, "loss", step="+ net-aware", bits=8)
    return {
        "loss of top-1 accuracy": {"8 bits, all techniques": loss},
        "error of the logits at 4 bits": narrow,
    }


def per_seed(table: pd.DataFrame, column: str, **where: object) -> list[float]:
    """A column's values in the rows that fit, in the order of seeds; ValueError unless one a seed fits."""
    fits = pd.Series(True, index=table.index)
    for name, value in where.items():
        fits &= table[name] == value
    rows = table[fits]
    if rows.empty or rows["seed"].duplicated().any():
        raise ValueError(f"expected one row per seed with {where}, got {len(rows)} rows")
    return rows[column].tolist()


def _relative_error(network: nn.Module, images: ImageSet, exact: Tensor) -> float:
    return float((logits(network, images) - exact).norm() / exact.norm())
