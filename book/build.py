"""Build the book: ``python book/build.py [--scale book]``.

Stages ``_build/source`` (hand-written pages, chapters, fragments made from the evidence), lets Jupyter Book 1
render it with every warning an error, checks what came out, and only then swaps it in as ``_build/html``.
Nothing is executed or trained here: chapters are complete runs of ``lib.run`` with today's words, judged
again by today's ledger (`lib.runs.presentation`).

Unchanged staged files are not touched, so Sphinx renders only what changed. A failed or killed build leaves
the published pages as they were and forgets Sphinx's cache, because a cached page does not repeat its
warnings.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import nbformat
import yaml
from bs4 import BeautifulSoup
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from book import archive_pages, fragments, scorecard  # noqa: E402
from book.numerals import readable  # noqa: E402
from lib.ledger.archive import Piece  # noqa: E402
from lib.listing import ESCAPES  # noqa: E402
from lib.runs.parameters import PLACES, RequestError  # noqa: E402
from lib.runs.presentation import Presented, present  # noqa: E402
from lib.runs.private_paths import home, named  # noqa: E402
from lib.runs.request import Request, resolve  # noqa: E402
from lib.runs.sweep import simulation_folder  # noqa: E402
from lib.yaml_reader import utf8  # noqa: E402

DEFAULT_REPOSITORY = "does-it-hold/does-it-hold"
#: How a PNG begins in base64: tables keep pictures so.
PNG_IN_TEXT = "iVBORw0KGgo"
GITHUB = re.compile(
    r"(?:https://github\.com/|git@github\.com:|ssh://git@github\.com/)([\w.-]+/[\w.-]+?)(?:\.git)?/?"
)


class BuildError(Exception):
    """The book cannot be built; one line per problem, each naming its page."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))


def require_jupyter_book(version: str) -> None:
    """Refuse any Jupyter Book but 1.x: version 2 ignores ``_config.yml`` and ``_toc.yml``.

    Raises
    ------
    BuildError
        The major version is not 1.
    """
    if version.split(".")[0] != "1":
        raise BuildError(f"Jupyter Book 1.x is needed, found {version}: pip install -r requirements.lock")


def repository(environ: dict[str, str], remote: str = "") -> str:
    """``owner/name`` of the GitHub repository that launch and source links point to.

    ``BOOK_REPOSITORY_URL`` decides, then ``GITHUB_REPOSITORY``, then a GitHub `remote`, then the default.

    Raises
    ------
    BuildError
        ``BOOK_REPOSITORY_URL`` is no GitHub address.
    """
    if url := environ.get("BOOK_REPOSITORY_URL"):
        if match := GITHUB.fullmatch(url):
            return match[1]
        raise BuildError(f"BOOK_REPOSITORY_URL must look like https://github.com/owner/name, got {url!r}")
    if slug := environ.get("GITHUB_REPOSITORY"):
        return slug
    match = GITHUB.fullmatch(remote)
    return match[1] if match else DEFAULT_REPOSITORY


def git_remote(root: Path) -> str:
    """Address of the remote ``origin``, empty when there is none."""
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def toc_pages(root: Path) -> list[str]:
    """Page names (``book/index``, ``notebooks/meantime``, …) in the order of ``_toc.yml``."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def toc_papers(root: Path) -> list[str]:
    """Chapters of the part "Papers", which are the ones that the scorecard counts."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    files = [c["file"] for part in toc["parts"] if part["caption"] == "Papers" for c in part["chapters"]]
    return [file.removeprefix("notebooks/") for file in files]


def _assignments(source: str) -> dict[str, object]:
    """Names that a parameters cell sets to a literal."""
    found = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and node.value is not None:
            found[target.id] = ast.literal_eval(node.value)
    return found


