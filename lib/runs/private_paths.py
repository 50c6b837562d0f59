"""Folders of this machine in what a run leaves to be shown and sent, where nobody should read of them."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib.files import parse_json


def named(text: str, places: Iterable[Path]) -> str | None:
    """The first of several absolute folders that a text names, itself or something in it."""
    for place in places:
        spelt = {str(place), json.dumps(str(place), ensure_ascii=False)[1:-1]}  # as text, and in JSON
        whole = "|".join(map(re.escape, spelt))
        # Not as a part of an address or of another path, and no </root> of markup.
        if len(place.parts) > 1 and re.search(rf"(?<![\w.<])(?:{whole})(?![\w-])", text):
            return str(place)
    return None


def home() -> list[Path]:
    """The home of whoever runs this, if there is one."""
    try:
        return [Path.home()]
    except RuntimeError:
        return []


def first_named(folder: Path, places: Iterable[Path]) -> str | None:
    """Which file of a run names which of these folders: ``tables/a.csv names /home/me``; None if none does.

    Read are evidence, tables, figures, and what the notebook's cells show but for standard error, which no
    page has.
    """
    places = list(places)
    for name, text in _texts(folder):
        if place := named(text, places):
            return f"{name} names {place}"
    return None


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    paths = [folder / "evidence.json", *sorted(folder.glob("figures/*")), *sorted(folder.glob("tables/*"))]
    for path in paths:
        if path.suffix != ".png":
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            yield path.relative_to(folder).as_posix(), content.decode(errors="replace")
    for number, cell in enumerate(parse_json((folder / "notebook.ipynb").read_bytes())["cells"], start=1):
        for output in cell.get("outputs", []):
            if output.get("name") != "stderr":
                yield f"cell {number} of notebook.ipynb", json.dumps(output, ensure_ascii=False)
