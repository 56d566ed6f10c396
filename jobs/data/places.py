"""The places that rows come from: files, folders, saved data sets, the hub. Each gives raw rows with their numbers.

Knows formats. Does not know what a row is used for: fields are chosen, and bad rows judged, in `data`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BadRowError, DatasetNotFoundError, EncodingError, RemoteCodeError
from ..hub import first_line, hub_is_reachable, quiet
from .columns import BATCH_ROWS, arrow_rows, open_parquet, plain_types
from .lines import not_utf8, read_csv, read_json
from .rows import RawRow, RawRows, ReadRows, type_name

if TYPE_CHECKING:
    from .source import DataSource

JSON_SUFFIXES = tuple(f"{kind}{packed}" for packed in ("", ".gz", ".zst") for kind in (".jsonl", ".ndjson", ".json"))
CSV_SUFFIXES = tuple(f"{kind}{packed}" for packed in ("", ".gz", ".zst") for kind in (".csv", ".tsv"))
PARQUET_SUFFIXES = (".parquet",)
_SAMPLE_ROWS = 100
_SHARD_NAME = re.compile(r"^(?P<split>.+?)-\d{5}-of-\d{5}")


def open_rows(source: DataSource) -> RawRows:
    """Find out what kind of source it is and open it, reading no more than its first rows.

    Raises DatasetNotFoundError (nothing there, unknown format, no such split, or a split must be named),
    RemoteCodeError for a data set that is a script, and EncodingError or BadRowError for a file without any good row.
    """
    path = Path(source.dataset).expanduser()
    if path.is_dir():
        return _open_folder(path, source)
    if path.is_file():
        _require_no_split(source, "a single file")
        return _open_files([path], path.parent, source)
    if is_pattern(source.dataset):
        return _open_pattern(path, source)
    if source.dataset.startswith(("/", ".", "~")) or source.dataset.count("/") > 1 or path.suffix:
        raise DatasetNotFoundError(
            f"There is no data set at {source.dataset}. Give a file (.jsonl, .json, .parquet, .csv), a folder (of such "
            "files, of text files, or from save_to_disk), a pattern in quotes ('shards/*.parquet'), or an id on the "
            "Hugging Face hub."
        )
    return _open_hub(source)


def is_pattern(dataset: str) -> bool:
    """Whether a name that is neither a file nor a folder stands for several: `shards/*.parquet`, `**/*.jsonl.zst`."""
    return any(sign in dataset for sign in "*?[")


def _open_pattern(pattern: Path, source: DataSource) -> RawRows:
    parts = pattern.parts
    depth = next(i for i, part in enumerate(parts) if is_pattern(part))
    folder = Path(*parts[:depth])
    found = folder.glob(str(Path(*parts[depth:])))
    files = sorted(path for path in found if path.is_file() and not _is_hidden(path.relative_to(folder)))
    if not files:
        raise DatasetNotFoundError(f"No file is named like {source.dataset}. Put the pattern in quotes, and check it.")
    kinds = {_kind_of(path) for path in files}
    if len(kinds) > 1:
        raise DatasetNotFoundError(
            f"{source.dataset} stands for files of several formats ({', '.join(sorted(kinds))}): name those of one."
        )
    return _open_files(_files_of_split(files, folder, source), folder, source)


def _kind_of(path: Path) -> str:
    kinds = {"parquet": PARQUET_SUFFIXES, "json": JSON_SUFFIXES, "csv": CSV_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if path.name.endswith(suffixes)), "unknown")


def _open_folder(folder: Path, source: DataSource) -> RawRows:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return _open_saved(folder, source)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    if not files:
        raise DatasetNotFoundError(f"The folder {source.dataset} holds no files.")
    parquet = [path for path in files if path.name.endswith(PARQUET_SUFFIXES)]
    if parquet:
        return _open_files(_files_of_split(parquet, folder, source), folder, source)
    if any(all(path.name.endswith(kind) for path in files) for kind in (JSON_SUFFIXES, CSV_SUFFIXES)):
        return _open_files(_files_of_split(files, folder, source), folder, source)
    _require_no_split(source, "a folder of text files")
    return _open_texts(files, folder)


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _require_no_split(source: DataSource, what: str) -> None:
    if source.split is not None:
        raise DatasetNotFoundError(f"{source.dataset} is {what} and has no split {source.split!r}: leave split out.")


def _files_of_split(files: list[Path], folder: Path, source: DataSource) -> list[Path]:
    """Choose by the names that the hub gives to files: train-00000-of-00002.parquet, or train/part.parquet."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        shard = _SHARD_NAME.match(path.name)
        parent = path.relative_to(folder).parent
        if shard:
            splits.setdefault(shard["split"], []).append(path)
        elif parent.name:
            splits.setdefault(parent.name, []).append(path)
        else:
            splits.setdefault(path.name.split(".")[0], []).append(path)
    known = set(splits) & {"train", "test", "validation", "valid", "dev", "eval"}
    if source.split is not None:
        return splits[_choose_split(source, list(splits))]
    return splits[_choose_split(source, list(splits))] if len(known) > 1 else files


