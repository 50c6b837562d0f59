"""MEANTIME and the authors' program: its numbers, twins broken on purpose that must miss them, its files."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lib.inspection import captured
from lib.models.recommenders import meantime, relative_attention
from lib.models.recommenders.dot_product_attention import attend
from lib.models.recommenders.meantime import Meantime
from lib.models.recommenders.temporal_kernels import log_kernel, sin_kernel

BATCH = {
    "tokens": torch.tensor([[0, 0, 3, 1, 7, 8]]),
    "timestamps": torch.tensor([[0, 0, 100, 160, 4000, 90000]]),
    "days": torch.tensor([[0, 0, 0, 0, 1, 2]]),
    "labels": torch.tensor([[0, 0, 3, 0, 0, 5]]),
}
CANDIDATES = torch.tensor([[2, 5, 7, 1]])
TERMS = ["factored", "materialised"]

# Made with the authors' code, commit a9ca2e7, in float64 with float64 kernels, dropout off.
AUTHORS_SCORES = [
    ("p-d", "s-l", 66, [-0.730816039, -0.489253823, -0.885803250, 0.895830096]),
    ("p-d", "", 58, [-0.732708021, 0.085890179, 0.057979168, 0.062627626]),
    ("c", "e", 53, [-1.250674360, 0.285659597, 0.152719905, 0.498351598]),
    ("c", "s", 53, [-1.250677514, 0.285597130, 0.152622726, 0.498377410]),
    ("c", "l", 53, [-1.251425167, 0.284087289, 0.149813652, 0.499861762]),
    ("p", "", 49, [-0.705804542, 0.617396753, 0.180851396, 0.772795992]),
    ("d", "", 49, [-0.704688519, 0.617744667, 0.182145643, 0.771244454]),
]


def authors_state(absolute="p-d", relative="s-l"):
    """A state dict under the authors' keys: element n of the t-th key by name is sin(0.37 n + 1.3 t)/2."""
    model = Meantime(7, num_days=5, max_length=6, hidden_size=8, absolute=absolute, relative=relative)
    state = model.to_authors()
    state.pop("head.token_embeddings.weight")
    for t, key in enumerate(sorted(state)):
        n = torch.arange(state[key].numel(), dtype=torch.float64)
        state[key] = (0.5 * torch.sin(0.37 * n + 1.3 * t)).reshape(state[key].shape)
    return state


def authors_model(absolute="p-d", relative="s-l", relative_term="factored") -> Meantime:
    state = authors_state(absolute, relative)
    return Meantime.from_authors(state, absolute=absolute, relative=relative, relative_term=relative_term)


def random_model(absolute="p-d", relative="s-l", **options) -> Meantime:
    torch.manual_seed(0)
    config = {"num_days": 5, "max_length": 6, "hidden_size": 12, "init_std": 0.5, "dropout": 0.0, **options}
    return Meantime(7, absolute=absolute, relative=relative, **config).double().eval()


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize(("absolute", "relative", "keys", "scores"), AUTHORS_SCORES)
def test_scores_of_the_authors_program(absolute, relative, keys, scores, term):
    model = authors_model(absolute, relative, term)
    assert len(authors_state(absolute, relative)) == keys
    expected = torch.tensor([scores], dtype=torch.float64)
    assert_close(model.scores(BATCH, CANDIDATES), expected, rtol=0, atol=2e-9)  # nine digits were printed
    assert_close(model.float().scores(BATCH, CANDIDATES), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("term", TERMS)
def test_hidden_state_and_loss_of_the_authors_program(term):
    model = authors_model(relative_term=term)
    last = [0.5110933, 1.9690411, -3.2040325, 1.0731611, -2.3663615, 3.3703899, -0.5454052, 2.8445103]
    with captured(model, ["head"]) as seen:
        model(BATCH)
    assert_close(seen["head"][0, -1], torch.tensor(last, dtype=torch.float64), rtol=0, atol=1e-7)
    assert model.loss(BATCH).item() == pytest.approx(2.139359879, abs=1e-8)


def _interleaved(gaps, hidden_size=64, frequency=10_000.0, time_unit=1.0):
    halves = sin_kernel(gaps, hidden_size, frequency, time_unit)
    return halves.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _unsigned(gaps, *shape):
    return sin_kernel(gaps.abs(), *shape)


@pytest.mark.parametrize("twin", [_interleaved, _unsigned])
def test_a_twin_with_another_sin_kernel_fails_parity(twin, monkeypatch):
    kernels = {"s": twin, "l": log_kernel}
    monkeypatch.setattr(relative_attention, "relative_kernel", kernels.get)
    expected = torch.tensor([AUTHORS_SCORES[0][3]], dtype=torch.float64)
    scores = authors_model(relative_term="materialised").scores(BATCH, CANDIDATES)
    assert (scores - expected).abs().max() > 5e-6


def test_a_twin_with_kernels_on_values_fails_parity(monkeypatch):
    def attend_with_positions_in_values(query, key, value, *rest):
        return attend(query, key, value + key, *rest)

    monkeypatch.setattr(meantime, "attend", attend_with_positions_in_values)
    expected = torch.tensor([AUTHORS_SCORES[0][3]], dtype=torch.float64)
    assert (authors_model().scores(BATCH, CANDIDATES) - expected).abs().max() > 1e-3


def test_a_twin_without_the_query_bias_fails_parity():
    model = authors_model()
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.relative_query)
    expected = torch.tensor([AUTHORS_SCORES[0][3]], dtype=torch.float64)
    assert (model.scores(BATCH, CANDIDATES) - expected).abs().max() > 1e-5


