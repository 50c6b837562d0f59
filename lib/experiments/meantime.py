"""MEANTIME's experiments: its arms on real data and in a world where only time tells.

Source: Cho, Park and Yoo, "MEANTIME", RecSys 2020, and the authors' code, commit a9ca2e7. Here is what is
compared with what, one training of an arm, and the scores that the rules want. Not here: what needs no
training (`lib.experiments.meantime_arithmetic`, `lib.experiments.meantime_figures`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from lib.data.amazon import BEAUTY, VIDEO_GAMES
from lib.data.interactions import InteractionLog
from lib.data.movielens import ML_1M, ML_20M, ML_100K
from lib.data.negatives import sample_negatives
from lib.data.sequences import ClozeTraining, NextItemTraining, PrefixTraining, evaluation_batches
from lib.models.recommenders.bert4rec import BERT4Rec
from lib.models.recommenders.marank import MARank
from lib.models.recommenders.meantime import Meantime
from lib.models.recommenders.sasrec import SASRec, TiSASRec
from lib.models.recommenders.temporal_kernels import ABSOLUTE_KERNELS
from lib.streams import stream_seed
from lib.training.loop import Evaluation, History, fit, one_device, seeded
from lib.training.recommenders import Popularity, Recommender, head_overlap_by_user, user_metrics

SOURCES = {"ml-100k": ML_100K, "ml-1m": ML_1M, "ml-20m": ML_20M, "beauty": BEAUTY, "game": VIDEO_GAMES}

BASELINES = ("BERT4Rec", "TiSASRec", "SASRec", "MARank")

#: Controls: as many heads, one kind of temporal embedding in all of them.
ONE_KIND = tuple(f"MEANTIME {kind}-{kind}-{kind}-{kind}" for kind in "pdsel")

#: Control: four position heads that read one and the same table.
ONE_TABLE = "MEANTIME p-p-p-p, one table"

#: MEANTIME with other time stamps in training and test: a user's own, dealt out anew; the order alone.
RESTAMPED = ("MEANTIME, stamps shuffled", "MEANTIME, ranks for stamps")

ARMS = ("MEANTIME", *BASELINES, *ONE_KIND, ONE_TABLE, *RESTAMPED)

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
    learning_rates, dropouts
        Of single arms, where they differ from ``learning_rate`` and ``dropout``.
    negatives
        What test and validation items are ranked among, (U, 100), drawn once for all arms.
    published
        The model of ``authors_checkpoint``, or None.

    Raises
    ------
    ValueError
        ``authors_checkpoint`` is no such file, or of other kernels, sizes or items than are asked for; a
        learning rate or a dropout of an arm that there is not.
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
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    dropouts: Mapping[str, float] = field(default_factory=dict)
    negatives: Tensor = field(init=False)
    published: Meantime | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if unknown := sorted({*self.learning_rates, *self.dropouts} - set(ARMS)):
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {unknown[0]!r}")
        if self.authors_checkpoint:
            self.published = self._published()
        self.negatives = sample_negatives(self.log)

    def model(self, arm: str) -> nn.Module:
        """The arm's untrained network; its weights follow the global random state."""
        dropout = self.dropouts.get(arm, self.dropout)
        items, width = self.log.num_items, {"hidden_size": self.hidden_size, "dropout": dropout}
        size = width | {"max_length": self.max_length, "num_blocks": self.num_blocks}
        if arm == "BERT4Rec":
            return BERT4Rec(items, num_heads=self.bert4rec_heads, **size)
        if arm == "TiSASRec":
            return TiSASRec(items, max_interval=self.max_interval, **size)
        if arm == "SASRec":
            return SASRec(items, **size)
        if arm == "MARank":
            return MARank(items, self.log.num_users, **width)
        if arm not in ARMS:
            raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
        absolute, relative = self.absolute, self.relative
        if arm in (*ONE_KIND, ONE_TABLE):
            kinds = arm.removeprefix("MEANTIME ").removesuffix(", one table")
            absolute, relative = (kinds, "") if kinds[0] in ABSOLUTE_KERNELS else ("", kinds)
        kernels = {"absolute": absolute, "relative": relative, "one_table": arm == ONE_TABLE}
        return Meantime(items, num_days=self.log.num_days, **kernels, **size)

    def log_of(self, arm: str, seed: int) -> InteractionLog:
        """The data as the arm sees them: with other time stamps for `RESTAMPED`, dealt out by ``seed``."""
        if arm == RESTAMPED[0]:
            return self.log.with_shuffled_stamps(stream_seed(seed, "stamps"))
        if arm == RESTAMPED[1]:
            return self.log.with_ranks_for_stamps()
        return self.log

    def windows(self, arm: str, seed: int) -> ClozeTraining | NextItemTraining | PrefixTraining:
        """The arm's training data, whose order, masks and negatives follow ``seed``."""
        same = {"max_length": self.max_length, "stride": self.train_stride, "batch_size": self.batch_size}
        log = self.log_of(arm, seed)
        if arm == "MARank":
            return PrefixTraining(log, negatives=self.negatives_for_training, seed=seed, **same)
        if arm in ("SASRec", "TiSASRec"):
            own = {"negatives": self.negatives_for_training, "personalised": arm == "TiSASRec"}
            return NextItemTraining(log, seed=seed, **own, **same)
        return ClozeTraining(log, mask_probability=self.mask_probability, seed=seed, **same)

    def held_out(
        self, arm: str, seed: int, split: str = "test", *, target_time: str = "seen"
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
        return evaluation_batches(self.log_of(arm, seed), split=split, **options)

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
        torch.set_flush_denormal(True)  # decayed exponentials are denormal, on which a CPU is slow
        model, windows = self.model(arm), self.windows(arm, seed)
        rate = self.learning_rates.get(arm, self.learning_rate)

        def validate(model: nn.Module) -> dict[str, float]:
            batches = self.held_out(arm, seed, "validation")
            users = user_metrics(model, batches, negatives=self.negatives, device=self.device)
            return {"NDCG@10": users["NDCG@10"].mean()}

        history = fit(
            model,
            windows.batch,
            steps=self.steps,
            optimizer=torch.optim.Adam(model.parameters(), lr=rate, fused=True),
            evaluation=Evaluation(validate, self.evaluate_every, monitor="NDCG@10", patience=self.patience),
            checkpoint=checkpoint,
            fabric=one_device(self.device),
            name=f"{arm}, seed {seed}",
        )
        return model, history

    def test(self, arm: str, seed: int, model: Recommender, *, target_time: str = "seen") -> pd.DataFrame:
        """Metrics of each user's test item among its 100 negatives and among all items: a row per user.

        Of a network whose attention can be read also how alike its heads attend (``head overlap``): 1 alike,
        0 nothing shared.
        """
        device = "cpu" if isinstance(model, Popularity) else self.device
        sampled, full = (
            user_metrics(model, self.held_out(arm, seed, target_time=target_time), device=device, **among)
            for among in ({"negatives": self.negatives}, {"log": self.log})
        )
        scores = sampled.join(full)
        if hasattr(model, "attention_weights"):
            batches = self.held_out(arm, seed, target_time=target_time)
            scores = scores.join(head_overlap_by_user(model, batches, device))
        return scores

    def replicates(self, seeds: Sequence[int]) -> list[int]:
        """The seeds whose rows a rule may take for independent trainings.

        All of them; but if MEANTIME is one model in the row of every seed, the first. Copies have no spread,
        so an interval over them would hold for other trainings of the baselines and for no other training of
        MEANTIME.
        """
        return list(seeds) if self.published is None else list(seeds[:1])

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


def by_user(
    per_user: Mapping[tuple[str, int], pd.DataFrame], seeds: Sequence[int], metrics: Sequence[str]
) -> dict[str, dict[str, pd.DataFrame]]:
    """What a rule is handed: by metric and arm, a row per seed and a column per user.

    Arms that were tested with fewer seeds have fewer rows; arms without the metric are left out.
    """
    arms = list(dict.fromkeys(arm for arm, _ in per_user))
    found: dict[str, dict[str, pd.DataFrame]] = {metric: {} for metric in metrics}
    for metric, arm in itertools.product(metrics, arms):
        rows = {
            seed: per_user[arm, seed][metric] for seed in seeds if metric in per_user.get((arm, seed), ())
        }
        if rows:
            found[metric][arm] = pd.DataFrame(rows).T.rename_axis("seed")
    return found


def validation_curves(trained: Mapping[tuple[str, int], tuple[nn.Module, History]]) -> pd.DataFrame:
    """Validations of all trainings in long form: step, NDCG@10, arm, seed."""
    return pd.concat(
        history.to_frame().assign(arm=arm, seed=seed)
        for (arm, seed), (_, history) in trained.items()
        if history.evaluations
    )


def validation_summary(trained: Mapping[tuple[str, int], tuple[nn.Module, History]]) -> pd.DataFrame:
    """A row per training: arm, seed, its best validation NDCG@10, at which step, and when it stopped."""
    return pd.DataFrame(
        {
            "arm": arm,
            "seed": seed,
            "best validation NDCG@10": max(row["NDCG@10"] for row in history.evaluations),
            "at step": history.best_step,
            "stopped at step": history.steps,
        }
        for (arm, seed), (_, history) in trained.items()
        if history.evaluations
    )
