"""The unit of ShuffleNet v1, and a reconstruction of a text detector with such a backbone.

Zhang, Zhou, Lin and Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", CVPR 2018 (arXiv 1707.01083), Figure 2 and the units per stage of Table 1.

`ShuffleDetector` is a **hypothesis**. Park et al. 2018 characterise a "Faster-RCNN-Shuffle" that was
never published. The channels come from the shapes which the authors' library FBGEMM is tuned for; groups,
image size and number of regions were chosen here to come near the paper's printed figures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Units per stage.
REPEATS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; added to the input, or beside its pooled half.

    Parameters
    ----------
    inputs, outputs
        Channels. With stride 2 the branch gives ``outputs − inputs`` and the input, average-pooled, the rest.
    stride
        1 or 2.
    groups, first_groups
        Of the last and of the first 1×1 convolution.
    width
        Channels between them.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int, groups: int, first_groups: int, width: int
    ) -> None:
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        self.expand = nn.Conv2d(inputs, width, 1, groups=first_groups, bias=False)
        self.expand_norm = nn.BatchNorm2d(width)
        self.shuffle = nn.ChannelShuffle(groups)
        self.depthwise = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(width)
        self.project = nn.Conv2d(width, made, 1, groups=groups, bias=False)
        self.project_norm = nn.BatchNorm2d(made)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def branch(self, x: Tensor) -> Tensor:
        """The convolutions, before ReLU and junction."""
        x = self.shuffle(self.relu(self.expand_norm(self.expand(x))))
        return self.project_norm(self.project(self.depthwise_norm(self.depthwise(x))))

    def forward(self, x: Tensor) -> Tensor:
        made = self.branch(x)
        if self.pool is None:
            return self.relu(made + x)
        return self.relu(torch.cat([self.pool(x), made], dim=1))


class ShuffleDetector(nn.Module):
    """Hypothesis of the detection network: features of regions (R, channels, 7, 7) of one image.

    A ShuffleNet whose depthwise convolutions have the full width, not a quarter of it. Stages 2 and 3 see the
    image, stage 4 sees crops of 14×14 of the features around proposed regions. The region proposal network
    and the box heads are left out.

    Parameters
    ----------
    channels
        Of the stages.
    groups
        Of the 1×1 convolutions.
    crop
        Side of the crops.
    """

    def __init__(
        self, *, channels: tuple[int, int, int] = (272, 544, 1088), groups: int = 2, crop: int = 14
    ) -> None:
        super().__init__()
        if any((size % (2 * groups)) for size in channels) or crop < 2:
            raise ValueError(
                f"channels {channels} must divide by 2·groups = {2 * groups}, crop be at least 2"
            )
        self.crop = crop
        self.stem = _stem(24)
        inputs = 24
        for stage, outputs in enumerate(channels):
            units = []
            for index in range(REPEATS[stage]):
                stride = 2 if index == 0 else 1
                made = outputs - inputs if stride == 2 else outputs
                units.append(
                    ShuffleUnit(
                        inputs,
                        outputs,
                        stride=stride,
                        groups=groups,
                        first_groups=1 if stage == index == 0 else groups,
                        width=made,
                    )
                )
                inputs = outputs
            self.add_module(f"stage{stage + 2}", nn.Sequential(*units))

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        """``image`` (1, 3, H, W); ``boxes`` (R, 4) as x0, y0, x1, y1 in fractions of the image."""
        if len(image) != 1 or boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(
                f"give one image and boxes (R, 4), got {tuple(image.shape)} and {tuple(boxes.shape)}"
            )
        return self.stage4(self.regions(self.stage3(self.stage2(self.stem(image))), boxes))

    def regions(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Features at the centres of a grid over each box, read off bilinearly: (R, C, crop, crop)."""
        centres = (torch.arange(self.crop, device=boxes.device, dtype=boxes.dtype) + 0.5) / self.crop
        corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
        places = 2 * (corner + size * centres[None, :, None]) - 1  # (R, crop, 2), in −1 … 1
        count = len(boxes)
        x = places[:, None, :, 0].expand(count, self.crop, self.crop)
        y = places[:, :, None, 1].expand(count, self.crop, self.crop)
        grid = torch.stack([x, y], dim=-1)
        return F.grid_sample(features.expand(count, -1, -1, -1), grid, align_corners=False)


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
