"""Data is read as a stream: packed, sharded, broken off and gone on with, in little memory, the same documents."""

import gzip
import json
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantascope.api.commands.options import place
from quantascope.errors import BadRowError, DatasetNotFoundError, EncodingError
from quantascope.jobs.data import columns as data_columns
from quantascope.jobs.data import lines as data_lines
from quantascope.jobs.data import places as data_sources
from quantascope.jobs.data.lines import read_json
from quantascope.jobs.data.source import (
    DataFingerprint,
    DataSource,
    check_data,
    fingerprint_documents,
    read_documents,
)
from tests.tiny import write_jsonl

ROWS = [{"text": f"row {i} — naïve", "kind": "ab"[i % 2]} for i in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def source(path, **options):
    return DataSource(dataset=str(path), **options)


def pack(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


def write_csv(path):
    path.write_text("text,kind\n" + "".join(f"{r['text']},{r['kind']}\n" for r in ROWS), encoding="utf-8")


def write_shards(folder):
    folder.mkdir()
    for number in range(3):
        rows = ROWS[number * 15 : number * 15 + 15]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{number}.parquet", row_group_size=4)


def write_texts(folder):
    folder.mkdir()
    for number, row in enumerate(ROWS):
        (folder / f"{number:02d}.txt").write_text(row["text"], encoding="utf-8")


FORMATS = {
    "rows.jsonl": lambda path: path.write_bytes(LINES),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "rows.jsonl.zst": lambda path: path.write_bytes(pack(LINES)),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "rows.json.zst": lambda path: path.write_bytes(pack(json.dumps(ROWS).encode())),
    "rows.csv": write_csv,
    "shards": write_shards,
    "texts": write_texts,
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
}


def documents(path, **options):
    return list(read_documents(source(path), **options))


@pytest.mark.parametrize("name", FORMATS)
def test_a_reading_that_was_stopped_goes_on(tmp_path, name):
    FORMATS[name](tmp_path / name)
    whole = documents(tmp_path / name)
    assert [d.text for d in whole] == [row["text"] for row in ROWS]
    for first in (0, 1, 14, 15, 16, 33, 39, 40, 50):
        assert documents(tmp_path / name, first_row=first) == whole[first:]


def test_the_fingerprint_of_a_reading_in_two_parts_is_that_of_one(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    whole = documents(path)
    resumed = DataFingerprint()
    for document in whole[:17]:  # as a run keeps them
        resumed.add_stored(DataFingerprint().add(document), document.user_id, document.labels)
    for document in documents(path, first_row=17, num_before=17):
        resumed.add(document)
    assert resumed.hexdigest() == fingerprint_documents(whole)


def test_the_limit_counts_what_came_before(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": ""}, *ROWS])
    asked = source(path, bad_rows="skip", max_documents=10)
    whole = list(read_documents(asked))
    rest = list(read_documents(asked, first_row=5, num_before=4))
    assert rest == whole[4:]
    assert list(read_documents(asked, first_row=11, num_before=10)) == []


# --- packed files ---


def test_packed_files_of_several_frames_are_one(tmp_path):
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"left"
    (tmp_path / "rows.jsonl.zst").write_bytes(pack(LINES[:500]) + skippable + pack(LINES[500:]))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]))
    for name in ("rows.jsonl.zst", "rows.jsonl.gz"):
        assert [d.text for d in documents(tmp_path / name)] == [row["text"] for row in ROWS]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst"])
def test_a_packed_file_that_ends_early_is_never_taken_for_whole(tmp_path, name):
    content = pack(LINES * 50) if name.endswith("zst") else gzip.compress(LINES * 50)
    (tmp_path / name).write_bytes(content[:-20])
    with pytest.raises(BadRowError, match=rf"{name} cannot be read to its end"):
        list(read_documents(source(tmp_path / name, bad_rows="skip")))


def test_a_parquet_file_with_a_broken_page_is_named(tmp_path):
    write_shards(tmp_path / "shards")
    path = tmp_path / "shards/part-1.parquet"
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    reader = read_documents(source(tmp_path / "shards", bad_rows="skip"))
    with pytest.raises(BadRowError, match=r"part-1\.parquet cannot be read after row 15"):
        list(reader)


# --- patterns ---


def test_a_pattern_stands_for_its_files_in_order(tmp_path):
    write_shards(tmp_path / "shards")
    (tmp_path / "shards/notes.txt").write_text("not a row")
    found = documents(tmp_path / "shards/part-*.parquet")
    assert [d.text for d in found] == [row["text"] for row in ROWS]
    assert {d.source for d in found} == {f"part-{i}.parquet" for i in range(3)}
    assert [d.text for d in documents(f"{tmp_path}/**/part-[12].parquet")] == [row["text"] for row in ROWS[15:]]
    assert check_data(source(tmp_path / "shards/part-?.parquet")).num_rows == 40


def test_patterns_that_say_nothing_or_too_much(tmp_path):
    write_shards(tmp_path / "shards")
    with pytest.raises(DatasetNotFoundError, match="No file is named like"):
        check_data(source(tmp_path / "*.parquet"))
    write_jsonl(tmp_path / "shards/more.jsonl", ROWS)
    with pytest.raises(DatasetNotFoundError, match=r"several formats \(json, parquet\)"):
        check_data(source(tmp_path / "shards/*"))


def test_the_command_line_makes_a_pattern_absolute(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    assert place("shards/*.parquet") == f"{tmp_path}/shards/*.parquet"
    assert len(documents(place("shards/*.parquet"))) == 40
    assert place("some/data") == "some/data"


def test_a_file_whose_name_has_the_signs_of_a_pattern_is_that_file(tmp_path):
    path = write_jsonl(tmp_path / "rows[1].jsonl", ROWS)
    assert len(documents(path)) == 40


# --- JSON arrays, element by element ---

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=8),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_array_is_read_in_pieces_as_it_is_read_whole(tmp_path, rows, piece, indent, ascii_only):
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if b"\xed" in content:  # half a surrogate pair is not UTF-8, which another test is about
        content = json.dumps(rows, indent=indent).encode()
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_lines, "_PIECE_BYTES", piece)
        found = list(read_json(tmp_path / "rows.json", "rows.json", 0))
        rest = list(read_json(tmp_path / "rows.json", "rows.json", 0, 2))
    assert [raw.values for raw in found] == json.loads(content)
    assert [raw.problem for raw in found] == [None] * len(rows)
    assert [(raw.row, raw.values) for raw in rest] == [(i, v) for i, v in enumerate(json.loads(content))][2:]


