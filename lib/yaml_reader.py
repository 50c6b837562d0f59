"""The one reader of YAML: what is written is what is read, or it is refused in a line.

YAML 1.1 as PyYAML reads it keeps the last of two equal keys, and makes 8 of ``010``, 90 of ``1:30``, a switch
of ``no`` and text of ``1e-3``. Here a key that is given twice is refused, numbers and switches are those of
YAML 1.2, and what merely resembles one (``010``, ``1:30``, ``no``) stays the text that it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml


class _Reader(yaml.SafeLoader):
    """The safe loader, with the numbers and switches of YAML 1.2, which refuses a key given twice."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            # Another mapping's keys that are merged in (<<) may be overridden: that is what a merge is for.
            merged = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merged else self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                raise yaml.constructor.ConstructorError(None, None, "a key of parts", key_node.start_mark)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return whole_text(self.construct_scalar(node))


_Reader.add_constructor("tag:yaml.org,2002:str", _Reader.construct_text)
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Reader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), list(_first))


def whole_text(text: str) -> str:
    r"""Text without halves of characters: of the two that spell 🙂 in JSON (``\ud83d\ude42``) it makes one.

    Raises
    ------
    ValueError
        There is half a character alone. Bytes of a command line that are no UTF-8 arrive as such halves.
    """
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(f"{text!a} is no text: half a character, or bytes that are no UTF-8") from None


def utf8(content: bytes, where: str) -> str:
    """A file's text: UTF-8, lines ended as on Unix or Windows, without the mark that some editors put first.

    Raises
    ------
    ValueError
        It is of another encoding; in one line that begins with `where` and names the line of the file.
    """
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{where}, line {line}: not UTF-8; save it as UTF-8") from None


def parse_yaml(text: str | bytes, where: str) -> Any:
    """What a text in YAML says.

    Parameters
    ----------
    text : str or bytes
        One document; bytes are UTF-8, with or without a byte order mark.
    where : str
        Where it was written, for the message.

    Raises
    ------
    ValueError
        In one line that begins with `where` and names the line of the text: no YAML, a key given twice, a
        tag that stands for more than plain data, nested too deeply, not UTF-8.
    """
    if isinstance(text, bytes):
        text = utf8(text, where)
    try:
        return yaml.load(text, _Reader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{where}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{where}: not YAML: character {error.position + 1} is no text") from None
    except RecursionError:
        raise ValueError(f"{where}: not YAML: nested too deeply") from None
    # No day of a calendar, a number of 5,000 digits, half a character, a tag that its value does not fit.
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{where}: not YAML: {error}") from None


def read_yaml(path: Path | str, where: str) -> Any:
    """What a file in YAML says; as `parse_yaml`, or OSError where it cannot be read."""
    return parse_yaml(Path(path).read_bytes(), where)
