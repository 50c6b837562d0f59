"""PROFIT against no freezing and the opposite order: what the arms share, and what they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib.experiments import profit_freezing
from lib.experiments.profit_freezing import (
    ARMS,
    SETTLED,
    Descent,
    Prepared,
    freezing_scores,
    frozen_layers,
    prepared,
    scores_by_arm,
    scores_by_bits,
)
from lib.quantization.convert import quantized_layers

DESCENT = Descent(stabilise_steps=1, sample_steps=4, round_steps=2)
PLACE = {"bits": 3, "seed": 0}


def test_arms_differ_in_what_they_freeze():
    instability = {"a": 3.0, "b": 1.0, "c": 2.0}
    assert frozen_layers("PROFIT", instability) == [(), ("a",), ("a", "c")]
    assert frozen_layers("most stable first", instability) == [(), ("b",), ("b", "c")]
    assert frozen_layers("no freezing", instability) == [(), (), ()]
    with pytest.raises(ValueError, match="unknown arm 'other'"):
        frozen_layers("other", instability)


def bits_of(network: nn.Module) -> tuple[set, set]:
    layers = [layer for _, layer in quantized_layers(network)]
    return {q.weight_quantizer.bits for q in layers}, {q.input_quantizer.bits for q in layers[1:]}


def test_a_network_is_prepared_at_its_bits(tmp_path, profit_trainings, small_mobilenet, weights_of):
    made = profit_trainings(tmp_path)
    network = small_mobilenet(made)
    before = weights_of(network)
    ready = prepared(made, network, DESCENT, **PLACE)
    assert bits_of(ready.network) == ({3}, {4}) and ready.on_the_way == {} and ready.teacher is None
    assert len(ready.instability) == sum(isinstance(m, nn.Conv2d) for m in network.modules())
    assert max(ready.instability.values()) > 0
    assert torch.equal(weights_of(network), before)
    names = {path.stem for path in tmp_path.iterdir()} - {"MobileNetV2 width 0.1, last_channels 16, seed 0"}
    assert names == {f"{stage}, 3 bits, seed 0" for stage in ("stabilising", "sampling")}


def test_a_network_goes_down_the_path(tmp_path, monkeypatch, profit_trainings, small_mobilenet):
    made, seen = profit_trainings(tmp_path), []
    run = type(made).run

    def watched(self, stage, network, steps, *rest, **options):
        seen.append((stage.__name__, options["stream"], steps, *bits_of(network), options["teacher"]))
        return run(self, stage, network, steps, *rest, **options)

    network = small_mobilenet(made)
    monkeypatch.setattr(type(made), "run", watched)
    descent = replace(DESCENT, path=[8, 5])
    ready = prepared(made, network, descent, **PLACE, teacher=network)
    on_the_way = [
        (stage, (name, bits), steps, {bits}, {bits}, network)
        for bits in (8, 5)
        for stage, name, steps in (
            ("stabilise", "stabilising on the way", 1),
            ("train_stage", "training on the way", 2),
        )
    ]
    there = [("stabilise", ("stabilising", 3), 1), ("sample", ("sampling", 3), 4)]
    assert seen == on_the_way + [(*stage, {3}, {4}, network) for stage in there]
    assert set(ready.on_the_way) == {8, 5} and ready.teacher is network
    prepared(made, network, descent, bits=4, seed=0)
    files = [path.stem for path in tmp_path.iterdir() if "training on the way" in path.stem]
    assert sorted(files) == ["training on the way, 5 bits, seed 0", "training on the way, 8 bits, seed 0"]


def test_arms_share_the_first_round_and_the_batches(
    tmp_path, monkeypatch, profit_trainings, small_mobilenet, weights_of
):
    made = profit_trainings(tmp_path)
    ready = prepared(made, small_mobilenet(made), DESCENT, **PLACE)
    start, calls = weights_of(ready.network), []
    real = profit_freezing.finetune

    def watched(network, batch_at, steps, recipe, rounds, **options):
        asked, began = [], weights_of(network)
        best = real(
            network, lambda step: asked.append(step) or batch_at(step), steps, recipe, rounds, **options
        )
        calls.append((options["name"], began, weights_of(best), rounds, asked, batch_at(0)["images"]))
        return best

    monkeypatch.setattr(profit_freezing, "finetune", watched)
    rows = pd.DataFrame(freezing_scores(made, ready, DESCENT))
    assert torch.equal(weights_of(ready.network), start)
    (_, began, shared, rounds, asked, images), *arms = calls
    assert [name for name, *_ in calls] == [f"{arm}, 3 bits, seed 0" for arm in ("shared round", *ARMS)]
    assert torch.equal(began, start) and rounds == [()] and asked == [0, 1]
    for name, began, _, rounds, asked, its_images in arms:
        assert torch.equal(began, shared), name
        assert asked == [2, 3, 4, 5] and torch.equal(images, its_images)
        assert rounds == frozen_layers(name.partition(",")[0], ready.instability)[1:]
    assert len({tuple(end.tolist()) for _, _, end, *_ in arms}) == 3
    assert list(rows) == ["bits", "arm", "seed", "top-1", "hits"]
    assert rows["arm"].tolist() == ["PROFIT", "no freezing", SETTLED, "most stable first"]


def test_no_freezing_is_tested_as_it_ends_and_with_norms_of_today(
    monkeypatch, profit_trainings, small_mobilenet
):
    made, tested = profit_trainings(), []
    ready = prepared(made, small_mobilenet(made), DESCENT, **PLACE)
    monkeypatch.setattr(type(made), "scores", lambda self, network: tested.append(network) or {})
    freezing_scores(made, ready, DESCENT)
    _, ended, settled, _ = tested
    by_hand = made.with_norms_of_today(ended, 0).state_dict()
    assert all(torch.equal(value, by_hand[key]) for key, value in settled.state_dict().items())
    means = [key for key in by_hand if key.endswith("running_mean")]
    assert not all(torch.equal(ended.state_dict()[key], by_hand[key]) for key in means)


def test_the_average_is_what_is_measured_where_there_is_one(
    monkeypatch, profit_trainings, small_mobilenet, weights_of
):
    made = profit_trainings()
    ready = prepared(made, small_mobilenet(made), DESCENT, **PLACE)
    measured = []
    monkeypatch.setattr(
        type(made), "scores", lambda self, network: measured.append(weights_of(network)) or {}
    )
    monkeypatch.setattr(profit_freezing, "ARMS", ("no freezing",))
    for ema_rate in (0.0, 1e-9):
        freezing_scores(made, ready, replace(DESCENT, ema_rate=ema_rate))
    plain, same, average, _ = measured
    assert torch.equal(plain, same)  # counting statistics moves no weight
    assert (plain - average).abs().max() > 1e-4


def test_a_killed_map_ends_with_the_same_scores(tmp_path, profit_trainings, small_mobilenet):
    def run(folder, broken_after=None):
        made, calls = profit_trainings(folder), []

        def checkpoint(name):
            calls.append(name)
            if len(calls) == broken_after:
                raise KeyboardInterrupt
            return folder / f"{name}.pt"

        made = profit_trainings(folder, checkpoint=checkpoint)
        ready = prepared(made, small_mobilenet(made), DESCENT, **PLACE)
        rows = freezing_scores(made, ready, replace(DESCENT, ema_rate=0.1))
        return [row | {"hits": row["hits"].tolist()} for row in rows], ready.instability, calls

    whole = run(tmp_path / "whole")
    assert len(set(whole[2])) == len(whole[2]) == 1 + 2 + 4  # every training has a name of its own
    for killed in (2, 4, 6):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(killed), killed)
        assert run(tmp_path / str(killed)) == whole


def test_prepared_networks_have_nothing_on_the_way_by_default():
    assert Prepared(nn.Identity(), 3, 0, {}).on_the_way == {}


SCORES = pd.DataFrame(
    [
        {"bits": bits, "arm": arm, "seed": seed, "top-1": value, "hits": np.array([value, value])}
        for bits, base in ((4, 60.0), (3, 50.0), (2, 40.0))
        for arm, more in zip((*ARMS, SETTLED), (1, 2, 3, 4), strict=True)
        for seed, value in ((7, base + more), (5, base - more))
    ]
)


def test_accuracy_as_rules_name_it():
    few = scores_by_arm(SCORES)
    assert set(few) == {"top-1 (W4A4)", "top-1 (W3A4)"}  # 2 bits are in no rule
    assert few["top-1 (W4A4)"]["PROFIT"].mean(axis=1).to_dict() == {7: 61, 5: 59}
    assert few["top-1 (W3A4)"][SETTLED].to_numpy().tolist() == [[54, 54], [46, 46]]
    assert len(few["top-1 (W3A4)"]) == len(ARMS) + 1


def test_accuracy_is_filed_under_its_own_bits():
    """On the path activations have as many bits as weights; PROFIT's have four."""
    way = [{8: 71.0, 5: 70.0}, {8: 72.0, 5: 69.0}]
    paths = {"8 bits": [71.0, 72.0], "5 bits": [70.0, 69.0]}
    assert scores_by_bits(way, SCORES) == paths | {"4 bits": [61.0, 59.0]}
    assert scores_by_bits(way, SCORES[SCORES["bits"] != 4]) == paths
    assert scores_by_bits([{}, {}], SCORES) == {"4 bits": [61.0, 59.0]}
    assert scores_by_bits([{4: 71.0}], SCORES[SCORES["bits"] == 3]) == {}
