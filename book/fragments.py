"""Page fragments made from files: status table, evidence schema in words, contents of the library.

`write` puts them where ``book/*.md`` include them from. The scorecard has a module of its own.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from re import sub

from book.claim_tables import plain
from lib.ledger.evidence import Evidence, evidence_schema
from lib.ledger.provenance import direct_dependencies
from lib.ledger.wording import format_number


def cell(text: str) -> str:
    """Docstring text as content of a Markdown table cell: only code in backticks stays markup."""
    parts = " ".join(text.replace("``", "`").split()).split("`")
    escaped = [
        sub(r"([\\*_{}\[\]$#~^@<>])", r"\\\1", part) if n % 2 == 0 else part for n, part in enumerate(parts)
    ]
    return "`".join(escaped).replace("|", r"\|")


def first_sentence(text: str) -> str:
    """First paragraph of a docstring on one line, up to the first full stop that ends a sentence."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph if end < 0 else paragraph[: end + 1]


def public_names(source: str) -> tuple[str, list[tuple[str, str]]]:
    """First paragraph of a module's docstring, and its public names with their first sentences."""
    tree = ast.parse(source)
    names = [
        (node.name, first_sentence(ast.get_docstring(node) or ""))
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    return " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split()), names


def library(root: Path, repository: str) -> str:
    """Contents of ``lib``: a section per module with a table of its public names, read without importing."""
    lines: list[str] = []
    for path in sorted((root / "lib").rglob("*.py"), key=lambda p: (len(p.relative_to(root).parts), p)):
        summary, names = public_names(path.read_text(encoding="utf-8"))
        if not names:
            continue
        relative = path.relative_to(root).as_posix()
        module = relative.removesuffix(".py").replace("/", ".")
        lines += [f"## {module}", "", f"{cell(summary)} [Source]({repository}/blob/main/{relative})", ""]
        lines += ["| name | what |", "|---|---|"]
        lines += [f"| `{name}` | {cell(what)} |" for name, what in names]
        lines += [""]
    return "\n".join(lines)


def schema(definition: Mapping[str, object]) -> str:
    """The evidence schema in words: a table of fields for the file and for each object in it."""
    lines: list[str] = []
    for name, part in {"The file": definition, **definition["$defs"]}.items():
        if "properties" not in part:
            continue
        what = cell(first_sentence(part.get("description", "")))
        lines += [f"### {name}", "", what, "", "| field | type |", "|---|---|"]
        lines += [f"| `{field}` | {cell(_type(one))} |" for field, one in part["properties"].items()]
        lines += [""]
    return "\n".join(lines)


def _type(part: Mapping[str, object]) -> str:
    if "$ref" in part:
        return part["$ref"].rsplit("/", 1)[1]
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(_type(one) for one in part["anyOf"]))
    if "enum" in part:
        return ", ".join(map(str, part["enum"]))
    if "prefixItems" in part:
        return f"pair of {' or '.join(dict.fromkeys(_type(one) for one in part['prefixItems']))}"
    if part.get("type") == "array":
        return f"list of {_type(part.get('items', {}))}"
    if part.get("type") == "object":
        values = [part.get("additionalProperties"), *part.get("patternProperties", {}).values()]
        return " of ".join(["object", *(_type(one) for one in values if isinstance(one, Mapping))])
    return {"null": "nothing"}.get(part.get("type"), part.get("type", "any value"))


def status(evidence: Mapping[str, Evidence], root: Path) -> str:
    """What each chapter's run took and what made it; packages that `root` asks for come first."""
    lines = [
        "| chapter | scale | run time | peak memory | processor, threads | run at (UTC) | commit | evidence |"
    ]
    lines += ["|---" * 8 + "|"]
    for chapter, one in evidence.items():
        made = one.provenance
        commit = f"`{made.commit[:10]}`" if made.commit else "none"
        commit += " with uncommitted changes" if made.dirty else ""
        machine = f"{made.processor}, {made.threads}" + (f", {made.accelerator}" if made.accelerator else "")
        took = f"{format_number(made.wall_seconds, 0)}\N{NO-BREAK SPACE}s"
        memory = f"{format_number(made.peak_memory_bytes / 2**20, 0)}\N{NO-BREAK SPACE}MiB"
        lines.append(
            f"| [{chapter}](../notebooks/{chapter}) | {one.scale} | {took} | {memory} "
            f"| {plain(machine)} | {made.started:%Y-%m-%d %H:%M} | {commit} "
            f"| {{download}}`JSON <_generated/{chapter}.evidence.json>` |"
        )
    packages = {name for one in evidence.values() for name in one.provenance.packages}
    asked_for = {name.lower() for name in direct_dependencies(root)}
    rows = {"Python": [one.provenance.python for one in evidence.values()]}
    for name in sorted(packages, key=lambda name: (name.lower() not in asked_for, name.lower())):
        rows[name] = [one.provenance.packages.get(name, "–") for one in evidence.values()]
    columns = list(evidence)
    found = {name: sorted(set(versions) - {"–"}) for name, versions in rows.items()}
    if all(len(versions) == 1 for versions in found.values()):  # one column says it for all chapters
        rows, columns = found, ["all chapters"]
    head = ["| package | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    body = [f"| {plain(name)} | " + " | ".join(map(plain, found)) + " |" for name, found in rows.items()]
    main = 1 + sum(name.lower() in asked_for for name in packages)
    lines += ["", "## Versions", "", *head, *body[:main], ""]
    if body[main:]:
        lines += [":::{dropdown} What these packages need in turn", *head, *body[main:], ":::", ""]
    return "\n".join(lines)


def write(root: Path, evidence: Mapping[str, Evidence], folder: Path, *, repository: str) -> None:
    """Write all fragments into `folder`; `repository` is the address that sources are linked at."""
    definition = evidence_schema()
    texts = {
        "library.md": library(root, repository),
        "evidence.md": schema(definition),
        "evidence.schema.json": json.dumps(definition, indent=1) + "\n",
        "status.md": status(evidence, root),
    }
    for chapter, one in evidence.items():
        texts[f"{chapter}.evidence.json"] = one.model_dump_json(indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
