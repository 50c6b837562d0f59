"""The parameters of a chapter, and the check that values meet before anything runs.

A chapter's cell tagged ``parameters`` is the declaration: one ``name: type = value  # domain: help`` per
line, where the domain says which values of the type there may be (`lib.runs.domains`). The cell is read
without executing it. Values come from there (the book's scale), from
``notebooks/scales/<scale>/<chapter>.yml`` and from the command line; a name, a type or a value that the cell
does not declare is refused here, so that a typing error cannot run the default for a day. Not here: what a
parameter means, which only the chapter knows.
"""

from __future__ import annotations

import ast
import difflib
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nbformat import NotebookNode
from papermill.inspection import inspect_notebook
from pydantic import TypeAdapter, ValidationError

from lib.ledger.schema import SCALES  # noqa: F401
from lib.runs.domains import STRICT, declared, fault
from lib.yaml_reader import parse_yaml, whole_text

TYPES = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list[int]": list[int],
    "list[float]": list[float],
    "list[str]": list[str],
    "dict[str, float]": dict[str, float],
}
REQUIRED = {"scale": "str", "seeds": "list[int]", "device": "str", "data_dir": "str", "run_dir": "str"}
SEEDS = "1+ distinct in [0, 2^32)"  # what a generator of random numbers takes
# Where things are, not what is computed: they take no part in the identity of a run.
PLACES = ("data_dir", "run_dir")


class RequestError(ValueError):
    """What was asked for cannot run; the message is one line that says what was expected and what came."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell.

    Attributes
    ----------
    name, annotation, help : str
        As written in the cell; ``annotation`` is one of ``TYPES``.
    default : int, float, bool, str, list or dict
        The value at the book's scale.
    domain : str
        Which values there may be, as `lib.runs.domains` reads it; empty for all of the type.
    """

    name: str
    annotation: str
    default: Any
    help: str
    domain: str = ""

    @property
    def kind(self) -> str:
        """Type and domain, as a message says them: ``int in [1, 8]``."""
        between = " " if self.domain.startswith("in") else ", "
        return f"{self.annotation}{between}{self.domain}" if self.domain else self.annotation


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``known``, else the list of what is known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {textwrap.shorten(', '.join(known), 200, placeholder=' …') or 'none'})"


def read_parameters(notebook: NotebookNode, path: str) -> dict[str, Parameter]:
    """Read the parameters that a chapter declares.

    Parameters
    ----------
    notebook : NotebookNode
        The chapter.
    path : str
        The chapter's file, as papermill and the error messages name it.

    Returns
    -------
    dict of str to Parameter
        In the order of the cell.

    Raises
    ------
    RequestError
        No parameters cell, or a line in it that is not ``name: type = literal  # domain: help``; a value or a
        domain that the type does not have; a parameter that every chapter must have is missing or has another
        type.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise RequestError(f"{path} must have one cell tagged 'parameters', found {len(cells)}")
    comments = {name: found["help"] for name, found in inspect_notebook(notebook).items()}
    try:
        lines = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise RequestError(f"{path}: parameters cell, line {error.lineno}: {error.msg}") from None
    parameters: dict[str, Parameter] = {}
    for node in lines:
        line = ast.unparse(node)
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value):
            raise RequestError(f"{path}: a parameter is `name: type = value  # help`, found `{line}`")
        name, annotation = node.target.id, ast.unparse(node.annotation)
        if annotation not in TYPES:
            raise RequestError(
                f"{path}: type of {name} must be one of {', '.join(TYPES)}; found {annotation}"
            )
        if name in parameters:
            raise RequestError(f"{path}: parameter {name} is declared twice")
        if name not in comments:
            raise RequestError(f"{path}: papermill cannot read `{line}`: one line each, no '=' in its help")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise RequestError(f"{path}: the value of {name} must be a literal, found `{line}`") from None
        try:
            domain, explanation = declared(comments[name])
            domain = domain or (SEEDS if name == "seeds" else "")
            parameter = Parameter(name, annotation, default, explanation, domain)
            parameters[name] = replace(parameter, default=check(parameter, default))
        except ValueError as error:
            raise RequestError(f"{path}: {name}: {error}") from None
    for name, annotation in REQUIRED.items():
        if name not in parameters or parameters[name].annotation != annotation:
            raise RequestError(f"{path}: every chapter has a parameter `{name}: {annotation}`")
    return parameters


def check(parameter: Parameter, value: Any) -> Any:
    """Return ``value`` as the declared type, or refuse it.

    Strict: no text for a number, no number for a switch.

    Raises
    ------
    RequestError
        The value is of another type, not finite, or outside the domain.
    """
    name, annotation = parameter.name, parameter.annotation
    try:
        candidate = TypeAdapter(TYPES[annotation], config=STRICT).validate_python(value)
    except ValidationError:
        hint = ""
        if annotation.startswith("list") and not isinstance(value, list | dict):
            hint = f"; write [{short(value)}]"
        elif annotation.startswith("dict") and not isinstance(value, dict):
            hint = "; write {name: number}"
        raise RequestError(
            f"parameter {name} must be {annotation}, got {short(value)} ({type(value).__name__}){hint}"
        ) from None
    wrong = fault(annotation, parameter.domain, candidate) if parameter.domain else None
    if wrong is not None:
        raise RequestError(f"parameter {name} must be {parameter.kind}, got {short(value)}{wrong}")
    return candidate


def short(value: Any, most: int = 60) -> str:
    """A value as Python writes it, cut to so many characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def parse(parameter: Parameter, text: str) -> Any:
    """Read a value given as text, for example on a command line, as the parameter's type.

    Raises
    ------
    RequestError
        As `check`.
    """
    name, annotation = parameter.name, parameter.annotation
    try:
        value = whole_text(text) if annotation == "str" else parse_yaml(text, name)
    except ValueError as error:
        raise RequestError(f"parameter {name} must be {parameter.kind}, got {short(text)}: {error}") from None
    return check(parameter, value)


def override(parameters: Mapping[str, Parameter], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the checked ``values``, all of which must be declared.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        What the chapter declares.
    values : mapping of str to object
        Overrides.
    where : str
        Where the overrides were written, for the message.

    Raises
    ------
    RequestError
        An unknown name, with the nearest known one; a wrong type; a value outside the domain.
    """
    checked = {}
    for name, value in values.items():
        if name not in parameters:
            raise RequestError(f"{where}: unknown parameter {short(name)}{suggest(str(name), parameters)}")
        try:
            checked[name] = check(parameters[name], value)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None
    return checked
