"""Published layouts of weights: every key, and the same function; what is another is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.models.depth.fsre_checkpoints import (
    input_size,
    load_depth_decoder,
    load_encoder,
    load_pose_decoder,
    load_segmentation_decoder,
)
from lib.models.depth.fsre_depth import FsreDepth
from lib.models.depth.self_supervision import Objective

LEVELS = ((3, 256), (2, 128), (1, 64))  # number in the file, channels
SKIPS = (64, 64, 128, 256)
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def resnet18_shapes(inputs: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of ``encoder.pth``, as the dossier of the paper lists them."""

    def norm(name, channels):
        return {f"{name}.{key}": () if key == "num_batches_tracked" else (channels,) for key in NORM}

    shapes = {"conv1.weight": (64, inputs, 7, 7)} | norm("bn1", 64)
    for stage, channels in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            before = channels // 2 if stage > 1 and block == 0 else channels
            shapes |= {f"{name}.conv1.weight": (channels, before, 3, 3)} | norm(f"{name}.bn1", channels)
            shapes |= {f"{name}.conv2.weight": (channels, channels, 3, 3)} | norm(f"{name}.bn2", channels)
        if stage > 1:
            shapes |= {f"layer{stage}.0.downsample.0.weight": (channels, channels // 2, 1, 1)}
            shapes |= norm(f"layer{stage}.0.downsample.1", channels)
    shapes |= {"fc.weight": (1000, 512), "fc.bias": (1000,)}
    return {f"encoder.{key}": shape for key, shape in shapes.items()}


def decoder_shapes(outputs: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes, x = {}, 512
    for place, channels in enumerate((256, 128, 64, 32, 16)):
        skip = SKIPS[3 - place] if place < 4 else 0
        for number, inputs in ((2 * place, x), (2 * place + 1, channels + skip)):
            shapes[f"decoder.{number}.conv.conv.weight"] = (channels, inputs, 3, 3)
            shapes[f"decoder.{number}.conv.conv.bias"] = (channels,)
        x = channels
    for scale, count in enumerate(outputs):
        shapes[f"decoder.{10 + scale}.conv.weight"] = (count, 16 << scale, 3, 3)
        shapes[f"decoder.{10 + scale}.conv.bias"] = (count,)
    return shapes


def attention_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {}
    for place, c in LEVELS:
        for way in ("d_to_s", "s_to_d"):
            name = f"att_{way}.{place}"
            for role in ("query", "key", "value"):
                shapes |= {
                    f"{name}.{role}_conv.weight": (8 * c, c, 1, 1),
                    f"{name}.{role}_conv.bias": (8 * c,),
                }
            shapes[f"{name}.W.0.weight"] = (c, 2 * c, 1, 1)
            shapes |= {f"{name}.W.1.{key}": () if key == "num_batches_tracked" else (c,) for key in NORM}
            shapes |= {
                f"{name}.fuse.0.conv.conv.weight": (c, 2 * c, 3, 3),
                f"{name}.fuse.0.conv.conv.bias": (c,),
            }
            shapes |= {f"{name}.fuse.1.weight": (c, c, 1, 1), f"{name}.fuse.1.bias": (c,)}
    return shapes


def pose_shapes(outputs: int) -> dict[str, tuple[int, ...]]:
    weights = [(256, 512, 1, 1), (256, 256, 3, 3), (256, 256, 3, 3), (outputs, 256, 1, 1)]
    shapes = {f"net.{k}.weight": shape for k, shape in enumerate(weights)}
    return shapes | {f"net.{k}.bias": shape[:1] for k, shape in enumerate(weights)}


def filled(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Numbers that keep activations in range, variances that are positive."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if not shape:
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(shape, generator=draw)
        else:
            fan = max(1, torch.Size(shape[1:]).numel())
            state[key] = torch.randn(shape, generator=draw) / fan**0.5 * (1.0 if len(shape) > 1 else 0.1)
    return state


def prefixed(prefix, shapes):
    return {f"{prefix}{key}": shape for key, shape in shapes.items()}


def published_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    cross = prefixed("depth_decoder.", decoder_shapes((1, 1, 1, 1)))
    cross |= prefixed("seg_decoder.", decoder_shapes((19,))) | attention_shapes()
    shapes = {
        "encoder.pth": resnet18_shapes(3),
        "pose_encoder.pth": resnet18_shapes(6),
        "pose.pth": pose_shapes(6),
        "decoder.pth": cross,
        "depth.pth": decoder_shapes((1, 1, 1, 1)),
        "seg.pth": decoder_shapes((19,)),
    }
    assert [len(shapes[name]) for name in shapes] == [122, 122, 8, 146, 28, 22]  # as published
    return shapes


def narrow(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The same of a quarter of the channels, which is quick; pictures, kernels, outputs stay."""
    kept = {19, 1000}
    return {
        key: tuple(size // 4 if size >= 16 and size not in kept else size for size in shape)
        for key, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    shapes = published_shapes().items()
    return {name: filled(narrow(value), number) for number, (name, value) in enumerate(shapes)}


def save(folder: Path, states: dict[str, dict[str, Tensor]], *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        notes = {"height": 192, "width": 640, "epoch": 19, "step": 66_339} if name == "encoder.pth" else {}
        torch.save(states[name] | notes, folder / name)
    return folder


@pytest.fixture(scope="module")
def released(states, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights_19_best")
    return save(folder, states, "encoder.pth", "pose_encoder.pth", "pose.pth", "decoder.pth")


def conv_block(x, state, name):
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return F.elu(F.conv2d(x, state[f"{name}.conv.conv.weight"], state[f"{name}.conv.conv.bias"]))


def norm(x, state, name):
    values = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *values)


def published_encoder(x, state):
    def conv(x, name, stride=1, padding=1):
        return F.conv2d(x, state[f"encoder.{name}.weight"], stride=stride, padding=padding)

    maps = [norm(conv((x - 0.45) / 0.225, "conv1", 2, 3), state, "encoder.bn1").relu()]
    x = F.max_pool2d(maps[0], 3, 2, 1)
    for stage in range(1, 5):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(conv(x, f"{name}.conv1", stride), state, f"encoder.{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2"), state, f"encoder.{name}.bn2")
            if stride == 2:
                x = norm(conv(x, f"{name}.downsample.0", 2, 0), state, f"encoder.{name}.downsample.1")
            x = (x + y).relu()
        maps.append(x)
    return maps


def published_attention(key, query, state, name):
    """``block(key, query)``: keys and values of the task that is refined, queries of the other."""
    q, k, v = (
        F.conv2d(x, state[f"{name}.{role}_conv.weight"], state[f"{name}.{role}_conv.bias"]).unflatten(
            1, (4, -1)
        )
        for role, x in (("query", query), ("key", key), ("value", key))
    )
    weights = ((q * k).sum(2, keepdim=True) / (q.shape[1] * q.shape[2]) ** 0.5).softmax(1)
    read = F.conv2d((weights * v).sum(1), state[f"{name}.W.0.weight"])
    x = conv_block(torch.cat([key, norm(read, state, f"{name}.W.1")], 1), state, f"{name}.fuse.0")
    return F.conv2d(x, state[f"{name}.fuse.1.weight"], state[f"{name}.fuse.1.bias"])


def published_decoders(maps, state):
    depth = labels = maps[-1]
    for i in reversed(range(5)):
        found = []
        for x, task in ((depth, "depth"), (labels, "seg")):
            x = conv_block(x, state, f"{task}_decoder.decoder.{2 * (4 - i)}")
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            if i > 0:
                x = torch.cat([x, maps[i - 1]], 1)
            found.append(conv_block(x, state, f"{task}_decoder.decoder.{2 * (4 - i) + 1}"))
        depth, labels = found
        if i >= 2:
            depth, labels = (
                published_attention(depth, labels, state, f"att_d_to_s.{i - 1}"),
                published_attention(labels, depth, state, f"att_s_to_d.{i - 1}"),
            )
    heads = []
    for x, task in ((depth, "depth"), (labels, "seg")):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        name = f"{task}_decoder.decoder.10.conv"
        heads.append(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    return heads[0].sigmoid(), heads[1]


def test_the_released_sizes_fit(tmp_path):
    shapes = published_shapes().items()
    states = {name: {key: torch.zeros(shape) for key, shape in value.items()} for name, value in shapes}
    for state in states.values():
        state.update({key: torch.tensor(0) for key in state if key.endswith("num_batches_tracked")})
    names = ("encoder.pth", "pose_encoder.pth", "pose.pth", "decoder.pth")
    model = FsreDepth.from_authors(save(tmp_path / "weights", states, *names))
    with torch.device("meta"):
        default = FsreDepth()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in default.state_dict().items()
    }


@torch.no_grad()
@pytest.mark.parametrize("merged", [True, False])
def test_the_released_folder_computes_the_published_function(released, states, merged):
    model = FsreDepth.from_authors(released, merged=merged)
    assert not model.training
    pictures = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    maps = published_encoder(pictures, states["encoder.pth"])
    disparity, logits = published_decoders(maps, states["decoder.pth"])
    found = model(pictures)
    torch.testing.assert_close(found.disparity[0], disparity, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    alone = model(pictures, labels=False)
    assert alone.logits is None
    torch.testing.assert_close(alone.disparity[0], found.disparity[0], rtol=0, atol=0)

    pair = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(6))
    x = published_encoder(torch.cat([pictures, pair], 1), states["pose_encoder.pth"])[-1]
    net = states["pose.pth"]
    for k in range(4):
        x = F.conv2d(x, net[f"net.{k}.weight"], net[f"net.{k}.bias"], padding=int(k in (1, 2)))
        x = x.relu() if k < 3 else 0.01 * x.mean((2, 3))
    torch.testing.assert_close(torch.cat(model.pose(pictures, pair), 1), x, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_another_order_of_tasks_would_be_seen(released, states):
    """The oracle tells queries and keys apart, and which of the two blocks refines depth."""
    pictures = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    maps = published_encoder(pictures, states["encoder.pth"])
    right, _ = published_decoders(maps, states["decoder.pth"])

    other = {"att_d_to_s": "att_s_to_d", "att_s_to_d": "att_d_to_s"}
    swapped = {
        other.get(key[:10], key[:10]) + key[10:]: value for key, value in states["decoder.pth"].items()
    }
    wrong, _ = published_decoders(maps, swapped)
    assert float((wrong - right).abs().max()) > 1e-3


def test_without_attention_and_monodepth2(states, tmp_path):
    folder = save(
        tmp_path / "plain", states, "encoder.pth", "pose_encoder.pth", "pose.pth", "depth.pth", "seg.pth"
    )
    model = FsreDepth.from_authors(folder)
    assert not model.decoder.to_depth and model.decoder.segmentation is not None
    (folder / "seg.pth").unlink()
    silent = Objective(weighting="monodepth2", segmentation=0, triplet=0)
    alone = FsreDepth.from_authors(folder, objective=silent)
    pictures = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        depths = [one.predict_depth(pictures) for one in (model, alone)]
        torch.testing.assert_close(*depths, rtol=0, atol=0)
        decoder, maps = load_depth_decoder(folder / "depth.pth"), alone.encoder(pictures)
        x = maps[-1]
        for level in reversed(range(5)):
            x = decoder.level(level, x, maps)
        torch.testing.assert_close(decoder.head(0, x).sigmoid(), alone(pictures).disparity[0])
    two = filled(narrow(pose_shapes(12)), 0)
    assert load_pose_decoder(two, motions=2)(maps[-1])[0].shape == (1, 3)
    with pytest.raises(
        ValueError, match=r"no pose decoder with 1 motion: net.3.weight must be \(6, 64, 1, 1\)"
    ):
        load_pose_decoder(two)


def test_the_size_of_the_pictures_is_read(released, states):
    assert input_size(released / "encoder.pth") == (192, 640)
    assert input_size(states["encoder.pth"]) is None


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("decoder.pth", lambda s: s.pop("att_d_to_s.2.W.1.bias"), "missing to_depth.3.norm.bias"),
        (
            "decoder.pth",
            lambda s: s.pop("seg_decoder.decoder.10.conv.weight"),
            "missing seg_decoder.decoder.10",
        ),
        ("decoder.pth", lambda s: s.update(other=torch.zeros(1)), "unexpected other"),
        ("encoder.pth", lambda s: s["encoder.bn1.bias"].fill_(float("nan")), "encoder.bn1.bias holds 16 NaN"),
        ("encoder.pth", lambda s: s.pop("encoder.layer3.1.conv1.weight"), "missing encoder.layer3.1.conv1"),
        ("encoder.pth", lambda s: s.pop("encoder.conv1.weight"), "missing encoder.conv1.weight"),
        ("pose_encoder.pth", lambda s: s.update(states_of_depth()), r"must be \(16, 6, 7, 7\)"),
        ("pose.pth", lambda s: s.pop("net.0.weight"), "missing net.0.weight"),
        ("pose.pth", None, "no checkpoint at"),
    ],
)
def test_other_files_are_refused(released, states, tmp_path, name, change, message):
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in released.iterdir():
        (folder / path.name).symlink_to(path)
    state = {key: value.clone() for key, value in states[name].items()}
    (folder / name).unlink()
    if change is not None:
        change(state)
        torch.save(state, folder / name)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{name}.*{message}|{message}.*{name}"):
        FsreDepth.from_authors(folder)


def states_of_depth() -> dict[str, Tensor]:
    return {"encoder.conv1.weight": torch.zeros(16, 3, 7, 7)}


def test_files_of_two_networks_are_refused(states, tmp_path):
    folder = save(tmp_path / "mixed", states, "pose_encoder.pth", "pose.pth", "encoder.pth")
    deeper = filled(narrow(decoder_shapes((1, 1, 1, 1))), 0)
    deeper["decoder.0.conv.conv.weight"] = torch.zeros(64, 512, 3, 3)
    torch.save(deeper, folder / "depth.pth")
    with pytest.raises(
        ValueError, match="mixed: this is no set of files that belong together: decoder.depth"
    ):
        FsreDepth.from_authors(folder, objective=Objective(segmentation=0, triplet=0))


def test_parts_refuse_each_other(states):
    with pytest.raises(ValueError, match="no encoder"):
        load_encoder(states["pose.pth"])
    with pytest.raises(ValueError, match="no segmentation decoder"):
        load_segmentation_decoder(states["depth.pth"])
    with pytest.raises(ValueError, match="no depth decoder"):
        load_depth_decoder(states["seg.pth"])
