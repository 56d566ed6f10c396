"""A run from one place to another, each file's bytes checked on the way; the manifest last, so that half is no run."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..errors import DamagedRunError, NoSpaceError, RunMismatchError, RunNotFoundError
from .checked import MENDING, decode_json, digest, encode_json, fingerprint
from .inventory import Expected, Inventory
from .run import COPYING, MANIFEST, MANIFEST_SHAPE, Run
from .store import UNBOUNDED_BYTES, Store

_UNCHANGING = ("set.json", "documents.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy did."""

    num_files: int
    num_bytes: int
    copied_here: int
    """Files that this call wrote; the others were there, and right."""
    left_out: tuple[str, ...]
    """Files of the source that do not belong to the run, the first hundred."""


OnFile = Callable[[str], None]
"""Called with the stage, `copy` or `prove`, after each file."""


def copy_run(source: Run, target: Store, on_file: OnFile) -> Copied:
    """Copy a run, and read the copy back; what an earlier call copied is checked and kept.

    Raises DamagedRunError at the first file of the source that is not what its record says, RunMismatchError for a
    target that holds another run (or half of one), RunNotFoundError for one with other things in it, NoSpaceError.
    """
    _require_free(source.store, target)
    inventory = Inventory(source.store)
    files = list(inventory.expected())
    others = [f.key for f in islice(inventory.others(), 100)]
    with target.lock():
        _require_free(source.store, target)
        target.replace(COPYING, _mark(source.store))
        digests: dict[str, str] = {}
        written = 0
        num_bytes = 0
        there = set(target.keys())
        _require_space(source.store, target, files, there)
        for file in files:  # the manifest is the last
            digests[file.key], is_new = _copy(source.store, target, file, there)
            written += is_new
            num_bytes += target.size_bytes(file.key)
            on_file("copy")
        for key, sha256 in digests.items():
            if target.digest(key) != sha256:
                raise DamagedRunError(f"{target.path(key)} did not keep its bytes: the disk cannot be trusted.")
            on_file("prove")
        target.remove(COPYING)
    return Copied(num_files=len(digests), num_bytes=num_bytes, copied_here=written, left_out=tuple(others))


def _copy(source: Store, target: Store, file: Expected, there: set[str]) -> tuple[str, bool]:
    """Copy a file unless it is there; its digest, and whether it was written."""
    if file.sha256 is None:
        data = source.read(file.key)
        decode_json(data, str(source.path(file.key)))
        expected = digest(data)
    else:
        expected = file.sha256
    if file.key in there and target.digest(file.key) == expected:
        return expected, False
    if _is_fixed(file) and file.key in there and _is_sound(target, file.key):
        raise RunMismatchError(
            f"{target.root} holds another run: its {file.key} is not that of {source.root}. Choose another place."
        )
    if Path(file.key).name == "facts.json" and file.key in there:
        target.remove(file.part)  # computed again since: nothing of the older one may stay
        there -= {key for key in there if key.startswith(f"{file.part}/")}
    target.replace(file.key, _checked(source, file.key, expected))
    return expected, True


def _checked(source: Store, key: str, expected: str) -> Iterator[bytes]:
    """A file's pieces; DamagedRunError at its end, before it gets its name in the copy, where they are others."""
    sha256 = hashlib.sha256()
    for piece in source.pieces(key):
        sha256.update(piece)
        yield piece
    if sha256.hexdigest() != expected:
        raise DamagedRunError(
            f"{source.path(key)} is damaged, or was changed while it was copied: its SHA-256 is "
            f"{sha256.hexdigest()[:12]}…, the record says {expected[:12]}…. {MENDING}"
        )


def _is_fixed(file: Expected) -> bool:
    """Whether a run never changes this file once it is there: its plans, documents and records."""
    return Path(file.key).name in _UNCHANGING or (file.block is not None and file.sha256 is None)


def _is_sound(target: Store, key: str) -> bool:
    try:
        decode_json(target.read(key), key)
    except DamagedRunError:
        return False
    return True


def _require_free(source: Store, target: Store) -> None:
    """Refuse a target that is the source, another run, half of one, or a folder with other things in it."""
    if source.root == target.root or source.root in target.root.parents:
        raise RunMismatchError(f"{target.root} is the run itself, or lies in it: choose another place.")
    if target.exists(COPYING):
        if target.read(COPYING) != _mark(source):
            raise RunMismatchError(f"{target.root} holds half a copy of another run: choose another place.")
    elif target.exists(MANIFEST):
        if _mark(target) != _mark(source):
            raise RunMismatchError(f"{target.root} holds another run: choose another place.")
    elif target.names(""):
        raise RunNotFoundError(f"{target.root} is a folder with other things in it and no run; choose another place.")


def _require_space(source: Store, target: Store, files: list[Expected], there: set[str]) -> None:
    if (free := target.free_bytes()) == UNBOUNDED_BYTES:
        return
    needed = sum(source.size_bytes(f.key) for f in files if f.key not in there and source.exists(f.key))
    if needed > free:
        raise NoSpaceError(
            f"The copy takes {needed / 1e9:.2f} GB more, {target.root} has {free / 1e9:.2f} GB free: free some space, "
            "or choose another place."
        )


def _mark(source: Store) -> bytes:
    """Which run it is: its configuration and model, which stay as they are while it grows."""
    manifest = decode_json(source.read(MANIFEST), str(source.path(MANIFEST)), MANIFEST_SHAPE)
    return encode_json({"copy_of": fingerprint([manifest["config"], manifest.get("model")])})
