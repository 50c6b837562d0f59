"""The recurring figures show the numbers they are given."""

import base64
import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from lib.chapter.figures import (
    MARKERS,
    arm_styles,
    arms_figure,
    curves_figure,
    map_figure,
    picture_strips,
    pictures_figure,
    redraw,
    redrawable,
    save,
    seeds_bar,
    shown,
    use_style,
)
from lib.ledger.intervals import LEVEL

matplotlib.use("Agg")
VALUES = {"a": [0.1, 0.2, 0.4], "b": [0.5, 0.6, 0.55], "once": [0.3]}
FRAME = pd.DataFrame([{"arm": arm, "NDCG@10": v} for arm, values in VALUES.items() for v in values])


@pytest.fixture(autouse=True)
def style():
    use_style()


def test_arms_figure_draws_every_seed_mean_and_interval():
    figure = arms_figure(FRAME, ["NDCG@10"], reference={"NDCG@10": 0.045})
    axis = figure.axes[0]
    seeds = [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "."]
    assert seeds == list(VALUES.values())
    means = [container.lines[0].get_xdata()[0] for container in axis.containers]
    assert means == pytest.approx([np.mean(values) for values in VALUES.values()])
    bars = [container.lines[2][0].get_segments()[0][:, 0] for container in axis.containers[:2]]
    for bar, values in zip(bars, VALUES.values(), strict=False):
        expected = stats.t.interval(LEVEL, len(values) - 1, np.mean(values), stats.sem(values))
        assert bar == pytest.approx(expected)
    assert [label.get_text() for label in axis.get_yticklabels()] == list(VALUES)
    assert axis.get_xlabel() == "NDCG@10" and figure.get_facecolor() == (1, 1, 1, 1)


@pytest.mark.filterwarnings("error")
def test_names_are_no_formulas():
    """Dollars and underscores of an arm's or a metric's name are shown as they are, in legends, too."""
    names = ["_a", "$x_1$ or $y$", "US$ 5", "snake_case"]
    frame = pd.DataFrame({"arm": names, "seed": 0, "step": 1, "a $b$": [1.0, 2.0, 3.0, 4.0]})
    arms = arms_figure(frame, ["a $b$"], reference={"a $b$": 2.0}, reference_label="_$r$").axes[0]
    curves = curves_figure(frame, "step", "a $b$").axes[0]
    shown = {
        "arms": [label for label in arms.get_yticklabels()],
        "legend": curves.get_legend().get_texts(),
        "others": [arms.xaxis.label, curves.yaxis.label, *arms.get_legend().get_texts()],
    }
    for texts, expected in zip(shown.values(), (names, names, ["a $b$", "a $b$", "_$r$"]), strict=True):
        read = [text._preprocess_math(text.get_text()) for text in texts]
        assert [(said.strip(), formula) for said, formula in read] == [(name, False) for name in expected]


def test_seeds_bar_draws_seeds_mean_and_interval():
    axis = plt.subplots()[1]
    for place, values in enumerate([*VALUES.values(), []]):
        seeds_bar(axis, place, values, fmt="o")
    seeds = [line.get_ydata().tolist() for line in axis.lines if line.get_marker() == "."]
    assert seeds == list(VALUES.values())
    assert len(axis.containers) == len(VALUES)  # without seeds nothing is drawn
    means = [container.lines[0].get_ydata()[0] for container in axis.containers]
    assert means == pytest.approx([np.mean(values) for values in VALUES.values()])
    bars = [container.lines[2][0].get_segments()[0][:, 1] for container in axis.containers[:2]]
    for bar, values in zip(bars, VALUES.values(), strict=False):
        expected = stats.t.interval(LEVEL, len(values) - 1, np.mean(values), stats.sem(values))
        assert bar == pytest.approx(expected)


def test_curves_figure_draws_the_mean_over_seeds():
    frame = pd.DataFrame(
        {"arm": ["a"] * 4, "step": [1, 2, 1, 2], "value": [0.0, 1.0, 2.0, 3.0], "seed": [0, 0, 1, 1]}
    )
    axis = curves_figure(frame, "step", "value", x_label="steps", y_label="metric").axes[0]
    assert axis.lines[0].get_ydata().tolist() == [1.0, 2.0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("steps", "metric")


def test_arms_differ_without_colour_and_too_many_are_refused():
    _, markers, dashes = arm_styles([str(i) for i in range(len(MARKERS))])
    assert len(set(markers.values())) == len(set(dashes.values())) == len(MARKERS)
    with pytest.raises(ValueError, match="at most 8 arms"):
        arm_styles([str(i) for i in range(9)])


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match="missing: \\['Recall@10'\\]"):
        arms_figure(FRAME, ["Recall@10"])


