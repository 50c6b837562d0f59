"""One-shot compression of a whole network: every kernel replaced by a sequence of smaller ones.

Kim et al. (ICLR 2016), section 3 and figure 2. A convolution S → T becomes

- ``reduce``: 1 × 1, S → R3, no bias, on the input's grid;
- ``core``: the original taps, stride, padding and dilation, R3 → R4, no bias;
- ``expand``: 1 × 1, R4 → T, the original bias, on the output's grid,

with nothing between them. The first convolution has no ``reduce`` (Tucker-1), nor has a fully connected
layer, whose ``core`` and ``expand`` are two smaller matrices; but the fully connected layer that reads a
feature map is a convolution whose taps cover the whole map, and gets all three. In a grouped convolution
each group is decomposed separately with the same pair of ranks.

After this the network is fine-tuned as a whole; no part of it is frozen.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.compression.spectrum import as_matrix, squared_singular_values
from lib.compression.tucker import Tucker, truncated_svd, tucker1, tucker2
from lib.compression.vbmf import evbmf

Rule = Callable[[np.ndarray], int]
"""From an unfolding (channels, everything else) to a rank, 0 included."""

Ranks = int | tuple[int, int]
"""(R3, R4) of a Tucker-2, or the one rank of a Tucker-1 or a truncated singular value decomposition."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model and what became of each of its weighted layers.

    Attributes
    ----------
    model : nn.Module
    report : DataFrame
        One row per convolution and fully connected layer, in the order of ``named_modules``: ``layer``,
        ``kind`` (Tucker-2, Tucker-1, SVD or kept), ``input_rank``, ``output_rank`` (of each group; <NA>
        where there is none), ``floored`` (a rank was 0 and was set to 1), ``parameters_before``,
        ``parameters_after`` (with biases), ``relative_error`` of the kernel (NaN where the weights are
        fresh).
    """

    model: nn.Module
    report: pd.DataFrame

    @property
    def ranks(self) -> dict[str, Ranks]:
        """The ranks used, as a mapping that `compress` takes."""
        rows = self.report[self.report["kind"] != "kept"]
        return {
            row.layer: int(row.output_rank)
            if pd.isna(row.input_rank)
            else (int(row.input_rank), int(row.output_rank))
            for row in rows.itertuples()
        }


def evbmf_rank(unfolding: np.ndarray) -> int:
    """The paper's rule: the rank of `lib.compression.vbmf.evbmf`."""
    return evbmf(unfolding).rank


