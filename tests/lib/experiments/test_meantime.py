"""MEANTIME's comparison on a small made-up log, and a file of the authors in an arm's place."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.interactions import InteractionLog
from lib.data.movielens import ML_100K
from lib.experiments import meantime as experiments
from lib.experiments.meantime import (
    ARMS,
    NUMBERED_ALIKE,
    ONE_KIND,
    ONE_TABLE,
    RESTAMPED,
    Comparison,
    by_user,
    gap_shares,
    mean_scores,
    source_of,
    validation_curves,
    validation_summary,
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
        "MEANTIME d-d-d-d": (("d",) * 4, ()),
        "MEANTIME s-s-s-s": ((), ("s",) * 4),
        "MEANTIME e-e-e-e": ((), ("e",) * 4),
        "MEANTIME l-l-l-l": ((), ("l",) * 4),
        "MEANTIME p-p-p-p, one table": (("p",) * 4, ()),
        "MEANTIME, stamps shuffled": (("p", "d"), ("s", "l")),
        "MEANTIME, ranks for stamps": (("p", "d"), ("s", "l")),
    }
    assert [arm for arm in ARMS if getattr(models[arm], "one_table", False)] == [ONE_TABLE]
    assert len(models[ONE_TABLE].tables) == 1 and len(models["MEANTIME p-p-p-p"].tables) == 4
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
    users = comparison(log).test("MEANTIME", 0, Constant())
    assert len(users) == USERS
    assert users["Recall@10"].to_numpy() == pytest.approx(10 / 101)
    unseen = ITEMS - (EVENTS - 1)  # the history before the target is left out, the target is not
    assert users["Recall@10 (full ranking)"].to_numpy() == pytest.approx(10 / unseen)


def test_every_arm_is_scored_by_its_own_view(log):
    setting = comparison(log)
    for arm in ARMS:
        seeded(0)
        users = setting.test(arm, 0, setting.model(arm).eval())
        assert len(users) == USERS and users["Recall@10"].std() > 0
    popular = setting.test("popularity", 0, Popularity(log))
    expected = user_metrics(Popularity(log), setting.held_out("popularity", 0), negatives=setting.negatives)
    assert popular["NDCG@10"].tolist() == expected["NDCG@10"].tolist()


def test_a_blinded_target_hides_its_time_from_meantime_alone(log):
    setting = comparison(log)
    seen, blinded = (next(setting.held_out("MEANTIME", 0, target_time=time)) for time in ("seen", "blinded"))
    assert torch.equal(seen["tokens"], blinded["tokens"])
    assert torch.equal(seen["timestamps"][:, :-1], blinded["timestamps"][:, :-1])
    assert torch.equal(blinded["timestamps"][:, -1], seen["timestamps"][:, -2])
    seeded(0)
    model = setting.model("MEANTIME").eval()
    assert (model.scores(seen) - model.scores(blinded)).abs().max() > 0
    for arm in ("SASRec", "TiSASRec", "MARank"):
        seen, blinded = (next(setting.held_out(arm, 0, target_time=time)) for time in ("seen", "blinded"))
        assert all(torch.equal(seen[name], blinded[name]) for name in seen)


def test_heads_that_attend_alike_overlap_fully(log):
    setting = comparison(log)
    seeded(0)
    model = setting.model("BERT4Rec").eval()
    assert setting.test("BERT4Rec", 0, model)["head overlap"].max() < 1
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.projections.weight)
    overlaps = setting.test("BERT4Rec", 0, model)["head overlap"]
    assert len(overlaps) == USERS and overlaps.to_numpy() == pytest.approx(1)


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
    scores = mean_scores({key: setting.test(*key, model) for key, (model, _) in trained.items()})
    of_the_file = comparison(log).test("MEANTIME", 0, held).mean()
    for seed in (0, 1):
        assert scores.loc[("MEANTIME", seed)].tolist() == of_the_file.tolist()
    assert scores.loc[("BERT4Rec", 0)].tolist() != scores.loc[("BERT4Rec", 1)].tolist()
    untrained = comparison(log).test("MEANTIME", 0, comparison(log).train("MEANTIME", 0)[0]).mean()
    assert untrained.tolist() != of_the_file.tolist()
    assert setting.replicates([4, 5]) == [4] and comparison(log).replicates([4, 5]) == [4, 5]


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
    with pytest.raises(ValueError, match="is no checkpoint") as refusal:
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


# --- other time stamps, settings of single arms, results per user ---


def test_arms_with_other_stamps_see_the_same_events_in_the_same_order(log):
    setting = comparison(log)
    for arm in RESTAMPED:
        true, other = (setting.windows(name, seed=0).batch(0) for name in ("MEANTIME", arm))
        assert torch.equal(true["tokens"], other["tokens"]) and torch.equal(true["users"], other["users"])
        assert not torch.equal(true["timestamps"], other["timestamps"])
        true, other = (next(setting.held_out(name, 0)) for name in ("MEANTIME", arm))
        assert torch.equal(true["tokens"], other["tokens"])
        assert not torch.equal(true["timestamps"], other["timestamps"])


def test_shuffled_stamps_are_the_users_own_and_follow_the_seed(log):
    shuffled = comparison(log).log_of(RESTAMPED[0], 0)
    for user in (1, USERS):
        own = log.events(user)
        assert sorted(shuffled.timestamp[own]) == sorted(log.timestamp[own])
    assert (shuffled.timestamp != log.timestamp).any() and (shuffled.item == log.item).all()
    assert (comparison(log).log_of(RESTAMPED[0], 1).timestamp != shuffled.timestamp).any()
    assert comparison(log).log_of("SASRec", 0) is log


def test_ranks_say_the_order_and_nothing_else(log):
    ranks = comparison(log).log_of(RESTAMPED[1], 0)
    assert ranks.timestamp[log.events(3)].tolist() == list(range(EVENTS))
    assert ranks.num_days == 1


def test_an_arm_has_its_own_learning_rate_and_dropout(log):
    setting = comparison(log, learning_rates={"SASRec": 0.0}, dropouts={"BERT4Rec": 0.4})
    dropouts = {
        arm: max(m.p for m in setting.model(arm).modules() if hasattr(m, "p"))
        for arm in ("BERT4Rec", "SASRec")
    }
    assert dropouts == {"BERT4Rec": 0.4, "SASRec": 0.2}
    seeded(0)
    untrained = weights(setting.model("SASRec"))
    assert torch.equal(weights(setting.train("SASRec", 0)[0]), untrained)  # no step at a rate of zero
    assert not torch.equal(weights(comparison(log).train("SASRec", 0)[0]), untrained)
    with pytest.raises(ValueError, match="arm must be one of MEANTIME, .*, got 'SASRecs'"):
        comparison(log, dropouts={"SASRecs": 0.1})


def test_results_by_user_have_a_row_per_seed():
    frames = {
        ("a", seed): pd.DataFrame({"NDCG@10": [0.1 * seed, 1.0]}, index=pd.Index([1, 2], name="user"))
        for seed in (3, 4)
    }
    frames["popularity", 3] = pd.DataFrame({"NDCG@10": [0.5, 0.5]}, index=pd.Index([1, 2], name="user"))
    found = by_user(frames, [3, 4], ["NDCG@10", "head overlap"])
    assert found["NDCG@10"]["a"].to_numpy() == pytest.approx(np.array([[0.3, 1.0], [0.4, 1.0]]))
    assert found["NDCG@10"]["popularity"].shape == (1, 2) and found["head overlap"] == {}
    assert found["NDCG@10"]["a"].index.tolist() == [3, 4]


def test_a_validation_is_told_with_its_step(log):
    setting = comparison(log)
    trained = {("SASRec", 0): setting.train("SASRec", 0), ("MEANTIME", 0): (None, History())}
    (row,) = validation_summary(trained).to_dict("records")
    best = max(trained["SASRec", 0][1].evaluations, key=lambda one: one["NDCG@10"])
    assert row == {
        "arm": "SASRec",
        "seed": 0,
        "best validation NDCG@10": best["NDCG@10"],
        "at step": best["step"],
        "stopped at step": 4,
    }


def test_there_is_a_control_for_every_kernel():
    assert [arm[-1] for arm in ONE_KIND] == ["p", "d", "s", "e", "l"]
