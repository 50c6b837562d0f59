"""A file of weights by PROFIT's authors' program, evaluated on the pictures of the chapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lib.data.imagenet import ImageFolder
from lib.data.images import ImageSet
from lib.models.authors import opened
from lib.models.vision.mobilenet_authors import (
    AuthorsNetwork,
    QuantizedMobileNetV2,
    QuantizedMobileNetV3Large,
    has_average,
    read_authors,
)
from lib.training.classifiers import accuracy

#: Bits of activations and of weights, a stage or none, and the ending.
BITS_IN_NAME = re.compile(r"_([2-8])_([2-8])_(?:(?:bn2?|ft[123])_)?(?:best\.pth|\d+\.ckpt)$")


@dataclass(frozen=True)
class AuthorsFile:
    """A checkpoint of the authors, as a run's record names its data.

    Attributes
    ----------
    path : Path
    networks : dict of str to AuthorsNetwork
        ``"weights"``, and ``"moving average"`` where the file has one.
    weight_bits, activation_bits : int
        As the file's name says.
    """

    path: Path
    networks: Mapping[str, AuthorsNetwork]
    weight_bits: int
    activation_bits: int
    licence: str = "of whoever made it: not known here"

    @property
    def name(self) -> str:
        """Its name, without folders."""
        return self.path.name

    def files(self, data_dir: object = None) -> list[Path]:
        """The file itself, wherever the data lie."""
        return [self.path]

    def scores(
        self, images: ImageSet | ImageFolder, *, cited: Mapping[str, float] | None = None, device: str = "cpu"
    ) -> pd.DataFrame:
        """Accuracy on labelled pictures.

        Parameters
        ----------
        images
        cited
            Top-1 of MobileNet-v2 on the same pictures, by a name that ends in ``4 bits``, of weights and
            activations; shown beside it.
        device

        Returns
        -------
        DataFrame
            ``network``, ``bits`` (``W4A4``), ``state`` (a name of `networks`), ``top-1`` and ``top-5`` in
            percent, and ``top-1, cited`` where there is one.
        """
        rows = []
        for state, network in self.networks.items():
            found = accuracy(network.to(device), images, topk=(1, 5), device=device)
            made = type(network).__name__.removeprefix("Quantized")
            bits = f"W{self.weight_bits}A{self.activation_bits}"
            rows.append({"network": made, "bits": bits, "state": state} | found)
            if made == "MobileNetV2" and self.weight_bits == self.activation_bits:
                for name, value in (cited or {}).items():
                    if name.endswith(f" {self.weight_bits} bits"):
                        rows[-1]["top-1, cited"] = value
        return pd.DataFrame(rows)


def read_authors_file(path: str | Path, *, classes: int) -> AuthorsFile:
    """Read a checkpoint of the authors.

    Parameters
    ----------
    path
        ``…_best.pth`` or ``….ckpt``, named as their program does, with the bits of activations and weights:
        ``ts_mobilenetv2_resnet101_duq_ema_4_4_bn2_best.pth``. MobileNet-v2 or v3-Large; the keys tell.
    classes
        Of the pictures that it is to be evaluated on.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        Its name says no bits; it holds no such network; or one for another number of classes.
    """
    path = Path(path)
    networks = {}
    with opened(path) as held:
        if not (found := BITS_IN_NAME.search(path.name)):
            raise ValueError(
                "the bits of activations and weights must be in the name, as the authors have it: "
                "…_4_4_bn2_best.pth"
            )
        activation_bits, weight_bits = map(int, found.groups())
        for part in ["weights", "moving average"] if has_average(held) else ["weights"]:
            state = read_authors(held, average=part == "moving average")
            make = QuantizedMobileNetV3Large if "classifier.3.weight" in state else QuantizedMobileNetV2
            network = make.from_authors(state, weight_bits=weight_bits, activation_bits=activation_bits)
            networks[part] = network
    outputs = network.get_submodule(network.last_layer).out_features
    if outputs != classes:
        raise ValueError(f"{path.name} tells {outputs} classes apart, the pictures have {classes}")
    return AuthorsFile(path, networks, weight_bits, activation_bits)
