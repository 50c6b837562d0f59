"""One-shot compression of a whole network: every kernel replaced by a sequence of smaller ones.

Kim et al. (ICLR 2016), section 3 and figure 2: the layers from the second convolution to the first fully
connected one become Tucker-2 sequences, the others are factored on one side; into what exactly, says
`lib.compression.factored_layers`. Ranks come from a rule that looks at the weights of one layer at a time
(`lib.compression.ranks`), never at the accuracy.

After this the network is fine-tuned as a whole; no part of it is frozen.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from torch import nn

from lib.compression.factored_layers import factored
from lib.compression.ranks import Plan, Ranks, Rule, choose, numbers, plan, rule_of


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
        replaced, under all their names; everything else, and dtype, device, training mode, hooks and what is
        frozen, stay.
    ranks
        ``"vbmf"``: of each unfolding by EVBMF. A number in (0, 1]: that share of the largest rank
        that each unfolding can have, which is its channels or, in a first convolution, its other side if that
        is shorter. A function from an unfolding to a rank. A mapping from layer names to ranks: those layers
        only; a pair (R3, R4) asks for Tucker-2, one number for Tucker-1 or, in a fully connected layer, the
        singular value decomposition.
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
        Nothing to compress; an unknown or unsupported layer; one whose weight is another module's, too, or
        is computed (weight norm); a rank of 0 or above the layer's size in a mapping; a kernel that is not
        finite; a ``maps`` entry that does not fit its layer; a depthwise convolution that a rule would have
        to split (name it in ``skip``).

    Notes
    -----
    A rule may find that a kernel is all noise: rank 0. Such a rank is set to 1 and recorded as floored. In a
    grouped convolution a rule is asked about each group, and the largest answer is used for all.
    """
    if weights not in ("decomposed", "fresh"):
        raise ValueError(f"weights must be 'decomposed' or 'fresh', got {weights!r}")
    rule = rule_of(ranks)
    layers = {name: m for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    first_name = _first_names(model)
    maps, given = (
        {first_name.get(name, name): value for name, value in mapping.items()}
        for mapping in (maps or {}, ranks if isinstance(ranks, Mapping) else {})
    )
    skip = [first_name.get(name, name) for name in skip]
    _check_names(model, layers, given, maps, skip)
    first = next((name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)), None)
    plans: dict[str, Plan] = {}
    for name, layer in layers.items():
        if name not in given if rule is None else not _wanted(name, layer, skip, pointwise, linear):
            continue
        try:
            if rule is None:
                plans[name] = plan(layer, given[name], maps.get(name))
            else:
                plans[name] = choose(layer, rule, maps.get(name), one_sided=name == first)
            _check_own_weight(model, layer)
            if weights == "decomposed":
                numbers(layer.weight)  # before anything is replaced
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
        made = plans[name]
        new, error = factored(
            old, made, decompose=weights == "decomposed", sweeps=sweeps, tolerance=tolerance
        )
        model = new if name == "" else model
        for parent in list(model.modules()):
            for child in [child for child, module in parent._modules.items() if module is old]:
                setattr(parent, child, new)
        ranks_used = (made.input_rank, made.output_rank, made.floored)
        rows.append((name, made.kind, *ranks_used, before, _size(new), error))
    columns = ["layer", "kind", "input_rank", "output_rank", "floored"]
    columns += ["parameters_before", "parameters_after", "relative_error"]
    report = pd.DataFrame(rows, columns=columns).astype({"input_rank": "Int64", "output_rank": "Int64"})
    return Compressed(model, report)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Each name of a module to the first of its names."""
    first = {module: name for name, module in model.named_modules()}
    return {name: first[module] for name, module in model.named_modules(remove_duplicate=False)}


def _check_own_weight(model: nn.Module, layer: nn.Module) -> None:
    if "weight" not in layer._parameters:
        raise ValueError(
            "its weight is computed from other parameters: make it a parameter, or skip the layer"
        )
    for name, module in model.named_modules():
        if module is not layer and any(value is layer.weight for value in module._parameters.values()):
            raise ValueError(f"it shares its weight with {name!r}: factors cannot be shared; skip both")


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


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
