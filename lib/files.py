"""Files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file to write in the place of `path`: beside it, to the disk, then renamed.

    A full disk, a kill or an error inside the ``with`` leaves what was there before; on an error nothing is
    left beside it either.

    Parameters
    ----------
    path : path
        The file to make; its folder must exist.

    Yields
    ------
    binary file

    Raises
    ------
    OSError
        It cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_atomically(path: Path | str, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes as `replacing` does.

    Raises
    ------
    OSError
        It cannot be written; what was there before is still there.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
