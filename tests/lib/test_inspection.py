"""Looking into a network leaves no trace."""

import pytest
import torch
from torch import nn

from lib.inspection import captured, evaluating


@pytest.fixture
def network() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.ReLU(inplace=True))
    made[0].eval()  # one module in evaluation mode, the others in training mode
    return made


def modes(network):
    return [module.training for module in network.modules()]


def test_each_module_gets_its_own_mode_back_also_after_an_error(network):
    before = modes(network)
    assert len(set(before)) == 2
    with pytest.raises(KeyError), evaluating(network) as inside:
        assert inside is network and not any(modes(network))
        raise KeyError
    assert modes(network) == before


def test_what_enters_and_what_leaves(network):
    x = torch.randn(4, 3)
    with evaluating(network), captured(network, ["2", "0"]) as entered:
        network(x)
    with evaluating(network), captured(network, ["2", "0"], "output") as left:
        y = network(x)
    assert list(entered) == list(left) == ["0", "2"], "in the order in which they ran"
    torch.testing.assert_close(entered["0"], x, rtol=0, atol=0)
    torch.testing.assert_close(left["2"], y, rtol=0, atol=0)
    # The rectifier works in place: a capture that is no copy would hold what came out.
    torch.testing.assert_close(entered["2"], network[0](x), rtol=0, atol=0)
    assert (entered["2"] < 0).any() and not left["2"].requires_grad


def test_no_hook_stays_also_after_an_error(network):
    with pytest.raises(KeyError), captured(network, ["0"]) as seen:
        raise KeyError
    network(torch.randn(1, 3))
    assert not seen
    with pytest.raises(AttributeError), captured(network, ["0", "absent"]):
        pass
    assert not any(module._forward_pre_hooks for module in network.modules())
