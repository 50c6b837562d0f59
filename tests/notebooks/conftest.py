"""What the dry runs of the paper scales share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def made_up_imagenet(tmp_path_factory) -> Callable[..., Path]:
    """``made_up_imagenet("train", "val")``: a data folder with ``imagenet/<split>/<wnid>/*.JPEG``, a thousand
    folders of one picture each."""

    def make(*splits: str) -> Path:
        root = tmp_path_factory.mktemp("data")
        random = np.random.default_rng(0)
        for split in splits:
            for number in range(1000):
                path = root / "imagenet" / split / f"n{number:08d}" / f"n{number:08d}_0.JPEG"
                path.parent.mkdir(parents=True)
                Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path, "JPEG")
        return root

    return make
