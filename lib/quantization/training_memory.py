"""Memory of a training step by counting: value-aware quantization against checkpointing.

Park, Yoo and Vajda (ECCV 2018) report 41.6 % (ResNet-152) and 53.7 % (Inception-v3) less activation memory
than "the state-of-the-art method", which others say is training with recomputation from checkpoints. What was
counted, and where the checkpoints lay, we could not read. So this module computes the reduction under any of
the conventions that we could think of (`family`), from the layers of the real networks.

Elements are counted per image on the meta device (`lib.cost.stored_activations`); the batch size cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import pandas as pd
from torch import nn

from lib.cost.checkpointing import checkpoint_cost, checkpoint_optimum
from lib.cost.stored_activations import MAX_POOLS, STORING, stored_by_unit

Counted = Literal["saved tensors", "inputs of layers", "inputs without pooling"]

KINDS = {
    "saved tensors": None,
    "inputs of layers": STORING,
    "inputs without pooling": tuple(kind for kind in STORING if kind not in MAX_POOLS),
}
FACTORS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
GROUPS = range(2, 21)


def bits_per_value(
    bits: float = 3, ratio: float = 0.02, *, value_bits: int = 32, index_bits: int = 32, mask: bool = False
) -> float:
    """Bits of a stored activation on average: ``bits + ratio (value_bits + index_bits)``, + 1 with a mask."""
    return bits + mask + ratio * (value_bits + index_bits)


@dataclass(frozen=True)
class Stored:
    """Activations that a training step stores for one image.

    Attributes
    ----------
    outputs, interiors
        Elements, per unit of the network: of the unit's output, and of all else stored in it.
    image
        Elements of the network's input, which is never quantized.
    """

    outputs: tuple[int, ...]
    interiors: tuple[int, ...]
    image: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        ends: Sequence[str],
        input_shape: Sequence[int] = (1, 3, 224, 224),
        *,
        counted: Counted = "inputs of layers",
    ) -> Stored:
        """Count a network.

        Parameters
        ----------
        model, ends, input_shape
            As `lib.cost.stored_activations.stored_by_unit`; a batch of one image.
        counted
            All that torch's automatic differentiation saves; or the distinct inputs of convolutions, linear
            layers and max-pooling; or the same without those of max-pooling.
        """
        if counted not in KINDS:
            raise ValueError(f"counted must be one of {', '.join(KINDS)}, got {counted!r}")
        units = stored_by_unit(model, ends, input_shape, kinds=KINDS[counted])
        image = 1
        for size in input_shape:
            image *= size
        return cls(tuple(units["output"].tolist()), tuple(units["interior"].tolist()), image)

    def with_first_units_joined(self, count: int) -> Stored:
        """The same network with its first `count` units made one."""
        inside = sum(self.outputs[: count - 1]) + sum(self.interiors[:count])
        return Stored(self.outputs[count - 1 :], (inside, *self.interiors[count:]), self.image)

    @property
    def values(self) -> int:
        """Stored elements without the image."""
        return sum(self.outputs) + sum(self.interiors)

    def full_bytes(self, *, image_bits: float = 32) -> float:
        """In full precision."""
        return 4 * self.values + self.image * image_bits / 8

    def packed_bytes(self, bits: float | None = None, *, image_bits: float = 32) -> float:
        """With `bits` per value (RV-Quant's 4.28 unless given) and the image as it is."""
        return self.values * (bits_per_value() if bits is None else bits) / 8 + self.image * image_bits / 8

    def checkpoint_bytes(
        self,
        placement: Literal["optimal", "every unit"] | int = "optimal",
        *,
        factor: float = 1.0,
        image_bits: float = 32,
    ) -> float:
        """In full precision with checkpoints between units.

        Parameters
        ----------
        placement
            The placement that needs least; or the output of every unit; or this number of groups of as
            equally many units as can be.
        factor
            How often the recomputed segment counts.
        """
        units = len(self.outputs)
        if placement == "optimal":
            cost = checkpoint_optimum(self.outputs, self.interiors, factor=factor)
        else:
            if placement == "every unit":
                kept = range(units)
            elif 1 <= placement <= units:
                kept = [units * group // placement - 1 for group in range(1, placement)]
            else:
                raise ValueError(f"from 1 to {units} groups can be made of {units} units, got {placement}")
            cost = checkpoint_cost(self.outputs, self.interiors, list(kept))
        return 4 * (cost.checkpoints + factor * cost.segment) + self.image * image_bits / 8

    def reduction(self, bits: float | None = None, *, image_bits: float = 32, **checkpoints) -> float:
        """How much less, in percent, packing needs than checkpointing."""
        baseline = self.checkpoint_bytes(image_bits=image_bits, **checkpoints)
        return 100 * (1 - self.packed_bytes(bits, image_bits=image_bits) / baseline)


def family(
    model: nn.Module, input_shape: Sequence[int], counts: Sequence[Counted] = tuple(KINDS)
) -> pd.DataFrame:
    """The reduction under every convention that was tried, for a ResNet or Inception-v3.

    Parameters
    ----------
    model, input_shape
        As `Stored.of`.
    counts
        Ways of counting. Without the inputs of pooling the stem is one unit: cut, its outputs count anyway.

    Returns
    -------
    DataFrame with ``counted``, ``stem`` (cut or whole), ``checkpoints``, ``factor``, ``reduction`` (percent).
    """
    rows = []
    cut, whole = units(model), units(model, cut_stem=False)
    for counted, stem in product(counts, ("cut", "whole")):
        if counted == "inputs without pooling":
            if stem == "cut":
                continue
            found = Stored.of(model, whole, input_shape, counted=counted)
        elif stem == "cut":
            found = Stored.of(model, cut, input_shape, counted=counted)
        else:
            found = found.with_first_units_joined(1 + len(cut) - len(whole))
        tried: list[tuple[Literal["optimal", "every unit"] | int, float]] = [("optimal", 1.0)]
        tried += [("optimal", factor) for factor in FACTORS] + [("every unit", 1.0)]
        tried += [(groups, 1.0) for groups in GROUPS if groups <= len(found.outputs)]
        for placement, factor in tried:
            name = f"{placement} groups" if isinstance(placement, int) else placement
            reduction = found.reduction(placement=placement, factor=factor)
            rows.append((counted, stem, name, factor, reduction))
    return pd.DataFrame(rows, columns=["counted", "stem", "checkpoints", "factor", "reduction"])


def sensitivity(model: nn.Module, input_shape: Sequence[int]) -> pd.Series:
    """The reduction with one detail of the count changed at a time.

    Parameters
    ----------
    model, input_shape
        A ResNet or Inception-v3, as `Stored.of`; inputs of layers, stem cut, best checkpoints.

    Returns
    -------
    Series by detail: percent. Other bits per value are other formats for 3 bits and 2 %.
    """
    stored = Stored.of(model, units(model), input_shape)
    formats = {
        "codes for the small values only": bits_per_value(3 * 0.98),
        "large values of 16 bits": bits_per_value(value_bits=16),
        "a map of one bit per value for the places": bits_per_value(4, index_bits=0),
    }
    image_packed = stored.packed_bytes(image_bits=bits_per_value()) / stored.checkpoint_bytes()
    return pd.Series(
        {f"as judged: {bits_per_value():.2f} bits per value, image in 32 bits": stored.reduction()}
        | {f"{bits:.2f} bits per value ({name})": stored.reduction(bits) for name, bits in formats.items()}
        | {"image not counted": stored.reduction(image_bits=0)}
        | {"image packed like all else": 100 * (1 - image_packed)}
    )


def units(model: nn.Module, *, cut_stem: bool = True) -> list[str]:
    """Ends of the units between which checkpoints can be put: blocks of a ResNet or of Inception-v3.

    The head is a unit. The stem is one too, or (`cut_stem`) each of its layers with normalisation and ReLU.
    """
    names = [name for name, _ in model.named_children() if name not in ("dropout", "fc")]
    stages = [name for name in names if name.startswith(("layer", "Mixed"))]
    stem = names[: names.index(stages[0])]
    if "relu" in stem:  # a ResNet's layers are not modules with their normalisation
        stem = ["relu", "maxpool"]
    body = []
    for name in stages:
        stage = model.get_submodule(name)
        body += (
            [f"{name}.{block}" for block in range(len(stage))] if isinstance(stage, nn.Sequential) else [name]
        )
    return [*(stem if cut_stem else stem[-1:]), *body, "avgpool"]
