"""MEANTIME's comparison on a small made-up log, a file of the authors in an arm's place, the gap world."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.interactions import InteractionLog
from lib.data.movielens import ML_100K
from lib.data.worlds import GapWorld
from lib.experiments import meantime as experiments
from lib.experiments.meantime import (
    ARMS,
    GAP_WORLD_ARMS,
    NUMBERED_ALIKE,
    Comparison,
    gap_shares,
    gap_world_curve,
    gap_world_model,
    mean_scores,
    source_of,
    validation_curves,
)
from lib.models.recommenders.meantime import Meantime
from lib.training.loop import History, fit, seeded
from lib.training.recommenders import Popularity, user_metrics

USERS, ITEMS, EVENTS = 40, 150, 9
SETTINGS = {
    "dataset": "ml-100k",
    "authors_checkpoint": "",
    "absolute": "p-d",
    "relative": "s-l",
    "hidden_size": 8,
    "num_blocks": 2,
    "bert4rec_heads": 4,
    "max_interval": 16,
    "dropout": 0.2,
    "mask_probability": 0.4,
    "max_length": 6,
    "train_stride": 3,
    "batch_size": 16,
    "learning_rate": 0.01,
    "steps": 4,
    "evaluate_every": 2,
    "patience": 4,
    "negatives_for_training": "unseen",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def log() -> InteractionLog:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"user": np.repeat(np.arange(USERS), EVENTS), "rating": 5.0})
    frame["item"] = np.concatenate([random.choice(ITEMS, EVENTS, replace=False) for _ in range(USERS)])
    frame.loc[: ITEMS - 1, "item"] = np.arange(ITEMS)  # each at least once
    frame["timestamp"] = random.integers(0, 30 * 86_400, len(frame))
    made = InteractionLog.from_frame(frame, min_item_count=1)
    assert (made.num_users, made.num_items) == (USERS, ITEMS)
    return made


def comparison(log: InteractionLog, **other) -> Comparison:
    return Comparison(log, **SETTINGS | other)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# --- the arms ---


def test_every_arm_is_the_network_that_its_name_says(log):
    models = {arm: comparison(log).model(arm) for arm in ARMS}
    names = {arm: type(model).__name__ for arm, model in models.items()}
    assert [names[arm] for arm in ARMS[:5]] == ["Meantime", "BERT4Rec", "TiSASRec", "SASRec", "MARank"]
    kernels = {arm: (models[arm].absolute, models[arm].relative) for arm in (ARMS[0], *ARMS[5:])}
    assert kernels == {
        "MEANTIME": (("p", "d"), ("s", "l")),
        "MEANTIME p-p-p-p": (("p",) * 4, ()),
        "MEANTIME l-l-l-l": ((), ("l",) * 4),
    }
    assert models["BERT4Rec"].blocks[0].attention.num_heads == 4 and models["TiSASRec"].max_interval == 16
    assert {models[arm].hidden_size for arm in ("MEANTIME", "BERT4Rec", "SASRec")} == {8}
    with pytest.raises(ValueError, match="arm must be one of MEANTIME, BERT4Rec, .*, got 'GRU4Rec'"):
        comparison(log).model("GRU4Rec")


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_trains_on_its_own_kind_of_window(log, arm):
    batch = comparison(log).windows(arm, seed=0).batch(0)
    shapes = {"MARank": (16, 6)}
    assert batch["tokens"].shape == shapes.get(arm, (16, 6)) and batch["users"].shape == (16,)
    masked = (batch["tokens"] == ITEMS + 1).any()
    assert masked == (arm not in ("TiSASRec", "SASRec", "MARank"))
    assert ("negatives" in batch) == (arm in ("TiSASRec", "SASRec", "MARank"))
    other = comparison(log).windows(arm, seed=1).batch(0)
    assert not torch.equal(batch["tokens"], other["tokens"])


def test_only_tisasrec_has_a_clock_of_its_own(log):
    first = {
        arm: comparison(log).windows(arm, seed=0).batch(0)["timestamps"] for arm in ("TiSASRec", "SASRec")
    }
    assert first["TiSASRec"].max() < first["SASRec"].max() and not (first["TiSASRec"] < 0).any()


@pytest.mark.parametrize("arm", ["MEANTIME", "SASRec", "MARank"])
def test_a_training_follows_its_seed(log, arm):
    (first, history), (same, _), (other, _) = (comparison(log).train(arm, seed) for seed in (0, 0, 1))
    assert torch.equal(weights(first), weights(same)) and not torch.equal(weights(first), weights(other))
    assert not first.training and [row["step"] for row in history.evaluations] == [2, 4]
    best = max(history.evaluations, key=lambda row: row["NDCG@10"])
    assert history.best_step == best["step"]


def test_a_finished_training_is_not_done_again(log, tmp_path, monkeypatch):
    setting, file = comparison(log), tmp_path / "MEANTIME, seed 0.pt"
    trained, history = setting.train("MEANTIME", 0, file)

    def no_step(model, batch):
        raise AssertionError("a step of a finished training")

    monkeypatch.setattr(Meantime, "loss", no_step)
    again, same = setting.train("MEANTIME", 0, file)
    assert torch.equal(weights(trained), weights(again)) and same.evaluations == history.evaluations


@pytest.mark.parametrize("arm", ["MEANTIME", "TiSASRec", "MARank"])
def test_a_training_killed_in_its_middle_ends_as_if_it_had_not_been(log, tmp_path, monkeypatch, arm):
    setting = comparison(log)
    whole, history = setting.train(arm, 0)
    monkeypatch.setattr(experiments, "fit", partial(fit, checkpoint_seconds=0))
    windows = type(setting.windows(arm, 0))
    batch = windows.batch

    def killed_at_three(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(windows, "batch", killed_at_three)
    with pytest.raises(KeyboardInterrupt):
        setting.train(arm, 0, tmp_path / "arm.pt")
    monkeypatch.setattr(windows, "batch", batch)
    torch.manual_seed(99)
    resumed, same = setting.train(arm, 0, tmp_path / "arm.pt")
    assert torch.equal(weights(resumed), weights(whole)) and same.evaluations == history.evaluations


# --- what is measured ---


class Constant:
    """Every item is as good as any other."""

    def scores(self, batch, candidates=None):
        return torch.zeros(len(batch["users"]), ITEMS if candidates is None else candidates.shape[1])


def test_a_guess_has_the_metrics_of_chance(log):
    users = comparison(log).test("MEANTIME", Constant())
    assert len(users) == USERS
    assert users["Recall@10"].to_numpy() == pytest.approx(10 / 101)
    unseen = ITEMS - (EVENTS - 1)  # the history before the target is left out, the target is not
    assert users["Recall@10 (full ranking)"].to_numpy() == pytest.approx(10 / unseen)


def test_every_arm_is_scored_by_its_own_view(log):
    setting = comparison(log)
    for arm in ARMS:
        seeded(0)
        users = setting.test(arm, setting.model(arm).eval())
        assert len(users) == USERS and users["Recall@10"].std() > 0
    popular = setting.test("popularity", Popularity(log))
    expected = user_metrics(Popularity(log), setting.held_out("popularity"), negatives=setting.negatives)
    assert popular["NDCG@10"].tolist() == expected["NDCG@10"].tolist()


def test_a_blinded_target_hides_its_time_from_meantime_alone(log):
    setting = comparison(log)
    seen, blinded = (next(setting.held_out("MEANTIME", target_time=time)) for time in ("seen", "blinded"))
    assert torch.equal(seen["tokens"], blinded["tokens"])
    assert torch.equal(seen["timestamps"][:, :-1], blinded["timestamps"][:, :-1])
    assert torch.equal(blinded["timestamps"][:, -1], seen["timestamps"][:, -2])
    seeded(0)
    model = setting.model("MEANTIME").eval()
    assert (model.scores(seen) - model.scores(blinded)).abs().max() > 0
    for arm in ("SASRec", "TiSASRec", "MARank"):
        seen, blinded = (next(setting.held_out(arm, target_time=time)) for time in ("seen", "blinded"))
        assert all(torch.equal(seen[name], blinded[name]) for name in seen)


def test_heads_that_attend_alike_overlap_fully(log):
    setting = comparison(log)
    seeded(0)
    model = setting.model("BERT4Rec").eval()
    assert setting.head_overlap("BERT4Rec", model) < 1
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.projections.weight)
    assert setting.head_overlap("BERT4Rec", model) == pytest.approx(1)


def test_scores_are_means_over_users_and_curves_skip_what_was_not_trained():
    users = pd.DataFrame({"NDCG@10": [0.2, 0.4], "Recall@10": [0.0, 1.0]})
    scores = mean_scores({("A", 0): users, ("A", 1): users / 2, ("B", 0): users})
    assert scores.loc[("A", 1)].to_dict() == pytest.approx({"NDCG@10": 0.15, "Recall@10": 0.25})
    assert scores.index.names == ["arm", "seed"]
    rows = [{"step": 2, "NDCG@10": 0.1}, {"step": 4, "NDCG@10": 0.3}]
    curves = validation_curves({("A", 1): (None, History(evaluations=rows)), ("B", 0): (None, History())})
    assert curves.to_dict("list") == {
        "step": [2, 4], "NDCG@10": [0.1, 0.3], "arm": ["A", "A"], "seed": [1, 1]
    }  # fmt: skip


def test_gaps_and_sources_are_named():
    stamps = [0, 0, 60, 61, 90_000, 90_000]
    frame = pd.DataFrame({"user": 1, "item": range(6), "rating": 1.0, "timestamp": stamps})
    log = InteractionLog.from_frame(frame, min_item_count=1)
    assert gap_shares(log) == pytest.approx({"ties": 40.0, "minute": 80.0, "day": 20.0})
    assert source_of("ml-100k") is ML_100K
    with pytest.raises(ValueError, match="dataset must be one of ml-100k, .*, got 'netflix'"):
        source_of("netflix")


# --- a file of the authors in the trained model's place ---


def authors_file(path, **other) -> Meantime:
    """A made-up file as the authors' program writes it; what it holds."""
    seeded(5)
    sizes = {"num_days": 30, "max_length": 6, "hidden_size": 8, "init_std": 0.5}
    model = Meantime(**{"num_items": ITEMS} | sizes | other).eval()
    state = {f"model.{key}": value for key, value in model.to_authors().items()}
    torch.save({"model_state_dict": state, "epoch": 3, "steps": (3, 768)}, path)
    return model