@pytest.mark.parametrize(
    ("content", "good", "why"),
    [
        ('[{"text": "a"}, {"text": "b"', 1, "from here on"),
        ('[{"text": "a"}, {"text": "b"}', 1, "it has no end"),
        ('[{"text": "a"} {"text": "b"}]', 0, "stands between elements"),
        ('[{"text": "a"}, ]', 1, "Expecting value"),
        ('[{"text": "a"}, {"text": "never closed}]', 1, "from here on"),
    ],
)
def test_a_fault_in_an_array_ends_it_and_is_named(tmp_path, content, good, why):
    (tmp_path / "rows.json").write_text(content)
    reader = read_documents(source(tmp_path / "rows.json", bad_rows="skip", text_field="text")) if good else None
    if reader is not None:
        assert len(list(reader)) == good
        assert why in reader.skipped[-1].reason
    else:
        with pytest.raises(BadRowError, match=why):
            check_data(source(tmp_path / "rows.json", text_field="text"))


def test_a_byte_that_is_not_utf8_spoils_only_its_element(tmp_path):
    rows = [{"text": f"naïve {i} " + "x" * 300} for i in range(50)]
    rows[30]["text"] = "caf~"
    content = json.dumps(rows, ensure_ascii=False).encode().replace(b"~", b"\xe9")
    (tmp_path / "rows.json").write_bytes(content)
    reader = read_documents(source(tmp_path / "rows.json", bad_rows="skip"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_lines, "_PIECE_BYTES", 64)
        assert [d.row for d in reader] == [i for i in range(50) if i != 30]
        with pytest.raises(EncodingError, match=rf"0xe9 at position {content.index(0xE9, content.index(b'caf'))}"):
            list(read_documents(source(tmp_path / "rows.json")))
    assert [s.row for s in reader.skipped] == [30]


# --- memory ---


def peak_bytes(read):
    """Of Python's and Arrow's memory, while all documents are read and dropped."""
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    tracemalloc.start()
    try:
        for number, _ in enumerate(read):
            if number % 500 == 0:
                most = max(most, pool.bytes_allocated() - before)
        return most + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["rows.jsonl.zst", "rows.json", "one_group.parquet"])
