"""Loss and accuracy of image classifiers against closed forms and torchmetrics."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy

from lib.data.fashion_mnist import FASHION_MNIST_SAMPLE
from lib.data.imagenet import ImageFolder
from lib.data.images import ImageSet
from lib.data.preprocessing import IMAGENET
from lib.training.classifiers import (
    ImageClassifier,
    accuracy,
    linear_classifier,
    linear_classifier_accuracy,
    logits,
)
from lib.training.loop import fit, seeded


def linear(classes=4, size=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes))


def images(count=50, classes=4, size=3):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(0, classes, (count,), generator=generator), mean=0.5, std=0.25)


def batch_of(source):
    return {"images": source.tensor(), "labels": source.labels}


def test_loss_without_and_with_a_teacher():
    seeded(0)
    student, teacher, batch = linear(), linear(), batch_of(images())
    alone = F.cross_entropy(student(batch["images"]), batch["labels"])
    torch.testing.assert_close(ImageClassifier(student).loss(batch), alone)
    p, q = teacher(batch["images"]).softmax(1), student(batch["images"]).log_softmax(1)
    both = alone - 0.5 * (p * q).sum(1).mean()
    torch.testing.assert_close(ImageClassifier(student, teacher, teacher_weight=0.5).loss(batch), both)


def test_a_perfect_student_pays_the_teachers_entropy():
    seeded(0)
    teacher, batch = linear(), batch_of(images())
    model = ImageClassifier(teacher, teacher)
    p = teacher(batch["images"]).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    cross = F.cross_entropy(teacher(batch["images"]), batch["labels"])
    torch.testing.assert_close(model.loss(batch) - cross, entropy)


def test_the_teacher_is_no_part_of_the_model():
    seeded(0)
    teacher = linear()
    model = ImageClassifier(linear(), teacher)
    assert len(list(model.parameters())) == 2 and len(model.state_dict()) == 2
    model.loss(batch_of(images())).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("batch_size", [1, 7, 50, 500])
def test_accuracy_is_that_of_torchmetrics(batch_size):
    seeded(0)
    network, source = linear(), images()
    scores = network(source.tensor())
    found = accuracy(network, source, topk=(1, 2), batch_size=batch_size)
    for k in (1, 2):
        expected = multiclass_accuracy(scores, source.labels, num_classes=4, top_k=k, average="micro")
        assert found[f"top-{k}"] == pytest.approx(100 * expected.item(), abs=1e-4)


class Watching(nn.Module):
    """A network of two modules, one of them frozen; remembers their modes at each forward pass."""

    def __init__(self, error: Exception | None = None):
        super().__init__()
        self.dropout, self.norm, self.layer = nn.Dropout(0.5), nn.BatchNorm2d(1).eval(), linear()
        self.seen, self.error = [], error

    def modes(self):
        return [module.training for module in self.modules()]

    def forward(self, x):
        self.seen.append(self.modes())
        if self.error:
            raise self.error
        return self.layer(self.norm(self.dropout(x)))


def test_scoring_is_in_evaluation_mode_and_gives_each_module_its_mode_back():
    source, network = images(), Watching()
    before, state = network.modes(), {key: value.clone() for key, value in network.state_dict().items()}
    assert len(set(before)) == 2
    assert torch.equal(logits(network, source), logits(network, source))
    assert accuracy(network, source) == accuracy(network, source)
    assert not any(any(modes) for modes in network.seen) and network.modes() == before
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    failing = Watching(KeyError("broken"))
    with pytest.raises(KeyError, match="broken"):
        accuracy(failing, source)
    assert failing.seen and failing.modes() == before


def test_a_teacher_predicts_in_evaluation_mode_and_keeps_its_modes():
    teacher = Watching()
    before = teacher.modes()
    ImageClassifier(linear(), teacher).loss(batch_of(images())).backward()
    assert not any(teacher.seen[0]) and teacher.modes() == before
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_bad_requests_are_refused():
    source = images()
    with pytest.raises(ValueError, match=r"1\.\.4"):
        accuracy(linear(), source, topk=(1, 5))
    broken = linear()
    nn.init.constant_(broken[1].bias, float("nan"))
    with pytest.raises(ValueError, match="finite"):
        accuracy(broken, source)


def test_it_learns_what_can_be_learned():
    """The mean pixel decides the class: after training nearly all are right, before a quarter."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    pixels = (labels * 60 + torch.randint(0, 20, (9, 400), generator=generator)).T.reshape(400, 1, 3, 3)
    source = ImageSet(pixels.to(torch.uint8), labels, mean=0.4, std=0.3)
    seeded(0)
    model = ImageClassifier(linear())
    before = accuracy(model.network, source)["top-1"]
    fit(model, source.batches(50, seed=0).batch, steps=300, learning_rate=0.05)
    assert before < 60 < 95 < accuracy(model.network, source)["top-1"]


