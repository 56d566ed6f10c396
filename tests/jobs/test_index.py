"""Indexes of a run: the kinds, brought up to date without a rebuild, refused when stale or damaged, recall stored."""

import shlex
import shutil
from types import SimpleNamespace

import faiss
import numpy as np
import pyarrow as pa
import pytest

from quantascope.attribution.search.index import KINDS, IndexSpec, NearestIndex, least_probes, recall
from quantascope.errors import ConfigurationError, DamagedRunError, RunMismatchError, RunNotFoundError
from quantascope.jobs import index as module
from quantascope.jobs.index import Index, IndexConfig, exact, make_index, search
from quantascope.jobs.stored_rows import StoredRows
from quantascope.jobs.verify import verify
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import RowBlock, Run

SIZE, DIM, NUM_BLOCKS = 256, 32, 8
ZERO, REFUSED = 3, 300


def planted():
    generator = np.random.default_rng(5)
    centres = generator.standard_normal((30, DIM))
    rows = centres[generator.integers(0, 30, SIZE * NUM_BLOCKS)] + 0.7 * generator.standard_normal(
        (SIZE * NUM_BLOCKS, DIM)
    )
    rows[ZERO], rows[REFUSED] = 0, np.nan
    return rows.astype(np.float32)


ROWS = planted()


def commit(run, blocks, rows=ROWS):
    row_set = run.new_row_set("rows")
    for block in blocks:
        part = rows[block * SIZE : (block + 1) * SIZE]
        units = pa.table(
            {"unit": pa.array(range(block * SIZE, (block + 1) * SIZE), pa.int64()), "loss": np.zeros(SIZE)}
        )
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        row_set.commit(block, RowBlock(rows=part, block_norms=norms, units=units))


@pytest.fixture
def run(tmp_path):
    """A run of 2,048 rows in 8 blocks, of which the first 5 are committed."""
    plan = {
        "unit_type": "window",
        "dim": DIM,
        "rows_per_block": SIZE,
        "blocks": [{"name": "a", "first_column": 0, "last_column": DIM - 1}],
    }
    with Run.create(tmp_path / "run", config={}) as made:
        units = pa.table({"unit": pa.array(range(SIZE * NUM_BLOCKS), pa.int64())})
        made.new_row_set("rows").freeze(plan, units)
        commit(made, range(5))
    return Run.open(tmp_path / "run")


def config(kind="ivf-sq", **changes):
    spec = {"kind": kind, "num_lists": 16 if kind != "flat" else None}
    return IndexConfig(spec=IndexSpec(**spec), **{"num_neighbours": 10, "num_queries": 40} | changes)


def queries(num=12):
    return (ROWS[10 : 10 + num] / np.linalg.norm(ROWS[10 : 10 + num], axis=1, keepdims=True)).astype(np.float32)


def brute_force(num_rows, k):
    fine = np.setdiff1d(np.arange(num_rows), [ZERO, REFUSED])
    unit = ROWS[fine].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = queries() @ unit.T
    order = np.argsort(-cosines, axis=1)[:, :k]
    return fine[order], np.take_along_axis(cosines, order, 1)


