"""A model of a run, in memory, against the real one: commits, deaths, new openings, removals, what is derived."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quantascope.errors import RunNotFoundError
from quantascope.jobs.copying import copy
from quantascope.jobs.verify import verify
from quantascope.storage import RowBlock, Run
from quantascope.storage.begun import Begun
from quantascope.storage.run import remove_part
from tests.command_line import contents
from tests.faults.dying_disk import Death, dying_disk

DIM, SIZE, NUM_UNITS = 4, 3, 8
PLAN = {"dim": DIM, "rows_per_block": SIZE, "blocks": [{"name": "a", "first_column": 0, "last_column": DIM - 1}]}
SETS = st.sampled_from(["one", "two"])
BLOCKS = st.integers(0, 2)
DEATHS = st.integers(0, 40)


def rows_of(name, block, version):
    first, last = block * SIZE, min((block + 1) * SIZE, NUM_UNITS)
    seed = [len(name), ord(name[0]), block, version]
    rows = np.random.default_rng(seed).normal(size=(last - first, DIM)).astype(np.float32)
    units = pa.table({"unit": pa.array(range(first, last), pa.int64()), "loss": pa.array([0.5] * (last - first))})
    return RowBlock(rows=rows, block_norms=np.linalg.norm(rows, axis=1, keepdims=True), units=units)


def begun_of(run, name):
    return Begun(run.store, f"rows/{name}", "key")


class RunMachine(RuleBasedStateMachine):
    """What was committed stays what it was, whoever died since."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="qs"))
        self.path = self.folder / "run"
        with Run.create(self.path, config={}) as run:
            run.documents.finish(run.documents.write(iter([]), label_names=[]), tokenizer="{}")
        self.rows: dict[str, dict[int, int]] = {}
        """Row set → block → the version of it that was committed."""
        self.derived: dict[str, int] = {}
        self.begun: dict[str, dict[int, int]] = {}
        """Stage → shard → the version of it that was committed while the stage is not finished."""

    def teardown(self):
        shutil.rmtree(self.folder)

    def freeze_now(self, name, *, note=True):
        units = pa.table({"unit": pa.array(range(NUM_UNITS), pa.int64())})
        row_set = Run.open(self.path).new_row_set(name)
        row_set.freeze(PLAN, row_set.write_selection([units.slice(0, 3), units.slice(3)]))
        if note:
            self.rows.setdefault(name, {})

    def run_until(self, death, action):
        """Whether the action came to its end before the death."""
        with dying_disk(self.path, death) as disk:
            try:
                action()
            except Death:
                return False
        assert not disk.dead
        return True

    @rule(name=SETS, death=DEATHS)
    def freeze(self, name, death):
        self.run_until(death, lambda: self.freeze_now(name, note=False))
        if name in Run.open(self.path).row_sets():
            self.rows.setdefault(name, {})

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), block=BLOCKS, version=st.integers(0, 3), death=DEATHS)
    def commit(self, data, block, version, death):
        name = data.draw(st.sampled_from(sorted(self.rows)))
        row_set = Run.open(self.path).row_set(name)
        self.run_until(death, lambda: row_set.commit(block, rows_of(name, block, version)))
        if block not in Run.open(self.path).row_set(name).missing_blocks():
            self.rows[name].setdefault(block, version)

    @rule(name=SETS, shard=BLOCKS, version=st.integers(0, 3), death=DEATHS)
    def begin(self, name, shard, version, death):
        """A part of a selection; whoever comes second finds the first one's."""
        begun = begun_of(Run.open(self.path), name)
        self.run_until(death, lambda: begun.commit(shard, pa.table({"x": [version] * (shard + 1)}), {"v": version}))
        if shard in begun_of(Run.open(self.path), name).committed():
            self.begun.setdefault(name, {}).setdefault(shard, version)

    @rule(name=SETS, death=DEATHS)
    def forget(self, name, death):
        """The stage is finished: all its parts go, or none."""
        self.run_until(death, lambda: begun_of(Run.open(self.path), name).clear())
        if not begun_of(Run.open(self.path), name).committed():
            self.begun.pop(name, None)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), more=st.integers(1, 3))
    def add(self, data, more):
        """More rows of a run are another row set; those that are there stay as they are."""
        name = f"{data.draw(st.sampled_from(sorted(self.rows)))}-{more}"[:6]
        self.freeze_now(name)

    @rule(version=st.integers(0, 3), death=DEATHS)
    def derive(self, version, death):
        derived = Run.open(self.path).derived("quanta", "main")
        arrays = {"x": np.full(3, version), "y": np.arange(version)}
        if self.run_until(death, lambda: derived.write({"k": version}, source="s", arrays=arrays)):
            self.derived["main"] = version
        elif not derived.exists:
            self.derived.pop("main", None)  # it died between taking the older one away and giving the new one its name
        elif derived.facts()["k"] == version:
            self.derived["main"] = version

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove_rows(self, data):
        name = data.draw(st.sampled_from(sorted(self.rows)))
        remove_part(Run.open(self.path), rows=name)
        del self.rows[name]
        self.begun.pop(name, None)

    @rule(death=DEATHS)
    def copy(self, death):
        target = self.folder / "copy"
        shutil.rmtree(target, ignore_errors=True)
        with dying_disk(target, death):
            try:
                copy(str(self.path), str(target))
            except Death:
                if not (target / "manifest.json").exists():
                    with pytest.raises(RunNotFoundError):
                        verify(str(target))
                    return
        assert verify(str(target)).is_clean

    @rule()
    def lock(self):
        with Run.open(self.path).store.lock():
            assert not any(key.startswith(".tmp") for key in contents(self.path))

    @invariant()
    def what_was_committed_is_there_and_no_more(self):
        run = Run.open(self.path)
        assert run.row_sets() == sorted(self.rows)
        for name, blocks in self.rows.items():
            row_set = run.row_set(name)
            assert row_set.missing_blocks() == [b for b in range(3) if b not in blocks]
            for block, version in blocks.items():
                raw = rows_of(name, block, version).rows
                wanted = raw / np.linalg.norm(raw, axis=1, keepdims=True) * np.sqrt(DIM)
                np.testing.assert_allclose(row_set.stored_block(block), wanted, atol=2e-3)
        for name in ("one", "two"):
            begun = begun_of(run, name)
            assert begun.committed() == sorted(self.begun.get(name, {}))
            for shard, version in self.begun.get(name, {}).items():
                assert begun.table(shard)["x"].to_pylist() == [version] * (shard + 1)
                assert begun.record(shard)["facts"] == {"v": version}
        assert run.derived_names("quanta") == sorted(self.derived)
        for name, version in self.derived.items():
            found = run.derived("quanta", name)
            assert found.facts() == {"k": version}
            assert found.array("x").tolist() == [version] * 3
            assert len(found.array("y")) == version

    @invariant()
    def every_file_is_as_it_was_written(self):
        assert verify(str(self.path)).is_clean


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
TestRun = RunMachine.TestCase
TestRun.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, derandomize=True, suppress_health_check=CHECKS
)
