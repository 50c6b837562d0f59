"""No text of somebody else's evidence becomes markup, on any page or in any download."""

import csv
import json
import re

from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from book.claim_tables import plain
from lib.chapter import tables
from lib.ledger.archive import ArchivedEvidence, Piece
from lib.ledger.evidence import Evidence
from lib.ledger.standing import standings

SCHEMA = ArchivedEvidence.model_json_schema(mode="serialization")
SCRIPT = "<script>foreign()</script>"
# Each begins with what means something only there; then come what means something anywhere, in new lines too.
NASTY = tuple(
    f"{first} foreign {SCRIPT} <i class='foreign'> [x](javascript:foreign) ![x](javascript:foreign) "
    "{raw}`foreign` {{ foreign }} | ` ``` ::: $foreign$ \\begin{foreign} *foreign* &lt;i class=foreign&gt; \n"
    f":::{{raw}} html\n{SCRIPT}\n:::\n\n```{{raw}} html\n{SCRIPT}\n```\n\n% foreign <i class='foreign'>\n"
    for first in (
        "%",
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "1.",
        "# x",
        "` x",
        "> x",
        ":",
        "```{raw} html",
        "|",
        "\t",
        "\0",
    )
)
CLAIM = {
    "id": "E9",
    "statement": "x",
    "source": "x",
    "kind": "comparison",
    "verdict": "inconclusive",
    "reason": "x",
    "measured": {"x": {"x": {"mean": 1.0, "low": 0.5, "high": 1.5, "values": [1.0, 1.0]}}},
    "effects": [],
    "paper": [
        {"value": 1.0, "where": "x", "provenance": "paper", "unit": "x", "label": "x"},
        {"value": 1.0, "where": "x", "provenance": "cited", "unit": "x", "arm": "x", "metric": "x"},
    ],
    "see": ["E9"],
    "provenance_of_paper_number": "paper",
    "protocol": "x",
    "replicate": "x",
    "unit": "x",
    "synthetic": True,
    "scope": "x",
    "command": "x",
    "caveat": "x",
    "changed": {"was": "x", "why": "x", "after": "x"},
    "floor": {"metric": "x", "arm": "x", "references": ["y"], "by": 1.0, "direction": "higher", "unit": "x"},
    "interpretations": [{"reading": "x", "outcome": "x"}],
    "anchor": "template-claims",
    "possible": {"x": [0.0, 2.0]},
}


def strings(part):
    """The strings that a part of the schema has of its own, as the schema speaks of each."""
    if part.get("type") == "string" and not {"enum", "const", "format"} & set(part):
        yield part
    if part.get("type") == "object" and "properties" not in part:
        yield from (
            ({"pattern": key} for key in part["patternProperties"]) if "patternProperties" in part else [{}]
        )
    inner = [part.get(key) for key in ("items", "additionalProperties") if isinstance(part.get(key), dict)]
    for name in ("anyOf", "prefixItems"):
        inner += part.get(name, ())
    for one in (*inner, *part.get("patternProperties", {}).values()):
        yield from strings(one)


def fields():
    """Every field of every object in the schema that is text, or has text in it, and what is said of that."""
    for name, one in {"ArchivedEvidence": SCHEMA, **SCHEMA["$defs"]}.items():
        for field, part in one.get("properties", {}).items():
            yield (name, field), list(strings(part))


class Poison:
    """Puts nasty text in the place of every string of a value that may be anything by the schema."""

    def __init__(self):
        self.reached, self.count = set(), 0

    def text(self, where):
        self.reached.add(where)
        self.count += 1
        return f"{NASTY[self.count % len(NASTY)]} {self.count}"  # different, as keys must be

    def __call__(self, part, value, where=("ArchivedEvidence", "")):
        if "$ref" in part:
            name = part["$ref"].rsplit("/", 1)[1]
            return self(SCHEMA["$defs"][name], value, (name, ""))
        if "anyOf" in part:
            return self(next((one for one in part["anyOf"] if fits(one, value)), {}), value, where)
        if isinstance(value, str):
            return value if {"enum", "const", "format", "pattern"} & set(part) else self.text(where)
        if isinstance(value, list):
            each = part.get("prefixItems") or [part.get("items", {})] * len(value)
            return [self(one, item, where) for one, item in zip(each, value, strict=True)]
        if isinstance(value, dict) and "properties" in part:
            return {key: self(part["properties"][key], item, (where[0], key)) for key, item in value.items()}
        if isinstance(value, dict) and "patternProperties" not in part and where[1] != "parameters":
            of = part.get("additionalProperties", {})
            return {self.text(where): self(of, item, where) for key, item in value.items()}
        return value


def fits(part, value):
    """Whether a value may be this one of several kinds."""
    kinds = {"null": type(None), "string": str, "array": list, "object": dict, "boolean": bool}
    if part.get("type") == "object" and isinstance(value, dict):
        return all(fits(part["additionalProperties"], item) for item in value.values())
    return isinstance(value, dict if "$ref" in part else kinds.get(part.get("type"), int | float))


