"""Pooling: runs of one experiment with other seeds, put together as if they had been one.

Seeds of a long experiment run apart, on all cores; its claims are judged over all of them together. Pooled is
only what differs in nothing but the seeds: the same parameters, method, data and packages, no seed twice.
Arrays per seed are strung together, runs in the order of their first seeds, results per test unit too, and
what the units add to the error bars is computed anew from these; arithmetic must be equal in all runs, but
for the last digits, in which processors differ, and what is measured on the same photographs or layers but
for a tenth of its spread: the first run's stand. What was pooled before pools again: the first seeds of a
plan, archived, with the rest.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.ledger.archive import ArchivedEvidence, RunMade, first_difference
from lib.ledger.evidence import Artifact, Evidence, Measurement
from lib.ledger.provenance import Provenance
from lib.ledger.schema import Ledger
from lib.ledger.units import UnitSpread

if TYPE_CHECKING:
    import pandas as pd

#: Relative difference of numbers that are the same arithmetic on two processors.
ROUNDING = 1e-6
#: Difference of what is measured per photograph, say, on two processors, over its spread between photographs:
#: a quantised network carries a last digit from layer to layer, and a mean moves by little of its interval.
REPEATED = 0.1


@dataclass(frozen=True)
class CompleteRun:
    """A complete run, or what several were pooled to: its folder, its name in messages, its evidence, what it
    was measured with, and how its runs came about."""

    folder: Path
    name: str
    evidence: Evidence
    method: Mapping[str, str]
    made: tuple[RunMade, ...]

    @property
    def seeds(self) -> list[int]:
        """In the order of its measurements."""
        return list(self.evidence.parameters["seeds"])

    @classmethod
    def of(cls, folder: Path, name: str, evidence: Evidence, held: Mapping[str, Any]) -> CompleteRun:
        """A single run; `held` is what its folder says of it."""
        names = set(RunMade.model_fields) & set(Provenance.model_fields)
        same = {name: getattr(evidence.provenance, name) for name in names}
        made = RunMade(seeds=evidence.parameters["seeds"], fingerprint=held["fingerprint"], **same)
        return cls(folder, name, evidence, held["method"], (made,))


def pool(
    runs: Sequence[CompleteRun], ledger: Ledger, plan: str = ""
) -> tuple[ArchivedEvidence, dict[str, bytes]]:
    """Put complete runs together.

    Parameters
    ----------
    runs : sequence of CompleteRun
        In any order; one run alone is its own pool.
    ledger : Ledger
        Says over what each claim is replicated, and judges.
    plan : str
        Name of the planned run that they are.

    Returns
    -------
    ArchivedEvidence
        Claims judged by `ledger`, those that no longer fit it among them (see `lib.ledger.archive.Piece`).
    dict of str to bytes
        Tables, by their path in the folder. Those with a column ``seed`` are strung together, others are
        equal in all runs or kept once per run. Tables of numbers that the ledger judges are left out.

    Raises
    ------
    ValueError
        In one line: the first difference between two runs, or a seed that two of them have.
    """
    if not runs:
        raise ValueError("no run to pool")
    runs = sorted(runs, key=lambda run: run.seeds[0])
    for other in runs[1:]:
        _refuse_others(runs[0], other)
    seeds = [seed for run in runs for seed in run.seeds]
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ValueError(f"seed {twice[0]} is in more than one of the runs")
    tables, artifacts = _tables(runs)
    measurements = []
    for number, first in enumerate(runs[0].evidence.measurements):
        replicate = next((claim.replicate for claim in ledger.claims if claim.id == first.claim), "seed")
        pooled = _measurement(runs, number, replicate)
        units = units_of(pooled, tables, seeds) if len(runs) > 1 else pooled.units
        measurements.append(pooled.model_copy(update={"units": units}))
    first = runs[0].evidence
    evidence = ArchivedEvidence(
        chapter=first.chapter,
        scale=first.scale,
        settings=first.settings,
        altered=first.altered,
        claims=(),
        measurements=tuple(measurements),
        data=first.data,
        artifacts=artifacts,
        provenance=_provenance(runs),
        parameters=first.parameters | {"seeds": seeds},
        plan=plan,
        method=dict(runs[0].method),
        runs=tuple(made for run in runs for made in run.made),
    )
    return evidence, tables


def _refuse_others(one: CompleteRun, other: CompleteRun) -> None:
    """Refuse a run that differs in more than its seeds."""

    def parts(run: CompleteRun) -> dict[str, Mapping[str, object]]:
        evidence = run.evidence
        values = {name: value for name, value in evidence.parameters.items() if name != "seeds"}
        return {
            "": {"chapter": evidence.chapter, "scale": evidence.scale},
            "parameter ": values,
            "method, ": run.method,
            "data set ": {used.name: used.files for used in evidence.data},
            "package ": {**evidence.provenance.packages, "Python": evidence.provenance.python},
            "claim ": {str(number): m.claim for number, m in enumerate(evidence.measurements)},
        }

    mine, theirs = parts(one), parts(other)
    for what in mine:
        if difference := first_difference(theirs[what], mine[what]):
            raise ValueError(f"{other.name} and {one.name} do not pool: {what}{difference}")


# --- measurements ------------------------------------------------------------------------------------------


def _measurement(runs: Sequence[CompleteRun], number: int, replicate: str) -> Measurement:
    """One claim's measurement over all runs; where the rule differs, the one that was judged by first."""
    parts = [run.evidence.measurements[number] for run in runs]
    started = [run.evidence.provenance.started for run in runs]
    pooled = parts[started.index(min(started))]
    other = f"Measured per {replicate} in each of several runs, which pool by seed only."
    not_by_seed = pooled.model_copy(update={"tested": False, "reason": other, "measured": {}, "units": {}})
    if any(part.reason == other for part in parts):  # what was pooled before
        return not_by_seed
    for name in ("tested", "reason", "protocol", "synthetic", "anchor"):
        for run, part in zip(runs, parts, strict=True):
            if (theirs := getattr(part, name)) != (mine := getattr(parts[0], name)):
                raise ValueError(f"{pooled.claim}: {name} is {theirs!r} in {run.name}, not {mine!r}")
    if not pooled.tested or len(runs) == 1:
        return pooled
    where = [f"{pooled.claim}, {run.name}" for run in runs]
    measured: dict[str, Any] = {}
    for metric in _same_names([part.measured for part in parts], where):
        values = [part.measured[metric] for part in parts]
        if not isinstance(values[0], Mapping):
            measured[metric] = _equal(values, [f"{one}, {metric}" for one in where])
            continue
        measured[metric] = {}
        for arm in _same_names(values, [f"{one}, {metric}" for one in where]):
            arrays = [by_arm[arm] for by_arm in values]
            per_seed = [len(array) == len(run.seeds) for array, run in zip(arrays, runs, strict=True)]
            if replicate == "seed" and all(per_seed):
                measured[metric][arm] = tuple(value for array in arrays for value in array)
            elif all(_alike(array, arrays[0]) for array in arrays):
                measured[metric][arm] = arrays[0]
            elif replicate == "seed" and _alike_throughout(arrays):
                measured[metric][arm] = arrays[0][:1]
            elif replicate == "seed":
                raise ValueError(f"{where[0]}, {metric} of {arm}: neither one number per seed nor all equal")
            elif all(_repeated(array, arrays[0]) for array in arrays):
                measured[metric][arm] = arrays[0]
            else:
                return not_by_seed
    return pooled.model_copy(update={"measured": measured})


