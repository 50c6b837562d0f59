"""What can be run: the chapters, and a request that has been checked before anything starts.

A request is a chapter, a scale and the values of its parameters, all of them known and among those declared
(`lib.runs.parameters`), with the fingerprint that names its folder (`lib.runs.fingerprint`). Nothing here
writes a file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jupytext
from nbformat import NotebookNode

from lib.files import ROOT
from lib.listing import one_line
from lib.runs.domains import PATHS
from lib.runs.fingerprint import (
    content,
    data_sources,
    identity,
    method_identity,
    named_parts,
    shared_parts,
)
from lib.runs.parameters import (
    PLACES,
    SCALES,
    Parameter,
    RequestError,
    override,
    read_parameters,
    short,
    suggest,
)
from lib.yaml_reader import parse_yaml, read_yaml, utf8

if TYPE_CHECKING:
    from lib.chapter.tables import Html


@dataclass(frozen=True)
class Request:
    """A run that can be started: everything in it has been checked.

    Attributes
    ----------
    chapter, scale : str
    notebook : NotebookNode
        The chapter's text, without outputs.
    declared : dict of str to Parameter
        The parameters of its cell.
    parameters : dict of str to object
        All parameters as used, except ``run_dir``; ``data_dir`` is absolute.
    fingerprint : str
        64 hexadecimal digits.
    root : Path
        The repository.
    method : dict of str to str
        What it measures with, part by part, whatever the parameters' values.
    altered : tuple of str
        The parameters whose values are not the scale's own, as `altered` finds them.
    """

    chapter: str
    scale: str
    notebook: NotebookNode
    declared: dict[str, Parameter]
    parameters: dict[str, Any]
    fingerprint: str
    root: Path
    method: Mapping[str, str] = field(default_factory=dict)
    altered: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where this run lives unless told otherwise."""
        return self.root / "runs" / self.scale / self.chapter / self.fingerprint[:12]


def chapters(root: Path | None = None) -> list[str]:
    """Return the names of the chapters of the repository (default: this one), sorted."""
    return sorted(path.stem for path in ((root or ROOT) / "notebooks").glob("*.md"))


def read_chapter(chapter: str, root: Path | None = None) -> NotebookNode:
    """Read a chapter's text notebook.

    Raises
    ------
    RequestError
        There is no such chapter, or its file is not a MyST notebook of that name.
    """
    root = root or ROOT
    if chapter not in chapters(root):
        raise RequestError(f"unknown chapter {chapter!r}{suggest(chapter, chapters(root))}")
    path = f"notebooks/{chapter}.md"
    try:
        text = utf8((root / path).read_bytes(), path)
        if front := re.match(r"---\n(.*?\n)---\n", text, re.DOTALL):
            parse_yaml(f"\n{front[1]}", path)  # jupytext keeps the last of two keys, and names no line
        notebook = jupytext.reads(text, fmt="md:myst")
    except Exception as error:  # jupytext raises what its YAML and Markdown readers raise
        said = one_line(error)
        raise RequestError(
            said if said.startswith(path) else f"{path} is not a MyST notebook: {said}"
        ) from error
    companion = notebook.metadata.get("companion")
    if not isinstance(companion, dict) or companion.get("id") != chapter:
        raise RequestError(f"{path}: the front matter must say companion: {{id: {chapter}}}")
    # Whatever an editor wrote, or left out: it runs in this Python (`lib.runs.execution`).
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return notebook


def resolve(
    chapter: str,
    scale: str = "book",
    overrides: Mapping[str, Any] | None = None,
    root: Path | None = None,
    *,
    fetch: bool = False,
) -> Request:
    """Check a request against the chapter's own parameters, without running anything.

    Parameters
    ----------
    chapter : str
        A name of `chapters`.
    scale : {"smoke", "book", "long", "paper"}
        ``book`` is the parameters cell itself; the others override it from
        ``notebooks/scales/<scale>/<chapter>.yml``. A chapter without that file does not have the scale.
    overrides : mapping of str to object, optional
        Values of single parameters, of the declared types.
    root : Path, optional
        The repository; it must be the one that ``lib`` is imported from.
    fetch : bool
        Fetch data whose hash nobody published; without it nothing is written.

    Raises
    ------
    RequestError
        Unknown chapter, scale or parameter (with the nearest known name), a wrong type, or a value that the
        chapter does not allow.
    """
    (request,) = resolve_all(chapter, scale, [overrides or {}], root, fetch=fetch)
    return request


