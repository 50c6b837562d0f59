"""The parameters of a chapter, and the check that values meet before anything runs.

A chapter's cell tagged ``parameters`` is the declaration: one ``name: type = value  # help`` per line. The
cell is read without executing it. Values come from there (the book's scale), from
``notebooks/scales/<scale>/<chapter>.yml`` and from the command line; a name or a type that the cell does not
declare is refused here, so that a typing error cannot run the default for a day. Not here: what a parameter
means, which only the chapter knows.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode
from papermill.inspection import inspect_notebook
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lib.ledger.schema import SCALES  # noqa: F401
from lib.yaml_reader import parse_yaml

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
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
REQUIRED = {"scale": "str", "seeds": "list[int]", "device": "str", "data_dir": "str", "run_dir": "str"}
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
    """

    name: str
    annotation: str
    default: Any
    help: str


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``known``, else the list of what is known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(known) or 'none'})"


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
        No parameters cell, or a line in it that is not ``name: type = literal  # help``, or a parameter that
        every chapter must have is missing or has another type.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise RequestError(f"{path} must have one cell tagged 'parameters', found {len(cells)}")
    helps = {name: found["help"] for name, found in inspect_notebook(notebook).items()}
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
        if name not in helps:
            raise RequestError(f"{path}: papermill cannot read `{line}`: one line each, no '=' in its help")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise RequestError(f"{path}: the value of {name} must be a literal, found `{line}`") from None
        parameters[name] = Parameter(name, annotation, check(name, annotation, default), helps[name])
    for name, annotation in REQUIRED.items():
        if name not in parameters or parameters[name].annotation != annotation:
            raise RequestError(f"{path}: every chapter has a parameter `{name}: {annotation}`")
    return parameters


def check(name: str, annotation: str, value: Any) -> Any:
    """Return ``value`` as the declared type, or refuse it.

    Strict: no text for a number, no number for a switch.

    Raises
    ------
    RequestError
        The value is of another type, not finite, or a list of seeds that is empty, negative or names a seed
        twice.
    """
    try:
        candidate = TypeAdapter(TYPES[annotation], config=STRICT).validate_python(value)
    except ValidationError:
        hint = ""
        if annotation.startswith("list") and not isinstance(value, list):
            hint = f"; write [{value}]"
        elif annotation.startswith("dict") and not isinstance(value, dict):
            hint = "; write {name: number}"
        raise RequestError(
            f"parameter {name} must be {annotation}, got {value!r} ({type(value).__name__}){hint}"
        ) from None
    if name == "seeds" and (not candidate or len(set(candidate)) < len(candidate) or min(candidate) < 0):
        raise RequestError(
            f"parameter seeds must name at least one seed, none twice, none negative; got {value!r}"
        )
    return candidate


def parse(parameter: Parameter, text: str) -> Any:
    """Read a value given as text, for example on a command line, as the parameter's type.

    Raises
    ------
    RequestError
        As `check`.
    """
    if parameter.annotation == "str":
        return text
    try:
        value = parse_yaml(text, parameter.name)
    except ValueError:
        value = text
    return check(parameter.name, parameter.annotation, value)


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
        An unknown name, with the nearest known one; a wrong type.
    """
    checked = {}
    for name, value in values.items():
        if name not in parameters:
            raise RequestError(f"{where}: unknown parameter {name!r}{suggest(str(name), parameters)}")
        try:
            checked[name] = check(name, parameters[name].annotation, value)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None
    return checked
