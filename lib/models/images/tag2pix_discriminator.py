"""Tag2Pix's discriminator: is a picture real, and which tags has it (an auxiliary-classifier GAN).

Kim, Jhoo, Park & Yoo, "Tag2Pix", ICCV 2019 (arXiv:1908.05840), after the authors' code
(github.com/blandocs/Tag2Pix, commit 733d729, MIT). It sees the picture alone: nothing but the reconstruction
loss ties a coloured picture to its line art.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from lib.models.authors import Source, opened
from lib.models.images.tag2pix import convolution, initialise, leaky
from lib.models.images.tag2pix_blocks import GatedBottleneck
from lib.models.images.tag2pix_checkpoints import count, load_authors, read_authors, renamed, size_of

#: Our names of the discriminator's heads and theirs.
HEADS = (("adv_judge", "real"), ("cit_judge", "invariant_tags"), ("cvt_judge", "colour_tags"))


class Judgement(NamedTuple):
    """What the discriminator says of B pictures, as logits or as probabilities.

    Attributes
    ----------
    real : (B, 1)
        That a picture is no generator's.
    invariant_tags : (B, number of tags without colours)
    colour_tags : (B, number of colour tags)
    """

    real: Tensor
    invariant_tags: Tensor
    colour_tags: Tensor


class Discriminator(nn.Module):
    """Pictures (B, 3, S, S) in −1…1 to a `Judgement`; batch norm always.

    Defaults are the authors': 4,515,558 parameters for any size of image.

    Parameters
    ----------
    colour_tags, invariant_tags : int
        Numbers of tags of both kinds.
    width : int
        Channels of the first convolution; a multiple of 8.
    stages : int
        That halve the image and double the channels, each two blocks and a convolution of stride 2.
    last_blocks : int
        Behind them.
    groups : int
        Of the blocks' 3×3 convolutions; divides half the width.

    Raises
    ------
    ValueError
        A size is not positive or does not fit another.
    """

    def __init__(
        self,
        *,
        colour_tags: int = 115,
        invariant_tags: int = 370,
        width: int = 32,
        stages: int = 4,
        last_blocks: int = 3,
        groups: int = 16,
    ) -> None:
        super().__init__()
        sizes = colour_tags, invariant_tags, width, stages, last_blocks, groups
        if min(sizes) < 1 or width % 8 or (width // 2) % groups:
            raise ValueError(
                f"sizes must be positive, width a multiple of 8 and its half of groups, got {sizes}"
            )
        layers = [leaky(convolution(3, width), nn.Conv2d(width, width, 3, stride=2))]
        inputs = width
        for _ in range(stages):
            channels = 2 * inputs
            blocks = [GatedBottleneck(size, channels // 4, groups=groups) for size in (inputs, channels)]
            layers += [nn.Sequential(*blocks), leaky(convolution(channels, channels, stride=2))]
            inputs = channels
        layers += [GatedBottleneck(inputs, inputs // 4, groups=groups) for _ in range(last_blocks)]
        self.layers = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {
                "real": nn.Linear(inputs, 1),
                "invariant_tags": nn.Linear(inputs, invariant_tags),
                "colour_tags": nn.Linear(inputs, colour_tags),
            }
        )
        self.stages = stages
        initialise(self)
        self.to(memory_format=torch.channels_last)

    def logits(self, pictures: Tensor) -> Judgement:
        """The judgement before the sigmoid, as losses want it.

        Raises
        ------
        ValueError
            Pictures have not three channels, or are smaller than 4 pixels.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or min(pictures.shape[2:]) < 4:
            raise ValueError(f"pictures must be (B, 3, H, W), got {tuple(pictures.shape)}")
        means = self.layers(pictures).mean(dim=(2, 3))
        return Judgement(**{name: head(means) for name, head in self.heads.items()})

    def forward(self, pictures: Tensor) -> Judgement:
        """Probabilities."""
        return Judgement(*(logits.sigmoid() for logits in self.logits(pictures)))

    @classmethod
    def from_authors(cls, source: Source) -> Self:
        """The discriminator of an authors' file (``D`` is read), in evaluation mode.

        Parameters
        ----------
        source
            ``tag2pix_256.pkl`` and the like, or what is in one.

        Raises
        ------
        FileNotFoundError, ValueError
            As `lib.models.images.tag2pix.Generator.from_authors`.
        """
        with opened(source) as held:
            state = read_authors(held, "D")
            stages = sum(f"conv{k}.1.weight" in state for k in range(2, 10))
            state = renamed(state, discriminator_names(stages))
            options = {
                "colour_tags": size_of(state, "heads.colour_tags.weight", 0, 115),
                "invariant_tags": size_of(state, "heads.invariant_tags.weight", 0, 370),
                "width": size_of(state, "heads.real.weight", 1, 512) >> (stages or 4),
                "stages": stages or 4,
                "last_blocks": count(state, "layers.{}.conv1.", first=1 + 2 * stages) or 3,
            }
            return load_authors(cls, options, state, "Tag2Pix discriminator of the authors")


def discriminator_names(stages: int) -> list:
    """Our names of the discriminator's parts and theirs, whose K-th part ``convK`` holds a whole stage."""
    names = [(rf"{theirs}\.0\.", f"heads.{ours}.") for theirs, ours in HEADS]
    names += [(r"conv1\.", "layers.0.")]
    for stage in range(stages):
        names += [(rf"conv{stage + 2}\.0\.", f"layers.{2 * stage + 1}.")]
        names += [(rf"conv{stage + 2}\.1\.", f"layers.{2 * stage + 2}.0.")]
    names += [(r"conv(\d+)\.0\.0\.", lambda found: f"layers.{int(found[1]) + stages - 1}.")]
    return names
