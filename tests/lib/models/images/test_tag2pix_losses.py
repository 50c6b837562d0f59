"""Tag2Pix's losses: closed forms, the switch between the two steps, and a training step that learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lib.models.images.tag2pix_discriminator import Judgement
from lib.models.images.tag2pix_losses import ChangingLoss, LossWeights, discriminator_losses, generator_losses

TAGS = (torch.eye(2, 6), torch.eye(2, 5))


def judgement(logit: float = 0.0) -> Judgement:
    return Judgement(*(torch.full((2, number), logit) for number in (1, 5, 6)))


@pytest.mark.parametrize("truth", [0.0, 0.3, 1.0])
def test_cross_entropy_at_one_half_is_the_logarithm_of_two(truth):
    half = torch.full((3, 4), 0.5)
    assert nn.BCELoss()(half, torch.full_like(half, truth)).item() == pytest.approx(math.log(2))


def test_an_undecided_discriminator_and_a_perfect_picture():
    picture = torch.rand(2, 3, 4, 4)
    losses = generator_losses(judgement(), picture, picture.clone(), picture, *TAGS, classify=False)
    assert sum(losses.values()).item() == pytest.approx(math.log(2))
    losses = generator_losses(judgement(), picture, picture.clone(), picture, *TAGS, classify=True)
    assert sum(losses.values()).item() == pytest.approx(81 * math.log(2))
    losses = discriminator_losses(judgement(), judgement(), *TAGS, classify=True)
    assert sum(losses.values()).item() == pytest.approx((2 + 4 * 40) * math.log(2))


def test_losses_are_binary_cross_entropies_of_probabilities():
    draw = torch.Generator().manual_seed(0)
    real, fake = (
        Judgement(*(torch.randn(2, number, generator=draw) for number in (1, 5, 6))) for _ in range(2)
    )
    bce = nn.BCELoss()
    weights = LossWeights(adversarial=3, invariant_tags=5, colour_tags=7)
    losses = discriminator_losses(real, fake, *TAGS, classify=True, weights=weights)
    ones, zeros = torch.ones(2, 1), torch.zeros(2, 1)
    expected = 3 * (bce(real.real.sigmoid(), ones) + bce(fake.real.sigmoid(), zeros))
    for one in (real, fake):
        expected = expected + 7 * bce(one.colour_tags.sigmoid(), TAGS[0])
        expected = expected + 5 * bce(one.invariant_tags.sigmoid(), TAGS[1])
    torch.testing.assert_close(sum(losses.values()), expected)
    drawn, guide, target = torch.rand(3, 2, 3, 4, 4, generator=draw)
    losses = generator_losses(fake, drawn, guide, target, *TAGS, classify=True, weights=weights)
    expected = bce(fake.real.sigmoid(), ones)  # the adversarial weight is the discriminator's alone
    expected = expected + 7 * bce(fake.colour_tags.sigmoid(), TAGS[0])
    expected = expected + 5 * bce(fake.invariant_tags.sigmoid(), TAGS[1])
    expected = expected + 1000 * ((drawn - target).abs().mean() + 0.9 * (guide - target).abs().mean())
    torch.testing.assert_close(sum(losses.values()), expected)
    swapped = generator_losses(real, drawn, guide, target, *TAGS, classify=True, weights=weights)
    assert not torch.allclose(sum(swapped.values()), expected)


def test_without_a_guide_decoder_its_term_is_nothing():
    picture, target = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    for guide, expected in ((picture, 1000), (picture.clone(), 1900)):
        losses = generator_losses(judgement(), picture, guide, target, *TAGS, classify=False)
        assert losses["reconstruction"].item() == pytest.approx(expected)


def test_tags_are_asked_for_from_the_second_step_on():
    for two_step_epoch, first_step in ((5, 4), (10, 9), (1, 0), (0, 0)):
        schedule = ChangingLoss(two_step_epoch=two_step_epoch)
        assert [schedule.classifies(epoch) for epoch in range(1, 13)] == [False] * first_step + [True] * (
            12 - first_step
        )
    names = {"adversarial", "colour tags", "invariant tags"}
    assert discriminator_losses(judgement(), judgement(), *TAGS, classify=True).keys() == names
    assert discriminator_losses(judgement(), judgement(), *TAGS, classify=False).keys() == {"adversarial"}


def test_lines_fade_from_an_epoch_on():
    schedule = ChangingLoss(brightness_epoch=3)
    assert [schedule.brightness(epoch) for epoch in (1, 2, 3, 4)] == [(0.8, 1.2)] * 2 + [(1.0, 7.0)] * 2
    assert ChangingLoss(brightness_epoch=None).brightness(99) == (0.8, 1.2)


def test_weights_are_finite_and_not_negative():
    for value in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="the weight guide must be 0 or more, got "):
            LossWeights(guide=value)
