"""Counts of the published networks against closed forms, and every subset once with its own total."""

from itertools import chain, combinations

import pandas as pd
import pytest
from scipy.optimize import linprog

from lib.experiments import oneshot_compression_counts as counts
from lib.ledger.schema import load_ledger
from lib.models.vision.googlenet import INCEPTIONS

#: AlexNet's layers at its published definition: inputs, outputs and taps of each group, groups, places.
SHAPES = {
    "conv1": (3, 96, 121, 1, 55 * 55),
    "conv2": (48, 128, 25, 2, 27 * 27),
    "conv3": (256, 384, 9, 1, 13 * 13),
    "conv4": (192, 192, 9, 2, 13 * 13),
    "conv5": (192, 128, 9, 2, 13 * 13),
    "fc6": (256, 4096, 36, 1, 1),
    "fc7": (4096, 4096, 1, 1, 1),
    "fc8": (4096, 1000, 1, 1, 1),
}


def printed(claim: str) -> dict[str, float]:
    return {number.name: number.value for number in load_ledger("oneshot_compression")[claim].paper}


@pytest.fixture(scope="module")
def counted():
    networks = counts.published_networks()
    ranks = counts.layer_ranks(printed("C9"))
    networks["AlexNet*"] = counts.with_ranks(networks["AlexNet"], ranks)
    tables = counts.operation_tables(networks)
    parts = counts.parts_of_layers(tables["AlexNet*"])
    sums = {name: counts.in_millions(table) for name, table in tables.items()}
    return sums, parts, counts.layers_before_and_after(tables["AlexNet"], parts, ranks)


def test_ranks_are_read_from_names():
    numbers = {"conv1, R4": 26.0, "conv2, R3": 25.0, "conv2, R4": 59.0, "phone, time": 1.0, "alone": 2.0}
    assert counts.layer_ranks(numbers) == {"conv1": 26, "conv2": (25, 59)}
    assert list(counts.layer_ranks(printed("C9"))) == list(SHAPES)


def test_the_ledgers_main_table_is_whole():
    """Twenty pairs of numbers, each original larger than what became of it."""
    pairs = []
    for claims in (("C10a", "C10e", "C10g"), ("C11a", "C11b"), ("C12a", "C12b", "C12e"), ("C13a", "C13c")):
        numbers = {name: value for claim in claims for name, value in printed(claim).items()}
        pairs += [(numbers[w], numbers[f"{w} of the compressed network"]) for w in ("weights", "FLOPs")]
    for claim in ("C3a", "C4"):
        numbers = printed(claim)
        before = [name for name in numbers if name.endswith(", original")]
        pairs += [(numbers[name], numbers[name.replace(", original", ", compressed")]) for name in before]
    assert len(pairs) == 20 and all(original > compressed > 0 for original, compressed in pairs)


def test_layers_are_those_of_the_closed_form(counted):
    _, parts, by_layer = counted
    for layer, ranks in counts.layer_ranks(printed("C9")).items():
        inputs, outputs, taps, groups, places = SHAPES[layer]
        r3, r4 = ranks if isinstance(ranks, tuple) else (None, ranks)
        weights = groups * ((inputs * r3 + taps * r3 * r4 if r3 else taps * inputs * r4) + outputs * r4)
        assert by_layer.loc[layer, "weights*"] == weights
        assert by_layer.loc[layer, "weights"] == groups * taps * inputs * outputs
        assert by_layer.loc[layer, "macs"] == groups * taps * inputs * outputs * places
        assert by_layer.loc[layer, "R3, R4"] == (f"{r3}, {r4}" if r3 else f"{r4}")
    assert by_layer["weights ratio"]["conv2"] == pytest.approx(307_200 / 91_254)
    expand = parts.set_index(["layer", "part"]).loc[("conv1", "expand"), "macs"]
    assert expand == 26 * 96 * 55 * 55


def test_no_layer_is_reduced_by_more_than_its_ranks_allow(counted):
    """The paper's bound: operations and weights fall at most S·T/(R3·R4) times."""
    _, _, by_layer = counted
    for layer, ranks in counts.layer_ranks(printed("C9")).items():
        inputs, outputs = SHAPES[layer][:2]
        r3, r4 = ranks if isinstance(ranks, tuple) else (inputs, ranks)
        for what in ("weights ratio", "macs ratio"):
            assert 1 < by_layer.loc[layer, what] < inputs * outputs / (r3 * r4)


def test_sums_in_millions(counted):
    sums, _, by_layer = counted
    assert sums["AlexNet*"]["weights"] == pytest.approx(10.724888) == by_layer["weights*"].sum() / 1e6
    assert sums["AlexNet"]["weights"] == pytest.approx(60.954656)
    assert sums["AlexNet"]["FLOPs"] == pytest.approx(725.07, abs=0.005)
    assert sums["AlexNet"]["macs"] == pytest.approx(724.41, abs=0.005)
    assert sums["VGG-16"]["FLOPs"] == pytest.approx(15_483.82, abs=0.005)
    assert sums["VGG-S"]["FLOPs"] == pytest.approx(2639.58, abs=0.005)


def test_alexnets_numbers_and_the_second_conv1():
    original, compressed = {"weights": 60.0, "FLOPs": 700.0}, {"weights": 10.0, "FLOPs": 175.0}
    assert counts.alexnet_numbers(original, compressed, 105.0) == {
        "weights of the compressed network": 10.0,
        "weights, original over compressed": 6.0,
        "FLOPs of the compressed network": 175.0,
        "FLOPs, original over compressed": 4.0,
        "FLOPs under this reading": 280.0,
        "original over compressed, under this reading": 2.5,
    }


