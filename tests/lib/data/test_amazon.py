"""The Amazon loaders on a file in the real format."""

import hashlib

import pytest

from lib.data.amazon import BEAUTY, VIDEO_GAMES
from lib.data.dataset import DataUnavailable
from lib.data.interactions import InteractionLog

RATINGS = """\
A39HTATAQ9V7YF,0205616461,5.0,1369699200
NA,0558925278,3.0,1355443200
A1Z513UWSAAO0F,0205616461,5.0,1404691200
"""


@pytest.mark.parametrize(
    ("source", "file"), [(BEAUTY, "ratings_Beauty.csv"), (VIDEO_GAMES, "ratings_Video_Games.csv")]
)
def test_layout(tmp_path, source, file):
    (tmp_path / file).write_text(RATINGS)
    frame = source.load(tmp_path)
    assert frame.to_numpy().tolist() == [
        ["A39HTATAQ9V7YF", "0205616461", 5.0, 1369699200],  # an ISBN keeps its zero
        ["NA", "0558925278", 3.0, 1355443200],  # "NA" is an id like any other
        ["A1Z513UWSAAO0F", "0205616461", 5.0, 1404691200],
    ]
    assert (tmp_path / f"{file}.sha256").read_text().startswith(hashlib.sha256(RATINGS.encode()).hexdigest())
    log = InteractionLog.from_frame(frame, min_item_count=1, min_user_count=1)
    assert log.user_ids.tolist() == ["A1Z513UWSAAO0F", "A39HTATAQ9V7YF", "NA"]
    assert (log.timestamp % 86_400 == 0).all()


def test_later_change_is_noticed(tmp_path, monkeypatch):
    def offline(*args):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr("lib.data.download._resume", offline)
    (tmp_path / "ratings_Beauty.csv").write_text(RATINGS)
    BEAUTY.load(tmp_path)
    (tmp_path / "ratings_Beauty.csv").write_text(RATINGS[:-30])
    with pytest.raises(DataUnavailable, match=r"ratings_Beauty.csv.sha256.*snap.stanford.edu"):
        BEAUTY.load(tmp_path)
