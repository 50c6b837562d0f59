"""How often the rule of verdicts is wrong, and how often it sees what is there: simulated claims.

Ten thousand made-up claims per setting are judged by the `lib.ledger.intervals.decide` that judges the
chapters. ``python book/verdict_simulation.py FOLDER`` writes the figure and the tables of the page on
verdicts.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import ndtri

from lib.chapter.figures import arm_styles, use_style
from lib.ledger.intervals import decide, unit_covariance

CLAIMS = 10_000
REPLICATES = tuple(range(3, 11))
PARTS = 16
EFFECTS = tuple(np.arange(0, 6.01, 0.5))
ALLOWED = 0.05

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

ARMS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails (t, 3 df)": lambda rng, shape: rng.standard_t(3, size=shape),
    "heaviest tails (Cauchy)": lambda rng, shape: rng.standard_cauchy(size=shape),
    "skewed (log-normal)": lambda rng, shape: rng.lognormal(size=shape),
    "no tails (uniform)": lambda rng, shape: rng.uniform(size=shape),
}
"""Distributions of a metric over seeds; in a claim without effect both arms have the same one."""


def no_effect(name: str, rng: np.random.Generator, claims: int, replicates: int) -> np.ndarray:
    """Margins (claims, parts, replicates) of claims that are wrong: nothing differs between the arms.

    Besides the distributions of `ARMS`: ``16 parts``, one method against four on four metrics, where every
    part shares the seed's luck of that one method; ``16 parts, independent``.
    """
    if name in ARMS:
        shape = (claims, 1, replicates)
        return ARMS[name](rng, shape) - ARMS[name](rng, shape)
    others = rng.normal(size=(claims, PARTS, replicates))
    if name == "16 parts, independent":
        return rng.normal(size=others.shape) - others
    method = np.repeat(rng.normal(size=(claims, PARTS // 4, replicates)), 4, axis=1)
    return method - others


SETTINGS = (*ARMS, "16 parts", "16 parts, independent")


def false_verdicts(claims: int = CLAIMS, seed: int = 0) -> pd.DataFrame:
    """Share of claims without effect that get `holds` or `contradicted`, by setting and number of seeds."""
    rows = []
    for index, setting in enumerate(SETTINGS):
        for replicates in REPLICATES:
            rng = np.random.default_rng((seed, index, replicates))
            verdicts = decide(no_effect(setting, rng, claims, replicates))
            rows.append((setting, replicates, (verdicts > 0).mean(), (verdicts < 0).mean()))
    frame = pd.DataFrame(rows, columns=["setting", "seeds", "holds", "contradicted"])
    return frame.assign(false_verdicts=frame["holds"] + frame["contradicted"], claims=claims)


def rule_of_thumb(claims: int = CLAIMS, seed: int = 0) -> pd.DataFrame:
    """The same share for normal metrics when two means ± 1.96 standard errors are compared, unpaired."""
    rows = []
    for replicates in REPLICATES:
        rng = np.random.default_rng((seed, replicates))
        first, second = rng.normal(size=(2, claims, replicates))
        error = np.sqrt((first.var(-1, ddof=1) + second.var(-1, ddof=1)) / replicates)
        wrong = np.abs(first.mean(-1) - second.mean(-1)) > -ndtri(0.025) * error
        rows.append(("two means ± 1.96 standard errors", replicates, wrong.mean(), claims))
    return pd.DataFrame(rows, columns=["setting", "seeds", "false_verdicts", "claims"])


def power(claims: int = CLAIMS, seed: int = 0) -> pd.DataFrame:
    """Share of true claims that get `holds`, by effect size and number of seeds.

    One part, normal metrics; the effect is in standard deviations of the paired difference over seeds.
    """
    rows = []
    for replicates in (3, 4, 5, 7, 10):
        for effect in EFFECTS:
            rng = np.random.default_rng((seed, replicates, round(10 * effect)))
            verdicts = decide(effect + rng.normal(size=(claims, 1, replicates)))
            rows.append((replicates, effect, (verdicts > 0).mean(), (verdicts < 0).mean(), claims))
    return pd.DataFrame(rows, columns=["seeds", "effect", "holds", "contradicted", "claims"])


def limits(claims: int = CLAIMS, seed: int = 0) -> pd.DataFrame:
    """Share of false verdicts where the rule's assumptions fail.

    The paired difference is not symmetric, or it is clustered, so that few seeds look too much alike.
    """

    def fails_or_succeeds(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        first, second = rng.integers(0, 2, size=(2, *shape)) + 0.01 * rng.normal(size=(2, *shape))
        return first - second

    cases: dict[str, Draw] = {
        "one arm skewed (exponential), the other without randomness": lambda rng, shape: (
            rng.exponential(size=shape) - 1
        ),
        "one arm strongly skewed (log-normal), the other without randomness": lambda rng, shape: (
            rng.lognormal(size=shape) - np.exp(0.5)
        ),
        "one arm wins every seed by the same step, either way": lambda rng, shape: (
            rng.choice([-1.0, 1.0], size=shape) + 0.01 * rng.normal(size=shape)
        ),
        "trainings that either fail or succeed": fails_or_succeeds,
        "the same, in 16 independent parts": lambda rng, shape: fails_or_succeeds(
            rng, (shape[0], PARTS, shape[-1])
        ),
    }
    rows = []
    for index, (case, draw) in enumerate(cases.items()):
        for replicates in (3, 5, 10):
            rng = np.random.default_rng((seed, index, replicates))
            rows.append((case, replicates, (decide(draw(rng, (claims, 1, replicates))) != 0).mean()))
    return pd.DataFrame(rows, columns=["case", "seeds", "false_verdicts"])


def _taste(rng: np.random.Generator, claims: int, seeds: int, units: int) -> np.ndarray:
    """Differences of NDCG@10: each user is served better by one arm or the other, on average by neither."""
    better = rng.integers(0, 2, size=(claims, 1, units))
    chance = np.stack([0.3 + 0.2 * better, 0.5 - 0.2 * better])  # that an arm ranks the item in the first ten
    ranks = rng.integers(1, 11, size=(2, claims, seeds, units))
    gain = (rng.random(ranks.shape) < chance) / np.log2(1 + ranks)
    return gain[0] - gain[1]


def _normal(by_seed: float, by_unit: float, both: float) -> Callable[..., np.ndarray]:
    def draw(rng: np.random.Generator, claims: int, seeds: int, units: int) -> np.ndarray:
        effect = by_seed * rng.normal(size=(claims, seeds, 1)) + by_unit * rng.normal(size=(claims, 1, units))
        return effect + both * rng.normal(size=(claims, seeds, units))

    return draw


CROSSED: dict[str, tuple[Callable[..., np.ndarray], int, int]] = {
    "NDCG@10 of users whom one arm or the other serves better": (_taste, 8, 100),
    "seeds and users matter alike": (_normal(0.1, 1.0, 1.0), 8, 100),
    "users matter, seeds hardly": (_normal(0.0, 1.0, 0.3), 4, 100),
    "24 crops, four seeds": (_normal(0.0, 1.0, 1.0), 4, 24),
    "seeds matter, users not": (_normal(0.3, 0.0, 1.0), 4, 50),
}
"""Claims without effect that are measured on the same units with every seed: draw, seeds, units."""


def crossed(claims: int = CLAIMS, seed: int = 0) -> pd.DataFrame:
    """Share of false verdicts where all seeds share their test units: over seeds alone, and over both."""
    rows = []
    for index, (case, (draw, seeds, units)) in enumerate(CROSSED.items()):
        values = draw(np.random.default_rng((seed, index)), claims, seeds, units)
        shared = np.array([max(0.0, unit_covariance(claim[None])[0, 0]) for claim in values])[:, None]
        means = values.mean(-1)[:, None, :]
        alone, both = (
            (decide(means, **more) != 0).mean() for more in ({}, {"unit_variance": shared, "units": units})
        )
        rows.append((case, seeds, units, alone, both, claims))
    columns = ["case", "seeds", "units", "over_seeds_alone", "over_seeds_and_units", "claims"]
    return pd.DataFrame(rows, columns=columns)


def figure(wrong: pd.DataFrame, thumb: pd.DataFrame, seen: pd.DataFrame) -> Figure:
    """Left: rate of false verdicts against seeds, per setting. Right: power against effect size."""
    use_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    colours, markers, dashes = arm_styles([*SETTINGS, thumb["setting"][0]])
    for name, rows in [*wrong.groupby("setting", sort=False), *thumb.groupby("setting")]:
        style = {"color": colours[name], "marker": markers[name], "dashes": dashes[name] or (None, None)}
        left.plot(rows["seeds"], 100 * rows["false_verdicts"], label=name, ms=5, **style)
    left.axhline(100 * ALLOWED, color="black", lw=1)
    left.annotate("5 % allowed", (10, 100 * ALLOWED), (0, 4), textcoords="offset points", ha="right")
    left.set(xlabel="seeds", ylabel="false verdicts (% of claims without effect)", ylim=(0, None))
    left.set_title("Nothing there: how often a verdict anyway")
    left.legend(fontsize="x-small", loc="upper right")
    colours, markers, dashes = arm_styles([*seen["seeds"].unique()])
    for seeds, rows in seen.groupby("seeds"):
        style = {"color": colours[seeds], "marker": markers[seeds], "dashes": dashes[seeds] or (None, None)}
        right.plot(rows["effect"], 100 * rows["holds"], label=f"{seeds} seeds", ms=5, **style)
    right.set(xlabel="true difference (standard deviations over seeds)", ylabel="claims that hold (%)")
    right.set_title("Something there: how often it is seen")
    right.legend(fontsize="small", loc="lower right")
    return fig


def crossed_summary(rates: pd.DataFrame) -> str:
    """The table of crossed designs, as MyST."""
    lines = ["| what varies | seeds | units | over seeds alone | over seeds and units |", "|---" * 5 + "|"]
    lines += [
        f"| {row.case} | {row.seeds} | {row.units} | {100 * row.over_seeds_alone:.1f} % "
        f"| {100 * row.over_seeds_and_units:.1f} % |"
        for row in rates.itertuples()
    ]
    return "\n".join(lines) + "\n"


def summary(wrong: pd.DataFrame, seen: pd.DataFrame, limit: pd.DataFrame) -> str:
    """The numbers of the page's prose, as MyST."""
    worst = wrong.loc[wrong["false_verdicts"].idxmax()]
    lines = [
        f"Of {int(worst['claims']):,} simulated claims without effect per setting, at most "
        f"{100 * worst['false_verdicts']:.2f} % got a verdict ({worst['setting']}, {worst['seeds']} seeds). "
        "To be seen four times out of five, a difference must be at least this large, in standard deviations "
        "over seeds of the paired difference:",
        "",
        "| seeds | smallest difference |",
        "|---|---|",
    ]
    for seeds, rows in seen.groupby("seeds"):
        smallest = np.interp(0.8, rows["holds"], rows["effect"])
        lines.append(f"| {seeds} | {smallest:.1f} |")
    table = limit.pivot_table(index="case", columns="seeds", values="false_verdicts", sort=False)
    lines += ["", "Where its assumptions fail, the share of false verdicts is:", ""]
    lines += [
        "| what differs from the assumptions | " + " | ".join(f"{seeds} seeds" for seeds in table) + " |",
        "|---" * 4 + "|",
    ]
    lines += [
        f"| {case} | " + " | ".join(f"{100 * r:.1f} %" for r in row) + " |" for case, row in table.iterrows()
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path | str, claims: int = CLAIMS) -> None:
    """Make `folder`, whole or not at all.

    ``verdict_simulation.{svg,png,md,csv}``, ``verdict_power.csv``, ``verdict_units.{md,csv}``.
    """
    whole = Path(folder)
    folder = whole.with_name(f"{whole.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wrong, thumb, seen, limit = (run(claims) for run in (false_verdicts, rule_of_thumb, power, limits))
    fig = figure(wrong, thumb, seen)
    fig.savefig(folder / "verdict_simulation.svg", metadata={"Date": None, "Creator": None})
    fig.savefig(folder / "verdict_simulation.png", metadata={"Software": None})
    plt.close(fig)
    pd.concat([wrong, thumb]).to_csv(folder / "verdict_simulation.csv", index=False)
    seen.to_csv(folder / "verdict_power.csv", index=False)
    (folder / "verdict_simulation.md").write_text(summary(wrong, seen, limit), encoding="utf-8")
    rates = crossed(min(claims, 4000))  # a table of results per unit each
    rates.to_csv(folder / "verdict_units.csv", index=False)
    (folder / "verdict_units.md").write_text(crossed_summary(rates), encoding="utf-8")
    shutil.rmtree(whole, ignore_errors=True)
    folder.rename(whole)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Simulate the verdict rule; write its figure and tables.")
    parser.add_argument("folder", type=Path, help="to be made, or replaced, with figure and tables")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
