"""Memory traffic of a skip connection, counted by hand."""

import pytest

from lib.cost.skip_connections import skip_traffic


def test_traffic_of_a_skip_connection():
    assert [skip_traffic(2), skip_traffic(2, 8), skip_traffic(2, 8, store_both=False)] == [6, 20, 24]
    with pytest.raises(ValueError, match="bits must be positive, got 2 and 0"):
        skip_traffic(2, 0)
