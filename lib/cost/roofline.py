"""How fast a network can run: the roofline of a machine, and of an accelerator with memory on its chip.

Williams, Waterman and Patterson, "Roofline", CACM 2009: time is at least operations over peak and bytes over
bandwidth.

Park et al., "Deep Learning Inference in Facebook Data Centers", 2018, ask how much on-chip memory an
accelerator of 100 Top/s wants. Their allocation of tensors is said to be greedy; its details could not be
read, so `Accelerator` and every absolute figure of it are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from lib.cost.activations import trace
from lib.cost.operations import count_operations


@dataclass(frozen=True)
class Roofline:
    """Two ceilings: operations per second and bytes per second.

    Raises
    ------
    ValueError
        A rate is not positive.
    """

    operations_per_second: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        if not (self.operations_per_second > 0 and self.bytes_per_second > 0):
            raise ValueError(f"ceilings must be positive, got {self}")

    def attainable(self, intensity: float | np.ndarray) -> np.ndarray:
        """Operations per second at most, at so many operations per byte."""
        return np.minimum(self.operations_per_second, np.asarray(intensity) * self.bytes_per_second)


@dataclass(frozen=True)
class Layer:
    """A step of a `Workload`: what it computes, its weights, the activations it touches by number."""

    name: str
    operations: int
    weights: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """An inference as a sequence of layers over activations of given sizes (elements)."""

    layers: tuple[Layer, ...]
    elements: tuple[int, ...]


def workload(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    inputs: Any = None,
    method: str = "forward",
) -> Workload:
    """The layers of a model with normalisation and activation functions fused into the layer before.

    Products without weights (of attention), additions of skip connections, concatenations and pooling are
    layers of their own; only products have operations.
    Parameters and errors as `lib.cost.operations.count_operations`.
    """
    table = count_operations(model, input_shape, inputs=inputs, method=method, outside="ignore")
    made = trace(model, input_shape, inputs=inputs, method=method)
    last = made.last_uses()
    counted = {name: list(rows.itertuples()) for name, rows in table.groupby("layer", sort=False)}
    lies_in = list(range(len(made.elements)))
    groups: list[dict] = []
    for index, step in enumerate(made.steps):
        new = [number for number in step.writes if number not in step.reads]
        reads = [lies_in[number] for number in step.reads]
        inside = step.layer in counted
        if inside and groups and groups[-1]["call"] == step.call:
            groups[-1]["reads"] += reads
            groups[-1]["writes"] += new
        elif inside:
            row = counted[step.layer].pop(0)
            groups.append(
                {
                    "call": step.call,
                    "name": step.layer,
                    "operations": row.operations,
                    "weights": row.weights_read,
                    "reads": reads,
                    "writes": new,
                }
            )
        elif step.elementwise and len(new) <= 1 and len(reads) <= 1 and (not new or not reads):
            continue  # in place, or the making of a constant
        elif step.elementwise and len(reads) == 1 and last[step.reads[0]] == index:
            lies_in[new[0]] = reads[0]
        else:
            groups.append(
                {
                    "call": step.call,
                    "name": step.operator,
                    "operations": step.operations,
                    "weights": 0,
                    "reads": reads,
                    "writes": new,
                }
            )
    return _without_interior(groups, made.elements, {lies_in[number] for number in made.outputs})


def _without_interior(groups: list[dict], elements: list[int], outputs: set[int]) -> Workload:
    """Drop activations that live within one layer only, as the gates of a recurrent one."""
    readers: dict[int, set[int]] = {number: {-1} for number in outputs}
    for index, group in enumerate(groups):
        for number in group["reads"]:
            readers.setdefault(number, set()).add(index)
    layers = []
    for index, group in enumerate(groups):
        own = set(group["writes"])
        writes = [n for n in dict.fromkeys(group["writes"]) if readers.get(n, {-1}) != {index}]
        reads = [n for n in dict.fromkeys(group["reads"]) if n not in own]
        layers.append(
            Layer(group["name"], int(group["operations"]), int(group["weights"]), tuple(reads), tuple(writes))
        )
    return Workload(tuple(layers), tuple(elements))


@dataclass(frozen=True)
class Accelerator:
    """A machine with memory on its chip; how it is allocated is ours.

    Defaults, for int8: 100 Top/s as others quote the paper, bandwidths as we remember it.

    Parameters
    ----------
    capacity
        Bytes on the chip.
    operations_per_second
        Peak.
    dram_bytes_per_second, chip_bytes_per_second
        Bandwidths of the two memories, used at the same time.
    bytes_per_element
        Of weights and activations.

    Raises
    ------
    ValueError
        A rate is not positive, or the capacity is negative.
    """

    capacity: float
    operations_per_second: float = 100e12
    dram_bytes_per_second: float = 100e9
    chip_bytes_per_second: float = 1e12
    bytes_per_element: float = 1.0

    def __post_init__(self) -> None:
        rates = (
            self.operations_per_second,
            self.dram_bytes_per_second,
            self.chip_bytes_per_second,
            self.bytes_per_element,
        )
        if not (all(rate > 0 for rate in rates) and self.capacity >= 0):
            raise ValueError(f"rates must be positive and the capacity not negative, got {self}")

    def allocate(self, work: Workload) -> tuple[set[int], set[int]]:
        """Which activations (by number) and which layers' weights (by index) lie on the chip.

        Tensors are taken by accesses per byte (a tensor read twice and written once is accessed three times
        for each of its bytes; weights once), the smaller first among equals. One is placed if the capacity
        is exceeded at no layer of its life: weights live always, an activation from the layer that writes
        it (the first, if it is an input) to the last that reads it.
        """
        steps = len(work.layers)
        born: dict[int, int] = {}
        dies: dict[int, int] = {}
        accesses: dict[int, int] = {}
        for index, layer in enumerate(work.layers):
            for number in layer.reads:
                born.setdefault(number, 0)
            for number in layer.writes:
                born.setdefault(number, index)
            for number in layer.reads + layer.writes:
                dies[number] = index
                accesses[number] = accesses.get(number, 0) + 1
        tensors = [
            (-1, layer.weights, 0, steps - 1, "weights", index)
            for index, layer in enumerate(work.layers)
            if layer.weights
        ]
        tensors += [(-accesses[n], work.elements[n], born[n], dies[n], "activations", n) for n in born]
        used = np.zeros(steps)
        placed: dict[str, set[int]] = {"weights": set(), "activations": set()}
        for _, elements, start, end, kind, number in sorted(tensors, key=lambda tensor: tensor[:2]):
            size = elements * self.bytes_per_element
            if used[start : end + 1].max() + size <= self.capacity:
                used[start : end + 1] += size
                placed[kind].add(number)
        return placed["activations"], placed["weights"]

    def run(self, work: Workload) -> pd.DataFrame:
        """Time of each layer: the longest of computing, of DRAM traffic and of on-chip traffic.

        Returns
        -------
        DataFrame with ``layer``, ``operations``, ``dram_bytes``, ``chip_bytes``, ``seconds`` and ``bound``
        (``operations``, ``dram`` or ``chip``). Achieved operations per second are the ratio of the sums.
        """
        activations, weights = self.allocate(work)
        rows = []
        for index, layer in enumerate(work.layers):
            touched = layer.reads + layer.writes
            on = sum(work.elements[n] for n in touched if n in activations)
            off = sum(work.elements[n] for n in touched if n not in activations)
            if index in weights:
                on += layer.weights
            else:
                off += layer.weights
            on, off = on * self.bytes_per_element, off * self.bytes_per_element
            times = {
                "operations": layer.operations / self.operations_per_second,
                "dram": off / self.dram_bytes_per_second,
                "chip": on / self.chip_bytes_per_second,
            }
            bound = max(times, key=times.get)
            rows.append((layer.name, layer.operations, off, on, times[bound], bound))
        return pd.DataFrame(
            rows, columns=["layer", "operations", "dram_bytes", "chip_bytes", "seconds", "bound"]
        )

    def achieved(self, work: Workload) -> float:
        """Operations per second over the whole workload."""
        table = self.run(work)
        return float(table["operations"].sum() / table["seconds"].sum())
