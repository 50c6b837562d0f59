"""MEANTIME's experiments: its arms on real data and in a world where only time tells.

Source: Cho, Park and Yoo, "MEANTIME", RecSys 2020, and the authors' code, commit a9ca2e7. Here is what is
compared with what, one training of an arm, and the scores that the rules want. Not here: what needs no
training (`lib.experiments.meantime_arithmetic`, `lib.experiments.meantime_figures`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import pandas as pd
from lightning_fabric import Fabric
from torch import Tensor, nn

from lib.data.amazon import BEAUTY, VIDEO_GAMES
from lib.data.interactions import InteractionLog
from lib.data.movielens import ML_1M, ML_20M, ML_100K
from lib.data.negatives import sample_negatives
from lib.data.sequences import ClozeTraining, NextItemTraining, PrefixTraining, evaluation_batches
from lib.data.worlds import GapWorld
from lib.metrics.ranking import recall_at, target_rank
from lib.models.recommenders.bert4rec import BERT4Rec
from lib.models.recommenders.marank import MARank
from lib.models.recommenders.meantime import Meantime
from lib.models.recommenders.sasrec import SASRec, TiSASRec
from lib.training.loop import Evaluation, History, fit, seeded
from lib.training.recommenders import Popularity, Recommender, mean_head_overlap, user_metrics

SOURCES = {"ml-100k": ML_100K, "ml-1m": ML_1M, "ml-20m": ML_20M, "beauty": BEAUTY, "game": VIDEO_GAMES}

#: Controls: as many heads, one kind of temporal embedding in all of them.
ONE_KIND = ("MEANTIME p-p-p-p", "MEANTIME l-l-l-l")

ARMS = ("MEANTIME", "BERT4Rec", "TiSASRec", "SASRec", "MARank", *ONE_KIND)

#: Data sets whose items the authors' program numbers as `lib.data.interactions` does, by ascending id. It
#: numbers them in the order of a Python set. Small integers come out of one in ascending order as long as its
#: table has a place for each; ML-20M's ids are larger than that table, and the order of Amazon's ids, which
#: are strings, is another in each process. A file of weights does not say which item a row belongs to.
NUMBERED_ALIKE = ("ml-100k", "ml-1m")


def source_of(dataset: str):
    """The data source of that name in `SOURCES`; ValueError for another name."""
    if dataset not in SOURCES:
        raise ValueError(f"dataset must be one of {', '.join(SOURCES)}, got {dataset!r}")
    return SOURCES[dataset]


def gap_shares(log: InteractionLog) -> dict[str, float]:
    """Per cent of the gaps between consecutive events of a user that are 0 s, up to a minute, over a day."""
    gaps = pd.Series(log.gaps)
    shares = {"ties": gaps == 0, "minute": gaps <= 60, "day": gaps > 86400}
    return {name: 100 * share.mean() for name, share in shares.items()}


# --- real data ---


@dataclass
class Comparison:
    """What all arms on real data share, under the names of the chapter's parameters.

    Attributes
    ----------
    log
        The data.
    dataset
        Its name in `SOURCES`.
    authors_checkpoint
        A file as the MEANTIME authors' program writes it, which stands for the training of MEANTIME with
        every seed; empty for none.
    absolute, relative, hidden_size, num_blocks, max_length, dropout
        Of `lib.models.recommenders.meantime.Meantime`; the last four of the other arms, too.
    bert4rec_heads, max_interval
        Heads of BERT4Rec; where TiSASRec clips its intervals.
    mask_probability, negatives_for_training
        See `lib.data.sequences.ClozeTraining` and `lib.data.negatives.TrainingNegatives`.
    train_stride, batch_size, learning_rate, steps, evaluate_every, patience, device
        Of every training.
    negatives
        What test and validation items are ranked among, (U, 100), drawn once for all arms.
    published
        The model of ``authors_checkpoint``, or None.

    Raises
    ------
    ValueError
        ``authors_checkpoint`` is no such file, or of other kernels, sizes or items than are asked for.
    FileNotFoundError
        There is no ``authors_checkpoint``.
    """

    log: InteractionLog
    _: KW_ONLY
    dataset: str
    authors_checkpoint: str
    absolute: str
    relative: str
    hidden_size: int
    num_blocks: int
    bert4rec_heads: int
    max_interval: int
    dropout: float
    mask_probability: float
    max_length: int
    train_stride: int
    batch_size: int
    learning_rate: float
    steps: int
    evaluate_every: int
    patience: int
    negatives_for_training: str
    device: str
    negatives: Tensor = field(init=False)
    published: Meantime | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.authors_checkpoint:
            self.published = self._published()
        self.negatives = sample_negatives(self.log)

    def model(self, arm: str) -> nn.Module:
        """The arm's untrained network; its weights follow the global random state."""
        items, width = self.log.num_items, {"hidden_size": self.hidden_size, "dropout": self.dropout}
        size = width | {"max_length": self.max_length, "num_blocks": self.num_blocks}
        if arm == "BERT4Rec":
            return BERT4Rec(items, num_heads=self.bert4rec_heads, **size)
        if arm == "TiSASRec":
            return TiSASRec(items, max_interval=self.max_interval, **size)
        if arm == "SASRec":
            return SASRec(items, **size)
        if arm == "MARank":
            return MARank(items, self.log.num_users, **width)
        kernels = {
            "MEANTIME": {"absolute": self.absolute, "relative": self.relative},
            "MEANTIME p-p-p-p": {"absolute": "p-p-p-p", "relative": ""},
            "MEANTIME l-l-l-l": {"absolute": "", "relative": "l-l-l-l"},
        }
        if arm not in kernels:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
        return Meantime(items, num_days=self.log.num_days, **kernels[arm], **size)

    def windows(self, arm: str, seed: int) -> ClozeTraining | NextItemTraining | PrefixTraining:
        """The arm's training data, whose order, masks and negatives follow ``seed``."""
        same = {"max_length": self.max_length, "stride": self.train_stride, "batch_size": self.batch_size}
        if arm == "MARank":
            return PrefixTraining(self.log, negatives=self.negatives_for_training, seed=seed, **same)
        if arm in ("SASRec", "TiSASRec"):
            own = {"negatives": self.negatives_for_training, "personalised": arm == "TiSASRec"}
            return NextItemTraining(self.log, seed=seed, **own, **same)
        return ClozeTraining(self.log, mask_probability=self.mask_probability, seed=seed, **same)

    def held_out(
        self, arm: str, split: str = "test", *, target_time: str = "seen"
    ) -> Iterator[dict[str, Tensor]]:
        """All users with what the arm may see before its held-out item.

        ``target_time="blinded"`` hides from MEANTIME when that item was taken; the other arms never know.
        """
        views = {
            "SASRec": {"view": "next"},
            "TiSASRec": {"view": "next", "personalised": True},
            "MARank": {"view": "context", "max_length": 6},
        }
        options = {"max_length": self.max_length, "target_time": target_time} | views.get(arm, {})
        return evaluation_batches(self.log, split=split, **options)

    def train(self, arm: str, seed: int, checkpoint: Path | None = None) -> tuple[nn.Module, History]:
        """Train an arm once, in evaluation mode afterwards, with the weights of its best validation.

        Parameters
        ----------
        arm
            One of `ARMS`.
        seed
            Of the first weights, the batches and the dropout.
        checkpoint
            File from which a training that was killed continues.

        Returns
        -------
        The network and the history of its validation NDCG@10; of `published`, an empty history.
        """
        if arm == "MEANTIME" and self.published is not None:
            return self.published, History()
        seeded(seed)
        model, windows = self.model(arm), self.windows(arm, seed)

        def validate(model: nn.Module) -> dict[str, float]:
            batches = self.held_out(arm, "validation")
            users = user_metrics(model, batches, negatives=self.negatives, device=self.device)
            return {"NDCG@10": users["NDCG@10"].mean()}

        history = fit(
            model,
            windows.batch,
            steps=self.steps,
            learning_rate=self.learning_rate,
            evaluation=Evaluation(validate, self.evaluate_every, monitor="NDCG@10", patience=self.patience),
            checkpoint=checkpoint,
            fabric=Fabric(accelerator=self.device, devices=1),
            name=f"{arm}, seed {seed}",
        )
        return model, history

    def test(self, arm: str, model: Recommender, *, target_time: str = "seen") -> pd.DataFrame:
        """Metrics of each user's test item among its 100 negatives and among all items: a row per user."""
        device = "cpu" if isinstance(model, Popularity) else self.device
        sampled, full = (
            user_metrics(model, self.held_out(arm, target_time=target_time), device=device, **among)
            for among in ({"negatives": self.negatives}, {"log": self.log})
        )
        return sampled.join(full)

    def head_overlap(self, arm: str, model: nn.Module) -> float:
        """How alike the heads of a network attend, over all test users: 1 alike, 0 nothing shared."""
        return mean_head_overlap(model, self.held_out(arm), self.device)

    def replicates(self, scores: pd.DataFrame) -> pd.DataFrame:
        """The rows of scores by arm and seed that a rule may take for independent trainings.

        All of them; but if MEANTIME is one model in the row of every seed, those of the first seed. Copies
        have no spread, so an interval over them would hold for other trainings of the baselines and for no
        other training of MEANTIME.
        """
        if self.published is None:
            return scores
        seeds = scores.index.get_level_values("seed")
        return scores[seeds == seeds[0]]

    def _published(self) -> Meantime:
        if self.dataset not in NUMBERED_ALIKE:
            raise ValueError(
                f"a checkpoint of the authors fits {' or '.join(NUMBERED_ALIKE)} only, got {self.dataset}: "
                "which item a row of its table belongs to is unknown for other data sets"
            )
        kernels = {"absolute": self.absolute, "relative": self.relative}
        rows = {} if "p" in self.absolute else {"max_length": self.max_length}  # where the file has none
        days = {} if "d" in self.absolute else {"num_days": self.log.num_days}
        model = Meantime.from_authors(self.authors_checkpoint, **kernels, **rows, **days)
        asked = {"num_items": self.log.num_items, "num_days": self.log.num_days}
        asked |= {name: getattr(self, name) for name in ("max_length", "hidden_size", "num_blocks")}
        found = {name: getattr(model, name) for name in asked if name != "num_blocks"}
        found["num_blocks"] = len(model.blocks)
        # The authors count calendar days of their machine's time zone, of which there can be one more.
        found["num_days"] -= found["num_days"] == asked["num_days"] + 1
        if other := [name for name in asked if found[name] != asked[name]]:
            lists = (", ".join(f"{name} {sizes[name]}" for name in other) for sizes in (asked, found))
            raise ValueError("the checkpoint must have {}, got {}".format(*lists))
        return model.to(self.device)