# --- the linear classifier ---------------------------------------------------------------------------------


def test_the_linear_classifier_is_the_optimum_that_scikit_learn_finds():
    source = images(count=200)
    x, y = source.tensor().flatten(1), source.labels
    found = linear_classifier(source, penalty=0.05, iterations=500)
    theirs = LogisticRegression(C=1 / (0.05 * 200), tol=1e-8, max_iter=5000).fit(x.numpy(), y.numpy())
    ours = found[-1].weight.detach().numpy()
    np.testing.assert_allclose(ours, theirs.coef_, atol=2e-4)
    expected = x.numpy() @ theirs.coef_.T + theirs.intercept_
    difference = found(source.tensor()).detach().numpy() - expected
    np.testing.assert_allclose(difference - difference.mean(1, keepdims=True), 0, atol=1e-3)
    assert accuracy(found, source)["top-1"] == pytest.approx(100 * theirs.score(x.numpy(), y.numpy()))
    # The twins: another penalty is another optimum, and one iteration does not reach it.
    for options in ({"penalty": 0.5}, {"penalty": 0.05, "iterations": 1}):
        assert np.abs(linear_classifier(source, **options)[-1].weight.detach().numpy() - ours).max() > 0.05


def test_the_linear_classifier_separates_what_a_line_separates_and_no_more():
    """Two classes by one pixel are told apart; by whether two pixels agree (exclusive or), not at all."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 2, (400, 1, 1, 2), generator=generator).to(torch.uint8)
    one, both = pixels[:, 0, 0, 0].long(), (pixels[:, 0, 0, 0] != pixels[:, 0, 0, 1]).long()
    for labels, expected in ((one, 100), (both, 50)):
        source = ImageSet(255 * pixels, labels, mean=0.5, std=0.5)
        found = linear_classifier_accuracy(source.take(300), source)
        assert found == pytest.approx(expected, abs=8 if expected == 50 else 1e-9)


def test_the_linear_classifier_has_no_chance_in_it_and_may_use_fewer_images():
    source = images(count=90)
    torch.manual_seed(1)
    first = linear_classifier(source)[-1].weight
    torch.manual_seed(2)
    assert torch.equal(linear_classifier(source)[-1].weight, first)
    third = ImageSet(source.images[::3], source.labels[::3], mean=source.mean, std=source.std)
    few = linear_classifier(source, most=30)[-1].weight
    assert torch.equal(few, linear_classifier(third)[-1].weight) and not torch.equal(few, first)


def test_the_linear_classifier_averages_large_pictures():
    small = images(count=60)
    large = ImageSet(
        small.images.repeat_interleave(4, -1).repeat_interleave(4, -2), small.labels, mean=0.5, std=0.25
    )
    found, same = linear_classifier(large, side=3), {"atol": 1e-3, "rtol": 0.0}
    torch.testing.assert_close(found[-1].weight, linear_classifier(small)[-1].weight, **same)
    torch.testing.assert_close(found(large.tensor()), linear_classifier(small)(small.tensor()), **same)


def test_the_linear_classifier_reads_folders_of_pictures(tmp_path):
    for number, grey in enumerate((40, 200)):
        for file in range(3):
            path = tmp_path / f"n{number}" / f"{file}.JPEG"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (300, 260), (grey + 5 * file,) * 3).save(path)
    folder = ImageFolder.of(tmp_path, IMAGENET)
    assert linear_classifier(folder)[-1].in_features == 3 * 32 * 32
    assert linear_classifier_accuracy(folder, folder) == 100


def test_the_floor_of_fashion_mnist():
    """The accuracy that the chapters' networks have to beat; the penalty is not tuned on the test images."""
    sets = FASHION_MNIST_SAMPLE.load("data")
    found = linear_classifier_accuracy(sets["train"], sets["test"])
    assert 84 < found < 85.5
    assert linear_classifier_accuracy(sets["train"], sets["test"], topk=3) > found + 5


def test_a_penalty_of_nothing_is_refused():
    with pytest.raises(ValueError, match="penalty must be above 0, or there is no single optimum, got 0"):
        linear_classifier(images(), penalty=0)
