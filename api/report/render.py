"""Turns a `Payload` into one HTML file that works from disk, with no network.

Knows how the page carries its data: one block of base64 holds the deflated texts (JSON), another the deflated
numbers (little-endian columns, each at a multiple of four bytes); `web/src/data.js` reads them back. Knows
nothing of runs, and nothing of how the views look.

The page's content security policy allows its own script and style, each by its hash, and nothing else; trusted
types are required and none are made, so that no code in the page can turn text into markup.
"""

import base64
import hashlib
import json
import re
import zlib
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from .payload import Payload, Window

# Controls, marks that change the direction of text, halves of surrogate pairs: not wanted in a page's title.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+")


def render_report(payload: Payload) -> str:
    """Return the report as the text of one HTML file, to be written as UTF-8.

    The same payload always gives the same text.
    """
    texts, numbers = _pack(payload)
    script, style = _asset("bundle.js"), _asset("bundle.css")
    if "</script" in script.lower() or "</style" in style.lower():
        raise AssertionError("the bundle would end its own element")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_asset("template.html")).render(
        title=_showable(payload.header.title),
        sentence=_showable(payload.header.sentence),
        policy=_policy(script, style),
        script=Markup(script),  # noqa: S704 - our own file, checked just above
        style=Markup(style),  # noqa: S704
        texts=_encoded(json.dumps(texts, separators=(",", ":")).encode("ascii")),
        numbers=_encoded(numbers),
    )


def _policy(script: str, style: str) -> str:
    allowed = [
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        f"style-src '{_digest(style)}'",
        "img-src data:",  # the empty icon, so that no browser asks a server for one
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return "; ".join(allowed)


def _pack(payload: Payload) -> tuple[dict[str, Any], bytes]:
    """Split a payload into JSON, with {"$": [dtype, offset, shape]} for each column, and the columns' bytes."""
    columns: list[bytes] = []
    offset = 0

    def strip(value: Any) -> Any:  # noqa: ANN401 - walks a tree of plain values
        nonlocal offset
        if isinstance(value, dict):
            return {key: strip(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [strip(entry) for entry in value]
        if isinstance(value, float):
            return value if np.isfinite(value) else None  # JSON has no NaN
        if not isinstance(value, np.ndarray):
            return value
        little_endian = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        reference = {"$": [value.dtype.name, offset, list(value.shape)]}
        padded = little_endian.tobytes() + b"\0" * (-little_endian.nbytes % 4)
        columns.append(padded)
        offset += len(padded)
        return reference

    plain = payload.model_dump(mode="python", exclude={"windows"})
    plain["windows"] = _pack_windows(payload.windows)
    return strip(plain), b"".join(columns)


def _pack_windows(windows: tuple[Window, ...]) -> dict[str, Any]:
    """Windows as columns, and their tokens as indices into a vocabulary of the distinct ones."""
    vocabulary: dict[str, int] = {}
    tokens = [vocabulary.setdefault(token, len(vocabulary)) for window in windows for token in window.tokens]
    return {
        "document": np.array([window.document for window in windows], dtype=np.int32),
        "char_offset": np.array([window.char_offset for window in windows], dtype=np.int32),
        "first_line": np.array([window.first_line or -1 for window in windows], dtype=np.int32),
        "start": np.cumsum([0, *(len(window.tokens) for window in windows)], dtype=np.int32),
        "token": np.array(tokens, dtype=np.uint16 if len(vocabulary) < 2**16 else np.int32),
        "vocabulary": list(vocabulary),
    }


def _encoded(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _showable(text: str) -> str:
    return _UNSHOWABLE.sub(" ", text)