def test_a_file_of_the_authors_is_tested_in_the_place_of_every_seed(log, tmp_path, monkeypatch):
    file = tmp_path / "best_model.pth"
    held = authors_file(file, num_days=log.num_days, relative_term="materialised")
    setting = comparison(log, authors_checkpoint=str(file))
    trained = {(arm, seed): setting.train(arm, seed) for arm in ("MEANTIME", "BERT4Rec") for seed in (0, 1)}
    assert [history.steps for _, history in trained.values()] == [0, 0, 4, 4]
    assert set(validation_curves(trained)["arm"]) == {"BERT4Rec"}
    scores = mean_scores({key: setting.test(key[0], model) for key, (model, _) in trained.items()})
    of_the_file = comparison(log).test("MEANTIME", held).mean()
    for seed in (0, 1):
        assert scores.loc[("MEANTIME", seed)].tolist() == of_the_file.tolist()
    assert scores.loc[("BERT4Rec", 0)].tolist() != scores.loc[("BERT4Rec", 1)].tolist()
    untrained = comparison(log).test("MEANTIME", comparison(log).train("MEANTIME", 0)[0]).mean()
    assert untrained.tolist() != of_the_file.tolist()
    overlaps = {setting.head_overlap("MEANTIME", trained["MEANTIME", seed][0]) for seed in (0, 1)}
    assert overlaps == {comparison(log).head_overlap("MEANTIME", held)}
    assert setting.replicates(scores).index.tolist() == [("MEANTIME", 0), ("BERT4Rec", 0)]
    assert comparison(log).replicates(scores) is scores


