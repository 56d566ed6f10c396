"""Checksums: JSON that carries its own, and the digest by which a record names other files' bytes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..errors import DamagedRunError, RunMismatchError

_CHECKSUM = "checksum"
MENDING = "`quantascope verify` names all that is damaged and says what mends it."


def digest(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(value: Any) -> str:  # noqa: ANN401 - anything that JSON can say
    """SHA-256 of a value's canonical JSON: equal configurations have equal fingerprints, on every machine."""
    return digest(_canonical(value))


def encode_json(value: dict[str, Any]) -> bytes:
    """Readable JSON whose last key is the SHA-256 of the rest in canonical form."""
    return json.dumps(value | {_CHECKSUM: fingerprint(value)}, indent=1, ensure_ascii=False).encode() + b"\n"


def decode_json(data: bytes, name: str, shape: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The value that `encode_json` wrote; DamagedRunError, naming the file, if a byte of it changed.

    `shape` names keys that must be there, each with the type of its value.
    """
    try:
        value = json.loads(data)
        checksum = value.pop(_CHECKSUM)
        is_whole = encode_json(value) == data and checksum == fingerprint(value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedRunError(f"{name} is damaged: it is not the JSON that was written. {MENDING}") from None
    if not is_whole:
        raise DamagedRunError(f"{name} is damaged: its checksum does not match its contents. {MENDING}")
    for key, kind in (shape or {}).items():
        if not isinstance(value.get(key), kind) or isinstance(value[key], bool):
            raise DamagedRunError(
                f"{name} is damaged: its {key} is {value.get(key)!r}, and not of type {kind.__name__}. {MENDING}"
            )
    assert isinstance(value, dict)
    return value


def check(data: bytes | memoryview, expected: str, name: str) -> None:
    """DamagedRunError unless the bytes have the recorded digest."""
    found = digest(data)
    if found != expected:
        raise DamagedRunError(
            f"{name} is damaged: its SHA-256 is {found[:12]}…, the record says {expected[:12]}…. {MENDING}"
        )


def require_same(found: dict[str, Any], wanted: dict[str, Any], what: str, advice: str) -> None:
    """RunMismatchError that prints both sides of every difference, unless the configurations are equal as JSON."""
    there, asked = _flat(json.loads(json.dumps(found))), _flat(json.loads(json.dumps(wanted)))
    differences = [
        f"  {key}: there {there.get(key)!r}, asked for {asked.get(key)!r}"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key)
    ]
    if differences:
        raise RunMismatchError("\n".join([f"{what} was made with another configuration:", *differences, advice]))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def _canonical(value: Any) -> bytes:  # noqa: ANN401
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
