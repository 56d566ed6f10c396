"""Tables as files that appear whole: one Parquet file, a folder of Parquet shards, or a `datasets` folder.

Everything is written under a temporary name beside its place, synced, and renamed. Knows nothing of what the tables
are about; a manifest says, and closes with the SHA-256 of every file and of itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import ConfigurationError, NoSpaceError
from ...storage.checked import encode_json, fingerprint
from ...storage.local import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..workers.progress import Stage

ExportFormat = Literal["parquet", "datasets"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
_SHARD_BYTES = 256_000_000
"""Of a table in memory; a shard is closed once it holds as much."""
_PIECE_BYTES = 1 << 22
_MANIFEST = "manifest.json"
_DATA = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an export goes, and as what."""

    to: str
    format: ExportFormat
    name: str
    """That shards begin with."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigurationError(f"--format is {self.format!r}; accepted are {', '.join(FORMATS)}.")
        if "://" in self.to:
            raise ConfigurationError(f"{self.to}: exports go to a disk; copy them on from there.")
        if self.is_file and self.format == "datasets":
            raise ConfigurationError(f"--format datasets makes a folder; {self.to} is the name of a Parquet file.")
        for path in (self.path, self.manifest):
            if path.exists() or path.is_symlink():
                raise ConfigurationError(f"{path} exists already: choose another --to, or remove it.")

    @property
    def path(self) -> Path:
        """Absolute."""
        return Path(self.to).expanduser().absolute()

    @property
    def is_file(self) -> bool:
        """One file, instead of a folder."""
        return self.path.suffix == ".parquet"

    @property
    def has_data_folder(self) -> bool:
        """Shards of Parquet lie in a folder of their own, so that pyarrow reads it as it is."""
        return not self.is_file and self.format == "parquet"

    @property
    def manifest(self) -> Path:
        """Beside a file, or in the folder."""
        return self.path.with_name(self.path.name + f".{_MANIFEST}") if self.is_file else self.path / _MANIFEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written."""

    num_files: int
    num_bytes: int