# --- checkpoints ---


@pytest.mark.parametrize(
    ("kernels", "options"),
    [
        (("p-d", "s-l"), {}),
        (("c", "l"), {}),
        (("p", ""), {"head_layer_norm": False}),
        (("d-d", "e"), {"head": "linear", "hidden_size": 12}),
        (("", "s"), {"head": "linear", "head_layer_norm": False, "num_blocks": 1}),
    ],
)
def test_layouts_make_the_round_trip(kernels, options):
    model = random_model(*kernels, **options)
    state = model.to_authors()
    loaded = Meantime.from_authors(
        state, absolute=kernels[0], relative=kernels[1], max_length=6, relative_term="factored"
    )
    assert_close(loaded(BATCH), random_model(*kernels, **options)(BATCH))
    assert loaded.to_authors().keys() == state.keys()
    biases = [v for k, v in state.items() if k.endswith("rel_position_bias")]
    heads = sum(len(k.split("-")) if k else 0 for k in kernels)
    relative = len(kernels[1].split("-")) if kernels[1] else 0
    assert {tuple(b.shape) for b in biases} == {(1, relative, 1, model.hidden_size // heads)}


def test_layout_of_the_linear_head():
    keys = random_model(head="linear").to_authors().keys()
    assert {"head.out.3.weight", "head.out.2.weight"} <= keys
    assert not {"head.bias", "head.token_embeddings.weight"} & keys
    keys = random_model(head="linear", head_layer_norm=False).to_authors().keys()
    assert "head.out.2.weight" in keys and "head.out.3.weight" not in keys
    assert "head.out.2.weight" not in random_model(head_layer_norm=False).to_authors()


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_checkpoint_files_as_the_authors_write_them(tmp_path, wrapper, prefix):
    state = {prefix + key: value for key, value in random_model().to_authors().items()}
    checkpoint = {wrapper: state, "epoch": 3, "steps": (3, 768)} if wrapper else state
    torch.save(checkpoint, tmp_path / "best_model.pth")
    model = Meantime.from_authors(tmp_path / "best_model.pth")
    assert not model.training and model.num_days == 5 and model.relative_term == "materialised"
    assert_close(model(BATCH), random_model(relative_term="materialised")(BATCH))


def test_other_checkpoints_are_refused_by_name(tmp_path):
    state = random_model().to_authors()
    without = {k: v for k, v in state.items() if not k.endswith("0.feed_forward.w_2.bias")}
    with pytest.raises(ValueError, match=r"missing body\.transformer_blocks\.0\.feed_forward\.w_2\.bias"):
        Meantime.from_authors(without)
    with pytest.raises(ValueError, match=r"unexpected extra\.weight"):
        Meantime.from_authors({**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no MEANTIME checkpoint.*missing token_embedding"):
        Meantime.from_authors({"item_emb.weight": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="2 absolute and 2 relative heads"):
        Meantime.from_authors(state, absolute="p", relative="s-l")
    with pytest.raises(ValueError, match="must be"):
        Meantime.from_authors({**state, "head.out.0.bias": torch.zeros(5, dtype=torch.float64)})
    with pytest.raises(ValueError, match="weight must be token_embedding.emb.weight again"):
        Meantime.from_authors({**state, "head.token_embeddings.weight": torch.zeros(9, 12)})
    with pytest.raises(FileNotFoundError):
        Meantime.from_authors(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="no state dict"):
        Meantime.from_authors({"model_state_dict": {"epoch": 3}})