def resolve_all(
    chapter: str,
    scale: str,
    points: Iterable[Mapping[str, Any]],
    root: Path | None = None,
    *,
    fetch: bool = False,
) -> list[Request]:
    """As `resolve`, for several overrides: chapter, method and data are read once for all of them."""
    root = (root or ROOT).resolve()
    notebook = read_chapter(chapter, root)
    declared = read_parameters(notebook, f"notebooks/{chapter}.md")
    usual = scale_parameters(chapter, scale, declared, root)
    shared: dict[tuple[object, ...], dict[str, Any]] = {}  # by what of them depends on parameters
    content_once = cache(content)
    requests = []
    for overrides in points:
        for name, instead in {"scale": "--scale", "run_dir": "--out"}.items():
            if name in overrides:
                raise RequestError(f"parameter {name} is set by {instead}")
        parameters = usual | override(declared, overrides, chapter)
        parameters |= {"scale": scale, "data_dir": str((root / parameters["data_dir"]).resolve())}
        del parameters["run_dir"]
        read = (data_sources(notebook, parameters), parameters["data_dir"])
        if read not in shared:
            shared[read] = shared_parts(chapter, scale, notebook, parameters, root, fetch)
        parts = shared[read] | named_parts(declared, parameters, root, content_once)
        fingerprint, method = identity(chapter, parameters, parts), method_identity(parts)
        others = altered(usual, parameters)
        requests.append(
            Request(chapter, scale, notebook, declared, parameters, fingerprint, root, method, others)
        )
    return requests


def scale_parameters(
    chapter: str, scale: str, declared: Mapping[str, Parameter], root: Path
) -> dict[str, Any]:
    """All declared parameters of a chapter with the values that a scale gives them; errors as `resolve`."""
    if scale not in SCALES:
        raise RequestError(f"unknown scale {scale!r}{suggest(scale, SCALES)}")
    usual = {name: parameter.default for name, parameter in declared.items()}
    return usual if scale == "book" else usual | _scale_overrides(chapter, scale, declared, root)


def altered(usual: Mapping[str, Any], parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of a run that are not those of its scale, but for seeds, device and places."""
    aside = ("scale", "seeds", "device", *PLACES)
    return tuple(n for n in usual if n not in aside and n in parameters and parameters[n] != usual[n])


def refuse_absent(request: Request, names: Collection[str]) -> None:
    """Refuse what parameters name and this machine does not have: a file, a folder, a graphics card.

    Not part of `resolve`: a run may be planned, and looked up, on another machine than it needs.

    Parameters
    ----------
    request : Request
    names : collection of str
        The parameters to look at.

    Raises
    ------
    RequestError
        In one line: which parameter, and what is not there.
    """
    for name in names:
        value, domain = request.parameters[name], request.declared[name].domain
        if value and domain in PATHS and not PATHS[domain](request.root / value):
            there = short(str(request.root / value), 200)
            raise RequestError(f"parameter {name}: {there} is not {domain.split(' or ')[0]}")
    if "device" in names and request.parameters["device"] == "cuda" and not _has_cuda():
        raise RequestError("parameter device: PyTorch finds no GPU here for 'cuda'; use 'cpu'")


def _has_cuda() -> bool:
    import torch  # seconds, which only a run on a GPU has to spend

    return torch.cuda.is_available()


def chapter_scales(chapter: str, root: Path | None = None) -> tuple[str, ...]:
    """The scales that a chapter has, smallest first: ``book``, and those with a file of their own."""
    root = root or ROOT
    return tuple(scale for scale in SCALES if scale == "book" or _scale_file(chapter, scale, root).is_file())


def _scale_file(chapter: str, scale: str, root: Path) -> Path:
    return root / "notebooks" / "scales" / scale / f"{chapter}.yml"


def _scale_overrides(
    chapter: str, scale: str, declared: Mapping[str, Parameter], root: Path
) -> dict[str, Any]:
    path = _scale_file(chapter, scale, root)
    where = path.relative_to(root).as_posix()
    try:
        values = read_yaml(path, where) or {}
    except FileNotFoundError:
        raise RequestError(f"{chapter} has no scale {scale!r}: {where} does not exist") from None
    except ValueError as error:
        raise RequestError(str(error)) from None
    if not isinstance(values, dict):
        raise RequestError(f"{where} must map parameters to values, got {type(values).__name__}")
    for name in ("scale", *PLACES):
        if name in values:
            raise RequestError(f"{where} must not set {name}")
    return override(declared, values, where)


def parameter_table(chapter: str, root: Path | None = None) -> Html:
    """What each parameter of a chapter means, may be and is at each scale it has, for the chapter to show."""
    from lib.chapter import tables  # only a page needs it; the batch reads this module often

    root = (root or ROOT).resolve()
    declared = read_parameters(read_chapter(chapter, root), f"notebooks/{chapter}.md")
    scales = chapter_scales(chapter, root)
    others = {scale: _scale_overrides(chapter, scale, declared, root) for scale in scales if scale != "book"}
    rows = [
        (
            f"<code>{name.replace('_', '_<wbr>')}</code>",  # may end a line there
            escape(parameter.help),
            f"<code>{escape(parameter.kind)}</code>",
            *(escape(str(others.get(scale, {}).get(name, parameter.default))) for scale in scales),
        )
        for name, parameter in declared.items()
        if name not in ("scale", *PLACES)
    ]
    header = ("parameter", "meaning", "type", *scales)
    return tables.html_table("parameters", f"{len(rows)} parameters", header, rows).marked("parameters")
