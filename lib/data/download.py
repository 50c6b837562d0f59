"""Files from the network: checked by hash, resumed where they broke off, whole or not there at all.

A file is fetched once into the data folder and checked again at each use. Whatever goes wrong ends in one
line that names the file, its address, its size, its terms and where to put it by hand.

Pooch checks the hash and moves the file into its place; the transfer is ours, since pooch begins anew when a
connection breaks, and knows one address per file.
"""

from __future__ import annotations

import errno
import http.client
import logging
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
from filelock import FileLock
from tqdm.auto import tqdm

from lib.data.dataset import DataUnavailable
from lib.files import file_hash, replacing, write_atomically

ATTEMPTS = 3  # per address, each going on where the last one broke off
TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Download:
    """One file of a data set, as its owners offer it.

    Attributes
    ----------
    name : str
        File name in the data folder.
    addresses : tuple of str
        Where to get it, tried in order.
    size : str
        For people, such as "6 MB".
    licence : str
        Its terms, in a sentence.
    known_hash : str or None
        "md5:..." or "sha256:...". None where the owners publish none: then the hash found at the first use is
        written beside the file (`<name>.sha256`) and holds from then on. That first time is taken on trust.
    published_hash : str
        Address of the owners' own hash file, named when the check fails.
    """

    name: str
    addresses: tuple[str, ...]
    size: str
    licence: str
    known_hash: str | None = None
    published_hash: str = ""

    def fetch(self, data_dir: Path) -> Path:
        """The checked file in `data_dir`, downloaded if it is not there. Safe with several processes at once.

        A download that breaks off leaves `<name>.part`, from which the next one goes on if the server still
        has the same file.

        Raises
        ------
        DataUnavailable
            If no address gives the expected file, or the disk is full.
        """
        path = Path(data_dir) / self.name
        try:
            if not self._valid(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock"):
                    self._fetch(path)
        except OSError as error:
            raise DataUnavailable(_disk_problem(error, path, self.size)) from error
        return path

    def _expected(self, path: Path) -> str | None:
        record = _record(path)
        if self.known_hash is None and record.is_file():
            return f"sha256:{record.read_text().split()[0]}"
        return self.known_hash

    def _valid(self, path: Path) -> bool:
        expected = self._expected(path)
        return expected is not None and path.is_file() and _matches(path, expected)

    def _fetch(self, path: Path) -> None:
        expected = self._expected(path)
        if self._valid(path):  # another process was quicker
            return
        if path.is_file() and expected is None:
            _note_hash(path)
            return
        problems = [f"the file at {path} is not {self._wanted(path)}"] if path.is_file() else []
        for address in self.addresses:
            problem = self._download(address, path, expected)
            if problem is None:
                if expected is None:
                    _note_hash(path)
                return
            problems.append(f"{address}: {problem}")
        raise DataUnavailable(
            f"{self.name} ({self.size}; {self.licence}) could not be downloaded: {'; '.join(problems)}. "
            f"Get it from {self.addresses[0]} and put it at {path}"
        )

    def _download(self, address: str, path: Path, expected: str | None) -> str | None:
        """Try one address; what went wrong, or None."""
        part = path.with_name(f"{path.name}.part")
        pooch.get_logger().setLevel(logging.WARNING)  # the progress bar says enough
        problem = None
        # Twice after a beginning from another day, which must not spoil a good file.
        for _ in range(2 if part.exists() else 1):
            try:
                pooch.retrieve(
                    address,
                    known_hash=expected,
                    fname=path.name,
                    path=path.parent,
                    downloader=lambda url, output, _: _resume(url, Path(output), part),
                )
                return None
            except ValueError:  # pooch's, for another hash; it has deleted the download
                problem = f"what it sends is not {self._wanted(path)}"
            except urllib.error.HTTPError as error:
                return str(error)
            except (TimeoutError, ConnectionError, urllib.error.URLError) as error:
                return str(getattr(error, "reason", error))
            except OSError:  # the disk, not the network
                part.unlink(missing_ok=True)
                _stamp(part).unlink(missing_ok=True)
                raise
        return problem

    def _wanted(self, path: Path) -> str:
        if self.known_hash is None:
            return f"the one first used, whose sha256 is in {_record(path)}"
        return f"the expected one ({self.known_hash}" + (
            f", see {self.published_hash})" if self.published_hash else ")"
        )


@dataclass(frozen=True)
class ZipMember:
    """One file inside a downloaded archive, unpacked to the same place under the data folder.

    Only this member is read, and it is written to a path made from `member`, so names and links inside a
    hostile archive never reach the disk. An unpacked file that no longer has the archive's checksum is
    unpacked again.

    Attributes
    ----------
    archive : Download
        The zip file.
    member : str
        Path of the file in it, relative and without "..".
    """

    archive: Download
    member: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.member)
        if parts.is_absolute() or ".." in parts.parts or "\\" in self.member:
            raise ValueError(f"expected a relative path inside the archive, got {self.member!r}")

    @property
    def name(self) -> str:
        """File name without folders."""
        return PurePosixPath(self.member).name

    def fetch(self, data_dir: Path) -> Path:
        """The unpacked file; fetches the archive first.

        Raises
        ------
        DataUnavailable
            If the archive cannot be had, is no zip file, lacks the member, or the disk is full.
        """
        archive = self.archive.fetch(data_dir)
        path = Path(data_dir) / self.member
        try:
            with zipfile.ZipFile(archive) as packed:
                entry = packed.getinfo(self.member)
                if not (
                    path.is_file() and path.stat().st_size == entry.file_size and _crc(path) == entry.CRC
                ):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(entry) as source, replacing(path) as file:
                        shutil.copyfileobj(source, file, _CHUNK)
        except KeyError as error:
            raise DataUnavailable(f"{archive} has no {self.member}: is it {self.archive.name}?") from error
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataUnavailable(f"{archive} is damaged ({error}): delete it and run again") from error
        except OSError as error:
            raise DataUnavailable(_disk_problem(error, path, self.archive.size)) from error
        return path


