"""Coverage of the two intervals, against closed forms."""

import numpy as np
import pytest
from scipy.stats import norm, t

from lib.experiments.template import coverage, coverage_by_seed, draw

SAMPLES = 40_000
ERROR = 4 * np.sqrt(0.25 / SAMPLES)  # four standard errors of a share, at most


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("sigma", [1.0, 7.0])
def test_coverage_is_that_of_the_curves(n, sigma):
    found = coverage(draw(0, n, SAMPLES, sigma))
    # The statistic follows Student's curve, whatever multiple an interval takes.
    assert found["Student"] == pytest.approx(0.95, abs=ERROR)
    wanted = 1 - 2 * t.sf(norm.ppf(0.975), df=n - 1)
    assert found["normal"] == pytest.approx(wanted, abs=ERROR)
    assert abs(wanted - 0.95) > ERROR, "or the two could not be told apart"


def test_another_seed_is_another_sample_and_another_size_too():
    one = draw(0, 3, 10, 1.0)
    assert np.array_equal(one, draw(0, 3, 10, 1.0))
    assert not np.isclose(one, draw(1, 3, 10, 1.0)).any()
    assert not np.isclose(one[:, :3], draw(0, 4, 10, 1.0)[:, :3]).any()


def test_a_row_per_arm_and_seed():
    table = coverage_by_seed([4, 2], [3, 5], 1000, 1.0)
    assert list(table.index) == [("Student", 4), ("Student", 2), ("normal", 4), ("normal", 2)]
    assert list(table) == ["coverage at n = 3", "coverage at n = 5"]
    assert table.loc[("normal", 2), "coverage at n = 5"] == coverage(draw(2, 5, 1000, 1.0))["normal"]
