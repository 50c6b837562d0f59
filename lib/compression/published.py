"""Tables of the one-shot compression paper (Kim et al., ICLR 2016), as recalled: they were not read.

Whether they fit together is for counting to say. Not here: the ranks of VGG-S, GoogLeNet and VGG-16, which we
do not know.
"""

from __future__ import annotations

import pandas as pd

#: Ranks of the compressed two-group AlexNet: (R3, R4), of each group where there are two; one number for
#: Tucker-1 (conv1) and the singular value decompositions (fc7, fc8).
ALEXNET_RANKS: dict[str, int | tuple[int, int]] = {
    "conv1": 26,
    "conv2": (25, 59),
    "conv3": (105, 112),
    "conv4": (49, 46),
    "conv5": (40, 34),
    "fc6": (210, 584),
    "fc7": 301,
    "fc8": 195,
}

#: The main table, original and compressed: weights and FLOPs in millions, times in milliseconds, energy in
#: millijoules.
MAIN_TABLE = pd.DataFrame(
    {
        "weights": [(61, 11), (103, 14), (6.9, 4.7), (138, 127)],
        "FLOPs": [(725, 272), (2640, 549), (1566, 760), (15484, 3139)],
        "phone, time": [(117, 43), (357, 97), (273, 192), (1926, 576)],
        "phone, energy": [(245, 72), (825, 193), (473, 296), (4757, 1346)],
        "Titan X, time": [(0.54, 0.30), (1.86, 0.92), (1.83, 1.48), (10.67, 4.58)],
    },
    index=["AlexNet", "VGG-S", "GoogLeNet", "VGG-16"],
)
