"""MovieLens loaders: the real 100K, the other two on files in their real format."""

import gzip
import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from lib.data.dataset import DataUnavailable
from lib.data.interactions import InteractionLog
from lib.data.movielens import ML_1M, ML_20M, ML_100K, read_atomic, read_csv, read_dat

RATINGS_DAT = "1::1193::5::978300760\n1::661::3::978302109\n2::1357::5::978298709\n"
RATINGS_CSV = (
    "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484676\n7,32,0.5,1112484819\n"
)


def real():
    try:
        return ML_100K.load("data")
    except DataUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def log():
    return InteractionLog.from_frame(real())


def test_ml_100k_counts(log):
    frame = real()
    assert list(frame.columns) == ["user", "item", "rating", "timestamp"]
    assert len(frame) == 100_000 and frame["user"].nunique() == 943 and frame["item"].nunique() == 1682
    assert (log.num_users, log.num_items, log.num_events, log.num_days) == (943, 1349, 99_287, 215)
    assert log.user_counts.min() == 19


def test_ml_100k_ties(log):
    """Rating sessions: half of the gaps are zero, and the order of the file decides 416 test targets."""
    gaps = log.gaps
    assert len(gaps) == 98_344
    edges = np.array([0, 1, 61, 3601, 86_401, gaps.max() + 1])
    assert np.round(100 * np.histogram(gaps, edges)[0] / len(gaps), 1).tolist() == [
        50.9,
        35.0,
        12.4,
        0.4,
        1.4,
    ]
    assert log.target_tied.sum() == 416


def test_stable_order_decides_the_target(log):
    """A broken twin, sorting ties the other way round, gives tied users another test item."""
    frame = real()
    twin = InteractionLog.from_frame(frame.iloc[::-1])
    last = log.offsets[2:] - 1
    differs = log.item[last] != twin.item[last]
    assert differs.sum() > 300
    assert not (differs & ~log.target_tied).any()


def test_data_set_says_what_it_is():
    for source in (ML_100K, ML_1M, ML_20M):
        assert "GroupLens" in source.licence and "Harper" in source.citation and not source.synthetic


def zipped(data_set, tmp_path, member, content):
    """The data set with an archive of ours in its real layout, as if put there by hand."""
    archive = data_set.sources[0].archive
    with zipfile.ZipFile(tmp_path / archive.name, "w") as packed:
        packed.writestr(member.split("/")[0] + "/README", "terms of use")
        packed.writestr(member, content)
    md5 = hashlib.md5((tmp_path / archive.name).read_bytes()).hexdigest()
    return replace(
        data_set, sources=(replace(data_set.sources[0], archive=replace(archive, known_hash=f"md5:{md5}")),)
    )


def test_ml_1m_layout(tmp_path):
    source = zipped(ML_1M, tmp_path, "ml-1m/ratings.dat", RATINGS_DAT)
    assert source.files(tmp_path) == [tmp_path / "ml-1m" / "ratings.dat"]
    frame = source.load(tmp_path)
    assert frame.to_numpy().tolist() == [
        [1, 1193, 5, 978300760],
        [1, 661, 3, 978302109],
        [2, 1357, 5, 978298709],
    ]
    assert frame.dtypes.astype(str).tolist() == ["int64", "int64", "float64", "int64"]
    assert list(frame.columns) == ["user", "item", "rating", "timestamp"]


def test_ml_20m_layout(tmp_path):
    source = zipped(ML_20M, tmp_path, "ml-20m/ratings.csv", RATINGS_CSV)
    frame = source.load(tmp_path)
    assert frame.to_numpy().tolist() == [
        [1, 2, 3.5, 1112486027],
        [1, 29, 3.5, 1112484676],
        [7, 32, 0.5, 1112484819],
    ]
    assert list(frame.columns) == ["user", "item", "rating", "timestamp"]


