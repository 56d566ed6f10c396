"""Every format gives the same documents; every bad row is named; every wrong field is answered with the right ones."""

import gzip
import json
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quantascope.errors import (
    BadRowError,
    ConfigurationError,
    DatasetNotFoundError,
    MissingFieldError,
    RemoteCodeError,
)
from quantascope.jobs.data.places import _open_hub
from quantascope.jobs.data.source import (
    DataFingerprint,
    DataSource,
    check_data,
    document_hash,
    fingerprint_documents,
    read_documents,
)
from tests.tiny import SENTENCES, write_jsonl

ROWS = [{"text": text, "id": f"doc-{i}", "kind": "ab"[i % 2]} for i, text in enumerate(SENTENCES)]


def write_csv(path, rows):
    import csv

    with path.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_gzip(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_array(path, rows):
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def write_parquet_folder(path, rows):
    path.mkdir()
    (path / "README.md").write_text("not a row")
    write_parquet(path / "a.parquet", rows[:3])
    write_parquet(path / "b.parquet", rows[3:])
    return path


def write_jsonl_folder(path, rows):
    path.mkdir()
    write_jsonl(path / "a.jsonl", rows[:3])
    write_jsonl(path / "b.jsonl", rows[3:])
    return path


def write_saved(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


WRITERS = {
    "rows.jsonl": (write_jsonl, "json"),
    "rows.jsonl.gz": (write_gzip, "json"),
    "rows.json": (write_array, "json"),
    "rows.csv": (write_csv, "csv"),
    "rows.parquet": (write_parquet, "parquet"),
    "parquet": (write_parquet_folder, "parquet"),
    "jsonl": (write_jsonl_folder, "json"),
    "saved": (write_saved, "saved"),
}


def source(path, **options):
    return DataSource(dataset=str(path), **options)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(tmp_path, name):
    write, kind = WRITERS[name]
    asked = source(write(tmp_path / name, ROWS), id_field="id", label_fields=("kind",))
    facts = check_data(asked)
    documents = list(read_documents(asked))
    assert facts.format == kind
    assert facts.text_fields == ("text",)
    assert dict(facts.fields) == {"text": "string", "id": "string", "kind": "string"}
    assert facts.num_rows in (None, len(ROWS))
    assert [d.row for d in documents] == list(range(len(ROWS)))
    assert [d.text for d in documents] == list(SENTENCES)
    assert [d.user_id for d in documents] == [row["id"] for row in ROWS]
    assert [d.labels for d in documents] == [{"kind": row["kind"]} for row in ROWS]
    assert {d.completion for d in documents} == {None}
    plain = write_jsonl(tmp_path / "plain.jsonl", ROWS)
    same = source(plain, id_field="id", label_fields=("kind",))
    assert fingerprint_documents(documents) == fingerprint_documents(read_documents(same))


def test_rows_of_several_files_keep_their_file(tmp_path):
    documents = list(read_documents(source(write_jsonl_folder(tmp_path / "data", ROWS))))
    assert [d.source for d in documents] == ["a.jsonl"] * 3 + ["b.jsonl"] * 5
    assert [d.user_id for d in documents] == [str(i) for i in range(8)]


def test_text_files_are_read_in_order_with_their_folders(tmp_path):
    for name in ("b/two.txt", "a/one.py", "zero.md", ".git/config", "a/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"this is {name}", encoding="utf-8")
    asked = source(tmp_path, label_fields=("folder",))
    documents = list(read_documents(asked))
    assert [d.text for d in documents] == ["this is a/one.py", "this is b/two.txt", "this is zero.md"]
    assert [d.user_id for d in documents] == [d.source for d in documents] == ["a/one.py", "b/two.txt", "zero.md"]
    assert [d.labels["folder"] for d in documents] == ["a", "b", "."]
    assert check_data(asked).format == "text"


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert [d.text for d in read_documents(source(tmp_path))] == ["hello"]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert [d.text for d in read_documents(source(path))] == ["hello"]


def test_texts_keep_their_white_space_and_line_breaks(tmp_path):
    rows = [{"text": "  two\r\nlines\u2028and more \n", "n": 1}, {"text": 'a "quoted", word', "n": 2}]
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        path = WRITERS[name][0](tmp_path / name, rows)
        assert [d.text for d in read_documents(source(path))] == [row["text"] for row in rows]


def test_long_texts_fit_in_csv_without_moving_the_process_limit(tmp_path):
    import csv

    before = csv.field_size_limit()
    path = write_csv(tmp_path / "rows.csv", [{"text": "long " * 60_000}])
    assert [len(d.text) for d in read_documents(source(path))] == [300_000]
    assert csv.field_size_limit() == before


# --- splits ---


def test_a_saved_dict_needs_a_split_and_lists_them(tmp_path):
    saved = {name: datasets.Dataset.from_list(ROWS[:n]) for name, n in (("train", 5), ("held_out", 2))}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "d")
    with pytest.raises(DatasetNotFoundError, match=r"several splits.*held_out, train"):
        check_data(source(tmp_path / "d"))
    with pytest.raises(DatasetNotFoundError, match=r"no split 'test'.*held_out, train"):
        check_data(source(tmp_path / "d", split="test"))
    assert len(list(read_documents(source(tmp_path / "d", split="held_out")))) == 2
    assert check_data(source(tmp_path / "d", split="train")).num_rows == 5


def test_shards_named_as_on_the_hub_need_a_split(tmp_path):
    for name, rows in (
        ("train-00000-of-00002", ROWS[:2]),
        ("train-00001-of-00002", ROWS[2:4]),
        ("test-00000-of-00001", ROWS[4:]),
    ):
        write_parquet(tmp_path / f"{name}.parquet", rows)
    with pytest.raises(DatasetNotFoundError, match="test, train"):
        check_data(source(tmp_path))
    assert [d.text for d in read_documents(source(tmp_path, split="train"))] == list(SENTENCES[:4])


def test_a_split_of_a_single_file_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DatasetNotFoundError, match="no split 'train'"):
        check_data(source(path, split="train"))


def test_files_of_other_fields_are_not_mixed(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"text": "a"}])
    write_parquet(tmp_path / "b.parquet", [{"body": "b"}])
    with pytest.raises(MissingFieldError, match=r"b\.parquet has the fields body"):
        check_data(source(tmp_path))


