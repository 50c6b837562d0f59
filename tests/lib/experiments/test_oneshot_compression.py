"""The trained network's experiment: arms, streams, resuming, and the numbers made of its results."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib.chapter import per_unit
from lib.data.images import ImageSet
from lib.experiments import oneshot_compression as oneshot
from lib.ledger.schema import load_ledger
from lib.models.vision.alexnet import AlexNet, AlexNetOneTower
from lib.models.vision.vgg import VGG

SETTING = oneshot.Setting(
    dataset="fashion-mnist-sample",
    network="small",
    channels=[4, 6, 8, 8],
    hidden=8,
    initial_std=0.05,
    batch_size=8,
    steps=4,
    learning_rate=0.05,
    weight_decay=0.005,
    finetune_steps=2,
    finetune_learning_rate=0.02,
)


@pytest.fixture(scope="module")
def images():
    random = torch.Generator().manual_seed(0)
    return {
        split: ImageSet(
            torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=random),
            torch.randint(10, (count,), generator=random),
            mean=0.5,
            std=0.3,
        )
        for split, count in (("train", 16), ("test", 20))
    }


class WithDropout(oneshot.Setting):
    """The small network with dropout, whose trainings draw random numbers, as AlexNet's do."""

    def build(self, **options):
        shape = {"channels": 1, "input_size": 28, "num_classes": 10}
        return VGG(stages=((4,), (8,)), hidden=(8,), dropout=0.5, batch_norm=True, **shape, **options)


# --- the setting -------------------------------------------------------------------------------------------


def test_the_network_asked_for_is_built():
    assert SETTING.image_shape == (1, 28, 28)
    small = SETTING.build()
    shapes = [tuple(m.weight.shape[:2]) for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(4, 1), (6, 4), (8, 6), (8, 8)] and small.classifier[-1].in_features == 8
    with torch.device("meta"):
        built = {n: dataclasses.replace(SETTING, network=n).build() for n in oneshot.NETWORKS}
        half = SETTING.build(width=0.5)
    types = {"small": VGG, "alexnet": AlexNet, "alexnet-one-tower": AlexNetOneTower, "vgg16": VGG}
    assert {name: type(network) for name, network in built.items()} == types
    assert built["vgg16"].input_shape == (3, 224, 224)
    assert half.classifier[-1].in_features == 4


def test_the_small_network_has_norms_or_none():
    plain = dataclasses.replace(SETTING, batch_norm=False).build()
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (SETTING.build(), plain)]
    assert norms == [4, 0]


def test_imagenet_is_cropped_scored_and_flipped_as_it_should_be():
    setting = dataclasses.replace(SETTING, dataset="imagenet", network="alexnet")
    assert setting.source.preprocessing.crop == 227 and setting.topk == 5 and setting.augmentation == {}
    assert dataclasses.replace(setting, network="vgg16").source.preprocessing.crop == 224
    assert SETTING.source is oneshot.DATA["fashion-mnist-sample"]
    assert SETTING.topk == 1 and SETTING.augmentation == {"flip": True}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": "cifar"}, "dataset must be one of fashion-mnist-sample, .*imagenet, got 'cifar'"),
        ({"network": "resnet"}, "network must be one of small, alexnet, .*vgg16, got 'resnet'"),
        ({"channels": []}, r"channels must be those of at least 3 convolutions, got \[\]"),
        ({"channels": [4, 8]}, r"channels must be those of at least 3 convolutions, got \[4, 8\]"),
    ],
)
def test_what_is_unknown_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTING, **wrong)


# --- other people's pictures --------------------------------------------------------------------------------


def own_pictures(classes: int, side: int, channels: int = 3) -> dict[str, ImageSet]:
    pixels = torch.zeros(40, channels, side, side, dtype=torch.uint8)
    names = tuple(f"kind {k}" for k in range(classes))
    one = ImageSet(pixels, torch.arange(40) % classes, 0.5, 0.3, names)
    return {"train": one, "test": one}