def _same_names(mappings: Sequence[Mapping[str, Any]], where: Sequence[str]) -> list[str]:
    for mapping, place in zip(mappings, where, strict=True):
        if differing := sorted(set(mapping) ^ set(mappings[0])):
            raise ValueError(f"{place}: {differing[0]!r} is measured in some runs only")
    return list(mappings[0])


def _alike(value: Any, other: Any) -> bool:
    """Equal, floating-point numbers to a millionth: another processor rounds otherwise."""
    if isinstance(value, tuple) and isinstance(other, tuple):
        return len(value) == len(other) and all(map(_alike, value, other))
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=ROUNDING)
    return value == other


def _alike_throughout(arrays: Sequence[Sequence[float]]) -> bool:
    """One number, which some runs give once and some, pooled before, for each of their seeds."""
    return all(_alike(value, arrays[0][0]) for array in arrays for value in array)


def _repeated(values: Sequence[float], others: Sequence[float]) -> bool:
    """Measured on the same replicates: nearer to each other than a fraction of the replicates' spread."""
    if len(values) != len(others) or len(values) < 2:
        return False
    return bool(np.abs(np.subtract(values, others)).max() <= REPEATED * np.std(others, ddof=1))


def _equal(values: Sequence[Any], where: Sequence[str]) -> Any:
    for value, place in zip(values, where, strict=True):
        if not _alike(value, values[0]):
            raise ValueError(f"{place} is {value!r}, not {values[0]!r}: arithmetic does not vary by seed")
    return values[0]


def _provenance(runs: Sequence[CompleteRun]) -> Provenance:
    """Of all runs together: seconds are sums, memory the largest; each run's own stands beside it."""
    made = [run.evidence.provenance for run in runs]

    def all_of(name: str) -> str | None:
        named = dict.fromkeys(value for one in made if (value := getattr(one, name)))
        return "; ".join(named) or None

    sections: dict[str, float] = {}
    for one in made:
        for heading, seconds in one.sections.items():
            sections[heading] = sections.get(heading, 0.0) + seconds
    last = max(made, key=lambda one: one.ended)
    return last.model_copy(
        update={
            **{name: all_of(name) for name in ("platform", "processor", "instruction_set", "accelerator")},
            "dirty": any(one.dirty for one in made),
            "threads": max(one.threads for one in made),
            "started": min(one.started for one in made),
            "wall_seconds": sum(one.wall_seconds for one in made),
            "peak_memory_bytes": max(one.peak_memory_bytes for one in made),
            "sections": sections,
        }
    )


# --- tables ------------------------------------------------------------------------------------------------


def _text(content: bytes, name: str) -> str:
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8")


def _content(text: str, name: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0) if name.endswith(".gz") else text.encode()


