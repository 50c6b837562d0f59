"""What a run measures, as an identity: content, never time stamps.

What was *measured* and what is *said about it* are different things, and only the first is expensive. The
fingerprint of a run is a SHA-256 over all that can change its measurements:

- the chapter's code cells, as syntax (`lib.files.syntax_digest`), and the values of its parameters;
- the method: the modules of `lib` that the cells import, directly or through others, as syntax;
- the data that the parameters select, by content;
- the versions of the packages that cells and method import, and Python's;
- of the ledger, which claims the scale tests and the numbers that a cell computes with.

Not in it, because they can be made again from stored measurements (`lib.runs.presentation`): prose, captions,
comments and docstrings; the ledger's words, rules and limits; tables, figures' style, command line; packages
that draw, test or build. Not in it either: the commit, the machine, the number of threads, and where the
run's folder lies.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import grimp
from nbformat import NotebookNode

import lib
from lib.files import ROOT, file_hash, syntax_digest
from lib.ledger.schema import load_ledger
from lib.runs.parameters import PLACES, Parameter, RequestError, read_parameters, suggest

#: Rooms that produce no numbers, but for `METHOD`.
PRESENTATION = ("lib.run", "lib.runs", "lib.chapter", "lib.ledger")

#: Modules that keep house: they say and write, and compute nothing.
HOUSEKEEPING = ("lib.files", "lib.listing", "lib.machine")

#: Modules of those rooms that do: intervals are also drawn and tested as a method.
METHOD = ("lib.ledger.intervals",)

#: Packages that show what was measured.
DRAWING = frozenset({"IPython", "matplotlib", "myst_nb", "seaborn", "tqdm"})


# --- code --------------------------------------------------------------------------------------------------


def code_cells(notebook: NotebookNode) -> list[str]:
    """Source of the cells that measure: code, but not the parameters, whose values count instead.

    Lines of IPython's own syntax (``%matplotlib``) are left out.
    """
    return [
        "\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))
        for cell in notebook.cells
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])
    ]


def _trees(notebook: NotebookNode) -> Iterator[ast.Module]:
    for source in code_cells(notebook):
        try:
            yield ast.parse(source)
        except SyntaxError as error:
            line = (error.text or "").strip()
            raise RequestError(f"a code cell is not Python: {error.msg}, in `{line}`") from None


def imported_names(tree: ast.AST) -> set[str]:
    """Modules that code imports, wherever in it the import stands.

    ``from lib.data import movielens`` counts as ``lib.data`` and ``lib.data.movielens``: which of the two is
    a module is for the caller to know.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def method_modules(notebook: NotebookNode, root: Path, sources: tuple[str, ...] = ()) -> dict[str, Path]:
    """The modules of `lib` that decide what a chapter measures, with their files.

    These are the modules that its cells import, the ones that its data `sources` live in, the packages that
    hold them, and everything that those import in turn, but for `PRESENTATION`.

    Parameters
    ----------
    notebook : NotebookNode
        The chapter.
    root : Path
        The repository.
    sources : tuple of str
        Data sources, ``module:attribute``.

    Returns
    -------
    dict of str to Path
        Module name to its file, sorted by name.

    Raises
    ------
    RequestError
        `root` is not the repository of the `lib` that this process imports, a data source names a module that
        does not exist, or a module or a cell is not Python.
    """
    if Path(lib.__file__).resolve().parents[1] != root.resolve():
        raise RequestError(f"{root} is not where lib is imported from ({lib.__file__}): run from there")
    graph = _graph(_stamp(root))
    wanted = set().union(*map(imported_names, _trees(notebook))) & set(graph)
    for source in sources:
        module = source.partition(":")[0]
        if module not in graph:
            raise RequestError(f"data source {source!r} must be module:attribute of a module in lib")
        wanted.add(module)
    closure: set[str] = set()
    while wanted:
        module = wanted.pop()
        if _produces_no_numbers(module):
            continue
        closure.add(module)
        packages = {module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)}
        wanted |= (graph[module] | packages) - closure
    return {module: _module_file(module, root) for module in sorted(closure)}


def _produces_no_numbers(module: str) -> bool:
    inside = any(module == room or module.startswith(f"{room}.") for room in PRESENTATION)
    return (inside and module not in METHOD) or module in HOUSEKEEPING


