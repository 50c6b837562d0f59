"""The book's one plotting style, and the few figures that recur in its chapters.

Frames are in long form, one row per arm and seed (and step), so that seaborn and pandas can group them.
An arm has one colour, one marker and one dash pattern: the last two carry the figure in greyscale.

A figure of one of these kinds remembers what it was drawn from, so that a change of style does not need the
experiment again: `redrawable` writes that down, `redraw` makes the figure of it.
"""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lib.files import replacing
from lib.ledger.intervals import LEVEL, mean_interval

KINDS: dict[str, Callable[..., Figure]] = {}
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
DASHES = ("", (4, 1.5), (1, 1), (3, 1, 1, 1), (6, 2), (2, 1), (5, 1, 1, 1, 1, 1), (1, 2))


def use_style() -> None:
    """Set the book's style: white background in every theme, colour-blind palette, SVGs that diff."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.dpi": 150,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "svg.hashsalt": "companion",
        }
    )


def _remembered(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Keep with a figure the frame and the options that it was drawn from, unless it is part of another."""

    @functools.wraps(draw)
    def remembering(frame: pd.DataFrame, *arguments, **options) -> Figure:
        figure = draw(frame, *arguments, **options)
        if options.get("axis") is None:
            figure.drawn_from = {"kind": draw.__name__, "arguments": arguments, "options": options}
            figure.drawn_from["frame"] = frame.reset_index(drop=True).to_dict("split")
        return figure

    KINDS[draw.__name__] = remembering
    return remembering


def redrawable(figure: Figure, png: str) -> str | None:
    """What a figure, shown as `png`, was drawn from, as JSON; None if of no such kind, or changed since."""
    if not hasattr(figure, "drawn_from"):
        return None
    drawing = json.dumps(figure.drawn_from, default=lambda value: value.item())
    again = redraw(drawing)
    same = shown(again) == png
    plt.close(again)
    return drawing if same else None


def redraw(drawing: str) -> Figure:
    """A figure in today's style, from what `redrawable` wrote."""
    parts = json.loads(drawing)
    frame = pd.DataFrame(parts["frame"]["data"], columns=parts["frame"]["columns"])
    return KINDS[parts["kind"]](frame, *parts["arguments"], **parts["options"])


def shown(figure: Figure) -> str:
    """A figure as a notebook shows it: PNG in base64."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi="figure", bbox_inches="tight", metadata={"Software": None})
    return base64.b64encode(picture.getvalue()).decode()


def save(figure: Figure, png: Path, svg: Path) -> None:
    """Write a figure's files, whole or not at all; no dates or versions: the same numbers give the same."""
    for path, kind, metadata in (
        (png, "png", {"Software": None}),
        (svg, "svg", {"Date": None, "Creator": None}),
    ):
        with replacing(path) as file:
            figure.savefig(file, format=kind, bbox_inches="tight", facecolor="white", metadata=metadata)


def arm_styles(arms: Sequence[str]) -> tuple[dict[str, tuple], dict[str, str], dict[str, tuple]]:
    """Return colour, marker and dash pattern of each arm, in the order given.

    Raises
    ------
    ValueError
        More arms than can be told apart without colour.
    """
    if len(arms) > len(MARKERS):
        raise ValueError(f"at most {len(MARKERS)} arms can be told apart in one figure, got {len(arms)}")
    return (
        dict(zip(arms, sns.color_palette("colorblind", len(arms)), strict=True)),
        dict(zip(arms, MARKERS, strict=False)),
        dict(zip(arms, DASHES, strict=False)),
    )


def _as_written(name: str) -> str:
    """A name that matplotlib shows as it is: no formula between dollars, and not left out of a legend."""
    return ("\N{THIN SPACE}" * name.startswith("_") + name).replace("$", r"\$")


