"""The paper scale of the data-centre chapter, dry: shapes, batches and tables once, two training steps."""

import gc

import pandas as pd
import pytest
import torch

from lib.data.images import ImageSet
from lib.experiments import facebook_inference_kernels as kernels
from lib.experiments.facebook_inference_accuracy import technique_errors, trained_network
from lib.experiments.kernel_times import offered
from lib.quantization.integer_network import Accumulation, Recipe, accumulate, quantize_network
from lib.runs.request import resolve
from lib.training.classifiers import logits


@pytest.fixture(scope="module")
def asked() -> dict:
    return resolve("facebook_inference", "paper").parameters


def sizes(shape: str) -> list[int]:
    return [int(size) for size in shape.split("x")]


def test_the_networks_have_their_full_size_at_every_scale(asked):
    assert (asked["image_size"], asked["frames"], asked["models_on_chip"]) == (224, 32, 5)
    assert resolve("facebook_inference", "smoke").parameters["image_size"] == 224


def test_its_levels_are_known(asked):
    assert set(offered(asked["levels"])) <= set(asked["levels"])


def test_the_shapes_are_those_of_the_benchmark_files(asked):
    shapes = [sizes(shape) for shape in asked["other_shapes"]]
    assert all(len(shape) == 3 for shape in shapes) and len(shapes) == 23
    assert [25088, 64, 576] in shapes and [102, 2323, 256] in shapes
    assert asked["rounds"] >= 3 * asked["blocks"], "a block's median needs a few rounds"


@pytest.mark.parametrize("shape", ["25088x64x576", "102x2323x256", "1x800x8000", "16x128x1567"])
def test_every_kernel_runs_on_the_largest_and_the_odd_shapes(asked, shape):
    assert shape in asked["other_shapes"]
    rows, outputs, depth = sizes(shape)
    with torch.no_grad():
        for name, function in kernels.linear_kernels(rows, outputs, depth).items():
            assert function().shape == (rows, outputs), name
    gc.collect()


def test_operators_at_the_batches_of_the_table(asked):
    batches = {family: asked[f"{family}_batch"] for family in ("recommendation", "vision", "language")}
    assert batches == {"recommendation": 100, "vision": 1, "language": 8}
    rows = kernels.measure({"operators": {"batches": batches, "repeats": 1}})["operators"]
    times = rows.groupby(["family", "kind"])["milliseconds"].sum()
    largest = {family: times[family].idxmax() for family in batches}
    assert largest["vision"] == "convolution" and largest["recommendation"] == "matrix product"
    other = times.groupby("kind").sum()["other"] / times.sum()
    assert other < 0.02, "operators that have no kind"


def test_the_table_exceeds_every_cache(asked):
    assert asked["table_rows"] * kernels.row_bytes(64, 4) > 128 * 2**20
    rows = pd.DataFrame(kernels.time_embedding(table_rows=asked["table_rows"] // 40, rounds=1))
    assert set(rows["function"]) == {"32 bits", "8 bits", "4 bits", "copy"}


def test_the_network_takes_two_steps_and_runs_in_integers(asked):
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (128, 1, 28, 28), dtype=torch.uint8, generator=random)
    images = ImageSet(pixels, torch.arange(128) % 10, 0.286, 0.353)
    network = trained_network(images, asked["channels"], steps=2, seed=0)
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 128)
    weights = convolutions + 2 * (32 + 64 + 128) + 128 * 3 * 3 * 10 + 10
    assert sum(p.numel() for p in network.parameters()) == weights
    few = images.take(4)
    table = technique_errors({0: network}, few, few.tensor())
    assert (table.query("bits == 8")["error"] < 0.1).all() and (table["error"] > 0).all()
    quantized = quantize_network(network, few.tensor(), Recipe())
    exact = logits(quantized, few)
    split = accumulate(quantized, Accumulation(bits=16, main_bits=4, spill_every=16))
    assert torch.equal(logits(split, few), exact)
