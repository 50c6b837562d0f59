"""What MEANTIME's six temporal kernels see: over the gap between two events, and over one user's events."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lib.data.interactions import InteractionLog
from lib.models.recommenders.meantime import Meantime
from lib.models.recommenders.temporal_kernels import relative_kernel
from lib.training.loop import seeded

RELATIVE = {"s": "Sin (s)", "e": "Exp (e)", "l": "Log (l)"}
WIDTH = 64  # H of the authors' code


def kernels_figure() -> Figure:
    """The middle and the slowest component of each relative kernel, from one second to one year.

    Of the sinusoids, the sines: their components are the first half.
    """
    gap = torch.logspace(0, np.log10(365 * 86400), 2000, dtype=torch.float64)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharex=True)
    for axis, (letter, title) in zip(axes, RELATIVE.items(), strict=True):
        kernel = relative_kernel(letter)(gap, WIDTH).numpy()  # (2000, H)
        count = WIDTH // 2 if letter == "s" else WIDTH
        for label, component, line in (("middle", count // 2, "--"), ("slowest", count - 1, "-")):
            width = 0.7 if letter == "s" else 1.5
            axis.plot(gap.numpy(), kernel[:, component], line, label=label, linewidth=width)
        axis.axvline(86400, color="#555555", linestyle=":")
        axis.set(xscale="log", xlabel="gap between two events (s)", title=title)
    axes[0].set_ylabel("value of the component")
    axes[2].legend(title="component", loc="upper left")
    return figure


def newest_events(log: InteractionLog, max_length: int) -> tuple[Tensor, Tensor]:
    """Time stamps and days of a user's newest events, of the user for whom they spread over the most days."""
    histories = [log.events(user) for user in range(1, log.num_users + 1)]
    newest = [slice(max(events.start, events.stop - max_length), events.stop) for events in histories]
    shown = max(newest, key=lambda events: len(np.unique(log.day[events])))
    return torch.from_numpy(log.timestamp[shown].copy()), torch.from_numpy(log.day[shown].copy())


def kernel_maps(
    log: InteractionLog, timestamps: Tensor, days: Tensor, *, max_length: int
) -> dict[str, Tensor]:
    """What each of the six kernels makes of every pair of events, (T, T).

    Absolute kernels: cosine between the two events' untrained vectors, which have 48 channels. Relative
    kernels: their slowest component.

    Parameters
    ----------
    log
        Its items and days are the sizes of the tables.
    timestamps, days
        Of one user's events, (T,).
    max_length
        Rows of the table of positions, at least T.
    """
    seeded(0)
    sizes = {"num_days": log.num_days, "max_length": max_length, "hidden_size": 48}
    model = Meantime(log.num_items, absolute="p-d-c", relative="", **sizes)
    rows = {"Pos (p)": torch.arange(len(days)), "Day (d)": days, "Con (c)": torch.zeros_like(days)}
    maps = {}
    for (name, row), table in zip(rows.items(), model.tables, strict=True):
        vectors = table.weight[row].detach()  # (T, H)
        maps[name] = torch.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    for letter, name in RELATIVE.items():
        maps[name] = relative_kernel(letter)(timestamps[:, None] - timestamps[None], WIDTH)[..., -1]
    return maps


def maps_figure(maps: dict[str, Tensor]) -> Figure:
    """The six `kernel_maps`: the cosines above, from −1 to 1; below each kernel on a scale of its own."""
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.2), sharex=True, sharey=True)
    for axis, (name, values) in zip(axes.flat, maps.items(), strict=True):
        limits = {} if name in RELATIVE.values() else {"vmin": -1, "vmax": 1}
        axis.imshow(values.numpy(), cmap="viridis", **limits)
        axis.set(title=name, xticks=range(0, len(values), 5), yticks=range(0, len(values), 5))
        axis.grid(visible=False)
    figure.supxlabel("attended event")
    figure.supylabel("attending event")
    return figure
