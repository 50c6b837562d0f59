"""Trainings and errors of their gradients, on networks small enough to know the answer."""

from functools import partial

import pandas as pd
import pytest
import torch

from lib.data.images import ImageSet
from lib.experiments import value_aware_training
from lib.experiments.value_aware_errors import label
from lib.experiments.value_aware_training import (
    CLIPPED,
    IMAGES,
    Arm,
    gradient_errors,
    gradient_figure,
    gradient_settings,
    images_of,
    new_network,
    pretrained_gradient_errors,
    sweep_arms,
    train,
    training_arms,
)
from lib.models.vision.resnet import BasicBlock, Bottleneck, ResNet
from lib.quantization.saved_tensors import PackedActivations
from lib.training.loop import fit, seeded


def network() -> ResNet:
    return ResNet(block=BasicBlock, blocks=(1, 1), num_classes=10, width=0.25, small_images=True)


def pictures() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(40) % 10, mean=0.5, std=0.3)


def trained(arm: Arm, **options) -> dict[str, torch.Tensor]:
    options = dict(seed=0, steps=6, batch_size=8, learning_rate=0.05) | options
    model = train(arm, network, pictures(), **options)
    assert not any(module.training for module in model.modules())
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# --- data and networks -------------------------------------------------------------------------------------


def test_data_sets_are_known_by_name():
    assert images_of("imagenet").source.name == "ImageNet (ILSVRC-2012)"
    with pytest.raises(ValueError, match="one of fashion-mnist-sample, fashion-mnist, imagenet, got 'mnist'"):
        images_of("mnist")


def test_the_network_fits_the_images():
    small = new_network(IMAGES["fashion-mnist"], depth=0, blocks=[1, 2], width=0.25)
    assert small.conv1.in_channels == 1 and small.fc.out_features == 10
    assert [len(small.layer1), len(small.layer2)] == [1, 2] and small.conv1.out_channels == 16
    own = new_network(IMAGES["imagenet"], depth=18, blocks=[1], width=1.0, classes=7)
    assert own.conv1.in_channels == 3 and own.fc.out_features == 7
    with torch.device("meta"):
        deep = new_network(IMAGES["imagenet"], depth=50, blocks=[1], width=0.25)
    assert isinstance(deep.layer1[0], Bottleneck) and deep.fc.out_features == 1000
    assert sum(parameter.numel() for parameter in deep.parameters()) == 25_557_032


# --- training ----------------------------------------------------------------------------------------------


def test_stages_are_equally_long():
    arm = Arm(((2, 0.0), (3, 0.02), (None, 0.0)))
    assert [arm.stage(step, 6)[0] for step in range(6)] == [2, 2, 3, 3, None, None]
    assert [arm.stage(step, 7)[0] for step in range(7)] == [2, 2, 2, 3, 3, None, None]
    assert [arm.stage(step, 2)[0] for step in range(2)] == [2, 3]  # fewer steps than stages


def test_arms_differ_in_what_they_store_only():
    arms = training_arms(3)
    assert arms["(3, 2 %)"].stages == ((3, 0.02),) and arms["(3, 2 %)"].bn_input == "exact"
    assert arms["(2, 0 %), then (3, 2 %), then full"].stages == ((2, 0.0), (3, 0.02), (None, 0.0))
    assert [name for name, arm in arms.items() if arm.bn_input == "packed"] == [
        "(3, 2 %), inputs of normalisation packed"
    ]
    full = trained(arms["full precision"])
    assert same(full, trained(Arm(((None, 0.0),), bn_input="packed")))  # of full precision nothing is packed
    assert not same(full, trained(arms["(3, 2 %)"]))
    assert not same(trained(arms["(3, 2 %)"]), trained(arms["(3, 2 %), inputs of normalisation packed"]))


def test_arms_are_named_by_their_own_bits():
    assert training_arms(4)["(4, 2 %)"].stages == ((4, 0.02),) and "(3, 2 %)" not in training_arms(4)
    two = training_arms(2)
    assert two["(2, 0 %)"].stages == ((2, 0.0),) and len(two) == len(training_arms(3)) - 1


def test_the_seed_is_of_weights_and_batches():
    arm = Arm(((None, 0.0),))
    assert same(trained(arm), trained(arm)) and not same(trained(arm), trained(arm, seed=1))
    # With a rate of almost nothing the weights are the first ones.
    first, other = (trained(arm, seed=seed, learning_rate=1e-12)["network.conv1.weight"] for seed in (0, 1))
    seeded(0)
    torch.testing.assert_close(first, network().conv1.weight.detach())
    assert not torch.allclose(first, other)


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """In the middle of the second of three stages; and what is finished is not trained again."""
    arm = training_arms(3)["(2, 0 %), then (3, 2 %), then full"]
    expected = trained(arm)
    file, batches = tmp_path / "annealed.pt", ImageSet.batches
    monkeypatch.setattr(value_aware_training, "fit", partial(fit, checkpoint_seconds=0))

    class Killed(Exception):
        pass

    def until(last):
        def limited(images, batch_size, **options):
            found = batches(images, batch_size, **options)
            whole = found.batch

            def batch(step):
                if step >= last:
                    raise Killed
                return whole(step)

            found.batch = batch
            return found

        return limited

    monkeypatch.setattr(ImageSet, "batches", until(3))
    with pytest.raises(Killed):
        trained(arm, checkpoint=file)
    monkeypatch.setattr(ImageSet, "batches", batches)
    assert same(trained(arm, checkpoint=file), expected)
    monkeypatch.setattr(ImageSet, "batches", until(0))
    assert same(trained(arm, checkpoint=file), expected)
    with pytest.raises(Killed):
        trained(arm)


