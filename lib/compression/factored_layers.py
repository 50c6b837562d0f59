"""Layers made of factors: the sequence of small layers that takes a layer's place.

Kim et al. (ICLR 2016), section 3 and figure 2. A convolution S → T becomes

- ``reduce``: 1 × 1, S → R3, no bias, on the input's grid;
- ``core``: the original taps, stride, padding and dilation, R3 → R4, no bias;
- ``expand``: 1 × 1, R4 → T, the original bias, on the output's grid,

with nothing between them. The first convolution has no ``reduce`` (Tucker-1), nor has a fully connected
layer, whose ``core`` and ``expand`` are two smaller matrices; but the fully connected layer that reads a
feature map is a convolution whose taps cover the whole map, and gets all three. In a grouped convolution
each group is decomposed separately with the same pair of ranks.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from lib.compression.ranks import Plan, kernels
from lib.compression.tucker import Tucker, truncated_svd, tucker1, tucker2

#: Where a module keeps its hooks; what they are called with is the same for the sequence.
HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


def factored(
    layer: nn.Conv2d | nn.Linear,
    plan: Plan,
    *,
    decompose: bool = True,
    sweeps: int = 100,
    tolerance: float = 1e-4,
) -> tuple[nn.Sequential, float]:
    """The sequence that takes a layer's place, with its device, dtype, mode and hooks, frozen where it was.

    Parameters
    ----------
    layer
    plan
        Kind and ranks, from `lib.compression.ranks`.
    decompose
        Whether the parts get the factors of the layer's kernel, or keep torch's own initial weights.
    sweeps, tolerance
        Of HOOI, see `lib.compression.tucker.tucker2`.

    Returns
    -------
    new : nn.Sequential
        Parts named as above.
    error : float
        ‖K − K̂‖/‖K‖ of the whole kernel, all groups; NaN for parts with fresh weights.
    """
    made = linear_parts(layer, plan) if isinstance(layer, nn.Linear) else convolution_parts(layer, plan)
    new = nn.Sequential(made).train(layer.training)
    new.requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        new.expand.bias.requires_grad_(layer.bias.requires_grad)
    for hooks in HOOKS:
        setattr(
            new, hooks, getattr(layer, hooks)
        )  # the very dictionaries: their handles can still remove them
    if not decompose:
        return new, math.nan
    groups = kernels(layer, plan.feature_map)
    factors = [_factors(kernel, plan, sweeps, tolerance) for kernel in groups]
    with torch.no_grad():
        _copy(new.expand.weight, [f.output_factor for f in factors])
        _copy(new.core.weight, [f.core for f in factors])
        if plan.input_rank is not None:
            _copy(new.reduce.weight, [f.input_factor.T for f in factors])
        if layer.bias is not None:
            new.expand.bias.copy_(layer.bias)
    largest = float(layer.weight.detach().abs().max()) or 1.0  # squares of float64's largest leave its range
    norms = [float((kernel.double() / largest).norm()) for kernel in groups]
    lost = math.hypot(*(f.relative_error * n for f, n in zip(factors, norms, strict=True)))
    return new, lost / math.hypot(*norms) if any(norms) else 0.0


def convolution_parts(old: nn.Conv2d, plan: Plan) -> OrderedDict[str, nn.Module]:
    """The small convolutions that take a convolution's place, by name, with fresh weights."""
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


def linear_parts(old: nn.Linear, plan: Plan) -> OrderedDict[str, nn.Module]:
    """The small layers that take a fully connected layer's place, by name, with fresh weights."""
    where = {"device": old.weight.device, "dtype": old.weight.dtype}
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = old.in_features
    if plan.feature_map is not None:
        channels, height, width = plan.feature_map
        inputs = plan.input_rank * height * width
        parts["map"] = nn.Unflatten(-1, plan.feature_map)
        parts["reduce"] = nn.Conv2d(channels, plan.input_rank, 1, bias=False, **where)
        # The core's taps cover the map, so it is a matrix; libraries run it far faster than as a convolution.
        parts["flatten"] = nn.Flatten()
    parts["core"] = nn.Linear(inputs, plan.output_rank, bias=False, **where)
    parts["expand"] = nn.Linear(plan.output_rank, old.out_features, bias=old.bias is not None, **where)
    return parts


def _copy(weight: nn.Parameter, groups: list[Tensor]) -> None:
    weight.copy_(torch.cat([group.contiguous() for group in groups]).reshape(weight.shape))


def _factors(kernel: Tensor, plan: Plan, sweeps: int, tolerance: float) -> Tucker:
    if plan.kind == "Tucker-2":
        return tucker2(kernel, plan.input_rank, plan.output_rank, sweeps=sweeps, tolerance=tolerance)
    return (
        truncated_svd(kernel.flatten(1), plan.output_rank)
        if plan.kind == "SVD"
        else tucker1(kernel, plan.output_rank)
    )
