"""The network that tells how the camera moved between two pictures: Monodepth2's, as FSRE-Depth has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib.models.depth.resnet_pyramid import ResnetPyramid

#: The published networks begin with small motions: what they tell is multiplied by this.
MOTION_SCALE = 0.01


class PoseDecoder(nn.Module):
    """The encoder's coarsest map to a motion: axis times angle (radians), and translation.

    Parameters
    ----------
    inputs
        Channels of that map.
    hidden
        Channels inside.
    motions
        How many; FSRE-Depth has 1, Monodepth2 2, of which it uses the first.
    scale
        Factor on the outputs.
    """

    def __init__(
        self, inputs: int, *, hidden: int = 256, motions: int = 1, scale: float = MOTION_SCALE
    ) -> None:
        super().__init__()
        self.scale = scale
        self.net = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.Conv2d(hidden, 6 * motions, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Axis-angles and translations of the first motion, (B, 3) each."""
        for layer in self.net[:-1]:
            x = layer(x).relu()
        motion = self.scale * self.net[-1](x.mean((2, 3), keepdim=True))[:, :6].flatten(1)
        return motion[:, :3], motion[:, 3:]


class PoseNetwork(nn.Module):
    """Pairs of pictures, the earlier first, to the camera's motion between them.

    Parameters
    ----------
    depth, width
        Of `ResnetPyramid`.
    hidden, motions, scale
        Of `PoseDecoder`; 256 hidden channels times ``width`` by default.
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        width: float = 1.0,
        hidden: int | None = None,
        motions: int = 1,
        scale: float = MOTION_SCALE,
    ) -> None:
        super().__init__()
        self.encoder = ResnetPyramid(depth=depth, width=width, frames=2)
        hidden = round(256 * width) if hidden is None else hidden
        self.decoder = PoseDecoder(self.encoder.channels[-1], hidden=hidden, motions=motions, scale=scale)

    def forward(self, earlier: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
        """Axis-angles and translations, (B, 3) each, from pictures (B, 3, H, W) in [0, 1]."""
        return self.decoder(self.encoder(torch.cat([earlier, later], 1))[-1])
