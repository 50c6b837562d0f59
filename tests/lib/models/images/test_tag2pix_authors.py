"""Files of Tag2Pix's authors: published keys and shapes are read into their places, others refused."""

from __future__ import annotations

import re

import pytest
import torch

from lib.models.images.tag2pix import Generator
from lib.models.images.tag2pix_discriminator import Discriminator
from lib.models.images.tag2pix_extractor import LineArtClassifier

NORM = ("weight", "bias", "running_mean", "running_var")


def norm(name: str, channels: int) -> dict[str, tuple]:
    return {f"{name}.{leaf}": (channels,) for leaf in NORM} | {f"{name}.num_batches_tracked": ()}


def bottleneck(name, inputs, width, *, tags=0, projection, batch_norm=True) -> dict[str, tuple]:
    """Of the generator and the discriminator."""
    outputs = 4 * width
    shapes = {
        f"{name}.conv1.weight": (width, inputs, 1, 1),
        f"{name}.conv2.weight": (width, width // 16, 3, 3),
        f"{name}.conv3.weight": (outputs, width, 1, 1),
        f"{name}.selayer.fc.0.weight": (outputs // 16, outputs + tags),
        f"{name}.selayer.fc.2.weight": (outputs, outputs // 16),
    }
    if projection:
        shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
    if batch_norm:
        norms = {"bn1": width, "bn2": width, "bn3": outputs}
        norms |= {"downsample.1": outputs} if projection else {}
        for leaf, channels in norms.items():
            shapes |= norm(f"{name}.{leaf}", channels)
    return shapes


def generator_shapes(size: int = 256, *, batch_norm: bool = True, guide: bool = True) -> dict[str, tuple]:
    """The published listing of keys."""
    shapes = {"Linear.weight": (32 * (size // 16) ** 2, 115), "Linear.bias": (32 * (size // 16) ** 2,)}
    for k in range(4):
        shapes |= {f"colorFC.{k}.weight": (64, 64 if k else 115), f"colorFC.{k}.bias": (64,)}
    for k, (inputs, outputs) in enumerate([(1, 16), (16, 32), (32, 64), (64, 128), (128, 256)], 1):
        shapes |= {f"conv{k}.0.weight": (outputs, inputs, 3, 3), f"conv{k}.0.bias": (outputs,)}
        shapes |= {f"conv{k}.2.weight": (outputs, outputs, 3, 3), f"conv{k}.2.bias": (outputs,)}
    decoder = ((12, 256, 576), (8, 128, 384), (5, 64, 192), (5, 32, 96))
    for stage, (blocks, width, inputs) in enumerate(decoder, 1):
        for b in range(blocks):
            name, given = f"deconv{stage}.secat_layer.{b}", 4 * width if b else inputs
            options = {"tags": 64, "projection": b == 0, "batch_norm": batch_norm}
            shapes |= bottleneck(name, given, width, **options)
    shapes |= {"deconv5.0.weight": (32, 48, 3, 3), "deconv5.0.bias": (32,)}
    shapes |= {"deconv5.2.weight": (3, 32, 3, 3), "deconv5.2.bias": (3,)}
    places = (0, 3, 6) if batch_norm else (0, 2, 4)
    for k, inputs in zip(places, (512, 256, 256), strict=True):
        shapes[f"featureConv.network.{k}.weight"] = (256, inputs, 3, 3)
    if batch_norm:
        shapes |= norm("featureConv.network.1", 256) | norm("featureConv.network.4", 256)
    for k, inputs in ((0, 32), (2, 64), (4, 64)):
        shapes |= {f"colorConv.{k}.weight": (64, inputs, 3, 3), f"colorConv.{k}.bias": (64,)}
    for k, (inputs, outputs) in enumerate([(256, 128), (128, 64), (64, 32), (32, 3)] if guide else []):
        name = f"deconv_for_decoder.{2 * k}"
        shapes |= {f"{name}.weight": (inputs, outputs, 3, 3), f"{name}.bias": (outputs,)}
    return shapes


def discriminator_shapes() -> dict[str, tuple]:
    shapes = {"conv1.0.weight": (32, 3, 3, 3), "conv1.0.bias": (32,)}
    shapes |= {"conv1.2.weight": (32, 32, 3, 3), "conv1.2.bias": (32,)}
    for k, (inputs, outputs) in enumerate([(32, 64), (64, 128), (128, 256), (256, 512)], 2):
        for r in (0, 1):
            given = outputs if r else inputs
            shapes |= bottleneck(f"conv{k}.0.{r}", given, outputs // 4, projection=r == 0)
        shapes |= {f"conv{k}.1.weight": (outputs, outputs, 3, 3), f"conv{k}.1.bias": (outputs,)}
    for k in (6, 7, 8):
        shapes |= bottleneck(f"conv{k}.0.0", 512, 128, projection=False)
    for head, outputs in (("adv", 1), ("cit", 370), ("cvt", 115)):
        shapes |= {f"{head}_judge.0.weight": (outputs, 512), f"{head}_judge.0.bias": (outputs,)}
    return shapes


def extractor_shapes() -> dict[str, tuple]:
    shapes = {"conv1.weight": (64, 1, 7, 7), "fc.weight": (370, 2048), "fc.bias": (370,)} | norm("bn1", 64)
    inputs = 64
    for stage, (planes, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
        for r in range(blocks):
            name, width, outputs = f"layer{stage}.{r}", 2 * planes, 4 * planes
            shapes |= {
                f"{name}.conv1.weight": (width, inputs, 1, 1),
                f"{name}.conv2.weight": (width, width // 32, 3, 3),
                f"{name}.conv3.weight": (outputs, width, 1, 1),
                f"{name}.selayer.conv1.weight": (outputs // 16, outputs, 1, 1),
                f"{name}.selayer.conv1.bias": (outputs // 16,),
                f"{name}.selayer.conv2.weight": (outputs, outputs // 16, 1, 1),
                f"{name}.selayer.conv2.bias": (outputs,),
            }
            shapes |= norm(f"{name}.bn1", width) | norm(f"{name}.bn2", width) | norm(f"{name}.bn3", outputs)
            if r == 0:
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes


def weights(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """Distinct numbers in every tensor, so that a swap of two is seen."""
    draw = torch.Generator().manual_seed(0)
    return {
        f"module.{key}": torch.tensor(7)
        if key.endswith("num_batches_tracked")
        else torch.rand(shape, generator=draw) / max(1, *shape, 64)
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("shapes", "entries", "read", "wrapper"),
    [
        (generator_shapes(), 685, Generator.from_authors, "G"),
        (generator_shapes(512, batch_norm=False), 205, Generator.from_authors, "G"),
        (generator_shapes(guide=False), 677, Generator.from_authors, "G"),
        (discriminator_shapes(), 262, Discriminator.from_authors, "D"),
        (extractor_shapes(), 384, LineArtClassifier.from_authors, "weight"),
    ],
    ids=["256", "512", "256 without guide", "discriminator", "extractor"],
)
def test_published_keys_and_shapes_are_read(shapes, entries, read, wrapper, tmp_path):
    state = weights(shapes)
    assert len(state) == entries
    file = tmp_path / "tag2pix.pkl"
    torch.save({wrapper: state, "finish_epoch": 60, "result_path": "results"}, file)
    network = read(file)
    assert not network.training
    own = network.state_dict()
    assert len(own) == entries
    # every tensor is there once, whatever its name, and parts of equal shapes keep their order
    key = lambda tensor: (tensor.numel(), round(tensor.double().sum().item(), 9))  # noqa: E731
    assert sorted(map(key, own.values())) == sorted(map(key, state.values()))
    first = next(iter(state))
    for name in {"Linear.weight", "conv5.2.weight", "conv2.0.1.conv3.weight", "layer3.5.conv2.weight"}:
        expected = state.get(f"module.{name}")
        if expected is not None:
            assert any(torch.equal(expected, value) for value in own.values())
    broken = {k: v for k, v in state.items() if k != first}
    with pytest.raises(ValueError, match="missing"):
        read(broken)


def test_sizes_and_switches_are_read_from_the_weights():
    network = Generator.from_authors(weights(generator_shapes(512, batch_norm=False)))
    assert network.image_size == 512 and network.guide is not None
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    network = Generator.from_authors(weights(generator_shapes(64, guide=False)))
    assert network.image_size == 64 and network.guide is None
    picture, guide = network(torch.rand(1, 1, 64, 64), torch.rand(1, 512, 8, 8), torch.zeros(1, 115))
    assert picture is guide and picture.isfinite().all()


def test_places_of_single_tensors():
    state = weights(generator_shapes(64))
    network = Generator.from_authors(state)
    for theirs, ours in (
        ("Linear.weight", network.map_of_tags.weight),
        ("colorFC.3.bias", network.vector_of_tags[3].bias),
        ("colorConv.2.weight", network.map_convolutions[2].weight),
        ("conv3.2.bias", network.encoder[2][2].bias),
        ("deconv1.secat_layer.11.selayer.fc.0.weight", network.decoder[0][11].gate.squeeze.weight),
        ("deconv1.secat_layer.11.selayer.fc.2.weight", network.decoder[0][11].gate.excite.weight),
        ("deconv3.secat_layer.0.downsample.1.running_var", network.decoder[2][0].downsample[1].running_var),
        ("deconv5.2.weight", network.output[2].weight),
        ("featureConv.network.4.bias", network.feature_convolutions[4].bias),
        ("deconv_for_decoder.6.weight", network.guide[6].weight),
    ):
        assert torch.equal(state[f"module.{theirs}"], ours), theirs
    state = weights(extractor_shapes())
    classifier = LineArtClassifier.from_authors(state)
    gate = classifier.layer2[3].gate
    assert torch.equal(state["module.layer2.3.selayer.conv2.weight"].flatten(1), gate.excite.weight)
    assert torch.equal(state["module.layer2.3.selayer.conv1.bias"], gate.squeeze.bias)
    state = weights(discriminator_shapes())
    network = Discriminator.from_authors(state)
    for theirs, ours in (
        ("conv2.0.1.conv3.weight", network.layers[1][1].conv3.weight),
        ("conv5.1.weight", network.layers[8][0].weight),
        ("conv8.0.0.bn2.bias", network.layers[11].bn2.bias),
        ("cvt_judge.0.bias", network.heads["colour_tags"].bias),
    ):
        assert torch.equal(state[f"module.{theirs}"], ours), theirs


def test_counters_that_old_files_lack_are_zero():
    state = {key: value for key, value in weights(extractor_shapes()).items() if "tracked" not in key}
    assert LineArtClassifier.from_authors({"weight": state}).bn1.num_batches_tracked == 0


def broken(state, change) -> dict[str, torch.Tensor]:
    state = dict(state)
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("module.conv1.0.bias"), r"missing encoder\.0\.0\.bias"),
        (lambda state: state.update(other=torch.ones(1)), "unexpected other"),
        (
            lambda state: state.update({"module.deconv5.0.bias": torch.ones(31)}),
            r"output\.0\.bias must be \(32,\), got \(31,\)",
        ),
        (
            lambda state: state.update({"module.Linear.bias": torch.full((512,), torch.nan)}),
            r"Linear\.bias holds 512 NaN or infinite values of 512",
        ),
        (
            lambda state: state.update({"module.Linear.weight": torch.ones(500, 115)}),
            "must be|divisible",
        ),
        (lambda state: state.clear(), "holds no state dict"),
    ],
    ids=["missing", "unexpected", "misshapen", "not finite", "odd size", "empty"],
)
def test_other_weights_are_refused_in_one_line(change, message):
    state = broken(weights(generator_shapes(64)), change)
    with pytest.raises(ValueError, match=message) as error:
        Generator.from_authors(state)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_networks_do_not_read_each_others_files(tmp_path):
    readers = {
        "generator": (Generator.from_authors, weights(generator_shapes(64))),
        "discriminator": (Discriminator.from_authors, weights(discriminator_shapes())),
        "extractor": (LineArtClassifier.from_authors, weights(extractor_shapes())),
    }
    for name, (read, _) in readers.items():
        for other, (_, state) in readers.items():
            if name != other:
                with pytest.raises(ValueError, match=re.compile("this is no Tag2Pix .*: missing ")):
                    read(state)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        Generator.from_authors(tmp_path / "tag2pix_256.pkl")
    (tmp_path / "tag2pix_256.pkl").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"tag2pix_256\.pkl is no checkpoint: damaged"):
        Generator.from_authors(tmp_path / "tag2pix_256.pkl")
