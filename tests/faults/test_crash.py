"""A small job dies at every single thing that it does to the disk; the same command then goes on to the same bytes."""

import shutil

import pytest

from quantascope.attribution.clustering import AverageLinkage
from quantascope.jobs.collecting import ingest, select, worker
from quantascope.jobs.copying import copy
from quantascope.jobs.quanta.cluster import QuantaConfig, make_quanta, measure
from quantascope.jobs.verify import verify
from quantascope.storage import Run
from quantascope.storage.checked import decode_json
from tests.command_line import contents
from tests.faults.dying_disk import Death, dying_disk

ALL = (pytest.mark.slow, pytest.mark.timeout(1200))
SAMPLED = 10
"""`make test` dies at every tenth operation, and at the last."""


class Work:
    """What was computed, however often: documents tokenised, selection tasks, blocks."""

    def __init__(self):
        self.done = []

    def count(self, patch, module, name, label):
        real = getattr(module, name)

        def counted(*arguments, **options):
            self.done.append(label(*arguments))
            return real(*arguments, **options)

        patch.setattr(module, name, counted)

    def left(self, run, whole):
        """Of all that an undisturbed job does, what is not committed yet."""
        kept = set()
        for record in run.glob("begun/documents/*/*.json"):
            found = decode_json(record.read_bytes(), record.name)
            kept |= {("document", row) for row in range(found["facts"]["next_row"])}
        kept |= {("task", int(record.stem)) for record in run.glob("begun/rows/*/*/*.json")}
        if (run / "documents/documents.json").exists():
            kept |= {piece for piece in whole if piece[0] == "document"}
        if (run / "rows/token-loss/set.json").exists():
            kept |= {piece for piece in whole if piece[0] == "task"}
        kept |= {("block", int(record.stem)) for record in run.glob("rows/*/commits/*.json")}
        return [piece for piece in whole if piece not in kept]


@pytest.fixture
def work(monkeypatch):
    """Counts what is computed, in small pieces: several shards of documents and several selection tasks."""
    monkeypatch.setattr(ingest, "_SHARD_TOKENS", 300)
    monkeypatch.setattr(select, "_MOST_WINDOWS", 12)
    counter = Work()
    monkeypatch.setattr(ingest, "_AT_ONCE", 1)
    counter.count(monkeypatch, ingest, "tokenise_all", lambda _, documents: ("document", documents[0].row))
    counter.count(monkeypatch, select.Selecting, "scan", lambda _, task, *__: ("task", task))
    counter.count(monkeypatch, worker, "collect_block", lambda _, __, block, *___: ("block", block))
    return counter


@pytest.fixture
def collect_job(small_collection, quick_collect, tmp_path):
    return lambda: quick_collect(small_collection(tmp_path / "run"))


@pytest.fixture
def cluster_job(tmp_path):
    def cluster():
        run = Run.open(tmp_path / "run")
        with run.store.lock():
            measure(make_quanta(run, QuantaConfig(clusterer=AverageLinkage(num_quanta=3))), num_shuffles=5)

    return cluster


def committed(run):
    """Each commit record of a block and the files that it names, with what tells whether they were written again."""
    found = {}
    for path in run.glob("rows/*/commits/*.json"):
        row_set = Run.open(run).row_set(path.parent.parent.name)
        for name in (f"commits/{path.name}", *row_set.record(int(path.stem))["files"]):
            status = (path.parent.parent / name).stat()
            found[path.parent.parent / name] = (status.st_ino, status.st_mtime_ns)
    return found


def die_everywhere(run, job, start, step, work=None):
    """Die at every `step`-th operation of the job and go on; how many deaths that were, of how many operations.

    With `work`, what was committed before a death is not computed again after it, and everything else is, once.
    """

    def fresh():
        shutil.rmtree(run, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, run)

    fresh()
    with dying_disk(run) as disk:
        job()
    wanted, operations = contents(run), disk.done
    whole = sorted(work.done) if work else []
    places = sorted({*range(0, len(operations), step), len(operations) - 1})
    for place in places:
        fresh()
        with dying_disk(run, place) as disk, pytest.raises(Death):
            job()
        assert disk.done[: place + 1][-1][0] == operations[place][0]
        before = committed(run) if (run / "manifest.json").exists() else {}
        where = f"after dying at {place}: {operations[place]}"
        if work:
            left = work.left(run, whole)
            work.done.clear()
        job()
        assert not work or sorted(work.done) == left, where
        assert contents(run) == wanted, where
        after = committed(run)
        assert {path: after[path] for path in before} == before, f"committed work was done again {where}"
        assert not (run / ".tmp").exists() or not list((run / ".tmp").iterdir()), where
    assert verify(str(run)).is_clean
    return len(places), len(operations)


@pytest.mark.parametrize("step", [pytest.param(1, marks=ALL), 3 * SAMPLED])
def test_a_collection_dies_anywhere_and_goes_on_to_the_same_bytes(collect_job, work, tmp_path, step):
    deaths, operations = die_everywhere(tmp_path / "run", collect_job, None, step, work)
    assert deaths >= operations / step > 120 / step


@pytest.mark.parametrize("step", [pytest.param(1, marks=ALL), SAMPLED])
def test_a_clustering_dies_anywhere_and_goes_on_to_the_same_bytes(
    collect_job, cluster_job, small_collection, quick_collect, tmp_path, step
):
    quick_collect(small_collection(tmp_path / "start"))
    deaths, operations = die_everywhere(tmp_path / "run", cluster_job, tmp_path / "start", step)
    assert deaths >= operations / step > 50 / step


@pytest.mark.parametrize("step", [pytest.param(1, marks=ALL), 3 * SAMPLED])
def test_a_copy_dies_anywhere_and_is_no_run_until_it_is_whole(small_copy, tmp_path, step):
    for room in ("quanta", "evidence", "curves"):  # fewer files: each is synced twice for each death
        shutil.rmtree(small_copy / room)
    target = tmp_path / "copy"
    with dying_disk(target) as disk:
        copy(str(small_copy), str(target))
    wanted, operations = contents(small_copy), disk.done
    for place in range(0, len(operations), step):
        shutil.rmtree(target)
        with dying_disk(target, place), pytest.raises(Death):
            copy(str(small_copy), str(target))
        if (target / "manifest.json").exists():
            assert contents(target).items() >= wanted.items(), "the manifest is the last"
        copy(str(small_copy), str(target))
        assert contents(target) == wanted
