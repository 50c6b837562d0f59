"""Files from the network: checked by hash, resumed where they broke off, whole or not there at all.

A file is fetched once into the data folder and checked again at each use. Whatever goes wrong ends in one
line that names the file, its address, its size, its terms and where to put it by hand. `lib.data.transfer`
brings the bytes.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from lib.data.dataset import DataUnavailable, UnexpectedFormat, data_folder, writable_folder
from lib.data.transfer import Broken, NotSent, discard, transfer
from lib.files import file_hash, remove_leftovers, replacing, write_atomically
from lib.listing import printable

ATTEMPTS = 3  # per address, each going on where the last one broke off
LARGEST_RATIO = 200  # of an unpacked file to its archive's entry; ratings have 4, zeros 1000
_CHUNK = 1 << 16


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
    check : callable, optional
        Where no hash is known, reads what was downloaded before it is trusted, and raises `UnexpectedFormat`.
    """

    name: str
    addresses: tuple[str, ...]
    size: str
    licence: str
    known_hash: str | None = None
    published_hash: str = ""
    check: Callable[[Path], object] | None = None

    def fetch(self, data_dir: Path) -> Path:
        """The checked file in `data_dir`, downloaded if it is not there. Safe with several processes at once.

        A download that breaks off leaves `<name>.part`, from which the next one goes on if the server still
        has the same file. A folder that cannot be written serves what it has.

        Raises
        ------
        DataUnavailable
            If no address gives the expected file, or the disk is full.
        """
        path = data_folder(data_dir) / self.name
        try:
            if not self._valid(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock"):
                    self._fetch(path)
        except OSError as error:
            # A hash that nobody published and this folder cannot keep: those who filled it answer for it.
            if self.known_hash or _record(path).exists() or not os.access(path, os.R_OK):
                raise DataUnavailable(_disk_problem(error, path, self.size)) from error
        return path

    def forget(self, data_dir: Path) -> None:
        """Trust no longer what was found at the first use: it has turned out to be no such file."""
        if self.known_hash is None:
            with contextlib.suppress(OSError):  # in a folder that cannot be written, nothing was noted
                _record(data_folder(data_dir) / self.name).unlink()

    def _expected(self, path: Path) -> str | None:
        return self.known_hash or _recorded(path)

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
            try:
                self._download(address, path, expected)
                return
            except ConnectionError as problem:
                problems.append(f"{address}: {problem}")
        raise DataUnavailable(
            f"{self.name} ({self.size}; {self.licence}) could not be downloaded: {'; '.join(problems)}. "
            f"Get it from {self.addresses[0]} and put it at {path}"
        )

    def _download(self, address: str, path: Path, expected: str | None) -> None:
        """Try one address; `NotSent` says why it gave no such file."""
        part = path.with_name(f"{path.name}.part")
        began = part.exists()
        try:
            _resume(address, part, expected is not None)
            if began and self._unfit(part, path, expected):
                discard(part)  # a beginning from another day must not spoil a good file
                _resume(address, part, expected is not None)
            if unfit := self._unfit(part, path, expected):
                discard(part)
                raise NotSent(f"what it sends is not {unfit}")
            os.replace(part, path)
            discard(part)  # its version
        except ConnectionError:
            raise
        except OSError:  # the disk's
            discard(part)
            raise
        if expected is None:
            _note_hash(path)

    def _unfit(self, part: Path, path: Path, expected: str | None) -> str:
        """What a whole download is not, or nothing."""
        if expected is not None:
            return "" if _matches(part, expected) else self._wanted(path)
        try:
            if self.check is not None:
                self.check(part)
        except UnexpectedFormat as error:
            return f"in the expected format ({error.reason})"
        return ""

    def _wanted(self, path: Path) -> str:
        if self.known_hash is None:
            return f"the one first used, whose sha256 is in {_record(path)} (delete that to trust another)"
        return f"the expected one ({self.known_hash}" + (
            f", see {self.published_hash})" if self.published_hash else ")"
        )


@dataclass(frozen=True)
class ZipMember:
    """One file inside a downloaded archive, unpacked to the same place under the data folder.

    Only this member is read, and it is written to a path made from `member`, so names and links inside a
    hostile archive never reach the disk. An unpacked file that no longer has the archive's checksum is
    unpacked again; one whose archive is not there was put there by hand, and is taken as it is.

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
        """The unpacked file; fetches the archive first, unless the file is there without it.

        From a data folder that cannot be written it is unpacked into a temporary one.

        Raises
        ------
        DataUnavailable
            If the archive cannot be had, is no zip file, lacks the member, or the disk is full.
        """
        path = data_folder(data_dir) / self.member
        if path.is_file() and not (data_folder(data_dir) / self.archive.name).exists():
            return path
        archive = self.archive.fetch(data_dir)
        try:
            with zipfile.ZipFile(archive) as packed:
                entry = packed.getinfo(self.member)
                if not _unpacked(entry, path):
                    path = writable_folder(archive.parent) / self.member
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with FileLock(f"{path}.lock"):
                        _unpack(packed, entry, path)
        except (KeyError, OSError, *_UNREADABLE) as error:
            if getattr(error, "errno", None) is not None:  # the disk's; bzip2's has none
                raise DataUnavailable(_disk_problem(error, path, self.archive.size)) from error
            self.forget(data_dir)
            if isinstance(error, KeyError):
                raise DataUnavailable(
                    f"{archive} has no {self.member}: is it {self.archive.name}?"
                ) from error
            raise DataUnavailable(
                f"{archive} is damaged or in another form ({printable(error)}): delete it and run again"
            ) from error
        return path

    def forget(self, data_dir: Path) -> None:
        """Trust the archive no longer, as `Download.forget`."""
        self.archive.forget(data_dir)


#: What reading a zip file raises: damaged, encrypted, compressed in a way that Python does not know.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError,
)  # fmt: skip


def _unpacked(entry: zipfile.ZipInfo, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == entry.file_size and _crc(path) == entry.CRC


def _unpack(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    if _unpacked(entry, path):  # another process was quicker
        return
    if entry.file_size > LARGEST_RATIO * max(entry.compress_size, _CHUNK):
        raise zipfile.BadZipFile(f"{entry.compress_size} bytes would become {entry.file_size}")
    remove_leftovers(path)
    with packed.open(entry) as source, replacing(path) as file:
        shutil.copyfileobj(source, file, _CHUNK)


def _resume(address: str, part: Path, pinned: bool) -> None:
    """Download to `part`, going on where it ends, until it is whole."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return transfer(address, part, pinned)
        except Broken:
            if attempt == ATTEMPTS:
                raise


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    """The hash found at the first use, if it was written down."""
    try:
        content = _record(path).read_bytes()
    except FileNotFoundError:
        return None
    if found := re.search(rb"\b[0-9a-fA-F]{64}\b", content):
        return f"sha256:{found[0].decode()}"
    raise DataUnavailable(f"{_record(path)} holds no SHA-256: delete it to trust {path.name} anew")


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
    return f"cannot use {error.filename or path}: {error.strerror or error}; choose another data_dir"