def poisoned(evidence):
    """Evidence in which all text that may be anything is nasty, and the fields that it reached."""
    content = json.loads(evidence.model_dump_json())
    content["claims"].append(CLAIM)
    effect = next(one["interval"] for one in content["claims"] if one["interval"])
    content["claims"][-1] |= {"interval": effect | {"outcome": "inconclusive", "smallest": 0.1}}
    content["claims"][-1]["effects"] = [effect, effect | {"label": "y"}]
    content["measurements"][0]["units"] = {
        "x": {"unit": "x", "count": 2, "arms": ["x"], "covariance": [[1.0]]}
    }
    content["data"] = [{"name": "x", "licence": "x", "synthetic": False, "files": {"x": "0" * 64}}]
    content["settings"] = {"x": "x"}
    content["provenance"] |= {"accelerator": "x", "commit": "0" * 40, "sections": {"x": 1.0}}
    made = {key: content["provenance"][key] for key in RUN}
    content |= {"plan": "main", "method": {"x": "x"}, "planned": [0, 1, 2]}
    content["runs"] = [made | {"seeds": [0], "fingerprint": "0"}]
    content["parameters"] = {"seeds": [0, 1, 2], "text": "x"}
    poison = Poison()
    return ArchivedEvidence.model_validate(poison(SCHEMA, content)), poison.reached


RUN = (
    "commit",
    "processor",
    "accelerator",
    "threads",
    "started",
    "ended",
    "wall_seconds",
    "peak_memory_bytes",
)


def live(html):
    """What of somebody else's text has become markup."""
    soup = BeautifulSoup(html, "html.parser")
    found = [one for one in soup.select("script, style, em, .math, h1, h2, h3, pre") if "foreign" in one.text]
    return found + soup.select("i.foreign, [class=foreign], [href^=javascript], [src^=javascript]")


def test_all_text_is_tried_or_has_a_pattern(evidence):
    free = {where for where, said in fields() if any("pattern" not in one for one in said)}
    assert len(free) > 40
    assert free - {("ArchivedEvidence", "parameters")} == poisoned(evidence)[1] - {("JsonValue", "")}


def test_no_pattern_lets_markup_through():
    patterns = {one["pattern"] for _, said in fields() for one in said if "pattern" in one}
    assert len(patterns) > 5
    for pattern in patterns:
        for text in (*NASTY, "../../etc/passwd", "<b>", "a b", "a|b", "`a`", "$a$", "=1+1", "@a", "x\n"):
            assert not re.search(pattern.replace("$", r"\Z"), text), (pattern, text)


def test_plain_text_is_a_paragraph_or_one_cell():
    markdown = MarkdownIt("commonmark").enable("table")
    for text in (*NASTY, "- x", "+ x", "===", "---", "12) x", "3.11", "[x]: y", "a ` <i class='foreign'>"):
        alone = BeautifulSoup(markdown.render(plain(text)), "html.parser")
        assert [tag.name for tag in alone.find_all()] == ["p"]
        table = BeautifulSoup(markdown.render(f"| a | b |\n|---|---|\n| {plain(text)} | c |"), "html.parser")
        assert len(table.select("td")) == 2 and table.select("td")[1].text == "c"
    assert BeautifulSoup(markdown.render(plain("x ~ 3 < 4 & `y`")), "html.parser").text == "x ~ 3 < 4 & `y`\n"


def test_tables_of_a_chapter_show_text_as_text(evidence):
    evidence, _ = poisoned(evidence)
    told = {one.claim.id: one for one in standings(evidence, [Piece(evidence, "book/archive/template/x")])}
    last = evidence.claims[-1]
    shown = [
        tables.verdict_table(evidence.claims, told),
        tables.provenance_table(evidence.provenance, evidence.data),
        tables.numbers_table([last.model_copy(update={"measured": {n.name: 1.0 for n in last.paper}})]),
        *(tables.verdict_line(claim, told[claim.id]) for claim in evidence.claims),
        *(tables.beside(one) for one in told.values()),
    ]
    for html in shown:
        assert not live(html)
    assert sum("&lt;script&gt;" in html for html in shown) > 4


def test_no_page_of_the_book_has_markup_of_others(small_root, build_small, monkeypatch):
    """As if no claim were judged again, which alone would replace much of it."""
    run = small_root / "runs/smoke/template/made-up"
    was = Evidence.load(run / "evidence.json")
    evidence, _ = poisoned(was)
    monkeypatch.setattr(Evidence, "judged_by", lambda self, ledger: self)
    monkeypatch.setattr(
        Piece, "of", lambda evidence, ledger, folder: Piece(evidence, folder, {}, (NASTY[0],))
    )
    folder = small_root / "book/archive/template" / f"{evidence.scale}-x"
    folder.mkdir(parents=True)
    evidence.model_copy(update={"artifacts": ()}).save(folder / "evidence.json")
    (folder.parent / "plan.yml").write_text("[]")
    of_run = {name: getattr(evidence, name) for name in Evidence.model_fields}
    Evidence(**of_run | {"artifacts": was.artifacts}).save(run / "evidence.json")
    included = (
        "headline.md",
        "answers.md",
        "scorecard.md",
        "status.md",
        "archive.md",
        "machine.md",
        "evidence.md",
    )
    (small_root / "book/index.md").write_text(
        "# Small\n\n" + "".join(f"```{{include}} _generated/{name}\n```\n\n" for name in included)
    )
    html = build_small()
    for page in ("book/index", "notebooks/template"):
        text = (html / f"{page}.html").read_text(encoding="utf-8")
        article = str(BeautifulSoup(text, "html.parser").select_one("article"))
        assert article.count("&lt;script&gt;foreign()") > 3
        assert not live(article)
    with (small_root / "_build/generated/scorecard.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any(cell.startswith("'=1+1") for cell in cells)
    assert not any(cell[:1] in tuple("=+-@\t\r") and not re.fullmatch(r"-?[\d.e-]+", cell) for cell in cells)
