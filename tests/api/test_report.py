"""The report as a file: what it holds, what it refuses, and that its bundle is what its sources give."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pydantic
import pytest

from quantascope.api import report
from quantascope.api.report import Payload, render_report
from quantascope.api.report.payload import Exemplars, Header, Quanta, Tree, Units, Window
from tests.api.report_extremes import HOSTILE, empty_payload, hostile_payload
from tests.api.report_fixture import make_payload, replaced

FOLDER = Path(report.__file__).parent
WEB = FOLDER / "web"


@pytest.fixture(scope="module")
def payload() -> Payload:
    return make_payload(num_units=300, num_quanta=12, num_windows=40)


@pytest.fixture(scope="module")
def html(payload: Payload) -> str:
    return render_report(payload)


def block(html: str, name: str) -> bytes:
    found = re.search(rf'id="{name}">([A-Za-z0-9+/=]+)</script>', html)
    assert found
    return zlib.decompress(base64.b64decode(found[1]))


def elements(html: str) -> list[str]:
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append(f"{tag} {sorted(dict(attributes))}")
    parser.feed(html)
    return found


def test_the_file_asks_nothing_of_the_network(html: str) -> None:
    outside = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.S)
    assert re.findall(r'(?:src|href)="([^"]*)"', outside) == ["data:,"]
    script_and_style = (FOLDER / "bundle.js").read_text() + (FOLDER / "bundle.css").read_text()
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", script_and_style))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "url(" not in (FOLDER / "bundle.css").read_text()


def test_the_policy_allows_this_script_and_this_style_alone(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'"
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        text = re.findall(rf"<{element}>(.*?)</{element}>", html, flags=re.S)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_columns_and_tokens_come_back_as_they_were(payload: Payload, html: str) -> None:
    texts, numbers = json.loads(block(html, "texts")), block(html, "numbers")

    def column(reference: dict) -> np.ndarray:
        dtype, offset, shape = reference["$"]
        assert offset % 4 == 0
        return np.frombuffer(numbers, np.dtype(dtype).newbyteorder("<"), int(np.prod(shape)), offset).reshape(shape)

    np.testing.assert_array_equal(column(texts["units"]["loss"]), payload.units.loss)
    np.testing.assert_array_equal(column(texts["quanta"]["address"]["share"]), payload.quanta.address.share)
    windows = texts["windows"]
    start, token = column(windows["start"]), column(windows["token"])
    for number in (0, 17, len(payload.windows) - 1):
        found = tuple(windows["vocabulary"][i] for i in token[start[number] : start[number + 1]])
        assert found == payload.windows[number].tokens


def test_the_same_payload_gives_the_same_file(payload: Payload, html: str) -> None:
    assert render_report(payload) == html


def test_hostile_text_stays_text() -> None:
    html = render_report(hostile_payload())
    html.encode("utf-8")
    assert elements(html) == elements(render_report(empty_payload()))
    assert "\u202e" not in html
    assert json.loads(block(html, "texts"))["windows"]["vocabulary"][: len(HOSTILE)] == list(HOSTILE)


def test_an_empty_run_still_gives_a_report() -> None:
    assert "Nothing was found" in render_report(empty_payload())


def test_numbers_that_are_not_finite_are_json() -> None:
    payload = make_payload(num_units=60, num_quanta=3, num_windows=10)
    fit = payload.rank_frequency.fit.model_copy(update={"low": float("nan"), "high": float("inf")})
    broken = replaced(payload, rank_frequency=payload.rank_frequency.model_copy(update={"fit": fit}))
    texts = json.loads(block(render_report(broken), "texts"), parse_constant=pytest.fail)
    assert texts["rank_frequency"]["fit"]["low"] is None


def test_size_of_a_demo_sized_report() -> None:
    html = render_report(make_payload())
    assert len(html.encode("utf-8")) < 1_000_000


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("units", {"loss": [0.1]}, "different lengths"),
        ("units", {"window": [[0]]}, "2 dimensions; this column has 1"),
        ("units", {"colour": [1]}, "Extra inputs"),
        ("quanta", {"phrase": ("one",)}, "different lengths"),
        ("quanta", {"loss_curve": np.zeros((12, 3))}, "checkpoint_steps"),
        ("tree", {"left": [0], "right": [99], "cosine": [0.5], "size": [2], "persistence": None}, "tree merge 0"),
    ],
)
def test_a_payload_that_does_not_fit_together_is_refused(
    payload: Payload, part: str, change: dict, message: str
) -> None:
    kind = {"units": Units, "quanta": Quanta, "tree": Tree}[part]
    held = getattr(payload, part)
    columns = {name: getattr(held, name) for name in kind.model_fields} | change
    with pytest.raises(pydantic.ValidationError, match=message):
        replaced(payload, **{part: kind(**columns)})


def test_indices_that_lead_nowhere_are_refused(payload: Payload) -> None:
    with pytest.raises(ValueError, match=r"units\.window: indices from 0"):
        replaced(payload, windows=payload.windows[:2])
    lost = (*payload.quanta.exemplars[:-1], Exemplars(centre=(10**6,)))
    with pytest.raises(ValueError, match="exemplars"):
        replaced(payload, quanta=payload.quanta.model_copy(update={"exemplars": lost}))
    short = tuple(Window(document=0, char_offset=0, tokens=("a",)) for _ in payload.windows)
    with pytest.raises(ValueError, match="outside its window"):
        replaced(payload, windows=short)


def test_columns_are_copies_and_read_only() -> None:
    loss = np.array([0.1, 0.2], np.float32)
    zeros = [0, 0]
    units = Units(window=zeros, target=zeros, quantum=zeros, loss=loss, cosine=zeros, x=zeros, y=zeros)
    loss[0] = 9
    assert units.loss[0] == np.float32(0.1)
    with pytest.raises(ValueError, match="read-only"):
        units.loss[0] = 3


def test_the_header_is_frozen() -> None:
    header = Header(title="t", model="m", num_parameters=1, sentence="s")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        header.title = "other"


def test_the_sources_never_make_markup_from_text() -> None:
    sources = "".join(path.read_text() for path in (WEB / "src").glob("*.js"))
    code = re.sub(r"//[^\n]*", "", sources)
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
    ):
        assert word not in code


def test_no_registry_address_is_kept() -> None:
    assert '"resolved"' not in (WEB / "package-lock.json").read_text()


def test_a_rebuild_gives_the_same_bytes(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (WEB / "node_modules" / "esbuild").is_dir():
        pytest.skip("esbuild is not installed: run `npm ci` in api/report/web")
    subprocess.run([node, "build.mjs", str(tmp_path)], cwd=WEB, check=True, timeout=60)
    for name in ("bundle.js", "bundle.css"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"{name}: run `npm run build`"
