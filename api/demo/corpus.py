"""The demonstration's corpus: the Python standard library's own sources, copied into a folder of text files.

Knows where the running interpreter keeps its sources and which of them are worth reading. Knows nothing of
tokenizers or models.
"""

import ast
import hashlib
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantascope.errors import ConfigurationError, DatasetNotFoundError, RunMismatchError

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
)
"""Folders left out wherever they lie: installed packages, tests, a grammar's fixtures, a manual in one string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSummary:
    """What `write_corpus` left in its folder."""

    num_files: int
    num_bytes: int
    fingerprint: str
    """SHA-256 over every file's relative name and bytes, in order of names; 64 hexadecimal digits."""


def standard_library_files(*, max_bytes: int | None = None, root: Path | None = None) -> dict[str, bytes]:
    """The standard library's Python sources: relative name (with `/`) to bytes, sorted by name.

    Left out are installed packages, tests, empty files, and files that are not UTF-8 or do not parse. With
    `max_bytes` the files are drawn in the order of their names' hashes, so that a small corpus is not only
    modules that begin with "a"; the first file that would pass the bound (inclusive) ends the draw.
    `root` stands for the interpreter's own library folder. Raises DatasetNotFoundError where nothing is found
    and ConfigurationError where `max_bytes` is too small for a single file.
    """
    folder = root or Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if _wanted(path, folder)]
    files = dict(_readable(folder, sorted(names)) if max_bytes is None else _draw(folder, names, max_bytes))
    if not files:
        raise DatasetNotFoundError(
            f"No Python sources of the standard library under {folder}. Some systems ship it compiled or in "
            "a separate package: install the interpreter with its sources (a build from python.org, uv or "
            "conda has them) or run `quantascope collect` on a data set of your own."
        )
    return dict(sorted(files.items()))


def write_corpus(folder: Path, *, max_bytes: int | None = None, root: Path | None = None) -> CorpusSummary:
    """Copy the standard library's sources into `folder`: `write_files` of `standard_library_files`."""
    return write_files(folder, standard_library_files(max_bytes=max_bytes, root=root))


def write_files(folder: Path, files: dict[str, bytes]) -> CorpusSummary:
    """Write these files (relative name to bytes) into `folder`, which then holds them and nothing else.

    The folder appears under its name only once it is whole; one writer at a time. A folder that already holds these
    very files is left as it is. Raises RunMismatchError where `folder` holds anything else.
    """
    summary = CorpusSummary(
        num_files=len(files),
        num_bytes=sum(len(content) for content in files.values()),
        fingerprint=_fingerprint(files),
    )
    if not folder.is_dir() or not any(folder.iterdir()):
        _write_whole(folder, files)
    elif (found := corpus_fingerprint(folder)) != summary.fingerprint:
        raise RunMismatchError(
            f"{folder} holds other files (fingerprint {found[:12]}) than those to be written "
            f"(fingerprint {summary.fingerprint[:12]}). Name another folder, or remove this one."
        )
    return summary


def corpus_fingerprint(folder: Path) -> str:
    """The fingerprint of the files that lie in a folder now; equal to that of the summary if none changed."""
    return _fingerprint(read_corpus(folder))


def read_corpus(folder: Path) -> dict[str, bytes]:
    """All files of a folder: relative name (with `/`) to bytes, sorted by name.

    Raises DatasetNotFoundError where the folder is missing or holds no file.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    if not paths:
        raise DatasetNotFoundError(f"No files under {folder}. Write the demonstration's corpus there first.")
    return {name: paths[name].read_bytes() for name in sorted(paths)}


def _wanted(path: Path, folder: Path) -> bool:
    return path.is_file() and not SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts[:-1])


def _readable(folder: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        content = (folder / name).read_bytes()
        if content.strip() and _parses(content):
            yield name, content


def _parses(content: bytes) -> bool:
    """Whether these bytes are UTF-8 and Python: a declared other encoding is no excuse for either."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules' invalid escapes are not this program's warnings
            ast.parse(content.decode("utf-8"))
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return False
    return True


def _draw(folder: Path, names: list[str], max_bytes: int) -> dict[str, bytes]:
    shuffled = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    files: dict[str, bytes] = {}
    for name, content in _readable(folder, shuffled):
        max_bytes -= len(content)
        if max_bytes < 0:
            break
        files[name] = content
    if names and not files:
        raise ConfigurationError("max_bytes is too small for a single file; some 1,000,000 make a small corpus.")
    return files


def _fingerprint(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _write_whole(folder: Path, files: dict[str, bytes]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, content in files.items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    partial.replace(folder)