@_remembered
def arms_figure(
    frame: pd.DataFrame,
    metrics: Sequence[str],
    *,
    arm: str = "arm",
    level: float = LEVEL,
    reference: dict[str, float] | None = None,
    reference_label: str = "chance",
) -> Figure:
    """Draw each arm's seeds as points and their mean with its Student-t interval, a panel a metric.

    The panels stand one below the other, so that a phone can show them.

    Parameters
    ----------
    frame
        One row per arm and seed, with a column ``arm`` and one per metric; arms in order of appearance.
    metrics
        Columns to draw, one panel each.
    level
        Coverage of the interval, by default that of the verdicts. An arm with one row has none.
    reference, reference_label
        Value to compare with for some metrics, by default a random guess, drawn as a dotted line.
    """
    missing = [name for name in (arm, *metrics) if name not in frame]
    if missing or frame.empty:
        raise ValueError(f"the frame needs rows and the columns {[arm, *metrics]}; missing: {missing}")
    arms = list(dict.fromkeys(frame[arm]))
    colours, markers, _ = arm_styles(arms)
    figure, axes = plt.subplots(
        len(metrics), 1, figsize=(7, len(metrics) * (0.8 + 0.36 * len(arms))), squeeze=False
    )
    for axis, metric in zip(axes[:, 0], metrics, strict=True):
        for row, label in enumerate(arms):
            values = frame.loc[frame[arm] == label, metric].dropna().to_numpy()
            if not len(values):  # an arm that another metric alone is of
                continue
            axis.plot(values, np.full(len(values), row + 0.18), ".", color="#777777", markersize=5)
            axis.errorbar(
                values.mean(),
                row,
                xerr=_half_width(values, level),
                fmt=markers[label],
                color=colours[label],
                capsize=4,
            )
        if reference and metric in reference:
            axis.axvline(
                reference[metric], color="#555555", linestyle=":", label=_as_written(reference_label)
            )
            axis.legend(loc="best", fontsize="small")
        axis.set(xlabel=_as_written(metric), yticks=range(len(arms)), ylim=(len(arms) - 0.5, -0.5))
        axis.set_yticklabels([_as_written(str(label)) for label in arms])
        axis.grid(axis="y", visible=False)
    return figure


@_remembered
def curves_figure(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    arm: str = "arm",
    x_label: str = "",
    y_label: str = "",
    axis: Axes | None = None,
) -> Figure:
    """Draw a curve per arm: the mean over seeds, with a band from the lowest to the highest seed.

    Parameters
    ----------
    frame
        One row per arm, seed and place on the horizontal axis.
    x, y, arm
        Its columns.
    x_label, y_label
        With units; the columns' names if not given.
    axis
        Where to draw; a figure of its own if not given.
    """
    frame = frame.assign(**{arm: frame[arm].astype(str).map(_as_written)})
    arms = list(dict.fromkeys(frame[arm]))
    colours, markers, dashes = arm_styles(arms)
    axis = axis or plt.subplots(figsize=(7, 4))[1]
    sns.lineplot(
        frame, x=x, y=y, hue=arm, style=arm, palette=colours, markers=markers, dashes=dashes,
        errorbar=("pi", 100), ax=axis, hue_order=arms, style_order=arms,
    )  # fmt: skip
    axis.set(xlabel=x_label or _as_written(x), ylabel=y_label or _as_written(y))
    if len(arms) > 4:  # so many names would lie on curves
        axis.legend(title=None, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=2)
    else:
        axis.legend(title=None, fontsize="small")
    return axis.figure


@_remembered
def map_figure(
    frame: pd.DataFrame,
    x: str,
    y: str,
    panels: Sequence[tuple[str, str, str]],
    *,
    x_label: str = "",
    y_label: str = "",
    marked: Sequence[tuple[str, dict[str, float]]] = (),
) -> Figure:
    """Draw differences of two columns over a grid, a panel each; blue where the first leads.

    Parameters
    ----------
    frame
        One row per cell and seed; drawn are means over seeds.
    x, y
        Columns of the two axes.
    panels
        Title, and the columns whose difference is drawn.
    x_label, y_label
        With units; the columns' names if not given.
    marked
        A letter, and values of columns: it is put on the cell whose means are nearest to them.
    """
    means = frame.groupby([y, x]).mean(numeric_only=True)
    tables = frame.pivot_table(index=y, columns=x)
    differences = [tables[first] - tables[second] for _, first, second in panels]
    limit = max(float(np.nanmax(np.abs(table))) for table in differences) or 1.0
    rows = len(differences[0])
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(7, len(panels) * (1.2 + 0.5 * rows)), squeeze=False, sharex=True
    )
    for axis, table, (title, _, _) in zip(axes[:, 0], differences, panels, strict=True):
        words = table.map(lambda value: f"{value:+.2f}".replace("-", "−"))
        words = words.replace({"+0.00": "0.00", "−0.00": "0.00"})
        colours = {"cmap": "RdBu", "vmin": -limit, "vmax": limit, "cbar": False}
        sns.heatmap(table, annot=words, fmt="", ax=axis, **colours)
        axis.invert_yaxis()
        axis.tick_params(axis="y", rotation=0)
        axis.set(title=title, xlabel="", ylabel=y_label or y)
        for letter, wanted in marked:
            distance = sum((means[column] - value) ** 2 for column, value in wanted.items())
            row, column = distance.idxmin()
            place = (table.columns.get_loc(column) + 0.86, table.index.get_loc(row) + 0.78)
            axis.text(*place, letter, ha="center", va="center", fontsize=10, weight="bold")
    axes[-1, 0].set_xlabel(x_label or x)
    return figure


