"""The report as a reader meets it: opened from disk in a headless Chromium."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantascope.api.report import render_report
from tests.api.report_extremes import HOSTILE, bare_payload, empty_payload, hostile_payload
from tests.api.report_fixture import make_payload

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
VIEWS = ("quanta", "evidence", "frequency", "traces", "tree", "run")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    small = make_payload(num_units=800, num_quanta=40, num_windows=80)
    payloads = {
        "demo": small,
        "large": make_payload(),
        "hostile": hostile_payload(),
        "bare": bare_payload(),
        "empty": empty_payload(),
    }
    for name, payload in payloads.items():
        (folder / f"{name}.html").write_text(render_report(payload), encoding="utf-8")
    return folder


class Reader:
    """Opens reports, and keeps what the browser complained about and asked for."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.folder = folder
        self.context = browser.new_context(viewport={"width": 1600, "height": 1000})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append("a dialog opened"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, name: str = "demo", hash: str = "", width: int = 1600) -> Any:
        self.page.goto("about:blank")
        self.page.set_viewport_size({"width": width, "height": 1000})
        self.page.goto((self.folder / f"{name}.html").as_uri() + hash)
        self.page.wait_for_selector("#app:not([aria-busy])")
        return self.page

    def go(self, hash: str) -> None:
        """Change the hash of the open report, and wait until it has been drawn."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(done))"
        self.page.evaluate(f"hash => new Promise(done => {{ location.hash = hash; {frames} }})", hash)

    def hash(self) -> str:
        return self.page.evaluate("location.hash")


@pytest.fixture(scope="module")
def one_reader(browser: Any, folder: Path) -> Iterator[Reader]:
    reader = Reader(browser, folder)
    yield reader
    reader.context.close()


@pytest.fixture
def reader(one_reader: Reader) -> Iterator[Reader]:
    one_reader.complaints.clear()
    one_reader.requests.clear()
    one_reader.page.emulate_media(color_scheme="light", media="screen")
    yield one_reader
    assert one_reader.complaints == []
    outside = [url for url in one_reader.requests if not re.match(r"file:|data:|about:|blob:", url)]
    assert outside == []


def rows(page: Any) -> list[int]:
    return page.eval_on_selector_all("tr[data-quantum]", "rows => rows.map(row => Number(row.dataset.quantum))")


def test_opens_within_two_seconds(reader: Reader) -> None:
    reader.open()  # the first one pays for the browser's own start
    seconds = []
    for _ in range(3):  # other work on the machine may slow one of them
        start = time.monotonic()
        page = reader.open("large")
        seconds.append(time.monotonic() - start)
        if seconds[-1] < 2:
            break
    assert min(seconds) < 2
    assert len(rows(page)) == 120


def test_the_first_screen_says_what_was_found(reader: Reader) -> None:
    page = reader.open()
    assert "40 skills" in page.inner_text(".sentence")
    assert page.locator(".figure").count() == 5
    assert "null −0.20" in page.inner_text(".figure >> nth=0")
    bottom = page.locator("tr[data-quantum]").nth(5).bounding_box()
    place = page.locator("canvas").bounding_box()
    assert bottom["y"] + bottom["height"] < 1000
    assert place["x"] > bottom["x"] + bottom["width"]


def test_a_figure_explains_itself_on_focus_and_hover(reader: Reader) -> None:
    page = reader.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "figure explained"
    assert "One model and one seed." in page.inner_text(".tip")
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()
    page.hover(".figure >> nth=2")
    assert "Jaccard" in page.inner_text(".tip")
    assert page.get_attribute(".figure >> nth=2", "aria-describedby") == "tip"


def test_a_tip_stays_inside_the_window(reader: Reader) -> None:
    page = reader.open(width=360)
    for number in range(5):
        page.hover(f".figure >> nth={number}")
        tip = page.locator(".tip").bounding_box()
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= page.evaluate("document.documentElement.clientWidth")


def test_sorting_by_any_column(reader: Reader) -> None:
    page = reader.open()
    by_use = rows(page)
    page.click("th.c-coherence button")
    shown = [float(text) for text in page.locator("td.c-coherence").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert page.get_attribute("th.c-coherence", "aria-sort") == "descending"
    page.click("th.c-coherence button")
    assert page.get_attribute("th.c-coherence", "aria-sort") == "ascending"
    assert "sort=coherence" in reader.hash()
    assert "order=up" in reader.hash()
    assert sorted(rows(page)) == sorted(by_use)


def test_search_filters_by_text_and_marks_it(reader: Reader) -> None:
    page = reader.open()
    page.fill("input[type=search]", "return")
    found = rows(page)
    assert 0 < len(found) < 40
    assert f"{len(found)} quant" in page.inner_text(".said")
    page.fill("input[type=search]", "nothing holds these words")
    assert rows(page) == []
    assert "No quantum matches" in page.inner_text("tbody")


def test_the_hash_carries_the_state(reader: Reader) -> None:
    page = reader.open()
    page.fill("input[type=search]", "self")
    page.click("tr[data-quantum] >> nth=2")
    chosen, left = page.inner_text(".quantum .steps"), rows(page)
    shared = reader.hash()
    page = reader.open(hash=shared)
    assert page.inner_text(".quantum .steps") == chosen
    assert rows(page) == left
    assert page.input_value("input[type=search]") == "self"


def test_back_leaves_a_quantum(reader: Reader) -> None:
    page = reader.open()
    page.click("tr[data-quantum] >> nth=0")
    assert page.locator("article.quantum").is_visible()
    page.go_back()
    assert page.locator("article.quantum").is_hidden()


@pytest.mark.parametrize(
    "hash", ["#quantum=99999", "#view=nowhere&sort=__proto__", "#cut=x&toggled=..a.-1", "#unit=1e3&%00"]
)
def test_a_broken_hash_is_ignored(reader: Reader, hash: str) -> None:
    assert len(rows(reader.open(hash=hash))) == 40


def test_an_exemplar_opens_its_window(reader: Reader) -> None:
    page = reader.open(hash="#quantum=3")
    page.click(".exemplars .open >> nth=0")
    dialog = page.locator("dialog.window")
    assert dialog.is_visible()
    assert re.search(r"line [\d,]+ · character [\d,]+", dialog.inner_text())
    assert dialog.locator("pre mark.target").count() == 1
    assert "unit=" in reader.hash()
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert "unit=" not in reader.hash()
    assert "quantum=3" in reader.hash()


def test_a_quantum_shows_what_is_known_of_it(reader: Reader) -> None:
    text = reader.open(hash="#quantum=3").inner_text("article.quantum")
    for title in (
        "Near the centre",
        "At the edge",
        "Counter-examples",
        "belongs to",
        "Where in the network",
        "Nearest quanta",
    ):
        assert title in text


def test_copied_text_holds_whitespace_and_not_its_signs(reader: Reader) -> None:
    page = reader.open(hash="#unit=3")
    text = page.text_content("dialog pre")
    assert "\n" in text
    assert "·" not in text
    assert "↵" not in text


def test_folding_along_the_tree(reader: Reader) -> None:
    page = reader.open(hash="#cut=0.3")
    folded = page.locator("tr.group").count()
    shown = len(rows(page))
    assert folded > 2
    page.click("tr.group button >> nth=0")
    assert page.get_attribute("tr.group button >> nth=0", "aria-expanded") == "true"
    assert len(rows(page)) > shown


def test_the_keyboard_reaches_a_quantum(reader: Reader) -> None:
    page = reader.open()
    page.focus("tr[data-quantum] a >> nth=0")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert f"quantum={rows(page)[1]}" in reader.hash()
    page.keyboard.press("Escape")
    assert "quantum" not in reader.hash()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"


def test_every_control_has_a_name(reader: Reader) -> None:
    page = reader.open()
    for view in VIEWS:
        reader.go(f"#view={view}")
        nameless = page.eval_on_selector_all(
            "button, a, input, select, canvas, [role=img]",
            "all => all.filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || "
            "e.querySelector('[data-shown]') || e.labels?.length || e.getAttribute('aria-hidden')))"
            ".map(e => e.outerHTML)",
        )
        assert nameless == []


@pytest.mark.parametrize("width", [360, 900, 1600])
@pytest.mark.parametrize("name", ["demo", "hostile", "empty"])
def test_nothing_is_wider_than_the_window(reader: Reader, name: str, width: int) -> None:
    hashes = [f"#view={view}" for view in VIEWS] + ["#quantum=0", "#unit=0", "#cut=0.3"]
    page = reader.open(name, width=width)
    for hash in hashes:
        reader.go(hash)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, hash


def test_hostile_text_does_nothing_and_is_shown(reader: Reader) -> None:
    page = reader.open("hostile")
    assert "\u202e" not in page.inner_text("header")
    for hash in ("#quantum=0", "#quantum=3", "#view=traces", "#view=run", "#view=evidence", "#unit=3"):
        reader.go(hash)
        assert page.evaluate("window.pwned") is None
        assert page.locator("#app img, #app script").count() == 0
    text = page.inner_text("dialog pre")
    assert "U+202E" in text
    assert "\u202e" not in text
    assert HOSTILE[0] in text


def test_markup_from_text_is_refused_by_the_page(reader: Reader) -> None:
    page = reader.open()
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } }"
    )
    assert refused
    reader.complaints[:] = [text for text in reader.complaints if "TrustedHTML" not in text]


def test_an_empty_run_says_so(reader: Reader) -> None:
    page = reader.open("empty")
    assert "This run has no quanta." in page.inner_text("main")
    page.click("nav a:text('Traces')")
    assert "No behaviour was traced" in page.inner_text("main")


def test_parts_that_are_not_known_are_left_out(reader: Reader) -> None:
    page = reader.open("bare", "#quantum=1")
    assert page.locator("nav a").all_inner_texts() == ["Quanta", "Traces", "How it was made"]
    text = page.inner_text("article.quantum")
    assert "Near the centre" in text
    for absent in (
        "Where in the network",
        "Loss over training",
        "memorised",
        "emerged",
        "dimension",
        "NaN",
        "undefined",
    ):
        assert absent not in text
    reader.go("#view=tree")
    assert len(rows(page)) == 12


def test_a_damaged_file_says_so(reader: Reader) -> None:
    damaged = reader.folder / "damaged.html"
    whole = (reader.folder / "demo.html").read_text(encoding="utf-8")
    damaged.write_text(re.sub(r'(id="numbers">.{100})[^<]{50}', r"\1" + "A" * 50, whole), encoding="utf-8")
    page = reader.open("damaged")
    assert "cannot be read" in page.inner_text("[role=alert]")
    assert reader.complaints
    reader.complaints.clear()


def test_the_map_selects_and_lists(reader: Reader) -> None:
    page = reader.open()
    place = page.locator("canvas").bounding_box()
    page.click("button:text('Lasso')")
    corners = [(0.05, 0.05), (0.95, 0.05), (0.95, 0.9), (0.05, 0.9)]
    points = [(place["x"] + x * place["width"], place["y"] + y * place["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    assert re.search(r"[\d,]+ units in the loop", page.inner_text(".selection"))
    with page.expect_download() as download:
        page.click("text=Export as CSV")
    table = Path(download.value.path()).read_text(encoding="utf-8")
    assert table.startswith('"unit","quantum","label"')
    assert table.count("\n") > 200


def test_light_and_dark_pages_differ(reader: Reader) -> None:
    seen = set()
    for scheme in ("light", "dark"):
        reader.page.emulate_media(color_scheme=scheme)
        seen.add(reader.open().evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2


def test_print_shows_the_list_and_hides_controls(reader: Reader) -> None:
    page = reader.open()
    page.emulate_media(media="print")
    assert page.locator("input[type=search]").is_hidden()
    assert page.locator("tr[data-quantum]").last.is_visible()


def test_a_quantum_says_how_it_meets_others_each_beside_its_null(reader: Reader) -> None:
    page = reader.open()
    page.goto(page.url.split("#")[0] + "#quantum=0")
    page.wait_for_selector(".quantum h2")
    assert page.locator(".given q list").count() == 0
    text = page.inner_text(".quantum")
    for words in ("named by a language model: Ends a <list>", "19 of 20", "null 224", "also uses", "monogenic"):
        assert words in text, words
    met = page.locator("section.part", has_text="Interferes with").inner_text()
    assert "−0.023" in met
    assert "null −0.004" in met
    assert "chance 2.5" in page.locator("section.part", has_text="Used in the same documents").inner_text()
    page.goto(page.url.split("#")[0] + "#quantum=1")
    page.wait_for_function("document.querySelector('.quantum').innerText.includes('∞')")
    assert "No quantum, beyond chance." in page.inner_text(".quantum")


def test_the_tree_marks_what_comes_back_and_the_evidence_sums_up(reader: Reader) -> None:
    page = reader.open()
    page.goto(page.url.split("#")[0] + "#view=tree")
    page.wait_for_selector(".boxes rect.merge")
    assert page.locator(".boxes rect.lost").count() > 0
    assert page.locator(".boxes rect:not(.lost)").count() > page.locator(".boxes rect.lost").count()
    assert "16 or more of 20" in page.inner_text(".treekey")
    page.goto(page.url.split("#")[0] + "#view=evidence")
    assert "branches of noise" in page.inner_text(".together")
