"""The ledger: what a paper claims, as data.

A ledger (``book/claims/<chapter>.yml``) says what a paper claims, with its numbers and where each was read,
the rule by which measurements decide, and at which scales that can be done. This module is its schema and
`load_ledger`; the rules are in `lib.ledger.rules`, judging is in `lib.ledger.verdicts`.

A claim, as written in a ledger::

    - id: C1
      statement: The method beats the baseline.
      source: Table 2
      paper:
        - {arm: method, metric: accuracy, value: 0.91, decimals: 2, where: Table 2, provenance: paper}
      kind: comparison
      rule: {parts: [{metric: accuracy, better: method, worse: baseline, direction: higher}]}
      scales:
        smoke: {tested: true}
        book: {tested: false, why: needs the full data set, command: python -m lib.run x --scale paper}
        paper: {tested: true, reproduces: true}
      protocol: Test accuracy after 10 epochs, one training per seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from lib.files import ROOT
from lib.ledger.paper_numbers import PROVENANCES, PaperNumber, Provenance
from lib.ledger.rules import BoundRule, Floor, Range, Rule, Schema, Text
from lib.yaml_reader import parse_yaml

ScaleName = Literal["smoke", "book", "long", "paper"]

SCALES: tuple[str, ...] = get_args(ScaleName)
# ``{C4}`` in a text: what became of that claim.
VERDICT_REFERENCE = re.compile(r"\{([^{}]*)\}")
NO_LONG_RUN = "no long run of this chapter is planned yet"


# --- what a ledger says ------------------------------------------------------------------------------------

Setting = str | int | float | bool
Settings = Annotated[
    tuple[Setting, ...],
    BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,)),
    Field(min_length=1),
]


class Changed(Schema):
    """A rule, a limit or an arm that was changed after measurements had been seen.

    `was` says what stood there, `why` the reason, `after` what had been seen by then.
    """

    was: Text
    why: Text
    after: Text


class ScaleEntry(Schema):
    """What one scale says about a claim.

    `scope` names what of the claim this scale tests, with ``{pictures}`` and the like where data or sizes are
    the run's; `when` the settings that a run needs for it; `synthetic` marks a made-up world; `reproduces`
    the paper's own data and protocol, needed for `reproduced`.
    """

    tested: bool
    why: str = ""
    command: str = ""
    scope: str = ""
    when: dict[str, Settings] = Field(default_factory=dict)
    synthetic: bool = False
    reproduces: bool = False

    def conditions(self) -> str:
        """``dataset = ml-1m or ml-20m``: the settings that a run needs."""
        return ", ".join(f"{name} = {' or '.join(map(str, values))}" for name, values in self.when.items())

    @model_validator(mode="after")
    def _complete(self) -> ScaleEntry:
        if not self.tested and not self.why:
            raise ValueError("a scale that does not test the claim must say why")
        if self.synthetic and self.reproduces:
            raise ValueError("a synthetic world cannot reproduce a paper's number")
        return self


class Scales(Schema):
    """One entry per scale; without one for `long`, no long run is planned that could test the claim."""

    smoke: ScaleEntry
    book: ScaleEntry
    long: ScaleEntry | None = None
    paper: ScaleEntry


class Interpretation(Schema):
    """A reading of the paper that was tried after its number was known, and what came of it."""

    reading: Text
    outcome: Text


class ClaimBase(Schema):
    """What every kind of claim has.

    `unit` names what a replicate is scored on where results per unit are kept (user): the interval then
    covers other units, too. `see` names claims whose numbers this one sums up. `own` marks what the paper
    does not say: a check of our definitions or our code, or a question of ours. `computed_from` says where
    the paper's own inputs of our number were read, if there are any: a count from remembered ranks is a
    memory, too. `changed` is declared where a rule is younger than what it was first tried on; the confirming
    run uses seeds that no trial used. `floor` is what the reference must beat first: a loss or a gain of
    networks that have not learned is none.
    """

    id: str = Field(pattern=r"^[A-Z][0-9]+[a-z]?$")
    statement: Text
    source: Text
    paper: tuple[PaperNumber, ...] = ()
    see: tuple[str, ...] = ()
    scales: Scales
    protocol: Text
    replicate: Text = "seed"
    unit: str = ""
    caveat: str = ""
    own: bool = False
    computed_from: Provenance | None = None
    changed: Changed | None = None
    floor: Floor | None = None
    exploratory: bool = False
    interpretations: tuple[Interpretation, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ClaimBase:
        if self.exploratory != bool(self.interpretations):
            raise ValueError("an exploratory claim, and no other, lists the interpretations that were tried")
        entries = {name: entry for name in SCALES if (entry := getattr(self.scales, name))}
        if any(entry.tested for entry in entries.values()):
            for name, entry in entries.items():
                if not entry.tested and not entry.command:
                    raise ValueError(f"scales.{name}: not tested there: give the command that would test it")
        return self

    def entry(self, scale: str) -> ScaleEntry:
        """The ledger's entry for `scale`; ValueError for an unknown one."""
        if scale not in SCALES:
            raise ValueError(f"unknown scale {scale!r}: expected one of {', '.join(SCALES)}")
        # Without an entry, the long scale sends readers where the others do.
        command = self.scales.paper.command or self.scales.book.command
        return getattr(self.scales, scale) or ScaleEntry(tested=False, why=NO_LONG_RUN, command=command)

    def tested_at(self, scale: str, **settings: Any) -> bool:
        """Whether a run at `scale` with these settings tests the claim."""
        entry = self.entry(scale)
        return entry.tested and all(settings.get(name) in values for name, values in entry.when.items())

    def arms(self, *, floor: bool = False) -> dict[str, tuple[str, ...]]:
        """Which arms the rule needs, by metric; with `floor`, also those that the floor needs."""
        asked = [(term.metric, term.arms) for term in self.rule.terms()]
        if floor and self.floor:
            asked.append((self.floor.metric, (*self.floor.references, self.floor.arm)))
        needed: dict[str, dict[str, None]] = {}
        for metric, arms in asked:
            needed.setdefault(metric, {}).update(dict.fromkeys(arms))
        return {metric: tuple(arms) for metric, arms in needed.items()}

    def judged_numbers(self) -> tuple[PaperNumber, ...]:
        """The paper's numbers that a measurement can be held against."""
        needed = self.arms()
        return tuple(n for n in self.paper if n.metric in needed and n.arm in needed[n.metric])

    @property
    def provenance(self) -> str | None:
        """Whose number decides what its verdict may be called; None if the paper gives none.

        The least certain among the numbers that it is judged against and the inputs of ours. A claim that is
        judged in direction only, with numbers beside it as context, was read if one of these was.
        """
        judged = [number.provenance for number in self.judged_numbers()]
        context = [number.provenance for number in self.paper]
        found = judged or ([min(context, key=PROVENANCES.index)] if context else [])
        found += [self.computed_from] if self.computed_from else []
        return max(found, key=PROVENANCES.index, default=None)


