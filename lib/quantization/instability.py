"""AIWQ: activation instability induced by weight quantisation (PROFIT, Park & Yoo, ECCV 2020).

A small step of the weights may move some of them across a rounding threshold, and then the quantised weights
jump. How much the layer's *output* changes for the *same input* is the instability of the layer.

After the authors' code (commit c5e2f62), without its traps: there, on anything but the first graphics card
nothing is measured and the ranking is the order of definition; behind h-swish the old output is padded with
zero and the new one with −3/8; when no channel is left the running value becomes NaN for good; and the
running value starts at zero, so that short samplings are ranked before it has warmed up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn

from lib.listing import first_few
from lib.quantization.quantizer import Quantizer


def moments(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation of each channel, over batch and positions.

    Parameters
    ----------
    output : (batch, channels, ...)

    Returns
    -------
    mean, std : (channels,)
    """
    dims = [0, *range(2, output.dim())]
    variance, mean = torch.var_mean(output, dim=dims)
    return mean, variance.sqrt()


def divergence(new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> Tensor:
    """KL(new ‖ old) of two normal distributions per channel, averaged over channels.

    ln(σ'/σ) + (σ² + (μ − μ')²) / (2 σ'²) − 1/2, with μ', σ' of the old output. Channels with σ = 0 or σ' = 0
    are left out; without any channel left the result is 0.

    Parameters
    ----------
    new, old
        Mean and standard deviation, each (channels,).

    Returns
    -------
    () float64, never negative: the ratio σ/σ' is taken once, so that rounding cancels
    """
    (mean, std), (old_mean, old_std) = ((m.double(), s.double()) for m, s in (new, old))
    kept = (std != 0) & (old_std != 0)  # NaN is kept, and gives NaN
    mean, std, old_mean, old_std = (value[kept] for value in (mean, std, old_mean, old_std))
    if not len(std):
        return std.sum()
    excess = std / old_std - 1
    shift = (mean - old_mean) / old_std
    # r²/2 − 1/2 − ln r with r = 1 + e is e + e²/2 − log1p(e), precise for small e.
    return (excess + excess.square() / 2 - torch.log1p(excess) + shift.square() / 2).mean().clamp_min(0)


class Instability:
    """Measures the AIWQ of every quantised convolution while a network trains.

    Use as a context manager around the training. In each training forward, a layer's output is compared with
    what the quantised weights of the forward before it would have given on the same input.

    Its state belongs in the training's checkpoint, ``fit(…, also={"instability": instability})``: after a
    kill, the measurement goes on with what it had, the weights of the last forward included.

    Parameters
    ----------
    model
        With quantised convolutions, converted or in the authors' layout.
    every
        Measure each so many forwards; the layer's work doubles in those.
    rate
        None: plain mean over all samples. Else the rate of an exponential average that starts at 0, 0.001 in
        the authors' code, which needs thousands of iterations to mean anything.
    discard_above
        Samples above this are left out; a layer of which all are above it has this value.
    skip
        First forwards that are not measured.

    Attributes
    ----------
    samples : dict
        Measured values by name of the layer.

    Raises
    ------
    ValueError
        No quantised convolution; ``every`` below 1 or ``skip`` below 0.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 1,
        rate: float | None = None,
        discard_above: float = 1.0,
        skip: int = 0,
    ) -> None:
        if every < 1 or skip < 0:
            raise ValueError(f"every is at least 1 and skip at least 0, got {every} and {skip}")
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d) and hasattr(module, "quantized_weight")
        }
        if not self.layers:
            raise ValueError("the network has no quantised convolution to measure")
        self.every, self.rate, self.discard_above, self.skip = every, rate, discard_above, skip
        self.samples: dict[str, list[float]] = {name: [] for name in self.layers}
        self._calls = dict.fromkeys(self.layers, 0)
        self._before: dict[str, Tensor] = {}
        self._input: dict[str, Tensor] = {}
        self._handles: list = []

    def __enter__(self) -> Self:
        for name, layer in self.layers.items():
            quantizer = getattr(layer, "input_quantizer", None)
            if isinstance(quantizer, Quantizer):
                self._handles.append(quantizer.register_forward_hook(self._keep_input(name)))
            self._handles.append(layer.register_forward_hook(self._measure(name), with_kwargs=True))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._input.clear()

    def values(self) -> dict[str, float]:
        """AIWQ by name of the layer; NaN where nothing was measured."""
        return {name: self._average(samples) for name, samples in self.samples.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured, and what the next measurement needs; how it is averaged is left out."""
        return {
            "settings": self._settings(),
            "samples": {name: list(samples) for name, samples in self.samples.items()},
            "calls": dict(self._calls),
            "before": dict(self._before),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what another `Instability` has measured.

        Raises
        ------
        ValueError
            It measured other layers, or under other settings.
        """
        if state["settings"] != self._settings():
            raise ValueError(f"measured with {state['settings']}, here with {self._settings()}")
        if other := state["samples"].keys() ^ self.samples.keys():
            raise ValueError(f"measured other layers: {first_few(sorted(other))} in one of both only")
        self.samples = {name: list(state["samples"][name]) for name in self.layers}
        self._calls = {name: state["calls"][name] for name in self.layers}
        self._before = {
            name: weight.to(self.layers[name].weight.device) for name, weight in state["before"].items()
        }

    def _settings(self) -> dict[str, float]:
        return {"every": self.every, "skip": self.skip, "discard_above": self.discard_above}

    def _average(self, samples: list[float]) -> float:
        if not samples:
            return float("nan")
        kept = [sample for sample in samples if sample <= self.discard_above]
        if not kept:  # not unmeasured, but more unstable than all others
            return self.discard_above
        if self.rate is None:
            return sum(kept) / len(kept)
        average = 0.0
        for sample in kept:
            average += self.rate * (sample - average)
        return average

    def _keep_input(self, name: str):
        def hook(module, inputs, output):
            self._input[name] = output.detach()

        return hook

    def _measure(self, name: str):
        layer = self.layers[name]

        @torch.no_grad()
        def hook(module, inputs, keywords, output):
            x = self._input.pop(name, [*inputs, *keywords.values()][0])
            if not layer.training:
                return
            before, weight = self._before.get(name), layer.quantized_weight().detach().clone()
            self._before[name] = weight
            self._calls[name] += 1
            count = self._calls[name] - 1  # the first forward has no other before it
            if before is None or count <= self.skip or (count - self.skip - 1) % self.every:
                return
            value = float(divergence(moments(output), moments(layer.compute(x, before))))
            if not math.isnan(value):
                self.samples[name].append(value)

        return hook


def thirds_ratio(values: Mapping[str, float], ranking: Mapping[str, float]) -> float:
    """How much more unstable the first third of the layers is than the last: ratio of the thirds' medians.

    Parameters
    ----------
    values, ranking
        AIWQ by name of the layer: what is compared, and what the layers are sorted by. From different
        samples, a ranking of noise gives about 1.

    Raises
    ------
    ValueError
        Fewer than three layers, or the last third has none.
    """
    order = sorted(values, key=ranking.__getitem__, reverse=True)
    third = len(order) // 3
    if not third:
        raise ValueError(f"thirds need at least 3 layers, got {len(order)}")
    first, last = (median(values[name] for name in part) for part in (order[:third], order[-third:]))
    if not last:
        raise ValueError("no weight of the most stable third of the layers moved: measure more steps")
    return first / last


def convolution_kind(conv: nn.Conv2d) -> str:
    """What a convolution does in a MobileNet: ``depthwise``, ``expand``, ``project`` or ``dense``."""
    if conv.groups > 1:
        return "depthwise"
    if conv.kernel_size != (1, 1):
        return "dense"
    return "expand" if conv.out_channels > conv.in_channels else "project"
