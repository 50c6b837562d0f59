"""StyleMapGAN's networks under the keys of its authors' checkpoints (commit 3a70e07).

Their file holds ``g_ema`` and ``e_ema`` (all that inference needs), the weights in training, optimisers, and
the arguments of the training as an ``argparse.Namespace``. They keep the
blur's kernel in each layer that blurs.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lib.models.authors import (
    Source,
    floating_dtype,
    opened,
    read_state_dict,
    require_finite,
    require_fit,
    require_keys,
)

WHOSE = "StyleMapGAN checkpoint of the authors"
LAST_SPATIAL = 32  # pixels up to which a feature map has all channels

Model = TypeVar("Model", bound=nn.Module)


def read_authors(make: Callable[..., Model], source: Source, *, average: bool) -> Model:
    """See `lib.models.images.stylemapgan.StyleMapGAN.from_authors`; `make` is that class."""
    with opened(source, also=(Namespace,)) as held:
        if not isinstance(held, Mapping):
            raise ValueError("the checkpoint holds no state dict")
        names = {
            "generator": "g_ema" if average else "generator",
            "encoder": "e_ema" if average else "encoder",
        }
        if "discriminator" in held:
            names["discriminator"] = "discriminator"
        require_keys(held, names.values(), WHOSE)
        states = {part: read_state_dict(held, wrappers=(name,)) for part, name in names.items()}
        sizes = generator_sizes(states["generator"]) | stated_sizes(held.get("train_args"))
        with torch.device("meta"):  # nothing is as large as a wrong file may say, before it is known to fit
            plan = make(**sizes)
        for part, state in states.items():
            require_fit(state, authors_tensors(getattr(plan, part)), f"{names[part]} of a {WHOSE}")
            require_finite(state)
        model = make(**sizes).to(floating_dtype(states["generator"]))
        for part, state in states.items():
            copy_in(state, authors_tensors(getattr(model, part)))
        if "discriminator" not in names:
            model.discriminator = None
    return model


def copy_in(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copy a state dict to the views that `authors_tensors` gives; ValueError if it blurs otherwise."""
    for key, target in own.items():
        if not key.endswith(".kernel"):
            with torch.no_grad():
                target.copy_(state[key])
        elif not torch.allclose(state[key].to(target), target, atol=1e-3):
            raise ValueError(f"this is no {WHOSE}: {key} is not the blur (1, 3, 3, 1)")


