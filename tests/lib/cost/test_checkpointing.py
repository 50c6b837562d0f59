"""The optimum placement of checkpoints against all placements, closed forms and a network's known figures."""

from __future__ import annotations

import math
from itertools import chain, combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.cost.checkpointing import checkpoint_cost, checkpoint_optimum
from lib.cost.stored_activations import stored_by_unit
from lib.models.vision.inception import InceptionV3
from lib.models.vision.resnet import resnet


def every_placement(n: int):
    return chain.from_iterable(combinations(range(n), k) for k in range(n + 1))


sizes = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=10)


@given(sizes)
def test_optimum_is_the_best_of_all(units):
    outputs, interiors = zip(*units, strict=True)
    best = min(checkpoint_cost(outputs, interiors, kept).total for kept in every_placement(len(units)))
    found = checkpoint_optimum(outputs, interiors)
    assert found.total == best
    assert found == checkpoint_cost(outputs, interiors, found.kept)


def test_a_greedy_placement_is_not_the_optimum():
    """Keeping whenever a segment would exceed the optimum's own bound costs more: the test above can fail."""
    outputs, interiors = (5, 9, 1, 9), (3, 0, 8, 2)
    bound = checkpoint_optimum(outputs, interiors).segment
    greedy, held = [], 0
    for index, (output, interior) in enumerate(zip(outputs, interiors, strict=True)):
        held += interior
        if held + output > bound:
            greedy.append(index)
            held = 0
        else:
            held += output
    assert checkpoint_cost(outputs, interiors, greedy).total > checkpoint_optimum(outputs, interiors).total


@pytest.mark.parametrize("n", [4, 16, 25, 64, 100])
def test_equal_units_need_twice_the_root(n):
    found = checkpoint_optimum([1.0] * n, [0.0] * n)
    assert found.total == math.ceil(2 * math.sqrt(n + 1)) - 2
    assert abs(found.total - 2 * math.sqrt(n)) <= 2


def test_cost_by_hand():
    found = checkpoint_cost((4, 3, 2, 1), (10, 20, 30, 40), (1,))
    assert (found.checkpoints, found.segment, found.total) == (3, max(10 + 4 + 20, 30 + 2 + 40 + 1), 76)
    assert checkpoint_cost((4, 3), (1, 2), ()).total == 10
    assert checkpoint_cost((4, 3), (1, 2), (0, 1)).total == 9


def test_resnet152_at_block_granularity():
    """Bytes per image at 224², float32: 11.239 MB of checkpoints and a segment of 8.831 MB."""
    with torch.device("meta"):
        model = resnet(152)
    blocks = [f"layer{stage + 1}.{k}" for stage, n in enumerate((3, 8, 36, 3)) for k in range(n)]
    units = stored_by_unit(model, ["maxpool", *blocks], (1, 3, 224, 224))
    assert int(units["output"].sum() + units["interior"].sum()) == 21_249_536
    found = checkpoint_optimum((4 * units["output"]).tolist(), (4 * units["interior"]).tolist())
    assert (found.checkpoints, found.segment) == (11_239_424, 8_830_976)
    image = 4 * 3 * 224 * 224
    packed = 21_249_536 * (3 + 0.02 * 64) / 8 + image
    assert 1 - packed / (found.total + image) == pytest.approx(0.421, abs=5e-4)


def test_inception_at_module_granularity():
    """Bytes per image at 299²; each layer of the stem is a unit."""
    with torch.device("meta"):
        model = InceptionV3()
    ends = [name for name, _ in model.named_children() if name not in ("dropout", "fc")]
    units = stored_by_unit(model, ends, (1, 3, 299, 299))
    values = int(units["output"].sum() + units["interior"].sum())
    assert values == 11_680_576
    found = checkpoint_optimum((4 * units["output"]).tolist(), (4 * units["interior"]).tolist())
    assert (found.checkpoints, found.segment) == (9_145_600, 5_576_768)
    image = 4 * 3 * 299 * 299
    assert 1 - (values * 4.28 / 8 + image) / (found.total + image) == pytest.approx(0.536, abs=5e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checkpoint_optimum([], []), "as many outputs as interiors"),
        (lambda: checkpoint_optimum([1], [1, 2]), "as many outputs as interiors, got 1 and 2"),
        (lambda: checkpoint_optimum([1, -1], [0, 0]), "finite and not negative"),
        (lambda: checkpoint_optimum([1, math.nan], [0, 0]), "finite and not negative"),
        (lambda: checkpoint_optimum([1], [0], factor=0), "factor must be finite and above 0, got 0"),
        (lambda: checkpoint_cost([1, 1], [0, 0], (2,)), r"different indices in 0\.\.1"),
        (lambda: checkpoint_cost([1, 1], [0, 0], (0, 0)), r"different indices in 0\.\.1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
