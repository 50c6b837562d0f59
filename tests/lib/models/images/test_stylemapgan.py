"""StyleMapGAN's networks: published sizes, what each layer sees, and the authors' files."""

from __future__ import annotations

import pickle
import re
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lib.models.images.stylemapgan import Discriminator, Encoder, Generator, StyleMapGAN, group_deviation
from lib.models.images.stylemapgan_checkpoints import authors_tensors, to_authors

SMALL = {"resolution": 32, "map_size": 4, "style_channels": 6, "width": 8}


def small(**options) -> StyleMapGAN:
    """With biases that are not zero, which would hide what is wrong with them."""
    torch.manual_seed(0)
    model = StyleMapGAN(**SMALL | {"latent_size": 5} | options)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- sizes ---


@pytest.mark.parametrize(
    "resolution, map_size, small, counts",
    [
        (256, 4, False, (98_660_675, 95_680, 23_746_304, 22_599_360, 28_864_129)),
        (256, 8, False, (79_744_323, 295_360, 19_026_688, 17_617_600, 28_864_129)),
        (256, 16, False, (61_500_739, 1_094_080, 14_307_072, 12_635_840, 28_864_129)),
        (256, 32, False, (45_948_227, 4_288_960, 9_587_456, 7_654_080, 28_864_129)),
        (128, 8, False, (78_236_355, 295_360, 18_584_064, 17_142_592, 28_389_121)),
        (1024, 8, False, (80_215_843, 295_360, 19_165_120, 17_765_984, 29_012_513)),
        (1024, 16, True, (21_243_619, 1_094_080, 516_992, 12_784_224, 29_012_513)),
        (1024, 32, True, (18_594_403, 4_288_960, 443_136, 7_802_464, 29_012_513)),
    ],
)
def test_parameters_are_as_many_as_published(resolution, map_size, small, counts):
    with torch.device("meta"):
        model = StyleMapGAN(resolution=resolution, map_size=map_size, small_resizer=small)
    generator = model.generator
    parts = (generator, generator.mapping, generator.resizer, model.encoder, model.discriminator)
    assert tuple(map(parameters, parts)) == counts
    styled = [m for name, m in generator.named_modules() if name.endswith((".gamma", ".beta"))]
    if (resolution, map_size) == (256, 8):
        assert sum(map(parameters, styled)) == 40_707_584
        assert sum(parameters(block.skip) for block in generator.blocks) == 950_272
        assert [len(authors_tensors(network)) for network in model.children()] == [133, 39, 50]


def test_multiply_accumulates_are_the_published_ones_less_what_is_folded():
    """220.8, 46.8 and 47.0 G: β of the last, 1×1 convolution is convolved at 3 channels instead of 128."""
    with torch.device("meta"):
        model = StyleMapGAN()
        inputs = (torch.empty(1, 64, 8, 8), torch.empty(1, 3, 256, 256), torch.empty(1, 3, 256, 256))
        counted = []
        for network, tensor in zip(model.children(), inputs, strict=True):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(tensor)
            counted.append(counter.get_total_flops() / 2e9)
    folded = 9 * 128 * (128 - 3) * 256**2 / 1e9
    assert counted == pytest.approx([220.8 - folded, 46.8, 47.0], abs=0.25)


KEYS = {
    "mapping_z.1.weight": (64, 64),
    "mapping_z.8.weight": (4096, 64),
    "mapping_z.8.bias": (4096,),
    "decoder.input.input": (1, 512, 8, 8),
    "decoder.conv1.conv.weight": (1, 512, 512, 3, 3),
    "decoder.conv1.conv.gamma.weight": (512, 512, 3, 3),
    "decoder.conv1.activate.bias": (512,),
    "decoder.convs.0.conv1.conv.blur.kernel": (4, 4),
    "decoder.convs.4.conv1.conv.weight": (1, 128, 256, 3, 3),
    "decoder.convs.4.conv1.conv.beta.bias": (256,),
    "decoder.convs.4.conv2.conv.gamma.weight": (128, 128, 3, 3),
    "decoder.convs.4.conv2.activate.bias": (128,),
    "decoder.convs.4.skip.0.weight": (128, 256, 1, 1),
    "decoder.convs.4.skip.1.kernel": (4, 4),
    "decoder.convs_latent.0.0.weight": (512, 64, 3, 3),
    "decoder.convs_latent.1.1.bias": (512,),
    "decoder.convs_latent.6.1.kernel": (4, 4),
    "decoder.convs_latent.8.0.weight": (256, 512, 3, 3),
    "decoder.convs_latent.10.2.bias": (128,),
    "decoder.convs_latent.11.0.weight": (128, 128, 3, 3),
    "decoder.to_rgb.conv.weight": (1, 3, 128, 1, 1),
    "decoder.to_rgb.conv.gamma.weight": (128, 128, 3, 3),
    "decoder.to_rgb.activate.bias": (3,),
}


