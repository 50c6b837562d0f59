"""Files of the repository and of runs: its root, their hashes, JSON that is read without a doubt, and writing
that is whole or not at all."""

from __future__ import annotations

import ast
import errno
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

#: The repository that this `lib` belongs to.
ROOT = Path(__file__).resolve().parents[1]


def file_hash(path: Path | str, algorithm: str = "sha256") -> str:
    """Hash of a file's content in hexadecimal, by an algorithm that `hashlib` knows.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """What a text in JSON says.

    Raises
    ------
    ValueError
        It is none, is nested too deeply, or gives a key twice, of which readers keep one or the other.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def syntax_digest(source: str, *, sentences: bool = True) -> str:
    """SHA-256 of what Python code does: its syntax, without comments, layout and strings that stand alone.

    Docstrings are such strings, wherever they document something; as statements they do nothing.

    Parameters
    ----------
    source : str
    sentences : bool
        False to leave out what the code says, too: formatted strings, and constant ones of more than 25
        characters.

    Raises
    ------
    SyntaxError
        It is not Python.
    """
    tree = _WithoutStrings(sentences).visit(ast.parse(source))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


class _WithoutStrings(ast.NodeTransformer):
    """Drops statements that are a string and nothing else and, unless they count, sentences."""

    def __init__(self, sentences: bool) -> None:
        self.sentences = sentences

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node if self.sentences else ast.Constant("")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        spoken = isinstance(node.value, str) and len(node.value) > 25
        return ast.Constant("") if spoken and not self.sentences else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(getattr(node.value, "value", None), str) else self.generic_visit(node)


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
    _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    """See to it that a rename in `folder` outlasts a power failure, where its file system can do that."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one may write in it, but not list it
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # as some network file systems say
            raise
    finally:
        os.close(opened)


def remove_leftovers(path: Path | str) -> None:
    """Remove what killed processes left beside a file in `replacing` it, while nobody else writes it."""
    path = Path(path)
    for beside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        beside.unlink(missing_ok=True)


def write_atomically(path: Path | str, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes as `replacing` does.

    Raises
    ------
    OSError
        It cannot be written; what was there before is still there.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
