"""The build refuses what is missing or wrong in a line that names it, and keeps the published pages."""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from book import build as builder


@pytest.mark.parametrize("version", ["2.0.0", "2.1.0b1", "0.15.1"])
def test_other_majors_of_jupyter_book_are_refused(version):
    with pytest.raises(builder.BuildError, match=rf"Jupyter Book 1\.x is needed, found {version}"):
        builder.require_jupyter_book(version)


def test_the_installed_major_is_accepted():
    assert builder.require_jupyter_book("1.0.4.post1") is None


@pytest.mark.parametrize(
    ("environ", "remote", "slug"),
    [
        ({}, "", "does-it-hold/does-it-hold"),
        ({}, "git@github.com:ann/held.git", "ann/held"),
        ({}, "https://github.com/ann/held", "ann/held"),
        ({}, "https://example.org/ann/held.git", "does-it-hold/does-it-hold"),
        ({"GITHUB_REPOSITORY": "bob/held"}, "https://github.com/ann/held", "bob/held"),
        (
            {"BOOK_REPOSITORY_URL": "https://github.com/eve/held", "GITHUB_REPOSITORY": "bob/held"},
            "",
            "eve/held",
        ),
    ],
)
def test_repository_of_the_links(environ, remote, slug):
    assert builder.repository(environ, remote) == slug


def test_a_repository_elsewhere_is_refused():
    with pytest.raises(
        builder.BuildError, match="BOOK_REPOSITORY_URL must look like .*, got 'https://x.org/a'"
    ):
        builder.repository({"BOOK_REPOSITORY_URL": "https://x.org/a"})


def notebook(*cells):
    pattern = {"cell_type": "code", "execution_count": 1, "outputs": [], "metadata": {}}
    return json.dumps(
        {"metadata": {"papermill": {"input_path": "/home/x"}}, "cells": [pattern | c for c in cells]}
    )


def test_injected_parameters_show_only_what_was_changed():
    text = builder.clean_notebook(
        notebook(
            {"source": "a: int = 1  # one\nb = 2\n", "metadata": {"tags": ["parameters"]}},
            {"source": "a = 1\nb = 3\nrun_dir = '/home/x'\n", "metadata": {"tags": ["injected-parameters"]}},
        ),
        "x",
    )
    assert json.loads(text)["cells"][1]["source"] == "# this page was run with\nb = 3"
    assert "/home/x" not in text


def test_an_injected_cell_without_changes_is_dropped():
    text = builder.clean_notebook(
        notebook(
            {"source": "a = 1", "metadata": {"tags": ["parameters"]}},
            {"source": "a = 1\ndata_dir = '/home/x'", "metadata": {"tags": ["injected-parameters"]}},
        ),
        "x",
    )
    assert len(json.loads(text)["cells"]) == 1


def test_warnings_which_name_folders_of_a_machine_are_not_shown():
    said = [{"output_type": "stream", "name": name, "text": f"from {name}"} for name in ("stderr", "stdout")]
    text = builder.clean_notebook(notebook({"source": "warn()", "outputs": said}), "x")
    assert json.loads(text)["cells"][0]["outputs"] == [said[1]]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_text_that_quotes_no_number_is_refused(value):
    output = {"output_type": "display_data", "data": {"application/papermill.record/text/plain": value}}
    output["metadata"] = {"scrapbook": {"name": "x-tail"}}
    cells = [
        {"source": "number()", "outputs": [output]},
        {"cell_type": "markdown", "source": "{glue:text}`x-tail:.1f` %"},
    ]
    with pytest.raises(builder.BuildError, match=f"^notebooks/x: the text quotes x-tail, which is {value}$"):
        builder.clean_notebook(notebook(*cells), "notebooks/x")


def test_a_cell_that_ended_in_an_error_is_refused():
    broken = notebook(
        {"source": "1 / 0", "outputs": [{"output_type": "error", "ename": "ZeroDivisionError"}]}
    )
    with pytest.raises(builder.BuildError, match="notebooks/x: cell 0 ended in an error"):
        builder.clean_notebook(broken, "notebooks/x")


def test_missing_evidence_names_the_chapter_and_the_command(tmp_path):
    def resolve(chapter, scale, root):
        return SimpleNamespace(folder=root / chapter)

    with pytest.raises(builder.BuildError) as caught:
        builder.present_runs(tmp_path, ["a", "b"], "book", resolve, tmp_path)
    first, second = str(caught.value).splitlines()
    assert first.startswith("notebooks/a: no complete run") and first.endswith(
        "python -m lib.run a --scale book"
    )
    assert second.startswith("notebooks/b:")


def test_evidence_that_does_not_fit_names_the_chapter_and_the_command(small_root, build_small):
    (small_root / "runs/smoke/template/made-up/evidence.json").write_text("{}")
    says = r"notebooks/template: evidence\.json: .*Field required; run: .* template --scale smoke --force"
    with pytest.raises(builder.BuildError, match=says):
        build_small()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notebook.ipynb", b""),
        ("notebook.ipynb", b"{}"),
        ("notebook.ipynb", b"\xff{"),
        ("figures/line.svg", None),
    ],
)
def test_a_damaged_run_is_a_line_with_the_command(small_root, made_up_request, tmp_path, name, content):
    request = made_up_request("template", "smoke", root=small_root)
    path = small_root / "runs/smoke/template/made-up" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(builder.BuildError) as caught:
        builder.present_runs(small_root, ["template"], "smoke", lambda *_, **__: request, tmp_path / "made")
    command = "run: python -m lib.run template --scale smoke --force"
    assert re.fullmatch(rf"notebooks/template: .*{name.rpartition('/')[2]}.*; {command}", str(caught.value))


