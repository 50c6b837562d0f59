"""Eight bits: techniques one by one, a sum by hand, a training that is not repeated."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib.data.images import ImageSet
from lib.experiments import facebook_inference_accuracy as experiment
from lib.quantization.integer import gemm_i16
from lib.quantization.integer_network import Recipe, quantize_network


def images(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=random)
    return ImageSet(pixels, torch.arange(count) % 10, 0.286, 0.353)


@pytest.fixture(scope="module")
def trained():
    return {seed: experiment.trained_network(images(128), (4, 8), steps=3, seed=seed) for seed in (5, 7)}


def test_the_techniques_add_one_at_a_time():
    steps = list(experiment.TECHNIQUES.values())
    assert steps[0] == Recipe()
    for before, after in pairwise(steps):
        changed = [name for name in vars(after) if getattr(before, name) != getattr(after, name)]
        assert len(changed) == 1, changed


def test_running_sums():
    sums, share = experiment.running_sums(seed=6)
    assert list(sums.index) == list(range(8, 257, 8))
    exact, cut, apart = (sums[name].to_numpy() for name in sums)
    assert (apart == exact).all(), "no more than 8 products of 5 bits are added in 16 bits"
    inside = np.abs(exact) < 2**14
    assert (cut != exact).any() and cut.min() >= -(2**15) and cut.max() <= 2**15 - 1
    assert (cut[: inside.argmin()] == exact[: inside.argmin()]).all()
    random = torch.Generator().manual_seed(6)
    a = torch.randint(0, 256, (1, 256), dtype=torch.uint8, generator=random).long()
    w = (24 * torch.randn(1, 256, generator=random) + 6).round().clamp(-128, 127).long()
    assert exact[-1] == int((a * w).sum())
    assert share == float(((w < -16) | (w > 15)).double().mean())
    whole, none = experiment.running_sums(seed=6, bits=8)  # nothing is split off: only spilling is left
    spilled, _ = gemm_i16(a.byte(), w.char(), spill_every=8)
    assert none == 0 and whole.iloc[-1]["16 bits, outliers apart"] == int(spilled)


def test_a_finished_training_is_only_loaded(tmp_path, trained, monkeypatch):
    kept = tmp_path / "network.pt"
    first = experiment.trained_network(images(128), (4, 8), steps=3, seed=5, checkpoint=kept)
    without = trained[5].state_dict()
    assert all(torch.equal(value, without[name]) for name, value in first.state_dict().items())
    other = trained[7].state_dict()
    assert not torch.equal(other["0.weight"], without["0.weight"])

    def refused(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(experiment.ImageClassifier, "loss", refused)
    again = experiment.trained_network(images(128), (4, 8), steps=3, seed=5, checkpoint=kept)
    assert all(torch.equal(value, without[name]) for name, value in again.state_dict().items())


def test_errors_of_the_techniques(trained):
    test, calibration = images(40, seed=1), images(20, seed=2).tensor()
    table = experiment.technique_errors(trained, test, calibration)
    assert len(table) == 2 * 5 * 2 and (table.groupby(["step", "bits"]).size() == 2).all()
    wide, narrow = (table[table["bits"] == bits].set_index(["seed", "step"])["error"] for bits in (8, 4))
    assert (wide < narrow / 2).all()
    network = trained[7].eval()
    recipe = Recipe(weight_bits=4, activation_bits=4, per_channel=True)
    with torch.no_grad():
        exact = network(test.tensor())
        scores = quantize_network(network, calibration, recipe)(test.tensor())
    row = table.query("seed == 7 and step == '+ per channel' and bits == 4").iloc[0]
    assert row["error"] == pytest.approx(float((scores - exact).norm() / exact.norm()), rel=1e-5)
    right = [float((each.argmax(1) == test.labels).double().mean()) for each in (exact, scores)]
    assert row["loss"] == pytest.approx(100 * (right[0] - right[1]))


def test_values_by_seed():
    table = pd.DataFrame({"seed": [1, 1, 2, 2], "at": ["end", 64, "end", 64], "error": [0.1, 0.2, 0.3, 0.4]})
    assert experiment.per_seed(table, "error", at="end") == [0.1, 0.3]
    assert experiment.per_seed(table, "error", at=64) == [0.2, 0.4]
    for where in ({}, {"at": "start"}, {"seed": 1}):
        with pytest.raises(ValueError, match="expected one row per seed"):
            experiment.per_seed(table, "error", **where)


def test_what_the_rules_compare(trained):
    techniques = experiment.technique_errors(trained, images(12, seed=1), images(20, seed=2).tensor())
    measured = experiment.by_arm(techniques)
    arms = {(metric, arm): values for metric, by_arm in measured.items() for arm, values in by_arm.items()}
    assert all(len(values) == 2 for values in arms.values())
    for (metric, arm), (column, query) in {
        ("loss of top-1 accuracy", "8 bits, all techniques"): ("loss", "step == '+ net-aware' and bits == 8"),
        ("error of the logits at 4 bits", "per channel, least error, net-aware"):
            ("error", "step == '+ net-aware' and bits == 4"),
        ("error of the logits at 4 bits", "min–max per tensor"):
            ("error", "step == 'min–max per tensor' and bits == 4"),
    }.items():  # fmt: skip
        assert arms.pop((metric, arm)) == techniques.query(query)[column].tolist()
    assert not arms


def test_the_network_is_left_as_it_is(trained):
    network = trained[5].train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    experiment.technique_errors({5: network}, images(10), images(10).tensor())
    assert all(module.training for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
