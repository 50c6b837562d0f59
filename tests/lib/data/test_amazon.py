"""The Amazon loaders on a file in the real format."""

import gzip
import hashlib

import pandas as pd
import pytest

from lib.data.amazon import BEAUTY, VIDEO_GAMES, read_ratings
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


QUOTED = "".join('"' + line.replace(",", '","') + '"\n' for line in RATINGS.splitlines())
SAVED = {
    "UTF-8 with its mark": RATINGS.encode("utf-8-sig"),
    "UTF-16": RATINGS.encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + RATINGS.encode("utf-16-be"),
    "line ends of Windows": RATINGS.replace("\n", "\r\n").encode(),
    "line ends of old Macs": RATINGS.replace("\n", "\r").encode(),
    "no end of the last line": RATINGS.rstrip().encode(),
    "blank lines": ("\n" + RATINGS + "  \n\n").encode(),
    "blanks around fields": RATINGS.replace(",", " , ").replace("\n", "\t \n").encode(),
    "quotes": QUOTED.encode(),
    "gzip": gzip.compress(RATINGS.encode()),
    "an empty column at the end": RATINGS.replace("\n", ",\n").encode(),
}


@pytest.mark.parametrize("content", SAVED.values(), ids=SAVED.keys())
def test_other_editors_and_systems_change_nothing(tmp_path, content):
    (tmp_path / "plain").write_text(RATINGS)
    (tmp_path / "saved").write_bytes(content)
    assert read_ratings(tmp_path / "saved").equals(read_ratings(tmp_path / "plain"))


WRONG = {
    "a header": ("user,item,rating,timestamp\n" + RATINGS, "line 1: rating is 'rating'"),
    "the edition of 2018": ("B00005N7P0,A39HTATAQ9V7YF,5.0,1369699200\n", "as in the edition of 2018"),
    "no user": (RATINGS + "\n,B1,5.0,1369699200\n", "line 5: user is missing"),
    "a blank user": (RATINGS + "  ,B1,5.0,1369699200\n", "line 4: user is missing"),
    "no item": (RATINGS + 'A1,"",5.0,1369699200\n', "line 4: item is missing"),
    "no rating": (RATINGS + "A1,B1,,1369699200\n", "line 4: rating is missing"),
    "NaN": (RATINGS + "A1,B1,nan,1369699200\n", "line 4: rating is 'nan'"),
    "infinity": (RATINGS + "A1,B1,inf,1369699200\n", "line 4: rating is 'inf'"),
    "a word": (RATINGS + "A1,B1,good,1369699200\n", "line 4: rating is 'good'"),
    "a decimal comma": (RATINGS + 'A1,B1,"4,5",1369699200\n', "line 4: rating is '4,5'"),
    "no time": (RATINGS + "A1,B1,5.0,\n", "line 4: timestamp is missing"),
    "a date": (RATINGS + "A1,B1,5.0,2013-05-28\n", "line 4: timestamp is '2013-05-28'"),
    "a time beyond all": (RATINGS + "A1,B1,5.0,99999999999999999999\n", "line 4: timestamp is '9999"),
    "a field less": (RATINGS + "A1,B1,5.0\n", "line 4: timestamp is missing"),
    "a field more": (RATINGS + "A1,B1,5.0,1,2\n", "Expected 4 fields in line 4, saw 5"),
    "a field more everywhere": (RATINGS.replace("\n", ",x\n"), "loss of data"),
    "Latin-1": (RATINGS.encode() + "A1,\xe9,5.0,1\n".encode("latin-1"), "can't decode byte 0xe9"),
    "gzip, cut": (gzip.compress(RATINGS.encode())[:-9], "ended before"),
    "a web page": ("<html>Please log in</html>", "line 1: item is missing"),
    "nothing": ("", "it is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), WRONG.values(), ids=WRONG.keys())
def test_another_file_is_refused_with_the_line(tmp_path, content, reason):
    path = tmp_path / "ratings.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataUnavailable, match=reason) as caught:
        read_ratings(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_a_download_that_ended_early_has_too_few_ratings(tmp_path, monkeypatch):
    """A cut at the end of a line is a table like any other."""
    (tmp_path / "ratings_Beauty.csv").write_text(RATINGS)
    for (source,) in (BEAUTY.sources, VIDEO_GAMES.sources):
        with pytest.raises(DataUnavailable, match="3 ratings, not more than a million"):
            source.check(tmp_path / "ratings_Beauty.csv")
    whole = pd.concat([read_ratings(tmp_path / "ratings_Beauty.csv")] * 400_000)
    monkeypatch.setattr("lib.data.amazon.read_ratings", lambda path: whole)
    BEAUTY.sources[0].check(tmp_path / "ratings_Beauty.csv")
