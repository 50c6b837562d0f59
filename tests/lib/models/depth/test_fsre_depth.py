"""FSRE-Depth's networks against published counts, its attention against the definition, and a training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.cost.operations import count_operations
from lib.models.depth import self_supervision
from lib.models.depth.cross_task_attention import CrossTaskAttention
from lib.models.depth.cross_task_decoder import CrossTaskDecoder, PyramidDecoder
from lib.models.depth.fsre_depth import FsreDepth
from lib.models.depth.photometric import PhotometricError
from lib.models.depth.pose_network import PoseNetwork
from lib.models.depth.resnet_pyramid import ResnetPyramid
from lib.models.depth.self_supervision import Objective

CLASSIFIER = 1000 * 512 + 1000  # which the authors' two encoders carry along
PLAIN = Objective(weighting="monodepth2", segmentation=0, triplet=0)


def weights(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


class Maps(nn.Module):
    """The decoder alone, as `count_operations` calls it."""

    def __init__(self, decoder, *, labels=True):
        super().__init__()
        self.decoder, self.labels = decoder, labels

    def forward(self, *maps):
        return self.decoder(maps, labels=self.labels).disparity[0]


@pytest.mark.parametrize(
    "depth, classifier, encoder, both, disparity, labels, total, macs",
    [
        (18, CLASSIFIER, 11_176_512, 14_072_567, 3_152_724, 3_153_315, 38_774_029, (4.441, 15.941, 3.572)),
        (50, 2_049_000, 23_508_032, 25_795_319, 9_014_100, 9_014_691, 64_364_301, (10.009, 21.886, 6.545)),
    ],
)
def test_published_weights_and_operations(depth, classifier, encoder, both, disparity, labels, total, macs):
    """Of 192×640 pixels: the encoder, both decoders with attention, depth alone without."""
    with torch.device("meta"):
        model = FsreDepth(depth=depth, merged=False)
        plain = CrossTaskDecoder(model.encoder.channels, attention_levels=())
    assert weights(model.encoder) == encoder
    assert weights(model.decoder) == both
    assert (weights(plain.depth), weights(plain.segmentation)) == (disparity, labels)
    assert weights(model.pose.encoder) == 11_698_920 - CLASSIFIER
    assert weights(model.pose.decoder) == 1_313_030
    assert weights(model) + classifier + CLASSIFIER == total

    maps = tuple(
        torch.zeros(1, channels, 192 >> level, 640 >> level, device="meta")
        for level, channels in enumerate(model.encoder.channels, 1)
    )
    counted = [
        count_operations(model.encoder, (1, 3, 192, 640)),
        count_operations(Maps(model.decoder), inputs=maps),
        count_operations(Maps(plain, labels=False), inputs=maps),
    ]
    assert [round(rows["macs"].sum() / 1e9, 3) for rows in counted] == list(macs)


def test_depth_alone_does_not_decode_all_labels():
    with torch.device("meta"):
        decoder = CrossTaskDecoder((64, 64, 128, 256, 512), merged=False)
    maps = tuple(
        torch.zeros(1, c, 192 >> k, 640 >> k, device="meta") for k, c in enumerate((64, 64, 128, 256, 512), 1)
    )
    operations = [
        count_operations(Maps(decoder, labels=labels), inputs=maps)["macs"].sum() for labels in (False, True)
    ]
    assert operations[0] / operations[1] == pytest.approx(14.189 / 15.941, abs=1e-4)


@pytest.mark.parametrize("channels", [64, 128, 256])
def test_an_attention_block_has_45_c_squared_weights_and_operations(channels):
    block = CrossTaskAttention(channels, merged=False)
    assert weights(block) == 45 * channels**2 + 28 * channels
    pair = torch.zeros(1, channels, 3, 5), torch.zeros(1, channels, 3, 5)
    assert count_operations(block, inputs=pair)["macs"].sum() == 45 * channels**2 * 15


def attention(*, embeddings=4, merged=True, channels=6) -> CrossTaskAttention:
    torch.manual_seed(0)
    block = CrossTaskAttention(channels, embeddings=embeddings, ratio=2, merged=merged).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.7)
    return block


def features(channels=6, count=2):
    return torch.randn(count, 2, channels, 4, 5, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("embeddings", [1, 4])
def test_merged_products_of_weights_change_nothing(embeddings):
    found = []
    for merged in (True, False):
        block = attention(embeddings=embeddings, merged=merged)
        own, other = features().requires_grad_().unbind(0)
        out = block(own, other)
        gradients = torch.autograd.grad(out.square().sum(), [own, other, *block.parameters()])
        found.append([out, *gradients])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9 * float(two.detach().abs().max()))


@pytest.mark.parametrize("merged", [True, False])
def test_equal_embeddings_share_and_their_order_is_no_matter(merged):
    block = attention(merged=merged).eval()
    own, other = features()
    before = block(own, other)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for layer in (block.query, block.key, block.value):
            for value in (layer.weight, layer.bias):
                value.copy_(value.unflatten(0, (4, -1))[order].flatten(0, 1))
    torch.testing.assert_close(block(own, other), before)
    with torch.no_grad():
        for layer in (block.query, block.key):
            for value in (layer.weight, layer.bias):
                value.copy_(value.unflatten(0, (4, -1))[:1].expand(4, *[-1] * value.ndim).flatten(0, 1))
    scores = (block.query(other) * block.key(own)).unflatten(1, (4, -1)).sum(2)
    torch.testing.assert_close(block._weights(scores), torch.full_like(scores, 0.25))


@pytest.mark.parametrize("merged", [True, False])
def test_the_other_task_is_read_through_the_norm_alone(merged):
    block = attention(merged=merged)
    own, other = features()
    assert float((block(own, other) - block(own, 2 * other)).detach().abs().max()) > 1e-3
    nn.init.zeros_(block.norm.weight), nn.init.zeros_(block.norm.bias)
    torch.testing.assert_close(block(own, other), block(own, 2 * other), rtol=0, atol=0)


def test_there_is_no_mixing_of_positions_in_the_attention():
    block = attention().eval()
    own, other = features()
    changed = other.clone()
    changed[:, :, 1, 2] += 1
    moved = (block._read_merged(own, changed) - block._read_merged(own, other)).abs().amax((0, 1)) > 1e-9
    assert moved.nonzero().tolist() == [[1, 2]]


def test_both_directions_read_the_unrefined_pair(monkeypatch):
    decoder = CrossTaskDecoder((4, 4, 4, 4, 4), channels=(2, 2, 2, 2, 2), classes=3).eval()
    read = []
    forward = CrossTaskAttention.forward

    def noted(block, own, other):
        read.append((own, other))
        return forward(block, own, other)

    monkeypatch.setattr(CrossTaskAttention, "forward", noted)
    out = decoder([torch.rand(1, 4, 32 >> k, 64 >> k) for k in range(5)])
    assert len(read) == 6
    for (depth, other), (labels, back) in zip(read[::2], read[1::2], strict=True):
        assert depth is back and labels is other
    assert {level: tuple(x.shape[2:]) for level, x in out.features.items()} == {
        k: (64 >> k, 128 >> k) for k in range(5)
    }
    assert {k: tuple(x.shape) for k, x in out.disparity.items()} == {
        k: (1, 1, 64 >> k, 128 >> k) for k in range(4)
    }
    assert out.logits.shape == (1, 3, 64, 128)


def test_the_pyramid_is_that_of_the_resnet():
    encoder = ResnetPyramid(width=1 / 8).eval()
    images = torch.rand(2, 3, 64, 96)
    maps = encoder(images)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (8, 32, 48), (8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3),
    ]  # fmt: skip
    whole = encoder.encoder((images - 0.45) / 0.225)  # of pooled features: there is no classifier
    torch.testing.assert_close(maps[-1].mean((2, 3)), whole)
    assert ResnetPyramid(depth=50, width=1 / 8).channels == (8, 32, 64, 128, 256)


def test_small_motions_at_first():
    torch.manual_seed(0)
    pose = PoseNetwork(width=1 / 8)
    assert pose.decoder.net[0].out_channels == 32
    with torch.no_grad():
        turn, shift = pose(*torch.rand(2, 3, 3, 64, 96))
    assert turn.shape == shift.shape == (3, 3)
    assert max(float(turn.abs().max()), float(shift.abs().max())) < 0.05


def batch(size=(64, 96), classes=3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows, columns = size
    return {
        "images": torch.rand(2, 3, 3, *size, generator=draw),
        "labels": torch.randint(classes, (2, *size), generator=draw),
        "intrinsics": torch.tensor([[30.0, 0, columns / 2], [0, 30, rows / 2], [0, 0, 1]]).expand(2, 3, 3),
    }


def small(objective=Objective(), **options) -> FsreDepth:  # noqa: B008
    torch.manual_seed(0)
    return FsreDepth(width=1 / 8, objective=objective, **{"classes": 3} | options)


def test_the_loss_is_the_sum_of_its_terms_and_reaches_every_weight():
    model = small()
    torch.manual_seed(1)
    terms = model.terms(batch())
    assert set(terms) == {"photometric", "smoothness", "segmentation", "triplet"}
    torch.manual_seed(1)
    loss = model.loss(batch())
    torch.testing.assert_close(loss, sum(terms.values()))
    loss.backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


@pytest.mark.parametrize("weighting, factor", [("fsre", 1.875), ("monodepth2", 1.0)])
def test_weights_of_scales(weighting, factor):
    """Of one disparity everywhere, the photometric error of every scale is the same."""
    model = small(Objective(weighting=weighting, segmentation=0, triplet=0, automask=False))
    for head in model.decoder.depth.heads.values():
        nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    one = small(Objective(segmentation=0, triplet=0, automask=False), scales=(0,))
    one.load_state_dict(model.state_dict(), strict=False)
    data = batch()
    with torch.no_grad():
        found, single = (one_of.terms(data)["photometric"] for one_of in (model, one))
    torch.testing.assert_close(found, factor * single)


def test_jittered_pictures_are_seen_and_others_compared(monkeypatch):
    model = small(PLAIN, attention_levels=(), classes=0).eval()
    data = batch()
    seen, targets = [], []
    model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    class Spied(PhotometricError):
        def __init__(self, target):
            targets.append(target)
            super().__init__(target)

    monkeypatch.setattr(self_supervision, "PhotometricError", Spied)
    model.terms(data | {"jittered": 1 - data["images"]})
    torch.testing.assert_close(seen[0], 1 - data["images"][:, 1])
    torch.testing.assert_close(targets[0], data["images"][:, 1])


@pytest.mark.parametrize("automask", [True, False])
def test_errors_of_unmoved_neighbours_are_computed_once_for_all_scales(monkeypatch, automask):
    model = small(replace(PLAIN, automask=automask), attention_levels=(), classes=0, scales=(0, 1, 2, 3))
    compared = []

    class Counted(PhotometricError):
        def __call__(self, image):
            compared.append(image)
            return super().__call__(image)

    monkeypatch.setattr(self_supervision, "PhotometricError", Counted)
    model.terms(batch())
    assert len(compared) == 2 * automask + 4 * 2


@pytest.mark.parametrize("missing", ["images", "intrinsics", "labels"])
def test_what_a_batch_lacks_is_named(missing):
    with pytest.raises(KeyError, match=missing):
        small().terms({name: value for name, value in batch().items() if name != missing})


def test_known_motions_are_taken_and_the_pose_network_rests():
    model = small(PLAIN, attention_levels=(), classes=0).eval()
    data = batch()
    told = torch.stack(model.motions(data["images"]), 1).detach()
    torch.manual_seed(0)
    learned = model.loss(data)
    torch.manual_seed(0)
    known = model.loss(data | {"motions": told})
    torch.testing.assert_close(known, learned)
    known.backward()
    assert all(weight.grad is None for weight in model.pose.parameters())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FsreDepth(width=1 / 8, classes=0), "nothing decodes labels"),
        (lambda: small(PLAIN, classes=0), "attention is between two tasks"),
        (lambda: small(attention_levels=(5,)), "attention is at levels 0 to 4"),
        (lambda: small(scales=(1, 2)), "finest scale, 0"),
        (lambda: small(depth=20), "depth must be one of 18"),
        (lambda: Objective(weighting="mine"), "weighting must be one of fsre, monodepth2"),
        (lambda: Objective(triplet=-1), "weights must be 0 or more"),
        (lambda: PyramidDecoder((1, 1, 1, 1)), "five maps and five levels"),
        (lambda: PyramidDecoder((1,) * 5, head_levels=(5,)), "heads are on levels 0 to 4"),
        (lambda: CrossTaskAttention(0), "must be at least 1, got 0"),
        (lambda: small()(torch.rand(1, 3, 60, 64)), "sides divisible by 32"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
