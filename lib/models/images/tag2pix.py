"""Tag2Pix's generator: line art and colour tags to a coloured picture.

Kim, Jhoo, Park & Yoo, "Tag2Pix: Line Art Colorization Using Text Tag With SECat and Changing Loss", ICCV 2019
(arXiv:1908.05840), after the authors' code (github.com/blandocs/Tag2Pix, commit 733d729, MIT; their weights:
not for commercial use, not to be passed on). A U-Net of stride-2 convolutions and PixelShuffle. Colour tags
enter as a map at the bottom and as a vector in the decoder's blocks (`lib.models.images.tag2pix_blocks`);
tags that say nothing of colours enter only as the features that an extractor trained to predict them sees in
the line art (`lib.models.images.tag2pix_extractor`).

What the code leaves to its framework's defaults, and its keys and shapes do not show: transposed
convolutions pad by 1 on both sides, so that they double the image.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from lib.models.authors import Source, opened
from lib.models.images.tag2pix_blocks import BLOCKS, BlockMaker
from lib.models.images.tag2pix_checkpoints import count, load_authors, read_authors, renamed, size_of

#: Our names of the generator's parts and theirs, as patterns of what keys begin with.
NAMES = (
    (r"Linear\.", "map_of_tags."),
    (r"colorConv\.", "map_convolutions."),
    (r"colorFC\.", "vector_of_tags."),
    (r"featureConv\.network\.", "feature_convolutions."),
    (r"deconv_for_decoder\.", "guide."),
    (r"conv(\d)\.", lambda found: f"encoder.{int(found[1]) - 1}."),
    (r"deconv(\d)\.secat_layer\.(\d+)\.", lambda found: f"decoder.{int(found[1]) - 1}.{found[2]}."),
    (r"deconv(\d)\.(?!secat)", "output."),
)


def leaky(*layers: nn.Module) -> nn.Sequential:
    """Layers with a leaky ReLU of slope 0.2 behind each."""
    return nn.Sequential(*(each for layer in layers for each in (layer, nn.LeakyReLU(0.2, inplace=True))))


def initialise(network: nn.Module) -> None:
    """As the authors: He's normal distribution for convolutions (fan out) and linear layers, zero biases.

    Transposed convolutions keep torch's weights; what is neither keeps all of its own.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            mode = "fan_out" if isinstance(module, nn.Conv2d) else "fan_in"
            nn.init.kaiming_normal_(module.weight, mode=mode)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def convolution(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """3×3, padded."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class Generator(nn.Module):
    """Line art, features of it and colour tags to a picture, and to the guide decoder's coarser one.

    Defaults are the authors' network for 256 pixels: 15,809,398 parameters, 8.6 billion multiply-adds a
    picture. Weights and activations lie channels last, which is faster on processors. The size of the image
    is part of the network: the map of tags has a weight per pixel at the bottom.

    Parameters
    ----------
    image_size : int
        Pixels of a side S; divisible by the bottom's 2^n for n = ``len(blocks)``.
    colour_tags : int
        Length of the tags' multi-hot vector ("CVT", colour-variant tags).
    features : int
        Channels of the extractor's features ("CIT", colour-invariant tags); 0 for a generator without them.
    feature_reduction : int
        By how much the extractor shrinks the image.
    width : int
        Channels of the first convolution; all others are multiples.
    blocks : tuple of int
        Of each stage of the decoder, from the bottom. Widths are 2^n · width, halved from stage to stage.
    tag_size : int
        Length of the vector that the tags become for the blocks.
    block : str or BlockMaker
        Name in `lib.models.images.tag2pix_blocks.BLOCKS`, or what makes one.
    groups : int
        Of the blocks' 3×3 convolutions; divides twice the width.
    batch_norm : bool
        The authors' network for 256 pixels has it, that for 512 not.
    guide : bool
        Whether there is a guide decoder, which draws from the first stage's output alone.
    tag_map : bool
        Whether tags enter at the bottom; without it, which no network of the authors' is, in blocks alone.
    tag_activation : bool
        ReLU behind each layer of the tags' vector. The authors' is affine.

    Raises
    ------
    ValueError
        A size is not positive or does not fit another; there is no such block.
    """

    def __init__(
        self,
        *,
        image_size: int = 256,
        colour_tags: int = 115,
        features: int = 512,
        feature_reduction: int = 8,
        width: int = 16,
        blocks: tuple[int, ...] = (12, 8, 5, 5),
        tag_size: int = 64,
        block: str | BlockMaker = "secat",
        groups: int = 16,
        batch_norm: bool = True,
        guide: bool = True,
        tag_map: bool = True,
        tag_activation: bool = False,
    ) -> None:
        super().__init__()
        if (
            not blocks
            or min(image_size, colour_tags, feature_reduction, width, *blocks, tag_size, groups) < 1
        ):
            raise ValueError(
                "sizes and numbers of blocks must be positive, got "
                f"{(image_size, colour_tags, feature_reduction, width, blocks, tag_size, groups)}"
            )
        stages = len(blocks)
        reduction = 2**stages
        if image_size % reduction:
            raise ValueError(f"image_size must be divisible by {reduction}, got {image_size}")
        if features < 0 or reduction % feature_reduction:
            raise ValueError(
                f"features must be 0 or more at an image shrunk by a divisor of {reduction}, "
                f"got {features} at {feature_reduction}"
            )
        if isinstance(block, str) and block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {block!r}")
        if (2 * width) % groups:
            raise ValueError(f"groups must divide twice the width, {2 * width}, got {groups}")
        self.image_size, self.colour_tags = image_size, colour_tags
        self.features, self.feature_reduction = features, feature_reduction
        self.bottom_size, bottom = image_size // reduction, width * reduction

        widths = [width << stage for stage in range(stages + 1)]
        self.encoder = nn.ModuleList(
            leaky(convolution(inputs, outputs, stride=1 if inputs == 1 else 2), convolution(outputs, outputs))
            for inputs, outputs in zip([1, *widths], widths, strict=False)
        )
        self.feature_convolutions = None
        if features:
            self.feature_convolutions = feature_convolutions(
                features, bottom, stride=reduction // feature_reduction, batch_norm=batch_norm
            )
        self.map_of_tags = self.map_convolutions = None
        if tag_map:
            self.map_of_tags = nn.Linear(colour_tags, 2 * width * self.bottom_size**2)
            shapes = [(2 * width, 4 * width), (4 * width, 4 * width), (4 * width, 4 * width)]
            self.map_convolutions = leaky(*(convolution(*shape) for shape in shapes))
            self.map_convolutions[-1] = nn.Tanh()

        make = BLOCKS[block] if isinstance(block, str) else block
        make = partial(make, tag_size=tag_size, groups=groups)
        inputs = bottom * (1 + bool(features)) + 4 * width * tag_map
        self.decoder = nn.ModuleList()
        for stage, number in enumerate(blocks):
            channels = bottom >> stage
            layers = [make(inputs if k == 0 else 4 * channels, channels) for k in range(number)]
            self.decoder.append(nn.ModuleList(layers))
            inputs = channels + channels // 2  # PixelShuffle turns 4 channels into one; the skip has half
        self.output = leaky(convolution(inputs, 2 * width), convolution(2 * width, 3))
        self.output[-1] = nn.Tanh()

        self.vector_of_tags = None
        if any(block.sees_tags for stage in self.decoder for block in stage):
            linear = [nn.Linear(colour_tags if k == 0 else tag_size, tag_size) for k in range(4)]
            activations = [nn.ReLU()] * tag_activation
            self.vector_of_tags = nn.Sequential(*(each for layer in linear for each in (layer, *activations)))

        self.guide = None
        if guide:
            channels = [bottom >> stage for stage in range(stages)]
            doubling = [
                nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1)
                for a, b in pairwise(channels)
            ]
            self.guide = leaky(*doubling, nn.ConvTranspose2d(channels[-1], 3, 3, padding=1))
            self.guide[-1] = nn.Tanh()
        initialise(self)
        if not batch_norm:
            remove_batch_norms(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, line: Tensor, features: Tensor | None, tags: Tensor) -> tuple[Tensor, Tensor]:
        """Draw.

        Parameters
        ----------
        line : (B, 1, S, S)
            Line art in 0…1, white is 1.
        features : (B, features, S / reduction, S / reduction) or None
            Of the extractor; None for a generator without.
        tags : (B, colour_tags)
            1 where a picture has the tag, else 0.

        Returns
        -------
        picture : (B, 3, S, S)
            Red, green, blue in −1…1.
        guide : (B, 3, S, S)
            The guide decoder's; without one, the picture itself.

        Raises
        ------
        ValueError
            A shape is another.
        """
        self._check(line, features, tags)
        skips, x = [], line
        for layers in self.encoder:
            x = layers(x)
            skips.append(x)
        bottom = [skips.pop()]
        if self.feature_convolutions is not None:
            bottom.append(self.feature_convolutions(features))
        if self.map_of_tags is not None:
            flat = self.map_of_tags(tags)
            bottom.append(self.map_convolutions(flat.unflatten(1, (-1, self.bottom_size, self.bottom_size))))
        vector = None if self.vector_of_tags is None else self.vector_of_tags(tags)
        x = torch.cat(bottom, dim=1)
        guide = None
        for stage in self.decoder:
            for block in stage:
                x = block(x, vector)
            x = nn.functional.pixel_shuffle(x, 2)
            if guide is None and self.guide is not None:
                guide = self.guide(x)
            x = torch.cat([x, skips.pop()], dim=1)
        picture = self.output(x)
        return picture, picture if guide is None else guide

    def _check(self, line: Tensor, features: Tensor | None, tags: Tensor) -> None:
        size = self.image_size
        expected = {"line art": (line, (1, size, size)), "tags": (tags, (self.colour_tags,))}
        if self.features:
            side = size // self.feature_reduction
            expected["features"] = (features, (self.features, side, side))
        elif features is not None:
            raise ValueError("this generator was made without features of an extractor, got some")
        for name, (given, shape) in expected.items():
            if given is None or given.shape != (len(line), *shape):
                got = "none" if given is None else tuple(given.shape)
                raise ValueError(f"{name} must be {(len(line), *shape)}, got {got}")

    @classmethod
    def from_authors(cls, source: Source) -> Self:
        """The generator of an authors' file, in evaluation mode; its sizes are read from the weights.

        Parameters
        ----------
        source
            ``tag2pix_256.pkl``, ``tag2pix_512.pkl`` or ``tag2pix_<epoch>_epoch.pkl`` (``G`` is read), or what
            is in one.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is no file of tensors; names the first missing, unexpected, misshapen or mistyped keys, or a
            weight that is not finite.
        """
        with opened(source) as held:
            state = renamed(read_authors(held, "G"), NAMES)
            stages = range(count(state, "decoder.{}."))
            options = {
                "colour_tags": size_of(state, "map_of_tags.weight", 1, 115),
                "width": size_of(state, "encoder.0.0.weight", 0, 16),
                "blocks": tuple(count(state, f"decoder.{stage}.{{}}.") for stage in stages) or (12, 8, 5, 5),
                "tag_size": size_of(state, "vector_of_tags.0.weight", 0, 64),
                "features": size_of(state, "feature_convolutions.0.weight", 1, 0),
                "batch_norm": "decoder.0.0.bn1.weight" in state,
                "guide": "guide.0.weight" in state,
                "tag_activation": "vector_of_tags.6.weight" in state,
            }
            bottom = size_of(state, "map_of_tags.weight", 0, 8192) // (2 * options["width"])
            options["image_size"] = round(bottom**0.5) * 2 ** len(options["blocks"])
            return load_authors(cls, options, state, "Tag2Pix generator of the authors")


def feature_convolutions(inputs: int, outputs: int, *, stride: int, batch_norm: bool) -> nn.Sequential:
    """What adapts the extractor's features: three 3×3 convolutions and ReLU, batch norm behind two."""
    layers = []
    for k in range(3):
        layers.append(
            convolution(inputs if k == 0 else outputs, outputs, stride=stride if k == 0 else 1, bias=False)
        )
        if batch_norm and k < 2:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def remove_batch_norms(network: nn.Module) -> None:
    """Put the identity in the place of every batch norm."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


def to_pixels(pictures: Tensor) -> Tensor:
    """Pictures in −1…1 as bytes 0…255, truncated as the authors' are."""
    return ((pictures + 1) * 127.5).clamp(0, 255).to(torch.uint8)
