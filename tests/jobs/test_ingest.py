"""Documents into a run: read ahead, tokenised together, committed in shards; who was stopped goes on after the last."""

import json

import pytest

from quantascope.errors import BadRowError
from quantascope.jobs.collecting import ingest as reading
from quantascope.jobs.collecting.ingest import ingest
from quantascope.jobs.data.source import DataSource
from quantascope.jobs.models.model import load_model
from quantascope.storage import Run
from quantascope.storage.documents import Documents
from tests.command_line import contents


def test_reading_runs_ahead_and_each_bad_row_is_listed_once(tiny_collection, tmp_path, monkeypatch):

    bad = {3, 4, 17, 29}
    with (tmp_path / "rows.jsonl").open("w") as out:
        for row in range(30):
            out.write(json.dumps({"text": None if row in bad else f"one two three {row}"}) + "\n")
    tokenizer = load_model(tiny_collection(tmp_path / "run").model).tokenizer
    skipping = DataSource(dataset=str(tmp_path / "rows.jsonl"), bad_rows="skip")
    indexes = []
    for at_once in (1, 40, 250_000):
        monkeypatch.setattr(reading, "_AT_ONCE", at_once)
        monkeypatch.setattr(reading, "_SHARD_TOKENS", 25)
        with Run.create(tmp_path / f"whole {at_once}", config={}) as run:
            indexes.append(ingest(run, skipping, tokenizer, keep_text=True))
    assert [row["row"] for row in indexes[0]["skipped"]] == sorted(bad)
    assert indexes[0] == indexes[1] == indexes[2]

    real, calls = Documents.write_shard, []

    def stopped(self, totals, documents, **options):
        calls.append(len(documents))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, totals, documents, **options)

    with Run.create(tmp_path / "stopped", config={}) as run:
        monkeypatch.setattr(Documents, "write_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            ingest(run, skipping, tokenizer, keep_text=True)
        assert ingest(run, skipping, tokenizer, keep_text=True) == indexes[0]

    stopping = DataSource(dataset=str(tmp_path / "rows.jsonl"))
    monkeypatch.setattr(reading, "_SHARD_TOKENS", 4)
    with Run.create(tmp_path / "bad", config={}) as run:
        with pytest.raises(BadRowError, match="Row 3"):
            ingest(run, stopping, tokenizer, keep_text=True)
        assert run.store.exists("documents/00000.parquet")


def test_a_reading_that_was_stopped_goes_on_after_the_last_shard(tiny_collection, tmp_path, monkeypatch):

    collection = tiny_collection(tmp_path / "run")
    tokenizer = load_model(collection.model).tokenizer
    monkeypatch.setattr(reading, "_SHARD_TOKENS", 60)
    monkeypatch.setattr(reading, "_AT_ONCE", 60)
    real, read = reading.tokenise_all, []

    def counted(tokenizer, documents):
        read.extend(document.row for document in documents)
        if stop and len(read) >= stop:
            raise KeyboardInterrupt
        return real(tokenizer, documents)

    monkeypatch.setattr(reading, "tokenise_all", counted)
    stop = 0
    with Run.create(tmp_path / "whole", config={}) as whole:
        ingest(whole, collection.data, tokenizer, keep_text=True)
    num_shards, rows = len(whole.documents.index["shards"]), list(read)
    assert num_shards > 4
    with Run.create(tmp_path / "run", config={}) as run:
        for stop in (len(rows) // 2, len(rows) // 3):  # noqa: B007 - `counted` reads it
            read.clear()
            with pytest.raises(KeyboardInterrupt):
                ingest(run, collection.data, tokenizer, keep_text=True)
        first = run.store.path("documents/00000.parquet").stat().st_mtime_ns
        stop = 0
        read.clear()
        ingest(run, collection.data, tokenizer, keep_text=True)
    assert rows[-len(read) :] == read
    assert len(read) <= 0.5 * len(rows)
    assert run.store.path("documents/00000.parquet").stat().st_mtime_ns == first
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert not run.store.exists("begun")
