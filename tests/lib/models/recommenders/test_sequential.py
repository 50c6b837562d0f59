"""Oracles of the baselines: the authors' numbers, plain re-computations, causality, reductions, layouts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lib.inspection import captured
from lib.models.recommenders.bert4rec import BERT4Rec
from lib.models.recommenders.dot_product_attention import causal_bias
from lib.models.recommenders.marank import MARank
from lib.models.recommenders.sasrec import SASRec, TiSASRec

CANDIDATES = torch.tensor([[2, 5, 7, 1]])
CLOZE = {"tokens": torch.tensor([[0, 0, 3, 1, 7, 8]]), "labels": torch.tensor([[0, 0, 3, 0, 0, 5]])}
NEXT = {
    "tokens": torch.tensor([[0, 0, 0, 3, 1, 7]]),
    "timestamps": torch.tensor([[0, 0, 0, 1, 2, 66]]),
    "labels": torch.tensor([[0, 0, 0, 1, 7, 2]]),
    "negatives": torch.tensor([[0, 0, 0, 4, 5, 6]]),
}
EMPTY = {"tokens": torch.zeros(0, 6, dtype=torch.int64)}
CONTEXT = {"tokens": torch.tensor([[3, 1, 7, 7, 7, 7]]).expand(2, -1), "users": torch.tensor([2, 1])}

SMALL = {"max_length": 6, "hidden_size": 8}
MODELS = {
    "BERT4Rec": lambda: BERT4Rec(7, **SMALL),
    "SASRec": lambda: SASRec(7, **SMALL),
    "TiSASRec": lambda: TiSASRec(7, max_interval=10, **SMALL),
    "MARank": lambda: MARank(7, 3, hidden_size=8),
}
# Made with the authors' code, commit a9ca2e7, in float64, dropout off.
AUTHORS_SCORES = {
    "BERT4Rec": (41, CLOZE, [[0.783449732, -1.191912992, -0.444928610, -1.768350188]]),
    "SASRec": (32, NEXT, [[-0.889096417, 0.538362492, 0.209387832, 0.951852209]]),
    "TiSASRec": (35, NEXT, [[0.804102890, -0.889759336, -0.802145112, -0.720467040]]),
    "MARank": (
        37,
        CONTEXT,
        [
            [-1.225158125, 3.585971540, 4.614584207, 0.320493612],
            [0.119683373, 1.685834937, 2.646287491, -0.740878190],
        ],
    ),
}
# The last of MARank's eight numbers is 1.0004e-6 off, the other seven 5e-10: a digit of it was mistyped.
TOLERANCE = 1.1e-6


def authors_model(name):
    """Loaded from a state dict in which element n of the t-th key by name is sin(0.37 n + 1.3 t)/2."""
    model = MODELS[name]()
    state = model.to_authors()
    state.pop("head.token_embeddings.weight", None)
    for t, key in enumerate(sorted(state)):
        n = torch.arange(state[key].numel(), dtype=torch.float64)
        state[key] = (0.5 * torch.sin(0.37 * n + 1.3 * t)).reshape(state[key].shape)
    return type(model).from_authors(state), len(state)


def random_model(cls, *args, **options):
    torch.manual_seed(0)
    return cls(*args, dropout=0.0, init_std=0.5, **options).double().eval()


def random_next_batch():
    generator = torch.Generator().manual_seed(1)
    tokens, labels, negatives = torch.randint(1, 21, (3, 3, 9), generator=generator)
    timestamps = torch.randint(0, 8, (3, 9), generator=generator).cumsum(1) + 1
    tokens[0, :4] = timestamps[0, :4] = labels[0, :4] = 0
    return {"tokens": tokens, "labels": labels, "negatives": negatives, "timestamps": timestamps}


# --- the authors' numbers ---


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_the_authors_program(name):
    keys, batch, expected = AUTHORS_SCORES[name]
    model, found = authors_model(name)
    assert found == keys
    candidates = CANDIDATES.expand(len(expected), -1)
    scores = model.scores(batch, candidates)
    assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=TOLERANCE)
    assert_close(model.scores(batch).gather(1, candidates - 1), scores)
    single = model.float().scores(batch, candidates)
    assert_close(single, torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "batch", "loss"), [("BERT4Rec", CLOZE, 3.750753196), ("SASRec", NEXT, 1.365434326)]
)
def test_losses_of_the_authors_program(name, batch, loss):
    assert authors_model(name)[0].loss(batch).item() == pytest.approx(loss, abs=1e-8)


def test_a_twin_with_keys_from_the_normalised_input_fails_parity():
    model, _ = authors_model("SASRec")
    for block in model.blocks:
        norm, project = block.attention_norm, block.key_value.forward
        block.key_value.forward = lambda x, norm=norm, project=project: project(norm(x))
    expected = torch.tensor(AUTHORS_SCORES["SASRec"][2], dtype=torch.float64)
    assert (model.scores(NEXT, CANDIDATES) - expected).abs().max() > 1e-3


def test_a_twin_of_marank_without_the_sigmoid_fails_parity(monkeypatch):
    monkeypatch.setattr(torch, "sigmoid", lambda x: x)
    expected = torch.tensor(AUTHORS_SCORES["MARank"][2], dtype=torch.float64)
    scores = authors_model("MARank")[0].scores(CONTEXT, CANDIDATES.expand(2, -1))
    assert (scores - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("model", "parameters", "keys"),
    [
        (lambda: BERT4Rec(3416), 339_353, 42),
        (lambda: SASRec(3416), 273_792, 32),
        (lambda: TiSASRec(3416), 548_864, 35),
        (lambda: MARank(3416, 6040), 878_340, 37),
    ],
)
def test_sizes_of_the_movielens_templates(model, parameters, keys):
    model = model()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.to_authors()) == keys


# --- plain re-computations ---


@pytest.mark.parametrize("normalization", ["post", "pre"])
def test_bert_block_is_torchs_transformer_layer(normalization):
    sizes = {"max_length": 9, "hidden_size": 8, "num_blocks": 1}
    model = random_model(BERT4Rec, 20, normalization=normalization, **sizes)
    block = model.blocks[0]
    layer = torch.nn.TransformerEncoderLayer(
        8,
        2,
        32,
        dropout=0.0,
        activation=lambda x: F.gelu(x, approximate="tanh"),
        batch_first=True,
        norm_first=normalization == "pre",
    )
    layer = layer.double()
    ours = {
        "self_attn.in_proj": block.attention.projections,
        "self_attn.out_proj": block.attention.output,
        "linear1": block.feed_forward.expand,
        "linear2": block.feed_forward.contract,
        "norm1": block.attention_norm,
        "norm2": block.feed_forward_norm,
    }
    state = {}
    for name, module in ours.items():
        glue = "_" if name.endswith("in_proj") else "."
        state[f"{name}{glue}weight"], state[f"{name}{glue}bias"] = module.weight.data, module.bias.data
    layer.load_state_dict(state)
    batch = random_next_batch()
    with captured(model, ["blocks.0", "head"]) as seen:
        model(batch)
    expected = layer(seen["blocks.0"], src_key_padding_mask=batch["tokens"] == 0)
    assert_close(seen["head"], expected)


def test_sasrec_equals_a_loop_over_queries():
    model, batch = random_model(SASRec, 20, max_length=9, hidden_size=8, num_blocks=1), random_next_batch()
    block, tokens = model.blocks[0], batch["tokens"][1]
    x = model.items(tokens) + model.positions.weight
    normed = block.attention_norm(x)
    mixed = torch.zeros_like(x)
    for i in range(9):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            key, value = block.key_value(x[: i + 1]).chunk(2, dim=-1)
            weights = torch.softmax(key[:, part] @ block.query(normed[i])[part] / 2, dim=0)
            mixed[i, part] = weights @ value[:, part]
    y = block.feed_forward_norm(normed + mixed)
    expected = model.norm(y + block.outer(F.relu(block.inner(y))))
    assert_close(model(batch)[1], expected)


def test_tisasrec_equals_a_loop_over_pairs():
    model = random_model(TiSASRec, 20, max_length=9, hidden_size=8, num_blocks=1, max_interval=10)
    batch = random_next_batch()
    block, tokens, stamps = model.blocks[0], batch["tokens"][1], batch["timestamps"][1]
    x = model.items(tokens)
    normed = block.attention_norm(x)
    mixed = torch.zeros_like(x)
    for i in range(9):
        key, value = block.key_value(x[: i + 1]).chunk(2, dim=-1)
        intervals = (stamps[i] - stamps[: i + 1]).abs().clamp(max=10)
        key = key + model.key_position.weight[: i + 1] + model.key_interval.weight[intervals]
        value = value + model.value_position.weight[: i + 1] + model.value_interval.weight[intervals]
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            weights = torch.softmax(key[:, part] @ block.query(normed[i])[part] / 2, dim=0)
            mixed[i, part] = weights @ value[:, part]
    y = block.feed_forward_norm(normed + mixed)
    expected = model.norm(y + block.outer(F.relu(block.inner(y))))
    assert_close(model(batch)[1], expected)


def test_next_item_loss_is_binary_cross_entropy():
    model, batch = random_model(SASRec, 20, max_length=9, hidden_size=8), random_next_batch()
    hidden, real = model(batch), batch["labels"] > 0
    positive = (hidden * model.items(batch["labels"])).sum(-1)[real]
    negative = (hidden * model.items(batch["negatives"])).sum(-1)[real]
    ones = torch.ones_like(positive)
    expected = F.binary_cross_entropy_with_logits(positive, ones)
    expected = expected + F.binary_cross_entropy_with_logits(negative, 0 * ones)
    assert_close(model.loss(batch), expected)


def test_marank_loss_compares_label_and_negative():
    model = random_model(MARank, 20, 5, hidden_size=8)
    batch = {
        "tokens": torch.randint(1, 21, (4, 6)),
        "users": torch.tensor([1, 2, 3, 5]),
        "labels": torch.tensor([3, 4, 5, 6]),
        "negatives": torch.tensor([7, 8, 9, 10]),
    }
    scores = model.scores(batch)
    rows = torch.arange(4)
    difference = scores[rows, batch["labels"] - 1] - scores[rows, batch["negatives"] - 1]
    assert_close(model.loss(batch), -F.logsigmoid(difference).mean())


def test_attention_weights_of_bert_are_those_of_the_forward_pass():
    model, batch = random_model(BERT4Rec, 20, max_length=9, hidden_size=8), random_next_batch()
    attention = model.blocks[0].attention
    with (
        captured(model, ["blocks.0"]) as inputs,
        captured(model, ["blocks.0.attention"], "output") as outputs,
    ):
        model(batch)
    value = attention.projections(inputs["blocks.0"]).chunk(3, dim=-1)[2]
    value = value.unflatten(-1, (2, 4)).transpose(1, 2)
    weights = model.attention_weights(batch)
    assert len(weights) == 2
    mixed = (weights[0] @ value).transpose(1, 2).flatten(2)
    assert_close(outputs["blocks.0.attention"], attention.output(mixed))


# --- causality, padding, reductions ---


@pytest.mark.parametrize("cls", [SASRec, TiSASRec])
def test_real_states_do_not_see_later_events(cls):
    model, batch = random_model(cls, 20, max_length=9, hidden_size=8), random_next_batch()
    later = {key: value.clone() for key, value in batch.items()}
    later["tokens"][:, 7:] = 3
    later["timestamps"][:, 7:] += 4
    before, after = model(batch), model(later)
    assert_close(before[0, 4:7], after[0, 4:7])
    assert_close(before[1:, :7], after[1:, :7])
    assert (before[:, 8] - after[:, 8]).abs().max() > 1e-3


def test_bert_sees_later_events():
    model, batch = random_model(BERT4Rec, 20, max_length=9, hidden_size=8), random_next_batch()
    later = {**batch, "tokens": batch["tokens"].clone()}
    later["tokens"][:, -1] = 3
    assert (model(batch)[:, 5] - model(later)[:, 5]).abs().max() > 1e-3


def test_padded_queries_of_causal_models_attend_to_everything_alike():
    bias = causal_bias(torch.tensor([[0, 0, 5, 6]]), torch.float32)[0, 0]
    weights = torch.softmax(torch.randn(4, 4) + bias, dim=-1)
    assert_close(weights[:2], torch.full((2, 4), 0.25))
    assert weights[2].tolist() == [0, 0, 1, 0]


def test_tisasrec_without_times_is_sasrec_with_positions_in_the_keys():
    model = random_model(TiSASRec, 20, max_length=9, hidden_size=8, num_blocks=1, max_interval=10)
    for table in (model.key_interval, model.value_interval, model.value_position):
        torch.nn.init.zeros_(table.weight)
    batch = random_next_batch()
    twin = random_model(SASRec, 20, max_length=9, hidden_size=8, num_blocks=1)
    twin.load_state_dict({**model.state_dict(), "positions.weight": torch.zeros(9, 8)}, strict=False)
    project = twin.blocks[0].key_value.forward
    shift = torch.cat([model.key_position.weight, torch.zeros(9, 8)], dim=-1)
    twin.blocks[0].key_value.forward = lambda x: project(x) + shift
    assert_close(model(batch), twin(batch))


def test_intervals_are_clipped_and_symmetric():
    model = random_model(TiSASRec, 20, max_length=9, hidden_size=8, max_interval=10)
    batch = random_next_batch()
    far = {**batch, "timestamps": batch["timestamps"] * 1000}
    farther = {**batch, "timestamps": batch["timestamps"] * 5000}
    assert_close(model(far), model(farther))
    assert (model(far) - model(batch)).abs().max() > 1e-3
    mirrored = {**batch, "timestamps": 100 - batch["timestamps"]}
    assert_close(model(mirrored), model(batch))


@pytest.mark.parametrize("cls", [BERT4Rec, SASRec, TiSASRec])
def test_a_shorter_window_is_its_right_end(cls):
    model, batch = random_model(cls, 20, max_length=9, hidden_size=8), random_next_batch()
    one = {key: value[:1] for key, value in batch.items()}
    short = {key: value[:, 4:] for key, value in one.items()}
    assert_close(model(one)[:, 4:], model(short))


@pytest.mark.parametrize("cls", [BERT4Rec, SASRec, TiSASRec])
def test_training_mode_drops_and_evaluation_does_not(cls):
    torch.manual_seed(0)
    model, batch = cls(20, max_length=9, hidden_size=8, dropout=0.5, init_std=0.5), random_next_batch()
    assert (model(batch) - model(batch)).abs().max() > 1e-2
    model.loss(batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    assert_close(model(batch), model(batch))


def test_gradients_agree_with_finite_differences():
    batch = random_next_batch()
    for cls in (BERT4Rec, SASRec, TiSASRec):
        model = random_model(cls, 20, max_length=9, hidden_size=4, num_blocks=1)
        model.loss(batch).backward()
        for parameter in list(model.parameters())[:4]:
            direction = torch.randn_like(parameter)
            with torch.no_grad():
                parameter += 1e-6 * direction
                up = model.loss(batch)
                parameter -= 2e-6 * direction
                slope = (up - model.loss(batch)) / 2e-6
                parameter += 1e-6 * direction
            assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", [BERT4Rec, SASRec, TiSASRec])
def test_half_precision_stays_close_to_single(cls, dtype):
    """Rows without a real key included: float16 has no room for float32's mask."""
    model = random_model(cls, 20, max_length=9, hidden_size=8).float()
    batch = random_next_batch()
    batch["tokens"][1] = 0
    real = batch["tokens"] > 0
    with torch.autocast("cpu", dtype):
        half = model(batch)
    assert half.isfinite().all()
    assert_close(half[real].float(), model(batch)[real], rtol=0, atol=0.1)


