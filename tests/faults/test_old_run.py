"""A run of schema 1, as the version before wrote it (tests/data/make_old_run.py): it opens, and says what it is."""

from dataclasses import replace

import numpy as np
import pytest

from quantascope.errors import RunMismatchError
from quantascope.jobs.collecting.collect import collect
from quantascope.jobs.collecting.config import RowConfig
from quantascope.jobs.data.source import DataSource
from quantascope.jobs.quanta.cluster import Quanta
from quantascope.jobs.verify import verify
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run, Status
from tests.command_line import contents
from tests.here import workers_here


def test_rows_units_and_norms_are_read(old_run):
    run = Run.open(old_run)
    assert run.manifest["schema_version"] == 1
    row_set = run.row_set()
    assert (row_set.schema_version, row_set.is_current, len(row_set), row_set.missing_blocks()) == (1, False, 12, [])
    units, (kept, rows) = row_set.units(), row_set.unit_rows()
    assert np.asarray(units["status"]).tolist() == [Status.OK] * 12
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-3)
    norms = row_set.block_norms()[kept].astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(norms, axis=1), np.asarray(units["norm"])[kept], rtol=1e-5)
    assert run.documents[0].text.startswith("When John and Mary")


def test_its_plan_has_all_that_todays_has(old_run, small_run):
    old, new = Run.open(old_run).row_set().plan, Run.open(small_run).row_set().plan
    assert new.keys() - old.keys() == {"schema_version"}
    assert new["request"].keys() == old["request"].keys()
    assert new["selection"].keys() == old["selection"].keys()
    assert new["blocks"][0].keys() == old["blocks"][0].keys()
    assert old["projection"]["stride"] == 97


def test_it_is_clean_and_its_quanta_still_answer(old_run, cli):
    assert verify(str(old_run)).is_clean
    assert len(Quanta(Run.open(old_run)).table) == 3
    out, _ = cli("info", old_run)
    assert "schema 1, this version writes 2" in out
    assert "12 units × 64" in out
    assert "of schema 1: to be read, not to be collected on" in out


def test_new_quanta_are_made_of_it_and_it_is_copied(old_run, cli, tmp_path):
    before = contents(old_run)
    assert "quanta of 12 units" in cli("cluster", old_run, "--name", "new", "--num-quanta", "4")[0]
    assert contents(old_run).items() >= before.items(), "nothing old is written again"
    cli("copy", old_run, tmp_path / "to")
    assert contents(tmp_path / "to") == contents(old_run)


def test_its_rows_are_not_collected_on_but_others_beside_them(old_run, tiny_collection):
    """It takes new rows under another name, and the run then says that this version has written to it."""
    before = contents(old_run)
    rows = RowConfig(dim=64, rows_per_block=4, shares="equal")
    data = DataSource(dataset="tiny.jsonl", label_fields=("kind",))
    collection = replace(tiny_collection(old_run, rows=rows, max_units=12, model="model"), data=data)
    with workers_here():
        with pytest.raises(RunMismatchError, match=r"planned under schema 1 .*'stride': 97.*choose another --name"):
            collect(collection, RayOptions(num_workers=1))
        assert contents(old_run) == before
        assert collect(replace(collection, name="new"), RayOptions(num_workers=1)).rows_here == 12
    after = contents(old_run)
    assert {k for k in before if after[k] != before[k]} == {"manifest.json"}
    run = Run.open(old_run)
    assert run.manifest["schema_version"] == 2
    assert (run.row_set("token-loss").is_current, run.row_set("new").is_current) == (False, True)
    assert len(Quanta(run).table) == 3
    assert verify(str(old_run)).is_clean


def test_what_needs_its_projection_says_that_it_is_gone(old_run, refused):
    message = refused(RunMismatchError, "trace", old_run, "When John and", " Mary")
    assert "planned under schema 1" in message