def generator_sizes(state: Mapping[str, Tensor]) -> dict[str, int | bool]:
    """Arguments of the model, read from the shapes of an authors' generator.

    Raises
    ------
    ValueError
        Names keys that are missing, or of a wrong number of axes.
    """
    axes = {
        "mapping_z.1.weight": 2,
        "decoder.input.input": 4,
        "decoder.convs_latent.0.0.weight": 4,
        "decoder.to_rgb.conv.gamma.weight": 4,
    }
    require_keys(state, axes, WHOSE)
    for key, count in axes.items():
        if state[key].ndim != count or not state[key].numel():
            raise ValueError(f"{key} must have {count} axes and no empty one, got {tuple(state[key].shape)}")
    _, width, map_size, _ = state["decoder.input.input"].shape
    codes, style_channels = state["decoder.convs_latent.0.0.weight"].shape[:2]
    last, last_codes = state["decoder.to_rgb.conv.gamma.weight"].shape[:2]
    resolution = map_size << count_of(state, "decoder.convs.{}.")
    large = resolution > LAST_SPATIAL
    return {
        "resolution": resolution,
        "map_size": map_size,
        "style_channels": style_channels,
        "latent_size": state["mapping_z.1.weight"].shape[1],
        "width": width,
        "channel_multiplier": max(1, last * resolution // (LAST_SPATIAL * width)) if large else 2,
        "mapping_layers": count_of(state, "mapping_z.{}.", first=1),
        "small_resizer": (codes, last_codes) != (width, last),
    }


def count_of(state: Mapping[str, Tensor], prefix: str, *, first: int = 0) -> int:
    """How many of the consecutive indices from `first` on have a key that begins with `prefix`."""
    index = first
    while any(key.startswith(prefix.format(index)) for key in state):
        index += 1
    return index - first


def stated_sizes(arguments: object) -> dict[str, float | str]:
    """What no shape shows, from the arguments of the authors' training; without any, as published.

    Raises
    ------
    ValueError
        A rate of learning or a normalisation that the model does not have.
    """
    stated = vars(arguments) if isinstance(arguments, Namespace) else {}
    rate, mode = stated.get("lr_mul", 0.01), stated.get("normalize_mode", "LayerNorm")
    modes = {"LayerNorm": "layer", "InstanceNorm2d": "instance"}
    if not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise ValueError(f"lr_mul in train_args must be a positive number, got {rate!r:.40}")
    if not isinstance(mode, str) or mode not in modes:
        raise ValueError(f"normalize_mode in train_args must be one of {', '.join(modes)}, got {mode!r:.40}")
    return {"mapping_rate": rate, "normalise": modes[mode]}


def to_authors(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """A model's weights as an authors' file holds them, without arguments: copies, by network and key."""
    names = {"g_ema": model.generator, "e_ema": model.encoder, "discriminator": model.discriminator}
    return {
        name: {key: value.detach().clone() for key, value in authors_tensors(network).items()}
        for name, network in names.items()
        if network is not None
    }


def authors_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Views of a network's parameters, and its kernels, under the authors' keys."""
    if hasattr(network, "resizer"):
        return _generator(network)
    first, *blocks = network.features
    classifies = hasattr(network, "classifier")
    tensors = _conv("convs.0" if classifies else "from_rgb", first)
    for index, block in enumerate(blocks, start=int(classifies)):
        for name in ("conv1", "conv2", "skip"):
            tensors |= _conv(f"convs.{index}.{name}", getattr(block, name))
    tensors |= _conv("final_conv", network.last)
    if classifies:
        for index, layer in enumerate(network.classifier):
            tensors |= _linear(f"final_linear.{index}", layer)
    return tensors


def _generator(network: nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for index, layer in enumerate(network.mapping.layers, start=1):
        tensors |= _linear(f"mapping_z.{index}", layer)
    tensors["decoder.input.input"] = network.constant
    tensors |= _styled("decoder.conv1", network.first)
    for index, block in enumerate(network.blocks):
        for name in ("conv1", "conv2"):
            tensors |= _styled(f"decoder.convs.{index}.{name}", getattr(block, name))
        tensors |= _conv(f"decoder.convs.{index}.skip", block.skip)
    for index, conv in enumerate(network.resizer.convs):
        tensors |= _conv(f"decoder.convs_latent.{index}", conv)
    return tensors | _styled("decoder.to_rgb", network.to_rgb)


def _linear(key: str, layer: nn.Module) -> dict[str, Tensor]:
    return {f"{key}.weight": layer.weight, f"{key}.bias": layer.bias}


def _conv(key: str, layer: nn.Module) -> dict[str, Tensor]:
    """Of a sequence: the blur before a convolution down and behind one up, and last what has the bias."""
    weight, kernel, bias = layer.weight, layer.blur, layer.bias
    parts = {
        None: [("weight", weight)],
        "up": [("weight", weight), ("kernel", None if kernel is None else 4 * kernel)],
        "down": [("kernel", kernel), ("weight", weight)],
    }[layer.resample]
    parts += [] if bias is None else [("bias", bias)]
    return {f"{key}.{index}.{name}": tensor for index, (name, tensor) in enumerate(parts)}


def _styled(key: str, layer: nn.Module) -> dict[str, Tensor]:
    tensors = {f"{key}.conv.weight": layer.conv.weight[None], f"{key}.activate.bias": layer.conv.bias}
    if layer.conv.resample == "up":
        tensors[f"{key}.conv.blur.kernel"] = 4 * layer.conv.blur
    for name in ("gamma", "beta"):
        part = getattr(layer, name)
        tensors |= {f"{key}.conv.{name}.weight": part.weight, f"{key}.conv.{name}.bias": part.bias}
    return tensors