class Comparison(ClaimBase):
    """One arm better than another: paired differences over seeds."""

    kind: Literal["comparison"]
    rule: Rule


class Measurement(ClaimBase):
    """A hardware figure: judged in direction only, never `reproduced`."""

    kind: Literal["measurement"]
    rule: Rule


class Bound(ClaimBase):
    """A value, gap or ratio within a limit: interval against the limit."""

    kind: Literal["bound"]
    rule: BoundRule


class Arithmetic(ClaimBase):
    """Numbers that follow from a formula or a count: no chance, no interval, no rule but precision."""

    kind: Literal["arithmetic"]

    @model_validator(mode="after")
    def _precise(self) -> Arithmetic:
        names = [number.name for number in self.paper]
        if not names or len(set(names)) < len(names):
            raise ValueError("paper: an arithmetic claim needs at least one number, each with its own name")
        for number in self.paper:
            stated = (number.between, number.tolerance, number.decimals)
            if all(one is None for one in stated):
                raise ValueError(f"paper: {number.name!r} needs decimals or a tolerance to be judged by")
        if self.floor:
            raise ValueError("floor: nothing is trained for an arithmetic claim")
        return self

    def arms(self, *, floor: bool = False) -> dict[str, tuple[str, ...]]:
        """No arms: the names of its numbers are what is measured."""
        return {}

    def judged_numbers(self) -> tuple[PaperNumber, ...]:
        """All of them."""
        return self.paper

    def allowed(self, number: PaperNumber) -> tuple[float, float]:
        """Where ours may lie: in the paper's range, or within a tolerance or half its last printed digit."""
        if number.between is not None:
            return number.between
        near = number.tolerance or 0.5 * 10.0**-number.decimals
        return number.value - near, number.value + near