def clean_notebook(text: str, name: str) -> str:
    """An executed notebook as the page shows it.

    Papermill's injected cell keeps only what differs from the parameters cell above it, without paths of the
    machine that ran; papermill's own metadata and warnings (all of standard error), which name such paths
    too, are dropped. Numbers are written in the book's form (`book.numerals`).

    Raises
    ------
    BuildError
        A cell ended in an error, or the text quotes a number that is not finite.
    """
    notebook = json.loads(text)
    notebook["metadata"].pop("papermill", None)
    cells, shown = [], {}
    for index, cell in enumerate(notebook["cells"]):
        cell["metadata"].pop("papermill", None)
        if any(output["output_type"] == "error" for output in cell.get("outputs", ())):
            raise BuildError(f"{name}: cell {index} ended in an error, see the log of its run")
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        tags = cell["metadata"].get("tags", [])
        source = "".join(cell["source"])
        if "parameters" in tags:
            shown = _assignments(source)
        elif "injected-parameters" in tags:
            changed = {
                key: Path(value).name if str(value).startswith("/") else value
                for key, value in _assignments(source).items()
                if key not in PLACES and (key not in shown or shown[key] != value)
            }
            if not changed:
                continue
            lines = [f"{key} = {value!r}" for key, value in changed.items()]
            cell["source"] = "\n".join(["# this page was run with", *lines])
        cells.append(cell)
    notebook["cells"] = cells
    try:
        readable(notebook)
    except ValueError as error:
        raise BuildError(f"{name}: {error}") from None
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)


def present_runs(
    root: Path,
    chapters: list[str],
    scale: str,
    resolve: Callable[..., Request],
    made: Path,
    archive: Mapping[str, Sequence[Piece]] | None = None,
) -> dict[str, Presented]:
    """The complete, current run of each chapter, as today's book shows it with its archived evidence.

    Raises
    ------
    BuildError
        A chapter has none, or one that does not fit its ledger; the message holds the command that makes it.
    """
    presented, problems = {}, []
    for chapter in chapters:
        try:
            request = resolve(chapter, scale, root=root)
            if all((request.folder / name).is_file() for name in ("evidence.json", "notebook.ipynb")):
                kept = (archive or {}).get(chapter, ())
                presented[chapter] = present(request, request.folder, made / chapter, kept)
            else:
                problems.append(
                    f"notebooks/{chapter}: no complete run of this experiment at scale {scale}; "
                    f"run: python -m lib.run {chapter} --scale {scale}"
                )
        except RequestError as error:
            says = str(error)
            problems.append(says if says.startswith("notebooks/") else f"notebooks/{chapter}: {says}")
        except OSError as error:
            problems.append(f"notebooks/{chapter}: {error}")
    if problems:
        raise BuildError(*problems)
    return presented


def simulated_verdicts(root: Path) -> Path:
    """Folder of the figures and numbers of the page on verdicts; BuildError where they are not made yet."""
    folder = simulation_folder(root)
    if not (root / folder).is_dir():
        raise BuildError(f"book/verdicts: not simulated yet; run: python book/verdict_simulation.py {folder}")
    return root / folder