def test_memory_does_not_grow_with_the_data(tmp_path, name):
    """Ten times the rows: the peak stays where it was (a file of one JSON array or of one row group among them)."""
    random = np.random.default_rng(0)
    peaks = []
    for number in (500, 5_000):
        rows = [{"text": text} for text in random.integers(0, 16, (number, 200)).astype("U1").view("U200")[:, 0]]
        folder = tmp_path / str(number)
        folder.mkdir()
        if name.endswith(".parquet"):
            pq.write_table(
                pa.Table.from_pylist(rows),
                folder / name,
                row_group_size=number,
                data_page_size=1 << 14,
                use_dictionary=False,
            )
        else:
            content = json.dumps(rows) if name == "rows.json" else "".join(json.dumps(r) + "\n" for r in rows)
            (folder / name).write_bytes(pack(content.encode()) if name.endswith("zst") else content.encode())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data_lines, "_PIECE_BYTES", 1 << 14)
            patch.setattr(data_columns, "_PAGE_BYTES", 1 << 14)
            peaks.append(peak_bytes(read_documents(source(folder / name))))
    assert peaks[1] < 1.3 * peaks[0] + 100_000  # of 1 MB of text


# --- the hub ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set as the hub would stream it, from a local folder laid out in the same way; no network."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        part = pa.Table.from_pylist(ROWS[number * 20 : number * 20 + 20])
        pq.write_table(part, folder / f"train-{number:05d}-of-00002.parquet", row_group_size=7)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("quantascope.jobs.data.places.hub_is_reachable", lambda: True)
    monkeypatch.setattr("quantascope.jobs.data.places._pin", lambda _: "c0ffee")
    load, asked = datasets.load_dataset, []

    def load_dataset(*_, **options):
        asked.append(options.pop("revision"))
        return load(str(folder), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train"])
    return asked


def test_a_hub_data_set_is_streamed_at_one_commit_and_gone_on_with(hub):
    asked = DataSource(dataset="some/data", label_fields=("kind",))
    assert check_data(asked).revision == "c0ffee"
    whole = list(read_documents(asked))
    assert [d.text for d in whole] == [row["text"] for row in ROWS]
    for first in (1, 20, 23, 40):
        assert list(read_documents(asked, first_row=first)) == whole[first:]
    assert set(hub) == {"c0ffee"}


def test_a_stream_that_breaks_off_says_where(hub, monkeypatch):
    *_, lost = data_sources._network_errors()
    assert not issubclass(lost, OSError)
    real = datasets.IterableDataset.__iter__

    def breaking(self):
        for number, row in enumerate(real(self)):
            if number == 7:
                raise lost("connection lost")
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", breaking)
    with pytest.raises(
        DatasetNotFoundError, match=r"stopped at row 7 \(connection lost\): give the same command again"
    ):
        list(read_documents(DataSource(dataset="some/data")))


def test_the_commit_is_asked_for_once_and_used(monkeypatch):
    import huggingface_hub

    class Api:
        def dataset_info(self, name, revision):
            assert (name, revision) == ("some/data", "main")
            return type("Info", (), {"sha": "0123abcd"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert data_sources._pin(DataSource(dataset="some/data", revision="main")) == "0123abcd"


def open_below(folder):
    """Files of this process below a folder."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found.append(descriptor.readlink())
    return [path for path in found if path.is_relative_to(folder)]


def test_what_is_read_is_closed(tmp_path):
    """A reading that is given up leaves no file open (warnings are errors here)."""
    for name in ("rows.jsonl", "rows.jsonl.zst", "shards"):
        FORMATS[name](tmp_path / name)
        reader = read_documents(source(tmp_path / name))
        next(reader)
        assert open_below(tmp_path)
        del reader
        assert not open_below(tmp_path)