def test_googlenet_without_its_classifier():
    """6,990,272 weights, of which 1024 × 1000 are the classifier's."""
    table = counts.operation_tables({"GoogLeNet": counts.published_networks()["GoogLeNet"]})["GoogLeNet"]
    found = counts.googlenet_numbers(table, {"weights": 6.9, "weights of the compressed network": 4.0})
    assert list(found.values()) == pytest.approx([6.9 / 4, (6.990272 - 1.024) / 4])


def test_what_googlenets_ratios_leave_of_its_kernels():
    """The most weights that the FLOPs allow, by a linear programme: a share of each kernel stays."""
    table = counts.operation_tables({"GoogLeNet": counts.published_networks()["GoogLeNet"]})["GoogLeNet"]
    found = counts.googlenet_readings(table, weights_ratio=1.28, flops_ratio=2.06)
    assert found["FLOPs in all"].tolist() == pytest.approx([1585.899032 / 2.06] * 3)
    by_name = table.set_index("layer")
    modules = [f"inceptions.{name}.branch3.conv.conv" for name in INCEPTIONS]
    sets = [modules, [*modules, "stem.conv2.conv"], [*modules, "stem.conv2.conv", "stem.conv1.conv"]]
    for names, row in zip(sets, found.itertuples(index=False), strict=True):
        rest, allowed, most, to_keep = row
        weights, macs = (by_name.loc[names, what].to_numpy() / 1e6 for what in ("weights", "macs"))
        assert rest == pytest.approx(1585.899032 - macs.sum())
        assert to_keep == pytest.approx(weights.sum() - 5.966272 * (1 - 1 / 1.28))
        best = linprog(-weights, A_ub=[macs], b_ub=[max(0, allowed - rest)], bounds=[(0, 1)] * len(names))
        assert most == pytest.approx(-best.fun, abs=1e-6)
    assert (found["weights kept at most"] >= found["weights to be kept"]).tolist() == [False, False, True]


def test_vgg16s_convolutions_apart_from_what_stays():
    columns = ["kind", "weights", "biases", "macs", "bias_adds", "operations", "weights_read", "use"]
    matrix = ("linear", 8e6, 0, 8e6, 0, 0, 0, 0)
    original = pd.DataFrame([("conv", 4e6, 0, 9e6, 1e6, 0, 0, 0), matrix], columns=columns)
    compressed = pd.DataFrame([("conv", 1e6, 0, 2e6, 0, 0, 0, 0), matrix], columns=columns)
    found = counts.vgg16_numbers(original, compressed, {"weights, original over compressed": 1.2})
    assert found == {
        "weights, original over compressed": pytest.approx(12 / 9),
        "FLOPs, original over compressed": pytest.approx(1.8),
        "weights of the convolutions": pytest.approx(1),
        "weights of the convolutions, by the ratio": pytest.approx(2),
    }


def test_printed_quotients():
    names = ("weights", "FLOPs", "weights of the compressed network", "FLOPs of the compressed network")
    sizes = {"A": dict(zip(names, (6.0, 8.0, 3.0, 2.0), strict=True))}
    measured = {"A, phone, time, original": 9.0, "A, phone, time, compressed": 6.0, "A, over": 7.0}
    expected = {"A, weights": 2.0, "A, FLOPs": 4.0, "A, phone, time": 1.5}
    assert counts.printed_quotients(sizes, measured) == expected


def test_arithmetic_intensity_in_closed_form():
    """2·D²·S²·N operations over D²·S² weights and 2·S·N numbers in and out (Kim et al., for one image)."""
    for channels, side in ((256, 13), (8, 5)):
        found = counts.arithmetic_intensities(channels, side)
        places = side**2
        for taps in (1, 3):
            moved = taps**2 * channels**2 + 2 * channels * places
            name = f"{taps} × {taps}, {channels} channels, {side} × {side}"
            assert found.pop(name) == pytest.approx(2 * taps**2 * channels**2 * places / moved)
        assert not found


def test_all_subsets():
    items = {"a": 1.0, "b": 10.0, "c": -0.5}
    found = counts.subset_totals(100, items)
    every = chain.from_iterable(combinations(items, n) for n in range(4))
    assert found.to_dict() == {" ".join(names): 100 + sum(items[n] for n in names) for names in every}
    assert found.index[0] == "" and len(found) == 8
    assert counts.subset_totals(3, {}).tolist() == [3]
    assert counts.subset_totals(100, pd.Series(items)).equals(found)
    with pytest.raises(ValueError, match="at most 20 items, got 21"):
        counts.subset_totals(0, {str(k): 1 for k in range(21)})


def test_readings_find_the_layers_that_were_counted(counted):
    """Made-up printed numbers, from layers that we choose, are traced to these layers."""
    sums, _, by_layer = counted
    full, star = sums["AlexNet"], sums["AlexNet*"]
    flops = star["FLOPs"] + (by_layer["macs"] - by_layer["macs*"])[["conv3", "conv5"]].sum() / 1e6
    ratio = full["weights"] / (star["weights"] + by_layer["weights"]["conv4"] / 1e6)
    found = counts.readings_of_the_main_table(
        by_layer, full, star, flops=round(flops), weights_ratio=round(ratio, 2)
    )
    assert len(found) == 2 * 2**8
    by_flops, by_ratio = (set(found.index[found[column]]) for column in found)
    assert ("left uncompressed", "conv3 conv5") in by_flops
    assert ("original counted in addition", "conv4") in by_ratio
    assert ("left uncompressed", "") not in by_flops | by_ratio
