"""The power goes at any moment: what the store said was done is there, whole, and the rest is done again."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from quantascope.jobs.verify import verify
from quantascope.storage import Run
from quantascope.storage.run import remove_part
from tests.command_line import contents
from tests.faults.dying_disk import Death
from tests.faults.power_loss import forgetful_disk
from tests.faults.test_stateful import NUM_UNITS, PLAN, rows_of


class Job:
    """A run with two row sets and two derived folders, and what of it was said to be done."""

    def __init__(self, path):
        self._path = path
        self.done = []

    def __call__(self):
        with Run.create(self._path, config={}) as run:
            if not run.documents.complete:
                run.documents.finish(run.documents.write(iter([]), label_names=[]), tokenizer="{}")
            self.done.append("run")
            for name in ("one", "two"):
                row_set = run.new_row_set(name)
                if not row_set.planned:
                    row_set.freeze(PLAN, pa.table({"unit": pa.array(range(NUM_UNITS), pa.int64())}))
                for block in row_set.missing_blocks():
                    row_set.commit(block, rows_of(name, block, 0))
                    self.done.append((name, block))
            for version in (1, 2):
                facts = {"version": version, "rows": "one"}
                source = run.row_set("one").fingerprint()
                run.derived("quanta", "main").write(facts, source=source, arrays={"x": np.full(3, version)})
                self.done.append(version)
        if "two" in run.row_sets():
            remove_part(run, rows="two")
        self.done.append("removed")

    def check(self):
        """What was done is there."""
        if not self.done:
            return
        run = Run.open(self._path)
        if "removed" in self.done:
            assert run.row_sets() == ["one"]
        for name, block in (piece for piece in self.done if isinstance(piece, tuple)):
            if name in run.row_sets():
                assert block not in run.row_set(name).missing_blocks()
                run.row_set(name).stored_block(block)
            else:
                assert name == "two", "which is removed in the end"
        if versions := [piece for piece in self.done if isinstance(piece, int)]:
            derived = run.derived("quanta", "main")
            if derived.exists:  # a newer one may be on its way
                assert derived.facts()["version"] >= max(versions)
                assert derived.array("x").tolist() == [derived.facts()["version"]] * 3


@pytest.mark.parametrize("names", [False, True], ids=["no unsynced name lasts", "no unsynced byte lasts"])
@pytest.mark.parametrize("step", [pytest.param(1, marks=(pytest.mark.slow, pytest.mark.timeout(1200))), 61])
def test_what_was_said_to_be_done_outlasts_a_power_loss(tmp_path, names, step):
    path, aside = tmp_path / "run", tmp_path / "aside"
    aside.mkdir()
    with forgetful_disk(path, aside) as disk:
        Job(path)()
    wanted = contents(path)
    total = disk.num_operations
    assert total > 150
    for place in [*range(0, total, step), total]:
        for folder in (path, aside):
            shutil.rmtree(folder, ignore_errors=True)
        aside.mkdir()
        job = Job(path)
        with forgetful_disk(path, aside, place) as disk:
            if place < total:
                with pytest.raises(Death):
                    job()
            else:
                job()
        disk.lose(names=names)
        job.check()
        Job(path)()
        assert contents(path) == wanted, place
        assert verify(str(path)).is_clean, place


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_a_store_that_does_not_sync_is_found_out(tmp_path, forgotten, monkeypatch):
    """Without the sync of a file, or of its folder, a commit is lost: so the test above can fail."""
    path, aside = tmp_path / "run", tmp_path / "aside"
    aside.mkdir()
    job = Job(path)
    with forgetful_disk(path, aside) as disk:
        sync = os.fsync

        def forget(descriptor):
            if Path(f"/proc/self/fd/{descriptor}").is_file() != (forgotten == "file"):
                sync(descriptor)

        monkeypatch.setattr(os, "fsync", forget)
        job()
    monkeypatch.undo()
    disk.lose(names=forgotten == "file")
    with pytest.raises(Exception):  # noqa: B017 - nothing is left, or it is empty
        job.check()
