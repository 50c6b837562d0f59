"""StyleMapGAN: generator with a spatial style map, encoder and discriminator.

Source: Kim, Choi, Kim, Yoo & Uh, Exploiting Spatial Dimensions of Latent in GAN for Real-time Image Editing,
CVPR 2021 (arXiv:2104.14754). What the paper leaves open is as in the authors' program; nothing of it, whose
licence is non-commercial, is copied. Beside this module stand losses (`stylemapgan_losses`), editing
(`stylemapgan_editing`) and projection by optimisation (`stylemapgan_projection`).

With a map of 1×1 the latent is a vector, as in StyleGAN: the style codes stay vectors, so that γ and β are
the same everywhere, the learned constant is 4×4, and the encoder ends in a linear map. The authors' program
has no such model (it refuses 1×1); the baseline of the paper's ablation is StyleGAN2 with an encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from lib.models.authors import Source
from lib.models.images.stylemapgan_checkpoints import read_authors
from lib.models.images.stylemapgan_layers import (
    GAIN,
    EqualConv,
    EqualLinear,
    Normalise,
    ResidualBlock,
    StyledConv,
    skip,
)

SMALLEST = 4  # pixels: where the discriminator ends, and where a vector latent starts
GROUP = 4  # images of a batch whose deviation the discriminator sees


def channels_at(size: int, *, width: int, channel_multiplier: int) -> int:
    """Channels at `size` pixels: `width` up to 32, from 64 on 32 · width · channel_multiplier / size."""
    return width if size <= 32 else width * 32 * channel_multiplier // size


def check_sizes(resolution: int, map_size: int, width: int, channel_multiplier: int) -> None:
    """ValueError for sizes that no network can have."""
    for name, size, least in (("resolution", resolution, 2 * SMALLEST), ("map_size", map_size, 1)):
        if size < least or size & (size - 1):
            raise ValueError(f"{name} must be a power of two of at least {least}, got {size}")
    if map_size > resolution:
        raise ValueError(f"map_size must be at most the resolution of {resolution}, got {map_size}")
    if min(width, channel_multiplier) < 1:
        sizes = f"{width} and {channel_multiplier}"
        raise ValueError(f"width and channel_multiplier must be at least 1, got {sizes}")
    if channels_at(resolution, width=width, channel_multiplier=channel_multiplier) < 1:
        raise ValueError(f"a width of {width} leaves no channels at {resolution} pixels")


def check_shape(tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    """ValueError unless `tensor` is a non-empty batch of floating-point numbers of `shape`."""
    if tensor.ndim != len(shape) + 1 or tuple(tensor.shape[1:]) != shape or not len(tensor):
        expected = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"{what} must be ({expected}) with N at least 1, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{what} must be floating-point numbers, got {tensor.dtype}")


def levels(start: int, end: int) -> list[int]:
    """The powers of two from `start` to `end`."""
    return [start << k for k in range((end // start).bit_length())]


class MappingNetwork(nn.Module):
    """Random vectors to style maps: PixelNorm, then linear layers, all with leaky ReLU, the last too.

    Parameters
    ----------
    latent_size : int
        Of a random vector, and of all layers but the last.
    style_channels, map_size : int
        Of the style map.
    layers : int
    rate : float
        Of learning, see `EqualLinear`.
    """

    def __init__(
        self, *, latent_size: int, style_channels: int, map_size: int, layers: int, rate: float
    ) -> None:
        super().__init__()
        self.latent_size, self.shape = latent_size, (style_channels, map_size, map_size)
        sizes = [latent_size] * layers + [math.prod(self.shape)]
        self.layers = nn.Sequential(
            *(EqualLinear(a, b, rate=rate, activate=True) for a, b in pairwise(sizes))
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Style maps (N, C, s, s) of vectors (N, latent_size), of whatever length."""
        check_shape(latents, (self.latent_size,), "latents")
        latents = latents * torch.rsqrt(latents.square().mean(dim=1, keepdim=True) + 1e-8)
        return self.layers(latents).unflatten(1, self.shape)