def _choose_split(source: DataSource, splits: Sequence[str]) -> str:
    if source.split is None and len(splits) == 1:
        return splits[0]
    if source.split is not None and source.split in splits:
        return source.split
    got = f"has no split {source.split!r}" if source.split else "has several splits, and none was named"
    raise DatasetNotFoundError(f"{source.dataset} {got}. Set split to one of: {', '.join(sorted(splits))}.")


# --- files of records ---------------------------------------------------------------------------------------------


def _open_files(files: list[Path], folder: Path, source: DataSource) -> RawRows:
    size = sum(path.stat().st_size for path in files)
    name = files[0].name
    if name.endswith(PARQUET_SUFFIXES):
        return open_parquet(files, folder, size)
    if name.endswith(JSON_SUFFIXES):
        read = _chain(files, folder, read_json)
        return RawRows(format="json", fields=_sampled_fields(read(()), source), read=read, size_bytes=size)
    if name.endswith(CSV_SUFFIXES):
        read = _chain(files, folder, read_csv)
        return RawRows(format="csv", fields=_sampled_fields(read(()), source), read=read, size_bytes=size)
    if name.endswith(".py"):
        raise _script(source)
    raise DatasetNotFoundError(
        f"{source.dataset} is a file of no known format; accepted are {', '.join(JSON_SUFFIXES[:3])}, .csv and .tsv "
        "(each also with .gz or .zst), and .parquet. A text file is one document: give the folder that it lies in."
    )


def _script(source: DataSource) -> RemoteCodeError:
    return RemoteCodeError(
        f"{source.dataset} is a data set that runs a script of its own; the datasets library has dropped these since "
        "version 4, and there is no flag for them. Give its Parquet files, or load it with the script elsewhere, call "
        "save_to_disk, and give that folder."
    )


def _chain(
    files: list[Path], folder: Path, read_one: Callable[[Path, str, int, int], Generator[RawRow, None, int]]
) -> ReadRows:
    def read(_: Sequence[str], first_row: int = 0) -> Iterator[RawRow]:
        row = 0
        for path in files:
            row = yield from read_one(path, path.relative_to(folder).as_posix(), row, first_row)

    return read


def _sampled_fields(rows: Iterator[RawRow], source: DataSource) -> dict[str, str]:
    types: dict[str, set[str]] = {}
    problem: BadRowError | EncodingError | None = None
    for _, raw in zip(range(_SAMPLE_ROWS), rows, strict=False):
        problem = problem or raw.problem
        for name, value in raw.values.items():
            types.setdefault(name, set()).update([] if value is None else [type_name(value)])
    if types:
        return {name: " or ".join(sorted(found)) or "null" for name, found in types.items()}
    if problem is not None:
        raise type(problem)(f"{source.dataset} has no good row among its first {_SAMPLE_ROWS}: {problem}")
    raise DatasetNotFoundError(f"{source.dataset} holds no rows.")


# --- saved data sets ----------------------------------------------------------------------------------------------


def _open_saved(folder: Path, source: DataSource) -> RawRows:
    import datasets

    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        folder = folder / _choose_split(source, splits)
    elif source.split is not None:
        _require_no_split(source, "one saved data set")
    try:
        with quiet():
            saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DatasetNotFoundError(
            f"{source.dataset} is not a readable save_to_disk folder ({first_line(error)}). Save it again."
        ) from error

    def read(columns: Sequence[str], first_row: int = 0) -> Iterator[RawRow]:
        if first_row >= len(saved):
            return
        row = first_row
        rest = saved.select(range(first_row, len(saved))) if first_row else saved
        # Arrow's own tables: no image or sound is decoded, and memory holds one batch.
        for table in rest.select_columns(list(columns)).with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from arrow_rows(table, source.dataset, row)
            row += len(table)

    return RawRows(
        format="saved",
        fields=_feature_types(saved.features),
        read=read,
        num_rows=len(saved),
        size_bytes=saved.data.nbytes,
        class_names=_class_names(saved.features),
    )


