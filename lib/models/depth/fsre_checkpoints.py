"""Reads weights as the authors of FSRE-Depth and Monodepth2 publish them, one file per network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lib.models.authors import (
    Source,
    filled,
    opened,
    read_state_dict,
    require_finite,
    require_keys,
)
from lib.models.depth.cross_task_decoder import CrossTaskDecoder, PyramidDecoder
from lib.models.depth.pose_network import PoseDecoder
from lib.models.depth.resnet_pyramid import ResnetPyramid
from lib.models.vision.resnet import DEPTHS, BasicBlock

Network = TypeVar("Network", bound=nn.Module)

#: Plain numbers and a flag beside the tensors of ``encoder.pth``: size of its pictures, when it was saved.
NOTES = ("height", "width", "epoch", "step", "use_stereo")


def load_encoder(source: Source, *, frames: int = 1) -> ResnetPyramid:
    """``encoder.pth``, or ``pose_encoder.pth`` with two frames.

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        It is missing, unreadable or another file; so of all functions of this module.
    """
    whose = "encoder of FSRE-Depth or Monodepth2"
    with opened(source) as held:
        state = _read({key: value for key, value in _mapping(held).items() if key not in NOTES})
        for name in ("weight", "bias"):  # of the classifier, which nothing calls
            state.pop(f"encoder.fc.{name}", None)
        width = _shape(state, "encoder.conv1.weight", whose)[0] / 64
        options = {"depth": _resnet_depth(state), "width": width, "frames": frames}
        return filled(lambda: ResnetPyramid(**options), state, whose)


def input_size(source: Source) -> tuple[int, int] | None:
    """Height and width of the pictures that ``encoder.pth`` was trained on; None where it does not say."""
    with opened(source) as held:
        notes = [_mapping(held).get(name) for name in ("height", "width")]
        return tuple(notes) if all(isinstance(value, int) for value in notes) else None


def load_pose_decoder(source: Source, *, motions: int = 1) -> PoseDecoder:
    """``pose.pth``: of FSRE-Depth with one motion, of Monodepth2 with two."""
    whose = f"pose decoder with {motions} motion{'s' * (motions > 1)}"
    with opened(source) as held:
        state = _read(held)
        hidden, inputs = _shape(state, "net.0.weight", whose)[:2]
        return filled(lambda: PoseDecoder(inputs, hidden=hidden, motions=motions), state, whose)


def load_depth_decoder(source: Source) -> PyramidDecoder:
    """``depth.pth`` of Monodepth2, or of FSRE-Depth without attention."""
    with opened(source) as held:
        return _decoder(_read(held), (0, 1, 2, 3), "depth decoder of Monodepth2 or FSRE-Depth")


def load_segmentation_decoder(source: Source) -> PyramidDecoder:
    """``seg.pth`` of FSRE-Depth without attention."""
    with opened(source) as held:
        return _decoder(_read(held), (0,), "segmentation decoder of FSRE-Depth")


def load_cross_task_decoder(source: Source, *, embeddings: int = 4, merged: bool = True) -> CrossTaskDecoder:
    """``decoder.pth`` of FSRE-Depth: both decoders and the attention between them.

    Parameters
    ----------
    embeddings
        Of the attention, published: 4. The file does not tell.
    """
    whose = "decoder of FSRE-Depth"
    with opened(source) as held:
        state = _read(held)
        places = {match[1] for key in state if (match := re.match(r"att_d_to_s\.(\d)\.", key))}
        levels = tuple(sorted((int(place) + 1 for place in places), reverse=True))
        sizes = _decoder_sizes(state, "depth_decoder.", whose)
        classes = _shape(state, "seg_decoder.decoder.10.conv.weight", whose)[0]
        ratio = 2
        if levels:
            wide, own = _shape(state, f"att_d_to_s.{levels[0] - 1}.query_conv.weight", whose)[:2]
            ratio = wide // (own * embeddings)
        ours = {}
        for key, value in state.items():
            name = _decoder_name(
                key.replace("seg_decoder.", "segmentation.").replace("depth_decoder.", "depth.")
            )
            ours[_attention_name(name)] = value
        return filled(
            lambda: CrossTaskDecoder(
                sizes[0],
                channels=sizes[1],
                classes=classes,
                attention_levels=levels,
                embeddings=embeddings,
                ratio=ratio,
                merged=merged,
            ),
            ours,
            whose,
        )


def load_folder(
    make: Callable[..., Network], folder: str | os.PathLike, *, merged: bool = True, **options: object
) -> Network:
    """A folder of FSRE-Depth's files as one model, made by ``make``: `FsreDepth.from_authors`.

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        A file is missing, unreadable or another, or they do not belong together.
    """
    folder = Path(folder)
    encoder = load_encoder(folder / "encoder.pth")
    pose_encoder = load_encoder(folder / "pose_encoder.pth", frames=2)
    parts: dict[str, nn.Module] = {
        "encoder": encoder,
        "pose.encoder": pose_encoder,
        "pose.decoder": load_pose_decoder(folder / "pose.pth"),
    }
    if (folder / "decoder.pth").exists():
        decoder = parts["decoder"] = load_cross_task_decoder(folder / "decoder.pth", merged=merged)
        depth, segmentation = decoder.depth, decoder.segmentation
        attention = tuple(map(int, decoder.to_depth))
    else:
        depth = parts["decoder.depth"] = load_depth_decoder(folder / "depth.pth")
        segmentation, attention = None, ()
        if (folder / "seg.pth").exists():
            segmentation = parts["decoder.segmentation"] = load_segmentation_decoder(folder / "seg.pth")
    classes = 0 if segmentation is None else segmentation.heads["0"].out_channels
    state = {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }
    sizes = {
        "depth": _resnet_depth(encoder.state_dict()),
        "pose_depth": _resnet_depth(pose_encoder.state_dict()),
        "width": encoder.channels[0] / 64,
    }

    def model() -> Network:
        return make(
            **sizes,
            channels=depth.channels,
            classes=classes,
            attention_levels=attention,
            merged=merged,
            **options,
        )

    try:
        return filled(model, state, "set of files that belong together")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _mapping(held: object) -> Mapping:
    if not isinstance(held, Mapping):
        raise ValueError("the checkpoint holds no state dict")
    return held


def _read(held: object) -> dict[str, Tensor]:
    state = read_state_dict(held, prefix="module.")
    require_finite(state)
    return state


def _shape(state: Mapping[str, Tensor], key: str, whose: str) -> torch.Size:
    """Of a tensor that tells sizes: a convolution's weight."""
    require_keys(state, [key], whose)
    if state[key].ndim != 4:
        raise ValueError(f"this is no {whose}: {key} must have 4 axes, got {state[key].ndim}")
    return state[key].shape


