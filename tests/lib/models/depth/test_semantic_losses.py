"""The triplet loss against unfolded copies and published values, and its invariances; cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lib.models.depth.semantic_losses import (
    TripletTerms,
    nearest_labels,
    segmentation_loss,
    triplet_loss,
)

HALVES = torch.zeros(1, 32, 64, dtype=torch.long)
HALVES[..., 32:] = 1


def waves(level, channels=4):
    rows, columns = torch.arange(32 >> level).double()[:, None], torch.arange(64 >> level).double()
    return torch.stack([torch.sin(0.2 * (c + 1) * columns + 0.3 * rows) + 0.1 * c for c in range(channels)])[
        None
    ]


def unfolded(features, labels, *, window=5, margin=0.3, border="official", own=True):
    """The definition with a copy of the features for each place in the window."""
    radius, area = window // 2, window**2
    x = F.normalize(features, dim=1)
    batch, channels, height, width = x.shape
    near = F.unfold(F.pad(x, (radius,) * 4), window).view(batch, channels, area, height, width)
    tags = F.unfold(F.pad(labels[:, None].to(x.dtype), (radius,) * 4, value=-1), window)
    tags = tags.view(batch, area, height, width)
    distance = (2 - 2 * (near * x[:, :, None]).sum(1)).clamp_min(1e-9).sqrt()
    positive = tags == labels[:, None]
    if not own:
        positive[:, area // 2] = False
    negative = ~positive if border == "official" else ~positive & (tags >= 0)
    boundary = (positive.sum(1) >= window - 1) & (negative.sum(1) >= window - 1)
    means = [(distance * of).sum(1) / of.sum(1).clamp_min(1) for of in (positive, negative)]
    hinge = (means[0] - means[1] + margin).clamp_min(0)[boundary]
    return hinge.sum() / max(1, len(hinge))


def drawn(shape=(2, 5, 9, 12), classes=3):
    """Features, and labels in blobs, so that there are boundaries and insides."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=draw).double()
    coarse = torch.randint(classes, (shape[0], 1, 3, 4), generator=draw)
    return features, F.interpolate(coarse.double(), shape[2:])[:, 0].long()


@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("border", ["official", "masked"])
def test_the_loss_and_its_gradient_are_those_of_unfolded_copies(window, border):
    features, labels = drawn()
    features.requires_grad_()
    ours = TripletTerms(features, labels, window=window, border=border).loss()
    theirs = unfolded(features, labels, window=window, border=border)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    found, expected = (torch.autograd.grad(loss, features)[0] for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    if window == 5:  # what a reader might take for the definition is another number
        for broken in ({"own": False}, {"margin": 0.2}):
            other = unfolded(features, labels, border=border, **broken)
            assert abs(float(other - theirs)) > 1e-3


@pytest.mark.parametrize("border", ["official", "masked"])
def test_finite_differences(border):
    features, labels = drawn((1, 3, 5, 6), classes=2)
    loss = lambda x: TripletTerms(x, labels, border=border).loss()  # noqa: E731
    assert torch.autograd.gradcheck(loss, (features.requires_grad_(),))


@pytest.mark.parametrize("level, value", [(3, 3.876049468e-4), (2, 5.214774818e-3), (1, 3.715622946e-2)])
def test_published_values(level, value):
    assert float(triplet_loss({level: waves(level)}, HALVES)) == pytest.approx(value, rel=1e-9)


def test_published_sum():
    found = triplet_loss({level: waves(level) for level in (3, 2, 1)}, HALVES)
    assert float(found) == pytest.approx(0.04275860923, abs=1e-11)


@pytest.mark.parametrize("level, value", [(3, 0.0), (2, 16 * 0.3 / 96 / 4), (1, 0.0321428571)])
def test_constant_features(level, value):
    features = torch.ones(1, 4, 32 >> level, 64 >> level).double()
    assert float(triplet_loss({level: features}, HALVES)) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("level", [3, 2, 1])
def test_orthogonal_halves_cost_nothing(level):
    halves = nearest_labels(HALVES, (32 >> level, 64 >> level))
    assert float(triplet_loss({level: torch.stack([1.0 - halves, 1.0 * halves], 1)}, HALVES)) == 0


def test_the_border_of_one_label():
    """Published code takes the two outer rings of any picture for boundaries; masked, there is none."""
    features, labels = torch.ones(1, 3, 16, 32).double(), torch.zeros(1, 16, 32, dtype=torch.long)
    official = TripletTerms(features, labels)
    assert int(official.boundary.sum()) == 16 * 32 - 12 * 28 == 176
    assert float(official.loss()) == 0
    masked = TripletTerms(features.requires_grad_(), labels, border="masked")
    assert not masked.boundary.any()
    masked.loss().backward()
    assert float(masked.loss().detach()) == 0 and not features.grad.any()


def test_boundaries_lie_along_labels():
    found = TripletTerms(torch.ones(1, 2, 16, 16), nearest_labels(HALVES, (16, 16)), border="masked").boundary
    assert found[0].any(0).nonzero().flatten().tolist() == [6, 7, 8, 9]


def test_invariances():
    features, labels = drawn()
    loss = TripletTerms(features, labels).loss()
    scaled = features * (0.1 + torch.rand(2, 1, 9, 12, generator=torch.Generator().manual_seed(1)).double())
    for other in ((scaled, labels), (features, 7 - 2 * labels), (features.flip(-1), labels.flip(-1))):
        torch.testing.assert_close(TripletTerms(*other).loss(), loss)
    assert abs(float(TripletTerms(features.flip(-1), labels).loss() - loss)) > 1e-3


def test_zero_features_have_finite_gradients():
    features = torch.zeros(1, 4, 8, 8, requires_grad=True)
    triplet_loss({2: features}, HALVES).backward()
    assert features.grad.isfinite().all()


def test_labels_are_of_the_nearest_pixel():
    labels = torch.arange(8 * 12).view(1, 8, 12)
    for size in ((4, 6), (8, 12), (3, 5)):
        expected = F.interpolate(labels[:, None].double(), size, mode="nearest")[:, 0].long()
        assert torch.equal(nearest_labels(labels, size), expected)


def test_cross_entropy_is_over_all_pixels():
    logits, labels = torch.randn(2, 4, 3, 5), torch.randint(4, (2, 3, 5))
    expected = -logits.log_softmax(1).gather(1, labels[:, None]).mean()
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: segmentation_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 255)),
            "labels must be in 0..2",
        ),
        (lambda: segmentation_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 3)), "do not fit"),
        (lambda: TripletTerms(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 9)), "do not fit"),
        (lambda: TripletTerms(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8), window=4), "odd and at least 3"),
        (lambda: TripletTerms(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8), border="x"), "official, masked"),
        (lambda: triplet_loss({}, HALVES), "at least one level"),
    ],
)
def test_other_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
