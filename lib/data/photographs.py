"""Sample photographs that scikit-image carries: real pictures for networks trained on ImageNet.

They are read where pip put them; scikit-image is never imported. A dozen pictures judge no network's
accuracy: they show that weights, layers and preprocessing belong together, and serve as inputs with the
statistics of real photographs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lib.data.dataset import DataSet
from lib.data.imagenet import open_image
from lib.data.packages import PackageFile
from lib.data.preprocessing import IMAGENET, Preprocessing

#: File, SHA-256, and where scikit-image's documentation says that the picture may be used freely.
FILES = {
    "astronaut.png": (
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "NASA, public domain",
    ),
    "brick.png": ("7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf", "CC0"),
    "camera.png": ("b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a", "CC0"),
    "chelsea.png": ("596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", "CC0"),
    "clock_motion.png": ("f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955", "public domain"),
    "coffee.png": ("cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", "CC0"),
    "coins.png": (
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "Brooklyn Museum, no known restrictions",
    ),
    "grass.png": ("b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89", "CC0"),
    "gravel.png": ("c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12", "CC0"),
    "hubble_deep_field.jpg": (
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "NASA, public domain",
    ),
    "retina.jpg": ("38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6", "CC0"),
    "rocket.jpg": (
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "SpaceX, public domain",
    ),
}


def read_photographs(*paths: Path) -> dict[str, Image.Image]:
    """Pictures in RGB by their file's name without its ending; grey ones have three equal channels."""
    return {Path(path).stem: open_image(path) for path in paths}


def take(photographs: dict[str, Image.Image], count: int) -> dict[str, Image.Image]:
    """The first `count` pictures; ValueError if there are not as many."""
    if not 1 <= count <= len(photographs):
        raise ValueError(f"there are 1 to {len(photographs)} photographs, {count} were asked for")
    return dict(list(photographs.items())[:count])


def photograph_tensor(photographs: dict[str, Image.Image], preprocessing: Preprocessing = IMAGENET) -> Tensor:
    """The centres of all pictures, as a network wants them: (N, 3, crop, crop) float32, in their order."""
    if not photographs:
        raise ValueError("at least one photograph is needed")
    return torch.stack([preprocessing.test(image) for image in photographs.values()])


#: Twelve pictures, 300 to 1411 pixels high; `load` gives Pillow images by name.
PHOTOGRAPHS = DataSet(
    name="scikit-image's sample photographs",
    licence="each free to use: " + "; ".join(f"{name} {terms}" for name, (_, terms) in FILES.items()),
    citation="van der Walt et al., scikit-image: image processing in Python, PeerJ 2:e453, 2014",
    homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
    sources=tuple(
        PackageFile(package="skimage", path=f"data/{name}", sha256=sha256, requirement="scikit-image==0.25.2")
        for name, (sha256, _) in FILES.items()
    ),
    read=read_photographs,
)