# --- fields ---


def test_the_only_string_field_is_the_text(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"body": "hello", "n": 3, "id": "a"}])
    assert check_data(source(path, id_field="id")).text_fields == ("body",)
    with pytest.raises(MissingFieldError, match=r"body \(string\), n \(int\), id \(string\).*Perhaps 'body'"):
        check_data(source(path))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "saved"])
def test_a_missing_field_lists_those_there_are_and_guesses(tmp_path, name):
    path = WRITERS[name][0](tmp_path / name, ROWS)
    with pytest.raises(MissingFieldError, match=r"no field 'Text'.*text \(string\), id.*kind.*Perhaps 'text'\?"):
        check_data(source(path, text_field="Text"))
    with pytest.raises(MissingFieldError, match=r"no field 'kinds'.*Perhaps 'kind'"):
        check_data(source(path, label_fields=("kinds",)))
    with pytest.raises(MissingFieldError, match="no field 'uid'"):
        read_documents(source(path, id_field="uid"))


def test_chats_and_pairs_are_recognised_in_the_hint(tmp_path):
    chat = write_jsonl(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    with pytest.raises(MissingFieldError, match="messages_field='messages'"):
        check_data(source(chat))
    pair = write_jsonl(tmp_path / "pair.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(MissingFieldError, match="completion_field='completion'"):
        check_data(source(pair))


def test_class_labels_get_their_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["x", "y"])})
    rows = {"text": ["a", "b", "c"], "kind": [1, 0, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    documents = read_documents(source(tmp_path / "d", label_fields=("kind",)))
    assert [d.labels["kind"] for d in documents] == ["y", "x", None]


def test_labels_and_ids_become_text(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "id": 7, "n": 0.5, "b": True}, {"text": "b", "id": 8}])
    first, second = read_documents(source(path, id_field="id", label_fields=("n", "b")))
    assert (first.user_id, first.labels) == ("7", {"n": "0.5", "b": "True"})
    assert (second.user_id, second.labels) == ("8", {"n": None, "b": None})