def picture_strips(rows: Mapping[str, npt.ArrayLike], seed: int, *, columns: int = 6) -> pd.DataFrame:
    """Rows of pictures as `pictures_figure` takes them, with the seed as index: an archive keeps such tables.

    Parameters
    ----------
    rows : dict of str to (N, 3, H, W) in [−1, 1]
        By what is written above the row.
    seed : int
    columns : int
        Pictures of a row that are kept, side by side in one PNG of at most 64 colours.
    """
    found = []
    for label, images in rows.items():
        strip = np.concatenate(np.asarray(images)[:columns], axis=2).transpose(1, 2, 0)
        pixels = ((strip.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        png = base64.b64encode(file.getvalue()).decode()
        found.append({"seed": seed, "row": label, "columns": "", "png": png})
    return pd.DataFrame(found).set_index("seed")


@_remembered
def pictures_figure(frame: pd.DataFrame, *, rows: Sequence[str] = (), seed: int | None = None) -> Figure:
    """Draw rows of pictures of one size, each pixel as it is.

    Parameters
    ----------
    frame
        One row per strip and seed: ``seed``; ``row``, written above it; ``columns``, what is written above
        the single pictures of the first, between tabs; and ``png``, the pictures side by side, in base64.
    rows
        Which strips, in this order; all of them if not given.
    seed
        Whose; the first if not given.

    Raises
    ------
    ValueError
        There is no such strip or seed.
    """
    seed = frame["seed"].iloc[0] if seed is None else seed
    strips = frame[frame["seed"] == seed].set_index("row")
    if strips.empty:
        raise ValueError(f"there is no picture of seed {seed}")
    if missing := sorted(set(rows) - set(strips.index)):
        raise ValueError(f"there is no row {missing[0]!r} of seed {seed}: rows are {', '.join(strips.index)}")
    strips = strips.loc[list(rows)] if rows else strips
    pictures = [plt.imread(io.BytesIO(base64.b64decode(png))) for png in strips["png"]]
    heights = [7 * len(picture) / picture.shape[1] for picture in pictures]
    words = str(strips["columns"].iloc[0]).split("\t") if strips["columns"].notna().iloc[0] else []
    figure, axes = plt.subplots(
        len(pictures),
        1,
        figsize=(7, sum(heights) + 0.3 * len(heights) + 0.2 * max((w.count("\n") for w in words), default=0)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    for axis, picture, name in zip(axes[:, 0], pictures, strips.index, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.axis("off")
        axis.set_title(_as_written(name), fontsize=10, loc="left", pad=3)
    if any(words):
        axes[0, 0].set_title("", loc="left")
        width = pictures[0].shape[1] / len(words)
        for place, text in enumerate(words):
            at = ((place + 0.5) * width, -3)
            axes[0, 0].text(*at, _as_written(text), fontsize=9, ha="center", va="baseline")
    return figure


def seeds_bar(axis: Axes, place: float, values: Sequence[float], *, level: float = LEVEL, **style) -> None:
    """Draw a mean over seeds with its Student-t interval upright at ``place``, the seeds as points beside it.

    Parameters
    ----------
    axis
        Where to draw.
    place
        On the horizontal axis.
    values
        One per seed. A single one has no interval; of none, nothing is drawn.
    level
        Coverage of the interval, by default that of the verdicts.
    style
        For ``Axes.errorbar``, such as ``fmt``, ``color`` and ``label``.
    """
    values = np.asarray(values, dtype=float)
    if len(values):
        axis.errorbar(place, values.mean(), yerr=_half_width(values, level), capsize=4, **style)
        axis.plot(np.full(len(values), place + 0.07), values, ".", color="#777777", markersize=4)


def _half_width(values: np.ndarray, level: float) -> float:
    if len(values) < 2:
        return float("nan")
    mean, low, _ = mean_interval(values, level)
    return float(mean - low)