# --- checkpoints ---


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict"])
def test_files_as_the_authors_write_them(name, wrapper, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    state = {f"model.{key}": value for key, value in model.to_authors().items()}
    torch.save({wrapper: state, "epoch": 1}, tmp_path / "best_model.pth")
    loaded = type(model).from_authors(tmp_path / "best_model.pth")
    batch = AUTHORS_SCORES[name][1]
    assert not loaded.training
    assert_close(loaded.scores(batch), model.scores(batch))


@pytest.mark.parametrize("name", MODELS)
def test_other_checkpoints_are_refused_by_name(name):
    model = MODELS[name]()
    state = model.to_authors()
    last = list(state)[-1]
    with pytest.raises(ValueError, match=f"no {name} checkpoint.*unexpected extra"):
        type(model).from_authors({**state, "extra": torch.zeros(1)})
    missing = next(key for key in state if key.endswith(".bias") and "." in key and key != last)
    with pytest.raises(ValueError, match=f"missing {missing}"):
        type(model).from_authors({k: v for k, v in state.items() if k != missing})
    with pytest.raises(ValueError, match=f"no {name} checkpoint"):
        type(model).from_authors({"item_emb.weight": torch.zeros(2, 2)})
    other = MODELS["BERT4Rec" if name != "BERT4Rec" else "SASRec"]().to_authors()
    with pytest.raises(ValueError, match=f"no {name} checkpoint"):
        type(model).from_authors(other)


def test_what_berts_file_cannot_tell_is_an_option():
    """The authors' ``--residual_ln_type pre`` saves the same keys."""
    torch.manual_seed(0)
    model = BERT4Rec(7, normalization="pre", init_std=0.5, **SMALL).eval()
    loaded = BERT4Rec.from_authors(model.to_authors(), normalization="pre")
    assert_close(loaded.scores(CLOZE), model.scores(CLOZE))
    other = BERT4Rec.from_authors(model.to_authors())
    assert (other.scores(CLOZE) - model.scores(CLOZE)).norm() > 0.1 * model.scores(CLOZE).norm()


def test_bert_with_a_linear_head_makes_the_round_trip():
    model = BERT4Rec(7, head="linear", head_layer_norm=False, **SMALL).eval()
    loaded = BERT4Rec.from_authors(model.to_authors())
    assert_close(loaded.scores(CLOZE), model.scores(CLOZE))


# --- errors at the door ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BERT4Rec(7, hidden_size=9), "hidden_size must be a multiple"),
        (lambda: BERT4Rec(7, normalization="none"), "normalization must be 'pre' or 'post', got 'none'"),
        (lambda: SASRec(0), "num_items must be at least 1, got 0"),
        (lambda: TiSASRec(7, max_interval=0), "max_interval must be at least 1"),
        (lambda: MARank(7, 0), "num_users must be at least 1"),
        (lambda: SASRec(7, dropout=1.0), "dropout must be in"),
        (lambda: SASRec(7, max_length=5)(NEXT), r"T in 1\.\.5, got \(1, 6\)"),
        (lambda: BERT4Rec(6, **SMALL)(CLOZE), r"tokens must be in 0\.\.7, got 8"),
        (lambda: TiSASRec(7, **SMALL)({"tokens": NEXT["tokens"]}), "timestamps must have the shape"),
        (lambda: SASRec(7, **SMALL).loss({**NEXT, "labels": 0 * NEXT["labels"]}), "select no position"),
        (
            lambda: SASRec(7, **SMALL).loss(NEXT | {"labels": CLOZE["tokens"]}),
            r"labels must be in 0\.\.7, got 8",
        ),
        (lambda: SASRec(7, **SMALL).loss(NEXT | {"negatives": 8 + NEXT["labels"]}), "negatives must be in"),
        (lambda: SASRec(7, **SMALL).scores(NEXT, CANDIDATES + 1), r"candidates must be in 0\.\.7, got 8"),
        (
            lambda: MARank(7, 3).scores(CONTEXT, CANDIDATES.expand(2, -1) + 1),
            r"candidates must be in 0\.\.7, got 8",
        ),
        (lambda: BERT4Rec(7, **SMALL).scores(EMPTY), "B ≥ 1"),
        (lambda: SASRec(7, **SMALL).scores(EMPTY), "B ≥ 1"),
        (lambda: BERT4Rec(7, **SMALL).attention_weights(EMPTY), "B ≥ 1"),
        (lambda: BERT4Rec(7, **SMALL).loss(EMPTY | {"labels": EMPTY["tokens"]}), "select no position"),
        (
            lambda: BERT4Rec(7, **SMALL).scores({"tokens": CLOZE["tokens"][:, :0]}),
            r"T in 1\.\.6, got \(1, 0\)",
        ),
        (lambda: BERT4Rec(7, **SMALL).scores({"tokens": CLOZE["tokens"][0]}), r"tokens must be \(B, T\)"),
        (lambda: BERT4Rec(7, **SMALL)({"tokens": CLOZE["tokens"].float()}), "tokens must be integers"),
        (
            lambda: BERT4Rec(7, **SMALL).scores(CLOZE, CANDIDATES[:, :0]),
            r"must be \(1, C\), C ≥ 1, got \(1, 0\)",
        ),
        (
            lambda: SASRec(7, **SMALL).scores(NEXT, CANDIDATES[:, :0]),
            r"must be \(1, C\), C ≥ 1, got \(1, 0\)",
        ),
        (lambda: MARank(7, 3).scores(CONTEXT, CANDIDATES), r"must be \(2, C\), C ≥ 1, got \(1, 4\)"),
        (lambda: BERT4Rec(7, **SMALL).scores(CLOZE, CANDIDATES[0]), r"must be \(1, C\), C ≥ 1, got \(4,\)"),
        (lambda: BERT4Rec(7, **SMALL).scores(CLOZE, CANDIDATES.float()), "candidates must be integers"),
        (lambda: MARank(7, 3)({key: value[:0] for key, value in CONTEXT.items()}), "B ≥ 1"),
        (lambda: MARank(7, 1)(CONTEXT), r"users must be in 0\.\.1, got 2"),
        (lambda: MARank(7, 3, context_length=5)(CONTEXT), r"tokens must be \(B, 5\)"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_constant_model_has_the_loss_of_chance():
    model = SASRec(7, **SMALL)
    torch.nn.init.zeros_(model.items.weight)
    assert model.loss(NEXT).item() == pytest.approx(2 * math.log(2))
