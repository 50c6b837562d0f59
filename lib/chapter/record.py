"""The record that a chapter keeps while it runs: what its cells call.

A chapter opens a `Record`, hands it measurements, figures and tables, and closes it; that writes
``claims.json``, of which the runner makes the evidence (`lib.ledger.evidence`).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.chapter import tables
from lib.chapter.tables import Html
from lib.files import ROOT, file_hash, write_atomically
from lib.ledger.evidence import Artifact, ChapterRecord, ClaimEvidence, DataUsed
from lib.ledger.provenance import collect
from lib.ledger.schema import Claim, Ledger, load_ledger
from lib.ledger.verdicts import Verdict, judge, not_tested

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Record:
    """The record that a chapter keeps while it runs.

    Parameters
    ----------
    chapter : str
        Name of the chapter and of its ledger.
    scale : {"smoke", "book", "paper"}
    run_dir : str or path
        Folder of the run; if empty (opened by hand, Binder) ``runs/<scale>/<chapter>/interactive``.
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
        self.root = Path(root or ROOT)
        self.chapter, self.scale = chapter, scale
        self.ledger: Ledger = load_ledger(chapter, self.root)
        self.ledger.claims[0].entry(scale)  # refuses an unknown scale
        self.folder = Path(run_dir or self.root / "runs" / scale / chapter / "interactive")
        if (self.folder / "evidence.json").exists():
            raise ValueError(f"a finished run is already in {self.folder.name}: it is not written over")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started = datetime.now(UTC)
        self._claims: dict[str, ClaimEvidence] = {}
        self._data: dict[str, DataUsed] = {}
        self._artifacts: dict[str, Artifact] = {}
        self.log = _log_to(self.folder / "log.txt")

    # --- claims ---

    def tests(self, claim_id: str, **settings: Any) -> bool:
        """Whether the ledger has this scale test the claim, with these parameters (``dataset="ml-1m"``)."""
        return self.ledger[claim_id].tested_at(self.scale, **settings)

    def judge(
        self,
        claim_id: str,
        measured: Mapping[str, Any],
        *,
        protocol: str = "",
        synthetic: bool | None = None,
        anchor: str = "",
    ) -> Verdict:
        """Judge a claim by its rule, and keep the verdict.

        Parameters
        ----------
        claim_id : str
        measured : mapping
            As for `lib.ledger.verdicts.judge`; what other claims of the ledger use may be in it too.
        protocol : str
            How it was measured, if the ledger's sentence is not enough.
        synthetic : bool, optional
            Made-up data; must agree with the ledger.
        anchor : str
            Label of the section in the chapter; ``<chapter>-<claim>`` if not given.
        """
        claim = self._open(claim_id)
        measured = self._own_part(claim, measured)
        verdict = judge(claim, measured, self.scale, synthetic)
        anchor = anchor or f"{self.chapter}-{claim_id.lower()}"
        self._claims[claim_id] = ClaimEvidence.of(claim, verdict, protocol or claim.protocol, anchor)
        self.log.info("%s: %s. %s", claim_id, verdict.verdict, verdict.reason)
        return verdict

    def not_tested(self, claim_id: str, reason: str = "") -> Verdict:
        """Keep that this run does not test a claim; reason and command are the ledger's."""
        claim = self._open(claim_id)
        verdict = not_tested(claim, self.scale, reason)
        self._claims[claim_id] = ClaimEvidence.of(claim, verdict, claim.protocol, f"{self.chapter}-claims")
        return verdict

    def _open(self, claim_id: str) -> Claim:
        claim = self.ledger[claim_id]
        if claim_id in self._claims:
            raise ValueError(f"{claim_id} was already judged: {self._claims[claim_id].verdict}")
        return claim

    def _own_part(self, claim: Claim, measured: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a whole table of results what `claim` needs; a name that no claim knows is refused."""
        needed = claim.arms()
        if not needed or not all(isinstance(arms, Mapping) for arms in measured.values()):
            return measured
        metrics = {metric for other in self.ledger.claims for metric in other.arms()}
        metrics |= set(self.ledger.other_metrics)
        arms = {arm for other in self.ledger.claims for names in other.arms().values() for arm in names}
        arms |= set(self.ledger.other_arms)
        for metric, by_arm in measured.items():
            if metric not in metrics:
                raise ValueError(f"unknown metric {metric!r}: the ledger has {', '.join(sorted(metrics))}")
            if unknown := sorted(set(by_arm) - arms):
                raise ValueError(f"unknown arm {unknown[0]!r}: the ledger has {', '.join(sorted(arms))}")
        return {
            metric: {arm: values for arm, values in by_arm.items() if arm in needed[metric]}
            for metric, by_arm in measured.items()
            if metric in needed
        }

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
            files={path.name: file_hash(path) for path in map(Path, source.files(data_dir))}
            if hasattr(source, "files")
            else {},
        )
        if not synthetic and not used.files:
            raise ValueError(f"{used.name}: real data without files cannot be identified")
        self._data[used.name] = used
        return used

    def figure(self, fig: Figure, name: str) -> Figure:
        """Save a figure as ``figures/<name>.png`` and ``.svg``; returns it, to be shown once."""
        import matplotlib.pyplot as plt

        files = self._artifact(name, "figure", (f"figures/{name}.png", f"figures/{name}.svg"))
        # No dates or versions: the same numbers give the same files.
        fig.savefig(files[0], bbox_inches="tight", facecolor="white", metadata={"Software": None})
        fig.savefig(
            files[1], bbox_inches="tight", facecolor="white", metadata={"Date": None, "Creator": None}
        )
        plt.close(fig)  # or the notebook would show it a second time
        return fig

    def table(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Save a table as ``tables/<name>.csv``, with its index if that has a name; returns it."""
        (path,) = self._artifact(name, "table", (f"tables/{name}.csv",))
        indexed = any(level is not None for level in frame.index.names)
        write_atomically(path, frame.to_csv(index=indexed))
        return frame

    def _artifact(self, name: str, kind: str, files: tuple[str, ...]) -> list[Path]:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise ValueError(f"name of a {kind}: lower-case letters, digits, - and _, got {name!r}")
        if name in self._artifacts:
            raise ValueError(f"there is already a {self._artifacts[name].kind} named {name!r}")
        self._artifacts[name] = Artifact(name=name, kind=kind, files=files)
        paths = [self.folder / file for file in files]
        paths[0].parent.mkdir(exist_ok=True)
        return paths

    # --- shown in the chapter ---

    def ledger_table(self) -> Html:
        """What is claimed, and what this scale tests of it."""
        return tables.ledger_table(self.ledger, self.chapter, self.scale)

    def verdicts(self) -> Html:
        """What became of every claim so far."""
        return tables.verdict_table(self._in_order())

    def provenance(self) -> Html:
        """How this page was made."""
        return tables.provenance_table(collect(self.started, self.root), tuple(self._data.values()))

    def _in_order(self) -> tuple[ClaimEvidence, ...]:
        return tuple(self._claims[claim.id] for claim in self.ledger.claims if claim.id in self._claims)

    # --- the end ---

    def close(self) -> Path:
        """Write ``claims.json``; ValueError while a claim of the ledger has neither verdict nor reason."""
        if left := [claim.id for claim in self.ledger.claims if claim.id not in self._claims]:
            raise ValueError(f"neither judged nor marked not tested: {', '.join(left)}")
        record = ChapterRecord(
            chapter=self.chapter,
            scale=self.scale,
            claims=self._in_order(),
            data=tuple(self._data.values()),
            artifacts=tuple(self._artifacts.values()),
            provenance=collect(self.started, self.root),
        )
        record.save(self.folder / "claims.json")
        return self.folder / "claims.json"


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
