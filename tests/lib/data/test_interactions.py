"""Interaction logs: filter, numbering, order and calendar, against loops over small tables."""

import os
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data.interactions import InteractionLog

DAY = 86_400


def frame(rows):
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])


def keep_all(rows):
    return InteractionLog.from_frame(frame(rows), min_item_count=1, min_user_count=1)


def test_filter_is_one_pass_items_first():
    """Dropping user 4 for want of events leaves item "b" below its minimum, and it stays."""
    rows = [(user, item, 5, 0) for user in (1, 2, 3) for item in ("a", "c")] + [
        (1, "b", 5, 0),
        (4, "b", 5, 0),
    ]
    rows += [(4, "rare", 5, 0)]
    log = InteractionLog.from_frame(frame(rows), min_item_count=2, min_user_count=2)
    assert log.user_ids.tolist() == [1, 2, 3]
    assert log.item_ids.tolist() == ["a", "b", "c"]
    assert log.item_counts.tolist() == [0, 3, 1, 3]


def test_users_are_counted_after_the_items_are_gone():
    rows = [(1, "a", 5, 0), (1, "b", 5, 0), (2, "a", 5, 0), (2, "once", 5, 0), (3, "b", 5, 0), (3, "a", 5, 0)]
    log = InteractionLog.from_frame(frame(rows), min_item_count=2, min_user_count=2)
    assert log.user_ids.tolist() == [1, 3]


def test_ratings_below_the_minimum_do_not_count():
    rows = [(1, "a", 5, 0), (1, "b", 2, 1), (1, "c", 3, 2)]
    log = InteractionLog.from_frame(frame(rows), min_rating=3, min_item_count=1, min_user_count=1)
    assert log.item_ids.tolist() == ["a", "c"]


def test_ties_keep_the_order_of_the_file():
    """A hundred events in the same second: an unstable sort, or one by item, moves some."""
    items = np.random.default_rng(0).permutation(100)
    log = keep_all([(7, int(item), 5, 1000) for item in items])
    assert (log.item_ids[log.item - 1] == items).all()
    assert log.target_tied.tolist() == [True]


def test_days_are_utc_whatever_the_machine_says():
    rows = [(1, 1, 5, 10 * DAY - 1), (1, 2, 5, 10 * DAY), (1, 3, 5, 12 * DAY + 5)]
    zone = os.environ.get("TZ")
    try:
        for name in ("UTC", "Asia/Seoul", "America/New_York"):
            os.environ["TZ"] = name
            time.tzset()
            log = keep_all(rows)
            assert log.day.tolist() == [0, 1, 3] and log.num_days == 4
    finally:
        os.environ.pop("TZ") if zone is None else os.environ.update(TZ=zone)
        time.tzset()


