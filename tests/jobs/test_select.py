"""A selection is found in tasks that anyone may do and that are done once: its units are the same however it is cut."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from quantascope.attribution.selection import thin, thin_part
from quantascope.errors import DamagedRunError
from quantascope.jobs.collecting import select
from quantascope.jobs.collecting.config import SelectionConfig
from quantascope.jobs.collecting.select import Selecting, select_units
from quantascope.jobs.data.tokens import windows
from quantascope.storage import Run
from quantascope.storage.checked import digest
from quantascope.storage.documents import StoredDocument
from quantascope.storage.local import LocalStore
from quantascope.storage.selection import GROUP_UNITS, StoredSelection, encode_groups
from quantascope.storage.tables import encode_table

WINDOW = 8
ASKED = [
    {"unit_type": "token-loss", "max_loss": 0.5},
    {"unit_type": "token-loss", "max_loss": 0.7, "max_per_window": 2, "max_units": 11},
    {"unit_type": "token-loss", "scan_tokens": 60, "max_units": 5},
    {"unit_type": "window"},
    {"unit_type": "window", "max_units": 7},
    {"unit_type": "document", "max_units": 4},
    {"unit_type": "span"},
    {"unit_type": "span", "max_units": 6},
    {"unit_type": "token-contribution"},
    {"unit_type": "token-contribution", "max_per_window": 3, "max_units": 17},
    {"unit_type": "token-contribution", "max_units": 4},
    {"unit_type": "group", "group_by": "kind"},
    {"unit_type": "group", "group_by": "kind", "max_units": 2, "scan_tokens": 80},
]


def made_up(chance, index):
    length = int(chance.integers(1, 40))
    starts = np.arange(length, dtype=np.int32)
    return StoredDocument(
        index=index,
        row=index,
        source="here",
        user_id=str(index),
        labels={"kind": [None, "a", "b", "c"][int(chance.integers(4))], "odd": str(index % 2)},
        sha256="",
        text=None,
        tokens=chance.integers(0, 6, length).astype(np.int32),
        starts=starts,
        ends=starts + 1,
        counts=chance.random(length) < 0.6,
    )


@pytest.fixture(scope="module")
def documents_run(tmp_path_factory):
    chance = np.random.default_rng(0)
    documents = [made_up(chance, index) for index in range(23)]
    with Run.create(tmp_path_factory.mktemp("select") / "run", config={}) as run:
        totals = run.documents.write(iter([documents[:9], documents[9:]]), label_names=("kind", "odd"))
        run.documents.finish(totals, tokenizer="")
        return run


def losses(chosen):
    """Made of a window's place alone, so that no model is needed; the first token has none."""
    found = [np.random.default_rng([d, f]).random(e - f).astype(np.float32) for d, f, e in chosen.tolist()]
    return [np.concatenate([[np.inf], loss[1:]]).astype(np.float32) for loss in found]