def mean_scores(per_user: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """Means over users: a row per arm and seed, a column per metric."""
    return pd.DataFrame({key: users.mean() for key, users in per_user.items()}).T.rename_axis(["arm", "seed"])


def validation_curves(trained: Mapping[tuple[str, int], tuple[nn.Module, History]]) -> pd.DataFrame:
    """Validations of all trainings in long form: step, NDCG@10, arm, seed."""
    return pd.concat(
        history.to_frame().assign(arm=arm, seed=seed)
        for (arm, seed), (_, history) in trained.items()
        if history.evaluations
    )


# --- the gap world ---

GAP_WORLD_ARMS = ("BERT4Rec", "p + e", "p + l", "MEANTIME")


def gap_world_model(
    arm: str, world: GapWorld, *, mixture: tuple[str, str], hidden_size: int
) -> BERT4Rec | Meantime:
    """The untrained network of one of `GAP_WORLD_ARMS`: MEANTIME has the kernels of ``mixture``."""
    size = {"max_length": world.length, "hidden_size": hidden_size, "dropout": 0.0, "init_std": 0.1}
    positions_only = BERT4Rec(
        world.num_items, **size
    )  # first for every arm: later draws of weights follow it
    if arm == "BERT4Rec":
        return positions_only
    absolute, relative = {"p + e": ("p", "e"), "p + l": ("p", "l"), "MEANTIME": mixture}[arm]
    kernels = {"absolute": absolute, "relative": relative, "num_days": world.num_days}
    return Meantime(world.num_items, **kernels, **size)


def gap_world_curve(
    arm: str,
    seed: int,
    *,
    mixture: tuple[str, str],
    hidden_size: int,
    steps: int,
    batch_size: int = 128,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """Train an arm in the gap world, and return its Recall@10 on 500 fresh sequences over the steps.

    Parameters
    ----------
    arm
        One of `GAP_WORLD_ARMS`.
    seed
        Of the world, the first weights and the batches.
    mixture
        Absolute and relative kernels of MEANTIME.
    hidden_size, steps, batch_size
        Width of the network, steps at a learning rate of 0.003, sequences per step.
    checkpoint
        File from which a training that was killed continues.

    Returns
    -------
    Ten rows or so: step, Recall@10 among all items, arm, seed.
    """
    seeded(seed)
    world = GapWorld(seed=seed)
    test = world.batch(0, 500, "test")
    model = gap_world_model(arm, world, mixture=mixture, hidden_size=hidden_size)

    def recall(model: nn.Module) -> dict[str, float]:
        better, ties = target_rank(model.scores(test), test["target"] - 1)
        return {"Recall@10": recall_at(10, better, ties).mean().item()}

    history = fit(
        model,
        lambda step: world.batch(step, batch_size),
        steps=steps,
        learning_rate=0.003,
        evaluation=Evaluation(recall, every=max(1, steps // 10)),
        checkpoint=checkpoint,
        name=f"gap world, {arm}, seed {seed}",
    )
    return history.to_frame().assign(arm=arm, seed=seed)