def mathjax_files() -> dict[str, bytes]:
    """What pages load of the packaged MathJax 3: a script and its fonts, by path under ``_static``."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None:
        raise BuildError("MathJax is missing: pip install -r requirements.lock (sphinx-mathjax-offline)")
    folder = Path(spec.submodule_search_locations[0]) / "static" / "mathjax"
    wanted = [folder / "tex-mml-chtml.js", *sorted((folder / "output/chtml/fonts/woff-v2").glob("*.woff"))]
    return {f"mathjax/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in wanted}


def staged_files(root: Path, runs: dict[str, Presented], slug: str) -> dict[str, bytes]:
    """Everything Sphinx reads, as path → content, with `slug` in place of the default repository."""
    files = {}
    names = ["_config.yml", "_toc.yml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"]
    sources = [root / name for name in names]
    sources += [
        path for path in (root / "book").rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}
    ]
    sources += (root / "lib").rglob("*.py")
    for path in filter(Path.exists, sources):
        name = path.relative_to(root).as_posix()
        files[name] = path.read_bytes()
        if path.suffix in (".bib", ".css", ".md", ".py", ".yml"):
            try:
                files[name] = utf8(files[name], name).encode()
            except ValueError as error:
                raise BuildError(str(error)) from None
    for name, content in mathjax_files().items():
        files[f"book/_static/{name}"] = content
    problems = []
    for chapter, run in runs.items():
        try:
            text = clean_notebook(nbformat.writes(run.notebook), f"notebooks/{chapter}")
        except BuildError as error:
            problems.append(str(error))
            continue
        files[f"notebooks/{chapter}.ipynb"] = text.encode()
        for name, path in run.files.items():
            files[f"notebooks/{chapter}/{name}"] = path.read_bytes()
    if problems:
        raise BuildError(*problems)
    if slug != DEFAULT_REPOSITORY:
        for name in files:
            if name.endswith((".md", ".yml", ".ipynb")):
                files[name] = files[name].replace(DEFAULT_REPOSITORY.encode(), slug.encode())
    return files


def synchronise(files: dict[str, bytes], folder: Path) -> None:
    """Make `folder` hold exactly `files`, touching only what differs (Sphinx goes by modification time)."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def render(source: Path, work: Path, log: Path) -> Path:
    """Run Jupyter Book on `source`; returns the folder of the pages.

    Raises
    ------
    BuildError
        It warned or failed; one line per warning, and where the log is.
    """
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source)]
    command += ["--path-output", str(work), "-W", "-n", "--keep-going"]
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    lines = ESCAPES.sub("", log.read_text(encoding="utf-8")).replace(f"{source}{os.sep}", "").splitlines()
    complaints = [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL):", line)]
    # MyST-NB writes cell 4, line 5 of a notebook as line 40005.
    complaints = [re.sub(r"(\.ipynb):(\d+)\d{4}:", r"\1, cell \2:", line) for line in complaints]
    complaints = list(dict.fromkeys(complaints))
    if code or complaints:
        raise BuildError(*(complaints[:20] or lines[-3:]), f"the whole log: {log}")
    return work / "_build" / "html"


def check_pages(
    html: Path, pages: list[str], figures: dict[str, int], private: Iterable[Path] = ()
) -> list[str]:
    """Problems of built pages, a line each: missing page or figure, error, picture as text, private path.

    Parameters
    ----------
    html : Path
        Folder of the built pages.
    pages : list of str
        Page names of the table of contents.
    figures : dict of str to int
        Least number of figures that a page must show.
    private : iterable of Path
        Folders that no page may name (that the book was built in, and whoever builds it is at home in).
    """
    problems = []
    for page in pages:
        path = html / f"{page}.html"
        if not path.is_file():
            problems.append(f"{page}: the page is missing from the build")
            continue
        text = path.read_text(encoding="utf-8")
        article = BeautifulSoup(text, "html.parser").select_one("article")
        shown = article.get_text() if article else ""
        if not shown.strip():
            problems.append(f"{page}: the page is empty")
            continue
        if article.select(".output.traceback"):
            problems.append(f"{page}: shows an error output")
        if PNG_IN_TEXT in shown:
            problems.append(f"{page}: shows a picture as text")
        sources = [image["src"] for image in article.select("img") if "://" not in image["src"]]
        sources = [source for source in sources if not source.startswith("data:")]
        problems += [
            f"{page}: image {source} is missing"
            for source in sources
            if not (path.parent / source).resolve().is_file()
        ]
        if len(sources) < figures.get(page, 0):
            problems.append(f"{page}: shows {len(sources)} figures, its run made {figures[page]}")
        if place := named(text, private):
            problems.append(f"{page}: names a folder of this machine ({place})")
    return problems