def test_unused_columns_are_not_read(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    asked = []
    original = pq.ParquetFile.iter_batches

    def spy(self, *args, **options):
        asked.append(options["columns"])
        return original(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    list(read_documents(source(path, label_fields=("kind",))))
    assert asked == [["text", "kind"]]


# --- prompt and completion ---


def test_only_the_completion_counts(tmp_path):
    rows = [{"q": "2 + 2 =", "a": " 4"}, {"q": "", "a": "alone"}, {"q": "x", "a": ""}]
    asked = source(write_jsonl(tmp_path / "r.jsonl", rows), prompt_field="q", completion_field="a", bad_rows="skip")
    reader = read_documents(asked)
    assert [(d.text, d.completion) for d in reader] == [("2 + 2 = 4", ((7, 9),)), ("alone", ((0, 5),))]
    assert [s.reason for s in reader.skipped] == ["its field a is empty"]
    assert check_data(asked).text_fields == ("q", "a")


# --- nothing there ---


@pytest.mark.parametrize("name", ["nowhere.jsonl", "/nowhere/at/all", "./nowhere", "data/sets/nowhere"])
def test_nothing_there(name):
    with pytest.raises(DatasetNotFoundError, match=r"no data set at .*\.jsonl, \.json, \.parquet, \.csv"):
        check_data(DataSource(dataset=name))


def test_unreachable_hub_says_so_at_once(monkeypatch):
    monkeypatch.setattr("quantascope.jobs.data.places.hub_is_reachable", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(DatasetNotFoundError, match=r"nobody/nothing-here.*cannot be reached"):
        check_data(DataSource(dataset="nobody/nothing-here"))


def test_hub_data_sets_are_streamed(tmp_path, monkeypatch):
    # The same loader reads a local folder laid out as on the hub, so no network is needed.
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("quantascope.jobs.data.places.hub_is_reachable", lambda: True)
    for name, rows in (("train", ROWS[:5]), ("test", ROWS[5:])):
        write_parquet(data / f"{name}-00000-of-00001.parquet", rows)
    asked = source(data, split="test", label_fields=("kind",))
    raw = _open_hub(asked)
    assert raw.format == "hub"
    assert raw.fields["text"] == "string"
    assert [r.values for r in raw.read(["text", "kind"])] == [{k: r[k] for k in ("text", "kind")} for r in ROWS[5:]]
    with pytest.raises(DatasetNotFoundError, match="test, train"):
        _open_hub(source(data))


def test_what_the_hub_refuses_is_told_apart(monkeypatch):
    monkeypatch.setattr("quantascope.jobs.data.places.hub_is_reachable", lambda: True)

    def refuse(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found own.py")

    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    with pytest.raises(RemoteCodeError, match=r"some/data.*script of its own"):
        check_data(DataSource(dataset="some/data"))

    def unknown(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'some/data' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unknown)
    with pytest.raises(DatasetNotFoundError, match=r"doesn't exist on the Hub.*spelling"):
        check_data(DataSource(dataset="some/data"))


def test_scripts_are_refused(tmp_path):
    mark = tmp_path / "ran"
    script = tmp_path / "own.py"
    script.write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(RemoteCodeError, match=r"script of its own.*save_to_disk"):
        check_data(source(script))
    assert not mark.exists()


def test_unknown_format_lists_the_known(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DatasetNotFoundError, match=r"no known format.*\.jsonl"):
        check_data(source(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).write_text("[]" if name == "rows.json" else "")
    with pytest.raises(DatasetNotFoundError, match="holds no rows"):
        check_data(source(tmp_path / name))


def test_empty_folder(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="holds no files"):
        check_data(source(tmp_path))


def test_a_file_of_nothing_but_bad_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{\n{\n")
    with pytest.raises(BadRowError, match="no good row among its first"):
        check_data(source(tmp_path / "rows.jsonl", bad_rows="skip"))


def test_torn_parquet(tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DatasetNotFoundError, match="not a readable Parquet file"):
        check_data(source(path))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dataset": ""}, "empty"),
        ({"prompt_field": "p"}, "go together"),
        ({"text_field": "t", "messages_field": "m"}, "exclude each other"),
        ({"bad_rows": "ignore"}, "skip"),
        ({"max_documents": 0}, "max_documents"),
    ],
)
def test_bad_options(options, word):
    with pytest.raises(ConfigurationError, match=word):
        DataSource(**{"dataset": "d", **options})


# --- fingerprints ---


def test_fingerprint_sees_texts_order_ids_and_labels(tmp_path):
    def of(rows, **options):
        options = {"id_field": "id", "label_fields": ("kind",), **options}
        return fingerprint_documents(read_documents(source(write_jsonl(tmp_path / "r.jsonl", rows), **options)))

    first = of(ROWS)
    assert of(ROWS) == first
    assert of(ROWS[::-1]) != first
    assert of(ROWS[:-1]) != first
    assert of([*ROWS[:-1], {**ROWS[-1], "text": "changed"}]) != first
    assert of([*ROWS[:-1], {**ROWS[-1], "id": "changed"}]) != first
    assert of([*ROWS[:-1], {**ROWS[-1], "kind": None}]) != first
    assert of(ROWS, label_fields=()) != first


def test_fingerprint_runs_while_streaming_and_finds_duplicates(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}, {"text": "b"}, {"text": "a"}])
    running = DataFingerprint()
    documents = list(read_documents(source(path)))
    hashes = [running.add(document) for document in documents]
    assert hashes[0] == hashes[2] != hashes[1]
    assert hashes == [document_hash(document) for document in documents]
    assert running.hexdigest() == fingerprint_documents(documents)


def test_importing_data_loads_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "pyarrow", "ray")
    code = f"import sys, quantascope.jobs.data.source; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bad_row_far_on_is_met_only_when_it_is_reached(tmp_path):
    rows = [{"text": f"row {i}"} for i in range(1000)]
    reader = read_documents(source(write_jsonl(tmp_path / "rows.jsonl", [*rows, {"text": ""}])))
    assert [next(reader).row for _ in range(1000)] == list(range(1000))
    with pytest.raises(BadRowError, match=r"Row 1000 \(line 1001\)"):
        next(reader)
