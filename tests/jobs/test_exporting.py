"""What a run holds comes out whole, bit for bit, readable by pyarrow and the datasets library; or not at all."""

import errno
import hashlib
import json
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quantascope.errors import (
    ConfigurationError,
    DamagedRunError,
    IncompleteRunError,
    NoSpaceError,
    RunMismatchError,
    RunNotFoundError,
)
from quantascope.jobs.data.source import DataSource, check_data
from quantascope.jobs.exchange.exporting import PARTS, Export, export
from quantascope.storage.checked import decode_json
from quantascope.storage.run import Run


@pytest.fixture
def job(clustered_run, tmp_path):
    """Makes an export of the clustered run into an empty folder; keywords replace its parts."""

    def make(what="rows", to="out.parquet", **parts):
        return Export(**{"run": str(clustered_run), "what": what, "to": str(tmp_path / to)} | parts)

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What the datasets library prepares goes with the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def stored_rows(run):
    row_set = run.row_set()
    return np.concatenate([row_set.stored_block(b) for b in range(row_set.num_blocks)])


def vectors(column):
    return np.stack([np.asarray(row.values) for chunk in column.chunks for row in chunk])


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "cache")


def test_rows_come_out_bit_for_bit_with_their_units(job, clustered_run, tmp_path):
    done = export(job())
    assert (done.num_lines, done.num_files, done.left_out) == (200, 1, 0)
    table, run = pq.read_table(tmp_path / "out.parquet"), Run.open(clustered_run)
    assert table.schema.field("row").type == pa.list_(pa.field("element", pa.float16()), 128)
    assert vectors(table["row"]).tobytes() == stored_rows(run).tobytes()
    units = run.row_set().units()
    assert table.select(units.column_names).equals(units)
    names = [run.documents[d].user_id for d in units["document"].to_pylist()]
    assert table["user_id"].to_pylist() == names


@pytest.mark.parametrize("what", [part for part in PARTS if part != "scores"])
def test_every_way_out_says_the_same(job, tmp_path, what):
    export(job(what))
    export(job(what, "shards"))
    export(job(what, "saved", format="datasets"))
    table = pq.read_table(tmp_path / "out.parquet")
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    loaded = datasets.load_dataset(str(tmp_path / "shards"), split="train")
    for other in (saved, loaded):
        found = other.with_format("arrow")[:]
        assert found.column_names == table.column_names
        assert [str(row) for row in found.to_pylist()] == [str(row) for row in table.to_pylist()]  # NaN is not NaN
    assert check_data(
        DataSource(
            dataset=str(tmp_path / "shards"),
            text_field=None if what == "units" else "user_id" if "user_id" in table.column_names else "phrase",
        )
    ).num_rows == len(table)


def test_large_tables_become_shards(job, tmp_path, monkeypatch):
    monkeypatch.setattr("quantascope.jobs.exchange.files._SHARD_BYTES", 5_000)
    done = export(job(to="shards"))
    names = sorted(path.name for path in (tmp_path / "shards/data").glob("*.parquet"))
    assert len(names) == done.num_files > 3
    assert names[0] == f"rows-00000-of-{len(names):05d}.parquet"
    assert pq.read_table(tmp_path / "shards/data")["unit"].to_pylist() == list(range(200))
    export(job(to="saved", format="datasets"))
    assert datasets.load_from_disk(str(tmp_path / "saved"))["unit"][:] == list(range(200))
    assert export(job()).num_files == 1  # what is asked for as one file is one


def test_assignments_are_those_of_the_quanta(job, clustered_run, tmp_path):
    export(job("assignments"))
    table = pq.read_table(tmp_path / "out.parquet")
    stored = Run.open(clustered_run).derived("quanta", "main").table("units")
    for name in ("unit", "quantum", "cosine"):
        assert table[name].to_pylist() == stored[name].to_pylist()
    units = Run.open(clustered_run).row_set().units().take(stored["unit"])
    assert table["last_token"].to_pylist() == units["last_token"].to_pylist()


def test_units_have_the_text_that_they_are_of(job, clustered_run, bare_run, tmp_path):
    export(job("units"))
    run = Run.open(clustered_run)
    for unit in pq.read_table(tmp_path / "out.parquet").to_pylist()[::17]:
        text = run.documents[unit["document"]].text
        assert unit["text"] == text[unit["text_start"] : unit["text_end"]]
    export(job("units", "bare.parquet", run=str(bare_run), rows="token-loss"))
    assert "text" not in pq.read_table(tmp_path / "bare.parquet").column_names


def test_scores_of_saved_traces(job, run_copy, cli, tmp_path):
    with pytest.raises(RunNotFoundError, match="no saved traces of these quanta"):
        export(job("scores", run=str(run_copy)))
    found = json.loads(
        cli("trace", run_copy, "When John and Mary went to", " the", "-k", "3", "--save", "store", "--json")[0]
    )
    export(job("scores", run=str(run_copy)))
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    supporting = [line for line in table if line["list"] == "supporting"]
    assert [line["unit"] for line in supporting] == [unit["unit"] for unit in found["units"]]
    assert [line["score"] for line in supporting] == pytest.approx([unit["score"] for unit in found["units"]])
    assert {(line["trace"], line["completion"]) for line in table} == {("store", " the")}
    cli("cluster", run_copy, "--num-quanta", "5")
    with pytest.raises(RunNotFoundError, match="1 are of other quanta"):
        export(job("scores", "later.parquet", run=str(run_copy)))