def publish(built: Path, destination: Path) -> None:
    """Swap a copy of `built` in as `destination`; readers see the old pages or the new, never a mixture."""
    fresh, old = destination.with_name("html.new"), destination.with_name("html.old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(built, fresh)
    if destination.exists():
        destination.rename(old)
    fresh.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


def build(
    root: Path = ROOT,
    scale: str = "book",
    *,
    environ: dict[str, str] | None = None,
    resolve: Callable[..., Request] = resolve,
) -> Path:
    """Stage, render, check and publish; returns ``<root>/_build/html``.

    Parameters
    ----------
    root : Path
        The repository, or a copy of it.
    scale : str
        Scale whose runs the pages show.
    environ : dict, optional
        Environment that names the repository, ``os.environ`` by default.
    resolve : callable, optional
        ``(chapter, scale, overrides, root=...) -> Request``, `lib.runs.request.resolve` by default.

    Raises
    ------
    BuildError
        Anything is missing, warned about or wrong; the published pages are then left as they were.
    """
    require_jupyter_book(importlib.metadata.version("jupyter-book"))
    slug = repository(dict(os.environ) if environ is None else environ, git_remote(root))
    output = root / "_build"
    output.mkdir(exist_ok=True)
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for the build that is running in {output}", flush=True)
        lock.acquire()
    try:
        return _build(root, output, scale, slug, resolve)
    finally:
        lock.release()


def _build(root: Path, output: Path, scale: str, slug: str, resolve: Callable[..., Request]) -> Path:
    html, work, source, unfinished = (output / name for name in ("html", "sphinx", "source", ".unfinished"))
    if not html.exists() and html.with_name("html.old").exists():  # killed between the two renames of publish
        html.with_name("html.old").rename(html)
    pages = toc_pages(root)
    chapters = [page.removeprefix("notebooks/") for page in pages if page.startswith("notebooks/")]
    shutil.rmtree(output / "presented", ignore_errors=True)
    try:
        archive = archive_pages.load(chapters, root, resolve)
    except (ValueError, OSError) as error:
        raise BuildError(str(error)) from None
    runs = present_runs(root, chapters, scale, resolve, output / "presented", archive)
    evidence = {chapter: run.evidence for chapter, run in runs.items()}
    simulation = simulated_verdicts(root)

    if unfinished.exists():
        shutil.rmtree(work, ignore_errors=True)
    unfinished.touch()
    generated = output / "generated"
    shutil.rmtree(generated, ignore_errors=True)
    scorecard.write([evidence[chapter] for chapter in toc_papers(root)], generated, root, archive)
    shutil.copytree(simulation, generated, dirs_exist_ok=True)
    fragments.write(root, evidence, generated, repository=f"https://github.com/{slug}")
    archive_pages.write(root, evidence, archive, generated)
    files = staged_files(root, runs, slug)
    files |= {
        f"book/_generated/{path.relative_to(generated).as_posix()}": path.read_bytes()
        for path in generated.rglob("*")
        if path.is_file()
    }
    synchronise(files, source)
    built = render(source, work, output / "book.log")
    figures = {
        f"notebooks/{name}": sum(artifact.kind == "figure" for artifact in one.artifacts)
        for name, one in evidence.items()
    }
    if problems := check_pages(built, pages, figures, private=[root, *home()]):
        raise BuildError(*problems, f"the whole log: {output / 'book.log'}")
    publish(built, html)
    unfinished.unlink()
    return html


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the book from complete runs into _build/html.")
    parser.add_argument("--scale", default="book", help="scale whose runs the pages show (default: book)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    options = parser.parse_args(argv)
    began = time.perf_counter()
    try:
        html = build(options.root.resolve(), options.scale)
    except (BuildError, OSError) as error:
        print(f"the book was not built:\n{error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in html.rglob("*") if path.is_file())
    pages = len(toc_pages(options.root))
    print(f"{html / 'index.html'}  ({pages} pages, {size / 1e6:.1f} MB, {time.perf_counter() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
