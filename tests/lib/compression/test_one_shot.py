"""Whole models compressed: the layers compute what the factors say, and nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lib.compression.one_shot import compress
from lib.compression.ranks import evbmf_rank
from lib.compression.vbmf import evbmf


def small_net(**options):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, **options),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 12, 1),
        nn.Flatten(),
        nn.Linear(12 * 4 * 4, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    two_sided=st.booleans(),
)
def test_the_sequence_is_a_convolution_with_the_approximated_kernel(
    kernel, stride, padding, dilation, groups, bias, mode, two_sided
):
    if padding == "same":
        stride = 1
    torch.manual_seed(0)
    options = dict(stride=stride, dilation=dilation, groups=groups, bias=bias, padding_mode=mode)
    layer = nn.Conv2d(8, 12, kernel, padding=padding, **options).double()
    found = compress(layer, {"": (2, 2) if two_sided else 2}).model
    approximated = copy.deepcopy(layer)
    with torch.no_grad():
        rebuilt = [
            torch.einsum("tq,qrij,rs->tsij", u[:, :, 0, 0], c, r[:, :, 0, 0])
            if two_sided
            else torch.einsum("tq,qsij->tsij", u[:, :, 0, 0], c)
            for u, c, r in zip(
                found.expand.weight.chunk(groups),
                found.core.weight.chunk(groups),
                found.reduce.weight.chunk(groups) if two_sided else [None] * groups,
                strict=True,
            )
        ]
        approximated.weight.copy_(torch.cat(rebuilt))
    x = torch.randn(2, 8, 13, 14, dtype=torch.float64)
    torch.testing.assert_close(found(x), approximated(x), rtol=1e-10, atol=1e-10)
    # Not by accident: with the stride on another part the shape is another one.
    assert found.core.stride == (stride, stride) and found.expand.stride == (1, 1)
    assert (found.expand.bias is not None) == bias and found.core.bias is None


def test_full_ranks_change_nothing():
    model = small_net().eval()
    ranks = {"0": 16, "2": (16, 24), "4": (24, 12), "6": (12, 20), "8": 10}
    full = compress(model, ranks, maps={"6": (12, 4, 4)})
    torch.testing.assert_close(full.model(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    assert full.report["relative_error"].max() < 1e-6
    assert full.ranks == ranks


def test_each_layer_gets_its_kind():
    model = small_net(groups=2)
    report = compress(model, 0.5, maps={"6": (12, 4, 4)}).report.set_index("layer")
    assert report["kind"].to_dict() == {
        "0": "Tucker-1",
        "2": "Tucker-2",
        "4": "kept",
        "6": "Tucker-2",
        "8": "SVD",
    }
    assert report.loc["2", ["input_rank", "output_rank"]].tolist() == [4, 6]  # half of each group's 8 and 12
    assert report.loc["6", ["input_rank", "output_rank"]].tolist() == [6, 10]
    assert report.loc["8", "output_rank"] == 5
    every = compress(model, 0.5, pointwise=True).report.set_index("layer")
    assert every["kind"].to_dict() == {
        "0": "Tucker-1",
        "2": "Tucker-2",
        "4": "Tucker-2",
        "6": "SVD",
        "8": "SVD",
    }
    convolutions = compress(model, 0.5, linear=False, skip=["0"]).report.set_index("layer")
    assert (convolutions["kind"] != "kept").to_dict() == {
        "0": False,
        "2": True,
        "4": False,
        "6": False,
        "8": False,
    }


def test_the_report_counts_what_is_there():
    model = small_net()
    found = compress(model, 0.4)
    parameters = [sum(p.numel() for p in m.parameters()) for m in (model, found.model)]
    norm = 2 * 24
    assert found.report["parameters_before"].sum() == parameters[0] - norm
    assert found.report["parameters_after"].sum() == parameters[1] - norm
    again = compress(model, found.ranks)  # the report's ranks rebuild the model
    for ours, theirs in zip(found.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_error_is_that_of_the_kernel():
    model = small_net(groups=2)
    found = compress(model, {"2": (3, 4)})
    part = found.model.get_submodule("2")
    rebuilt = torch.cat(
        [
            torch.einsum("tq,qrij,rs->tsij", u[:, :, 0, 0], c, r[:, :, 0, 0])
            for u, c, r in zip(
                *(p.weight.chunk(2) for p in (part.expand, part.core, part.reduce)), strict=True
            )
        ]
    )
    expected = (model[2].weight - rebuilt).norm() / model[2].weight.norm()
    assert found.report.set_index("layer").loc["2", "relative_error"] == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_a_map_makes_a_matrix_a_convolution_over_the_whole_input():
    torch.manual_seed(0)
    layer = nn.Linear(6 * 3 * 2, 15)
    found = compress(layer, {"": (4, 5)}, maps={"": (6, 3, 2)}).model
    x = torch.randn(7, 36)
    as_convolution = nn.Conv2d(6, 15, (3, 2))
    as_convolution.load_state_dict({"weight": layer.weight.reshape(15, 6, 3, 2), "bias": layer.bias})
    twin = compress(as_convolution, {"": (4, 5)}).model
    expected = twin(x.reshape(7, 6, 3, 2)).flatten(1)
    torch.testing.assert_close(found(x), expected, rtol=1e-4, atol=1e-5)


def test_ranks_by_evbmf_are_those_of_the_unfoldings():
    model = small_net()
    with torch.no_grad():  # a kernel with three directions on one side and two on the other, and some noise
        signal = torch.einsum("tq,qrij,rs->tsij", *(torch.randn(s) for s in ((24, 3), (3, 2, 3, 3), (2, 16))))
        model[2].weight.copy_(signal + 0.1 * torch.randn(24, 16, 3, 3))
    report = compress(model).report.set_index("layer")
    assert report.loc["2", ["input_rank", "output_rank"]].tolist() == [2, 3]
    weight = model[2].weight.detach()
    assert evbmf(weight.transpose(0, 1).flatten(1)).rank == 2
    by_function = compress(model, evbmf_rank).report
    assert by_function.drop(columns="relative_error").equals(
        compress(model).report.drop(columns="relative_error")
    )
    root = compress(model, lambda unfolding: evbmf(unfolding, tau="root").rank).report
    assert root["output_rank"].tolist() == report["output_rank"].tolist()


def test_grouped_ranks_are_the_largest_of_the_groups():
    model = nn.Conv2d(16, 16, 3, groups=2)
    with torch.no_grad():
        model.weight.normal_(std=0.1)
        model.weight[8:] += torch.einsum("tq,qsij->tsij", torch.randn(8, 2), torch.randn(2, 8, 3, 3))
    report = compress(nn.Sequential(nn.Conv2d(3, 16, 3), model), skip=["0"]).report
    per_group = [evbmf(w.detach().flatten(1)).rank for w in model.weight.chunk(2)]
    assert per_group[0] < per_group[1] == report.loc[1, "output_rank"]


def test_noise_gets_rank_one_and_a_note():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    nn.init.normal_(model[1].weight)
    row = compress(model, skip=["0"]).report.loc[1]
    assert row["input_rank"] == row["output_rank"] == 1 and row["floored"]


def test_what_must_not_change_does_not():
    model = small_net().eval()
    before = copy.deepcopy(model.state_dict())
    model[0].weight.requires_grad_(False)
    found = compress(model.double(), 0.5).model
    assert all(
        torch.equal(model.state_dict()[key], value.to(model.state_dict()[key].dtype))
        for key, value in before.items()
    )
    assert not any(m.training for m in found.modules())
    assert all(p.dtype == torch.float64 for p in found.parameters())
    assert not any(p.requires_grad for p in found.get_submodule("0").core.parameters())
    assert found.get_submodule("2").core.weight.requires_grad
    assert torch.equal(found.get_submodule("8").expand.bias, model[8].bias)
    assert found(IMAGES.double()).shape == (2, 10)
    model.train()
    assert compress(model, 0.5, inplace=True).model is model
    assert model.training and isinstance(model[2], nn.Sequential)


def test_gradients_reach_all_parts():
    model = compress(small_net(), 0.5, maps={"6": (12, 4, 4)}).model
    F.cross_entropy(model(IMAGES), torch.tensor([1, 2])).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "3." not in n
    )
    path = copy.deepcopy(model.state_dict())
    fresh = compress(small_net(), 0.5, maps={"6": (12, 4, 4)}, weights="fresh").model
    fresh.load_state_dict(path)
    torch.testing.assert_close(fresh.eval()(IMAGES), model.eval()(IMAGES))


def test_structure_only_on_the_meta_device():
    with torch.device("meta"):
        model = small_net()
    found = compress(model, 0.5, weights="fresh")
    assert all(p.is_meta for p in found.model.parameters())
    assert found.report["relative_error"].drop(2).isna().all()


def test_subclasses_are_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(nn.Linear(8, 8), Scaled(8, 8))
    assert compress(model, 0.5).report["layer"].tolist() == ["0"]
    with pytest.raises(ValueError, match="'1' is a Scaled"):
        compress(model, {"1": 2})


def depthwise():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: compress(nn.Sequential(nn.ReLU())), "nothing to compress: Sequential has 0"),
        (lambda: compress(nn.Sequential()), "nothing to compress"),
        (lambda: compress(nn.Conv2d(3, 4, 1), skip=[""]), "nothing to compress"),
        (lambda: compress(small_net(), {}), "nothing to compress"),
        (lambda: compress(small_net(), {"22": 3}), "no layer '22' in the model: did you mean '2'"),
        (lambda: compress(small_net(), {"1": 3}), "'1' is a ReLU: not a Conv2d or Linear"),
        (
            lambda: compress(small_net(), {"2": (0, 3)}),
            "layer '2': input rank R3 must be a whole number in 1..16, got 0",
        ),
        (
            lambda: compress(small_net(), {"2": (17, 3)}),
            "input rank R3 must be a whole number in 1..16, got 17",
        ),
        (lambda: compress(small_net(), {"2": (3, 25)}), "rank must be a whole number in 1..24, got 25"),
        (lambda: compress(small_net(groups=2), {"2": (9, 3)}), "R3 must be a whole number in 1..8, got 9"),
        (lambda: compress(small_net(), {"8": 11}), "layer '8': rank must be a whole number in 1..10, got 11"),
        (lambda: compress(small_net(), {"8": (2, 2)}), "needs the feature map"),
        (lambda: compress(small_net(), {"2": (1, 2, 3)}), "one number or a pair"),
        (lambda: compress(small_net(), {"2": (2, 3)}, skip=["0"]), "skip is for rules"),
        (lambda: compress(small_net(), skip=["nothing"]), "no layer 'nothing'"),
        (lambda: compress(small_net(), maps={"6": (12, 4, 5)}), "reads 192 values, got"),
        (lambda: compress(small_net(), maps={"2": (12, 4, 4)}), "must be a Linear layer"),
        (lambda: compress(small_net(), "evbmf"), "ranks must be 'vbmf'"),
        (lambda: compress(small_net(), 0.0), r"must be in \(0, 1\], got 0.0"),
        (lambda: compress(small_net(), 1.5), r"must be in \(0, 1\], got 1.5"),
        (lambda: compress(small_net(), True), "ranks must be"),
        (lambda: compress(small_net(), lambda unfolding: 99), "layer '0': the rule chose rank 99"),
        (lambda: compress(small_net(), weights="random"), "'decomposed' or 'fresh'"),
        (lambda: compress(depthwise()), "layer '1': a depthwise convolution"),
        (lambda: compress(depthwise(), {"1": 2}), "layer '1': a depthwise convolution"),
    ],
)
def test_bad_requests(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_depthwise_convolutions_can_be_skipped():
    assert compress(depthwise(), 0.5, skip=["1"]).report["kind"].tolist() == ["Tucker-1", "kept"]


@pytest.mark.parametrize("ranks", ["vbmf", 0.5, {"2": (3, 3)}])
def test_a_kernel_that_is_not_finite_is_named_before_anything_changes(ranks):
    model = small_net()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = float("nan")
    before = list(map(type, model))
    with pytest.raises(ValueError, match="layer '2': the kernel must be finite"):
        compress(model, ranks, inplace=True)
    assert list(map(type, model)) == before


# --- layers with several names, shared weights, hooks, what is frozen ---


def test_a_layer_with_several_names_is_replaced_under_all_of_them():
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), shared, nn.ReLU(), shared)
    for ranks in (0.5, {"1": 3}, {"3": 3}):
        found = compress(model, ranks)
        assert found.model[1] is found.model[3] and isinstance(found.model[1], nn.Sequential)
        assert found.report["layer"].tolist() == ["0", "1"]
        assert sum(p.numel() for p in found.model.parameters()) == found.report["parameters_after"].sum()
    assert compress(model, 0.5, skip=["3"]).report["kind"].tolist() == ["SVD", "kept"]


@pytest.mark.parametrize("other", [nn.Linear, nn.Embedding])
def test_a_shared_weight_is_refused_by_name(other):
    model = nn.ModuleDict({"first": nn.Linear(6, 6), "second": other(6, 6), "third": nn.Linear(6, 6)})
    model["second"].weight = model["first"].weight
    with pytest.raises(ValueError, match="layer 'first': it shares its weight with 'second'.*skip both"):
        compress(model, 0.5)
    assert compress(model, {"third": 3}).ranks == {"third": 3}


def test_a_computed_weight_is_refused():
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 6)))
    with pytest.raises(ValueError, match="layer '0': its weight is computed from other parameters"):
        compress(model, 0.5)


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_stay_and_can_still_be_removed(inplace):
    model, calls = nn.Sequential(nn.Linear(6, 6)), []
    handle = model[0].register_forward_hook(lambda *_: calls.append("behind"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    found = compress(model, 0.5, inplace=inplace).model
    found(torch.ones(1, 6, requires_grad=True)).sum().backward()
    assert calls == ["before", "behind", "backward"]
    handle.remove()
    calls.clear()
    found(torch.ones(1, 6))
    assert calls == (["before"] if inplace else ["before", "behind"])


@pytest.mark.parametrize("weights", ["decomposed", "fresh"])
def test_what_is_frozen_stays_frozen(weights):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Conv2d(2, 2, 3)).eval()
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    model[2].train()
    found = compress(model, 0.5, weights=weights).model
    frozen = [name for name, parameter in found.named_parameters() if not parameter.requires_grad]
    assert frozen == ["0.expand.bias", "1.core.weight", "1.expand.weight"]
    assert [part.training for part in (found, *found, found[2].core)] == [False, False, False, True, True]
