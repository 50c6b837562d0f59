"""The residual blocks of Tag2Pix's decoder: SECat, and what its ablation puts in SECat's place.

Kim, Jhoo, Park & Yoo, "Tag2Pix: Line Art Colorization Using Text Tag With SECat and Changing Loss", ICCV 2019
(arXiv:1908.05840), after the authors' code (github.com/blandocs/Tag2Pix, commit 733d729, MIT). All blocks are
the bottleneck of `lib.models.vision.resnet`, ``channels`` wide and ``4 · channels`` out, with 16 groups; they
differ in where the tags enter:

=========  =======================================================================================
secat      squeeze-and-excitation whose squeeze sees the tags beside the images' means
senet      squeeze-and-excitation without tags
resnext    none
catconv    squeeze-and-excitation; tags at every pixel of the first convolution's input
catall     the same at all three convolutions
adain      scale and shift after instance normalisation from the tags; no gate, no shortcut
seadain    the same with the shortcut; no gate, in spite of its name
=========  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.models.vision.resnet import Bottleneck

#: Makes a block from (inputs, channels), with ``tag_size`` and ``groups`` by name.
BlockMaker = Callable[..., nn.Module]


class ChannelGate(nn.Module):
    """A factor per channel from the images' means and a tag vector: σ(W₂ ReLU(W₁ [mean(x); t])).

    With tags this is the paper's SECat. W₁ [q; t] = W_q q + W_t t, so it is squeeze-and-excitation whose
    squeeze has a bias that depends on the tags: it scales channels and cannot place a colour.

    Parameters
    ----------
    channels : int
    tag_size : int
        Length of t; 0 for squeeze-and-excitation.
    reduction : int
        Channels to units between the two layers.
    bias : bool
        Of both layers.

    Raises
    ------
    ValueError
        Fewer channels than the reduction.
    """

    def __init__(self, channels: int, tag_size: int = 0, *, reduction: int = 16, bias: bool = False) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(f"a gate reduces its channels by {reduction}, got {channels}")
        self.tag_size = tag_size
        self.squeeze = nn.Linear(channels + tag_size, channels // reduction, bias=bias)
        self.excite = nn.Linear(channels // reduction, channels, bias=bias)

    def forward(self, images: Tensor, tags: Tensor | None = None) -> Tensor:
        """Factors (B, C, 1, 1) in 0…1 for images (B, C, H, W) and, if it sees them, tags (B, tag_size)."""
        means = images.mean(dim=(2, 3))
        if self.tag_size:
            means = torch.cat([means, tags], dim=1)
        return self.excite(self.squeeze(means).relu()).sigmoid()[:, :, None, None]


class PlainBottleneck(Bottleneck):
    """ResNeXt's block, which gets the tags and does not use them."""

    sees_tags = False

    def __init__(self, inputs: int, channels: int, *, tag_size: int = 0, **options) -> None:
        super().__init__(inputs, channels, **options)

    def forward(self, x: Tensor, tags: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, 4 channels, H, W)."""
        return super().forward(x)


class GatedBottleneck(Bottleneck):
    """ResNeXt's block with a `ChannelGate` on its branch: relu(branch(x) · gate + shortcut(x)).

    Parameters
    ----------
    inputs, channels
        Of `Bottleneck`.
    tag_size
        Length of the tag vector.
    gate_tags
        Whether the gate sees it.
    gate_bias
        Of both layers of the gate.
    concatenated
        At the input of so many of the three convolutions, counted from the first, the tags stand beside the
        channels of every pixel. The 3×3 keeps its groups: the last of them see tags alone.
    **options
        ``stride``, ``groups``, ``width`` and ``stride_in_1x1`` of `Bottleneck`.

    Raises
    ------
    ValueError
        Channels or tags do not divide into groups, or there are fewer than 16 channels to be gated.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        tag_size: int = 0,
        gate_tags: bool = False,
        gate_bias: bool = False,
        concatenated: Literal[0, 1, 3] = 0,
        **options,
    ) -> None:
        super().__init__(inputs, channels, **options)
        self.sees_tags = gate_tags or concatenated > 0
        self.concatenated = concatenated
        if concatenated > 1 and tag_size % self.conv2.groups:
            raise ValueError(f"{tag_size} tags do not divide into {self.conv2.groups} groups")
        for conv in (self.conv1, self.conv2, self.conv3)[:concatenated]:
            shape = (conv.out_channels, (conv.in_channels + tag_size) // conv.groups, *conv.kernel_size)
            conv.in_channels += tag_size
            conv.weight = nn.Parameter(torch.empty(shape))
            conv.reset_parameters()
        self.relu = nn.ReLU(inplace=True)
        self.gate = ChannelGate(channels * self.expansion, tag_size * gate_tags, bias=gate_bias)

    def forward(self, x: Tensor, tags: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, 4 channels, H, W), with tags (B, tag_size)."""
        y = self.relu(self.bn1(self.conv1(self._beside(x, tags, 1))))
        y = self.relu(self.bn2(self.conv2(self._beside(y, tags, 2))))
        y = self.bn3(self.conv3(self._beside(y, tags, 3)))
        return torch.addcmul(self.shortcut(x), y, self.gate(y, tags)).relu_()

    def _beside(self, x: Tensor, tags: Tensor | None, number: int) -> Tensor:
        if number > self.concatenated:
            return x
        return torch.cat([x, tags[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)


class AdaptiveInstanceNorm(nn.Module):
    """γ · instance_norm(x) + β with γ and β linear in the tags, whose weights are scaled by √(2 / tag_size).

    Parameters
    ----------
    channels, tag_size : int
    initial_scale : float
        The bias of γ. The authors set it to 1, and their initialisation of the whole network then to 0:
        their scales scatter around 0 instead of around 1.
    """

    def __init__(self, channels: int, tag_size: int, *, initial_scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2 * channels, tag_size))
        bias = torch.zeros(2, channels)
        bias[0] = initial_scale
        self.bias = nn.Parameter(bias.flatten())
        self.gain = (2 / tag_size) ** 0.5

    def forward(self, images: Tensor, tags: Tensor) -> Tensor:
        """(B, C, H, W), more than one pixel, and (B, tag_size) to (B, C, H, W)."""
        scale, shift = F.linear(tags, self.weight * self.gain, self.bias)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, F.instance_norm(images), scale)


class AdaptiveBottleneck(Bottleneck):
    """ResNeXt's block with `AdaptiveInstanceNorm` behind its convolutions.

    Parameters
    ----------
    inputs, channels, tag_size
    residual
        Whether there is a shortcut; its projection, if any, keeps its batch norm.
    initial_scale
        Of `AdaptiveInstanceNorm`.
    **options
        Of `Bottleneck`.
    """

    sees_tags = True

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        tag_size: int,
        residual: bool = True,
        initial_scale: float = 1.0,
        **options,
    ) -> None:
        super().__init__(inputs, channels, **options)
        self.residual = residual
        if not residual:
            self.downsample = None
        for name in ("bn1", "bn2", "bn3"):
            norm = AdaptiveInstanceNorm(
                getattr(self, name).num_features, tag_size, initial_scale=initial_scale
            )
            setattr(self, name, norm)

    def forward(self, x: Tensor, tags: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, tag_size) to (B, 4 channels, H, W)."""
        y = self.relu(self.bn1(self.conv1(x), tags))
        y = self.relu(self.bn2(self.conv2(y), tags))
        y = self.bn3(self.conv3(y), tags)
        return self.relu(y + self.shortcut(x) if self.residual else y)


#: The ablation's blocks by the authors' names.
BLOCKS: dict[str, BlockMaker] = {
    "secat": partial(GatedBottleneck, gate_tags=True),
    "senet": GatedBottleneck,
    "resnext": PlainBottleneck,
    "catconv": partial(GatedBottleneck, concatenated=1),
    "catall": partial(GatedBottleneck, concatenated=3),
    "adain": partial(AdaptiveBottleneck, residual=False),
    "seadain": AdaptiveBottleneck,
}
