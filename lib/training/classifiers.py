"""Training and scoring image classifiers, the same way in every chapter that has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.data.imagenet import ImageFolder
from lib.data.images import ImageSet
from lib.inspection import evaluating


class ImageClassifier(nn.Module):
    """A network with the loss that `lib.training.loop.fit` asks for.

    Parameters
    ----------
    network
        Images ``(B, C, H, W)`` to logits ``(B, classes)``.
    teacher
        A trained network whose predictions are to be matched as well. It is used in evaluation mode (PROFIT's
        authors leave theirs in training mode, with each batch's statistics), without gradients, and is no
        part of this module: neither its weights nor its device follow.
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


# --- the floor: what pixels alone give ---------------------------------------------------------------------


def linear_classifier(
    images: ImageSet | ImageFolder,
    *,
    penalty: float = 0.01,
    iterations: int = 60,
    side: int = 32,
    most: int = 60_000,
    device: str = "cpu",
) -> nn.Sequential:
    """Multinomial logistic regression on pixels, trained to its plateau; a function of the images alone.

    The mean cross-entropy plus ``penalty / 2`` times the sum of squared weights falls from zero weights by
    L-BFGS. That is a convex problem: there is one optimum and no seed. O(N · pixels · classes) an iteration;
    about a second for 10,000 images of Fashion-MNIST.

    Parameters
    ----------
    images
        To train on, as they are, without augmentation.
    penalty
        Above 0. The default was chosen on training images of Fashion-MNIST that were held out; 0.001 and 0.03
        are less than one point worse there.
    iterations
        At most. For Fashion-MNIST the objective is then 1 % above its optimum, and 40, 60 and 150 iterations
        give the same accuracy within half a point.
    side
        Larger images are averaged down to this many pixels.
    most
        Of so many images or fewer all are used, of more every second, every third, ….
    device
        Where it is trained, and stays.

    Returns
    -------
    Sequential
        From images (B, C, H, W) to logits (B, classes).

    Raises
    ------
    ValueError
        The penalty is not above 0.
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, or there is no single optimum, got {penalty}")
    every = -(-len(images) // most)
    labels = images.labels[::every].to(device)
    shape = images.tensor(slice(0, 1)).shape[1:]
    pool = nn.AdaptiveAvgPool2d([min(side, length) for length in shape[1:]])
    chunks = [slice(start, start + 250 * every, every) for start in range(0, len(images), 250 * every)]
    pixels = torch.cat([pool(images.tensor(chunk)).flatten(1) for chunk in chunks]).to(device)
    layer = nn.Linear(pixels.shape[1], int(images.labels.max()) + 1, device=device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    search = {"max_iter": iterations, "history_size": 20, "line_search_fn": "strong_wolfe"}
    descent = torch.optim.LBFGS(layer.parameters(), tolerance_grad=1e-6, tolerance_change=1e-9, **search)

    def objective() -> Tensor:
        descent.zero_grad()
        loss = F.cross_entropy(layer(pixels), labels) + penalty / 2 * layer.weight.square().sum()
        loss.backward()
        return loss

    descent.step(objective)
    return nn.Sequential(pool, nn.Flatten(), layer)


def linear_classifier_accuracy(
    train: ImageSet | ImageFolder, test: ImageSet | ImageFolder, *, topk: int = 1, device: str = "cpu"
) -> float:
    """Return the percentage of test images that a `linear_classifier` of the training images gets right.

    What anybody gets from pixels, without a network: below it no network has learned anything worth losing.

    Parameters
    ----------
    train, test
    topk
        The label must be among this many largest logits.
    device
        Where it is computed.
    """
    network = linear_classifier(train, device=device)
    return accuracy(network, test, topk=(topk,), device=device)[f"top-{topk}"]
