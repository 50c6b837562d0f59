"""Adressa's daily files as impressions, in a folder and in an archive, and what is in damaged ones."""

import io
import json
import tarfile

import numpy as np
import pytest

from lib.data.adressa import HOUR, read_adressa
from lib.data.dataset import UnexpectedFormat
from tests.news_files import adressa_lines, pack_adressa, write_adressa

FIELDS = ("time", "candidate", "clicked", "user", "history", "history_begin", "history_end")


def click(user, article, time, **others):
    event = {"userId": user, "id": article, "title": f"Om {article}, i dag", "category1": "sport|fotball|rbk"}
    return json.dumps(event | {"time": time} | others)


def write(folder, *days):
    folder.mkdir()
    for number, lines in enumerate(days, 1):
        (folder / f"2017010{number}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def test_by_hand(tmp_path):
    first = [click("u", "a", 1000), click("v", "b", 1000), click("w", "c", 900)]
    second = [
        click("v", "a", 2000),  # b is theirs, c is alive no longer
        click("w", "a", 1500, category1=None),  # b
        json.dumps({"userId": "w", "time": 1501, "url": "the front page"}),
        click("w", "a", 1600),  # again
        click("u", "b", 1 + 1000 + HOUR),  # dead
    ]
    folder = write(tmp_path / "week", second, first)  # the files' order is not that of time
    log, reports = read_adressa(folder, negatives=1, alive_hours=1, seed=0)
    assert [str(report) for report in reports] == [
        "20170101: 5 lines, all read",
        "20170102: 3 lines, all read",
    ]
    ids, names = log.articles.ids, ["", *log.articles.category_names]
    assert log.time.tolist() == [1500, 2000]
    shown = ids[log.candidate].reshape(2, 2)
    assert [set(row) for row in shown] == [{"a", "b"}, {"a", "c"}]
    assert ids[log.candidate[log.clicked]].tolist() == ["a", "a"]
    assert [names[i] for i in log.articles.category] == ["", "sport", "sport", "sport"]
    assert {names[i] for i in log.articles.subcategory[1:]} == {"sport/fotball/rbk"}
    words = ["", *log.articles.words]
    assert [words[i] for i in log.articles.title[1][:6]] == ["om", "a", ",", "i", "dag", ""]
    past = log.recent_history(np.arange(2), 2)
    assert [[ids[i] if i > 0 else "" for i in row] for row in past] == [["c", ""], ["b", ""]]
    assert not log.articles.abstract.any() and (log.articles.published == -1).all()


def test_a_folder_and_its_archive_are_the_same(tmp_path):
    folder, reports = read_adressa(write_adressa(tmp_path / "one_week"), negatives=3, seed=1)
    packed, told = read_adressa(pack_adressa(tmp_path / "one_week.tar.gz"), negatives=3, seed=1)
    assert same(folder, packed) and folder.articles.words == packed.articles.words
    assert not any(report.count for report in (*reports, *told)) and len(told) == 4
    assert sorted(one.name for one in tmp_path.iterdir()) == ["one_week", "one_week.tar.gz"], (
        "nothing unpacked"
    )
    other, _ = read_adressa(tmp_path / "one_week", negatives=3, seed=2)
    assert not same(folder, other) and np.array_equal(folder.time, other.time)


def test_what_is_shown_was_clicked_lately_and_not_by_this_user(tmp_path):
    log, _ = read_adressa(write_adressa(tmp_path / "week"), negatives=4, alive_hours=12, seed=0)
    events = [json.loads(line) for lines in adressa_lines().values() for line in lines]
    events = [event for event in events if "id" in event]
    ids = log.articles.ids
    assert len(log) > 100
    numbers: dict[int, str] = {}
    for i, time in enumerate(log.time.tolist()):
        part = slice(log.offsets[i], log.offsets[i + 1])
        shown, clicked = ids[log.candidate[part]], log.clicked[part]
        alive = {e["id"] for e in events if time - 12 * HOUR <= e["time"] < time}
        user = next(e["userId"] for e in events if e["time"] == time and e["id"] == shown[clicked][0])
        assert numbers.setdefault(int(log.user[i]), user) == user
        mine = {e["id"] for e in events if e["userId"] == user and e["time"] <= time}
        assert set(shown) <= alive and len(set(shown)) == 5 and not set(shown[~clicked]) & mine
        assert shown[clicked][0] not in {e["id"] for e in events if e["userId"] == user and e["time"] < time}


BAD = {
    "{": "no JSON",
    "": "no JSON",
    "[1]": "no object",
    "[" * 100_000: "no JSON",
    click("u", "a", "1000"): "time is '1000'",
    click("u", "a", 1000.5): "time is '1000.5'",
    click("u", "a", True): "time is 'True'",
    click("u", "a", -1): "time is '-1'",
    click("u", "a", 1_483_225_200_000): "time is '1483225200000'",
    click("u", 7, 1000): "id is '7'",
    click(None, "a", 1000): "userId is 'None'",
    click("u", "a", 1000, title=""): "title is ''",
    '{"id": "a", "time": 1000, "title": "x"}': "userId is 'missing'",
}


def test_lines_that_cannot_be_read_are_counted_and_named(tmp_path):
    good = [click(user, article, 10 * i) for i, (user, article) in enumerate(["ua", "vb", "wa", "xb"])]
    clean, _ = read_adressa(write(tmp_path / "clean", good), negatives=1, seed=0)
    log, (report,) = read_adressa(write(tmp_path / "bad", [*good, *BAD]), negatives=1, seed=0)
    assert same(clean, log) and (report.lines, report.count) == (4 + len(BAD), len(BAD))
    assert str(report) == (
        f"20170101: {len(BAD)} of {4 + len(BAD)} lines skipped "
        "(line 5: no JSON; line 6: no JSON; line 7: no object; …)"
    )
    for number, (line, reason) in enumerate(BAD.items()):
        _, (report,) = read_adressa(write(tmp_path / str(number), [line, *good]), negatives=1, seed=0)
        assert report.first == ((1, reason),)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no gone.tar.gz at .* Adressa's daily files"):
        read_adressa(tmp_path / "gone.tar.gz", seed=0)
    whole = pack_adressa(tmp_path / "week.tar.gz").read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b""):
        (tmp_path / "week.tar.gz").write_bytes(content)
        with pytest.raises(UnexpectedFormat, match=r"week.tar.gz is not .* .no archive, or a part of one"):
            read_adressa(tmp_path / "week.tar.gz", seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnexpectedFormat, match="no click on an article in 0 files"):
        read_adressa(tmp_path / "empty", seed=0)
    with pytest.raises(
        UnexpectedFormat, match=r"no click on an article in 1 file: 20170101: 1 of 1 line skipped"
    ):
        read_adressa(write(tmp_path / "bad", ["{"]), seed=0)
    with pytest.raises(ValueError, match="none of 1 clicks has 20 other articles"):
        read_adressa(write(tmp_path / "one", [click("u", "a", 1)]), seed=0)


def test_links_in_an_archive_are_not_followed(tmp_path):
    """Nothing beside the archive is read, and nothing is written, whatever its members are called."""
    secret = write(tmp_path / "secret", [click("spy", "s", 1)]) / "20170101"
    content = "\n".join(
        click(user, article, i) for i, (user, article) in enumerate(["ua", "vb", "wa"])
    ).encode()
    with tarfile.open(tmp_path / "week.tar.gz", "w:gz") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("one_week/20170101")
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
        member = tarfile.TarInfo("../../20170102")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    log, reports = read_adressa(tmp_path / "week.tar.gz", negatives=1, seed=0)
    assert log.articles.ids.tolist() == ["", "a", "b"] and len(reports) == 1
    assert not (tmp_path.parent / "20170102").exists() and not (tmp_path.parent.parent / "20170102").exists()