def test_archive_put_there_by_hand_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.data.download._resume", offline)
    (tmp_path / "ml-1m.zip").write_bytes(b"half an archive")
    with pytest.raises(DataUnavailable) as caught:
        ML_1M.load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "is not the expected one",
        "about 6 MB",
        "GroupLens",
        "/ml-1m.zip.md5",
        str(tmp_path / "ml-1m.zip"),
    ):
        assert part in message


def offline(*args):
    raise ConnectionError("no network in this test")


@pytest.mark.parametrize(
    ("read", "content"),
    [(read_dat, RATINGS_DAT[:-20]), (read_csv, RATINGS_CSV[:-12]), (read_dat, ""), (read_csv, "")],
)
def test_truncated_table(tmp_path, read, content):
    (tmp_path / "ratings").write_text(content)
    with pytest.raises(DataUnavailable, match="not in the expected format|is empty"):
        read(tmp_path / "ratings")


ATOMIC = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"


@pytest.mark.parametrize(
    ("read", "content"), [(read_dat, RATINGS_DAT), (read_csv, RATINGS_CSV), (read_atomic, ATOMIC)]
)
def test_other_editors_and_systems_change_nothing(tmp_path, read, content):
    (tmp_path / "plain").write_text(content)
    plain = read(tmp_path / "plain")
    for saved in (
        content.encode("utf-8-sig"),
        content.encode("utf-16"),
        content.replace("\n", "\r\n").encode(),
        content.replace("\n", " \r").encode(),
        content.rstrip().encode(),
        gzip.compress(content.encode()),
    ):
        (tmp_path / "saved").write_bytes(saved)
        assert read(tmp_path / "saved").equals(plain)


def test_columns_go_by_their_names(tmp_path):
    """Tables that others have written on: in another order, with more columns, with pandas' row numbers."""
    path = tmp_path / "ratings.csv"
    path.write_text(RATINGS_CSV)
    plain = read_csv(path)
    path.write_text(
        ",movieId,userId,tag,rating,timestamp\n0,2,1,a,3.5,1112486027\n1,29,1,,3.5,1112484676\n2,32,7,c,0.5,1112484819\n"
    )
    assert read_csv(path).equals(plain)


WRONG = {
    "no header": (read_csv, RATINGS_CSV[RATINGS_CSV.index("1,") :], "line 1: no column userId in '1, 2, 3.5"),
    "another's header": (read_csv, "a,b,c,d\n1,2,3.5,1\n", "line 1: no column userId in 'a, b, c, d'"),
    "MovieLens-100K's own file": (read_atomic, "196\t242\t3\t881250949\n", "line 1: no column user_id:token"),
    "no rating": (read_csv, RATINGS_CSV + "1,2,,5\n", "line 5: rating is missing"),
    "a field more": (read_csv, RATINGS_CSV + "1,2,3,4,5\n", "Expected 4 fields in line 5, saw 5"),
    "a header where none is": (read_dat, "u::i::r::t\n" + RATINGS_DAT, "line 1: user is 'u'"),
    "no item": (read_dat, RATINGS_DAT + "1::::3::5\n", "line 4: item is missing"),
    "two lines in one": (read_dat, RATINGS_DAT + "1::2::3::9783::4::5::6\n", "Expected 7 fields in line 4"),
    "one colon": (read_dat, "1:0:1193:0:5:0:978300760\n", "two colons"),
    "commas": (read_dat, RATINGS_DAT.replace("::", ","), "line 1: user is '1,1193,5,978300760'"),
}  # fmt: skip


@pytest.mark.parametrize(("read", "content", "reason"), WRONG.values(), ids=WRONG.keys())
def test_another_file_is_refused_with_the_line(tmp_path, read, content, reason):
    (tmp_path / "ratings").write_text(content)
    with pytest.raises(DataUnavailable, match=reason) as caught:
        read(tmp_path / "ratings")
    assert str(caught.value).isprintable()


def test_an_unpacked_file_is_enough(tmp_path):
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").write_text(RATINGS_DAT)
    assert len(ML_1M.load(tmp_path)) == 3
