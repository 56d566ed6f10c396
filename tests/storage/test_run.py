import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantascope.errors import DamagedRunError, IncompleteRunError, RunMismatchError, RunNotFoundError
from quantascope.storage import RowBlock, Run, Status, StoredDocument
from quantascope.storage.run import remove_part
from quantascope.storage.stale import stale_parts

DIM = 6
PLAN = {
    "unit_type": "token-loss",
    "dim": DIM,
    "rows_per_block": 4,
    "blocks": [
        {"name": "a", "first_column": 0, "last_column": 1},
        {"name": "b", "first_column": 2, "last_column": 5},
    ],
}


def document(index, text="one two"):
    return StoredDocument(
        index=index,
        row=index + 10,
        source="here",
        user_id=f"id{index}",
        labels={"kind": "plant"},
        sha256="0" * 64,
        text=text,
        tokens=np.array([1, 2, index], np.int32),
        starts=np.array([0, 3, 4], np.int32),
        ends=np.array([3, 4, 7], np.int32),
        counts=np.array([True, False, True]),
    )


def rows(num_units=10):
    values = np.random.default_rng(0).normal(size=(num_units, DIM)).astype(np.float32) * 1e-6
    values[3] = 0
    values[5, 2] = np.nan
    return values


def units(first, last):
    return pa.table({"unit": pa.array(range(first, last), pa.int64()), "loss": pa.array([0.5] * (last - first))})


def fill(row_set, values, blocks=None):
    for block in range(row_set.num_blocks) if blocks is None else blocks:
        first, last = row_set.block_range(block)
        part = values[first:last]
        norms = np.stack([np.linalg.norm(part[:, :2], axis=1), np.linalg.norm(part[:, 2:], axis=1)], axis=1)
        row_set.commit(block, RowBlock(rows=part, block_norms=norms.astype(np.float32), units=units(first, last)))


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "run", config={"data": {"dataset": "x"}}) as run:
        totals = run.documents.write(iter([[document(0), document(1)], [document(2)]]), label_names=["kind"])
        run.documents.finish(totals, tokenizer="{}", fingerprint="f")
        run.new_row_set("tokens").freeze(PLAN, units(0, 10))
        yield run


def test_rows_come_back_with_unit_norm_and_units_know_their_status(run):
    row_set = run.row_set("tokens")
    fill(row_set, rows())
    index, found = row_set.unit_rows()
    assert index.tolist() == [0, 1, 2, 4, 6, 7, 8, 9]
    wanted = rows()[index]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=2e-3)  # float16 has 11 bits
    table = row_set.units()
    assert table["status"][3].as_py() == Status.ZERO
    assert table["status"][5].as_py() == Status.REFUSED
    np.testing.assert_allclose(np.asarray(table["norm"])[index], np.linalg.norm(rows()[index], axis=1), rtol=1e-6)


def test_documents_come_back(run):
    reopened = Run.open(run.store.root)
    assert len(reopened.documents) == 3
    assert reopened.documents.lengths().tolist() == [3, 3, 3]
    found = reopened.documents[2]
    assert (found.user_id, found.row, found.labels, found.text) == ("id2", 12, {"kind": "plant"}, "one two")
    assert found.tokens.tolist() == [1, 2, 2]
    assert found.counts.tolist() == [True, False, True]
    with pytest.raises(IndexError):
        reopened.documents[3]


def test_a_run_is_read_with_zarr_pyarrow_and_faiss_alone(run):
    fill(run.row_set("tokens"), rows())
    root = run.store.root
    del run
    array = zarr.open_array(root / "rows/tokens/gradients", mode="r")
    assert (array.shape, array.chunks, array.dtype) == ((10, DIM), (4, DIM), np.float16)
    table = pa.dataset.dataset(root / "rows/tokens/units").to_table().sort_by("unit")
    good = np.asarray(table["status"]) == 1
    stored = array[:][good].astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), np.sqrt(DIM), rtol=2e-3)
    assert np.isnan(array[5]).all()
    assert not array[3].any()
    index = faiss.IndexFlatIP(DIM)
    index.add(stored)
    assert index.search(stored[:1], 1)[1][0, 0] == 0
    blocks = zarr.open_array(root / "rows/tokens/block_norms", mode="r")
    np.testing.assert_allclose(np.linalg.norm(blocks[:][good], axis=1), np.asarray(table["norm"])[good], rtol=1e-6)
    assert pq.read_table(root / "documents/00000.parquet")["user_id"].to_pylist() == ["id0", "id1"]
    assert json.loads((root / "manifest.json").read_text())["schema_version"] == 2


def test_what_is_not_committed_is_missing_and_says_what_to_do(run):
    row_set = run.row_set("tokens")
    fill(row_set, rows(), blocks=[0, 2])
    assert row_set.missing_blocks() == [1]
    with pytest.raises(IncompleteRunError, match="collect command"):
        row_set.units()


