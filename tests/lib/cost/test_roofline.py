"""The roofline and the accelerator with on-chip memory: limits, by hand, invariants, a known table."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lib.cost.activations import live_activations
from lib.cost.operations import count_operations
from lib.cost.roofline import Accelerator, Layer, Roofline, Workload, workload
from lib.models.language.translation import TranslationModel
from lib.models.vision.resnet import resnet, resnext
from lib.models.vision.shufflenet import ShuffleDetector
from lib.models.vision.video_resnet import ir_csn

MIB = 2**20
TERA = 1e12


def on_meta(make, *arguments, **options):
    with torch.device("meta"):
        return make(*arguments, **options)


def perceptron(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))


# --- one level ---


def test_the_lower_of_two_ceilings():
    machine = Roofline(100.0, 10.0)
    assert machine.attainable([1, 10, 100]).tolist() == [10, 100, 100]
    operations, moved = np.array([5.0, 700.0, 3.0]), np.array([2.0, 9.0, 400.0])
    seconds = np.maximum(operations / 100, moved / 10)
    np.testing.assert_allclose(operations / seconds, machine.attainable(operations / moved))


# --- workloads ---


def test_workload_of_a_block_by_hand():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(2)
            self.relu = nn.ReLU()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            return self.pool(self.relu(self.norm(self.conv(x)) + x))

    work = workload(Block(), (1, 2, 4, 4))
    assert [layer.name for layer in work.layers] == ["conv", "add", "max_pool2d_with_indices"]
    x, made = work.layers[0].reads[0], work.layers[0].writes[0]
    assert work.layers[0] == Layer("conv", 2 * 32 * 18, 36, (x,), (made,))
    assert set(work.layers[1].reads) == {x, made} and len(work.layers[1].writes) == 1
    assert work.layers[2].reads == work.layers[1].writes
    assert [work.elements[layer.writes[0]] for layer in work.layers] == [32, 32, 8]


def test_workload_keeps_every_operation_and_weight():
    for model, shape in ((resnet(18, width=0.25), (2, 3, 64, 64)), (nn.LSTM(8, 16, num_layers=2), (5, 2, 8))):
        work, table = workload(model, shape), count_operations(model, shape)
        assert sum(layer.operations for layer in work.layers) == table["operations"].sum()
        assert sum(layer.weights for layer in work.layers) == table["weights"].sum()
    assert len(work.layers) == 1  # the gates of a recurrent layer are inside it


def test_workload_of_attention_counts_its_products():
    model = TranslationModel(
        source_vocabulary=9, target_vocabulary=9, embedding_size=4, hidden_size=4, layers=1
    )
    tokens = (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    work = workload(model, inputs=tokens)
    table = count_operations(model, inputs=tokens, outside="rows")
    assert sum(layer.operations for layer in work.layers) == table["operations"].sum()
    assert [layer.operations for layer in work.layers if layer.name == "bmm"] == [2 * 2 * 3 * 5 * 4] * 2


def test_a_layer_used_twice_is_two_layers():
    layer = nn.Linear(4, 4)
    work = workload(nn.Sequential(layer, layer), (1, 4))
    assert [(step.name, step.weights) for step in work.layers] == [("0", 16), ("0", 16)]


# --- accelerator ---


def test_allocation_by_hand():
    """Three layers in a chain. On-chip first: the activation read twice, then the smallest."""
    layers = (Layer("a", 1, 8, (0,), (1,)), Layer("b", 1, 4, (1,), (2,)), Layer("c", 1, 0, (1, 2), (3,)))
    work = Workload(layers, (16, 6, 2, 1))
    for capacity, activations, weights in (
        (0, set(), set()),
        (6, {1}, set()),
        (8, {1, 2}, set()),  # 1 and 2 are alive together, 3 comes when 2 dies: 6 + 2 + 1 > 8
        (9, {1, 2, 3}, set()),
        (13, {1, 2, 3}, {1}),
        (21, {1, 2, 3}, {0, 1}),
        (34, {0, 1, 2, 3}, {0, 1}),
    ):
        assert Accelerator(capacity).allocate(work) == (activations, weights)
    table = Accelerator(13, operations_per_second=1, dram_bytes_per_second=2, chip_bytes_per_second=4).run(
        work
    )
    assert table["dram_bytes"].tolist() == [16 + 8, 0, 0]
    assert table["chip_bytes"].tolist() == [6, 6 + 2 + 4, 6 + 2 + 1]
    assert table["seconds"].tolist() == [12, 3, 2.25]
    assert table["bound"].tolist() == ["dram", "chip", "chip"]


def test_without_a_chip_it_is_the_one_level_roofline():
    model = on_meta(resnet, depth=18)
    work = workload(model, (1, 3, 224, 224))
    bounds = set()
    for dram in (100e9, 5e12):  # at the first every layer waits for memory
        table = Accelerator(0, dram_bytes_per_second=dram).run(work)
        assert (table["chip_bytes"] == 0).all()
        computing, waiting = table["operations"] / 100e12, table["dram_bytes"] / dram
        np.testing.assert_allclose(table["seconds"], np.maximum(computing, waiting))
        bounds |= set(table["bound"])
    assert bounds == {"operations", "dram"}


@given(
    capacity=st.floats(0, 40 * MIB),
    peak=st.floats(1e9, 1e15),
    dram=st.floats(1e9, 1e13),
    chip=st.floats(1e9, 1e14),
)
def test_achieved_is_below_peak_and_allocation_within_capacity(capacity, peak, dram, chip):
    machine = Accelerator(
        capacity, operations_per_second=peak, dram_bytes_per_second=dram, chip_bytes_per_second=chip
    )
    assert machine.achieved(WORK) <= peak * (1 + 1e-9)
    activations, weights = machine.allocate(WORK)
    for index in range(len(WORK.layers)):
        alive = {
            number
            for number in activations
            if any(number in layer.reads + layer.writes for layer in WORK.layers[index:])
            and (
                any(number in layer.writes for layer in WORK.layers[: index + 1])
                or not any(number in layer.writes for layer in WORK.layers)
            )
        }
        held = sum(WORK.elements[number] for number in alive)
        assert held + sum(WORK.layers[w].weights for w in weights) <= capacity + 1e-6


WORK = workload(on_meta(resnet, depth=18), (1, 3, 224, 224))


@given(st.floats(1e9, 1e14), st.floats(1, 10))
def test_more_bandwidth_is_never_slower_at_a_fixed_allocation(rate, factor):
    for name in ("operations_per_second", "dram_bytes_per_second", "chip_bytes_per_second"):
        slow = Accelerator(8 * MIB, **{name: rate}).achieved(WORK)
        assert Accelerator(8 * MIB, **{name: rate * factor}).achieved(WORK) >= slow * (1 - 1e-9)


def test_endless_capacity_is_as_fast_as_it_gets():
    endless = Accelerator(math.inf).achieved(WORK)
    assert all(Accelerator(size * MIB).achieved(WORK) <= endless for size in range(20))
    activations, weights = Accelerator(math.inf).allocate(WORK)
    assert len(weights) == 21 and len(activations) == len(
        {n for layer in WORK.layers for n in layer.reads + layer.writes}
    )


def test_the_least_useful_capacity_is_what_lives_plus_the_weights():
    model, shape = on_meta(resnet, depth=18), (1, 3, 224, 224)
    live = live_activations(model, shape, inplace_add=False)["live"].max()
    enough = live + count_operations(model, shape)["weights"].sum()
    assert Accelerator(enough).achieved(WORK) == Accelerator(math.inf).achieved(WORK)


CAPACITIES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 1024)


@pytest.mark.parametrize(
    ("make", "curve", "fast", "tolerance"),
    [
        (
            lambda: workload(on_meta(resnet, stride_in_1x1=True), (1, 3, 224, 224)),
            (12.1, 19.0, 23.3, 26.3, 28.8, 38.7, 77.9, 77.9, 77.9, 77.9),
            97.6,
            0.05,
        ),
        (
            lambda: workload(on_meta(resnext), (1, 3, 224, 224)),
            (14.0, 25.5, 30.0, 32.7, 34.0, 38.2, 49.1, 82.1, 82.1, 82.1),
            98.2,
            0.05,
        ),
        (
            lambda: workload(on_meta(resnext, width_per_group=48), (1, 3, 224, 224)),
            (27.5, 28.4, 30.3, 32.8, 34.3, 35.2, 35.4, 35.9, 37.6, 98.6),
            99.9,
            0.15,
        ),
        (
            lambda: workload(on_meta(ir_csn), (1, 3, 32, 224, 224)),
            (10.9, 11.3, 12.0, 13.0, 15.3, 17.9, 25.0, 38.8, 68.2, 68.2),
            96.1,
            0.05,
        ),
        (  # the earlier count took the crops of the regions as given; here they are read and written
            lambda: workload(
                on_meta(ShuffleDetector), inputs=(torch.zeros(1, 3, 600, 800), torch.zeros(25, 4))
            ),
            (10.6, 11.9, 15.5, 29.6, 48.1, 65.5, 65.5, 65.5, 65.5, 65.5),
            96.6,
            0.65,
        ),
        (
            lambda: workload(on_meta(perceptron, 2560, 1024, 256, 32), (16, 2560)),
            (3.1, 3.5, 3.5, *[31.1] * 7),
            100,
            0.05,
        ),
        (
            lambda: workload(on_meta(perceptron, 2560, 1024, 256, 32), (100, 2560)),
            (17.0, 21.6, 21.6, *[99.6] * 7),
            100,
            0.05,
        ),
        (
            lambda: workload(on_meta(nn.Linear, 1024, 4096), (8, 1024)),
            (1.6, 1.6, 1.6, 1.6, *[15.9] * 6),
            100,
            0.06,
        ),
    ],
)
def test_achieved_rates_computed_before_by_another_program(make, curve, fast, tolerance):
    work = make()
    for capacity, rate in zip(CAPACITIES, curve, strict=True):
        achieved = Accelerator(capacity * MIB).achieved(work) / TERA
        assert achieved == pytest.approx(rate, abs=tolerance + 0.005)
    endless = Accelerator(math.inf, chip_bytes_per_second=10 * TERA).achieved(work) / TERA
    assert endless == pytest.approx(fast, abs=max(tolerance, 0.05) + 0.005)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Roofline(0, 1), "ceilings must be positive"),
        (lambda: Roofline(1, float("nan")), "ceilings must be positive"),
        (lambda: Accelerator(-1), "capacity not negative"),
        (lambda: Accelerator(1, dram_bytes_per_second=0), "rates must be positive"),
        (lambda: workload(nn.ReLU(), (1, 2)), "runs no layer with weights"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
