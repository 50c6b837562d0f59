"""The built pages: links, alternative text, headings, figures, nothing from elsewhere, phone and dark mode.

Looked at are the whole book on made-up runs and, where it has been built, the book itself.
"""

import functools
import http.server
import itertools
import json
import re
import shutil
import subprocess
import threading
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from book import build as builder

ROOT = builder.ROOT


PUBLISHED = ROOT / "_build" / "html"


@pytest.fixture(scope="module", params=["made-up", *(["published"] if PUBLISHED.is_dir() else [])])
def html(request):
    """Folder of built pages."""
    if request.param == "published":
        return PUBLISHED
    return request.getfixturevalue("book") / "_build/html"


@pytest.fixture(scope="module")
def pages(html):
    """Parsed pages of the contents, by name."""
    names = builder.toc_pages(ROOT)
    return {name: parse(html / f"{name}.html") for name in names if (html / f"{name}.html").is_file()}


@functools.cache
def parse(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@functools.cache
def places(path):
    """What a link can lead to on a page."""
    return {element["id"] for element in parse(path).find_all(id=True)}


def chapters(pages):
    return {name: page for name, page in pages.items() if name.startswith("notebooks/")}


def test_internal_links_and_anchors_resolve(html, pages):
    dead = []
    for name, page in pages.items():
        for link in page.select("a[href], link[href]"):
            url = urlsplit(link["href"])
            if url.scheme or url.netloc or link["href"] == "#":
                continue
            target = (html / f"{name}.html").parent / unquote(url.path) if url.path else html / f"{name}.html"
            if not target.is_file():
                dead.append(f"{name}: {link['href']}")
                continue
            place = unquote(url.fragment) if target.suffix == ".html" else ""
            if place and place not in places(target.resolve()):
                dead.append(f"{name}: {link['href']} (no such place)")
    assert dead == []


def test_images_have_alternative_text_and_files(html, pages):
    wrong = []
    for name, page in pages.items():
        for image in page.select("img"):
            if not image.get("alt", "").strip() and image.get("aria-hidden") != "true":
                wrong.append(f"{name}: {image.get('src')} has no alternative text")
            elif re.search(r"[\\/][\w.-]+\.(png|svg)$", image.get("alt", "")):
                wrong.append(f"{name}: {image.get('src')} has a file name for alternative text")
            local = not re.match(r"https?:|data:", image["src"])
            if local and not ((html / f"{name}.html").parent / unquote(image["src"])).is_file():
                wrong.append(f"{name}: {image['src']} is missing")
    assert wrong == []


def test_one_first_heading_and_no_level_skipped(pages):
    wrong = []
    for name, page in pages.items():
        levels = [int(h.name[1]) for h in page.select_one("article").find_all(re.compile("^h[1-6]$"))]
        if levels.count(1) != 1 or levels[0] != 1:
            wrong.append(f"{name}: first headings: {levels.count(1)}, the page starts with h{levels[0]}")
        if any(after > before + 1 for before, after in itertools.pairwise(levels)):
            wrong.append(f"{name}: skips a level: {levels}")
    assert wrong == []


def test_no_page_shows_an_error_output(pages):
    assert [name for name, page in pages.items() if page.select(".output.traceback")] == []


def test_chapters_show_figures_and_captions(pages):
    for name, page in chapters(pages).items():
        assert page.select("article figure img"), f"{name} shows no figure"
        assert all(f.select_one("figcaption") for f in page.select("article figure")), name


def test_nothing_is_fetched_from_elsewhere(pages):
    asked = {
        (name, address)
        for name, page in pages.items()
        for tag, key in (("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href"))
        for address in (element.get(key, "") for element in page.select(tag))
        if re.match(r"(https?:)?//", address)
    }
    assert asked == set()


def test_style_sheets_fetch_nothing_from_elsewhere(html):
    for sheet in (html / "_static").rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", sheet.read_text("utf-8"))
        assert outside == [], sheet.name


def test_launch_button_opens_the_notebook_of_the_chapter(pages):
    for name, page in chapters(pages).items():
        links = [a["href"] for a in page.select("a[href*='mybinder.org/v2']")]
        assert links and all(link.endswith(f"?urlpath=lab/tree/{name}.ipynb") for link in links), name


def test_chapters_can_be_downloaded(html, pages):
    for name, page in chapters(pages).items():
        assert page.select(f"a[href$='_sources/{name}.ipynb']"), name
        assert json.loads((html / f"_sources/{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_every_claim_of_the_scorecard_leads_into_its_chapter(pages):
    rows = pages["book/scorecard"].select("table.claims tbody tr")
    assert rows
    for row in rows:
        assert re.fullmatch(r"\.\./notebooks/\w+\.html#[\w-]+", row.select_one("td a[href]")["href"])
        assert row.select_one("td .verdict").get_text(strip=True)


def test_tables_have_headings(pages):
    for name, page in pages.items():
        for table in page.select("article table"):
            assert table.select_one("th"), f"{name}: a table without a heading"


# --- in a browser ------------------------------------------------------------------------------------------

PROBE = """<!doctype html><body style="margin:0"><pre id="result"></pre><script>
const pages = %(pages)s, width = %(width)d, theme = "%(theme)s";
localStorage.setItem("mode", theme); localStorage.setItem("theme", theme);
const all = (doc, selector) => [...doc.querySelectorAll(selector)];
const solid = c => !/^(transparent|rgba\\(.*, 0\\))$/.test(c);
function behind(e) { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (solid(c)) return c; } return "rgb(255, 255, 255)"; }
async function look(page) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border:0;width:${width}px;height:900px`; frame.src = page;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  await new Promise(done => setTimeout(done, 400));
  const doc = frame.contentDocument, style = e => frame.contentWindow.getComputedStyle(e);
  const found = { page, theme: doc.documentElement.dataset.theme, width: doc.documentElement.scrollWidth,
    math: doc.querySelectorAll(".math").length, typeset: doc.querySelectorAll("mjx-container").length,
    images: all(doc, "article img").map(e => [e.getAttribute("src"), style(e).backgroundColor]),
    text: all(doc, %(text)s).map(e => [e.className || e.tagName, style(e).color, behind(e)]) };
  frame.remove();
  return found;
}
(async () => { const found = []; for (const page of pages) found.push(await look(page));
  document.getElementById("result").textContent = JSON.stringify(found); })();
</script></body>"""
LOOKS = [(390, "dark"), (1280, "light")]  # each loads every page anew, and typesets it
TEXT = "article .verdict, article .mark-synthetic, article .mark-recalled, article td, article th, article p"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of the book and one probe page, without a log line for each."""

    probe = ""

    def do_GET(self):
        if self.path != "/probe":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.probe.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browse(html, pages, once, tmp_path_factory):
    """A function of width and theme that opens every page in headless Chromium and says what it measured."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium (apt install chromium)")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def look(width, theme):
        names = json.dumps([f"/{name}.html" for name in pages])
        Quiet.probe = PROBE % {"pages": names, "width": width, "theme": theme, "text": json.dumps(TEXT)}
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
            "--disable-background-networking --disable-component-update --virtual-time-budget=60000"
        )
        profile = tmp_path_factory.mktemp("chromium")
        address = f"http://127.0.0.1:{server.server_address[1]}/probe"
        command = [chromium, *flags.split(), f"--user-data-dir={profile}", f"--window-size={width + 20},900"]
        done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, check=True)
        return json.loads(BeautifulSoup(done.stdout, "html.parser").find(id="result").get_text())

    def run(width, theme):
        which = "published" if html == PUBLISHED else "made-up"
        return once(f"{which}-{width}-{theme}", lambda: look(width, theme))

    yield run
    server.shutdown()
    server.server_close()


@pytest.mark.chromium
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_no_page_is_wider_than_the_screen(browse, pages, width, theme):
    found = browse(width, theme)
    assert len(found) == len(pages)
    assert [(one["page"], one["width"]) for one in found if one["width"] > width] == []


@pytest.mark.chromium
def test_figures_stay_on_white_in_the_dark(browse):
    found = browse(390, "dark")
    assert {one["theme"] for one in found} == {"dark"}
    images = [(one["page"], *image) for one in found for image in one["images"]]
    assert images
    assert [image for image in images if image[2] != "rgb(255, 255, 255)"] == []


def luminance(colour):
    values = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_the_formula_of_wcag():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


@pytest.mark.chromium
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_text_and_badges_have_enough_contrast(browse, width, theme):
    pale = {
        (one["page"], *text)
        for one in browse(width, theme)
        for text in one["text"]
        if contrast(*text[1:]) < 4.5
    }
    assert pale == set()


@pytest.mark.chromium
def test_formulas_are_typeset_without_a_network(browse):
    found = [one for one in browse(1280, "light") if one["math"]]
    assert found and all(one["typeset"] >= one["math"] for one in found)