def write_export(
    target: Target, tables: Iterator[pa.Table], facts: dict[str, Any], *, check: Callable[[], None], stage: Stage
) -> Written:
    """Write the tables, in order; `check` is called after the last, before anything has its name.

    A file has its manifest before it has its name; a folder appears with everything in it. NoSpaceError for a full
    disk; whatever is raised, nothing stays behind.
    """
    parent = target.path.parent
    if not parent.is_dir():
        raise ConfigurationError(f"{parent} is not a folder: make it, or choose another --to.")
    temporary = parent / f".{target.path.name}.{secrets.token_hex(6)}.tmp"
    with _room(target.path):
        try:
            folder = temporary / _DATA if target.has_data_folder else temporary
            folder.mkdir(parents=True)
            files = _write_shards(target, folder, tables, facts, stage)
            check()
            listed = {path.relative_to(temporary).as_posix(): _describe(path) for path in files}
            manifest = encode_json(facts | {"files": listed})
            if target.is_file:
                _give_name(_write(temporary / _MANIFEST, manifest), target.manifest)
                try:
                    _give_name(files[0], target.path)
                except BaseException:
                    target.manifest.unlink()
                    raise
            else:
                _write(temporary / _MANIFEST, manifest)
                _write(temporary / "README.md", _readme(target, facts).encode())
                if target.format == "datasets":
                    _finish_dataset(temporary, files, facts)
                sync_folder(folder)
                sync_folder(temporary)
                _give_name(temporary, target.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Written(num_files=len(files), num_bytes=sum(item["bytes"] for item in listed.values()))


def _write_shards(
    target: Target, folder: Path, tables: Iterator[pa.Table], facts: dict[str, Any], stage: Stage
) -> list[Path]:
    """The shards under their final names within the folder; their number is known when the last is closed."""
    paths: list[Path] = []
    shard: _Shard | None = None
    schema: pa.Schema | None = None
    suffix = "arrow" if target.format == "datasets" else "parquet"
    try:
        for table in tables:
            schema = schema or table.schema.with_metadata({b"quantascope": encode_json(facts)})
            if shard is None:
                paths.append(folder / f"{len(paths)}.{suffix}.part")
                shard = _Shard(paths[-1], schema, suffix)
            shard.write(table.cast(schema))
            stage.advance(len(table))
            if shard.num_bytes >= _SHARD_BYTES and not target.is_file:
                shard.close()
                shard = None
        if shard is not None:
            shard.close()
    except BaseException:
        if shard is not None:
            shard.abandon()
        raise
    return [path.rename(folder / name) for path, name in zip(paths, _names(target, len(paths), suffix), strict=True)]


def _names(target: Target, number: int, suffix: str) -> list[str]:
    if target.is_file:
        return [target.path.name]
    stem = "data" if target.format == "datasets" else target.name
    return [f"{stem}-{i:05d}-of-{number:05d}.{suffix}" for i in range(number)]


class _Shard:
    """One file of data while it is written: Parquet, or an Arrow stream as the datasets library maps it.

    In Parquet vectors lie plain, since zstd saves little of them and costs much; all else is packed.
    """

    def __init__(self, path: Path, schema: pa.Schema, suffix: str) -> None:
        self.num_bytes = 0
        self._handle = path.open("xb")
        if suffix == "arrow":
            self._writer = pa.ipc.new_stream(self._handle, schema)
            return
        packed = [item.name for item in schema if not pa.types.is_fixed_size_list(item.type)]
        self._writer = pq.ParquetWriter(
            self._handle, schema, compression=dict.fromkeys(packed, "zstd"), use_dictionary=packed
        )

    def write(self, table: pa.Table) -> None:
        """Append the lines of a table."""
        self._writer.write_table(table)
        self.num_bytes += table.nbytes

    def close(self) -> None:
        """Finish the file; its bytes are on the disk when this returns."""
        self._writer.close()
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()

    def abandon(self) -> None:
        """Let go of a file that nobody will read."""
        with suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()
        with suppress(OSError):
            self._handle.close()


def _finish_dataset(folder: Path, files: list[Path], facts: dict[str, Any]) -> None:
    """The two files that `datasets.load_from_disk` reads first."""
    import json

    from datasets import DatasetInfo, Features

    with pa.ipc.open_stream(files[0]) as opened:
        features = Features.from_arrow_schema(opened.schema)
    DatasetInfo(description=_summary(facts), features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": path.name} for path in files],
        "_fingerprint": fingerprint(facts)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    _write(folder / "state.json", json.dumps(state, indent=1).encode() + b"\n")


def _readme(target: Target, facts: dict[str, Any]) -> str:
    """What a reader of the folder meets first; its head tells the datasets library which files are data."""
    head = f"---\nconfigs:\n- config_name: default\n  data_files: {_DATA}/{target.name}-*.parquet\n---\n"
    body = [
        f"# {_summary(facts)}",
        "",
        f"{facts['num_lines']:,} lines. `{_MANIFEST}` says what they come from, by fingerprint, and gives each file's",
        "SHA-256; its last key is the SHA-256 of the rest.",
        "",
        "```python",
        "import datasets",
        'data = datasets.load_from_disk("FOLDER")'
        if target.format == "datasets"
        else 'data = datasets.load_dataset("FOLDER", split="train")',
        "```",
    ]
    if "dim" in facts:
        body += [
            "",
            "`row` is the unit's projected gradient divided by its norm, times √dim, in float16. Divide by √dim for",
            "unit vectors; multiply these by `norm` for the gradient. `status` is 1 for a row that is fine, 2 for one",
            "that is zero, 3 for one that was refused because it held NaN or an infinity, and is NaN here.",
        ]
    return (head if target.format == "parquet" else "") + "\n".join(body) + "\n"


def _summary(facts: dict[str, Any]) -> str:
    of = f"quanta {facts['quanta']}" if "quanta" in facts else f"row set {facts['rows']}"
    return f"{facts['what']} of {of}, exported by quantascope {facts['quantascope']}"


def _describe(path: Path) -> dict[str, Any]:
    sha256 = hashlib.sha256()
    with path.open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            sha256.update(piece)
    return {"bytes": path.stat().st_size, "sha256": sha256.hexdigest()}


def _write(path: Path, data: bytes) -> Path:
    with path.open("xb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    return path


def _give_name(source: Path, target: Path) -> None:
    """Rename, durably or not at all; ConfigurationError if somebody put something there meanwhile."""
    try:
        if source.is_dir():
            source.rename(target)  # which refuses a folder that holds anything
        else:
            os.link(source, target)  # which refuses a file
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ConfigurationError(f"{target} exists already: choose another --to, or remove it.") from error
        raise
    try:
        sync_folder(target.parent)
    except OSError:
        if target.is_dir():
            target.rename(source)
        else:
            target.unlink()
        raise


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(
                f"The disk is full: {path} was not written. Free some space, and export again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NoSpaceError(f"{path} cannot be written ({error.strerror}): choose another --to.") from error
        raise
