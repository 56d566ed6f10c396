"""One block in the hands of several processes: one record, and the files that it names."""

import hashlib
import json
import multiprocessing

import numpy as np
import pyarrow as pa
import pytest

from quantascope.errors import DamagedRunError, RunNotFoundError
from quantascope.storage import RowBlock, Run
from quantascope.storage.local import LocalStore
from quantascope.storage.rowset import RowSet

NUM_BLOCKS, SIZE, DIM = 12, 64, 32
PLAN = {
    "unit_type": "window",
    "dim": DIM,
    "rows_per_block": SIZE,
    "blocks": [{"name": "a", "first_column": 0, "last_column": DIM - 1}],
}


def content(block, worker=0):
    rows = np.random.default_rng(block).normal(size=(SIZE, DIM)).astype(np.float32) + np.float32(1e-3 * worker)
    numbers = range(block * SIZE, (block + 1) * SIZE)
    table = pa.table({"unit": pa.array(numbers, pa.int64()), "loss": pa.array([0.5] * SIZE)})
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return RowBlock(rows=rows, block_norms=norms, units=table)


@pytest.fixture
def folder(tmp_path):
    with Run.create(tmp_path / "run", config={}) as run:
        units = pa.table({"unit": pa.array(range(NUM_BLOCKS * SIZE), pa.int64())})
        run.new_row_set("rows").freeze(PLAN, units)
    return tmp_path / "run"


def _commit_all(folder, worker, barrier, results):
    row_set = RowSet(LocalStore(folder), "rows")
    records = []
    for block in range(NUM_BLOCKS):
        mine = content(block, worker)
        barrier.wait(60)
        records.append(row_set.commit(block, mine))
    results.put(records)


@pytest.mark.parametrize("differ", [False, True], ids=["equal rows", "rows that differ by rounding"])
def test_every_block_in_the_hands_of_three_processes(folder, differ):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = [(folder, worker * differ, barrier, results) for worker in range(3)]
    processes = [context.Process(target=_commit_all, args=a) for a in arguments]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1] == found[2], "all are told the same record"
    assert len(list((folder / "rows/rows/commits").iterdir())) == NUM_BLOCKS
    for record in found[0]:
        for name, sha256 in record["files"].items():
            assert hashlib.sha256((folder / "rows/rows" / name).read_bytes()).hexdigest() == sha256
    assert len(RowSet(LocalStore(folder), "rows").unit_rows()[0]) == NUM_BLOCKS * SIZE


def test_a_record_of_another_plan_or_block_is_refused(folder):
    row_set = RowSet(LocalStore(folder), "rows")
    for block in range(2):
        row_set.commit(block, content(block))
    commits = folder / "rows/rows/commits"
    (commits / "00002.json").write_bytes((commits / "00001.json").read_bytes())
    with pytest.raises(DamagedRunError, match="no record of block 2"):
        row_set.record(2)
    plan_path = folder / "rows/rows/set.json"
    plan = json.loads(plan_path.read_text())
    plan.pop("checksum")
    from quantascope.storage.checked import encode_json

    plan_path.write_bytes(encode_json(plan | {"seed": 7}))
    with pytest.raises(DamagedRunError, match="of another plan"):
        RowSet(LocalStore(folder), "rows").record(0)


def test_files_that_are_no_records_are_not_taken_for_any(folder):
    row_set = RowSet(LocalStore(folder), "rows")
    row_set.commit(3, content(3))
    for name in ("notes.txt", "3.json", "x.json", "00004.json~"):
        (folder / "rows/rows/commits" / name).write_text("mine")
    assert row_set.committed_blocks() == [3]


def test_a_chunk_that_is_gone_or_empty_is_damage(folder):
    row_set = RowSet(LocalStore(folder), "rows")
    row_set.commit(0, content(0))
    chunk = folder / "rows/rows/gradients/c/0/0"
    for spoil in (lambda: chunk.write_bytes(b""), chunk.unlink):
        spoil()
        with pytest.raises(DamagedRunError, match="missing, or not as long"):
            RowSet(LocalStore(folder), "rows").stored_block(0)
    with pytest.raises(RunNotFoundError):
        row_set.record(1)


def test_mending_is_proved_by_the_record_or_by_the_files(folder):
    store = LocalStore(folder)
    row_set = RowSet(store, "rows")
    for block in range(4):
        row_set.commit(block, content(block))
    whole = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    root = folder / "rows/rows"
    (root / "gradients/c/0/0").write_bytes(b"?")
    (root / "commits/00001.json").write_bytes(b"{")
    assert row_set.mend(0, content(0), keep="damaged")
    assert row_set.mend(1, content(1), keep="damaged")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == whole
    (root / "units/00002.parquet").unlink()
    (root / "commits/00003.json").write_bytes(b"{")
    assert not row_set.mend(2, content(2, worker=1), keep="damaged")
    assert not row_set.mend(3, content(3, worker=1), keep="damaged")
    kept = folder / "damaged/rows/rows"
    assert (kept / "gradients/c/2/0").read_bytes() == whole[root / "gradients/c/2/0"]
    assert (kept / "commits/00003.json").read_bytes() == b"{"
    assert len(RowSet(store, "rows").record(2)["files"]) == 3
    RowSet(store, "rows").stored_block(3)
