"""Decoders of depth and of labels, which may read each other: Monodepth2's U-Net, and FSRE-Depth's pair.

After the code of Jung et al. (github.com/hyBlue/FSRE-Depth, MIT), whose depth decoder is that of Godard et
al., "Digging Into Self-Supervised Monocular Depth Estimation", ICCV 2019. Levels count from the finest:
level s has 1/2^s of the resolution, and level 4 is the first that is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.depth.cross_task_attention import ConvElu, CrossTaskAttention

#: Of the published decoders, from the finest level.
CHANNELS = (16, 32, 64, 128, 256)


class PyramidDecoder(nn.Module):
    """One decoder: five levels of convolution, upsampling, the encoder's map and convolution; heads on some.

    Parameters
    ----------
    encoder_channels
        Of the encoder's five maps, from the finest.
    outputs
        Channels of a head: 1 for disparity, the number of classes for labels.
    head_levels
        Levels with a head.
    channels
        Of the five levels, from the finest.

    Raises
    ------
    ValueError
        There are not five levels, or a size or level is out of range.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        *,
        outputs: int = 1,
        head_levels: Sequence[int] = (0, 1, 2, 3),
        channels: Sequence[int] = CHANNELS,
    ) -> None:
        super().__init__()
        if len(encoder_channels) != 5 or len(channels) != 5 or min(*encoder_channels, *channels, outputs) < 1:
            raise ValueError(
                "expected positive channels of five maps and five levels, got "
                f"{tuple(encoder_channels)}, {tuple(channels)} and {outputs} outputs"
            )
        if not set(head_levels) <= set(range(5)):
            raise ValueError(f"heads are on levels 0 to 4, got {tuple(head_levels)}")
        self.channels = tuple(channels)
        coarser = (*channels[1:], encoder_channels[-1])
        skips = (0, *encoder_channels[:-1])
        self.before = nn.ModuleList(map(ConvElu, coarser, channels))
        self.after = nn.ModuleList(
            ConvElu(own + skip, own) for own, skip in zip(channels, skips, strict=True)
        )
        self.heads = nn.ModuleDict(
            {
                str(level): nn.Conv2d(channels[level], outputs, 3, padding=1, padding_mode="reflect")
                for level in head_levels
            }
        )

    def level(self, level: int, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Features of a level from those of the next coarser one, or from the encoder's last map."""
        x = F.interpolate(self.before[level](x), scale_factor=2, mode="nearest")
        if level > 0:
            x = torch.cat([x, maps[level - 1]], 1)
        return self.after[level](x)

    def head(self, level: int, x: Tensor) -> Tensor:
        """What the head of a level makes of its features, without activation."""
        return self.heads[str(level)](x)


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the decoders give.

    Attributes
    ----------
    disparity : dict of int to Tensor
        From a level s to (B, 1, H/2^s, W/2^s) in (0, 1).
    logits : Tensor or None
        (B, classes, H, W), where labels were decoded.
    features : dict of int to Tensor
        The depth decoder's, from a level to (B, C, H/2^s, W/2^s), after attention.
    """

    disparity: dict[int, Tensor]
    logits: Tensor | None
    features: dict[int, Tensor]


class CrossTaskDecoder(nn.Module):
    """The decoder of depth, with or without one of labels beside it and attention between them.

    Parameters
    ----------
    encoder_channels
        Of the encoder's five maps, from the finest.
    classes
        Of the labels; 0: no decoder of labels.
    attention_levels
        Levels at which both decoders read each other: the published (4, 3, 2), or none.
    scales
        Levels that give a disparity.
    channels
        Of the five levels, from the finest.
    embeddings, ratio, merged
        Of `CrossTaskAttention`.

    Raises
    ------
    ValueError
        There is attention and no decoder of labels, or a size or level is out of range.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        *,
        classes: int = 19,
        attention_levels: Sequence[int] = (4, 3, 2),
        scales: Sequence[int] = (0, 1, 2, 3),
        channels: Sequence[int] = CHANNELS,
        embeddings: int = 4,
        ratio: int = 2,
        merged: bool = True,
    ) -> None:
        super().__init__()
        if attention_levels and not classes:
            raise ValueError("attention is between two tasks: it needs classes of labels, got 0")
        if not set(attention_levels) <= set(range(5)):
            raise ValueError(f"attention is at levels 0 to 4, got {tuple(attention_levels)}")
        self.depth = PyramidDecoder(encoder_channels, head_levels=scales, channels=channels)
        self.segmentation = (
            PyramidDecoder(encoder_channels, outputs=classes, head_levels=(0,), channels=channels)
            if classes
            else None
        )
        self.scales = tuple(scales)
        self.to_depth, self.to_segmentation = (
            nn.ModuleDict(
                {
                    str(level): CrossTaskAttention(
                        channels[level], embeddings=embeddings, ratio=ratio, merged=merged
                    )
                    for level in attention_levels
                }
            )
            for _ in range(2)
        )

    def forward(self, maps: Sequence[Tensor], *, labels: bool = True) -> Decoded:
        """Decode the encoder's maps.

        Parameters
        ----------
        maps
            Five, from the finest.
        labels
            Whether labels are wanted; if not, their decoder runs only as far as depth reads from it.
        """
        depth = other = maps[-1]
        lowest = 0 if labels else min(map(int, self.to_depth), default=5)
        if self.segmentation is None:
            lowest = 5
        disparity, features = {}, {}
        for level in reversed(range(5)):
            depth = self.depth.level(level, depth, maps)
            if level >= lowest:
                other = self.segmentation.level(level, other, maps)
            if (key := str(level)) in self.to_depth:
                depth, other = self.to_depth[key](depth, other), self.to_segmentation[key](other, depth)
            features[level] = depth
            if level in self.scales:
                disparity[level] = self.depth.head(level, depth).sigmoid()
        logits = self.segmentation.head(0, other) if lowest == 0 else None
        return Decoded(disparity, logits, features)
