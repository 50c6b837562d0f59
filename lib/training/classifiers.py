"""Training and scoring image classifiers, the same way in every chapter that has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.images import ImageSet
from lib.inspection import evaluating


class ImageClassifier(nn.Module):
    """A network with the loss that `lib.training.loop.fit` asks for.

    Parameters
    ----------
    network
        Images ``(B, C, H, W)`` to logits ``(B, classes)``.
    teacher
        A trained network whose predictions are to be matched as well. It is used in evaluation mode, without
        gradients, and is no part of this module: neither its weights nor its device follow.
    teacher_weight
        Factor on the teacher's term.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module | None = None, *, teacher_weight: float = 1.0):
        super().__init__()
        self.network = network
        self.teacher_weight = teacher_weight
        self._teacher = [] if teacher is None else [teacher]  # in a list: torch does not see it

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits."""
        return self.network(images)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy with ``labels``, plus that with the softmax of a teacher.

        The teacher's term is :math:`-\\sum_k p^T_k \\log p^S_k`, both at temperature 1; for a perfect student
        it is the teacher's entropy, not 0.
        """
        logits = self.network(batch["images"])
        loss = F.cross_entropy(logits, batch["labels"])
        for teacher in self._teacher:
            with evaluating(teacher), torch.no_grad():
                target = teacher(batch["images"]).softmax(dim=1)
            loss = loss + self.teacher_weight * F.cross_entropy(logits, target)
        return loss


def logits(network: nn.Module, images: ImageSet, *, batch_size: int = 250, device: str = "cpu") -> Tensor:
    """Return the logits of every image, ``(N, classes)`` on the CPU, with the network in evaluation mode.

    Each module's mode is what it was afterwards.

    Parameters
    ----------
    network
        From images (B, C, H, W) to logits (B, classes).
    images
        N images.
    batch_size
        Images at a time; does not change the result.
    device
        Where the network is.
    """
    with evaluating(network), torch.no_grad():
        parts = [
            network(images.tensor(slice(start, start + batch_size)).to(device)).cpu()
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(parts)


def accuracy(
    network: nn.Module,
    images: ImageSet,
    *,
    topk: Sequence[int] = (1,),
    batch_size: int = 250,
    device: str = "cpu",
) -> dict[str, float]:
    """Return ``{"top-1": percent, …}``: the share of images whose label is among the k largest logits.

    Parameters
    ----------
    network, images, batch_size, device
        As for `logits`.
    topk
        Values of k, each from 1 to the number of classes.

    Raises
    ------
    ValueError
        A k is below 1 or above the number of classes, or a logit is not a number.
    """
    scores = logits(network, images, batch_size=batch_size, device=device)
    if not scores.isfinite().all():
        raise ValueError("logits must be finite to be ranked, some are not")
    classes = scores.shape[1]
    if not all(1 <= k <= classes for k in topk):
        raise ValueError(f"k must be in 1..{classes}, got {tuple(topk)}")
    order = scores.topk(max(topk), dim=1).indices
    hits = order == images.labels[:, None]
    return {f"top-{k}": 100 * hits[:, :k].any(dim=1).double().mean().item() for k in topk}
