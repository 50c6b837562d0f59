"""The encoder of Monodepth2 and FSRE-Depth: a ResNet that gives its maps at five resolutions.

Godard et al., "Digging Into Self-Supervised Monocular Depth Estimation", ICCV 2019 (arXiv 1806.01260), and
the code that FSRE-Depth builds on. The classifier that the authors' modules and files carry along and never
call is not here.
"""

from __future__ import annotations

from torch import Tensor, nn

from lib.models.vision.resnet import DEPTHS, resnet

#: What the published networks subtract from pictures in [0, 1], and divide by: not ImageNet's numbers.
MEAN, DEVIATION = 0.45, 0.225


class ResnetPyramid(nn.Module):
    """Pictures (B, 3·frames, H, W) in [0, 1] to five maps, of 1/2, 1/4, …, 1/32 of the resolution.

    Parameters
    ----------
    depth
        18, 34, 50, 101 or 152.
    width
        Factor on all channels.
    frames
        Pictures side by side in the channels: 1, or 2 for the network that tells the camera's motion.

    Attributes
    ----------
    channels : tuple of five int
        Of the maps, from the finest: 64, 64, 128, 256, 512 at depth 18.

    Raises
    ------
    ValueError
        For another depth, or a size that is not positive.
    """

    def __init__(self, *, depth: int = 18, width: float = 1.0, frames: int = 1) -> None:
        super().__init__()
        self.encoder = resnet(depth, width=width, in_channels=3 * frames, num_classes=1)
        self.encoder.fc = nn.Identity()
        base = self.encoder.conv1.out_channels
        self.channels = (base, *((base << stage) * DEPTHS[depth][0].expansion for stage in range(4)))

    def forward(self, images: Tensor) -> list[Tensor]:
        net = self.encoder
        maps = [net.relu(net.bn1(net.conv1((images - MEAN) / DEVIATION)))]
        x = net.maxpool(maps[0])
        for stage in range(net.stages):
            x = getattr(net, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps
