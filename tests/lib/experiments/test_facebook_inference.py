"""The table of models, counted: published sizes, hand counts, closed forms, the readings of the ledger."""

import pytest
import torch
from torch import nn

from lib.cost.operations import count_operations
from lib.cost.roofline import Accelerator
from lib.experiments import facebook_inference as counting
from lib.experiments.facebook_inference import (
    average_intensity,
    characterise,
    characterised_networks,
    intensities,
    sizes,
)
from lib.ledger.schema import load_ledger
from lib.models.vision.resnet import resnet, resnext
from lib.models.vision.shufflenet import ShuffleDetector
from lib.models.vision.video_resnet import ip_csn, ir_csn


def test_resnet_50_in_every_convention():
    """Published sizes; the other numbers were counted independently."""
    with torch.device("meta"):
        model = resnet(50, stride_in_1x1=True)
    row = characterise(model, (1, 3, 224, 224))
    assert row["parameters (M)"] == 25.557032 and row["weights (M), all layers"] == 25.502912
    assert row["weights (M), convolutions"] == pytest.approx(25.502912 - 2.048)
    assert [row["live (M)"], row["live, separate add (M)"]] == [1.806336, 2.408448]
    expected = {
        "average per weight, all layers": 302.6,
        "average per weight, convolutions": 328.8,
        "minimum per weight, convolutions": 98,
        "minimum per weight, all layers": 2,
        "average per weight and activation, all layers": 166.9,
        "minimum per weight and activation, convolutions": 54.9,
    }
    assert {name: round(row[name], 1) for name in expected} == expected


def test_a_chain_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    row = characterise(model, (1, 2, 4, 4))
    conv, linear = 2 * 16 * 54, 2 * 240
    assert row["average per weight, all layers"] == pytest.approx((conv + linear) / (54 + 240))
    assert row["average per weight and activation, convolutions"] == pytest.approx(conv / (54 + 32 + 48))
    assert row["live (M)"] == pytest.approx((32 + 48) / 1e6)


@pytest.mark.parametrize("rows", [1, 10, 64])
def test_closed_forms(rows):
    layer = nn.Linear(32, 8, device="meta")
    assert average_intensity(layer, (rows, 32)) == 2 * rows
    moved = 32 * 8 + rows * (32 + 8)
    assert average_intensity(layer, (rows, 32), per="activations_and_weights") == 2 * rows * 32 * 8 / moved
    bag = nn.EmbeddingBag(9, 4, mode="sum", device="meta")
    index = torch.zeros(rows, 7, dtype=torch.int64)
    assert average_intensity(bag, inputs=(index,)) == 1
    assert average_intensity(bag, inputs=(index, None, torch.ones(rows, 7))) == 2


def test_bad_input_is_refused():
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="no layer of kind 'lstm', only linear"):
        average_intensity(layer, (1, 3), kind="lstm")
    with pytest.raises(ValueError, match="per must be"):
        average_intensity(layer, (1, 3), per="bytes")


def test_counts_that_do_not_go_together_are_refused():
    fits = {"rounds": 5, "blocks": 5, "batches": {"vision": 0, "text": 1}}
    counting.check_counts(**fits)
    with pytest.raises(ValueError, match="^blocks are of neighbouring rounds: 4 rounds have no 5 blocks$"):
        counting.check_counts(**fits | {"rounds": 4})
    with pytest.raises(ValueError, match="^no operators to time: one batch of vision, text must be"):
        counting.check_counts(**fits | {"batches": {"vision": 0, "text": 0}})


# --- the cells of the table ---


ROW = {
    "parameters (M)": 5.0,
    "weights (M), convolutions": 4.0,
    "live (M)": 2.0,
    "live, separate add (M)": 3.0,
    "average per weight, all layers": 300.0,
    "average per weight, convolutions": 400.0,
    "minimum per weight, all layers": 2.0,
    "minimum per weight, convolutions": 100.0,
}


def test_numbers_by_the_names_of_the_ledger():
    assert sizes(ROW) == {"parameters": 5, "weights of convolutions": 4, "live activations": 2}
    assert sizes(ROW, separate_add=True)["live activations"] == 3
    every = {"minimum": 100, "average over convolutions": 400, "minimum over convolutions": 100}
    every |= {"minimum in thousands": 0.1}
    assert intensities(ROW, "per weight") == every | {"average": 400, "average in thousands": 0.4}
    assert intensities(ROW, "per weight", average_over="all layers") == every | {
        "average": 300,
        "average in thousands": 0.3,
    }


def test_the_networks_of_the_table_in_its_order():
    networks = characterised_networks(64, 8)
    assert [name.split()[0] for name in networks] == [
        *("ResNet-50", "ResNeXt-101-32×4d", "ResNeXt-101-32×48d"),
        *("Faster-RCNN-Shuffle", "ResNeXt3D-101"),
    ]
    assert all(p.is_meta for model, _ in networks.values() for p in model.parameters())
    few = {name: networks[name] for name in ("ResNet-50", "ResNeXt-101-32×4d")}
    table = counting.characterisation(few, counting.operation_tables(few), separate_add=["ResNet-50"])
    assert table["parameters (M)"].round(2).to_dict() == {"ResNet-50": 25.56, "ResNeXt-101-32×4d": 44.18}
    assert table["live, separate add (M)"].isna().tolist() == [False, True]
    assert table.loc["ResNet-50", "weights (M), convolutions"] == pytest.approx(25.502912 - 2.048)


def regions(height):
    return torch.zeros(1, 3, height, 800), torch.zeros(25, 4)


STILL, CLIP = {"input_shape": (1, 3, 224, 224)}, {"input_shape": (1, 3, 32, 224, 224)}
ALL, CONVOLUTIONS = "all layers", "convolutions"
READINGS = [
    ("V2", resnet, {"stride_in_1x1": True}, STILL, ALL, "{weight:.1f} on average, {least:.0f} at least"),
    ("V2", resnet, {}, STILL, ALL, "{weight:.1f} on average: does not"),
    ("V2", resnet, {"stride_in_1x1": True}, STILL, CONVOLUTIONS, "{weight:.1f} on average: does not"),
    ("V6", resnext, {}, STILL, CONVOLUTIONS, "{weight:.1f} on average, {least:.0f} at least: fits"),
    ("V6", resnext, {}, STILL, ALL, "{weight:.1f} on average, {least_of_all:.0f} at least: does not"),
    ("V8", resnext, {}, STILL, ALL, "{separate:.2f} M: fits"),
    ("V8", resnext, {}, STILL, ALL, "{live:.2f} M: does not"),
    ("V9", ShuffleDetector, {}, {"inputs": regions(800)}, ALL,
     "{live:.1f} M live, {weight:.0f} per weight, {both:.1f} with activations"),
    ("V9", ShuffleDetector, {"groups": 1}, {"inputs": regions(600)}, ALL,
     "{weights:.1f} M weights, {both:.0f} with activations"),
    ("V9", ShuffleDetector, {"groups": 4}, {"inputs": regions(600)}, ALL,
     "{weights:.1f} M weights, {both:.0f} with activations"),
    ("V13", ir_csn, {"stem_pool": False}, CLIP, ALL,
     "{thousands:.1f} thousand per weight and {both:.1f} with activations, but {live:.0f} M live"),
    ("V13", ip_csn, {}, CLIP, ALL, "{weights:.1f} M weights, {weight:.0f} per weight, {live:.1f} M live"),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "make", "options", "given", "layers", "outcome"), READINGS)
def test_the_readings_that_the_ledger_lists_count_as_it_says(claim, make, options, given, layers, outcome):
    with torch.device("meta"):
        row = characterise(make(**options), **given)
    said = outcome.format(
        weights=row["weights (M), all layers"],
        live=row["live (M)"],
        separate=row["live, separate add (M)"],
        weight=row[f"average per weight, {layers}"],
        thousands=row[f"average per weight, {layers}"] / 1e3,
        least=row["minimum per weight, convolutions"],
        least_of_all=row["minimum per weight, all layers"],
        both=row[f"average per weight and activation, {layers}"],
    )
    listed = [reading.outcome for reading in load_ledger("facebook_inference")[claim].interpretations]
    assert any(said in each for each in listed), f"{said!r} is not among {listed}"