# --- gradients ---------------------------------------------------------------------------------------------


def test_gradient_errors_leave_the_network_as_it_was():
    seeded(0)
    net = network()
    net.layer1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    batch = {"images": torch.randn(8, 3, 16, 16), "labels": torch.arange(8)}
    settings = {
        "counted": PackedActivations(None),
        "nothing": PackedActivations(1, 0.0, bn_input="exact", smallest=1),
        "three": PackedActivations(3, 0.02, bn_input="exact", smallest=1),
    }
    table = gradient_errors(net, batch, settings).set_index("setting")
    errors = table["error"]
    assert errors["counted"] == 0 and errors["nothing"] == 1  # with nothing stored the gradient is zero
    assert 0 < errors["three"] < 0.3
    assert table.loc["three", ["bits", "ratio", "normalisation"]].tolist() == [3, 0.02, "exact"]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes


def test_settings_are_what_their_names_say():
    settings = gradient_settings(3)
    for name, context in settings.items():
        if not name.startswith("normalisation"):
            assert name == label(context.bits, context.ratio, context.clipped)
            assert context.bn_input == "exact"
    of_norm = {
        name.removeprefix("normalisation "): (c.bits, c.ratio, c.bn_input, c.bn_bits, c.bn_ratio)
        for name, c in settings.items()
        if name.startswith("normalisation")
    }
    assert of_norm == {
        "packed, (3, 2 %)": (3, 0.02, "packed", 3, 0.02),
        "packed, (4, 2 %)": (3, 0.02, "packed", 4, 0.02),
        "packed, 8 bits": (3, 0.02, "packed", 8, 0.0),
        "recomputed from the packed input": (3, 0.02, "recomputed", 8, 0.0),
    }
    assert len(settings) == 5 * 4 + 1 + 4 and settings[CLIPPED].clipped


def test_errors_of_a_pretrained_network_are_in_evaluation_mode_by_group():
    seeded(0)
    net = network().eval()
    groups = {name: torch.randn(2, 3, 32, 32) for name in ("a", "b")}
    found = pretrained_gradient_errors(net, groups).set_index(["group", "setting"])["error"]
    assert set(found.index.get_level_values("setting")) == {"(3, 2 %)", "(3, 0 %)", "(4, 0 %)", CLIPPED}
    labels = net(groups["a"]).argmax(1)
    batch = {"images": groups["a"], "labels": labels}
    settings = {"x": PackedActivations(3, 0.0, bn_input="exact")}
    expected = gradient_errors(net, batch, settings, training=False)["error"].item()
    assert found["a", "(3, 0 %)"] == pytest.approx(expected)
    of_training = gradient_errors(net, batch, settings)["error"].item()
    assert abs(of_training - expected) > 0.01 * expected  # the twin with statistics of the batch


def test_the_sweep_is_of_every_width_with_every_share():
    arms = sweep_arms([1, 2], [0.0, 0.05])
    assert {name: arm.stages for name, arm in arms.items()} == {
        "(1, 0 %)": ((1, 0.0),),
        "(1, 5 %)": ((1, 0.05),),
        "(2, 0 %)": ((2, 0.0),),
        "(2, 5 %)": ((2, 0.05),),
    }
    assert sweep_arms([], [0.0]) == {}
    clipped = training_arms(3)[CLIPPED]
    assert clipped.clipped and clipped.stages == ((4, 0.0),)
    assert not same(trained(clipped), trained(Arm(((4, 0.0),))))


def test_the_gradient_figure_draws_a_line_per_width():
    rows = [
        (label(bits, ratio), bits, ratio, False, "exact", seed + 0.1 / bits / (1 + ratio))
        for bits in (1, 3, 4)
        for ratio in (0.0, 0.02)
        for seed in (0, 1)
    ]
    rows.append(("normalisation packed", 3, 0.02, False, "packed", 9.0))  # not drawn
    rows += [(CLIPPED, 4, 0.0, True, "exact", error) for error in (0.2, 0.4)]
    columns = ["setting", "bits", "ratio", "clipped", "normalisation", "error"]
    errors = pd.DataFrame(rows, columns=columns)
    axis = gradient_figure(errors).axes[0]
    one, three, four, level = axis.lines
    assert [line.get_label() for line in (one, three, four)] == ["1 bit", "3 bits", "4 bits"]
    assert three.get_xdata().tolist() == [0, 2]
    over_seeds = [0.5 + 0.1 / 3, 0.5 + 0.1 / 3 / 1.02]
    assert three.get_ydata().tolist() == pytest.approx(over_seeds)
    assert level.get_ydata()[0] == pytest.approx(0.3)  # 4 bits, clipped
