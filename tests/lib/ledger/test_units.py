"""Intervals over replicates and test units: the crossed design, against hand computation and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from lib.ledger.intervals import decide, mean_interval, smallest_effect, unit_covariance
from lib.ledger.units import UnitSpread

CLAIMS = 4000


def crossed(
    random: np.random.Generator, *, seeds: int, units: int, by_seed: float, by_unit: float, both: float
) -> np.ndarray:
    """Differences (claims, seeds, units) with no effect and these standard deviations."""
    effect = by_seed * random.standard_normal((CLAIMS, seeds, 1))
    effect = effect + by_unit * random.standard_normal((CLAIMS, 1, units))
    return effect + both * random.standard_normal((CLAIMS, seeds, units))


def variance_by_units(values: np.ndarray) -> np.ndarray:
    """`unit_covariance` of one arm, for many claims (claims, seeds, units); cut at zero."""
    return np.array([max(0.0, unit_covariance(claim[None])[0, 0]) for claim in values])


def false_verdicts(values: np.ndarray, *, with_units: bool = True) -> float:
    """How often "above zero" is decided, one way or the other."""
    shared = {}
    if with_units:
        shared = {"unit_variance": variance_by_units(values)[:, None], "units": values.shape[-1]}
    return float((decide(values.mean(-1)[:, None, :], **shared) != 0).mean())


DESIGNS = [
    {"seeds": 4, "units": 24, "by_seed": 0.0, "by_unit": 1.0, "both": 1.0},
    {"seeds": 8, "units": 100, "by_seed": 0.1, "by_unit": 1.0, "both": 1.0},
    {"seeds": 4, "units": 100, "by_seed": 0.1, "by_unit": 1.0, "both": 0.3},
    {"seeds": 8, "units": 24, "by_seed": 0.3, "by_unit": 0.0, "both": 1.0},
    {"seeds": 3, "units": 50, "by_seed": 0.0, "by_unit": 0.0, "both": 1.0},
    {"seeds": 8, "units": 50, "by_seed": 1.0, "by_unit": 0.1, "both": 0.1},
]


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: ", ".join(f"{k} {v}" for k, v in d.items()))
def test_without_an_effect_at_most_one_verdict_in_twenty(design):
    values = crossed(np.random.default_rng(7), **design)
    error = np.sqrt(0.05 * 0.95 / CLAIMS)
    assert false_verdicts(values) <= 0.05 + 2 * error


@pytest.mark.parametrize("design", DESIGNS[:3], ids=lambda d: f"{d['seeds']} seeds, {d['units']} units")
def test_over_seeds_alone_the_same_design_gives_far_more(design):
    """The broken twin: an interval that forgets the units which all seeds share."""
    values = crossed(np.random.default_rng(7), **design)
    assert false_verdicts(values, with_units=False) > 0.15 > 3 * false_verdicts(values)


def test_units_that_do_not_matter_leave_the_interval_over_seeds_almost_as_it_is():
    values = crossed(np.random.default_rng(1), seeds=8, units=400, by_seed=1.0, by_unit=0.0, both=1.0)
    means = values.mean(-1)
    _, low, high = mean_interval(means)
    _, wider_low, wider_high = mean_interval(means, unit_variance=variance_by_units(values), units=400)
    widening = (wider_high - wider_low) / (high - low)
    assert (widening >= 1).all() and np.median(widening) < 1.01


def test_the_interval_is_the_hypotenuse_of_its_two_parts():
    values = np.array([1.0, 2.0, 4.0])
    _, low, high = mean_interval(values, 0.95)
    mean, crossed_low, crossed_high = mean_interval(values, 0.95, unit_variance=0.25, units=11)
    by_units = 2.228138851964939 * 0.5  # Student t of 10 degrees of freedom, 97.5 %
    assert crossed_high - mean == pytest.approx(np.hypot((high - low) / 2, by_units))
    assert mean - crossed_low == pytest.approx(crossed_high - mean)


def test_the_units_part_is_that_of_the_analysis_of_variance():
    """Two seeds, three units, by hand: unit means 1, 3, 8; rests ±1, 0, ∓1."""
    values = np.array([[2.0, 3.0, 7.0], [0.0, 3.0, 9.0]])
    between = 2 * ((1 - 4) ** 2 + (3 - 4) ** 2 + (8 - 4) ** 2) / 2  # mean square of units
    rests = 2 * (1**2 + 0**2 + 1**2) / 2  # mean square of rests, (2 − 1)(3 − 1) degrees of freedom
    assert unit_covariance(values[None]) == pytest.approx((between - rests) / 6)


def test_the_covariance_of_arms_gives_the_variance_of_their_difference():
    random = np.random.default_rng(0)
    arms = random.standard_normal((3, 5, 40)) + random.standard_normal((3, 1, 40))
    spread = UnitSpread.of({"a": arms[0], "b": arms[1], "c": arms[2]}, "user")
    direct = unit_covariance((arms[0] - arms[2])[None])[0, 0]
    assert spread.variance({"a": 1, "c": -1}) == pytest.approx(max(0.0, direct))
    assert spread.variance({"a": 2, "b": -1, "c": -1}) == pytest.approx(
        max(0.0, unit_covariance((2 * arms[0] - arms[1] - arms[2])[None])[0, 0])
    )
    assert spread.count == 40 and spread.unit == "user"


def test_what_all_arms_share_cancels_in_their_difference():
    """Easy and hard users are the same for both arms: only how the arms differ on them counts."""
    random = np.random.default_rng(0)
    hard = random.standard_normal((1, 1, 500))
    arms = 0.01 * random.standard_normal((2, 4, 500)) + hard
    spread = UnitSpread.of({"a": arms[0], "b": arms[1]}, "user")
    assert spread.variance({"a": 1.0}) > 1e-3 > 1e-6 > spread.variance({"a": 1.0, "b": -1.0})


def test_the_estimate_is_unbiased():
    values = crossed(np.random.default_rng(3), seeds=4, units=30, by_seed=0.5, by_unit=1.0, both=2.0)
    found = np.array([unit_covariance(claim[None])[0, 0] for claim in values])
    assert found.mean() == pytest.approx(1.0**2 / 30, abs=3 * found.std() / np.sqrt(CLAIMS))


def test_with_one_replicate_the_rest_counts_as_unit():
    values = np.random.default_rng(0).standard_normal((1, 1, 20))
    assert unit_covariance(values)[0, 0] == pytest.approx(values.var(ddof=1) / 20)


def test_the_smallest_effect_is_found_four_times_in_five():
    design = {"seeds": 6, "units": 60, "by_seed": 0.2, "by_unit": 1.0, "both": 0.5}
    true_variance = design["by_unit"] ** 2 / 60
    seeds = np.random.default_rng(5).standard_normal((CLAIMS, 6))
    over_seeds = np.sqrt(0.2**2 + 0.5**2 / 60)
    smallest = np.hypot(
        np.median(smallest_effect(over_seeds * seeds)),
        smallest_effect(np.zeros(6), unit_variance=true_variance, units=60),
    )
    values = crossed(np.random.default_rng(6), **design) + smallest
    shared = {"unit_variance": variance_by_units(values)[:, None], "units": 60}
    assert (decide(values.mean(-1)[:, None, :], **shared) == 1).mean() == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, r"got a \(2, 3\), b \(2, 4\)"),
        ({"a": np.zeros(3)}, r"expected results \(replicates, users\) of one shape for every arm"),
        ({"a": np.zeros((2, 1))}, r"expected \(arms, replicates, units >= 2\), got \(1, 2, 1\)"),
    ],
)
def test_other_shapes_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        UnitSpread.of(values, "user")


def test_an_arm_without_results_is_named():
    spread = UnitSpread.of({"a": np.zeros((2, 3))}, "user")
    with pytest.raises(ValueError, match="no results per user of b"):
        spread.variance({"a": 1, "b": -1})
