"""FSRE-Depth in numbers that need no training: weights, operations, losses in closed cases."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.cost.operations import count_operations
from lib.metrics.depth import METRICS, depth_errors
from lib.models.depth.cross_task_decoder import CrossTaskDecoder
from lib.models.depth.fsre_depth import FsreDepth
from lib.models.depth.photometric import PhotometricError
from lib.models.depth.self_supervision import Objective
from lib.models.depth.semantic_losses import triplet_loss
from lib.models.depth.view_synthesis import disparity_to_depth

#: Of the published pictures, at which operations are counted.
HEIGHT, WIDTH = 192, 640
#: Weights of the classifier that the authors' ResNet-18 carries along and never calls; it is not here.
CLASSIFIER = 513_000
GIGA = 1e9


class _Maps(nn.Module):
    """A decoder as `count_operations` calls it: five maps, one after the other."""

    def __init__(self, decoder: CrossTaskDecoder, *, labels: bool) -> None:
        super().__init__()
        self.decoder, self.labels = decoder, labels

    def forward(self, *maps: Tensor) -> Tensor:
        return self.decoder(maps, labels=self.labels).disparity[0]


def parameters() -> dict[str, float]:
    """Weights of the published networks of depth 18, as the authors count them, by the ledger's names."""
    alone = Objective(segmentation=1, triplet=0)
    with torch.device("meta"):
        full, plain = FsreDepth(), FsreDepth(attention_levels=(), objective=alone)
        pulled = FsreDepth(attention_levels=(), objective=Objective(segmentation=1, triplet=0.1))
    return {
        "encoder": _weights(full.encoder) + CLASSIFIER,
        "pose encoder": _weights(full.pose.encoder) + CLASSIFIER,
        "pose decoder": _weights(full.pose.decoder),
        "decoders with attention": _weights(full.decoder),
        "decoder of depth without": _weights(plain.decoder.depth),
        "decoder of labels without": _weights(plain.decoder.segmentation),
        "everything": _weights(full) + 2 * CLASSIFIER,
        "added by the triplet loss": _weights(pulled) - _weights(plain),
    }


def operations() -> dict[str, float]:
    """Multiplications and additions for one depth map of 192×640, by the ledger's names."""
    with torch.device("meta"):
        encoder = FsreDepth(attention_levels=(), classes=0, objective=Objective(segmentation=0, triplet=0))
        attention = CrossTaskDecoder(encoder.encoder.channels, merged=False)
        plain = CrossTaskDecoder(encoder.encoder.channels, classes=0, attention_levels=())
        maps = tuple(
            torch.empty(1, channels, HEIGHT >> level, WIDTH >> level)
            for level, channels in enumerate(encoder.encoder.channels, 1)
        )
    found = {
        "encoder": count_operations(encoder.encoder, (1, 3, HEIGHT, WIDTH)),
        "decoder with attention": count_operations(_Maps(attention, labels=True), inputs=maps),
        "decoder without": count_operations(_Maps(plain, labels=False), inputs=maps),
    }
    counts = {name: float(table["macs"].sum()) / GIGA for name, table in found.items()}
    ratio = counts["decoder with attention"] / counts["decoder without"]
    named = {f"{name}, 10⁹ operations": count for name, count in counts.items()}
    return named | {"ratio of the decoders": ratio}


def closed_cases() -> dict[str, float]:
    """Losses and errors of tensors that a formula gives, by the ledger's names."""
    rows, columns = torch.arange(32.0)[:, None].double(), torch.arange(64.0).double()
    bands = torch.arange(1, 4).double()[:, None, None]
    first, second = (0.5 + 0.5 * torch.sin(0.3 * columns + 0.2 * bands * rows + phase) for phase in (0, 0.5))
    labels = (torch.arange(64) >= 32).long().expand(1, 32, 64)
    features = {level: _waves(level) for level in (3, 2, 1)}
    truth = torch.tensor([[2.0, 4, 8, 10, 50]]).double()
    guess = torch.tensor([[2.2, 3, 9, 10, 70]]).double()
    errors = depth_errors(guess, truth, scale=False)
    return {
        "nearest depth": float(disparity_to_depth(torch.tensor(1.0).double())),
        "depth at a half": float(disparity_to_depth(torch.tensor(0.5).double())),
        "photometric error": float(PhotometricError(first[None])(second[None]).mean()),
        "triplet loss": float(triplet_loss(features, labels)),
    } | {f"{name} of five depths": errors[name] for name in METRICS[:4]}


def _waves(level: int) -> Tensor:
    rows = torch.arange(32 >> level).double()[:, None]
    columns = torch.arange(64 >> level).double()
    channels = torch.arange(4).double()[:, None, None]
    return (torch.sin(0.2 * (channels + 1) * columns + 0.3 * rows) + 0.1 * channels)[None]


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
