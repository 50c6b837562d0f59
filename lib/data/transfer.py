"""One file over HTTP: on from where it broke off, with patience for busy servers and none for dripping ones.

Requests follows redirects and proxies and asks a busy server again; going on where a connection broke, and
giving up on one that only drips, are ours.
"""

from __future__ import annotations

import http.client
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm

from lib.files import write_atomically
from lib.listing import printable

TIMEOUT = 30  # seconds without a byte
SLOWEST = 1000  # bytes a second, over TIMEOUT seconds
BUSY = (429, 500, 502, 503, 504)  # asked again, after as many seconds as the server says, or a few
RETRIES = 2  # of a busy server
_CHUNK = 1 << 16


class NotSent(ConnectionError):
    """Why an address gave no file. The network's errors are ConnectionErrors: the disk's stand out."""


class Broken(NotSent):
    """The connection broke; the next one may go on from there."""


class _TooSlow(TimeoutError):
    """Bytes come, but so few that the file never would."""


class _Watched(io.RawIOBase):
    """A socket's stream that raises `_TooSlow` when it only drips; a time limit per byte would not see it."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream, self._received, self._waited = stream, 0, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        began = time.monotonic()
        count = self._stream.readinto(buffer)
        self._waited += time.monotonic() - began
        self._received += count or 0
        if count and self._waited > TIMEOUT:
            if self._received < SLOWEST * TIMEOUT:
                raise _TooSlow(f"only {self._received} bytes came in {self._waited:.0f} s")
            self._received, self._waited = 0, 0.0
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose head and body are watched."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Watched(self.fp.detach()), _CHUNK)


class _Adapter(HTTPAdapter):
    """Requests' own, over connections that are watched."""

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> urllib3.HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = type("Watched", (pool.ConnectionCls,), {"response_class": _Response})
        return pool


def _session() -> requests.Session:
    """Requests' session, which asks a busy server again after the time that it names, at most `TIMEOUT`."""
    patience = urllib3.Retry(
        RETRIES,
        connect=0,
        read=0,
        other=0,
        status_forcelist=BUSY,
        backoff_factor=1,
        retry_after_max=TIMEOUT,
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(max_retries=patience))
    return session


def transfer(address: str, part: Path, pinned: bool) -> None:
    """Download to `part` over one connection, going on where an earlier one broke off.

    Parameters
    ----------
    address : str
    part : Path
        What has come stays there when the connection breaks, and beside it the version that it belongs to, if
        the server names one.
    pinned : bool
        A known hash will tell what came. Without one, an answer that may be no file, or a piece, is refused.

    Raises
    ------
    Broken
        The connection broke; the next one may go on from there.
    NotSent
        The server sends no such file.
    OSError
        `part` cannot be written.
    """
    start, version = _beginning(part)
    headers = {"Accept-Encoding": "identity", "User-Agent": "does-it-hold"}
    if start:
        # If-Range: the rest of the file only if it is still the same file, else all of it.
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        with (
            _session() as session,
            session.get(address, headers=headers, stream=True, timeout=TIMEOUT) as response,
        ):
            _receive(response, part, start, version, pinned)
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        if not _stamp(part).exists():  # nobody could go on from it
            discard(part)
        chain: list[BaseException] = [error]
        while inner := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(inner)
        kind = NotSent if any(isinstance(link, _FOR_GOOD) for link in chain) else Broken
        raise kind(printable(chain[-1])) from error


#: What asking once more does not change. A ValueError is an address or a header that is none.
_FOR_GOOD = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    requests.TooManyRedirects,
    ValueError,
    _TooSlow,
)


def _receive(response: requests.Response, part: Path, start: int, version: str, pinned: bool) -> None:
    """Write an answer to `part`, after the `start` bytes of `version` that are there."""
    status, headers, body = response.status_code, response.headers, response.raw
    if status == 206 or (status == 416 and start):
        sent = headers.get("Content-Range", "")
        if status == 416 and sent == f"bytes */{start}":  # all of it was there
            return
        if not sent.startswith(f"bytes {start}-") or (start and _version(headers) not in ("", version)):
            discard(part)
            raise Broken("the server sent another part than asked for")
    elif status == 200:
        start = 0
    else:
        raise NotSent(f"HTTP {status} {http.client.responses.get(status, '')}".strip())
    body.enforce_content_length = False  # said below, with the numbers
    total = None if body.length_remaining is None else start + body.length_remaining
    if not pinned and (doubt := _doubt(headers, total is not None or body.chunked)):
        raise NotSent(doubt)
    if not start:
        discard(part)  # first, or a kill would leave it under the new file's mark
        if mark := _version(headers):
            write_atomically(_stamp(part), mark)
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None)
    with open(part, "ab" if start else "wb") as file, bar:
        while chunk := body.read1(_CHUNK, decode_content=False):
            file.write(chunk)
            bar.update(len(chunk))
        received = file.tell()
    if total is not None and received != total:
        raise Broken(f"the connection closed after {received} of {total} bytes")
    if received == 0:
        discard(part)
        raise NotSent("it sends an empty file")


def _doubt(headers: Mapping[str, str], has_end: bool) -> str:
    """Why an answer cannot be the file, or be known to be whole, where no hash will tell."""
    kind, coding = headers.get("Content-Type", ""), headers.get("Content-Encoding", "identity")
    if "html" in kind.lower():
        return "it sends a web page"
    if coding != "identity":
        return f"it sends {printable(coding)} where the file itself was asked for"
    return "" if has_end else "it does not say how long the file is, so that a piece would pass for all of it"


def _version(headers: Mapping[str, str]) -> str:
    """The file's version as its server names it: the ETag, or when it was last modified."""
    tag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


def _stamp(part: Path) -> Path:
    """Where the version that `part` belongs to is kept."""
    return part.with_name(f"{part.name}.etag")


def _beginning(part: Path) -> tuple[int, str]:
    """How many bytes are there to go on from, and of which version; 0 where that is not known."""
    try:
        version, start = _stamp(part).read_text(encoding="ascii"), part.stat().st_size
    except (FileNotFoundError, UnicodeDecodeError):
        return 0, ""
    return (start, version) if version.isprintable() and version.strip() else (0, "")


def discard(part: Path) -> None:
    """Remove a beginning, and what is known of it."""
    part.unlink(missing_ok=True)
    _stamp(part).unlink(missing_ok=True)
