"""Files are whole or not there, on a disk that is full too."""

import errno
import os
import resource
import stat
from contextlib import nullcontext

import pytest

from lib.files import remove_leftovers, replacing, syntax_digest, write_atomically


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new and longer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "written"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_file_system_that_cannot_synchronise_folders(tmp_path, monkeypatch, number, written):
    """As some network file systems answer; a broken disk is another matter."""
    synchronise = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with nullcontext() if written else pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "file.json", "new")
    assert (tmp_path / "file.json").read_text() == "new"


def test_a_file_cut_short_by_the_system_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # as a quota or a full disk would
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, "new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file(small_disk):
    path = small_disk / "file.json"
    write_atomically(path, "old")
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(path, bytes(2_000_000))
    assert path.read_text() == "old"
    assert list(small_disk.iterdir()) == [path]


def test_leftovers_of_this_file_alone_are_removed(tmp_path):
    for name in ("a[1].pt", ".a[1].pt.0f.tmp", ".a[1].pt.1f.tmp", ".b.pt.0f.tmp", ".a1.pt.0f.tmp"):
        (tmp_path / name).write_bytes(b"x")
    remove_leftovers(tmp_path / "a[1].pt")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].pt", ".b.pt.0f.tmp", ".a1.pt.0f.tmp"}
    remove_leftovers(tmp_path / "nowhere" / "a.pt")


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError("in the middle")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "same",
    [
        "X = 1\n'what X is'\n\ndef f(a):\n    'A docstring.'\n    return a + 1",
        "X = 1  # a comment\n\n\ndef f( a ):\n    return (a + 1)",
        "'A module.'\nX = 1\ndef f(a):\n    'another'\n    return a + 1",
    ],
)
def test_what_code_does_is_not_how_it_is_written(same):
    assert syntax_digest(same) == syntax_digest("X = 1\ndef f(a):\n    return a + 1")


@pytest.mark.parametrize(
    "other",
    [
        "X = 1\ndef f(a):\n    return a - 1",
        "X = 2\ndef f(a):\n    return a + 1",
        "X = 1\ndef f(a=0):\n    return a + 1",
        "X = 1\nprint('x')\ndef f(a):\n    return a + 1",
    ],
)
def test_what_code_does_counts(other):
    assert syntax_digest(other) != syntax_digest("X = 1\ndef f(a):\n    return a + 1")
