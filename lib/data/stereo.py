"""Real pairs of rectified pictures that packages carry: Middlebury's motorcycle with truth, OAK-D's rooms.

Both are read where pip put them: the motorcycle in scikit-image, the rooms in stereodemo.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.data.dataset import DataSet, UnexpectedFormat
from lib.data.own_photographs import open_photograph
from lib.data.packages import PackageFile


@dataclass(frozen=True, eq=False)
class StereoPair:
    """Two pictures by cameras side by side, whose rows belong together.

    Attributes
    ----------
    left, right : (3, H, W) float32
        In 0…1.
    intrinsics, right_intrinsics : (3, 3) float32
        In pixels; the principal points may differ.
    baseline : float
        From the left to the right camera, in metres.
    disparity : (H, W) float32
        Column in the left picture minus column in the right one, in pixels; 0 where it is not known.
    """

    left: Tensor
    right: Tensor
    intrinsics: Tensor
    right_intrinsics: Tensor
    baseline: float
    disparity: Tensor

    def __post_init__(self) -> None:
        if not self.baseline > 0 or not bool((self.intrinsics.diagonal() > 0).all()):
            raise ValueError(
                f"baseline and focal lengths must be above 0, got {self.baseline} and "
                f"{self.intrinsics.diagonal().tolist()[:2]}"
            )

    @property
    def depth(self) -> Tensor:
        """In metres, (H, W); 0 where it is not known: f·b/(disparity + difference of principal points)."""
        offset = self.right_intrinsics[0, 2] - self.intrinsics[0, 2]
        depth = self.intrinsics[0, 0] * self.baseline / (self.disparity + offset)
        return torch.where(self.disparity > 0, depth, 0)

    @property
    def motion(self) -> Tensor:
        """From the left camera's coordinates to the right one's, (4, 4)."""
        motion = torch.eye(4)
        motion[0, 3] = -self.baseline
        return motion


def read_motorcycle(left: Path, right: Path, disparity: Path) -> StereoPair:
    """The pair, scaled down to a quarter by scikit-image; calibration as its documentation has it."""
    with np.load(disparity) as held:
        truth = torch.from_numpy(held["arr_0"])
    k = _intrinsics(994.978, 311.193, 254.877)
    other = _intrinsics(994.978, 311.193 + 31.086, 254.877)
    truth = torch.where(truth.isfinite(), truth, 0)
    return StereoPair(_picture(left), _picture(right), k, other, 0.193001, truth)


def read_rooms(calibration: Path, *pictures: Path) -> dict[str, StereoPair]:
    """Pairs by name, without truth; files ``name_left.png`` and ``name_right.png``, and one calibration.

    Raises
    ------
    UnexpectedFormat
        The calibration is none, or the pictures are no pairs.
    """
    try:
        held = json.loads(calibration.read_text(encoding="utf-8"))
        focal, centre, other, row, baseline = (
            float(held[key]) for key in ("fx", "cx0", "cx1", "cy", "baseline_meters")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UnexpectedFormat(calibration, f"no number for {error}") from error
    files = {path.name: path for path in pictures}
    names = sorted(name.removesuffix("_left.png") for name in files if name.endswith("_left.png"))
    if not names or {f"{name}_{side}.png" for name in names for side in ("left", "right")} != set(files):
        raise UnexpectedFormat(calibration.parent, "pictures without another of their pair")
    pairs = {}
    for name in names:
        left, right = (_picture(files[f"{name}_{side}.png"]) for side in ("left", "right"))
        unknown = torch.zeros(left.shape[1:])
        cameras = _intrinsics(focal, centre, row), _intrinsics(focal, other, row)
        pairs[name] = StereoPair(left, right, *cameras, baseline, unknown)
    return pairs


def _intrinsics(focal: float, column: float, row: float) -> Tensor:
    return torch.tensor([[focal, 0, column], [0, focal, row], [0, 0, 1]])


def _picture(path: Path) -> Tensor:
    return torch.from_numpy(np.array(open_photograph(path))).permute(2, 0, 1) / 255


#: One pair of 500×741 pixels with dense truth.
MOTORCYCLE = DataSet(
    name="Middlebury motorcycle",
    licence="for research; scikit-image passes it on",
    citation="Scharstein et al., High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth, 2014",
    homepage="https://vision.middlebury.edu/stereo/data/scenes2014/",
    sources=tuple(
        PackageFile("skimage", f"data/motorcycle_{name}", sha256, "scikit-image==0.25.2")
        for name, sha256 in (
            ("left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
            ("right.png", "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797"),
            ("disp.npz", "2e49c8cebff3fa20359a0cc6880c82e1c03bbb106da81a177218281bc2f113d7"),
        )
    ),
    read=read_motorcycle,
)
#: Eight grey pairs of 480×640 pixels, without truth; of the package's twelve those that show nobody.
ROOMS = DataSet(
    name="OAK-D pairs of stereodemo",
    licence="CC BY 4.0",
    citation="Burrus, stereodemo: compare various stereo depth estimation algorithms, 2022",
    homepage="https://github.com/nburrus/stereodemo",
    sources=tuple(
        PackageFile("stereodemo", f"datasets/oak-d/{name}", sha256, "stereodemo==0.7")
        for name, sha256 in (
            (
                "stereodemo_calibration.json",
                "1497a2b03c8b7b7be121cbbe754991a7a29c2258847a25d4fd9daac5f0115d7e",
            ),
            ("bedroom_chair_left.png", "bbec94c081186e5c0ed3f90c05e3e69cbece694f6679dd4aa453751d47fad8f7"),
            ("bedroom_chair_right.png", "6d6d34efdc1decbb45aa3e4adfe9a15a7aba976370f8b1de040c9e256c9765c9"),
            ("corridor_left.png", "d51b47b938221309204e7c4c06a361f9f8e28796a396d345ae289583e5d10c38"),
            ("corridor_right.png", "45627c4f244e12b4b9f184559ab8aa97ec6ec931696dd8ca8bb460c4fab1d126"),
            ("cycles_left.png", "6ad108cf43caee84384ffb3c769c0b74ad18d7d6d44d907df3847b0ed9174606"),
            ("cycles_right.png", "814ae281dabc268e64455543dd0d893ab50ea9d406efbeccf199aa0c12310059"),
            ("desk_left.png", "28f75bba24ea9ea9ef8be7908506cd2725258d59c88413eff39dca1587c82e55"),
            ("desk_right.png", "99ae5151ba34e57672cde8e752954ed26129ddddbbda0128e551c60e8ba50cf3"),
            ("kid_bedroom_left.png", "fed5cf79e1ee101e6e023b69645b067561f58d61b95f2deeebe735fa28d6bdf9"),
            ("kid_bedroom_right.png", "e95e3d9db6466d5ff9d30d702c879b52d8ecdfcc7cddcaab6053cf30015772ee"),
            ("living_room_left.png", "1ced83ec3c4d871237ff56eed9633dbcb080f42b0e934a8a2eea1caafac7efc4"),
            ("living_room_right.png", "a6d6523bb2bb604c2c7e6964a38bf776d98948582ecca8ad893c0dea0071781d"),
            ("stairs_left.png", "3c9c4ff9b10b14ce86c6469ec3ffc2fd738b9eb93ecec6c9d53cd61c97b7d494"),
            ("stairs_right.png", "57ac719b1263b545822f153e27a986f5acdd59cdf321006dfe14defe6a1c03c6"),
            ("toy_left.png", "eb5c44e65417565bb47f633cac4e2c0868e302fdd79de511988de04bef942a3f"),
            ("toy_right.png", "31d0ad52198e61c8724d2ebefcab10d8a0f3682ae36136655eee90ddadea7ec1"),
        )
    ),
    read=read_rooms,
)
