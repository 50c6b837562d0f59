"""A training of Tag2Pix: two networks, a loss that changes, and resuming with the same numbers."""

from __future__ import annotations

import pytest
import torch

from lib.models.images.tag2pix import Generator
from lib.models.images.tag2pix_discriminator import Discriminator
from lib.models.images.tag2pix_extractor import LineArtClassifier
from lib.models.images.tag2pix_losses import ChangingLoss, LossWeights, generator_losses
from lib.training.loop import run_steps, seeded
from lib.training.tag2pix import Tag2PixStep

CLASSIFIER = {"num_tags": 3, "blocks": (1, 1), "groups": 2, "width_per_group": 32, "width": 1 / 16}


def batch_at(number: int) -> dict[str, torch.Tensor]:
    """Squares whose colour is their tag: red, green or blue."""
    draw = torch.Generator().manual_seed(number)
    colours = torch.eye(3)[torch.randint(3, (8,), generator=draw)]
    line = torch.ones(8, 1, 16, 16)
    line[:, :, 4, 4:12] = line[:, :, 11, 4:12] = line[:, :, 4:12, 4] = line[:, :, 4:12, 11] = 0
    picture = torch.ones(8, 3, 16, 16)
    picture[:, :, 4:12, 4:12] = 2 * colours[:, :, None, None] - 1
    return {"lines": line, "images": picture, "variant": colours, "invariant": torch.ones(8, 3)}


def make_step(*, mode="eval", two_step_epoch=2, learning_rate=2e-3, weights=LossWeights()) -> Tag2PixStep:  # noqa: B008
    seeded(0)
    extractor = LineArtClassifier(**CLASSIFIER).extractor(mode)
    sizes = {"image_size": 16, "colour_tags": 3, "width": 4, "groups": 4, "tag_size": 4}
    generator = Generator(**sizes, features=extractor.channels, blocks=(1, 1, 1))
    discriminator = Discriminator(
        colour_tags=3, invariant_tags=3, width=16, stages=1, last_blocks=1, groups=8
    )
    return Tag2PixStep(
        generator,
        discriminator,
        extractor,
        batch_at,
        steps_per_epoch=3,
        schedule=ChangingLoss(two_step_epoch=two_step_epoch),
        learning_rate=learning_rate,
        weights=weights,
    )


def test_squares_get_the_colour_of_their_tag():
    step = make_step()
    run_steps(step, 80, state=step.state)
    batch = batch_at(1000)
    generator = step.generator.eval()
    with torch.no_grad():
        features = step.extractor(batch["lines"])
        for shift in (0, 1):  # the true tags, and others than the picture's
            tags = batch["variant"].roll(shift, dims=1)
            picture, _ = generator(batch["lines"], features, tags)
            colours = picture[:, :, 6:10, 6:10].mean(dim=(2, 3))
            assert torch.equal(colours.argmax(1), tags.argmax(1))


def test_the_loss_changes_at_the_epoch(monkeypatch):
    asked = []

    def noted(*given, classify, **options):
        asked.append(classify)
        return generator_losses(*given, classify=classify, **options)

    monkeypatch.setattr("lib.training.tag2pix.generator_losses", noted)
    step = make_step(two_step_epoch=3)
    for number in range(9):
        step(number)
    assert asked == [False] * 6 + [True] * 3


def test_steps_change_each_network_by_its_own_loss_alone():
    step = make_step()
    before = {
        name: [p.clone() for p in getattr(step, name).parameters()] for name in ("generator", "discriminator")
    }
    step(0)
    for name, parameters in before.items():
        network = getattr(step, name)
        changed = [not torch.equal(a, b) for a, b in zip(parameters, network.parameters(), strict=True)]
        assert any(changed), name
        assert all(parameter.requires_grad for parameter in network.parameters())
    gradients = [
        parameter.grad.clone() for parameter in step.discriminator.parameters() if parameter.grad is not None
    ]
    heavier = make_step(weights=LossWeights(reconstruction=5000.0))
    heavier(0)  # what only the generator is asked for leaves the discriminator's gradients as they are
    others = [
        parameter.grad for parameter in heavier.discriminator.parameters() if parameter.grad is not None
    ]
    assert all(map(torch.equal, gradients, others))
    assert torch.equal(step.extractor.layers[0].weight, make_step().extractor.layers[0].weight)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_a_training_that_was_stopped_ends_with_the_same_weights(mode, tmp_path):
    whole = make_step(mode=mode)
    run_steps(whole, 8, state=whole.state)
    for stop in (4, 8):
        part = make_step(mode=mode)
        run_steps(part, stop, state=part.state, checkpoint=tmp_path / "checkpoint.pt")
    for name, network in (("generator", part.generator), ("discriminator", part.discriminator)):
        expected = getattr(whole, name).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
    assert ("extractor" in part.state) is (mode == "batch")
    extracted = part.extractor.state_dict()
    assert all(torch.equal(value, extracted[key]) for key, value in whole.extractor.state_dict().items())


def test_parts_that_do_not_fit_are_refused():
    step = make_step()
    given = step.generator, step.discriminator, None, batch_at
    with pytest.raises(ValueError, match="the generator wants 32 features, the extractor has 0"):
        Tag2PixStep(*given, steps_per_epoch=1, schedule=step.schedule)
    with pytest.raises(ValueError, match="an epoch has at least one step, got 0"):
        Tag2PixStep(*given, steps_per_epoch=0, schedule=step.schedule)
