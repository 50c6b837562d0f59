"""What decides whether a chapter must run again: content, never time stamps.

The fingerprint of a run is a SHA-256 over everything that can change its result: the chapter's text, the
parameters as used, the ``lib`` modules that it imports (directly or through others) and those that run and
judge it, the lock file, the chapter's ledger and the data. Two runs with the same fingerprint are the same
run. Not in it: the commit (a commit that touches none of these changes nothing), the machine, and where the
run's folder lies.
"""

import ast
import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grimp
from nbformat import NotebookNode

import lib
from lib.files import file_hash
from lib.runs.parameters import PLACES, RequestError

ALWAYS = ("lib.run", "lib.ledger.evidence", "lib.ledger.verdicts")


def direct_imports(notebook: NotebookNode, modules: set[str]) -> set[str]:
    """Return those of ``modules`` that a chapter's code cells import, wherever in a cell the import stands.

    ``from lib.data import movielens`` counts as ``lib.data`` and ``lib.data.movielens``. Lines of IPython's
    own syntax (``%matplotlib``) are skipped.

    Raises
    ------
    RequestError
        A cell is not Python.
    """
    found = set()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        source = "\n".join(
            line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))
        )
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            line = (error.text or "").strip()
            raise RequestError(f"a code cell is not Python: {error.msg}, in `{line}`") from None
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found & modules


def imported_modules(notebook: NotebookNode, root: Path) -> dict[str, Path]:
    """Return the modules of ``lib`` that decide a chapter's result, with their files.

    These are the modules that the chapter imports, the ones its data sources live in, the ones that run and
    judge any chapter, the packages that hold them, and everything that those import in turn.

    Parameters
    ----------
    notebook : NotebookNode
        The chapter.
    root : Path
        The repository.

    Returns
    -------
    dict of str to Path
        Module name to its file, sorted by name.

    Raises
    ------
    RequestError
        ``root`` is not the repository of the ``lib`` that this process imports, a data source names a module
        that does not exist, or a module or a cell is not Python.
    """
    if Path(lib.__file__).resolve().parents[1] != root.resolve():
        raise RequestError(f"{root} is not where lib is imported from ({lib.__file__}): run from there")
    try:
        graph = grimp.build_graph("lib", cache_dir=None)
    except grimp.exceptions.SourceSyntaxError as error:
        raise RequestError(" ".join(str(error).split())) from None
    wanted = set(ALWAYS) & graph.modules | direct_imports(notebook, graph.modules)
    for source in data_sources(notebook):
        module = source.partition(":")[0]
        if module not in graph.modules:
            raise RequestError(f"data source {source!r} must be module:attribute of a module in lib")
        wanted.add(module)
    closure: set[str] = set()
    while wanted:
        module = wanted.pop()
        closure.add(module)
        packages = {module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)}
        wanted |= (graph.find_modules_directly_imported_by(module) | packages) - closure
    return {module: _module_file(module, root) for module in sorted(closure)}


def data_sources(notebook: NotebookNode) -> list[str]:
    """Return the ``module:attribute`` names of the data sources in a chapter's front matter."""
    return list(notebook.metadata.get("companion", {}).get("data") or [])


def _module_file(module: str, root: Path) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _digest(path: Path, algorithm: str = "sha256") -> str:
    if not path.is_file():
        return "absent"
    return f"{algorithm}:{file_hash(path, algorithm)}"


def _data_digests(name: str, data_dir: Path) -> list[str]:
    """Content of the files of a data source (``module:attribute``), none of which is fetched for it.

    A file that is not here yet counts by the hash that its source declares and will check, so that fetching
    it during a run does not change the run's identity.
    """
    module, _, attribute = name.partition(":")
    source = getattr(importlib.import_module(module), attribute)
    if not hasattr(source, "sources"):
        return [_digest(Path(path)) for path in source.files(data_dir)]
    digests = []
    for part in source.sources:
        pinned = getattr(part, "archive", part)  # of an unpacked file, the archive is what is pinned
        if not hasattr(pinned, "addresses"):
            digests.append(_digest(pinned.fetch(data_dir)))  # in an installed package: here or not
            continue
        known = pinned.known_hash or "sha256:"
        found = _digest(data_dir / pinned.name, known.partition(":")[0])
        digests.append(known if found == "absent" else found)
    return digests


def fingerprint(chapter: str, notebook: NotebookNode, parameters: Mapping[str, Any], root: Path) -> str:
    """Return the identity of a run: 64 hexadecimal digits that change when its result could.

    Parameters
    ----------
    chapter : str
        The chapter's name.
    notebook : NotebookNode
        The chapter, as read from its file.
    parameters : mapping of str to object
        All parameters as used. ``run_dir`` is left out and ``data_dir`` counts by the content found there; a
        parameter that is the name of a file, such as a checkpoint, counts with that file's content too.
    root : Path
        The repository.

    Raises
    ------
    RequestError
        As `imported_modules`.
    """
    parts = {f"module {module}": _digest(path) for module, path in imported_modules(notebook, root).items()}
    for name in (f"notebooks/{chapter}.md", "requirements.lock", f"book/claims/{chapter}.yml"):
        parts[f"file {name}"] = _digest(root / name)
    for source in data_sources(notebook):
        try:
            parts[f"data {source}"] = " ".join(_data_digests(source, Path(parameters["data_dir"])))
        except (AttributeError, RuntimeError) as error:
            raise RequestError(f"data source {source}: {error}") from error
    values = {name: value for name, value in parameters.items() if name not in PLACES}
    for name, value in values.items():
        if isinstance(value, str) and value and os.path.isfile(root / value):
            parts[f"parameter {name}"] = _digest(root / value)
    whole = json.dumps({"chapter": chapter, "parameters": values, "parts": parts}, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()
