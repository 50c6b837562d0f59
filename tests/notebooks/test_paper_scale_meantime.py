"""The paper scale of MEANTIME, dry: the real sizes, on made-up data in the real files, for two steps per arm.

The made-up log has MovieLens-1M's numbers of users, items, events and days, and no tastes. MEANTIME takes
its steps with the paper's 256 windows; the other arms, whose steps would cost another minute, with 32.
"""

import hashlib
import zipfile
from copy import copy
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from lib.data.interactions import InteractionLog
from lib.data.movielens import ML_1M
from lib.experiments.meantime import ARMS, Comparison
from lib.models.recommenders.meantime import Meantime
from lib.runs.request import resolve
from lib.training.loop import Evaluation, fit, seeded

USERS, ITEMS, EVENTS, DAYS = 6040, 3416, 999_611, 1040  # of MovieLens-1M once rare items are dropped
RARE_ITEMS, RARE_EVENTS = 290, 598  # what is dropped: films with fewer than five ratings
FIRST, LAST = 956_703_932, 1_046_454_590  # time stamps, 2000-04-25 and 2003-02-28
#: Counted from the authors' code, commit a9ca2e7, with its templates for MovieLens-1M.
PARAMETERS = {
    "MEANTIME": 418_329,
    "BERT4Rec": 339_353,
    "SASRec": 273_792,
    "TiSASRec": 548_864,
    "MARank": 878_340,
}


def ratings_dat() -> bytes:
    """Lines ``user::film::rating::timestamp``; users have from 20 to some 1800 films, each film once."""
    random = np.random.default_rng(0)
    counts = 20 + np.minimum(random.lognormal(4.3, 1.1, USERS), 1800).astype(int)
    counts[np.argsort(counts)[-1000:]] += np.diff(np.linspace(0, EVENTS - counts.sum(), 1001).astype(int))
    film_numbers = random.permutation(np.arange(1, 3953))[: ITEMS + RARE_ITEMS]
    user = np.repeat(np.arange(1, USERS + 1), counts)
    place = np.arange(EVENTS) - np.repeat(np.cumsum(counts) - counts, counts)
    film = film_numbers[(random.integers(0, ITEMS, USERS)[user - 1] + place) % ITEMS]
    sessions = np.sort(random.integers(FIRST, LAST - 90_000, EVENTS))
    time = np.where(place % 30 == 0, sessions, 0)
    time = np.maximum.accumulate(np.where(time, np.arange(EVENTS), 0))  # the row in which a session began
    time = sessions[time] + (np.arange(EVENTS) - time) * 20
    time[[0, -1]] = FIRST, LAST
    rare = np.arange(RARE_EVENTS)
    user = np.concatenate([user, rare % USERS + 1])
    film = np.concatenate([film, film_numbers[ITEMS + rare % RARE_ITEMS]])
    time = np.concatenate([time, np.full(RARE_EVENTS, FIRST + 1)])
    rows = zip(user.tolist(), film.tolist(), (film % 5 + 1).tolist(), time.tolist(), strict=True)
    return "".join([f"{u}::{f}::{r}::{t}\n" for u, f, r, t in rows]).encode()


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> InteractionLog:
    """Read from an archive as GroupLens lays it out, as if put into the data folder by hand."""
    folder = tmp_path_factory.mktemp("data")
    member = ML_1M.sources[0]
    with zipfile.ZipFile(folder / member.archive.name, "w") as archive:
        archive.writestr("ml-1m/README", "terms of use")
        archive.writestr("ml-1m/ratings.dat", ratings_dat())
    md5 = hashlib.md5((folder / member.archive.name).read_bytes()).hexdigest()
    archive = replace(member.archive, known_hash=f"md5:{md5}")
    source = replace(ML_1M, sources=(replace(member, archive=archive),))
    frame = source.load(folder)
    assert len(frame) == EVENTS + RARE_EVENTS and frame["item"].nunique() == ITEMS + RARE_ITEMS
    return InteractionLog.from_frame(frame)


def at_paper_scale(log: InteractionLog, authors_checkpoint: Path | str = "") -> Comparison:
    """What the chapter compares at scale paper, on the CPU."""
    asked = resolve("meantime", "paper").parameters | {"device": "cpu"}
    names = {field.name for field in fields(Comparison)} & asked.keys()
    return Comparison(
        log, authors_checkpoint=str(authors_checkpoint), **{name: asked[name] for name in names}
    )


@pytest.fixture(scope="module")
def comparison(log) -> Comparison:
    return at_paper_scale(log)


def test_the_log_has_the_size_of_movielens_1m(log):
    assert (log.num_users, log.num_items, log.num_events, log.num_days) == (USERS, ITEMS, EVENTS, DAYS)


def test_the_scale_is_the_authors_template():
    asked = resolve("meantime", "paper").parameters
    template = {"max_length": 200, "hidden_size": 64, "num_blocks": 2, "batch_size": 256, "dropout": 0.2}
    template |= {"absolute": "p-d", "relative": "s-l", "train_stride": 100, "learning_rate": 0.001}
    template |= {"bert4rec_heads": 2, "max_interval": 2048, "mask_probability": 0.2, "dataset": "ml-1m"}
    assert {name: asked[name] for name in template} == template


@pytest.mark.parametrize("more_days", [0, 1])  # the authors' days are those of their machine's time zone
def test_a_file_of_the_authors_is_taken_for_the_trained_model(log, tmp_path, more_days):
    model = Meantime(ITEMS, num_days=DAYS + more_days)
    torch.save({"model_state_dict": model.to_authors(), "epoch": 7}, tmp_path / "best_model.pth")
    comparison = at_paper_scale(log, tmp_path / "best_model.pth")
    published, history = comparison.train("MEANTIME", seed=1)
    assert sum(parameter.numel() for parameter in published.parameters()) == 418_329 + 64 * more_days
    assert history.steps == 0 and torch.equal(published.items.weight, model.items.weight)


@pytest.mark.parametrize("arm", ARMS)
def test_two_steps_at_full_model_size(comparison, arm):
    batch_size = comparison.batch_size if arm == "MEANTIME" else 32
    affordable = copy(comparison)
    affordable.batch_size = batch_size
    seeded(0)
    model, windows = affordable.model(arm), affordable.windows(arm, seed=0)
    if arm in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[arm]
    batch = windows.batch(0)
    assert len(batch["users"]) == batch_size
    if arm != "MARank":
        assert batch["tokens"].shape == (batch_size, 200) and (batch["tokens"][:, 0] > 0).any()
    history = fit(
        model,
        windows.batch,
        steps=2,
        evaluation=Evaluation(lambda model: {"loss of the first batch": model.loss(batch).item()}, every=1),
        learning_rate=comparison.learning_rate,
        fabric=Fabric(accelerator="cpu", devices=1),
        name=arm,
    )
    first, second = history.to_frame()["loss of the first batch"]
    assert history.steps == 2
    assert np.isfinite([first, second]).all() and first != second
    of_chance = {"MARank": np.log(2), "SASRec": 2 * np.log(2), "TiSASRec": 2 * np.log(2)}
    assert first == pytest.approx(of_chance.get(arm, np.log(ITEMS + 1)), rel=0.1)