def test_keys_and_shapes_of_the_authors():
    with torch.device("meta"):
        model = StyleMapGAN()
    shapes = {key: tuple(value.shape) for key, value in authors_tensors(model.generator).items()}
    assert KEYS.items() <= shapes.items()
    encoder = {key: tuple(value.shape) for key, value in authors_tensors(model.encoder).items()}
    assert {
        "from_rgb.0.weight": (128, 3, 1, 1), "from_rgb.1.bias": (128,),
        "convs.0.conv1.0.weight": (128, 128, 3, 3), "convs.0.conv1.1.bias": (128,),
        "convs.0.conv2.0.kernel": (4, 4), "convs.0.conv2.1.weight": (256, 128, 3, 3),
        "convs.0.conv2.2.bias": (256,), "convs.4.skip.0.kernel": (4, 4),
        "convs.4.skip.1.weight": (512, 512, 1, 1), "final_conv.0.weight": (64, 512, 3, 3),
        "final_conv.1.bias": (64,),
    }.items() <= encoder.items()  # fmt: skip
    discriminator = {key: tuple(value.shape) for key, value in authors_tensors(model.discriminator).items()}
    assert {
        "convs.0.0.weight": (128, 3, 1, 1), "convs.1.conv2.1.weight": (256, 128, 3, 3),
        "convs.6.skip.1.weight": (512, 512, 1, 1), "final_conv.0.weight": (512, 513, 3, 3),
        "final_linear.0.weight": (512, 8192), "final_linear.0.bias": (512,),
        "final_linear.1.weight": (1, 512), "final_linear.1.bias": (1,),
    }.items() <= discriminator.items()  # fmt: skip


def test_style_codes_have_the_published_shapes():
    with torch.device("meta"):
        codes = Generator().codes(torch.empty(2, 64, 8, 8))
    sizes = [(code.shape[1], code.shape[2]) for code in codes]
    assert (
        sizes
        == [(512, 8)] * 2
        + [(512, 16)] * 2
        + [(512, 32)] * 2
        + [(512, 64)] * 2
        + [(256, 128)] * 2
        + [(128, 256)] * 2
    )