def test_staging_touches_only_what_changed(tmp_path):
    builder.synchronise({"a": b"1", "b/c": b"2", "gone/d": b"3"}, tmp_path)
    before = (tmp_path / "a").stat().st_mtime_ns
    builder.synchronise({"a": b"1", "b/c": b"4"}, tmp_path)
    assert (tmp_path / "a").stat().st_mtime_ns == before
    assert (tmp_path / "b/c").read_bytes() == b"4"
    assert not (tmp_path / "gone").exists()


PAGE = "<html><body><article><h1>Hi</h1>{}</article></body></html>"


@pytest.mark.parametrize(
    ("body", "figures", "problem"),
    [
        (None, 0, "p: the page is missing from the build"),
        ("", 1, "p: shows 0 figures, its run made 1"),
        ('<img src="no.png">', 0, "p: image no.png is missing"),
        ('<div class="output traceback"></div>', 0, "p: shows an error output"),
        ("<td>iVBORw0KGgoAAAANSUhEUgAA...</td>", 0, "p: shows a picture as text"),
        ("<p>/home/me/book</p>", 0, "p: names a folder of this machine"),
    ],
)
def test_wrong_pages_are_named(tmp_path, body, figures, problem):
    if body is not None:
        (tmp_path / "p.html").write_text(PAGE.format(body))
    (found,) = builder.check_pages(tmp_path, ["p"], {"p": figures}, private=[Path("/home/me")])
    assert found.startswith(problem)


def test_pages_in_another_encoding_are_named(small_root, made_up_request, tmp_path):
    """Marks and line ends of other editors are not: Sphinx and its bibliography read UTF-8 alone."""
    runs = builder.present_runs(small_root, ["template"], "smoke", made_up_request, tmp_path / "made")
    for name in ("book/references.bib", "book/index.md"):
        path = small_root / name
        text = path.read_text(encoding="utf-8") + "% Käse\n"
        path.write_bytes("\ufeff".encode() + text.replace("\n", "\r\n").encode())
        assert builder.staged_files(small_root, runs, builder.DEFAULT_REPOSITORY)[name] == text.encode()
        path.write_bytes(text.encode("latin-1", "replace"))
        with pytest.raises(builder.BuildError, match=rf"^{name}, line \d+: not UTF-8; save it as UTF-8$"):
            builder.staged_files(small_root, runs, builder.DEFAULT_REPOSITORY)
        path.write_text(text)


def test_an_empty_page_is_named(tmp_path):
    (tmp_path / "p.html").write_text("<html><body><article> </article></body></html>")
    assert builder.check_pages(tmp_path, ["p"], {}) == ["p: the page is empty"]


def test_a_failed_build_keeps_the_pages_and_says_the_same_again(build_small, small_root):
    html = build_small()
    good = (html / "book/index.html").read_text()
    index = small_root / "book/index.md"
    index.write_text("# Small\n\n{ref}`nowhere`\n")
    for _ in range(2):  # Sphinx does not repeat the warnings of a page that it holds in its cache
        with pytest.raises(
            builder.BuildError, match=r"book/index\.md:3: WARNING: undefined label: 'nowhere'"
        ):
            build_small()
        assert (html / "book/index.html").read_text() == good
    index.write_text("# Large\n\nMended.\n")
    assert "Mended" in (build_small() / "book/index.html").read_text()


def test_a_dead_link_to_a_claim_fails_the_build(build_small, small_root):
    run = small_root / "runs/smoke/template/made-up/notebook.ipynb"
    text = run.read_text()
    assert "(template-t2)=" in text
    run.write_text(text.replace("(template-t2)=", "(template-other)="))
    (small_root / "book/index.md").write_text("# Small\n\n```{include} _generated/scorecard.md\n```\n")
    with pytest.raises(builder.BuildError, match="template-t2"):
        build_small()


def test_a_build_waits_for_another(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builder, "_build", lambda root, output, *_: output / "html")
    (tmp_path / "_build").mkdir()
    other = FileLock(tmp_path / "_build/.lock")
    other.acquire()
    with ThreadPoolExecutor() as pool:
        build = pool.submit(builder.build, tmp_path)
        while not (said := capsys.readouterr().out):
            time.sleep(0.05)
        other.release()
        assert build.result(timeout=30) == tmp_path / "_build/html"
    assert said == f"waiting for the build that is running in {tmp_path / '_build'}\n"


def test_a_build_killed_between_the_renames_gets_its_pages_back(build_small, small_root):
    html = build_small()
    html.rename(html.with_name("html.old"))
    shutil.rmtree(small_root / "runs")
    with pytest.raises(builder.BuildError, match="no complete run"):
        build_small()
    assert (html / "book/index.html").is_file()


def test_the_command_says_what_is_missing_and_fails(small_root, capsys, monkeypatch):
    monkeypatch.setattr(builder, "build", lambda *_: (_ for _ in ()).throw(builder.BuildError("p: missing")))
    assert builder.main(["--root", str(small_root)]) == 1
    assert capsys.readouterr().err == "the book was not built:\np: missing\n"


def test_staged_files_name_the_real_repository_everywhere(small_root, made_up_request, tmp_path):
    runs = builder.present_runs(small_root, ["template"], "smoke", made_up_request, tmp_path / "made")
    files = builder.staged_files(small_root, runs, "ann/held")
    text = {name: content for name, content in files.items() if name.endswith((".md", ".yml", ".ipynb"))}
    assert [name for name, content in text.items() if b"does-it-hold/does-it-hold" in content] == []
    assert b"https://github.com/ann/held" in files["_config.yml"]
    assert {
        "notebooks/template.ipynb",
        "lib/ledger/verdicts.py",
        "book/_static/mathjax/tex-mml-chtml.js",
    } <= set(files)
