"""LSTMs with a highway: what is quantised and what is not, and where the cell is exact."""

import pytest
import torch
from torch import nn

from lib.models.language.highway import QuantizedLSTMLayer, quantize_language_model
from lib.models.language.language_model import LSTMLanguageModel
from lib.quantization.laplace import Laplace
from lib.quantization.lsq import LSQ
from lib.quantization.uniform import Uniform


def lstm(hidden=6, **options) -> QuantizedLSTMLayer:
    torch.manual_seed(0)
    base = {"weight_bits": None, "input_bits": None, "weights": Laplace}
    base["values"] = lambda bits, signed: Uniform(bits, signed=signed)
    return QuantizedLSTMLayer(4, hidden, **(base | options)).eval()


def test_without_bits_the_layer_is_an_lstm():
    layer, theirs = lstm(), nn.LSTM(4, 6)
    theirs.load_state_dict({f"{name}_l0": value for name, value in layer.named_parameters()})
    x, zeros = torch.randn(9, 2, 4), torch.zeros(2, 6)
    out, (_, c) = layer(x, (zeros, zeros))
    expected, (_, c_n) = theirs(x)
    assert torch.allclose(out, expected, atol=1e-6) and torch.allclose(c, c_n[0], atol=1e-6)


def test_on_the_highway_only_the_operands_of_products_are_quantised():
    layer = lstm(weight_bits=3, input_bits=3)
    x = torch.randn(5, 2, 4)
    h, c = torch.rand(2, 6), torch.randn(2, 6)
    gates = torch.nn.functional.linear(layer.quantize_input(x[0]), layer.quantize_weight_ih(layer.weight_ih))
    gates = gates + torch.nn.functional.linear(
        layer.quantize_hidden(h), layer.quantize_weight_hh(layer.weight_hh)
    )
    i, f, g, o = (gates + layer.bias_ih + layer.bias_hh).chunk(4, dim=1)
    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
    out, (_, found) = layer(x[:1], (h, c))
    assert torch.allclose(found, cell, atol=1e-6)
    assert torch.allclose(out[0], o.sigmoid() * cell.tanh(), atol=1e-6)
    assert len(out.unique()) == out.numel()
    conventional = lstm(weight_bits=3, input_bits=3, gate_bits=3, state_bits=3)
    assert len(conventional(x, (h, c))[0].unique()) <= 7


def test_the_conventional_step_by_hand():
    """Gates on the levels 0, 1/3, 2/3 and 1, all else on −r, 0 and r; to round less would be seen."""
    layer = lstm(gate_bits=2, state_bits=2)
    for name, largest in (("candidate", 0.6), ("cell", 1.2), ("output", 0.5)):
        getattr(layer, f"quantize_{name}").initialise(torch.tensor([largest]))

    def nearest(x, levels):
        return torch.tensor(levels)[(x[..., None] - torch.tensor(levels)).abs().argmin(dim=-1)]

    gates, c = torch.randn(5, 24) * 2, torch.randn(5, 6)
    i, f, g, o = gates.chunk(4, dim=1)
    i, f, o = (nearest(torch.sigmoid(gate), [0, 1 / 3, 2 / 3, 1]) for gate in (i, f, o))
    cell = nearest(f * c + i * nearest(torch.tanh(g), [-0.6, 0, 0.6]), [-1.2, 0, 1.2])
    output = nearest(o * torch.tanh(cell), [-0.5, 0, 0.5])
    found = layer.step(gates, c)
    assert torch.allclose(found[0], output, atol=1e-6) and torch.allclose(found[1], cell, atol=1e-6)
    for name in ("gates", "candidate", "cell", "output"):
        quantizer = getattr(layer, f"quantize_{name}")
        quantizer.bits = None
        changed = layer.step(gates, c)
        assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(found, changed, strict=True)), name
        quantizer.bits = 2


@pytest.mark.parametrize(("gate_bits", "state_bits"), [(None, None), (2, 2)])
def test_a_remembered_cell_is_exact_on_the_highway_and_rounded_once_without(gate_bits, state_bits):
    """f = 1 and i = 0: c never changes. Fixed grids leave their own levels alone."""
    layer = lstm(weight_bits=2, input_bits=2, gate_bits=gate_bits, state_bits=state_bits)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih[:6], layer.bias_ih[6:12] = -200.0, 200.0
    c = torch.rand(2, 6) * 2 - 1
    states, state = [], (torch.zeros(2, 6), c)
    for x in torch.randn(30, 1, 2, 4):
        _, state = layer(x, state)
        states.append(state[1])
    assert all(torch.equal(value, states[0]) for value in states)
    if state_bits is None:
        assert torch.equal(states[-1], c)
    else:
        assert torch.equal(states[-1], layer.quantize_cell(c)) and not torch.allclose(states[-1], c)


def test_a_language_model_keeps_its_weights_and_gets_ranges_from_text():
    torch.manual_seed(0)
    model = LSTMLanguageModel(30, hidden_size=8, tied=True)
    tokens = torch.randint(30, (4, 12))
    options = {"weights": Laplace, "values": lambda bits, signed: LSQ(bits, signed=signed)}
    plain = quantize_language_model(model, tokens, weight_bits=None, input_bits=None, **options)
    assert plain.training and plain.output.weight is plain.embedding.weight
    assert torch.allclose(plain.eval()(tokens)[0], model.eval()(tokens)[0], atol=1e-6)
    new = quantize_language_model(
        model, tokens, weight_bits=2, input_bits=4, gate_bits=4, state_bits=4, **options
    )
    steps = [layer.quantize_cell.step.item() for layer in new.layers]
    assert steps[0] != steps[1] and 1.0 not in steps
    with pytest.raises(ValueError, match="must be in full precision"):
        quantize_language_model(new, tokens, weight_bits=2, input_bits=2, **options)


def test_a_kept_cell_has_no_grid():
    options = {"gate_bits": 2, "state_bits": 2}
    assert lstm(**options).quantize_cell.bits == 2
    kept = lstm(**options, keep_cell=True)
    assert kept.quantize_cell.bits is None and kept.quantize_output.bits == 2


def test_the_model_that_is_quantised_is_left_as_it_was():
    torch.manual_seed(0)
    model = LSTMLanguageModel(30, hidden_size=8).train()
    model.dropout.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"weights": Laplace, "values": lambda bits, signed: LSQ(bits, signed=signed)}
    quantize_language_model(model, torch.randint(30, (4, 12)), weight_bits=2, input_bits=4, **options)
    assert model.training and not model.dropout.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ranges_are_measured_without_dropout():
    torch.manual_seed(0)
    model, tokens = LSTMLanguageModel(30, hidden_size=8, dropout=0.5), torch.randint(30, (4, 12))
    options = {"weights": Laplace, "values": lambda bits, signed: LSQ(bits, signed=signed)}
    found = [
        quantize_language_model(model.train(mode), tokens, weight_bits=2, input_bits=4, **options)
        for mode in (True, False)
    ]
    for training, evaluation in zip(found[0].layers, found[1].layers, strict=True):
        assert torch.equal(training.quantize_input.step, evaluation.quantize_input.step)
        assert torch.equal(training.quantize_hidden.step, evaluation.quantize_hidden.step)