@pytest.mark.parametrize("map_size", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("small_resizer", [False, True])
def test_every_map_size_gives_images_maps_and_logits(map_size, small_resizer):
    model = small(map_size=map_size, small_resizer=small_resizer)
    generator = model.generator
    style_maps = generator.mapping(generator.draw(2))
    assert style_maps.shape == (2, *generator.map_shape) == (2, 6, map_size, map_size)
    images = generator(style_maps)
    assert images.shape == (2, 3, 32, 32) and model.encoder(images).shape == style_maps.shape
    assert model(images).shape == images.shape and model.discriminator(images).shape == (2, 1)
    model(images).square().mean().backward()
    trained = (*generator.resizer.parameters(), *generator.blocks.parameters(), *model.encoder.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)


@pytest.mark.parametrize("wrong, message", [
    ({"resolution": 48}, "resolution must be a power of two of at least 8, got 48"),
    ({"resolution": 4}, "resolution must be a power of two of at least 8, got 4"),
    ({"map_size": 3}, "map_size must be a power of two of at least 1, got 3"),
    ({"map_size": 0}, "map_size must be a power of two of at least 1, got 0"),
    ({"map_size": 64}, "map_size must be at most the resolution of 32, got 64"),
    ({"width": 0}, "width and channel_multiplier must be at least 1, got 0 and 2"),
    ({"resolution": 1024, "width": 8}, "a width of 8 leaves no channels at 1024 pixels"),
    ({"style_channels": 0}, "style_channels, latent_size and mapping_layers must be at least 1"),
    ({"normalise": "batch"}, "normalise must be 'layer' or 'instance', got 'batch'"),
])  # fmt: skip
def test_sizes_that_no_network_has_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StyleMapGAN(**SMALL | wrong)


def test_inputs_of_other_shapes_and_types_are_refused():
    model = small()
    images = torch.zeros(2, 3, 32, 32)
    for network in (model.encoder, model.discriminator):
        for wrong in (images[:, :1], images[..., :16], images[0], images[:0]):
            with pytest.raises(
                ValueError, match=r"images must be \(N, 3, 32, 32\) with N at least 1, got \("
            ):
                network(wrong)
        with pytest.raises(ValueError, match=r"images must be floating-point numbers, got torch\.uint8"):
            network(images.byte())
    with pytest.raises(
        ValueError, match=r"style maps must be \(N, 6, 4, 4\) with N at least 1, got \(2, 6, 16\)"
    ):
        model.generator(torch.zeros(2, 6, 16))
    with pytest.raises(ValueError, match=r"latents must be \(N, 5\)"):
        model.generator.mapping(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="there must be 8 style codes, got 7"):
        model.generator.synthesise(model.generator.codes(torch.zeros(1, 6, 4, 4))[:7])
    with pytest.raises(ValueError, match="a batch must be below 4 or a multiple of it, got 6"):
        model.discriminator(images.repeat(3, 1, 1, 1))


# --- what each part computes ---


def test_the_length_of_a_random_vector_does_not_matter():
    mapping = small().generator.mapping
    latents = torch.randn(3, 5)
    for factor in (0.5, 7.0, 1e4):
        torch.testing.assert_close(mapping(latents * factor), mapping(latents), rtol=0, atol=1e-5)


def test_style_maps_are_leaky_relu_outputs():
    model = small()
    for style_map in (model.generator.mapping(torch.randn(3, 5)), model.encoder(torch.randn(2, 3, 32, 32))):
        before = torch.where(style_map >= 0, style_map / 2**0.5, style_map / (0.2 * 2**0.5))
        torch.testing.assert_close(F.leaky_relu(before, 0.2) * 2**0.5, style_map)
    encoder = model.encoder
    linear = F.conv2d(
        encoder.features(images := torch.randn(2, 3, 32, 32)), *_unactivated(encoder.last), padding=1
    )
    style_map = encoder(images)
    recovered = torch.where(style_map >= 0, style_map / 2**0.5, style_map / (0.2 * 2**0.5))
    torch.testing.assert_close(recovered, linear, rtol=1e-4, atol=1e-5)


def _unactivated(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.weight / (layer.weight[0].numel()) ** 0.5, layer.bias


def test_nothing_is_drawn_while_generating():
    """No noise: the map is all that an image depends on."""
    generator = small().generator
    style_map = torch.randn(2, 6, 4, 4)
    assert torch.equal(generator(style_map), generator(style_map))
    assert not any("noise" in name for name, _ in generator.named_parameters())


def test_one_cell_changes_its_place_most_and_all_places_a_little():
    """Layer normalisation is over the whole image: it is why no edit is quite local."""
    generator = small(map_size=8).generator
    style_map = torch.randn(1, 6, 8, 8)
    other = style_map.clone()
    other[..., 0, 0] += 1
    with torch.no_grad():
        change = (generator(other) - generator(style_map)).abs().mean(dim=1)[0]
    near, far = change[:4, :4].mean(), change[-4:, -4:].mean()
    assert 0 < far < 0.3 * near


def test_a_vector_is_the_same_everywhere():
    generator = small(map_size=1).generator
    codes = generator.codes(torch.randn(2, 6, 1, 1))
    assert {tuple(code.shape[2:]) for code in codes} == {(1, 1)}
    spread = [
        code.expand(-1, -1, size, size)
        for code, size in zip(codes, [4, 4, 8, 8, 16, 16, 32, 32], strict=True)
    ]
    sizes = [spread[0], spread[1], *spread[2:]]
    torch.testing.assert_close(generator.synthesise(sizes), generator.synthesise(codes))


def test_deviation_within_groups_of_a_batch():
    features = torch.randn(8, 3, 4, 4)
    found = group_deviation(features)
    assert found.shape == (8, 1, 4, 4)
    for image in range(8):
        group = features[image % 2 :: 2]  # every second image: four of eight
        expected = (group.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(found[image], expected.expand(1, 4, 4))
    assert float(group_deviation(features[:1]).max()) == pytest.approx(1e-4)


def test_images_of_a_batch_do_not_change_each_other():
    model = small()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model.discriminator(images)[:1], model.discriminator(images[:1]), rtol=1e-4)


# --- the authors' files ---

ARGUMENTS = Namespace(
    size=32, lr_mul=0.01, normalize_mode="LayerNorm", dataset="celeba_hq", lambda_x_rec_loss=1
)


def published(model: StyleMapGAN, **others) -> dict:
    held = to_authors(model)
    training = {"generator": held["g_ema"], "encoder": held["e_ema"], "g_optim": {"state": {}}}
    return {**training, **held, "train_args": ARGUMENTS} | others


@pytest.mark.parametrize("options", [
    {}, {"map_size": 8, "resolution": 64}, {"small_resizer": True}, {"mapping_layers": 3},
    {"resolution": 128, "channel_multiplier": 1},
    {"width": 6, "small_resizer": True, "resolution": 64, "channel_multiplier": 1},
])  # fmt: skip
def test_an_authors_file_gives_the_same_networks(tmp_path, options):
    model = small(**options)
    path = tmp_path / "celeba_hq_256_8x8.pt"
    torch.save(published(model), path)
    loaded = StyleMapGAN.from_authors(path)
    assert not loaded.training
    latents, images = torch.randn(2, 5), torch.randn(2, 3, *[model.generator.resolution] * 2)
    torch.testing.assert_close(
        loaded.generator(loaded.generator.mapping(latents)), model.generator(model.generator.mapping(latents))
    )
    torch.testing.assert_close(loaded.encoder(images), model.encoder(images))
    torch.testing.assert_close(loaded.discriminator(images), model.discriminator(images))


def test_the_averages_alone_suffice_and_arguments_are_read(tmp_path):
    model = small(normalise="instance", mapping_rate=0.5)
    averages = {key: value for key, value in to_authors(model).items() if key != "discriminator"}
    arguments = Namespace(lr_mul=0.5, normalize_mode="InstanceNorm2d")
    loaded = StyleMapGAN.from_authors(averages | {"train_args": arguments})
    assert loaded.discriminator is None
    latents = torch.randn(2, 5)
    expected = model.generator(model.generator.mapping(latents))
    torch.testing.assert_close(loaded.generator(loaded.generator.mapping(latents)), expected)
    without = StyleMapGAN.from_authors(averages)
    assert without.generator.first.normalise == "layer"
    assert without.generator.mapping.layers[0].rate == 0.01
    assert sum(len(state) for state in to_authors(without).values()) == sum(map(len, averages.values()))


def test_average_or_last_weights_and_their_precision():
    model, other = small(), small()
    with torch.no_grad():
        other.generator.constant.add_(1)
    held = published(model, generator=to_authors(other)["g_ema"])
    assert torch.equal(StyleMapGAN.from_authors(held).generator.constant, model.generator.constant)
    last = StyleMapGAN.from_authors(held, average=False)
    assert torch.equal(last.generator.constant, other.generator.constant)
    doubles = {
        name: {key: v.double() for key, v in state.items()} for name, state in to_authors(model).items()
    }
    assert StyleMapGAN.from_authors(doubles).generator.constant.dtype == torch.float64


def test_files_of_old_torch_with_arguments(tmp_path):
    torch.save(published(small()), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert StyleMapGAN.from_authors(tmp_path / "old.pt").generator.resolution == 32


class Calls:
    def __reduce__(self):
        return print, ("this ran",)


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    path = tmp_path / "file.pt"
    torch.save(published(small(), train_args=Namespace(size=Calls())), path)
    with pytest.raises(ValueError, match=r"file\.pt is no checkpoint: it asks for "):
        StyleMapGAN.from_authors(path)
    assert not capsys.readouterr().out
    pickle.loads(pickle.dumps(Calls()))  # what an unrestricted reader does
    assert capsys.readouterr().out == "this ran\n"


WRONG = {
    "not a number": lambda w: torch.full_like(w, torch.nan),
    "integers": lambda w: w.long(),
    "another floating type": lambda w: w.double(),
    "no axes": lambda w: w.sum(),
    "no rows": lambda w: w[:0],
    "another length": lambda w: torch.cat([w, w]),
    "sparse": lambda w: w.to_sparse(),
    "nothing": lambda w: None,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_contents_are_refused_in_one_line_with_file_and_key(tmp_path, wrong):
    model, path = small(), tmp_path / "file.pt"
    for name, key in (
        ("g_ema", "mapping_z.1.weight"), ("g_ema", "decoder.input.input"),
        ("g_ema", "decoder.convs_latent.3.0.weight"), ("g_ema", "decoder.to_rgb.conv.beta.weight"),
        ("g_ema", "decoder.convs.1.conv2.conv.weight"), ("g_ema", "decoder.convs.0.skip.1.kernel"),
        ("e_ema", "final_conv.0.weight"), ("discriminator", "final_linear.1.bias"),
    ):  # fmt: skip
        held = published(model)
        held[name] = held[name] | {key: wrong(held[name][key])}
        torch.save(held, path)
        with pytest.raises(ValueError) as error:
            StyleMapGAN.from_authors(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 300 + len(str(path))
        assert key.rpartition(".")[0].rpartition(".")[0] in message


def test_tensors_that_tell_the_sizes_are_looked_at_first():
    for key, axes in (
        ("mapping_z.1.weight", 2), ("decoder.input.input", 4), ("decoder.convs_latent.0.0.weight", 4),
        ("decoder.to_rgb.conv.gamma.weight", 4),
    ):  # fmt: skip
        for wrong in (torch.ones(()), torch.ones(2), torch.ones((0,) * axes), torch.ones((1,) * (axes + 1))):
            held = published(small())
            held["g_ema"][key] = wrong
            with pytest.raises(ValueError, match=f"^{re.escape(key)} must have {axes} axes and no empty one"):
                StyleMapGAN.from_authors(held)
    held = published(small())
    held["g_ema"]["decoder.input.input"] = torch.ones(1).expand(1, 10**5, 4, 4)  # layers of 360 GB
    with pytest.raises(ValueError, match=r"decoder\.input\.input|decoder\.conv1"):  # before it is allocated
        StyleMapGAN.from_authors(held)


def test_other_files_are_refused_in_one_line(tmp_path):
    held = published(small())
    whose = "this is no StyleMapGAN checkpoint of the authors"
    for wrong, message in (
        ({}, f"{whose}: missing g_ema, e_ema"),
        (to_authors(small())["g_ema"], f"{whose}: missing g_ema, e_ema"),
        ({**held, "g_ema": {}}, "'g_ema' of the checkpoint holds no state dict"),
        ({**held, "g_ema": held["e_ema"]}, f"{whose}: missing mapping_z.1.weight, decoder.input.input"),
        (
            {**held, "e_ema": held["g_ema"]},
            "this is no e_ema of a StyleMapGAN checkpoint of the authors: missing",
        ),
        ({**held, "e_ema": held["discriminator"]}, "this is no e_ema of a StyleMapGAN"),
        (
            {**held, "train_args": Namespace(lr_mul=0)},
            "lr_mul in train_args must be a positive number, got 0",
        ),
        (
            {**held, "train_args": Namespace(normalize_mode="BatchNorm2d")},
            "normalize_mode in train_args must be",
        ),
    ):
        with pytest.raises(ValueError) as error:
            StyleMapGAN.from_authors(wrong)
        assert str(error.value).startswith(message), str(error.value)
    for content in ([1], torch.ones(2), None):
        torch.save(content, tmp_path / "file.pt")
        with pytest.raises(ValueError, match=r"file\.pt: the checkpoint holds no state dict$"):
            StyleMapGAN.from_authors(tmp_path / "file.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at "):
        StyleMapGAN.from_authors(tmp_path / "none.pt")


def test_another_blur_is_refused():
    held = published(small())
    held["g_ema"]["decoder.convs.0.skip.1.kernel"] /= 4
    with pytest.raises(
        ValueError, match=r"decoder\.convs\.0\.skip\.1\.kernel is not the blur \(1, 3, 3, 1\)$"
    ):
        StyleMapGAN.from_authors(held)


def test_networks_alone():
    generator = Generator(**SMALL)
    images = generator(torch.zeros(1, 6, 4, 4))
    assert Encoder(**SMALL)(images).shape == (1, 6, 4, 4)
    assert Discriminator(resolution=32, width=8)(images).shape == (1, 1)
