"""Tag2Pix's semantic extractor: a network that predicts tags without colours from line art, cut in half.

Kim, Jhoo, Park & Yoo, "Tag2Pix", ICCV 2019 (arXiv:1908.05840), after the authors' code
(github.com/blandocs/Tag2Pix, commit 733d729, MIT). The whole is an SE-ResNeXt-50 for one input channel,
trained to predict 370 tags such as hats or smiles; its training is not published, its weights are. The
generator sees what its second stage gives, and its weights stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.authors import Source, opened
from lib.models.images.tag2pix_blocks import GatedBottleneck
from lib.models.images.tag2pix_checkpoints import count, load_authors, read_authors, renamed, size_of
from lib.models.vision.resnet import ResNet


class LineArtBottleneck(GatedBottleneck):
    """Squeeze-and-excitation ResNeXt's block whose gate has biases."""

    def __init__(self, inputs: int, channels: int, **options) -> None:
        super().__init__(inputs, channels, gate_bias=True, **options)


class LineArtClassifier(ResNet):
    """Predicts tags from line art (B, 1, S, S); the first half is the extractor.

    Defaults are the authors': 26,262,754 parameters, of which `extractor` keeps 1,564,784.

    Parameters
    ----------
    num_tags : int
    blocks : tuple of int
        Of each stage; at least two.
    groups, width_per_group, width
        Of `lib.models.vision.resnet.ResNet`.

    Raises
    ------
    ValueError
        There are fewer than two stages; or as `ResNet`.
    """

    def __init__(
        self,
        *,
        num_tags: int = 370,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        groups: int = 32,
        width_per_group: int = 4,
        width: float = 1.0,
    ) -> None:
        if len(blocks) < 2:
            raise ValueError(f"the extractor is the first two stages, got {len(blocks)}")
        super().__init__(
            block=LineArtBottleneck,
            blocks=blocks,
            num_classes=num_tags,
            in_channels=1,
            groups=groups,
            width_per_group=width_per_group,
            width=width,
        )
        self.to(memory_format=torch.channels_last)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Binary cross-entropy of the tags, ``invariant`` (B, num_tags), of line art, ``lines``.

        The mean over batch and tags. Tags are rare, so that a constant prediction looks good by it: judge by
        average precision.
        """
        return F.binary_cross_entropy_with_logits(self(batch["lines"]), batch["invariant"])

    def extractor(self, mode: Literal["eval", "batch"] = "eval") -> SemanticExtractor:
        """A frozen copy of the first half."""
        return SemanticExtractor(self, mode)

    @classmethod
    def from_authors(cls, source: Source) -> Self:
        """The network of the authors' ``model.pth`` (or of what is in it), in evaluation mode.

        Raises
        ------
        FileNotFoundError, ValueError
            As `lib.models.images.tag2pix.Generator.from_authors`.
        """
        names = [
            (rf"(.*)\.selayer\.conv{k}\.", rf"\1.gate.{name}.") for k, name in ((1, "squeeze"), (2, "excite"))
        ]
        with opened(source) as held:
            state = renamed(read_authors(held, "weight"), names)
            for key, value in state.items():
                if ".gate." in key and value.ndim == 4:
                    state[key] = value.flatten(1)  # theirs are 1×1 convolutions
            stages = range(1, 1 + count(state, "layer{}.", first=1))
            options = {
                "num_tags": size_of(state, "fc.weight", 0, 370),
                "blocks": tuple(count(state, f"layer{stage}.{{}}.") for stage in stages) or (3, 4, 6, 3),
            }
            return load_authors(cls, options, state, "Tag2Pix semantic extractor")


class SemanticExtractor(nn.Module):
    """Line art (B, 1, S, S) in 0…1 to features (B, C, S / 8, S / 8): the half that the generator sees.

    Parameters
    ----------
    classifier : LineArtClassifier
        Whose first half is copied.
    mode : {"eval", "batch"}
        What its batch norms use, whatever mode the network around is in: running averages, as the authors'
        graphical program, or each batch's own, as their training and test programs, where a picture's
        features depend on the pictures beside it and the averages drift, unsaved.

    Attributes
    ----------
    channels : int
        C; the authors' have 512.
    """

    #: By how much the image shrinks.
    reduction = 8

    def __init__(self, classifier: LineArtClassifier, mode: Literal["eval", "batch"] = "eval") -> None:
        super().__init__()
        if mode not in ("eval", "batch"):
            raise ValueError(f"mode must be eval or batch, got {mode!r}")
        self.mode = mode
        parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")
        self.layers = nn.Sequential(*(copy.deepcopy(getattr(classifier, part)) for part in parts))
        self.channels = classifier.layer2[0].bn3.num_features
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Keeps its own mode."""
        return super().train(self.mode == "batch")

    @torch.no_grad()
    def forward(self, line: Tensor) -> Tensor:
        """Features; no gradient flows through them.

        Raises
        ------
        ValueError
            The line art has not one channel, or sides that 8 does not divide.
        """
        if line.ndim != 4 or line.shape[1] != 1 or line.shape[2] % 8 or line.shape[3] % 8:
            raise ValueError(
                f"line art must be (B, 1, H, W) with sides that 8 divides, got {tuple(line.shape)}"
            )
        return self.layers(line)