def test_a_figure_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    figure, files = plt.figure(), (tmp_path / "a.png", tmp_path / "a.svg")
    save(figure, *files)
    before = [path.read_bytes() for path in files]

    def half(file, **_):
        file.write(b"<svg")
        raise KeyboardInterrupt

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt):
        save(figure, *files)
    assert [path.read_bytes() for path in files] == before
    assert sorted(tmp_path.iterdir()) == sorted(files)


GRID = pd.DataFrame(
    {
        "taste": [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
        "context": [0.0, 2.0] * 4,
        "seed": [0] * 4 + [1] * 4,
        "one": [0.5, 0.8, 0.6, 0.7, 0.5, 0.8, 0.6, 0.9],
        "other": [0.5, 0.5, 0.9, 0.7, 0.5, 0.5, 0.9, 0.7],
    }
)


def test_a_map_shows_mean_differences_and_marks_the_nearest_cell():
    panels = [("one − other", "one", "other"), ("other − one", "other", "one")]
    marks = [("M", {"one": 0.79, "other": 0.71})]
    figure = map_figure(GRID, "context", "taste", panels, x_label="context", marked=marks)
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts[0] == ["0.00", "+0.30", "−0.30", "+0.10", "M"]
    assert texts[1] == ["0.00", "−0.30", "+0.30", "−0.10", "M"]
    row, column = divmod(texts[0].index("+0.10"), 2)
    x, y = figure.axes[0].texts[-1].get_position()
    assert (int(y), int(x)) == (row, column), "taste 1 and context 2"
    low, high = figure.axes[0].get_ylim()
    assert low < high, "more taste is higher up"


def test_a_map_is_drawn_again_from_its_data():
    figure = map_figure(GRID, "context", "taste", [("one − other", "one", "other")])
    drawing = redrawable(figure, shown(figure))
    assert shown(redraw(drawing)) == shown(figure)


def picture(grey: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (12, 6), (grey, 0, 0)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


STRIPS = pd.DataFrame(
    [
        {"seed": seed, "row": row, "columns": "left\tright", "png": picture(seed + number)}
        for seed in (10, 50)
        for number, row in enumerate(("above", "below"))
    ]
)


def test_strips_are_those_of_one_seed_in_the_order_asked_for():
    def reds(figure):
        return [round(float(axis.images[0].get_array()[0, 0, 0]) * 255) for axis in figure.axes]

    figure = pictures_figure(STRIPS)
    assert reds(figure) == [10, 11]
    assert [text.get_text() for text in figure.axes[0].texts] == ["left", "right"]
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["", "below"]
    assert reds(pictures_figure(STRIPS, rows=["below", "above"], seed=50)) == [51, 50]
    for options, message in (
        ({"rows": ["x"]}, "no row 'x' of seed 10"),
        ({"seed": 7, "rows": ["above"]}, "seed 7"),
    ):
        with pytest.raises(ValueError, match=message):
            pictures_figure(STRIPS, **options)


def test_strips_without_columns_are_titled_and_drawn_again_from_their_data():
    figure = pictures_figure(STRIPS.assign(columns=""))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["above", "below"]
    assert shown(redraw(redrawable(figure, shown(figure)))) == shown(figure)


def test_strips_hold_pictures_side_by_side_as_they_are():
    grey = np.linspace(-1, 1, 2 * 4 * 4).reshape(2, 1, 4, 4).repeat(3, axis=1)
    table = picture_strips({"ramp": grey, "beyond": 3 * grey}, 5, columns=1).reset_index()
    assert table["seed"].tolist() == [5, 5] and table["row"].tolist() == ["ramp", "beyond"]
    both = picture_strips({"ramp": grey}, 5).reset_index()
    first, beyond = (axis.images[0].get_array() for axis in pictures_figure(table).axes)
    side_by_side = pictures_figure(both).axes[0].images[0].get_array()
    assert first.shape[:2] == (4, 4) and side_by_side.shape[:2] == (4, 8)
    np.testing.assert_allclose(first[..., 0], (grey[0, 0] + 1) / 2, atol=0.5 / 255)
    np.testing.assert_allclose(side_by_side[:, 4:, 0], (grey[1, 0] + 1) / 2, atol=0.5 / 255)
    np.testing.assert_allclose(beyond[..., 0], ((3 * grey[0, 0]).clip(-1, 1) + 1) / 2, atol=0.5 / 255)


def test_an_unknown_seed_is_refused_where_all_rows_are_wanted():
    with pytest.raises(ValueError, match="no picture of seed 7"):
        pictures_figure(STRIPS, seed=7)