@pytest.mark.parametrize("classes", [1, 4, 20])
def test_the_small_network_takes_own_pictures_of_any_number_of_classes(classes):
    setting = dataclasses.replace(SETTING, dataset="imagenet")
    assert setting.image_shape == (3, 28, 28)
    assert (setting.source.preprocessing.resize, setting.source.preprocessing.crop) == (32, 28)
    images = own_pictures(classes, 28)
    setting = oneshot.fitted(setting, images)
    assert (setting.outputs, setting.topk) == (classes, 1)
    network = setting.build()
    assert network(images["test"].tensor()).shape == (40, classes)
    assert oneshot.score(network, images, setting) >= 0
    with torch.device("meta"):
        large = dataclasses.replace(setting, network="alexnet").build()
    assert large.classifier.fc8.out_features == classes


def test_pictures_that_do_not_fit_are_refused_before_anything_is_trained():
    grey = own_pictures(10, 28, channels=1)
    with pytest.raises(
        ValueError, match="alexnet reads images of 3 × 227 × 227, those of .* have 1 × 28 × 28$"
    ):
        oneshot.fitted(dataclasses.replace(SETTING, network="alexnet"), grey)
    with pytest.raises(ValueError, match=r"^batch_size must be in 1..40, got 41$"):
        oneshot.fitted(dataclasses.replace(SETTING, batch_size=41), grey)
    with pytest.raises(ValueError, match=r"^fashion-mnist-sample has 1 test picture: .* at least 2$"):
        oneshot.fitted(SETTING, grey | {"test": grey["test"].take(1)})


def test_a_given_original_for_other_classes_is_refused_in_one_line(tmp_path):
    path, images = tmp_path / "ten.pt", own_pictures(7, 28, channels=1)
    torch.save(SETTING.build().state_dict(), path)
    with pytest.raises(ValueError, match=r"small for these pictures: .*ten\.pt: .*\(7, 8\), got \(10, 8\)$"):
        oneshot.fitted(SETTING, images, str(path))
    assert oneshot.fitted(SETTING, own_pictures(10, 28, channels=1), str(path)).outputs == 10
    (tmp_path / "text").write_text("root:x:0:0")
    with pytest.raises(ValueError, match="text is no checkpoint"):
        oneshot.fitted(SETTING, images, str(tmp_path / "text"))


# --- training and scoring ----------------------------------------------------------------------------------


def test_score_and_size_by_hand(images):
    torch.manual_seed(0)
    network = SETTING.build().eval()
    logits = network(images["test"].tensor())
    labels = images["test"].labels
    rank = (logits > logits.gather(1, labels[:, None])).sum(1)  # of the label's logit, from 0
    top1, top5 = ((rank < k).double().mean().item() * 100 for k in (1, 5))
    assert 0 < top1 < top5 < 100
    assert oneshot.score(network, images, SETTING) == pytest.approx(top1)
    five = dataclasses.replace(SETTING, dataset="imagenet")
    assert oneshot.score(network, images, five) == pytest.approx(top5)
    assert oneshot.recognised(network, images, SETTING).tolist() == [100.0 * (place == 0) for place in rank]
    size = oneshot.size(network, SETTING)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert size["weights"] == sum(m.weight.numel() for m in layers)
    convolutions = [m.weight.numel() for m in layers if isinstance(m, nn.Conv2d)]
    matrices = [m.weight.numel() for m in layers if isinstance(m, nn.Linear)]
    places = (28 * 28, 14 * 14, 7 * 7, 7 * 7)
    macs = sum(n * m for n, m in zip(convolutions, places, strict=True)) + sum(matrices)
    assert size["multiply-accumulates"] == macs