def test_the_exact_search_reads_every_row_but_the_refused_and_the_zero_one(run):
    found = search(run, queries(), 5)
    units, cosines = brute_force(5 * SIZE, 5)
    assert np.array_equal(found.units, units)
    np.testing.assert_allclose(found.scores, cosines, atol=5e-4)  # rows are stored in float16
    assert search(run, queries(1), 10_000).units.shape == (1, 5 * SIZE - 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_finds_what_it_says_with_the_scores_of_the_scan(run, kind):
    made = make_index(run, config(kind, recall=0.9))
    found, truth = search(run, queries(), 10, index=kind), search(run, queries(), 10)
    assert made.facts["recall"] >= 0.9
    assert made.facts["num_rows"] == 5 * SIZE - 2
    assert recall(found.units, truth.units) >= 0.8
    for units, scores, all_units, all_scores in zip(found.units, found.scores, truth.units, truth.scores, strict=True):
        both = np.isin(units, all_units)
        assert np.array_equal(scores[both], all_scores[np.isin(all_units, units)])
    assert made.facts["num_probes"] < 16


@pytest.mark.parametrize("kind", KINDS)
def test_faiss_alone_reads_it_and_numbers_are_units(run, kind):
    make_index(run, config(kind))
    opened = faiss.read_index(str(run.store.path(f"index/{kind}/rows.faiss")))
    _, units = opened.search(queries(), 10)
    assert (units == np.arange(10, 22)[:, None]).any(axis=1).mean() > 0.9
    if kind != "flat":
        assert faiss.extract_index_ivf(opened).nprobe == Index(run, kind).facts["num_probes"]


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_are_found_before_they_are_added_and_added_without_a_rebuild(run, monkeypatch, kind):
    make_index(run, config(kind))
    commit(run, [5, 6])
    new = np.array([5 * SIZE + 7, 7 * SIZE - 1])
    asked = (ROWS[new] / np.linalg.norm(ROWS[new], axis=1, keepdims=True)).astype(np.float32)
    assert (search(run, asked, 10, index=kind).units == new[:, None]).any(axis=1).all()
    added = []
    add = NearestIndex.add
    monkeypatch.setattr(NearestIndex, "add", lambda self, rows, units: added.append(units) or add(self, rows, units))
    monkeypatch.setattr(NearestIndex, "train", lambda *_: pytest.fail("it was trained again"))
    grown = make_index(run, config(kind))
    assert [units[0] // SIZE for units in added] == [5, 6]
    assert grown.facts["num_rows"] == 7 * SIZE - 2
    assert grown.uncovered() == []
    assert (search(run, asked, 10, index=kind).units == new[:, None]).any(axis=1).all()
    if kind == "flat":
        assert np.array_equal(search(run, asked, 10, index=kind).units, search(run, asked, 10).units)
    assert make_index(run, config(kind)).facts == grown.facts
    assert len(added) == 2


def test_a_stale_index_is_refused_and_made_anew(run):
    make_index(run, config())
    changed = ROWS.copy()
    changed[SIZE : 2 * SIZE] *= -1
    for name in ("gradients/c/1/0", "units/00001.parquet", "commits/00001.json"):
        run.store.remove(f"rows/rows/{name}")
    commit(run, [1], changed)
    fresh = Run.open(run.store.root)
    with pytest.raises(RunMismatchError, match=r"1 blocks of row set 'rows' have changed"):
        search(fresh, queries(), 3, index="ivf-sq")
    assert make_index(fresh, config()).facts["num_rows"] == 5 * SIZE - 2
    assert search(fresh, queries(), 3, index="ivf-sq").units.min() >= 0


@pytest.mark.parametrize("where", [0, 40, -1])
def test_a_damaged_index_is_never_answered_from(run, where):
    make_index(run, config())
    path = run.store.path("index/ivf-sq/rows.faiss")
    data = bytearray(path.read_bytes())
    data[where] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedRunError, match=r"rows\.faiss"):
        search(run, queries(), 3, index="ivf-sq")


def test_a_damaged_row_is_never_answered_from(run):
    make_index(run, config())
    path = run.store.path("rows/rows/gradients/c/0/0")
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    for name in (None, "ivf-sq"):
        with pytest.raises(DamagedRunError, match="gradients/c/0/0"):
            search(Run.open(run.store.root), queries(), 3, index=name)


def test_the_stored_recall_is_the_one_that_brute_force_gives(run):
    made = make_index(run, config(recall=0.6, rescored=1))
    facts, stored = made.facts, made.stored
    rows, units = stored.sampled(range(5), 40, np.random.default_rng([module._RECALL_STREAM, 0]))
    shares = []
    for row, unit in zip(rows, units, strict=True):
        cosines = np.concatenate([stored.block_rows(b)[0] for b in range(5)]) @ row
        numbers = np.concatenate([stored.block_rows(b)[1] for b in range(5)])
        truth = numbers[np.argsort(-cosines)][:11]
        found = made.nearest.search(row[None], 11)[1][0]
        shares.append(np.isin(truth[truth != unit], found).mean())
    assert facts["recall"] == pytest.approx(np.mean(shares))
    assert facts["recall"] >= 0.6 > facts["recalls"].get(str(facts["num_probes"] // 2), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_make_the_same_bytes(run, monkeypatch, kind):
    make_index(run, config(kind, name="here"))
    asked = []

    class Pool:
        """Gives the tasks out in the reverse order."""

        def __init__(self, worker):
            self.worker = worker

        def run(self, tasks, submit, *, on_done):
            worker = SimpleNamespace(part=SimpleNamespace(remote=self.worker.part))
            for task in reversed(tasks):
                asked.append(task)
                on_done(task, submit(worker, task))

    @module.contextmanager
    def workers(arguments, options):
        yield Pool(module.IndexWorker(*arguments))

    monkeypatch.setattr(module, "_workers", workers)
    monkeypatch.setattr(module, "_PART_BYTES", 2 * 2 * DIM * SIZE)
    make_index(run, config(kind, name="there"), ray_options=RayOptions(num_workers=1))
    assert asked == [2, 1, 0]
    read = [run.store.read(f"index/{name}/rows.faiss") for name in ("here", "there")]
    assert read[0] == read[1]


def test_what_cannot_be_is_refused(run):
    with pytest.raises(RunNotFoundError, match="no index named 'none'"):
        search(run, queries(), 3, index="none")
    make_index(run, config())
    with pytest.raises(RunMismatchError, match="num_lists"):
        make_index(run, IndexConfig(spec=IndexSpec(num_lists=8), num_neighbours=10, num_queries=40))
    with pytest.raises(ConfigurationError, match="31 wide"):
        search(run, queries()[:, :31], 3, index="ivf-sq")
    run.derived("index", "main").write({"rows": "rows", "kind": "flat"}, source="", files={"rows.faiss": b""})
    for attempt in (lambda: search(run, queries(), 3, index="main"), lambda: make_index(run, config(name="main"))):
        with pytest.raises(RunMismatchError, match="belongs to the quanta"):
            attempt()
    for wrong in ({"recall": 0}, {"recall": 1.1}, {"rescored": 0}, {"name": "a/b"}):
        with pytest.raises(ConfigurationError):
            config(**wrong)
    for wrong in ({"num_lists": 0}, {"code_bytes": 0}):
        with pytest.raises(ConfigurationError):
            IndexSpec(**wrong)


def test_the_least_number_of_lists_is_taken():
    assert least_probes(lambda n: n / 10, 100, 0.35) == (4, {1: 0.1, 2: 0.2, 4: 0.4})
    assert least_probes(lambda n: 0.0, 3, 0.9)[0] == 3


def test_a_transform_is_applied_to_rows_and_scan_alike(run):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0].astype(np.float32)
    stored = StoredRows(run.row_set("rows"), lambda rows: rows @ turn)
    found = exact(stored, queries() @ turn, 5)
    assert np.array_equal(found.units, brute_force(5 * SIZE, 5)[0])
    taken = stored.take(found.units[0])
    np.testing.assert_allclose(taken @ (queries()[0] @ turn), found.scores[0], atol=1e-6)


def test_the_command_says_what_it_made(run, cli):
    out, _ = cli("index", run.store.root, "--kind", "ivf-sq", "--lists", "16", "--recall", "0.9", "--json")
    again, _ = cli("index", run.store.root, "--kind", "ivf-sq", "--lists", "16", "--recall", "0.9")
    assert '"num_lists": 16' in out
    assert "1,278 rows of rows in index ivf-sq (ivf-sq, 16 lists); recall@100" in again


def test_the_command_that_verify_names_makes_a_damaged_index_again(run, cli):
    cli("index", run.store.root, "--kind", "ivf-sq", "--lists", "16", "--name", "a", "--recall", "0.9", "--bits", "16")
    folder = run.store.root / "index/a"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "rows.faiss").write_bytes(before["rows.faiss"][:-1])
    [fault] = [f for f in verify(str(run.store.root)).findings if f.file == "index/a/rows.faiss"]
    _, _, command = fault.mend.partition(", then ")
    assert command.startswith(f"quantascope index {run.store.root} --kind ivf-sq --name a ")
    shutil.rmtree(folder)
    cli(*shlex.split(command)[1:])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_index_whose_facts_are_damaged_is_named_all_the_same(run, cli):
    cli("index", run.store.root, "--kind", "flat")
    (run.store.root / "index/flat/facts.json").write_text("{}")
    mends = {fault.mend for fault in verify(str(run.store.root)).findings}
    assert any(mend.endswith(f"quantascope index {run.store.root} … --name flat") for mend in mends)
