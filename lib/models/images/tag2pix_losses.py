"""Tag2Pix's losses, and when they change: first shapes, then tags.

Kim, Jhoo, Park & Yoo, "Tag2Pix", ICCV 2019 (arXiv:1908.05840), after the authors' code
(github.com/blandocs/Tag2Pix, commit 733d729, MIT). In the first step of the training the discriminator judges
only whether a picture is real; in the second its tag heads take part, and both networks are asked for the
tags. All binary cross-entropies are means over the batch and over the tags.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models.images.tag2pix_discriminator import Judgement


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Factors of the terms; the defaults are those of every command in the authors' README.

    Attributes
    ----------
    reconstruction : float
        Of the mean absolute error of the generator's picture.
    guide : float
        Of the guide decoder's error within the reconstruction, if there is a guide decoder.
    adversarial : float
        In the discriminator's loss alone; in the generator's it is 1.
    invariant_tags, colour_tags : float
        Of the tags' cross-entropies. Their program's own default is 1. A generator without features of the
        extractor is trained with 0 for the former.

    Raises
    ------
    ValueError
        A weight is negative or not finite.
    """

    reconstruction: float = 1000.0
    guide: float = 0.9
    adversarial: float = 1.0
    invariant_tags: float = 40.0
    colour_tags: float = 40.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"the weight {name} must be 0 or more, got {value}")


AUTHORS_WEIGHTS = LossWeights()


@dataclass(frozen=True, kw_only=True)
class ChangingLoss:
    """When the losses and the line art change; epochs count from 1.

    Defaults are the authors' recipe for 512 pixels on one graphics card; for 256 pixels their second step
    begins at epoch 10.

    Attributes
    ----------
    two_step_epoch : int
        From this epoch on tags are asked for: 5 is four epochs of the first step, 0 none ("one-step").
    brightness_epoch : int or None
        From this epoch on lines fade, as those of real sketches do; None for never.
    """

    two_step_epoch: int = 5
    brightness_epoch: int | None = 21

    def classifies(self, epoch: int) -> bool:
        """Whether the tags' losses take part."""
        return epoch >= self.two_step_epoch

    def brightness(self, epoch: int) -> tuple[float, float]:
        """Range of the factor on the line art's brightness."""
        faded = self.brightness_epoch is not None and epoch >= self.brightness_epoch
        return (1.0, 7.0) if faded else (0.8, 1.2)


def tag_losses(
    judgement: Judgement, colour_tags: Tensor, invariant_tags: Tensor, weights: LossWeights
) -> dict[str, Tensor]:
    """Weighted cross-entropies of a judgement (logits) with the tags (B, number), 0 or 1."""
    return {
        "colour tags": weights.colour_tags * _cross_entropy(judgement.colour_tags, colour_tags),
        "invariant tags": weights.invariant_tags * _cross_entropy(judgement.invariant_tags, invariant_tags),
    }


def discriminator_losses(
    real: Judgement,
    fake: Judgement,
    colour_tags: Tensor,
    invariant_tags: Tensor,
    *,
    classify: bool,
    weights: LossWeights = AUTHORS_WEIGHTS,
) -> dict[str, Tensor]:
    """Terms of the discriminator's loss, which is their sum.

    Parameters
    ----------
    real, fake : Judgement
        Logits for pictures and for what the generator made of their line art and tags.
    colour_tags, invariant_tags : (B, number)
        0 or 1; also the generator's pictures are to be judged to have them.
    classify : bool
        Whether the second step of the training has begun.
    weights : LossWeights
    """
    ones, zeros = torch.ones_like(real.real), torch.zeros_like(fake.real)
    adversarial = _cross_entropy(real.real, ones) + _cross_entropy(fake.real, zeros)
    losses = {"adversarial": weights.adversarial * adversarial}
    if classify:
        both = [tag_losses(judgement, colour_tags, invariant_tags, weights) for judgement in (real, fake)]
        losses |= {name: both[0][name] + both[1][name] for name in both[0]}
    return losses


def generator_losses(
    fake: Judgement,
    pictures: Tensor,
    guides: Tensor,
    targets: Tensor,
    colour_tags: Tensor,
    invariant_tags: Tensor,
    *,
    classify: bool,
    weights: LossWeights = AUTHORS_WEIGHTS,
) -> dict[str, Tensor]:
    """Terms of the generator's loss, which is their sum.

    Parameters
    ----------
    fake : Judgement
        Logits for ``pictures``.
    pictures, guides : (B, 3, S, S)
        What the generator returns; without a guide decoder the same tensor twice.
    targets : (B, 3, S, S)
        The true pictures, in −1…1.
    colour_tags, invariant_tags, classify, weights
        As for `discriminator_losses`.
    """
    error = F.l1_loss(pictures, targets)
    if guides is not pictures:
        error = error + weights.guide * F.l1_loss(guides, targets)
    losses = {
        "adversarial": _cross_entropy(fake.real, torch.ones_like(fake.real)),
        "reconstruction": weights.reconstruction * error,
    }
    return losses | (tag_losses(fake, colour_tags, invariant_tags, weights) if classify else {})


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets)