class Resizer(nn.Module):
    """Style map w to the style codes w⁺, one for each layer of the synthesis network.

    Parameters
    ----------
    style_channels, map_size : int
        Of the style map.
    channels : sequence of int
        Of the codes at each size, from the smallest on: two each.
    """

    def __init__(self, *, style_channels: int, map_size: int, channels: Sequence[int]) -> None:
        super().__init__()
        vector = map_size == 1
        kernel = 1 if vector else 3
        convs, inputs = [], style_channels
        for level, outputs in enumerate(channels):
            resample = "up" if level and not vector else None
            convs.append(EqualConv(inputs, outputs, kernel, resample=resample))
            convs.append(EqualConv(outputs, outputs, kernel))
            inputs = outputs
        self.convs = nn.ModuleList(convs)

    def forward(self, style_map: Tensor) -> list[Tensor]:
        """Codes from a style map (N, C, s, s); each is made from the one before."""
        codes = []
        for conv in self.convs:
            style_map = conv(style_map)
            codes.append(style_map)
        return codes


class SynthesisBlock(nn.Module):
    """Two styled 3×3 convolutions, the first of which doubles the size, and a skip: their sum over √2."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        code_channels: tuple[int, int],
        code_kernel: int,
        normalise: Normalise,
    ) -> None:
        super().__init__()
        shared = {"code_kernel": code_kernel, "normalise": normalise}
        first, second = code_channels
        self.conv1 = StyledConv(inputs, outputs, 3, code_channels=first, resample="up", **shared)
        self.conv2 = StyledConv(outputs, outputs, 3, code_channels=second, gain=1 / GAIN, **shared)
        self.skip = skip(inputs, outputs, "up")

    def forward(self, inputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """(N, inputs, H, W) with the codes of its two convolutions to (N, outputs, 2H, 2W)."""
        return self.conv2(self.conv1(inputs, first), second) + self.skip(inputs)


class Generator(nn.Module):
    """Style maps to images, and random vectors to style maps.

    Of 256 pixels and a map of 8×8: 79 744 323 parameters, 211 G multiply-accumulates an image.

    Parameters
    ----------
    resolution : int
        Of the images, a power of two.
    map_size : int
        Height and width s of the style map, a power of two; 1 for a vector.
    style_channels : int
        Of the style map.
    latent_size : int
        Of the random vectors.
    width : int
        Channels of feature maps up to 32 pixels.
    channel_multiplier : int
        Of channels from 64 pixels on, see `channels_at`.
    mapping_layers : int
    mapping_rate : float
        Rate of learning of the mapping network.
    small_resizer : bool
        Whether all style codes have only `style_channels` channels (published for 1024 pixels).
    normalise : "layer" or "instance"
        See `StyledConv`.

    Raises
    ------
    ValueError
        Sizes that no network can have.
    """

    def __init__(
        self,
        *,
        resolution: int = 256,
        map_size: int = 8,
        style_channels: int = 64,
        latent_size: int = 64,
        width: int = 512,
        channel_multiplier: int = 2,
        mapping_layers: int = 8,
        mapping_rate: float = 0.01,
        small_resizer: bool = False,
        normalise: Normalise = "layer",
    ) -> None:
        super().__init__()
        check_sizes(resolution, map_size, width, channel_multiplier)
        if min(style_channels, latent_size, mapping_layers) < 1:
            raise ValueError("style_channels, latent_size and mapping_layers must be at least 1")
        if normalise not in ("layer", "instance"):
            raise ValueError(f"normalise must be 'layer' or 'instance', got {normalise!r}")
        self.resolution, self.map_size, self.style_channels = resolution, map_size, style_channels
        self.mapping = MappingNetwork(
            latent_size=latent_size,
            style_channels=style_channels,
            map_size=map_size,
            layers=mapping_layers,
            rate=mapping_rate,
        )
        start = SMALLEST if map_size == 1 else map_size
        channels = [
            channels_at(size, width=width, channel_multiplier=channel_multiplier)
            for size in levels(start, resolution)
        ]
        codes = [style_channels] * len(channels) if small_resizer else channels
        self.resizer = Resizer(style_channels=style_channels, map_size=map_size, channels=codes)
        shared = {"code_kernel": 1 if map_size == 1 else 3, "normalise": normalise}
        self.constant = nn.Parameter(torch.randn(1, channels[0], start, start))
        self.first = StyledConv(channels[0], channels[0], 3, code_channels=codes[0], **shared)
        self.blocks = nn.ModuleList(
            SynthesisBlock(*channels[k : k + 2], code_channels=tuple(codes[k : k + 2]), **shared)
            for k in range(len(channels) - 1)
        )
        self.to_rgb = StyledConv(channels[-1], 3, 1, code_channels=codes[-1], **shared)
        self.to(memory_format=torch.channels_last)

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a style map."""
        return self.style_channels, self.map_size, self.map_size

    def forward(self, style_map: Tensor) -> Tensor:
        """Images (N, 3, resolution, resolution), not clamped to [−1, 1], of style maps (N, C, s, s)."""
        return self.synthesise(self.codes(style_map))

    def codes(self, style_map: Tensor) -> list[Tensor]:
        """The resized style codes w⁺ of style maps (N, C, s, s): two for each size, in rising order."""
        check_shape(style_map, self.map_shape, "style maps")
        return self.resizer(style_map.contiguous(memory_format=torch.channels_last))

    def synthesise(self, codes: Sequence[Tensor]) -> Tensor:
        """Images (N, 3, resolution, resolution) of the style codes that `codes` returns.

        Raises
        ------
        ValueError
            Another number of codes than this generator has layers.
        """
        if len(codes) != len(self.resizer.convs):
            raise ValueError(f"there must be {len(self.resizer.convs)} style codes, got {len(codes)}")
        features = self.first(self.constant, codes[0])
        for block, first, second in zip(self.blocks, codes[1:-1:2], codes[2:-1:2], strict=True):
            features = block(features, first, second)
        return self.to_rgb(features, codes[-1])

    def draw(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal vectors (count, latent_size), drawn on the CPU so that a seed is one everywhere."""
        latents = torch.randn(count, self.mapping.latent_size, generator=generator)
        return latents.to(self.constant)


class Encoder(nn.Module):
    """Images to style maps.

    Of 256 pixels and a map of 8×8: 17 617 600 parameters.

    Parameters
    ----------
    resolution, map_size, style_channels, width, channel_multiplier
        As of `Generator`.

    Raises
    ------
    ValueError
        Sizes that no network can have.
    """

    def __init__(
        self,
        *,
        resolution: int = 256,
        map_size: int = 8,
        style_channels: int = 64,
        width: int = 512,
        channel_multiplier: int = 2,
    ) -> None:
        super().__init__()
        check_sizes(resolution, map_size, width, channel_multiplier)
        self.resolution = resolution
        end = SMALLEST if map_size == 1 else map_size
        self.features, channels = image_features(resolution, end, width, channel_multiplier)
        if map_size == 1:  # all places of the last features to one vector
            self.last = EqualConv(channels, style_channels, SMALLEST, padding=0)
        else:
            self.last = EqualConv(channels, style_channels, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Style maps (N, C, s, s) of images (N, 3, resolution, resolution) in [−1, 1]."""
        check_shape(images, (3, self.resolution, self.resolution), "images")
        return self.last(self.features(images.contiguous(memory_format=torch.channels_last)))


class Discriminator(nn.Module):
    """Images to logits of being real: StyleGAN2's residual discriminator.

    Of 256 pixels: 28 864 129 parameters. Twice differentiable, as R1 wants.

    Parameters
    ----------
    resolution, width, channel_multiplier
        As of `Generator`.

    Raises
    ------
    ValueError
        Sizes that no network can have.
    """

    def __init__(self, *, resolution: int = 256, width: int = 512, channel_multiplier: int = 2) -> None:
        super().__init__()
        check_sizes(resolution, 1, width, channel_multiplier)
        self.resolution = resolution
        self.features, channels = image_features(resolution, SMALLEST, width, channel_multiplier)
        self.last = EqualConv(channels + 1, channels, 3)
        self.classifier = nn.Sequential(
            EqualLinear(channels * SMALLEST**2, channels, activate=True), EqualLinear(channels, 1)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 1) of images (N, 3, resolution, resolution), N below 4 or a multiple of 4.

        Raises
        ------
        ValueError
            Images of another shape or type, or a batch that cannot be divided into groups.
        """
        check_shape(images, (3, self.resolution, self.resolution), "images")
        if len(images) % min(len(images), GROUP):
            raise ValueError(f"a batch must be below {GROUP} or a multiple of it, got {len(images)}")
        features = self.features(images.contiguous(memory_format=torch.channels_last))
        features = self.last(torch.cat([features, group_deviation(features)], dim=1))
        return self.classifier(features.flatten(1))


def image_features(
    resolution: int, end: int, width: int, channel_multiplier: int
) -> tuple[nn.Sequential, int]:
    """Convolutions from RGB at `resolution` down to `end` pixels, and how many channels they end with."""
    channels = [
        channels_at(size, width=width, channel_multiplier=channel_multiplier)
        for size in reversed(levels(end, resolution))
    ]
    blocks = (ResidualBlock(a, b) for a, b in pairwise(channels))
    return nn.Sequential(EqualConv(3, channels[0], 1), *blocks), channels[-1]


def group_deviation(features: Tensor) -> Tensor:
    """Mean standard deviation within groups of images: feature maps (N, C, H, W) to (N, 1, H, W)."""
    count, _, height, width = features.shape
    groups = features.unflatten(0, (min(count, GROUP), -1))
    deviations = (groups.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return deviations.repeat(len(groups)).view(-1, 1, 1, 1).expand(-1, 1, height, width)


class StyleMapGAN(nn.Module):
    """Generator, encoder and discriminator of the same sizes.

    Parameters
    ----------
    resolution, map_size, style_channels, width, channel_multiplier
        As of `Generator`.
    generator_options
        The others of `Generator`.
    """

    def __init__(
        self,
        *,
        resolution: int = 256,
        map_size: int = 8,
        style_channels: int = 64,
        width: int = 512,
        channel_multiplier: int = 2,
        **generator_options,
    ) -> None:
        super().__init__()
        shared = {"resolution": resolution, "width": width, "channel_multiplier": channel_multiplier}
        latent = {"map_size": map_size, "style_channels": style_channels}
        self.generator = Generator(**shared, **latent, **generator_options)
        self.encoder = Encoder(**shared, **latent)
        self.discriminator: Discriminator | None = Discriminator(**shared)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions G(E(x)) of images (N, 3, resolution, resolution)."""
        return self.generator(self.encoder(images))

    @classmethod
    def from_authors(cls, source: Source, *, average: bool = True) -> Self:
        """Networks with the weights of an authors' file, in its precision and evaluation mode.

        Parameters
        ----------
        source
            A file such as ``celeba_hq_256_8x8.pt``, or what it holds: ``g_ema`` and ``e_ema``; in most files
            also ``discriminator``, without which the model has none, and ``train_args``.
        average : bool
            The moving average of the weights, instead of ``generator`` and ``encoder``.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is no file of tensors; names the first missing, unexpected, misshapen or mistyped keys, a
            weight that is not finite, or a blur that is not the published one.
        """
        return read_authors(cls, source, average=average).eval()