def test_seeds_and_arms_have_their_own_randomness(images):
    """Another seed: other weights and batches. Another arm of one seed: other dropout, the same batches."""
    setting = WithDropout(**dataclasses.asdict(SETTING))

    def trained(seed, arm="original", start=0):
        torch.manual_seed(start)
        network = setting.build()
        torch.manual_seed(99)  # whatever happened before a training must not matter
        oneshot.train(network, images, setting, seed, arm, steps=2, peak=0.1)
        return network.classifier[0].weight

    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(3), trained(4))
    assert not torch.equal(trained(3), trained(3, arm="narrow, from scratch"))
    first, again, other = (oneshot.trained_original(images, SETTING, seed).features[0] for seed in (1, 1, 2))
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)


def test_fine_tuning_is_scored_six_times_an_epoch(images):
    setting = dataclasses.replace(SETTING, batch_size=1)  # 16 steps an epoch
    torch.manual_seed(0)
    curve = oneshot.train(setting.build(), images, setting, 5, oneshot.COMPRESSED, steps=7, peak=0.01)
    assert curve["step"].tolist() == [2, 4, 6, 7] and curve["epoch"].tolist() == [
        2 / 16,
        4 / 16,
        6 / 16,
        7 / 16,
    ]
    assert set(curve["arm"]) == {"EVBMF, fine-tuned"} and set(curve["seed"]) == {5}
    whole = oneshot.train(setting.build(), images, setting, 5, "original", steps=90, peak=0.01)
    assert whole["step"].tolist() == [80, 90]  # every five epochs, and at the end