def _stamp(root: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells one state of `lib` from another within this process."""
    files = sorted((root / "lib").rglob("*.py"))
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)


@cache
def _graph(stamp: tuple) -> dict[str, frozenset[str]]:
    """Which module of `lib` imports which; one graph for all points of a sweep."""
    try:
        graph = grimp.build_graph("lib", cache_dir=None)
    except grimp.exceptions.SourceSyntaxError as error:
        raise RequestError(" ".join(str(error).split())) from None
    return {module: frozenset(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def _module_file(module: str, root: Path) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# --- packages ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _read(source: str) -> tuple[str, frozenset[str]]:
    """Identity of some code, and what it imports; read once for all points of a sweep."""
    return syntax_digest(source), frozenset(imported_names(ast.parse(source)))


def package_versions(sources: Iterable[str]) -> dict[str, str]:
    """Version of every installed package that some of these sources (Python code) import.

    Left out are the standard library, this project, and `DRAWING`. A version's local part (``+cpu``) says
    where a wheel came from and is cut off.
    """
    names = {name.partition(".")[0] for source in sources for name in _read(source)[1]}
    found = {}
    for name in sorted(names - set(sys.stdlib_module_names) - DRAWING - {"lib"}):
        for distribution in _distributions(name):
            found[distribution] = version(distribution).partition("+")[0]
    return found


def _distributions(name: str) -> list[str]:
    """The packages that an import name comes from; most are called as they are imported."""
    try:
        version(name)
    except PackageNotFoundError:
        return sorted(set(_by_import_name().get(name, [])))
    return [name]


@cache
def _by_import_name() -> Mapping[str, list[str]]:
    return packages_distributions()


# --- data --------------------------------------------------------------------------------------------------


def data_sources(notebook: NotebookNode, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The data sources (``module:attribute``) that a chapter reads with these parameters.

    The front matter lists them under ``companion: data``. An entry is a source, or a parameter with a source
    for each value that it may have: ``{dataset: {ml-1m: "lib.data.movielens:ML_1M", …}}``.

    Raises
    ------
    RequestError
        The front matter names no parameter of the chapter, or the parameter's value none of its sources.
    """
    found = []
    for entry in notebook.metadata.get("companion", {}).get("data") or []:
        if isinstance(entry, str):
            found.append(entry)
            continue
        for parameter, choices in entry.items():
            if parameter not in parameters:
                raise RequestError(f"the front matter selects data by {parameter!r}, which is no parameter")
            value = parameters[parameter]
            if value not in choices:
                raise RequestError(f"parameter {parameter}: unknown {value!r}{suggest(str(value), choices)}")
            found.append(choices[value])
    return tuple(found)


def _digest(path: Path, algorithm: str = "sha256") -> str:
    if not path.is_file():
        return "absent"
    return f"{algorithm}:{file_hash(path, algorithm)}"


def content(path: Path) -> str:
    """Content of a file, or of all files in a folder with their names."""
    if not path.is_dir():
        return _digest(path)
    listed = {str(file.relative_to(path)): _digest(file) for file in path.rglob("*") if file.is_file()}
    return f"sha256:{hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()}"


def _data_digests(name: str, data_dir: Path, fetch: bool = False) -> list[str]:
    """Content of the files of a data source (``module:attribute``).

    A file that is not here yet counts by the hash that its source declares and will check, so that fetching
    it during a run does not change the run's identity. Where no hash is known, only `fetch` can tell.
    """
    module, _, attribute = name.partition(":")
    source = getattr(importlib.import_module(module), attribute)
    if not hasattr(source, "sources"):  # folders of many files, or what knows no better
        return (
            [source.identity(data_dir)]
            if hasattr(source, "identity")
            else [_by_hand(lambda: source.files(data_dir))]
        )
    digests = []
    for part in source.sources:
        pinned = getattr(part, "archive", part)  # of an unpacked file, the archive is what is pinned
        pinned = getattr(pinned, "otherwise", pinned)  # of a system's copy, what it is a copy of
        if hasattr(pinned, "requirement"):
            digests.append(_digest(pinned.fetch(data_dir)))  # in a package, which is installed or the cure
            continue
        if not hasattr(pinned, "addresses"):
            digests.append(_by_hand(lambda pinned=pinned: [pinned.fetch(data_dir)]))
            continue
        if fetch and pinned.known_hash is None:
            pinned.fetch(data_dir)
        known = pinned.known_hash or "sha256:"
        found = _digest(data_dir / pinned.name, known.partition(":")[0])
        if found == "absent" and hasattr(part, "member"):
            found = _digest(data_dir / part.member)  # unpacked by hand, and read without its archive
        digests.append(known if found == "absent" else found)
    return digests


def _by_hand(files: Callable[[], list[Path]]) -> str:
    """Content of files that people put there; where they are not, the run itself will say so."""
    try:
        return " ".join(_digest(Path(path)) for path in files())
    except RuntimeError:
        return "absent"


# --- all of it ---------------------------------------------------------------------------------------------


def _of_ledger(chapter: str, scale: str, notebook: NotebookNode, root: Path) -> dict[str, Any]:
    """What a run takes from the ledger: which claims it tests, the numbers that its cells compute with."""
    try:
        ledger = load_ledger(chapter, root)
    except ValueError as error:
        raise RequestError(str(error)) from None
    entries = {claim.id: claim.entry(scale) for claim in ledger.claims}
    used = {"tests": {name: [one.tested, one.synthetic, one.conditions()] for name, one in entries.items()}}
    literals: set[ast.AST] = set()  # `record.published` of a call that says which claim
    for tree in _trees(notebook):
        for node in ast.walk(tree):  # a call comes before what it calls
            called = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "published"
            literal = called and node.args and isinstance(node.args[0], ast.Constant)
            if literal:
                literals.add(node.func)
            if literal or (getattr(node, "attr", "") in ("published", "ledger") and node not in literals):
                for name in [node.args[0].value] if literal else entries:
                    numbers = ledger[name].paper if name in entries else ()
                    used[f"published {name}"] = [
                        [number.name, number.value, number.between] for number in numbers
                    ]
    return used


def fingerprint(
    chapter: str,
    scale: str,
    notebook: NotebookNode,
    parameters: Mapping[str, Any],
    root: Path = ROOT,
    *,
    fetch: bool = False,
) -> str:
    """Return the identity of a run's measurements: 64 hexadecimal digits that change when these could.

    Parameters and errors are those of `measurement_parts`.
    """
    return identity(chapter, parameters, measurement_parts(chapter, scale, notebook, parameters, root, fetch))


def identity(chapter: str, parameters: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """The fingerprint of a chapter with these parameters, from its `measurement_parts`."""
    values = {name: value for name, value in parameters.items() if name not in PLACES}
    whole = json.dumps({"chapter": chapter, "parameters": values, "parts": parts}, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def method_identity(parts: Mapping[str, Any]) -> dict[str, str]:
    """The method of a run, part by part: what it measures with, whatever its seeds and other parameters.

    Runs whose methods are equal can be pooled, and of two that are not one can say what differs.

    Parameters
    ----------
    parts : mapping
        `measurement_parts`.

    Returns
    -------
    dict of str to str
        A digest of each cell, module, file and of the ledger's numbers that cells compute with; of each
        package its version; ``absent`` for a file that is not here. Not in it: which claims the ledger tests,
        since that changes no number.
    """
    flat = {f"package {name}": version for name, version in parts["packages"].items()}
    flat["Python"] = parts["python"]
    numbers = {name: value for name, value in parts["ledger"].items() if name != "tests"}
    rest = {name: value for name, value in parts.items() if name not in ("packages", "python", "ledger")}
    for name, value in (rest | ({"numbers of the ledger": numbers} if numbers else {})).items():
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
        flat[name] = value if value == "absent" else digest
    return dict(sorted(flat.items()))


def measurement_parts(
    chapter: str,
    scale: str,
    notebook: NotebookNode,
    parameters: Mapping[str, Any],
    root: Path = ROOT,
    fetch: bool = False,
) -> dict[str, Any]:
    """All that can change a run's measurements, but for the parameters' values: content by name.

    Parameters
    ----------
    chapter, scale : str
    notebook : NotebookNode
        The chapter, as read from its file.
    parameters : mapping of str to object
        All parameters as used. ``run_dir`` is left out and ``data_dir`` counts by the content found there; a
        parameter that is the name of a file, or declared as a folder's, counts with its content too.
    root : Path
        The repository.
    fetch : bool
        Fetch data whose hash nobody published, without which they have no identity.

    Raises
    ------
    RequestError
        As `method_modules` and `data_sources`; there is no ledger, or a malformed one.
    """
    shared = shared_parts(chapter, scale, notebook, parameters, root, fetch)
    return shared | named_parts(read_parameters(notebook, chapter), parameters, root)


def shared_parts(
    chapter: str, scale: str, notebook: NotebookNode, parameters: Mapping[str, Any], root: Path, fetch: bool
) -> dict[str, Any]:
    """Those of `measurement_parts` that runs share whose data sources and ``data_dir`` are the same."""
    sources = data_sources(notebook, parameters)
    modules = method_modules(notebook, root, sources)
    code = {name: path.read_text(encoding="utf-8-sig") for name, path in modules.items()}
    code |= {f"cell {number}": source for number, source in enumerate(code_cells(notebook), start=1)}
    parts: dict[str, Any] = {name: _read(source)[0] for name, source in code.items()}
    parts["packages"] = package_versions(code.values())
    parts["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"
    parts["ledger"] = _of_ledger(chapter, scale, notebook, root)
    for source in sources:
        try:
            parts[f"data {source}"] = " ".join(_data_digests(source, root / parameters["data_dir"], fetch))
        except (AttributeError, RuntimeError, OSError) as error:
            raise RequestError(f"data source {source}: {error}") from error
    return parts


def named_parts(
    declared: Mapping[str, Parameter],
    parameters: Mapping[str, Any],
    root: Path,
    read: Callable[[Path], str] = content,
) -> dict[str, Any]:
    """Those of `measurement_parts` that parameters name: files, and folders where one is declared."""
    parts = {}
    for name, value in parameters.items():
        if name in PLACES or not isinstance(value, str) or not value:
            continue
        # A folder only where one is meant: `book` is a scale, too.
        folder = "folder" in declared[name].domain and os.path.isdir(root / value)
        if folder or os.path.isfile(root / value):
            parts[f"parameter {name}"] = read(root / value)
    return parts
