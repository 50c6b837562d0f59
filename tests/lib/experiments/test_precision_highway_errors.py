"""Errors along depth and time: against torch and by hand; names are those of the ledger's claims."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn

from lib.experiments import precision_highway_errors as errors
from lib.experiments.precision_highway import lstm_forms
from lib.experiments.precision_highway_errors import (
    block_outputs,
    cell_states,
    depth_errors,
    depth_measurements,
    differences_of_forms,
    error_by_depth,
    error_by_step,
    idea_figure,
    laplace_numbers,
    millions_of_outputs,
    settle_norms,
    time_errors,
    time_measurements,
    untrained_stack,
)
from lib.ledger.schema import load_ledger
from lib.metrics.signal import sqnr
from lib.models.language.highway import quantize_language_model
from lib.models.language.language_model import LSTMLanguageModel
from lib.models.vision.highway import quantize_resnet
from lib.models.vision.resnet import BasicBlock, ResNet
from lib.quantization.laplace import Laplace, laplace_error, laplace_step

LEDGER = load_ledger("precision_highway")
IMAGES = torch.randn(6, 2, 12, 12, generator=torch.Generator().manual_seed(1))
LAPLACE = {
    "weights": lambda layer: Laplace(3),
    "activations": lambda kind: Laplace(3, one_sided=kind == "unsigned", adaptive=False),
}


def network(blocks=(2, 2)) -> ResNet:
    torch.manual_seed(0)
    net = ResNet(block=BasicBlock, blocks=blocks, width=0.25, in_channels=2, num_classes=3, small_images=True)
    settle_norms(net, IMAGES)
    return net.eval()


def names(claim: str) -> set[str]:
    return {number.name for number in LEDGER[claim].paper}


# --- arithmetic ---


def test_numbers_have_the_names_of_their_claims():
    assert set(laplace_numbers()) == names("E1")
    assert set(differences_of_forms(network(), IMAGES)) == names("E2")


def test_forms_that_are_one_differ_by_nothing_and_others_are_seen(monkeypatch):
    found = differences_of_forms(network(), IMAGES)
    assert max(found.values()) < 1e-5
    wider = lambda *arguments, skip_bits, **options: quantize_resnet(  # noqa: E731
        *arguments, skip_bits=8 if skip_bits == 3 else skip_bits, **options
    )
    monkeypatch.setattr(errors, "quantize_resnet", wider)
    found = differences_of_forms(network(), IMAGES)
    assert found.pop("highway in the branch's bits against conventional") > 1e-3
    assert max(found.values()) < 1e-5
    monkeypatch.setattr(errors, "set_bits", lambda *arguments, **options: None)
    assert min(differences_of_forms(network(), IMAGES).values()) > 1e-3


def test_the_blocks_of_resnet_50_put_out_5519_thousand_values():
    """By stage of three, four, six and three blocks: channels times pixels."""
    stages = [3 * 256 * 56**2, 4 * 512 * 28**2, 6 * 1024 * 14**2, 3 * 2048 * 7**2]
    assert millions_of_outputs() == sum(stages) / 1e6 == 5.51936


def test_the_figure_of_the_idea_marks_the_least_errors():
    figure = idea_figure()
    left, right = figure.axes
    conventional, wide, exact = (line.get_ydata() for line in left.lines)
    assert len(set(conventional.tolist())) == 4
    assert abs(wide - exact).max() < 0.04 < abs(conventional - exact).max()
    for curve, dot in zip(right.lines[::2], right.lines[1::2], strict=True):
        assert dot.get_ydata()[0] <= min(curve.get_ydata())
    assert right.lines[1].get_xdata()[0] == pytest.approx(2.0, abs=1e-6)
    assert right.lines[1].get_ydata()[0] == pytest.approx(2 - 4 / math.e) == laplace_error(laplace_step(2), 2)
    plt.close(figure)


# --- along depth ---


def test_settled_norms_compute_with_the_statistics_of_the_batch():
    torch.manual_seed(0)
    net = ResNet(block=BasicBlock, blocks=(4,), width=0.25, in_channels=2, num_classes=3, small_images=True)
    images = torch.randn(64, 2, 12, 12)
    assert not torch.allclose(net.eval()(images), net.train()(images), rtol=1e-2, atol=1e-3)
    net.eval()
    net.layer1.train()
    settle_norms(net, images)
    assert not net.training and net.layer1.training and net.bn1.momentum == 0.1
    running, batch = (net.train(mode)(images) for mode in (False, True))
    # running variances are unbiased, batch ones are not: one part in 9216 here
    assert torch.allclose(running, batch, rtol=1e-2, atol=1e-3)


def test_errors_by_depth_are_those_of_the_outputs():
    net = network()
    new = quantize_resnet(net, IMAGES, **LAPLACE)
    before = net.bn1.running_mean.clone()
    found = error_by_depth(net, new, IMAGES)
    assert torch.equal(net.bn1.running_mean, before) and not net.training
    signal, approximation = (block_outputs(each.train(), IMAGES) for each in (net, new))
    assert found == [sqnr(a, b) for a, b in zip(signal, approximation, strict=True)]
    assert len(found) == 4 and all(0 < value < 40 for value in found)


def test_outputs_of_blocks_come_in_order():
    net = network().eval()
    outputs = block_outputs(net, IMAGES)
    x = net.maxpool(net.relu(net.bn1(net.conv1(IMAGES))))
    for block, output in zip([*net.layer1, *net.layer2], outputs, strict=True):
        x = block(x)
        assert torch.equal(output, x) and not output.requires_grad


def test_depth_errors_are_of_every_form_width_and_block():
    net = network()
    table = depth_errors(net, IMAGES)
    assert list(table.columns) == ["weights", "label", "arm", "form", "bits", "block", "SQNR (dB)"]
    assert len(table) == 2 * 2 * 2 * 4 and not table.duplicated(["arm", "block"]).any()
    assert (table["arm"] == table["form"] + ", " + table["label"]).all()
    assert set(zip(table["label"], table["weights"], table["bits"], strict=True)) == {
        ("W2A2", "quantised", 2),
        ("A2", "full precision", 2),
        ("W3A3", "quantised", 3),
        ("A3", "full precision", 3),
    }
    for label, form in (("W3A3", "conventional"), ("A3", "highway")):
        options = LAPLACE if label == "W3A3" else LAPLACE | {"weights": lambda layer: None}
        skip_bits = "shared" if form == "conventional" else None
        expected = error_by_depth(net, quantize_resnet(net, IMAGES, skip_bits=skip_bits, **options), IMAGES)
        rows = table[(table["label"] == label) & (table["form"] == form)]
        assert rows["block"].tolist() == [1, 2, 3, 4] and rows["SQNR (dB)"].tolist() == expected


def depth_table() -> pd.DataFrame:
    """Two seeds in the order 7, 3; a value says where it belongs: seed, form, block."""
    rows = [
        {"seed": seed, "label": label, "form": form, "block": block, "SQNR (dB)": 100 * seed + 10 * f + block}
        for seed in (7, 3)
        for label in ("W2A2", "A2", "W3A3", "A3")
        for f, form in enumerate(("conventional", "highway"))
        for block in (1, 2, 3)
    ]
    return pd.DataFrame(rows)


def test_depth_measurements_by_hand():
    measured = depth_measurements(depth_table())
    labels = ("A2", "A3", "W2A2", "W3A3")
    metrics = ("SQNR {} (dB)", "SQNR lost between the ends {} (dB)")
    assert list(measured) == [metric.format(label) for label in labels for metric in metrics]
    for label in labels:
        assert measured[f"SQNR {label} (dB)"] == {
            "conventional, first block": [701, 301],
            "conventional, last block": [703, 303],
            "highway, last block": [713, 313],
        }
        assert measured[f"SQNR lost between the ends {label} (dB)"] == {
            "conventional": [-2, -2],
            "highway": [-2, -2],
        }
    for claim in ("C1a", "C2a", "C2b", "C2d"):
        for metric, arms in LEDGER[claim].arms().items():
            assert set(arms) <= set(measured[metric])


def test_another_seed_gives_another_untrained_stack():
    stacks = [untrained_stack(2, seed=seed) for seed in (0, 0, 1)]
    weights = [stack.layer1[1].conv2.weight for stack, _ in stacks]
    assert torch.equal(weights[0], weights[1]) and torch.equal(stacks[0][1], stacks[1][1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(stacks[0][1], stacks[2][1])
    stack, noise = stacks[0]
    assert len(block_outputs(stack, noise)) == 2 and not stack.training
    assert stack.bn1.num_batches_tracked == 1  # settled on the noise


def test_the_figure_of_the_stack_has_a_panel_for_quantised_weights_and_one_for_exact_ones():
    table = depth_table().assign(arm=lambda t: t["form"] + ", " + t["label"])
    table["weights"] = ["quantised" if label[0] == "W" else "full precision" for label in table["label"]]
    figure = errors.stack_figure(table)
    assert [axis.get_title() for axis in figure.axes] == ["weights quantised", "weights full precision"]
    for axis, labels in zip(figure.axes, (("W2A2", "W3A3"), ("A2", "A3")), strict=True):
        shown = [text.get_text() for text in axis.get_legend().get_texts()]
        assert shown == [f"{form}, {label}" for label in labels for form in ("conventional", "highway")]
    plt.close(figure)


# --- along time ---


def language_model(layers: int = 1) -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(11, hidden_size=5, layers=layers)


TOKENS = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))


def test_cell_states_are_those_of_torch():
    model = language_model()
    cells = cell_states(model, TOKENS)
    theirs = nn.LSTMCell(5, 5)
    theirs.load_state_dict(model.layers[0].state_dict())
    h = c = torch.zeros(3, 5)
    for t in range(7):
        h, c = theirs(model.embedding(TOKENS[:, t]), (h, c))
        assert torch.allclose(cells[t, 0], c, atol=1e-6)
    assert cells.shape == (7, 1, 3, 5) and model.training and not cells.requires_grad


def test_errors_by_step_are_those_of_the_last_layers_cell():
    model = language_model(layers=2)
    options = {"weights": Laplace, "values": lambda bits, signed: Laplace(bits, adaptive=False)}
    other = quantize_language_model(model, TOKENS, weight_bits=4, input_bits=4, **options)
    steps = error_by_step(model, other, TOKENS)
    assert len(steps) == 7
    assert steps[3] == sqnr(cell_states(model, TOKENS)[3, 1], cell_states(other, TOKENS)[3, 1])


def test_time_errors_are_of_every_form_after_some_tokens():
    model = language_model()
    text = torch.randint(11, (3, errors.READ[-1]), generator=torch.Generator().manual_seed(0))
    table = time_errors(model, text)
    assert list(table.columns) == ["arm", "form", "bits", "token", "SQNR (dB)"]
    assert len(table) == 2 * 3 * 7 and not table.duplicated(["arm", "token"]).any()
    options = {"weights": Laplace, "values": lambda bits, signed: Laplace(bits, adaptive=False)}
    assert set(table["form"]) == set(errors.CELL_FORMS)
    for form in errors.CELL_FORMS:
        quantized = quantize_language_model(model, text, **options, **lstm_forms(3)[form])
        rows = table[table["arm"] == f"{form}, 3 bits"]
        assert rows["token"].tolist() == [1, 2, 5, 10, 20, 40, 60] == list(errors.READ)
        found = error_by_step(model, quantized, text)
        assert rows["SQNR (dB)"].tolist() == [found[k] for k in (0, 1, 4, 9, 19, 39, 59)]


def time_table() -> pd.DataFrame:
    """Two seeds in the order 7, 3; a value says where it belongs: seed, bits, form, token."""
    rows = [
        {"seed": seed, "form": form, "bits": bits, "token": token}
        | {"SQNR (dB)": 10_000 * seed + 1000 * bits + 100 * f + token}
        for seed in (7, 3)
        for bits in (2, 3)
        for f, form in enumerate(errors.CELL_FORMS)
        for token in errors.READ
    ]
    return pd.DataFrame(rows)


def test_time_measurements_by_hand():
    measured = time_measurements(time_table())
    assert list(measured) == ["SQNR of the cell W2A2 (dB)", "SQNR of the cell W3A3 (dB)"]
    assert measured["SQNR of the cell W3A3 (dB)"] == {
        "conventional, last token": [73_060, 33_060],
        "conventional with an exact cell, token 5": [73_105, 33_105],
        "conventional with an exact cell, last token": [73_160, 33_160],
        "highway, last token": [73_260, 33_260],
    }
    for claim in ("C1b", "C2c"):
        for metric, arms in LEDGER[claim].arms().items():
            assert set(arms) <= set(measured[metric])