def test_first_day_is_that_of_the_filtered_data():
    rows = [(1, "rare", 5, 0), (1, "a", 5, 100 * DAY), (1, "a", 5, 101 * DAY)]
    log = InteractionLog.from_frame(frame(rows), min_item_count=2, min_user_count=1)
    assert log.day.tolist() == [0, 1]


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from("abcdefgh"), st.integers(1, 5), st.integers(0, 5 * DAY)),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_against_a_loop(rows, min_item, min_user):
    kept = [row for row in rows if sum(other[1] == row[1] for other in rows) >= min_item]
    kept = [row for row in kept if sum(other[0] == row[0] for other in kept) >= min_user]
    if not kept:
        with pytest.raises(ValueError, match="no event left"):
            InteractionLog.from_frame(frame(rows), min_item_count=min_item, min_user_count=min_user)
        return
    log = InteractionLog.from_frame(frame(rows), min_item_count=min_item, min_user_count=min_user)
    users, items = sorted({row[0] for row in kept}), sorted({row[1] for row in kept})
    assert log.user_ids.tolist() == users and log.item_ids.tolist() == items
    first_day = min(row[3] for row in kept) // DAY
    for user in users:
        events = sorted((row for row in kept if row[0] == user), key=lambda row: row[3])
        where = log.events(users.index(user) + 1)
        assert log.item[where].tolist() == [items.index(row[1]) + 1 for row in events]
        assert log.timestamp[where].tolist() == [row[3] for row in events]
        assert log.day[where].tolist() == [row[3] // DAY - first_day for row in events]
        assert (log.user[where] == users.index(user) + 1).all()
    assert log.item_counts.tolist() == [0, *(sum(row[1] == item for row in kept) for item in items)]
    assert log.user_counts.sum() == log.num_events == len(kept)
    assert len(log.gaps) == log.num_events - log.num_users and (log.gaps >= 0).all()


def test_arrays_cannot_be_changed_by_accident():
    log = keep_all([(1, 1, 5, 0)])
    assert repr(log) == "InteractionLog(1 users, 1 items, 1 events, 1 days)"
    assert log.target_tied.tolist() == [False]
    with pytest.raises(ValueError, match="read-only"):
        log.item[0] = 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "log is empty"),
        ([(1, 1, 5, 0)], "no event left of 1"),
        ([(1, None, 5, 0)] * 5, "missing ids"),
        ([(1, 1, 5, -3)] * 5, "whole Unix seconds"),
        ([(1, 1, 5, 0.5)] * 5, "whole Unix seconds"),
        ([(1, 1, 5, float("nan"))] * 5, "whole Unix seconds"),
        ([(1, 1, 5, "yesterday")] * 5, "whole Unix seconds"),
        ([(1, 1, 5, 0)] * 2 + [(1, "", 5, 0)], "in row 2"),
        ([("a", 1, 5, 0)] * 2 + [(" ", 1, 5, 0)], "no missing ids, got user ' ' in row 2"),
        ([(1, 1, 5, 0)] * 2 + [(float("nan"), 1, 5, 0)], "no missing ids, got user 'nan' in row 2"),
        ([(1, 1, 5, 0)] * 2 + [("1", 1, 5, 0)], "all integers or all strings, got user '1' in row 2"),
        ([(True, 1, 5, 0)], "all integers or all strings, got user 'True' in row 0"),
        ([(1, 1, 5, 0)] * 2 + [(1, 1, float("nan"), 0)], "a finite number, got rating 'nan' in row 2"),
        ([(1, 1, 5, 0)] * 2 + [(1, 1, None, 0)], "a finite number, got rating 'nan' in row 2"),
        ([(1, 1, float("nan"), 0)] * 5, "a finite number, got rating 'nan' in row 0"),
        ([(1, 1, 5, 0), (1, 1, float("inf"), 0)], "a finite number, got rating 'inf' in row 1"),
        ([(1, 1, 5, 0), (1, 1, "5", 0)], "a finite number, got rating '5' in row 1"),
        ([(1, 1, 5, 0), (1, 1, 5, None)], "whole Unix seconds .* got timestamp 'nan' in row 1"),
        ([(1, 1, 5, 0), (1, 1, 5, 1_369_699_200_000)], "not in milliseconds.* '1369699200000' in row 1"),
        ([(1, 1, 5, pd.Timestamp("2013-05-28"))], "whole Unix seconds .* got timestamp '2013-05-28"),
    ],
)
def test_bad_tables(rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        InteractionLog.from_frame(frame(rows))
    assert "\n" not in str(caught.value)


def test_missing_column_and_unknown_user():
    with pytest.raises(ValueError, match="missing: timestamp"):
        InteractionLog.from_frame(frame([(1, 1, 5, 0)]).drop(columns="timestamp"))
    for user in (0, 2):
        with pytest.raises(ValueError, match=r"user must be in 1..1"):
            keep_all([(1, 1, 5, 0)]).events(user)


def test_too_few_events_names_the_user():
    log = keep_all([("long", item, 5, item) for item in range(5)] + [("short", 1, 5, 0)])
    with pytest.raises(ValueError, match=r"needs at least 3 events per user, but user 2 \(id short\) has 1"):
        log.require_events(3, "leave-one-out")


# --- other time stamps ---


def two_users() -> InteractionLog:
    frame = pd.DataFrame(
        {
            "user": [1] * 5 + [2] * 5,
            "item": list(range(5)) * 2,
            "rating": 5.0,
            "timestamp": [86_400 * day for day in (0, 1, 5, 9, 20, 3, 3, 4, 8, 30)],
        }
    )
    return InteractionLog.from_frame(frame, min_item_count=1)


def test_shuffled_stamps_stay_with_their_user_and_leave_the_order_of_events():
    log = two_users()
    shuffled = log.with_shuffled_stamps(0)
    for user in (1, 2):
        own = log.events(user)
        assert sorted(shuffled.timestamp[own]) == log.timestamp[own].tolist()
        assert shuffled.item[own].tolist() == log.item[own].tolist()
    assert (shuffled.timestamp != log.timestamp).any()
    assert (shuffled.timestamp == log.with_shuffled_stamps(0).timestamp).all()
    assert (shuffled.timestamp != log.with_shuffled_stamps(1).timestamp).any()
    assert (shuffled.day == shuffled.timestamp // 86_400).all()
    assert not shuffled.timestamp.flags.writeable and log.timestamp[4] == 20 * 86_400


def test_ranks_start_anew_with_each_user():
    ranks = two_users().with_ranks_for_stamps()
    assert ranks.timestamp.tolist() == [0, 1, 2, 3, 4] * 2 and ranks.num_days == 1


@pytest.mark.parametrize(
    ("stamps", "message"),
    [([1, 2], r"expected 10 time stamps, got an array \(2,\)"), ([-1] * 10, "whole Unix seconds")],
)
def test_stamps_that_do_not_fit_are_refused(stamps, message):
    with pytest.raises(ValueError, match=message):
        two_users().restamped(stamps)