def _resume(address: str, output: Path, part: Path) -> None:
    """Download to `part`, going on where it ends, and move it to `output` when it is whole."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(address, part)
            break
        except (TimeoutError, ConnectionError):
            if attempt == ATTEMPTS:
                raise
    _stamp(part).unlink(missing_ok=True)
    os.replace(part, output)


def _transfer(address: str, part: Path) -> None:
    """One connection. Raises ConnectionError if it closes early; what has come stays in `part`."""
    stamp = _stamp(part)
    request = urllib.request.Request(
        address, headers={"Accept-Encoding": "identity", "User-Agent": "does-it-hold"}
    )
    start = part.stat().st_size if part.is_file() and stamp.is_file() else 0
    if start:
        # If-Range: the rest of the file only if it is still the same file, else all of it.
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", stamp.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send
            part.unlink()
            raise ConnectionError("the server refused to go on") from error
        raise
    except http.client.HTTPException as error:
        raise ConnectionError(f"not an HTTP answer: {error!r}") from error
    with response:
        if response.status != 206:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise ConnectionError("the server sent another part than asked for")
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        tag = response.headers.get("ETag", "")
        same = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
        if same:
            stamp.write_text(same)
        else:
            stamp.unlink(missing_ok=True)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with open(part, "ab" if start else "wb") as file, bar:
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
            received = file.tell()
    if total is not None and received != total:
        raise ConnectionError(f"the connection closed after {received} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """A piece of the answer. The network's errors become ConnectionError, so that the disk's stand out."""
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"the connection broke: {error}") from error


def _stamp(part: Path) -> Path:
    """Where the version that `part` belongs to is kept: the server's ETag, or when it was last modified."""
    return part.with_name(f"{part.name}.etag")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _note_hash(path: Path) -> None:
    """Trust on first use: what is there now has to be there from now on. The format is sha256sum's."""
    write_atomically(_record(path), f"{file_hash(path)}  {path.name}\n")


def _matches(path: Path, expected: str) -> bool:
    algorithm, _, value = expected.partition(":")
    return file_hash(path, algorithm) == value.lower()


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _disk_problem(error: OSError, path: Path, size: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left for {path.name} ({size}) in {path.parent}: free some, or choose another data_dir"
        )
    return f"cannot write {path}: {error.strerror or error}; choose another data_dir"