def selecting(run, asked):
    return Selecting(run, "x", SelectionConfig(**asked), window_tokens=WINDOW, loaded=None)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_units_do_not_depend_on_how_the_windows_are_cut_into_tasks(documents_run, asked, monkeypatch):
    found = []
    for size in (1000, 4, 7):
        monkeypatch.setattr(select, "_MOST_WINDOWS", size)
        work = selecting(documents_run, asked)
        found.append(encode_table(select_units(work, losses)))
        assert work.num_tasks == -(-work.num_windows // size)
        work.done()
    assert len(set(found)) == 1
    assert not documents_run.store.exists("begun")


def test_who_goes_on_does_only_the_tasks_that_are_not_committed(documents_run, monkeypatch):
    monkeypatch.setattr(select, "_MOST_WINDOWS", 5)
    asked = {"unit_type": "token-loss", "max_loss": 0.5}
    work = selecting(documents_run, asked)
    wanted = select_units(work, losses)
    work.shards.discard(2)
    work.shards.discard(4)
    done = []
    again = selecting(documents_run, asked)
    units = pa.concat_tables(again.units(lambda tasks: [done.append(again.scan(t, losses)["number"]) for t in tasks]))
    assert done == [2, 4]
    assert units.equals(wanted)
    # what another selection needs is another matter, and this one's is removed
    other = selecting(documents_run, asked | {"max_loss": 0.4})
    other.units(lambda tasks: done.extend(other.scan(t, losses)["number"] for t in tasks))
    assert done[2:] == list(range(other.num_tasks))
    assert not again.shards.committed()
    other.done()


def test_a_damaged_task_is_refused_once_and_then_done_again(documents_run, monkeypatch):
    monkeypatch.setattr(select, "_MOST_WINDOWS", 5)
    work = selecting(documents_run, {"unit_type": "window"})
    wanted = select_units(work, losses)
    shard = next(documents_run.store.path(work.shards.folder).glob("000001.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedRunError, match="give the same command again"):
        list(work.units(lambda tasks: pytest.fail(f"{tasks} are committed") if tasks else None))
    assert encode_table(select_units(work, losses)) == encode_table(wanted)  # NaN equals nothing but its bytes
    work.done()


def test_windows_are_those_that_the_documents_are_cut_into(documents_run):
    lengths = documents_run.documents.lengths().tolist()
    wanted = [(d, f, e) for d, n in enumerate(lengths) for f, e in windows(n, WINDOW)]
    scope = selecting(documents_run, {"unit_type": "token-loss"})._scope
    assert [tuple(w) for w in scope.windows().tolist()] == wanted
    assert [tuple(w) for w in scope.windows(3, 9).tolist()] == wanted[3:9]


def test_candidates_thinned_in_parts_are_those_thinned_at_once():
    chance = np.random.default_rng(1)
    for _ in range(200):
        sizes = chance.integers(0, 9, 6)
        total, limit = int(sizes.sum()), int(chance.integers(1, 40))
        edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        parts = [a + thin_part(a, b, count=total, limit=limit) for a, b in pairwise(edges)]
        wanted = thin(np.zeros(total, np.int64), max_per_window=None, max_units=limit)
        np.testing.assert_array_equal(np.concatenate(parts), wanted)


def test_a_selection_written_in_pieces_has_the_bytes_of_one_written_at_once(tmp_path):
    chance = np.random.default_rng(2)
    count = 2 * GROUP_UNITS + 12_345
    table = pa.table(
        {
            "unit": np.arange(count),
            "loss": chance.random(count, np.float32),
            "label_kind": pa.array(np.array(["a", "b", "c"])[chance.integers(0, 3, count)]),
        }
    )
    edges = [0, 7, 7, GROUP_UNITS + 5, 70_000, 2 * GROUP_UNITS - 1, count]
    whole = b"".join(encode_groups([table]))
    assert b"".join(encode_groups(table.slice(a, b - a) for a, b in pairwise(edges))) == whole
    few = table.slice(0, 1000)
    assert b"".join(encode_groups([few.slice(0, 3), few.slice(3)])) == encode_table(few)
    store = LocalStore(tmp_path)
    for data in (whole, encode_table(table)):  # as this version groups the units, and as an older one did
        store.replace("selection.parquet", data)
        stored = StoredSelection(store, "selection.parquet", digest(data))
        assert len(stored) == count
        for first, last in (
            (0, 5),
            (-9, 3),
            (GROUP_UNITS - 2, GROUP_UNITS + 2),
            (3, count - 1),
            (count - 1, count + 9),
        ):
            wanted = table.slice(max(first, 0), min(last, count) - max(first, 0))
            assert stored.slice(first, last).equals(wanted)
        assert len(stored.slice(7, 7)) == len(stored.slice(count, count + 5)) == 0
        places = np.sort(chance.choice(count, 50, replace=False))
        assert stored.take(places).equals(table.take(pa.array(places)))
        assert pa.concat_tables(stored.groups(["unit"])).equals(table.select(["unit"]))
