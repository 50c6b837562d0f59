"""The map of the PROFIT chapter: its places, what its arms share, and what they do not."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from lib.experiments import profit_map
from lib.experiments.profit_map import (
    ARMS,
    Descent,
    Place,
    Prepared,
    freezing_scores,
    frozen_layers,
    gains,
    mean_scores,
    places,
    prepared,
    scores_by_bits,
)
from lib.quantization.convert import quantized_layers

DESCENT = Descent(stabilise_steps=1, sample_steps=4)
PLACE = Place(3, 0.1, 0, (2, 3), ARMS)


def test_all_places_of_the_map():
    found = list(places([2, 3], [0.25, 0.1], [30, 10], [5, 6, 7, 8]))
    by_place = {(place.bits, place.width, place.seed): (place.rounds, place.arms) for place in found}
    assert len(by_place) == len(found) == 4 * 3 + 1
    for bits in (2, 3):
        for seed in (5, 6, 7):
            assert by_place[bits, 0.25, seed] == ((30, 10), ARMS)
            assert by_place[bits, 0.1, seed] == ((30,), ("PROFIT", "no freezing"))
    assert by_place[3, 0.25, 8] == ((30,), ARMS)  # judged: one more seed, at the longest rounds
    assert (found[0].bits, found[-1]) == (2, Place(3, 0.1, 7, (30,), ARMS[:2]))


@pytest.mark.parametrize(
    ("bits", "widths", "rounds", "name"),
    [
        ([], [1.0], [1], "bits"),
        ([2], [], [1], "widths"),
        ([2], [1.0], [], "rounds"),
        ([2, 2], [1.0], [1], "bits"),
    ],
)
def test_a_map_without_places_is_refused(bits, widths, rounds, name):
    with pytest.raises(ValueError, match=rf"^the map needs {name}, at least one and none twice, got \["):
        list(places(bits, widths, rounds, [0]))


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
    ready = prepared(made, network, PLACE, DESCENT)
    assert bits_of(ready.network) == ({3}, {4}) and ready.on_the_way == {} and ready.teacher is None
    assert len(ready.instability) == sum(isinstance(m, nn.Conv2d) for m in network.modules())
    assert max(ready.instability.values()) > 0
    assert torch.equal(weights_of(network), before)
    names = {path.stem for path in tmp_path.iterdir()} - {"MobileNetV2 width 0.1, last_channels 16, seed 0"}
    assert names == {f"{stage}, 3 bits, width 0.1, seed 0" for stage in ("stabilising", "sampling")}


def test_a_network_goes_down_the_path(tmp_path, monkeypatch, profit_trainings, small_mobilenet):
    made, seen = profit_trainings(tmp_path), []
    run = type(made).run

    def watched(self, stage, network, steps, *rest, **options):
        seen.append((stage.__name__, options["stream"], steps, *bits_of(network), options["teacher"]))
        return run(self, stage, network, steps, *rest, **options)

    network = small_mobilenet(made)
    monkeypatch.setattr(type(made), "run", watched)
    descent = Descent(path=[8, 5], path_steps=2, stabilise_steps=1, sample_steps=4)
    ready = prepared(made, network, PLACE, descent, network)
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


def test_arms_share_the_first_round_and_the_batches(
    tmp_path, monkeypatch, profit_trainings, small_mobilenet, weights_of
):
    made = profit_trainings(tmp_path)
    ready = prepared(made, small_mobilenet(made), PLACE, DESCENT)
    start, calls = weights_of(ready.network), []
    real = profit_map.finetune

    def watched(network, batch_at, steps, recipe, rounds, **options):
        asked, began = [], weights_of(network)
        best = real(
            network, lambda step: asked.append(step) or batch_at(step), steps, recipe, rounds, **options
        )
        calls.append((options["name"], began, weights_of(best), rounds, asked, batch_at(0)["images"]))
        return best

    monkeypatch.setattr(profit_map, "finetune", watched)
    rows = pd.DataFrame(freezing_scores(made, ready, PLACE, DESCENT))
    assert torch.equal(weights_of(ready.network), start)
    assert [name.partition(",")[0] for name, *_ in calls] == ["shared round", *ARMS] * 2
    for steps, part in ((2, calls[:4]), (3, calls[4:])):
        (_, began, shared, rounds, asked, images), *arms = part
        assert torch.equal(began, start) and rounds == [()] and asked == list(range(steps))
        for name, began, _, rounds, asked, its_images in arms:
            assert torch.equal(began, shared), name
            assert asked == list(range(steps, 3 * steps)) and torch.equal(images, its_images)
            assert rounds == frozen_layers(name.partition(",")[0], ready.instability)[1:]
        assert len({tuple(end.tolist()) for _, _, end, *_ in arms}) == 3
    assert list(rows) == ["bits", "width", "steps", "arm", "seed", "top-1"]
    assert rows["arm"].tolist() == [*ARMS] * 2 and rows["steps"].tolist() == [2] * 3 + [3] * 3


def test_the_average_is_what_is_measured_where_there_is_one(
    monkeypatch, profit_trainings, small_mobilenet, weights_of
):
    made = profit_trainings()
    ready = prepared(made, small_mobilenet(made), PLACE, DESCENT)
    measured = []
    monkeypatch.setattr(type(made), "top1", lambda self, network: measured.append(weights_of(network)) or 0.0)
    place = Place(3, 0.1, 0, (2,), ("PROFIT",))
    for ema_rate in (0.0, 1e-9):
        freezing_scores(made, ready, place, Descent(sample_steps=4, ema_rate=ema_rate))
    plain, average = measured
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
        ready = prepared(made, small_mobilenet(made), PLACE, DESCENT)
        average = Descent(sample_steps=4, ema_rate=0.1)
        rows = freezing_scores(made, ready, PLACE, average)
        return rows, ready.instability, calls

    whole = run(tmp_path / "whole")
    assert len(set(whole[2])) == len(whole[2]) == 1 + 2 + 2 * 4  # every training has a name of its own
    for killed in (2, 6, 9):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(killed), killed)
        assert run(tmp_path / str(killed)) == whole


SCORES = pd.DataFrame(
    [
        {"bits": 3, "width": width, "steps": 10, "arm": arm, "seed": seed, "top-1": value + seed}
        for width, arm, value in [
            (0.25, "PROFIT", 60.0),
            (0.25, "no freezing", 50.0),
            (0.25, "most stable first", 48.0),
            (0.1, "PROFIT", 40.0),
            (0.1, "no freezing", 41.0),
        ]
        for seed in (0, 1)
    ]
)


def test_gains_are_paired_by_seed():
    gain = gains(SCORES)
    assert gain.loc[(3, 0.25, 10), "PROFIT"].tolist() == [10, 10]
    assert gain.loc[(3, 0.25, 10), "most stable first"].tolist() == [-2, -2]
    assert gain.loc[(3, 0.1, 10), "PROFIT"].tolist() == [-1, -1]
    assert gain.loc[(3, 0.1, 10), "most stable first"].isna().all()


def test_means_over_seeds():
    means = mean_scores(SCORES).set_index("width")
    assert means.loc[0.25, ["PROFIT", "no freezing", "most stable first", "seeds"]].tolist() == [
        60.5,
        50.5,
        48.5,
        2,
    ]
    assert means.loc[0.1, "PROFIT"] == 40.5 and means.loc[0.1].isna()["most stable first"]


def test_prepared_networks_have_nothing_on_the_way_by_default():
    assert Prepared(nn.Identity(), {}).on_the_way == {}


def test_accuracy_is_filed_under_its_own_bits():
    """On the path activations have as many bits as weights; PROFIT's have four."""
    way = [{8: 71.0, 5: 70.0}, {8: 72.0, 5: 69.0}]
    paths = {"8 bits": [71.0, 72.0], "5 bits": [70.0, 69.0]}
    assert scores_by_bits(way, [68.0, 67.0], 4) == paths | {"4 bits": [68.0, 67.0]}
    for other in (3, 5, 8):
        assert scores_by_bits(way, [60.0, 61.0], other) == paths
    assert scores_by_bits([{}, {}], [68.0, 67.0], 4) == {"4 bits": [68.0, 67.0]}
    assert scores_by_bits([{4: 71.0}], [68.0], 3) == {}
