"""One shot at trained networks: on small ones whose ranks, costs and outputs are known."""

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from lib.cost.operations import count_operations, totals
from lib.data.preprocessing import Preprocessing
from lib.experiments import oneshot_compression_pretrained as one_shot
from lib.inspection import evaluating


def planted(outputs: int, inputs: int, rank: int, noise: float) -> torch.Tensor:
    signal = torch.randn(outputs, rank) @ torch.randn(rank, inputs)
    return signal + noise * torch.randn(outputs, inputs)


@pytest.fixture
def network():
    """A first convolution, a 3 × 3, a depthwise one, a 1 × 1 and a matrix, each of three directions."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 20, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 10),
    ]
    with torch.no_grad():
        for layer, size in zip((layers[0], layers[4], layers[7]), (27, 24, 20), strict=True):
            layer.weight.copy_(planted(len(layer.weight), size, 3, 0.02).reshape(layer.weight.shape))
        u4, core, u3 = torch.randn(24, 3), torch.randn(3, 3, 3, 3), torch.randn(3, 16)
        kernel = torch.einsum("tq,qrij,rs->tsij", u4, core, u3)
        layers[1].weight.copy_(kernel + 0.02 * torch.randn(kernel.shape))
    return nn.Sequential(*layers)


@pytest.fixture
def images():
    random = torch.Generator().manual_seed(1)
    return {name: torch.randn(3, 3, 8, 8, generator=random) for name in ("cat", "cup")}


def test_crops_begin_with_the_centre_and_are_the_same_for_a_seed():
    picture = Image.effect_noise((40, 30), 80)
    prepare = Preprocessing(resize=24, crop=16)
    first, again, other = (one_shot.crops({"a": picture}, prepare, 3, seed=seed)["a"] for seed in (0, 0, 1))
    assert first.shape == (3, 3, 16, 16)
    assert torch.equal(first, again) and torch.equal(first[0], prepare.test(picture))
    assert torch.equal(first[0], other[0]) and not torch.equal(first[1:], other[1:])


def test_ranks_by_kind_of_kernel(network):
    assert one_shot.ranks_of(network, "vbmf", pointwise=False) == {"0": 3, "1": (3, 3), "7": 3}
    assert one_shot.ranks_of(network, "vbmf", pointwise=True) == {"0": 3, "1": (3, 3), "4": 3, "7": 3}
    half = one_shot.ranks_of(network.to("meta"), 0.5, pointwise=True)
    assert half == {"0": 8, "1": (8, 12), "4": 10, "7": 5}


def test_true_ranks_lose_nothing_and_too_few_do(network, images):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found, layers = one_shot.one_shot_errors(network, images, (1.0, 0.05), sweeps=5)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training
    assert found[["kernels", "ranks"]].drop_duplicates().to_numpy().tolist() == [
        [kernels, ranks] for kernels in ("D × D", "1 × 1 too") for ranks in ("EVBMF", "1", "0.05")
    ]
    assert set(found["photograph"]) == {"cat", "cup"} and len(found) == 12
    by_ranks = found.groupby("ranks")
    assert by_ranks[one_shot.AGREEMENT].min()["1"] == 100
    assert by_ranks[one_shot.LOGITS].max()["1"] < 1e-4  # full ranks: the same function
    assert by_ranks[one_shot.LOGITS].max()["EVBMF"] < 0.1 < by_ranks[one_shot.LOGITS].min()["0.05"]
    assert by_ranks[one_shot.COMPUTED].min()["1"] > 100  # a whole chain costs more than its kernel
    kept = layers[(layers["ranks"] == "EVBMF") & (layers["kernels"] == "1 × 1 too")].set_index("layer")
    assert kept["kind"].tolist() == ["Tucker-1", "Tucker-2", "kept", "Tucker-1", "SVD"]


def test_costs_and_agreement_by_hand(network, images):
    found, _ = one_shot.one_shot_errors(network, images, (0.05,), sweeps=0)
    row = found[(found["kernels"] == "D × D") & (found["ranks"] == "0.05")].set_index("photograph").loc["cup"]
    places = 64
    whole = (16 * 27 + 24 * 16 * 9 + 24 * 9 + 20 * 24) * places + 200
    thin = (27 + 16 + 16 + 9 + 24 + 24 * 9 + 20 * 24) * places + 30
    assert row[one_shot.COMPUTED] == pytest.approx(100 * thin / whole)
    weights = 16 * 27 + 24 * 16 * 9 + 24 * 9 + 20 * 24 + 200
    assert row[one_shot.STORED] == pytest.approx(100 * (27 + 16 + 16 + 9 + 24 + 24 * 9 + 480 + 30) / weights)
    ranks = one_shot.ranks_of(network, 0.05, pointwise=False)
    small = one_shot.compress(network, ranks, sweeps=0).model
    with torch.no_grad(), evaluating(network), evaluating(small):
        wanted, got = network(images["cup"]), small(images["cup"])
    same = [bool(a.argmax() == b.argmax()) for a, b in zip(wanted, got, strict=True)]
    errors = [float(torch.dist(a, b) / a.norm()) for a, b in zip(wanted, got, strict=True)]
    five = [int(a.argmax()) in b.argsort(descending=True)[:5] for a, b in zip(wanted, got, strict=True)]
    assert row[one_shot.AGREEMENT] == pytest.approx(100 * sum(same) / 3)
    assert row[one_shot.AMONG_FIVE] == pytest.approx(100 * sum(five) / 3)
    assert row[one_shot.LOGITS] == pytest.approx(sum(errors) / 3)


@pytest.mark.parametrize("pointwise", [False, True])
def test_the_share_costs_at_most_what_evbmf_costs(network, pointwise):
    def cost(rule):
        model = one_shot.compress(network, one_shot.ranks_of(network, rule, pointwise=pointwise)).model
        return totals(count_operations(model, (1, 3, 8, 8)))["macs"]

    share = one_shot.share_at_equal_cost(network, (1, 3, 8, 8), pointwise=pointwise)
    assert 0 < share < 1
    assert cost(share) <= cost("vbmf") < cost(min(1, share + 0.05))


@pytest.fixture
def found():
    rows = []
    for network in ("SqueezeNet", "MobileNet-v2"):
        for place, kernels in enumerate(one_shot.KERNELS):
            for ranks, cost in (("EVBMF", 40), ("0.9", 110), ("0.3", 39)):
                for photograph, same in (("cat", 100), ("cup", 50)):
                    error = 0.1 * (place + 1) + (ranks == "0.3")
                    known = (network, kernels, ranks, cost, cost, photograph)
                    same -= 10 * place + 20 * (network == "SqueezeNet")
                    rows.append((*known, same, same + 0.5, error))
    columns = ["network", "kernels", "ranks", one_shot.COMPUTED, one_shot.STORED, "photograph"]
    return pd.DataFrame(rows, columns=[*columns, one_shot.AGREEMENT, one_shot.AMONG_FIVE, one_shot.LOGITS])


def test_what_the_rules_ask_for(found):
    assert one_shot.predictions_lost(found) == {
        "SqueezeNet, D × D": 44.5,
        "SqueezeNet, 1 × 1 too": 54.5,
        "MobileNet-v2, D × D": 24.5,
        "MobileNet-v2, 1 × 1 too": 34.5,
    }
    errors = {"EVBMF": [0.1, 0.1], "the same share of channels": [1.1, 1.1]}
    assert one_shot.logit_errors(found, 0.3) == {one_shot.LOGITS: errors}


def test_the_figure_has_a_panel_a_network_and_evbmf_apart_from_the_shares(found):
    figure = one_shot.one_shot_figure(found)
    assert [axis.get_ylabel().split("\n")[1] for axis in figure.axes] == ["SqueezeNet", "MobileNet-v2"]
    shares, chosen = figure.axes[0].lines[:2]
    assert list(shares.get_xdata()) == [39, 110] and list(shares.get_ydata()) == [55.5, 55.5]
    assert list(chosen.get_xdata()) == [40] and chosen.get_label() == "D × D, EVBMF"
    assert list(figure.axes[1].lines[2].get_ydata()) == [65.5, 65.5]