def _feature_types(features: Mapping[str, Any]) -> dict[str, str]:
    kinds = {name: str(getattr(feature, "dtype", type(feature).__name__)) for name, feature in features.items()}
    return plain_types(kinds)


def _class_names(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {name: feature.names for name, feature in features.items() if getattr(feature, "names", None)}


def _open_hub(source: DataSource) -> RawRows:
    import datasets

    refusals: tuple[type[Exception], ...] = (*_network_errors(), ValueError, RuntimeError)
    if not hub_is_reachable():
        raise _not_on_hub(source, "since the hub cannot be reached from here")
    try:
        with quiet():
            splits = datasets.get_dataset_split_names(source.dataset, source.config_name, revision=source.revision)
            split = _choose_split(source, splits)
            revision = _pin(source)
            stream = datasets.load_dataset(
                source.dataset, source.config_name, split=split, streaming=True, revision=revision
            )
    except DatasetNotFoundError:
        raise
    except refusals as error:
        if "script" in str(error).lower():
            raise _script(source) from error
        raise _not_on_hub(source, f"on the hub ({first_line(error)})") from error
    features: Mapping[str, Any] = stream.features or next(iter(stream.take(1)), {})

    def read(columns: Sequence[str], first_row: int = 0) -> Iterator[RawRow]:
        row = first_row
        try:
            for values in stream.skip(first_row).select_columns(list(columns)):
                yield RawRow(row=row, file=source.dataset, where=f"row {row}", values=values)
                row += 1
        except _network_errors() as error:  # after the library's own retries
            raise DatasetNotFoundError(
                f"Streaming {source.dataset} stopped at row {row} ({first_line(error)}): give the same command again."
            ) from error

    names = _class_names(features)
    kinds = _feature_types(features) if stream.features else {name: type_name(v) for name, v in features.items()}
    return RawRows(format="hub", fields=kinds, read=read, class_names=names, revision=revision)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when it does not come through, whichever HTTP library its version is built on."""
    importlib.import_module("huggingface_hub.utils")  # loads that library
    loaded = [sys.modules[name] for name in ("httpx2", "httpx") if name in sys.modules]
    return (OSError, *(library.HTTPError for library in loaded))


def _pin(source: DataSource) -> str | None:
    """The commit that the revision stands for now, so that one reading is of one state of the data.

    None for a local folder laid out as on the hub.
    """
    from huggingface_hub import HfApi

    if Path(source.dataset).is_dir():
        return source.revision
    sha: str | None = HfApi().dataset_info(source.dataset, revision=source.revision).sha
    return sha or source.revision


def _not_on_hub(source: DataSource, where: str) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"There is no file or folder {source.dataset}, and no data set of that id {where}. Check the spelling, "
        "config_name and revision; a gated data set needs `hf auth login`; without network, give the path of a "
        "downloaded file or folder."
    )


# --- text files ---------------------------------------------------------------------------------------------------


def _open_texts(files: list[Path], folder: Path) -> RawRows:
    def read(_: Sequence[str], first_row: int = 0) -> Iterator[RawRow]:
        for row, path in enumerate(files[first_row:], first_row):
            name = path.relative_to(folder).as_posix()
            content = path.read_bytes()
            problem = None
            text = ""
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                mark = 3 if content.startswith(b"\xef\xbb\xbf") else 0
                problem = not_utf8(name, mark + error.start, content[mark + error.start])
            values = {"text": text, "path": name, "folder": path.relative_to(folder).parent.as_posix()}
            yield RawRow(row=row, file=name, where=f"row {row}", values=values, problem=problem, name=name)

    size = sum(path.stat().st_size for path in files)
    kinds = {"text": "string", "path": "string", "folder": "string"}
    return RawRows(format="text", fields=kinds, read=read, num_rows=len(files), size_bytes=size)
