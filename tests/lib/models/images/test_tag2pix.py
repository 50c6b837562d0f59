"""Tag2Pix: published sizes, what gates and norms compute, what the generator may and may not depend on."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lib.cost.operations import count_operations, count_parameters, totals
from lib.models.images.tag2pix import Generator, to_pixels
from lib.models.images.tag2pix_blocks import (
    BLOCKS,
    AdaptiveBottleneck,
    AdaptiveInstanceNorm,
    ChannelGate,
    GatedBottleneck,
)
from lib.models.images.tag2pix_discriminator import Discriminator
from lib.models.images.tag2pix_extractor import LineArtClassifier, SemanticExtractor

SMALL = {"image_size": 32, "colour_tags": 6, "features": 32, "width": 4, "blocks": (2, 1, 1, 1)}
SMALL |= {"tag_size": 8, "groups": 4}
SMALL_CLASSIFIER = {
    "num_tags": 5,
    "blocks": (1, 1, 1, 1),
    "groups": 2,
    "width_per_group": 32,
    "width": 1 / 16,
}


def on_meta(make, **options) -> nn.Module:
    with torch.device("meta"):
        return make(**options)


def small_inputs(batch_size: int = 2, **others) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "line": torch.rand(batch_size, 1, 32, 32, generator=draw),
        "features": torch.rand(batch_size, 32, 4, 4, generator=draw),
        "tags": (torch.rand(batch_size, 6, generator=draw) < 0.4).float(),
    } | others


# --- counts -------------------------------------------------------------------------------------------------

COLOUR_VECTOR = 115 * 64 + 3 * 64 * 64 + 4 * 64  # of the tags' vector, which senet and resnext never use


@pytest.mark.parametrize(
    ("options", "parameters", "entries"),
    [
        ({}, 15_809_398, 685),
        ({"batch_norm": False}, 15_749_622, 205),
        ({"image_size": 512, "batch_norm": False}, 18_600_438, 205),
        ({"image_size": 512}, 18_660_214, 685),
        ({"guide": False}, 15_421_235, 677),
        ({"block": "senet"}, 15_716_278, 677),
        ({"block": "resnext"}, 13_849_974 - COLOUR_VECTOR, 625 - 8),  # theirs holds the vector all the same
        ({"block": "catconv"}, 16_029_046, 685),
        ({"block": "catall"}, 17_365_238, 685),
        ({"block": "adain"}, 16_512_630, 331),
        ({"block": "seadain"}, 17_364_342, 355),
    ],
)
def test_generators_have_the_authors_parameters(options, parameters, entries):
    generator = on_meta(Generator, **options)
    assert count_parameters(generator) == parameters
    assert len(generator.state_dict()) == entries


def test_parts_of_the_generator_have_the_authors_parameters():
    generator = on_meta(Generator)
    parts = {
        "encoder": 1_178_480,
        "map_of_tags": 950_272,
        "vector_of_tags": 19_904,
        "map_convolutions": 92_352,
        "feature_convolutions": 2_360_320,
        "output": 14_723,
        "guide": 388_163,
    }
    assert {name: count_parameters(getattr(generator, name)) for name in parts} == parts
    assert [count_parameters(stage) for stage in generator.decoder] == [8_869_888, 1_594_368, 270_848, 70_080]
    gates = [module for module in generator.modules() if isinstance(module, ChannelGate)]
    assert sum(map(count_parameters, gates)) == 1_959_424


@pytest.mark.parametrize("inputs, width", [(576, 256), (1024, 256), (384, 128), (64, 16)])
def test_a_block_has_the_parameters_of_the_formula(inputs, width):
    block = on_meta(GatedBottleneck, inputs=inputs, channels=width, tag_size=64, gate_tags=True, groups=16)
    gate = (4 * width // 16) * (8 * width + 64)
    norms = 2 * 6 * width
    projection = 4 * width * inputs + 8 * width if inputs != 4 * width else 0
    convolutions = inputs * width + 9 * width**2 // 16 + 4 * width**2
    assert count_parameters(block) == convolutions + gate + norms + projection


def test_other_networks_have_the_authors_parameters():
    discriminator, classifier = on_meta(Discriminator), on_meta(LineArtClassifier)
    extractor = classifier.extractor()
    for network, parameters, entries in (
        (discriminator, 4_515_558, 262),
        (classifier, 26_262_754, 384),
        (extractor, 1_564_784, 172),
    ):
        assert count_parameters(network) == parameters
        assert len(network.state_dict()) == entries


@pytest.mark.parametrize(("size", "giga"), [(256, (8.61, 2.30, 1.22)), (512, (34.4, 9.19, 4.90))])
def test_operations_are_the_authors(size, giga):
    """The places of the strides follow from these: a stride in the 1×1 convolution would give fewer."""
    generator = on_meta(Generator, image_size=size, batch_norm=size == 256)
    extractor = on_meta(LineArtClassifier).extractor()
    line, tags = torch.rand(1, 1, size, size, device="meta"), torch.rand(1, 115, device="meta")
    features = torch.rand(1, 512, size // 8, size // 8, device="meta")
    picture = torch.rand(1, 3, size, size, device="meta")
    with torch.no_grad():
        tables = (
            count_operations(generator, inputs=(line, features, tags)),
            count_operations(extractor, inputs=line),
            count_operations(on_meta(Discriminator), inputs=picture),
        )
    for table, expected in zip(tables, giga, strict=True):
        assert totals(table)["macs"] / 1e9 == pytest.approx(
            expected, abs=0.0501 if expected > 9.5 else 0.00501
        )


def test_shapes_at_256_pixels():
    with torch.device("meta"):
        extractor, generator, discriminator = LineArtClassifier().extractor(), Generator(), Discriminator()
        line = torch.rand(1, 1, 256, 256)
        features = extractor(line)
        assert features.shape == (1, 512, 32, 32)
        assert generator.feature_convolutions(features).shape == (1, 256, 16, 16)
        x, sides = torch.rand(1, 3, 256, 256), []
        for layer in discriminator.layers:
            x = layer(x)
            sides.append(x.shape[-1])
    assert list(dict.fromkeys(sides)) == [127, 64, 32, 16, 8]
    assert [sides[k] for k in (0, 2, 4, 6, 8, 9, 10, 11)] == [127, 64, 32, 16, 8, 8, 8, 8]


# --- gates, norms, shuffling --------------------------------------------------------------------------------


def test_the_gate_is_squeeze_and_excitation_with_a_bias_that_depends_on_the_tags():
    torch.manual_seed(0)
    gate = ChannelGate(32, 8).double()
    images, tags = torch.randn(3, 32, 5, 4).double(), torch.randn(3, 8).double()
    by_means, by_tags = gate.squeeze.weight.split([32, 8], dim=1)
    hidden = F.relu(images.mean((2, 3)) @ by_means.T + tags @ by_tags.T)
    expected = torch.sigmoid(hidden @ gate.excite.weight.T)
    assert_close(gate(images, tags)[:, :, 0, 0], expected)
    assert not torch.allclose(gate(images, torch.zeros_like(tags))[:, :, 0, 0], expected)  # a deaf twin


def test_a_gate_without_a_squeeze_halves():
    gate = ChannelGate(32, 8)
    nn.init.zeros_(gate.squeeze.weight)
    images = torch.randn(2, 32, 3, 3)
    assert torch.equal(images * gate(images, torch.randn(2, 8)), images / 2)


def test_without_tags_the_gate_is_squeeze_and_excitation():
    seen = ChannelGate(32, 8)
    blind = ChannelGate(32)
    with torch.no_grad():
        blind.squeeze.weight.copy_(seen.squeeze.weight[:, :32])
        blind.excite.weight.copy_(seen.excite.weight)
    images = torch.randn(2, 32, 3, 3)
    assert_close(seen(images, torch.zeros(2, 8)), blind(images))
    assert not torch.allclose(seen(images, torch.ones(2, 8)), blind(images))


def test_the_tags_vector_is_affine():
    torch.manual_seed(0)
    for activation in (False, True):
        vector = Generator(**SMALL, tag_activation=activation).vector_of_tags.double()
        for layer in vector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.bias)
        tags = torch.randn(4, 6).double()
        zero = vector(torch.zeros(1, 6).double())
        matrix = vector(torch.eye(6).double()) - zero
        affine = torch.allclose(vector(tags), tags @ matrix + zero)
        assert affine is not activation


def test_adaptive_norm_is_scale_and_shift_of_instance_norm():
    torch.manual_seed(0)
    norm = AdaptiveInstanceNorm(4, 8)
    images, tags = torch.randn(2, 4, 5, 5), torch.randn(2, 8)
    scale, shift = (tags @ norm.weight.T * (2 / 8) ** 0.5 + norm.bias).chunk(2, dim=1)
    expected = scale[:, :, None, None] * F.instance_norm(images) + shift[:, :, None, None]
    assert_close(norm(images, tags), expected)
    assert_close(norm(images, torch.zeros(2, 8)), F.instance_norm(images))  # γ = 1, β = 0
    authors = AdaptiveInstanceNorm(4, 8, initial_scale=0.0)
    assert not authors(images, torch.zeros(2, 8)).any()  # as theirs begins


def test_pixel_shuffle_puts_four_channels_into_one():
    x = torch.randn(2, 12, 3, 5)
    shuffled = x.view(2, 3, 2, 2, 3, 5).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 6, 10)
    assert torch.equal(F.pixel_shuffle(x, 2), shuffled)
    assert not torch.equal(F.pixel_shuffle(x, 2), shuffled.mT.reshape(2, 3, 6, 10))


@pytest.mark.parametrize("block", BLOCKS)
def test_tags_reach_the_picture_by_the_blocks_that_see_them(block):
    """Without the map of tags at the bottom the blocks are the only way."""
    torch.manual_seed(0)
    generator = Generator(**SMALL, block=block, tag_map=False).eval()
    given = small_inputs()
    with torch.no_grad():
        one, other = (generator(**given | {"tags": tags})[0] for tags in (given["tags"], 1 - given["tags"]))
    assert torch.equal(one, other) is (block in ("senet", "resnext"))
    assert one.shape == (2, 3, 32, 32)


def test_adain_has_no_shortcut_and_seadain_has_one():
    torch.manual_seed(0)
    for residual in (False, True):
        block = AdaptiveBottleneck(16, 4, tag_size=3, groups=2, residual=residual, initial_scale=0.0)
        x = torch.rand(1, 16, 4, 4)
        expected = x if residual else torch.zeros_like(x)
        assert torch.equal(block(x, torch.zeros(1, 3)), expected)


@pytest.mark.parametrize(
    ("options", "reaches"),
    [({}, {"line", "features", "tags"}), ({"features": 0}, {"line", "tags"}), ({"block": "senet"}, None)],
)
def test_gradients_reach_every_parameter_and_input(options, reaches):
    generator = Generator(**SMALL | options)
    given = small_inputs(**({"features": None} if options.get("features") == 0 else {}))
    given = {name: None if value is None else value.requires_grad_() for name, value in given.items()}
    picture, guide = generator(**given)
    (picture.square().sum() + guide.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    for name in reaches or {"line", "features", "tags"}:
        assert given[name].grad.abs().sum() > 0


def test_pictures_are_within_bounds_and_the_guide_is_another():
    generator = Generator(**SMALL)
    picture, guide = generator(**small_inputs())
    assert picture.shape == guide.shape == (2, 3, 32, 32)
    assert picture.abs().max() <= 1 and guide.abs().max() <= 1
    assert not torch.equal(picture, guide)
    picture, guide = Generator(**SMALL, guide=False)(**small_inputs())
    assert guide is picture


def test_three_stages_and_other_reductions():
    options = SMALL | {"blocks": (1, 1, 1)}
    picture, guide = Generator(**options)(**small_inputs())
    assert picture.shape == guide.shape == (2, 3, 32, 32)


def test_without_batch_norm_pictures_do_not_depend_on_their_neighbours():
    torch.manual_seed(0)
    for batch_norm in (False, True):
        generator = Generator(**SMALL, batch_norm=batch_norm).train()
        given = small_inputs(3)
        with torch.no_grad():
            together = generator(**given)[0][:2]
            apart = generator(**{name: value[:2] for name, value in given.items()})[0]
        assert torch.allclose(together, apart, atol=1e-5) is not batch_norm


def test_first_weights_are_the_authors():
    torch.manual_seed(0)
    generator = Generator(image_size=64)
    convolution = generator.encoder[4][2]
    assert convolution.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert generator.map_of_tags.weight.std().item() == pytest.approx((2 / 115) ** 0.5, rel=0.02)
    assert not any(p.any() for name, p in generator.named_parameters() if name.endswith(".bias"))
    assert generator.guide[0].weight.abs().max() <= (128 * 9) ** -0.5  # torch's own, uniform


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "se"}, "block must be one of secat, senet, .*, got 'se'"),
        ({"image_size": 40}, "image_size must be divisible by 16, got 40"),
        ({"width": 0}, "must be positive"),
        ({"blocks": ()}, "must be positive"),
        ({"groups": 3}, "groups must divide twice the width, 8, got 3"),
        ({"feature_reduction": 3}, "features must be .* a divisor of 16, got 32 at 3"),
        ({"block": "catall", "tag_size": 6}, "6 tags do not divide into 4 groups"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Generator(**SMALL | options)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"line": torch.rand(2, 3, 32, 32)}, r"line art must be \(2, 1, 32, 32\), got \(2, 3, 32, 32\)"),
        ({"line": torch.rand(2, 1, 64, 64)}, r"line art must be \(2, 1, 32, 32\), got \(2, 1, 64, 64\)"),
        ({"line": torch.rand(32, 32)}, r"line art must be \(32, 1, 32, 32\), got \(32, 32\)"),
        ({"tags": torch.rand(2, 7)}, r"tags must be \(2, 6\), got \(2, 7\)"),
        ({"tags": torch.rand(6)}, r"tags must be \(2, 6\), got \(6,\)"),
        ({"features": torch.rand(2, 32, 8, 8)}, r"features must be \(2, 32, 4, 4\), got \(2, 32, 8, 8\)"),
        ({"features": None}, "features must be .* got none"),
    ],
)
def test_other_inputs_are_refused(others, message):
    with pytest.raises(ValueError, match=message):
        Generator(**SMALL)(**small_inputs(**others))
    with pytest.raises(ValueError, match="without features of an extractor"):
        Generator(**SMALL | {"features": 0})(**small_inputs())


def test_bytes_are_truncated():
    pictures = torch.tensor([-1.0, -0.999, 0.0, 0.999, 1.0])
    assert to_pixels(pictures).tolist() == [0, 0, 127, 254, 255]
    assert to_pixels(pictures).tolist() != ((pictures + 1) * 127.5).round().to(torch.uint8).tolist()


# --- discriminator ------------------------------------------------------------------------------------------

SMALL_DISCRIMINATOR = {"colour_tags": 6, "invariant_tags": 5, "width": 16, "stages": 2, "groups": 4}


def test_judgements_are_probabilities_of_the_logits():
    discriminator = Discriminator(**SMALL_DISCRIMINATOR).eval()
    pictures = torch.randn(2, 3, 32, 32)
    judgement, logits = discriminator(pictures), discriminator.logits(pictures)
    assert [tuple(part.shape) for part in judgement] == [(2, 1), (2, 5), (2, 6)]
    for probability, logit in zip(judgement, logits, strict=True):
        assert_close(probability, logit.sigmoid())


def test_the_discriminator_refuses_other_sizes():
    discriminator = Discriminator(**SMALL_DISCRIMINATOR)
    for shape in ((2, 1, 32, 32), (2, 4, 32, 32), (3, 32, 32), (2, 3, 2, 2)):
        with pytest.raises(ValueError, match=r"pictures must be \(B, 3, H, W\)"):
            discriminator(torch.rand(shape))
    for options in ({"width": 12}, {"groups": 16}, {"stages": 0}, {"colour_tags": 0}):
        with pytest.raises(ValueError, match="sizes must be positive"):
            Discriminator(**SMALL_DISCRIMINATOR | options)


# --- extractor ----------------------------------------------------------------------------------------------


def test_the_extractor_is_the_first_half_of_the_classifier():
    torch.manual_seed(0)
    classifier = LineArtClassifier(**SMALL_CLASSIFIER).eval()
    line = torch.rand(2, 1, 32, 32)
    seen = {}
    classifier.layer2.register_forward_hook(lambda module, given, output: seen.update(layer2=output))
    classifier(line)
    extractor = classifier.extractor()
    assert_close(extractor(line), seen["layer2"])
    assert extractor(line).shape == (2, extractor.channels, 4, 4)
    assert not extractor(line).requires_grad and not any(p.requires_grad for p in extractor.parameters())
    assert all(p.requires_grad for p in classifier.parameters())


def test_batch_statistics_make_features_depend_on_the_other_pictures():
    torch.manual_seed(0)
    classifier = LineArtClassifier(**SMALL_CLASSIFIER)
    line = torch.rand(3, 1, 32, 32)
    around = nn.ModuleList([classifier.extractor(), classifier.extractor("batch")])
    for extractor in around:
        mode = extractor.mode
        before = extractor.layers[1].running_mean.clone()
        for training in (True, False):
            around.train(training)
            assert torch.allclose(extractor(line)[:1], extractor(line[:1]), atol=1e-5) is (mode == "eval")
        assert torch.equal(extractor.layers[1].running_mean, before) is (mode == "eval")
    assert not torch.allclose(around[0](line[:1]), around[1](line[:1]))


def test_a_small_classifier_learns_from_line_art():
    torch.manual_seed(0)
    classifier = LineArtClassifier(**SMALL_CLASSIFIER | {"num_tags": 2})
    tags = (torch.rand(32, 2) < 0.5).float()
    line = torch.ones(32, 1, 32, 32)
    line[:, 0, 4:8, 4:28] -= tags[:, 0, None, None]
    line[:, 0, 20:24, 4:28] -= tags[:, 1, None, None]
    batch = {"lines": line, "invariant": tags}
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    first = classifier.loss(batch).item()
    for _ in range(30):
        optimizer.zero_grad()
        classifier.loss(batch).backward()
        optimizer.step()
    assert classifier.loss(batch).item() < 0.2 * first


def test_the_extractor_refuses_other_inputs():
    classifier = LineArtClassifier(**SMALL_CLASSIFIER)
    for shape in ((2, 3, 32, 32), (1, 32, 32), (2, 1, 30, 32)):
        with pytest.raises(ValueError, match=r"line art must be \(B, 1, H, W\) with sides that 8 divides"):
            classifier.extractor()(torch.rand(shape))
    with pytest.raises(ValueError, match="mode must be eval or batch, got 'train'"):
        SemanticExtractor(classifier, "train")
    with pytest.raises(ValueError, match="first two stages, got 1"):
        LineArtClassifier(**SMALL_CLASSIFIER | {"blocks": (1,)})


def test_a_gate_of_few_channels_is_refused():
    with pytest.raises(ValueError, match="a gate reduces its channels by 16, got 8"):
        partial(GatedBottleneck, groups=1)(8, 2)
