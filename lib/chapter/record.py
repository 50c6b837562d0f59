"""The record that a chapter keeps while it runs: what its cells call.

A chapter opens a `Record`, hands it measurements, figures and tables, and closes it; that writes
``claims.json``, of which the runner makes the evidence (`lib.ledger.evidence`).
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.chapter import figures, findings, per_unit, tables
from lib.chapter.tables import Html
from lib.files import ROOT, file_hash, parse_json, write_atomically
from lib.ledger.archive import Piece, archived
from lib.ledger.evidence import (
    Artifact,
    ChapterRecord,
    ClaimEvidence,
    DataUsed,
    Measurement,
    own_part,
    rule_identity,
)
from lib.ledger.provenance import Provenance, collect, git_state
from lib.ledger.schema import Claim, Ledger, Setting, load_ledger
from lib.ledger.verdicts import judge, not_tested

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class ShownFigure:
    """A figure as a cell shows it, marked with its name."""

    def __init__(self, png: str, shows: str) -> None:
        self.png, self.shows = png, shows

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, object]]:
        return {"image/png": self.png, "text/plain": f"<{self.shows}>"}, tables.mark(self.shows)


class Record:
    """The record that a chapter keeps while it runs.

    Wherever that is, from here on PyTorch has one thread, as the published runs have: for networks this small
    more are slower, and they sum in another order. ``OMP_NUM_THREADS`` in the environment asks for another
    number. Text in pandas is Python's, also where Arrow is installed, which compares mixed values otherwise.

    Parameters
    ----------
    chapter : str
        Name of the chapter and of its ledger.
    scale : {"smoke", "book", "long", "paper"}
    run_dir : str or path
        Folder of the run; if empty (opened by hand, Binder) ``runs/<scale>/<chapter>/interactive``. By hand a
        cell may be run again: what it keeps then takes the place of what it kept before.
    root : path, optional
        Folder of the project.

    Raises
    ------
    ValueError
        An unknown scale, a malformed ledger, or a folder with a finished run in it.
    """

    def __init__(
        self, chapter: str, *, scale: str, run_dir: str | Path = "", root: str | Path | None = None
    ) -> None:
        import pandas as pd  # slow to import, and every chapter has it loaded

        pd.options.mode.string_storage = "python"
        if "OMP_NUM_THREADS" not in os.environ:
            import torch  # as pandas

            torch.set_num_threads(1)
        self.root = Path(root or ROOT)
        self.chapter, self.scale = chapter, scale
        self.ledger: Ledger = load_ledger(chapter, self.root)
        self.ledger.claims[0].entry(scale)  # refuses an unknown scale
        self._run = bool(run_dir)
        self.folder = Path(run_dir or self.root / "runs" / scale / chapter / "interactive")
        if (self.folder / "evidence.json").exists():
            raise ValueError(f"a finished run is already in {self.folder.name}: it is not written over")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started, self._made_from = datetime.now(UTC), git_state(self.root)
        self._clock = time.monotonic()
        self._altered, self._earlier_seconds = _noted(self.folder) if self._run else (None, 0.0)
        self._measurements: dict[str, Measurement] = {}
        self._claims: dict[str, ClaimEvidence] = {}
        self._data: dict[str, DataUsed] = {}
        self._artifacts: dict[str, Artifact] = {}
        self._numbers: dict[str, float] = {}
        self._settings: dict[str, Setting] = {}
        self._units = per_unit.UnitTable(replacing=not self._run)
        self.log = _log_to(self.folder / "log.txt")

    # --- claims ---

    def settings(self, **values: Setting) -> None:
        """Keep what the ledger's scopes and conditions speak of: data and sizes, before claims are judged."""
        self._settings |= values

    def tests(self, claim_id: str, **settings: Setting) -> bool:
        """Whether the ledger has this scale test the claim, with the settings and these (``depth=50``)."""
        return self.ledger[claim_id].tested_at(self.scale, **self._settings | settings)

    def judge(
        self,
        claim_id: str,
        measured: Mapping[str, Any],
        *,
        protocol: str = "",
        synthetic: bool | None = None,
    ) -> Html:
        """Judge a claim by its rule, and keep the verdict.

        Parameters
        ----------
        claim_id : str
        measured : mapping
            As for `lib.ledger.verdicts.judge`; what other claims of the ledger use may be in it too. An arm
            may have results (replicates, units), as an array or a frame; they are needed where the claim
            names a `unit`, and are kept as ``tables/per-<unit>.csv.gz``.
        protocol : str
            How it was measured, if the ledger's sentence is not enough.
        synthetic : bool, optional
            Made-up data; must agree with the ledger.
        """
        claim = self._open(claim_id)
        self._refuse_unknown(claim, measured)
        units = per_unit.spreads(claim, measured)
        if units:
            self._units.add(claim.unit, measured)
        measured = per_unit.means(measured)
        # Checks names and values, and says whose they are; what is kept are the raw numbers.
        judge(claim, own_part(claim, measured), self.scale, synthetic, units)
        return self._keep(
            Measurement(
                claim=claim_id,
                measured=_plain(measured),
                units=units,
                tested=True,
                protocol=protocol,
                synthetic=synthetic,
                anchor=f"{self.chapter}-{claim_id.lower()}",
                rule=rule_identity(claim, self.scale),
            )
        )

    def not_tested(self, claim_id: str, reason: str = "") -> Html:
        """Keep that this run does not test a claim; reason and command are the ledger's."""
        claim = self._open(claim_id)
        not_tested(claim, self.scale, reason)  # refuses to leave out what this scale tests
        anchor, rule = f"{self.chapter}-claims", rule_identity(claim, self.scale)
        return self._keep(Measurement(claim=claim_id, tested=False, reason=reason, anchor=anchor, rule=rule))

    def _keep(self, measurement: Measurement) -> Html:
        evidence = measurement.judged_by(self.ledger, self.scale, self._settings, self._altered)
        self._measurements[measurement.claim] = measurement
        self._claims[measurement.claim] = evidence
        self.log.info("%s: %s. %s", evidence.id, evidence.verdict, evidence.reason)
        return tables.verdict_line(evidence)

    def _open(self, claim_id: str) -> Claim:
        claim = self.ledger[claim_id]
        if self._run and claim_id in self._claims:
            raise ValueError(f"{claim_id} was already judged: {self._claims[claim_id].verdict}")
        return claim

    def _refuse_unknown(self, claim: Claim, measured: Mapping[str, Any]) -> None:
        """Refuse a metric or an arm that no claim of the ledger knows: it is a slip of the pen."""
        if not claim.arms() or not all(isinstance(arms, Mapping) for arms in measured.values()):
            return
        asked = [other.arms(floor=True) for other in self.ledger.claims]
        metrics = {metric for names in asked for metric in names} | set(self.ledger.other_metrics)
        arms = {arm for names in asked for group in names.values() for arm in group}
        arms |= set(self.ledger.other_arms)
        for metric, by_arm in measured.items():
            if metric not in metrics:
                raise ValueError(f"unknown metric {metric!r}: the ledger has {', '.join(sorted(metrics))}")
            if unknown := sorted(set(by_arm) - arms):
                raise ValueError(f"unknown arm {unknown[0]!r}: the ledger has {', '.join(sorted(arms))}")

    def published(self, claim_id: str) -> dict[str, float]:
        """The paper's numbers of a claim by name, for a cell that computes with them or draws them.

        Written with the claim's id as a literal, they belong to what the run measured: another number in the
        ledger is then another run (`lib.runs.fingerprint`). Ranges are left out.
        """
        return {n.name: n.value for n in self.ledger[claim_id].paper if n.value is not None}

    # --- while it runs ---

    def checkpoint(self, name: str) -> Path | None:
        """File from which a killed training of this name continues; None outside a run of `lib.run`."""
        if not self._run:
            return None
        if not re.fullmatch(r"[^/\\\0]+", name) or name.startswith(".") or len(name.encode()) > 200:
            raise ValueError(
                f"name of a checkpoint: no slash, no leading dot, at most 200 bytes; got {name!r}"
            )
        return self.folder / "checkpoints" / f"{name}.pt"

    def number(self, name: str, value: float) -> None:
        """Keep a number for the chapter's text, which shows it by ``{glue:text}`<chapter>-<name>:.2f` ``.

        ValueError for another value under the same name: the text would show the last, in both places.
        """
        value = int(value) if isinstance(value, int | np.integer) else float(value)
        before = self._numbers.get(name, value)
        if self._run and before != value and not np.isnan([before, value]).all():
            raise ValueError(f"number {name!r} is {before!r} already, got {value!r}")
        self._numbers[name] = value
        self._glue(name, value)

    def _glue(self, name: str, value: float | str) -> None:
        from myst_nb import glue

        glue(f"{self.chapter}-{name}", value, display=False)

    # --- data, figures, tables ---

    def data(self, source: Any, data_dir: str | Path | None = None) -> DataUsed:
        """Keep which data were used.

        Parameters
        ----------
        source : object
            With `name`, `licence`, `synthetic` and ``files(data_dir)``; a generated world needs only
            ``synthetic = True``.
        data_dir : str or path
            Where its files are.
        """
        synthetic = bool(getattr(source, "synthetic", False))
        used = DataUsed(
            name=getattr(source, "name", type(source).__name__),
            licence=getattr(source, "licence", "") or ("made here" if synthetic else "unknown"),
            synthetic=synthetic,
            files=_hashes([Path(path) for path in source.files(data_dir)])
            if hasattr(source, "files")
            else {},
        )
        if not synthetic and not used.files:
            raise ValueError(f"{used.name}: real data without files cannot be identified")
        self._data[used.name] = used
        return used

    def figure(self, fig: Figure, name: str) -> ShownFigure:
        """Save a figure as ``figures/<name>.png`` and ``.svg``; returns what a cell shows.

        Of one of the book's own kinds (`lib.chapter.figures`) the data are kept beside it, so that it can be
        drawn again in another style.
        """
        import matplotlib.pyplot as plt

        files = self._artifact(name, "figure", (f"figures/{name}.png", f"figures/{name}.svg"))
        png = figures.shown(fig)  # first: each drawing moves the panels by a hair
        figures.save(fig, files[0], files[1])
        if drawing := figures.redrawable(fig, png):
            write_atomically(files[0].with_suffix(".json"), drawing)
        shown = ShownFigure(png, f"figure {name}")
        plt.close(fig)  # or the notebook would show it a second time
        return shown

    def table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Save a table as ``tables/<name>.csv``, with its index if that has a name; returns it."""
        (path,) = self._artifact(name, "table", (f"tables/{name}.csv",))
        indexed = any(level is not None for level in frame.index.names)
        write_atomically(path, frame.to_csv(index=indexed))
        return frame

    def numbers(self, *claim_ids: str, name: str) -> Html:
        """Table of the numbers of arithmetic claims that were judged; also saved as ``tables/<name>.csv``."""
        (path,) = self._artifact(name, "table", (f"tables/{name}.csv",), numbers=claim_ids)
        claims = [self._claims[claim_id] for claim_id in claim_ids]
        write_atomically(path, tables.numbers_frame(claims).to_csv(index=False))
        return tables.numbers_table(claims).marked(f"numbers {' '.join(claim_ids)}")

    def _artifact(
        self, name: str, kind: str, files: tuple[str, ...], numbers: tuple[str, ...] = ()
    ) -> list[Path]:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise ValueError(f"name of a {kind}: lower-case letters, digits, - and _, got {name!r}")
        if self._run and name in self._artifacts:
            raise ValueError(f"there is already a {self._artifacts[name].kind} named {name!r}")
        self._artifacts[name] = Artifact(name=name, kind=kind, files=files, numbers=numbers)
        paths = [self.folder / file for file in files]
        paths[0].parent.mkdir(exist_ok=True)
        return paths

    # --- shown in the chapter ---

    def findings(self, *claim_ids: str) -> ShownFigure:
        """What the strongest evidence says of these claims, a line each; its numbers may be quoted.

        The text quotes ``{glue:text}`<chapter>-found-C4` `` (see `lib.chapter.findings.numbers`).
        """
        for claim in claim_ids:
            self.ledger[claim]  # refuses an unknown one, which would be left out in silence
        strongest = self._strongest()
        largest = findings.largest_of(self.scale, self._archive)
        for name, value in findings.numbers(strongest.values(), largest).items():
            self._glue(f"found-{name}", value)
        figure = findings.findings_figure(strongest[claim] for claim in claim_ids if claim in strongest)
        return self._shown(figure, f"findings {' '.join(claim_ids)}")

    def found(self, claim_id: str) -> ShownFigure:
        """The arms of one claim in the strongest evidence there is.

        ValueError for an unknown claim, or one that was not judged before and is not in the archive.
        """
        self.ledger[claim_id]  # refuses an unknown one
        strongest = self._strongest()
        if claim_id not in strongest:
            raise ValueError(f"{claim_id} is not in the archive: judge it before its figure is drawn")
        return self._shown(findings.found_figure(strongest[claim_id]), f"found {claim_id}")

    def table_figure(self, name: str, kind: str, **options: Any) -> ShownFigure:
        """A figure of the book's kinds (`lib.chapter.figures`) from a table of the strongest run there is.

        That is an archived run of the largest scale that has a table ``name``, unless this one is larger.
        """
        if name not in self._artifacts:
            raise ValueError(f"there is no table {name!r} yet: keep it before its figure is drawn")
        largest = findings.largest_of(self.scale, self._archive)
        table = findings.strongest_table(name, self.folder, largest, self.root)
        shows = json.dumps([name, kind, options], separators=(",", ":"))
        return self._shown(findings.table_figure(table, kind, options), f"table-figure {shows}")

    def _strongest(self) -> dict[str, ClaimEvidence]:
        return findings.strongest_of(self._claims, self.scale, self._archive)

    @cached_property
    def _archive(self) -> tuple[Piece, ...]:
        return archived(self.chapter, self.root)

    @staticmethod
    def _shown(fig: Figure, shows: str) -> ShownFigure:
        import matplotlib.pyplot as plt

        shown = ShownFigure(figures.shown(fig), shows)
        plt.close(fig)
        return shown

    def ledger_table(self) -> Html:
        """What is claimed, and what this scale tests of it."""
        return tables.ledger_table(self.ledger, self.chapter, self.scale, self._settings).marked("ledger")

    def verdicts(self) -> Html:
        """What became of every claim so far."""
        return tables.verdict_table(self._in_order()).marked("verdicts")

    def provenance(self) -> Html:
        """How this page was made."""
        table = tables.provenance_table(self._collect(), tuple(self._data.values()))
        return table.marked("provenance")

    def _collect(self) -> Provenance:
        seconds = time.monotonic() - self._clock
        return collect(self.started, self.root, self._made_from, seconds, self._earlier_seconds)

    def _in_order(self) -> tuple[ClaimEvidence, ...]:
        return tuple(self._claims[claim.id] for claim in self.ledger.claims if claim.id in self._claims)

    # --- the end ---

    def close(self) -> Path:
        """Write ``claims.json``; ValueError while a claim of the ledger has neither verdict nor reason."""
        if left := [claim.id for claim in self.ledger.claims if claim.id not in self._claims]:
            raise ValueError(f"neither judged nor marked not tested: {', '.join(left)}")
        for unit, frame in self._units.frames().items():
            (path,) = self._artifact(f"per-{unit}", "table", (f"tables/per-{unit}.csv.gz",))
            text = frame.to_csv(index=False, float_format="%.6g")
            write_atomically(path, gzip.compress(text.encode(), mtime=0))
        record = ChapterRecord(
            chapter=self.chapter,
            scale=self.scale,
            settings=self._settings,
            altered=self._altered,
            claims=self._in_order(),
            measurements=tuple(self._measurements[claim.id] for claim in self.ledger.claims),
            data=tuple(self._data.values()),
            artifacts=tuple(self._artifacts.values()),
            provenance=self._collect(),
        )
        record.save(self.folder / "claims.json")
        return self.folder / "claims.json"


def _noted(folder: Path) -> tuple[tuple[str, ...] | None, float]:
    """What `lib.run` notes of a run: which parameters are not the scale's own (None if nobody did), and the
    seconds that it had taken before it was continued.
    """
    try:
        noted = parse_json((folder / "parameters.json").read_bytes())
        return tuple(noted["altered"]), float(noted.get("earlier_seconds", 0.0))
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None, 0.0


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of files by their names, with that of their folder where two have the same."""
    names = [path.name for path in files]
    return {
        path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}": file_hash(path)
        for path in files
    }


def _plain(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Measurements as JSON has them; ValueError that names an arm with a value that is no finite number."""
    for metric, value in measured.items():
        for arm, values in value.items() if isinstance(value, Mapping) else [("", value)]:
            if not np.isfinite(np.asarray(values, dtype=float)).all():
                whose = f"{metric} of {arm}" if arm else metric
                raise ValueError(f"{whose} has a value that is not finite: {values!r}")
    return {
        name: {arm: [float(v) for v in np.atleast_1d(values)] for arm, values in value.items()}
        if isinstance(value, Mapping)
        else float(value)
        for name, value in measured.items()
    }


def _log_to(path: Path) -> logging.Logger:
    """The logger of all of `lib`, writing to this file only."""
    log = logging.getLogger("lib")
    for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
        log.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    formatter = logging.Formatter("%(asctime)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime  # a kernel that nobody started for a run has the machine's time zone
    handler.setFormatter(formatter)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return log
