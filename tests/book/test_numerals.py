"""Numbers of text and tables are written one way, and stay the numbers that they are."""

import re

import pytest

from book.build import ROOT
from book.numerals import readable
from lib.runs.request import chapters, read_chapter


def page(prose, html="", **kept):
    """A notebook with prose, a table, and numbers kept for the text."""
    outputs = [
        {
            "output_type": "display_data",
            "metadata": {"scrapbook": {"name": name}},
            "data": {"application/papermill.record/text/plain": repr(value)},
        }
        for name, value in kept.items()
    ]
    outputs.append({"output_type": "display_data", "metadata": {}, "data": {"text/html": html}})
    return {
        "cells": [
            {"cell_type": "markdown", "source": prose},
            {"cell_type": "code", "source": "", "outputs": outputs},
        ]
    }


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (-0.0012, ":.3f", "−0.001"),
        (0.5, "", "0.5"),
        (1585.9, ":.0f", "1586"),
        (30000, ":.0f", "30\N{NO-BREAK SPACE}000"),
        (1234567, "", "1\N{NO-BREAK SPACE}234\N{NO-BREAK SPACE}567"),
        (2.2e-16, ":.0e", "2e−16"),
        (-12345.678, ":.1f", "−12\N{NO-BREAK SPACE}345.7"),
    ],
)
def test_a_number_in_the_text(value, form, text):
    notebook = page("before {glue:text}`chapter-x" + form + "` after", **{"chapter-x": value})
    readable(notebook)
    assert notebook["cells"][0]["source"] == f"before {text} after"


def test_a_percent_sign_stays_with_its_number():
    prose, html = "{glue:text}`chapter-x:.1f` % of 5 %, 100 %", "<p>−9 [−12, −5] % (1 %)</p>"
    notebook = page(prose, html, **{"chapter-x": 0.25})
    readable(notebook)
    text = notebook["cells"][0]["source"] + notebook["cells"][1]["outputs"][-1]["data"]["text/html"]
    assert text.replace("\N{NO-BREAK SPACE}", "~") == "0.2~% of 5~%, 100~%<p>−9 [−12, −5]~% (1~%)</p>"


def test_the_name_of_a_glued_text_keeps_its_blanks():
    role = "{glue:text}`chapter-found-C1-accuracy (3, 2 %) − none`"
    notebook = page(f"{role} at 2 %", **{"chapter-found-C1-accuracy (3, 2 %) − none": "1.0 [0.5, 1.5] dB"})
    readable(notebook)
    assert notebook["cells"][0]["source"] == f"{role} at 2\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        ("holds", "That it is faster *{role}* (C1)."),
        ("matches memory", "That it is faster *{role}* (C1)."),
        ("differs from memory", "That it is faster *{role}* (C1)."),
        ("contradicted", "That it is faster is\n*{role}* (C1)."),
        ("not tested", "That it is faster is\n*{role}* (C1)."),
    ],
)
def test_a_verdict_is_read_as_a_word_of_its_sentence(verdict, sentence):
    role = "{glue:text}`chapter-found-C1`"
    notebook = page(f"That it is faster is\n*{role}* (C1).", **{"chapter-found-C1": verdict})
    readable(notebook)
    assert notebook["cells"][0]["source"] == sentence.replace("{role}", role)


def test_words_and_unknown_names_are_left_to_the_renderer():
    prose = "{glue:text}`chapter-name` {glue:text}`chapter-missing:.1f`"
    notebook = page(prose, **{"chapter-name": "Xeon(R)"})
    readable(notebook)
    assert notebook["cells"][0]["source"] == prose


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("-0.29", "−0.29"),
        ("418329", "418~329"),
        ("4,231,976", "4~231~976"),
        ("37 748 736", "37~748~736"),
        ("the first 10 000 of 60 000", "the first 10~000 of 60~000"),
        ("3,751", "3751"),
        ("2018", "2018"),
        ("1e-05", "1e−05"),
        ("10,000 images", "10~000 images"),
        ("873,672 tokens, 19.0 % outside the 1,000 words", "873~672 tokens, 19.0~% outside the 1000 words"),
        ("conv1 2018 5", "conv1 2018 5"),
        ("ResNet-50", "ResNet-50"),
        ("1, 234", "1, 234"),
        ("6x4096x1024", "6x4096x1024"),
        ("0123456789abcdef", "0123456789abcdef"),
        ("000012", "000012"),
        ("", ""),
    ],
)
def test_a_cell_of_a_table(cell, text):
    """A tilde stands for a space that no line ends at: within a number, or before its percent sign."""
    text = re.sub(r"\d+(~\d+)+", r"<span class='number'>\g<0></span>", text)
    text = re.sub(r"(?<=\d)~(?=\d)", " ", text).replace("~", "\N{NO-BREAK SPACE}")
    notebook = page("", f'<table><tr><th class="row1">{cell}</th><td id="T1">{cell}</td></tr></table>')
    readable(notebook)
    shown = notebook["cells"][1]["outputs"][-1]["data"]["text/html"]
    assert shown == f'<table><tr><th class="row1">{text}</th><td id="T1">{text}</td></tr></table>'


def test_text_outside_of_cells_stays():
    html = "<style>#a { margin: -10000px }</style><p>-1 and 10,000</p><table><td>-1</td></table>"
    notebook = page("", html)
    readable(notebook)
    assert notebook["cells"][1]["outputs"][-1]["data"]["text/html"] == html.replace("<td>-1", "<td>−1")


def written_by_hand():
    """Prose of pages and chapters, and the ledgers, by file."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")}
    for path in (ROOT / "book/claims").glob("*.yml"):
        texts[path.name] = re.sub(r"^ *#.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for chapter in chapters(ROOT):
        prose = (cell.source for cell in read_chapter(chapter).cells if cell.cell_type == "markdown")
        texts[f"{chapter}.md"] = "\n".join(prose)
    return texts


@pytest.mark.parametrize("name", sorted(written_by_hand()))
def test_hand_written_thousands_look_the_same(name):
    """10 000 and 2000, not 10,000 and 2 000, and no number torn apart at the end of a line."""
    text = written_by_hand()[name]
    assert re.findall(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", text) == []
    assert re.findall(r"(?<!\d)\d \d{3}(?!\d)(?! \d{3})", text) == []
    assert re.findall(r"\d{1,3}\n\d{3}(?!\d)", text) == []
