r"""Which values a parameter may take, as the help comment of its line declares them.

================================ =============================================================
``# in {cpu, cuda}: …``          one of these
``# in [1, 8]: …``               an interval; a round bracket leaves its end out, ``inf`` is none
``# in {0} or [107, inf): …``    the one or the other
``# in /[pdc](-[pdc])*/: …``     text that matches all of the pattern
``# 1+ distinct in [1, 8]: …``   of a list: at least one element, none twice, each from there
``# 1-4 in [1, inf): …``         of a list: one to four; ``2 in``: two; of a dictionary the values are meant
``# a file or empty: …``         the name of a file that is there, or ``a folder or empty``
================================ =============================================================

Why in the comment: the cell runs before any import, and papermill reads a line only if its type has no quotes
and nothing in it but the assignment is an ``=``. So neither ``Literal["cpu", "cuda"]`` nor ``Field(ge=1)``
can be the type. The comment is what papermill's help shows. Here it becomes a type of pydantic, which checks.
A whole number is below 2^63 in any case.
"""

from __future__ import annotations

import difflib
import operator
import os
import re
from collections.abc import Sequence
from functools import cache, reduce
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import SchemaError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
#: Names of what must be there when a run starts, with what finds it.
PATHS = {"a file or empty": os.path.isfile, "a folder or empty": os.path.isdir}

_KINDS = {"int": int, "float": float, "str": str}
_NUMBER = r"-?\d+(?:\.\d+)?(?:\^\d+)?"
_SET = rf"\{{[^{{}}]+\}}|[\[(]{_NUMBER}, (?:{_NUMBER}|inf)[\])]|/[^/]+/"
_SIZE = r"(?P<least>\d+)(?P<more>\+)?(?:-(?P<most>\d+))? (?P<distinct>distinct )?"
_DOMAIN = re.compile(rf"(?:{_SIZE})?in (?P<sets>(?:{_SET})(?: or (?:{_SET}))*)")
_DECLARED = re.compile(rf"({_DOMAIN.pattern}|{'|'.join(PATHS)}): .+")
_MEANT = re.compile(r"(\d[\d+-]* )?(distinct )?in *[\[({/]|\d[\d+-]*( distinct)?:|a (file|folder)\b")


def declared(comment: str) -> tuple[str, str]:
    """The domain that a help comment declares (``""``: none), and the help.

    Raises
    ------
    ValueError
        It begins like a declaration and is none, so that it would check nothing.
    """
    if found := _DECLARED.fullmatch(comment):
        return found[1], comment[found.end(1) + 2 :]
    if _MEANT.match(comment):
        raise ValueError(f"its comment declares no domain that can be checked: `{comment}`")
    return "", comment


def fault(annotation: str, domain: str, value: Any) -> str | None:
    """What is wrong with a value of the type ``annotation``; None if it lies in ``domain``.

    Raises
    ------
    ValueError
        The type has no such domain.
    """
    try:
        _adapter(annotation, domain).validate_python(value)
    except ValidationError as error:
        return _nearest(domain, error.errors(include_url=False)[0]["input"])
    return None


def _nearest(domain: str, value: Any) -> str:
    """`` (did you mean …?)`` for the choice that is nearest to what was given, if there are choices."""
    sets = [text[1:-1] for text in re.findall(_SET, domain) if text.startswith("{")]
    choices = [name.strip() for names in sets for name in names.split(",")]
    if isinstance(value, str):
        folded = {name.casefold(): name for name in choices}
        near = [folded[name] for name in difflib.get_close_matches(value.casefold(), folded, n=1, cutoff=0.5)]
    elif isinstance(value, int | float):
        near = sorted(choices, key=lambda name: abs(type(value)(name) - value))[:1]
    else:
        near = []
    return f" (did you mean {type(value)(near[0])!r}?)" if near else ""


@cache
def _adapter(annotation: str, domain: str) -> TypeAdapter:
    outer, _, inner = annotation.removesuffix("]").partition("[")
    kind = _KINDS.get(inner.removeprefix("str, ") or outer)
    if annotation == "str" and domain in PATHS:
        return TypeAdapter(str)
    found = _DOMAIN.fullmatch(domain)
    try:
        if found is None or kind is None or (found["least"] and outer != "list"):
            raise TypeError
        element = reduce(operator.or_, (_type(part, kind) for part in re.findall(_SET, found["sets"])))
        if outer == "list":
            least = int(found["least"] or 0)
            most = found["most"] or (None if found["more"] else found["least"])
            element = Annotated[list[element], Field(min_length=least, max_length=most and int(most))]
            if found["distinct"]:
                element = Annotated[element, AfterValidator(_distinct)]
        return TypeAdapter(dict[str, element] if outer == "dict" else element, config=STRICT)
    except (TypeError, ValueError, SchemaError):
        raise ValueError(f"a {annotation} cannot be {domain}") from None


def _type(text: str, kind: type) -> Any:
    """One set of a domain, as a type of pydantic; TypeError where such values do not lie in such a set."""
    if text.startswith("{"):
        return Literal[tuple(kind(name.strip()) for name in text[1:-1].split(","))]
    if text.startswith("/") != (kind is str):
        raise TypeError
    if kind is str:
        return Annotated[kind, Field(pattern=f"^(?:{text[1:-1]})$")]
    low, high = text[1:-1].split(", ")
    bounds = {"ge" if text.startswith("[") else "gt": _number(low)}
    if high != "inf":
        bounds["le" if text.endswith("]") else "lt"] = _number(high)
    elif kind is int:
        bounds["lt"] = 2**63  # no count of anything is larger in torch or NumPy
    return Annotated[kind, Field(**bounds)]


def _number(text: str) -> float:
    base, _, power = text.partition("^")
    return int(base) ** int(power) if power else float(base)


def _distinct(values: Sequence[Any]) -> Sequence[Any]:
    if len(set(values)) < len(values):
        raise ValueError("twice")
    return values