def test_manifests_name_every_source_and_every_byte(job, clustered_run, tmp_path):
    export(job("assignments", "shards"))
    export(job("assignments"))
    run = Run.open(clustered_run)
    for manifest, folder in (
        (tmp_path / "shards/manifest.json", tmp_path / "shards"),
        (tmp_path / "out.parquet.manifest.json", tmp_path),
    ):
        said = decode_json(manifest.read_bytes(), str(manifest))
        assert said["rows_fingerprint"] == run.row_set().fingerprint()
        assert said["quanta_fingerprint"] == run.derived("quanta", "main").fingerprint()
        assert said["data_fingerprint"] == run.documents.index["fingerprint"]
        assert said["model"]["fingerprint"] == run.row_set().plan["model"]["fingerprint"]
        for name, file in said["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file["sha256"]
    assert "load_dataset" in (tmp_path / "shards/README.md").read_text()
    inside = pq.read_schema(tmp_path / "out.parquet").metadata[b"quantascope"]
    assert decode_json(inside, "metadata")["rows_fingerprint"] == run.row_set().fingerprint()


def test_equal_runs_give_equal_exports(job, tmp_path):
    export(job(to="one.parquet"))
    export(job(to="two.parquet"))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


# --- never half ---


@pytest.mark.parametrize("file", ["gradients/c/7/0", "units/00007.parquet", "commits/00007.json"])
@pytest.mark.parametrize("to", ["out.parquet", "shards"])
def test_damaged_rows_are_not_exported(job, run_copy, tmp_path, file, to):
    path = run_copy / "rows/token-loss" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DamagedRunError, match=path.name.replace(".", r"\.")):
        export(job(run=str(run_copy), to=to))
    assert left(tmp_path) == ["run"]


def test_rows_that_are_missing_and_quanta_of_others_are_refused(job, run_copy, tmp_path):
    record = run_copy / "rows/token-loss/commits/00003.json"
    kept = record.read_bytes()
    record.unlink()
    with pytest.raises(IncompleteRunError, match="1 of 50 blocks"):
        export(job(run=str(run_copy)))
    record.write_bytes(kept)
    facts = run_copy / "quanta/main/facts.json"
    facts.write_bytes(facts.read_bytes().replace(b'"source": "', b'"source": "0'))
    with pytest.raises((DamagedRunError, RunMismatchError)):
        export(job("quanta", run=str(run_copy)))
    assert left(tmp_path) == ["run"]


def test_quanta_that_are_replaced_meanwhile_are_noticed(job, run_copy, tmp_path, monkeypatch):
    from quantascope.storage.derived import Derived

    real, calls = Derived.fingerprint, []

    def changing(self):
        calls.append(1)
        return real(self) if len(calls) == 1 else "0" * 64

    monkeypatch.setattr(Derived, "fingerprint", changing)
    with pytest.raises(RunMismatchError, match="replaced while they were read"):
        export(job("assignments", run=str(run_copy)))
    assert left(tmp_path) == ["run"]


@pytest.mark.parametrize("to", ["out.parquet", "shards"])
def test_a_disk_that_is_full_leaves_nothing_at_whichever_sync_it_is(job, tmp_path, monkeypatch, to):
    real, syncs, allowed = os.fsync, [], [0]

    def full(descriptor):
        syncs.append(1)
        if len(syncs) == allowed[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "more").mkdir()
    export(job(to=to))
    needed = len(syncs)
    assert needed >= 4  # of the data, of the manifest, of the names
    for number in range(1, needed + 1):
        syncs.clear()
        allowed[0] = number
        with pytest.raises(NoSpaceError, match="was not written"):
            export(job(to=f"more/{to}"))
        assert left(tmp_path / "more") == []


def test_what_exists_is_never_overwritten(job, tmp_path):
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(ConfigurationError, match="exists already"):
        export(job())
    (tmp_path / "shards").mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        export(job(to="shards"))
    assert (tmp_path / "out.parquet").read_text() == "mine"


def test_a_name_that_is_taken_meanwhile_is_left_alone(job, tmp_path, monkeypatch):
    from quantascope.jobs.exchange import files as exporting_files

    def take(path):
        (tmp_path / "out.parquet").write_text("theirs")
        return {"bytes": 0, "sha256": ""}

    monkeypatch.setattr(exporting_files, "_describe", take)
    with pytest.raises(ConfigurationError, match="exists already"):
        export(job())
    assert (tmp_path / "out.parquet").read_text() == "theirs"


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"what": "everything"}, "accepted are rows, units"),
        ({"what": "quanta", "rows": "window"}, "--rows is for rows and units"),
        ({"to": "out.parquet", "format": "datasets"}, "makes a folder"),
        ({"to": "no/such/folder"}, "is not a folder"),
        ({"format": "csv"}, "accepted are parquet, datasets"),
    ],
)
def test_bad_requests(job, parts, why):
    with pytest.raises(ConfigurationError, match=why):
        export(job(**parts))


def test_the_command_says_what_it_wrote(cli, refused, clustered_run, tmp_path):
    out, err = cli("export", clustered_run, "--what", "rows", "--to", tmp_path / "rows.parquet")
    assert out.startswith(f"200 rows of {clustered_run} in {tmp_path}/rows.parquet (1 file, 0.")
    assert "export: 200 of 200 lines" in err
    found = json.loads(cli("export", clustered_run, "--what", "quanta", "--to", tmp_path / "quanta", "--json")[0])
    assert (found["what"], found["num_files"]) == ("quanta", 1)
    assert "--what" in refused(ConfigurationError, "export", clustered_run, "--what", "all", "--to", tmp_path / "x")
