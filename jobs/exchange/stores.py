"""Gradient stores that other programs made, opened for reading: bergson's, TRAK's, and plain .npy arrays.

Knows their files. Does not know what a run is. Nothing is read through pickle, the sizes that a file claims are held
against the bytes that are there, and rows are memory-mapped, so that a store may be larger than memory.
"""

from __future__ import annotations

import json
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ...errors import ConfigurationError, DamagedRunError, DatasetNotFoundError, IncompleteRunError
from ..data.source import DataSource
from ..hub import first_line, quiet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

StoreFormat = Literal["bergson", "trak", "npy"]
FORMATS: tuple[StoreFormat, ...] = get_args(StoreFormat)
_LARGEST_TEXT_FILE_BYTES = 16_000_000
_BERGSON_SETTINGS = (
    *("model", "revision", "precision", "tokenizer", "loss_fn", "loss_reduction", "label_smoothing"),
    *("optimizer_state", "moe_experts", "split", "dataset", "prompt_column", "completion_column"),
    *("conversation_column", "chunk_length", "truncation", "unit_normalize", "hessian_path", "aggregation"),
    *("projection_dim", "projection_type", "projection_target", "projection_scale", "projection_seed"),
    *("projection_version", "include_bias", "reshape_to_square", "bergson_version"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForeignStore:
    """Rows that another program computed, with what it says of them."""

    format: StoreFormat
    path: Path
    files: tuple[Path, ...]
    """What the rows depend on: its digests are the store's fingerprint."""
    rows: NDArray[Any]
    """[row, dim], memory-mapped; bfloat16 as the uint16 of its bits. See `read`."""
    blocks: tuple[tuple[str, int], ...]
    """Name and width of each group of columns, in order."""
    settings: Mapping[str, Any]
    """What the store says of its rows' origin: flat, JSON."""
    offsets: NDArray[np.int64] | None = None
    """Where rows are of single positions: document i has rows offsets[i] to offsets[i + 1] − 1."""
    losses: NDArray[np.float32] | None = None
    """Of each document, where the store has them."""
    lengths: NDArray[np.int64] | None = None
    """Tokens of each document, likewise."""
    texts: DataSource | None = None
    """The store's own copy of the documents, where it kept one."""
    is_bfloat16: bool = field(default=False)

    @property
    def num_documents(self) -> int:
        """How many documents the rows are of."""
        return len(self.rows) if self.offsets is None else len(self.offsets) - 1

    @property
    def dim(self) -> int:
        """Numbers per row."""
        return int(self.rows.shape[1])

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows `first` to before `last`, in float32."""
        part = np.asarray(self.rows[first:last])
        if self.is_bfloat16:
            return (part.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite, and so refused
            return part.astype(np.float32)


def open_store(path: str | Path, kind: StoreFormat | None = None, *, checkpoint: str | None = None) -> ForeignStore:
    """Open a store, finding out its format unless it is given; `checkpoint` chooses one of a TRAK store's.

    Raises DatasetNotFoundError where there is no such store, DamagedRunError for one whose files do not fit each other,
    IncompleteRunError for one that its own program has not finished.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DatasetNotFoundError(
            f"There is no gradient store at {path}: give a bergson or TRAK folder, or a .npy file."
        )
    kind = kind or _find_format(found)
    if checkpoint is not None and kind != "trak":
        raise ConfigurationError(f"--checkpoint is for TRAK stores; {path} is of format {kind}.")
    if kind == "bergson":
        return _open_bergson(found)
    return _open_trak(found, checkpoint) if kind == "trak" else _open_npy(found)


def _find_format(path: Path) -> StoreFormat:
    if path.is_file() and path.suffix == ".npy":
        return "npy"
    if (path / "gradients.bin").is_file():
        return "bergson"
    if (path / "metadata.json").is_file():
        return "trak"
    raise DatasetNotFoundError(
        f"{path} is no gradient store that is known here: a bergson index holds gradients.bin and info.json, a TRAK "
        "folder holds metadata.json, an array is a file that ends in .npy."
    )


# --- bergson ------------------------------------------------------------------------------------------------------


def _open_bergson(folder: Path) -> ForeignStore:
    """A folder as bergson 2 writes it: gradients.bin (rows, modules side by side), info.json, data.hf, YAML files."""
    if folder.name.endswith(".part"):
        raise IncompleteRunError(
            f"{folder} is what bergson has not finished building: let it end, and give the folder without .part."
        )
    info = _read_json(folder / "info.json")
    sizes = info.get("grad_sizes")
    num_rows = _count(info.get("num_grads"))
    if not (isinstance(sizes, dict) and sizes and all(_count(n) for n in sizes.values()) and num_rows):
        raise _unfit(folder / "info.json", "it lacks grad_sizes and num_grads as bergson writes them")
    dtype, is_bfloat16 = _bergson_dtype(folder, info)
    shape = (num_rows, sum(sizes.values()))
    rows = _map(folder / "gradients.bin", dtype, shape)
    offsets = _offsets(folder, info, len(rows))
    settings = _bergson_settings(folder)
    if settings.get("aggregation", "none") != "none":
        raise ConfigurationError(
            f"{folder} holds one row, the {settings['aggregation']} of all documents: there is nothing to cluster. "
            "Build it with --aggregation none."
        )
    num_documents = len(rows) if offsets is None else len(offsets) - 1
    losses, lengths, texts = _bergson_documents(folder, num_documents, settings)
    names = ("gradients.bin", "info.json", "offsets.npy", "processor_config.yaml")
    return ForeignStore(
        format="bergson",
        path=folder,
        files=tuple(folder / name for name in names if (folder / name).is_file()),
        rows=rows,
        blocks=tuple((str(name), int(size)) for name, size in sizes.items()),
        settings=settings,
        offsets=offsets,
        losses=losses,
        lengths=lengths,
        texts=texts,
        is_bfloat16=is_bfloat16,
    )


def _bergson_dtype(folder: Path, info: dict[str, Any]) -> tuple[np.dtype[Any], bool]:
    name = info.get("base_dtype")
    if name == "bfloat16":
        return np.dtype("<u2"), True
    if name in ("float16", "float32", "float64"):
        return np.dtype(name).newbyteorder("<"), False
    raise _unfit(folder / "info.json", f"its base_dtype is {name!r}; accepted are bfloat16, float16, float32, float64")


def _offsets(folder: Path, info: dict[str, Any], num_rows: int) -> NDArray[np.int64] | None:
    if not info.get("attribute_tokens"):
        return None
    path = folder / "offsets.npy"
    offsets = _load_npy(path)
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise _unfit(path, f"it is an array of {offsets.dtype} and shape {offsets.shape}, not of offsets")
    whole = np.asarray(offsets, np.int64)
    if whole[0] != 0 or whole[-1] != num_rows or (np.diff(whole) < 0).any():
        raise _unfit(path, f"its offsets do not rise from 0 to the {num_rows} rows of gradients.bin")
    return whole


def _bergson_settings(folder: Path) -> dict[str, Any]:
    """What config.yaml and processor_config.yaml say, as far as it decides the rows; plain values only."""
    import yaml

    settings: dict[str, Any] = {}
    for name in ("config.yaml", "processor_config.yaml"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            _flatten(yaml.safe_load(_read_text(path)), settings)
        except (yaml.YAMLError, RecursionError) as error:
            raise _unfit(path, "it is no YAML that bergson writes") from error
    return {key: settings[key] for key in sorted(settings)}


def _flatten(value: Any, into: dict[str, Any]) -> None:  # noqa: ANN401 - whatever the YAML says
    if isinstance(value, list):
        for item in value[:16]:
            _flatten(item, into)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list):
                _flatten(item, into)
            elif key in _BERGSON_SETTINGS and isinstance(item, str | int | float | bool | None):
                into[key] = item


def _bergson_documents(
    folder: Path, num_documents: int, settings: dict[str, Any]
) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None, DataSource | None]:
    """Losses and lengths, and the texts where bergson kept the columns (--drop_columns false)."""
    saved = folder / "data.hf"
    if not saved.is_dir():
        return None, None, None
    import datasets
    import pyarrow as pa

    try:
        with quiet():
            data = datasets.load_from_disk(str(saved))
        losses, lengths = _column(data, "loss", np.float32), _column(data, "length", np.int64)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
        raise _unfit(saved, f"it cannot be loaded ({first_line(error)})") from error
    if len(data) != num_documents:
        raise _unfit(saved, f"it has {len(data)} documents, and gradients.bin has rows of {num_documents}")
    name = settings.get("prompt_column") or "text"
    texts = None
    if name in data.column_names and not settings.get("completion_column"):
        texts = DataSource(dataset=str(saved), text_field=str(name))
    return losses, lengths, texts


def _column(data: Any, name: str, dtype: type) -> NDArray[Any] | None:  # noqa: ANN401 - datasets is not typed
    if name not in data.column_names:
        return None
    values = data.select_columns([name]).with_format("arrow")[:][name].to_numpy()
    if values.dtype.kind not in ("iu" if dtype is np.int64 else "f"):
        raise TypeError(f"its {name} are of {values.dtype}")
    return np.asarray(values, dtype)


# --- TRAK ---------------------------------------------------------------------------------------------------------


def _open_trak(folder: Path, checkpoint: str | None) -> ForeignStore:
    """A save_dir of traker's: metadata.json, and per model id a folder of memory-mapped .npy files."""
    metadata = _read_json(folder / "metadata.json")
    dim, num_rows = _count(metadata.get("JL dimension")), _count(metadata.get("train set size"))
    if not (dim and num_rows):
        raise _unfit(folder / "metadata.json", "it lacks the 'JL dimension' and 'train set size' that TRAK writes")
    part = folder / _choose_checkpoint(folder, checkpoint)
    featurized = np.asarray(_load_npy(part / "_is_featurized.mmap")).reshape(-1)
    if len(featurized) != num_rows:
        raise _unfit(part / "_is_featurized.mmap", f"it is of {len(featurized)} examples, metadata.json of {num_rows}")
    missing = int((featurized != 1).sum())
    if missing:
        raise IncompleteRunError(
            f"{missing} of the {num_rows} examples of {part} are not featurized: let TRAK finish that checkpoint."
        )
    name = "grads.mmap" if (part / "grads.mmap").is_file() else "features.mmap"
    rows = _load_npy(part / name)
    if rows.shape != (num_rows, dim) or rows.dtype.kind != "f":
        raise _unfit(part / name, f"it is of {rows.dtype} {rows.shape}, metadata.json says {(num_rows, dim)}")
    if name == "features.mmap" and not _is_finalized(folder, part.name):
        raise IncompleteRunError(f"{part} has neither gradients nor finalized features: call finalize_features first.")
    return ForeignStore(
        format="trak",
        path=folder,
        files=(part / name, folder / "metadata.json"),
        rows=rows,
        blocks=(("all", dim),),
        settings={
            "checkpoint": part.name,
            "array": name.removesuffix(".mmap"),
            "JL matrix type": str(metadata.get("JL matrix type")),
            "quantity": "gradient of the model output function, projected"
            + ("" if name == "grads.mmap" else ", times the inverse of the rows' second moment"),
        },
    )


def _is_finalized(folder: Path, checkpoint: str) -> bool:
    state = _read_json(folder / f"id_{checkpoint}.json").get(checkpoint)
    return isinstance(state, dict) and state.get("is_finalized") == 1


def _choose_checkpoint(folder: Path, wanted: str | None) -> str:
    there = sorted(p.name for p in folder.iterdir() if (p / "_is_featurized.mmap").is_file())
    if wanted in there:
        return str(wanted)
    if wanted is None and len(there) == 1:
        return there[0]
    if not there:
        raise DatasetNotFoundError(f"{folder} holds no checkpoint's rows: no folder in it has _is_featurized.mmap.")
    got = f"has no checkpoint {wanted!r}" if wanted else "has several checkpoints, and none was named"
    raise DatasetNotFoundError(f"{folder} {got}. Set --checkpoint to one of: {', '.join(there)}.")


# --- arrays -------------------------------------------------------------------------------------------------------


def _open_npy(path: Path) -> ForeignStore:
    rows = _load_npy(path)
    if rows.ndim != 2 or rows.dtype.kind != "f" or not rows.size:
        raise ConfigurationError(
            f"{path} is an array of {rows.dtype} and shape {rows.shape}; accepted are floats of shape (rows, numbers)."
        )
    return ForeignStore(
        format="npy", path=path, files=(path,), rows=rows, blocks=(("all", int(rows.shape[1])),), settings={}
    )


# --- files --------------------------------------------------------------------------------------------------------


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> NDArray[Any]:
    wanted = shape[0] * shape[1] * dtype.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != wanted:
        raise _unfit(path, f"it has {found or 0:,} bytes; {shape[0]:,} rows of {shape[1]:,} numbers are {wanted:,}")
    return np.memmap(path, dtype, "r", shape=shape)


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise _unfit(path, f"it cannot be read as a .npy array ({first_line(error)})") from error
    return loaded


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise _unfit(path, "it is missing")
    if path.stat().st_size > _LARGEST_TEXT_FILE_BYTES:
        raise _unfit(path, f"it has {path.stat().st_size:,} bytes, which no such file has")
    return path.read_text(encoding="utf-8", errors="replace")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise _unfit(path, "it is not JSON") from error
    if not isinstance(value, dict):
        raise _unfit(path, "it is not a JSON object")
    return value


def _count(value: object) -> int | None:
    """A whole number above 0, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _unfit(path: Path, reason: str) -> DamagedRunError:
    return DamagedRunError(f"{path} is damaged, or of another version than is known here: {reason}.")
