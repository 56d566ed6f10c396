"""Every row that cannot be used is named by number, file and line, or skipped and listed."""

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quantascope.errors import BadRowError, EncodingError
from quantascope.jobs.data.source import DataSource, SkippedRow, read_documents
from tests.tiny import SENTENCES, write_jsonl

ROWS = [{"text": text} for text in SENTENCES]


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_array(path, rows):
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_saved(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


WRITERS = {
    "rows.jsonl": write_jsonl,
    "rows.json": write_array,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
    "saved": write_saved,
}


def source(path, **options):
    return DataSource(dataset=str(path), **options)


BAD = [
    ({"text": ""}, "empty"),
    ({"text": None}, "null"),
    ({"text": " \n\t"}, "white space"),
    ({"text": 3}, "of type int"),
    ({"text": ["a"]}, "of type list"),
    ({}, "missing"),
    ({"text": "a\ud800b"}, "half a surrogate pair at character 1"),
]


@pytest.mark.parametrize(("bad", "why"), BAD)
def test_bad_rows_are_named_or_skipped(tmp_path, bad, why):
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], bad, ROWS[1]])
    reader = read_documents(source(path))
    assert next(reader).row == 0
    with pytest.raises(BadRowError, match=rf"Row 1 \(line 2\) of rows\.jsonl .*{why}.*bad_rows='skip'"):
        next(reader)
    reader = read_documents(source(path, bad_rows="skip"))
    assert [d.row for d in reader] == [0, 2]
    [skipped] = reader.skipped
    assert isinstance(skipped, SkippedRow)
    assert (skipped.row, skipped.source) == (1, "rows.jsonl")
    assert why in skipped.reason


@pytest.mark.parametrize("name", ["rows.parquet", "saved"])
def test_null_rows_in_columns_are_named(tmp_path, name):
    path = WRITERS[name](tmp_path / name, [ROWS[0], {**ROWS[1], "text": None}])
    with pytest.raises(BadRowError, match=r"Row 1 of .*null"):
        list(read_documents(source(path)))


def test_a_column_of_numbers_is_not_text(tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", [{"text": 3}])
    with pytest.raises(BadRowError, match="of type int"):
        list(read_documents(source(path)))


@pytest.mark.parametrize(
    ("line", "why"), [('{"text": "torn', "not one JSON object"), ("[1]", "a list"), ('"text"', "a string")]
)
def test_lines_that_are_no_objects_are_named(tmp_path, line, why):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a"}}\n\n{line}\n{{"text": "b"}}\n')
    with pytest.raises(BadRowError, match=rf"Row 1 \(line 3\) .*{why}"):
        list(read_documents(source(path)))
    reader = read_documents(source(path, bad_rows="skip"))
    assert [d.text for d in reader] == ["a", "b"]
    assert [s.row for s in reader.skipped] == [1]


def test_csv_rows_of_the_wrong_width_are_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('id,text\n1,"a\nb"\n2,c,d\n3,e\n4\n')
    with pytest.raises(BadRowError, match=r"Row 1 \(line 4\) .*3 fields where the header has 2"):
        list(read_documents(source(path, text_field="text")))
    reader = read_documents(source(path, text_field="text", bad_rows="skip"))
    assert [d.text for d in reader] == ["a\nb", "e"]
    assert [s.row for s in reader.skipped] == [1, 3]


def test_an_unclosed_quote_in_csv_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text\ngood\n"never closed\nand on\n')
    with pytest.raises(BadRowError, match=r"Row 1 \(line 3\) .*not valid CSV"):
        list(read_documents(source(path)))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_bytes_that_are_not_utf8_are_located(tmp_path, name):
    path = WRITERS[name](tmp_path / name, [{"text": "fine"}, {"text": "caf~"}, {"text": "fine too"}])
    content = path.read_bytes()
    position = content.index(b"~")
    path.write_bytes(content.replace(b"~", b"\xe9"))
    match = rf"{name} is not UTF-8: byte 0xe9 at position {position}"
    with pytest.raises(EncodingError, match=match):
        list(read_documents(source(path)))
    if name != "rows.json":  # an array is one piece: none of it can be read
        reader = read_documents(source(path, bad_rows="skip"))
        assert [d.text for d in reader] == ["fine", "fine too"]
        assert [s.row for s in reader.skipped] == [1]


def test_text_files_that_are_not_utf8_are_located(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(EncodingError, match=r"b\.txt is not UTF-8: byte 0xff at position 5"):
        list(read_documents(source(tmp_path)))
    reader = read_documents(source(tmp_path, bad_rows="skip"))
    assert [d.text for d in reader] == ["fine"]
    assert [s.source for s in reader.skipped] == ["b.txt"]


def test_columns_that_are_not_utf8_are_located(tmp_path):
    content = pa.array([b"fine", b"caf\xe9", b"fine too"], pa.binary())
    broken = pa.StringArray.from_buffers(3, *content.buffers()[1:])
    pq.write_table(pa.table({"text": broken}), tmp_path / "rows.parquet")
    with pytest.raises(EncodingError, match=r"Row 1 of rows\.parquet.*byte 3"):
        list(read_documents(source(tmp_path / "rows.parquet")))
    reader = read_documents(source(tmp_path / "rows.parquet", bad_rows="skip"))
    assert [d.row for d in reader] == [0, 2]


@pytest.mark.parametrize(("value", "why"), [(None, "null"), ("", "empty"), ([1], "list")])
def test_bad_ids_are_named(tmp_path, value, why):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "id": value}])
    with pytest.raises(BadRowError, match=f"Row 0 .*id field id is .*{why}"):
        list(read_documents(source(path, id_field="id")))


def test_labels_that_are_lists_are_named(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "kind": ["x"]}])
    with pytest.raises(BadRowError, match="label field kind"):
        list(read_documents(source(path, label_fields=("kind",))))


def test_max_documents_counts_good_ones_and_reads_no_further(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], {"text": ""}, ROWS[1], {"text": ""}, ROWS[2]])
    reader = read_documents(source(path, bad_rows="skip", max_documents=2))
    assert [d.row for d in reader] == [0, 2]
    assert [s.row for s in reader.skipped] == [1]
    assert next(reader, None) is None