@pytest.mark.parametrize(
    ("kernels", "more_days"), [(("p-d", "s-l"), 1), (("c", "l"), 0), (("p-c", "e-s"), 0), (("d", "s"), 0)]
)
def test_files_with_other_kernels_fit_the_chapter_that_asks_for_them(log, tmp_path, kernels, more_days):
    kinds = {"absolute": kernels[0], "relative": kernels[1]}
    authors_file(tmp_path / "file.pth", num_days=log.num_days + more_days, **kinds)
    published = comparison(log, authors_checkpoint=str(tmp_path / "file.pth"), **kinds).published
    assert ("-".join(published.absolute), "-".join(published.relative)) == kernels


@pytest.mark.parametrize(
    ("held", "asked", "message"),
    [
        ({"num_items": ITEMS + 1}, {}, "must have num_items 150, got num_items 151"),
        ({"num_days": 45}, {}, r"must have num_days \d\d, got num_days 45"),
        (
            {"max_length": 5, "num_blocks": 1},
            {},
            "max_length 6, num_blocks 2, got max_length 5, num_blocks 1",
        ),
        ({"hidden_size": 16}, {}, "must have hidden_size 8, got hidden_size 16"),
        ({"relative": "s"}, {}, "2 absolute and 1 relative heads, .* name 2 and 2"),
        ({}, {"absolute": "p", "relative": "s-l-e"}, "2 absolute and 2 relative heads, .* name 1 and 3"),
        ({}, {"absolute": "d-p"}, "must have num_days"),
        ({}, {"dataset": "beauty"}, "fits ml-100k or ml-1m only, got beauty"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(log, tmp_path, held, asked, message):
    sizes = {"num_days": log.num_days}
    if held.get("relative") == "s":
        sizes["hidden_size"] = 9 * 2  # three heads
    authors_file(tmp_path / "file.pth", **sizes | held)
    with pytest.raises(ValueError, match=message) as refusal:
        comparison(log, authors_checkpoint=str(tmp_path / "file.pth"), **asked)
    assert "\n" not in str(refusal.value)


def test_what_is_no_file_of_the_authors_is_refused_in_one_line(log, tmp_path):
    file = tmp_path / "file.pth"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        comparison(log, authors_checkpoint=str(file))
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is no file of tensors") as refusal:
        comparison(log, authors_checkpoint=str(file))
    assert "\n" not in str(refusal.value)
    torch.save(comparison(log).model("SASRec").to_authors(), file)
    with pytest.raises(ValueError, match="no MEANTIME checkpoint of the authors: missing"):
        comparison(log, authors_checkpoint=str(file))


def test_a_set_orders_the_ids_of_small_catalogues_alone():
    """Why a file fits some data sets only: the authors number items in the order of a Python set."""
    random = np.random.default_rng(0)
    for name, items, largest in (("ml-100k", 1349, 1682), ("ml-1m", 3416, 3952), ("ml-20m", 18_345, 131_262)):
        ids = random.choice(np.arange(1, largest + 1), items, replace=False).tolist()
        assert (list(set(ids)) == sorted(ids)) == (name in NUMBERED_ALIKE), name


# --- the gap world ---


def test_the_gap_worlds_arms_have_the_kernels_of_their_names():
    world = GapWorld(seed=0)
    models = {
        arm: gap_world_model(arm, world, mixture=("c", "s-l"), hidden_size=12) for arm in GAP_WORLD_ARMS
    }
    kernels = {arm: (m.absolute, m.relative) for arm, m in models.items() if isinstance(m, Meantime)}
    assert kernels == {
        "p + e": (("p",), ("e",)), "p + l": (("p",), ("l",)), "MEANTIME": (("c",), ("s", "l"))
    }  # fmt: skip
    assert {model.num_items for model in models.values()} == {world.num_items}


def test_a_curve_of_the_gap_world_follows_its_seed(tmp_path):
    options = {"mixture": ("p-d", "s-l"), "hidden_size": 8, "steps": 20, "batch_size": 16}
    first, other = (gap_world_curve("MEANTIME", seed, **options) for seed in (0, 1))
    assert first["step"].tolist() == list(range(2, 21, 2))
    assert first["Recall@10"].tolist() != other["Recall@10"].tolist()
    assert first.equals(gap_world_curve("MEANTIME", 0, **options, checkpoint=tmp_path / "gap.pt"))
    assert first.equals(gap_world_curve("MEANTIME", 0, **options, checkpoint=tmp_path / "gap.pt"))
