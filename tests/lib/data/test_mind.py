"""MIND's files in their real format, and what is in such files when they are damaged."""

from datetime import UTC, datetime

import numpy as np
import pytest

from lib.data.mind import read_behaviors, read_news
from lib.data.news_context import ContextFeatures

NEWS = [
    'N1\tsports\tgolf\tA "quoted" title, says\tFirst abstract. Golf!\thttps://x\t[{"Label": "a\\"b"}]\t[]',
    "N2\tnews\tpolitics\tThe title says\t\thttps://y\t[]\t[]",
    "N3\tsports\tpolitics\tÜber Ärzte\tone two three\thttps://z\t[]\t[]",
]
BEHAVIORS = [
    "1\tU7\t11/15/2019 12:00:05 AM\tN1 N2\tN3-0 N1-1",
    "2\tU8\t11/14/2019 12:30:00 PM\t\tN2-1 N3-0",
    "3\tU7\t11/15/2019 8:55:22 AM\tN1 N2\tN1-0 N2-0 N3-1",
    "4\tU8\t11/14/2019 12:30:00 PM\tN9 N1\tN1-1",
]


def write(path, lines, end="\n", last="\n", encoding="utf-8"):
    path.write_bytes((end.join(lines) + last).encode(encoding))
    return path


@pytest.fixture
def articles(tmp_path):
    return read_news([write(tmp_path / "news.tsv", NEWS)])[0]


def test_articles(articles):
    assert articles.ids.tolist() == ["", "N1", "N2", "N3"] and len(articles) == 3
    names = ["", *articles.category_names]
    assert [names[i] for i in articles.category[1:]] == ["sports", "news", "sports"]
    assert [names[i] for i in articles.subcategory[1:]] == ["sports/golf", "news/politics", "sports/politics"]
    words = ["", *articles.words]
    assert [words[i] for i in articles.title[1][:6]] == ["a", "quoted", "title", ",", "says", ""]
    assert [words[i] for i in articles.title[3][:3]] == ["über", "ärzte", ""]
    assert not articles.abstract[2].any() and (articles.published == -1).all()
    assert set(articles.words[:2]) == {"title", "says"}, "the commonest first"
    assert articles.title.shape == (4, 30) and articles.abstract.shape == (4, 50)


def test_a_vocabulary_of_its_own_and_rare_words(tmp_path):
    path = write(tmp_path / "news.tsv", NEWS)
    common, _ = read_news([path], min_word_count=2)
    assert set(common.words) == {"title", "says"}
    given, _ = read_news([path], words=["golf", "title"], title_length=2, abstract_length=3)
    assert given.title[1].tolist() == [2, 0] and given.abstract[1].tolist() == [1, 0, 0]


def test_splits_share_articles_and_users(tmp_path, articles):
    more = write(tmp_path / "more.tsv", [NEWS[0].replace("golf", "tennis"), NEWS[1].replace("N2", "N4")])
    both, reports = read_news([tmp_path / "news.tsv", more])
    assert both.ids.tolist() == ["", "N1", "N2", "N3", "N4"] and len(reports) == 2
    assert not any("tennis" in name for name in both.category_names), "the first file's"
    users: dict[str, int] = {}
    read_behaviors(write(tmp_path / "train.tsv", BEHAVIORS), both, users)
    dev, _ = read_behaviors(
        write(tmp_path / "dev.tsv", ["1\tU9\t11/16/2019 1:00:00 PM\t\tN4-1 N1-0"]), both, users
    )
    assert users == {"U7": 1, "U8": 2, "U9": 3} and dev.user.tolist() == [3]


def test_impressions_are_in_the_order_of_time(tmp_path, articles):
    log, report = read_behaviors(write(tmp_path / "behaviors.tsv", BEHAVIORS), articles)
    assert str(report) == "behaviors.tsv: 4 lines, all read"
    moments = [(14, 12, 30, 0), (14, 12, 30, 0), (15, 0, 0, 5), (15, 8, 55, 22)]
    expected = [int(datetime(2019, 11, *moment, tzinfo=UTC).timestamp()) for moment in moments]
    assert log.time.tolist() == expected
    assert log.user.tolist() == [2, 2, 1, 1], "of one second, in the order of the file"
    assert log.candidate.tolist() == [2, 3, 1, 3, 1, 1, 2, 3]
    assert log.clicked.tolist() == [True, False, True, False, True, False, False, True]
    assert log.recent_history(np.arange(4), 2).tolist() == [[-1, -1], [1, -1], [1, 2], [1, 2]]
    assert len(log.history) == 3, "a history is kept once"
    assert ContextFeatures.of(log).shown.tolist() == [0, 0, 0, 1, 1, 2, 1, 2]


@pytest.mark.parametrize(
    "form",
    [{"end": "\r\n"}, {"last": ""}, {"encoding": "utf-8-sig"}, {"end": "\r\n", "last": "\r\n"}],
)
def test_files_that_other_systems_saved(tmp_path, form):
    news, _ = read_news([write(tmp_path / "news.tsv", NEWS, **form)])
    log, report = read_behaviors(write(tmp_path / "behaviors.tsv", BEHAVIORS, **form), news)
    assert news.ids.tolist() == ["", "N1", "N2", "N3"] and len(log) == 4 and not report.count
    assert "ärzte" in news.words


def test_lines_that_cannot_be_read_are_counted_and_named(tmp_path, articles):
    bad = [
        "5\tU1\t11/15/2019 9:00:00 AM\tN1",
        "6\tU1\t2019-11-15 09:00:00\t\tN1-1",
        "7\tU1\t11/15/2019 9:00:00 AM\t\tN1 N2",
        "8\tU1\t11/15/2019 9:00:00 AM\t\tN1-1 N77-0",
        "9\tU1\t11/15/2019 9:00:00 AM\t\t",
        "10\tU1\t13/15/2019 9:00:00 AM\t\tN1-1",
        "11\tU1\t11/15/2019 13:00:00 PM\t\tN1-1",
        "",
    ]
    log, report = read_behaviors(write(tmp_path / "behaviors.tsv", [*BEHAVIORS, *bad]), articles)
    assert len(log) == 4 and (report.count, report.lines) == (8, 12)
    assert str(report) == (
        "behaviors.tsv: 8 of 12 lines skipped (line 5: 4 columns, not 5; "
        "line 6: '2019-11-15 09:00:00' is no time like 11/15/2019 8:55:22 AM; "
        "line 7: a candidate ends in 'N1', not in -0 or -1; …)"
    )
    with pytest.raises(ValueError, match=r"no impression could be read: test.tsv: 8 of 8 lines skipped"):
        read_behaviors(write(tmp_path / "test.tsv", bad), articles)
    seven = [line.rpartition("\t")[0] for line in NEWS]
    few, (report,) = read_news(
        [write(tmp_path / "few.tsv", [*seven, "N9\tsports", "\tsports\tgolf\ta\tb\tc\td"])]
    )
    assert len(few) == 3 and report.count == 2
    with pytest.raises(ValueError, match="no article in"):
        read_news([write(tmp_path / "none.tsv", ["x"])])
    with pytest.raises(FileNotFoundError, match=r"no gone.tsv at"):
        read_news([tmp_path / "gone.tsv"])
