"""Checksums: JSON that carries its own, and the digest by which a record names other files' bytes."""

import hashlib
import json
from typing import Any

from ..errors import DamagedRunError

_CHECKSUM = "checksum"


def digest(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(value: Any) -> str:  # noqa: ANN401 - anything that JSON can say
    """SHA-256 of a value's canonical JSON: equal configurations have equal fingerprints, on every machine."""
    return digest(_canonical(value))


def encode_json(value: dict[str, Any]) -> bytes:
    """Readable JSON whose last key is the SHA-256 of the rest in canonical form."""
    return json.dumps(value | {_CHECKSUM: fingerprint(value)}, indent=1, ensure_ascii=False).encode() + b"\n"


def decode_json(data: bytes, name: str) -> dict[str, Any]:
    """The value that `encode_json` wrote; DamagedRunError, naming the file, if a byte of it changed."""
    try:
        value = json.loads(data)
        checksum = value.pop(_CHECKSUM)
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise DamagedRunError(f"{name} is damaged: it is not the JSON that was written.") from None
    if encode_json(value) != data or checksum != fingerprint(value):
        raise DamagedRunError(f"{name} is damaged: its checksum does not match its contents.")
    assert isinstance(value, dict)
    return value


def check(data: bytes | memoryview, expected: str, name: str) -> None:
    """DamagedRunError unless the bytes have the recorded digest."""
    found = digest(data)
    if found != expected:
        raise DamagedRunError(
            f"{name} is damaged: its SHA-256 is {found[:12]}…, the record says {expected[:12]}…. "
            "Remove the row set or derived folder that holds it (`quantascope rm`) and make it again."
        )


def _canonical(value: Any) -> bytes:  # noqa: ANN401
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
