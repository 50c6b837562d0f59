"""One-shot compression (Kim et al., ICLR 2016) of a network that is trained here, and its rivals.

An original is trained, compressed in one shot with ranks by EVBMF, and fine-tuned. Beside it stand the same
with ranks for the last layer too, and three networks of at most the same cost
(`lib.experiments.oneshot_compression_baselines`). All are trained by the same loop, on the same batches of
one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.compression.one_shot import compress
from lib.cost.operations import count_operations, totals
from lib.data.fashion_mnist import FASHION_MNIST, FASHION_MNIST_SAMPLE
from lib.data.imagenet import IMAGENET_2012, ImageFolder
from lib.data.images import ImageSet
from lib.experiments.oneshot_compression_baselines import equal_cost_baselines, initialise_gaussian
from lib.models.authors import opened, read_state_dict, require_fit
from lib.models.vision.alexnet import AlexNet, AlexNetOneTower
from lib.models.vision.vgg import VGG
from lib.streams import stream_seed
from lib.training.classifiers import ImageClassifier
from lib.training.hits import by_arm, hits
from lib.training.loop import Evaluation, fit, one_device, seeded, warmup_cosine

Checkpoints = Callable[[str], Path | None]
Images = Mapping[str, ImageSet | ImageFolder]

DATA = {
    "fashion-mnist-sample": FASHION_MNIST_SAMPLE,
    "fashion-mnist": FASHION_MNIST,
    "imagenet": IMAGENET_2012,
}
NETWORKS = ("small", "alexnet", "alexnet-one-tower", "vgg16")

ORIGINAL, COMPRESSED = "original", "EVBMF, fine-tuned"
EVERY_LAYER, UNIFORM = "EVBMF on every layer, fine-tuned", "uniform ranks, fine-tuned"
NARROW, STRUCTURE = "narrow, from scratch", "EVBMF structure, from scratch"
MACS, WEIGHTS, RECOVERED = "multiply-accumulates", "weights", "share recovered in one epoch"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The network, its data, and how every arm is trained: the chapter's parameters of these names.

    Attributes
    ----------
    dataset : str
        One of `DATA`.
    network : str
        One of `NETWORKS`.
    channels : sequence of int
        Of the small network's convolutions; the last two or more share a stage.
    hidden : int
        Units of the small network's hidden layer.
    batch_norm : bool
        Whether the small network's convolutions are normalised; those of the paper's networks are not.
    initial_std : float
        Of the Gaussian initial weights of the original and of the narrow network.
    batch_size, steps, learning_rate, weight_decay
        SGD with Nesterov momentum 0.9 and a cosine schedule; ``learning_rate`` is its peak.
    finetune_steps, finetune_learning_rate
        The same after the compression.
    device : str
    classes : int, optional
        Of the pictures (`fitted`); by default those of the published data set.

    Raises
    ------
    ValueError
        An unknown data set or network, or too few channels.
    """

    dataset: str
    network: str
    channels: Sequence[int]
    hidden: int
    initial_std: float
    batch_size: int
    steps: int
    learning_rate: float
    weight_decay: float
    finetune_steps: int
    finetune_learning_rate: float
    batch_norm: bool = True
    device: str = "cpu"
    classes: int | None = None

    def __post_init__(self) -> None:
        known = {"dataset": tuple(DATA), "network": NETWORKS}
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}")
        if len(self.channels) < 3:
            raise ValueError(f"channels must be those of at least 3 convolutions, got {list(self.channels)}")

    def build(self, **options: float) -> nn.Module:
        """The network with fresh weights; ``width`` is a factor on all its channels."""
        options |= {"num_classes": self.outputs}
        published = {"alexnet": AlexNet, "alexnet-one-tower": AlexNetOneTower, "vgg16": VGG}
        if self.network in published:
            return published[self.network](**options)
        stages = (self.channels[:1], self.channels[1:2], self.channels[2:])
        shape = {"channels": 3 if self.dataset == "imagenet" else 1, "input_size": 28}
        shape |= {"stages": stages, "hidden": (self.hidden,), "batch_norm": self.batch_norm}
        return VGG(dropout=0.0, **shape, **options)

    @property
    def outputs(self) -> int:
        """Classes that the network tells apart."""
        return self.classes or (1000 if self.dataset == "imagenet" else 10)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) that the network reads."""
        with torch.device("meta"):
            return self.build().input_shape

    @property
    def source(self):
        """The data set; photographs are cropped to what the network reads, the small one's shrunk before."""
        source = DATA[self.dataset]
        if self.dataset != "imagenet":
            return source
        crop = self.image_shape[-1]
        resize = min(source.preprocessing.resize, crop * 8 // 7)
        return replace(source, preprocessing=replace(source.preprocessing, resize=resize, crop=crop))

    @property
    def topk(self) -> int:
        """Top-5 accuracy among ImageNet's thousand classes, top-1 among fewer."""
        return 5 if self.outputs >= 1000 else 1

    @property
    def augmentation(self) -> dict[str, bool]:
        """Pictures are flipped; photographs of ImageNet are when they are read."""
        return {} if self.dataset == "imagenet" else {"flip": True}


def fitted(setting: Setting, images: Images, given: str = "") -> Setting:
    """The setting for the classes of these pictures, once they and a trained original are known to fit.

    Parameters
    ----------
    setting, images
    given
        Path of the original's state dict, or empty.

    Raises
    ------
    ValueError
        The network reads other pictures, there are fewer than a batch or a single one to test with, or the
        file is no such network's.
    """
    reads, shape = setting.image_shape, tuple(images["train"].tensor(slice(0, 1)).shape[1:])
    if reads != shape:
        wanted, got = (" × ".join(map(str, numbers)) for numbers in (reads, shape))
        raise ValueError(
            f"network {setting.network} reads images of {wanted}, those of {setting.dataset} have {got}"
        )
    images["train"].batches(setting.batch_size, seed=0)  # refuses a batch of more than there are
    if len(images["test"]) < 2:
        raise ValueError(f"{setting.dataset} has 1 test picture: an interval over pictures takes at least 2")
    setting = replace(setting, classes=len(images["train"].classes))
    if given:
        with torch.device("meta"):
            network = setting.build()
            own = network.state_dict()
        require_fit(_given(given), own, f"{setting.network} for these pictures: {given}")
    return setting


def size(network: nn.Module, setting: Setting) -> dict[str, int]:
    """Multiply–accumulates of one image, and weights without biases."""
    total = totals(count_operations(network, (1, *setting.image_shape)))
    return {MACS: int(total["macs"]), WEIGHTS: int(total["weights"])}


def score(network: nn.Module, images: Images, setting: Setting) -> float:
    """Accuracy on the test set in percent, top-1 or top-5; the network is moved to the setting's device."""
    return float(recognised(network, images, setting).mean())


def recognised(network: nn.Module, images: Images, setting: Setting) -> np.ndarray:
    """`lib.training.hits.hits` of the test set, top-1 or top-5."""
    network.to(setting.device)
    return hits(network, images["test"], topk=setting.topk, device=setting.device)


def train(
    network: nn.Module,
    images: Images,
    setting: Setting,
    seed: int,
    arm: str,
    *,
    steps: int,
    peak: float,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """Train one arm in place.

    Parameters
    ----------
    network, images, setting
    seed
        Of the batches; the same for every arm.
    arm
        Its name. An arm that is fine-tuned is scored six times an epoch, any other every five epochs.
    steps, peak
        Length of the schedule and its highest learning rate.
    checkpoint
        File from which a killed training continues.

    Returns
    -------
    DataFrame
        Test accuracy over training: ``step``, ``accuracy`` (%), ``arm``, ``seed``, ``epoch``.
    """
    network.to(memory_format=torch.channels_last)  # the memory order in which 1 × 1 layers are fast
    batches = images["train"].batches(setting.batch_size, seed=seed, **setting.augmentation)
    model = ImageClassifier(network).to(setting.device)
    sgd = torch.optim.SGD(model.parameters(), peak, 0.9, weight_decay=setting.weight_decay, nesterov=True)
    epochs = 1 / 6 if arm.endswith("fine-tuned") else 5
    seeded(stream_seed(seed, arm))  # of dropout: whatever was trained or restored before
    history = fit(
        model,
        batches.batch,
        steps=steps,
        optimizer=sgd,
        schedule=warmup_cosine(steps, warmup=min(50, steps // 5)),
        evaluation=Evaluation(
            lambda model: {"accuracy": score(model.network, images, setting)},
            every=max(1, min(steps, int(epochs * batches.steps_per_epoch))),
        ),
        checkpoint=checkpoint,
        fabric=one_device(setting.device),
        name=f"{arm}, seed {seed}",
    )
    curve = history.to_frame()
    return curve.assign(arm=arm, seed=seed, epoch=curve["step"] / batches.steps_per_epoch)


def _given(path: str) -> dict[str, Tensor]:
    """The state dict at a path; ValueError that names the file."""
    with opened(path) as held:
        return read_state_dict(held)


def trained_original(
    images: Images, setting: Setting, seed: int, *, given: str = "", checkpoint: Path | None = None
) -> nn.Module:
    """The original: trained from Gaussian weights, or with the state dict at the path ``given``."""
    seeded(seed)
    network = initialise_gaussian(setting.build(), setting.initial_std)
    if given:
        network.load_state_dict(_given(given))
    else:
        steps, peak = setting.steps, setting.learning_rate
        train(network, images, setting, seed, ORIGINAL, steps=steps, peak=peak, checkpoint=checkpoint)
    return network


def compressed_arms(
    original: nn.Module, setting: Setting, seed: int
) -> tuple[dict[str, nn.Module], pd.DataFrame]:
    """What a trained original becomes, and networks of the same cost, all before any further training.

    Parameters
    ----------
    original
        It is moved to the CPU.
    setting
    seed
        Of the networks that start from random weights.

    Returns
    -------
    arms : dict
        By name: the compressed original; the same with every layer compressed; uniform ranks, the narrow
        network and the compressed structure, each of at most as many multiply–accumulates as the first.
    report : DataFrame
        Ranks and errors of every layer, `lib.compression.one_shot.Compressed.report`.
    """
    original.cpu()
    first, *_, last = (name for name, layer in original.named_modules() if isinstance(layer, nn.Linear))
    how = {"maps": {first: original.map}, "linear": setting.network != "vgg16"}
    every = compress(original, **how)
    how["skip"] = [last] if setting.outputs < 1000 else []  # ten outputs are too few for EVBMF
    small = compress(original, **how)
    others = equal_cost_baselines(
        original, small, setting.build, lambda network: size(network, setting)[MACS], **how
    )
    seeded(seed)
    arms = {
        COMPRESSED: small.model,
        EVERY_LAYER: every.model,
        UNIFORM: others["uniform ranks"],
        NARROW: initialise_gaussian(others["narrow"], setting.initial_std),
        STRUCTURE: initialise_gaussian(others["structure"]),
    }
    return arms, every.report


def run_seed(
    images: Images,
    setting: Setting,
    seed: int,
    *,
    given: str = "",
    checkpoint: Checkpoints = lambda name: None,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Train, compress, fine-tune and score all arms of one seed.

    Parameters
    ----------
    images, setting, seed
    given
        Path of the original's state dict; empty to train it.
    checkpoint
        From an arm's name with its seed to the file from which its training continues.

    Returns
    -------
    results : DataFrame
        A row for each arm, and one ``right after`` the decomposition for each that is fine-tuned: ``arm``,
        ``seed``, ``multiply-accumulates``, ``weights``, ``accuracy`` (%), and of those fine-tuned ``share
        recovered in one epoch`` (`recovered`), if it was one.
    curves : DataFrame
        Accuracy while fine-tuning: ``accuracy``, ``arm``, ``seed``, ``epoch`` (0 before it), ``step``.
    layers : DataFrame
        Ranks and errors with every layer compressed, and ``seed``.
    """

    def file(arm: str) -> Path | None:
        return checkpoint(f"{arm}, seed {seed}")

    rows, curves = [], []

    def scored(arm: str, network: nn.Module, **more: float) -> float:
        hit = recognised(network, images, setting)
        found = {"accuracy": float(hit.mean())} | more | {"hits": hit}
        rows.append({"arm": arm, "seed": seed} | size(network, setting) | found)
        return found["accuracy"]

    original = trained_original(images, setting, seed, given=given, checkpoint=file(ORIGINAL))
    arms, report = compressed_arms(original, setting, seed)
    whole = scored(ORIGINAL, original)
    for arm, network in arms.items():
        if arm.endswith("fine-tuned"):
            after = scored(arm.replace("fine-tuned", "right after"), network)
            schedule = {"steps": setting.finetune_steps, "peak": setting.finetune_learning_rate}
            curve = train(network, images, setting, seed, arm, **schedule, checkpoint=file(arm))
            curves += [pd.DataFrame([{"accuracy": after, "arm": arm, "seed": seed, "epoch": 0.0}]), curve]
            scored(arm, network, **{RECOVERED: recovered(curve, before=whole, after=after)})
        else:
            schedule = {"steps": setting.steps + setting.finetune_steps, "peak": setting.learning_rate}
            train(network, images, setting, seed, arm, **schedule, checkpoint=file(arm))
            scored(arm, network)
    return pd.DataFrame(rows), pd.concat(curves), report.assign(seed=seed)


def recovered(curve: pd.DataFrame, *, before: float, after: float) -> float:
    """Accuracy regained after one epoch of fine-tuning over what the decomposition lost, at least one point.

    NaN if it was shorter.

    Parameters
    ----------
    curve
        ``epoch`` and ``accuracy``; its last score within the first epoch counts, or its first if none is.
    before, after
        Accuracy before and right after the decomposition, in percent.
    """
    if curve["epoch"].max() < 1:
        return math.nan
    within = curve["epoch"] <= max(1.0, curve["epoch"].min())
    regained = curve.loc[within, "accuracy"].iloc[-1] - after
    return regained / max(1.0, before - after)


def measured(results: pd.DataFrame) -> dict[str, dict[str, object]]:
    """What the ledger's rules ask for, by metric and arm, from the results of `run_seed`, all seeds.

    Accuracy and sizes are frames (seeds × pictures), sizes the same for every picture; the share that was
    recovered in one epoch is a list per seed, and absent where it was not one.
    """
    rows = dict(list(results.set_index("seed").groupby("arm", sort=False)))
    accuracy = by_arm(results)
    one = pd.DataFrame(1, accuracy[ORIGINAL].index, accuracy[ORIGINAL].columns)
    sizes = (MACS, WEIGHTS)
    values = {
        what: {arm: one.mul(rows[arm][what], axis=0) for arm in (ORIGINAL, COMPRESSED)} for what in sizes
    }
    values["accuracy"] = accuracy
    if rows[COMPRESSED][RECOVERED].notna().all():
        values[RECOVERED] = {COMPRESSED: list(rows[COMPRESSED][RECOVERED])}
    return values


def means_by_arm(results: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, a row for each arm: accuracy, thousands of operations and weights, recovery."""
    means = results.groupby("arm", sort=False)[["accuracy", MACS, WEIGHTS, RECOVERED]].mean()
    means[[MACS, WEIGHTS]] /= 1000
    means.columns = ["accuracy (%)", "MACs (thousand)", "weights (thousand)", RECOVERED]
    return means


def numbers_for_the_text(results: pd.DataFrame, layers: pd.DataFrame) -> dict[str, float]:
    """What the chapter's sentences quote: each arm's mean accuracy, and extremes over the seeds.

    Parameters
    ----------
    results, layers
        From `run_seed`, all seeds.

    Returns
    -------
    dict
        ``evbmf-fine-tuned`` … (mean accuracy); ``small-weights`` and ``small-multiply-accumulates`` (original
        over compressed); ``right-after-low`` and ``-high``; ``first-low`` … ``last-high`` (ranks of the
        outermost layers).
    """
    means = results.groupby("arm", sort=False)[["accuracy", MACS, WEIGHTS]].mean()
    found = {
        arm.replace(", ", "-").replace(" ", "-").lower(): value for arm, value in means["accuracy"].items()
    }
    for what in (MACS, WEIGHTS):
        found[f"small-{what}"] = means.loc[ORIGINAL, what] / means.loc[COMPRESSED, what]
    after = results.loc[results["arm"] == COMPRESSED.replace("fine-tuned", "right after"), "accuracy"]
    found |= {"right-after-low": after.min(), "right-after-high": after.max()}
    for end, ranks in layers.groupby("seed")["output_rank"].agg(["first", "last"]).items():
        found |= {f"{end}-low": int(ranks.min()), f"{end}-high": int(ranks.max())}
    return found