def _tables(runs: Sequence[CompleteRun]) -> tuple[dict[str, bytes], tuple[Artifact, ...]]:
    """The tables of all runs, and the artifacts that name them."""
    kept: dict[str, bytes] = {}
    artifacts = []
    named = [
        {a.name: a for a in run.evidence.artifacts if a.kind == "table" and not a.numbers} for run in runs
    ]
    for name in _same_names(named, [run.name for run in runs]):
        files = [tables[name].files for tables in named]
        texts = [
            {file: _text((run.folder / file).read_bytes(), file) for file in theirs}
            for run, theirs in zip(runs, files, strict=True)
        ]
        found = _pooled(texts, runs)
        kept |= {path: _content(text, path) for path, text in found.items()}
        artifacts.append(named[0][name].model_copy(update={"files": tuple(found)}))
    return kept, tuple(artifacts)


def _pooled(tables: Sequence[Mapping[str, str]], runs: Sequence[CompleteRun]) -> dict[str, str]:
    """One table over all runs, or one for each, by path; of each run `tables` has one, or many if pooled."""
    if any(len(table) > 1 for table in tables):
        return {
            path: text
            for table, run in zip(tables, runs, strict=True)
            for path, text in (table if len(table) > 1 else _marked(table, run)).items()
        }
    file = next(iter(tables[0]))
    texts = [table[file] for table in tables]
    if len(set(texts)) == 1:
        return {file: texts[0]}
    heads = [next(csv.reader(io.StringIO(text)), []) for text in texts]
    if not any("seed" in head for head in heads):  # a column for each seed, for instance
        marked = [_marked(table, run) for table, run in zip(tables, runs, strict=True)]
        return {path: text for table in marked for path, text in table.items()}
    for head, run in zip(heads, runs, strict=True):
        if head != heads[0]:
            raise ValueError(f"{run.name}, {file}: columns {', '.join(head)}, not {', '.join(heads[0])}")
    rows = [row for text in texts for row in list(csv.reader(io.StringIO(text)))[1:]]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([heads[0], *rows])
    return {file: out.getvalue()}


def _marked(table: Mapping[str, str], run: CompleteRun) -> dict[str, str]:
    """A run's table under a path that says which seeds it has."""
    ((file, text),) = table.items()
    stem, dot, suffix = file.partition(".")
    return {f"{stem}-seed-{'-'.join(map(str, run.seeds))}{dot}{suffix}": text}


# --- results per test unit ---------------------------------------------------------------------------------


def units_of(
    measurement: Measurement, tables: Mapping[str, bytes], seeds: Sequence[int]
) -> dict[str, UnitSpread]:
    """What the test units add to a measurement's error bars, computed anew from the raw results per unit.

    Parameters
    ----------
    measurement : Measurement
        Says for which metrics and arms.
    tables : mapping of str to bytes
        With ``tables/per-<unit>.csv.gz``: a row per arm, seed and unit, a column per metric.
    seeds : sequence of int
        In the order of the measurement's replicates.

    Raises
    ------
    ValueError
        The table cannot be read; a table, a column, an arm or a seed is missing; or a mean over units is not
        what the claim has.
    """
    found = {}
    for metric, spread in measurement.units.items():
        name = f"tables/per-{spread.unit}.csv.gz"
        where = f"{measurement.claim}: {name}"
        if name not in tables:
            raise ValueError(f"{where} is not there, from which the {spread.unit}s' part is computed")
        try:
            frame = _frame(tables[name])
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"{where} cannot be read: {' '.join(str(error).split())}") from None
        if missing := [column for column in ("arm", "seed", spread.unit, metric) if column not in frame]:
            raise ValueError(f"{where} has no column {missing[0]!r}")
        values = {}
        for arm in spread.arms:
            if arm not in measurement.measured.get(metric, {}):
                raise ValueError(f"{measurement.claim}: {metric} of {arm} has a spread and no measurement")
            rows = frame[frame["arm"] == arm].set_index(["seed", spread.unit])[metric]
            rows = rows.dropna()  # another metric of the arm may be of more units
            if not rows.index.is_unique:
                raise ValueError(f"{where} has a {spread.unit} of {arm} twice")
            wide = rows.unstack()  # noqa: PD010
            stated = np.array(measurement.measured[metric][arm])
            names = list(seeds[: len(stated)])  # copies of one network count once
            if missing := [seed for seed in names if seed not in wide.index]:
                raise ValueError(f"{where} has no {arm}, seed {missing[0]}")
            values[arm] = wide.loc[names].to_numpy(float)
            means = values[arm].mean(1)
            if means.shape != stated.shape or not np.allclose(means, stated, rtol=1e-4, atol=1e-9):
                raise ValueError(f"{where}: the means of {metric} of {arm} are not those of the claim")
        found[metric] = UnitSpread.of(values, spread.unit)
    return found


@lru_cache(maxsize=4)
def _frame(content: bytes) -> pd.DataFrame:
    """A compressed table of results per unit; read once for all claims."""
    import pandas as pd

    return pd.read_csv(io.BytesIO(content), compression="gzip", dtype={"arm": str})
