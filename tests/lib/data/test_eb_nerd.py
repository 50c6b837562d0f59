"""EB-NeRD's files in the format of their public description, and what is in damaged ones."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lib.data.dataset import UnexpectedFormat
from lib.data.eb_nerd import first_impression, read_articles, read_impressions, read_vectors
from lib.data.news_context import ContextFeatures
from tests.news_files import LIST, TIME, eb_nerd_tables, write_eb_nerd

NOON = int(datetime(2023, 5, 20, 12, tzinfo=UTC).timestamp())


def write(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def articles_table(**columns):
    table = {
        "article_id": pa.array([300, 100, 200], pa.int32()),
        "title": ["Ærlig: politiet, siger", "Sport i dag", None],
        "subtitle": ["Politiet siger nej", None, "siger"],
        "category_str": ["krimi", "sport", None],
        "subcategory": pa.array([[7, 8], [], None], pa.list_(pa.int16())),
        "published_time": pa.array([(NOON - 7200) * 10**6, None, NOON * 10**6 + 999_999], TIME),
    }
    return pa.table(table | columns)


def behaviors_table(rows):
    user, time, shown, clicked = zip(*rows, strict=True)
    return pa.table(
        {
            "user_id": pa.array(user, pa.uint32()),
            "impression_time": pa.array([t if t is None else int(t * 10**6) for t in time], TIME),
            "article_ids_inview": pa.array(shown, LIST),
            "article_ids_clicked": pa.array(clicked, LIST),
        }
    )


def history_table(rows):
    user, time, read = zip(*rows, strict=True)
    stamps = [times if times is None else [t * 10**6 for t in times] for times in time]
    return pa.table(
        {
            "user_id": pa.array(user, pa.uint32()),
            "impression_time_fixed": pa.array(stamps, pa.list_(TIME)),
            "article_id_fixed": pa.array(read, LIST),
        }
    )


HISTORY = [(5, [NOON - 50, NOON - 90], [100, 200]), (9, [], [])]
BEHAVIORS = [
    (5, NOON + 30.7, [100, 300], [300]),
    (9, NOON + 10, [200, 100, 300], [100, 300]),
    (5, NOON + 10.2, [300], [300]),
]


@pytest.fixture
def articles(tmp_path):
    return read_articles(write(tmp_path / "articles.parquet", articles_table()))[0]


def split(tmp_path, behaviors=BEHAVIORS, history=HISTORY, **options):
    write(tmp_path / "train/history.parquet", history_table(history), **options)
    write(tmp_path / "train/behaviors.parquet", behaviors_table(behaviors), **options)
    return tmp_path / "train"


def test_articles(articles):
    assert articles.ids.tolist() == ["", "300", "100", "200"]
    names, words = ["", *articles.category_names], ["", *articles.words]
    assert [names[i] for i in articles.category] == ["", "krimi", "sport", ""]
    assert [names[i] for i in articles.subcategory] == ["", "krimi/7", "", ""]
    title = [words[i] for i in articles.title[1][:5]]
    assert title == ["ærlig", "politiet", ",", "siger", ""]
    assert not articles.title[3].any() and words[articles.abstract[3][0]] == "siger"
    assert articles.published.tolist() == [-1, NOON - 7200, -1, NOON]


def test_a_vocabulary_of_what_was_published_before(tmp_path):
    path = write(tmp_path / "articles.parquet", articles_table())
    before, _ = read_articles(path, words_until=NOON)
    assert "ærlig" in before.words and "sport" in before.words, "no time of publication counts as before"
    assert set(read_articles(path, min_word_count=3)[0].words) == {"siger"}
    assert read_articles(path, words_until=NOON, min_word_count=3)[0].words == ()


def test_impressions_are_in_the_order_of_time(tmp_path, articles):
    users = {9: 1}
    log, reports = read_impressions(split(tmp_path), articles, users)
    told = [str(report) for report in reports]
    assert told == ["behaviors.parquet: 3 rows, all read", "history.parquet: 2 rows, all read"]
    assert log.time.tolist() == [NOON + 10, NOON + 10, NOON + 30]
    assert users == {9: 1, 5: 2} and log.user.tolist() == [1, 2, 2], "of one second, in the order of the file"
    assert log.articles.ids[log.candidate].tolist() == ["200", "100", "300", "300", "100", "300"]
    assert log.clicked.tolist() == [False, True, True, True, False, True]
    assert log.recent_history(np.arange(3), 3).tolist() == [[-1] * 3, [3, 2, -1], [3, 2, -1]], "oldest first"
    assert ContextFeatures.of(log).age.tolist() == [10, 0, 7210, 7210, 20, 7230], "100 has no time of its own"


def test_histories_hold_what_is_known_and_past(tmp_path, articles):
    times = [NOON - 9, NOON - 8, NOON + 9, NOON + 10, NOON + 20]
    log, _ = read_impressions(
        split(tmp_path, history=[(5, times, [100, 777, 300, 200, 100]), HISTORY[1]]), articles
    )
    assert log.recent_history(np.array([1]), 4).tolist() == [[2, 1, -1, -1]]


@pytest.mark.parametrize(
    "options", [{"row_group_size": 1}, {"compression": "zstd"}, {"use_dictionary": False}]
)
def test_other_ways_to_write_the_same(tmp_path, articles, options):
    plain, _ = read_impressions(split(tmp_path), articles)
    other, _ = read_impressions(split(tmp_path, **options), articles)
    for name in ("time", "user", "candidate", "clicked", "history", "history_begin", "history_end"):
        assert np.array_equal(getattr(plain, name), getattr(other, name))


def test_rows_that_cannot_be_read_are_counted_and_named(tmp_path, articles):
    bad = [
        (5, NOON, None, [100]),
        (5, NOON, [100], None),
        (5, NOON, [100], []),
        (5, NOON, [], [100]),
        (5, NOON, [100, 7], [100]),
        (5, NOON, [100, None], [100]),
        (5, NOON, [100], [100, 300]),
        (5, NOON, [100], [7]),
        (5, None, [100], [100]),
        (None, NOON, [100], [100]),
        (6, NOON, [100], [100]),
        (7, NOON, [100], [100]),
    ]
    history = [*HISTORY, (6, [NOON - 1], None), (7, [NOON - 1], [100, 200]), (5, [NOON - 2], [300])]
    folder = split(tmp_path, [BEHAVIORS[0], *bad, *BEHAVIORS[1:]], history, row_group_size=4)
    log, (behaviors, histories) = read_impressions(folder, articles)
    clean, _ = read_impressions(split(tmp_path / "clean"), articles)
    assert np.array_equal(log.candidate, clean.candidate) and np.array_equal(log.history, clean.history)
    assert (behaviors.lines, behaviors.count) == (15, 12)
    assert str(behaviors) == (
        "behaviors.parquet: 12 of 15 rows skipped (row 1: article_ids_inview is missing; "
        "row 2: article_ids_clicked is missing; row 3: no click; …)"
    )
    assert str(histories) == (
        "history.parquet: 3 of 5 rows skipped (row 2: article_id_fixed is missing; "
        "row 3: article_id_fixed and impression_time_fixed differ in length; row 4: its user is there twice)"
    )
    for row, reason in zip(bad, REASONS, strict=True):
        _, (report, _) = read_impressions(split(tmp_path / "one", [*BEHAVIORS, row], history), articles)
        assert report.first == ((3, reason),)


REASONS = [
    "article_ids_inview is missing",
    "article_ids_clicked is missing",
    "no click",
    "nothing in view",
    "an unknown article in view",
    "an unknown article in view",
    "a click that is not in view",
    "a click that is not in view",
    "impression_time is missing",
    "user_id is missing",
    "its user has no history",
    "its user has no history",
]


def test_wrong_files_are_refused_by_name(tmp_path, articles):
    def refused(message, read=read_impressions, path=None):
        with pytest.raises(UnexpectedFormat, match=message) as caught:
            read(path or tmp_path / "train", *([articles] if read is not read_articles else []))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500

    folder = split(tmp_path)
    behaviors = behaviors_table(BEHAVIORS)
    file = write(folder / "behaviors.parquet", behaviors.drop_columns(["article_ids_clicked"]))
    refused(r"behaviors.parquet is not .* \(no column article_ids_clicked in 'user_id, impression_time")
    write(file, behaviors.set_column(0, "user_id", pa.array(["a", "b", "c"])))
    refused("column user_id has string, not whole numbers")
    write(file, behaviors.set_column(2, "article_ids_inview", pa.array([1, 2, 3])))
    refused("column article_ids_inview has int64, not lists of whole numbers")
    write(file, behaviors.set_column(1, "impression_time", pa.array(["2023-05-20"] * 3)))
    refused("column impression_time has string, not times")
    write(file, behaviors_table([(5, NOON, [100], [])]))
    refused("no impression could be read: behaviors.parquet: 1 of 1 row skipped .row 0: no click")
    write(file, behaviors[:0])
    refused("no impression has a time")
    write(file, behaviors)
    whole = file.read_bytes()
    for content in (whole[:-20], b"PAR1" + b"\0" * 50, b"", b"1\tU1\n"):
        file.write_bytes(content)
        refused("behaviors.parquet is not .* .not Parquet, or a part of a file")
    file.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    refused("cannot be read from row 0")
    file.write_bytes(whole)
    write(folder / "history.parquet", history_table(HISTORY)[:0])
    refused("history.parquet is not .* .it is empty")
    (folder / "history.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="no history.parquet at"):
        read_impressions(folder, articles)
    none = write(tmp_path / "none.parquet", articles_table()[:0])
    refused("no article: none.parquet: 0 rows", read_articles, none)
    twice = articles_table(article_id=pa.array([1, 1, None], pa.int32()))
    few, report = read_articles(write(tmp_path / "twice.parquet", twice))
    assert len(few) == 1 and report.first == ((1, "article 1 is there twice"), (2, "article_id is missing"))


def test_vectors(tmp_path, articles):
    def vectors(ids, lists):
        kind = pa.list_(pa.float32())
        table = pa.table({"article_id": pa.array(ids, pa.int32()), "document_vector": pa.array(lists, kind)})
        return write(tmp_path / "document_vector.parquet", table, row_group_size=2)

    lists = [[1, 2], None, [3, 4], [5, 6, 7], [8, np.nan], [9, 9]]
    table, report = read_vectors(vectors([100, 200, 300, 200, 200, 7], lists), articles)
    assert table.tolist() == [[0, 0], [3, 4], [1, 2], [0, 0]] and table.dtype == np.float32
    odd = ((1, "not 2 numbers"), (3, "not 2 numbers"), (4, "a number that is none"))
    assert report.count == 4 and report.first == odd
    with pytest.raises(UnexpectedFormat, match=r"no vector of a known article: .*row 0: no such article"):
        read_vectors(vectors([1], [[1.0]]), articles)
    with pytest.raises(UnexpectedFormat, match="one column beside article_id is expected, not 5"):
        read_vectors(tmp_path / "articles.parquet", articles)


def test_a_set_of_many_row_groups_against_python(tmp_path):
    write_eb_nerd(tmp_path, rows=7)
    tables = eb_nerd_tables()
    articles, report = read_articles(tmp_path / "ebnerd_small/articles.parquet")
    assert len(articles) == 80 and not report.count
    names = [int(name or 0) for name in articles.ids]
    for split in ("train", "validation"):
        log, reports = read_impressions(tmp_path / "ebnerd_small" / split, articles)
        assert not any(report.count for report in reports)
        rows = tables[f"{split}/behaviors.parquet"].to_pylist()
        rows.sort(key=lambda row: row["impression_time"].replace(microsecond=0))
        history = tables[f"{split}/history.parquet"].to_pylist()
        read = {row["user_id"]: row["article_id_fixed"] for row in history}
        assert len(rows) == len(log)
        for i, row in enumerate(rows):
            part = slice(log.offsets[i], log.offsets[i + 1])
            shown, clicked = row["article_ids_inview"], row["article_ids_clicked"]
            assert [names[one] for one in log.candidate[part]] == shown
            assert log.clicked[part].tolist() == [one in clicked for one in shown]
            past = log.history[log.history_begin[i] : log.history_end[i]]
            assert [names[one] for one in past] == read[row["user_id"]]
            assert log.time[i] == int(row["impression_time"].replace(tzinfo=UTC, microsecond=0).timestamp())
        first = first_impression(tmp_path / "ebnerd_small" / split / "behaviors.parquet")
        assert first == log.time[0] and (ContextFeatures.of(log).age > 0).all()
    table, _ = read_vectors(tmp_path / "ebnerd_small/document_vector.parquet", articles)
    assert table.shape == (81, 300) and table[1:].any(1).all()