def energy_rank(unfolding: np.ndarray, share: float = 0.9) -> int:
    """The usual rule of thumb: as many components as hold ``share`` of the squared singular values.

    Raises
    ------
    ValueError
        ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    held = np.cumsum(squared_singular_values(as_matrix(unfolding)))
    return int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1 if held[-1] else 0


def compress(
    model: nn.Module,
    ranks: Literal["vbmf"] | float | Mapping[str, Ranks] | Rule = "vbmf",
    *,
    maps: Mapping[str, tuple[int, int, int]] | None = None,
    skip: Collection[str] = (),
    pointwise: bool = False,
    linear: bool = True,
    weights: Literal["decomposed", "fresh"] = "decomposed",
    sweeps: int = 100,
    tolerance: float = 1e-4,
    inplace: bool = False,
) -> Compressed:
    """Replace convolutions and fully connected layers by low-rank sequences of the same function signature.

    Parameters
    ----------
    model : nn.Module
        Its ``nn.Conv2d`` and ``nn.Linear`` layers (not subclasses, which may compute something else) are
        replaced; everything else, and dtype, device and training mode, stay.
    ranks
        ``"vbmf"``: of each unfolding by EVBMF. A number in (0, 1]: that share of each side's channels. A
        function from an unfolding to a rank. A mapping from layer names to ranks: those layers only; a pair
        (R3, R4) asks for Tucker-2, one number for Tucker-1 or, in a fully connected layer, the singular
        value decomposition.
    maps : mapping, optional
        Feature map (channels, height, width) that a fully connected layer reads, by the layer's name: that
        layer is treated as a convolution over the whole map. The paper does this for the first one.
    skip
        Names of layers to keep. Only without a mapping of ranks.
    pointwise, linear
        Whether a rule also applies to 1 × 1 convolutions (the paper leaves GoogLeNet's alone) and to
        fully connected layers (it leaves VGG-16's alone). Not used with a mapping.
    weights
        ``"fresh"``: the structure only, with torch's own initialisation of the new layers; works on the
        meta device if the ranks do not depend on the weights.
    sweeps, tolerance
        Of HOOI, see `lib.compression.tucker.tucker2`.
    inplace
        Change ``model`` instead of a deep copy.

    Returns
    -------
    Compressed

    Raises
    ------
    ValueError
        Nothing to compress; an unknown or unsupported layer; a rank of 0 or above the layer's size in a
        mapping; a kernel that is not finite; a ``maps`` entry that does not fit its layer; a depthwise
        convolution that a rule would have to split (name it in ``skip``).

    Notes
    -----
    A rule may find that a kernel is all noise: rank 0. Such a rank is set to 1 and recorded as floored. In a
    grouped convolution a rule is asked about each group, and the largest answer is used for all.
    """
    if weights not in ("decomposed", "fresh"):
        raise ValueError(f"weights must be 'decomposed' or 'fresh', got {weights!r}")
    rule = _rule(ranks)
    maps = dict(maps or {})
    layers = {name: m for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    given = ranks if isinstance(ranks, Mapping) else {}
    _check_names(model, layers, given, maps, skip)
    first = next((name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)), None)
    plans: dict[str, _Plan] = {}
    for name, layer in layers.items():
        if name not in given if rule is None else not _wanted(name, layer, skip, pointwise, linear):
            continue
        try:
            if rule is None:
                plans[name] = _planned(layer, given[name], maps.get(name))
            else:
                plans[name] = _chosen(layer, rule, maps.get(name), one_sided=name == first)
            if weights == "decomposed":
                _array(layer.weight)  # before anything is replaced
        except ValueError as error:
            raise ValueError(f"layer {name or 'of the model itself'!r}: {error}") from None
    if not plans:
        raise ValueError(
            f"nothing to compress: {type(model).__name__} has {len(layers)} convolutions and fully connected "
            "layers, and none of them is to be replaced"
        )

    model = model if inplace else copy.deepcopy(model)
    rows = []
    for name, old in [(name, model.get_submodule(name)) for name in layers]:
        before = _size(old)
        if name not in plans:
            rows.append((name, "kept", None, None, False, before, before, 0.0))
            continue
        plan = plans[name]
        new, error = _replace(old, plan, weights == "decomposed", sweeps, tolerance)
        model = new if name == "" else model
        if name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
        rows.append(
            (name, plan.kind, plan.input_rank, plan.output_rank, plan.floored, before, _size(new), error)
        )
    columns = ["layer", "kind", "input_rank", "output_rank", "floored"]
    columns += ["parameters_before", "parameters_after", "relative_error"]
    report = pd.DataFrame(rows, columns=columns).astype({"input_rank": "Int64", "output_rank": "Int64"})
    return Compressed(model, report)


# --- which layers, which ranks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    kind: Literal["Tucker-2", "Tucker-1", "SVD"]
    input_rank: int | None
    output_rank: int
    floored: bool = False
    map: tuple[int, int, int] | None = None


def _rule(ranks: object) -> Rule | None:
    """The rule that ``ranks`` stands for; None for a mapping."""
    if isinstance(ranks, Mapping):
        return None
    if isinstance(ranks, str):
        if ranks != "vbmf":
            raise ValueError(f"ranks must be 'vbmf', a share, a mapping or a function, got {ranks!r}")
        return evbmf_rank
    if isinstance(ranks, int | float) and not isinstance(ranks, bool):
        if not 0 < ranks <= 1:
            raise ValueError(f"a share of the channels must be in (0, 1], got {ranks}")
        return lambda unfolding: round(ranks * min(unfolding.shape))
    if callable(ranks):
        return ranks
    raise ValueError(f"ranks must be 'vbmf', a share, a mapping or a function, got {ranks!r}")


def _check_names(model, layers, given, maps, skip) -> None:
    for name in [*given, *maps, *skip]:
        if name in layers:
            continue
        modules = dict(model.named_modules())
        if name in modules:
            raise ValueError(f"layer {name!r} is a {type(modules[name]).__name__}: not a Conv2d or Linear")
        near = difflib.get_close_matches(name, layers, 1)
        raise ValueError(f"no layer {name!r} in the model" + (f": did you mean {near[0]!r}?" if near else ""))
    if given and skip:
        raise ValueError("skip is for rules: a mapping of ranks already names the layers to replace")
    for name in maps:
        if not isinstance(layers[name], nn.Linear) or len(maps[name]) != 3:
            raise ValueError(f"maps: {name!r} must be a Linear layer with (channels, height, width)")
        if math.prod(maps[name]) != layers[name].in_features:
            raise ValueError(
                f"maps: {name!r} reads {layers[name].in_features} values, got {tuple(maps[name])}"
            )


def _wanted(name, layer, skip, pointwise, linear) -> bool:
    if name in skip:
        return False
    if isinstance(layer, nn.Linear):
        return linear
    return pointwise or layer.kernel_size != (1, 1)


def _groups(layer: nn.Module, plan_map: tuple[int, int, int] | None) -> list[Tensor]:
    """The kernels of a layer, (T, S, Kh, Kw) for each group; a matrix has 1 × 1 taps."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return [weight.reshape(weight.shape[0], *(plan_map or (weight.shape[1], 1, 1)))]
    return list(weight.chunk(layer.groups))


def _check_groups(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.in_channels == layer.groups:
        raise ValueError(
            f"a depthwise convolution ({layer.groups} groups of one input channel) has no channels to factor"
        )


def _chosen(layer, rule: Rule, plan_map, *, one_sided: bool) -> _Plan:
    _check_groups(layer)
    matrix = isinstance(layer, nn.Linear) and plan_map is None
    output_rank, input_rank = 0, 0
    for kernel in _groups(layer, plan_map):
        outputs, inputs = kernel.shape[:2]
        array = _array(kernel)
        output_rank = max(output_rank, _asked(rule, array.reshape(outputs, -1)))
        if not (matrix or one_sided):
            input_rank = max(input_rank, _asked(rule, np.moveaxis(array, 1, 0).reshape(inputs, -1)))
    if matrix or one_sided:
        return _Plan("SVD" if matrix else "Tucker-1", None, max(1, output_rank), output_rank < 1)
    floored = min(output_rank, input_rank) < 1
    return _Plan("Tucker-2", max(1, input_rank), max(1, output_rank), floored, plan_map)


def _asked(rule: Rule, unfolding: np.ndarray) -> int:
    rank = int(rule(unfolding))
    if not 0 <= rank <= min(unfolding.shape):
        raise ValueError(f"the rule chose rank {rank} for an unfolding of shape {unfolding.shape}")
    return rank


def _array(kernel: Tensor) -> np.ndarray:
    """A kernel's numbers; on the meta device, where there are none, zeros that take no memory."""
    if kernel.is_meta:
        return np.broadcast_to(np.zeros((), np.float32), kernel.shape)
    return as_matrix(kernel.flatten(1), "the kernel").reshape(kernel.shape)


def _planned(layer, ranks: Ranks, plan_map) -> _Plan:
    _check_groups(layer)
    outputs, inputs = _groups(layer, plan_map)[0].shape[:2]
    matrix = isinstance(layer, nn.Linear) and plan_map is None
    pair = isinstance(ranks, tuple | list)
    if matrix and pair:
        raise ValueError(
            f"a pair of ranks {tuple(ranks)} needs the feature map that the layer reads: give maps"
        )
    if pair and len(ranks) != 2:
        raise ValueError(f"ranks must be one number or a pair (R3, R4), got {ranks!r}")
    input_rank, output_rank = ranks if pair else (None, ranks)
    limits = {
        "input rank R3": (input_rank, inputs),
        "rank": (output_rank, min(inputs, outputs) if matrix else outputs),
    }
    for what, (rank, limit) in limits.items():
        if rank is not None and not 1 <= rank <= limit:
            raise ValueError(f"{what} must be in 1..{limit}, got {rank}")
    kind = "Tucker-2" if pair else "SVD" if matrix else "Tucker-1"
    return _Plan(kind, input_rank, output_rank, map=plan_map if pair else None)


# --- new layers --------------------------------------------------------------------------------------------


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _replace(old, plan: _Plan, decompose: bool, sweeps: int, tolerance: float) -> tuple[nn.Sequential, float]:
    """The sequence that takes a layer's place, and the relative error of its kernel."""
    made = _linear_parts(old, plan) if isinstance(old, nn.Linear) else _convolution_parts(old, plan)
    new = nn.Sequential(made).train(old.training)
    new.requires_grad_(old.weight.requires_grad)
    if not decompose:
        return new, math.nan
    kernels = _groups(old, plan.map)
    factors = [_factors(kernel, plan, sweeps, tolerance) for kernel in kernels]
    with torch.no_grad():
        _copy(new.expand.weight, [f.output_factor for f in factors])
        _copy(new.core.weight, [f.core for f in factors])
        if plan.input_rank is not None:
            _copy(new.reduce.weight, [f.input_factor.T for f in factors])
        if old.bias is not None:
            new.expand.bias.copy_(old.bias)
            new.expand.bias.requires_grad_(old.bias.requires_grad)
    norms = [float(kernel.double().norm()) for kernel in kernels]
    lost = math.hypot(*(f.relative_error * n for f, n in zip(factors, norms, strict=True)))
    return new, lost / math.hypot(*norms) if any(norms) else 0.0


def _copy(weight: nn.Parameter, groups: list[Tensor]) -> None:
    weight.copy_(torch.cat([group.contiguous() for group in groups]).reshape(weight.shape))


def _factors(kernel: Tensor, plan: _Plan, sweeps: int, tolerance: float) -> Tucker:
    if plan.kind == "Tucker-2":
        return tucker2(kernel, plan.input_rank, plan.output_rank, sweeps=sweeps, tolerance=tolerance)
    return (
        truncated_svd(kernel.flatten(1), plan.output_rank)
        if plan.kind == "SVD"
        else tucker1(kernel, plan.output_rank)
    )


def _convolution_parts(old: nn.Conv2d, plan: _Plan) -> OrderedDict[str, nn.Module]:
    where = {"device": old.weight.device, "dtype": old.weight.dtype}
    groups, outputs = old.groups, plan.output_rank * old.groups
    inputs = old.in_channels if plan.input_rank is None else plan.input_rank * groups
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if plan.input_rank is not None:
        parts["reduce"] = nn.Conv2d(old.in_channels, inputs, 1, groups=groups, bias=False, **where)
    parts["core"] = nn.Conv2d(
        inputs, outputs, old.kernel_size, old.stride, old.padding, old.dilation, groups,
        bias=False, padding_mode=old.padding_mode, **where,
    )  # fmt: skip
    bias = old.bias is not None
    parts["expand"] = nn.Conv2d(outputs, old.out_channels, 1, groups=groups, bias=bias, **where)
    return parts


def _linear_parts(old: nn.Linear, plan: _Plan) -> OrderedDict[str, nn.Module]:
    where = {"device": old.weight.device, "dtype": old.weight.dtype}
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = old.in_features
    if plan.map is not None:
        channels, height, width = plan.map
        inputs = plan.input_rank * height * width
        parts["map"] = nn.Unflatten(-1, plan.map)
        parts["reduce"] = nn.Conv2d(channels, plan.input_rank, 1, bias=False, **where)
        # The core's taps cover the map, so it is a matrix; libraries run it far faster than as a convolution.
        parts["flatten"] = nn.Flatten()
    parts["core"] = nn.Linear(inputs, plan.output_rank, bias=False, **where)
    parts["expand"] = nn.Linear(plan.output_rank, old.out_features, bias=old.bias is not None, **where)
    return parts
