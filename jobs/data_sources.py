"""The places that rows come from: files, folders, saved data sets, the hub. Each gives raw rows with their numbers.

Knows formats. Does not know what a row is used for: fields are chosen, and bad rows judged, in `data`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadRowError, DatasetNotFoundError, EncodingError, MissingFieldError, RemoteCodeError
from .data_lines import not_utf8, read_csv, read_json
from .data_rows import RawRow, RawRows, type_name
from .hub import first_line, hub_is_reachable, quiet

if TYPE_CHECKING:
    from .data import DataSource

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES = (".parquet",)
_SAMPLE_ROWS = 100
_BATCH_ROWS = 256
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
    if source.dataset.startswith(("/", ".", "~")) or source.dataset.count("/") > 1 or path.suffix:
        raise DatasetNotFoundError(
            f"There is no data set at {source.dataset}. Give a file (.jsonl, .json, .parquet, .csv), a folder (of such "
            "files, of text files, or from save_to_disk), or an id on the Hugging Face hub."
        )
    return _open_hub(source)


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
        return _open_parquet(files, folder, size)
    if name.endswith(JSON_SUFFIXES):
        read = _chain(files, folder, read_json)
        return RawRows(format="json", fields=_sampled_fields(read(()), source), read=read, size_bytes=size)
    if name.endswith(CSV_SUFFIXES):
        read = _chain(files, folder, read_csv)
        return RawRows(format="csv", fields=_sampled_fields(read(()), source), read=read, size_bytes=size)
    if name.endswith(".py"):
        raise _script(source)
    raise DatasetNotFoundError(
        f"{source.dataset} is a file of no known format; accepted are {', '.join(JSON_SUFFIXES[:3])}, .parquet, .csv "
        "and .tsv. A text file is one document: give the folder that it lies in."
    )


def _script(source: DataSource) -> RemoteCodeError:
    return RemoteCodeError(
        f"{source.dataset} is a data set that runs a script of its own; the datasets library has dropped these since "
        "version 4, and there is no flag for them. Give its Parquet files, or load it with the script elsewhere, call "
        "save_to_disk, and give that folder."
    )


def _chain(
    files: list[Path], folder: Path, read_one: Callable[[Path, str, int], Iterator[RawRow]]
) -> Callable[[Sequence[str]], Iterator[RawRow]]:
    def read(_: Sequence[str]) -> Iterator[RawRow]:
        row = 0
        for path in files:
            for raw in read_one(path, path.relative_to(folder).as_posix(), row):
                row = raw.row + 1
                yield raw

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


# --- columns ------------------------------------------------------------------------------------------------------


def _open_parquet(files: list[Path], folder: Path, size: int) -> RawRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields: dict[str, str] = {}
    num_rows = 0
    for path in files:
        try:
            with pq.ParquetFile(path) as opened:
                found = {item.name: str(item.type) for item in opened.schema_arrow}
                num_rows += opened.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetNotFoundError(f"{path} is not a readable Parquet file ({first_line(error)}).") from error
        if fields and set(found) != set(fields):
            raise MissingFieldError(
                f"{path.name} has the fields {', '.join(found)}, but {files[0].name} has {', '.join(fields)}. Files of "
                "one data set have the same fields: give the files one by one, or the folder of one split."
            )
        fields = fields or found

    def read(columns: Sequence[str]) -> Iterator[RawRow]:
        row = 0
        for path in files:
            name = path.relative_to(folder).as_posix()
            with pq.ParquetFile(path) as opened:
                for batch in opened.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
                    yield from _arrow_rows(batch, name, row)
                    row += len(batch)

    return RawRows(format="parquet", fields=_plain_types(fields), read=read, num_rows=num_rows, size_bytes=size)


def _plain_types(fields: Mapping[str, str]) -> dict[str, str]:
    strings = {"large_string": "string", "string_view": "string", "dictionary<values=string": "string"}
    return {name: strings.get(kind.split(",")[0], kind) for name, kind in fields.items()}


def _arrow_rows(batch: Any, name: str, row: int) -> Iterator[RawRow]:  # noqa: ANN401 - pyarrow is not typed
    """Turn a pyarrow table or record batch into rows, finding the very row where a text is not UTF-8."""
    try:
        rows: Sequence[Any] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [None] * len(batch)
    for index, values in enumerate(rows):
        problem = None
        found = values
        if found is None:
            try:
                found = batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                found, problem = {}, EncodingError(f"{name} is not UTF-8 at byte {error.start} of a text")
        number = row + index
        yield RawRow(row=number, file=name, where=f"row {number}", values=found, problem=problem)


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

    def read(columns: Sequence[str]) -> Iterator[RawRow]:
        row = 0
        # Arrow's own tables: no image or sound is decoded, and memory holds one batch.
        for table in saved.select_columns(list(columns)).with_format("arrow").iter(batch_size=_BATCH_ROWS):
            yield from _arrow_rows(table, source.dataset, row)
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
    return _plain_types(kinds)


def _class_names(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {name: feature.names for name, feature in features.items() if getattr(feature, "names", None)}


def _open_hub(source: DataSource) -> RawRows:
    import datasets

    if not hub_is_reachable():
        raise _not_on_hub(source, "since the hub cannot be reached from here")
    try:
        with quiet():
            splits = datasets.get_dataset_split_names(source.dataset, source.config_name, revision=source.revision)
            split = _choose_split(source, splits)
            stream = datasets.load_dataset(
                source.dataset, source.config_name, split=split, streaming=True, revision=source.revision
            )
    except DatasetNotFoundError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        if "script" in str(error).lower():
            raise _script(source) from error
        raise _not_on_hub(source, f"on the hub ({first_line(error)})") from error
    features: Mapping[str, Any] = stream.features or next(iter(stream.take(1)), {})

    def read(columns: Sequence[str]) -> Iterator[RawRow]:
        for row, values in enumerate(stream.select_columns(list(columns))):
            yield RawRow(row=row, file=source.dataset, where=f"row {row}", values=values)

    names = _class_names(features)
    kinds = _feature_types(features) if stream.features else {name: type_name(v) for name, v in features.items()}
    return RawRows(format="hub", fields=kinds, read=read, class_names=names)


def _not_on_hub(source: DataSource, where: str) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"There is no file or folder {source.dataset}, and no data set of that id {where}. Check the spelling, "
        "config_name and revision; a gated data set needs `hf auth login`; without network, give the path of a "
        "downloaded file or folder."
    )


# --- text files ---------------------------------------------------------------------------------------------------


def _open_texts(files: list[Path], folder: Path) -> RawRows:
    def read(_: Sequence[str]) -> Iterator[RawRow]:
        for row, path in enumerate(files):
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
