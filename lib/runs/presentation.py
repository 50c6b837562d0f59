"""A complete run as today's book shows it, without executing anything.

What a run measured is stored: raw measurements, tables, the outputs of its cells, the data of figures that
are drawn in the book's style. What is said about it is made again from there: prose, captions and cell
options come from the chapter's text as it is now, verdicts from today's ledger, tables and figures of the
record from today's code. Cells are matched by their place: their syntax is the same, or it would be another
run (`lib.runs.fingerprint`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
from nbformat import NotebookNode

from lib.chapter import figures, findings, tables
from lib.files import write_atomically
from lib.ledger.archive import Piece, largest
from lib.ledger.evidence import Evidence
from lib.ledger.schema import Ledger, load_ledger
from lib.ledger.standing import standings
from lib.runs.execution import INJECTED
from lib.runs.parameters import RequestError
from lib.runs.request import Request, parameter_table
from lib.runs.runner import damage


@dataclass(frozen=True)
class Presented:
    """What a page is made of.

    Attributes
    ----------
    notebook : NotebookNode
        Today's text with the run's outputs.
    evidence : Evidence
        The run's measurements under today's ledger.
    files : dict of str to Path
        Figures and tables, by their path in the run's folder (``figures/curves.svg``), where they are now.
    """

    notebook: NotebookNode
    evidence: Evidence
    files: dict[str, Path]


def present(request: Request, folder: Path, made: Path, archive: Sequence[Piece] = ()) -> Presented:
    """Make the page of a complete run.

    Parameters
    ----------
    request : Request
        Of the run, from `lib.runs.request.resolve`: it holds the chapter's text.
    folder : Path
        The run's; nothing in it is changed.
    made : Path
        Where to put the figures and tables that are made again.
    archive : sequence of Piece
        The chapter's archived evidence under today's ledger: it speaks where it is stronger than the run.

    Raises
    ------
    RequestError
        It must run again: it is damaged, or does not fit today's ledger or the chapter.
    """
    chapter = request.chapter
    if wrong := damage(folder):
        raise RequestError(f"notebooks/{chapter}: {wrong}; {_again(request)}")
    try:
        stored = Evidence.load(folder / "evidence.json")
        ledger = load_ledger(chapter, request.root)
        evidence = stored.judged_by(ledger)
    except ValueError as error:
        raise RequestError(f"notebooks/{chapter}: {error}; {_again(request)}") from None
    files = {name: folder / name for artifact in evidence.artifacts for name in artifact.files}
    page = _Page(request, ledger, evidence, folder, made, files, archive)
    executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
    return Presented(page.notebook(executed), evidence, files)


def _again(request: Request) -> str:
    return f"run: python -m lib.run {request.chapter} --scale {request.scale} --force"


class _Page:
    def __init__(
        self,
        request: Request,
        ledger: Ledger,
        evidence: Evidence,
        folder: Path,
        made: Path,
        files: dict[str, Path],
        archive: Sequence[Piece],
    ) -> None:
        standing = {one.claim.id: one for one in standings(evidence, archive)}
        self.request, self.ledger, self.evidence = request, ledger, evidence
        self.folder, self.made, self.files = folder, made, files
        self.claims = {claim.id: claim for claim in evidence.claims}
        self.strongest = {claim: one.claim for claim, one in standing.items()}
        self.largest = largest((Piece.of_run(evidence), *archive))
        self.parts: dict[str, Callable[..., tables.Html]] = {
            "ledger": lambda: tables.ledger_table(ledger, request.chapter, request.scale, evidence.settings),
            "verdicts": lambda: tables.verdict_table(evidence.claims, standing),
            "verdict": lambda claim: tables.verdict_line(self.claims[claim], standing[claim]),
            "provenance": lambda: tables.provenance_table(evidence.provenance, evidence.data),
            "parameters": lambda: parameter_table(request.chapter, request.root),
            "numbers": lambda *claims: tables.numbers_table([self.claims[claim] for claim in claims]),
        }

    def notebook(self, executed: NotebookNode) -> NotebookNode:
        """Today's cells with the outputs of the cells that stood in their place."""
        self._numbers()
        page = copy.deepcopy(self.request.notebook)
        page.metadata.update({k: v for k, v in executed.metadata.items() if k not in page.metadata})
        ran = [cell for cell in executed.cells if cell.cell_type == "code"]
        injected = [cell for cell in ran if INJECTED in cell.metadata.get("tags", [])]
        ran = [cell for cell in ran if INJECTED not in cell.metadata.get("tags", [])]
        there = [cell for cell in page.cells if cell.cell_type == "code"]
        if len(ran) != len(there):
            raise RequestError(
                f"notebooks/{self.request.chapter}: {len(there)} code cells, its run has {len(ran)}; "
                f"{_again(self.request)}"
            )
        for cell, before in zip(there, ran, strict=True):
            cell.execution_count = before.execution_count
            cell.outputs = [self._shown(output) for output in self._found_anew(before.outputs)]
        place = next(n for n, cell in enumerate(page.cells) if "parameters" in cell.metadata.get("tags", []))
        page.cells[place + 1 : place + 1] = injected
        return page

    def _found_anew(self, outputs: list[NotebookNode]) -> list[NotebookNode]:
        """Where a cell quotes the strongest evidence, what it quotes is that of today."""
        prefix = f"{self.request.chapter}-found-"
        names = [output.get("metadata", {}).get("scrapbook", {}).get("name", "") for output in outputs]
        marks = [output.get("metadata", {}).get(tables.MARK, {}).get("shows", "") for output in outputs]
        if not any(mark.startswith("findings") for mark in marks):
            return outputs
        kept = [one for one, name in zip(outputs, names, strict=True) if not name.startswith(prefix)]
        found = findings.numbers(self.strongest.values(), self.largest)
        return [*findings.glued(self.request.chapter, found), *kept]

    def _shown(self, output: NotebookNode) -> NotebookNode:
        """An output as today's code makes it, if the record made it; else as it was."""
        mark = output.get("metadata", {}).get(tables.MARK)
        if not mark:
            return output
        kind, _, shows = mark["shows"].partition(" ")
        names = shows.split()
        output = copy.deepcopy(output)
        if kind in ("findings", "found"):
            output.data["image/png"] = self._picture(kind, names)
        elif kind == "table-figure":
            output.data["image/png"] = self._of_table(*json.loads(shows))
        elif kind == "figure":
            output.data["image/png"] = self._figure(*names) or output.data["image/png"]
        else:
            output.data["text/html"] = str(self.parts[kind](*names))
        return output

    def _picture(self, kind: str, names: list[str]) -> str:
        """A figure of the strongest evidence."""
        figures.use_style()
        claims = [self.strongest[name] for name in names]
        figure = findings.findings_figure(claims) if kind == "findings" else findings.found_figure(*claims)
        picture = figures.shown(figure)
        plt.close(figure)
        return picture

    def _of_table(self, name: str, kind: str, options: dict[str, object]) -> str:
        """A figure from a table of the strongest run."""
        figures.use_style()
        table = findings.strongest_table(name, self.folder, self.largest, self.request.root)
        figure = findings.table_figure(table, kind, options)
        picture = figures.shown(figure)
        plt.close(figure)
        return picture

    def _figure(self, name: str) -> str | None:
        """Draw a figure again in today's style, if its data were kept: its picture."""
        drawing = self.folder / "figures" / f"{name}.json"
        if not drawing.is_file():
            return None
        figures.use_style()
        figure = figures.redraw(drawing.read_text(encoding="utf-8"))
        paths = [self._made(f"figures/{name}{suffix}") for suffix in (".png", ".svg")]
        picture = figures.shown(figure)
        figures.save(figure, *paths)
        plt.close(figure)
        return picture

    def _numbers(self) -> None:
        """Write the tables of arithmetic numbers, shown or not, with today's verdicts."""
        for artifact in self.evidence.artifacts:
            if artifact.numbers:
                frame = tables.numbers_frame([self.claims[claim] for claim in artifact.numbers])
                write_atomically(self._made(artifact.files[0]), frame.to_csv(index=False))

    def _made(self, name: str) -> Path:
        path = self.made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files[name] = path
        return path
