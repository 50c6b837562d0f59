"""The rule's error rates, on the code that judges: false verdicts, power, and broken twins that must fail."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lib.ledger.intervals import (
    LEVEL,
    adjusted_level,
    decide,
    decide_parts,
    mean_interval,
    replicated,
    smallest_effect,
)

ROOT = Path(__file__).resolve().parents[3]
CLAIMS = 10_000


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


simulation = load(ROOT / "book" / "verdict_simulation.py")


def false_rate(judge, setting, seeds, rng_seed=1):
    rng = np.random.default_rng((rng_seed, seeds))
    return float((judge(simulation.no_effect(setting, rng, CLAIMS, seeds)) != 0).mean())


@pytest.mark.parametrize("seeds", range(3, 11))
@pytest.mark.parametrize("setting", simulation.SETTINGS)
def test_at_most_one_claim_in_twenty_without_effect_gets_a_verdict(setting, seeds):
    assert false_rate(decide, setting, seeds) <= 0.05


def test_a_seed_effect_common_to_both_arms_changes_nothing():
    rng = np.random.default_rng(2)
    common = 100 * rng.standard_cauchy((CLAIMS, 1, 3))
    margins = (rng.normal(size=common.shape) + common) - (rng.normal(size=common.shape) + common)
    assert 0.03 < (decide(margins) != 0).mean() <= 0.05


def normal_quantile(margins):
    """Broken twin: 1.96 standard errors whatever the number of seeds."""
    error = margins.std(-1, ddof=1) / np.sqrt(margins.shape[-1])
    sure = np.abs(margins.mean(-1)) > 1.96 * error
    return np.where(sure, np.sign(margins.mean(-1)), 0)[..., 0]


def without_bonferroni(margins):
    """Broken twin: one part of many contradicts at its own level."""
    _, low, high = mean_interval(margins)
    return np.where((low > 0).all(-1), 1, np.where((high < 0).any(-1), -1, 0))


def population_spread(margins):
    """Broken twin: standard deviation divided by n."""
    count = margins.shape[-1]
    mean = margins.mean(-1)
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * margins.std(-1) / np.sqrt(count)
    return np.where(np.abs(mean) > half, np.sign(mean), 0)[..., 0]


@pytest.mark.parametrize(
    ("twin", "setting"),
    [
        (normal_quantile, "normal"),
        (population_spread, "normal"),
        (without_bonferroni, "16 parts"),
        (without_bonferroni, "16 parts, independent"),
    ],
)
def test_broken_twins_give_more_false_verdicts(twin, setting):
    assert false_rate(twin, setting, 3) > 0.05


def test_a_false_holds_is_rare_when_some_parts_are_true():
    """Parts 1 to 15 are true by far, the last is not: the claim is wrong."""
    rng = np.random.default_rng(3)
    margins = rng.normal(size=(CLAIMS, 16, 5))
    margins[:, :-1] += 100
    verdicts = decide(margins)
    assert (verdicts > 0).mean() == pytest.approx((1 - LEVEL) / 2, abs=0.006)
    assert (verdicts != 0).mean() <= 0.05


def test_power_grows_with_seeds_and_with_the_effect():
    seen = simulation.power(4_000)
    by_seeds = seen.pivot_table("holds", index="effect", columns="seeds")
    assert (by_seeds.loc[1.0].diff().dropna() > 0).all()
    assert (by_seeds.diff().dropna() >= -0.01).all().all()
    assert by_seeds.loc[2.0, 5] > 0.8
    assert by_seeds.loc[6.0, 3] > 0.95
    assert (seen.loc[seen["effect"] >= 1, "contradicted"] < 0.005).all()


@pytest.mark.parametrize("seeds", [3, 4, 7, 10])
def test_power_is_what_the_noncentral_t_distribution_gives(seeds):
    rng = np.random.default_rng((4, seeds))
    rate = (decide(1.5 + rng.normal(size=(CLAIMS, 1, seeds))) > 0).mean()
    quantile = stats.t.ppf((1 + LEVEL) / 2, seeds - 1)
    assert rate == pytest.approx(stats.nct.sf(quantile, seeds - 1, 1.5 * np.sqrt(seeds)), abs=0.02)


@given(st.integers(2, 12), st.integers(0, 10_000), st.sampled_from([0.5, 0.9, 0.95, 0.96, 0.999]))
def test_interval_agrees_with_scipy(seeds, seed, level):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, seeds))
    _, low, high = mean_interval(first - second, level)
    expected = stats.ttest_rel(first, second).confidence_interval(level)
    assert low == pytest.approx(expected.low, rel=1e-9, abs=1e-12)
    assert high == pytest.approx(expected.high, rel=1e-9, abs=1e-12)


def test_the_decision_is_scipys_p_value():
    margins = np.random.default_rng(5).normal(0.7, size=(2_000, 1, 5))
    p = stats.ttest_1samp(margins[:, 0], 0, axis=-1).pvalue
    assert np.array_equal(decide(margins) != 0, p < 1 - LEVEL)


def test_one_claim_or_many_is_the_same():
    margins = np.random.default_rng(6).normal(0.8, size=(50, 3, 4))
    assert np.array_equal(decide(margins), [decide(one) for one in margins])
    assert np.array_equal(decide_parts(margins)[7], decide_parts(margins[7]))


@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_scale_and_sign(seed, factor):
    margins = np.random.default_rng(seed).normal(1, size=(1, 5))
    assert decide(factor * margins) == decide(margins) == -decide(-margins)


def test_a_single_part_is_not_adjusted():
    assert adjusted_level(1) == pytest.approx(LEVEL)
    assert adjusted_level(16) == pytest.approx(1 - 0.04 / 16)


def test_few_seeds_and_copies_decide_nothing():
    assert decide(np.array([[5.0]])) == 0
    assert decide(np.array([[5.0, 5.1]])) == 0
    assert decide(np.array([[5.0, 5.0, 5.0]])) == 0
    # 0.2 - 0.1 and 0.3 - 0.2 differ in the last bit, which is not a spread
    copies = np.array([[0.2 - 0.1, 0.3 - 0.2, 0.4 - 0.3]])
    assert np.ptp(copies) > 0
    assert decide(copies) == 0
    assert not replicated(copies)
    assert decide(np.array([[5.0, 5.1, 4.9]])) == 1
    assert decide(np.array([[-5.0, -5.1, -4.9]])) == -1


def test_resolution_is_the_rounding_of_large_numbers():
    large = np.array([1e6, 2e6, 3e6])
    margins = ((large + 0.1) - large)[None]
    assert decide(margins) == 1, "rounding looks like a spread"
    assert decide(margins, resolution=8 * np.finfo(float).eps * large.max()) == 0


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([1.0], 0.95, "at least 2 replicates, got 1"),
        ([1.0, 2.0], 1.0, "level must be in"),
        ([1.0, 2.0], 0, "level"),
    ],
)
def test_intervals_that_cannot_be_given(values, level, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(np.array(values), level)


def test_the_page_says_the_level_and_the_quantiles_that_the_code_uses():
    page = (ROOT / "book" / "verdicts.md").read_text(encoding="utf-8")
    for seeds in (3, 5):
        assert f"{stats.t.ppf((1 + LEVEL) / 2, seeds - 1):.2f}" in page
    assert f"{100 * LEVEL:.0f} % confidence" in page


def test_the_simulation_writes_what_the_page_includes(tmp_path):
    simulation.write(tmp_path, claims=200)
    page = (ROOT / "book" / "verdicts.md").read_text(encoding="utf-8")
    included = set(re.findall(r"_generated/([\w.]+)", page))
    assert included
    assert included <= {path.name for path in tmp_path.iterdir()}
    assert "nan" not in (tmp_path / "verdict_simulation.md").read_text()


@pytest.mark.parametrize("replicates", [3, 4, 8, 30])
def test_the_smallest_effect_is_found_four_times_in_five(replicates):
    """By simulation: margins with that true effect hold in 80 % of ten thousand claims, not in 70 or 90."""
    rng = np.random.default_rng(replicates)
    one = rng.normal(size=replicates)
    one = (one - one.mean()) / one.std(ddof=1)  # a spread of exactly 1
    effect = smallest_effect(one)
    assert effect == pytest.approx(smallest_effect(3 * one + 7) / 3)
    found = decide(rng.normal(effect, 1, size=(40_000, 1, replicates))) == 1
    assert found.mean() == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / 40_000))


def test_the_smallest_effect_needs_a_spread():
    with pytest.raises(ValueError, match="a spread needs at least 2 replicates, got 1"):
        smallest_effect(np.array([1.0]))
    assert smallest_effect(np.ones(3)) == 0


def test_the_pages_crossed_designs_give_false_verdicts_as_promised_and_the_twin_does_not():
    rates = simulation.crossed(1500)
    error = np.sqrt(0.05 * 0.95 / 1500)
    assert (rates["over_seeds_and_units"] <= 0.05 + 2 * error).all()
    where_units_matter = rates[~rates["case"].str.startswith("seeds matter")]
    assert (where_units_matter["over_seeds_alone"] > where_units_matter["over_seeds_and_units"] + error).all()
    assert (where_units_matter["over_seeds_alone"] > 0.06).all()
