"""What quantised weights do to the mean and spread of a network's activations, and undoing it.

Rounded weights scale and shift what a layer gives, each channel in its own way. Where a norm follows, that is
undone by counting its statistics anew (`reestimate_norms`); `restore_moments` does the same to any layer, so
that networks with and without norms can be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lib.inspection import evaluating, hooked
from lib.quantization.convert import quantized_layers
from lib.quantization.instability import divergence, moments


def hidden_convolutions(quantized: nn.Module) -> list[str]:
    """Names of the convolutions with quantised weights in order of definition, without the last layer."""
    layers = list(quantized_layers(quantized))[:-1]
    return [name for name, layer in layers if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def weight_shifts(full: nn.Module, quantized: nn.Module, groups: Sequence[Tensor]) -> dict[str, list[float]]:
    """How far quantised weights move the output of each hidden convolution, on the same input.

    Parameters
    ----------
    full
        In full precision.
    quantized
        The same network, converted.
    groups
        Images (B, C, H, W) each.

    Returns
    -------
    dict
        By layer and for each group, the `divergence` of the output under quantised weights from that under
        those of full precision; both get the input that the layer has in full precision.
    """
    layers = {name: quantized.get_submodule(name) for name in hidden_convolutions(quantized)}
    weights = {name: layer.quantized_weight() for name, layer in layers.items()}
    shifts: dict[str, list[float]] = {name: [] for name in layers}

    def compare(name):
        def hook(module, inputs, output):
            moved = layers[name].compute(inputs[0], weights[name])
            shifts[name].append(float(divergence(moments(moved), moments(output))))

        return hook

    hooks = [(full.get_submodule(name), "output", compare(name)) for name in layers]
    with evaluating(full), hooked(hooks):
        for images in groups:
            full(images)
    return shifts


class RestoredMoments(nn.Module):
    """A layer and, for each channel, a factor and a shift, which its first batch decides.

    On that batch the output has the mean and the standard deviation that are asked for. A channel that is
    constant there stays constant, at that mean.

    Parameters
    ----------
    layer
    mean, std : (channels,)
    """

    def __init__(self, layer: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.layer, self.mean, self.std = layer, mean, std
        self.factor: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, channels, ...)."""
        y = self.layer(x)
        if self.factor is None:
            mean, std = moments(y)
            self.factor = torch.where(std > 0, self.std / std, torch.zeros_like(std))
            self.shift = self.mean - self.factor * mean
        shape = (-1, *[1] * (y.dim() - 2))
        return y * self.factor.view(shape) + self.shift.view(shape)


@torch.no_grad()
def output_moments(
    network: nn.Module, images: Tensor, names: Iterable[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each channel of what these layers give, (channels,) each, by name."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name):
        return lambda module, inputs, output: found.update({name: moments(output)})

    with evaluating(network), hooked((network.get_submodule(name), "output", look(name)) for name in names):
        network(images)
    return found


@torch.no_grad()
def restore_moments(
    quantized: nn.Module, wanted: Mapping[str, tuple[Tensor, Tensor]], images: Tensor
) -> nn.Module:
    """A copy of a quantised network whose layers give these moments on images.

    Layer by layer: each is looked at behind the restored ones before it.

    Parameters
    ----------
    quantized
    wanted
        `output_moments` of the network in full precision on the same images.
    images : (B, C, H, W)

    Returns
    -------
    nn.Module
        In evaluation mode.
    """
    restored = copy.deepcopy(quantized).eval()
    for name, (mean, std) in wanted.items():
        restored.set_submodule(name, RestoredMoments(restored.get_submodule(name), mean, std))
    restored(images)
    return restored


@torch.no_grad()
def reestimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy whose batch norms have the plain mean of the batches' statistics.

    All else computes in evaluation mode meanwhile.

    Parameters
    ----------
    network
    batches
        Images (B, C, H, W) each.

    Raises
    ------
    ValueError
        There is no batch.
    """
    network = copy.deepcopy(network).eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.train().reset_running_stats()
        norm.momentum = None  # a plain mean
    count = 0
    for count, images in enumerate(batches, start=1):  # noqa: B007
        network(images)
    if not count:
        raise ValueError("norms are counted anew on at least one batch, got none")
    return network.eval()
