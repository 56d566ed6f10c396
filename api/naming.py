"""Names for quanta from a language model behind any OpenAI-compatible endpoint. Optional, and marked as what it is.

Knows HTTP and one small part of one protocol (`POST URL/chat/completions`). What comes back is untrusted text: its
first line, without control characters, cut to a length. Whatever fails leaves the name out; nothing else changes.
"""

import json
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigurationError

KEY_VARIABLE = "QUANTASCOPE_NAMES_KEY"
"""Environment variable that may hold the endpoint's key."""
_MOST_BYTES = 1_000_000
_LONGEST = 80
_GIVE_UP = 3
"""Failures in a row after which the endpoint is not asked any more."""
_TASK = (
    "These are places in texts where a small language model predicts the token marked «…» for the same reason. "
    "Name that reason in two to eight words, as a skill, and answer with the name alone."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamingConfig:
    """Whom to ask."""

    url: str
    """Up to and without `/chat/completions`, such as http://localhost:8000/v1."""
    model: str
    key: str | None = None
    """Sent as a bearer token; None sends none."""
    timeout_seconds: float = 30.0
    max_names: int = 200
    """Quanta to name, the most used first."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"--names-from is {self.url!r}; give an http or https address")
        if not self.model.strip():
            raise ConfigurationError("--names-from needs --names-model: the name of the model to ask")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise ConfigurationError(f"{KEY_VARIABLE} holds characters that no header can carry")


class EndpointNamer:
    """Asks for one name after another; gives up after three failures in a row."""

    def __init__(self, config: NamingConfig) -> None:
        self._config = config
        self._given = self._failed = 0
        self._reason: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Who gave the names, how many, and the last thing that went wrong; the key is no part of it."""
        return {
            "model": clean_name(self._config.model),
            "endpoint": urlsplit(self._config.url).hostname,
            "given": self._given,
            "left_out": self._failed,
            "reason": self._reason,
        }

    def __call__(self, described: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """A name for each of the first quanta, None where none came."""
        names: list[str | None] = []
        in_a_row = 0
        for entry in described[: self._config.max_names]:
            name = None
            if in_a_row < _GIVE_UP:
                try:
                    name = self._ask(entry)
                    in_a_row = 0
                except (OSError, ValueError, LookupError, TypeError) as error:
                    in_a_row += 1
                    self._reason = clean_name(f"{type(error).__name__}: {error}")
            names.append(name)
        self._given = sum(name is not None for name in names)
        self._failed = len(names) - self._given
        return names + [None] * (len(described) - len(names))

    def _ask(self, entry: Mapping[str, Any]) -> str:
        examples = "\n".join(f"{before}«{target}»" for before, target in entry["contexts"])
        body = {
            "model": self._config.model,
            "messages": [{"role": "system", "content": _TASK}, {"role": "user", "content": examples}],
            "temperature": 0,
            "max_tokens": 40,
        }
        headers = {"Content-Type": "application/json"}
        if self._config.key:
            headers["Authorization"] = f"Bearer {self._config.key}"
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{self._config.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        opener = urllib.request.build_opener(_NoRedirects)  # a redirect could carry the key elsewhere
        with opener.open(request, timeout=self._config.timeout_seconds) as answer:
            data = answer.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError("the answer is longer than a megabyte")
        name = clean_name(str(json.loads(data)["choices"][0]["message"]["content"]))
        if not name:
            raise ValueError("the answer holds no name")
        return name


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:  # noqa: ANN401 - the base class's own signature
        """None: the redirect becomes an error."""


def clean_name(text: str) -> str:
    """The first line that says something, without control, formatting or private characters, of at most 80."""
    lines = (
        "".join(c for c in line if c == " " or unicodedata.category(c)[0] not in "CZ") for line in text.splitlines()
    )
    first = next((line.strip(" \"'`*#.") for line in lines if line.strip(" \"'`*#.")), "")
    return first if len(first) <= _LONGEST else first[: _LONGEST - 1] + "…"