def with_directions(network: nn.Module, count: int) -> nn.Module:
    """Every kernel becomes a sum of so many directions and a little noise."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            matrix = layer.weight.flatten(1)
            signal = torch.randn(len(matrix), count) @ torch.randn(count, matrix.shape[1])
            layer.weight.data = (signal + 0.05 * torch.randn(matrix.shape)).reshape(layer.weight.shape)
    return network


# --- arms --------------------------------------------------------------------------------------------------


def test_arms_before_their_training(images, tmp_path):
    setting = dataclasses.replace(SETTING, channels=[16, 16, 24, 24], hidden=32)
    torch.manual_seed(0)
    trained = with_directions(setting.build(), 3)
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    original = oneshot.trained_original(images, setting, 0, given=str(tmp_path / "trained.pt"))
    for name, value in trained.state_dict().items():
        assert torch.equal(original.state_dict()[name], value), name

    arms, report = oneshot.compressed_arms(original, setting, 0)
    assert list(arms) == [
        "EVBMF, fine-tuned",
        "EVBMF on every layer, fine-tuned",
        "uniform ranks, fine-tuned",
        "narrow, from scratch",
        "EVBMF structure, from scratch",
    ]
    assert report["output_rank"].tolist() == [3] * 6
    assert report["kind"].tolist() == ["Tucker-1", *["Tucker-2"] * 4, "SVD"]
    every, small = arms["EVBMF on every layer, fine-tuned"], arms["EVBMF, fine-tuned"]
    assert isinstance(every.classifier[-1], nn.Sequential) and isinstance(small.classifier[-1], nn.Linear)
    assert torch.equal(small.classifier[-1].weight, original.classifier[-1].weight)
    budget = oneshot.size(small, setting)["multiply-accumulates"]
    for arm in list(arms)[2:]:
        assert oneshot.size(arms[arm], setting)["multiply-accumulates"] <= budget
    narrow = torch.cat(
        [p.flatten() for n, p in arms["narrow, from scratch"].named_parameters() if p.dim() > 1]
    )
    assert narrow.std().item() == pytest.approx(setting.initial_std, rel=0.1)
    structure = arms["EVBMF structure, from scratch"].state_dict()
    assert {n: p.shape for n, p in structure.items()} == {n: p.shape for n, p in small.state_dict().items()}
    other, _ = oneshot.compressed_arms(original, setting, 1)
    for arm in list(arms):  # random weights are those of the seed, decomposed ones the original's
        first, new = (next(a[arm].parameters()) for a in (arms, other))
        assert torch.equal(first, new) == arm.endswith("fine-tuned")


@pytest.mark.parametrize(
    ("network", "kinds"), [("alexnet-one-tower", ["Tucker-2", "SVD", "SVD"]), ("vgg16", ["kept"] * 3)]
)
def test_fully_connected_layers_of_the_large_networks(network, kinds):
    """All of AlexNet's are compressed, none of VGG-16's; on networks with a tenth of the channels."""

    class Thin(oneshot.Setting):
        def build(self, width=1.0):
            return {"alexnet-one-tower": AlexNetOneTower, "vgg16": VGG}[network](width=width / 10)

    setting = Thin(**dataclasses.asdict(SETTING) | {"network": network, "dataset": "imagenet"})
    torch.manual_seed(0)
    original = with_directions(setting.build(), 5)
    _, report = oneshot.compressed_arms(original, setting, 0)
    assert report["kind"].tolist()[-3:] == kinds
    assert report["kind"].tolist()[:2] == ["Tucker-1", "Tucker-2"]


# --- a whole seed ------------------------------------------------------------------------------------------


def test_a_killed_seed_goes_on_and_ends_with_the_same_numbers(images, tmp_path):
    setting = WithDropout(**dataclasses.asdict(SETTING))
    whole = oneshot.run_seed(images, setting, 0)
    asked = []

    def dying(name):
        asked.append(name)
        if len(asked) == 4:  # original and two fine-tunings are done
            raise KeyboardInterrupt
        return tmp_path / f"{name}.pt"

    with pytest.raises(KeyboardInterrupt):
        oneshot.run_seed(images, setting, 0, checkpoint=dying)
    finished = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in finished} == {f"{name}.pt" for name in asked[:3]}
    torch.rand(5)  # the second process is elsewhere in its random stream
    resumed = oneshot.run_seed(images, setting, 0, checkpoint=lambda name: tmp_path / f"{name}.pt")
    for ours, theirs in zip(resumed, whole, strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert all(path.read_bytes() == content for path, content in finished.items())  # nothing trained again
    assert len(list(tmp_path.iterdir())) == 6


def test_the_results_of_a_seed(images):
    results, curves, layers = oneshot.run_seed(images, SETTING, 7)
    tuned = ["EVBMF", "EVBMF on every layer", "uniform ranks"]
    expected = ["original", *(f"{arm}, {when}" for arm in tuned for when in ("right after", "fine-tuned"))]
    expected += ["narrow, from scratch", "EVBMF structure, from scratch"]
    assert results["arm"].tolist() == expected and set(results["seed"]) == {7}
    assert results.set_index("arm")["share recovered in one epoch"].dropna().index.tolist() == [
        f"{arm}, fine-tuned" for arm in tuned
    ]
    assert (results["accuracy"] % (100 / 20)).tolist() == [0.0] * len(results)  # twenty test images
    by_arm = results.set_index("arm")
    hits = np.stack(results["hits"])
    assert hits.shape == (9, 20) and set(hits.ravel()) == {0.0, 100.0}
    assert hits.mean(axis=1).tolist() == results["accuracy"].tolist()
    for arm in tuned:
        curve = curves[curves["arm"] == f"{arm}, fine-tuned"]
        assert curve["epoch"].tolist() == [0.0, 0.5, 1.0]
        assert curve["accuracy"].iloc[0] == by_arm.loc[f"{arm}, right after", "accuracy"]
        assert curve["accuracy"].iloc[-1] == by_arm.loc[f"{arm}, fine-tuned", "accuracy"]
    assert layers["layer"].tolist()[0] == "features.0" and set(layers["seed"]) == {7}


# --- numbers of the results --------------------------------------------------------------------------------


def test_the_share_recovered():
    curve = pd.DataFrame({"epoch": [0.5, 1.0, 1.5], "accuracy": [60.0, 75.0, 90.0]})
    assert oneshot.recovered(curve, before=90, after=40) == pytest.approx(35 / 50)
    assert oneshot.recovered(curve, before=75.5, after=75) == 0  # a loss below a point counts as one
    assert oneshot.recovered(curve, before=75.5, after=74.5) == pytest.approx(0.5)
    short = pd.DataFrame({"epoch": [0.08, 0.17], "accuracy": [60.0, 75.0]})
    assert math.isnan(oneshot.recovered(short, before=90, after=40))  # no epoch, so nothing is said of one
    late = pd.DataFrame({"epoch": [2.0, 3.0], "accuracy": [80.0, 85.0]})
    assert oneshot.recovered(late, before=90, after=40) == pytest.approx(40 / 50)


@pytest.fixture
def results():
    arms = {"original": (90, 94), "EVBMF, right after": (40, 60), "EVBMF, fine-tuned": (80, 90)}
    arms["narrow, from scratch"] = (70, 74)
    rows = []
    for arm, (first, second) in arms.items():
        macs, weights = (4000, 900) if arm == "original" else (1000, 300)
        share = 0.5 if arm == "EVBMF, fine-tuned" else float("nan")
        for seed, accuracy in ((0, first), (1, second)):
            rows.append((arm, seed, macs * (seed + 1), weights, accuracy, share))
    columns = ["arm", "seed", "multiply-accumulates", "weights", "accuracy", "share recovered in one epoch"]
    return pd.DataFrame(rows, columns=columns)


def with_hits(results: pd.DataFrame) -> pd.DataFrame:
    """Of fifty pictures the first ones are recognised."""
    return results.assign(hits=[100.0 * (np.arange(50) < accuracy / 2) for accuracy in results["accuracy"]])


def test_what_the_rules_ask_for(results):
    measured = oneshot.measured(with_hits(results))
    means = per_unit.means(measured)
    of_sizes = {"original": [4000, 8000], "EVBMF, fine-tuned": [1000, 2000]}
    assert {arm: list(values) for arm, values in means["multiply-accumulates"].items()} == of_sizes
    assert list(means["weights"]["original"]) == [900, 900] and len(means["weights"]) == 2
    assert list(means["accuracy"]["EVBMF, right after"]) == [40, 60] and len(means["accuracy"]) == 4
    assert measured["share recovered in one epoch"] == {"EVBMF, fine-tuned": [0.5, 0.5]}
    short = results.assign(**{"share recovered in one epoch": math.nan})
    assert set(oneshot.measured(with_hits(short))) == set(measured) - {"share recovered in one epoch"}


def test_other_pictures_widen_the_interval_of_the_loss_and_not_that_of_the_sizes(results):
    """The ledger's C1: in both seeds the loss is that of the same three pictures of fifty."""
    alike = results.assign(accuracy=results.groupby("arm")["accuracy"].transform("mean"))
    measured = oneshot.measured(with_hits(alike))
    assert measured["accuracy"]["original"].index.tolist() == [0, 1]
    spread = per_unit.spreads(load_ledger("oneshot_compression")["C1"], measured)
    difference = {"original": 1, "EVBMF, fine-tuned": -1}
    variance = {metric: one.variance(difference) for metric, one in spread.items()}
    lost = 3 / 50
    assert variance["accuracy"] == pytest.approx(100**2 * lost * (1 - lost) / 49)
    assert variance["weights"] == variance["multiply-accumulates"] == 0


def test_means_and_the_texts_numbers(results):
    means = oneshot.means_by_arm(results)
    assert means.index.tolist() == list(dict.fromkeys(results["arm"]))
    assert means.loc["original"].tolist()[:3] == [92, 6.0, 0.9]
    layers = pd.DataFrame({"seed": [0, 0, 0, 1, 1, 1], "output_rank": [5, 9, 2, 7, 1, 4]})
    numbers = oneshot.numbers_for_the_text(results, layers)
    assert numbers == {
        "original": 92, "evbmf-right-after": 50, "evbmf-fine-tuned": 85, "narrow-from-scratch": 72,
        "small-multiply-accumulates": 4, "small-weights": 3, "right-after-low": 40, "right-after-high": 60,
        "first-low": 5, "first-high": 7, "last-low": 2, "last-high": 4,
    }  # fmt: skip