def test_sizes_of_the_public_recommenders():
    table = counting.recommender_sizes(counting.recommenders())
    assert table["fully connected (M)"].tolist() == [0.100833, 0.319937, 3.205409]
    assert table["embeddings (billions)"].tolist() == [1.024, 1.024, 0.64]
    listed = [reading.outcome for reading in load_ledger("facebook_inference")["V18"].interpretations]
    for size, outcome in zip(("0.10 M", "0.32 M", "3.2 M"), listed, strict=True):
        assert outcome.startswith(size)


# --- single layers ---


def test_single_layers_in_closed_form():
    recommender, translator = counting.recommenders()["RM3"], counting.translator()
    assert counting.lookup_intensities() == {"sum of rows": 1, "weighted sum of rows": 2}
    assert counting.recommendation_intensities(recommender) == {"lowest": 20, "highest": 200}
    assert counting.decoding_intensities(translator) == {"one token": 2, "eight tokens": 16}
    assert list(counting.family_intensities(recommender, translator).values()) == [1, 2, 200]
    assert counting.linear_intensities(3, 5, 7) == {"per weight, M = 3": 6, "per input activation, N = 7": 14}
    group, plane, volume = counting.convolution_intensities().values()
    pixels, taps = 256 * 28 * 28, 9 * 8  # outputs; products for each
    assert group == pytest.approx(2 * pixels * taps / (256 * taps + 256 * 56 * 56 + pixels))
    pixels = 248 * 75 * 100
    assert plane == pytest.approx(2 * pixels * 9 / (248 * 9 + 4 * pixels + pixels))
    pixels = 128 * 8 * 14 * 14
    assert volume == pytest.approx(2 * pixels * 27 / (128 * 27 + 8 * pixels + pixels))


def test_sums_that_fit_sixteen_bits():
    assert counting.longest_uncut_sums() == {
        f"n = {bits}": 32767 // (255 * 2 ** (bits - 1)) for bits in (8, 7, 6, 5, 4)
    }
    assert counting.longest_uncut_sums(3)["n = 4"] == 3


def test_input_that_keeps_the_accelerator_busy():
    table = count_operations(nn.Linear(1000, 500), (1, 1000))  # a million operations: 1e8 images a second
    assert counting.link_bandwidths({"a": table}) == {"a": pytest.approx(1e8 * 150528 / 1e9)}


# --- the accelerator ---


def test_rates_over_memory_on_the_chip():
    networks = {
        "wide": counting.Inference(nn.Linear(4096, 4096), {"input_shape": (1, 4096)}),
        "deep": counting.Inference(nn.Linear(1000, 1000), {"input_shape": (100, 1000)}),
    }
    work = counting.workloads(networks)
    rates = counting.achieved_rates(work, [0, 64])
    assert list(rates) == ["wide", "deep"] and list(rates.index) == [0, 64]
    moved = 4096**2 + 2 * 4096  # every byte from memory, 100 GB/s
    assert rates.loc[0, "wide"] == pytest.approx(2 * 4096**2 / (moved / 1e11) / 1e12)
    assert rates.loc[64, "wide"] == Accelerator(64e6).achieved(work["wide"]) / 1e12
    shares = counting.shares_of_peak(work)
    assert shares == {
        "64 MB on chip": (rates.loc[64] / 100).tolist(),
        "no memory on chip": (rates.loc[0] / 100).tolist(),
    }
    assert all(on > off for on, off in zip(*shares.values(), strict=True))


def test_networks_that_are_not_there_are_not_taken():
    networks = dict.fromkeys("abc")
    assert list(counting.first_networks(networks, 2)) == ["a", "b"]
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"there are 1 to 3 networks, {count} were asked for"):
            counting.first_networks(networks, count)