def _resnet_depth(state: Mapping[str, Tensor]) -> int:
    """Which ResNet has as many blocks in its stages, and of which kind."""
    stages = [
        {key.split(".")[2] for key in state if key.startswith(f"encoder.layer{n}.")} for n in (1, 2, 3, 4)
    ]
    basic = "encoder.layer1.0.conv3.weight" not in state
    for depth, (block, blocks) in DEPTHS.items():
        if tuple(map(len, stages)) == blocks and (block is BasicBlock) == basic:
            return depth
    raise ValueError(f"this is no ResNet of {', '.join(map(str, DEPTHS))} layers")


def _decoder_sizes(state: Mapping[str, Tensor], prefix: str, whose: str) -> tuple[list[int], list[int]]:
    """Channels of the encoder's maps and of the decoder's levels, from the finest."""
    before, after = (
        [
            _shape(state, f"{prefix}decoder.{2 * (4 - level) + odd}.conv.conv.weight", whose)
            for level in range(5)
        ]
        for odd in (0, 1)
    )
    channels = [shape[0] for shape in before]
    skips = [after[level][1] - channels[level] for level in range(1, 5)]
    return [*skips, before[4][1]], channels


def _decoder_name(key: str) -> str:
    """A key of the authors' decoder, whatever its prefix, under our name."""
    if match := re.search(r"decoder\.(\d)\.conv\.conv\.", key):
        place = ("before", "after")[int(match[1]) % 2]
        return key.replace(match[0], f"{place}.{4 - int(match[1]) // 2}.0.")
    return re.sub(r"decoder\.1(\d)\.conv\.", r"heads.\1.", key)


def _attention_name(key: str) -> str:
    if not (match := re.match(r"att_(d_to_s|s_to_d)\.(\d)\.", key)):
        return key
    place = {"d_to_s": "to_depth", "s_to_d": "to_segmentation"}[match[1]]
    name = key.removeprefix(match[0])
    for theirs, ours in (
        *((f"{role}_conv.", f"{role}.") for role in ("query", "key", "value")),
        ("W.0.", "project."),
        ("W.1.", "norm."),
        ("fuse.0.conv.conv.", "fuse.0.0."),
    ):
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    return f"{place}.{int(match[2]) + 1}.{name}"


def _decoder(state: Mapping[str, Tensor], levels: Sequence[int], whose: str) -> PyramidDecoder:
    sizes, channels = _decoder_sizes(state, "", whose)
    outputs = _shape(state, "decoder.10.conv.weight", whose)[0]
    return filled(
        lambda: PyramidDecoder(sizes, outputs=outputs, head_levels=levels, channels=channels),
        {_decoder_name(key): value for key, value in state.items()},
        whose,
    )