def test_a_second_commit_of_a_block_changes_nothing(run):
    row_set = run.row_set("tokens")
    fill(row_set, rows())
    before = row_set.fingerprint()
    fill(row_set, rows() * 2 + 1)
    assert row_set.fingerprint() == before
    assert np.allclose(row_set.stored_block(2), run.row_set("tokens").stored_block(2))


def test_equal_rows_give_equal_bytes(run, tmp_path):
    fill(run.row_set("tokens"), rows())
    with Run.create(tmp_path / "other", config={"data": {"dataset": "x"}}) as other:
        other.new_row_set("tokens").freeze(PLAN, units(0, 10))
        fill(other.row_set("tokens"), rows(), blocks=[2, 0, 1])
    first, second = run.store.path("rows"), tmp_path / "other" / "rows"
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(choice=st.integers(0, 10**6), bit=st.integers(0, 10**9))
def test_every_flipped_bit_is_found_by_the_read_that_touches_it(run, choice, bit):
    row_set = run.row_set("tokens")
    if row_set.missing_blocks():
        fill(row_set, rows())
    files = sorted(p for p in run.store.root.rglob("*") if p.is_file() and p.name not in (".lock", "zarr.json"))
    path = files[choice % len(files)]
    good = path.read_bytes()
    bad = bytearray(good)
    bad[bit % (8 * len(good)) // 8] ^= 1 << (bit % 8)
    path.write_bytes(bad)
    try:
        with pytest.raises((DamagedRunError, RunMismatchError)):
            read_everything(run.store.root)
    finally:
        path.write_bytes(good)
    read_everything(run.store.root)


def read_everything(root):
    run = Run.open(root)
    list(run.documents)
    run.documents.tokenizer()
    row_set = run.row_set("tokens")
    row_set.selection()
    row_set.unit_rows()
    row_set.block_norms()
    row_set.fingerprint()


def test_another_configuration_is_refused_with_both_sides(run, tmp_path):
    with (
        pytest.raises(RunMismatchError, match=r"data\.dataset: there 'x', asked for 'y'"),
        Run.create(tmp_path / "run", config={"data": {"dataset": "y"}}),
    ):
        pass


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunNotFoundError, match="holds no run"):
        Run.open(tmp_path)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RunNotFoundError, match="choose another --out"), Run.create(tmp_path, config={}):
        pass
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_what_is_derived_is_refused_when_its_source_changed(run):
    derived = run.derived("quanta", "main")
    derived.write({"k": 2}, source="a" * 64, arrays={"x": np.arange(3)}, tables={"t": units(0, 2)})
    assert derived.facts(source="a" * 64) == {"k": 2}
    assert derived.array("x").tolist() == [0, 1, 2]
    assert derived.table("t")["unit"].to_pylist() == [0, 1]
    with pytest.raises(RunMismatchError, match="compute it again"):
        derived.facts(source="b" * 64)
    with pytest.raises(RunNotFoundError, match="it has main"):
        run.derived("quanta", "other").facts()


def test_what_is_stale_is_named_by_its_source(run):
    fill(run.row_set("tokens"), rows())
    now = run.row_set("tokens").fingerprint()
    run.derived("quanta", "main").write({"rows": "tokens"}, source=now)
    run.derived("quanta", "gone").write({"rows": "other"}, source=now)
    run.derived("index", "main").write({"rows": "tokens"}, source="older")
    run.derived("index", "added-to").write({"covers": {}}, source="its own")
    run.derived("curves", "tokens").write({}, source="older")
    run.derived("ledger", "main").write({}, source="its own")
    quanta = run.derived("quanta", "main").fingerprint()
    run.derived("evidence", "main").write({}, source=quanta)
    for room in ("traces", "emergence", "compare"):
        run.derived(room, "main").write({}, source="older quanta")
    expected = [("index", "main", "rows"), ("quanta", "gone", "rows"), ("emergence", "main", "quanta")]
    expected += [("compare", "main", "quanta"), ("curves", "tokens", "rows"), ("traces", "main", "quanta")]
    assert stale_parts(run) == expected
    run.store.replace("rows/tokens/commits/00001.json", b"damaged")
    assert ("index", "main", "rows") not in stale_parts(Run.open(run.store.root)), "that cannot be told"


def test_a_ledger_is_removed_by_its_name(run):
    run.derived("ledger", "main").write({}, source="its own")
    with pytest.raises(RunNotFoundError, match="no ledger 'other'; it has main"):
        remove_part(run, ledger="other")
    with Run.create(run.store.root.parent / "other", config={}) as other:
        other.derived("ledger", "main").write({}, source="its own")
    remove_part(other, ledger="main")
    assert other.derived_names("ledger") == []
