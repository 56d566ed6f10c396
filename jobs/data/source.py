"""Which data, and what in it is a document: fields, labels, completions, bad rows, and the data's fingerprint.

Knows the fields of rows. Where rows come from is known by `places`, how a chat becomes text by `chat`. Knows no
model, no run and no Ray; importing it loads neither torch nor datasets.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...errors import BadRowError, ConfigurationError, EncodingError, MissingFieldError
from .chat import render_chat
from .places import open_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .rows import RawRow, RawRows

_USUAL_TEXT_FIELDS = ("text", "content", "document", "body", "sentence", "code")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Which data to read, and which fields of it."""

    dataset: str
    """A file (.jsonl, .json, .csv, .tsv, each also with .gz or .zst; .parquet), a folder (of such files, of text files,
    or from `save_to_disk`), a pattern (`shards/*.parquet`), or an id on the Hugging Face hub. All are streamed."""
    split: str | None = None
    """Needed where there are several."""
    config_name: str | None = None
    """The data set's configuration on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    text_field: str | None = None
    """The field that holds the text; by default "text", or else the only field of strings."""
    prompt_field: str | None = None
    """With completion_field, instead of text_field: the text is prompt + completion, and only the completion counts."""
    completion_field: str | None = None
    messages_field: str | None = None
    """Instead of text_field: a list of {role, content}, of which the assistant's contents count."""
    id_field: str | None = None
    """The field of the user's own ids; by default a text file's path, or else the row's number."""
    label_fields: tuple[str, ...] = ()
    """Fields kept as labels. Text files have the fields path and folder."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What to do with rows that are empty, null, not text or not UTF-8: raise, or skip and list them."""
    max_documents: int | None = None
    """Stop after this many good documents."""

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ConfigurationError("dataset is empty: give a file, a folder, or an id on the Hugging Face hub.")
        if (self.prompt_field is None) != (self.completion_field is None):
            raise ConfigurationError("prompt_field and completion_field go together: give both or neither.")
        ways = [name for name in ("text_field", "prompt_field", "messages_field") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ConfigurationError(f"{' and '.join(ways)} exclude each other: a document comes from one of them.")
        if self.bad_rows not in ("stop", "skip"):
            raise ConfigurationError(f"bad_rows is {self.bad_rows!r}; accepted are 'stop' and 'skip'.")
        if self.max_documents is not None and self.max_documents < 1:
            raise ConfigurationError(f"max_documents is {self.max_documents}; accepted are None and 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What can be known of a data set without reading it through."""

    name: str
    format: str
    """json, csv, parquet, saved, text, or hub."""
    fields: Mapping[str, str]
    """Name of each field → its type."""
    text_fields: tuple[str, ...]
    """The field or fields that documents are made of."""
    num_rows: int | None
    """None where only reading would tell."""
    size_bytes: int | None
    """On disk; None on the hub."""
    revision: str | None = None
    """On the hub: the commit that the revision asked for stands for now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One training example, as text."""

    row: int
    """Its row's number in the source, from 0."""
    user_id: str
    text: str
    labels: Mapping[str, str | None]
    """One entry for each of the source's label_fields."""
    completion: tuple[tuple[int, int], ...] | None
    """The (first, last exclusive) characters that count for the loss; None: all of them."""
    source: str
    """File name, or the data set's name."""
    adds_special_tokens: bool = True
    """Whether the tokenizer adds its special tokens; False where the chat template has written them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRow:
    """A bad row that was left out."""

    row: int
    source: str
    reason: str


def check_data(source: DataSource) -> DataFacts:
    """Find out, before any long work, whether the data set exists and has the fields that are asked for.

    Reads at most its first 100 rows. Raises DatasetNotFoundError, RemoteCodeError, MissingFieldError, and what
    `read_documents` raises where there is no good row at all.
    """
    raw = open_rows(source)
    return DataFacts(
        name=source.dataset,
        format=raw.format,
        fields=dict(raw.fields),
        text_fields=_choose_fields(source, raw),
        num_rows=raw.num_rows,
        size_bytes=raw.size_bytes,
        revision=raw.revision,
    )


def read_documents(
    source: DataSource,
    tokenizer: Any = None,  # noqa: ANN401 - partial annotations
    *,
    first_row: int = 0,
    num_before: int = 0,
) -> DocumentReader:
    """Return an iterator over the documents, in the source's order, that keeps one batch of rows in memory.

    A reading that was stopped goes on with `first_row` (the row after the last one that was read) and `num_before` (how
    many good documents came before it, which max_documents counts): the documents are those that it would have given.
    The tokenizer is used for its chat template alone. Raises what `check_data` raises at once, and while iterating
    BadRowError or EncodingError, which name the row, unless bad rows are skipped.
    """
    raw = open_rows(source)
    return DocumentReader(
        source, raw, _choose_fields(source, raw), tokenizer, first_row=first_row, num_before=num_before
    )


class DocumentReader:
    """An iterator over documents; `skipped` lists the bad rows passed so far."""

    def __init__(
        self,
        source: DataSource,
        raw: RawRows,
        text_fields: tuple[str, ...],
        tokenizer: Any,  # noqa: ANN401
        *,
        first_row: int = 0,
        num_before: int = 0,
    ) -> None:
        self.skipped: list[SkippedRow] = []
        self._source = source
        self._class_names = raw.class_names
        self._text_fields = text_fields
        self._tokenizer = tokenizer
        self._num_read = num_before
        wanted = [*text_fields, *source.label_fields, *([source.id_field] if source.id_field else [])]
        self._rows = raw.read(list(dict.fromkeys(wanted)), first_row)

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        if self._source.max_documents is not None and self._num_read >= self._source.max_documents:
            raise StopIteration
        for raw in self._rows:
            try:
                document = self._build(raw)
            except (BadRowError, EncodingError) as error:
                self._reject(raw, error)
                continue
            self._num_read += 1
            return document
        raise StopIteration

    def _reject(self, raw: RawRow, error: BadRowError | EncodingError) -> None:
        if self._source.bad_rows == "stop":
            raise type(error)(
                f"{raw.where[0].upper()}{raw.where[1:]} of {raw.file} cannot be used: {error}. Mend or remove it, or "
                "skip such rows (bad_rows='skip')."
            ) from None
        self.skipped.append(SkippedRow(row=raw.row, source=raw.file, reason=str(error)))

    def _build(self, raw: RawRow) -> Document:
        if raw.problem is not None:
            raise raw.problem
        text, completion = self._text_of(raw.values)
        is_template = self._source.messages_field and getattr(self._tokenizer, "chat_template", None)
        return Document(
            row=raw.row,
            user_id=self._id_of(raw),
            text=text,
            labels={name: self._label_of(raw.values, name) for name in self._source.label_fields},
            completion=completion,
            source=raw.file,
            adds_special_tokens=not is_template,
        )

    def _text_of(self, values: Mapping[str, Any]) -> tuple[str, tuple[tuple[int, int], ...] | None]:
        if self._source.messages_field is not None:
            text, spans = render_chat(values.get(self._source.messages_field), self._tokenizer)
            return _require_unicode(text, self._source.messages_field), spans
        if self._source.prompt_field is not None:
            prompt_name, completion_name = self._text_fields
            prompt = _require_text(values, prompt_name, may_be_empty=True)
            text = prompt + _require_text(values, completion_name)
            return text, ((len(prompt), len(text)),)
        return _require_text(values, self._text_fields[0]), None

    def _id_of(self, raw: RawRow) -> str:
        if self._source.id_field is None:
            return raw.name if raw.name is not None else str(raw.row)
        value = raw.values.get(self._source.id_field)
        if not isinstance(value, str | int) or value == "":
            raise BadRowError(f"its id field {self._source.id_field} is {_describe(value)}")
        return _require_unicode(str(value), self._source.id_field)

    def _label_of(self, values: Mapping[str, Any], name: str) -> str | None:
        value = values.get(name)
        if value is None:
            return None
        if isinstance(value, int) and name in self._class_names:
            names = self._class_names[name]
            return names[value] if 0 <= value < len(names) else None  # -1 is the data sets' "unknown"
        if isinstance(value, list | dict | bytes):
            raise BadRowError(f"its label field {name} is {_describe(value)}")
        return _require_unicode(str(value), name)


def _require_text(values: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = values.get(name)
    if not isinstance(value, str) or (not value.strip() and not may_be_empty):
        raise BadRowError(f"its field {name} is {_describe(value) if name in values else 'missing'}")
    return _require_unicode(value, name)


def _require_unicode(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no file can hold
        raise BadRowError(f"its field {name} has half a surrogate pair at character {error.start}") from error
    return text


def _describe(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "nothing but white space" if value else "empty"
    return f"of type {type(value).__name__} and not text"


def _choose_fields(source: DataSource, raw: RawRows) -> tuple[str, ...]:
    """Return the fields that documents are made of, once every field that was asked for is known to exist."""
    others = [*source.label_fields, *([source.id_field] if source.id_field else [])]
    chosen = [name for name in (source.text_field, source.prompt_field, source.completion_field) if name is not None]
    chosen += [source.messages_field] if source.messages_field is not None else []
    for name in [*chosen, *others]:
        if name not in raw.fields:
            raise MissingFieldError(
                f"{source.dataset} has no field {name!r}. It has: {_list_fields(raw)}.{_guess(name, raw)}"
            )
    if chosen:
        return tuple(chosen)
    if "text" in raw.fields:
        return ("text",)
    strings = [name for name, kind in raw.fields.items() if kind == "string" and name not in others]
    if len(strings) == 1:
        return (strings[0],)
    raise MissingFieldError(
        f"{source.dataset} has no field 'text', and {len(strings) or 'no'} other fields of strings. It has: "
        f"{_list_fields(raw)}. Set text_field, prompt_field with completion_field, or messages_field."
        f"{_guess('text', raw)}"
    )


def _list_fields(raw: RawRows) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in raw.fields.items())


def _guess(name: str, raw: RawRows) -> str:
    if "messages" in raw.fields and name == "text":
        return " Perhaps messages_field='messages'?"
    if "prompt" in raw.fields and "completion" in raw.fields and name == "text":
        return " Perhaps prompt_field='prompt' and completion_field='completion'?"
    lower = {field.lower(): field for field in raw.fields}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1) or [f for f in _USUAL_TEXT_FIELDS if f in lower]
    strings = [field for field, kind in raw.fields.items() if kind == "string"]
    likely = [lower[close[0]]] if close else strings[-1:]
    return f" Perhaps {likely[0]!r}?" if likely else ""


class DataFingerprint:
    """A running SHA-256 over documents: feed it while they stream by, ask at any time."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> str:
        """Count the document in (its content, user's id and labels; order matters), and return its hash in hex."""
        content = document_hash(document)
        self.add_stored(content, document.user_id, document.labels)
        return content

    def add_stored(self, content_hash: str, user_id: str, labels: Mapping[str, str | None]) -> None:
        """Count in a document that an earlier reading gave, by what a run keeps of it."""
        self._digest.update(_canonical([content_hash, user_id, dict(labels)]))

    def hexdigest(self) -> str:
        """Return the fingerprint, in hex, of the documents so far."""
        return self._digest.hexdigest()


def document_hash(document: Document) -> str:
    """Return the SHA-256, in hex, of what decides a document's rows: text, completion, special tokens.

    Equal for duplicates, whatever their row, id or labels.
    """
    content = [document.text, document.completion, document.adds_special_tokens]
    return hashlib.sha256(_canonical(content)).hexdigest()


def fingerprint_documents(documents: Iterable[Document]) -> str:
    """Return the `DataFingerprint`, in hex, of all the documents, in their order."""
    fingerprint = DataFingerprint()
    for document in documents:
        fingerprint.add(document)
    return fingerprint.hexdigest()


def _canonical(content: Sequence[Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"