Claim = Comparison | Bound | Measurement | Arithmetic


class Paper(Schema):
    """The paper a chapter is about.

    `short` is a name for figures, where the title's part before the colon is too long for one; `read` says
    what of the paper could be read when the ledger was written. `answer` is ours to the title's question, for
    the front page: a sentence or two, in which ``{C4}`` stands for what became of claim C4.
    """

    id: Text
    title: Text
    short: str = ""
    authors: tuple[Text, ...] = Field(min_length=1)
    venue: Text
    year: int = Field(ge=1600, le=2100)
    doi: str | None = None
    arxiv: str | None = None
    code: str | None = None
    code_commit: str | None = None
    code_licence: Text
    read: str = ""
    answer: str = ""


class Ledger(Schema):
    """A paper and its claims, in the order they are shown.

    `other_arms` and `other_metrics` are measured beside them and in no rule; `possible` has the lowest and
    the highest value that a metric can take, where intervals could reach beyond it.
    """

    paper: Paper
    other_arms: tuple[Text, ...] = ()
    other_metrics: tuple[Text, ...] = ()
    possible: dict[Text, Range] = Field(default_factory=dict)
    claims: tuple[Annotated[Claim, Field(discriminator="kind")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _references(self) -> Ledger:
        ids = [claim.id for claim in self.claims]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"claim {twice[0]} is there twice")
        for claim in self.claims:
            if missing := sorted(set(claim.see) - set(ids)):
                raise ValueError(f"claim {claim.id}, see: no claim {missing[0]}")
        for name in VERDICT_REFERENCE.findall(self.paper.answer):
            if name not in ids:
                raise ValueError(f"paper.answer: no claim {name}")
        metrics = {metric for claim in self.claims for metric in claim.arms(floor=True)} | set(
            self.other_metrics
        )
        if unknown := sorted(set(self.possible) - metrics):
            raise ValueError(
                f"possible: no metric {unknown[0]!r}: expected one of {', '.join(sorted(metrics))}"
            )
        return self

    def __getitem__(self, claim_id: str) -> Claim:
        """The claim with this id; ValueError that lists the ids for an unknown one."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise ValueError(f"no claim {claim_id!r}: expected one of {', '.join(c.id for c in self.claims)}")


# --- reading one -------------------------------------------------------------------------------------------


def load_ledger(chapter: str, root: Path | str | None = None) -> Ledger:
    """Read and check ``book/claims/<chapter>.yml``.

    Parameters
    ----------
    chapter : str
        Lower-case letters, digits and underscores.
    root : path, optional
        Folder of the project; the one this package lies in if not given.

    Raises
    ------
    ValueError
        In one line: no such chapter, not YAML, or which claim and field breaks the schema.
    """
    folder = Path(root or ROOT) / "book" / "claims"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", chapter) or not (folder / f"{chapter}.yml").is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.yml"))) or "none"
        raise ValueError(f"no ledger for chapter {chapter!r}: book/claims has {there}")
    name = f"book/claims/{chapter}.yml"
    try:
        return read_ledger((folder / f"{chapter}.yml").read_bytes(), name)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None


def read_ledger(text: str | bytes, where: str) -> Ledger:
    """A ledger from the text of its file; ValueError in one line that begins with `where`."""
    content = parse_yaml(text, where)
    try:
        return Ledger.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{where}: {_first_error(error, content)}") from None


def _first_error(error: ValidationError, content: Any) -> str:
    """The first schema error as one line that names claim and field."""
    errors = error.errors(include_url=False)
    # A list is also called too short when its items failed; that says nothing new.
    errors = [e for e in errors if e["type"] != "too_short" or len(errors) == 1] or errors
    first = errors[0]
    path = list(first["loc"])
    where = ""
    if len(path) >= 2 and path[0] == "claims":
        claim = content["claims"][path[1]]
        known = isinstance(claim, Mapping) and "id" in claim
        where = f"claim {claim['id']}, " if known else f"claim number {path[1] + 1}, "
        path = path[2:]
        if path and known and path[0] == claim.get("kind"):  # the union's branch, not a field
            path = path[1:]
    field = ".".join(map(str, path))
    message = (f"{field}: " if field else "") + first["msg"].removeprefix("Value error, ")
    got = f", got {first['input']!r}" if isinstance(first["input"], str | int | float) else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}{message}{got}{more}"
