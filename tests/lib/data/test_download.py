"""Downloads from a real HTTP server here: hashes, resuming, mirrors, hostile archives, full disk."""

import errno
import hashlib
import io
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib.data import download
from lib.data.dataset import DataUnavailable, read_table
from lib.data.download import Download, ZipMember
from lib.data.packages import PackageFile

CONTENT = bytes(range(256)) * 4000
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server:
    """Serves `files`; `cut`: bytes after which the next connections close; `requests`: what was asked."""

    def __init__(self):
        self.files = {"/a.bin": CONTENT}
        self.cut: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
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
                self.wfile.write(content[start:end])
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

    monkeypatch.setattr(download, "open", lambda path, mode: Full(path, mode.replace("b", "")), raising=False)
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


def test_table_in_another_format(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\nc,d\n")
    with pytest.raises(DataUnavailable, match="not in the expected format") as caught:
        read_table(tmp_path / "t.csv", header=None, names=["x", "y"], dtype={"x": "int64"})
    assert "t.csv" in one_line(caught)
